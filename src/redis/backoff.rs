//! Waits of a loop while Redis is unreachable: exponential, with jitter, and logged once.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::requirements::explain;
use crate::entry::duration;
use crate::redis::LoopHealth;

/// The longest wait between two attempts.
const LONGEST: Duration = Duration::from_secs(2);
/// The interval at which a lasting failure is logged again.
const AGAIN: Duration = Duration::from_secs(30);

/// The backoff of one loop: exponential waits with jitter, and a bounded number of log lines.
#[derive(Debug)]
pub struct Backoff {
    what: &'static str,
    tries: u32,
    since: Option<Instant>,
    told: Option<Instant>,
    loop_health: LoopHealth,
}

impl Backoff {
    /// Creates the backoff of a loop; `what` names the loop in the log.
    pub fn new(what: &'static str) -> Self {
        Self { what, tries: 0, since: None, told: None, loop_health: LoopHealth::default() }
    }

    /// Also reports to this loop health.
    #[must_use]
    pub fn showing(mut self, loop_health: &LoopHealth) -> Self {
        self.loop_health = loop_health.clone();
        self
    }

    /// Records a success and resets the wait.
    pub fn well(&mut self) {
        if let Some(since) = self.since.take()
            && self.told.is_some()
        {
            info!("{} recovered after {}", self.what, duration::rough(since.elapsed()));
        }
        self.tries = 0;
        self.told = None;
        self.loop_health.well();
    }

    /// Records a failure, then waits before the next attempt, or until `stop`.
    pub async fn ill(&mut self, error: &redis::RedisError, stop: &CancellationToken) {
        let error = explain(error);
        self.loop_health.ill(&error);
        let since = *self.since.get_or_insert_with(Instant::now);
        // A single dropped connection is not worth a log line.
        if self.tries > 0 && self.told.is_none_or(|told| told.elapsed() > AGAIN) {
            warn!(for_seconds = since.elapsed().as_secs(), "{} waits for Redis: {error}", self.what);
            self.told = Some(Instant::now());
        }
        let ceiling = LONGEST.min(Duration::from_millis(20) * 2_u32.saturating_pow(self.tries.min(10)));
        self.tries = self.tries.saturating_add(1);
        let wait = ceiling.mul_f64(rand::random_range(0.5..=1.0));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
    }
}
