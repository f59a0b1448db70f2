//! The state behind a cache.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;

use super::Ttl;
use super::flight::Flights;
use super::link::Link;
use super::near::Near;

/// What is one prefix's.
#[derive(Clone)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    /// With its colon.
    pub(super) prefix: String,
    /// Whether a key that begins with the prefix is taken as it is.
    pub(super) lenient: bool,
    pub(super) ttl: Ttl,
    pub(super) announce: bool,
    pub(super) demand: bool,
    pub(super) near: Option<Arc<Near>>,
}

/// What all prefixes share.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    pub(super) flights: Flights,
    /// Keys that workers were asked for just now.
    pub(super) demanded: moka::sync::Cache<String, ()>,
    pub(super) lease: Duration,
    pub(super) patience: Duration,
    /// They end with the last clone.
    pub(super) _tasks: Mutex<JoinSet<()>>,
}
