//! The token budget of an upstream, and the sum that a process has spent there.
//!
//! A process sums up what it has spent on an upstream since it began, over all reloads. Each command that counts tokens
//! tells this sum, and the part of it that Redis confirmed. Redis counts what it has not counted yet. So a command whose
//! reply is lost, or that Redis carries out long after its sender gave up, counts nothing twice, and a later command
//! counts what did not arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::warn;
use ulid::Ulid;

use super::breaker::{UpstreamMemory, Verdict};
use super::millis;
use crate::entry::UpstreamName;
use crate::job::{TokenBudget, Upstream};

/// The most tokens that one request is taken to cost. A script's numbers are exact up to two million times as many.
const MOST_AT_ONCE: u64 = 1 << 32;

/// The token budget of an upstream.
pub(super) struct Budget {
    upstream: UpstreamName,
    limit: Option<TokenBudget>,
    account: Arc<Account>,
}

/// The sums of tokens that a process has spent on an upstream since it began. They only grow.
#[derive(Debug)]
pub(super) struct Account {
    /// Names the process to Redis.
    id: String,
    spent: AtomicU64,
    /// The part that Redis has confirmed.
    counted: AtomicU64,
    /// The sum that the last command told which failed or was cancelled: Redis may not know it.
    unheard: AtomicU64,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            id: Ulid::generate().to_string(),
            spent: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            unheard: AtomicU64::new(0),
        }
    }
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
        let Account { counted, unheard, .. } = &*self.account;
        self.is_limited() && unheard.load(Ordering::Acquire) > counted.load(Ordering::Acquire)
    }

    /// Adds tokens to what the process has spent, and returns the sums for a command. They are owed unless that is
    /// [`Told::heard`]. Without a budget nothing is summed up.
    pub(super) fn spend(&self, tokens: u64) -> Told<'_> {
        let (account, tokens) = (&*self.account, tokens.min(MOST_AT_ONCE));
        let (spent, counted) = match self.limit {
            None => (0, 0),
            Some(_) => {
                (account.spent.fetch_add(tokens, Ordering::AcqRel) + tokens, account.counted.load(Ordering::Acquire))
            }
        };
        Told { account, spent, counted, is_heard: false }
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

/// What a process tells Redis of the tokens that it has spent.
pub(super) struct Told<'a> {
    account: &'a Account,
    /// All that it has spent.
    spent: u64,
    /// The part that Redis has confirmed.
    counted: u64,
    is_heard: bool,
}

impl Told<'_> {
    /// Returns the arguments of a script: the process, the sum, and the part that Redis has confirmed.
    pub(super) fn args(&self) -> (&str, u64, u64) {
        (&self.account.id, self.spent, self.counted)
    }

    /// Notes that Redis has counted the sum.
    pub(super) fn heard(mut self) {
        self.account.counted.fetch_max(self.spent, Ordering::AcqRel);
        self.is_heard = true;
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if !self.is_heard {
            self.account.unheard.fetch_max(self.spent, Ordering::AcqRel);
        }
    }
}
