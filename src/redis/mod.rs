//! Connections to Redis, and every key and channel name.

mod connection;
pub mod inbox;
pub mod keys;
mod patience;
pub mod requirements;
#[cfg(test)]
pub(crate) mod server;
mod url;
mod wrong_types;

pub use connection::Connection;
pub use keys::Keys;
pub use patience::Patience;
pub use url::{RedisUrl, UrlError};
pub use wrong_types::{WrongType, WrongTypes, is_of_keys, wrong_types};

/// The value of a field in an answer to `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
