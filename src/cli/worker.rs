//! `samovar worker`: runs a worker.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{exit, session};
use crate::config::{Environment, Settings};
use crate::entry::duration;
use crate::job::Reload;
use crate::job::{Fault, Faults, Jobs};
use crate::worker;

pub(super) async fn run(
    settings: &Settings,
    env: &Environment,
    env_files: Vec<PathBuf>,
) -> Result<u8, session::Failed> {
    let jobs = session::jobs(settings, env)?;
    let reload = reload(settings, env_files);
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let signals = signals(stop.clone(), cut.clone(), Arc::clone(&reload), settings.drain);
    let code = tokio::select! {
        ended = Box::pin(worker::run(settings, jobs, reload, stop, cut.clone())) => match ended {
            Ok(()) if cut.is_cancelled() => exit::FAILED,
            Ok(()) => exit::OK,
            Err(e) => {
                error!("the worker failed: {e:#}");
                exit::FAILED
            }
        },
        code = signals => code,
    };
    Ok(code)
}

/// The timeout of leaving the fleet when the worker must end at once.
const LEAVE: Duration = Duration::from_secs(1);

/// Reloads the jobs folder, and the secrets that it names in `.env` or these files. A fault of such a file names it.
fn reload(settings: &Settings, env_files: Vec<PathBuf>) -> Arc<Reload> {
    let (folder, ttl) = (settings.jobs.clone(), settings.default_ttl);
    Reload::new(move || {
        let env = Environment::read(&env_files).map_err(|e| {
            let names: Vec<String> = env_files.iter().map(|file| file.display().to_string()).collect();
            let faulty = |fault: &str| names.iter().find(|name| fault.starts_with(&format!("{name}:")));
            let fault =
                |fault: String| Fault::whole(faulty(&fault).map_or(".env", String::as_str), fault.clone(), None);
            Faults(e.faults.into_iter().map(fault).collect())
        })?;
        Jobs::load(&folder, ttl, &|name| env.get(name))
    })
}

/// SIGHUP reloads the jobs. The first other signal drains, the second ends the worker at once. Completes only in the
/// second case.
async fn signals(stop: CancellationToken, cut: CancellationToken, reload: Arc<Reload>, drain: Duration) -> u8 {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [Ok(mut term), Ok(mut int), Ok(mut hangup)] = kinds.map(signal) else {
        error!("cannot handle signals");
        return exit::FAILED;
    };
    let on_terminal = std::io::stderr().is_terminal();
    let mut next = async || {
        loop {
            tokio::select! {
                _ = term.recv() => return,
                _ = int.recv() => return,
                _ = hangup.recv() => {
                    // A closed terminal sends the same signal.
                    if on_terminal && !std::io::stderr().is_terminal() {
                        return;
                    }
                    reload.ask();
                }
            }
        }
    };
    next().await;
    info!(
        "told to stop; finishing entries in flight for at most {}; a second signal ends at once",
        duration::text(drain)
    );
    stop.cancel();
    next().await;
    warn!("second signal: ending at once");
    cut.cancel();
    tokio::time::sleep(LEAVE).await;
    exit::FAILED
}
