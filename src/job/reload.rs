//! A request to read the job files anew.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tracing::error;

use super::{Faults, Jobs};

/// Asks a worker to read its jobs anew, and knows how.
pub struct Reload {
    read: Box<dyn Fn() -> Result<Jobs, Faults> + Send + Sync>,
    /// Set off by [`Reload::ask`].
    pub(crate) asked: Notify,
    /// The last reload, if it was refused.
    refused: Mutex<Option<Refusal>>,
}

/// A reload that was refused.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// When.
    pub(crate) at: Instant,
    /// The number of faults and the place of the first, without any text of a file.
    pub(crate) reason: String,
}

impl Refusal {
    fn now(reason: String) -> Self {
        Self { at: Instant::now(), reason }
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

impl Reload {
    /// For jobs that are read like this.
    pub fn new(read: impl Fn() -> Result<Jobs, Faults> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { read: Box::new(read), asked: Notify::new(), refused: Mutex::default() })
    }

    /// Reads the jobs as they are now, logs their faults, and remembers whether they were refused.
    ///
    /// # Errors
    /// All their faults.
    pub fn read(&self) -> Result<Jobs, Faults> {
        let read = (self.read)();
        *self.lock() = read.as_ref().err().map(|faults| Refusal::now(faults.summary()));
        if let Err(faults) = &read {
            for fault in &faults.0 {
                error!(help = fault.help, "{fault}");
            }
            error!(faults = faults.0.len(), "the jobs have faults and are not used: the old ones stay");
        }
        read
    }

    /// Notes that jobs without faults could not be used.
    pub(crate) fn refuse(&self, why: &str) {
        *self.lock() = Some(Refusal::now(why.to_owned()));
    }

    /// Returns the last reload if it was refused; `None` if it was not, or if there was none.
    pub(crate) fn refused(&self) -> Option<Refusal> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker is to take the jobs as they are now; asking several times while it reloads is asking once.
    pub fn ask(&self) {
        self.asked.notify_one();
    }
}
