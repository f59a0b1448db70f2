//! `stale_if_error`: an old value stays readable beyond its TTL while its source fails.

use std::time::Duration;

use redis::RedisError;
use tracing::debug;

use super::ending::Ending;
use super::failure::USED_UP;
use super::freshness::retry_at_pace;
use super::{Running, Warmer};
use crate::agenda::Next;
use crate::entry::Outcome;
use crate::job::Job;
use crate::store::StaleExtension;

/// A shorter wait of a deferred entry is not looked at.
const SHORT: Duration = Duration::from_secs(15);
/// The shortest wait to which that of a deferred entry is cut.
const LEAST: Duration = Duration::from_secs(1);

impl Warmer {
    /// Cuts the wait of a deferred entry whose value would expire meanwhile: the limit that deferred it may have been
    /// raised by then. It is tried again before its usual refresh; once that is past, after half the time that is left.
    pub(super) async fn before_expiry(&self, job: &Job, entry: &Running, mut ending: Ending) -> Ending {
        let Next::In(wait) = ending.next else { return ending };
        if ending.outcome != Outcome::Deferred || wait <= SHORT {
            return ending;
        }
        let read = async { Ok::<_, RedisError>((self.store.snapshot(&entry.key).await?, self.store.now().await?)) };
        let (found, now) = match read.await {
            Ok(read) => read,
            Err(e) => {
                debug!(key = %entry.key, "its wait may be longer than its value lives: {e}");
                return ending;
            }
        };
        let is_invalidated = found.meta.as_ref().is_some_and(|meta| meta.invalidated.is_some());
        let outlives = !job.warm.stale_if_error.is_zero() && !is_invalidated;
        let Some(expires) = found.expiry.at().filter(|at| !outlives && *at > now) else { return ending };
        let refresh = (expires - job.warm.ahead).saturating_since(now);
        let sooner = if refresh > LEAST { refresh } else { (expires.saturating_since(now) / 2).max(LEAST) };
        ending.next = Next::In(wait.min(sooner));
        ending
    }

    /// Keeps the old value of an entry that could not be fetched until the next try, as long as its job allows. `draw`
    /// is a random number from 0 to 1.
    pub(super) async fn keep_stale(&self, job: &Job, entry: &Running, mut ending: Ending, draw: f64) -> Ending {
        if job.warm.stale_if_error.is_zero() || !matches!(ending.outcome, Outcome::Failed | Outcome::Deferred) {
            return ending;
        }
        let wait = match &ending.next {
            Next::In(wait) | Next::Aside(wait) => *wait,
            Next::Dead(reason) if reason.starts_with(USED_UP) => retry_at_pace(ending.failures, draw),
            // Such a try may cost money, and fails again: there is none, and the old value stays as long as it may.
            Next::Dead(_) => job.ttl + job.warm.stale_if_error,
            _ => return ending,
        };
        // By then the next try has an answer, or has come here again.
        let time = wait + self.admission_wait + self.lease_time(job);
        match self.store.extend_stale(&entry.key, time, job.warm.stale_if_error).await {
            Ok(Some(extended)) if extended.expires > extended.ends => {
                let reason = ending.reason.take().unwrap_or_default();
                ending.reason = Some(format!("{reason}; {}", outlives(&extended, job.warm.stale_if_error)));
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

/// Returns until when an old value may outlive its TTL. It is extended from one try to the next, and the sentence is
/// read later: so it tells times, and the last one.
fn outlives(extended: &StaleExtension, longest: Duration) -> String {
    let StaleExtension { ends, now, .. } = *extended;
    let (end, latest) = (ends.utc(), (ends + longest).utc());
    let outlives = match ends > now {
        true => format!("the old value may outlive its TTL, which ends at {end}"),
        false => format!("the old value outlives its TTL, which ended at {end}"),
    };
    format!("{outlives}, until {latest} at the latest (`stale_if_error`)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::RedisTime;

    #[test]
    fn a_reason_tells_until_when_a_value_may_outlive_its_ttl() {
        let at = |seconds: i64| RedisTime::from_millis(1_732_270_000_000 + 1_000 * seconds);
        let half_an_hour = Duration::from_secs(1_800);
        let text = |now| outlives(&StaleExtension { ends: at(0), expires: at(156), now: at(now) }, half_an_hour);
        let until = "until 2024-11-22 10:36:40 UTC at the latest (`stale_if_error`)";
        let before = format!("the old value may outlive its TTL, which ends at 2024-11-22 10:06:40 UTC, {until}");
        let after = format!("the old value outlives its TTL, which ended at 2024-11-22 10:06:40 UTC, {until}");
        assert_eq!((text(-60), text(120)), (before, after));
    }
}
