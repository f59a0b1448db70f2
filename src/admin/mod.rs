//! HTTP: health, statistics, metrics, and what people and programs ask of the fleet. docs/http.md lists it all.
//!
//! It begins before Redis is there and ends last, so that whoever asks hears why the worker is not ready. What changes or
//! fetches something, or shows values, stands behind `guard::owner`; every error is a `Problem`.

mod clear;
mod dead;
mod entries;
mod extract;
mod guard;
mod health;
mod invalidate;
mod jobs;
mod metrics;
mod openapi;
mod problem;
mod reload;
mod server;
mod stats;
mod warm;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

pub use server::{Listening, listen};

use crate::config::Secret;
use crate::entry::UpstreamName;
use crate::job::Reload;
use crate::ops::{Census, Ops};
use crate::redis::Health;
use crate::source::Gate;
use crate::telemetry::metrics as gauges;
use crate::trigger::{Backlog, Cron, Invalidator};
use crate::warmer::Warmer;

/// Requests answered at once; more are told to come again. Probes of health are not counted.
const AT_ONCE: usize = 256;
/// Requests at once that hold values or letters in memory, which may be long; more wait for their turn.
const TURNS: usize = 4;

/// What a worker hands over once Redis has been reached, and again when it has reloaded its jobs.
#[derive(Debug)]
pub struct Parts {
    /// How its loops fare.
    pub health: Health,
    /// What can be asked of the fleet.
    pub ops: Ops,
    /// Who evicts.
    pub invalidator: Invalidator,
    /// The invalidations that name many and wait.
    pub backlog: Backlog,
    /// Who asks feeds, within their upstreams' limits.
    pub cron: Cron,
    /// The ways to upstreams.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// What this worker has in hand; gone when it ends.
    pub warmer: Weak<Warmer>,
    /// Workers that live, as the last beat counted them.
    pub workers: Arc<AtomicUsize>,
    /// The worker's name.
    pub worker: Arc<str>,
}

/// What all requests share.
#[derive(Debug)]
pub struct Admin {
    /// Where Redis is, without secrets.
    redis: String,
    token: Option<Secret>,
    /// Only this machine can ask.
    local: bool,
    /// Names by which it may be asked without the token, beside those of this machine.
    hosts: Vec<String>,
    /// Set when the worker is told to stop.
    stop: CancellationToken,
    parts: RwLock<Option<Arc<Parts>>>,
    reload: Arc<Reload>,
    document: OnceLock<Bytes>,
    room: Semaphore,
    /// Why Redis cannot be worked with yet.
    waiting: RwLock<Option<String>>,
    turns: Semaphore,
    census: watch::Sender<Option<Arc<Census>>>,
    census_wanted: tokio::sync::Notify,
}

impl Admin {
    /// For a worker that keeps its data in Redis at `redis` (no secrets in it), reloads its jobs by `reload`, and is told to
    /// end by `stop`; `local` says that nobody else than this machine can ask, `hosts` by which names.
    pub fn new(
        redis: String,
        token: Option<Secret>,
        local: bool,
        hosts: Vec<String>,
        reload: Arc<Reload>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            redis,
            token,
            local,
            hosts,
            stop,
            parts: RwLock::new(None),
            reload,
            document: OnceLock::new(),
            room: Semaphore::new(AT_ONCE),
            waiting: RwLock::default(),
            turns: Semaphore::new(TURNS),
            census: watch::Sender::new(None),
            census_wanted: tokio::sync::Notify::new(),
        })
    }

    /// From now on everything is answered, and out of these parts.
    pub fn ready(&self, parts: Parts) {
        let parts = Arc::new(parts);
        let before = self.parts.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&parts));
        // Of what is no longer known, nothing is said.
        let Some(before) = before else { return };
        for job in before.ops.jobs.jobs.keys().filter(|job| !parts.ops.jobs.jobs.contains_key(*job)) {
            gauges::set_job(job, gauges::JobGauges::default());
        }
        for upstream in before.gates.keys().filter(|upstream| !parts.gates.contains_key(*upstream)) {
            gauges::forget_upstream(upstream);
        }
    }

    /// The worker waits for Redis, for this reason.
    pub fn waits(&self, reason: &str) {
        *self.waiting.write().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    /// What the worker has handed over; `None` until Redis was reached.
    fn parts(&self) -> Option<Arc<Parts>> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for leave to hold values or letters in memory; it is never closed.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// The last count, whoever made it; a newer one is asked for if it is old, and waited for a moment.
    async fn census(&self, patience: Duration) -> Option<Arc<Census>> {
        let mut counted = self.census.subscribe();
        self.census_wanted.notify_one();
        let _ = tokio::time::timeout(patience, counted.wait_for(Option::is_some)).await;
        self.census.borrow().clone()
    }
}
