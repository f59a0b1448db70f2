//! The retrier: tries entries again every minute that used up their attempts while their service failed.
//!
//! One worker of the fleet has the lock. For each job whose fetches cost nothing, it puts one dead letter back on the
//! agenda, the oldest first, as a warmup does; then twice as many as have landed since, so that a service which works
//! again soon has all of them. Each is tried once, and is a dead letter until it lands. Where none landed it begins
//! anew with one, and it waits while what it put back waits for a limit, a breaker or a pause. An entry rests for a
//! minute after its own failure.
//!
//! On failure: what it knows is in memory only, so another worker begins with one entry a job.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agenda::When;
use crate::entry::{EntryKey, JobName, Outcome, Trigger};
use crate::job::KnownJob;
use crate::ops::Ops;
use crate::redis::{Backoff, RedisTime, Troubles, lead, resign};
use crate::store::Snapshot;

/// The interval at which entries are tried again.
pub const EVERY: Duration = Duration::from_secs(60);
/// The most entries of a job that are put back at once.
const MOST: usize = 64;

/// Tries dead letters again.
#[derive(Debug)]
pub struct Retrier {
    /// The dead letters, the agenda and the jobs.
    pub ops: Ops,
    /// This worker's name.
    pub worker: Arc<str>,
    /// The interval between two rounds, and the time that an entry rests after its failure.
    pub every: Duration,
    /// The failures of single jobs.
    pub troubles: Troubles,
}

/// The entries of each job that were put back last.
pub type Retried = BTreeMap<JobName, Batch>;

/// Entries of a job that were put back together.
#[derive(Debug)]
pub struct Batch {
    keys: Vec<EntryKey>,
    at: RedisTime,
    /// Entries landed before these.
    succeeds: bool,
}

impl Retrier {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (mut backoff, mut retried) = (Backoff::new("the retrier"), Retried::new());
        while !stop.is_cancelled() {
            match self.round(&mut retried).await {
                Ok(()) => backoff.well(),
                Err(e) => {
                    backoff.ill(&e, &stop).await;
                    continue;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.every.mul_f64(rand::random_range(0.75..=1.25))) => {}
                () = stop.cancelled() => {}
            }
        }
        // Another worker need not wait for the lock.
        let _ = resign(&self.ops.redis, &self.ops.keys.retrier(), &self.worker).await;
    }

    /// Puts some entries of each job back, if no other worker does.
    ///
    /// # Errors
    /// Redis's; the next round does the rest.
    pub async fn round(&self, retried: &mut Retried) -> RedisResult<()> {
        if !lead(&self.ops.redis, &self.ops.keys.retrier(), &self.worker, self.every * 3).await? {
            retried.clear();
            return Ok(());
        }
        for job in self.ops.jobs.jobs.values().filter(|job| job.is_retried) {
            let done = self.retry(job, retried).await;
            self.troubles.alone(job.name.as_str(), done)?;
        }
        Ok(())
    }

    /// Puts some entries of a job back, by what became of the last ones.
    async fn retry(&self, job: &KnownJob, retried: &mut Retried) -> RedisResult<()> {
        let now = self.ops.store.now().await?;
        let (mut most, mut succeeds) = (1, false);
        if let Some(last) = retried.get(&job.name) {
            let found = self.ops.store.snapshots(&last.keys).await?;
            let landed = found.iter().filter(|found| has_landed(found, last.at)).count();
            let dues = self.ops.agenda.dues(&job.name, &last.keys).await?;
            if landed == 0 && dues.iter().flatten().any(|due| due.trigger == Trigger::Cron) {
                return Ok(());
            }
            if landed > 0 && !last.succeeds {
                info!(job = %job.name, landed, "an entry that was given up is there again; the others are tried, too");
            }
            (most, succeeds) = ((2 * landed).clamp(1, MOST), landed > 0);
        }
        let dead = self.ops.passing(job, now - self.every, most).await?;
        retried.remove(&job.name);
        if dead.is_empty() {
            return Ok(());
        }
        debug!(job = %job.name, entries = dead.len(), "dead letters are tried again");
        let keys: Vec<EntryKey> = dead.into_iter().map(|dead| EntryKey::new(dead.key)).collect();
        self.ops.agenda.put(&job.name, &keys, When::NOW, Trigger::Cron).await?;
        retried.insert(job.name.clone(), Batch { keys, at: now, succeeds });
        Ok(())
    }
}

/// Tells whether an entry was fetched since `at`, or its upstream answered that it is gone.
fn has_landed(found: &Snapshot, at: RedisTime) -> bool {
    found.meta.as_ref().is_some_and(|meta| {
        let last = &meta.last_attempt;
        let is_answer = matches!(last.outcome, Some(Outcome::Warmed | Outcome::Unchanged | Outcome::Gone));
        is_answer && last.attempted >= at
    })
}
