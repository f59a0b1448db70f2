//! The sweeper: every ten minutes one worker of the fleet drops dead entries from tags and guards, and what is kept of
//! removed jobs.
//!
//! A lock elects the worker of a round. If a round fails, the next one does the work.

use std::sync::Arc;

use redis::RedisResult;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{JobCleaner, ROUNDS, SWEEPS};
use crate::job::Jobs;
use crate::protocol::Keys;
use crate::redis::{Connection, Troubles, is_of_keys};
use crate::store::Store;

/// One worker's part in the rounds.
#[derive(Debug)]
pub(in crate::worker) struct Sweeper {
    pub(in crate::worker) redis: Connection,
    pub(in crate::worker) keys: Keys,
    pub(in crate::worker) jobs: Arc<Jobs>,
    pub(in crate::worker) store: Store,
    pub(in crate::worker) job_cleaner: JobCleaner,
    /// The failures of single keys.
    pub(in crate::worker) troubles: Troubles,
}

impl Sweeper {
    /// Runs until `stop`.
    pub(in crate::worker) async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(SWEEPS) => {}
                () = stop.cancelled() => return,
            }
            if let Err(e) = self.job_cleaner.know().await {
                debug!("could not note which jobs are known: {e}");
            }
            match self.lock().await {
                Ok(true) => self.sweep().await,
                Ok(false) => {}
                Err(e) => debug!("could not take the sweep's lock; the next round tries again: {e}"),
            }
        }
    }

    /// Takes the lock of this round; returns `false` if another worker has it.
    async fn lock(&self) -> RedisResult<bool> {
        let (mut redis, lock) = (self.redis.clone(), self.keys.sweep_lock());
        let time = crate::entry::duration::millis(SWEEPS);
        let mut take = redis::cmd("SET");
        take.arg(&lock).arg("1").arg("NX").arg("PX").arg(time);
        let taken: Option<String> = take.query_async(&mut redis).await?;
        if taken.is_none() {
            // A lock ends later than that only where Redis's clock was set back.
            redis::cmd("PEXPIRE").arg(&lock).arg(time).arg("LT").exec_async(&mut redis).await?;
        }
        Ok(taken.is_some())
    }

    async fn sweep(&self) {
        if let Err(e) = self.sweep_guards().await {
            debug!("could not sweep guards; the next round tries again: {e}");
        }
        match tokio::join!(self.store.sweep_tags(), self.job_cleaner.round(ROUNDS)) {
            (Ok(dropped), Ok(_)) => {
                self.troubles.well("tags and jobs");
                debug!(dropped, "swept tags");
            }
            (Err(e), _) | (_, Err(e)) if is_of_keys(&e) => _ = self.troubles.ill("tags and jobs", e),
            (Err(e), _) | (_, Err(e)) => debug!("could not sweep; the next round tries again: {e}"),
        }
    }

    /// Sweeps the guards of the jobs that this worker knows.
    async fn sweep_guards(&self) -> RedisResult<()> {
        for job in self.jobs.jobs.values().filter(|job| job.warm.gone_guard.is_some()) {
            self.troubles.alone(job.name.as_str(), self.store.sweep_guard(&job.name).await)?;
        }
        Ok(())
    }
}
