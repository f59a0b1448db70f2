//! What can go wrong, and which errors of Redis mean what.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::redis::UrlError;

/// Why a call failed. Which calls answer [`Error::Unavailable`], and which do without Redis, is the table of
/// [`samovar::cache`](crate::cache).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Redis does not answer, or did not within the bound. Whether the command was carried out is unknown.
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
    /// What is there is not what was asked for.
    #[error("the value of `{key}` is not of the type asked for")]
    Decode {
        /// The whole key.
        key: String,
        /// Why, and where in the value.
        source: serde_json::Error,
    },
    /// The URL of Redis has a fault.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// What was asked for makes no sense; the text says why, and what would.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else has the lock.
    #[error("the lock `{0}` is taken")]
    Taken(String),
    /// The lock ran out, or was lost with its Redis, before it was released; somebody else may have had it since.
    #[error("the lock `{0}` was lost before it was released")]
    Lost(String),
}

impl Error {
    /// Whether it is Redis that is away: the same call may work in a moment.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether a write is to be dropped and counted for it, rather than told of.
    pub(super) fn drops_writes(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            // Full, a replica since a failover, or unable to persist: nothing that the caller can mend.
            Self::Redis(e) => {
                e.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) || says(e, &["OOM", "MISCONF", "NOREPLICAS"])
            }
            _ => false,
        }
    }
}

/// Whether an error tells of Redis's absence, rather than of what it was asked.
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
        _ => error.is_timeout() || error.is_connection_dropped() || error.is_connection_refusal(),
    }
}

/// Whether Redis's answer, or one of its answers to a pipeline, begins with one of these codes.
fn says(error: &RedisError, codes: &[&str]) -> bool {
    error.code().is_some_and(|code| codes.contains(&code))
        || error.clone().into_server_errors().is_some_and(|all| all.iter().any(|(_, e)| codes.contains(&e.code())))
}
