//! The token budget of an upstream, and what the process has spent of it.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::account::{Account, Told};
use super::breaker::{UpstreamMemory, Verdict};
use super::millis;
use crate::entry::UpstreamName;
use crate::job::{TokenBudget, Upstream};

/// The token budget of an upstream.
pub(super) struct Budget {
    upstream: UpstreamName,
    limit: Option<TokenBudget>,
    account: Arc<Account>,
}

impl Budget {
    pub(super) fn of(upstream: &Upstream) -> Self {
        Self { upstream: upstream.name.clone(), limit: upstream.tokens, account: Arc::default() }
    }

    /// Goes on with the process's account of the upstream.
    pub(super) fn remember(&mut self, memory: &UpstreamMemory) {
        self.account = memory.account(&self.upstream);
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

    /// Keeps tokens for the next command, which tells of them.
    pub(super) fn owe(&self, tokens: u64) {
        if tokens > 0 {
            drop(self.spend(tokens));
        }
    }

    /// Returns whether there are tokens of which Redis may not know, other than those that a command tells just now.
    pub(super) fn owes(&self) -> bool {
        self.is_limited() && self.account.owes()
    }

    /// Adds tokens to what the process has spent, and returns the sums for a command. They are owed unless that is
    /// [`Told::heard`]. Without a budget nothing is summed up.
    pub(super) fn spend(&self, tokens: u64) -> Told<'_> {
        if self.is_limited() { self.account.spend(tokens) } else { self.account.nothing() }
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
