//! Samovar keeps Redis caches warm for an API that somebody else wrote.
//!
//! Modules stand in the order of the flow: triggers put entries on the agenda, the dispatcher claims what is due into
//! the queue, the warmer leases, fetches and commits, and the store keeps it so that no stale value is ever written.
//!
//! Services that read and write the same Redis use [`cache`]; with `default-features = false` there is nothing else.

#[cfg(feature = "worker")]
pub mod cli;
#[cfg(feature = "worker")]
pub mod worker;
#[cfg(feature = "worker")]
pub mod admin;
#[cfg(feature = "worker")]
pub mod ops;
#[cfg(feature = "worker")]
pub mod trigger;
#[cfg(feature = "worker")]
pub mod warmer;
#[cfg(feature = "worker")]
pub mod queue;
#[cfg(feature = "worker")]
pub mod popularity;
#[cfg(feature = "worker")]
pub mod source;
#[cfg(feature = "worker")]
pub mod config;
#[cfg(feature = "worker")]
pub mod agenda;
#[cfg(feature = "worker")]
pub mod store;
#[cfg(feature = "worker")]
pub mod telemetry;
#[cfg(feature = "worker")]
pub mod job;
pub mod cache;
pub mod redis;
pub mod protocol;
pub mod entry;
