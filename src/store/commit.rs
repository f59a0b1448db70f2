//! Commits: a fetched value is written under its lease.
//!
//! Each step is one script that `fence.lua` guards: it writes only under a lease that is ours and unmarked.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::lease::Lease;
use super::meta::LastAttempt;
use super::snapshot::Expiry;
use super::{META, META_OUTLIVES, Store, change, coded};
use crate::entry::duration::millis;
use crate::entry::{EntryKey, Version, hash};
use crate::protocol::LEASE_RECORD;
use crate::redis::{RedisTime, with_preludes};

/// Longer than any value lives beyond its TTL.
const ANY_TIME: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

static COMMIT: LazyLock<Script> = LazyLock::new(|| fenced(include_str!("lua/commit.lua")));
static EXTEND: LazyLock<Script> = LazyLock::new(|| fenced(include_str!("lua/extend.lua")));
static GONE: LazyLock<Script> = LazyLock::new(|| fenced(include_str!("lua/gone.lua")));
static EXTEND_STALE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/extend_stale.lua")));

/// Returns a script that writes only where the fence lets it.
fn fenced(script: &str) -> Script {
    with_preludes(&[LEASE_RECORD, META, include_str!("lua/fence.lua")], script)
}

/// The result of writing under a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is readable, or gone.
    Done {
        /// When the value expires.
        expiry: Expiry,
        /// Its content is another than before.
        changed: bool,
        /// A higher version was announced.
        behind: Option<Behind>,
    },
    /// The answer's version is lower than that of the present value, which stays; the lease is kept.
    Older {
        /// The present value's version.
        stored: Version,
        /// The time of the invalidation that is not yet answered.
        invalidated: Option<RedisTime>,
    },
    /// The answer's version is lower than this one, which was announced, and is no gain; the lease is kept.
    Behind(Version, Behind),
    /// An invalidation came: the lease began anew at this time; fetch again.
    Again(RedisTime),
    /// The entry was evicted meanwhile: the answer is dropped.
    Evicted,
    /// The lease ran out or was lost: the answer is dropped.
    Lost,
    /// The value is gone, somebody else's, or invalidated, and cannot be extended: fetch again without validators.
    Foreign,
    /// The key holds something else than a string by now. It is somebody else's and stays: the answer is dropped.
    WrongType,
}

/// An announced version that is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Since when it is announced.
    pub since: RedisTime,
    /// It is still waited for: the invalidation stays open.
    pub waits: bool,
}

/// An old value that may outlive its TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleExtension {
    /// Until when it lives now.
    pub expires: RedisTime,
    /// When its TTL ends, or ended.
    pub ends: RedisTime,
    /// Redis's clock.
    pub now: RedisTime,
}

impl Store {
    /// Writes a value for `ttl`.
    ///
    /// # Errors
    /// Redis's; the value may or may not have been written, as a whole.
    pub async fn commit(
        &self,
        key: &EntryKey,
        lease: &Lease,
        json: &str,
        ttl: Duration,
        last_attempt: &LastAttempt,
    ) -> RedisResult<Written> {
        let reply = self
            .call(&COMMIT, key)
            .arg(&lease.token)
            .arg(json)
            .arg(millis(ttl))
            .arg(hash(json))
            .arg(last_attempt.attempt())
            .arg(last_attempt.to_json())
            .arg(millis(META_OUTLIVES))
            .arg(millis(lease.time))
            .arg(self.keys.changed_channel())
            .arg(change(key, "warmed"))
            .arg(lease.fetched_at)
            .arg(last_attempt.version.map(|version| version.to_string()).unwrap_or_default())
            .arg(patience(lease))
            .arg(u8::from(lease.versions.look))
            .invoke_async(&mut self.redis.clone())
            .await?;
        written(reply)
    }

    /// Lets the present value live on for `ttl`, since its upstream says that it is unchanged.
    ///
    /// # Errors
    /// Redis's.
    pub async fn extend(
        &self,
        key: &EntryKey,
        lease: &Lease,
        ttl: Duration,
        last_attempt: &LastAttempt,
    ) -> RedisResult<Written> {
        self.extend_script(key, lease, ttl, last_attempt, true).await
    }

    /// Lets the present value live on for `ttl` with nobody asked, unless it was invalidated. For invalidations its
    /// content stays as old as it was.
    ///
    /// # Errors
    /// Redis's.
    pub async fn extend_unasked(
        &self,
        key: &EntryKey,
        lease: &Lease,
        ttl: Duration,
        last_attempt: &LastAttempt,
    ) -> RedisResult<Written> {
        self.extend_script(key, lease, ttl, last_attempt, false).await
    }

    async fn extend_script(
        &self,
        key: &EntryKey,
        lease: &Lease,
        ttl: Duration,
        last_attempt: &LastAttempt,
        asked: bool,
    ) -> RedisResult<Written> {
        let reply = self
            .call(&EXTEND, key)
            .arg(&lease.token)
            .arg(millis(ttl))
            .arg(lease.before.expiry.pexpiretime())
            .arg(last_attempt.attempt())
            .arg(last_attempt.to_json())
            .arg(millis(META_OUTLIVES))
            .arg(millis(lease.time))
            .arg(u8::from(!asked))
            .arg(lease.fetched_at)
            .arg(patience(lease))
            .arg(u8::from(lease.versions.look))
            .invoke_async(&mut self.redis.clone())
            .await?;
        written(reply)
    }

    /// Removes the value of an entry that the upstream no longer has.
    ///
    /// # Errors
    /// Redis's.
    pub async fn gone(&self, key: &EntryKey, lease: &Lease, last_attempt: &LastAttempt) -> RedisResult<Written> {
        let reply = self
            .call(&GONE, key)
            .arg(&lease.token)
            .arg(last_attempt.attempt())
            .arg(last_attempt.to_json())
            .arg(millis(META_OUTLIVES))
            .arg(millis(lease.time))
            .arg(self.keys.changed_channel())
            .arg(change(key, "gone"))
            .arg(lease.fetched_at)
            .arg(patience(lease))
            .arg(u8::from(lease.versions.look))
            .invoke_async(&mut self.redis.clone())
            .await?;
        written(reply)
    }

    /// Lets an old value live for `time` from now on, at most `longest` beyond its TTL. Until then it is found under
    /// its tags. `None` where there is no value, it is not ours, or it was invalidated.
    ///
    /// # Errors
    /// Redis's.
    pub async fn extend_stale(
        &self,
        key: &EntryKey,
        time: Duration,
        longest: Duration,
    ) -> RedisResult<Option<StaleExtension>> {
        self.extend_old(key, time, longest, false).await
    }

    /// Lets an old value live for `time` from now on, whose removal is held back; also if it was invalidated in doubt.
    ///
    /// # Errors
    /// Redis's.
    pub async fn extend_held(&self, key: &EntryKey, time: Duration) -> RedisResult<()> {
        self.extend_old(key, time, ANY_TIME, true).await.map(|_| ())
    }

    async fn extend_old(
        &self,
        key: &EntryKey,
        time: Duration,
        longest: Duration,
        in_doubt: bool,
    ) -> RedisResult<Option<StaleExtension>> {
        self.tag_again(key, time).await?;
        let (expires, ends, now): (RedisTime, RedisTime, RedisTime) = self
            .call(&EXTEND_STALE, key)
            .arg(millis(time))
            .arg(millis(longest))
            .arg(millis(META_OUTLIVES))
            .arg(u8::from(in_doubt))
            .invoke_async(&mut self.redis.clone())
            .await?;
        Ok((expires > RedisTime::ZERO).then_some(StaleExtension { expires, ends, now }))
    }
}

/// Returns the patience with announced versions for scripts.
fn patience(lease: &Lease) -> String {
    lease.versions.patience.map(|patience| millis(patience).to_string()).unwrap_or_default()
}

fn written(reply: Vec<redis::Value>) -> RedisResult<Written> {
    let what: String = reply.first().map(redis::from_redis_value_ref).transpose()?.unwrap_or_default();
    let number = |i: usize| -> RedisResult<i64> {
        Ok(reply.get(i).map(redis::from_redis_value_ref).transpose()?.unwrap_or_default())
    };
    let time = |i: usize| number(i).map(RedisTime::from_millis);
    let version = || -> RedisResult<Version> {
        let text: String = reply.get(1).map(redis::from_redis_value_ref).transpose()?.unwrap_or_default();
        Version::parse(&text).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e).into())
    };
    Ok(match what.as_str() {
        "done" => Written::Done {
            expiry: Expiry::from_pexpiretime(number(2)?),
            changed: number(3)? == 1,
            behind: match number(4)? {
                0 => None,
                how => Some(Behind { since: time(5)?, waits: how == 1 }),
            },
        },
        "older" => {
            Written::Older { stored: version()?, invalidated: Some(time(2)?).filter(|at| *at > RedisTime::ZERO) }
        }
        "behind" => Written::Behind(version()?, Behind { since: time(2)?, waits: number(3)? == 1 }),
        "again" => Written::Again(RedisTime::from_millis(number(1)?)),
        "evicted" => Written::Evicted,
        "foreign" => Written::Foreign,
        "wrongtype" => Written::WrongType,
        _ => Written::Lost,
    })
}
