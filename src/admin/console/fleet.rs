//! The fleet: its workers, what they know, and the servers of Redis.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use axum::response::IntoResponse;
use maud::{Markup, html};
use redis::RedisResult;

use super::page::{Failure, Page, Screen, Tab, number, text};
use crate::admin::in_time;
use crate::entry::{JobName, duration};
use crate::ops::{FleetStatus, still_waits, words};
use crate::redis::{Connection, RedisTime, ServerInfo, Servers};

/// The time that Sentinels and masters have to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The content of the screen.
struct Fleet {
    now: RedisTime,
    /// This worker.
    worker: String,
    /// The live workers; `None` if their record cannot be read.
    living: Option<Vec<String>>,
    /// The time without a heartbeat after which a worker is dead.
    dead_after: Duration,
    /// The state that all jobs share, or the reason why it cannot be read.
    status: Result<FleetStatus, String>,
    /// The workers with earlier files, by job.
    held_back: BTreeMap<JobName, Vec<String>>,
    servers: Servers,
    /// Each master's address, and what it tells of itself.
    masters: Vec<(String, Option<ServerInfo>)>,
}

pub(super) async fn fleet(screen: Screen) -> Result<impl IntoResponse, Failure> {
    let (ops, parts) = (&screen.parts.ops, &screen.parts);
    let living = tokio::time::timeout(PATIENCE, parts.queue.living(parts.dead_after)).await;
    let living = living.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
    let known = living.as_ref().ok().cloned();
    let fleet = Fleet {
        now: ops.store.now().await?,
        worker: parts.worker.to_string(),
        status: in_time(PATIENCE, ops.fleet(living)).await,
        held_back: in_time(PATIENCE, ops.held_back(known.as_deref().unwrap_or_default())).await.unwrap_or_default(),
        living: known,
        dead_after: parts.dead_after,
        servers: ops.redis.all_servers(PATIENCE).await,
        masters: masters(&screen).await,
    };
    let page = Page { tab: Tab::Fleet, title: "Fleet".to_owned(), as_of: Some(fleet.now), is_live: true };
    Ok(screen.page(&page, &view(&fleet)))
}

/// Asks each master for its information; one that does not answer in time has none.
async fn masters(screen: &Screen) -> Vec<(String, Option<ServerInfo>)> {
    let redis = &screen.parts.ops.redis;
    let told = futures_util::future::join_all(redis.masters().await.into_iter().map(told_by)).await;
    let names = redis.servers().masters;
    match told.len() == names.len() {
        true => names.into_iter().zip(told).map(|(name, (_, info))| (name, info)).collect(),
        false => told,
    }
}

/// Asks a master for its information.
async fn told_by(mut master: Connection) -> (String, Option<ServerInfo>) {
    let told: RedisResult<Option<ServerInfo>> =
        tokio::time::timeout(PATIENCE, master.info(&[])).await.unwrap_or(Ok(None));
    (master.servers().masters.join(", "), told.ok().flatten())
}

fn view(fleet: &Fleet) -> Markup {
    html! {
        section aria-labelledby="workers" {
            h2 #workers { "Workers" }
            @match &fleet.living {
                None => { p.bad { "The live workers are unknown: their record cannot be read." } }
                Some(living) => {
                    p {
                        (living.len()) " live. One that was killed counts until its heartbeats have been missing for "
                        (duration::text(fleet.dead_after)) ". This one has version " (env!("CARGO_PKG_VERSION"))
                        "; workers do not tell others theirs."
                    }
                    ul.keys {
                        @for worker in living {
                            li.key { (text(worker)) @if *worker == fleet.worker { " (this one)" } }
                        }
                    }
                }
            }
            @for (job, workers) in &fleet.held_back { p { (text(&still_waits(job.as_str(), workers))) "." } }
            @match &fleet.status {
                Ok(status) => {
                    @for refused in &status.refused_reloads { p.bad { (text(&words::refusal(refused, fleet.now))) } }
                    @for fault in status.faults.iter().chain(&status.refused_writes) { p.bad { (text(fault)) } }
                }
                Err(why) => { p.bad { "Refused reloads cannot be read: " (text(why)) } }
            }
        }
        section aria-labelledby="redis" {
            h2 #redis { "Redis" }
            p { "Topology: " (text(&fleet.servers.to_string())) "." }
            @for (what, addresses) in [("Replicas", &fleet.servers.replicas), ("Sentinels", &fleet.servers.sentinels)] {
                @if !addresses.is_empty() { p { (what) ": " (text(&addresses.join(", "))) } }
            }
            div.scroll tabindex="0" role="region" aria-label="Masters" {
                table {
                    thead { tr {
                        th scope="col" { "Master" } th scope="col" { "Version" } th.num scope="col" { "Memory" }
                        th.num scope="col" { "Limit, bytes" } th scope="col" { "Policy" }
                        th.num scope="col" { "Evicted" }
                        th.num scope="col" { "Clients" } th.num scope="col" { "Up, s" }
                    } }
                    tbody { @for (address, info) in &fleet.masters { (master(address, info.as_ref())) } }
                }
            }
        }
    }
}

fn master(address: &str, info: Option<&ServerInfo>) -> Markup {
    html! {
        tr {
            th.key scope="row" { (text(address)) }
            @match info {
                None => { td colspan="7" { "It tells nothing: it does not answer, or INFO is not allowed." } }
                Some(info) => {
                    td { (text(info.version().unwrap_or("–"))) }
                    td.num { (text(info.used_memory_human().unwrap_or("–"))) }
                    td.num { @if info.maxmemory() == Some(0) { "none" } @else { (number(info.maxmemory())) } }
                    td { (text(info.eviction_policy().unwrap_or("–"))) }
                    td.num { (number(info.evicted_keys())) }
                    td.num { (number(info.connected_clients())) }
                    td.num { (number(info.uptime_seconds())) }
                }
            }
        }
    }
}
