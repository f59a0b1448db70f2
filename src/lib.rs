//! Samovar keeps Redis caches warm for an API in any language.
//!
//! Triggers put entries on the agenda. The dispatcher claims due entries into the queue. The warmer leases, fetches and
//! commits them, and the store never writes a stale value. The modules are listed from top to bottom: each imports
//! only modules below it.
//!
//! Rust services that read and write the same Redis use [`cache`]; with `default-features = false` the crate contains
//! only that and what it needs.

#[cfg(feature = "worker")]
pub mod cli;
#[cfg(feature = "worker")]
pub mod worker;
#[cfg(feature = "worker")]
pub mod console;
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
