//! What a loop does while Redis is away: waits, longer each time, and says so once.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::requirements::explain;
use crate::entry::duration;
use crate::redis::LoopHealth;

/// The longest wait between two tries.
const LONGEST: Duration = Duration::from_secs(2);
/// How often the same trouble is told again.
const AGAIN: Duration = Duration::from_secs(30);

/// Exponential waits with full jitter for one loop, and a bounded account of them in the log.
#[derive(Debug)]
pub struct Backoff {
    what: &'static str,
    tries: u32,
    since: Option<Instant>,
    told: Option<Instant>,
    loop_health: LoopHealth,
}

impl Backoff {
    /// For a loop that people know as `what`.
    pub fn new(what: &'static str) -> Self {
        Self { what, tries: 0, since: None, told: None, loop_health: LoopHealth::default() }
    }

    /// The same for a loop whose health is looked at.
    #[must_use]
    pub fn showing(mut self, loop_health: &LoopHealth) -> Self {
        self.loop_health = loop_health.clone();
        self
    }

    /// It works.
    pub fn well(&mut self) {
        if let Some(since) = self.since.take()
            && self.told.is_some()
        {
            info!("{} works again after {}", self.what, duration::rough(since.elapsed()));
        }
        self.tries = 0;
        self.told = None;
        self.loop_health.well();
    }

    /// It failed: waits before the next try, or until `stop`.
    pub async fn ill(&mut self, error: &redis::RedisError, stop: &CancellationToken) {
        let error = explain(error);
        self.loop_health.ill(&error);
        let since = *self.since.get_or_insert_with(Instant::now);
        // A single dropped connection is mended silently.
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
