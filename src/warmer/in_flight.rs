//! The entries that a worker has in flight, for handing back what a cancelled attempt leaves.

use std::array;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::entry::{EntryKey, JobName};

/// An entry of a job, and its score while it is ours: an entry may be in flight a second time while its first fetch
/// lasts.
pub(super) type Place = (JobName, EntryKey, String);

/// The number of locks: a thread that the system suspends while it holds one delays the others by milliseconds.
const PARTS: usize = 32;

/// The most leases that are remembered because Redis did not answer when they were given back.
const OWED: usize = 10_000;

/// The entries in flight, each with the token of its lease once it has or may have one.
#[derive(Debug)]
pub(super) struct InFlight {
    parts: [Mutex<HashMap<Place, Option<String>>>; PARTS],
    hasher: RandomState,
    owed: Mutex<Vec<(EntryKey, String, Instant)>>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { parts: array::from_fn(|_| Mutex::default()), hasher: RandomState::new(), owed: Mutex::default() }
    }
}

impl InFlight {
    /// Adds an entry, or the token of its lease.
    pub(super) fn hold(&self, place: Place, token: Option<String>) {
        self.part(&place).insert(place, token);
    }

    /// Removes an entry.
    pub(super) fn end(&self, place: &Place) {
        self.part(place).remove(place);
    }

    /// Remembers a lease that Redis did not take back, by its token, until it must have expired. Beyond a bound it is
    /// not remembered.
    pub(super) fn owe(&self, key: EntryKey, token: String, until: Instant) {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if owed.len() < OWED {
            owed.push((key, token, until));
        }
    }

    /// Returns the leases that were not given back and may not have expired, and forgets all.
    pub(super) fn take_owed(&self) -> Vec<(EntryKey, String, Instant)> {
        let mut owed = std::mem::take(&mut *self.owed.lock().unwrap_or_else(PoisonError::into_inner));
        owed.retain(|(.., until)| *until > Instant::now());
        owed
    }

    /// Returns the number of entries.
    pub(super) fn count(&self) -> usize {
        self.parts.iter().map(|part| lock(part).len()).sum()
    }

    /// Removes all entries and returns them.
    pub(super) fn take(&self) -> Vec<(Place, Option<String>)> {
        self.parts.iter().flat_map(|part| std::mem::take(&mut *lock(part))).collect()
    }

    fn part(&self, place: &Place) -> MutexGuard<'_, HashMap<Place, Option<String>>> {
        #[expect(clippy::cast_possible_truncation, reason = "any part of the hash will do")]
        let number = self.hasher.hash_one(place) as usize % PARTS;
        lock(&self.parts[number])
    }
}

fn lock(part: &Mutex<HashMap<Place, Option<String>>>) -> MutexGuard<'_, HashMap<Place, Option<String>>> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}
