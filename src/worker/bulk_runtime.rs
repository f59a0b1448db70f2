//! Where most entries are warmed: threads of their own, with connections of their own.
//!
//! A warmup may have all cores busy, with dozens of fetches under way. What somebody named by itself goes nine ways
//! from process to process; were each of them to wait behind those fetches, it would be late by as many rounds. So it is
//! heard, claimed and warmed elsewhere, where hardly anything else is done, and the system lets that have its turn at once.

use std::fmt;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that end with this; what runs on them then is dropped where it next waits.
pub(super) struct BulkRuntime {
    runtime: Option<Runtime>,
    handle: Handle,
}

impl fmt::Debug for BulkRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkRuntime").finish_non_exhaustive()
    }
}

impl BulkRuntime {
    /// As many threads as there are cores.
    ///
    /// # Errors
    /// The system gives no threads.
    pub(super) fn new(name: &str) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name(name).enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Where to start what is to run on it.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for BulkRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Who drops this may be on a runtime itself, where nobody may wait for another.
            runtime.shutdown_background();
        }
    }
}
