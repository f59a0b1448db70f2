//! Reloading: one generation replaces another within the process, as in a rolling restart.
//!
//! The next generation starts to listen while the present one works. When it hears, and knows about any gap before
//! that, it takes over. The previous one then drains as on SIGTERM: it claims nothing more, finishes what is in flight,
//! and handles what it heard. So no bare invalidation is missed and no fetch is cut.
//!
//! A jobs folder with a fault changes nothing. A reload that is requested during a rollover runs after it. A stop ends
//! both generations in order.

use std::sync::Arc;

use anyhow::Context as _;
use tracing::{error, info, warn};

use super::Process;
use super::generation::{self, Life};
use crate::job::{Jobs, Reload};

/// Runs generations until the process is told to stop. The first one has these jobs.
///
/// # Errors
/// The generation in charge could not start, or one of its loops ended by itself.
pub(super) async fn run(process: &Process<'_>, jobs: Arc<Jobs>) -> anyhow::Result<()> {
    let reload = &process.reload;
    let mut life = Life::new(process);
    life.turn.begin();
    let mut present = Box::pin(generation::run(process, jobs, life.clone()));
    loop {
        tokio::select! {
            ended = &mut present => return ended,
            () = reload.asked.notified() => {}
        }
        let Some(jobs) = read(reload) else { continue };
        let next_life = Life::new(process);
        let mut next = Box::pin(generation::run(process, jobs, next_life.clone()));
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
            error!("the new jobs could not start, the old ones stay: {why}");
            reload.refuse("the new jobs could not start, see the log");
            continue;
        }
        life.stop.cancel();
        next_life.turn.begin();
        info!("the new jobs are in use; the old ones drain");
        tokio::select! {
            ended = &mut present => if let Err(e) = ended {
                warn!("the old jobs did not end in order, their entries come due again: {e:#}");
            },
            ended = &mut next => {
                // The new generation is in charge: without it, nothing is warmed.
                let _ = present.await;
                return ended.context("the new jobs were in use");
            }
        }
        (life, present) = (next_life, next);
    }
}

/// Returns the jobs as they are now; `None` if they have faults.
fn read(reload: &Reload) -> Option<Arc<Jobs>> {
    let jobs = reload.read().ok()?;
    info!(jobs = jobs.jobs.len(), "the jobs were read again without faults: they are taken up");
    Some(Arc::new(jobs))
}
