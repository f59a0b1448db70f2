//! The sum of tokens that a process has spent on an upstream, and what Redis has confirmed of it.
//!
//! A process sums up what it has spent on an upstream since it began, over all reloads. Each command that counts tokens
//! tells this sum, and the part of it that Redis confirmed. Redis counts the difference to what it has counted. So a
//! command counts nothing twice if its reply is lost, or if Redis carries it out long after its sender gave up. A later
//! command counts what did not arrive.

use std::sync::atomic::{AtomicU64, Ordering};

use ulid::Ulid;

/// The most tokens that one request is taken to cost. A script's numbers are exact up to two million times as many.
const MOST_AT_ONCE: u64 = 1 << 32;

/// The sums of tokens that a process has spent on an upstream since it began. They only grow.
#[derive(Debug)]
pub(super) struct Account {
    /// Names the account to Redis: one of a process and an upstream.
    id: String,
    spent: AtomicU64,
    /// The part that Redis has confirmed.
    counted: AtomicU64,
    /// The highest sum told by a command that failed or was cancelled: Redis may not know it.
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

impl Account {
    /// Returns whether there are tokens of which Redis may not know, other than those that a command tells just now.
    pub(super) fn owes(&self) -> bool {
        self.unheard.load(Ordering::Acquire) > self.counted.load(Ordering::Acquire)
    }

    /// Adds tokens, and returns the sums for a command. They are owed unless that is [`Told::heard`].
    pub(super) fn spend(&self, tokens: u64) -> Told<'_> {
        let tokens = tokens.min(MOST_AT_ONCE);
        let spent = self.spent.fetch_add(tokens, Ordering::AcqRel) + tokens;
        Told { account: self, spent, counted: self.counted.load(Ordering::Acquire), is_heard: false }
    }

    /// Returns sums that tell of nothing.
    pub(super) fn nothing(&self) -> Told<'_> {
        Told { account: self, spent: 0, counted: 0, is_heard: false }
    }
}

/// The sums of a process that a command tells Redis.
pub(super) struct Told<'a> {
    account: &'a Account,
    /// All that it has spent.
    spent: u64,
    /// The part that Redis has confirmed.
    counted: u64,
    is_heard: bool,
}

impl Told<'_> {
    /// Returns the arguments of a script: the account, the sum, and the part that Redis has confirmed.
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
