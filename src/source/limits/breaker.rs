//! The breaker of an upstream as one worker knows it: whether it is open, and why nothing is admitted.
//!
//! The scripts decide. This is the memory of their last answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::account::Account;
use super::refusal::{Refusal, reason};
use crate::entry::{UpstreamName, duration};

/// Consecutive failures of the fleet that open the breaker.
pub(super) const FAILURES: u32 = 10;

/// The time before its end from which on an opening is early. What was deferred for less comes back by itself.
const EARLY: Duration = Duration::from_secs(10);

/// The answer of a script: reason, microseconds, flag, health.
///
/// The flag of an admission is 1 if the request is the breaker's probe. The flag of a refusal, and of the other
/// scripts, is the share of the token budget that must be logged, in percent.
pub(super) type Verdict = (String, u64, u8, u8);

/// The breaker of an upstream as one worker knows it.
#[derive(Default)]
pub(super) struct Breaker {
    known: Mutex<Known>,
    memory: UpstreamMemory,
}

#[derive(Default)]
struct Known {
    /// Until when nothing is admitted, and why.
    closed: Option<(Instant, &'static str)>,
    /// The latest end that was told since something was last admitted.
    told: Option<Instant>,
    /// It opened before the end that was told.
    opened_early: bool,
    /// Until when it asked to be left alone, as the log says.
    logged_pause: Option<Instant>,
    /// Why the upstream refuses the account; empty if it does not.
    said: String,
    health: Health,
}

/// The health of an upstream, as the scripts answer it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Health {
    #[default]
    Well,
    /// Failures were counted recently, so successes must be reported.
    Shaky,
    /// The breaker is open; only Redis knows which request is the probe.
    Broken,
    /// The breaker is open because the upstream refuses the account.
    Refused,
}

impl Health {
    fn is_open(self) -> bool {
        matches!(self, Self::Broken | Self::Refused)
    }
}

/// The memory that a process has of upstreams from one generation of its parts to the next: which open breakers are
/// logged, so that they are not logged once more; until when nothing is admitted, so that a reload which raises a limit
/// opens them early; and the tokens spent, so that no reload loses those that are not counted yet. Cheap to clone;
/// clones share what they know.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMemory(Arc<Mutex<BTreeMap<UpstreamName, Remembered>>>);

#[derive(Debug, Default)]
struct Remembered {
    /// The health that is logged; `None` for a closed breaker.
    logged: Option<Health>,
    /// As [`Known::told`].
    told: Option<Instant>,
    /// The tokens that the process has spent.
    account: Arc<Account>,
}

impl UpstreamMemory {
    /// Returns the process's account of an upstream.
    pub(super) fn account(&self, upstream: &UpstreamName) -> Arc<Account> {
        self.with(upstream, |remembered| Arc::clone(&remembered.account))
    }

    fn with<T>(&self, upstream: &UpstreamName, of: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        of(all.entry(upstream.clone()).or_default())
    }

    /// Notes an upstream's health as it is now; returns the health to log, `None` where nothing is new. A refused
    /// account is logged once it is known what the upstream said: a request may be admitted to ask it again before.
    fn news(&self, upstream: &UpstreamName, health: Health, is_explained: bool) -> Option<Health> {
        self.with(upstream, |Remembered { logged, .. }| match (*logged, health) {
            (None, Health::Well | Health::Shaky) | (Some(Health::Refused), Health::Refused) => None,
            (Some(_), Health::Well | Health::Shaky) => {
                *logged = None;
                Some(health)
            }
            (_, Health::Refused) if !is_explained => None,
            (before, Health::Broken | Health::Refused) => {
                *logged = Some(health);
                (before.is_none() || health == Health::Refused).then_some(health)
            }
        })
    }
}

impl Breaker {
    /// Shares what the process remembers of the upstream, and begins with that.
    pub(super) fn remember(&mut self, upstream: &UpstreamName, memory: &UpstreamMemory) {
        self.memory = memory.clone();
        let told = memory.with(upstream, |remembered| remembered.told);
        self.known().told = told;
    }

    /// Returns whether the breaker is open.
    pub(super) fn is_open(&self) -> bool {
        self.known().health.is_open()
    }

    /// Returns whether no failure was counted recently.
    pub(super) fn is_well(&self) -> bool {
        self.known().health == Health::Well
    }

    /// Returns why nothing is admitted for now, and for how long.
    pub(super) fn closed(&self) -> Option<Refusal> {
        let (until, reason) = self.known().closed?;
        let wait = until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())?;
        Some(Refusal { wait, reason })
    }

    /// Returns why a person should know of the upstream: its breaker is open, it refuses the account, or its token
    /// budget is spent. `None` for a `Retry-After`, which ends by itself soon.
    pub(super) fn trouble(&self) -> Option<Refusal> {
        let closed = self.closed();
        let reason = match self.known().health {
            Health::Broken => "breaker",
            Health::Refused => "refused",
            Health::Well | Health::Shaky => return closed.filter(|refusal| refusal.reason == "tokens"),
        };
        // The breaker stays open until a probe succeeds, also when the next probe is due.
        Some(Refusal { wait: closed.map(|refusal| refusal.wait).unwrap_or_default(), reason })
    }

    /// Admits nothing for a time that Redis could not be told of.
    pub(super) fn pause(&self, wait: Duration) {
        self.known().closed = Some((Instant::now() + wait, "retry-after"));
    }

    /// Returns `true` for the first of the requests that an upstream answers with a pause.
    pub(super) fn is_first_of_pause(&self, wait: Duration) -> bool {
        let (mut known, now) = (self.known(), Instant::now());
        let is_first = known.logged_pause.is_none_or(|until| until <= now);
        if is_first {
            known.logged_pause = Some(now + wait);
        }
        is_first
    }

    /// Returns `true` once if the upstream opened long before the end that was told: Redis lost its state, or its clock
    /// was set ahead.
    pub(super) fn has_opened_early(&self) -> bool {
        std::mem::take(&mut self.known().opened_early)
    }

    /// Returns a refusal as a sentence about the upstream, with what the upstream said.
    pub(super) fn says(&self, refusal: &Refusal) -> String {
        match (refusal.reason, self.known().said.as_str()) {
            ("refused", said) if !said.is_empty() => format!("{}: {said}", refusal.says()),
            _ => refusal.says().to_owned(),
        }
    }

    /// Remembers a script's answer, and logs if the breaker opened or closed.
    pub(super) fn learn(&self, upstream: &UpstreamName, (why, wait, _, health): &Verdict) {
        let (why, said) = why.split_once(": ").unwrap_or((why, ""));
        let wait = Duration::from_micros(*wait);
        let mut known = self.known();
        known.health = match health {
            0 => Health::Well,
            1 => Health::Shaky,
            2 => Health::Broken,
            _ => Health::Refused,
        };
        if known.health != Health::Refused || !said.is_empty() {
            known.said = said.to_owned();
        }
        match self.memory.news(upstream, known.health, !said.is_empty()) {
            Some(Health::Broken) => {
                warn!(%upstream, "{FAILURES} failures in a row: its breaker is open, and only probes are sent");
            }
            Some(Health::Refused) => warn!(
                %upstream,
                "it refuses this account: its entries are deferred, and it is asked again in {}, then less and less \
                 often; check its quota, its billing, and the upstream's `headers`: {said}",
                duration::seconds(wait),
            ),
            Some(Health::Well | Health::Shaky) => info!(%upstream, "it answers again: its breaker is closed"),
            None => {}
        }
        // These three concern one request; any other reason concerns all of them.
        known.closed = reason(why)
            .filter(|reason| !matches!(*reason, "rate" | "concurrency" | "reserved"))
            .map(|reason| (Instant::now() + wait, reason));
        match known.closed {
            Some((until, _)) => known.told = known.told.max(Some(until)),
            None => known.opened_early |= known.told.take().is_some_and(|told| told > Instant::now() + EARLY),
        }
        self.memory.with(upstream, |remembered| remembered.told = known.told);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_is_logged_once_and_with_its_reason() {
        let (memory, upstream) = (UpstreamMemory::default(), UpstreamName::new("ai"));
        let learn = |health, is_explained| memory.news(&upstream, health, is_explained);
        assert_eq!(learn(Health::Refused, false), None, "the first thing that is learned is an admitted probe");
        assert_eq!(learn(Health::Well, false), None, "nothing was logged that could end");
        assert_eq!(learn(Health::Refused, true), Some(Health::Refused));
        let reloaded = memory.clone();
        assert_eq!(reloaded.news(&upstream, Health::Refused, true), None, "the generation before logged it");
        assert_eq!((learn(Health::Shaky, false), learn(Health::Well, false)), (Some(Health::Shaky), None));
        assert_eq!((learn(Health::Broken, false), learn(Health::Broken, false)), (Some(Health::Broken), None));
        assert_eq!(learn(Health::Refused, true), Some(Health::Refused), "that is another reason");
        assert_eq!((learn(Health::Broken, false), learn(Health::Well, false)), (None, Some(Health::Well)));
    }

    #[test]
    fn a_probe_of_a_refused_account_is_not_logged_as_refused() {
        let (breaker, upstream) = (Breaker::default(), UpstreamName::new("ai"));
        breaker.learn(&upstream, &(String::new(), 0, 1, 3));
        let logged = || breaker.memory.with(&upstream, |remembered| remembered.logged);
        assert_eq!((breaker.is_open(), logged()), (true, None));
        breaker.learn(&upstream, &("refused: no quota".to_owned(), 60_000_000, 0, 3));
        assert_eq!(logged(), Some(Health::Refused));
    }

    #[test]
    fn a_reload_that_raises_a_budget_opens_the_upstream_early() {
        let (memory, upstream) = (UpstreamMemory::default(), UpstreamName::new("ai"));
        let generation = || {
            let mut breaker = Breaker::default();
            breaker.remember(&upstream, &memory);
            breaker
        };
        let spent = || ("tokens".to_owned(), 3_600_000_000, 0, 0);
        let before = generation();
        before.learn(&upstream, &spent());
        let same = generation();
        same.learn(&upstream, &spent());
        assert!(!same.has_opened_early(), "the budget is the same");
        let raised = generation();
        raised.learn(&upstream, &(String::new(), 0, 0, 0));
        assert!(raised.has_opened_early() && !raised.has_opened_early());
        let next = generation();
        next.learn(&upstream, &(String::new(), 0, 0, 0));
        assert!(!next.has_opened_early(), "it was open before");
    }
}
