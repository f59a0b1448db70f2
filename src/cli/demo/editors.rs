//! Editors: change artworks in all museums at the same instant, publish that, and watch until the old value is gone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::catalogue::{Catalogue, Edits, Kind};
use super::contender::Contender;
use crate::entry::EntryKey;

/// Before a publish that failed, or that nobody heard, is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// For how long it is tried.
const INSIST: Duration = Duration::from_secs(10);
/// How soon it is looked whether the old value is gone, at first and at most; in between, a twentieth of the time since,
/// so that lags are known to five per cent.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(500));

/// What came of the edits, for one contender.
#[derive(Default)]
pub(super) struct Freshness {
    /// From each publish until the old value was given for the last time.
    lags: Mutex<Vec<Duration>>,
    /// Keys whose old value is there still.
    pub(super) waiting: AtomicU64,
}

impl Freshness {
    /// A lag that this share of the published keys stayed below; of those still waiting it is as long as they have waited.
    pub(super) fn lag(&self, share: f64) -> Option<Duration> {
        let mut lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lags.sort_unstable();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
        let place = ((lags.len() as f64 * share).ceil() as usize).saturating_sub(1);
        lags.get(place).copied()
    }

    /// How many published keys were watched to their end.
    pub(super) fn watched(&self) -> usize {
        self.lags.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A contender as editors see it.
#[derive(Clone)]
pub(super) struct Desk {
    /// Whose museum and Redis.
    pub(super) contender: Arc<Contender>,
    /// Where to publish, and whether anybody is expected to listen.
    pub(super) channel: String,
    /// False where nobody knows of edits.
    pub(super) heard: bool,
    /// What comes of it.
    pub(super) freshness: Arc<Freshness>,
}

/// Edits from now until `closing`, then watches no longer; counts edits.
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
            tokio::time::sleep_until(until.min(Instant::now() + LOOK.1)).await;
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
    /// Publishes the keys, each as it is; again where nobody heard who should have.
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
                // Whoever reads now waits for the museum, but is told what is so; yet an old value may still come.
                Ok(None) | Err(_) => {}
                Ok(Some(_)) => old_until = since,
            }
            if last {
                break;
            }
            tokio::time::sleep((since / 20).clamp(LOOK.0, LOOK.1)).await;
        }
        self.freshness.waiting.fetch_sub(1, Relaxed);
        self.freshness.lags.lock().unwrap_or_else(PoisonError::into_inner).push(old_until);
    }
}
