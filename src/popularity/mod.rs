//! Popularity: which entries are read, learnt without a change in the API.
//!
//! A regular sample ([`Sampler`]) asks Redis which entries were read since the last one, and [`Popularity`] keeps a decayed
//! count of each job's in a bounded sorted set (`lua/fold.lua`). By it the most read are kept warm, everything is warmed
//! most read first, and an entry whose time comes is left to expire if nobody reads it ([`Popularity::wanted`]). The counts
//! are guesses that correct themselves: to lose some costs a fetch or a miss, never a wrong value.

mod decay;
pub(crate) mod feed;
mod look;
mod sample;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use redis::{RedisResult, Script};
use tracing::debug;

use decay::half_life;
pub use sample::Sampler;

use crate::entry::duration::millis;
use crate::entry::{EntryKey, JobName};
use crate::job::Job;
use crate::protocol::Keys;
use crate::redis::Connection;

/// Entries whose reads are counted, for each job; more where its file wants more kept warm.
const COUNTED: usize = 10_000;
/// The most read that each worker remembers of each job, for when Redis forgets; as many as are kept warm, within these.
const REMEMBERED: RangeInclusive<usize> = 1_000..=10_000;
/// Entries handed to one script call, so that none holds Redis up.
const BATCH: usize = 250;
/// Entries that one call of `lua/top.lua` answers.
const PAGE: usize = 1_000;
/// More reads of one entry than this at once are somebody's slip.
const MOST_READS: f64 = 1e6;

static FOLD: LazyLock<Script> = LazyLock::new(|| clocked(include_str!("lua/fold.lua")));
static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/claim_sample.lua")));
static TOP: LazyLock<Script> = LazyLock::new(|| clocked(include_str!("lua/top.lua")));

/// A script that reads the clock of a job's counts.
fn clocked(script: &str) -> Script {
    Script::new(&format!("{}{script}", include_str!("lua/half_lives.lua")))
}

/// What a fold does with the reads it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fold {
    /// Adds what was sampled.
    Sampled,
    /// Adds what an API reported.
    Reported,
    /// Brings back what was remembered: a count becomes at least so much.
    AtLeast,
}

/// An entry and how much it is read.
type Read = (EntryKey, f64);

/// The decayed counts of reads, of all jobs. Cheap to clone; clones share what is remembered.
#[derive(Clone, Debug)]
pub struct Popularity {
    redis: Connection,
    keys: Keys,
    /// Whether Redis's policy is an LFU one, as last seen: then it has no idle times, and has frequencies instead.
    lfu: Arc<AtomicBool>,
    /// The most read of each job with their counts, in order.
    remembered: Arc<Mutex<HashMap<JobName, Vec<Read>>>>,
    /// What [`Sampler`] knew of the commands that touch values when it last sampled each job.
    touches: Arc<Mutex<HashMap<JobName, u64>>>,
}

impl Popularity {
    /// The counts under these keys.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        Self { redis, keys, lfu: Arc::default(), remembered: Arc::default(), touches: Arc::default() }
    }

    fn touches(&self) -> MutexGuard<'_, HashMap<JobName, u64>> {
        self.touches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `most` most read entries of a job with their decayed counts, the most read first.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn top(&self, job: &Job, most: usize) -> RedisResult<Vec<(EntryKey, f64)>> {
        let mut top: Vec<Read> = Vec::new();
        while top.len() < most {
            let wanted = PAGE.min(most - top.len());
            let page: Vec<(String, f64)> = TOP
                .key(self.keys.popular(&job.name))
                .key(self.keys.sample(&job.name))
                .arg(millis(half_life(job)))
                .arg(top.len())
                .arg(wanted)
                .invoke_async(&mut self.redis.clone())
                .await?;
            let last = page.len() < wanted;
            top.extend(page.into_iter().map(|(key, count)| (EntryKey::new(key), count)));
            if last {
                break;
            }
        }
        Ok(top)
    }

    /// These entries of a job, the most read first; what nobody reads keeps its order at the end.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn ranked(&self, job: &Job, entries: Vec<EntryKey>) -> RedisResult<Vec<EntryKey>> {
        let mut scored = Vec::with_capacity(entries.len());
        for batch in entries.chunks(PAGE) {
            let keys: Vec<&str> = batch.iter().map(EntryKey::as_str).collect();
            let scores: Vec<Option<f64>> = redis::cmd("ZMSCORE")
                .arg(self.keys.popular(&job.name))
                .arg(keys)
                .query_async(&mut self.redis.clone())
                .await?;
            scored.extend(scores.into_iter().map(|score| score.unwrap_or(f64::NEG_INFINITY)));
        }
        let mut ranked: Vec<(f64, EntryKey)> = scored.into_iter().zip(entries).collect();
        ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        Ok(ranked.into_iter().map(|(_, key)| key).collect())
    }

    /// Folds reads into a job's counts: pairs of entry and how many.
    ///
    /// # Errors
    /// Fails if Redis returns an error; what was sent before is counted.
    async fn fold(&self, job: &Job, reads: &[Read], how: Fold) -> RedisResult<()> {
        let how = match how {
            Fold::Sampled => "add",
            Fold::Reported => "report",
            Fold::AtLeast => "least",
        };
        for batch in reads.chunks(BATCH) {
            let mut call = FOLD.key(self.keys.popular(&job.name));
            call.key(self.keys.sample(&job.name)).arg(millis(half_life(job))).arg(counted(job)).arg(how);
            for (key, reads) in batch {
                call.arg(key.as_str()).arg(reads.clamp(f64::MIN_POSITIVE, MOST_READS));
            }
            let _: usize = call.invoke_async(&mut self.redis.clone()).await?;
        }
        Ok(())
    }

    /// Remembers the most read of a job, for when Redis forgets. A Redis that has just forgotten (its marker is gone) is not
    /// asked.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    async fn remember(&self, job: &Job) -> RedisResult<()> {
        let top = self.top(job, job.entries.popular.clamp(*REMEMBERED.start(), *REMEMBERED.end())).await?;
        // Looked at afterwards: what was flushed meanwhile must not pass for nothing read.
        let marked: bool = redis::cmd("EXISTS").arg(self.keys.marker()).query_async(&mut self.redis.clone()).await?;
        if marked {
            debug!(job = %job.name, entries = top.len(), "remembered");
            self.remembered.lock().unwrap_or_else(PoisonError::into_inner).insert(job.name.clone(), top);
        }
        Ok(())
    }

    /// Brings back what this worker remembers of a job, where Redis counts less. However many workers do so, the counts are
    /// those of the one that remembers most.
    ///
    /// # Errors
    /// Fails if Redis returns an error; do it again.
    pub async fn restore(&self, job: &Job) -> RedisResult<()> {
        let remembered =
            self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&job.name).cloned().unwrap_or_default();
        self.fold(job, &remembered, Fold::AtLeast).await
    }
}

/// Entries of this job whose reads are counted.
fn counted(job: &Job) -> usize {
    job.entries.popular.saturating_mul(4).max(COUNTED)
}
