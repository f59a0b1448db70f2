//! One worker process: builds the parts, supervises their loops, and ends in order.
//!
//! The parts and loops over one reading of the jobs folder are a generation, which the fleet sees as one worker. A
//! reload ([`Reload`]) starts the next generation; `rollover` hands over from one to the other.
//!
//! - `parts` builds a generation's parts; `generation` starts their loops, serves, and drains.
//! - `supervisor` ends the process when a loop ends too early.
//! - `heartbeat` tells the fleet that the worker lives, and calls what checks Redis regularly (`maintenance`).
//!
//! If Redis goes away, no loop ends: each waits for it. After SIGTERM a worker claims nothing more, finishes what is in
//! flight within the drain time, and hands the rest back.

mod bulk_runtime;
mod connect;
mod generation;
mod heartbeat;
pub mod maintenance;
mod parts;
mod refusal_report;
mod rollover;
mod supervisor;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

pub use heartbeat::dead_after;

use connect::connect_usable;
use supervisor::Supervisor;

use crate::admin::console::{self, Console};
use crate::admin::{self, Access, Admin};
use crate::config::Settings;
use crate::job::{Jobs, Reload};
use crate::redis::{Connection, WrongTypes};
use crate::source::UpstreamMemory;
use crate::telemetry::{Telemetry, metrics};

/// The time that the last commands to Redis may take when the worker ends.
const LAST_COMMANDS: Duration = Duration::from_secs(2);

/// The state that the generations of one process share.
struct Process<'a> {
    settings: &'a Settings,
    redis: Connection,
    admin: Arc<Admin>,
    telemetry: Telemetry,
    reload: Arc<Reload>,
    /// Keys of a wrong type that the process's connections met.
    wrong_types: WrongTypes,
    /// The process's memory of upstreams.
    memory: UpstreamMemory,
    /// Set when the process is told to stop.
    stop: CancellationToken,
    /// Set when the process is told to stop at once.
    cut: CancellationToken,
}

/// Runs a worker until `stop` and drains it, or until `cut`. Reloads the jobs on each request.
///
/// # Errors
/// A loop ended by itself, or the worker could not start.
pub async fn run(
    settings: &Settings,
    jobs: Arc<Jobs>,
    reload: Arc<Reload>,
    stop: CancellationToken,
    cut: CancellationToken,
) -> anyhow::Result<()> {
    metrics::install();
    let mut loops = Supervisor::new(stop.clone());
    // HTTP answers before Redis is there, and until all else has ended.
    let over = CancellationToken::new();
    let listening = admin::listen(settings.listen).await?;
    let local = listening.as_ref().is_none_or(|listening| listening.address().ip().is_loopback());
    let admin = Admin::new(settings.redis.to_string(), access(settings, local), Arc::clone(&reload), stop.clone());
    if let Some(listening) = listening {
        let console = Console::new(Arc::clone(&admin), settings.title.clone());
        loops.run("HTTP", listening.run(Arc::clone(&admin), console::router(&console), over.clone()));
        loops.run("the console", console.run(over.clone()));
    }
    let telemetry = Telemetry::default();
    loops.run("the report", telemetry.clone().run(stop.clone()));
    let wrong_types = WrongTypes::default();
    let result = match connect_usable(settings, &admin, &stop).await {
        Ok(redis) => {
            let redis = redis.telling(&wrong_types);
            let keys = settings.keys();
            loops.run("the journal", telemetry.clone().journal(redis.clone(), keys.clone(), over.clone()));
            loops.run("the feed", telemetry.clone().feed(redis.clone(), keys, over.clone()));
            let (memory, until) = (UpstreamMemory::default(), stop.clone());
            let process = Process { settings, redis, admin, telemetry, reload, wrong_types, memory, stop: until, cut };
            let mut generations = Box::pin(rollover::run(&process, jobs));
            tokio::select! {
                ended = &mut generations => ended,
                ended = loops.wait() => {
                    stop.cancel();
                    generations.await.and(Err(ended))
                }
            }
        }
        Err(e) if stop.is_cancelled() => {
            info!("{e}");
            Ok(())
        }
        Err(e) => Err(e),
    };
    stop.cancel();
    over.cancel();
    loops.end(LAST_COMMANDS).await;
    result
}

/// Returns who may use HTTP; `local` means that only this machine can connect.
fn access(settings: &Settings, local: bool) -> Access {
    Access {
        token: settings.token.clone(),
        viewer_token: settings.viewer_token.clone(),
        viewer_values: settings.viewer_values,
        read_only: settings.read_only,
        local,
        hosts: settings.hosts.clone(),
    }
}

/// Returns the name of this machine.
fn host() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "worker".to_owned())
}
