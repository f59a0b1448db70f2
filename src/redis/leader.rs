//! One worker of a fleet does a thing at a time: it holds a key with a TTL, and renews it while it goes on.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::Connection;
use crate::entry::duration;

static LEAD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/lead.lua")));

/// Takes the key for this worker, or renews it, for `ttl`. Returns `false` while another worker holds it.
///
/// # Errors
/// Redis's; the key may be held all the same, until its TTL ends.
pub(crate) async fn lead(redis: &Connection, key: &str, worker: &str, ttl: Duration) -> RedisResult<bool> {
    LEAD.key(key).arg(worker).arg(duration::millis(ttl)).invoke_async(&mut redis.clone()).await
}
