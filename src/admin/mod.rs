//! HTTP: health, statistics, metrics, and operations on the fleet. docs/http.md lists the routes.
//!
//! It starts before Redis is reached and ends last, so that a client learns why the worker is not ready. Requests that
//! change or fetch something, or show values, pass `guard::owner`. Every error is a `Problem`.

mod access;
mod clear;
pub mod console;
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
mod state;
mod stats;
mod warm;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

pub use access::{Access, Role};
pub(crate) use access::{Proof, Rights, SESSION};
pub(crate) use guard::READ_ONLY;
pub(crate) use health::{Readiness, readiness};
pub(crate) use jobs::withhold_reasons;
pub(crate) use server::Peer;
pub use server::{Listening, listen};
pub(crate) use state::{Of, State, in_time};
pub(crate) use warm::warm_due;

use crate::entry::UpstreamName;
use crate::job::Reload;
use crate::ops::{Census, Ops};
use crate::queue::Queue;
use crate::redis::Health;
use crate::source::Gate;
use crate::telemetry::metrics as gauges;
use crate::trigger::{Backlog, Cron, Invalidator};
use crate::warmer::Warmer;

/// The most requests at once; further ones are refused. Health probes do not count.
const AT_ONCE: usize = 256;
/// The most requests at once that hold values or dead letters in memory; further ones wait.
const TURNS: usize = 4;

/// The parts that a worker provides once Redis was reached, and again after each reload of its jobs.
#[derive(Debug)]
pub struct Parts {
    /// The health of its loops.
    pub health: Health,
    /// The operations on the fleet.
    pub ops: Ops,
    /// The invalidator, for evictions.
    pub invalidator: Invalidator,
    /// The waiting broad invalidations.
    pub backlog: Backlog,
    /// The source of feeds, within their upstreams' limits.
    pub cron: Cron,
    /// The upstreams' gates.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// The entries that this worker has claimed; gone when it ends.
    pub warmer: Weak<Warmer>,
    /// Live workers, as of the last heartbeat.
    pub workers: Arc<AtomicUsize>,
    /// The worker's name.
    pub worker: Arc<str>,
    /// Tells which workers live.
    pub queue: Queue,
    /// The time without a heartbeat after which a worker is dead.
    pub dead_after: Duration,
}

/// The state that all requests share.
#[derive(Debug)]
pub struct Admin {
    /// The Redis URL, without secrets.
    pub(crate) redis: String,
    /// Who may do what.
    pub(crate) access: Access,
    /// Cancelled when the worker shuts down.
    pub(crate) stop: CancellationToken,
    parts: RwLock<Option<Arc<Parts>>>,
    reload: Arc<Reload>,
    document: OnceLock<Bytes>,
    room: Semaphore,
    /// Why Redis is not usable yet.
    waiting: RwLock<Option<String>>,
    turns: Semaphore,
    census: watch::Sender<Option<Arc<Census>>>,
    census_wanted: tokio::sync::Notify,
}

impl Admin {
    /// Creates the state for a worker with Redis at `redis` (without secrets). `reload` reloads its jobs, and `stop` is
    /// its shutdown.
    pub fn new(redis: String, access: Access, reload: Arc<Reload>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            redis,
            access,
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

    /// Provides the parts: from now on all requests are answered.
    pub fn ready(&self, parts: Parts) {
        let parts = Arc::new(parts);
        let before = self.parts.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&parts));
        // Clears the gauges of unknown upstreams.
        let Some(before) = before else { return };
        for job in before.ops.jobs.jobs.keys().filter(|job| !parts.ops.jobs.jobs.contains_key(*job)) {
            gauges::set_job(job, gauges::JobGauges::default());
        }
        for upstream in before.gates.keys().filter(|upstream| !parts.gates.contains_key(*upstream)) {
            gauges::forget_upstream(upstream);
        }
    }

    /// Records why the worker is waiting for Redis.
    pub fn waits(&self, reason: &str) {
        *self.waiting.write().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    /// Returns the worker's parts; `None` until Redis was reached.
    pub(crate) fn parts(&self) -> Option<Arc<Parts>> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a permit to hold values or dead letters in memory.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// Returns the last count of any worker. If it is old, requests a new one and waits a moment for it.
    pub(crate) async fn census(&self, wait: Duration) -> Option<Arc<Census>> {
        let mut counted = self.census.subscribe();
        self.census_wanted.notify_one();
        let _ = tokio::time::timeout(wait, counted.wait_for(Option::is_some)).await;
        self.census.borrow().clone()
    }
}
