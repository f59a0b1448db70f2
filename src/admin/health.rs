//! Liveness, readiness, and the state of Redis.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use tokio::time::timeout;

use super::Admin;

use crate::entry::duration;
use crate::redis::SentinelStatus;
use crate::redis::requirements::explain;

/// The timeout of a probe of Redis.
const PATIENCE: Duration = Duration::from_secs(1);

/// The health of the worker.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub(crate) struct Readiness {
    /// `healthy`; `degraded` if single jobs or steps fail and the rest works; or `unhealthy`.
    pub(crate) status: &'static str,
    /// `connected` or `disconnected`.
    pub(crate) redis: &'static str,
    /// `single`, `sentinel` or `cluster`; absent until Redis was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) topology: Option<&'static str>,
    /// The addresses of the masters to which connections lead; empty until they are known.
    pub(crate) masters: Vec<String>,
    /// The master, if Sentinels name it; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sentinels: Option<Sentinels>,
    /// The faults; empty if there are none.
    pub(crate) reasons: Vec<String>,
    /// Invalidations by pattern, tag or job, or of many keys, that this worker has not finished.
    pub(crate) invalidations_waiting: usize,
    /// The age of the oldest of them, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) invalidation_waits_s: Option<u64>,
    /// The worker's name; absent until Redis was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<String>,
    /// Samovar's version.
    pub(crate) version: &'static str,
}

/// The master and the Sentinels that name it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Sentinels {
    /// The address of the master to which connections lead; absent until a Sentinel has named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    master: Option<String>,
    /// Sentinels that named a master within the last 3 s.
    answering: usize,
    /// Sentinels that are asked: those of the URL, and those that they name.
    known: usize,
}

/// The state of Redis.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RedisState {
    /// `healthy` or `unhealthy`.
    status: &'static str,
    /// `connected` or `disconnected`.
    redis: &'static str,
    /// The latency of its answer, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The liveness of the process.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Alive {
    /// `healthy`.
    status: &'static str,
}

/// Probes Redis; returns the latency, or why it did not answer.
async fn ping(admin: &Admin) -> Result<Duration, String> {
    let Some(parts) = admin.parts() else {
        let why = admin.waiting.read().unwrap_or_else(PoisonError::into_inner).clone();
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        return Err(format!("Redis at {} has not been reached yet{why}", admin.redis));
    };
    let begun = Instant::now();
    let mut redis = parts.ops.redis.clone();
    // A master of a Cluster that is down answers a `PING`, and no command for a key.
    let mut asked = redis::cmd("EXISTS");
    asked.arg(parts.ops.keys.marker());
    match timeout(PATIENCE, asked.exec_async(&mut redis)).await {
        Ok(Ok(())) => Ok(begun.elapsed()),
        Ok(Err(e)) => Err(format!("Redis at {}: {}", admin.redis, explain(&e))),
        Err(_) => Err(format!("Redis at {} does not answer within {}", admin.redis, duration::text(PATIENCE))),
    }
}

/// Returns what guards hold back, and of which jobs most is given up; nothing if Redis does not answer, which is told
/// elsewhere.
async fn notices(admin: &Admin) -> Vec<String> {
    let Some(parts) = admin.parts() else { return Vec::new() };
    let ops = &parts.ops;
    let (guards, failing) = tokio::join!(timeout(PATIENCE, ops.guard_notices()), timeout(PATIENCE, ops.failing()));
    let guards = guards.ok().and_then(Result::ok).unwrap_or_default();
    guards.into_iter().chain(failing.ok().and_then(Result::ok).unwrap_or_default().into_values()).collect()
}

fn code(healthy: bool) -> StatusCode {
    if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn word(healthy: bool) -> &'static str {
    if healthy { "healthy" } else { "unhealthy" }
}

async fn state(admin: &Admin) -> (StatusCode, Json<Readiness>) {
    let state = readiness(admin).await;
    (code(state.status != word(false)), Json(state))
}

/// Returns the health of the worker.
pub(crate) async fn readiness(admin: &Admin) -> Readiness {
    let (asked, notices) = tokio::join!(ping(admin), notices(admin));
    let redis = if asked.is_ok() { "connected" } else { "disconnected" };
    let mut reasons: Vec<String> = asked.err().into_iter().collect();
    let parts = admin.parts();
    reasons.extend(parts.iter().flat_map(|parts| parts.health.faults()));
    if admin.stop.is_cancelled() {
        reasons.push("the worker was told to stop".to_owned());
    }
    let ready = reasons.is_empty();
    let troubles: Vec<String> = parts.iter().flat_map(|parts| parts.health.troubles()).collect();
    // The heartbeat, which notices it as well, may wait for the very master that does not answer.
    let of_masters = parts.as_ref().and_then(|parts| parts.ops.redis.fault_of_masters());
    reasons.extend(of_masters.filter(|fault| !troubles.iter().any(|trouble| trouble.contains(fault.as_str()))));
    reasons.extend(troubles);
    reasons.extend(notices);
    reasons.extend(parts.iter().flat_map(|parts| parts.gates.values()).filter_map(|gate| gate.trouble()));
    reasons.extend(
        admin.reload.refused().map(|refused| {
            format!("the last reload of the job files was refused, the old jobs stay: {}", refused.reason)
        }),
    );
    let (invalidations_waiting, waits) = parts.as_ref().map(|parts| parts.backlog.length()).unwrap_or_default();
    let sentinels = match &parts {
        Some(parts) => parts.ops.redis.sentinels(Duration::ZERO).await,
        None => None,
    };
    let servers = parts.as_ref().map(|parts| parts.ops.redis.servers());
    Readiness {
        status: if ready && !reasons.is_empty() { "degraded" } else { word(ready) },
        redis,
        topology: servers.as_ref().map(|servers| servers.topology),
        masters: servers.map(|servers| servers.masters).unwrap_or_default(),
        sentinels: sentinels.map(|SentinelStatus { master, answering, known }| Sentinels { master, answering, known }),
        reasons,
        invalidations_waiting,
        invalidation_waits_s: waits.map(|waits| waits.as_secs()),
        worker: parts.map(|parts| parts.worker.to_string()),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// Readiness: the agenda moves, the heartbeat runs, the subscription is up, Redis answers. Failures of single jobs are
/// listed, too
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub(super) async fn health(State(admin): State<Arc<Admin>>) -> (StatusCode, Json<Readiness>) {
    state(&admin).await
}

/// Alias of `/health`
#[utoipa::path(get, path = "/health/ready", tag = "health", responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub(super) async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, Json<Readiness>) {
    state(&admin).await
}

/// Liveness: the process answers; independent of Redis
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, body = Alive)))]
pub(super) async fn live() -> Json<Alive> {
    Json(Alive { status: word(true) })
}

async fn redis_state(admin: &Admin) -> (StatusCode, Json<RedisState>) {
    let asked = ping(admin).await;
    let state = RedisState {
        status: word(asked.is_ok()),
        redis: if asked.is_ok() { "connected" } else { "disconnected" },
        latency_ms: asked.as_ref().ok().map(|took| took.as_secs_f64() * 1_000.0),
        reason: asked.as_ref().err().cloned(),
    };
    (code(asked.is_ok()), Json(state))
}

/// Probe Redis
#[utoipa::path(get, path = "/health/redis", tag = "health", responses((status = 200, body = RedisState), (status = 503, body = RedisState)))]
pub(super) async fn health_redis(State(admin): State<Arc<Admin>>) -> (StatusCode, Json<RedisState>) {
    redis_state(&admin).await
}

/// Alias of `/health/redis`
#[utoipa::path(get, path = "/redis/health", tag = "health", responses((status = 200, body = RedisState), (status = 503, body = RedisState)))]
pub(super) async fn redis_health(State(admin): State<Arc<Admin>>) -> (StatusCode, Json<RedisState>) {
    redis_state(&admin).await
}
