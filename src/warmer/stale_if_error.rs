//! Old values: how long one stays readable while its source fails.

use tracing::debug;

use super::attempt::Ending;
use super::freshness::retry_after;
use super::{Running, Warmer};
use crate::agenda::Next;
use crate::entry::Outcome;
use crate::entry::duration;
use crate::job::Job;

impl Warmer {
    /// Keeps the old value of an entry that could not be fetched until the next try, as long as its job allows.
    pub(super) async fn keep_stale(&self, job: &Job, entry: &Running, mut ending: Ending) -> Ending {
        if job.warm.stale_if_error.is_zero() || !matches!(ending.outcome, Outcome::Failed | Outcome::Deferred) {
            return ending;
        }
        let wait = match &ending.next {
            Next::In(wait) => *wait,
            Next::Dead(_) => retry_after(ending.failures),
            _ => return ending,
        };
        // By then the next try has an answer, or has come here again.
        let time = wait + self.admission_wait + self.lease_time(job);
        match self.store.extend_stale(&entry.key, time, job.warm.stale_if_error).await {
            Ok(Some(extended)) if extended.expires > extended.ends => {
                let longer = extended.expires.saturating_since(extended.ends);
                let reason = ending.reason.take().unwrap_or_default();
                let longer = duration::seconds(longer);
                ending.reason = Some(format!("{reason}; the old value outlives its TTL, by {longer} so far"));
                let may_go_on = extended.ends + job.warm.stale_if_error > extended.expires;
                if matches!(ending.next, Next::Dead(_)) && may_go_on {
                    // An entry is given up only when its old value is no longer served.
                    ending.next = Next::In(wait);
                }
            }
            Ok(_) => {}
            Err(e) => debug!(key = %entry.key, "the old value could not be kept beyond its TTL: {e}"),
        }
        ending
    }
}
