//! Connections to Redis, and what every user of one needs: URLs, backoff, health, scans, `INFO`, its clock,
//! required rights.

mod backoff;
mod cluster;
mod connection;
mod endpoint;
pub mod health;
#[cfg(feature = "worker")]
mod incarnation;
mod info;
#[cfg(feature = "worker")]
mod leader;
mod named;
#[cfg(feature = "worker")]
mod passing;
mod refused;
pub mod requirements;
mod scan;
mod script;
mod sentinels;
#[cfg(feature = "simulation")]
pub mod simulated;
#[cfg(test)]
pub(crate) mod server;
#[cfg(feature = "worker")]
mod servers;
mod stranger;
mod target;
#[cfg(feature = "worker")]
mod time;
mod url;
mod wrong_types;

pub use backoff::Backoff;
pub use connection::Connection;
pub(crate) use connection::{Subscribed, UNANSWERED};
pub use health::{Health, LoopHealth, Troubles};
#[cfg(feature = "worker")]
pub(crate) use incarnation::Incarnation;
pub use info::ServerInfo;
#[cfg(feature = "worker")]
pub(crate) use leader::{lead, resign};
#[cfg(feature = "worker")]
pub(crate) use passing::passes;
#[cfg(feature = "worker")]
pub(crate) use refused::is_refusal;
pub(crate) use scan::Scan;
pub(crate) use script::with_preludes;
pub use sentinels::SentinelStatus;
#[cfg(feature = "worker")]
pub use servers::Servers;
#[cfg(feature = "worker")]
pub(crate) use stranger::is_of_stranger;
#[cfg(feature = "worker")]
pub use time::RedisTime;
pub use url::{RedisUrl, UrlError};
pub use wrong_types::{WrongType, WrongTypes, is_of_keys, wrong_types};
