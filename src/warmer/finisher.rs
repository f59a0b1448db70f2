//! Ends entries on the agenda, in batches.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::usage_buffer::UsageBuffer;
use crate::agenda::Wakeup;
use crate::agenda::{Agenda, Finished};
use crate::entry::JobName;
use crate::entry::LastOutcome;
use crate::redis::Troubles;
use crate::redis::{Backoff, is_of_keys};

/// The most entries ended in one round.
const MOST: usize = 500;

/// The work of the loop, in words for people.
const RECORDING: &str = "recording the results of fetches";

/// The loop that writes the endings of entries to the agenda, with the usage of their jobs.
///
/// While Redis is away it waits; the endings that it holds are bounded by the entries in flight. An entry whose ending
/// is never written is due again when its time runs out.
#[derive(Debug)]
pub struct Finisher {
    agenda: Agenda,
    ends: mpsc::UnboundedReceiver<(JobName, Finished, Option<LastOutcome>)>,
    usage: UsageBuffer,
    wakeup: Option<Arc<Wakeup>>,
    troubles: Troubles,
}

impl Finisher {
    pub(super) fn new(
        agenda: Agenda,
        ends: mpsc::UnboundedReceiver<(JobName, Finished, Option<LastOutcome>)>,
        usage: UsageBuffer,
    ) -> Self {
        Self { agenda, ends, usage, wakeup: None, troubles: Troubles::default() }
    }

    /// Wakes the dispatcher when entries have ended, since there is room for others then.
    #[must_use]
    pub fn waking(mut self, wakeup: Arc<Wakeup>) -> Self {
        self.wakeup = Some(wakeup);
        self
    }

    /// Notes failures of single jobs here.
    #[must_use]
    pub fn noting(mut self, troubles: &Troubles) -> Self {
        self.troubles = troubles.of(RECORDING);
        self
    }

    /// Runs until the warmer is dropped and all endings are written. After `stop`, an ending that fails is dropped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ended = Vec::new();
        let mut backoff = Backoff::new(RECORDING);
        while self.ends.recv_many(&mut ended, MOST).await > 0 {
            let mut by_job: HashMap<JobName, (Vec<Finished>, Option<LastOutcome>)> = HashMap::new();
            for (job, finished, last) in ended.drain(..) {
                let place = by_job.entry(job).or_default();
                place.0.push(finished);
                if last.is_some() {
                    place.1 = last;
                }
            }
            for (job, (entries, last)) in by_job {
                let last = last.and_then(|last| serde_json::to_string(&last).ok()).unwrap_or_default();
                // An entry's usage was counted before its ending was sent.
                let spent = self.usage.take(&job);
                loop {
                    match self.agenda.finish_counting(&job, &entries, &last, &spent).await {
                        Ok(()) => {
                            backoff.well();
                            self.troubles.well(job.as_str());
                            if let Some(wakeup) = &self.wakeup {
                                wakeup.made_room(&job, entries.len());
                            }
                            break;
                        }
                        Err(_) if stop.is_cancelled() => break,
                        // A foreign key has the name of one of ours: waiting does not help, and other jobs wait
                        // meanwhile. These entries come due again.
                        Err(e) if is_of_keys(&e) => {
                            self.troubles.ill(job.as_str(), e);
                            break;
                        }
                        Err(e) => backoff.ill(&e, &stop).await,
                    }
                }
            }
        }
    }
}
