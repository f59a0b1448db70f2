//! The debounce: refreshes that the store puts off in a storm of invalidations wait here.
//!
//! Each entry waits once, however many messages name it. It is then refreshed with the time of the last invalidation,
//! so the fetch covers all of them. Those that announce a version are kept apart: a value that has the version answers
//! them, and no others. The acknowledgements of these messages wait with it. If Redis fails, the refresh is
//! tried again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::ack::Ack;
use super::invalidator::{Debounced, Invalidator};
use crate::agenda::When;
use crate::entry::{Announced, EntryKey};
use crate::job::Job;
use crate::protocol::Handled;
use crate::redis::{Backoff, RedisTime};

/// The wait before a refresh is tried again that Redis did not answer.
const RETRY: Duration = Duration::from_millis(100);
/// The longest wait while there is nothing to refresh.
const IDLE: Duration = Duration::from_secs(3_600);

/// The debounced refreshes of one worker.
#[derive(Debug, Default)]
pub(super) struct Debounce {
    waiting: Mutex<Waiting>,
    /// The number of acknowledgements that wait.
    acks: AtomicUsize,
    changed: Notify,
    /// Nothing more is added.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: HashMap<EntryKey, Refresh>,
    /// These entries, in the order in which they are refreshed.
    order: BTreeSet<(Instant, EntryKey)>,
}

/// A refresh that waits.
#[derive(Debug)]
struct Refresh {
    job: Arc<Job>,
    /// The time of the last invalidation that announces no version.
    plain: Option<RedisTime>,
    /// The time of the last invalidation that announces a version, and what all such announce together.
    announced: Option<(RedisTime, Announced)>,
    /// The highest priority of the invalidations.
    when: When,
    until: Instant,
    acks: Vec<Ack>,
    /// The number of the oldest message from the channel. It stands for all of them, since they are done together.
    oldest: Option<u64>,
}

impl Refresh {
    fn new(debounced: Debounced, until: Instant) -> Self {
        let Debounced { job, when, .. } = debounced;
        Self { job, plain: None, announced: None, when, until, acks: Vec::new(), oldest: None }
    }

    /// Returns the times and versions of the invalidations that stand for all.
    fn invalidations(&self) -> impl Iterator<Item = (RedisTime, Announced)> {
        self.plain.map(|at| (at, Announced::None)).into_iter().chain(self.announced)
    }

    /// Adds an invalidation; returns the number of acknowledgements that it adds.
    fn join(&mut self, at: RedisTime, version: Announced, when: When, acks: impl IntoIterator<Item = Ack>) -> usize {
        if version.is_none() {
            self.plain = self.plain.max(Some(at));
        } else {
            let (last, announced) = self.announced.unwrap_or((at, version));
            self.announced = Some((last.max(at), announced.and(version)));
        }
        if when == When::Urgent {
            self.when = when;
        }
        let before = self.acks.len();
        for ack in acks {
            match ack.number() {
                Some(number) if self.oldest.is_some_and(|oldest| oldest <= number) => ack.done(),
                number => {
                    self.oldest = number.or(self.oldest);
                    self.acks.push(ack);
                }
            }
        }
        self.acks.len() - before
    }
}

impl Debounce {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of acknowledgements that wait.
    pub(super) fn acks(&self) -> usize {
        self.acks.load(Ordering::Relaxed)
    }

    /// Adds a high-priority invalidation to an entry that waits; returns `false` if the entry does not wait.
    pub(super) fn joins(&self, key: &str, at: RedisTime, version: Announced, acks: &[Ack]) -> bool {
        let mut waiting = self.lock();
        let Some(refresh) = waiting.entries.get_mut(key) else { return false };
        let more = refresh.join(at, version, When::Urgent, acks.iter().map(Ack::part));
        self.acks.fetch_add(more, Ordering::Relaxed);
        true
    }

    /// Adds a refresh.
    pub(super) fn add(&self, debounced: Debounced, acks: Vec<Ack>) {
        let until = Instant::now() + debounced.wait;
        let mut waiting = self.lock();
        let Waiting { entries, order } = &mut *waiting;
        let key = debounced.key.clone();
        let more = match entries.entry(key.clone()) {
            Entry::Occupied(mut there) => {
                let there = there.get_mut();
                if until > there.until {
                    order.remove(&(there.until, key.clone()));
                    order.insert((until, key));
                    there.until = until;
                }
                there.join(debounced.at, debounced.version, debounced.when, acks)
            }
            Entry::Vacant(place) => {
                order.insert((until, key));
                let (at, version, when) = (debounced.at, debounced.version, debounced.when);
                place.insert(Refresh::new(debounced, until)).join(at, version, when, acks)
            }
        };
        self.acks.fetch_add(more, Ordering::Relaxed);
        drop(waiting);
        self.changed.notify_one();
    }

    /// Ends the loop once nothing waits: nothing more is added.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Drops what still waits, with its acknowledgements: their messages are delivered again.
    pub(super) fn clear(&self) {
        *self.lock() = Waiting::default();
        self.acks.store(0, Ordering::Relaxed);
    }

    /// Returns the time of the next refresh.
    fn next(&self) -> Option<Instant> {
        self.lock().order.first().map(|(until, _)| *until)
    }

    /// Takes the refreshes whose time has come.
    fn due(&self) -> Vec<(EntryKey, Refresh)> {
        let now = Instant::now();
        let mut waiting = self.lock();
        let mut due = Vec::new();
        while waiting.order.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, key)) = waiting.order.pop_first()
        {
            due.extend(waiting.entries.remove_entry(&key));
        }
        due
    }

    /// Refreshes entries as their time comes, until [`Self::close`] and nothing waits, or until `cut`.
    pub(super) async fn run(&self, invalidator: &Invalidator, cut: &CancellationToken) {
        let mut backoff = Backoff::new("the debounce");
        while !cut.is_cancelled() {
            let next = self.next();
            if next.is_none() && self.closed.load(Ordering::Acquire) {
                return;
            }
            let next = next.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.changed.notified() => continue,
                () = cut.cancelled() => return,
            }
            match self.refresh(self.due(), invalidator).await {
                Some(e) => backoff.ill(&e, cut).await,
                None => backoff.well(),
            }
        }
    }

    /// Refreshes entries, acknowledges their messages, and adds again what must wait longer.
    async fn refresh(&self, due: Vec<(EntryKey, Refresh)>, invalidator: &Invalidator) -> Option<redis::RedisError> {
        if due.is_empty() {
            return None;
        }
        let entries = due.iter().flat_map(|(key, refresh)| {
            refresh.invalidations().map(|(at, version)| Debounced {
                job: Arc::clone(&refresh.job),
                key: key.clone(),
                at,
                version,
                when: refresh.when,
                wait: Duration::ZERO,
            })
        });
        let entries: Vec<Debounced> = entries.collect();
        let mut acks: HashMap<EntryKey, Vec<Ack>> = due.into_iter().map(|(key, refresh)| (key, refresh.acks)).collect();
        let count = acks.values().map(Vec::len).sum();
        self.acks.fetch_sub(count, Ordering::Relaxed);
        let (still, error) = match invalidator.again(entries.clone(), &mut Handled::default()).await {
            Ok(still) => (still, None),
            Err(e) => (entries.into_iter().map(|entry| Debounced { wait: RETRY, ..entry }).collect(), Some(e)),
        };
        for debounced in still {
            let acks = acks.remove(&debounced.key).unwrap_or_default();
            self.add(debounced, acks);
        }
        acks.into_values().flatten().for_each(Ack::done);
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Version;
    use crate::job::Jobs;

    #[test]
    fn a_version_that_joins_hides_no_refresh_without_one() {
        let text = "key = \"art:{name}\"\n[source]\nkind = \"http\"\nurl = \"http://localhost/{{ name }}\"\n";
        let jobs = Jobs::parse(&[("art.toml".to_owned(), text.to_owned())], IDLE, &|_| None).unwrap();
        let (job, key) = (Arc::clone(&jobs.jobs["art"]), EntryKey::new("art:a"));
        let (first, second) = (RedisTime::from_millis(1), RedisTime::from_millis(2));
        let (wait, when, version) = (Duration::ZERO, When::Urgent, Announced::AtLeast(Version::new(39)));
        let debounce = Debounce::default();
        debounce.add(Debounced { job, key, at: first, version: Announced::None, when, wait }, Vec::new());
        assert!(debounce.joins("art:a", second, version, &[]));

        let due = debounce.due();
        let invalidations: Vec<_> = due.iter().flat_map(|(_, refresh)| refresh.invalidations()).collect();
        assert_eq!(invalidations, [(first, Announced::None), (second, version)]);
    }
}
