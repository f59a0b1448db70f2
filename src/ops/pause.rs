//! Pausing a job in the whole fleet.

use redis::RedisResult;

use super::Ops;
use crate::agenda::due_signal;
use crate::entry::JobName;
use crate::job::KnownJob;
use crate::redis::RedisTime;

impl Ops {
    /// Pauses a job: no worker claims its entries until it is resumed. Claimed entries are finished. Returns `true` if
    /// the job was not paused before.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn pause(&self, job: &KnownJob) -> RedisResult<bool> {
        let now = self.store.now().await?;
        let set: Option<String> = redis::cmd("SET")
            .arg(self.keys.paused(&job.name))
            .arg(now)
            .arg("NX")
            .query_async(&mut self.redis.clone())
            .await?;
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
