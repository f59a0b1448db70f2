//! Wakes dispatchers when something becomes due.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::entry::JobName;
use crate::job::Jobs;

/// Wakes dispatchers: for one job, or for all.
#[derive(Debug)]
pub struct Wakeup {
    /// For which it rings: anybody may name others, as many as they like.
    jobs: Arc<Jobs>,
    woken: Mutex<BTreeSet<JobName>>,
    pub(crate) all: Notify,
    /// Jobs that have in hand what they may have, each with the entries that are yet to end here before it rings.
    full: Mutex<BTreeMap<JobName, usize>>,
}

impl Wakeup {
    /// For these jobs.
    pub fn of(jobs: &Arc<Jobs>) -> Self {
        let (woken, full) = (Mutex::default(), Mutex::default());
        Self { jobs: Arc::clone(jobs), woken, all: Notify::new(), full }
    }

    /// Something of this job is due.
    pub fn wake(&self, job: &str) {
        let Some((job, _)) = self.jobs.jobs.get_key_value(job) else { return };
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone());
        self.all.notify_one();
    }

    /// So many entries of this job have ended, which makes room for others.
    pub fn made_room(&self, job: &JobName, entries: usize) {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wanted) = full.get_mut(job) else { return };
        *wanted = wanted.saturating_sub(entries);
        if *wanted == 0 {
            full.remove(job);
            drop(full);
            self.wake(job.as_str());
        }
    }

    /// Rings when so many more entries of this job have ended here.
    pub(crate) fn want_room(&self, job: &JobName, entries: usize) {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), entries);
    }

    pub(crate) fn answer(&self) -> BTreeSet<JobName> {
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
