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
use crate::entry::{Outcome, Recheck, Trigger};
use crate::job::Job;
use crate::redis::RedisTime;
use crate::store::{Expiry, Lease, Meta, Rechecks, Verdict};

/// What a recheck that is due needs.
pub(super) enum Needs {
    /// No fetch: the entry has no value, or one of ours that holds and whose upstream was asked since.
    Nothing(Next),
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

/// Returns the first recheck after the present value's fetch. A source that does not lag is not asked: then the first
/// one after `now`.
pub(super) fn with_next_recheck(job: &Job, meta: &Meta, now: RedisTime, next: Next) -> Next {
    let after = if job.may_lag() { meta.answered_at() } else { now };
    with_recheck(job, meta.last_attempt.rechecks.as_ref(), after, next)
}

impl Attempt<'_> {
    /// Returns the rechecks that are to come after the present fetch, which brought the content of this hash (`-` for
    /// none): all of them if it answers an invalidation. Ends the attempt where the content is the one from before the
    /// invalidation and a newer one is stored: a replica lags.
    pub(super) fn rechecks_to_come(
        &self,
        lease: &Lease,
        round: &Round,
        answer: &str,
    ) -> Result<Option<Rechecks>, Stop> {
        let (meta, times) = (lease.before.meta.as_ref(), &self.job.warm.recheck);
        let open = meta.and_then(|meta| meta.last_attempt.rechecks.as_ref());
        if round.trigger == Trigger::Invalidation {
            let before = meta.map_or_else(|| "-".to_owned(), |meta| meta.hash.clone());
            let since = if self.job.may_lag() { lease.fetched_at } else { lease.now() };
            let rechecks = Rechecks::new(since, before, open.is_none() && !round.storm);
            return Ok(rechecks.next(times, lease.fetched_at).map(|_| rechecks));
        }
        let Some(open) = open else { return Ok(None) };
        // One that began later than this fetch is by a clock that was set back since.
        let mut rechecks = open.clone();
        rechecks.since = rechecks.since.min(lease.fetched_at);
        if !self.job.may_lag() {
            return Ok(rechecks.next(times, lease.now()).map(|_| rechecks));
        }
        let present = lease.before.ours().map(|meta| meta.hash.as_str());
        match rechecks.judge(times, present, answer, lease.fetched_at) {
            Verdict::Take(rechecks) => Ok(rechecks),
            Verdict::Refuse(rechecks) => {
                self.found(Recheck::Outdated);
                let next = rechecks.next(times, lease.fetched_at).map_or(Next::Out, Next::Recheck);
                let reason = "the upstream answered with the value from before the invalidation; the newer one stays";
                Err(Stop::Refused(Ending::because(Outcome::Unchanged, next, reason), rechecks))
            }
        }
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
        let next = to_come.and_then(|rechecks| rechecks.next(&job.warm.recheck, meta.answered_at()));
        let is_due = next.is_some_and(|at| at <= now);
        let holds = snapshot.ours().is_some_and(|meta| meta.invalidated.is_none() && meta.stale_for.is_zero());
        Ok(match snapshot.expiry {
            // The upstream did not have it, and may have it by now.
            Expiry::Absent if meta.last_attempt.outcome == Some(Outcome::Gone) && is_due => {
                Needs::Fetch { absent: true }
            }
            // Evicted, another program may still store an old value.
            Expiry::Absent => {
                let evicted =
                    meta.invalidated.and_then(|at| job.warm.recheck.iter().map(|t| at + *t).find(|at| *at > now));
                Needs::Nothing(next.or(evicted).map_or(Next::Out, Next::Recheck))
            }
            expiry if holds && !is_due => {
                Needs::Nothing(with_next_recheck(job, meta, now, keep(job, &entry.key, expiry)))
            }
            _ => Needs::Fetch { absent: false },
        })
    }
}
