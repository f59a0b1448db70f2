//! The descriptions of jobs that workers publish in Redis, so that commands need no job files and no secrets.
//!
//! A worker publishes them when it takes charge, and again if Redis lost them. Each has the time since when its
//! publisher is in charge, and one of a worker that started later stays while another live worker has the same file. So
//! in a rolling deploy the new workers win, after a rollback the old ones, which started last, and after a canary has
//! ended those that stay. Workers of builds before this one publish nothing and leave these keys alone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{RedisResult, Script};

use super::Ops;
use crate::entry::{EntryKey, JobName, KeySet};
use crate::job::{Jobs, KnownJob, KnownJobs};
use crate::popularity::buckets;
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime, Troubles, is_of_keys};
use crate::trigger::invalidation::known_to_workers;

/// Descriptions in one script call.
const AT_ONCE: usize = 50;
/// The time in which a worker that took charge has recorded which jobs it knows.
const RECORDED: Duration = Duration::from_secs(5);

static DESCRIBE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/describe_jobs.lua")));
static DIGEST: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/digest_descriptions.lua")));

/// The digests of the files that other live workers have, by job. `None` if one of them has not announced its files.
pub type OtherFiles = Option<BTreeMap<String, BTreeSet<String>>>;

/// The descriptions in Redis.
#[derive(Debug)]
pub struct Descriptions {
    /// The jobs that are described.
    pub jobs: KnownJobs,
    /// Descriptions that cannot be read, each with the reason.
    pub unreadable: Vec<String>,
}

/// Reads the descriptions of all jobs. Those of jobs that no running worker knows count as published first, so that
/// they own no key of another job.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn read(redis: &Connection, keys: &Keys, now: RedisTime) -> RedisResult<Descriptions> {
    let all: Vec<(Vec<u8>, Vec<u8>)> = redis::cmd("HGETALL").arg(keys.jobs()).query_async(&mut redis.clone()).await?;
    let (mut jobs, mut unreadable) = (Vec::new(), Vec::new());
    for (name, text) in all {
        let name = String::from_utf8_lossy(&name);
        match KnownJob::parse(&name, &text) {
            Ok(job) => jobs.push(job),
            Err(e) => unreadable.push(format!("the description of the job `{name}` in Redis cannot be read: {e}")),
        }
    }
    let known = known(redis, keys, now).await?;
    for job in jobs.iter_mut().filter(|job| is_left(job, &known, now)) {
        job.since = RedisTime::ZERO;
    }
    Ok(Descriptions { jobs: jobs.into_iter().collect(), unreadable })
}

/// Returns the identities of the jobs that running workers know; none if their records are of a wrong type.
async fn known(redis: &Connection, keys: &Keys, now: RedisTime) -> RedisResult<HashSet<String>> {
    match known_to_workers(&mut redis.clone(), keys, now).await {
        Err(e) if is_of_keys(&e) => Ok(HashSet::new()),
        known => known,
    }
}

/// Returns `true` if no running worker knows a described job. If no job is known, no worker is running.
fn is_left(job: &KnownJob, known: &HashSet<String>, now: RedisTime) -> bool {
    let is_recorded = job.file.is_none() && job.since + RECORDED < now;
    is_recorded && !known.is_empty() && !known.contains(&job.identity())
}

/// The result of publishing.
#[derive(Debug, Default)]
pub struct Published {
    /// The jobs of which a description of another file stays.
    pub others: Vec<JobName>,
    /// `true` if Redis had everything already.
    pub is_settled: bool,
}

/// Returns a digest of all descriptions in Redis, to tell that none has changed.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn digest(redis: &Connection, keys: &Keys) -> RedisResult<String> {
    DIGEST.key(keys.jobs()).invoke_async(&mut redis.clone()).await
}

/// Publishes the descriptions of a worker that is in charge of these jobs since then, and the entries that their files
/// list. Writes only what differs, and nothing of jobs that a worker described that took charge later, if another live
/// worker has its file.
///
/// # Errors
/// Fails if Redis returns an error; publish again.
pub async fn publish<'a>(
    redis: &Connection,
    keys: &Keys,
    jobs: impl IntoIterator<Item = &'a KnownJob>,
    since: RedisTime,
    files: &OtherFiles,
    troubles: &Troubles,
) -> RedisResult<Published> {
    let mut redis = redis.clone();
    let all: Vec<&KnownJob> = jobs.into_iter().collect();
    let mut published = Published { others: Vec::new(), is_settled: true };
    for some in all.chunks(AT_ONCE) {
        let mut call = DESCRIBE.key(keys.jobs());
        call.arg(since);
        for job in some {
            let text = serde_json::to_string(&KnownJob { since, ..KnownJob::clone(job) }).unwrap_or_default();
            let files = files.as_ref().map(|files| files.get(job.name.as_str()));
            let files =
                files.map(|files| files.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" "));
            call.arg(job.name.as_str()).arg(text).arg(files.unwrap_or_else(|| "*".to_owned()));
        }
        let words: Vec<String> = call.invoke_async(&mut redis).await?;
        let (others, described): (Vec<_>, Vec<_>) = some.iter().zip(&words).partition(|(_, word)| *word == "other");
        published.is_settled &= words.iter().all(|word| word == "present");
        published.others.extend(others.into_iter().map(|(job, _)| job.name.clone()));
        let lists: Vec<String> = described.iter().map(|(job, _)| keys.list(&job.name)).collect();
        if lists.is_empty() {
            continue;
        }
        for (((job, _), list), present) in
            described.iter().zip(&lists).zip(buckets::made_from(&mut redis, &lists).await?)
        {
            let listed = match present {
                Ok(present) => publish_list(&mut redis, list, job, present.as_deref()).await,
                Err(e) => Err(e),
            };
            published.is_settled &= troubles.alone(job.name.as_str(), listed)?.is_some();
        }
    }
    Ok(published)
}

/// Publishes the entries that a job's file lists, unless they are those that are present. A crash in between leaves the
/// earlier ones.
async fn publish_list(redis: &mut Connection, list: &str, job: &KnownJob, present: Option<&[u8]>) -> RedisResult<()> {
    let Some(file) = &job.file else { return Ok(()) };
    if present.map_or(job.listed == 0, |present| present == job.digest.as_bytes()) {
        return Ok(());
    }
    let listed = file.entries.list.iter().filter_map(|params| job.key.write(params)).collect();
    buckets::write(redis, list, &listed, Some(&job.digest)).await
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
    /// Returns these operations on all jobs that the fleet knows: as workers described them, and on own jobs besides.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn of_fleet(&self) -> RedisResult<Self> {
        let mut jobs = match read(&self.redis, &self.keys, self.store.now().await?).await {
            Err(e) if is_of_keys(&e) => KnownJobs::default(),
            described => described?.jobs,
        };
        // While files change, the description may be of other files than this worker's.
        for (name, job) in &self.jobs.jobs {
            jobs.jobs.entry(name.clone()).or_insert_with(|| job.clone());
        }
        for (name, upstream) in &self.jobs.upstreams {
            jobs.upstreams.entry(name.clone()).or_insert_with(|| upstream.clone());
        }
        Ok(Self { jobs: Arc::new(jobs), ..self.clone() })
    }

    /// Returns the files of the live workers other than `worker`.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn files_of_others(&self, worker: &str, living: &[String]) -> RedisResult<OtherFiles> {
        let announced = self.announced_files().await?;
        let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for other in living.iter().filter(|other| *other != worker) {
            let Some(Some(announced)) = announced.get(other) else { return Ok(None) };
            for (job, digests) in announced {
                files.entry(job.clone()).or_default().extend(digests.get("text").cloned());
            }
        }
        Ok(Some(files))
    }

    /// Returns the entries that a job's file lists, from the file or from Redis.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(super) async fn list(&self, job: &KnownJob) -> RedisResult<KeySet> {
        if let Some(file) = &job.file {
            return Ok(file.entries.list.iter().filter_map(|params| job.key.write(params)).collect());
        }
        let list = self.keys.list(&job.name);
        buckets::read(&mut self.redis.clone(), &list, |name| job.key.read(name).is_some()).await
    }

    /// Returns for each of these entries whether its job's file lists it, in order; at most a page of entries.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(super) async fn listed(&self, job: &KnownJob, entries: &[EntryKey]) -> RedisResult<Vec<bool>> {
        if let Some(file) = &job.file {
            let lists = |key: &EntryKey| job.key.read(key.as_str()).is_some_and(|params| file.entries.lists(&params));
            return Ok(entries.iter().map(lists).collect());
        }
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = redis::pipe();
        for key in entries {
            ask.add_command(buckets::ask(&self.keys.list(&job.name), key));
        }
        let found: Vec<Option<Vec<u8>>> = ask.query_async(&mut self.redis.clone()).await?;
        let named = entries.iter().zip(found);
        Ok(named.map(|(key, bucket)| bucket.is_some_and(|bucket| buckets::names(&bucket, key))).collect())
    }

    /// Returns the described jobs that no running worker knows: all workers with their files have ended, or read other
    /// files since. Empty if no worker is running, or if the workers' records are of a wrong type.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn left_jobs(&self) -> RedisResult<BTreeSet<JobName>> {
        let now = self.store.now().await?;
        let known = known(&self.redis, &self.keys, now).await?;
        let left = self.jobs.jobs.values().filter(|job| is_left(job, &known, now));
        Ok(left.map(|job| job.name.clone()).collect())
    }
}
