//! Reads counted for the fleet: hits and misses of each job's keys.
//!
//! A read counts for the job that owns its key, as workers describe their jobs in Redis (`samovar:jobs`). A key of no
//! described job counts for none. Every second the sums are added to `samovar:reported:{JOB}`, if there are any; no
//! read waits for that. The descriptions are read when the cache is built, and again while there are reads.
//!
//! On failure: while a master's breaker is open, the counts of its jobs wait, for ten seconds at most, because a report
//! counts as reads of the minute in which it arrives. Later ones are dropped and counted
//! ([`super::Stats::unreported_reads`]), and so are those of a report that Redis did not answer, because Redis may have
//! them. After a refusal nothing is sent for a minute. The counts of a process's last second are lost.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{RedisResult, Value};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::Error;
use super::link::{Guarded, Link};
use crate::entry::JobName;
use crate::protocol::KeyPattern;

/// The interval between two reports.
const EVERY: Duration = Duration::from_secs(1);
/// The age from which the descriptions of jobs are read again, and the age if there are none.
const FRESH: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// The age from which counts are dropped: later, they would count as reads of another minute.
const LATE: Duration = Duration::from_secs(10);
/// The pause after a refusal: Redis notes each one in its ACL log.
const REFUSED: Duration = Duration::from_secs(60);
/// The life of a job's sums after the last report, in seconds.
const KEPT: i64 = 72 * 3_600;
/// The most causes of refusals that are logged, each once.
const CAUSES: usize = 10;
/// The fields of a report.
const FIELDS: [&str; 3] = ["hits", "misses", "stale"];

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A value of Redis or of the near cache.
    Hit,
    /// No value.
    Miss,
    /// A value of the near cache, while Redis did not answer: it may be out of date.
    Unchecked,
}

/// The reads of all caches that share a connection.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// The described jobs, the one that was described last first.
    jobs: RwLock<Arc<Vec<Arc<Counted>>>>,
    /// `true` if there was a read since the descriptions were read.
    is_used: AtomicBool,
    refusals: Mutex<Refusals>,
}

/// The errors with which Redis answered reports, or the question for jobs.
#[derive(Debug, Default)]
struct Refusals {
    last: Option<Instant>,
    /// The causes that were logged.
    told: HashSet<String>,
}

/// The reads of one job that are not reported yet.
#[derive(Debug)]
struct Counted {
    job: JobName,
    key: KeyPattern,
    /// In the order of [`FIELDS`].
    counts: [AtomicU64; 3],
    /// When the reporter first saw these counts.
    waiting: Mutex<Option<Instant>>,
}

/// The jobs whose sums are on one master.
struct Batch<'a> {
    at: Guarded<'a>,
    jobs: Vec<Arc<Counted>>,
}

impl Counted {
    fn new(job: JobName, key: KeyPattern) -> Self {
        Self { job, key, counts: Default::default(), waiting: Mutex::default() }
    }

    /// Returns how long counts wait; `None` without any.
    fn waits(&self) -> Option<Duration> {
        let is_empty = self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0);
        (!is_empty).then(|| self.waiting().get_or_insert_with(Instant::now).elapsed())
    }

    /// Takes the counts.
    fn take(&self) -> [u64; 3] {
        *self.waiting() = None;
        self.counts.each_ref().map(|count| count.swap(0, Ordering::Relaxed))
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Instant>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a job's description that is needed here.
#[derive(Deserialize)]
struct Described {
    key: String,
    #[serde(default)]
    since_ms: i64,
}

impl Reads {
    /// Counts a read of a whole key.
    pub(super) fn count(&self, key: &str, found: Found) {
        // Without a write, the line stays in the caches of all processors.
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner);
        let Some(job) = jobs.iter().find(|job| job.key.owns(key)) else { return };
        let fields: &[usize] = match found {
            Found::Hit => &[0],
            Found::Miss => &[1],
            Found::Unchecked => &[0, 2],
        };
        for field in fields {
            job.counts[*field].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reports until the task is aborted.
    pub(super) async fn run(self: Arc<Self>, link: Arc<Link>) {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut learned = Instant::now();
        loop {
            every.tick().await;
            self.drop_late(&link);
            if self.is_refused() {
                continue;
            }
            self.report(&link).await;
            let age = if self.jobs().is_empty() { FRESH.1 } else { FRESH.0 };
            if learned.elapsed() > age && self.is_used.swap(false, Ordering::Relaxed) {
                self.learn(&link).await;
                learned = Instant::now();
            }
        }
    }

    /// Reads the descriptions of jobs. If that fails, the earlier ones stay.
    pub(super) async fn learn(&self, link: &Link) {
        let mut ask = redis::cmd("HGETALL");
        ask.arg(link.names.jobs());
        match link.at(&link.names.jobs()).ask_one::<HashMap<Vec<u8>, Vec<u8>>>(&ask).await {
            Ok(described) => self.know(described),
            Err(e) => self.tell(&e),
        }
    }

    /// Counts for these jobs from now on. The counts of a job that stays go on.
    fn know(&self, described: HashMap<Vec<u8>, Vec<u8>>) {
        let earlier = self.jobs();
        let mut jobs = Vec::new();
        for (name, text) in described {
            let Ok(name) = String::from_utf8(name) else { continue };
            let Ok(Described { key, since_ms }) = serde_json::from_slice(&text) else { continue };
            let Ok(key) = KeyPattern::parse(&key) else { continue };
            let same = earlier.iter().find(|job| job.job.as_str() == name && job.key == key).cloned();
            let new = || Arc::new(Counted::new(JobName::new(name), key));
            jobs.push((since_ms, same.unwrap_or_else(new)));
        }
        jobs.sort_by(|(a, job), (b, other)| b.cmp(a).then_with(|| job.job.cmp(&other.job)));
        let jobs = Arc::new(jobs.into_iter().map(|(_, job)| job).collect());
        *self.jobs.write().unwrap_or_else(PoisonError::into_inner) = jobs;
    }

    /// Adds the counts to the fleet's, if there are any, with one call for each master.
    async fn report(&self, link: &Link) {
        let mut batches: Vec<Batch<'_>> = Vec::new();
        for job in self.jobs().iter().filter(|job| job.waits().is_some()) {
            let at = link.at(&link.names.reported(&job.job));
            match batches.iter_mut().find(|batch| batch.at.is_same(&at)) {
                Some(batch) => batch.jobs.push(Arc::clone(job)),
                None => batches.push(Batch { at, jobs: vec![Arc::clone(job)] }),
            }
        }
        join_all(batches.into_iter().map(|batch| self.send(link, batch))).await;
    }

    /// Sends the counts of some jobs. While the breaker is open, they stay.
    async fn send(&self, link: &Link, Batch { at, jobs }: Batch<'_>) {
        let mut sent = Vec::new();
        let call = async |mut redis| {
            let mut add = redis::pipe();
            add.ignore_errors();
            for job in &jobs {
                let key = link.names.reported(&job.job);
                for (field, count) in FIELDS.into_iter().zip(job.take()).filter(|(_, count)| *count > 0) {
                    add.hincr(&key, field, count);
                    // A stale hit is one of the hits.
                    sent.push(if field == FIELDS[2] { 0 } else { count });
                }
                add.expire(&key, KEPT);
                sent.push(0);
            }
            add.query_async::<Vec<RedisResult<Value>>>(&mut redis).await
        };
        let lost = match at.ask_once(call).await {
            Ok(answers) => {
                let lost = answers.into_iter().zip(&sent).filter_map(|(answer, count)| Some((answer.err()?, count)));
                lost.map(|(e, count)| {
                    self.tell(&Error::of(e));
                    *count
                })
                .sum()
            }
            Err(e) => {
                self.tell(&e);
                sent.iter().sum()
            }
        };
        self.lose(link, lost);
    }

    /// Drops counts that waited too long.
    fn drop_late(&self, link: &Link) {
        for job in self.jobs().iter().filter(|job| job.waits().is_some_and(|time| time > LATE)) {
            let [hits, misses, _] = job.take();
            self.lose(link, hits + misses);
        }
    }

    fn lose(&self, link: &Link, reads: u64) {
        link.counts.unreported_reads.add(usize::try_from(reads).unwrap_or(usize::MAX));
    }

    fn jobs(&self) -> Arc<Vec<Arc<Counted>>> {
        Arc::clone(&self.jobs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns `true` for a while after a refusal.
    fn is_refused(&self) -> bool {
        self.refusals().last.is_some_and(|last| last.elapsed() < REFUSED)
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a failure, and logs each cause of a refusal once.
    fn tell(&self, error: &Error) {
        let mut refusals = self.refusals();
        if !error.is_unavailable() {
            refusals.last = Some(Instant::now());
        }
        let is_new = refusals.told.len() < CAUSES && !refusals.told.contains(&error.to_string());
        if error.is_unavailable() || !is_new {
            debug!("reads are not reported: {error}");
            return;
        }
        refusals.told.insert(error.to_string());
        let remedy = match error {
            Error::Redis(e) if e.code() == Some("NOPERM") => "give the Redis user the rights in docs/redis.md",
            _ => "docs/protocol.md#hit-rates has what a report needs",
        };
        warn!(
            "reads are not reported, and the hit rate lacks them (next attempt in a minute): {error}; {remedy}, \
             or turn reports off with `Builder::report(false)`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(jobs: &[(&str, &str, i64)]) -> HashMap<Vec<u8>, Vec<u8>> {
        let text = |key: &str, since: i64| format!(r#"{{"key": "{key}", "since_ms": {since}}}"#).into_bytes();
        jobs.iter().map(|(name, key, since)| (name.as_bytes().to_vec(), text(key, *since))).collect()
    }

    fn counts(reads: &Reads) -> Vec<(String, [u64; 3])> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        reads.jobs().iter().map(|job| (job.job.to_string(), job.counts.each_ref().map(count))).collect()
    }

    #[test]
    fn a_read_counts_for_the_owner_described_last() {
        let reads = Reads::default();
        reads.know(described(&[("old", "art:{name}", 1), ("new", "art:{id}", 2), ("similar", "art:{id}:similar", 3)]));
        reads.count("art:1", Found::Hit);
        reads.count("art:1:similar", Found::Miss);
        reads.count("art:2", Found::Unchecked);
        reads.count("session:1", Found::Hit);
        let expected = [("similar", [0, 1, 0]), ("new", [2, 0, 1]), ("old", [0, 0, 0])];
        assert_eq!(counts(&reads), expected.map(|(name, counts)| (name.to_owned(), counts)));
    }

    #[test]
    fn counts_stay_when_descriptions_are_read_again() {
        let reads = Reads::default();
        reads.know(described(&[("art", "art:{name}", 1)]));
        reads.count("art:1", Found::Hit);
        let mut again = described(&[("art", "art:{name}", 2), ("bad", "{name}", 2)]);
        again.insert(b"worse".to_vec(), b"\xff".to_vec());
        again.insert(b"\xff".to_vec(), br#"{"key": "other:{name}"}"#.to_vec());
        reads.know(again);
        reads.count("art:1", Found::Hit);
        assert_eq!(counts(&reads), [("art".to_owned(), [2, 0, 0])]);
    }
}
