//! Statistics of Redis and the jobs.

use std::collections::BTreeMap;

use axum::Json;
use serde::Serialize;

use super::extract::{Asked, Fleet, Nothing};
use super::jobs::statuses;
use super::problem::Problem;
use crate::job::Job;
use crate::ops::reads::rate;
use crate::ops::status::JobStatus;
use crate::redis::RedisTime;

/// Statistics of Redis, absent without a right to `INFO`, and of the jobs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Stats {
    /// Clients connected to Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_clients: Option<u64>,
    /// Memory in use, such as `1.50M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_memory_human: Option<String>,
    /// Memory in use, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_memory_bytes: Option<u64>,
    /// The memory limit, bytes; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    maxmemory_bytes: Option<u64>,
    /// The eviction policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    maxmemory_policy: Option<String>,
    /// Keys in Samovar's database, of all clients.
    total_keys: u64,
    /// Look-ups by all clients that found a key, since Redis started. Samovar's own are among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    keyspace_hits: Option<u64>,
    /// Look-ups by all clients that found none.
    #[serde(skip_serializing_if = "Option::is_none")]
    keyspace_misses: Option<u64>,
    /// The share of these hits, from 0 to 1. It is not the hit rate of the API: most look-ups may be Samovar's own,
    /// which Redis does not tell apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    keyspace_hit_rate: Option<f64>,
    /// The hit rate of all jobs in the last hour, from 0 to 1, of the reads that services report; null if none are.
    hit_rate: Option<f64>,
    /// Keys by database.
    databases: BTreeMap<String, Database>,
    /// The uptime of Redis, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_seconds: Option<u64>,
    /// Redis's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_version: Option<String>,
    /// The jobs.
    jobs: Vec<JobStats>,
}

/// One database of Redis.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct Database {
    /// Keys.
    keys: u64,
    /// Keys with a TTL.
    expires: u64,
}

/// The statistics of one job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct JobStats {
    #[serde(flatten)]
    status: JobStatus,
    /// Entries fetched, or found unchanged, since the counters started.
    refreshes: u64,
    /// Failed attempts since then.
    failures: u64,
    /// The hit rate of its keys in the last hour, from 0 to 1, of the reads that services report; null if none are.
    hit_rate: Option<f64>,
    /// The first upstream.
    upstream: Upstream,
}

/// The fleet's recent statistics of an upstream (this hour of Redis's clock and the one before), and its usage.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct Upstream {
    /// Its name.
    name: String,
    /// Completed requests of the fleet, for all jobs.
    requests: u64,
    /// Their mean duration, ms.
    latency_ms: Option<f64>,
    /// The longest duration of this worker's requests since its start, ms.
    slowest_ms: Option<f64>,
    /// Why no requests are sent now.
    #[serde(skip_serializing_if = "Option::is_none")]
    closed: Option<&'static str>,
    /// AI tokens that this worker has spent on this job.
    tokens_of_job: u64,
    /// AI tokens that the fleet has spent in the current window; absent without a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_spent: Option<u64>,
    /// AI tokens that may be spent in a window.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_budget: Option<u64>,
    /// When that window ends (Redis time, ms since the epoch); absent while nothing is spent in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    tokens_window_ends_ms: Option<RedisTime>,
}

/// Statistics of Redis and the jobs
#[utoipa::path(get, path = "/redis/stats", tag = "stats", responses((status = 200, body = Stats)))]
pub(super) async fn redis_stats(fleet: Fleet, Asked(Nothing {}): Asked<Nothing>) -> Result<Json<Stats>, Problem> {
    stats(&fleet).await.map(Json)
}

/// Alias of `/redis/stats`
#[utoipa::path(get, path = "/api/v1/cache/stats", tag = "stats", responses((status = 200, body = Stats)))]
pub(super) async fn cache_stats(fleet: Fleet, Asked(Nothing {}): Asked<Nothing>) -> Result<Json<Stats>, Problem> {
    stats(&fleet).await.map(Json)
}

async fn stats(fleet: &Fleet) -> Result<Stats, Problem> {
    let parts = &fleet.parts;
    let mut redis = parts.ops.redis.clone();
    let info = redis.info(&[]).await?.unwrap_or_default();
    let total_keys = redis::cmd("DBSIZE").query_async(&mut redis).await?;
    let mut jobs = Vec::new();
    for status in statuses(fleet).await? {
        let Some(job) = parts.cron.jobs.jobs.get(status.job.as_str()) else { continue };
        jobs.push(of_job(fleet, job, status).await?);
    }
    let (hits, misses) = (info.hits(), info.misses());
    let lately = jobs.iter().filter_map(|job| job.status.reads.as_ref()?.hour);
    let lately = lately.fold((0_u64, 0_u64), |(hits, misses), reads| {
        (hits.saturating_add(reads.hits), misses.saturating_add(reads.misses))
    });
    let hit_rate = rate(lately.0, lately.1);
    Ok(Stats {
        connected_clients: info.connected_clients(),
        used_memory_human: info.used_memory_human().map(str::to_owned).or_else(|| {
            // Of several servers.
            info.used_memory().map(|bytes| bytesize::ByteSize(bytes).display().iec_short().to_string())
        }),
        used_memory_bytes: info.used_memory(),
        maxmemory_bytes: info.maxmemory(),
        maxmemory_policy: info.eviction_policy().map(str::to_owned),
        total_keys,
        keyspace_hits: hits,
        keyspace_misses: misses,
        keyspace_hit_rate: hits.zip(misses).and_then(|(hits, misses)| rate(hits, misses)),
        hit_rate,
        databases: info
            .databases()
            .map(|(name, [keys, expires])| (name.to_owned(), Database { keys, expires }))
            .collect(),
        uptime_seconds: info.uptime_seconds(),
        redis_version: info.version().map(str::to_owned),
        jobs,
    })
}

async fn of_job(fleet: &Fleet, job: &Job, status: JobStatus) -> Result<JobStats, Problem> {
    let parts = &fleet.parts;
    let count = |outcome: &str| status.outcomes.get(outcome).copied().unwrap_or_default();
    let (refreshes, failures) = (count("warmed") + count("unchanged"), count("failed"));
    let mut upstream = Upstream::default();
    if let Some(gate) = job.sources.first().and_then(|source| parts.gates.get(source.upstream()?)) {
        let fetches = gate.fetches();
        gate.tell().await?;
        let lately = gate.lately().await?;
        #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
        let mean = (lately.requests > 0).then(|| lately.took.as_secs_f64() * 1_000.0 / lately.requests as f64);
        upstream = Upstream {
            name: gate.upstream().name.to_string(),
            requests: lately.requests,
            latency_ms: mean,
            slowest_ms: (fetches.count > 0).then_some(fetches.slowest.as_secs_f64() * 1_000.0),
            closed: gate.refusal().map(|refusal| refusal.says()),
            tokens_of_job: fetches.tokens.get(&job.name).copied().unwrap_or_default(),
            ..Upstream::default()
        };
        if let Some(known) = status.upstreams.iter().find(|known| known.upstream == upstream.name) {
            upstream.tokens_spent = known.tokens_spent;
            upstream.tokens_budget = known.tokens_budget;
            upstream.tokens_window_ends_ms = known.tokens_window_ends_ms;
        }
    }
    let hit_rate = status.reads.as_ref().and_then(|reads| reads.hour?.hit_rate);
    Ok(JobStats { status, refreshes, failures, hit_rate, upstream })
}
