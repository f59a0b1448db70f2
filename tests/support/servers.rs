//! The servers that most tests need.

use super::{TestRedis, Upstream};

/// Starts a Redis and an upstream.
pub async fn both() -> (TestRedis, Upstream) {
    tokio::join!(TestRedis::start(), Upstream::start())
}
