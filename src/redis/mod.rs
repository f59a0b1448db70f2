//! Connections to Redis, and every key and channel name.

pub mod keys;
mod patience;
mod url;

pub use keys::Keys;
pub use patience::Patience;
pub use url::{RedisUrl, UrlError};
