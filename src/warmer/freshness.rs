//! When an entry is good enough, when it is due again, and how long who failed waits.

use std::time::Duration;

use super::Taken;
use crate::agenda::Next;
use crate::entry::Trigger;
use crate::entry::Validators;
use crate::job::{FIRST_RETRY, Job, Jobs, Source};
use crate::store::{Fresh, Lease, Meta};

/// What a lease allows for beside the fetch itself: the way to Redis and back, and its commit.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// No retry waits longer.
const RETRY_LONGEST: Duration = Duration::from_secs(300);

/// How long an entry may wait for its upstream before it makes room for others.
pub(super) fn patience(claim: Duration) -> Duration {
    claim / 2
}

/// How long a lease holds: longer than all sources of a job may take together.
pub(super) fn lease_time(jobs: &Jobs, job: &Job) -> Duration {
    // The deadline is at nine tenths.
    (jobs.fetch_time(job) + LEASE_MARGIN).mul_f32(1.12)
}

/// How long an entry is taken at most before it is due again.
pub(super) fn taken_for(jobs: &Jobs, job: &Job, claim: Duration) -> Duration {
    patience(claim) + lease_time(jobs, job)
}

/// What makes this fetch unnecessary, by why it is made.
pub(super) fn fresh(job: &Job, taken: &Taken) -> Fresh {
    let since = Fresh { since: Some(taken.since), ..Fresh::default() };
    match taken.trigger {
        // An invalidation is answered by whatever was fetched after it, which clears its mark; a changed input leaves none.
        Trigger::Invalidation if job.inputs.is_empty() => Fresh { since: Some(1), ..Fresh::default() },
        Trigger::Cron | Trigger::Invalidation | Trigger::Manual => since,
        // What was refreshed since then lives longer than that; see [`keep`].
        Trigger::Expiry => Fresh { until: Some(taken.since + millis(job.warm.ahead.mul_f32(1.3))), ..Fresh::default() },
        Trigger::Demand => Fresh { any: true, ..Fresh::default() },
        // What somebody else wrote since the invalidation may be older than it. What is ours is not.
        Trigger::Settle => Fresh { since: Some(1), absent: true, ..Fresh::default() },
    }
}

/// An entry that was invalidated, or that somebody missed, is looked at once more: whoever fills misses by himself may write
/// an old value just after. So is one whose look made way for another fetch.
pub(super) fn settled(job: &Job, taken: &Taken, trigger: Trigger, now: i64, next: Next) -> Next {
    let at = now + millis(job.warm.settle);
    let sooner = matches!(next, Next::At(other) if other <= at);
    let asked = taken.look || matches!(trigger, Trigger::Invalidation | Trigger::Demand);
    if asked && !sooner && !job.warm.settle.is_zero() { Next::Settle(at) } else { next }
}

/// A retry that is noted for later than this was so by a clock that ran ahead.
pub(super) const RETRY_PLAUSIBLE: Duration = Duration::from_secs(3_600);
/// An invalidation that follows another within this makes a storm of it.
const STORM_WITHIN: Duration = Duration::from_secs(60);

/// Tells whether a fetch for an invalidation follows another such fetch, so that what is paid for is held off for longer.
pub(super) fn is_storm(lease: &Lease, trigger: Trigger) -> bool {
    let follows = |meta: &Meta| {
        let since = lease.start - meta.asked;
        meta.note.trigger == Some(Trigger::Invalidation) && (0..millis(STORM_WITHIN)).contains(&since)
    };
    trigger == Trigger::Invalidation && lease.meta.as_ref().is_some_and(follows)
}

/// What the present value came with, if it may be kept when unchanged.
pub(super) fn known(job: &Job, lease: &Lease) -> Option<Validators> {
    let meta: &Meta = lease.meta.as_ref()?;
    if !meta.is_of(lease.pexpiretime) {
        return None;
    }
    let holds = match &job.sources[0] {
        Source::Http(_) => true,
        Source::Ai(_) => meta.invalidated == 0,
    };
    holds.then(|| meta.note.validators.clone())
}

/// The first retry comes within [`FIRST_RETRY`], each later one within twice the time of the one before. Full jitter under an exponential ceiling (AWS Architecture Blog, "Exponential Backoff And Jitter").
pub(super) fn retry_after(failures: u32) -> Duration {
    let ceiling = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    ceiling.min(RETRY_LONGEST).mul_f64(rand::random_range(0.1..=1.0))
}

/// A little more than `wait`, so that those who wait for the same do not come together.
pub(super) fn jitter(wait: Duration) -> Duration {
    let spread = wait.min(Duration::from_secs(120)).mul_f64(rand::random_range(0.0..=0.25));
    wait + spread + Duration::from_millis(rand::random_range(0..50))
}

pub(super) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
