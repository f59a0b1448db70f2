//! A round of fetch and commit: several may follow one another under one lease.

use crate::entry::Trigger;

/// The state that a round of fetch and commit leaves to the next one under the same lease.
pub(super) struct Round {
    /// The trigger that the metadata note: the invalidation that the fetch answers, else the entry's.
    pub(super) trigger: Trigger,
    /// The fetch answers an invalidation that followed another.
    pub(super) storm: bool,
    /// The present value may be kept where its source says that it is unchanged.
    pub(super) may_keep: bool,
    /// An invalidation came during an earlier round.
    pub(super) is_again: bool,
    /// The job's guard lets the removal of the value through.
    pub(super) may_remove: bool,
    /// The tags under which earlier rounds have indexed the entry.
    pub(super) indexed: Vec<String>,
}
