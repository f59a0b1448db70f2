//! Editors: edit artworks in all museums at the same time, publish the edits, and watch until the old value is gone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::catalogue::{Catalogue, Edits, Kind};
use super::contender::Contender;
use crate::entry::EntryKey;

/// The wait before a publish that failed or had no subscriber is retried.
const AGAIN: Duration = Duration::from_millis(20);
/// The time for which a publish is retried.
const INSIST: Duration = Duration::from_secs(10);
/// The shortest and the longest interval between checks for the old value; in between, a twentieth of the time since
/// the publish, so that lags are exact to five per cent.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(500));

/// The results of the edits for one contender.
#[derive(Default)]
pub(super) struct Freshness {
    /// The times from each publish until the old value was last returned.
    lags: Mutex<Vec<Duration>>,
    /// Keys whose old value still exists.
    pub(super) waiting: AtomicU64,
}

impl Freshness {
    /// Returns the lag percentile of this share; keys that still wait count with their current waiting time.
    pub(super) fn lag(&self, share: f64) -> Option<Duration> {
        let mut lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lags.sort_unstable();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
        let place = ((lags.len() as f64 * share).ceil() as usize).saturating_sub(1);
        lags.get(place).copied()
    }

    /// Returns the number of keys that were watched to the end.
    pub(super) fn watched(&self) -> usize {
        self.lags.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A contender for editors.
#[derive(Clone)]
pub(super) struct Desk {
    /// The contender.
    pub(super) contender: Arc<Contender>,
    /// The channel, and whether a subscriber is expected.
    pub(super) channel: String,
    /// `false` if nobody is told of edits.
    pub(super) heard: bool,
    /// The results.
    pub(super) freshness: Arc<Freshness>,
}

/// Edits until `closing`, then stops watching; counts edits.
pub(super) async fn run(
    desks: Vec<Desk>,
    catalogue: Arc<Catalogue>,
    (per_second, seed): (f64, u64),
    count: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut watches = JoinSet::new();
    for (at, artwork) in Edits::new(&catalogue, per_second, seed)? {
        let until = begin + at;
        while Instant::now() < until && !closing.load(Relaxed) {
            tokio::time::sleep_until(until.min(Instant::now() + POLL.1)).await;
        }
        if closing.load(Relaxed) {
            break;
        }
        while watches.try_join_next().is_some() {}
        let Some(name) = catalogue.artworks.get(artwork) else { continue };
        let keys: Arc<Vec<(Kind, EntryKey)>> =
            Arc::new(catalogue.about(artwork).map(|(kind, key)| (kind, key.clone())).collect());
        count.fetch_add(1, Relaxed);
        let versions: Vec<Option<u64>> = desks.iter().map(|desk| desk.contender.edit(name)).collect();
        for (desk, version) in desks.iter().cloned().zip(versions) {
            let Some(version) = version else { continue };
            let (keys, closing) = (Arc::clone(&keys), Arc::clone(&closing));
            watches.spawn(async move {
                desk.publish(&keys).await;
                desk.contender.expect(artwork, version);
                let published = Instant::now();
                futures_util::future::join_all(
                    keys.iter().map(|(kind, key)| desk.watch(*kind, key, version, published, &closing)),
                )
                .await;
            });
        }
    }
    while watches.join_next().await.is_some() {}
    Ok(())
}

impl Desk {
    /// Publishes each key; retries without an expected subscriber.
    async fn publish(&self, keys: &[(Kind, EntryKey)]) {
        let begun = Instant::now();
        for (_, key) in keys {
            while begun.elapsed() < INSIST {
                let mut redis = self.contender.redis.clone();
                let heard =
                    redis::cmd("PUBLISH").arg(&self.channel).arg(key.as_str()).query_async::<u64>(&mut redis).await;
                match heard {
                    Ok(listeners) if listeners > 0 || !self.heard => break,
                    Ok(_) | Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    }

    /// Watches until the cache holds the published version, or a later one.
    async fn watch(&self, kind: Kind, key: &EntryKey, version: u64, published: Instant, closing: &AtomicBool) {
        self.freshness.waiting.fetch_add(1, Relaxed);
        let mut old_until = Duration::ZERO;
        loop {
            let seen = self.contender.value(key).await;
            let since = published.elapsed();
            let last = closing.load(Relaxed);
            match seen {
                Ok(Some(text)) if self.contender.version(kind, &text).is_some_and(|there| there >= version) => break,
                // A read now fetches the current value, but an old value may still be written.
                Ok(None) | Err(_) => {}
                Ok(Some(_)) => old_until = since,
            }
            if last {
                break;
            }
            tokio::time::sleep((since / 20).clamp(POLL.0, POLL.1)).await;
        }
        self.freshness.waiting.fetch_sub(1, Relaxed);
        self.freshness.lags.lock().unwrap_or_else(PoisonError::into_inner).push(old_until);
    }
}
