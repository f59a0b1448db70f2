//! Rechecks: an entry is fetched again after its invalidation, because its upstream may have answered that with the
//! value from before, or another program may have stored one.
//!
//! docs/rechecks.md gives the rule and its promise. The rechecks that are to come stand in the metadata ([`Rechecks`]),
//! so whatever fetches the entry meanwhile takes the place of those that are due by then.

use redis::RedisResult;

use super::attempt::{Attempt, Ending, Stop};
use super::commit::Round;
use super::{Running, Warmer};
use crate::agenda::{Next, keep};
use crate::entry::{Outcome, Recheck, Trigger, hash};
use crate::job::Job;
use crate::redis::RedisTime;
use crate::source::Fetched;
use crate::store::{Expiry, Lease, Meta, Rechecks};

/// What a recheck that is due needs.
pub(super) enum Needs {
    /// No fetch: the entry has no value, or one of ours that holds and whose upstream was asked since.
    Nothing(Next),
    /// A fetch. `absent` tells that there is no value, because the upstream did not have it.
    Fetch { absent: bool },
}

/// Returns the first recheck after `after`, unless `next` comes sooner.
pub(super) fn with_recheck(job: &Job, rechecks: Option<&Rechecks>, after: RedisTime, next: Next) -> Next {
    let at = rechecks.and_then(|rechecks| job.next_recheck(rechecks.since, after));
    match (at, &next) {
        (Some(at), Next::At(sooner)) if *sooner <= at => next,
        (Some(at), _) => Next::Recheck(at),
        (None, _) => next,
    }
}

/// Returns the first recheck after the present value's fetch. A source that does not lag is not asked: then the first
/// one after `now`.
pub(super) fn with_next_recheck(job: &Job, meta: &Meta, now: RedisTime, next: Next) -> Next {
    let after = if job.may_lag() { meta.answered_at() } else { now };
    with_recheck(job, meta.last_attempt.rechecks.as_ref(), after, next)
}

impl Attempt<'_> {
    /// Returns the rechecks that are to come after the present fetch: all of them if it answers an invalidation.
    pub(super) fn rechecks_to_come(&self, lease: &Lease, round: &Round) -> Option<Rechecks> {
        let meta = lease.before.meta.as_ref();
        let mut rechecks = match round.trigger {
            Trigger::Invalidation => {
                let before = meta.map_or_else(|| "-".to_owned(), |meta| meta.hash.clone());
                Rechecks { since: lease.now(), before }
            }
            Trigger::Cron | Trigger::Expiry | Trigger::Demand | Trigger::Manual | Trigger::Recheck => {
                meta?.last_attempt.rechecks.clone()?
            }
        };
        // One that began later than this fetch is by a clock that was set back since.
        rechecks.since = rechecks.since.min(lease.now());
        self.job.next_recheck(rechecks.since, lease.fetched_at).map(|_| rechecks)
    }

    /// Ends an attempt whose answer is the value from before the invalidation, where a newer one is stored: a replica
    /// lags. The last recheck takes any answer.
    pub(super) fn refuse_outdated(&self, lease: &Lease, round: &Round, answer: &Fetched) -> Result<(), Stop> {
        let Some(ours) = lease.before.ours().filter(|meta| meta.invalidated.is_none()) else { return Ok(()) };
        let Some(rechecks) = &ours.last_attempt.rechecks else { return Ok(()) };
        let is_from_before = ours.hash != rechecks.before && hash(&answer.json) == rechecks.before;
        if round.trigger == Trigger::Invalidation || !is_from_before {
            return Ok(());
        }
        let Some(next) = self.job.next_recheck(rechecks.since, lease.fetched_at) else { return Ok(()) };
        self.found(Recheck::Outdated);
        let reason = "the upstream answered with the value from before the invalidation; the newer one stays";
        Err(Stop::NoValue(Ending::because(Outcome::Unchanged, Next::Recheck(next), reason)))
    }

    /// Counts the result of a recheck; other attempts count nothing.
    pub(super) fn found(&self, found: Recheck) {
        if self.entry.trigger == Trigger::Recheck {
            self.warmer.telemetry.recheck(&self.job.name, found);
        }
    }

    /// Counts the result of a recheck that stored a value. `changed` tells that its content is another than before.
    pub(super) fn found_value(&self, lease: &Lease, changed: bool) {
        let Some(ours) = lease.before.ours() else { return self.found(Recheck::Foreign) };
        let lag = ours.last_attempt.rechecks.as_ref().map(|rechecks| lease.fetched_at.saturating_since(rechecks.since));
        match (changed, lag) {
            (true, Some(lag)) if self.job.may_lag() => self.found(Recheck::Changed(lag)),
            _ => self.found(Recheck::Unchanged),
        }
    }
}

impl Warmer {
    /// Looks at an entry whose recheck is due.
    pub(super) async fn recheck(&self, job: &Job, entry: &Running) -> RedisResult<Needs> {
        let now = entry.since + entry.late;
        let snapshot = self.store.snapshot(&entry.key).await?;
        let Some(meta) = &snapshot.meta else {
            return Ok(if snapshot.has_value() { Needs::Fetch { absent: false } } else { Needs::Nothing(Next::Out) });
        };
        let to_come = meta.last_attempt.rechecks.as_ref().filter(|_| job.may_lag());
        let next = to_come.and_then(|rechecks| job.next_recheck(rechecks.since, meta.answered_at()));
        let is_due = next.is_some_and(|at| at <= now);
        let holds = snapshot.ours().is_some_and(|meta| meta.invalidated.is_none() && meta.stale_for.is_zero());
        Ok(match snapshot.expiry {
            // The upstream did not have it, and may have it by now.
            Expiry::Absent if meta.last_attempt.outcome == Some(Outcome::Gone) && is_due => {
                Needs::Fetch { absent: true }
            }
            // Evicted, another program may still store an old value.
            Expiry::Absent => {
                let evicted = meta.invalidated.and_then(|invalidated| job.next_recheck(invalidated, now));
                Needs::Nothing(next.or(evicted).map_or(Next::Out, Next::Recheck))
            }
            expiry if holds && !is_due => {
                Needs::Nothing(with_next_recheck(job, meta, now, keep(job, &entry.key, expiry)))
            }
            _ => Needs::Fetch { absent: false },
        })
    }
}
