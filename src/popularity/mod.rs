//! Popularity: which entries are read, without changes to the API.
//!
//! A regular sample ([`Sampler`]) asks Redis which entries were read since the last one, and [`Popularity`] keeps a
//! decayed count of each job's reads in a bounded sorted set (`lua/fold.lua`). The counts decide which entries are kept
//! warm, put the most read first in every warmup, and let an unread entry expire ([`Popularity::wanted`]). They are
//! estimates that correct themselves: losing some costs a fetch or a miss, never a wrong value.

mod access;
pub(crate) mod buckets;
mod decay;
pub(crate) mod feed;
mod sample;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script};
use tracing::debug;

use decay::{half_life, half_life_of};
pub use feed::FeedState;
pub use sample::Sampler;

use crate::entry::duration::millis;
use crate::entry::{EntryKey, JobName, KeySet};
use crate::job::Job;
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};

/// Entries of a job whose reads are counted; more if its file keeps more of them warm.
const COUNTED: usize = 10_000;
/// The most read entries that each worker keeps in memory for each job, in case Redis loses its data.
const REMEMBERED: RangeInclusive<usize> = 1_000..=10_000;
/// Entries in one script call, so that no call blocks Redis for long.
const BATCH: usize = 250;
/// Entries that one call of `lua/top.lua` returns.
const PAGE: usize = 1_000;
/// The most reads that one report may add to an entry.
const MOST_READS: f64 = 1e6;

static FOLD: LazyLock<Script> = LazyLock::new(|| clocked(include_str!("lua/fold.lua")));
static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/claim_sample.lua")));
static TOP: LazyLock<Script> = LazyLock::new(|| clocked(include_str!("lua/top.lua")));

/// Returns a script with the prelude that reads the clock of a job's counts.
fn clocked(script: &str) -> Script {
    Script::new(&format!("{}{script}", include_str!("lua/half_lives.lua")))
}

/// The operation of a fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fold {
    /// Adds sampled reads.
    Sampled,
    /// Adds reads that an API reported.
    Reported,
    /// Restores remembered counts: raises each count to at least this value.
    AtLeast,
}

/// The time after the answer of a feed in which its warmup makes most entries due.
const EXPANDED: Duration = Duration::from_secs(60);

/// An entry and its count of reads.
type Read = (EntryKey, f64);

/// The decayed counts of reads of all jobs. Cheap to clone; clones share their memory.
#[derive(Clone, Debug)]
pub struct Popularity {
    redis: Connection,
    keys: Keys,
    /// `true` if Redis's policy was last seen to be an LFU one: frequencies then replace idle times.
    lfu: Arc<AtomicBool>,
    /// The most read entries of each job with their counts, in order.
    remembered: Arc<Mutex<HashMap<JobName, Vec<Read>>>>,
    /// The number of accesses that [`Sampler`] had seen when it last sampled each job.
    touches: Arc<Mutex<HashMap<JobName, u64>>>,
    /// When each job's feed last gave a usable answer, as far as this worker knows.
    answered: Arc<Mutex<HashMap<JobName, RedisTime>>>,
}

impl Popularity {
    /// Creates the counts under these keys.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        Self {
            redis,
            keys,
            lfu: Arc::default(),
            remembered: Arc::default(),
            touches: Arc::default(),
            answered: Arc::default(),
        }
    }

    /// Notes when a job's feed last gave a usable answer.
    pub(crate) fn note_answer(&self, job: &JobName, at: RedisTime) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), at);
    }

    /// Tells that an entry that a warmup made due at `since` is named by the last answer of its job's feed: nothing has
    /// put it off since that warmup. An entry of which this cannot be told may be named all the same.
    pub(crate) fn is_of_last_answer(&self, job: &JobName, since: RedisTime) -> bool {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner).get(job).copied();
        answered.is_some_and(|at| (at..at + EXPANDED).contains(&since))
    }

    fn touches(&self) -> MutexGuard<'_, HashMap<JobName, u64>> {
        self.touches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the `most` most read entries of a job with their decayed counts, the most read first.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn top(&self, job: &Job, most: usize) -> RedisResult<Vec<(EntryKey, f64)>> {
        self.top_of(&job.name, job.ttl, most).await
    }

    /// Returns the same of a job by its name and TTL.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn top_of(&self, job: &JobName, ttl: Duration, most: usize) -> RedisResult<Vec<(EntryKey, f64)>> {
        let mut top: Vec<Read> = Vec::new();
        while top.len() < most {
            let wanted = PAGE.min(most - top.len());
            let page: Vec<(String, f64)> = TOP
                .key(self.keys.popular(job))
                .key(self.keys.sample(job))
                .arg(millis(half_life_of(ttl)))
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

    /// Returns the numbers of a job's entries by reads, the most read first. Of the unread ones, those that the job's
    /// file lists come first; the others keep their order.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn ranked(&self, job: &Job, entries: &KeySet) -> RedisResult<impl Iterator<Item = usize> + Send + use<>> {
        let mut read: Vec<(f64, usize)> = Vec::new();
        for (page, batch) in entries.pages(PAGE).enumerate() {
            let keys: Vec<&str> = batch.iter().map(EntryKey::as_str).collect();
            let scores: Vec<Option<f64>> = redis::cmd("ZMSCORE")
                .arg(self.keys.popular(&job.name))
                .arg(keys)
                .query_async(&mut self.redis.clone())
                .await?;
            let scores = (page * PAGE..).zip(scores);
            read.extend(scores.filter_map(|(number, score)| Some((score?, number))));
        }
        read.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let listed = job.entries.list.iter().filter_map(|params| entries.number(job.key.write(params)?.as_str()));
        let (mut first, mut is_first) = (Vec::new(), vec![false; entries.len()]);
        for number in read.into_iter().map(|(_, number)| number).chain(listed) {
            if !std::mem::replace(&mut is_first[number], true) {
                first.push(number);
            }
        }
        let others = (0..entries.len()).filter(move |number| !is_first[*number]);
        Ok(first.into_iter().chain(others))
    }

    /// Adds reads to a job's counts: pairs of entry and number.
    ///
    /// # Errors
    /// Fails if Redis returns an error; earlier batches are counted.
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

    /// Keeps the most read entries of a job in memory, in case Redis loses its data. A Redis that has just lost it (its
    /// marker is gone) is not asked.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    async fn remember(&self, job: &Job) -> RedisResult<()> {
        let top = self.top(job, job.entries.popular.clamp(*REMEMBERED.start(), *REMEMBERED.end())).await?;
        // Checked afterwards: a flush in between must not look like an empty count.
        let marked: bool = redis::cmd("EXISTS").arg(self.keys.marker()).query_async(&mut self.redis.clone()).await?;
        if marked {
            debug!(job = %job.name, entries = top.len(), "remembered");
            self.remembered.lock().unwrap_or_else(PoisonError::into_inner).insert(job.name.clone(), top);
        }
        Ok(())
    }

    /// Restores the counts that this worker remembers of a job, where Redis has lower ones. If several workers do so,
    /// the highest counts remain.
    ///
    /// # Errors
    /// Fails if Redis returns an error; call it again.
    pub async fn restore(&self, job: &Job) -> RedisResult<()> {
        let remembered =
            self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&job.name).cloned().unwrap_or_default();
        self.fold(job, &remembered, Fold::AtLeast).await
    }
}

/// Returns how many entries of this job are counted.
fn counted(job: &Job) -> usize {
    job.entries.popular.saturating_mul(4).max(COUNTED)
}
