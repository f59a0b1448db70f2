//! The dispatcher: from the agendas to the queue, with backpressure.
//!
//! It claims what is due, job by job, in chunks that the job's upstream admits within a fraction of the claim time, and
//! only as many entries as a job may have in hand, so that neither a backlog of millions nor a sick upstream fills the
//! queue. Every worker runs one; claiming is atomic, so they need not know of each other.

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

/// Entries in one task at most: few enough to be spread, many enough for the queue not to cost.
const CHUNK: usize = 32;
/// Entries claimed in one call.
const CLAIM: usize = 256;
/// Entries of a job in hand, for each fetch that a worker may have under way: enough to hide the way through the queue.
const DEPTH: usize = 6;
/// Entries in hand of a job whose upstream is closed: put off in one step, or looked at.
const PUT_OFF: usize = 64;
/// How long they are put off, at least and at most.
const PUT_OFF_TIME: (Duration, Duration) = (Duration::from_secs(10), LONGEST_WAIT);
/// How often the agendas are looked at when nobody says that something is due.
const IDLE: Duration = Duration::from_secs(5);
/// What part of what a job may have in hand must have ended before more is claimed: claims of few entries cost as much as of many.
const ROOM: usize = 4;
/// How often they are looked at while a job has all it may have in hand, or its upstream is closed.
const BUSY: Duration = Duration::from_millis(50);

/// Claims what is due and puts it on the queue.
#[derive(Debug)]
pub struct Dispatcher {
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// What is due.
    pub agenda: Agenda,
    /// Where old values live on while an upstream is closed.
    pub store: Store,
    /// Where it goes.
    pub queue: Queue,
    /// The ways to upstreams: nothing is claimed for one that is closed.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// What wakes it.
    pub wakeup: Arc<Wakeup>,
    /// Workers that live, as the last beat counted them.
    pub workers: Arc<AtomicUsize>,
    /// Fetches that a worker may have under way to one upstream.
    pub concurrency: usize,
    /// How long a claim holds.
    pub claim: Duration,
    /// Whether the agenda moves.
    pub loop_health: LoopHealth,
    /// What fails in single jobs.
    pub troubles: Troubles,
    /// Who is told of paused jobs.
    pub telemetry: Telemetry,
}

impl Dispatcher {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the dispatcher").showing(&self.loop_health);
        // When each job is looked at next; those that are being looked at, and of these, who rang meanwhile.
        let mut looks: BTreeMap<&JobName, Instant> = self.jobs.jobs.keys().map(|job| (job, Instant::now())).collect();
        let mut under_way = FuturesUnordered::new();
        let mut rung = BTreeSet::new();
        if looks.is_empty() {
            backoff.well();
        }
        let this = &self;
        while !stop.is_cancelled() {
            for job in self.wakeup.answer() {
                match looks.get_mut(&job) {
                    Some(look) => *look = Instant::now(),
                    None => _ = rung.insert(job),
                }
            }
            // Side by side, so that no job waits for the turns of others.
            for (name, _) in looks.extract_if(.., |_, look| *look <= Instant::now()) {
                under_way.push(async move {
                    let looked = this.dispatch(&this.jobs.jobs[name]).await;
                    if looked.is_ok() {
                        this.troubles.well(name.as_str());
                    }
                    (name, looked)
                });
            }
            let next = looks.values().min().copied().unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                Some((name, looked)) = under_way.next() => {
                    let looked = looked.or_else(|e| self.leave_alone(name, e));
                    let mut others = Vec::new();
                    match &looked {
                        Ok(_) if self.troubles.count() < self.jobs.jobs.len() => backoff.well(),
                        Ok(_) => self.loop_health.ill("it fails for every job"),
                        // Where Redis is away all of them fail, and wait once.
                        Err(e) => {
                            let rest = async {
                                while let Some(other) = under_way.next().await {
                                    others.push(other);
                                }
                            };
                            tokio::join!(backoff.ill(e, &stop), rest);
                        }
                    }
                    for (name, looked) in std::iter::once((name, looked)).chain(others) {
                        let wait = if rung.remove(name) { Duration::ZERO } else { looked.unwrap_or_default() };
                        looks.insert(name, Instant::now() + wait);
                    }
                }
                () = self.wakeup.all.notified() => {}
                () = tokio::time::sleep_until(next.into()) => {}
                () = stop.cancelled() => {}
            }
        }
        // What is claimed already goes on the queue, for whoever is there then.
        while under_way.next().await.is_some() {}
    }

    /// Notes what fails in one job only; returns when to look at it again.
    ///
    /// # Errors
    /// The same, where Redis fails as a whole.
    fn leave_alone(&self, job: &JobName, error: RedisError) -> RedisResult<Duration> {
        if is_of_keys(&error) { Ok(self.troubles.ill(job.as_str(), error)) } else { Err(error) }
    }

    /// Moves what is due of one job to the queue, as far as there is room; returns when to look again.
    ///
    /// # Errors
    /// Redis's; what was claimed comes due again.
    pub async fn dispatch(&self, job: &Job) -> RedisResult<Duration> {
        let closed = self.closed_for(job);
        // What needs no request does not wait: it would expire, and be paid for again. What needs one is refused at once. Where the
        // upstream may be open within seconds that is waited for, so that what is refused does not come back to be refused again.
        let looks = job.may_hold_unasked() && closed.is_some_and(|wait| wait >= PUT_OFF_TIME.0);
        if let Some(wait) = closed.filter(|_| !looks) {
            debug!(job = %job.name, "its upstream admits nothing for {}", duration::text(wait));
            return if job.warm.stale_if_error.is_zero() {
                Ok(wait.clamp(BUSY, IDLE))
            } else {
                self.put_off(job, wait).await
            };
        }
        let (chunk, mut cap) = self.bounds(job);
        if looks {
            cap = PUT_OFF;
        }
        let claims = self.agenda.claim(&job.name, CLAIM.min(cap.max(1)), cap, self.claim).await?;
        self.telemetry.paused(&job.name, claims.paused);
        if claims.entries.is_empty() {
            let wait = claims.next.unwrap_or(IDLE);
            if !wait.is_zero() {
                return Ok(wait.min(IDLE));
            }
            // Due, but not to be had: the job has in hand what it may have. Some of that ends elsewhere.
            if looks {
                return Ok(BUSY);
            }
            self.wakeup.want_room(&job.name, cap.div_ceil(ROOM * self.fleet()));
            return Ok(BUSY);
        }
        let mut found_room = true;
        let mut entries = claims.entries;
        // What is urgent goes before all that is on the queue: so what was named by itself comes after what was named with many.
        for priority in [Priority::Bulk, Priority::High, Priority::Normal] {
            let (these, rest) = entries.into_iter().partition(|entry| entry.due().priority == priority);
            entries = rest;
            found_room &= self.push(job, these, chunk, priority > Priority::Normal).await?;
        }
        Ok(match (found_room, looks) {
            (false, _) => IDLE,
            (true, true) => BUSY,
            (true, false) => Duration::ZERO,
        })
    }

    /// Puts off what is due of a job whose upstream is closed for `wait`, and lets old values live on until then; returns when
    /// to look again.
    async fn put_off(&self, job: &Job, wait: Duration) -> RedisResult<Duration> {
        // Not for so long that a raised budget goes unnoticed.
        let wait = wait.clamp(PUT_OFF_TIME.0, PUT_OFF_TIME.1);
        let claims = self.agenda.claim(&job.name, PUT_OFF, PUT_OFF, self.claim).await?;
        let more = claims.next.unwrap_or(IDLE);
        let keys: Vec<EntryKey> = claims.entries.iter().map(|entry| EntryKey::new(entry.key.as_str())).collect();
        // Then it waits for its upstream, is fetched, or comes here again.
        let time = wait.mul_f32(1.25) + self.claim + self.jobs.fetch_time(job);
        let lives = keys.iter().map(|key| self.store.extend_stale(key, time, job.warm.stale_if_error));
        futures_util::future::try_join_all(lives).await?;
        let back: Vec<Finished> = claims
            .entries
            .into_iter()
            .map(|Claimed { key, score, .. }| {
                let wait = wait.mul_f64(rand::random_range(1.0..=1.25));
                Finished { key, score, next: Next::In(wait), outcome: Some(Outcome::Deferred) }
            })
            .collect();
        if back.is_empty() {
            return Ok(wait.min(more).clamp(BUSY, IDLE));
        }
        self.agenda.finish(&job.name, &back, "").await?;
        Ok(BUSY)
    }

    /// Puts entries on the queue, and back on the agenda where it is full; returns whether all found room.
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

    /// How long nothing can be asked for this job: all its sources' upstreams are closed.
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

    /// Entries in one task, and entries of a job in hand in the whole fleet.
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
        // All workers get a share of what there is.
        let chunk = (cap / (workers * 2)).clamp(1, CHUNK);
        (chunk, cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_of_jobs_that_are_not_known() {
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
