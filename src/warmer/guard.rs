//! Removals that a job's guard holds back: the upstream says of too many entries at once that they are gone.
//!
//! Such an attempt ends like a failed one: the old value stays, beyond its TTL until the guard ends, and an open
//! invalidation stays open. But it is deferred: it counts as no failure, and makes no dead letter.

use std::time::Duration;

use chrono::DateTime;
use redis::RedisResult;
use tracing::warn;

use super::INPUT_WAIT;
use super::attempt::{Attempt, Ending, Step, Stop};
use super::round::Round;
use crate::agenda::Next;
use crate::entry::{Outcome, Recheck};
use crate::redis::{RedisTime, is_of_keys};
use crate::store::{HeldBack, Lease, Removal};
use crate::telemetry::metrics;

/// The shortest and the longest wait before the upstream is asked again.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A guard never keeps a value for longer than this beyond its TTL.
const ANY_TIME: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

impl Attempt<'_> {
    /// Asks the job's guard whether a value may be removed that the upstream says is gone. Only a readable value of
    /// ours counts, once under a lease.
    pub(super) async fn guard_removal(&self, lease: &Lease, round: &mut Round) -> Step<()> {
        let (warmer, job) = (self.warmer, &self.job.name);
        let (Some(share), Some(meta)) = (self.job.warm.gone_guard, lease.before.ours()) else { return Ok(()) };
        if round.may_remove {
            return Ok(());
        }
        match warmer.store.guard_removal(job, share, meta.last_attempt.held_until).await {
            Ok(None) => {
                round.may_remove = true;
                Ok(())
            }
            Ok(Some(held)) => Err(self.hold_back(held)),
            Err(e) if is_of_keys(&e) => {
                let reason = format!("the upstream says that it is gone; the removal waits for the job's guard: {e}");
                Err(Stop::NoValue(Ending::because(Outcome::Deferred, Next::In(INPUT_WAIT), reason)))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Tells that a removal is held back.
    fn hold_back(&self, held: HeldBack) -> Stop {
        let (job, HeldBack { gone, of, .. }) = (&self.job.name, held);
        let until = utc(held.until);
        metrics::removal_held(job);
        self.found(Recheck::Gone);
        if held.tripped {
            warn!(
                %job, gone, of, %until,
                "removals are held back, and the old values are served: within a minute the upstream said that {gone} \
                 of about {of} entries are gone; `samovar gone {job}` shows it, `samovar gone {job} --accept` removes \
                 them"
            );
        }
        let reason = format!(
            "the upstream says that it is gone, as it said of {gone} of about {of} entries within a minute; the \
             removal is held back until {until} (`gone_guard`): mend the upstream, or run \
             `samovar gone {job} --accept`"
        );
        Stop::HeldBack(Ending::because(Outcome::Deferred, Next::In(wait(&held)), reason), held)
    }

    /// Notes as the lease ends that the removal is held back, and keeps the old value until the guard ends and a later
    /// try has decided. The upstream answers, so failures before it count no more.
    ///
    /// # Errors
    /// Redis's; the lease is then still to be given back.
    pub(super) async fn note_held_back(
        &mut self,
        lease: &Lease,
        ending: Ending,
        held: HeldBack,
    ) -> RedisResult<Ending> {
        let (warmer, job, key) = (self.warmer, self.job, &self.entry.key);
        let later = WAITS.1 + warmer.admission_wait + warmer.lease_time(job);
        let time = held.until.saturating_since(held.now) + later;
        // A value that was invalidated lives no longer than its TTL.
        warmer.store.extend_stale(key, time, ANY_TIME).await?;
        let mut last_attempt = self.without_value(lease, &ending);
        (last_attempt.failures, last_attempt.retry) = (0, RedisTime::ZERO);
        last_attempt.held_until = held.until;
        let mark = warmer.store.release(key, &lease.token, Some(&last_attempt)).await?;
        self.token = None;
        let next = match mark {
            Some(Removal::Evict) => warmer.next_after_foreign(job, key, lease.fetched_at).await?,
            Some(Removal::Refresh) => Next::In(Duration::ZERO),
            None => ending.next,
        };
        Ok(Ending { next, ..ending })
    }

    /// Tells the job's guard that the upstream has an entry again whose removal was held back.
    pub(super) async fn note_recovery(&self, lease: &Lease) -> RedisResult<()> {
        let held_until = lease.before.meta.as_ref().map_or(RedisTime::ZERO, |meta| meta.last_attempt.held_until);
        if held_until == RedisTime::ZERO {
            return Ok(());
        }
        match self.warmer.store.note_recovery(&self.job.name, held_until).await {
            Err(e) if !is_of_keys(&e) => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Returns the wait before the upstream is asked again: about as long as the guard has held removals back, so that all
/// entries together ask less and less often.
fn wait(held: &HeldBack) -> Duration {
    let elapsed = held.now.saturating_since(held.since);
    elapsed.clamp(WAITS.0, WAITS.1).mul_f64(rand::random_range(0.5..=1.0))
}

/// Returns a time for people.
fn utc(at: RedisTime) -> String {
    let time = DateTime::from_timestamp_millis(at.as_millis());
    time.map_or_else(|| at.to_string(), |time| time.format("%Y-%m-%d %H:%M UTC").to_string())
}
