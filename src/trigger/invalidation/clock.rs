//! Redis's clock, watched: whether it was set back or ahead.
//!
//! Every time that workers compare is Redis's, so a clock that goes back breaks the order of all that was fetched and
//! invalidated around that moment. Each worker compares it with its own monotonic clock once a beat, and with the latest time
//! that any worker saw, which Redis keeps. Whoever notices first leaves a revalidator ([`super::Revalidator`]) of everything up to
//! the latest time of before. A step smaller than a tenth of the time between two looks cannot be told from a clock that is
//! being slewed, and is noticed only where the latest time that was seen is later than the present one.
//!
//! On failure nothing is remembered: the next look compares with the last one that Redis answered.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::{RedisResult, Script};
use tracing::warn;

use crate::protocol::Keys;
use crate::redis::Connection;
use crate::store::REVALIDATE_SIGNAL;

/// What two readings may differ by whatever lies between them.
const JITTER: Duration = Duration::from_millis(10);
/// The same for long breaks; no clock is slewed by more for long.
const DRIFT_LONGEST: Duration = Duration::from_millis(500);

/// The field of [`Keys::clock`] that counts how often it was set back.
pub(crate) const SET_BACK: &str = "set_back";

static CLOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/clock.lua")));

/// A reading of Redis's clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// What it showed (ms).
    at: i64,
    /// How often it was set back by then.
    set_back: u64,
    /// Between these it was read.
    asked: Instant,
    answered: Instant,
}

/// How the clock has gone since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// As time goes.
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
    /// One that has seen nothing yet.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        Self { redis, keys, last: None }
    }

    /// Reads the clock, and raises a revalidator if it was set back.
    ///
    /// # Errors
    /// Redis's; look again.
    pub async fn look(&mut self) -> RedisResult<Gone> {
        let [note, ..] = self.keys.revalidation();
        let asked = Instant::now();
        let mut call = CLOCK.key(note);
        call.key(self.keys.clock());
        match self.last {
            Some(last) => {
                // By how much Redis's clock must, and can, have gone on until it reads it.
                let least = asked.saturating_duration_since(last.answered);
                let most = asked.saturating_duration_since(last.asked) + self.redis.patience();
                let drift = JITTER + (least / 10).min(DRIFT_LONGEST);
                call.arg(last.set_back).arg(last.at).arg(millis(least.saturating_sub(drift))).arg(millis(most));
            }
            None => {
                call.arg("").arg(0).arg(0).arg(0);
            }
        }
        call.arg(self.keys.signal_channel()).arg(REVALIDATE_SIGNAL);
        let (at, set_back): (i64, u64) = call.invoke_async(&mut self.redis.clone()).await?;
        let answered = Instant::now();
        let before = self.last.replace(Reading { at, set_back, asked, answered });
        Ok(match before {
            Some(before) if set_back > before.set_back => {
                warn!("Redis's clock was set back: what was fetched before is looked at anew, and all is warmed up");
                Gone::Back
            }
            Some(before) if at - before.at > millis(answered - before.asked + DRIFT_LONGEST) => {
                warn!("Redis's clock was set ahead: what it makes expire is warmed up as it comes due");
                Gone::Ahead
            }
            _ => Gone::On,
        })
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
