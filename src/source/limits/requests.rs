//! The requests of one worker to an upstream, and the hourly sums of the fleet's.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script};

use crate::entry::JobName;
use crate::redis::Connection;

static COUNT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/count_requests.lua")));

/// The requests of one worker to an upstream since it began.
#[derive(Clone, Debug, Default)]
pub struct Fetches {
    /// The number of requests that ended, with or without an answer.
    pub count: u64,
    /// The time they took together.
    pub took: Duration,
    /// The time the slowest took.
    pub slowest: Duration,
    /// AI tokens spent, by job.
    pub tokens: BTreeMap<JobName, u64>,
}

/// The fleet's requests to an upstream in this hour of Redis's clock and the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lately {
    /// The number of requests that ended, with or without an answer.
    pub requests: u64,
    /// The time they took together.
    pub took: Duration,
}

/// The count of one worker's requests to an upstream.
pub(super) struct Requests {
    /// The hash of the fleet's sums.
    key: String,
    fetches: Mutex<Fetches>,
    /// The part that is in the fleet's sums.
    told: Mutex<Lately>,
}

impl Requests {
    pub(super) fn new(key: String) -> Self {
        Self { key, fetches: Mutex::default(), told: Mutex::default() }
    }

    /// Counts a request that ended.
    pub(super) fn count(&self, job: &JobName, took: Duration, tokens: u64) {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        fetches.count += 1;
        fetches.took += took;
        fetches.slowest = fetches.slowest.max(took);
        if tokens > 0 {
            *fetches.tokens.entry(job.clone()).or_default() += tokens;
        }
    }

    /// Returns this worker's requests.
    pub(super) fn fetches(&self) -> Fetches {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds this worker's requests since the last call to the fleet's sums.
    ///
    /// # Errors
    /// Redis's; they are added with the next call.
    pub(super) async fn tell(&self, redis: &Connection) -> RedisResult<()> {
        let new = self.untold();
        if new.requests == 0 {
            return Ok(());
        }
        let mut call = COUNT.key(&self.key);
        call.arg(new.requests).arg(u64::try_from(new.took.as_micros()).unwrap_or(u64::MAX));
        let counted: RedisResult<()> = call.invoke_async(&mut redis.clone()).await;
        if counted.is_err() {
            let mut told = self.told();
            told.requests -= new.requests;
            told.took -= new.took;
        }
        counted
    }

    /// Returns the fleet's sums.
    ///
    /// # Errors
    /// Redis's.
    pub(super) async fn lately(&self, redis: &Connection) -> RedisResult<Lately> {
        let fields = ["requests", "took", "requests_before", "took_before"];
        let [requests, took, requests_before, took_before]: [Option<u64>; 4] =
            redis::cmd("HMGET").arg(&self.key).arg(&fields).query_async(&mut redis.clone()).await?;
        let sum = |now: Option<u64>, before: Option<u64>| now.unwrap_or(0).saturating_add(before.unwrap_or(0));
        let took = Duration::from_micros(sum(took, took_before));
        Ok(Lately { requests: sum(requests, requests_before), took })
    }

    /// Returns the requests that are not in the fleet's sums, and counts them as told.
    fn untold(&self) -> Lately {
        let fetches = self.fetches();
        let mut told = self.told();
        let new = Lately {
            requests: fetches.count.saturating_sub(told.requests),
            took: fetches.took.saturating_sub(told.took),
        };
        told.requests += new.requests;
        told.took += new.took;
        new
    }

    fn told(&self) -> MutexGuard<'_, Lately> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
