//! What a fleet's jobs look like now, for people and programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::RedisResult;
use serde::Serialize;

use crate::agenda::Trigger;
use crate::job::Job;
use crate::redis::{Connection, Keys};
use crate::warmer::Outcome;

/// Keys that Redis looks at in one step of a scan.
const STEP: usize = 1_000;

/// One job.
#[derive(Clone, Debug, Serialize)]
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
    /// Keys of this job that are there now.
    pub warm: u64,
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
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Last {
    /// The entry.
    pub key: String,
    /// How.
    pub outcome: Outcome,
    /// Why it was warmed.
    pub trigger: Trigger,
    /// Why it ended so, where there is something to say.
    pub reason: Option<String>,
}

/// Looks at one job; counting its keys scans the whole of Redis, in steps.
///
/// # Errors
/// Redis's.
pub async fn of_job(redis: &Connection, keys: &Keys, job: &Arc<Job>) -> RedisResult<JobStatus> {
    let mut redis = redis.clone();
    let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut redis).await?;
    let now = seconds * 1_000 + micros / 1_000;
    let agenda = keys.agenda(&job.name);
    let (single_now, mass_now) = (now - 40_000_000_000_000 + 1, now - 30_000_000_000_000 + 1);
    let (due, single, mass, in_hand, dead, next, stats): (
        u64,
        u64,
        u64,
        u64,
        u64,
        Option<f64>,
        BTreeMap<String, String>,
    ) = redis::pipe()
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
        .cmd("HGETALL")
        .arg(keys.stats(&job.name))
        .query_async(&mut redis)
        .await?;
    let mut warm = 0;
    let mut cursor = 0_u64;
    loop {
        let (next, found): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(job.key.glob())
            .arg("COUNT")
            .arg(STEP)
            .query_async(&mut redis)
            .await?;
        warm +=
            found.iter().filter(|key| str::from_utf8(key).is_ok_and(|key| job.key.read(key).is_some())).count() as u64;
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
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
        warm,
        due: [due, single, mass].into_iter().sum(),
        in_hand,
        dead,
        outcomes,
        last,
    })
}
