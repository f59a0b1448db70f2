//! Why an entry is due, and what goes before what.

use std::fmt;

/// Why an entry became due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// A warmup.
    Cron = 0,
    /// Somebody said that it is no longer true.
    Invalidation = 1,
    /// Its TTL comes to an end.
    Expiry = 2,
    /// Somebody wants it and it is not there.
    Demand = 3,
    /// A person asked.
    Manual = 4,
    /// A second look after an invalidation or a demand: whether somebody else wrote a value since.
    Settle = 5,
}

impl Trigger {
    pub(crate) const ALL: [Self; 6] =
        [Self::Cron, Self::Invalidation, Self::Expiry, Self::Demand, Self::Manual, Self::Settle];

    /// As in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cron => "cron",
            Self::Invalidation => "invalidation",
            Self::Expiry => "expiry",
            Self::Demand => "demand",
            Self::Manual => "manual",
            Self::Settle => "settle",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What goes before what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// In its time.
    #[default]
    Normal,
    /// Before all that is merely due: one of many that were named together.
    Bulk,
    /// Before all else: it was named by itself.
    High,
}
