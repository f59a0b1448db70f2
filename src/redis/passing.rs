//! Errors that pass by themselves.

use redis::RedisError;

use super::connection::UNANSWERED;

/// The codes of errors that pass once Redis is back, or another server is the master.
const PASSING: [&str; 8] =
    ["READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "CLUSTERDOWN", "TRYAGAIN", UNANSWERED];

/// Returns `true` if an error passes once Redis is back, or another server is the master.
pub(crate) fn passes(error: &RedisError) -> bool {
    error.is_io_error() || error.code().is_some_and(|code| PASSING.contains(&code))
}
