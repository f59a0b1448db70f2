//! `samovar worker`.

use std::io::IsTerminal;
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

pub(super) async fn run(settings: &Settings, env: &Environment) -> Result<u8, session::Failed> {
    let jobs = session::jobs(settings, env)?;
    let reload = reload(settings);
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let signals = signals(stop.clone(), cut.clone(), Arc::clone(&reload), settings.drain);
    let code = tokio::select! {
        ended = Box::pin(worker::run(settings, jobs, reload, stop, cut.clone())) => match ended {
            Ok(()) if cut.is_cancelled() => exit::FAILED,
            Ok(()) => exit::OK,
            Err(e) => {
                error!("the worker ended: {e:#}");
                exit::FAILED
            }
        },
        code = signals => code,
    };
    Ok(code)
}

/// How long the worker may take its leave from the fleet when it is to end at once.
const LEAVE: Duration = Duration::from_secs(1);

/// Reads the jobs folder anew, and the secrets in `.env` that it names.
fn reload(settings: &Settings) -> Arc<Reload> {
    let (folder, ttl) = (settings.jobs.clone(), settings.default_ttl);
    Reload::new(move || {
        let env = Environment::read().map_err(|e| Faults(vec![Fault::whole(".env", e.to_string(), None)]))?;
        Jobs::load(&folder, ttl, &|name| env.get(name))
    })
}

/// SIGHUP reloads the jobs. The first other signal drains, the second ends at once. Only resolves in the second case, if the
/// worker has not ended by then.
async fn signals(stop: CancellationToken, cut: CancellationToken, reload: Arc<Reload>, drain: Duration) -> u8 {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [Ok(mut term), Ok(mut int), Ok(mut hangup)] = kinds.map(signal) else {
        error!("cannot listen to signals");
        return exit::FAILED;
    };
    let on_terminal = std::io::stderr().is_terminal();
    let mut next = async || {
        loop {
            tokio::select! {
                _ = term.recv() => return,
                _ = int.recv() => return,
                _ = hangup.recv() => {
                    // The same signal says that the terminal was closed.
                    if on_terminal && !std::io::stderr().is_terminal() {
                        return;
                    }
                    reload.ask();
                }
            }
        }
    };
    next().await;
    info!("told to stop: finishing what is in flight, for at most {}; once more to end at once", duration::text(drain));
    stop.cancel();
    next().await;
    warn!("told again: ending at once");
    cut.cancel();
    tokio::time::sleep(LEAVE).await;
    exit::FAILED
}
