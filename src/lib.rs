//! Samovar keeps Redis caches warm for an API that somebody else wrote.
//!
//! Modules stand in the order of the flow: triggers put entries on the agenda, the dispatcher claims what is due into
//! the queue, the warmer leases, fetches and commits, and the store keeps it so that no stale value is ever written.

pub mod admin;
pub mod agenda;
pub mod cli;
pub mod config;
pub mod dispatcher;
pub mod health;
pub mod job;
pub mod museum;
pub mod ops;
pub mod popularity;
pub mod queue;
pub mod redis;
pub mod source;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod trigger;
pub mod warmer;
pub mod worker;
