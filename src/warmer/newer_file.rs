//! Entries in a worker whose job file is not the newest: it fetches them, but does not end them.
//!
//! During a rolling deploy a key of the new file does not match the old pattern, the old list does not name it, and the
//! old source may not have it. A worker with the newest file decides.

use std::time::Duration;

use tracing::debug;

use super::ending::Ending;
use super::{Running, Warmer};
use crate::agenda::Next;
use crate::entry::{Outcome, Priority};
use crate::job::Job;

/// The shortest and the longest wait of an entry for a worker with the newer file. In between it waits an eighth of the
/// time since that file is there.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// The wait of an entry that was named by itself.
const SHORT: Duration = Duration::from_millis(250);

impl Warmer {
    /// Leaves an entry due that this worker's file would end without a value, if a worker with a newer file is in
    /// charge of the job.
    pub(super) async fn leave_to_newer_file(&self, job: &Job, entry: &Running, ending: Ending) -> Ending {
        // What failed keeps its tries and its backoff.
        let is_left = matches!(ending.outcome, Outcome::Gone | Outcome::Unread | Outcome::Unowned);
        if !matches!(ending.next, Next::Out) || !is_left {
            return ending;
        }
        let since = match self.store.newer_file(job).await {
            Ok(Some(since)) => since,
            Ok(None) => return ending,
            Err(e) => {
                debug!(key = %entry.key, "it cannot be told whether a worker has a newer file: {e}");
                Duration::ZERO
            }
        };
        let reason = format!("left to workers with a newer file of the job: {}", ending.reason.unwrap_or_default());
        let wait = match entry.priority {
            Priority::High => SHORT,
            Priority::Normal | Priority::Bulk => (since / 8).clamp(WAITS.0, WAITS.1),
        };
        Ending::because(Outcome::Deferred, Next::In(wait), reason)
    }
}
