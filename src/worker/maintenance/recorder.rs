//! The recorder: keeps the minute figures of each job whose reads services report.
//!
//! Each worker looks every ten seconds which jobs have reports. The first one that looks after a minute adds a figure
//! (`roll_reads.lua`), so no worker leads.
//!
//! On failure: reads reported while no worker is there count in the sums only.

use std::time::Duration;

use redis::RedisResult;
use tokio_util::sync::CancellationToken;

use crate::ops::{Ops, reads};
use crate::redis::{Backoff, Troubles};

/// The interval between two rounds.
pub(in crate::worker) const ROUND: Duration = Duration::from_secs(10);

/// Keeps minute figures.
#[derive(Debug)]
pub(in crate::worker) struct Recorder {
    /// The jobs.
    pub(in crate::worker) ops: Ops,
    /// The failures of single jobs.
    pub(in crate::worker) troubles: Troubles,
}

impl Recorder {
    /// Runs until `stop`.
    pub(in crate::worker) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the recorder");
        while !stop.is_cancelled() {
            match self.round().await {
                Ok(()) => backoff.well(),
                Err(e) => {
                    backoff.ill(&e, &stop).await;
                    continue;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(ROUND.mul_f64(rand::random_range(0.75..=1.25))) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Adds the figures that are due.
    async fn round(&self) -> RedisResult<()> {
        let Ops { redis, keys, jobs, .. } = &self.ops;
        if jobs.jobs.is_empty() {
            return Ok(());
        }
        let mut ask = redis::pipe();
        for job in jobs.jobs.keys() {
            ask.exists(keys.reported(job));
        }
        let are_there: Vec<bool> = ask.query_async(&mut redis.clone()).await?;
        for (job, _) in jobs.jobs.keys().zip(are_there).filter(|(_, is_there)| *is_there) {
            self.troubles.alone(job.as_str(), reads::roll(redis, keys, job).await)?;
        }
        Ok(())
    }
}
