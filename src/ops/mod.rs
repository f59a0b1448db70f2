//! What people and programs ask of a fleet, from outside: the same for the command line and for HTTP.
//!
//! Nothing here needs a worker in the same process; all of it goes through Redis.

mod census;
mod clear;
mod dead;
mod entry;
mod pause;
pub mod status;
mod warm;

use std::sync::Arc;

pub use census::{Census, Counted};
pub use clear::Pattern;
pub use dead::{Dead, Letters};
pub use entry::Entry;
pub use warm::{Done, Failure};

use crate::agenda::Agenda;
use crate::job::Jobs;
use crate::protocol::Keys;
use crate::redis::Connection;
use crate::store::Store;

/// Entries looked at in one round trip.
const PAGE: usize = 500;

/// A fleet, seen from outside.
#[derive(Clone, Debug)]
pub struct Ops {
    /// The connection.
    pub redis: Connection,
    /// The names.
    pub keys: Keys,
    /// Entries.
    pub store: Store,
    /// What is due when.
    pub agenda: Agenda,
    /// The jobs.
    pub jobs: Arc<Jobs>,
}

impl Ops {
    /// A fleet that keeps these jobs warm.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>) -> Self {
        let store = Store::new(redis.clone(), keys.clone());
        let agenda = Agenda::new(redis.clone(), keys.clone());
        Self { redis, keys, store, agenda, jobs }
    }
}
