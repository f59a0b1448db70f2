//! Errors of a connection, with the address of the server that they concern.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use redis::{RedisError, Value};

/// The codes of errors that concern a server, and not a key or a command.
const OF_SERVER: [&str; 9] =
    ["CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "NOREPLICAS", "MISCONF", "OOM", "NOAUTH", "WRONGPASS"];

/// The fault of a server that another one has replaced.
#[derive(Debug)]
pub(super) struct Replaced;

impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another server became the master, and the answer of the one before it is not awaited")
    }
}

impl Error for Replaced {}

/// Returns an error with the address of its server, unless it concerns a key or a command. Code and kind stay.
pub(super) fn named(error: RedisError, server: &str) -> RedisError {
    if let Some(code) = error.code() {
        return match OF_SERVER.contains(&code) {
            true => match server_error(code, error.detail(), server) {
                Value::ServerError(named) => named.into(),
                _ => error,
            },
            false => error,
        };
    }
    match io_cause(&error) {
        // The address is by now that of the server which took its place.
        Some(cause) if cause.get_ref().is_some_and(|cause| cause.is::<Replaced>()) => error,
        Some(cause) => io::Error::new(cause.kind(), format!("{server}: {cause}")).into(),
        None => error,
    }
}

/// Returns the I/O error that is the cause of an error.
pub(super) fn io_cause(error: &RedisError) -> Option<&io::Error> {
    let cause = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    cause.downcast_ref::<io::Error>()
}

/// Returns an answer; if it is an error, as [`named`] does.
pub(super) fn named_answer(answer: Value, server: &str) -> Value {
    match &answer {
        Value::ServerError(error) if OF_SERVER.contains(&error.code()) => {
            server_error(error.code(), error.details(), server)
        }
        _ => answer,
    }
}

fn server_error(code: &str, detail: Option<&str>, server: &str) -> Value {
    error_of(&format!("{code} {} ({server})", detail.unwrap_or_default()))
}

/// Returns an error as a server answers it: its code and a text.
pub(super) fn error_of(text: &str) -> Value {
    let line = format!("-{}\r\n", text.replace(['\r', '\n'], " "));
    redis::parse_redis_value(line.as_bytes()).unwrap_or(Value::Nil)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_server_names_it_and_stays_what_it_is() {
        let refused: RedisError = io::Error::from(io::ErrorKind::ConnectionRefused).into();
        let refused = named(refused, "10.0.0.7:6379");
        assert!(refused.is_io_error() && refused.is_connection_refusal(), "{refused:?}");
        assert!(refused.to_string().starts_with("10.0.0.7:6379: "), "{refused}");
        let replaced: RedisError = io::Error::new(io::ErrorKind::ConnectionReset, Replaced).into();
        let replaced = named(replaced, "10.0.0.8:6379");
        assert!(replaced.to_string().starts_with("another server became the master"), "not the new one: {replaced}");
        let error = |text: &str| match named_answer(error_of(text), "10.0.0.7:6379") {
            Value::ServerError(error) => RedisError::from(error),
            other => panic!("{other:?}"),
        };
        let down = error("CLUSTERDOWN The cluster is down");
        assert_eq!((down.code(), down.detail()), (Some("CLUSTERDOWN"), Some("The cluster is down (10.0.0.7:6379)")));
        let wrong = error("WRONGTYPE Operation against a key");
        assert_eq!((wrong.code(), wrong.detail()), (Some("WRONGTYPE"), Some("Operation against a key")));
    }
}
