//! The protocol of docs/protocol.md: names of keys and channels, messages, the inbox.

#[cfg(feature = "worker")]
pub(crate) mod glob;
pub mod inbox;
pub(crate) mod key_pattern;
pub mod keys;
#[cfg(feature = "worker")]
mod message;
mod slot;

pub use key_pattern::{KeyPattern, Params};
pub use keys::Keys;
#[cfg(feature = "worker")]
pub use message::{Action, Handled, Malformed, Message};
pub(crate) use slot::{SLOTS, slot_of};

/// The codec of leases' records, for scripts: `store::Lease` says what they mean. The library and the workers share it.
pub(crate) const LEASE_RECORD: &str = include_str!("lua/lease_record.lua");
