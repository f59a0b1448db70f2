//! The end of an attempt.

use std::time::Duration;

use crate::agenda::Next;
use crate::entry::Outcome;
use crate::store::other_type_reason;

/// The end of an attempt, its reason, and what becomes of the entry.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) outcome: Outcome,
    pub(super) next: Next,
    pub(super) reason: Option<String>,
    /// Fetches that have failed in a row, this one included.
    pub(super) failures: u32,
}

impl Ending {
    pub(super) fn new(outcome: Outcome, next: Next) -> Self {
        Self { outcome, next, reason: None, failures: 0 }
    }

    pub(super) fn because(outcome: Outcome, next: Next, reason: impl Into<String>) -> Self {
        Self { outcome, next, reason: Some(reason.into()), failures: 0 }
    }

    /// Returns the ending of an entry that leaves for the dead letters.
    pub(super) fn dead(reason: String) -> Self {
        Self::because(Outcome::Failed, Next::Dead(reason.clone()), reason)
    }

    /// Returns the ending of an entry whose key holds another type than a string.
    pub(super) fn wrong_type(what: &str) -> Self {
        // The same for all entries, so that `samovar dead` shows them as one group.
        Self::dead(other_type_reason(what, "KEY"))
    }

    /// Returns the ending of an entry whose invalidations came faster than its fetches.
    pub(super) fn overtaken() -> Self {
        let reason = "invalidated again and again while it was fetched";
        Self::because(Outcome::Fenced, Next::In(Duration::ZERO), reason)
    }
}
