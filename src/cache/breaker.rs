//! A circuit breaker: after a few failures in a row, calls no longer wait for Redis, except one probe at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::entry::duration;

/// Failures in a row that open the breaker.
const FAILURES: u32 = 3;
/// The time between two probes, and the longest time until a returned Redis is noticed.
const OPEN: Duration = Duration::from_millis(500);

/// The state that all callers share.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// `false` while `state` is the default, so that callers do not take the lock.
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    since: Option<Instant>,
    /// Open until then; after that, one caller probes.
    until: Option<Instant>,
    probing: bool,
}

/// A permission to call Redis. End it with [`Pass::well`] or [`Pass::ill`]; dropping it records nothing.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    probes: bool,
}

impl Breaker {
    /// Returns a permission to call Redis; `None` while the breaker is open.
    pub(super) fn pass(&self) -> Option<Pass<'_>> {
        if !self.troubled.load(Ordering::Acquire) {
            return Some(Pass { breaker: self, probes: false });
        }
        let mut state = self.state();
        match state.until {
            None => Some(Pass { breaker: self, probes: false }),
            Some(until) if !state.probing && Instant::now() >= until => {
                state.probing = true;
                Some(Pass { breaker: self, probes: true })
            }
            Some(_) => None,
        }
    }

    /// Returns `true` while calls are answered without Redis.
    pub(super) fn is_open(&self) -> bool {
        self.troubled.load(Ordering::Acquire) && self.state().until.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// Records an answer of Redis.
    pub(super) fn well(self) {
        if !self.breaker.troubled.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.breaker.state();
        if let (Some(_), Some(since)) = (state.until, state.since) {
            info!("the cache's Redis recovered after {}", duration::rough(since.elapsed()));
        }
        *state = State::default();
        self.breaker.troubled.store(false, Ordering::Release);
    }

    /// Records that Redis did not answer.
    pub(super) fn ill(self, why: &str) {
        let mut state = self.breaker.state();
        self.breaker.troubled.store(true, Ordering::Release);
        state.failures = state.failures.saturating_add(1);
        state.since.get_or_insert_with(Instant::now);
        if state.failures >= FAILURES && (self.probes || state.until.is_none()) {
            if state.until.is_none() {
                warn!("Redis does not answer; the cache works without it until it does: {why}");
            }
            state.until = Some(Instant::now() + OPEN);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probes {
            self.breaker.state().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..FAILURES {
            breaker.pass().unwrap().ill("gone");
        }
        breaker
    }

    #[test]
    fn a_few_failures_in_a_row_open_it_and_fewer_do_not() {
        let breaker = Breaker::default();
        for _ in 0..FAILURES - 1 {
            breaker.pass().unwrap().ill("gone");
        }
        breaker.pass().unwrap().well();
        for _ in 0..FAILURES - 1 {
            breaker.pass().unwrap().ill("gone");
        }
        assert!(!breaker.is_open());
        breaker.pass().unwrap().ill("gone");
        assert!(breaker.is_open() && breaker.pass().is_none());
    }

    #[test]
    fn one_caller_at_a_time_probes_and_success_closes_it() {
        let breaker = opened();
        breaker.state().until = Some(Instant::now());
        let probes = breaker.pass().unwrap();
        assert!(breaker.pass().is_none(), "others are answered at once");
        // The caller was cancelled: another one probes.
        drop(probes);
        breaker.pass().unwrap().ill("still gone");
        assert!(breaker.pass().is_none());
        breaker.state().until = Some(Instant::now());
        breaker.pass().unwrap().well();
        assert!(!breaker.is_open() && breaker.pass().is_some());
    }

    #[test]
    fn a_late_failure_does_not_put_off_the_next_look() {
        let breaker = Breaker::default();
        let late = breaker.pass().unwrap();
        for _ in 0..FAILURES {
            breaker.pass().unwrap().ill("gone");
        }
        let until = breaker.state().until;
        late.ill("gone");
        assert_eq!(breaker.state().until, until);
    }
}
