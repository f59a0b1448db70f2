//! The fetch of an attempt: permits of its sources' upstreams, and the requests made under them.

use std::time::{Duration, Instant};

use redis::RedisResult;

use super::attempt::{Attempt, Ending, Step, Stop};
use super::freshness::jitter;
use super::{SHORT_WAIT, Warmer};
use crate::agenda::Next;
use crate::entry::Validators;
use crate::entry::{Outcome, Priority, Usage};
use crate::job::Job;
use crate::source::LONGEST_WAIT;
use crate::source::{Answer, Ask, Cost, FetchError, Permit};
use crate::store::Lease;

/// The time between two peeks of a waiting request with a fallback at its gate, which may have closed meanwhile.
const PEEK: Duration = Duration::from_millis(50);

impl Attempt<'_> {
    /// Tells whether the present value holds without a request: AI would make it from the same.
    pub(super) async fn is_kept_unasked(&self) -> RedisResult<bool> {
        if !self.job.may_hold_unasked() {
            return Ok(false);
        }
        let snapshot = self.warmer.store.snapshot(&self.entry.key).await?;
        let Some(meta) = snapshot.ours().filter(|meta| meta.invalidated.is_none()) else { return Ok(false) };
        let ask = self.ask(0, Some(&meta.last_attempt.validators), Instant::now());
        Ok(self.warmer.sources.unchanged_without_asking(&ask))
    }

    /// Waits until `until` for the first source that admits a request; returns its number and the permit.
    pub(super) async fn admit_any(&self, until: Instant) -> Result<(usize, Option<Permit>), Ending> {
        let mut source = 0;
        loop {
            match self.warmer.admit(&self.ask(source, None, until), self.entry.priority, until).await {
                Ok(permit) => return Ok((source, permit)),
                Err(ending) if source + 1 == self.job.sources.len() || self.warmer.drain.is_cancelled() => {
                    return Err(ending);
                }
                Err(_) => source += 1,
            }
        }
    }

    /// Asks the sources in order until one answers, beginning with the one whose permit the attempt holds.
    pub(super) async fn fetch(&mut self, lease: &Lease, known: Option<&Validators>) -> Step<Answer> {
        let (warmer, job, deadline) = (self.warmer, self.job, lease.deadline);
        let mut failure = Ending::because(Outcome::Failed, Next::Out, "no source");
        let first = self.permit.as_ref().map_or(0, |(source, _)| *source);
        let mut is_futile = first == 0;
        // Of a first source that is only asked later, the next try may bring an answer.
        let (mut cut, mut is_later) = (None, first > 0);
        for source in first..job.sources.len() {
            let known = known.filter(|_| source == 0);
            if warmer.sources.unchanged_without_asking(&self.ask(source, known, deadline)) {
                // Nothing is asked: others may use the permit during the commit.
                self.return_permit().await;
                return Ok(Answer::Unchanged);
            }
            let permit = match self.permit.take() {
                Some((_, permit)) => permit,
                None => {
                    // The time left must suffice for the answer: a request cut off by it counts as the upstream's
                    // failure.
                    let until = deadline - warmer.timeout(job, source);
                    match warmer.admit(&self.ask(source, known, deadline), self.entry.priority, until).await {
                        Ok(permit) => permit,
                        Err(ending) => {
                            (failure, is_futile, is_later) = (ending, false, true);
                            continue;
                        }
                    }
                }
            };
            let ask = self.ask(source, known, deadline);
            let (answer, tokens_spent) = warmer.sources.fetch_with(&ask, permit).await;
            warmer.usage.add(&job.name, Usage { tokens_spent, ..Usage::default() });
            match answer {
                Ok(answer) => return Ok(answer),
                Err(e) => {
                    if let FetchError::Cut(reason) = &e {
                        cut = Some(reason.clone());
                    }
                    is_futile &= matches!(e, FetchError::Unrenderable(_));
                    failure = warmer.failure(job, source, e);
                    is_later |= failure.outcome == Outcome::Deferred;
                }
            }
        }
        if let Some(reason) = cut.filter(|_| !is_later) {
            // Whatever a fallback says: the next try would pay for such an answer again.
            failure = Ending::dead(format!(
                "{reason}; it was paid for, so it is not asked for again before the next warmup, invalidation or demand"
            ));
        } else if is_futile {
            let reason = failure.reason.take().unwrap_or_default();
            let key = &self.entry.key;
            failure = Ending::dead(format!(
                "{reason}; no request can be made for this key: correct the template, or drop the key with \
                 `samovar invalidate '{key}' --evict`"
            ));
        }
        Err(Stop::NoValue(failure))
    }

    /// Returns the request to a source.
    pub(super) fn ask<'b>(&'b self, source: usize, known: Option<&'b Validators>, deadline: Instant) -> Ask<'b> {
        let (params, inputs) = (&self.params, &self.inputs);
        Ask { job: self.job, source, key: &self.entry.key, params, inputs, known, deadline }
    }
}

impl Warmer {
    /// Waits until `until` for a permit of a source's upstream; returns the ending of an entry that gets none. A
    /// request with a fallback does not wait for a closed upstream. A source without a server needs no permit.
    async fn admit(&self, ask: &Ask<'_>, priority: Priority, until: Instant) -> Result<Option<Permit>, Ending> {
        let (job, source) = (ask.job, ask.source);
        let Some(upstream) = job.sources[source].upstream() else { return Ok(None) };
        let Some(gate) = self.gates.get(upstream) else {
            let reason = format!("this worker has no gate to upstream {upstream}");
            return Err(Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), reason));
        };
        let cost = if gate.upstream().tokens.is_some() { self.sources.cost(ask) } else { Cost::default() };
        let refused = |wait: Duration, says: String| {
            let wait = wait.min(LONGEST_WAIT);
            Ending::because(Outcome::Deferred, Next::In(jitter(wait)), format!("upstream {upstream} {says}"))
        };
        let closed = async {
            if source + 1 == job.sources.len() {
                return std::future::pending().await;
            }
            loop {
                match gate.closed_for() {
                    Some(wait) => return wait,
                    None => tokio::time::sleep(PEEK).await,
                }
            }
        };
        tokio::select! {
            admitted = gate.admit_for(priority, until, cost) => {
                admitted.map(Some).map_err(|refusal| refused(refusal.wait, gate.says(&refusal)))
            }
            wait = closed => Err(refused(wait, "is closed for a while".to_owned())),
            () = self.drain.cancelled() => {
                Err(Ending::because(Outcome::Deferred, Next::In(Duration::ZERO), "drained"))
            }
        }
    }

    /// Returns the ending of an entry that a source gave no answer for.
    fn failure(&self, job: &Job, source: usize, error: FetchError) -> Ending {
        match error {
            FetchError::Busy(wait, reason) => Ending::because(Outcome::Deferred, Next::In(jitter(wait)), reason),
            FetchError::Refused(_, reason) => {
                let wait = self.closed_for(job, source).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
                Ending::because(Outcome::Deferred, Next::In(jitter(wait)), reason)
            }
            FetchError::Upstream(reason)
            | FetchError::Answer(reason)
            | FetchError::Cut(reason)
            | FetchError::Unrenderable(reason) => Ending::because(Outcome::Failed, Next::Out, reason),
        }
    }

    /// Tells whether the upstreams of all sources of a job are known to be closed.
    pub(super) fn is_closed(&self, job: &Job) -> bool {
        (0..job.sources.len()).all(|source| self.closed_for(job, source).is_some())
    }

    /// Returns how long a source's upstream is known to stay closed.
    fn closed_for(&self, job: &Job, source: usize) -> Option<Duration> {
        self.gates.get(job.sources[source].upstream()?)?.closed_for()
    }
}
