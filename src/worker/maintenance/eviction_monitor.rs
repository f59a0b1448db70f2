//! Evictions: under an `allkeys-*` policy Redis may evict Samovar's own keys, and says so to nobody.
//!
//! A job's agenda that lost most of its entries, while Redis evicts, may have been evicted: the job is then warmed up, which puts
//! on the agenda what belongs there and fetches only what is missing. So are all jobs some time after Redis evicted anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;
use tracing::{debug, warn};

use crate::agenda::Agenda;
use crate::entry::JobName;
use crate::job::Jobs;
use crate::protocol::Keys;
use crate::redis::Connection;

/// How long after Redis evicted anything all jobs are warmed up, since it may have evicted more than is seen; and how often
/// that is told.
const AGAIN: Duration = Duration::from_secs(600);

/// What one worker has seen.
#[derive(Debug)]
pub struct Evictions {
    redis: Connection,
    keys: Keys,
    agenda: Agenda,
    jobs: Arc<Jobs>,
    /// Keys that Redis had evicted at the last look.
    evicted: Option<u64>,
    /// How many entries each agenda held at the last look.
    there: BTreeMap<JobName, usize>,
    /// Since when all jobs are owed a warmup.
    owed: Option<Instant>,
    told: Option<Instant>,
}

impl Evictions {
    /// Nothing was seen yet.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>) -> Self {
        let agenda = Agenda::new(redis.clone(), keys.clone());
        Self { redis, keys, agenda, jobs, evicted: None, there: BTreeMap::new(), owed: None, told: None }
    }

    /// Sees whether agendas were evicted, and marks their jobs for a warmup, which [`super::Cron::ensure`] then sets off;
    /// returns whether there are any.
    ///
    /// # Errors
    /// Redis's.
    pub async fn look(&mut self) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        // Where Redis does not say, nobody sees what it evicts.
        let Some(info) = redis.info(&["stats", "memory"]).await? else { return Ok(false) };
        let mut ask = redis::pipe();
        for job in self.jobs.jobs.keys() {
            ask.add_command(self.agenda.ask_size(job));
        }
        let there: Vec<RedisResult<usize>> = ask.ignore_errors().query_async(&mut redis).await?;
        // An agenda in whose place somebody else's key stands was not evicted.
        let there = self.jobs.jobs.keys().zip(there);
        let there: BTreeMap<JobName, usize> =
            there.filter_map(|(job, entries)| Some((job.clone(), entries.ok()?))).collect();
        let evicted = info.evicted_keys().unwrap_or(0);
        let more = self.evicted.replace(evicted).is_some_and(|before| evicted > before);
        let before = std::mem::replace(&mut self.there, there);
        debug!(evicted, there = self.there.values().filter(|entries| **entries > 0).count(), "looked at evictions");
        let policy = info.eviction_policy().unwrap_or_default();
        if !info.evicts_all_keys() {
            return Ok(false);
        }
        if more {
            self.owed.get_or_insert_with(Instant::now);
        }
        let all = self.owed.is_some_and(|since| since.elapsed() >= AGAIN);
        let is_lost = |(job, now): &(&JobName, &usize)| {
            all || (more && before.get(*job).is_some_and(|before| *before > 0 && **now <= *before / 2))
        };
        let lost: Vec<&str> = self.there.iter().filter(is_lost).map(|(job, _)| job.as_str()).collect();
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
        if all {
            self.owed = None;
        }
        Ok(true)
    }
}
