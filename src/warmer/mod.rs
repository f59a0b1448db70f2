//! The warmer: one entry from lease over fetch to commit, and what becomes of it.
//!
//! A task is a [`Chunk`] of claimed entries; each is taken (compare and swap on the agenda) and warmed on its own, so a
//! panic or a slow answer concerns one entry. Waiting for an upstream comes before the lease; the fetch gives itself up at
//! the lease's deadline. Every end is an [`Outcome`] and a [`Next`]; what is lost on the way, to a crash or to Redis, is due
//! again when the agenda says so.

mod finisher;
mod in_flight;
mod inputs;
mod stale_if_error;
mod usage_buffer;
mod freshness;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::RedisResult;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span, error, warn};

pub use finisher::Finisher;
use freshness::{fresh, jitter, known, millis, retry_after, settled};
use in_flight::{InFlight, Place};
use inputs::Missing;
use usage_buffer::UsageBuffer;

use crate::agenda::keep;
use crate::agenda::{Agenda, Claimed, Due, Finished, Next};
use crate::entry::Last;
use crate::entry::Validators;
use crate::entry::{EntryKey, JobName, UpstreamName};
use crate::entry::{Outcome, Spending};
use crate::entry::{Priority, Trigger};
use crate::job::{Job, Jobs, Params, Source};
use crate::popularity::Popularity;
use crate::queue::Chunk;
use crate::source::LONGEST_WAIT;
use crate::source::{Answer, Ask, Cost, Ended, FetchError, Gate, Permit, Sources};
use crate::store::{Fresh, Lease, Leased, Note, Removal, Store, Written};
use crate::store::{POISON_CRASHES, SUSPECT_CRASHES, poison_reason};
use crate::telemetry::Telemetry;

/// Times that one lease is begun anew because invalidations keep coming; then the entry waits its turn again.
const ROUNDS: usize = 5;
/// How soon an entry comes back that found Redis away or lost its lease.
const SHORTLY: Duration = Duration::from_secs(1);
/// How soon an entry comes back that waits for an input; the input's commit brings it back sooner.
const INPUT_WAIT: Duration = Duration::from_secs(15);
/// How often somebody who waits for an upstream, and has a fallback, looks whether it was closed meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// How soon a step is tried again that Redis did not answer.
const INSIST: Duration = Duration::from_millis(100);
/// Longest reason kept, in characters.
const REASON: usize = 300;

/// How an entry's warming ended, why, and what becomes of it.
#[derive(Debug)]
struct Ending {
    outcome: Outcome,
    next: Next,
    reason: Option<String>,
    /// Fetches that have failed in a row, this one included.
    failures: u32,
}

impl Ending {
    fn new(outcome: Outcome, next: Next) -> Self {
        Self { outcome, next, reason: None, failures: 0 }
    }

    fn because(outcome: Outcome, next: Next, reason: impl Into<String>) -> Self {
        Self { outcome, next, reason: Some(reason.into()), failures: 0 }
    }

    /// The key holds something that is no value of an entry.
    fn wrongtype(what: &str) -> Self {
        let reason =
            format!("the key holds {what}, which somebody else wrote: delete it, or name the job's key otherwise");
        Self::because(Outcome::Failed, Next::Dead(reason.clone()), reason)
    }
}

/// An entry that this worker has taken.
#[derive(Clone, Debug)]
struct Taken {
    key: EntryKey,
    /// The score by which the agenda knows that it is ours.
    score: String,
    trigger: Trigger,
    priority: Priority,
    /// It took the place of a look, which is still owed.
    look: bool,
    /// Since when it was due (Redis time, ms).
    since: i64,
    /// How long it had been due when it was taken.
    late: Duration,
}

impl Taken {
    /// Where it is noted as in hand.
    fn place(&self, job: &Job) -> Place {
        (job.name.clone(), self.key.clone(), self.score.clone())
    }

    /// Whether the entry's present score on the agenda says that it is to be fetched, in whatever state, and not only to be
    /// looked at once more; unless that is what it was taken for.
    fn is_wanted(&self, score: Option<f64>) -> bool {
        let ours = self.score.parse::<f64>().ok();
        score.is_some_and(|now| Some(now) == ours || Due::from_score(now).trigger != Trigger::Settle)
    }
}

/// Warms entries for one worker process.
#[derive(Debug)]
pub struct Warmer {
    jobs: Arc<Jobs>,
    store: Store,
    agenda: Agenda,
    sources: Sources,
    gates: BTreeMap<UpstreamName, Arc<Gate>>,
    telemetry: Telemetry,
    popularity: Popularity,
    finished: mpsc::UnboundedSender<(JobName, Finished, Option<Last>)>,
    /// The claim time.
    claim: Duration,
    /// How long an entry may wait for its upstream before it makes room for others.
    patience: Duration,
    /// Set when the worker ends: nothing is begun any more.
    drain: CancellationToken,
    /// Held by the one entry under way that may kill its worker.
    alone: Arc<tokio::sync::Mutex<()>>,
    held: Arc<InFlight>,
    usage: UsageBuffer,
}

impl Warmer {
    /// A warmer, and the loop that ends its entries on the agenda. `claim` is the claim time.
    #[expect(clippy::too_many_arguments, reason = "it is where the parts meet")]
    pub fn new(
        jobs: Arc<Jobs>,
        store: Store,
        agenda: Agenda,
        sources: Sources,
        gates: BTreeMap<UpstreamName, Arc<Gate>>,
        telemetry: Telemetry,
        popularity: Popularity,
        claim: Duration,
        drain: CancellationToken,
    ) -> (Arc<Self>, Finisher) {
        let (finished, ends) = mpsc::unbounded_channel();
        let usage = UsageBuffer::default();
        let finisher = Finisher::new(agenda.clone(), ends, usage.clone());
        let patience = freshness::patience(claim);
        let (alone, held) = (Arc::default(), Arc::default());
        let warmer = Self {
            jobs,
            store,
            agenda,
            sources,
            gates,
            telemetry,
            popularity,
            finished,
            claim,
            patience,
            drain,
            alone,
            held,
            usage,
        };
        (Arc::new(warmer), finisher)
    }

    /// The same warmer over connections of its own: what either has in hand, both have.
    pub fn with_connections(
        &self,
        store: Store,
        agenda: Agenda,
        sources: Sources,
        popularity: Popularity,
    ) -> Arc<Self> {
        Arc::new(Self {
            jobs: Arc::clone(&self.jobs),
            store,
            agenda,
            sources,
            gates: self.gates.clone(),
            telemetry: self.telemetry.clone(),
            popularity,
            finished: self.finished.clone(),
            claim: self.claim,
            patience: self.patience,
            drain: self.drain.clone(),
            alone: Arc::clone(&self.alone),
            held: Arc::clone(&self.held),
            usage: self.usage.clone(),
        })
    }

    /// Warms the entries of a task; each ends by itself.
    pub async fn warm_chunk(self: Arc<Self>, chunk: Chunk) {
        let Some((name, job)) = self.jobs.jobs.get_key_value(chunk.job.as_str()) else {
            debug!(job = chunk.job, "no such job here: its entries stay on the agenda");
            return;
        };
        if self.drain.is_cancelled() {
            for Claimed { key, score, .. } in chunk.entries {
                self.end(name, Finished { key, score, next: Next::In(Duration::ZERO), outcome: None }, None);
            }
            return;
        }
        let time = freshness::taken_for(&self.jobs, job, self.claim);
        let till = Instant::now() + self.patience;
        let scores = loop {
            match self.agenda.take(name, &chunk.entries, time).await {
                Ok(scores) => break scores,
                // Who has rested finds out only now that the connection broke meanwhile.
                Err(_) if Instant::now() < till && !self.drain.is_cancelled() => tokio::time::sleep(INSIST).await,
                Err(e) => {
                    debug!(job = %name, "could not take a task's entries, they come due again: {e}");
                    return;
                }
            }
        };
        // As one task, so that they cost one; a panic is caught where an entry is warmed.
        let mut warming = FuturesUnordered::new();
        for (claimed, score) in chunk.entries.into_iter().zip(scores) {
            let Some(score) = score else { continue };
            // It says more than the claim did: whether it owes a look by now, and when it is due again, in Redis's time.
            let due = Due::from_score(score.parse().unwrap_or_default());
            let taken_at = due.at - freshness::millis(time);
            let taken = Taken {
                key: EntryKey::new(claimed.key),
                score,
                trigger: due.trigger,
                priority: due.priority,
                look: due.look,
                since: claimed.since,
                late: Duration::from_millis(u64::try_from(taken_at - claimed.since).unwrap_or(0)),
            };
            self.held.hold(taken.place(job), None);
            let span = debug_span!("warm", job = %name, key = %taken.key, trigger = %taken.trigger);
            warming.push(self.warm_taken(job, taken).instrument(span));
        }
        while warming.next().await.is_some() {}
    }

    async fn warm_taken(&self, job: &Arc<Job>, taken: Taken) {
        let begun = Instant::now();
        let warming = async { RedisResult::Ok(self.keep_old(job, &taken, self.warm(job, &taken).await?).await) };
        let ending = match AssertUnwindSafe(warming).catch_unwind().await {
            Ok(Ok(ending)) => ending,
            Ok(Err(e)) => {
                self.let_go(job, &taken).await;
                Ending::because(Outcome::Deferred, Next::In(SHORTLY), format!("redis: {e}"))
            }
            Err(_) => {
                self.let_go(job, &taken).await;
                error!(job = %job.name, key = %taken.key, "warming it panicked, it is not tried again: please report this");
                let reason = "warming it panicked, which is a fault of Samovar's: the log says where".to_owned();
                Ending::because(Outcome::Failed, Next::Dead(reason.clone()), reason)
            }
        };
        let Ending { outcome, next, reason, .. } = ending;
        self.telemetry.record(job, &taken.key, taken.trigger, outcome, reason.as_deref(), taken.late, begun.elapsed());
        if let Next::Dead(_) = next {
            self.telemetry.dead_letter(job);
        }
        let last = Last { key: taken.key.as_str().to_owned(), outcome, trigger: taken.trigger, reason };
        let finished =
            Finished { key: taken.key.as_str().to_owned(), score: taken.score, next, outcome: Some(outcome) };
        self.end(&job.name, finished, Some(last));
    }

    /// Gives back the lease of an entry whose warming broke off, so that the next try need not wait for its end. An
    /// invalidation that marked it has put its own mark on the value, or taken the entry off the agenda.
    async fn let_go(&self, job: &Job, taken: &Taken) {
        if let Some(token) = self.held.token(&taken.place(job))
            && let Err(e) = self.store.release(&taken.key, &token, None).await
        {
            debug!(key = %taken.key, "could not give back a lease, it ends by itself: {e}");
        }
    }

    /// One entry, from its inputs to its end.
    async fn warm(&self, job: &Arc<Job>, taken: &Taken) -> RedisResult<Ending> {
        let key = &taken.key;
        let Some(params) = job.key.read(key.as_str()) else {
            // By this job, nobody fetches it anew.
            if let at @ 1.. = self.invalidated(key).await? {
                self.store.invalidate(key, at, Removal::Evict).await?;
            }
            return Ok(Ending::because(Outcome::Gone, Next::Out, "the job's key pattern is another by now"));
        };
        if taken.trigger == Trigger::Expiry
            && !job.entries.lists(&params)
            && !self.popularity.wanted(job, key).await?
            && !self.is_invalidated(key).await?
        {
            return Ok(Ending::because(Outcome::Unread, Next::Out, "hardly anybody reads it: it is left to expire"));
        }
        if taken.trigger == Trigger::Settle
            && let Some(ending) = self.is_settled(job, key).await?
        {
            return Ok(ending);
        }
        self.remember(job, key, &params).await?;
        let mut inputs = match self.inputs(job, &params, taken.priority, taken.since).await? {
            Ok(inputs) => inputs,
            Err(Missing { key: input, hopeless: None }) => {
                let reason = format!("waits for its input {input}");
                return Ok(Ending::because(Outcome::Deferred, Next::In(INPUT_WAIT), reason));
            }
            Err(Missing { key: input, hopeless: Some(why) }) => {
                // A failure like any other, so that it does not wait for ever.
                let reason = Some(format!("its input {input} is missing: {why}"));
                return match self.store.lease(key, self.lease_time(job), Fresh::default()).await? {
                    Leased::Yes(lease) => self.give_up(job, taken, &lease, Outcome::Failed, Next::Out, reason).await,
                    Leased::Busy(_) | Leased::Fresh { .. } | Leased::Absent | Leased::WrongType(_) | Leased::Poison => {
                        Ok(Ending { reason, ..Ending::new(Outcome::Deferred, Next::In(INPUT_WAIT)) })
                    }
                };
            }
        };
        let mut admitted = None;
        if !self.still_made_from(job, key, &params, &inputs).await? {
            if let Some(input) = self.awaited_input(job, &params, taken.since + millis(taken.late)).await? {
                let reason = format!("waits for its input {input}, which was invalidated");
                return Ok(Ending::because(Outcome::Deferred, Next::In(INPUT_WAIT), reason));
            }
            // Others of such a job may need no request while nobody is asked: this one makes room.
            let patience = if job.may_hold_unasked() && self.is_closed(job) { Duration::ZERO } else { self.patience };
            admitted = match self.admit_any(job, key, &params, &inputs, taken.priority, Instant::now() + patience).await
            {
                Ok(admitted) => Some(admitted),
                Err(ending) => return Ok(ending),
            };
        }
        let outdated = self.is_outdated(job, key, &params).await?;
        let fresh = if outdated { Fresh::default() } else { fresh(job, taken) };
        let ask_score = self.agenda.ask_score(&job.name, key);
        let wary = Fresh { deadly: Some(SUSPECT_CRASHES), ..fresh };
        let (mut leased, mut score) = self.store.lease_and(key, self.lease_time(job), wary, &ask_score).await?;
        // Without a lease until it is its turn: whoever has one when the worker dies counts as what it died of.
        let alone = if let Leased::Poison = leased { self.alone.try_lock().ok() } else { None };
        if alone.is_some() {
            (leased, score) = self.store.lease_and(key, self.lease_time(job), fresh, &ask_score).await?;
        }
        let mut lease = match leased {
            Leased::Yes(lease) => lease,
            Leased::Busy(left) => {
                unused(admitted).await;
                // Its holder cannot end it on the agenda any more, where we hold it now.
                return Ok(Ending::new(Outcome::Busy, Next::In(left.min(SHORTLY))));
            }
            Leased::WrongType(kind) => {
                unused(admitted).await;
                return Ok(Ending::wrongtype(&format!("a {kind}")));
            }
            Leased::Poison => {
                unused(admitted).await;
                let reason = "its worker died: it is fetched alone";
                return Ok(Ending::because(Outcome::Deferred, Next::In(SHORTLY), reason));
            }
            Leased::Absent => {
                unused(admitted).await;
                return Ok(Ending::new(Outcome::Unchanged, Next::Out));
            }
            Leased::Fresh { now, expires, content_since } => {
                unused(admitted).await;
                if let Some(content_since) = content_since {
                    self.wake_outdated(key, content_since).await?;
                }
                if taken.trigger == Trigger::Demand {
                    // Somebody else wrote what an entry waits for that is made from it.
                    self.wake_waiting(key).await?;
                }
                let next = keep(job, key, expires);
                return Ok(Ending::new(Outcome::Unchanged, settled(job, taken, taken.trigger, now, next)));
            }
        };
        self.held.hold(taken.place(job), Some(lease.token.clone()));
        let crashes = lease.meta.as_ref().map_or(0, |meta| meta.note.crashes);
        if crashes >= POISON_CRASHES && taken.trigger != Trigger::Manual {
            unused(admitted).await;
            self.store.release(key, &lease.token, None).await?;
            let reason = poison_reason(crashes);
            return Ok(Ending::because(Outcome::Failed, Next::Dead(reason.clone()), reason));
        }
        // Whatever made it due, its fetch answers an invalidation, and what a foreign writer does about that is looked at.
        let mut trigger = match &lease.meta {
            Some(meta) if meta.invalidated > 0 => Trigger::Invalidation,
            _ => taken.trigger,
        };
        if !taken.is_wanted(score) {
            // It had no lease that could be marked; fetched now, it would come back before the next warmup or demand.
            unused(admitted).await;
            self.store.release(key, &lease.token, None).await?;
            return Ok(Ending::because(Outcome::Fenced, Next::Out, "evicted while it waited for its upstream"));
        }
        if !job.inputs.is_empty() {
            // They may have changed while it waited for its upstream. The value counts as made when the lease began, so what it
            // is made from must not be older.
            let awaited = match &admitted {
                Some(_) => self.awaited_input(job, &params, lease.start).await?,
                None => None,
            };
            let found = match awaited {
                Some(key) => Err(Missing { key, hopeless: None }),
                None => self.inputs(job, &params, taken.priority, taken.since).await?,
            };
            inputs = match found {
                Ok(inputs) => inputs,
                Err(Missing { key: input, .. }) => {
                    unused(admitted).await;
                    let reason = Some(format!("waits for its input {input}"));
                    return self.give_up(job, taken, &lease, Outcome::Deferred, Next::In(INPUT_WAIT), reason).await;
                }
            };
        }
        let mut use_known = true;
        let mut storm = freshness::is_storm(&lease, trigger);
        // The tags under which earlier rounds have put it.
        let mut indexed: Vec<String> = Vec::new();
        for _ in 0..ROUNDS {
            let known = if use_known { known(job, &lease) } else { None };
            let asked =
                self.ask(job, key, &params, &inputs, known.as_ref(), &lease, taken.priority, admitted.take()).await;
            let answer = match asked {
                Ok(answer) => answer,
                Err(Ending { outcome, next, reason, .. }) => {
                    return self.give_up(job, taken, &lease, outcome, next, reason).await;
                }
            };
            let before = lease.meta.as_ref().map(|meta| &meta.note);
            let note = Note { trigger: Some(trigger), storm, ..Note::default() };
            let note = match &answer {
                Answer::Value(fetched) => match stale_if_error::tags(job, &params, &inputs, || fetched.value()) {
                    Ok(tags) => Note {
                        validators: fetched.validators.clone(),
                        tags,
                        tokens: fetched.tokens,
                        outcome: Some(Outcome::Warmed),
                        ..note
                    },
                    Err(reason) => {
                        return self.give_up(job, taken, &lease, Outcome::Failed, Next::Out, Some(reason)).await;
                    }
                },
                Answer::Unchanged => match self.tags_kept(job, key, &params, &inputs, before).await? {
                    Ok(tags) => Note {
                        validators: known.unwrap_or_default(),
                        tags,
                        tokens: before.map(|note| note.tokens).unwrap_or_default(),
                        outcome: Some(Outcome::Unchanged),
                        ..note
                    },
                    Err(reason) => {
                        return self.give_up(job, taken, &lease, Outcome::Failed, Next::Out, Some(reason)).await;
                    }
                },
                Answer::Gone => Note { outcome: Some(Outcome::Gone), ..note },
            };
            let outcome = note.outcome.unwrap_or(Outcome::Warmed);
            let written = self.write(job, key, &lease, &answer, &note, &indexed).await?;
            match written {
                Written::Done { .. } if outcome == Outcome::Gone => {
                    self.wake_waiting(key).await?;
                    let next = settled(job, taken, trigger, lease.start, Next::Out);
                    return Ok(Ending::because(Outcome::Gone, next, "the upstream no longer has it"));
                }
                Written::Done { expires, changed } => {
                    self.note_saved(job, &answer, &note);
                    let known = before.map(|before| before.tags.as_slice()).unwrap_or_default();
                    let gone = known.iter().chain(&indexed).filter(|tag| !note.tags.contains(tag));
                    let gone: Vec<String> = gone.cloned().collect();
                    self.store.untag(key, &gone, lease.start + millis(self.tagged_for(job, &lease))).await?;
                    if changed {
                        self.wake_dependants(key, taken.priority).await?;
                    } else {
                        if let Some(before) = &lease.meta {
                            self.wake_outdated(key, before.content_since).await?;
                        }
                        if taken.trigger == Trigger::Demand || trigger == Trigger::Invalidation {
                            // It had expired, or was invalidated, and is what it was.
                            self.wake_waiting(key).await?;
                        }
                    }
                    let next = settled(job, taken, trigger, expires - millis(job.ttl), keep(job, key, expires));
                    return Ok(Ending::new(outcome, next));
                }
                Written::Again(start) => {
                    trigger = Trigger::Invalidation;
                    storm = true;
                    indexed.extend(note.tags);
                    lease.start = start;
                    lease.deadline = Instant::now() + lease.time.mul_f32(0.9);
                    if self.awaited_input(job, &params, start).await?.is_some() {
                        break;
                    }
                    inputs = match self.inputs(job, &params, taken.priority, taken.since).await? {
                        Ok(inputs) => inputs,
                        Err(_) => break,
                    };
                    // What it was made from may be the same; that it was invalidated says that it is not enough.
                    use_known &= !matches!(job.sources[0], Source::Ai(_));
                }
                Written::Foreign => use_known = false,
                Written::WrongType => return Ok(Ending::wrongtype("something else than a string")),
                Written::Evicted => {
                    let next = self.after_others(job, key, lease.start).await?;
                    return Ok(Ending::because(Outcome::Fenced, next, "evicted or written by others meanwhile"));
                }
                Written::Lost => {
                    let next = Next::In(SHORTLY);
                    return Ok(Ending::because(Outcome::Fenced, next, "the lease ran out before the answer came"));
                }
            }
        }
        self.store.release(key, &lease.token, None).await?;
        let next = Next::In(Duration::ZERO);
        Ok(Ending::because(Outcome::Fenced, next, "invalidated again and again while it was fetched"))
    }

    /// Asks the sources in order until one answers, from the one on that is admitted already.
    #[expect(clippy::too_many_arguments, reason = "all of it is one request")]
    async fn ask(
        &self,
        job: &Arc<Job>,
        key: &EntryKey,
        params: &Params,
        inputs: &serde_json::Map<String, serde_json::Value>,
        known: Option<&Validators>,
        lease: &Lease,
        priority: Priority,
        mut admitted: Option<(usize, Permit)>,
    ) -> Result<Answer, Ending> {
        let mut failure = Ending::because(Outcome::Failed, Next::Out, "no source");
        let first = admitted.as_ref().map_or(0, |(source, _)| *source);
        for source in first..job.sources.len() {
            let known = if source == 0 { known } else { None };
            let ask = Ask { job, source, key, params, inputs, known, deadline: lease.deadline };
            if self.sources.unchanged_without_asking(&self.jobs, &ask) {
                unused(admitted.take()).await;
                return Ok(Answer::Unchanged);
            }
            let allowed = match admitted.take() {
                Some((_, permit)) => permit,
                // What is left must suffice for the answer: the upstream is not to blame if it does not.
                None => match self.admit(&ask, priority, lease.deadline - self.timeout(job, source)).await {
                    Ok(permit) => permit,
                    Err(ending) => {
                        failure = ending;
                        continue;
                    }
                },
            };
            let (answer, tokens_spent) = self.sources.fetch_with(&self.jobs, &ask, allowed).await;
            self.usage.note(&job.name, Spending { tokens_spent, ..Spending::default() });
            match answer {
                Ok(answer) => return Ok(answer),
                Err(FetchError::Busy(wait, reason)) => {
                    failure = Ending::because(Outcome::Deferred, Next::In(jitter(wait)), reason);
                }
                Err(FetchError::Refused(_, reason)) => {
                    let wait = self.closed_for(job, source).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
                    failure = Ending::because(Outcome::Deferred, Next::In(jitter(wait)), reason);
                }
                Err(e @ (FetchError::Upstream(_) | FetchError::Answer(_))) => {
                    failure = Ending::because(Outcome::Failed, Next::Out, e.to_string());
                }
            }
        }
        Err(failure)
    }

    /// Writes an answer, and tries until the lease's deadline: what was fetched, and perhaps paid for, is not dropped because
    /// Redis was away for a moment. Where a try was carried out and only its reply was lost, the next one finds the lease
    /// gone, and the entry turns out to be fresh.
    async fn write(
        &self,
        job: &Job,
        key: &EntryKey,
        lease: &Lease,
        answer: &Answer,
        note: &Note,
        indexed: &[String],
    ) -> RedisResult<Written> {
        loop {
            // Its tags first: an invalidation by one of them then finds the entry, or left its stamp before.
            let tagged = self.tag(job, key, lease, asked(job, lease, answer), &note.tags, indexed).await;
            let tried = match answer {
                _ if tagged.is_err() => tagged.map(|()| Written::Lost),
                Answer::Value(fetched) => self.store.commit(key, lease, &fetched.json, job.ttl, note).await,
                Answer::Unchanged if matches!(job.sources[0], Source::Ai(_)) => {
                    self.store.extend_unasked(key, lease, job.ttl, note).await
                }
                Answer::Unchanged => self.store.extend(key, lease, job.ttl, note).await,
                Answer::Gone => self.store.gone(key, lease, note).await,
            };
            match tried {
                Err(_) if Instant::now() + INSIST < lease.deadline => tokio::time::sleep(INSIST).await,
                done => return done,
            }
        }
    }

    /// Puts an entry under its tags; where an invalidation by one of them came since its content was `asked` for (Redis time,
    /// ms), marks what is older: the lease, or the value that is to be extended. `indexed` are the tags under which it was put
    /// before the lease began anew.
    async fn tag(
        &self,
        job: &Job,
        key: &EntryKey,
        lease: &Lease,
        asked: i64,
        tags: &[String],
        indexed: &[String],
    ) -> RedisResult<()> {
        if tags.is_empty() {
            return Ok(());
        }
        // An invalidation finds what had the tag before by itself; in a storm it is held off while this fetch lands.
        let had = lease.meta.as_ref().filter(|meta| meta.is_of(lease.pexpiretime));
        let finds = |tag: &String| indexed.contains(tag) || had.is_some_and(|meta| meta.note.tags.contains(tag));
        let stamps = self.store.tag(key, tags, self.tagged_for(job, lease)).await?;
        let stamps = tags.iter().zip(stamps).filter_map(|(tag, stamp)| {
            stamp.filter(|stamp| stamp.at >= asked && (stamp.removal == Removal::Evict || !finds(tag)))
        });
        match stamps.max_by_key(|stamp| stamp.at) {
            Some(stamp) => self.store.fence(key, stamp).await,
            None => Ok(()),
        }
    }

    /// For how long an entry is found under its tags: longer than its value lives.
    fn tagged_for(&self, job: &Job, lease: &Lease) -> Duration {
        job.ttl + job.warm.stale_if_error + lease.time
    }

    /// How an entry ends that is only looked at once more, if that is all: there is no value, or one of ours that holds.
    async fn is_settled(&self, job: &Job, key: &EntryKey) -> RedisResult<Option<Ending>> {
        let looked = self.store.look(std::slice::from_ref(key)).await?.pop();
        Ok(match looked {
            Some((-2, _)) => Some(Ending::new(Outcome::Unchanged, Next::Out)),
            Some((expires, Some(meta))) if meta.is_of(expires) && meta.invalidated == 0 && meta.outlived == 0 => {
                Some(Ending::new(Outcome::Unchanged, keep(job, key, expires)))
            }
            _ => None,
        })
    }

    /// The next time of an entry that somebody else wrote or removed during a fetch that began at `start` (Redis time, ms): as
    /// the value there comes to an end, or as one would that were fetched now. Then it is seen whether it is wanted still. An
    /// eviction takes it off the agenda itself.
    async fn after_others(&self, job: &Job, key: &EntryKey, start: i64) -> RedisResult<Next> {
        let looked = self.store.look(std::slice::from_ref(key)).await?.pop();
        let expires = match looked {
            Some((-2, _)) | None => start + millis(job.ttl),
            Some((expires, _)) => expires,
        };
        Ok(match keep(job, key, expires) {
            // A short life is theirs for a half at least.
            Next::At(at) => Next::At(at.max(start + (expires - start) / 2)),
            next => next,
        })
    }

    /// Whether an invalidation of the entry is not yet answered.
    async fn is_invalidated(&self, key: &EntryKey) -> RedisResult<bool> {
        Ok(self.invalidated(key).await? > 0)
    }

    /// The time of an invalidation of the entry that is not yet answered (Redis time, ms); 0 for none.
    async fn invalidated(&self, key: &EntryKey) -> RedisResult<i64> {
        let looked = self.store.look(std::slice::from_ref(key)).await?.pop();
        Ok(looked.and_then(|(_, meta)| meta).map_or(0, |meta| meta.invalidated))
    }

    /// Ends a fetch without a value: notes the failure, and decides when to try again, or never.
    async fn give_up(
        &self,
        job: &Job,
        taken: &Taken,
        lease: &Lease,
        outcome: Outcome,
        next: Next,
        reason: Option<String>,
    ) -> RedisResult<Ending> {
        let reason = reason.map(|reason| reason.chars().take(REASON).collect::<String>());
        let mut note = lease.meta.as_ref().map(|meta| meta.note.clone()).unwrap_or_default();
        if taken.trigger == Trigger::Manual && outcome == Outcome::Failed && note.failures >= job.warm.attempts {
            note.failures = 0;
        }
        note.crashes = 0;
        note.outcome = Some(outcome);
        note.trigger = Some(taken.trigger);
        note.attempted = lease.start;
        note.reason.clone_from(&reason);
        let mut wait = Duration::ZERO;
        if outcome == Outcome::Failed {
            // An invalidation is answered at once, and changes nothing about the tries: neither does it use them up.
            // A retry later than any is one of a clock that ran ahead.
            let early = note.failures > 0
                && lease.start < note.retry
                && note.retry - lease.start <= millis(freshness::RETRY_PLAUSIBLE);
            note.failures = note.failures.saturating_add(u32::from(!early));
            if early {
                wait = Duration::from_millis(u64::try_from(note.retry - lease.start).unwrap_or(0));
            } else {
                wait = retry_after(note.failures);
                note.retry = lease.start + millis(wait);
            }
        }
        let mark = self.store.release(&taken.key, &lease.token, Some(&note)).await?;
        let next = match (mark, outcome) {
            (Some(Removal::Evict), _) => self.after_others(job, &taken.key, lease.start).await?,
            (_, Outcome::Failed) if note.failures >= job.warm.attempts => {
                Next::Dead(format!("failed {} times, last: {}", note.failures, reason.as_deref().unwrap_or("?")))
            }
            (_, Outcome::Failed) => Next::In(wait),
            _ => next,
        };
        Ok(Ending { outcome, next, reason, failures: note.failures })
    }

    /// Waits for the first source that admits a request.
    async fn admit_any(
        &self,
        job: &Arc<Job>,
        key: &EntryKey,
        params: &Params,
        inputs: &serde_json::Map<String, serde_json::Value>,
        priority: Priority,
        until: Instant,
    ) -> Result<(usize, Permit), Ending> {
        let mut source = 0;
        loop {
            let ask = Ask { job, source, key, params, inputs, known: None, deadline: until };
            match self.admit(&ask, priority, until).await {
                Ok(permit) => return Ok((source, permit)),
                Err(ending) if source + 1 == job.sources.len() || self.drain.is_cancelled() => return Err(ending),
                Err(_) => source += 1,
            }
        }
    }

    /// Waits for an upstream, or says how the entry ends that cannot. Nobody waits for a closed one who has a fallback.
    async fn admit(&self, ask: &Ask<'_>, priority: Priority, until: Instant) -> Result<Permit, Ending> {
        let (job, source) = (ask.job, ask.source);
        let upstream = job.sources[source].upstream();
        let Some(gate) = self.gates.get(upstream) else {
            let reason = format!("upstream {upstream} is not known here");
            return Err(Ending::because(Outcome::Deferred, Next::In(SHORTLY), reason));
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
                    None => tokio::time::sleep(LOOK).await,
                }
            }
        };
        tokio::select! {
            admitted = gate.admit_for(priority, until, cost) => {
                admitted.map_err(|refusal| refused(refusal.wait, gate.says(&refusal)))
            }
            wait = closed => Err(refused(wait, "is left alone for a while".to_owned())),
            () = self.drain.cancelled() => {
                Err(Ending::because(Outcome::Deferred, Next::In(Duration::ZERO), "drained"))
            }
        }
    }

    /// Whether the upstreams of all of a job's sources are known to admit nothing.
    fn is_closed(&self, job: &Job) -> bool {
        (0..job.sources.len()).all(|source| self.closed_for(job, source).is_some())
    }

    /// How long a source's upstream is known to admit nothing.
    fn closed_for(&self, job: &Job, source: usize) -> Option<Duration> {
        self.gates.get(job.sources[source].upstream())?.closed_for()
    }

    fn lease_time(&self, job: &Job) -> Duration {
        freshness::lease_time(&self.jobs, job)
    }

    /// How long a source's answer may take.
    fn timeout(&self, job: &Job, source: usize) -> Duration {
        self.jobs.timeout(job.sources[source].upstream())
    }

    fn end(&self, job: &JobName, finished: Finished, last: Option<Last>) {
        self.held.end(&(job.clone(), EntryKey::new(finished.key.as_str()), finished.score.clone()));
        // The finisher outlives the warmer; without it the entries come due again by themselves.
        let _ = self.finished.send((job.clone(), finished, last));
    }

    /// Entries in hand.
    pub fn in_hand(&self) -> usize {
        self.held.count()
    }

    /// Hands back what is still in hand, so that another worker takes it at once. Call it when nothing is warmed any more.
    pub async fn hand_back(&self) {
        for ((job, key, score), token) in self.held.take() {
            if let Some(token) = token
                && let Err(e) = self.store.release(&key, &token, None).await
            {
                warn!(%key, "could not give back a lease, it ends by itself: {e}");
            }
            let finished =
                Finished { key: key.as_str().to_owned(), score, next: Next::In(Duration::ZERO), outcome: None };
            let _ = self.finished.send((job, finished, None));
        }
    }

    /// Notes what an unchanged value saved.
    fn note_saved(&self, job: &Job, answer: &Answer, note: &Note) {
        if !matches!(answer, Answer::Unchanged) {
            return;
        }
        let saved = match job.sources[0] {
            Source::Ai(_) => Spending { tokens_saved: note.tokens, calls_saved: 1, ..Spending::default() },
            Source::Http(_) => Spending { not_modified: 1, ..Spending::default() },
        };
        self.usage.note(&job.name, saved);
    }

    /// Whether an AI value is made from the same as now, so that nobody need be asked.
    async fn still_made_from(
        &self,
        job: &Arc<Job>,
        key: &EntryKey,
        params: &Params,
        inputs: &serde_json::Map<String, serde_json::Value>,
    ) -> RedisResult<bool> {
        if !matches!(job.sources[0], Source::Ai(_)) {
            return Ok(false);
        }
        let looked = self.store.look(std::slice::from_ref(key)).await?;
        let Some((expires, Some(meta))) = looked.into_iter().next() else { return Ok(false) };
        if !meta.is_of(expires) || meta.invalidated > 0 {
            return Ok(false);
        }
        let known = Some(&meta.note.validators);
        let ask = Ask { job, source: 0, key, params, inputs, known, deadline: Instant::now() };
        Ok(self.sources.unchanged_without_asking(&self.jobs, &ask))
    }
}

/// When the content was asked for that an answer stands for (Redis time, ms): what AI made is kept with nobody asked.
fn asked(job: &Job, lease: &Lease, answer: &Answer) -> i64 {
    match answer {
        Answer::Unchanged if matches!(job.sources[0], Source::Ai(_)) => {
            lease.meta.as_ref().map_or(lease.start, |meta| meta.asked)
        }
        Answer::Value(_) | Answer::Unchanged | Answer::Gone => lease.start,
    }
}

/// Gives a permit back for which nothing was asked: it says nothing about the upstream.
async fn unused(admitted: Option<(usize, Permit)>) {
    if let Some((_, permit)) = admitted {
        permit.done(Ended::Unused).await;
    }
}

#[cfg(test)]
mod tests;
