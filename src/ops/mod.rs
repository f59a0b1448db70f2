//! Operations on a fleet from outside, shared by the command line and HTTP.
//!
//! None of them needs a worker in the same process: all go through Redis.

pub mod audit;
pub mod audit_log;
mod budget;
mod census;
mod clear;
mod dead;
pub mod descriptions;
mod effect;
mod entry;
pub mod explain;
mod failing;
mod files;
mod fleet;
mod gone;
pub mod history;
pub mod journal;
mod missing_input;
mod names;
mod outdated;
mod pause;
mod plan;
pub mod reads;
mod revalidation;
pub mod status;
mod under_way;
mod wanted;
mod warm;
pub mod words;

use std::sync::Arc;

pub use budget::BudgetLeft;
pub use census::{Census, Counted};
pub use clear::Pattern;
pub use dead::{Dead, Letters};
pub use effect::{DryRun, Effect};
pub use entry::{Entry, HeldInput};
pub use files::{Announced, Digests, Noted, differences, digests, has_old_file, still_waits, with_another_file};
pub use fleet::{FleetStatus, RefusedReload};
pub(crate) use gone::unguarded;
pub use missing_input::MissingInput;
pub use names::Mistake;
pub use plan::Plan;
pub use revalidation::Revalidation;
pub use under_way::{LeaseHolder, Neighbours, TagStamp, UnderWay};
pub use wanted::{Absent, AbsentPage};
pub use warm::{Asked, Done, Failure, Progress};

use crate::agenda::Agenda;
use crate::job::KnownJobs;
use crate::protocol::Keys;
use crate::redis::Connection;
use crate::store::Store;

/// Entries in one round trip.
const PAGE: usize = 500;

/// The operations on one fleet.
#[derive(Clone, Debug)]
pub struct Ops {
    /// The connection.
    pub redis: Connection,
    /// The names.
    pub keys: Keys,
    /// Entries.
    pub store: Store,
    /// The agenda.
    pub agenda: Agenda,
    /// The jobs: a worker's own, or those that workers described in Redis.
    pub jobs: Arc<KnownJobs>,
}

impl Ops {
    /// Creates the operations on the fleet of these jobs.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<KnownJobs>) -> Self {
        let store = Store::new(redis.clone(), keys.clone());
        let agenda = Agenda::new(redis.clone(), keys.clone());
        Self { redis, keys, store, agenda, jobs }
    }
}
