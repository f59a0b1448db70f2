//! What a worker has in hand: for handing back.

use std::array;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::entry::{EntryKey, JobName};

/// An entry of a job, and the score by which we have it: the same entry may be taken once more while its first fetch lasts.
pub(super) type Place = (JobName, EntryKey, String);

/// The token of its lease while a fetch is under way.
pub(super) type Held = Option<String>;

/// So many parts, each with a lock of its own: who waits for a thread that the system has put aside while it had the lock
/// waits for milliseconds.
const PARTS: usize = 32;

/// The entries in hand.
#[derive(Debug)]
pub(super) struct InFlight {
    parts: [Mutex<HashMap<Place, Held>>; PARTS],
    hasher: RandomState,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { parts: array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl InFlight {
    /// It is in hand.
    pub(super) fn hold(&self, place: Place, what: Held) {
        self.part(&place).insert(place, what);
    }

    /// It is not in hand any more.
    pub(super) fn end(&self, place: &Place) {
        self.part(place).remove(place);
    }

    /// The token of its lease, if a fetch is under way.
    pub(super) fn token(&self, place: &Place) -> Held {
        self.part(place).get(place).cloned().flatten()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.parts.iter().map(|part| lock(part).len()).sum()
    }

    /// All of it, which is not in hand then.
    pub(super) fn take(&self) -> Vec<(Place, Held)> {
        self.parts.iter().flat_map(|part| std::mem::take(&mut *lock(part))).collect()
    }

    fn part(&self, place: &Place) -> MutexGuard<'_, HashMap<Place, Held>> {
        #[expect(clippy::cast_possible_truncation, reason = "any part of the hash will do")]
        let number = self.hasher.hash_one(place) as usize % PARTS;
        lock(&self.parts[number])
    }
}

fn lock(part: &Mutex<HashMap<Place, Held>>) -> MutexGuard<'_, HashMap<Place, Held>> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}
