//! The job files that a fleet works with: what its values are made from, and what each worker has read.
//!
//! Redis holds two records. One notes for each job the digest that its values are made from ([`Noted`]). It changes
//! when a worker with another file begins, and again when all outdated values are on the agenda, so that a crash in
//! between repeats the work. The other holds the digests of the files that each worker works with. Workers of earlier
//! builds write neither.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use redis::{RedisResult, Script};

use super::Ops;
use crate::entry::JobName;
use crate::job::{Job, Jobs, KnownJob};

/// Jobs in one script call.
const BATCH: usize = 125;
/// Names of workers in one message.
const NAMES: usize = 10;
/// The name of the digest of what values are made from, among those of a file.
const VALUES: &str = "values";
/// The name of the digest of a whole file.
const TEXT: &str = "text";

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/begin_files.lua")));
static END: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/end_change.lua")));

/// The digests of one job file, by the names of its parts.
pub type Digests = BTreeMap<String, String>;
/// The files that workers have announced, by worker and job; `None` for a record that cannot be read.
pub type Announced = BTreeMap<String, Option<BTreeMap<String, Digests>>>;

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

    /// Returns the digest of the file that a worker began with last: all values are to be made from it.
    pub fn newest(&self) -> &str {
        self.last().unwrap_or_else(|| self.base())
    }

    /// Returns `true` if all values are made from `made`, or are on the agenda.
    pub fn is_settled(&self, made: &str) -> bool {
        self.text == made
    }

    /// Returns `true` if a worker still looks for values of another file, and makes them due.
    pub fn is_open(&self) -> bool {
        self.last().is_some()
    }

    /// Returns `true` if all values are made from another file than `made` tells, or are on the agenda.
    pub fn is_settled_otherwise(&self, made: &str) -> bool {
        self.last().is_none() && !self.is_settled(made)
    }

    /// Returns the digest of the file that a worker began with last, while values of another one may be left.
    fn last(&self) -> Option<&str> {
        Some(self.text.split_once(' ')?.1)
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

/// Returns those of these workers that work with another file of a job than `made` tells. A worker that announces
/// nothing that can be read may: it is of an earlier build, or it is about to begin, to end, or to announce its files
/// again.
pub fn with_another_file<'a>(
    workers: impl IntoIterator<Item = &'a String>,
    announced: &Announced,
    job: &str,
    made: &str,
) -> Vec<String> {
    let differs = |file: &Digests| file.get(VALUES).is_none_or(|values| values != made);
    let files_of = |worker: &String| announced.get(worker)?.as_ref();
    let may_differ = |worker: &&String| files_of(worker).is_none_or(|files| files.get(job).is_some_and(differs));
    workers.into_iter().filter(may_differ).cloned().collect()
}

/// Returns what a worker says of a change that waits for itself: see [`Ops::outdated_files`].
pub fn has_old_file(job: &str) -> String {
    format!(
        "the file of {job} has changed, and this worker still has the old file: reload or stop it. Until then values \
         of the old file are not made anew"
    )
}

/// Returns the reason why a change of a job waits for these workers.
pub fn still_waits(job: &str, workers: &[String]) -> String {
    let more = match workers.len().saturating_sub(NAMES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names = workers.iter().take(NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    format!(
        "the file of {job} has changed, and its values are made anew once all workers have the same file: reload or \
         stop those with the old one. With another or an unknown file: {names}{more}"
    )
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

    /// Announces the files that a worker works with. Returns `false` if they were announced already: then a record of
    /// the same length is there.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn announce_files(&self, worker: &str, jobs: &Jobs) -> RedisResult<bool> {
        let (files, mut redis) = (self.keys.files(), self.redis.clone());
        let all: BTreeMap<&str, Digests> = jobs.jobs.values().map(|job| (job.name.as_str(), digests(job))).collect();
        let text = serde_json::to_string(&all).map_err(std::io::Error::other)?;
        let length: usize = redis::cmd("HSTRLEN").arg(&files).arg(worker).query_async(&mut redis).await?;
        if length == text.len() {
            return Ok(false);
        }
        let () = redis::cmd("HSET").arg(&files).arg(worker).arg(text).query_async(&mut redis).await?;
        Ok(true)
    }

    /// Returns the files that workers have announced.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn announced_files(&self) -> RedisResult<Announced> {
        let all: Vec<(Vec<u8>, Vec<u8>)> =
            redis::cmd("HGETALL").arg(self.keys.files()).query_async(&mut self.redis.clone()).await?;
        let named = |(worker, text): (Vec<u8>, Vec<u8>)| {
            Some((String::from_utf8(worker).ok()?, serde_json::from_slice(&text).ok()))
        };
        Ok(all.into_iter().filter_map(named).collect())
    }

    /// Returns the changes that wait for some of these live workers, with these workers.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn held_back(&self, living: &[String]) -> RedisResult<BTreeMap<JobName, Vec<String>>> {
        let mut noted = self.noted().await?;
        noted.retain(|_, noted| noted.last().is_some());
        if noted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let announced = self.announced_files().await?;
        let waiting = |(job, noted): (JobName, Noted)| {
            // A worker that was cut off may have begun after those with the new file.
            let newest = self.jobs.jobs.get(&job).map(|known| &known.digest);
            let mut files = announced.values().flatten().filter_map(|files| files.get(job.as_str()));
            let newest = files.find(|file| newest.is_some() && file.get(TEXT) == newest);
            let made = newest.and_then(|file| file.get(VALUES)).map_or_else(|| noted.last(), |made| Some(made));
            let workers = with_another_file(living, &announced, job.as_str(), made?);
            (!workers.is_empty()).then_some((job, workers))
        };
        Ok(noted.into_iter().filter_map(waiting).collect())
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

    /// Returns those of a worker's own jobs of which a worker that took charge later has another file. The fleet's
    /// description of a job is of the file of the worker that took charge last, as long as a live worker has that file.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn outdated_files(&self) -> RedisResult<BTreeSet<JobName>> {
        let described = self.of_fleet().await?.jobs;
        let differs = |(name, own): &(&JobName, &Arc<KnownJob>)| {
            described.jobs.get(*name).is_some_and(|known| known.digest != own.digest)
        };
        Ok(self.jobs.jobs.iter().filter(differs).map(|(name, _)| name.clone()).collect())
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
    use std::time::Duration;

    use super::*;
    use crate::job::KnownJobs;
    use crate::ops::descriptions;
    use crate::protocol::Keys;
    use crate::redis::Troubles;
    use crate::redis::server::Server;

    #[tokio::test]
    async fn the_worker_with_the_old_file_finds_out_that_it_is_the_one() {
        let server = Server::start().await;
        let (redis, keys) = (server.connect().await, Keys::new("test", "test:invalidate"));
        let ops = |path: &str| {
            let text =
                format!("key = \"art:{{name}}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1/{path}\"\n");
            let jobs = Jobs::parse(&[("art.toml".to_owned(), text)], Duration::from_secs(60), &|_| None).unwrap();
            Ops::new(redis.clone(), keys.clone(), Arc::new(KnownJobs::from(&jobs)))
        };
        let (old, new) = (ops("old"), ops("new"));
        assert_eq!(old.outdated_files().await.unwrap(), BTreeSet::new(), "nothing is described");
        let since = old.store.now().await.unwrap();
        for (ops, later) in [(&old, 0), (&new, 1)] {
            let (jobs, since) = (ops.jobs.jobs.values().map(|job| &**job), since + Duration::from_secs(later));
            descriptions::publish(&redis, &keys, jobs, since, &None, &Troubles::default()).await.unwrap();
        }
        assert_eq!(old.outdated_files().await.unwrap(), BTreeSet::from([JobName::new("art")]));
        assert_eq!(new.outdated_files().await.unwrap(), BTreeSet::new());
        assert!(has_old_file("art").contains("this worker still has the old file: reload or stop it"));
    }

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

    #[test]
    fn a_worker_that_announces_nothing_may_have_another_file() {
        let workers = ["new", "old", "silent", "unreadable", "without"].map(str::to_owned);
        let files =
            |values: &str| Some(BTreeMap::from([("art".to_owned(), Digests::from([(VALUES.into(), values.into())]))]));
        let mut announced = Announced::from([("new".into(), files("a")), ("old".into(), files("b"))]);
        announced.extend([("without".into(), Some(BTreeMap::new())), ("unreadable".into(), None)]);
        assert_eq!(with_another_file(&workers, &announced, "art", "a"), ["old", "silent", "unreadable"]);
    }

    #[test]
    fn a_note_of_one_file_is_settled_for_that_file_alone() {
        let noted = |text: &str| Noted { text: text.to_owned() };
        assert_eq!((noted("a").is_settled("a"), noted("a").is_settled_otherwise("a")), (true, false));
        assert_eq!((noted("a").is_settled("b"), noted("a").is_settled_otherwise("b")), (false, true));
        assert_eq!((noted("a b").is_settled("b"), noted("a b").is_settled_otherwise("c")), (false, false));
        assert_eq!((noted("a b").base(), noted("a b").last(), noted("a").last()), ("a", Some("b"), None));
    }
}
