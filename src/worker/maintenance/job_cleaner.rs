//! Jobs that are no more: what Redis keeps of a job whose file was removed goes when no worker has known the job for a day.
//!
//! Every worker says in each round which jobs it knows; one of them counts, for each job, the rounds since. So the time counts
//! only while a fleet lives: who comes back after a weekend finds all as it was, and so does who comes late in a rolling
//! deploy. A crash between the steps leaves what the next round finds.

use std::sync::{Arc, LazyLock};

use redis::{RedisResult, Script};
use tracing::info;

use crate::entry::JobName;
use crate::job::Jobs;
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Connection, Scan};

/// Rounds of ten minutes in which no worker knew the job: a day.
pub const ROUNDS: u64 = 144;

/// What people read of trouble with the key patterns of jobs with tags.
const TAGGED: &str = "key patterns of jobs with tags";

static MISS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/miss.lua")));

/// Sees to what is kept of jobs that are no more. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JobCleaner {
    redis: Connection,
    keys: Keys,
    jobs: Arc<Jobs>,
    troubles: Troubles,
}

impl JobCleaner {
    /// For a worker that knows these jobs.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>) -> Self {
        Self { redis, keys, jobs, troubles: Troubles::default() }
    }

    /// The same, noting here what fails in single jobs.
    #[must_use]
    pub fn noting(mut self, troubles: &Troubles) -> Self {
        self.troubles = troubles.of("clearing up after jobs that are no more");
        self
    }

    /// Says that this worker knows its jobs.
    ///
    /// # Errors
    /// Redis's.
    pub async fn know(&self) -> RedisResult<()> {
        let mut pipe = redis::pipe();
        for job in self.jobs.jobs.keys() {
            pipe.set(self.keys.unknown(job), 0).ignore();
        }
        pipe.exec_async(&mut self.redis.clone()).await?;
        self.know_globs().await
    }

    /// Says what the keys of this worker's jobs with tags look like. Call it often: who lacks it misses what services loaded.
    ///
    /// # Errors
    /// Redis's.
    pub async fn know_globs(&self) -> RedisResult<()> {
        let globs = self.jobs.globs_with_tags();
        if !globs.is_empty() {
            let mut note = redis::cmd("ZADD");
            note.arg(self.keys.tagged());
            globs.iter().for_each(|glob| _ = note.arg(0).arg(glob));
            self.troubles.alone(TAGGED, note.exec_async(&mut self.redis.clone()).await)?;
        }
        Ok(())
    }

    /// Counts a round for key patterns that nobody may know, and forgets those that nobody knew for more than `rounds`.
    async fn miss_globs(&self, rounds: u64) -> RedisResult<()> {
        let (mut redis, key) = (self.redis.clone(), self.keys.tagged());
        let known = self.jobs.globs_with_tags();
        let all: Vec<String> = redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).query_async(&mut redis).await?;
        for glob in all.iter().filter(|glob| !known.contains(*glob)) {
            redis::cmd("ZADD").arg(&key).arg("XX").arg("INCR").arg(1).arg(glob).exec_async(&mut redis).await?;
        }
        redis::cmd("ZREMRANGEBYSCORE").arg(&key).arg(format!("({rounds}")).arg("+inf").exec_async(&mut redis).await
    }

    /// Counts a round, and drops what is kept of jobs that nobody knew for more than `rounds`; returns how many jobs that were.
    ///
    /// # Errors
    /// Redis's; it goes on with the next round.
    pub async fn round(&self, rounds: u64) -> RedisResult<usize> {
        self.know().await?;
        self.troubles.alone(TAGGED, self.miss_globs(rounds).await)?;
        let mut dropped = 0;
        let mut scan = Scan::new(self.keys.unknown_glob());
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let found = found.iter().filter_map(|key| self.keys.job_of_unknown(key));
            for job in found.filter(|job| !self.jobs.jobs.contains_key(*job)).map(JobName::new) {
                let gone = self.troubles.alone(job.as_str(), self.miss(&job, rounds).await)?;
                dropped += usize::from(gone.unwrap_or(false));
            }
        }
        Ok(dropped)
    }

    /// Returns whether what was kept of the job is gone.
    async fn miss(&self, job: &JobName, rounds: u64) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let [unknown, kept @ ..] = self.keys.all_of(job);
        let mut count = MISS.key(&unknown);
        if count.arg(rounds).arg(1).invoke_async::<u8>(&mut redis).await? == 0 {
            return Ok(false);
        }
        // The schedule lies elsewhere and goes first: a worker that takes up the job just now misses its digest, and sets it up.
        redis::cmd("ZREM").arg(self.keys.schedules()).arg(job.as_str()).exec_async(&mut redis).await?;
        for hash in [self.keys.ticks(), self.keys.digests()] {
            redis::cmd("HDEL").arg(hash).arg(job.as_str()).exec_async(&mut redis).await?;
        }
        let mut drop = MISS.key(unknown);
        for key in kept {
            drop.key(key);
        }
        let gone = drop.arg(rounds).arg(0).invoke_async::<u8>(&mut redis).await? == 1;
        if gone {
            info!(%job, "no worker has known this job for long: what was kept of it is dropped");
        }
        Ok(gone)
    }
}
