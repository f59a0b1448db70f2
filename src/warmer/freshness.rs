//! Decides when a value is good enough, when its entry is due again, and how long a failed fetch waits.

use std::time::Duration;

use redis::RedisResult;

use super::{Running, Warmer};
use crate::agenda::{Next, keep};
use crate::entry::Validators;
use crate::entry::{EntryKey, Trigger};
use crate::job::{FIRST_RETRY, Job, Jobs};
use crate::redis::RedisTime;
use crate::store::{Expiry, Fresh, Lease, Meta};

/// The time of a lease beyond its fetches: the round trips to Redis, and the commit.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// The longest wait for a retry.
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// A retry noted for later than this comes from a clock that ran ahead.
pub(super) const RETRY_PLAUSIBLE: Duration = Duration::from_secs(3_600);
/// The shortest and the longest pause before an upstream is asked again that is behind an announced version.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Two invalidations of an entry within this time are a storm.
const STORM_WITHIN: Duration = Duration::from_secs(60);

/// Returns the longest wait of an entry for its upstream; then it makes room for others.
pub(super) fn admission_wait(claim: Duration) -> Duration {
    claim / 2
}

/// Returns the time of a lease: longer than all sources of a job may take together.
pub(super) fn lease_time(jobs: &Jobs, job: &Job) -> Duration {
    // The deadline is at nine tenths.
    (jobs.fetch_time(job) + LEASE_MARGIN).mul_f32(1.12)
}

/// Returns how long an entry may be in flight before it is due again.
pub(super) fn running_time(jobs: &Jobs, job: &Job, claim: Duration) -> Duration {
    admission_wait(claim) + lease_time(jobs, job)
}

/// Returns the condition under which the present value makes a fetch unnecessary, by the entry's trigger.
pub(super) fn fresh(job: &Job, entry: &Running) -> Fresh {
    let since = Fresh { since: Some(entry.since), ..Fresh::default() };
    match entry.trigger {
        // A fetch after the invalidation answers it and clears its mark. A changed input leaves no mark.
        Trigger::Invalidation if job.inputs.is_empty() => Fresh::ours(),
        Trigger::Cron | Trigger::Invalidation | Trigger::Manual => since,
        // A value refreshed since then lives longer; see [`keep`].
        Trigger::Expiry => Fresh { until: Some(entry.since + job.warm.ahead.mul_f32(1.3)), ..Fresh::default() },
        Trigger::Demand => Fresh { any: true, ..Fresh::default() },
        // A fetch since then was the recheck. No source that lags: only another program's value may be old.
        Trigger::Recheck if job.may_lag() => since,
        Trigger::Recheck => Fresh::ours(),
    }
}

/// Tells whether a fetch for an invalidation follows another such fetch. Invalidations of a value that costs money are
/// then held off for longer.
pub(super) fn is_storm(lease: &Lease, trigger: Trigger) -> bool {
    let follows = |meta: &Meta| {
        let follows_soon = (meta.fetched_at..meta.fetched_at + STORM_WITHIN).contains(&lease.fetched_at);
        meta.last_attempt.trigger == Some(Trigger::Invalidation) && follows_soon
    };
    trigger == Trigger::Invalidation && lease.before.meta.as_ref().is_some_and(follows)
}

/// Returns when an upstream is asked again that was behind at `now`, after the patience of its job.
pub(super) fn after_patience(now: RedisTime) -> RedisTime {
    now + PAUSES.1
}

/// Returns the validators of the present value, where it may be kept if unchanged.
pub(super) fn known(job: &Job, lease: &Lease) -> Option<Validators> {
    let meta = lease.before.ours()?;
    let may_keep = meta.invalidated.is_none() || !job.may_hold_unasked();
    // A 304 speaks of the answer alone, and not of what a changed file makes of it, nor of changed headers of the
    // upstream. An AI value tells by its prompt.
    let may_keep = may_keep && (job.may_hold_unasked() || !meta.is_outdated(&job.made, &job.made));
    // A 304 would not tell its version.
    let may_keep = may_keep && (job.version.is_none() || meta.last_attempt.version.is_some());
    may_keep.then(|| meta.last_attempt.validators.clone())
}

/// Returns the wait before the next try: full jitter under an exponential ceiling, which is [`FIRST_RETRY`] at first
/// (AWS Architecture Blog, "Exponential Backoff And Jitter").
pub(crate) fn retry_after(failures: u32) -> Duration {
    retry_at_pace(failures, rand::random())
}

/// Returns such a wait by a random number from 0 to 1.
pub(super) fn retry_at_pace(failures: u32, draw: f64) -> Duration {
    let ceiling = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    ceiling.min(LONGEST_RETRY).mul_f64(0.1 + 0.9 * draw)
}

/// Returns the wait of an entry for which no try soon can do better.
pub(super) fn longest_retry() -> Duration {
    LONGEST_RETRY.mul_f64(rand::random_range(0.5..=1.0))
}

/// Returns a wait a little longer than `wait`, so that entries that wait for the same event do not come back together.
pub(super) fn jitter(wait: Duration) -> Duration {
    jitter_at_pace(wait, rand::random())
}

/// Returns such a wait by a random number from 0 to 1.
pub(super) fn jitter_at_pace(wait: Duration, draw: f64) -> Duration {
    let spread = wait.min(Duration::from_secs(120)).mul_f64(0.25 * draw);
    wait + spread + Duration::from_millis(50).mul_f64(draw)
}

impl Warmer {
    /// Returns the time of an entry's open invalidation.
    pub(super) async fn invalidated(&self, key: &EntryKey) -> RedisResult<Option<RedisTime>> {
        Ok(self.store.snapshot(key).await?.meta.and_then(|meta| meta.invalidated))
    }

    /// Tells that an entry must be fetched even if it is not read: its invalidation is open, or its removal is or was
    /// held back. Nothing else would tell the guard of its job, and its value may live for long.
    pub(super) async fn is_unsettled(&self, key: &EntryKey) -> RedisResult<bool> {
        let snapshot = self.store.snapshot(key).await?;
        Ok(snapshot.was_held_back() || snapshot.meta.is_some_and(|meta| meta.invalidated.is_some()))
    }

    /// Returns when an entry is due that another writer wrote or removed during a fetch that began at `start`: before
    /// the present value expires, or before one fetched now would. An eviction has taken the entry off the agenda, so
    /// this is only for the time after.
    pub(super) async fn next_after_foreign(&self, job: &Job, key: &EntryKey, start: RedisTime) -> RedisResult<Next> {
        let expiry = match self.store.snapshot(key).await?.expiry {
            Expiry::Absent => Expiry::At(start + job.ttl),
            present => present,
        };
        Ok(match (keep(job, key, expiry), expiry.at()) {
            // The other writer's value keeps at least half of its life.
            (Next::At(at), Some(expires)) => Next::At(at.max(start + expires.saturating_since(start) / 2)),
            (next, _) => next,
        })
    }
}
