//! The describer: publishes what commands need to know of the jobs that this worker is in charge of.
//!
//! It publishes when the generation takes charge, and again when Redis lost some of it. If it fails, it tries again.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tokio_util::sync::CancellationToken;

use crate::job::Jobs;
use crate::ops::descriptions;
use crate::protocol::Keys;
use crate::redis::{Backoff, Connection, RedisTime, Troubles};
use crate::store::Store;
use crate::worker::turn::Turn;

/// The interval at which it checks whether Redis still has all of it.
const CHECK: Duration = Duration::from_secs(5);

/// One worker's descriptions.
#[derive(Debug)]
pub(in crate::worker) struct Describer {
    pub(in crate::worker) redis: Connection,
    pub(in crate::worker) keys: Keys,
    pub(in crate::worker) jobs: Arc<Jobs>,
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
                () = tokio::time::sleep(CHECK) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Publishes what is missing; everything if this is the first time. `since` is when the generation took charge.
    async fn round(&self, since: &mut Option<RedisTime>) -> RedisResult<()> {
        let publishing = async {
            let began = match *since {
                Some(_) if !descriptions::are_missing(&self.redis, &self.keys, &self.jobs).await? => return Ok(()),
                Some(began) => began,
                None => self.store.now().await?,
            };
            descriptions::publish(&self.redis, &self.keys, &self.jobs, began, &self.troubles).await?;
            *since = Some(began);
            Ok(())
        };
        let published = publishing.await;
        self.troubles.alone("all jobs", published).map(|_| ())
    }
}
