//! Job files of workers that took charge later: an end by an older file is not for good.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;

use super::Store;
use crate::entry::{EntryKey, JobName};
use crate::job::{Job, KnownJob, KnownJobs};
use crate::redis::is_of_keys;

/// The time of a rolling deploy. A description may outlive its worker, and a canary may stay: after this time, each
/// worker goes by its own file again.
const DEPLOY: Duration = Duration::from_secs(600);

impl Store {
    /// Returns since when a worker with another file of a job is in charge of it, if it took charge after all workers
    /// with this file, within the time of a deploy: the fleet's description of the job is then of that file. Returns
    /// `None` if no description can be read.
    ///
    /// A worker publishes its description before it makes anything due. So a worker that has an entry or a warmup of a
    /// newer file in hand finds that file here.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn newer_file(&self, job: &Job) -> RedisResult<Option<Duration>> {
        let name = job.name.as_str();
        let mut ask = redis::cmd("HGET");
        ask.arg(self.keys.jobs()).arg(name);
        let text: Option<Vec<u8>> = match ask.query_async(&mut self.redis.clone()).await {
            Err(e) if is_of_keys(&e) => None,
            text => text?,
        };
        let described = text.and_then(|text| KnownJob::parse(name, &text).ok());
        match described.filter(|known| !known.digest.is_empty() && known.digest != job.digest) {
            Some(known) => {
                let since = self.now().await?.saturating_since(known.since);
                Ok((since < DEPLOY).then_some(since))
            }
            None => Ok(None),
        }
    }

    /// Returns which of these entries belong to a job whose newest file came within the time of a deploy, by job. For
    /// entries of no job of this worker: another one has that file. `is_served` tells by a job, and the time since it
    /// was described, whether a worker has it.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn newer_owners(
        &self,
        keys: &[EntryKey],
        is_served: impl Fn(&KnownJob, Duration) -> bool,
    ) -> RedisResult<BTreeMap<JobName, Vec<EntryKey>>> {
        let mut ask = redis::cmd("HGETALL");
        ask.arg(self.keys.jobs());
        let texts: Vec<(Vec<u8>, Vec<u8>)> = match ask.query_async(&mut self.redis.clone()).await {
            Err(e) if is_of_keys(&e) => Vec::new(),
            texts => texts?,
        };
        let now = self.now().await?;
        let described =
            texts.iter().filter_map(|(name, text)| KnownJob::parse(&String::from_utf8_lossy(name), text).ok());
        let is_newer = |job: &KnownJob| {
            let age = now.saturating_since(job.since);
            age < DEPLOY && is_served(job, age)
        };
        let jobs: KnownJobs = described.filter(is_newer).collect();
        let mut owners: BTreeMap<JobName, Vec<EntryKey>> = BTreeMap::new();
        for key in keys {
            if let Some((job, _)) = jobs.owner(key.as_str()) {
                owners.entry(job.name.clone()).or_default().push(key.clone());
            }
        }
        Ok(owners)
    }
}
