//! Upstreams that lag: which answers are stored, and when the upstream is asked again.
//!
//! Without versions, the rule of [`Rechecks`] tells an old answer by its content. With versions, the scripts compare
//! them as they write (`commit.lua`), and an upstream that is behind is asked again: soon at first, since most lag by
//! little.

use std::time::Duration;

use redis::RedisResult;
use serde_json::{Map, Value};

use super::attempt::{Attempt, Step, Stop};
use super::ending::Ending;
use super::freshness::{PAUSES, after_patience};
use super::recheck::with_recheck;
use super::round::Round;
use crate::agenda::{Next, keep};
use crate::entry::{Outcome, Recheck, Trigger, Version};
use crate::job::{Job, Params};
use crate::redis::RedisTime;
use crate::source::context;
use crate::store::{Behind, Expiry, LastAttempt, Lease, Meta, Rechecks, Verdict, Versions};

/// Workers note the same loss within this time.
const SAME_LOSS: Duration = Duration::from_secs(10);

/// Returns the version of a value, or the reason why it has none. `None` if the job has no versions.
pub(super) fn render_version(
    job: &Job,
    params: &Params,
    inputs: &Map<String, Value>,
    value: impl FnOnce() -> Value,
) -> Result<Option<Version>, String> {
    let Some(template) = &job.version else { return Ok(None) };
    let fault = |e: String| format!("the version `{}`: {e}", template.source());
    let text = template.render(&context(params, inputs, Some(value()))).map_err(fault)?;
    Version::parse(&text).map(Some).map_err(fault)
}

impl Attempt<'_> {
    /// Returns the rechecks that are to come after the present fetch, which brought the content of this hash (`-` for
    /// none): all of them if it answers an invalidation. If that is only a doubt, those that are left stay. Ends the
    /// attempt where the content is the one from before the invalidation and a newer one is stored: a replica lags.
    pub(super) async fn rechecks_to_come(
        &self,
        lease: &Lease,
        round: &Round,
        answer: &str,
        version: Option<Version>,
    ) -> Step<Option<Rechecks>> {
        let (meta, times) = (lease.before.meta.as_ref(), &self.job.warm.recheck);
        let mut open = meta.and_then(|meta| meta.last_attempt.rechecks.clone());
        if round.trigger == Trigger::Invalidation {
            open = open.and_then(|open| open.with_doubt(times, lease.fetched_at));
            if open.is_none() || !self.is_in_doubt(lease, round).await? {
                return Ok(self.rechecks_of_invalidation(lease, round, version).await?);
            }
        }
        let Some(mut rechecks) = open else { return Ok(self.rechecks_after_loss(lease)) };
        // One that began later than this fetch is by a clock that was set back since.
        rechecks.since = rechecks.since.min(lease.fetched_at);
        if self.is_of_another_file(lease) {
            rechecks = rechecks.without_before();
        }
        if !self.job.may_lag() {
            return Ok(rechecks.next(times, lease.now()).map(|_| rechecks));
        }
        let is_gone = meta.is_some_and(|meta| meta.last_attempt.outcome == Some(Outcome::Gone));
        let present = lease.before.ours().map(|meta| meta.hash.as_str()).or(is_gone.then_some("-"));
        match rechecks.judge(times, present, answer, lease.fetched_at) {
            Verdict::Take(rechecks) => Ok(rechecks),
            // Versions tell which of the two is newer.
            Verdict::Refuse(rechecks) if version.is_some() => Ok(Some(rechecks)),
            Verdict::Refuse(rechecks) => {
                self.found(Recheck::Outdated);
                let next = with_recheck(self.job, Some(&rechecks), lease.fetched_at, self.refresh(lease));
                let outcome = if is_gone { Outcome::Gone } else { Outcome::Unchanged };
                let what = "the upstream answered with the content from before the invalidation";
                let stays = match lease.before.has_value() {
                    true => "the newer one stays".to_owned(),
                    false => stays_absent(&rechecks, times, lease.fetched_at),
                };
                Err(Stop::Refused(Ending::because(outcome, next, format!("{what}; {stays}")), Some(rechecks)))
            }
        }
    }

    /// Returns the recheck of an entry without a value that is fetched soon after Redis lost data: the last one, as
    /// after a doubt. The rechecks of its last invalidation went with the data, and its upstream may lag.
    ///
    /// A loss is noted before its gap. So a fetch that began too early to know of the loss began before the gap, and is
    /// revalidated.
    fn rechecks_after_loss(&self, lease: &Lease) -> Option<Rechecks> {
        if !self.job.may_lag() || lease.before.ours().is_some() {
            return None;
        }
        // Another worker may have found the same loss since. A later one was noted before the clock was set back.
        let since = lease.lost.filter(|lost| *lost <= lease.fetched_at + SAME_LOSS)?.min(lease.fetched_at);
        let rechecks = Rechecks::new(since, String::new(), false).after_doubt();
        rechecks.next(&self.job.warm.recheck, lease.fetched_at).map(|_| rechecks)
    }

    /// Returns the rechecks of the invalidation that the present fetch answers.
    async fn rechecks_of_invalidation(
        &self,
        lease: &Lease,
        round: &Round,
        version: Option<Version>,
    ) -> RedisResult<Option<Rechecks>> {
        let (meta, times) = (lease.before.meta.as_ref(), &self.job.warm.recheck);
        let invalidated = self.invalidated(lease, round);
        // A lag counts from the invalidation, another program's answer from this one.
        let since = invalidated.filter(|_| self.job.may_lag()).unwrap_or_else(|| lease.now());
        // A message that is handled once more may be older than one whose rechecks are to come.
        let open = meta.and_then(|meta| meta.last_attempt.rechecks.as_ref()?.since_invalidation());
        let since = open.filter(|open| *open <= lease.fetched_at).map_or(since, |open| since.max(open));
        let before = meta.map_or_else(|| "-".to_owned(), |meta| meta.hash.clone());
        let is_lone = !round.is_again && meta.is_none_or(|meta| meta.last_attempt.rechecks.is_none());
        let mut rechecks = Rechecks::new(since, before, is_lone);
        if self.is_of_another_file(lease) {
            rechecks = rechecks.without_before();
        }
        rechecks.verified = meta.and_then(|meta| meta.announced).is_some_and(|announced| version >= Some(announced));
        if rechecks.next(times, lease.fetched_at).is_none() {
            return Ok(None);
        }
        // A gap concerns all entries, and few of them have changed.
        if self.is_in_doubt(lease, round).await? {
            rechecks = rechecks.after_doubt();
        }
        Ok(Some(rechecks))
    }

    /// Tells that the value from before this fetch was made from another job file: the same content then has another
    /// hash.
    fn is_of_another_file(&self, lease: &Lease) -> bool {
        lease.before.meta.as_ref().is_some_and(|meta| meta.is_outdated(&self.job.made, &self.job.made))
    }

    /// Tells that the invalidation which this round answers is only a doubt after a gap. One that came during the fetch
    /// stands in the metadata by now.
    async fn is_in_doubt(&self, lease: &Lease, round: &Round) -> RedisResult<bool> {
        if round.is_again {
            return Ok(self.warmer.store.snapshot(&self.entry.key).await?.meta.is_some_and(|meta| meta.is_in_doubt()));
        }
        Ok(lease.before.meta.as_ref().is_some_and(Meta::is_in_doubt))
    }

    /// Counts the result of a recheck; other attempts count nothing.
    pub(super) fn found(&self, found: Recheck) {
        if self.entry.trigger == Trigger::Recheck {
            self.warmer.telemetry.recheck(&self.job.name, found);
        }
    }

    /// Counts the result of a recheck that stored a value. `changed` tells that its content is another than before.
    pub(super) fn found_value(&self, lease: &Lease, round: &Round, changed: bool) {
        let Some(meta) = &lease.before.meta else { return self.found(Recheck::Foreign) };
        // What an invalidation brings meanwhile, or an announced version that was missing, is no result of a recheck.
        if round.trigger == Trigger::Invalidation || meta.is_behind() {
            return;
        }
        let is_gone = meta.last_attempt.outcome == Some(Outcome::Gone);
        if lease.before.ours().is_none() && !is_gone {
            return self.found(Recheck::Foreign);
        }
        let lag = meta.last_attempt.rechecks.as_ref().map(|rechecks| lease.fetched_at.saturating_since(rechecks.since));
        match (changed || is_gone, lag) {
            (true, Some(lag)) if self.job.may_lag() => self.found(Recheck::Changed(lag)),
            _ => self.found(Recheck::Unchanged),
        }
    }

    /// Returns the time of the invalidation that this round answers.
    fn invalidated(&self, lease: &Lease, round: &Round) -> Option<RedisTime> {
        match round.is_again {
            true => Some(lease.fetched_at),
            false => lease.before.meta.as_ref()?.invalidated.map(|at| at.min(lease.fetched_at)),
        }
    }

    /// Returns how versions are met in this attempt.
    pub(super) fn versions(&self) -> Versions {
        let patience = self.job.version.as_ref().map(|_| self.job.warm.version_patience);
        Versions { patience, look: self.entry.trigger == Trigger::Recheck }
    }

    /// Ends an attempt whose answer has a lower version than was announced, and is no gain.
    pub(super) fn behind(&self, lease: &Lease, version: Option<Version>, announced: Version, behind: Behind) -> Stop {
        self.warmer.telemetry.behind(&self.job.name);
        let reason = format!(
            "the upstream is behind: it has {}, and version {} was announced",
            told(version),
            announced.shown()
        );
        let now = lease.now();
        let (outcome, next) = match behind.waits {
            true => (Outcome::Deferred, Next::In(pause(now.saturating_since(behind.since)))),
            false => (Outcome::Unchanged, self.look_again(lease, lease.before.expiry)),
        };
        Stop::Refused(Ending::because(outcome, next, reason), None)
    }

    /// Returns the ending of an attempt that stored a lower version than was announced.
    pub(super) fn stored_behind(&self, lease: &Lease, ending: Ending, version: Option<Version>, by: Behind) -> Ending {
        self.warmer.telemetry.behind(&self.job.name);
        let reason = format!("the upstream is behind: {} is stored, and a higher one was announced", told(version));
        let next = match by.waits {
            true => Next::In(pause(lease.now().saturating_since(by.since))),
            false if self.job.may_lag() => sooner(ending.next, after_patience(lease.now())),
            // Its inputs make it due when they change.
            false => ending.next,
        };
        Ending { next, reason: Some(reason), ..ending }
    }

    /// Ends an attempt whose answer has a lower version than the present value. The value holds. While an invalidation
    /// is open and the job's patience lasts, the upstream is asked again soon; else at the next recheck, or before the
    /// value expires.
    pub(super) fn older(
        &self,
        lease: &Lease,
        answer: &LastAttempt,
        stored: Version,
        invalidated: Option<RedisTime>,
    ) -> Stop {
        self.warmer.telemetry.behind(&self.job.name);
        let reason = format!(
            "the upstream is behind: it has {}, and version {} is stored",
            told(answer.version),
            stored.shown()
        );
        let now = lease.now();
        let behind_for = invalidated.map(|at| now.saturating_since(at.min(now)));
        if let Some(behind_for) = behind_for.filter(|time| *time < self.job.warm.version_patience) {
            return Stop::Refused(Ending::because(Outcome::Deferred, Next::In(pause(behind_for)), reason), None);
        }
        self.found(Recheck::Outdated);
        let next = with_recheck(self.job, answer.rechecks.as_ref(), lease.fetched_at, self.refresh(lease));
        Stop::Refused(Ending::because(Outcome::Unchanged, next, reason), answer.rechecks.clone())
    }

    /// Returns when a value is refreshed whose answer was refused: if this was the refresh, before it expires.
    fn refresh(&self, lease: &Lease) -> Next {
        let (expiry, now) = (lease.before.expiry, lease.now());
        match (keep(self.job, &self.entry.key, expiry), expiry.at()) {
            (Next::At(at), Some(expires)) if at <= now => {
                Next::At(now + (expires.saturating_since(now) / 4).max(PAUSES.0))
            }
            (next, _) => next,
        }
    }

    /// Returns when an upstream is asked again that stays behind after its patience.
    fn look_again(&self, lease: &Lease, expiry: Expiry) -> Next {
        sooner(keep(self.job, &self.entry.key, expiry), after_patience(lease.now()))
    }
}

/// Returns `next`, or a recheck at `at` if that is sooner.
fn sooner(next: Next, at: RedisTime) -> Next {
    match next {
        Next::At(sooner) if sooner <= at => next,
        _ => Next::Recheck(at),
    }
}

/// Returns until when an entry stays absent whose upstream answered with old content.
fn stays_absent(rechecks: &Rechecks, times: &[Duration], fetched_at: RedisTime) -> String {
    let next = rechecks.next(times, fetched_at);
    let taken = rechecks.next_taken(times, fetched_at).filter(|taken| Some(*taken) != next);
    let until = next.map_or_else(String::new, |next| format!(" until it is asked again at {}", next.utc()));
    let taken = taken.map_or_else(String::new, |taken| format!("; any answer is stored at {}", taken.utc()));
    format!("the entry stays absent{until}{taken}")
}

/// Returns the pause before an upstream is asked again that has been behind for so long.
fn pause(behind_for: Duration) -> Duration {
    (behind_for / 4).clamp(PAUSES.0, PAUSES.1)
}

/// Returns a version for people.
fn told(version: Option<Version>) -> String {
    version.map_or_else(|| "no version of it".to_owned(), |version| format!("version {}", version.shown()))
}
