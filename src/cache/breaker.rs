//! Circuit breakers: after a few failures in a row, calls no longer wait for Redis, except one probe at a time.
//!
//! Each master of a Cluster has a breaker of its own, so that a dead one stops no calls of others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::entry::duration;
use crate::redis::Connection;

/// Failures in a row that open the breaker.
const FAILURES: u32 = 3;
/// The time between two probes, and the longest time until a returned Redis is noticed.
const OPEN: Duration = Duration::from_millis(500);

/// The breakers that all callers share.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// The one of a lone server; on a Cluster, that of calls that concern several masters, or none by a key.
    shared: Arc<Breaker>,
    of_masters: Mutex<HashMap<String, Arc<Breaker>>>,
}

/// The state of one breaker.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The master of a Cluster that it is for.
    master: Option<String>,
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
pub(super) struct Pass {
    breaker: Arc<Breaker>,
    probes: bool,
}

impl Breakers {
    /// Returns the breaker of calls that concern several keys, or none.
    pub(super) fn shared(&self) -> Arc<Breaker> {
        Arc::clone(&self.shared)
    }

    /// Returns the breaker of calls that concern this key.
    pub(super) fn of(&self, redis: &Connection, key: &str) -> Arc<Breaker> {
        let Some(master) = redis.owner_of(key) else { return self.shared() };
        let mut breakers = self.of_masters();
        if let Some(breaker) = breakers.get(&master) {
            return Arc::clone(breaker);
        }
        // A new master may have taken the place of one whose breaker is open.
        breakers.retain(|known, _| redis.has_master(known));
        let breaker = Arc::new(Breaker { master: Some(master.clone()), ..Breaker::default() });
        breakers.insert(master, Arc::clone(&breaker));
        breaker
    }

    /// Returns `true` while some calls are answered without Redis.
    pub(super) fn any_is_open(&self) -> bool {
        self.shared.is_open() || self.of_masters().values().any(|breaker| breaker.is_open())
    }

    fn of_masters(&self) -> MutexGuard<'_, HashMap<String, Arc<Breaker>>> {
        self.of_masters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Breaker {
    /// Returns a permission to call Redis; `None` while the breaker is open.
    pub(super) fn pass(self: &Arc<Self>) -> Option<Pass> {
        if !self.troubled.load(Ordering::Acquire) {
            return Some(Pass { breaker: Arc::clone(self), probes: false });
        }
        let mut state = self.state();
        match state.until {
            None => Some(Pass { breaker: Arc::clone(self), probes: false }),
            Some(until) if !state.probing && Instant::now() >= until => {
                state.probing = true;
                Some(Pass { breaker: Arc::clone(self), probes: true })
            }
            Some(_) => None,
        }
    }

    /// Returns `true` while calls are answered without Redis.
    fn is_open(&self) -> bool {
        self.troubled.load(Ordering::Acquire) && self.state().until.is_some()
    }

    /// Names what it is for.
    fn what(&self) -> String {
        self.master.as_ref().map_or_else(|| "Redis".to_owned(), |master| format!("the master {master}"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Records an answer of Redis.
    pub(super) fn well(self) {
        if !self.breaker.troubled.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.breaker.state();
        if let (Some(_), Some(since)) = (state.until, state.since) {
            let what = self.breaker.what();
            info!("{what} answers the cache again, after {}", duration::rough(since.elapsed()));
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
                let what = self.breaker.what();
                warn!("{what} does not answer; the cache works without it until it does: {why}");
            }
            state.until = Some(Instant::now() + OPEN);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probes {
            self.breaker.state().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Arc<Breaker> {
        let breaker = Arc::<Breaker>::default();
        for _ in 0..FAILURES {
            breaker.pass().unwrap().ill("gone");
        }
        breaker
    }

    #[test]
    fn a_few_failures_in_a_row_open_it_and_fewer_do_not() {
        let breaker = Arc::<Breaker>::default();
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
        let breaker = Arc::<Breaker>::default();
        let late = breaker.pass().unwrap();
        for _ in 0..FAILURES {
            breaker.pass().unwrap().ill("gone");
        }
        let until = breaker.state().until;
        late.ill("gone");
        assert_eq!(breaker.state().until, until);
    }
}
