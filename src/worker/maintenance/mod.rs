//! Maintenance: what keeps a fleet in order beside the warming, one role a file.
//!
//! - [`Rescuer`] frees what a dead worker held.
//! - [`Revalidator`] makes values due that may have missed an invalidation.
//! - `Remaker` makes values due that were made from an earlier job file.
//! - [`Retrier`] tries entries again that were given up while their service failed.
//! - `RestartMonitor` notices a restarted or flushed Redis, `EvictionMonitor` evicted agendas.
//! - `UpstreamMonitor` reads the state of upstreams, and brings forward what one that opened early had deferred.
//! - `Sweeper` drops dead entries from tags and guards; [`JobCleaner`] drops what is kept of removed jobs.
//! - `Describer` publishes what commands need to know of this worker's jobs.
//! - `Auditor` compares warm values with what their upstreams answer.
//! - `Recorder` keeps minute figures of reads.
//! - `KeyRights` tells when the Redis user may not use a job's keys.

mod auditor;
mod describer;
mod eviction_monitor;
mod job_cleaner;
mod key_rights;
mod recorder;
mod remaker;
mod rescuer;
mod restart_monitor;
pub mod retrier;
mod revalidator;
mod sweeper;
mod upstream_monitor;
mod walk;

pub(super) use auditor::{Auditor, ROUND as AUDITED};
pub(super) use describer::Describer;
pub(super) use eviction_monitor::EvictionMonitor;
pub(super) use job_cleaner::SWEEPS;
pub use job_cleaner::{JobCleaner, ROUNDS};
pub(super) use key_rights::KeyRights;
pub(super) use recorder::{ROUND as RECORDED, Recorder};
pub(super) use remaker::Remaker;
pub use rescuer::{Rescuer, id};
pub(super) use restart_monitor::RestartMonitor;
pub use retrier::Retrier;
pub use revalidator::Revalidator;
pub(super) use sweeper::Sweeper;
pub(super) use upstream_monitor::UpstreamMonitor;
