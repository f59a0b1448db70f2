//! Evictions: under an `allkeys-*` policy Redis may evict Samovar's own keys, and says so to nobody.
//!
//! A job's agenda that was there and is not, while Redis evicts, may have been evicted: the job is then warmed up, which puts
//! on the agenda what belongs there and fetches only what is missing. So it is, from time to time, as long as Redis goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;
use tracing::{debug, warn};

use crate::job::{JobName, Jobs};
use crate::redis::{Connection, Keys};

/// How often all jobs are warmed up while Redis goes on to evict, since it may have evicted more than is seen; and how often
/// that is told.
const AGAIN: Duration = Duration::from_secs(600);

/// What one worker has seen.
#[derive(Debug)]
pub struct Evictions {
    redis: Connection,
    keys: Keys,
    jobs: Arc<Jobs>,
    /// Keys that Redis had evicted at the last look.
    evicted: Option<u64>,
    /// Jobs whose agenda was there at the last look.
    there: BTreeSet<JobName>,
    all: Option<Instant>,
    told: Option<Instant>,
}

impl Evictions {
    /// Nothing was seen yet.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>) -> Self {
        Self { redis, keys, jobs, evicted: None, there: BTreeSet::new(), all: None, told: None }
    }

    /// Sees whether agendas were evicted, and marks their jobs for a warmup, which [`super::Cron::ensure`] then sets off;
    /// returns whether there are any.
    ///
    /// # Errors
    /// Redis's.
    pub async fn look(&mut self) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let (stats, memory): (String, String) =
            redis::pipe().cmd("INFO").arg("stats").cmd("INFO").arg("memory").query_async(&mut redis).await?;
        let mut ask = redis::pipe();
        for job in self.jobs.jobs.keys() {
            ask.exists(self.keys.agenda(job));
        }
        let there: Vec<bool> = ask.query_async(&mut redis).await?;
        let there: BTreeSet<JobName> =
            self.jobs.jobs.keys().zip(there).filter(|(_, there)| *there).map(|(job, _)| job.clone()).collect();
        let evicted = field(&stats, "evicted_keys").and_then(|count| count.parse().ok()).unwrap_or(0);
        let more = self.evicted.replace(evicted).is_some_and(|before| evicted > before);
        let before = std::mem::replace(&mut self.there, there);
        debug!(evicted, there = self.there.len(), "looked at evictions");
        let policy = field(&memory, "maxmemory_policy").unwrap_or_default();
        if !more || !policy.starts_with("allkeys") {
            return Ok(false);
        }
        let all = self.all.get_or_insert_with(Instant::now).elapsed() >= AGAIN;
        let lost: Vec<&str> = match all {
            true => self.jobs.jobs.keys().map(JobName::as_str).collect(),
            false => before.difference(&self.there).map(JobName::as_str).collect(),
        };
        if all {
            self.all = Some(Instant::now());
        }
        if lost.is_empty() {
            return Ok(false);
        }
        if self.told.is_none_or(|told| told.elapsed() >= AGAIN) {
            warn!(
                "Redis evicts whatever it likes, our own keys too: set maxmemory-policy to volatile-lru, not {policy}"
            );
            self.told = Some(Instant::now());
        }
        let () = redis::cmd("HDEL").arg(self.keys.digests()).arg(&lost).query_async(&mut redis).await?;
        Ok(true)
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
