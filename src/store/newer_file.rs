//! Job files of workers that took charge later: an end by an older file is not for good.

use std::time::Duration;

use redis::RedisResult;

use super::Store;
use crate::job::{Job, KnownJob};
use crate::redis::is_of_keys;

impl Store {
    /// Returns since when a live worker with another file of a job is in charge of it, if it took charge after all
    /// workers with this file: the fleet's description of the job is then of that file. Returns `None` if no
    /// description can be read.
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
            Some(known) => Ok(Some(self.now().await?.saturating_since(known.since))),
            None => Ok(None),
        }
    }
}
