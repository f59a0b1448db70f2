//! The way to Redis that all parts share: bounded in time, behind one breaker, counted.

use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisResult};
use tokio::time::timeout;

use super::Error;
use super::breaker::{Breaker, Pass};
use super::error::is_absence;
use super::stats::Counts;
use crate::entry::duration;
use crate::protocol::Keys;
use crate::redis::Connection;

/// A connection, how long a call may take, and how Redis was lately.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) redis: Connection,
    pub(super) names: Keys,
    pub(super) counts: Counts,
    pub(super) breaker: Breaker,
    /// For a whole call; one of a script that Redis forgot is three commands.
    bound: Duration,
    /// Whether the connection's own patience bounds a single command.
    bounded: bool,
}

impl Link {
    pub(super) fn new(redis: Connection, names: Keys, bound: Duration) -> Self {
        let bounded = redis.patience() <= bound;
        Self { redis, names, counts: Counts::default(), breaker: Breaker::default(), bound, bounded }
    }

    /// Calls Redis, unless it is known to be away.
    pub(super) async fn ask<T, F>(&self, call: impl FnOnce(Connection) -> F) -> Result<T, Error>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let pass = self.pass()?;
        Self::judge(pass, self.within_bound(call(self.redis.clone())).await)
    }

    /// The same for one command, without a timer of its own where the connection has one.
    pub(super) async fn ask_one<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let pass = self.pass()?;
        let mut redis = self.redis.clone();
        let call = command.query_async(&mut redis);
        Self::judge(pass, if self.bounded { call.await } else { self.within_bound(call).await })
    }

    fn pass(&self) -> Result<Pass<'_>, Error> {
        self.breaker.pass().ok_or_else(|| Error::Unavailable("it did not answer lately".to_owned()))
    }

    fn judge<T>(pass: Pass<'_>, answer: RedisResult<T>) -> Result<T, Error> {
        match answer {
            Err(e) if is_absence(&e) => {
                let why = e.to_string();
                pass.ill(&why);
                Err(Error::Unavailable(why))
            }
            answer => {
                pass.well();
                answer.map_err(Error::Redis)
            }
        }
    }

    /// Calls Redis however it was lately, for those who hold something there.
    pub(super) async fn insist<T, F>(&self, call: impl FnOnce(Connection) -> F) -> Result<T, Error>
    where
        F: Future<Output = RedisResult<T>>,
    {
        self.within_bound(call(self.redis.clone())).await.map_err(|e| match is_absence(&e) {
            true => Error::Unavailable(e.to_string()),
            false => Error::Redis(e),
        })
    }

    async fn within_bound<T>(&self, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let Self { bound, .. } = self;
        timeout(*bound, call).await.unwrap_or_else(|_| {
            Err(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no answer within {}", duration::text(*bound)),
            )
            .into())
        })
    }
}

/// Does something soon after, without anybody waiting: what it leaves undone ends by itself in Redis.
pub(super) fn afterwards(what: impl Future<Output = ()> + Send + 'static) {
    // Without a runtime the process is ending, and nothing is to be done.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(what);
    }
}

/// A token that nobody else has.
pub(super) fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// For Redis's `PX`: at least 1 ms, at most a hundred years.
pub(super) fn millis(time: Duration) -> u64 {
    duration::millis(time).unsigned_abs().clamp(1, 100 * 366 * 24 * 3_600 * 1_000)
}
