//! The bulk runtime: threads of their own for all entries that are not high priority.
//!
//! A warmup may keep all cores busy with dozens of fetches. A high-priority entry passes from one task to another nine
//! times; behind those fetches it would wait nine times. So high-priority entries run on the main runtime, which does
//! little else, and the operating system schedules its threads at once.

use std::fmt;

use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime that ends when this is dropped. Its tasks are dropped where they next wait.
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
    /// Starts as many threads as there are cores.
    ///
    /// # Errors
    /// The system gives no threads.
    pub(super) fn new(name: &str) -> std::io::Result<Self> {
        #[cfg(feature = "simulation")]
        if crate::redis::simulated::is_on() {
            return Ok(Self { runtime: None, handle: Handle::current() });
        }
        let runtime = Builder::new_multi_thread().thread_name(name).enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Returns the handle that starts tasks on this runtime.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for BulkRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The drop may happen on a runtime, which must not block on another one.
            runtime.shutdown_background();
        }
    }
}
