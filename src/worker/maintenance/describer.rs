//! The describer: publishes what commands need to know of the jobs that this worker is in charge of.
//!
//! It publishes when the generation takes charge. Each later round writes only what Redis lost, or what another worker
//! wrote that took charge earlier.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tokio_util::sync::CancellationToken;

use crate::job::KnownJobs;
use crate::ops::descriptions;
use crate::protocol::Keys;
use crate::redis::{Backoff, Connection, RedisTime, Troubles};
use crate::store::Store;
use crate::worker::turn::Turn;

/// The interval between two rounds, each of which writes what Redis lost.
const ROUND: Duration = Duration::from_secs(5);

/// One worker's descriptions.
#[derive(Debug)]
pub(in crate::worker) struct Describer {
    pub(in crate::worker) redis: Connection,
    pub(in crate::worker) keys: Keys,
    pub(in crate::worker) jobs: Arc<KnownJobs>,
    pub(in crate::worker) store: Store,
    /// The failures of single jobs.
    pub(in crate::worker) troubles: Troubles,
    /// Begins when this generation is in charge of the jobs.
    pub(in crate::worker) turn: Turn,
}

impl Describer {
    /// Runs until `stop`.
    pub(in crate::worker) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.turn.begins() => {}
            () = stop.cancelled() => return,
        }
        let mut backoff = Backoff::new("the description of jobs");
        let mut since = None;
        while !stop.is_cancelled() {
            if let Err(e) = self.round(&mut since).await {
                backoff.ill(&e, &stop).await;
                continue;
            }
            backoff.well();
            tokio::select! {
                () = tokio::time::sleep(ROUND) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Publishes what Redis does not have. `since` is when the generation took charge.
    async fn round(&self, since: &mut Option<RedisTime>) -> RedisResult<()> {
        let began = match *since {
            Some(began) => began,
            None => *since.insert(self.store.now().await?),
        };
        let published = descriptions::publish(&self.redis, &self.keys, &self.jobs, began, &self.troubles).await;
        self.troubles.alone("all jobs", published).map(|_| ())
    }
}
