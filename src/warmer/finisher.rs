//! Ends entries on the agenda, as many at a time as have ended meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::spending::Tab;
use crate::agenda::{Agenda, Finished};
use crate::dispatcher::Bell;
use crate::job::JobName;
use crate::redis::Patience;
use crate::status::Last;

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
}

impl Finisher {
    pub(super) fn new(
        agenda: Agenda,
        ends: mpsc::UnboundedReceiver<(JobName, Finished, Option<Last>)>,
        tab: Tab,
    ) -> Self {
        Self { agenda, ends, tab, bell: None }
    }

    /// The same, telling the dispatcher of the room that it makes.
    #[must_use]
    pub fn ringing(mut self, bell: Arc<Bell>) -> Self {
        self.bell = Some(bell);
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
                            if let Some(bell) = &self.bell {
                                bell.made_room(&job, entries.len());
                            }
                            break;
                        }
                        Err(_) if stop.is_cancelled() => break,
                        // Somebody else's key stands where ours should: waiting does not mend that, and others wait behind.
                        Err(e) if e.code() == Some("WRONGTYPE") => {
                            error!(%job, "cannot end {} entries, they come due again: {e}", entries.len());
                            break;
                        }
                        Err(e) => patience.ill(&e, &stop).await,
                    }
                }
            }
        }
    }
}
