//! Pausing a job in the whole fleet.

use redis::RedisResult;

use super::Ops;
use crate::agenda::due_signal;
use crate::entry::{JobName, excerpt};
use crate::job::KnownJob;
use crate::redis::{RedisTime, is_of_keys};

/// The field of a job's counters that holds the note of its pause.
pub(super) const NOTE: &str = "pause_note";
/// The longest note, in characters.
const LONGEST_NOTE: usize = 200;

impl Ops {
    /// Pauses a job: no worker claims its entries until it is resumed. Claimed entries are finished. Returns `true` if
    /// the job was not paused before. A note tells people why; it replaces an earlier one.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn pause(&self, job: &KnownJob, note: Option<&str>) -> RedisResult<bool> {
        let (mut redis, now) = (self.redis.clone(), self.store.now().await?);
        let set: Option<String> =
            redis::cmd("SET").arg(self.keys.paused(&job.name)).arg(now).arg("NX").query_async(&mut redis).await?;
        let stats = self.keys.stats(&job.name);
        let noted: RedisResult<()> = match note.filter(|note| !note.is_empty()) {
            Some(note) => {
                let note = excerpt(note, LONGEST_NOTE);
                redis::cmd("HSET").arg(stats).arg(NOTE).arg(note).exec_async(&mut redis).await
            }
            None if set.is_some() => redis::cmd("HDEL").arg(stats).arg(NOTE).exec_async(&mut redis).await,
            None => Ok(()),
        };
        // Counters of another type are somebody else's, and no reason not to pause.
        noted.or_else(|e| if is_of_keys(&e) { Ok(()) } else { Err(e) })?;
        Ok(set.is_some())
    }

    /// Resumes a job; returns `true` if it was paused.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn resume(&self, job: &KnownJob) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let deleted: u64 = redis::cmd("DEL").arg(self.keys.paused(&job.name)).query_async(&mut redis).await?;
        let () = redis::cmd("PUBLISH")
            .arg(self.keys.signal_channel())
            .arg(due_signal(&job.name))
            .query_async(&mut redis)
            .await?;
        Ok(deleted > 0)
    }

    /// Returns when a job was paused; `None` if it is not paused.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn paused(&self, job: &JobName) -> RedisResult<Option<RedisTime>> {
        redis::cmd("GET").arg(self.keys.paused(job)).query_async(&mut self.redis.clone()).await
    }
}
