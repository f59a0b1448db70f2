//! The recorder: keeps the minute figures of each job whose reads services report.
//!
//! Each worker looks every ten seconds which jobs have reports. The first one that looks after a minute adds a figure
//! (`roll_reads.lua`), so no worker leads.
//!
//! On failure: reads reported while no worker is there count in the sums only.

use std::time::Duration;

use redis::RedisResult;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::entry::JobName;
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
        let are_there: Vec<RedisResult<bool>> = ask.ignore_errors().query_async(&mut redis.clone()).await?;
        let mut failed = Ok(());
        for (job, is_there) in jobs.jobs.keys().zip(are_there) {
            // The failure of one job, or of one master, keeps no other job from its figures.
            match self.one(job, is_there).await {
                Ok(()) => {}
                Err(e) => failed = Err(e),
            }
        }
        failed
    }

    /// Adds a figure of one job, if it has reports and a figure is due.
    async fn one(&self, job: &JobName, is_there: RedisResult<bool>) -> RedisResult<()> {
        let Ops { redis, keys, .. } = &self.ops;
        let done = match is_there {
            Ok(false) => return Ok(()),
            Ok(true) => reads::roll(redis, keys, job).await,
            Err(e) => Err(e),
        };
        for (field, value) in self.troubles.alone(job.as_str(), done)?.into_iter().flat_map(|rolled| rolled.refused) {
            warn!(
                "`{field}` of `{}` was {value:?}, which is no count of up to 15 digits; it is 0 now, and the hit rates \
                 of the job {job} begin anew. Look for the service that writes it: docs/protocol.md#hit-rates",
                keys.reported(job)
            );
        }
        Ok(())
    }
}
