//! The TTL of a value.

use std::time::Duration;

use super::link::millis;

/// The TTL of a value. Without an explicit `Forever` every value expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// A duration in whole milliseconds, at least one.
    For(Duration),
    /// No expiry.
    Forever,
}

impl From<Duration> for Ttl {
    fn from(time: Duration) -> Self {
        Self::For(time)
    }
}

impl Ttl {
    /// Returns the longest possible life: `Forever` is a hundred years.
    pub(super) fn longest(self) -> Duration {
        match self {
            Self::For(time) => time,
            Self::Forever => Duration::from_secs(100 * 366 * 24 * 3_600),
        }
    }

    /// Returns milliseconds, or the empty text for `Forever`.
    pub(super) fn to_arg(self) -> String {
        match self {
            Self::For(time) => millis(time).to_string(),
            Self::Forever => String::new(),
        }
    }

    /// Reads an answer to `PTTL`; `None` if there is no key.
    pub(super) fn from_pttl(pttl: i64) -> Option<Self> {
        match u64::try_from(pttl) {
            Ok(ms) => Some(Self::For(Duration::from_millis(ms))),
            Err(_) => (pttl == -1).then_some(Self::Forever),
        }
    }
}
