//! How warming ends: a closed set.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Trigger;

/// How warming one entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A fetched value is readable.
    Warmed,
    /// The value there still holds: 304, the same prompt, or warmed by somebody else since it became due.
    Unchanged,
    /// Somebody else fetches it.
    Busy,
    /// An invalidation or a lost lease came between; the answer was dropped.
    Fenced,
    /// Not now: a limit, an open breaker, a missing input, a worker that ends.
    Deferred,
    /// The upstream no longer has it; nor has the cache.
    Gone,
    /// Nobody reads it: it is left to expire.
    Unread,
    /// No usable answer; the old value stays.
    Failed,
}

impl Outcome {
    /// All of them, in the order people are told.
    pub const ALL: [Self; 8] = [
        Self::Warmed,
        Self::Unchanged,
        Self::Busy,
        Self::Fenced,
        Self::Deferred,
        Self::Gone,
        Self::Unread,
        Self::Failed,
    ];

    /// As in logs, metrics and Redis.
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
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an entry ended last.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Last {
    /// The entry.
    pub key: String,
    /// How.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// Why it was warmed.
    #[schema(value_type = String)]
    pub trigger: Trigger,
    /// Why it ended so, where there is something to say.
    pub reason: Option<String>,
}
