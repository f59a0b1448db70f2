//! Connections to Redis, and every key and channel name.

pub mod keys;
mod url;

pub use keys::Keys;
pub use url::{RedisUrl, UrlError};
