//! The success monitor: notes that jobs work, and brings back what was given up while they did not.

use std::time::Duration;

use tracing::{debug, info};

use crate::ops::Ops;

/// The longest inspection: the worker must beat.
const PATIENCE: Duration = Duration::from_secs(1);

/// One worker's observations of its jobs.
#[derive(Debug)]
pub(in crate::worker) struct SuccessMonitor(pub(in crate::worker) Ops);

impl SuccessMonitor {
    /// Reads what the jobs' counters tell; see [`Ops::failing`].
    pub(in crate::worker) async fn inspect(&self) {
        match tokio::time::timeout(PATIENCE, self.0.note_successes()).await {
            Ok(Ok(back)) => back.into_iter().for_each(|(job, entries)| {
                info!(%job, entries, "answers are accepted again: entries that were given up are tried again");
            }),
            Ok(Err(e)) => debug!("could not note which jobs succeed; the next inspection does: {e}"),
            Err(_) => debug!("could not note in time which jobs succeed; the next inspection does"),
        }
    }
}
