//! Shared by the benchmarks of the worker: an upstream in a process of its own, and the cost of processes.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "each benchmark is a crate of its own and uses a part of it"
)]

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::support::TestRedis;

/// Bytes of a value.
pub const BYTES: usize = 1_700;
/// `/proc` counts in these (`USER_HZ`, which is 100 on Linux everywhere).
const TICK: Duration = Duration::from_millis(10);

/// This program, to be run once more as something else.
pub fn myself() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.kill_on_drop(true);
    command
}

/// An upstream in a process of its own; it ends when this is dropped.
pub struct Upstream {
    child: Child,
    pub url: String,
}

impl Upstream {
    /// Answers each entry after `latency`; its feed names `entries`.
    pub async fn start(entries: usize, latency: Duration) -> Self {
        Self::narrow(entries, latency, Semaphore::MAX_PERMITS).await
    }

    /// As [`Upstream::start`], with `at_once` answers at a time; the others wait.
    pub async fn narrow(entries: usize, latency: Duration, at_once: usize) -> Self {
        let mut command = myself();
        command.args(["upstream", &entries.to_string(), &latency.as_micros().to_string(), &at_once.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.next_line().await.unwrap().unwrap();
        Self { child, url }
    }

    /// Asks one of its routes.
    pub async fn ask(&self, what: &str) -> String {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let url = format!("{}/{what}", self.url);
        http.get(url).send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    /// Returns the number of entries requested, and the time from the first to the last of them.
    pub async fn asked(&self) -> (usize, Duration) {
        let answer = self.ask("asked").await;
        let (count, seconds) = answer.split_once(' ').unwrap();
        (count.parse().unwrap(), Duration::from_secs_f64(seconds.parse().unwrap()))
    }

    /// Returns the number of requests for entries.
    pub async fn requests(&self) -> usize {
        self.ask("requests").await.parse().unwrap()
    }

    /// CPU time it took so far.
    pub fn cpu(&self) -> Duration {
        cpu(self.child.id().unwrap())
    }
}

struct Asked {
    entries: usize,
    latency: Duration,
    at_once: Semaphore,
    count: AtomicUsize,
    requests: AtomicUsize,
    version: AtomicUsize,
    span: Mutex<Option<(Instant, Instant)>>,
    /// Of entries that were edited by name: how often, and how long their last answer took.
    edited: Mutex<HashMap<String, (usize, Duration)>>,
}

/// Is the upstream, if the arguments say so; it remembers from when to when it was asked.
pub async fn serve(arguments: &[String]) -> bool {
    let [what, entries, latency, at_once] = arguments else { return false };
    if what != "upstream" {
        return false;
    }
    let asked = Arc::new(Asked {
        entries: entries.parse().unwrap(),
        latency: Duration::from_micros(latency.parse().unwrap()),
        at_once: Semaphore::new(at_once.parse().unwrap()),
        count: AtomicUsize::default(),
        requests: AtomicUsize::default(),
        version: AtomicUsize::default(),
        span: Mutex::default(),
        edited: Mutex::default(),
    });
    let routes = Router::new()
        .route("/entries/{id}", get(entry))
        .route("/entries", get(entries_at_once))
        .route("/ids", get(ids))
        .route("/reset", get(reset))
        .route("/edit", get(edit))
        .route("/edit/{id}", get(edit_one))
        .route("/took/{id}", get(took))
        .route("/asked", get(tell))
        .route("/requests", get(requests))
        .with_state(asked);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    axum::serve(listener, routes).await.unwrap();
    true
}

async fn ids(State(asked): State<Arc<Asked>>) -> axum::Json<Vec<String>> {
    axum::Json((0..asked.entries).map(|id| id.to_string()).collect())
}

impl Asked {
    /// Counts a request for these many entries, and waits for its turn; returns when it came.
    async fn begin(&self, entries: usize) -> Instant {
        self.count.fetch_add(entries, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        {
            let mut span = self.span.lock().unwrap();
            *span = Some((span.map_or(now, |(first, _)| first), now));
        }
        if !self.latency.is_zero() {
            let _turn = self.at_once.acquire().await.unwrap();
            tokio::time::sleep(self.latency).await;
        }
        now
    }
}

/// Returns an entry as JSON of [`BYTES`].
fn document(id: &str, version: usize) -> String {
    let mut body = format!(r#"{{"id":"{id}","version":{version},"text":""#);
    body.extend(std::iter::repeat_n('x', BYTES - body.len() - 2));
    body.push_str("\"}");
    body
}

async fn entries_at_once(State(asked): State<Arc<Asked>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let ids: Vec<&str> = query["ids"].split(',').collect();
    asked.begin(ids.len()).await;
    let version = asked.version.load(Ordering::Relaxed);
    let items: Vec<String> = ids.into_iter().map(|id| document(id, version)).collect();
    ([("content-type", "application/json")], format!("[{}]", items.join(","))).into_response()
}

async fn entry(State(asked): State<Arc<Asked>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let now = asked.begin(1).await;
    let mut version = asked.version.load(Ordering::Relaxed);
    if let Some((times, took)) = asked.edited.lock().unwrap().get_mut(&id) {
        version += *times;
        *took = now.elapsed();
    }
    let etag = format!("\"{version}-{id}\"");
    if headers.get("if-none-match").is_some_and(|known| known == etag.as_str()) {
        return (StatusCode::NOT_MODIFIED, [("etag", etag)]).into_response();
    }
    let body = document(&id, version);
    ([("content-type", "application/json"), ("etag", etag.as_str())], body).into_response()
}

async fn reset(State(asked): State<Arc<Asked>>) {
    asked.count.store(0, Ordering::Relaxed);
    asked.requests.store(0, Ordering::Relaxed);
    *asked.span.lock().unwrap() = None;
}

/// All entries change.
async fn edit(State(asked): State<Arc<Asked>>) {
    asked.version.fetch_add(1, Ordering::Relaxed);
}

/// One entry changes.
async fn edit_one(State(asked): State<Arc<Asked>>, Path(id): Path<String>) {
    asked.edited.lock().unwrap().entry(id).or_default().0 += 1;
}

/// Seconds that the last answer of an edited entry took.
async fn took(State(asked): State<Arc<Asked>>, Path(id): Path<String>) -> String {
    asked.edited.lock().unwrap().get(&id).map_or(Duration::ZERO, |(_, took)| *took).as_secs_f64().to_string()
}

async fn tell(State(asked): State<Arc<Asked>>) -> String {
    let span = asked.span.lock().unwrap().map_or(Duration::ZERO, |(first, last)| last - first);
    format!("{} {}", asked.count.load(Ordering::Relaxed), span.as_secs_f64())
}

async fn requests(State(asked): State<Arc<Asked>>) -> String {
    asked.requests.load(Ordering::Relaxed).to_string()
}

/// CPU time that a process took so far (Linux).
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    TICK * (ticks(11) + ticks(12))
}

/// Memory that a process has, in MB: `VmRSS`, or `VmHWM` for the most it ever had (Linux).
pub fn memory(pid: u32, which: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1_000.0
}

/// A line of Redis's `INFO`.
pub async fn info(redis: &TestRedis, section: &str, field: &str) -> f64 {
    let info: String = redis.ask(&["INFO", section]).await;
    let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(f64::NAN)
}

/// CPU time that a Redis took so far.
pub async fn redis_cpu(redis: &TestRedis) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a process id")]
    let pid = info(redis, "server", "process_id").await as u32;
    cpu(pid)
}

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The figure that so large a share (0 to 1) of the others stays below.
pub fn quantile(mut figures: Vec<f64>, share: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = (figures.len() as f64 * share) as usize;
    figures.get(at.min(figures.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
