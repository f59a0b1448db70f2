//! The descriptions of jobs that workers publish in Redis, so that commands need no job files and no secrets.
//!
//! A worker publishes them when it takes charge, and again if Redis lost them. Each has the time since when its
//! publisher is in charge, and one of a worker that started later stays. So in a rolling deploy the new workers win,
//! and after a rollback the old ones, which started last. Workers of builds before this one publish nothing and leave
//! these keys alone.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::Ops;
use crate::entry::{EntryKey, JobName};
use crate::job::{Jobs, KnownJob, KnownJobs, Params};
use crate::popularity::buckets;
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime, Troubles, is_of_keys};
use crate::trigger::invalidation::known_to_workers;

/// Descriptions in one script call.
const AT_ONCE: usize = 50;
/// The time in which a worker that took charge has recorded which jobs it knows.
const RECORDED: Duration = Duration::from_secs(5);

static DESCRIBE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/describe_jobs.lua")));

/// The descriptions in Redis.
#[derive(Debug)]
pub struct Descriptions {
    /// The jobs that are described.
    pub jobs: KnownJobs,
    /// Descriptions that cannot be read, each with the reason.
    pub unreadable: Vec<String>,
}

/// Reads the descriptions of all jobs.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn read(redis: &Connection, keys: &Keys) -> RedisResult<Descriptions> {
    let all: Vec<(Vec<u8>, Vec<u8>)> = redis::cmd("HGETALL").arg(keys.jobs()).query_async(&mut redis.clone()).await?;
    let (mut jobs, mut unreadable) = (Vec::new(), Vec::new());
    for (name, text) in all {
        let name = String::from_utf8_lossy(&name);
        match KnownJob::parse(&name, &text) {
            Ok(job) => jobs.push(job),
            Err(e) => unreadable.push(format!("the description of the job `{name}` in Redis cannot be read: {e}")),
        }
    }
    Ok(Descriptions { jobs: jobs.into_iter().collect(), unreadable })
}

/// Publishes the descriptions of a worker that is in charge of these jobs since then, and the entries that their files
/// list. Writes only what differs, and nothing of jobs that a worker described that took charge later.
///
/// # Errors
/// Fails if Redis returns an error; publish again.
pub async fn publish(
    redis: &Connection,
    keys: &Keys,
    jobs: &KnownJobs,
    since: RedisTime,
    troubles: &Troubles,
) -> RedisResult<()> {
    let mut redis = redis.clone();
    let all: Vec<&KnownJob> = jobs.jobs.values().map(|job| &**job).collect();
    for some in all.chunks(AT_ONCE) {
        let mut call = DESCRIBE.key(keys.jobs());
        call.arg(since);
        for job in some {
            let text = serde_json::to_string(&KnownJob { since, ..KnownJob::clone(job) }).unwrap_or_default();
            call.arg(job.name.as_str()).arg(text);
        }
        let taken: Vec<String> = call.invoke_async(&mut redis).await?;
        let taken = some.iter().filter(|job| taken.iter().any(|name| *name == job.name.as_str()));
        let taken: Vec<&KnownJob> = taken.copied().collect();
        if taken.is_empty() {
            continue;
        }
        let lists: Vec<String> = taken.iter().map(|job| keys.list(&job.name)).collect();
        for ((job, list), present) in taken.iter().zip(&lists).zip(buckets::made_from(&mut redis, &lists).await?) {
            let published = match present {
                Ok(present) => publish_list(&mut redis, list, job, present.as_deref()).await,
                Err(e) => Err(e),
            };
            troubles.alone(job.name.as_str(), published)?;
        }
    }
    Ok(())
}

/// Publishes the entries that a job's file lists, unless they are those that are present. A crash in between leaves the
/// earlier ones.
async fn publish_list(redis: &mut Connection, list: &str, job: &KnownJob, present: Option<&[u8]>) -> RedisResult<()> {
    let Some(file) = &job.file else { return Ok(()) };
    if present.map_or(job.listed == 0, |present| present == job.digest.as_bytes()) {
        return Ok(());
    }
    let listed = file.entries.list.iter().filter_map(|params| job.key.write(params));
    buckets::write(redis, list, listed, Some(&job.digest)).await
}

/// Removes the descriptions of jobs of which Redis keeps nothing else: the job cleaner dropped them.
///
/// # Errors
/// Fails if Redis returns an error; the next round does the rest.
pub async fn drop_unknown(redis: &Connection, keys: &Keys, jobs: &Jobs) -> RedisResult<()> {
    let mut redis = redis.clone();
    let described: Vec<Vec<u8>> = redis::cmd("HKEYS").arg(keys.jobs()).query_async(&mut redis).await?;
    for field in described {
        let name = String::from_utf8_lossy(&field);
        let unknown = keys.unknown(&JobName::new(&*name));
        if jobs.jobs.contains_key(&*name) || redis::cmd("EXISTS").arg(unknown).query_async(&mut redis).await? {
            continue;
        }
        redis::cmd("HDEL").arg(keys.jobs()).arg(&field).exec_async(&mut redis).await?;
    }
    Ok(())
}

impl Ops {
    /// Returns the entries that a job's file lists, from the file or from Redis.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(super) async fn list(&self, job: &KnownJob) -> RedisResult<Vec<Params>> {
        if let Some(file) = &job.file {
            return Ok(file.entries.list.clone());
        }
        let listed = buckets::read(&mut self.redis.clone(), &self.keys.list(&job.name)).await?;
        Ok(listed.iter().filter_map(|name| job.key.read(name)).collect())
    }

    /// Returns `true` if a job's file lists an entry.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(super) async fn lists(&self, job: &KnownJob, key: &EntryKey, params: &Params) -> RedisResult<bool> {
        match &job.file {
            Some(file) => Ok(file.entries.lists(params)),
            None => buckets::has(&mut self.redis.clone(), &self.keys.list(&job.name), key).await,
        }
    }

    /// Returns the described jobs that no running worker knows: their files were removed, or their keys changed. Empty
    /// if no worker is running, or if the workers' records are of a wrong type.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn left_jobs(&self) -> RedisResult<BTreeSet<JobName>> {
        let now = self.store.now().await?;
        let known = match known_to_workers(&mut self.redis.clone(), &self.keys, now).await {
            Err(e) if is_of_keys(&e) => return Ok(BTreeSet::new()),
            known => known?,
        };
        if known.is_empty() {
            return Ok(BTreeSet::new());
        }
        let described = self.jobs.jobs.values().filter(|job| job.file.is_none() && job.since + RECORDED < now);
        let left = described.filter(|job| !known.contains(&job.identity()));
        Ok(left.map(|job| job.name.clone()).collect())
    }
}
