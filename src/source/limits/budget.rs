//! The token budget of an upstream, and tokens that were spent and could not be counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::warn;

use super::breaker::Verdict;
use super::millis;
use crate::entry::UpstreamName;
use crate::job::{TokenBudget, Upstream};

/// The most tokens that one worker keeps to be counted later. A script's numbers are exact up to here.
const MOST_OWED: u64 = 1 << 50;

/// The token budget of an upstream.
pub(super) struct Budget {
    upstream: UpstreamName,
    limit: Option<TokenBudget>,
    /// Tokens that were spent and that Redis does not know of.
    owed: AtomicU64,
}

impl Budget {
    pub(super) fn of(upstream: &Upstream) -> Self {
        Self { upstream: upstream.name.clone(), limit: upstream.tokens, owed: AtomicU64::new(0) }
    }

    /// Returns whether the upstream has a budget.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Returns the tokens that may be spent in a window; 0 for no limit.
    pub(super) fn tokens(&self) -> u64 {
        self.limit.map_or(0, |limit| limit.tokens)
    }

    /// Returns the window in milliseconds.
    pub(super) fn window(&self) -> u64 {
        self.limit.map_or(0, |limit| millis(limit.per))
    }

    /// Keeps tokens that could not be counted, for the next command.
    pub(super) fn owe(&self, tokens: u64) {
        if tokens > 0 && self.is_limited() {
            let add = |owed: u64| Some(owed.saturating_add(tokens).min(MOST_OWED));
            let _ = self.owed.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        }
    }

    /// Returns whether there are tokens that Redis does not know of.
    pub(super) fn owes(&self) -> bool {
        self.owed.load(Ordering::Acquire) > 0
    }

    /// Takes the tokens that Redis does not know of; they are owed again unless they are [`Owed::counted`].
    pub(super) fn owed(&self) -> Owed<'_> {
        Owed { budget: self, tokens: self.owed.swap(0, Ordering::AcqRel) }
    }

    /// Logs that most or all of the budget is spent. One worker of the fleet does so, once in a window.
    pub(super) fn tell_spent(&self, (_, wait, share, _): &Verdict) {
        let Some(limit) = self.limit else { return };
        let upstream = &self.upstream;
        match share {
            80 => warn!(%upstream, "80 % of its budget of {limit} is spent; at 100 % its entries are deferred"),
            100 => {
                let wait = crate::entry::duration::seconds(Duration::from_micros(*wait));
                warn!(
                    %upstream,
                    "its budget of {limit} is spent: its entries are deferred, ten minutes at a time at most, until \
                     the window ends in {wait}; old values stay until their TTL ends, or `stale_if_error` longer"
                );
            }
            _ => {}
        }
    }
}

/// Tokens on their way to Redis. Those that do not arrive are still owed.
pub(super) struct Owed<'a> {
    budget: &'a Budget,
    pub(super) tokens: u64,
}

impl Owed<'_> {
    /// Notes that Redis has counted the tokens.
    pub(super) fn counted(mut self) {
        self.tokens = 0;
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.budget.owe(self.tokens);
    }
}
