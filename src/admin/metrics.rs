//! Metrics in Prometheus's text format.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::{Admin, Parts};
use crate::ops::Census;
use crate::ops::audit::AuditOutcome;
use crate::ops::status::{self, UpstreamStatus};
use crate::redis::SentinelStatus;
use crate::telemetry::metrics::{self, Budget, JobGauges};

/// The timeout of Redis, so that a scrape does not hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// Metrics in Prometheus's text format, version 0.0.4
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "stats",
    responses((status = 200, body = String, content_type = "text/plain; version=0.0.4; charset=utf-8"))
)]
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    metrics::set_reload_refused(admin.reload.refused().is_some());
    if let Some(parts) = admin.parts() {
        let census = admin.census(Duration::ZERO).await;
        set_gauges(&parts, census.as_deref()).await;
    } else {
        metrics::set_process(false, 0, 0, 0);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()).into_response()
}

async fn set_gauges(parts: &Parts, census: Option<&Census>) {
    let asked = async {
        let mut jobs = Vec::new();
        let now = parts.ops.store.now().await?;
        for job in parts.ops.jobs.jobs.values() {
            jobs.push((job, status::of_job(&parts.ops.redis, &parts.ops.keys, job, census).await?));
        }
        let upstreams = status::upstreams(&parts.ops.redis, &parts.ops.keys, &parts.ops.jobs).await?;
        redis::RedisResult::Ok((now, jobs, upstreams))
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok);
    let in_flight = parts.warmer.upgrade().map_or(0, |warmer| warmer.in_flight());
    let (waiting, _) = parts.backlog.length();
    let servers = parts.ops.redis.servers();
    metrics::set_masters(servers.topology, &servers.masters);
    if let Some(SentinelStatus { answering, known, .. }) = parts.ops.redis.sentinels(Duration::ZERO).await {
        metrics::set_sentinels(answering, known);
    }
    metrics::set_process(asked.is_some(), in_flight, parts.workers.load(Ordering::Relaxed), waiting);
    match &asked {
        Some((now, jobs, _)) => {
            for (job, status) in jobs {
                let gauges = JobGauges {
                    due: Some(status.due),
                    in_flight: Some(status.in_flight),
                    dead: Some(status.dead),
                    warm: status.warm,
                    oldest_age: status.oldest_ms.map(|oldest| now.saturating_since(oldest)),
                    old: status.old,
                    paused: Some(status.paused_ms.is_some()),
                    holding: Some(status.gone_guard.is_some_and(|guard| guard.is_holding())),
                    warmed_up: status.warmed_up_ms,
                    usage: Some(status.usage),
                    reads: status
                        .reads
                        .as_ref()
                        .and_then(|reads| reads.all)
                        .map(|all| [all.hits, all.misses, all.stale]),
                };
                metrics::set_job(&job.name, gauges);
                if let Some(audits) = &status.audits {
                    let counts = AuditOutcome::ALL.map(|outcome| (outcome.as_str(), audits.count(outcome)));
                    metrics::set_audits(&job.name, counts);
                }
            }
        }
        // Earlier values may be out of date.
        None => {
            for job in parts.ops.jobs.jobs.keys() {
                metrics::set_job(job, JobGauges::default());
            }
        }
    }
    for (name, gate) in &parts.gates {
        let known =
            |(_, _, all): &(_, _, Vec<UpstreamStatus>)| all.iter().find(|u| u.upstream == name.as_str()).cloned();
        let known = asked.as_ref().and_then(known);
        let tokens = gate.upstream().tokens.map(|budget| Budget {
            budget: budget.tokens,
            spent: known.as_ref().and_then(|known| known.tokens_spent),
            ends: known.as_ref().and_then(|known| known.tokens_window_ends_ms),
        });
        metrics::set_upstream(name, gate.in_flight(), gate.is_broken(), tokens);
    }
}
