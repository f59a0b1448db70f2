//! Entries whose warming was given up. They are looked at a page at a time, whatever there is.

use std::collections::BTreeSet;
use std::sync::Arc;

use redis::RedisResult;
use serde::Serialize;

use super::Ops;
use crate::agenda::When;
use crate::entry::EntryKey;
use crate::entry::Trigger;
use crate::job::Job;

/// Letters that Redis is asked for at once: each may be as long as its key and its reason are.
const AT_ONCE: usize = 50;
/// Bytes of keys and reasons in one page; it ends with the letter that goes beyond.
const PAGE_BYTES: usize = 64 * 1024;

/// A dead letter.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Dead {
    /// The job.
    pub job: String,
    /// The entry.
    pub key: String,
    /// When it was given up (Redis time, ms since the epoch).
    pub at_ms: i64,
    /// Why; over HTTP only for who may see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A page of dead letters.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Letters {
    /// How many there are, on all pages.
    pub total: usize,
    /// Those of this page, the oldest of each job first.
    pub dead: Vec<Dead>,
    /// Where the next page begins; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

impl Ops {
    /// A page of dead letters, of these jobs and entries or, where none is named, of all: `most` at most from the `from`th on,
    /// fewer where they are long.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn dead(&self, only: &[String], from: usize, most: usize) -> RedisResult<Letters> {
        let mut page = Page { dead: Vec::new(), bytes: 0, most };
        let (mut total, mut at) = (0, from);
        for job in self.named_jobs(only) {
            let mut redis = self.redis.clone();
            let of_job: usize = redis::cmd("ZCARD").arg(self.keys.dead(&job.name)).query_async(&mut redis).await?;
            while !page.is_full() && (total..total + of_job).contains(&at) {
                let first = at - total;
                let last = first + AT_ONCE.min(most - page.dead.len()) - 1;
                let mut ask = redis::cmd("ZRANGE");
                ask.arg(self.keys.dead(&job.name)).arg(first).arg(last).arg("WITHSCORES");
                let found = self.letters(job, ask.query_async(&mut redis).await?).await?;
                if found.is_empty() {
                    // Some were put back since they were counted.
                    at = total + of_job;
                }
                at += page.take(found);
            }
            total += of_job;
        }
        for (job, key) in self.named_keys(only) {
            if let Some(letter) = self.letter(job, key).await? {
                if !page.is_full() && at == total {
                    at += page.take(vec![letter]);
                }
                total += 1;
            }
        }
        Ok(Letters { total, dead: page.dead, next: (from < at && at < total).then_some(at) })
    }

    /// The first of these names that is neither a job nor a key of one.
    pub fn unknown<'a>(&self, names: &'a [String]) -> Option<&'a String> {
        names.iter().find(|name| !self.jobs.jobs.contains_key(name.as_str()) && self.jobs.owner(name).is_none())
    }

    /// Puts some dead letters back on the agenda, with all their attempts before them: of those that were given up until then
    /// (Redis time, ms), and are named or of a named job. None is left where it returns none.
    ///
    /// # Errors
    /// Fails if Redis returns an error; some may be back, and trying again does no harm.
    pub async fn retry(&self, only: &[String], until: i64) -> RedisResult<Vec<Dead>> {
        for job in self.named_jobs(only) {
            let mut ask = redis::cmd("ZRANGEBYSCORE");
            ask.arg(self.keys.dead(&job.name)).arg("-inf").arg(until).arg("WITHSCORES");
            ask.arg("LIMIT").arg(0).arg(AT_ONCE);
            let found = self.letters(job, ask.query_async(&mut self.redis.clone()).await?).await?;
            if !found.is_empty() {
                self.put_back(job, &found).await?;
                return Ok(found);
            }
        }
        for (job, key) in self.named_keys(only) {
            if let Some(letter) = self.letter(job, key).await?.filter(|letter| letter.at_ms <= until) {
                let found = vec![letter];
                self.put_back(job, &found).await?;
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    async fn put_back(&self, job: &Job, dead: &[Dead]) -> RedisResult<()> {
        let keys: Vec<EntryKey> = dead.iter().map(|dead| EntryKey::new(&*dead.key)).collect();
        // First due again, then no longer dead: a crash in between only leaves a letter too many.
        self.agenda.put(&job.name, &keys, When::Due(0), Trigger::Manual).await?;
        let keys: Vec<&str> = keys.iter().map(EntryKey::as_str).collect();
        redis::pipe()
            .cmd("ZREM")
            .arg(self.keys.dead(&job.name))
            .arg(&keys)
            .ignore()
            .cmd("HDEL")
            .arg(self.keys.dead_reasons(&job.name))
            .arg(&keys)
            .ignore()
            .query_async(&mut self.redis.clone())
            .await
    }

    /// The jobs that are named; all where nothing is.
    fn named_jobs(&self, only: &[String]) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.jobs.values().filter(move |job| only.is_empty() || only.iter().any(|name| *name == job.name.as_str()))
    }

    /// The keys that are named and whose jobs are not, each once.
    fn named_keys<'a>(&'a self, only: &'a [String]) -> impl Iterator<Item = (&'a Arc<Job>, &'a str)> {
        let names: BTreeSet<&str> = only.iter().map(String::as_str).collect();
        let named = names.clone();
        let owned = names.into_iter().filter_map(|name| Some((self.jobs.owner(name)?.0, name)));
        owned.filter(move |(job, _)| !named.contains(job.name.as_str()))
    }

    async fn letter(&self, job: &Job, key: &str) -> RedisResult<Option<Dead>> {
        let at: Option<f64> =
            redis::cmd("ZSCORE").arg(self.keys.dead(&job.name)).arg(key).query_async(&mut self.redis.clone()).await?;
        let found = at.map(|at| (key.to_owned(), at)).into_iter().collect();
        Ok(self.letters(job, found).await?.pop())
    }

    async fn letters(&self, job: &Job, found: Vec<(String, f64)>) -> RedisResult<Vec<Dead>> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        let mut ask = redis::cmd("HMGET");
        ask.arg(self.keys.dead_reasons(&job.name)).arg(&keys);
        let reasons: Vec<Option<String>> = ask.query_async(&mut self.redis.clone()).await?;
        let letters = found.into_iter().zip(reasons).map(|((key, at), reason)| {
            #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
            let at_ms = at as i64;
            Dead { job: job.name.to_string(), key, at_ms, reason: Some(reason.unwrap_or_default()) }
        });
        Ok(letters.collect())
    }
}

/// A page that fills.
struct Page {
    dead: Vec<Dead>,
    bytes: usize,
    most: usize,
}

impl Page {
    fn is_full(&self) -> bool {
        self.dead.len() >= self.most || self.bytes >= PAGE_BYTES
    }

    /// Takes letters while there is room; returns how many.
    fn take(&mut self, letters: Vec<Dead>) -> usize {
        let before = self.dead.len();
        for letter in letters {
            if self.is_full() {
                break;
            }
            self.bytes += letter.key.len() + letter.reason.as_ref().map_or(0, String::len);
            self.dead.push(letter);
        }
        self.dead.len() - before
    }
}
