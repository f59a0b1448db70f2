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
/// A loop has recovered once it works for this long: a success between two failures is no recovery.
const SETTLED: Duration = Duration::from_secs(3);

/// The backoff of one loop: exponential waits with jitter, and a bounded number of log lines.
#[derive(Debug)]
pub struct Backoff {
    what: &'static str,
    tries: u32,
    since: Option<Instant>,
    told: Option<Instant>,
    /// When it began to work again, if the failure was logged and its end was not.
    works_since: Option<Instant>,
    loop_health: LoopHealth,
}

impl Backoff {
    /// Creates the backoff of a loop; `what` names the loop in the log.
    pub fn new(what: &'static str) -> Self {
        Self { what, tries: 0, since: None, told: None, works_since: None, loop_health: LoopHealth::default() }
    }

    /// Also reports to this loop health.
    #[must_use]
    pub fn showing(mut self, loop_health: &LoopHealth) -> Self {
        self.loop_health = loop_health.clone();
        self
    }

    /// Records a success and resets the wait.
    pub fn well(&mut self) {
        self.tries = 0;
        self.loop_health.well();
        if self.told.is_none() {
            self.since = None;
        } else {
            self.works_since.get_or_insert_with(Instant::now);
            self.settle();
        }
    }

    /// Logs the recovery if the loop has worked for long enough.
    fn settle(&mut self) {
        let Some(works_since) = self.works_since.filter(|since| since.elapsed() >= SETTLED) else { return };
        if let Some(since) = self.since {
            info!("{} recovered after {}", self.what, duration::rough(works_since.duration_since(since)));
        }
        (self.since, self.told, self.works_since) = (None, None, None);
    }

    /// Records a failure, then waits before the next attempt, or until `stop`.
    pub async fn ill(&mut self, error: &redis::RedisError, stop: &CancellationToken) {
        let error = explain(error);
        self.loop_health.ill(&error);
        self.settle();
        self.works_since = None;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the backoff of a loop whose failure was logged this many seconds ago.
    fn ill_for(seconds: u64) -> Backoff {
        let then = Instant::now().checked_sub(Duration::from_secs(seconds));
        let mut backoff = Backoff::new("the loop");
        (backoff.since, backoff.told, backoff.tries) = (then, then, 3);
        backoff
    }

    #[tokio::test]
    async fn a_success_between_two_failures_is_no_recovery() {
        let stop = CancellationToken::new();
        stop.cancel();
        let error = redis::RedisError::from(std::io::Error::other("full"));
        let mut backoff = ill_for(9);
        backoff.well();
        backoff.ill(&error, &stop).await;
        assert!(backoff.since.is_some_and(|since| since.elapsed() >= Duration::from_secs(9)), "it still lasts");
        backoff.works_since = Instant::now().checked_sub(SETTLED);
        backoff.ill(&error, &stop).await;
        assert!(backoff.since.is_some_and(|since| since.elapsed() < SETTLED), "another one began");
    }

    #[test]
    fn a_loop_that_works_for_a_while_has_recovered() {
        let mut backoff = ill_for(9);
        backoff.well();
        assert!(backoff.since.is_some() && backoff.tries == 0);
        backoff.works_since = Instant::now().checked_sub(SETTLED);
        backoff.well();
        assert!(backoff.since.is_none() && backoff.told.is_none() && backoff.works_since.is_none());
    }
}
