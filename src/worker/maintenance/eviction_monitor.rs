//! The eviction monitor: notices that Redis evicted an agenda, which an `allkeys-*` policy allows.
//!
//! Redis does not tell which keys it evicts. If an agenda lost half of its entries or more while Redis evicted keys,
//! the job is warmed up: that restores the agenda and fetches only what is missing. Ten minutes after any eviction all
//! jobs are warmed up.

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

/// The time after an eviction at which all jobs are warmed up, since more may be gone than is seen; also the shortest
/// time between two log lines.
const ALL_JOBS: Duration = Duration::from_secs(600);

/// One worker's observations.
#[derive(Debug)]
pub(in crate::worker) struct EvictionMonitor {
    redis: Connection,
    keys: Keys,
    agenda: Agenda,
    jobs: Arc<Jobs>,
    /// The number of keys that Redis had evicted at the last inspection.
    evicted: Option<u64>,
    /// The number of entries of each agenda at the last inspection.
    sizes: BTreeMap<JobName, usize>,
    /// The time of the first eviction after which all jobs were not warmed up yet.
    owed_since: Option<Instant>,
    logged: Option<Instant>,
}

impl EvictionMonitor {
    /// Creates a monitor without observations.
    pub(in crate::worker) fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>) -> Self {
        let agenda = Agenda::new(redis.clone(), keys.clone());
        Self { redis, keys, agenda, jobs, evicted: None, sizes: BTreeMap::new(), owed_since: None, logged: None }
    }

    /// Marks the jobs whose agendas may be evicted for a warmup, which [`crate::trigger::Cron::ensure`] then starts.
    /// Returns `true` if there are any.
    ///
    /// # Errors
    /// Redis's.
    pub(in crate::worker) async fn inspect(&mut self) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        // Without the right to use INFO, evictions cannot be seen.
        let Some(info) = redis.info(&["stats", "memory"]).await? else { return Ok(false) };
        let mut ask = redis::pipe();
        for job in self.jobs.jobs.keys() {
            ask.add_command(self.agenda.ask_size(job));
        }
        let sizes: Vec<RedisResult<usize>> = ask.ignore_errors().query_async(&mut redis).await?;
        // An agenda whose key holds a wrong type was not evicted.
        let sizes = self.jobs.jobs.keys().zip(sizes);
        let sizes: BTreeMap<JobName, usize> =
            sizes.filter_map(|(job, entries)| Some((job.clone(), entries.ok()?))).collect();
        let evicted = info.evicted_keys().unwrap_or(0);
        let more = self.evicted.replace(evicted).is_some_and(|before| evicted > before);
        let before = std::mem::replace(&mut self.sizes, sizes);
        debug!(evicted, agendas = self.sizes.values().filter(|entries| **entries > 0).count(), "inspected evictions");
        let policy = info.eviction_policy().unwrap_or_default();
        if !info.evicts_all_keys() {
            return Ok(false);
        }
        if more {
            self.owed_since.get_or_insert_with(Instant::now);
        }
        let all = self.owed_since.is_some_and(|since| since.elapsed() >= ALL_JOBS);
        let is_lost = |(job, now): &(&JobName, &usize)| {
            all || (more && before.get(*job).is_some_and(|before| *before > 0 && **now <= *before / 2))
        };
        let lost: Vec<&str> = self.sizes.iter().filter(is_lost).map(|(job, _)| job.as_str()).collect();
        if lost.is_empty() {
            return Ok(false);
        }
        if self.logged.is_none_or(|logged| logged.elapsed() >= ALL_JOBS) {
            warn!(
                "Redis evicts Samovar's own keys under maxmemory-policy {policy}; jobs that may have lost their agenda \
                 are warmed up: set the policy to volatile-lru"
            );
            self.logged = Some(Instant::now());
        }
        let () = redis::cmd("HDEL").arg(self.keys.digests()).arg(&lost).query_async(&mut redis).await?;
        if all {
            self.owed_since = None;
        }
        Ok(true)
    }
}
