//! The claims of a dispatcher: which of them it had an answer to.
//!
//! A claim whose answer is lost has claimed entries that nobody knows of. So claims are numbered, and Redis keeps the
//! number and the end of the last one (`lua/claim.lua`). A caller that tells the last number of which it had an answer
//! gets the entries of a later call anew, also of one that Redis carried out when its caller waited no longer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::entry::JobName;

/// The claims of one dispatcher.
#[derive(Debug)]
pub(super) struct Claimer {
    /// The name under which Redis keeps the last one.
    pub(super) name: String,
    calls: AtomicU64,
    /// The number of the last call for each job that was answered.
    answered: Mutex<HashMap<JobName, u64>>,
}

impl Claimer {
    /// Returns the claims of a dispatcher of this name that has claimed nothing yet.
    pub(super) fn of(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), calls: AtomicU64::default(), answered: Mutex::default() })
    }

    /// Returns the number of the next call for a job, and of the last one that was answered; zero for none.
    pub(super) fn call(&self, job: &JobName) -> (u64, u64) {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        (self.calls.fetch_add(1, Ordering::Relaxed) + 1, answered.get(job).copied().unwrap_or_default())
    }

    /// Notes that a call was answered.
    pub(super) fn answered(&self, job: &JobName, number: u64) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), number);
    }

    /// Counts the last claim as one without an answer.
    pub(super) fn forget(&self, job: &JobName) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
    }
}
