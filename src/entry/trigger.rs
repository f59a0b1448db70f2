//! Triggers and priorities of due entries.

use std::fmt;

/// Why an entry became due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// A warmup.
    Cron = 0,
    /// An invalidation.
    Invalidation = 1,
    /// Its TTL is about to end.
    Expiry = 2,
    /// A read missed it.
    Demand = 3,
    /// An operator requested it.
    Manual = 4,
    /// A recheck after an invalidation: the upstream may have answered with an old value, or another program may have
    /// stored one.
    #[serde(alias = "settle")]
    Recheck = 5,
}

impl Trigger {
    pub(crate) const ALL: [Self; 6] =
        [Self::Cron, Self::Invalidation, Self::Expiry, Self::Demand, Self::Manual, Self::Recheck];

    /// Returns the name used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cron => "cron",
            Self::Invalidation => "invalidation",
            Self::Expiry => "expiry",
            Self::Demand => "demand",
            Self::Manual => "manual",
            Self::Recheck => "recheck",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The priority of a due entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// In the order of due times.
    #[default]
    Normal,
    /// Before normal entries: one of many entries of the same invalidation.
    Bulk,
    /// Before all others: the entry was named by itself.
    High,
}
