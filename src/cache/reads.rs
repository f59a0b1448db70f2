//! Reads counted for the fleet: hits and misses of each job's keys.
//!
//! A read counts for the job that owns its key, as workers describe their jobs in Redis (`samovar:jobs`). A key of no
//! described job counts for none. Every second the sums are added to `samovar:reported:{JOB}`, if there are any; no
//! read waits for that. The descriptions are read when the cache is built, and again while there are reads.
//!
//! On failure: sums wait while a breaker is open. Those of a report that Redis did not answer are dropped and counted
//! ([`super::Stats::unreported_reads`]), because Redis may have them. Those of a process's last second are lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::Error;
use super::link::Link;
use crate::entry::JobName;
use crate::protocol::KeyPattern;

/// The interval between two reports.
const EVERY: Duration = Duration::from_secs(1);
/// The age from which the descriptions of jobs are read again, and the age if there are none.
const FRESH: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
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
    /// `true` if it was logged that reads are not reported.
    is_told: AtomicBool,
}

/// The reads of one job that are not reported yet.
#[derive(Debug)]
struct Counted {
    job: JobName,
    key: KeyPattern,
    /// In the order of [`FIELDS`].
    counts: [AtomicU64; 3],
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
        self.is_used.store(true, Ordering::Relaxed);
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
            if link.breakers.any_is_open() {
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
        match link.at(&link.names.jobs()).ask_one::<HashMap<String, Vec<u8>>>(&ask).await {
            Ok(described) => self.know(described),
            Err(e) => self.tell(&e),
        }
    }

    /// Counts for these jobs from now on. The counts of a job that stays go on.
    fn know(&self, described: HashMap<String, Vec<u8>>) {
        let earlier = self.jobs();
        let mut jobs = Vec::new();
        for (name, text) in described {
            let Ok(Described { key, since_ms }) = serde_json::from_slice(&text) else { continue };
            let Ok(key) = KeyPattern::parse(&key) else { continue };
            let same = earlier.iter().find(|job| job.job.as_str() == name && job.key == key).cloned();
            let new = || Arc::new(Counted { job: JobName::new(name), key, counts: Default::default() });
            jobs.push((since_ms, same.unwrap_or_else(new)));
        }
        jobs.sort_by(|(a, job), (b, other)| b.cmp(a).then_with(|| job.job.cmp(&other.job)));
        let jobs = Arc::new(jobs.into_iter().map(|(_, job)| job).collect());
        *self.jobs.write().unwrap_or_else(PoisonError::into_inner) = jobs;
    }

    /// Adds the counts to the fleet's, if there are any.
    async fn report(&self, link: &Link) {
        let (mut add, mut sent) = (redis::pipe(), Vec::new());
        add.ignore_errors();
        for job in self.jobs().iter() {
            for (field, count) in FIELDS.iter().zip(&job.counts) {
                let count = count.swap(0, Ordering::Relaxed);
                if count > 0 {
                    add.hincr(link.names.reported(&job.job), *field, count);
                    // A stale hit is one of the hits.
                    sent.push(if *field == FIELDS[2] { 0 } else { count });
                }
            }
        }
        if sent.is_empty() {
            return;
        }
        let call = async |mut redis| add.query_async::<Vec<RedisResult<Value>>>(&mut redis).await;
        let answers = link.anywhere().ask_once(call).await;
        let lost: u64 = match answers {
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
        link.counts.unreported_reads.add(usize::try_from(lost).unwrap_or(usize::MAX));
    }

    fn jobs(&self) -> Arc<Vec<Arc<Counted>>> {
        Arc::clone(&self.jobs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Logs a failure, once for a user without the rights.
    fn tell(&self, error: &Error) {
        if error.is_unavailable() || self.is_told.swap(true, Ordering::Relaxed) {
            debug!("reads are not reported: {error}");
            return;
        }
        warn!(
            "reads are not reported, and no hit rate is known of them: {error}; give the Redis user the rights in \
             docs/redis.md, or turn reports off with `Builder::report(false)`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(jobs: &[(&str, &str, i64)]) -> HashMap<String, Vec<u8>> {
        let text = |key: &str, since: i64| format!(r#"{{"key": "{key}", "since_ms": {since}}}"#).into_bytes();
        jobs.iter().map(|(name, key, since)| ((*name).to_owned(), text(key, *since))).collect()
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
        again.insert("worse".to_owned(), b"\xff".to_vec());
        reads.know(again);
        reads.count("art:1", Found::Hit);
        assert_eq!(counts(&reads), [("art".to_owned(), [2, 0, 0])]);
    }
}
