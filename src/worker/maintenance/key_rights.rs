//! The check of key rights: tells when the Redis user may not use the keys of a job.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::job::{Job, Jobs};
use crate::redis::{Connection, LoopHealth, requirements};

/// The interval between two checks while a right is missing.
const INTERVAL: Duration = Duration::from_secs(5);

/// Checks whether the Redis user may use the jobs' keys.
#[derive(Debug)]
pub(in crate::worker) struct KeyRights {
    redis: Connection,
    loop_health: LoopHealth,
    /// A key pattern and one key of each job.
    keys: Vec<(String, String)>,
}

impl KeyRights {
    /// Creates the check for these jobs. It shows its result in `loop_health`.
    pub(in crate::worker) fn new(redis: Connection, jobs: Arc<Jobs>, loop_health: LoopHealth) -> Self {
        let names = |job: &Job| job.key.names().iter().map(|name| (name.clone(), name.clone())).collect();
        let mut keys = Vec::new();
        for job in jobs.jobs.values() {
            let params = job.entries.list.first().cloned().unwrap_or_else(|| names(job));
            keys.extend(job.key.write(&params).map(|key| (job.key.glob(), key.to_string())));
        }
        Self { redis, loop_health, keys }
    }

    /// Checks until the user has all rights, logs each new fault, and waits for `stop`.
    pub(in crate::worker) async fn run(mut self, stop: CancellationToken) {
        let mut logged = None;
        loop {
            match requirements::lacking_keys(&mut self.redis, &self.keys).await {
                Ok(None) => {
                    self.loop_health.well();
                    return stop.cancelled().await;
                }
                Ok(Some(fault)) => {
                    self.loop_health.ill(&fault);
                    if logged.as_ref() != Some(&fault) {
                        error!("jobs cannot be kept warm: {fault}");
                        logged = Some(fault);
                    }
                }
                Err(e) => debug!("cannot check whether the jobs' keys may be used: {e}"),
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}
