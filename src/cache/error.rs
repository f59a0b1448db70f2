//! The errors of the cache, and the classes of Redis's errors.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::redis::{UNANSWERED, UrlError};

/// The error of a call. The table of [`samovar::cache`](crate::cache) shows which calls return [`Error::Unavailable`]
/// and which work without Redis.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Redis did not answer within the bound. The command may have been executed.
    #[error("Redis is not available: {0}")]
    Unavailable(String),
    /// Redis answered with an error.
    #[error(transparent)]
    Redis(RedisError),
    /// A value cannot be written as JSON.
    #[error("the value for `{key}` cannot be written as JSON")]
    Encode {
        /// The whole key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The value is not of the requested type.
    #[error("the value of `{key}` is not of the requested type")]
    Decode {
        /// The whole key.
        key: String,
        /// The reason, with the position in the value.
        source: serde_json::Error,
    },
    /// The Redis URL is invalid.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// An argument is invalid; the text tells the reason and the remedy.
    #[error("{0}")]
    Invalid(String),
    /// Another holder has the lock.
    #[error("the lock `{0}` is taken")]
    Taken(String),
    /// The lock expired, or Redis lost it, before it was released; another holder may have had it since.
    #[error("the lock `{0}` was lost before it was released")]
    Lost(String),
}

impl Error {
    /// Returns the error of a call that failed with this one of Redis.
    pub(super) fn of(error: RedisError) -> Self {
        if is_absence(&error) { Self::Unavailable(error.to_string()) } else { Self::Redis(error) }
    }

    /// Returns `true` if Redis is unreachable: the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Returns `true` if a write is dropped and counted instead of reported.
    pub(super) fn drops_writes(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            // Out of memory, read-only after a failover, or unable to persist: the caller cannot fix it.
            Self::Redis(e) => {
                e.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) || says(e, &["OOM", "MISCONF", "NOREPLICAS"])
            }
            _ => false,
        }
    }
}

/// Returns `true` if the error means that Redis is unreachable, not that the command was wrong.
pub(super) fn is_absence(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => true,
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain
        ),
        _ => {
            error.is_timeout()
                || error.is_connection_dropped()
                || error.is_connection_refusal()
                || says(error, &[UNANSWERED])
        }
    }
}

/// Returns `true` if the error, or one error of a pipeline, has one of these codes.
fn says(error: &RedisError, codes: &[&str]) -> bool {
    error.code().is_some_and(|code| codes.contains(&code))
        || error.clone().into_server_errors().is_some_and(|all| all.iter().any(|(_, e)| codes.contains(&e.code())))
}
