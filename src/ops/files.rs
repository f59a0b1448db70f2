//! The job files that a fleet works with: what its values are made from, and what each worker has read.
//!
//! Redis holds two records. One notes for each job the digest that its values are made from ([`Noted`]). It changes
//! when a worker with another file begins, and again when all outdated values are on the agenda, so that a crash in
//! between repeats the work. The other holds the digests of the files that each worker works with. Workers of earlier
//! builds write neither.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use redis::{RedisResult, Script};

use super::Ops;
use crate::entry::JobName;
use crate::job::{Job, Jobs};

/// Jobs in one script call.
const BATCH: usize = 125;
/// The name of the digest of what values are made from, among those of a file.
const VALUES: &str = "values";
/// The name of the digest of a whole file.
const TEXT: &str = "text";

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/begin_files.lua")));
static END: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/end_change.lua")));

/// The digests of one job file, by the names of its parts.
pub type Digests = BTreeMap<String, String>;

/// The record of what a job's values are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    text: String,
}

impl Noted {
    /// Returns the digest that a value without a digest of its own counts as made from.
    pub fn base(&self) -> &str {
        self.text.split(' ').next().unwrap_or_default()
    }

    /// Returns `true` if all values are made from `made`, or are on the agenda.
    pub fn is_settled(&self, made: &str) -> bool {
        self.text == made
    }
}

/// Returns the digests of a job's file.
pub fn digests(job: &Job) -> Digests {
    let parts = job.parts.iter().map(|(name, digest)| ((*name).to_owned(), digest.clone()));
    let whole = [(VALUES, &job.made), (TEXT, &job.digest)].map(|(name, digest)| (name.to_owned(), digest.clone()));
    parts.chain(whole).collect()
}

/// Returns the names of the parts in which two files of a job differ. `text` stands for comments and descriptions.
pub fn differences(one: &Digests, other: &Digests) -> Vec<String> {
    let names = one.keys().chain(other.keys()).filter(|name| one.get(*name) != other.get(*name));
    let mut names: Vec<String> = names.cloned().collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > 1 {
        names.retain(|name| name != TEXT);
    }
    names
}

impl Ops {
    /// Notes that a worker begins to work with these jobs.
    ///
    /// # Errors
    /// Fails if Redis returns an error; call it again.
    pub async fn begin_files<'a>(&self, jobs: impl IntoIterator<Item = &'a Job>) -> RedisResult<()> {
        let jobs: Vec<&Job> = jobs.into_iter().collect();
        for batch in jobs.chunks(BATCH) {
            let mut call = BEGIN.key(self.keys.made());
            for job in batch {
                call.arg(job.name.as_str()).arg(&job.made);
            }
            let () = call.invoke_async(&mut self.redis.clone()).await?;
        }
        Ok(())
    }

    /// Announces the files that a worker works with.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn announce_files(&self, worker: &str, jobs: &Jobs) -> RedisResult<()> {
        let files: BTreeMap<&str, Digests> = jobs.jobs.values().map(|job| (job.name.as_str(), digests(job))).collect();
        let text = serde_json::to_string(&files).map_err(std::io::Error::other)?;
        redis::cmd("HSET").arg(self.keys.files()).arg(worker).arg(text).exec_async(&mut self.redis.clone()).await
    }

    /// Returns the files that workers have announced, by worker and job. A record that cannot be read is empty.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn announced_files(&self) -> RedisResult<BTreeMap<String, BTreeMap<String, Digests>>> {
        let all: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(self.keys.files()).query_async(&mut self.redis.clone()).await?;
        Ok(all.into_iter().map(|(worker, text)| (worker, serde_json::from_str(&text).unwrap_or_default())).collect())
    }

    /// Drops the announcements of these workers, which have left the fleet.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn forget_files(&self, workers: &[String]) -> RedisResult<()> {
        if workers.is_empty() {
            return Ok(());
        }
        redis::cmd("HDEL").arg(self.keys.files()).arg(workers).exec_async(&mut self.redis.clone()).await
    }

    /// Returns what is noted of the values of each job.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn noted(&self) -> RedisResult<BTreeMap<JobName, Noted>> {
        let all: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(self.keys.made()).query_async(&mut self.redis.clone()).await?;
        Ok(all.into_iter().map(|(job, text)| (JobName::new(job), Noted { text })).collect())
    }

    /// Notes that all outdated values of a job are on the agenda. Returns `false` if a worker with another file began
    /// since `noted` was read.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn end_change(&self, job: &Job, noted: &Noted) -> RedisResult<bool> {
        END.key(self.keys.made())
            .arg(job.name.as_str())
            .arg(&noted.text)
            .arg(&job.made)
            .invoke_async(&mut self.redis.clone())
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_the_parts_that_differ() {
        let file = |parts: &[(&str, &str)]| -> Digests {
            parts.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect()
        };
        let one = file(&[("values", "a"), ("text", "b"), ("ttl", "c")]);
        assert_eq!(differences(&one, &one), Vec::<String>::new());
        assert_eq!(differences(&one, &file(&[("values", "a"), ("text", "x"), ("ttl", "c")])), ["text"]);
        assert_eq!(differences(&one, &file(&[("values", "x"), ("text", "y"), ("ttl", "c")])), ["values"]);
        assert_eq!(
            differences(&one, &file(&[("values", "x"), ("text", "y"), ("warm", "w")])),
            ["ttl", "values", "warm"]
        );
    }
}
