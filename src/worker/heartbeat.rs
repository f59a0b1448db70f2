//! The heartbeat: once a second it tells the fleet that this worker lives, and checks what can change at any time.
//!
//! A worker that drains beats until it leaves the fleet. Each beat before that also checks Redis's clock and the
//! workers whose beats stopped. Every few seconds it checks evictions, upstreams and unanswered pulls. If a beat fails,
//! it waits for Redis and beats again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::RedisResult;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::maintenance::{EvictionMonitor, Rescuer, RestartMonitor, UpstreamMonitor};
use super::refusal_report::RefusalReport;
use super::turn::Turn;
use crate::queue::Queue;
use crate::redis::{Backoff, LoopHealth};
use crate::trigger::{Clock, Gone};

/// The interval between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// The interval between two thorough beats, which also check evictions, upstreams and unanswered pulls.
const THOROUGH: Duration = Duration::from_secs(5);
/// The time between two beats from which on this worker cannot tell who is dead: Redis may have been away for all.
const BREAK: Duration = Duration::from_secs(3);

/// Returns the time without a beat after which a worker counts as dead. It is short enough that what the worker held is
/// warm again within the claim time.
pub fn dead_after(claim: Duration) -> Duration {
    (claim / 2).clamp(BEAT * 5, BEAT * 15)
}

/// One worker's heartbeat.
#[derive(Debug)]
pub(super) struct Heartbeat {
    pub(super) queue: Queue,
    pub(super) rescuer: Rescuer,
    pub(super) clock: Clock,
    pub(super) restarts: RestartMonitor,
    pub(super) evictions: EvictionMonitor,
    pub(super) upstreams: UpstreamMonitor,
    /// The number of workers that live.
    pub(super) workers: Arc<AtomicUsize>,
    pub(super) dead_after: Duration,
    pub(super) loop_health: LoopHealth,
    pub(super) refusal_report: RefusalReport,
    /// Begins when this generation is in charge of the jobs.
    pub(super) turn: Turn,
    /// It has waited for the descriptions of the jobs.
    pub(super) has_waited: bool,
}

impl Heartbeat {
    /// Runs until `stop`; then it only tells the fleet that this worker lives, until the caller drops it: what a worker
    /// fetches while it drains is still its own.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the heartbeat").showing(&self.loop_health);
        let mut inspected = Instant::now();
        let (mut last, mut steady_since) = (Instant::now(), Instant::now());
        while !stop.is_cancelled() {
            let thorough = inspected.elapsed() >= THOROUGH;
            let dead = match self.beat(thorough).await {
                Ok(dead) => dead,
                Err(e) => {
                    backoff.ill(&e, &stop).await;
                    continue;
                }
            };
            backoff.well();
            if last.elapsed() > BREAK {
                steady_since = Instant::now();
            }
            last = Instant::now();
            if self.check_clock().await {
                // By another clock, all earlier beats are old or in the future.
                steady_since = Instant::now();
            }
            // After an outage of Redis all beats are old, and some workers beat again later than others.
            if steady_since.elapsed() >= self.dead_after {
                self.rescue(dead).await;
            }
            if self.turn.has_begun()
                && let Err(e) = self.refusal_report.tell().await
            {
                debug!("could not tell the fleet of the last reload: {e}");
            }
            if thorough {
                self.inspect().await;
                inspected = Instant::now();
            }
            tokio::select! {
                () = tokio::time::sleep(BEAT) => {}
                () = stop.cancelled() => {}
            }
        }
        // This worker ends, and another one may work with the new files.
        if let Err(e) = self.refusal_report.take_back().await {
            debug!("could not take back what the fleet was told of the last reload: {e}");
        }
        loop {
            if let Err(e) = self.queue.beat(self.dead_after).await {
                debug!("could not tell the fleet that this worker drains: {e}");
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Tells the fleet that this worker lives, and restores what Redis lost; returns the workers that are dead.
    async fn beat(&mut self, thorough: bool) -> RedisResult<Vec<String>> {
        let (living, dead) = self.queue.beat(self.dead_after).await?;
        self.workers.store(living.max(1), Ordering::Relaxed);
        if self.turn.has_begun() {
            // Workers with earlier files must know of these before they meet entries of theirs. If the descriptions
            // cannot be written, warmups do not wait for them.
            if !std::mem::replace(&mut self.has_waited, true) {
                let _ = tokio::time::timeout(BEAT, self.turn.is_described()).await;
            }
            self.restarts.check(thorough).await?;
        }
        Ok(dead)
    }

    /// Checks Redis's clock; returns `true` if it was set.
    async fn check_clock(&mut self) -> bool {
        match self.clock.inspect().await {
            Ok(Gone::On) => false,
            Ok(Gone::Ahead) => true,
            Ok(Gone::Back) => {
                // All schedules start again.
                self.restarts.set_up_again();
                true
            }
            Err(e) => {
                debug!("cannot check Redis's clock: {e}");
                false
            }
        }
    }

    /// Frees what dead workers held, within the time of a beat. The next beat does the rest.
    async fn rescue(&self, dead: Vec<String>) {
        let rescuing = async {
            for worker in dead {
                if let Err(e) = self.rescuer.rescue(&worker).await {
                    debug!(worker, "could not rescue a dead worker's entries; the next beat tries again: {e}");
                }
            }
        };
        let _ = tokio::time::timeout(BEAT, rescuing).await;
    }

    /// Checks what Redis evicted, the state of upstreams, and pulls without an answer.
    async fn inspect(&mut self) {
        match self.evictions.inspect().await {
            Ok(true) => self.restarts.set_up_again(),
            Ok(false) => {}
            Err(e) => debug!("cannot check what Redis evicts: {e}"),
        }
        self.upstreams.inspect().await;
        if let Err(e) = self.queue.recover().await {
            debug!("could not recover tasks whose pull had no answer: {e}");
        }
    }
}
