//! The outcomes of warming: a closed set.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Trigger;

/// The outcome of warming one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A fetched value was written.
    Warmed,
    /// The stored value is still valid: a 304, the same prompt, or another worker warmed it since it became due.
    Unchanged,
    /// Another worker or service is fetching it.
    Busy,
    /// An invalidation arrived or the lease was lost during the fetch; the answer was dropped.
    Fenced,
    /// Postponed: by a limit, an open breaker, a missing input, a worker that stops, or an answer from before the
    /// removal.
    Deferred,
    /// The upstream no longer has it, or an input is gone; the value was removed.
    Gone,
    /// It is not read, so it is left to expire.
    Unread,
    /// There was no usable answer; the old value stays.
    Failed,
    /// Its key is of an earlier key pattern of the job: nothing makes it anew, and it is left to expire.
    Unowned,
}

impl Outcome {
    /// All outcomes, in the order in which they are shown. Metadata note the place of one, so a new one comes last.
    pub const ALL: [Self; 9] = [
        Self::Warmed,
        Self::Unchanged,
        Self::Busy,
        Self::Fenced,
        Self::Deferred,
        Self::Gone,
        Self::Unread,
        Self::Failed,
        Self::Unowned,
    ];

    /// Returns the name used in logs, metrics and Redis.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warmed => "warmed",
            Self::Unchanged => "unchanged",
            Self::Busy => "busy",
            Self::Fenced => "fenced",
            Self::Deferred => "deferred",
            Self::Gone => "gone",
            Self::Unread => "unread",
            Self::Failed => "failed",
            Self::Unowned => "unowned",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The result of a recheck that asked the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck {
    /// The stored value is what the upstream has.
    Unchanged,
    /// The upstream has another value, and had answered the invalidation so long before with an old one.
    Changed(Duration),
    /// The upstream answered with the value from before the invalidation, which replaces no newer one.
    Outdated,
    /// Another program had stored a value meanwhile, which was replaced.
    Foreign,
    /// The upstream does not have the entry.
    Gone,
    /// There was no usable answer.
    Failed,
}

impl Recheck {
    /// Returns the name used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Changed(_) => "changed",
            Self::Outdated => "outdated",
            Self::Foreign => "foreign",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }
}

/// The outcome of the last attempt to warm an entry.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastOutcome {
    /// The entry.
    pub key: String,
    /// The outcome.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// Why the entry was warmed.
    #[schema(value_type = String)]
    pub trigger: Trigger,
    /// The reason of the outcome, if there is one.
    pub reason: Option<String>,
}
