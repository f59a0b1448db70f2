//! The revalidation that is under way, as the fleet has noted it.

use std::collections::HashMap;

use redis::RedisResult;

use super::Ops;
use crate::redis::{RedisTime, is_of_keys};

/// A revalidation after a gap in what workers heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revalidation {
    /// Values that were fetched up to then may be out of date.
    pub fetched_until: RedisTime,
    /// Invalidations were certainly lost; otherwise some may have been missed.
    pub is_loss: bool,
    /// The jobs that are not done.
    pub left: Vec<String>,
    /// All jobs.
    pub jobs: usize,
}

impl Ops {
    /// Returns the revalidation that is under way; `None` if there is none.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn revalidation(&self) -> RedisResult<Option<Revalidation>> {
        let [gap, _, done] = self.keys.revalidation();
        let mut ask = redis::pipe();
        // `GETRANGE` instead of `GET`, which the sampler takes for a read by an API.
        ask.cmd("GETRANGE").arg(gap).arg(0).arg(-1).cmd("HGETALL").arg(done);
        let (gap, done): (String, HashMap<String, String>) = match ask.query_async(&mut self.redis.clone()).await {
            Err(e) if is_of_keys(&e) => return Ok(None),
            found => found?,
        };
        let mut words = gap.split(' ');
        let time = words.next().and_then(|at| at.parse().ok());
        let Some((at, kind)) = time.zip(words.next()) else { return Ok(None) };
        let left = self.jobs.jobs.keys().map(ToString::to_string).filter(|job| done.get(job) != Some(&gap));
        Ok(Some(Revalidation {
            fetched_until: RedisTime::from_millis(at),
            is_loss: kind == "2",
            left: left.collect(),
            jobs: self.jobs.jobs.len(),
        }))
    }
}
