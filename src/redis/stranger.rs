//! New connections to a server that is not the one of the URL: another program, or one with TLS where the URL has none.

use std::error::Error;
use std::fmt;
use std::io;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, RedisError, RedisResult};

use super::named::io_cause;

/// The fault of a server that does not speak as the URL says.
#[derive(Debug)]
struct Stranger(String);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Stranger {}

/// Connects once. The error says so where a server does not speak as the URL says; `it` names the server in the text.
///
/// # Errors
/// The server's, or that it cannot be reached.
pub(super) async fn connect(
    client: &Client,
    config: &AsyncConnectionConfig,
    it: &str,
) -> RedisResult<MultiplexedConnection> {
    let connected = client.get_multiplexed_async_connection_with_config(config).await;
    connected.map_err(|error| explained(error, client.get_connection_info().addr(), it))
}

/// Returns the error of a connection; one that a stranger causes says so.
pub(super) fn explained(error: RedisError, address: &ConnectionAddr, it: &str) -> RedisError {
    match fault(&error, address) {
        Some((kind, what)) => io::Error::new(kind, Stranger(format!("{it} {what}"))).into(),
        None => error,
    }
}

/// Returns the error of the first command of a connection, as [`explained`] does. After it TLS is agreed on.
pub(super) fn explained_first(error: RedisError, address: &ConnectionAddr, it: &str) -> RedisError {
    let is_after_tls = matches!(address, ConnectionAddr::TcpTls { .. }) && error.kind() != ErrorKind::Parse;
    if is_after_tls { error } else { explained(error, address, it) }
}

/// Returns `true` if a server answers, but not as the URL says: the error names the remedy. One that does not answer
/// may be a Redis that is away.
#[cfg(feature = "worker")]
pub(crate) fn is_of_stranger(error: &RedisError) -> bool {
    let answers = |cause: &&io::Error| cause.kind() == io::ErrorKind::InvalidData;
    io_cause(error).filter(answers).and_then(io::Error::get_ref).is_some_and(|cause| cause.is::<Stranger>())
}

/// Returns what a server does that does not speak as the URL says, as the rest of a sentence.
fn fault(error: &RedisError, address: &ConnectionAddr) -> Option<(io::ErrorKind, String)> {
    let has_tls = matches!(address, ConnectionAddr::TcpTls { .. });
    if error.kind() == ErrorKind::Parse {
        let tls = if has_tls { "" } else { "; a port that wants TLS needs a URL that begins with rediss" };
        let what = format!("answers, but not as Redis does: check host and port of the URL{tls}");
        return Some((io::ErrorKind::InvalidData, what));
    }
    let cause = io_cause(error)?;
    let is_end = matches!(
        cause.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    );
    let without_tls =
        "check host and port of the URL; a port without TLS needs a URL that begins with redis, not rediss";
    let what = match (has_tls, cause.kind()) {
        (true, io::ErrorKind::InvalidData) if cause.to_string().contains("corrupt message") => {
            format!("answers, but not with TLS: {without_tls}")
        }
        (true, _) if is_end => format!("ends the connection before TLS is agreed on ({cause}): {without_tls}"),
        (true, io::ErrorKind::TimedOut) => format!("does not answer in time ({cause}): {without_tls}"),
        (false, _) if is_end => format!(
            "ends the connection without an answer ({cause}); a port that wants TLS needs a URL that begins with rediss"
        ),
        (true | false, _) => return None,
    };
    Some((cause.kind(), what))
}
