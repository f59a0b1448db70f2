//! The describer: publishes what commands need to know of the jobs that this worker is in charge of.
//!
//! It publishes when the generation takes charge, before that makes anything due. Each later round asks for a digest of
//! all descriptions, and compares them one by one only if any has changed, if a description of another file is among
//! them, or after half a minute.
//!
//! It also forgets with which file a job was last warmed up that no worker knows any more: while the job is away,
//! nobody fetches its entries, so it is warmed up when it comes back, also with the same file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;
use tokio_util::sync::CancellationToken;

use crate::ops::{Ops, descriptions};
use crate::queue::Queue;
use crate::redis::{Backoff, RedisTime, Troubles};
use crate::store::Store;
use crate::worker::turn::Turn;

/// The interval between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// The time after which everything is compared, also the lists of entries.
const COMPARED: Duration = Duration::from_secs(30);

/// One worker's descriptions.
#[derive(Debug)]
pub(in crate::worker) struct Describer {
    /// The jobs, and the files of other workers.
    pub(in crate::worker) ops: Ops,
    /// Tells which workers live.
    pub(in crate::worker) queue: Queue,
    /// This worker's name.
    pub(in crate::worker) worker: Arc<str>,
    /// The time without a heartbeat after which a worker is dead.
    pub(in crate::worker) dead_after: Duration,
    pub(in crate::worker) store: Store,
    /// The failures of single jobs.
    pub(in crate::worker) troubles: Troubles,
    /// Begins when this generation is in charge of the jobs.
    pub(in crate::worker) turn: Turn,
}

/// The digest of all descriptions when they were as they should be, and when that was.
#[derive(Debug)]
struct Settled {
    digest: String,
    at: Instant,
}

impl Describer {
    /// Runs until `stop`.
    pub(in crate::worker) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.turn.begins() => {}
            () = stop.cancelled() => return,
        }
        let mut backoff = Backoff::new("the description of jobs");
        let (mut since, mut settled) = (None, None);
        while !stop.is_cancelled() {
            if let Err(e) = self.round(&mut since, &mut settled).await {
                backoff.ill(&e, &stop).await;
                continue;
            }
            backoff.well();
            self.turn.describe();
            tokio::select! {
                () = tokio::time::sleep(ROUND) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Publishes what Redis does not have. `since` is when the generation took charge.
    async fn round(&self, since: &mut Option<RedisTime>, settled: &mut Option<Settled>) -> RedisResult<()> {
        let began = match *since {
            Some(began) => began,
            None => *since.insert(self.store.now().await?),
        };
        let done = self.publish(began, settled.take()).await;
        *settled = self.troubles.alone("all jobs", done)?.flatten();
        self.troubles.alone("jobs that no worker knows", self.forget_left().await)?;
        Ok(())
    }

    /// Forgets with which files jobs were warmed up that no running worker knows any more.
    async fn forget_left(&self) -> RedisResult<()> {
        let Ops { redis, keys, jobs, .. } = &self.ops;
        let mut redis = redis.clone();
        let warmed_up: Vec<String> = redis::cmd("HKEYS").arg(keys.digests()).query_async(&mut redis).await?;
        if warmed_up.iter().all(|job| jobs.jobs.contains_key(job.as_str())) {
            return Ok(());
        }
        let left = self.ops.of_fleet().await?.left_jobs().await?;
        let left = Vec::from_iter(warmed_up.into_iter().filter(|job| left.contains(job.as_str())));
        if left.is_empty() {
            return Ok(());
        }
        redis::cmd("HDEL").arg(keys.digests()).arg(left).exec_async(&mut redis).await
    }

    /// Publishes what differs, unless nothing has changed. Returns the new state if all is as it should be.
    async fn publish(&self, since: RedisTime, settled: Option<Settled>) -> RedisResult<Option<Settled>> {
        let Ops { redis, keys, jobs, .. } = &self.ops;
        let digest = descriptions::digest(redis, keys).await?;
        let unchanged = settled.filter(|settled| settled.digest == digest && settled.at.elapsed() < COMPARED);
        if unchanged.is_some() {
            return Ok(unchanged);
        }
        let all = jobs.jobs.values().map(|job| &**job);
        let published = descriptions::publish(redis, keys, all, since, &None, &self.troubles).await?;
        if !published.others.is_empty() {
            // A worker with another file took charge later: its descriptions count while a worker has that file.
            let living = self.queue.living(self.dead_after).await?;
            let files = self.ops.files_of_others(&self.worker, &living).await?;
            let others = published.others.iter().filter_map(|name| jobs.jobs.get(name)).map(|job| &**job);
            descriptions::publish(redis, keys, others, since, &files, &self.troubles).await?;
        }
        Ok(published.is_settled.then(|| Settled { digest, at: Instant::now() }))
    }
}
