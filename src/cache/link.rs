//! The access to Redis that all parts share: bounded in time, behind breakers, with counts.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisResult};
use tokio::time::timeout;

use super::Error;
use super::breaker::{Breaker, Breakers, Pass};
use super::error::is_absence;
use super::stats::Counts;
use crate::entry::duration;
use crate::protocol::Keys;
use crate::redis::Connection;

/// A connection with its time bound, breakers and counts.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) redis: Connection,
    pub(super) names: Keys,
    pub(super) counts: Counts,
    pub(super) breakers: Breakers,
    /// The bound of a whole call; a call of a script that Redis lost takes three commands.
    bound: Duration,
    /// `true` if the connection's own timeout bounds a single command.
    bounded: bool,
}

/// The link behind one breaker.
#[derive(Debug)]
pub(super) struct Guarded<'a> {
    link: &'a Link,
    breaker: Arc<Breaker>,
}

impl Link {
    pub(super) fn new(redis: Connection, names: Keys, bound: Duration) -> Self {
        let bounded = redis.timeout() <= bound;
        Self { redis, names, counts: Counts::default(), breakers: Breakers::default(), bound, bounded }
    }

    /// Returns the link for calls that concern this key, and no other master of a Cluster than its own.
    pub(super) fn at(&self, key: &str) -> Guarded<'_> {
        Guarded { link: self, breaker: self.breakers.of(&self.redis, key) }
    }

    /// Returns the link for all other calls.
    pub(super) fn anywhere(&self) -> Guarded<'_> {
        Guarded { link: self, breaker: self.breakers.shared() }
    }

    /// Calls Redis past the breakers, for callers that hold a lock there.
    pub(super) async fn insist<T, F>(&self, call: impl FnOnce(Connection) -> F) -> Result<T, Error>
    where
        F: Future<Output = RedisResult<T>>,
    {
        self.within_bound(call(self.redis.clone())).await.map_err(Error::of)
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

impl Guarded<'_> {
    /// Returns `true` if both are behind one breaker.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.breaker, &other.breaker)
    }

    /// Calls Redis, unless the breaker is open.
    pub(super) async fn ask<T, F>(&self, call: impl FnOnce(Connection) -> F) -> Result<T, Error>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let pass = self.pass()?;
        Self::judge(pass, self.link.within_bound(call(self.link.redis.clone())).await)
    }

    /// Sends one command, without a second timer if the connection has one.
    pub(super) async fn ask_one<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        self.ask_once(async |mut redis| command.query_async(&mut redis).await).await
    }

    /// Calls Redis in one round trip, without a second timer if the connection has one. So a master of a Cluster that
    /// does not answer leaves the answers of the others.
    pub(super) async fn ask_once<T>(&self, call: impl AsyncFnOnce(Connection) -> RedisResult<T>) -> Result<T, Error> {
        let pass = self.pass()?;
        let call = call(self.link.redis.clone());
        Self::judge(pass, if self.link.bounded { call.await } else { self.link.within_bound(call).await })
    }

    fn pass(&self) -> Result<Pass, Error> {
        self.breaker
            .pass()
            .ok_or_else(|| Error::Unavailable("the circuit breaker is open after repeated failures".to_owned()))
    }

    fn judge<T>(pass: Pass, answer: RedisResult<T>) -> Result<T, Error> {
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
}

/// Runs a cleanup in the background. If it fails, a TTL in Redis ends what it left.
pub(super) fn afterwards(what: impl Future<Output = ()> + Send + 'static) {
    // Without a runtime the process is ending, and there is nothing to do.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(what);
    }
}

/// Returns a unique token.
pub(super) fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Returns milliseconds for `PX`: at least 1, at most a hundred years.
pub(super) fn millis(time: Duration) -> u64 {
    duration::millis(time).unsigned_abs().clamp(1, 100 * 366 * 24 * 3_600 * 1_000)
}
