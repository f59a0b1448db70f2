//! Limits of an upstream for the whole fleet: rate, concurrency, `Retry-After`, circuit breaker, token budget.
//!
//! Redis holds one small state for each upstream. Only the scripts in `lua/` change it, by Redis's clock. A [`Gate`] is
//! one worker's access to that state. It remembers why nothing is admitted and then refuses without a command. If the
//! upstream has no limits and is well, the gate sends no command at all. Gates tell each other of changes over the
//! signal channel.
//!
//! On failure: the rescuer returns the permits of a dead worker. Without a rescuer they expire, the upstream's timeout
//! and five seconds after they were given. Without Redis, requests to a limited upstream are refused, because nothing
//! could be committed either. After a flush the limits begin anew, and requests in flight are not counted. Tokens that
//! a request may cost are reserved while it is in flight. Tokens that were spent and could not be counted are kept
//! here, over reloads too, and told with the next command; until then nothing that costs tokens is admitted. They count
//! once, also if Redis carries the failed command out later.

mod account;
mod admission;
mod breaker;
mod budget;
mod gate;
mod line;
mod permit;
mod refusal;
mod requests;

use std::time::Duration;

pub use breaker::UpstreamMemory;
pub use gate::Gate;
pub use permit::{Ended, Permit};
pub use refusal::Refusal;
pub use requests::{Fetches, Lately};

/// The longest time after which an entry is tried again whose upstream admits nothing; a raised limit is noticed then.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Returns whole milliseconds, rounded up, so that nothing ends before its time.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
