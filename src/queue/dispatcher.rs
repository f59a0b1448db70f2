//! The dispatcher: moves due entries from the agendas to the queue, with backpressure.
//!
//! It claims due entries job by job, in chunks that the job's upstream admits within a fraction of the claim time. A
//! job has a bounded number of entries in flight, so neither a backlog of millions nor a failing upstream fills the
//! queue. Every worker runs a dispatcher. Claiming is atomic, so dispatchers need not know of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{RedisError, RedisResult};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::agenda::Wakeup;
use crate::agenda::{Agenda, Claimed, Finished, Next};
use crate::entry::Outcome;
use crate::entry::Priority;
use crate::entry::duration;
use crate::entry::{EntryKey, JobName, UpstreamName};
use crate::job::{Job, Jobs};
use crate::queue::{Chunk, Queue};
use crate::redis::{Backoff, is_of_keys};
use crate::redis::{LoopHealth, Troubles};
use crate::source::Gate;
use crate::source::LONGEST_WAIT;
use crate::store::Store;
use crate::telemetry::Telemetry;

/// The most entries in one task: few enough to spread over workers, many enough to make the queue cheap.
const CHUNK: usize = 32;
/// Entries claimed in one call; also the most in one task of entries that are asked for together.
const CLAIM: usize = 256;
/// The most entries of a job in flight for each worker where a request asks for many: none waits for the others for
/// long, and the fewest requests at once for which there may be more.
const SHARED_CAP: (usize, usize) = (4_096, 8);
/// Entries of a job in flight for each of a worker's concurrent fetches: enough to hide the latency of the queue.
const DEPTH: usize = 6;
/// The most entries in flight of a job whose upstream is closed. They are deferred in one step, or inspected.
const CLOSED_CAP: usize = 64;
/// The shortest and the longest time for which they are deferred.
const DEFER_TIME: (Duration, Duration) = (Duration::from_secs(10), LONGEST_WAIT);
/// The time between two claims of a job that no signal wakes.
const IDLE: Duration = Duration::from_secs(5);
/// The part of a job's entries in flight that must have ended before more are claimed, as a divisor: a claim of few
/// entries costs as much as one of many.
const ROOM: usize = 4;
/// The time between two claims of a job that has all its entries in flight, or whose upstream is closed.
const BUSY: Duration = Duration::from_millis(50);

/// Claims due entries and puts them on the queue.
#[derive(Debug)]
pub struct Dispatcher {
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// The agendas.
    pub agenda: Agenda,
    /// Extends old values while an upstream is closed.
    pub store: Store,
    /// The queue.
    pub queue: Queue,
    /// The gates to upstreams: no entry is claimed for a closed one.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// Wakes the loop.
    pub wakeup: Arc<Wakeup>,
    /// The number of live workers by the last beat.
    pub workers: Arc<AtomicUsize>,
    /// The most concurrent fetches of a worker to one upstream.
    pub concurrency: usize,
    /// The time that a claim holds.
    pub claim: Duration,
    /// The health of this loop.
    pub loop_health: LoopHealth,
    /// Failures of single jobs.
    pub troubles: Troubles,
    /// Is told of paused jobs.
    pub telemetry: Telemetry,
}

impl Dispatcher {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the dispatcher").showing(&self.loop_health);
        // When each job is dispatched next; the dispatches under way; jobs that were woken during theirs.
        let mut turns: BTreeMap<&JobName, Instant> = self.jobs.jobs.keys().map(|job| (job, Instant::now())).collect();
        let mut under_way = FuturesUnordered::new();
        let mut woken = BTreeSet::new();
        if turns.is_empty() {
            backoff.well();
        }
        let this = &self;
        while !stop.is_cancelled() {
            for job in self.wakeup.answer() {
                match turns.get_mut(&job) {
                    Some(turn) => *turn = Instant::now(),
                    None => _ = woken.insert(job),
                }
            }
            // Side by side, so that no job waits for another.
            for (name, _) in turns.extract_if(.., |_, turn| *turn <= Instant::now()) {
                under_way.push(async move {
                    let wait = this.dispatch(&this.jobs.jobs[name]).await;
                    if wait.is_ok() {
                        this.troubles.well(name.as_str());
                    }
                    (name, wait)
                });
            }
            let next = turns.values().min().copied().unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                Some((name, wait)) = under_way.next() => {
                    let wait = wait.or_else(|e| self.isolate(name, e));
                    let mut others = Vec::new();
                    match &wait {
                        Ok(_) if self.troubles.count() < self.jobs.jobs.len() => backoff.well(),
                        Ok(_) => self.loop_health.ill("it fails for every job"),
                        // While Redis is away all dispatches fail; the loop waits once for all.
                        Err(e) => {
                            let rest = async {
                                while let Some(other) = under_way.next().await {
                                    others.push(other);
                                }
                            };
                            tokio::join!(backoff.ill(e, &stop), rest);
                        }
                    }
                    for (name, wait) in std::iter::once((name, wait)).chain(others) {
                        let wait = if woken.remove(name) { Duration::ZERO } else { wait.unwrap_or_default() };
                        turns.insert(name, Instant::now() + wait);
                    }
                }
                () = self.wakeup.all.notified() => {}
                () = tokio::time::sleep_until(next.into()) => {}
                () = stop.cancelled() => {}
            }
        }
        // Entries that are claimed already go on the queue, for other workers.
        while under_way.next().await.is_some() {}
    }

    /// Notes an error that concerns one job only; returns the wait before its next dispatch.
    ///
    /// # Errors
    /// The given one, where Redis fails as a whole.
    fn isolate(&self, job: &JobName, error: RedisError) -> RedisResult<Duration> {
        if is_of_keys(&error) { Ok(self.troubles.ill(job.as_str(), error)) } else { Err(error) }
    }

    /// Moves due entries of one job to the queue, as far as there is room; returns the wait before its next dispatch.
    ///
    /// # Errors
    /// Redis's; the next call claims anew what this one has claimed.
    pub async fn dispatch(&self, job: &Job) -> RedisResult<Duration> {
        let closed = self.closed_for(job);
        // An entry that needs no request must not wait, or it expires and is paid for again. So the entries are
        // inspected: the warmer keeps such a value and defers the others at once. Where the upstream may open within
        // seconds, the job waits for that instead, so that no entry is deferred again and again.
        let inspects = job.may_hold_unasked() && closed.is_some_and(|wait| wait >= DEFER_TIME.0);
        if let Some(wait) = closed.filter(|_| !inspects) {
            debug!(job = %job.name, "its upstreams are closed for {}; nothing is claimed", duration::text(wait));
            return if job.warm.stale_if_error.is_zero() {
                Ok(wait.clamp(BUSY, IDLE))
            } else {
                self.defer(job, wait).await
            };
        }
        let (chunk, mut cap) = self.bounds(job);
        if inspects {
            cap = CLOSED_CAP;
        }
        // Whole tasks, so that entries that are asked for together are claimed together.
        let most = if job.at_once() > 1 { CLAIM / chunk * chunk } else { CLAIM };
        let claims = self.agenda.claim(&job.name, most.min(cap.max(1)), cap, self.claim).await?;
        self.telemetry.paused(&job.name, claims.paused);
        if claims.entries.is_empty() {
            let wait = claims.next.unwrap_or(IDLE);
            if !wait.is_zero() {
                return Ok(wait.min(IDLE));
            }
            // Some are due, but the job has as many in flight as it may. They may end at other workers.
            if inspects {
                return Ok(BUSY);
            }
            self.wakeup.want_room(&job.name, cap.div_ceil(ROOM * self.fleet()));
            return Ok(BUSY);
        }
        let pushed = self.push_all(job, claims.entries, chunk).await;
        Ok(match (self.or_abandon(job, pushed)?, inspects) {
            (false, _) => IDLE,
            (true, true) => BUSY,
            (true, false) => Duration::ZERO,
        })
    }

    /// Has the next claim claim anew what this one has claimed, where Redis has failed: the entries may be neither on
    /// the queue nor handed back. Where only a key is of another type, that would fail again.
    fn or_abandon<T>(&self, job: &Job, done: RedisResult<T>) -> RedisResult<T> {
        if done.as_ref().is_err_and(|error| !is_of_keys(error)) {
            self.agenda.abandon(&job.name);
        }
        done
    }

    /// Puts claimed entries on the queue; returns true where all found room.
    async fn push_all(&self, job: &Job, mut entries: Vec<Claimed>, chunk: usize) -> RedisResult<bool> {
        let mut found_room = true;
        // Each push of urgent entries goes before all that is queued, so the highest priority is pushed after bulk.
        for priority in [Priority::Bulk, Priority::High, Priority::Normal] {
            let (these, rest) = entries.into_iter().partition(|entry| entry.due().priority == priority);
            entries = rest;
            found_room &= self.push(job, these, chunk, priority > Priority::Normal).await?;
        }
        Ok(found_room)
    }

    /// Defers due entries of a job whose upstreams are closed for `wait`, and keeps their old values until then;
    /// returns the wait before the job's next dispatch.
    async fn defer(&self, job: &Job, wait: Duration) -> RedisResult<Duration> {
        // Not so long that a raised budget goes unnoticed.
        let wait = wait.clamp(DEFER_TIME.0, DEFER_TIME.1);
        let claims = self.agenda.claim(&job.name, CLOSED_CAP, CLOSED_CAP, self.claim).await?;
        if claims.entries.is_empty() {
            return Ok(wait.min(claims.next.unwrap_or(IDLE)).clamp(BUSY, IDLE));
        }
        let put_off = self.put_off(job, claims.entries, wait).await;
        self.or_abandon(job, put_off)?;
        Ok(BUSY)
    }

    /// Keeps the old values of claimed entries for `wait`, and hands the entries back until then.
    async fn put_off(&self, job: &Job, entries: Vec<Claimed>, wait: Duration) -> RedisResult<()> {
        let keys: Vec<EntryKey> = entries.iter().map(|entry| EntryKey::new(entry.key.as_str())).collect();
        // By then the entry has waited for its upstream and is fetched, or has come here again.
        let time = wait.mul_f32(1.25) + self.claim + self.jobs.fetch_time(job);
        let lives = keys.iter().map(|key| self.store.extend_stale(key, time, job.warm.stale_if_error));
        futures_util::future::try_join_all(lives).await?;
        let back: Vec<Finished> = entries
            .into_iter()
            .map(|Claimed { key, score, .. }| {
                let wait = wait.mul_f64(rand::random_range(1.0..=1.25));
                Finished { key, score, next: Next::In(wait), outcome: Some(Outcome::Deferred) }
            })
            .collect();
        self.agenda.finish(&job.name, &back, "").await
    }

    /// Puts entries on the queue, and back on the agenda where it is full; returns true where all found room.
    async fn push(&self, job: &Job, entries: Vec<Claimed>, chunk: usize, front: bool) -> RedisResult<bool> {
        if entries.is_empty() {
            return Ok(true);
        }
        let name = job.name.as_str();
        let chunks: Vec<Chunk> =
            entries.chunks(chunk).map(|part| Chunk { job: name.to_owned(), entries: part.to_vec() }).collect();
        let taken = self.queue.push(&chunks, front).await?;
        let back: Vec<Finished> = chunks
            .into_iter()
            .skip(taken)
            .flat_map(|chunk| chunk.entries)
            .map(|Claimed { key, score, .. }| Finished { key, score, next: Next::In(IDLE), outcome: None })
            .collect();
        if !back.is_empty() {
            self.agenda.finish(&job.name, &back, "").await?;
        }
        Ok(back.is_empty())
    }

    /// Returns how long the upstreams of all the job's sources stay closed; `None` where one is open.
    fn closed_for(&self, job: &Job) -> Option<Duration> {
        let mut shortest = None;
        for source in &job.sources {
            let wait = self.gates.get(source.upstream()?)?.closed_for()?;
            shortest = Some(shortest.map_or(wait, |other: Duration| other.min(wait)));
        }
        shortest
    }

    fn fleet(&self) -> usize {
        self.workers.load(Ordering::Relaxed).max(1)
    }

    /// Returns the most entries in one task, and the most entries of the job in flight in the fleet.
    fn bounds(&self, job: &Job) -> (usize, usize) {
        let workers = self.fleet();
        let mut cap = self.concurrency.saturating_mul(DEPTH).saturating_mul(workers);
        if let Some(upstream) = job.sources.first().and_then(|source| self.jobs.upstreams.get(source.upstream()?)) {
            let share = self.claim / 4;
            if let Some(rate) = upstream.rate {
                let admitted = share.as_secs_f64() / rate.per.as_secs_f64() * f64::from(rate.count);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and bounded")]
                let admitted = admitted.min(1e6) as usize;
                cap = cap.min(admitted.max(1));
            }
            if let Some(concurrency) = upstream.concurrency {
                cap = cap.min((concurrency as usize).saturating_mul(DEPTH));
            }
        }
        let at_once = job.at_once();
        if at_once > 1 {
            // A task is a request, or a part of one that is as large as the others.
            let chunk = at_once.div_ceil(at_once.div_ceil(CLAIM));
            let most = SHARED_CAP.0.max(SHARED_CAP.1 * at_once).saturating_mul(workers);
            let cap = cap.saturating_mul(at_once).min(most);
            return (chunk, cap);
        }
        // Every worker gets a share.
        let chunk = (cap / (workers * 2)).clamp(1, CHUNK);
        (chunk, cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakeups_for_unknown_jobs_are_not_kept() {
        let text = "key = \"art:{name}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1/{{ name }}\"\n";
        let jobs = Jobs::parse(&[("art.toml".to_owned(), text.to_owned())], Duration::from_secs(60), &|_| None);
        let wakeup = Wakeup::of(&Arc::new(jobs.unwrap()));
        for n in 0..100_000 {
            wakeup.wake(&format!("unknown-{n}"));
            wakeup.wake("art");
        }
        assert_eq!(wakeup.answer(), BTreeSet::from([JobName::new("art")]));
        assert!(wakeup.answer().is_empty());
    }
}
