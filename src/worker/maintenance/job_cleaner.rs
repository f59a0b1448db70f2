//! The job cleaner: drops what Redis keeps of a removed job once no worker has known the job for a day.
//!
//! In each round every worker notes which jobs it knows, and one worker counts the rounds since for each job. So the
//! time counts only while a fleet lives: a fleet that returns after a weekend, or a late worker of a rolling deploy,
//! finds everything as it was. After a crash between two steps the next round does the rest.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{RedisResult, Script};
use tracing::info;

use crate::entry::JobName;
use crate::job::Jobs;
use crate::ops::descriptions;
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Connection, Scan};

/// The interval between two rounds of the fleet.
pub(in crate::worker) const SWEEPS: Duration = Duration::from_secs(600);

/// The number of rounds, a day, after which an unknown job is dropped.
pub const ROUNDS: u64 = 144;

/// The name of the step that keeps the key patterns of jobs with tags, for messages.
const TAGGED: &str = "key patterns of jobs with tags";

/// The name of the step that drops descriptions of jobs, for messages.
const DESCRIBED: &str = "descriptions of jobs";

static DROP_JOB: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/drop_job.lua")));

/// Drops what is kept of removed jobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JobCleaner {
    redis: Connection,
    keys: Keys,
    jobs: Arc<Jobs>,
    troubles: Troubles,
}

impl JobCleaner {
    /// Creates the job cleaner of a worker that knows these jobs.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>) -> Self {
        Self { redis, keys, jobs, troubles: Troubles::default() }
    }

    /// Notes failures of single jobs in `troubles`.
    #[must_use]
    pub fn noting(mut self, troubles: &Troubles) -> Self {
        self.troubles = troubles.of("the job cleaner").every(SWEEPS);
        self
    }

    /// Notes that this worker knows its jobs.
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

    /// Notes the key patterns of this worker's jobs with tags. It must run often: without a job's pattern, other
    /// workers miss what services loaded for it.
    ///
    /// # Errors
    /// Redis's.
    pub async fn know_globs(&self) -> RedisResult<()> {
        let globs = self.jobs.globs_with_tags();
        if !globs.is_empty() {
            let mut add = redis::cmd("ZADD");
            add.arg(self.keys.tagged());
            globs.iter().for_each(|glob| _ = add.arg(0).arg(glob));
            self.troubles.alone(TAGGED, add.exec_async(&mut self.redis.clone()).await)?;
        }
        Ok(())
    }

    /// Counts a round for key patterns unknown to this worker, and drops those that no worker knew for more than
    /// `rounds`.
    async fn drop_globs(&self, rounds: u64) -> RedisResult<()> {
        let (mut redis, key) = (self.redis.clone(), self.keys.tagged());
        let known = self.jobs.globs_with_tags();
        let all: Vec<String> = redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).query_async(&mut redis).await?;
        for glob in all.iter().filter(|glob| !known.contains(*glob)) {
            redis::cmd("ZADD").arg(&key).arg("XX").arg("INCR").arg(1).arg(glob).exec_async(&mut redis).await?;
        }
        redis::cmd("ZREMRANGEBYSCORE").arg(&key).arg(format!("({rounds}")).arg("+inf").exec_async(&mut redis).await
    }

    /// Counts a round, and drops what is kept of jobs that no worker knew for more than `rounds`. Returns the number of
    /// jobs dropped.
    ///
    /// # Errors
    /// Redis's; the next round does the rest.
    pub async fn round(&self, rounds: u64) -> RedisResult<usize> {
        self.know().await?;
        self.troubles.alone(TAGGED, self.drop_globs(rounds).await)?;
        let mut dropped = 0;
        let mut scan = Scan::new(self.keys.unknown_glob());
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let found = found.iter().filter_map(|key| self.keys.job_of_unknown(key));
            for job in found.filter(|job| !self.jobs.jobs.contains_key(*job)).map(JobName::new) {
                let gone = self.troubles.alone(job.as_str(), self.drop_job(&job, rounds).await)?;
                dropped += usize::from(gone.unwrap_or(false));
            }
        }
        let described = descriptions::drop_unknown(&self.redis, &self.keys, &self.jobs).await;
        self.troubles.alone(DESCRIBED, described)?;
        Ok(dropped)
    }

    /// Counts a round for a job, and drops what is kept of it after `rounds`. Returns `true` if it was dropped.
    async fn drop_job(&self, job: &JobName, rounds: u64) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let [unknown, kept @ ..] = self.keys.all_of(job);
        let mut count = DROP_JOB.key(&unknown);
        if count.arg(rounds).arg(1).invoke_async::<u8>(&mut redis).await? == 0 {
            return Ok(false);
        }
        // The schedule is in another slot and goes first: a worker that gets the job now misses the digest and sets it
        // up.
        redis::cmd("ZREM").arg(self.keys.schedules()).arg(job.as_str()).exec_async(&mut redis).await?;
        for hash in [self.keys.ticks(), self.keys.digests(), self.keys.made()] {
            redis::cmd("HDEL").arg(hash).arg(job.as_str()).exec_async(&mut redis).await?;
        }
        let next_audit = format!("{job}/next");
        redis::cmd("HDEL").arg(self.keys.audits()).arg(job.as_str()).arg(next_audit).exec_async(&mut redis).await?;
        let state = format!("{job}/state");
        redis::cmd("HDEL").arg(self.keys.ticks()).arg(state).exec_async(&mut redis).await?;
        let mut drop = DROP_JOB.key(unknown);
        for key in kept {
            drop.key(key);
        }
        let gone = drop.arg(rounds).arg(0).invoke_async::<u8>(&mut redis).await? == 1;
        if gone {
            info!(%job, "no worker has known this job for a day; its agenda, counters and dead letters are dropped");
        }
        Ok(gone)
    }
}
