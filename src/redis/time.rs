//! Redis's clock, the only one that workers share.

use std::fmt;
use std::num::ParseIntError;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

use redis::{FromRedisValue, ParsingError, RedisWrite, ToRedisArgs, ToSingleRedisArg, Value};
use serde::{Deserialize, Serialize};

use crate::entry::duration::millis;

/// A time on Redis's clock: whole milliseconds since the epoch, in JSON and in Redis as well.
///
/// A reply is such a number, or the reply of `TIME`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RedisTime(i64);

impl RedisTime {
    /// The epoch. Metadata and records hold it for never.
    pub const ZERO: Self = Self(0);

    /// Returns the time so many milliseconds after the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Returns the time since an earlier one; zero if that one is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Returns the time for people, to the second, as in `2026-01-31 09:30:00 UTC`.
    #[cfg(feature = "worker")]
    pub fn utc(self) -> String {
        let time = chrono::DateTime::from_timestamp_millis(self.0);
        time.map_or_else(|| self.to_string(), |time| time.format("%Y-%m-%d %H:%M:%S UTC").to_string())
    }

    /// Returns the distance between two times, whichever is earlier.
    pub fn abs_diff(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }
}

/// Adds whole milliseconds, up to the last time there is.
impl Add<Duration> for RedisTime {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(millis(time)))
    }
}

/// Subtracts whole milliseconds, down to the first time there is.
impl Sub<Duration> for RedisTime {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(millis(time)))
    }
}

impl fmt::Display for RedisTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RedisTime {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

impl ToRedisArgs for RedisTime {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        self.0.write_redis_args(out);
    }
}

impl ToSingleRedisArg for RedisTime {}

impl FromRedisValue for RedisTime {
    fn from_redis_value(reply: Value) -> Result<Self, ParsingError> {
        if let Value::Array(_) = &reply {
            let (seconds, micros): (i64, i64) = redis::from_redis_value(reply)?;
            return Ok(Self(seconds * 1_000 + micros / 1_000));
        }
        redis::from_redis_value(reply).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: RedisTime = RedisTime::from_millis(1_732_270_000_123);

    #[test]
    fn a_time_is_its_number_wherever_it_is_written() {
        assert_eq!(AT.to_string(), "1732270000123");
        assert_eq!("1732270000123".parse(), Ok(AT));
        assert_eq!(serde_json::to_string(&AT).unwrap(), "1732270000123");
        assert_eq!(serde_json::from_str::<RedisTime>("1732270000123").unwrap(), AT);
        assert_eq!(AT.to_redis_args(), [b"1732270000123".to_vec()]);
    }

    #[test]
    fn a_time_is_read_from_numbers_and_from_the_reply_of_time() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let reply = Value::Array(vec![text("1732270000"), text("123999")]);
        for reply in [Value::Int(1_732_270_000_123), text("1732270000123"), reply] {
            assert_eq!(redis::from_redis_value::<RedisTime>(reply).unwrap(), AT);
        }
        assert_eq!(redis::from_redis_value::<Option<RedisTime>>(Value::Nil).unwrap(), None);
        assert!(redis::from_redis_value::<RedisTime>(text("soon")).is_err());
    }

    #[test]
    fn arithmetic_counts_milliseconds_and_saturates() {
        let later = AT + Duration::from_micros(1_999);
        assert_eq!(later.as_millis(), AT.as_millis() + 1);
        assert_eq!((later - Duration::from_millis(1), later.saturating_since(AT)), (AT, Duration::from_millis(1)));
        assert_eq!((AT.saturating_since(later), AT.abs_diff(later)), (Duration::ZERO, Duration::from_millis(1)));
        assert_eq!(AT + Duration::MAX, RedisTime::from_millis(i64::MAX));
        assert_eq!(RedisTime::from_millis(i64::MIN) - Duration::MAX, RedisTime::from_millis(i64::MIN));
    }
}
