//! A request to read the job files anew.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Notify;

use super::{Faults, Jobs};

/// Asks a worker to read its jobs anew, and knows how.
pub struct Reload {
    read: Box<dyn Fn() -> Result<Jobs, Faults> + Send + Sync>,
    /// Set off by [`Reload::ask`].
    pub(crate) asked: Notify,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

impl Reload {
    /// For jobs that are read like this.
    pub fn new(read: impl Fn() -> Result<Jobs, Faults> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { read: Box::new(read), asked: Notify::new() })
    }

    /// Reads the jobs as they are now.
    ///
    /// # Errors
    /// All their faults.
    pub fn read(&self) -> Result<Jobs, Faults> {
        (self.read)()
    }

    /// The worker is to take the jobs as they are now; asking several times while it reloads is asking once.
    pub fn ask(&self) {
        self.asked.notify_one();
    }
}
