//! Fetches without a value: what the metadata note of them, and when the entry is tried again, or never.

use std::time::Duration;

use redis::RedisResult;

use super::INPUT_WAIT;
use super::attempt::Attempt;
use super::ending::Ending;
use super::freshness::{RETRY_PLAUSIBLE, longest_retry, retry_at_pace};
use super::inputs::{Lack, Missing, input_named_in, is_of_input, missing};
use crate::agenda::{Next, keep};
use crate::entry::EntryKey;
use crate::entry::{Outcome, Recheck, Trigger, excerpt};
use crate::redis::RedisTime;
use crate::store::{Fresh, LastAttempt, Lease, Leased, META_OUTLIVES, Rechecks, Removal};

/// The beginning of the reason of a dead letter whose attempts are used up.
pub(crate) const USED_UP: &str = "failed ";

/// The number of failures in a row from which on an entry is tried again by itself: one of those that it is asked for
/// with may be the reason.
const PARTED: u32 = 3;

/// The longest reason kept, in characters, without the name of an input that is missing.
pub(super) const LONGEST_REASON: usize = 300;

impl Ending {
    /// Returns the ending of an entry that waits for an input at `now`.
    pub(super) fn input_missing(missing: &Missing, now: RedisTime) -> Self {
        let Missing { key, lack } = missing;
        let (wait, reason) = match lack {
            Lack::Uncertain(until) => {
                let wait = until.saturating_since(now).max(INPUT_WAIT);
                (wait, format!("waits until it is certain that its input {key} is gone"))
            }
            Lack::Unfetched | Lack::GivenUp(_) | Lack::Gone => (INPUT_WAIT, format!("waits for its input {key}")),
        };
        Self::because(Outcome::Deferred, Next::In(wait), reason)
    }
}

impl Attempt<'_> {
    /// Notes a fetch without a value as the lease ends, and decides when the entry is tried again. A failure counts
    /// towards the job's attempts.
    ///
    /// # Errors
    /// Redis's; the lease is then still to be given back.
    pub(super) async fn note_failure(&mut self, lease: &Lease, failure: Ending) -> RedisResult<Ending> {
        let (job, entry, outcome) = (self.job, self.entry, failure.outcome);
        let mut last_attempt = self.without_value(lease, &failure);
        let reason = failure.reason;
        if entry.trigger == Trigger::Manual && outcome == Outcome::Failed && last_attempt.failures >= job.warm.attempts
        {
            last_attempt.failures = 0;
        }
        let before = lease.before.meta.as_ref().and_then(|meta| meta.last_attempt.reason.as_deref());
        if before.is_some_and(is_of_input) && !last_attempt.reason.as_deref().is_some_and(is_of_input) {
            // Its input is back: what follows are its own failures.
            (last_attempt.failures, last_attempt.retry) = (0, RedisTime::ZERO);
        }
        let is_futile = matches!(failure.next, Next::Dead(_));
        let (mut is_given_up, mut wait) = (false, Duration::ZERO);
        if outcome == Outcome::Failed {
            if last_attempt.failures + 1 >= PARTED {
                self.pace = None;
            }
            wait = count_failure(&mut last_attempt, lease.fetched_at, self.draw());
            if is_futile {
                wait = wait.max(longest_retry());
            }
            // While the job's guard keeps the value, the entry must find out when its upstream is well again.
            let is_held = lease.before.is_removal_held(lease.fetched_at);
            is_given_up = !is_held && (is_futile || last_attempt.failures >= job.warm.attempts);
            self.found(Recheck::Failed);
        }
        let failures = last_attempt.failures;
        // The value that was to be rechecked is there: the entry goes on to its refresh.
        let goes_on = is_given_up && entry.trigger == Trigger::Recheck && lease.before.expiry.at().is_some();
        if goes_on {
            (last_attempt.failures, last_attempt.retry, last_attempt.rechecks) = (0, RedisTime::ZERO, None);
        }
        let is_freed = !lease.before.has_value() && last_attempt.held_until > RedisTime::ZERO;
        if is_freed {
            last_attempt.held_until = RedisTime::ZERO;
        }
        let mark = self.warmer.store.release(&entry.key, &lease.token, Some(&last_attempt)).await?;
        self.token = None;
        if is_freed {
            // The value has expired, and nobody may ever fetch it again.
            self.note_recovery(lease).await?;
        }
        let next = match (mark, outcome) {
            (Some(Removal::Evict), _) => self.warmer.next_after_foreign(job, &entry.key, lease.fetched_at).await?,
            _ if goes_on => keep(job, &entry.key, lease.before.expiry),
            _ if is_given_up && is_futile => failure.next,
            _ if is_given_up => Next::Dead(format!(
                "{USED_UP}{failures} times, last: {}",
                last_attempt.reason.as_deref().unwrap_or("?")
            )),
            (_, Outcome::Failed) => Next::In(self.left_of(wait)),
            _ => failure.next,
        };
        Ok(Ending { outcome, next, reason, failures })
    }

    /// Returns what is left of a wait that began when the entries heard of their answer that were asked for together:
    /// so they are due together again.
    fn left_of(&self, wait: Duration) -> Duration {
        self.pace.map_or(wait, |pace| wait.saturating_sub(pace.told.elapsed()))
    }

    /// Notes an answer that is not stored because it is old, as the lease ends. The upstream works, so failures before
    /// it count no more.
    ///
    /// # Errors
    /// Redis's; the lease is then still to be given back.
    pub(super) async fn note_refusal(
        &mut self,
        lease: &Lease,
        refusal: Ending,
        rechecks: Option<Rechecks>,
    ) -> RedisResult<Ending> {
        let (job, key) = (self.job, &self.entry.key);
        let mut last_attempt = self.without_value(lease, &refusal);
        (last_attempt.failures, last_attempt.retry) = (0, RedisTime::ZERO);
        last_attempt.rechecks = rechecks.or(last_attempt.rechecks);
        let mark = self.warmer.store.release(key, &lease.token, Some(&last_attempt)).await?;
        self.token = None;
        let next = match mark {
            Some(Removal::Evict) => self.warmer.next_after_foreign(job, key, lease.fetched_at).await?,
            Some(Removal::Refresh) => Next::In(Duration::ZERO),
            None => refusal.next,
        };
        // The next answer is judged by what was found before the refused one: that the entry is gone.
        let outcome = if last_attempt.is_refused() { Outcome::Deferred } else { refusal.outcome };
        Ok(Ending { outcome, next, reason: last_attempt.reason, ..refusal })
    }

    /// Returns what the metadata note of an attempt that ends without a value: all else is as before.
    pub(super) fn without_value(&self, lease: &Lease, ending: &Ending) -> LastAttempt {
        let before = lease.before.meta.as_ref().map(|meta| meta.last_attempt.clone()).unwrap_or_default();
        LastAttempt {
            crashes: 0,
            outcome: Some(ending.outcome),
            trigger: Some(self.entry.trigger),
            attempted: lease.fetched_at,
            reason: ending.reason.as_deref().map(bounded),
            ..before
        }
    }

    /// Gives up an entry whose input will not come soon. It counts as a failure, so that the entry does not wait for
    /// ever.
    ///
    /// # Errors
    /// Redis's.
    pub(super) async fn give_up_input(&mut self, input: &EntryKey, why: &str) -> RedisResult<Ending> {
        let reason = format!("{}{why}", missing(input));
        match self.ask_lease(Fresh::default()).await?.0 {
            Leased::Yes(lease) => {
                // The input finds it when it is back, also if it has become a dead letter by then.
                let inputs = self.job.inputs_of_many(&self.params);
                self.warmer.store.add_dependant(&self.entry.key, &inputs, lease.time + META_OUTLIVES).await?;
                self.note_failure(&lease, Ending::because(Outcome::Failed, Next::Out, reason)).await
            }
            Leased::Busy(_) | Leased::Fresh { .. } | Leased::Absent | Leased::WrongType(_) | Leased::Poison => {
                Ok(Ending::because(Outcome::Deferred, Next::In(INPUT_WAIT), reason))
            }
        }
    }
}

/// Returns a reason that is not too long. The name of an input that is missing stays whole, because dead letters are
/// found by it.
fn bounded(reason: &str) -> String {
    let (input, why) = reason.split_at(input_named_in(reason));
    format!("{input}{}", excerpt(why, LONGEST_REASON))
}

/// Counts a failure of a fetch that began at `start`; returns the wait before the retry, by a random number from 0
/// to 1.
///
/// A fetch that an invalidation brings before the retry's time is none of the job's attempts, and leaves that time as
/// it is. A retry that is later than any can be was noted by a clock that ran ahead.
fn count_failure(last_attempt: &mut LastAttempt, start: RedisTime, draw: f64) -> Duration {
    let left = last_attempt.retry.saturating_since(start);
    if last_attempt.failures > 0 && !left.is_zero() && left <= RETRY_PLAUSIBLE {
        return left;
    }
    last_attempt.failures = last_attempt.failures.saturating_add(1);
    let wait = retry_at_pace(last_attempt.failures, draw);
    last_attempt.retry = start + wait;
    wait
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_reason_names_its_input_in_full() {
        let input = missing(&EntryKey::new(format!("art:{}", "ı".repeat(900))));
        let why = "ü".repeat(2 * LONGEST_REASON);
        assert_eq!(bounded(&format!("{input}{why}")), format!("{input}{}…", "ü".repeat(LONGEST_REASON)));
        assert_eq!(bounded(&why), format!("{}…", "ü".repeat(LONGEST_REASON)));
        assert!(is_of_input(&bounded(&format!("{input}{why}"))));
        assert!(!is_of_input("its input art:a is gone"));
    }
}
