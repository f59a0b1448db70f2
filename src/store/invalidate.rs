//! Invalidations of one entry: older fetches and values are fenced, removed or made due.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::lease::Removal;
use super::tags::Stamp;
use super::{META_OUTLIVES, Store, change, coded};
use crate::entry::duration::millis;
use crate::entry::{Announced, EntryKey};
use crate::redis::RedisTime;

/// The time for which the next refresh of an entry is held off after a fetch for an invalidation began. A storm of
/// invalidations then costs a few fetches a second, and each of them lands.
const STORM: Duration = Duration::from_millis(250);
/// The time for which a refresh is held off where a fetch costs money, once a fetch for an invalidation followed
/// another.
const PAID_STORM: Duration = Duration::from_secs(10);

static INVALIDATE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/invalidate.lua")));

/// The result of an invalidation of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidated {
    /// A fetch in flight will not be written; its worker fetches again (refresh) or drops it (evict).
    pub fenced: bool,
    /// The entry is to be fetched anew, and nobody does yet.
    pub due: bool,
    /// The fetch that was fenced does not see to the entry: it is a service's load, which is not begun anew, or the
    /// entry was evicted and has left the agenda.
    pub left_alone: bool,
    /// Nothing is known of the entry: no value, no fetch, no metadata.
    pub unknown: bool,
    /// A value was removed.
    pub removed: bool,
    /// The removal of that value was held back: the guard of its job counts it still.
    pub was_held: bool,
    /// Nothing was done: a storm is on, and a fetch for the last invalidation is under way. Come again after this time.
    pub debounced: Option<Duration>,
}

/// The terms of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The version that it announces.
    pub version: Announced,
    /// A fetch costs money: in a storm a refresh is held off for longer.
    pub is_paid_for: bool,
    /// The time for which it is remembered if there is no value: a fetch by then answers it, and is rechecked.
    pub remembered: Duration,
    /// The time of the last recheck after it; zero if there is none. A refresh is late if the entry was fetched since
    /// for another reason, but before that time: it counts as of that fetch.
    pub rechecked_for: Duration,
    /// It is a doubt after a gap, and does not end a value that the guard of its job holds back.
    pub is_doubt: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            version: Announced::None,
            is_paid_for: false,
            remembered: Duration::from_secs(60),
            rechecked_for: Duration::ZERO,
            is_doubt: false,
        }
    }
}

impl Store {
    /// Handles an invalidation with time `at` of one entry. In a storm of invalidations a refresh is held off.
    ///
    /// # Errors
    /// Redis's; handling it again does no harm.
    pub async fn invalidate(&self, key: &EntryKey, at: RedisTime, removal: Removal) -> RedisResult<Invalidated> {
        self.invalidate_on(key, at, removal, Terms::default()).await
    }

    /// Handles an invalidation on further terms. A value that has the announced version already is left alone.
    ///
    /// # Errors
    /// As [`Store::invalidate`].
    pub async fn invalidate_on(
        &self,
        key: &EntryKey,
        at: RedisTime,
        removal: Removal,
        terms: Terms,
    ) -> RedisResult<Invalidated> {
        let in_storm = if terms.is_paid_for { PAID_STORM } else { STORM };
        self.invalidated(key, at, removal, terms, (STORM, in_storm)).await
    }

    /// Handles a refresh with time `at` of one entry whose job is unknown here, in a storm as well.
    ///
    /// # Errors
    /// Redis's; handling it again does no harm.
    pub async fn refresh_at_once(&self, key: &EntryKey, at: RedisTime) -> RedisResult<Invalidated> {
        self.invalidated(key, at, Removal::Refresh, Terms::default(), (Duration::ZERO, Duration::ZERO)).await
    }

    /// Marks the caller's own lease with an invalidation by a tag, in a storm as well.
    ///
    /// # Errors
    /// Redis's.
    pub async fn fence(&self, key: &EntryKey, stamp: Stamp) -> RedisResult<()> {
        let pauses = (Duration::ZERO, Duration::ZERO);
        self.invalidated(key, stamp.at, stamp.removal, Terms::default(), pauses).await.map(|_| ())
    }

    async fn invalidated(
        &self,
        key: &EntryKey,
        at: RedisTime,
        removal: Removal,
        terms: Terms,
        (pause, pause_in_storm): (Duration, Duration),
    ) -> RedisResult<Invalidated> {
        let (fenced, due, removed, wait, held_until): (u8, u8, u8, u64, RedisTime) = self
            .call(&INVALIDATE, key)
            .arg(at)
            .arg(removal.as_str())
            .arg(millis(META_OUTLIVES))
            .arg(self.keys.changed_channel())
            .arg(change(key, "evicted"))
            .arg(millis(pause))
            .arg(millis(pause_in_storm))
            .arg(millis(terms.remembered))
            .arg(match terms.version {
                Announced::None => String::new(),
                Announced::AtLeast(version) => version.to_string(),
                Announced::Any => "any".to_owned(),
            })
            .arg(u8::from(terms.is_doubt))
            .arg(millis(terms.rechecked_for))
            .invoke_async(&mut self.redis.clone())
            .await?;
        let unknown = due == 2;
        let debounced = (wait > 0).then(|| Duration::from_millis(wait));
        let (left_alone, due) = (due == 3, due == 1 || due == 3);
        let was_held = held_until > RedisTime::ZERO;
        Ok(Invalidated { fenced: fenced == 1, due, left_alone, unknown, removed: removed == 1, was_held, debounced })
    }
}
