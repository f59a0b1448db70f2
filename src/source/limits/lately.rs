//! How fast an upstream answers the fleet: each worker adds what its requests took, and anybody may ask.

use std::sync::{LazyLock, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script};

use super::Gate;

static TELL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/tell.lua")));

/// Requests of the fleet to one upstream, in this hour of Redis's clock and the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lately {
    /// How many ended, however they did.
    pub requests: u64,
    /// How long they took together.
    pub took: Duration,
}

impl Gate {
    /// Tells what this worker has fetched since it last did.
    ///
    /// # Errors
    /// Redis's; it is told the next time.
    pub async fn tell(&self) -> RedisResult<()> {
        let new = self.untold();
        if new.requests == 0 {
            return Ok(());
        }
        let mut call = TELL.key(&self.fetched);
        call.arg(new.requests).arg(u64::try_from(new.took.as_micros()).unwrap_or(u64::MAX));
        let told: RedisResult<()> = call.invoke_async(&mut self.redis.clone()).await;
        if told.is_err() {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.requests -= new.requests;
            told.took -= new.took;
        }
        told
    }

    /// What the fleet has told.
    ///
    /// # Errors
    /// Redis's.
    pub async fn lately(&self) -> RedisResult<Lately> {
        let fields = ["requests", "took", "requests_before", "took_before"];
        let [requests, took, requests_before, took_before]: [Option<u64>; 4] =
            redis::cmd("HMGET").arg(&self.fetched).arg(&fields).query_async(&mut self.redis.clone()).await?;
        let sum = |now: Option<u64>, before: Option<u64>| now.unwrap_or(0).saturating_add(before.unwrap_or(0));
        let took = Duration::from_micros(sum(took, took_before));
        Ok(Lately { requests: sum(requests, requests_before), took })
    }

    /// What is yet to be told; from now on it counts as told.
    fn untold(&self) -> Lately {
        let fetches = self.fetches();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Lately {
            requests: fetches.count.saturating_sub(told.requests),
            took: fetches.took.saturating_sub(told.took),
        };
        told.requests += new.requests;
        told.took += new.took;
        new
    }
}
