//! The near cache: values of Redis in this process's memory for a short time.
//!
//! A value that is read while its change is announced must not stay. Each key has a generation (one of a fixed number,
//! shared by hash). An announcement increments it and then removes the entry. A reader records it before asking Redis,
//! and removes what it inserted if the generation has changed. So the old value goes in either order. An epoch does the
//! same for all keys after a gap.
//!
//! While the subscription is down, nothing is inserted and Redis is asked first. Only if Redis does not answer, an
//! unexpired entry is returned.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::debug;

use super::subscriber::{Change, ChannelEvent, ChannelListener};

/// The number of generations. Keys that share one occasionally drop each other's insertions.
const GENERATIONS: usize = 4_096;
/// The approximate overhead of an entry beside its key and value, in bytes.
const OVERHEAD: usize = 128;

/// Values in memory, by whole key.
pub(super) struct Near {
    entries: moka::sync::Cache<String, Entry>,
    generations: Box<[AtomicU64]>,
    hasher: RandomState,
    epoch: AtomicU64,
    /// `true` while changes are received.
    live: AtomicBool,
    ttl: Duration,
}

#[derive(Clone)]
struct Entry {
    json: Arc<[u8]>,
    epoch: u64,
    until: Instant,
}

/// The state before Redis was asked.
pub(super) struct Ticket {
    epoch: u64,
    generation: u64,
    asked: Instant,
}

impl std::fmt::Debug for Near {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Near").field("entries", &self.entries.entry_count()).field("live", &self.live).finish()
    }
}

impl Near {
    /// Creates a cache of at most `max_bytes`, with no entry older than `ttl`.
    pub(super) fn new(max_bytes: u64, ttl: Duration) -> Self {
        let entries = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|key: &String, entry: &Entry| {
                u32::try_from(key.len() + entry.json.len() + OVERHEAD).unwrap_or(u32::MAX)
            })
            .time_to_live(ttl)
            .build();
        Self {
            entries,
            generations: std::iter::repeat_with(AtomicU64::default).take(GENERATIONS).collect(),
            hasher: RandomState::new(),
            epoch: AtomicU64::default(),
            live: AtomicBool::default(),
            ttl,
        }
    }

    /// Listens for changes without end.
    pub(super) async fn listen(&self, mut changes: ChannelListener) {
        loop {
            match changes.next().await {
                ChannelEvent::Up { .. } => {
                    self.drop_all();
                    self.live.store(true, Ordering::SeqCst);
                }
                ChannelEvent::Down => self.live.store(false, Ordering::SeqCst),
                ChannelEvent::Message(bytes) => match serde_json::from_slice::<Change>(&bytes) {
                    Ok(change) => self.drop_one(&change.key),
                    Err(e) => {
                        debug!("an announcement cannot be read; all near values are dropped: {e}");
                        self.drop_all();
                    }
                },
            }
        }
    }

    /// `true` while changes are received.
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::SeqCst)
    }

    /// Returns the value while changes are received.
    pub(super) fn get(&self, key: &str) -> Option<Arc<[u8]>> {
        self.is_live().then(|| self.get_offline(key)).flatten()
    }

    /// Returns the value even while changes are not received, for when Redis does not answer.
    pub(super) fn get_offline(&self, key: &str) -> Option<Arc<[u8]>> {
        let entry = self.entries.get(key)?;
        let good = entry.epoch == self.epoch.load(Ordering::SeqCst) && Instant::now() < entry.until;
        good.then_some(entry.json)
    }

    /// Returns the state to record before Redis is asked; `None` while nothing may be inserted.
    pub(super) fn ticket(&self, key: &str) -> Option<Ticket> {
        let ticket = Ticket {
            epoch: self.epoch.load(Ordering::SeqCst),
            generation: self.generation(key).load(Ordering::SeqCst),
            asked: Instant::now(),
        };
        self.is_live().then_some(ticket)
    }

    /// Inserts a value of Redis unless it may be stale. `left` is its remaining TTL in Redis.
    pub(super) fn insert(&self, key: &str, ticket: &Ticket, json: &[u8], left: Option<Duration>) {
        let holds = || {
            self.is_live()
                && self.epoch.load(Ordering::SeqCst) == ticket.epoch
                && self.generation(key).load(Ordering::SeqCst) == ticket.generation
        };
        if !holds() {
            return;
        }
        let until = ticket.asked + left.map_or(self.ttl, |left| left.min(self.ttl));
        self.entries.insert(key.to_owned(), Entry { json: json.into(), epoch: ticket.epoch, until });
        if !holds() {
            self.entries.invalidate(key);
        }
    }

    /// Removes a value that changed.
    pub(super) fn drop_one(&self, key: &str) {
        self.generation(key).fetch_add(1, Ordering::SeqCst);
        self.entries.invalidate(key);
    }

    /// Removes all values.
    pub(super) fn drop_all(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.entries.invalidate_all();
    }

    fn generation(&self, key: &str) -> &AtomicU64 {
        let hash = self.hasher.hash_one(key);
        #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
        &self.generations[(hash % GENERATIONS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Near {
        let near = Near::new(1 << 20, Duration::from_secs(60));
        near.live.store(true, Ordering::SeqCst);
        near
    }

    #[test]
    fn what_was_read_before_a_change_was_heard_does_not_stay() {
        let near = live();
        let ticket = near.ticket("k").unwrap();
        near.drop_one("k");
        near.insert("k", &ticket, b"old", None);
        assert_eq!(near.get("k"), None);
        let ticket = near.ticket("k").unwrap();
        near.insert("k", &ticket, b"new", None);
        assert_eq!(near.get("k").as_deref(), Some(&b"new"[..]));
        near.drop_one("k");
        assert_eq!(near.get("k"), None);
    }

    #[test]
    fn after_a_gap_nothing_from_before_it_is_there_or_comes() {
        let near = live();
        let (kept, late) = (near.ticket("kept").unwrap(), near.ticket("late").unwrap());
        near.insert("kept", &kept, b"1", None);
        near.drop_all();
        near.insert("late", &late, b"1", None);
        assert_eq!((near.get("kept"), near.get("late")), (None, None));
        assert_eq!((near.get_offline("kept"), near.get_offline("late")), (None, None));
    }

    #[test]
    fn unsubscribed_it_keeps_nothing_new() {
        let near = live();
        let (one, two) = (near.ticket("one").unwrap(), near.ticket("two").unwrap());
        near.insert("one", &one, b"1", None);
        near.live.store(false, Ordering::SeqCst);
        near.insert("two", &two, b"2", None);
        assert!(near.ticket("three").is_none());
        assert_eq!(near.get("one"), None);
        assert_eq!(near.get_offline("one").as_deref(), Some(&b"1"[..]));
        assert_eq!(near.get_offline("two"), None);
    }

    #[test]
    fn no_entry_outlives_its_value_in_redis() {
        let near = live();
        let ticket = near.ticket("k").unwrap();
        near.insert("k", &ticket, b"1", Some(Duration::ZERO));
        assert_eq!(near.get("k"), None);
    }
}
