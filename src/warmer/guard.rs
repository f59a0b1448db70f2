//! Removals that a job's guard holds back: too many entries at once are gone, at their upstream or with an input.
//!
//! Such an attempt ends like a failed one: the old value stays, beyond its TTL until the guard ends, and an open
//! invalidation stays open. But it is deferred: it counts as no failure, and makes no dead letter.

use std::time::Duration;

use redis::RedisResult;
use tracing::warn;

use super::INPUT_WAIT;
use super::attempt::{Attempt, Step, Stop};
use super::ending::Ending;
use super::round::Round;
use crate::agenda::Next;
use crate::entry::{Outcome, Recheck};
use crate::redis::{RedisTime, is_of_keys};
use crate::store::{HeldBack, Lease, Removal};
use crate::telemetry::metrics;

/// The shortest wait before the upstream is asked again, and the longest where few entries are held back.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Held back entries of a job are asked for again with at least this between two of them, so that other work goes on.
const SPACING: Duration = Duration::from_millis(100);
/// The longest wait, however many are held back.
const LONGEST_WAIT: Duration = Duration::from_secs(900);

impl Attempt<'_> {
    /// Asks the job's guard whether a value may be removed that is gone, at the upstream or with an input. Only a
    /// readable value counts, once under a lease.
    pub(super) async fn guard_removal(&self, lease: &Lease, round: &mut Round) -> Step<()> {
        let (warmer, job) = (self.warmer, &self.job.name);
        let Some(share) = self.job.warm.gone_guard else { return Ok(()) };
        if round.may_remove {
            return Ok(());
        }
        if !lease.before.has_value() {
            // A value whose removal was held back has expired meanwhile: nothing is held of this entry any more.
            round.may_remove = true;
            return Ok(self.note_recovery(lease).await?);
        }
        let marked = lease.before.meta.as_ref().map_or(RedisTime::ZERO, |meta| meta.last_attempt.held_until);
        // Values that other programs wrote need not be on the agenda, nor ours in a job without refreshes.
        let are_all_due = lease.before.ours().is_some() && !self.job.warm.ahead.is_zero();
        match warmer.store.guard_removal(job, &self.entry.key, share, are_all_due, marked).await {
            Ok(None) => {
                round.may_remove = true;
                Ok(())
            }
            Ok(Some(held)) => Err(self.hold_back(held)),
            Err(e) if is_of_keys(&e) => {
                let reason = format!("{}; the removal waits for the job's guard: {e}", self.why_gone());
                Err(Stop::NoValue(Ending::because(Outcome::Deferred, Next::In(INPUT_WAIT), reason)))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Tells that a removal is held back.
    fn hold_back(&self, held: HeldBack) -> Stop {
        let (job, HeldBack { gone, of, .. }) = (&self.job.name, held);
        let (until, why) = (held.until.utc(), self.why_gone());
        metrics::removal_held(job);
        if self.gone_input.is_none() {
            self.found(Recheck::Gone);
        }
        if held.tripped {
            warn!(
                %job, gone, of, %until,
                "removals are held back, and the old values are served: within a minute {gone} of about {of} entries \
                 were gone, at last because {why}; `samovar gone {job}` shows it, `samovar gone {job} --accept` \
                 removes them"
            );
        }
        let reason = format!(
            "{why}; within a minute {gone} of about {of} entries were gone, so the removal is held back until {until} \
             (`gone_guard`): mend the upstream, or run `samovar gone {job} --accept`"
        );
        Stop::HeldBack(Ending::because(Outcome::Deferred, Next::Aside(wait(&held)), reason), held)
    }

    /// Returns why the entry is gone.
    fn why_gone(&self) -> String {
        match &self.gone_input {
            Some(input) => format!("its input {input} is gone"),
            None => "the upstream says that it is gone".to_owned(),
        }
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
        let later = LONGEST_WAIT + warmer.admission_wait + warmer.lease_time(job);
        let time = held.until.saturating_since(held.now) + later;
        // A value that was invalidated lives no longer than its TTL. After a gap that is only a doubt.
        warmer.store.extend_held(key, time).await?;
        let mut last_attempt = self.without_value(lease, &ending);
        (last_attempt.failures, last_attempt.retry) = (0, RedisTime::ZERO);
        last_attempt.held_until = held.until;
        let mark = warmer.store.release(key, &lease.token, Some(&last_attempt)).await?;
        self.token = None;
        let next = match mark {
            Some(Removal::Evict) => {
                // It found no mark, so it told the guard nothing.
                self.forget_held().await?;
                warmer.next_after_foreign(job, key, lease.fetched_at).await?
            }
            Some(Removal::Refresh) => Next::In(Duration::ZERO),
            None => ending.next,
        };
        Ok(Ending { next, ..ending })
    }

    /// Tells the job's guard that the upstream has an entry again whose removal was held back, or that its value has
    /// expired.
    pub(super) async fn note_recovery(&self, lease: &Lease) -> RedisResult<()> {
        let held_until = lease.before.meta.as_ref().map_or(RedisTime::ZERO, |meta| meta.last_attempt.held_until);
        if held_until == RedisTime::ZERO { Ok(()) } else { self.forget_held().await }
    }

    async fn forget_held(&self) -> RedisResult<()> {
        match self.warmer.store.note_recovery(&self.job.name, &self.entry.key).await {
            Err(e) if !is_of_keys(&e) => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Returns the wait before the upstream is asked again: about as long as the guard has held removals back, and longer
/// the more are held. So all entries together ask less and less often, and other work of the upstream goes on.
fn wait(held: &HeldBack) -> Duration {
    let elapsed = held.now.saturating_since(held.since);
    let spread = SPACING.saturating_mul(u32::try_from(held.held).unwrap_or(u32::MAX)).min(LONGEST_WAIT);
    elapsed.clamp(WAITS.0, WAITS.1).max(spread).mul_f64(rand::random_range(0.5..=1.0))
}
