//! The state behind a cache.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;

use super::Ttl;
use super::flight::Flights;
use super::link::Link;
use super::near::Near;
use super::reads::Reads;

/// The settings of one prefix.
#[derive(Clone)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    /// The prefix with its colon.
    pub(super) prefix: String,
    /// `true` if a key that begins with the prefix is used unchanged.
    pub(super) lenient: bool,
    pub(super) ttl: Ttl,
    pub(super) announce: bool,
    pub(super) demand: bool,
    pub(super) near: Option<Arc<Near>>,
}

/// The state that all prefixes share.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    pub(super) flights: Flights,
    /// `None` if this cache reports none.
    pub(super) reads: Option<Arc<Reads>>,
    /// Keys that workers were recently asked to warm.
    pub(super) demanded: moka::sync::Cache<String, ()>,
    pub(super) lease: Duration,
    pub(super) load_wait: Duration,
    /// Background tasks; they end with the last clone.
    pub(super) _tasks: Mutex<JoinSet<()>>,
}
