//! Wakes dispatchers when something becomes due.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::entry::JobName;
use crate::job::Jobs;

/// Wakes dispatchers for one job or for all.
#[derive(Debug)]
pub struct Wakeup {
    /// The jobs for which it wakes anybody. Signals may name any others, and those are not kept.
    jobs: Arc<Jobs>,
    woken: Mutex<BTreeSet<JobName>>,
    pub(crate) all: Notify,
    /// Jobs with as many entries in flight as they may have, each with how many must end here before it wakes
    /// dispatchers.
    full: Mutex<BTreeMap<JobName, usize>>,
}

impl Wakeup {
    /// Returns a wakeup for these jobs.
    pub fn of(jobs: &Arc<Jobs>) -> Self {
        let (woken, full) = (Mutex::default(), Mutex::default());
        Self { jobs: Arc::clone(jobs), woken, all: Notify::new(), full }
    }

    /// Wakes dispatchers for a job.
    pub fn wake(&self, job: &str) {
        let Some((job, _)) = self.jobs.jobs.get_key_value(job) else { return };
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone());
        self.all.notify_one();
    }

    /// Notes that so many entries of a job have ended here, which makes room for others.
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

    /// Has dispatchers woken once so many more entries of a job have ended here.
    pub(crate) fn want_room(&self, job: &JobName, entries: usize) {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), entries);
    }

    /// Returns the jobs for which dispatchers were woken since the last call.
    pub(crate) fn answer(&self) -> BTreeSet<JobName> {
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
