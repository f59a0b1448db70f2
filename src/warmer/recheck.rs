//! Rechecks: an entry is fetched again after its invalidation, because its upstream may have answered that with the
//! value from before, or another program may have stored one.
//! `lag` decides what becomes of its answer.
//!
//! docs/rechecks.md gives the rule and its promise. The rechecks that are to come stand in the metadata ([`Rechecks`]),
//! so whatever fetches the entry meanwhile takes the place of those that are due by then.

use redis::RedisResult;

use super::freshness::after_patience;
use super::{Running, Warmer};
use crate::agenda::{Next, keep};
use crate::entry::Outcome;
use crate::job::Job;
use crate::redis::RedisTime;
use crate::store::{Expiry, Meta, Rechecks, Snapshot};

/// The reason of a recheck that finds no value, and leaves it so.
const NO_VALUE: &str = "it has no value, and none is fetched for a recheck";
/// The reason of a recheck that leaves an expired value to its refresh.
const EXPIRED: &str = "its value has expired, and is refreshed instead of rechecked";

/// The need of a recheck that is due.
pub(super) enum Needs {
    /// No fetch: the entry has no value, or one of ours that holds and whose upstream was asked since.
    Nothing { outcome: Outcome, next: Next, reason: Option<&'static str> },
    /// A fetch. `absent` tells that there is no value, because the upstream did not have it.
    Fetch { absent: bool },
}

/// Returns the first recheck after `after`, unless `next` comes sooner.
pub(super) fn with_recheck(job: &Job, rechecks: Option<&Rechecks>, after: RedisTime, next: Next) -> Next {
    let at = rechecks.and_then(|rechecks| rechecks.next(&job.warm.recheck, after));
    match (at, &next) {
        (Some(at), Next::At(sooner)) if *sooner <= at => next,
        (Some(at), _) => Next::Recheck(at),
        (None, _) => next,
    }
}

/// Returns when a value's upstream is asked next, by its metadata; due if that is past.
fn next_fetch(job: &Job, meta: &Meta) -> Option<RedisTime> {
    if !job.may_lag() {
        return None;
    }
    if meta.is_behind() {
        return Some(after_patience(meta.answered_at()));
    }
    let rechecks = meta.last_attempt.rechecks.as_ref()?;
    rechecks.next_fetch(&job.warm.recheck, meta.answered_at())
}

/// Returns the next recheck of a value, by its metadata, unless `next` comes sooner. Those that do not ask the upstream
/// look for old values that other programs stored.
pub(super) fn with_next_recheck(job: &Job, meta: &Meta, now: RedisTime, next: Next) -> Next {
    let rechecks = meta.last_attempt.rechecks.as_ref();
    let look = rechecks.and_then(|rechecks| rechecks.next(&job.warm.recheck, now));
    match (next_fetch(job, meta).into_iter().chain(look).min(), &next) {
        (Some(at), Next::At(sooner)) if *sooner <= at => next,
        (Some(at), _) => Next::Recheck(at),
        (None, _) => next,
    }
}

/// Tells that the upstream did not have the entry when it last answered; attempts may have failed since. An eviction
/// leaves no time of an answer. Metadata of earlier builds do not tell since when an entry is gone.
fn is_gone(meta: &Meta) -> bool {
    let is_known = meta.validated_at > RedisTime::ZERO && meta.gone_since().is_some();
    is_known || meta.last_attempt.outcome == Some(Outcome::Gone)
}

impl Warmer {
    /// Returns what follows for an entry without a value whose recheck is due, and the reason. The recheck took the
    /// place of the refresh on the agenda: a value whose TTL has ended by now is refreshed, if the job refreshes any.
    /// One that was removed stays away.
    pub(super) async fn next_without_value(&self, job: &Job, snapshot: &Snapshot) -> RedisResult<(Next, &'static str)> {
        // An eviction leaves no time of a value, and an entry that is gone has none.
        let had_value = |meta: &&Meta| meta.validated_at.min(meta.own_expiry) > RedisTime::ZERO;
        let ours = snapshot.meta.as_ref().filter(had_value);
        match ours.filter(|_| !snapshot.has_value() && !job.warm.ahead.is_zero()) {
            Some(meta) if meta.own_expiry <= self.store.now().await? => Ok((Next::At(meta.own_expiry), EXPIRED)),
            _ => Ok((Next::Out, NO_VALUE)),
        }
    }

    /// Looks at an entry whose recheck is due.
    pub(super) async fn recheck(&self, job: &Job, entry: &Running) -> RedisResult<Needs> {
        let now = entry.since + entry.late;
        let snapshot = self.store.snapshot(&entry.key).await?;
        let Some(meta) = &snapshot.meta else {
            return Ok(match snapshot.has_value() {
                true => Needs::Fetch { absent: false },
                false => Needs::Nothing { outcome: Outcome::Unchanged, next: Next::Out, reason: Some(NO_VALUE) },
            });
        };
        let next = next_fetch(job, meta);
        let is_due = next.is_some_and(|at| at <= now);
        let holds = snapshot.ours().is_some_and(|meta| meta.invalidated.is_none() && meta.stale_for.is_zero())
            && !snapshot.was_held_back();
        Ok(match snapshot.expiry {
            // The upstream did not have it, and may have it by now.
            Expiry::Absent if is_gone(meta) => match next {
                Some(_) if is_due => Needs::Fetch { absent: true },
                next => {
                    let next = next.map_or(Next::Out, Next::Recheck);
                    Needs::Nothing { outcome: Outcome::Gone, next, reason: Some("the upstream did not have it") }
                }
            },
            // Evicted, another program may still store an old value.
            Expiry::Absent => {
                let later =
                    |invalidated| job.warm.recheck.iter().map(move |time| invalidated + *time).find(|at| *at > now);
                let (next, reason) = match self.next_without_value(job, &snapshot).await? {
                    (Next::Out, reason) => (meta.invalidated.and_then(later).map_or(Next::Out, Next::Recheck), reason),
                    refresh => refresh,
                };
                Needs::Nothing { outcome: Outcome::Unchanged, next, reason: Some(reason) }
            }
            expiry if holds && !is_due => {
                let next = with_next_recheck(job, meta, now, keep(job, &entry.key, expiry));
                Needs::Nothing { outcome: Outcome::Unchanged, next, reason: None }
            }
            _ => Needs::Fetch { absent: false },
        })
    }
}
