//! What a fleet's jobs look like now, for people and programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::RedisResult;
use serde::Serialize;

use crate::agenda::Trigger;
use crate::job::Job;
use crate::ops::Census;
use crate::redis::{Connection, Keys};
use crate::warmer::Outcome;

/// One job.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct JobStatus {
    /// Its name.
    pub job: String,
    /// What it is, if the file says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its key pattern.
    pub key: String,
    /// How long values live, seconds.
    pub ttl_seconds: u64,
    /// When warmups run, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The next warmup (Redis time, ms since the epoch).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_warmup_ms: Option<i64>,
    /// Since when it is paused (Redis time, ms since the epoch).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<i64>,
    /// Keys of this job that were there at the last count; absent before the first one.
    pub warm: Option<u64>,
    /// When that count was made (Redis time, ms since the epoch).
    pub warm_counted_ms: Option<i64>,
    /// When the oldest of its values was fetched, as of that count (Redis time, ms since the epoch).
    pub oldest_ms: Option<i64>,
    /// Entries that are due and not yet in hand.
    pub due: u64,
    /// Entries in the hands of workers.
    pub in_hand: u64,
    /// Dead letters.
    pub dead: u64,
    /// How entries have ended since the counters began, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// The last end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
}

/// How an entry ended last.
#[derive(Clone, Debug, Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Last {
    /// The entry.
    pub key: String,
    /// How.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// Why it was warmed.
    #[schema(value_type = String)]
    pub trigger: Trigger,
    /// Why it ended so, where there is something to say.
    pub reason: Option<String>,
}

/// Looks at one job; its keys are those of the last count.
///
/// # Errors
/// Redis's.
pub async fn of_job(
    redis: &Connection,
    keys: &Keys,
    job: &Arc<Job>,
    census: Option<&Census>,
) -> RedisResult<JobStatus> {
    let mut redis = redis.clone();
    let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut redis).await?;
    let now = seconds * 1_000 + micros / 1_000;
    let agenda = keys.agenda(&job.name);
    let (single_now, mass_now) = (now - 40_000_000_000_000 + 1, now - 30_000_000_000_000 + 1);
    type Reply = (u64, u64, u64, u64, u64, Option<f64>, Option<i64>, BTreeMap<String, String>);
    let (due, single, mass, in_hand, dead, next, paused_ms, stats): Reply = redis::pipe()
        .cmd("ZCOUNT")
        .arg(&agenda)
        .arg(0)
        .arg(now)
        .cmd("ZCOUNT")
        .arg(&agenda)
        .arg("-inf")
        .arg(single_now)
        .cmd("ZCOUNT")
        .arg(&agenda)
        .arg("-3.5e13")
        .arg(mass_now)
        .cmd("ZCOUNT")
        .arg(&agenda)
        .arg("-2.5e13")
        .arg("(-1e13")
        .cmd("ZCARD")
        .arg(keys.dead(&job.name))
        .cmd("ZSCORE")
        .arg(keys.schedules())
        .arg(job.name.as_str())
        .cmd("GET")
        .arg(keys.paused(&job.name))
        .cmd("HGETALL")
        .arg(keys.stats(&job.name))
        .query_async(&mut redis)
        .await?;
    let counted = census.and_then(|census| census.jobs.get(job.name.as_str()));
    let last = stats.get("last").and_then(|last| serde_json::from_str(last).ok());
    let outcomes = stats.into_iter().filter_map(|(name, count)| Some((name, count.parse().ok()?))).collect();
    #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
    let next_warmup_ms = next.map(|next| next as i64);
    Ok(JobStatus {
        job: job.name.to_string(),
        description: job.description.clone(),
        key: job.key.to_string(),
        ttl_seconds: job.ttl.as_secs(),
        schedule: job.warm.schedule.as_ref().map(|schedule| schedule.as_str().to_owned()),
        next_warmup_ms,
        paused_ms,
        warm: counted.map(|counted| counted.warm),
        warm_counted_ms: census.map(|census| census.at_ms),
        oldest_ms: counted.and_then(|counted| counted.oldest_ms),
        due: [due, single, mass].into_iter().sum(),
        in_hand,
        dead,
        outcomes,
        last,
    })
}
