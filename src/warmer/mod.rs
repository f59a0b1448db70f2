//! Warms entries: each from its lease over its fetch to its commit, and what becomes of it then.
//!
//! Responsibility: a task is a [`Chunk`] of claimed entries. The warmer takes each of them on the agenda (compare and
//! swap) and makes one attempt at it (`attempt`), so that a panic or a slow answer affects one entry only.
//!
//! Invariant: every attempt ends with an [`crate::entry::Outcome`] and a [`Next`], and holds neither lease nor permit
//! after its end. A request waits for its upstream before the lease, and ends before the lease does.
//!
//! On failure: an entry that a crash or an outage of Redis keeps from its end is due again when its claim runs out.

mod absence;
mod admission;
mod attempt;
mod bulk;
mod commit;
mod ending;
mod failure;
mod fetch;
mod finisher;
mod freshness;
mod guard;
mod in_flight;
mod inputs;
mod lag;
mod newer_file;
mod recheck;
mod round;
mod stale_if_error;
mod tags;
mod usage_buffer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span, warn};

use bulk::Gatherers;
use ending::Ending;
pub(crate) use failure::USED_UP;
pub use finisher::Finisher;
pub(crate) use freshness::retry_after;
use in_flight::{InFlight, Place};
pub use inputs::FRESH_INPUT_WAIT;
pub(crate) use inputs::is_of_input;
use usage_buffer::UsageBuffer;

use crate::agenda::{Agenda, Claimed, Due, Finished, Next};
use crate::entry::LastOutcome;
use crate::entry::{EntryKey, JobName, UpstreamName, excerpt};
use crate::entry::{Priority, Trigger, Version};
use crate::job::{Job, Jobs, Params};
use crate::popularity::Popularity;
use crate::queue::Chunk;
use crate::redis::{RedisTime, is_of_keys};
use crate::source::{Gate, Sources};
use crate::store::Store;
use crate::telemetry::Telemetry;

/// The wait of an entry that could not reach Redis, or whose lease ended too early.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// The wait of an entry for one of its inputs; the input's commit makes it due sooner.
pub const INPUT_WAIT: Duration = Duration::from_secs(15);
/// The longest reason of a job's last outcome, in characters. The metadata of an entry note less of it.
const LONGEST_REASON: usize = 2_000;
/// The wait before a command is sent again that Redis did not answer.
const RESEND_WAIT: Duration = Duration::from_millis(100);

/// An entry that this worker warms.
#[derive(Clone, Debug)]
struct Running {
    key: EntryKey,
    /// Its score on the agenda while it is ours; compares and swaps.
    score: String,
    trigger: Trigger,
    priority: Priority,
    /// When it became due.
    since: RedisTime,
    /// The time that it had been due when this worker took it.
    late: Duration,
}

impl Running {
    fn new(claimed: Claimed, score: String, time: Duration) -> Self {
        let due = Due::from_score(score.parse().unwrap_or_default());
        let taken_at = due.at - time;
        Self {
            key: EntryKey::new(claimed.key),
            score,
            trigger: due.trigger,
            priority: due.priority,
            since: claimed.since,
            late: taken_at.saturating_since(claimed.since),
        }
    }

    /// Returns its place among the entries in flight.
    fn place(&self, job: &Job) -> Place {
        (job.name.clone(), self.key.clone(), self.score.clone())
    }

    /// Tells by the entry's present score on the agenda that it is still to be fetched: it is ours, or due again for
    /// more than a recheck.
    fn is_wanted(&self, score: Option<f64>) -> bool {
        let ours = self.score.parse::<f64>().ok();
        score.is_some_and(|now| Some(now) == ours || Due::from_score(now).trigger != Trigger::Recheck)
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
    /// The groups of entries that are asked for together.
    gatherers: Gatherers,
    telemetry: Telemetry,
    popularity: Popularity,
    finished: mpsc::UnboundedSender<(JobName, Finished, Option<LastOutcome>)>,
    /// The claim time.
    claim: Duration,
    /// The longest wait of an entry for its upstream; then it makes room for others.
    admission_wait: Duration,
    /// Cancelled when the worker ends: no entry is begun after that.
    drain: CancellationToken,
    /// Locked by the one attempt that may crash the worker.
    suspect: Arc<tokio::sync::Mutex<()>>,
    in_flight: Arc<InFlight>,
    usage: UsageBuffer,
}

impl Warmer {
    /// Returns a warmer, and the loop that ends its entries on the agenda. `claim` is the claim time.
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
        let admission_wait = freshness::admission_wait(claim);
        let (suspect, in_flight) = (Arc::default(), Arc::default());
        let gatherers = bulk::gatherers(&jobs, &sources, &gates, &drain);
        let warmer = Self {
            jobs,
            store,
            agenda,
            sources,
            gates,
            gatherers,
            telemetry,
            popularity,
            finished,
            claim,
            admission_wait,
            drain,
            suspect,
            in_flight,
            usage,
        };
        (Arc::new(warmer), finisher)
    }

    /// Returns a warmer over other connections that shares its entries in flight, its gates and its finisher with this
    /// one. It brings its entries together by themselves, since connections belong to the threads that make them.
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
            gatherers: bulk::gatherers(&self.jobs, &sources, &self.gates, &self.drain),
            sources,
            gates: self.gates.clone(),
            telemetry: self.telemetry.clone(),
            popularity,
            finished: self.finished.clone(),
            claim: self.claim,
            admission_wait: self.admission_wait,
            drain: self.drain.clone(),
            suspect: Arc::clone(&self.suspect),
            in_flight: Arc::clone(&self.in_flight),
            usage: self.usage.clone(),
        })
    }

    /// Warms the entries of a task side by side.
    pub async fn warm_chunk(self: Arc<Self>, chunk: Chunk) {
        let Some((name, job)) = self.jobs.jobs.get_key_value(chunk.job.as_str()) else {
            debug!(job = chunk.job, "this worker does not know the job; its entries stay on the agenda");
            return;
        };
        if self.drain.is_cancelled() {
            for Claimed { key, score, .. } in chunk.entries {
                self.end(name, Finished { key, score, next: Next::In(Duration::ZERO), outcome: None }, None);
            }
            return;
        }
        let time = freshness::running_time(&self.jobs, job, self.claim);
        let Some(scores) = self.take(name, &chunk.entries, time).await else { return };
        let keys: Vec<EntryKey> = chunk.entries.iter().map(|claimed| EntryKey::new(claimed.key.as_str())).collect();
        self.store.recognise_moved(&keys).await;
        // All in one task of the executor, which is cheaper than one for each.
        let mut warming = FuturesUnordered::new();
        for (claimed, score) in chunk.entries.into_iter().zip(scores) {
            let Some(score) = score else { continue };
            let entry = Running::new(claimed, score, time);
            self.in_flight.hold(entry.place(job), None);
            let span = debug_span!("warm", job = %name, key = %entry.key, trigger = %entry.trigger);
            warming.push(self.warm(job, entry).instrument(span));
        }
        let warming = async { while warming.next().await.is_some() {} };
        tokio::join!(warming, self.give_back_owed());
    }

    /// Takes claimed entries for `time`; returns their new scores, `None` for an entry that is no longer claimed by us.
    /// Asks again while Redis does not answer, since it may have carried out the first call all the same.
    async fn take(&self, job: &JobName, entries: &[Claimed], time: Duration) -> Option<Vec<Option<String>>> {
        let begun = Instant::now();
        let mut again = None;
        loop {
            match self.agenda.take(job, entries, time, again).await {
                Ok(scores) => return Some(scores),
                // What the first call took would be due again by now.
                Err(e) if begun.elapsed() > time || self.drain.is_cancelled() => {
                    debug!(%job, "a task's entries could not be taken; they come due again: {e}");
                    return None;
                }
                Err(_) => tokio::time::sleep(RESEND_WAIT).await,
            }
            again = Some(begun.elapsed());
        }
    }

    /// Gives back the leases that Redis did not take back when their attempts ended.
    async fn give_back_owed(&self) {
        let owed = self.in_flight.take_owed();
        let back = owed.into_iter().map(async |(key, token, until)| self.give_back(key, token, until).await);
        back.collect::<FuturesUnordered<_>>().collect::<()>().await;
    }

    /// Gives a lease back. If Redis does not answer, it is remembered until `until`, when it has expired; so is one of
    /// which it is not known whether it was taken.
    async fn give_back(&self, key: EntryKey, token: String, until: Instant) {
        if let Err(e) = self.store.release(&key, &token, None).await {
            debug!(%key, "the lease is not given back yet: {e}");
            if !is_of_keys(&e) {
                self.in_flight.owe(key, token, until);
            }
        }
    }

    /// Makes one attempt at an entry and tells how it ended.
    async fn warm(&self, job: &Arc<Job>, entry: Running) {
        let begun = Instant::now();
        let ending = self.attempt(job, &entry).await;
        let Ending { outcome, next, reason, .. } = self.leave_to_newer_file(job, &entry, ending).await;
        let reason = reason.map(|reason| excerpt(&reason, LONGEST_REASON));
        self.telemetry.record(job, &entry.key, entry.trigger, outcome, reason.as_deref(), entry.late, begun.elapsed());
        if let Next::Dead(_) = next {
            self.telemetry.dead_letter(job);
        }
        let last = LastOutcome { key: entry.key.as_str().to_owned(), outcome, trigger: entry.trigger, reason };
        let finished =
            Finished { key: entry.key.as_str().to_owned(), score: entry.score, next, outcome: Some(outcome) };
        self.end(&job.name, finished, Some(last));
    }

    fn end(&self, job: &JobName, finished: Finished, last: Option<LastOutcome>) {
        self.in_flight.end(&(job.clone(), EntryKey::new(finished.key.as_str()), finished.score.clone()));
        // The finisher ends after the warmer; without it the entries come due again by themselves.
        let _ = self.finished.send((job.clone(), finished, last));
    }

    /// Returns the number of entries in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.count()
    }

    /// Hands back the entries whose attempts were cancelled, with their leases, so that another worker takes them at
    /// once. Call it when no attempt runs any more. Their permits go back with the next [`Gate::refresh`].
    pub async fn hand_back(&self) {
        for ((job, key, score), token) in self.in_flight.take() {
            if let Some(token) = token
                && let Err(e) = self.store.release(&key, &token, None).await
            {
                warn!(%key, "the lease could not be given back; it expires by itself: {e}");
            }
            let finished =
                Finished { key: key.as_str().to_owned(), score, next: Next::In(Duration::ZERO), outcome: None };
            let _ = self.finished.send((job, finished, None));
        }
        self.give_back_owed().await;
    }

    fn lease_time(&self, job: &Job) -> Duration {
        freshness::lease_time(&self.jobs, job)
    }

    /// Returns the longest time that a source's answer may take.
    fn timeout(&self, job: &Job, source: usize) -> Duration {
        self.jobs.timeout(&job.sources[source])
    }
}

/// Returns what a commit stores with a value: its tags and its version.
///
/// # Errors
/// The reason why a fetch with this value fails.
pub fn check_storable(
    job: &Job,
    params: &Params,
    inputs: &Map<String, Value>,
    value: &Value,
) -> Result<(Vec<String>, Option<Version>), String> {
    let tags = tags::render(job, params, inputs, || value.clone())?;
    Ok((tags, lag::render_version(job, params, inputs, || value.clone())?))
}

#[cfg(test)]
mod tests;
