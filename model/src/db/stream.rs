//! A stream with its groups of readers.

use std::collections::BTreeMap;
use std::fmt;

use super::Bytes;

/// An entry's id: milliseconds and sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64, pub u64);

impl Id {
    /// The greatest id.
    pub const MAX: Self = Self(u64::MAX, u64::MAX);

    /// Returns the next id; `None` after the greatest.
    pub fn next(self) -> Option<Self> {
        match self.1.checked_add(1) {
            Some(sequence) => Some(Self(self.0, sequence)),
            None => self.0.checked_add(1).map(|ms| Self(ms, 0)),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// A stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stream {
    /// The entries: names and values in turn.
    pub entries: BTreeMap<Id, Vec<Bytes>>,
    /// The last id that was given.
    pub last: Id,
    /// The number of entries that were ever added.
    pub added: u64,
    /// The greatest id that was deleted.
    pub deleted: Id,
    /// The groups.
    pub groups: BTreeMap<Bytes, Group>,
}

impl Stream {
    /// Removes an entry; returns false where it is not there.
    pub fn remove(&mut self, id: Id) -> bool {
        let was_there = self.entries.remove(&id).is_some();
        if was_there {
            self.deleted = self.deleted.max(id);
        }
        was_there
    }

    /// Removes the oldest entries, so that at most so many stay; returns the number of removed ones.
    pub fn trim(&mut self, most: usize) -> usize {
        let gone = self.entries.len().saturating_sub(most);
        for _ in 0..gone {
            self.entries.pop_first();
        }
        gone
    }

    /// Returns the first id; zero in an empty stream.
    pub fn first(&self) -> Id {
        self.entries.first_key_value().map(|(id, _)| *id).unwrap_or_default()
    }
}

/// A group of readers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group {
    /// The last id that was given to a reader.
    pub last: Id,
    /// The number of entries up to that one, where it is known.
    pub read: Option<u64>,
    /// The readers, and when each was last seen (ms).
    pub readers: BTreeMap<Bytes, i64>,
    /// The entries that were given and not acknowledged.
    pub pending: BTreeMap<Id, Pending>,
}

/// An entry that was given to a reader and is not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// The reader.
    pub reader: Bytes,
    /// When it was given last (ms).
    pub at: i64,
    /// The number of times that it was given.
    pub times: u64,
}
