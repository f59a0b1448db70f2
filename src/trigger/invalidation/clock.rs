//! The watch over Redis's clock: notices when it was set back or ahead.
//!
//! All times that workers compare are Redis's. So a clock that is set back breaks the order of fetches and
//! invalidations around that moment. With each heartbeat a worker compares Redis's clock with its own monotonic clock,
//! and with the latest time that any worker saw, which Redis keeps. The first worker to notice notes a gap of
//! everything up to the latest time before. A step smaller than a tenth of the time between two readings looks like a
//! clock that is being slewed. It is noticed only if the latest time that was seen is later than the present one.
//!
//! If a reading fails, the next one compares with the last reading that Redis answered.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::{RedisResult, Script};
use tracing::warn;

use crate::entry::duration::millis;
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};
use crate::store::REVALIDATE_SIGNAL;

/// The difference between two readings that is always allowed.
const JITTER: Duration = Duration::from_millis(10);
/// The largest allowed difference, after a long break; no clock is slewed by more for long.
const DRIFT_LONGEST: Duration = Duration::from_millis(500);

/// The field of [`Keys::clock`] that counts how often the clock was set back.
pub(crate) const SET_BACK: &str = "set_back";

static CLOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/clock.lua")));

/// A reading of Redis's clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// The time it showed.
    at: RedisTime,
    /// The number of times it was set back by then.
    set_back: u64,
    /// The reading took place between these two instants.
    asked: Instant,
    answered: Instant,
}

/// The clock's course since the last reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It went on as time does.
    On,
    /// It was set ahead.
    Ahead,
    /// It was set back.
    Back,
}

/// One worker's watch over Redis's clock.
#[derive(Debug)]
pub struct Clock {
    redis: Connection,
    keys: Keys,
    last: Option<Reading>,
}

impl Clock {
    /// Creates a watch without a reading.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        Self { redis, keys, last: None }
    }

    /// Reads the clock, and notes a gap if it was set back.
    ///
    /// # Errors
    /// Redis's; inspect it again.
    pub async fn inspect(&mut self) -> RedisResult<Gone> {
        let [gap, ..] = self.keys.revalidation();
        let asked = Instant::now();
        let mut call = CLOCK.key(gap);
        call.key(self.keys.clock());
        match self.last {
            Some(last) => {
                // The least and the most by which Redis's clock has gone on when it is read.
                let least = asked.saturating_duration_since(last.answered);
                let most = asked.saturating_duration_since(last.asked) + self.redis.timeout();
                let drift = JITTER + (least / 10).min(DRIFT_LONGEST);
                call.arg(last.set_back).arg(last.at).arg(millis(least.saturating_sub(drift))).arg(millis(most));
            }
            None => {
                call.arg("").arg(0).arg(0).arg(0);
            }
        }
        call.arg(self.keys.signal_channel()).arg(REVALIDATE_SIGNAL);
        let (at, set_back): (RedisTime, u64) = call.invoke_async(&mut self.redis.clone()).await?;
        let answered = Instant::now();
        let before = self.last.replace(Reading { at, set_back, asked, answered });
        Ok(match before {
            Some(before) if set_back > before.set_back => {
                warn!("Redis's clock was set back; values fetched before are revalidated, all jobs are warmed up");
                Gone::Back
            }
            Some(before) if at > before.at + (answered - before.asked + DRIFT_LONGEST) => {
                warn!("Redis's clock was set ahead; values that expire by that are warmed up as they come due");
                Gone::Ahead
            }
            _ => Gone::On,
        })
    }
}
