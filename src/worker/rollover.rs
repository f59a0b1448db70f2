//! Reloading: one generation of parts and loops follows another within the process, as in a rolling restart.
//!
//! The next generation begins to listen while the present one works. When it hears, and it is known that nothing was missed
//! before, it takes over, and the one before drains as on SIGTERM: it claims nothing any more, ends what is in flight, and sees
//! through what it heard. So no bare invalidation is missed and no fetch is cut. A folder with a fault changes nothing. What is
//! asked for meanwhile is done afterwards; being told to stop ends both generations in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::generation;
use crate::admin::Admin;
use crate::config::Settings;
use crate::job::{Jobs, Reload};
use crate::redis::Health;
use crate::redis::{Connection, WrongTypes};
use crate::telemetry::Telemetry;

/// How often is looked whether a generation hears.
const LOOK: Duration = Duration::from_millis(50);

/// What the generations of one process share.
pub(super) struct Process<'a> {
    pub(super) settings: &'a Settings,
    pub(super) redis: Connection,
    pub(super) admin: Arc<Admin>,
    pub(super) telemetry: Telemetry,
    /// Keys of another type than ours that its connections met.
    pub(super) wrong_types: WrongTypes,
    /// The process is told to stop.
    pub(super) stop: CancellationToken,
    /// And to do so at once.
    pub(super) cut: CancellationToken,
}

/// What happens to one generation, in this order.
#[derive(Clone)]
pub(super) struct Life {
    /// It hears all that is published; set by itself.
    heard: CancellationToken,
    /// It is its turn to see to the jobs.
    pub(super) turn: CancellationToken,
    /// It is told to stop.
    pub(super) stop: CancellationToken,
}

impl Life {
    fn new(process: &Process<'_>) -> Self {
        let (heard, turn) = (CancellationToken::new(), CancellationToken::new());
        Self { heard, turn, stop: process.stop.child_token() }
    }

    /// Waits until the generation hears, says so, and waits for its turn.
    pub(super) async fn hears(&self, settled: &CancellationToken, health: &Health) {
        settled.cancelled().await;
        while !health.is_heard_and_hears() {
            tokio::time::sleep(LOOK).await;
        }
        self.heard.cancel();
        self.turn.cancelled().await;
    }

    /// Whoever follows another counts as ready while it begins with the rest.
    pub(super) fn take_over(&self, health: &Health) {
        if self.heard.is_cancelled() {
            health.agenda.well();
            health.queue.well();
        }
    }
}

/// Runs generations until the process is told to stop, the first with these jobs.
///
/// # Errors
/// Of the generation that had its turn: a loop ended by itself, or it could not begin.
pub(super) async fn run(process: &Process<'_>, jobs: Arc<Jobs>, reload: &Reload) -> anyhow::Result<()> {
    let mut life = Life::new(process);
    life.turn.cancel();
    let mut present = Box::pin(generation(process, jobs, life.clone()));
    loop {
        tokio::select! {
            ended = &mut present => return ended,
            () = reload.asked.notified() => {}
        }
        let Some(jobs) = read(reload) else { continue };
        let next_life = Life::new(process);
        let mut next = Box::pin(generation(process, jobs, next_life.clone()));
        let refused = tokio::select! {
            ended = &mut present => {
                next_life.stop.cancel();
                return match next.await {
                    Err(e) if ended.is_ok() => Err(e),
                    Ok(()) | Err(_) => ended,
                };
            }
            ended = &mut next => Some(ended),
            () = next_life.heard.cancelled() => None,
        };
        if process.stop.is_cancelled() {
            return match refused {
                Some(_) => present.await,
                None => tokio::join!(present, next).0,
            };
        }
        if let Some(ended) = refused {
            let why = ended.err().map_or_else(|| "it ended by itself".to_owned(), |e| format!("{e:#}"));
            error!("the new jobs cannot be used, the old ones stay: {why}");
            continue;
        }
        life.stop.cancel();
        next_life.turn.cancel();
        info!("the new jobs are in use; what is in flight of the old ones ends");
        tokio::select! {
            ended = &mut present => if let Err(e) = ended {
                warn!("the old jobs ended out of order: {e:#}");
            },
            ended = &mut next => {
                // Its turn has come: without it, nothing is done any more.
                let _ = present.await;
                return ended.context("the new jobs were in use");
            }
        }
        (life, present) = (next_life, next);
    }
}

/// The jobs as they are now; `None` if they have faults, which are told.
fn read(reload: &Reload) -> Option<Arc<Jobs>> {
    match reload.read() {
        Ok(jobs) => {
            info!(jobs = jobs.jobs.len(), "reading the jobs anew: no fault, they are taken up");
            Some(Arc::new(jobs))
        }
        Err(faults) => {
            for fault in &faults.0 {
                error!(help = fault.help, "{fault}");
            }
            error!(faults = faults.0.len(), "the jobs have faults and are not taken up: the old ones stay");
            None
        }
    }
}
