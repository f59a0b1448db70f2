//! `samovar worker`.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{exit, session};
use crate::config::{Environment, Settings};
use crate::worker;

pub(super) async fn run(settings: &Settings, env: &Environment) -> Result<u8, session::Failed> {
    let jobs = session::jobs(settings, env)?;
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let signals = signals(stop.clone(), cut.clone(), settings.drain);
    let code = tokio::select! {
        ended = worker::run(settings, jobs, stop, cut.clone()) => match ended {
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

/// The first signal drains, the second ends at once. Only resolves in the second case, if the worker has not ended by then.
async fn signals(stop: CancellationToken, cut: CancellationToken, drain: Duration) -> u8 {
    let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(int)) => (term, int),
        (Err(e), _) | (_, Err(e)) => {
            error!("cannot listen to signals: {e}");
            return exit::FAILED;
        }
    };
    let mut next = async || {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    next().await;
    info!("told to stop: finishing what is in flight, for at most {drain:?}; once more to end at once");
    stop.cancel();
    next().await;
    warn!("told again: ending at once");
    cut.cancel();
    tokio::time::sleep(LEAVE).await;
    exit::FAILED
}
