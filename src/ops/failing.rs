//! Jobs most of whose entries are dead letters, as where an upstream answers 200 with a login page.

use std::collections::BTreeMap;

use redis::RedisResult;

use super::Ops;
use super::status::JobStatus;
use crate::entry::JobName;
use crate::job::KnownJob;
use crate::redis::is_of_keys;

/// The fewest dead letters that are told.
const FEWEST: u64 = 3;

impl Ops {
    /// Returns the jobs with more dead letters than entries on the agenda, each with a sentence. Only jobs that keep
    /// entries warm count: the others may have nothing on the agenda.
    ///
    /// # Errors
    /// Fails if Redis returns an error; keys of another type count as empty.
    pub(crate) async fn failing(&self) -> RedisResult<BTreeMap<JobName, String>> {
        let keeps_warm = |job: &&KnownJob| job.listed > 0 || job.feed || job.popular > 0;
        let jobs: Vec<&KnownJob> = self.jobs.jobs.values().map(AsRef::as_ref).filter(keeps_warm).collect();
        if jobs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut ask = redis::pipe();
        for job in &jobs {
            ask.zcard(self.keys.dead(&job.name)).add_command(self.agenda.ask_size(&job.name));
        }
        let replies: Vec<RedisResult<u64>> = ask.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let mut told = BTreeMap::new();
        let mut counts = replies.into_iter().map(|count| match count {
            Err(e) if is_of_keys(&e) => Ok(0),
            count => count,
        });
        for job in jobs {
            let (dead, alive) = (counts.next().unwrap_or(Ok(0))?, counts.next().unwrap_or(Ok(0))?);
            if dead >= FEWEST && dead > alive {
                told.insert(job.name.clone(), notice(job, dead, alive));
            }
        }
        Ok(told)
    }

    /// Adds these sentences to the jobs; returns them.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn add_failing(&self, statuses: &mut [JobStatus]) -> RedisResult<Vec<String>> {
        let mut failing = self.failing().await?;
        let mut told = Vec::new();
        for status in statuses {
            let said = failing.remove(status.job.as_str());
            told.extend(said.clone());
            status.faults.extend(said);
        }
        Ok(told)
    }
}

fn notice(job: &KnownJob, dead: u64, alive: u64) -> String {
    let KnownJob { name, is_retried, .. } = job;
    let retried = if *is_retried {
        "one that its service failed is tried again every minute, and more once it lands; "
    } else {
        ""
    };
    format!(
        "{dead} entries of {name} are given up, and {alive} are on its agenda: `samovar dead {name}` tells why; \
         {retried}when the cause is gone, `samovar dead {name} --retry` asks for them again, as does the next warmup"
    )
}
