//! The fetch of an attempt: permits of its sources' upstreams, and the requests made under them.

use std::time::{Duration, Instant};

use redis::RedisResult;

use super::attempt::{Attempt, Ending, Step, Stop};
use super::cut_off::NOT_AGAIN;
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
    /// Returns the first source to ask. `None` if none is: AI would make the present value from the same, or the answers
    /// to these very requests were cut off.
    pub(super) async fn first_to_ask(&self) -> RedisResult<Option<usize>> {
        if !self.job.may_hold_unasked() {
            return Ok(Some(0));
        }
        let snapshot = self.warmer.store.snapshot(&self.entry.key).await?;
        if let Some(meta) = snapshot.ours().filter(|meta| meta.invalidated.is_none()) {
            let ask = self.ask(0, Some(&meta.last_attempt.validators), Instant::now());
            if self.warmer.sources.unchanged_without_asking(&ask) {
                return Ok(None);
            }
        }
        Ok(self.first_not_cut(snapshot.meta.as_ref().map_or(&[], |meta| &meta.last_attempt.cut)))
    }

    /// Waits until `until` for the first source that admits a request, beginning with source `first`; returns its number
    /// and the permit.
    pub(super) async fn admit_any(&self, first: usize, until: Instant) -> Result<(usize, Option<Permit>), Ending> {
        let mut source = first;
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
        // Of a first source that is only asked later, the next try may bring an answer.
        let (mut is_futile, mut cut) = (first == 0, None);
        self.recall_cut(lease);
        for source in first..job.sources.len() {
            let known = known.filter(|_| source == 0);
            if warmer.sources.unchanged_without_asking(&self.ask(source, known, deadline)) {
                // Nothing is asked: others may use the permit during the commit.
                self.return_permit().await;
                return Ok(Answer::Unchanged);
            }
            let request = self.request(source);
            if request.as_ref().is_some_and(|request| self.is_cut(request)) {
                self.return_permit().await;
                cut = Some(format!("its answer was cut off; {NOT_AGAIN}"));
                failure.reason.clone_from(&cut);
                continue;
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
                            (failure, is_futile) = (ending, false);
                            continue;
                        }
                    }
                }
            };
            let ask = self.ask(source, known, deadline);
            let (answer, tokens_spent) = warmer.sources.fetch_with(&ask, permit).await;
            warmer.usage.add(&job.name, Usage { tokens_spent, ..Usage::default() });
            match answer {
                Ok(answer) => {
                    self.note_cut(request, false);
                    return Ok(answer);
                }
                Err(e) => {
                    is_futile &= matches!(e, FetchError::Unrenderable(_) | FetchError::Cut(_));
                    if let FetchError::Cut(reason) = &e {
                        cut = Some(format!("{reason}; {NOT_AGAIN}"));
                        self.note_cut(request, true);
                    }
                    failure = warmer.failure(job, source, e);
                }
            }
        }
        Err(Stop::NoValue(self.without_answer(failure, is_futile, cut)))
    }

    /// Returns the ending of an attempt whose sources gave no answer, the last one for the reason of `failure`. `cut` is
    /// the reason of one whose answer was cut off. If all is futile, the next try could bring nothing else.
    fn without_answer(&self, mut failure: Ending, is_futile: bool, cut: Option<String>) -> Ending {
        let reason = failure.reason.take().unwrap_or_default();
        match cut {
            Some(cut) if is_futile => Ending::dead(cut),
            Some(cut) if cut.starts_with(&reason) => Ending { reason: Some(cut), ..failure },
            Some(cut) => Ending { reason: Some(format!("{reason}; of another source: {cut}")), ..failure },
            None if is_futile => {
                let key = &self.entry.key;
                Ending::dead(format!(
                    "{reason}; no request can be made for this key: correct the template, or drop the key with \
                     `samovar invalidate '{key}' --evict`"
                ))
            }
            None => Ending { reason: Some(reason), ..failure },
        }
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
