//! What this worker has spent and saved and not yet told Redis.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::entry::{JobName, Spending, usage::NAMES};

/// What this worker has spent and saved and not yet told Redis. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct UsageBuffer(Arc<Mutex<BTreeMap<JobName, Spending>>>);

impl UsageBuffer {
    /// Notes something for a job.
    pub(super) fn note(&self, job: &JobName, more: Spending) {
        if more == Spending::default() {
            return;
        }
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.entry(job.clone()).or_default().add(more);
    }

    /// What was noted for a job since this was last asked, by the counters' names; whoever asks tells Redis.
    pub(super) fn take(&self, job: &JobName) -> Vec<(&'static str, u64)> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(job).unwrap_or_default();
        NAMES.into_iter().zip(noted.counts()).filter(|(_, count)| *count > 0).collect()
    }
}
