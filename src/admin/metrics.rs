//! Metrics in Prometheus's text format.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::{Admin, Parts};
use crate::ops::Census;
use crate::status;
use crate::telemetry::metrics::{self, JobGauges};

/// How long Redis may take; whoever scrapes does not wait for ever.
const PATIENCE: Duration = Duration::from_secs(2);

/// Metrics in Prometheus's text format, version 0.0.4
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "stats",
    responses((status = 200, body = String, content_type = "text/plain; version=0.0.4; charset=utf-8"))
)]
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    if let Some(parts) = admin.parts() {
        let census = admin.census(Duration::ZERO).await;
        look(&parts, census.as_deref()).await;
    } else {
        metrics::set_process(false, 0, 0);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()).into_response()
}

async fn look(parts: &Parts, census: Option<&Census>) {
    let asked = async {
        let mut jobs = Vec::new();
        let now = parts.ops.store.now().await?;
        for job in parts.ops.jobs.jobs.values() {
            jobs.push((job, status::of_job(&parts.ops.redis, &parts.ops.keys, job, census).await?));
        }
        let mut spent = Vec::new();
        for name in parts.gates.keys() {
            let [_, _, key] = parts.ops.keys.upstream(name);
            let tokens: Option<u64> = redis::cmd("GET").arg(key).query_async(&mut parts.ops.redis.clone()).await?;
            spent.push(tokens.unwrap_or_default());
        }
        redis::RedisResult::Ok((now, jobs, spent))
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok);
    let in_hand = parts.warmer.upgrade().map_or(0, |warmer| warmer.in_hand());
    metrics::set_process(asked.is_some(), in_hand, parts.workers.load(Ordering::Relaxed));
    match &asked {
        Some((now, jobs, _)) => {
            for (job, status) in jobs {
                let gauges = JobGauges {
                    due: Some(status.due),
                    in_hand: Some(status.in_hand),
                    dead: Some(status.dead),
                    warm: status.warm,
                    oldest_age_ms: status.oldest_ms.map(|oldest| now - oldest),
                    paused: Some(status.paused_ms.is_some()),
                };
                metrics::set_job(&job.name, gauges);
            }
        }
        // What was true before may not be so any more.
        None => {
            for job in parts.ops.jobs.jobs.keys() {
                metrics::set_job(job, JobGauges::default());
            }
        }
    }
    for (place, (name, gate)) in parts.gates.iter().enumerate() {
        let spent = asked.as_ref().and_then(|(_, _, spent)| spent.get(place).copied());
        let tokens = gate.upstream().tokens.map(|budget| (spent, budget.tokens));
        metrics::set_upstream(name, gate.in_flight(), gate.is_broken(), tokens);
    }
}
