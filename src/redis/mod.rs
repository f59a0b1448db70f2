//! Connections to Redis, how loops wait for it, and how well they are.

mod connection;
pub mod health;
#[cfg(feature = "worker")]
mod leader;
mod backoff;
pub mod requirements;
mod script;
#[cfg(test)]
pub(crate) mod server;
mod url;
mod wrong_types;

pub use backoff::Backoff;
pub use connection::Connection;
pub use health::{Health, LoopHealth, Troubles};
#[cfg(feature = "worker")]
pub(crate) use leader::lead;
pub(crate) use script::with_preludes;
pub use url::{RedisUrl, UrlError};
pub use wrong_types::{WrongType, WrongTypes, is_of_keys, wrong_types};

/// The value of a field in an answer to `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
