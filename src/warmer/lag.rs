//! Upstreams that lag: which answers are stored, and when the upstream is asked again.
//!
//! Without versions, the rule of [`Rechecks`] tells an old answer by its content. With versions, the scripts compare
//! them as they write (`commit.lua`), and an upstream that is behind is asked again: soon at first, since most lag by
//! little.

use std::time::Duration;

use serde_json::{Map, Value};

use super::attempt::{Attempt, Ending, Step, Stop};
use super::freshness::{LONGEST_RETRY, PAUSES, after_patience};
use super::round::Round;
use crate::agenda::Next;
use crate::entry::{Outcome, Recheck, Trigger, Version};
use crate::job::{Job, Params};
use crate::redis::RedisTime;
use crate::source::context;
use crate::store::{Accepts, Lease, Rechecks, Verdict};

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
    /// none): all of them if it answers an invalidation. Ends the attempt where the content is the one from before the
    /// invalidation and a newer one is stored: a replica lags.
    pub(super) fn rechecks_to_come(
        &self,
        lease: &Lease,
        round: &Round,
        answer: &str,
        version: Option<Version>,
    ) -> Result<Option<Rechecks>, Stop> {
        let (meta, times) = (lease.before.meta.as_ref(), &self.job.warm.recheck);
        let open = meta.and_then(|meta| meta.last_attempt.rechecks.as_ref());
        if round.trigger == Trigger::Invalidation {
            let before = meta.map_or_else(|| "-".to_owned(), |meta| meta.hash.clone());
            // A lag counts from the invalidation, another program's answer from this one.
            let since = match self.invalidated(lease, round) {
                Some(at) if self.job.may_lag() => at.min(lease.fetched_at),
                _ => lease.now(),
            };
            let mut rechecks = Rechecks::new(since, before, open.is_none() && !round.storm);
            rechecks.verified =
                meta.and_then(|meta| meta.announced).is_some_and(|announced| version >= Some(announced));
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
            // Versions tell which of the two is newer.
            Verdict::Refuse(rechecks) if version.is_some() => Ok(Some(rechecks)),
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

impl Attempt<'_> {
    /// Returns the time of the invalidation that this round answers.
    fn invalidated(&self, lease: &Lease, round: &Round) -> Option<RedisTime> {
        match round.is_again {
            true => Some(lease.fetched_at),
            false => lease.before.meta.as_ref().and_then(|meta| meta.invalidated),
        }
    }

    /// Returns the versions that this round may store.
    pub(super) fn accepts(&self, lease: &Lease, round: &Round) -> Accepts {
        let patience = self.job.warm.version_patience;
        match self.invalidated(lease, round) {
            _ if self.job.version.is_none() => Accepts::All,
            Some(at) if lease.now() < at + patience => Accepts::Announced,
            _ => Accepts::Stored,
        }
    }

    /// Ends an attempt whose answer has a lower version than was announced.
    pub(super) fn behind(&self, lease: &Lease, round: &Round, version: Option<Version>, announced: Version) -> Stop {
        self.warmer.telemetry.behind(&self.job.name);
        let wait = self.pause(lease, round);
        Stop::NoValue(Ending::because(
            Outcome::Deferred,
            Next::In(wait),
            format!("the upstream is behind: it has {}, and version {announced} was announced", told(version)),
        ))
    }

    /// Ends an attempt whose answer has a lower version than the present value. Without an open invalidation the value
    /// holds, and the upstream is asked again before the value expires.
    pub(super) fn older(&self, lease: &Lease, round: &Round, version: Option<Version>, stored: Version) -> Step<()> {
        self.warmer.telemetry.behind(&self.job.name);
        let reason = format!("the upstream is behind: it has {}, and version {stored} is stored", told(version));
        let (outcome, next) = match (self.invalidated(lease, round), lease.before.expiry.at()) {
            (None, Some(expires)) => {
                let left = expires.saturating_since(lease.now());
                (Outcome::Unchanged, Next::At(lease.now() + (left / 4).max(PAUSES.1)))
            }
            _ => (Outcome::Deferred, Next::In(self.pause(lease, round))),
        };
        Err(Stop::NoValue(Ending::because(outcome, next, reason)))
    }

    /// Returns the ending of an attempt that stored a lower version than was announced, after its patience.
    pub(super) fn stored_behind(&self, lease: &Lease, ending: Ending, version: Option<Version>) -> Ending {
        self.warmer.telemetry.behind(&self.job.name);
        let at = after_patience(lease.now());
        let next = match ending.next {
            Next::At(sooner) if sooner <= at => ending.next,
            _ => Next::Recheck(at),
        };
        let reason = format!("the upstream is behind: {} is stored, and a higher one was announced", told(version));
        Ending { next, reason: Some(reason), ..ending }
    }

    /// Returns the pause before the upstream is asked again: a third of the time that it has been behind for. After its
    /// patience, a tenth: it may have gone back for good.
    fn pause(&self, lease: &Lease, round: &Round) -> Duration {
        let behind_for = self.invalidated(lease, round).map_or(PAUSES.1, |at| lease.now().saturating_since(at));
        match behind_for < self.job.warm.version_patience {
            true => (behind_for / 3).clamp(PAUSES.0, PAUSES.1),
            false => (behind_for / 10).clamp(PAUSES.1, LONGEST_RETRY),
        }
    }
}

/// Returns a version for people.
fn told(version: Option<Version>) -> String {
    version.map_or_else(|| "no version of it".to_owned(), |version| format!("version {version}"))
}
