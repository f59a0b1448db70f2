//! Ends entries on the agenda, as many at a time as have ended meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::usage_buffer::Tab;
use crate::agenda::Bell;
use crate::agenda::{Agenda, Finished};
use crate::entry::JobName;
use crate::entry::Last;
use crate::redis::Troubles;
use crate::redis::{Patience, is_of_keys};

/// Entries ended in one round.
const MOST: usize = 500;

/// The loop that carries what the warmer says to the agenda.
///
/// While Redis is away it waits: the entries it holds are bounded by what the worker has in hand. What it never gets to
/// say is due again when its time runs out.
#[derive(Debug)]
pub struct Finisher {
    agenda: Agenda,
    ends: mpsc::UnboundedReceiver<(JobName, Finished, Option<Last>)>,
    tab: Tab,
    bell: Option<Arc<Bell>>,
    troubles: Troubles,
}

impl Finisher {
    pub(super) fn new(
        agenda: Agenda,
        ends: mpsc::UnboundedReceiver<(JobName, Finished, Option<Last>)>,
        tab: Tab,
    ) -> Self {
        Self { agenda, ends, tab, bell: None, troubles: Troubles::default() }
    }

    /// The same, telling the dispatcher of the room that it makes.
    #[must_use]
    pub fn ringing(mut self, bell: Arc<Bell>) -> Self {
        self.bell = Some(bell);
        self
    }

    /// The same, noting here what fails in single jobs.
    #[must_use]
    pub fn noting(mut self, troubles: &Troubles) -> Self {
        self.troubles = troubles.of("ending entries");
        self
    }

    /// Runs until the warmer is gone and all is said, or until `stop`, then without patience.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ended = Vec::new();
        let mut patience = Patience::new("ending entries");
        while self.ends.recv_many(&mut ended, MOST).await > 0 {
            let mut by_job: HashMap<JobName, (Vec<Finished>, Option<Last>)> = HashMap::new();
            for (job, finished, last) in ended.drain(..) {
                let place = by_job.entry(job).or_default();
                place.0.push(finished);
                if last.is_some() {
                    place.1 = last;
                }
            }
            for (job, (entries, last)) in by_job {
                let last = last.and_then(|last| serde_json::to_string(&last).ok()).unwrap_or_default();
                // What an entry cost was noted before it ended.
                let spent = self.tab.take(&job);
                loop {
                    match self.agenda.finish_counting(&job, &entries, &last, &spent).await {
                        Ok(()) => {
                            patience.well();
                            self.troubles.well(job.as_str());
                            if let Some(bell) = &self.bell {
                                bell.made_room(&job, entries.len());
                            }
                            break;
                        }
                        Err(_) if stop.is_cancelled() => break,
                        // Somebody else's key stands where ours should: waiting does not mend that, and others wait behind.
                        // What did not get its next time comes due again.
                        Err(e) if is_of_keys(&e) => {
                            self.troubles.ill(job.as_str(), e);
                            break;
                        }
                        Err(e) => patience.ill(&e, &stop).await,
                    }
                }
            }
        }
    }
}
