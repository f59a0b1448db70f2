//! Absence: an entry that its upstream did not have is not asked for again for a while, whoever demands it.

use std::time::Duration;

use redis::RedisResult;

use super::ending::Ending;
use super::{Running, Warmer};
use crate::agenda::Next;
use crate::entry::duration;
use crate::entry::{Outcome, Trigger};
use crate::job::Job;
use crate::store::Expiry;

impl Warmer {
    /// Returns the ending of a demanded entry whose upstream answered within the job's `absent_for` that it does not
    /// have it; `None` for any other entry, and where the request is made from something else since. Rechecks go on:
    /// a demand that finds one due is asked in its place. So does the second request on which it depends whether
    /// something paid for goes with the entry.
    pub(super) async fn known_absent(&self, job: &Job, entry: &Running) -> RedisResult<Option<Ending>> {
        if entry.trigger != Trigger::Demand || job.warm.absent_for.is_zero() {
            return Ok(None);
        }
        let now = entry.since + entry.late;
        let snapshot = self.store.snapshot(&entry.key).await?;
        let is_absent = snapshot.expiry == Expiry::Absent;
        let Some(meta) =
            snapshot.meta.filter(|meta| is_absent && meta.is_absent(&job.requests, job.warm.absent_for, now))
        else {
            return Ok(None);
        };
        let rechecks = meta.last_attempt.rechecks.as_ref().filter(|_| job.may_lag());
        let recheck = rechecks.and_then(|rechecks| rechecks.next(&job.warm.recheck, meta.answered_at()));
        if recheck.is_some_and(|at| at <= now) || self.is_to_be_confirmed(job, &meta, now) {
            return Ok(None);
        }
        let since = now.saturating_since(meta.last_attempt.attempted);
        let since = duration::rough(since.max(Duration::from_secs(1)));
        let refusal = meta.last_attempt.reason.clone().filter(|_| meta.last_attempt.is_refused());
        let reason = refusal.unwrap_or_else(|| {
            format!("the upstream did not have it {since} ago, and is not asked again yet (`absent_for`)")
        });
        Ok(Some(Ending::because(Outcome::Gone, recheck.map_or(Next::Out, Next::Recheck), reason)))
    }
}
