//! Entries whose warming was given up.

use redis::RedisResult;
use serde::Serialize;

use super::{Ops, PAGE};
use crate::agenda::{Trigger, When};
use crate::job::{EntryKey, Job};

/// A dead letter.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Dead {
    /// The job.
    pub job: String,
    /// The entry.
    pub key: String,
    /// When it was given up (Redis time, ms since the epoch).
    pub at_ms: i64,
    /// Why.
    pub reason: String,
}

impl Ops {
    /// Dead letters, of these jobs and entries or, where none is named, of all; the oldest of each job first.
    ///
    /// # Errors
    /// Redis's.
    pub async fn dead(&self, only: &[String]) -> RedisResult<Vec<Dead>> {
        let mut dead = Vec::new();
        for job in self.jobs.jobs.values() {
            for entry in self.dead_of(job).await? {
                if only.is_empty() || only.contains(&entry.job) || only.contains(&entry.key) {
                    dead.push(entry);
                }
            }
        }
        Ok(dead)
    }

    /// The first of these names that is neither a job nor a key of one.
    pub fn unknown<'a>(&self, names: &'a [String]) -> Option<&'a String> {
        names.iter().find(|name| !self.jobs.jobs.contains_key(name.as_str()) && self.jobs.owner(name).is_none())
    }

    /// Puts dead letters back on the agenda, with all their attempts before them.
    ///
    /// # Errors
    /// Redis's; some may be back, and trying again does no harm.
    pub async fn retry(&self, dead: &[Dead]) -> RedisResult<()> {
        for job in self.jobs.jobs.values() {
            let keys: Vec<EntryKey> = dead
                .iter()
                .filter(|dead| dead.job == job.name.as_str())
                .map(|dead| EntryKey::new(&*dead.key))
                .collect();
            // First due again, then no longer dead: a crash in between only leaves a letter too many.
            self.agenda.put(&job.name, &keys, When::Due(0), Trigger::Manual).await?;
            for page in keys.chunks(PAGE) {
                let keys: Vec<&str> = page.iter().map(EntryKey::as_str).collect();
                let () = redis::pipe()
                    .cmd("ZREM")
                    .arg(self.keys.dead(&job.name))
                    .arg(&keys)
                    .ignore()
                    .cmd("HDEL")
                    .arg(self.keys.dead_reasons(&job.name))
                    .arg(&keys)
                    .ignore()
                    .query_async(&mut self.redis.clone())
                    .await?;
            }
        }
        Ok(())
    }

    async fn dead_of(&self, job: &Job) -> RedisResult<Vec<Dead>> {
        let mut dead = Vec::new();
        let mut redis = self.redis.clone();
        loop {
            let page: Vec<(String, f64)> = redis::cmd("ZRANGE")
                .arg(self.keys.dead(&job.name))
                .arg(dead.len())
                .arg(dead.len() + PAGE - 1)
                .arg("WITHSCORES")
                .query_async(&mut redis)
                .await?;
            if page.is_empty() {
                return Ok(dead);
            }
            let keys: Vec<&str> = page.iter().map(|(key, _)| key.as_str()).collect();
            let reasons: Vec<Option<String>> =
                redis::cmd("HMGET").arg(self.keys.dead_reasons(&job.name)).arg(&keys).query_async(&mut redis).await?;
            dead.extend(page.into_iter().zip(reasons).map(|((key, at), reason)| {
                #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
                let at_ms = at as i64;
                Dead { job: job.name.to_string(), key, at_ms, reason: reason.unwrap_or_default() }
            }));
        }
    }
}
