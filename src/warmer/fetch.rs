//! The fetch of an attempt: permits of its sources' upstreams, and the requests made under them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;

use super::admission::pass;
use super::attempt::{Attempt, Step, Stop};
use super::bulk::{Admission, DECISION, Gatherer, Member, Unanswered, Wanted};
use super::ending::Ending;
use super::freshness::jitter_at_pace;
use super::{SHORT_WAIT, Warmer};
use crate::agenda::Next;
use crate::entry::Validators;
use crate::entry::{Outcome, Priority, Usage};
use crate::job::Job;
use crate::source::LONGEST_WAIT;
use crate::source::{Answer, Ask, Cost, FetchError, Permit};
use crate::store::Lease;

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

    /// Waits until `until` for the first source that admits a request; returns its number and the admission.
    pub(super) async fn admit_any(&mut self, until: Instant) -> Result<(usize, Admission), Ending> {
        let mut source = 0;
        loop {
            match self.admit_to(source, None, until).await {
                Ok(admission) => return Ok((source, admission)),
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
        let first = self.admission.as_ref().map_or(0, |(source, _)| *source);
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
            match self.fetch_from(source, lease, known).await {
                Ok(answer) => return Ok(answer),
                Err(Unanswered::Refused(ending)) => (failure, is_futile, is_later) = (ending, false, true),
                Err(Unanswered::Failed(e)) => {
                    if let FetchError::Cut(reason) = &e {
                        cut = Some(reason.clone());
                    }
                    is_futile &= matches!(e, FetchError::Unrenderable(_));
                    failure = warmer.failure(job, source, e, self.draw());
                    is_later |= failure.outcome == Outcome::Deferred;
                }
            }
        }
        if let Some(reason) = cut.filter(|_| !is_later) {
            // Whatever a fallback says: the next try would pay for such an answer again.
            failure = Ending::dead(format!(
                "{reason}; it was paid for, so it is not asked for again before the next warmup, invalidation, demand, \
                 or recheck or change of an input"
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

    /// Asks one source, under the admission that the attempt has or under another one.
    async fn fetch_from(
        &mut self,
        source: usize,
        lease: &Lease,
        known: Option<&Validators>,
    ) -> Result<Answer, Unanswered> {
        let (warmer, job, deadline) = (self.warmer, self.job, lease.deadline);
        let mut admission = match self.admission.take() {
            // Its crash would count for all that are asked for with it.
            Some((_, Admission::Together(member))) if self.suspect.is_some() => {
                member.leave().await;
                None
            }
            admission => admission.map(|(_, admission)| admission),
        };
        loop {
            let admitted = match admission.take() {
                Some(admission) => admission,
                None => {
                    // The time left must suffice for the answer: a request cut off by it counts as the upstream's
                    // failure.
                    let until = self.deadline_of(source, lease) - warmer.timeout(job, source);
                    self.admit_to(source, Some(lease), until).await.map_err(Unanswered::Refused)?
                }
            };
            let member = match admitted {
                Admission::Together(member) => member,
                Admission::Alone(permit) => {
                    self.pace = None;
                    let ask = self.ask(source, known, deadline);
                    let (answer, tokens_spent) = warmer.sources.fetch_with(&ask, permit).await;
                    warmer.usage.add(&job.name, Usage { tokens_spent, ..Usage::default() });
                    return answer.map_err(Unanswered::Failed);
                }
            };
            // Otherwise another group takes it along.
            if let Some(answer) = self.fetch_together(source, lease, member).await {
                return answer;
            }
        }
    }

    /// Waits for the part of this entry in an answer for many; returns `None` if its group was asked for before.
    async fn fetch_together(
        &mut self,
        source: usize,
        lease: &Lease,
        member: Member,
    ) -> Option<Result<Answer, Unanswered>> {
        let (fetched_at, deadline) = (lease.fetched_at, self.deadline_of(source, lease));
        let wanted = Wanted { params: self.params.clone(), inputs: self.inputs.clone(), fetched_at, deadline };
        let (part, pace) = member.answer(wanted).await?;
        self.pace = Some(pace);
        let ask = self.ask(source, None, deadline);
        Some(part.and_then(|part| self.warmer.sources.value_of(&ask, part).map_err(Unanswered::Failed)))
    }

    /// Returns when the answer of a source must be there. If it asks for many entries, its fallbacks have their time
    /// after that, since such a request may be made in several parts.
    fn deadline_of(&self, source: usize, lease: &Lease) -> Instant {
        let (warmer, job) = (self.warmer, self.job);
        match warmer.gatherer(job, source) {
            Some(_) => {
                let later = (source + 1..job.sources.len()).map(|source| warmer.timeout(job, source));
                lease.deadline - later.sum::<Duration>()
            }
            None => lease.deadline,
        }
    }

    /// Waits until `until` for the admission of a request to a source, with other entries where it asks for many.
    /// `lease` is that of an attempt that has one already.
    async fn admit_to(&mut self, source: usize, lease: Option<&Lease>, until: Instant) -> Result<Admission, Ending> {
        let (warmer, job, priority) = (self.warmer, self.job, self.entry.priority);
        let coming = self.coming.take();
        match warmer.gatherer(job, source).filter(|_| self.suspect.is_none()) {
            Some(gatherer) => {
                // Others may still take their leases before the request is sent.
                let until = if lease.is_some() { until - DECISION } else { until };
                let admitted = gatherer.admit(&self.params, priority, until, lease.is_some(), coming).await;
                admitted.map(Admission::Together)
            }
            None => warmer.admit(&self.ask(source, None, until), priority, until).await.map(Admission::Alone),
        }
    }

    /// Returns the request to a source.
    pub(super) fn ask<'b>(&'b self, source: usize, known: Option<&'b Validators>, deadline: Instant) -> Ask<'b> {
        let (params, inputs) = (&self.params, &self.inputs);
        Ask { job: self.job, source, key: &self.entry.key, params, inputs, known, deadline }
    }
}

impl Warmer {
    /// Returns what brings the entries of a job together for this source; `None` if it is asked for each by itself.
    pub(super) fn gatherer(&self, job: &Job, source: usize) -> Option<&Arc<Gatherer>> {
        // Most jobs have none.
        if self.gatherers.is_empty() { None } else { self.gatherers.get(&(job.name.clone(), source)) }
    }

    /// Waits until `until` for a permit of a source's upstream, as [`pass`] does. A source without a server needs none.
    async fn admit(&self, ask: &Ask<'_>, priority: Priority, until: Instant) -> Result<Option<Permit>, Ending> {
        let (job, source) = (ask.job, ask.source);
        let Some(upstream) = job.sources[source].upstream() else { return Ok(None) };
        let Some(gate) = self.gates.get(upstream) else {
            let reason = format!("this worker has no gate to upstream {upstream}");
            return Err(Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), reason));
        };
        let cost = if gate.upstream().tokens.is_some() { self.sources.cost(ask) } else { Cost::default() };
        pass(gate, &self.drain, source + 1 == job.sources.len(), cost, priority, until).await.map(Some)
    }

    /// Returns the ending of an entry that a source gave no answer for. `draw` is a random number from 0 to 1.
    fn failure(&self, job: &Job, source: usize, error: FetchError, draw: f64) -> Ending {
        match error {
            FetchError::Busy(wait, reason) => {
                Ending::because(Outcome::Deferred, Next::In(jitter_at_pace(wait, draw)), reason)
            }
            FetchError::Refused(_, reason) => {
                let wait = self.closed_for(job, source).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
                Ending::because(Outcome::Deferred, Next::In(jitter_at_pace(wait, draw)), reason)
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
