//! The backlog: counts the wide messages that wait or are being handled, for the metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The wide messages that are not handled yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

impl Backlog {
    /// Returns the number of messages, and the age of the oldest.
    pub fn length(&self) -> (usize, Option<Duration>) {
        let waiting = self.lock();
        (waiting.since.len(), waiting.since.values().next().map(Instant::elapsed))
    }

    /// Adds a message, until its place is dropped.
    pub(super) fn enter(&self) -> Place {
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.since.insert(number, Instant::now());
        drop(waiting);
        Place { backlog: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message's place in the backlog.
#[derive(Debug)]
pub(super) struct Place {
    backlog: Backlog,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backlog.lock().since.remove(&self.number);
    }
}
