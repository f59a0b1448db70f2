//! Connections to Redis, and every key and channel name.

mod connection;
pub mod inbox;
pub mod keys;
mod patience;
#[cfg(test)]
pub(crate) mod server;
mod url;

pub use connection::Connection;
pub use keys::Keys;
pub use patience::Patience;
pub use url::{RedisUrl, UrlError};
