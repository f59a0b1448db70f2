//! Leader election for one task: one worker of the fleet holds a key with a TTL, and renews it while it works.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::Connection;
use crate::entry::duration;

static LEAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/lead.lua")));

/// Acquires or renews the key for this worker, for `ttl`. Returns `false` while another worker holds it.
///
/// # Errors
/// Fails if Redis returns an error; the key may be held all the same, until its TTL ends.
pub(crate) async fn lead(redis: &Connection, key: &str, worker: &str, ttl: Duration) -> RedisResult<bool> {
    LEAD.key(key).arg(worker).arg(duration::millis(ttl)).invoke_async(&mut redis.clone()).await
}

/// Gives leadership up, if the worker has it: another need not wait for the end of its TTL.
///
/// # Errors
/// Redis's.
pub(crate) async fn resign(redis: &Connection, key: &str, worker: &str) -> RedisResult<()> {
    LEAD.key(key).arg(worker).arg(0).invoke_async(&mut redis.clone()).await
}
