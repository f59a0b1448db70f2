//! The contract of docs/protocol.md: names of keys and channels, messages, the inbox.

pub mod inbox;
pub mod keys;
#[cfg(feature = "worker")]
mod message;

pub use keys::Keys;
#[cfg(feature = "worker")]
pub use message::{Action, Handled, Malformed, Message};
