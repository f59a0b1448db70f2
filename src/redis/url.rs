//! Redis URLs: what `REDIS_URL` and its kin mean, and connections to it.
use std::fmt;
use std::time::Duration;

/// Where Redis is and how to get in. `Display` and `Debug` never show the password.
#[derive(Clone)]
pub struct RedisUrl {}

/// Why a URL cannot be used; never shows a password.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(pub String);

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for RedisUrl {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl RedisUrl {
    /// Reads `redis://…` or `rediss://…`; `ca` is a PEM file of roots to trust instead of the system's.
    pub fn parse(_text: &str, _ca: Option<&std::path::Path>) -> Result<Self, UrlError> {
        todo!()
    }
    /// A client, not yet connected (for pub/sub and blocking reads).
    pub fn client(&self) -> redis::RedisResult<redis::Client> {
        todo!()
    }
    /// A multiplexed connection that comes back by itself; commands fail after `patience`.
    pub async fn manager(&self, _patience: Duration) -> redis::RedisResult<redis::aio::ConnectionManager> {
        todo!()
    }
}
