//! The upstream monitor: reads the state of upstreams, and brings forward what was deferred for one that opened early.
//!
//! An entry whose upstream admits nothing is deferred for ten minutes at most. If Redis loses the upstream's state (a
//! flush, a lost key), the upstream is open again long before the end that was told. The deferred entries then become
//! due at once. Entries that are due soon for other reasons come forward with them; a fresh value needs no request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tracing::{debug, info};

use crate::agenda::Agenda;
use crate::entry::{UpstreamName, duration};
use crate::job::{Job, Jobs};
use crate::redis::Troubles;
use crate::source::{Gate, LONGEST_WAIT};

/// The longest time for which an entry is deferred, with the part by which deferred entries are spread.
const DEFERRED: Duration = Duration::from_secs(LONGEST_WAIT.as_secs() * 5 / 4);
/// The longest part of an inspection in which entries come forward: the worker must beat.
const PATIENCE: Duration = Duration::from_secs(1);

/// One worker's observations of its upstreams.
#[derive(Debug)]
pub(in crate::worker) struct UpstreamMonitor {
    pub(in crate::worker) gates: BTreeMap<UpstreamName, Arc<Gate>>,
    pub(in crate::worker) jobs: Arc<Jobs>,
    pub(in crate::worker) agenda: Agenda,
    /// The failures of single jobs.
    pub(in crate::worker) troubles: Troubles,
    /// The upstreams that opened early before the last inspection ended. An attempt that was refused by then may have
    /// deferred its entry since.
    pub(in crate::worker) opened: BTreeSet<UpstreamName>,
}

impl UpstreamMonitor {
    /// Reads the state of all upstreams, reports what requests took, and makes deferred entries due whose upstream
    /// opened early.
    pub(in crate::worker) async fn inspect(&mut self) {
        let mut opened = std::mem::take(&mut self.opened);
        for (name, gate) in &self.gates {
            gate.refresh().await;
            if let Err(e) = gate.tell().await {
                debug!("could not report what requests took: {e}");
            }
            if gate.has_opened_early() {
                opened.insert(name.clone());
                self.opened.insert(name.clone());
            }
        }
        for name in opened {
            match tokio::time::timeout(PATIENCE, self.bring_forward(&name)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    debug!(upstream = %name, "could not bring deferred entries forward: {e}");
                    self.opened.insert(name);
                }
                // The next inspection does the rest.
                Err(_) => _ = self.opened.insert(name),
            }
        }
    }

    /// Makes the deferred entries of the jobs due that ask an upstream, until it is closed again.
    async fn bring_forward(&self, upstream: &UpstreamName) -> RedisResult<()> {
        let Some(gate) = self.gates.get(upstream) else { return Ok(()) };
        let asks = |job: &&Arc<Job>| job.sources.iter().any(|source| source.upstream() == Some(upstream));
        for job in self.jobs.jobs.values().filter(asks) {
            let mut entries = 0;
            while gate.closed_for().is_none() {
                let found = self.agenda.bring_forward(&job.name, DEFERRED).await;
                match self.troubles.alone(job.name.as_str(), found)? {
                    None | Some(0) => break,
                    Some(found) => entries += found,
                }
            }
            if entries > 0 {
                info!(
                    %upstream, job = %job.name, entries,
                    "the upstream admits requests earlier than was told; all that was due within {} is due now",
                    duration::rough(DEFERRED),
                );
            }
        }
        Ok(())
    }
}
