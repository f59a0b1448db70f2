//! Usage that this worker has counted and not yet sent to Redis.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::entry::{JobName, Usage, usage::NAMES};

/// Buffers what each job has spent and saved until the finisher sends it to Redis. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct UsageBuffer(Arc<Mutex<BTreeMap<JobName, Usage>>>);

impl UsageBuffer {
    /// Adds usage of a job.
    pub(super) fn add(&self, job: &JobName, more: Usage) {
        if more == Usage::default() {
            return;
        }
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.entry(job.clone()).or_default().add(more);
    }

    /// Removes the usage of a job and returns it by the names of its counters; the caller sends it to Redis.
    pub(super) fn take(&self, job: &JobName) -> Vec<(&'static str, u64)> {
        let usage = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(job).unwrap_or_default();
        NAMES.into_iter().zip(usage.counts()).filter(|(_, count)| *count > 0).collect()
    }
}
