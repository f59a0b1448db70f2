//! Waiting on a state.

use std::fmt::Debug;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// Long enough for a busy machine; only a failing test waits this long.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// The result of a probe: the state that was waited for, or the state that is there instead.
pub trait State {
    /// The state that is waited for.
    type Reached;

    /// # Errors
    /// The last state seen, which the panic message shows.
    fn reached(self) -> Result<Self::Reached, String>;
}

impl State for bool {
    type Reached = ();

    fn reached(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> State for Option<T> {
    type Reached = T;

    fn reached(self) -> Result<T, String> {
        self.ok_or_else(|| "None".into())
    }
}

impl<T, E: Debug> State for Result<T, E> {
    type Reached = T;

    fn reached(self) -> Result<T, String> {
        self.map_err(|state| format!("{state:?}"))
    }
}

/// Probes again and again until the state is reached, and returns what the probe found.
///
/// # Panics
/// After [`DEADLINE`], naming `what` was waited for and the last state seen.
#[track_caller]
pub fn eventually<S: State>(what: &str, probe: impl AsyncFnMut() -> S) -> impl Future<Output = S::Reached> {
    let caller = std::panic::Location::caller();
    poll(what, DEADLINE, probe, caller)
}

/// Waits as [`eventually`] does, for a state that takes longer by itself.
#[track_caller]
pub fn eventually_within<S: State>(
    time: Duration,
    what: &str,
    probe: impl AsyncFnMut() -> S,
) -> impl Future<Output = S::Reached> {
    let caller = std::panic::Location::caller();
    poll(what, time, probe, caller)
}

async fn poll<S: State>(
    what: &str,
    time: Duration,
    mut probe: impl AsyncFnMut() -> S,
    caller: &'static std::panic::Location<'static>,
) -> S::Reached {
    let start = Instant::now();
    let mut last = "nothing: the probe never returned".to_owned();
    while start.elapsed() < time {
        match tokio::time::timeout(time.saturating_sub(start.elapsed()), probe()).await.map(State::reached) {
            Ok(Ok(reached)) => return reached,
            Ok(Err(state)) => last = state,
            Err(_) => break,
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("{caller}: never came to pass within {time:?}: {what}; last seen: {last}");
}
