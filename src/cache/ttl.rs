//! How long a value lives.

use std::time::Duration;

use super::link::millis;

/// How long a value lives. Nothing lives for ever unless that is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// This long, to the millisecond; at least one.
    For(Duration),
    /// Until it is deleted.
    Forever,
}

impl From<Duration> for Ttl {
    fn from(time: Duration) -> Self {
        Self::For(time)
    }
}

impl Ttl {
    /// How long a value may live: for ever is a hundred years.
    pub(super) fn longest(self) -> Duration {
        match self {
            Self::For(time) => time,
            Self::Forever => Duration::from_secs(100 * 366 * 24 * 3_600),
        }
    }

    /// Milliseconds; nothing for ever.
    pub(super) fn to_arg(self) -> String {
        match self {
            Self::For(time) => millis(time).to_string(),
            Self::Forever => String::new(),
        }
    }

    /// What `PTTL` says; `None` where there is no key.
    pub(super) fn from_pttl(pttl: i64) -> Option<Self> {
        match u64::try_from(pttl) {
            Ok(ms) => Some(Self::For(Duration::from_millis(ms))),
            Err(_) => (pttl == -1).then_some(Self::Forever),
        }
    }
}
