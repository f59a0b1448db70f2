//! The last answer of a job's feed: used when the feed fails, and to decide on an entry that is about to expire. And
//! the state of the feed in the fleet.

use std::collections::BTreeMap;

use redis::{Pipeline, RedisResult};
use serde::{Deserialize, Serialize};

use super::buckets;
use crate::entry::{JobName, KeySet, excerpt};
use crate::job::{Job, KeyPattern};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};

/// The field of a job's counters that holds the state of its feed, as JSON.
const STATE: &str = "feed";
/// The longest reason kept, in characters.
const LONGEST_REASON: usize = 300;

/// The state of a job's feed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct FeedState {
    /// When it last gave a usable answer (Redis time, ms since the epoch).
    #[schema(value_type = Option<i64>)]
    pub answered_ms: Option<RedisTime>,
    /// Entries that this answer named.
    pub entries: usize,
    /// Items of this answer that name no entry, and combinations of items with constants that make no key.
    pub skipped: usize,
    /// Where the first of them stands, and why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_skipped: Option<String>,
    /// Failures in a row since then.
    pub failures: u32,
    /// When it last failed (Redis time, ms since the epoch).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub failed_ms: Option<RedisTime>,
    /// The reason of this failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The time of the warmup that waits for the feed, once all its other entries are on the agenda. Only in Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub(crate) tick_ms: Option<RedisTime>,
}

impl FeedState {
    /// Reads what people and programs see of the state from a job's counters.
    pub fn of(counters: &BTreeMap<String, String>) -> Option<Self> {
        let state: Self = serde_json::from_str(counters.get(STATE)?).ok()?;
        Some(Self { tick_ms: None, ..state })
    }

    /// Reads the state of a job's feed; a text that is none counts as absent.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn read(redis: &mut Connection, keys: &Keys, job: &JobName) -> RedisResult<Self> {
        let mut pipe = redis::pipe();
        Self::ask(&mut pipe, keys, job);
        let (text,): (Option<Vec<u8>>,) = pipe.query_async(redis).await?;
        Ok(Self::told(text.as_deref()))
    }

    /// Asks for the state of a job's feed in a pipeline of the caller; [`Self::told`] reads the reply.
    pub(super) fn ask(pipe: &mut Pipeline, keys: &Keys, job: &JobName) {
        pipe.cmd("HGET").arg(keys.stats(job)).arg(STATE);
    }

    /// Reads a state; a text that is none counts as absent.
    pub(super) fn told(text: Option<&[u8]>) -> Self {
        text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    /// Stores the state of a job's feed.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn keep(&self, redis: &mut Connection, keys: &Keys, job: &JobName) -> RedisResult<()> {
        let text = serde_json::to_string(self).unwrap_or_default();
        redis::cmd("HSET").arg(keys.stats(job)).arg(STATE).arg(text).exec_async(redis).await
    }

    /// Removes the state of a job that has no feed.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn forget(redis: &mut Connection, keys: &Keys, job: &JobName) -> RedisResult<()> {
        redis::cmd("HDEL").arg(keys.stats(job)).arg(STATE).exec_async(redis).await
    }

    /// Counts a failure of the feed.
    pub(crate) fn fail(&mut self, now: RedisTime, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        self.failed_ms = Some(now);
        self.reason = Some(excerpt(reason, LONGEST_REASON));
    }
}

/// Replaces the stored answer of a feed atomically.
///
/// # Errors
/// Fails if Redis returns an error; the previous answer then stays.
pub(crate) async fn remember(redis: &mut Connection, keys: &Keys, job: &Job, named: &KeySet) -> RedisResult<()> {
    buckets::write(redis, &keys.feed(&job.name), named, None).await
}

/// Removes the stored answer: the feed is empty, or the job no longer has one.
///
/// # Errors
/// Fails if Redis returns an error.
pub(crate) async fn forget(redis: &mut Connection, keys: &Keys, job: &Job) -> RedisResult<()> {
    redis::cmd("UNLINK").arg(keys.feed(&job.name)).exec_async(redis).await
}

/// Returns the entries of a feed's last answer, read in steps.
///
/// # Errors
/// Fails if Redis returns an error.
pub(crate) async fn named_last(
    redis: &mut Connection,
    keys: &Keys,
    job: &JobName,
    key: &KeyPattern,
) -> RedisResult<KeySet> {
    buckets::read(redis, &keys.feed(job), |name| key.read(name).is_some()).await
}
