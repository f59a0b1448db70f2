//! Maintenance: what keeps a fleet well beside the warming itself, one role a file.

mod eviction_monitor;
mod job_cleaner;
mod rescuer;
mod revalidator;

pub use eviction_monitor::Evictions;
pub use job_cleaner::{JobCleaner, ROUNDS};
pub use rescuer::{Rescuer, id};
pub use revalidator::Revalidator;
