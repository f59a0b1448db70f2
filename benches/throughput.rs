//! Entries warmed per second through the whole path, against the same fetches and `SET`s in a bare loop.
//!
//! Redis, the upstream and what is measured are processes of their own; both runs ask the same upstream on the same
//! machine one after the other, and the upstream itself tells how long it was asked. Read the ratio, not the figures.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and stops at the first surprise")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use support::{JobsFolder, TestRedis, eventually, samovar};

const ENTRIES: usize = 20_000;
const BYTES: usize = 1_700;
const CONCURRENCY: usize = 64;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("upstream"), ..) => upstream().await,
        (Some("bare"), Some(upstream), Some(redis)) => bare(&upstream, &redis).await,
        _ => compare().await,
    }
}

/// Runs both, in turn, and prints what they reach.
async fn compare() {
    let (_upstream, url) = start_upstream().await;
    println!("{ENTRIES} entries of {BYTES} bytes, concurrency {CONCURRENCY}, {ROUNDS} rounds each");
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        bare.push(run_bare(&url).await);
        whole.push(run_whole(&url).await);
        let (bare, whole) = (bare.last().unwrap(), whole.last().unwrap());
        println!("round {round}: bare loop {bare:8.0}/s   whole path {whole:8.0}/s   ratio {:.2}", whole / bare);
    }
    let (bare, whole) = (median(bare), median(whole));
    println!("median:  bare loop {bare:8.0}/s   whole path {whole:8.0}/s   ratio {:.2}", whole / bare);
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

async fn run_bare(url: &str) -> f64 {
    let redis = TestRedis::start().await;
    reset(url).await;
    let status = myself().args(["bare", url, &redis.url()]).status().await.unwrap();
    assert!(status.success(), "the bare loop failed: {status}");
    assert_eq!(redis.ask::<usize>(&["DBSIZE"]).await, ENTRIES);
    rate(url).await
}

async fn run_whole(url: &str) -> f64 {
    let redis = TestRedis::start().await;
    reset(url).await;
    let jobs = JobsFolder::new().upstreams(&format!("[upstream]\nurl = \"{url}\"\n")).job(
        "entry",
        r#"
        key = "entry:{id}"
        ttl = "1h"
        [source]
        kind = "http"
        upstream = "upstream"
        path = "/entries/{{ id }}"
        [entries]
        feed = { upstream = "upstream", path = "/ids" }
        "#,
    );
    let concurrency = CONCURRENCY.to_string();
    let _worker = samovar(["worker", "--concurrency", &concurrency]).redis(&redis).jobs(&jobs).spawn();
    eventually("all entries are warm", async || {
        let warmed: Option<usize> = redis.ask(&["HGET", "samovar:stats:{entry}", "warmed"]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if warmed == Some(ENTRIES) { Ok(()) } else { Err(format!("{warmed:?} are")) }
    })
    .await;
    rate(url).await
}

fn myself() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.kill_on_drop(true);
    command
}

/// What somebody would write who needs no queue, no lock, no schedule and no invalidation.
async fn bare(upstream: &str, redis: &str) {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let redis = redis::Client::open(redis).unwrap().get_multiplexed_async_connection().await.unwrap();
    let workers = futures_util::stream::iter(0..ENTRIES).map(|id| {
        let (http, mut redis, url) = (http.clone(), redis.clone(), format!("{upstream}/entries/{id}"));
        async move {
            let warm = async move {
                let body = http.get(url).send().await.unwrap().text().await.unwrap();
                serde_json::from_str::<serde_json::Value>(&body).unwrap();
                let () = redis::cmd("SET")
                    .arg(format!("entry:{id}"))
                    .arg(body)
                    .arg("EX")
                    .arg(3_600)
                    .query_async(&mut redis)
                    .await
                    .unwrap();
            };
            // On all cores, as the worker does.
            let mut set = tokio::task::JoinSet::new();
            set.spawn(warm);
            set.join_next().await.unwrap().unwrap();
        }
    });
    workers.buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
}

#[derive(Default)]
struct Asked {
    count: AtomicUsize,
    span: Mutex<Option<(Instant, Instant)>>,
}

/// Answers at once; remembers from when to when it was asked.
async fn upstream() {
    let asked = Arc::new(Asked::default());
    let routes = Router::new()
        .route("/entries/{id}", get(entry))
        .route("/ids", get(|| async { axum::Json((0..ENTRIES).map(|id| id.to_string()).collect::<Vec<_>>()) }))
        .route("/reset", get(reset_asked))
        .route("/seconds", get(seconds))
        .with_state(asked);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    axum::serve(listener, routes).await.unwrap();
}

async fn entry(State(asked): State<Arc<Asked>>, Path(id): Path<String>) -> impl IntoResponse {
    asked.count.fetch_add(1, Ordering::Relaxed);
    let now = Instant::now();
    let mut span = asked.span.lock().unwrap();
    *span = Some((span.map_or(now, |(first, _)| first), now));
    drop(span);
    let mut body = format!(r#"{{"id":"{id}","text":""#);
    body.extend(std::iter::repeat_n('x', BYTES - body.len() - 2));
    body.push_str("\"}");
    ([("content-type", "application/json")], body)
}

async fn reset_asked(State(asked): State<Arc<Asked>>) {
    asked.count.store(0, Ordering::Relaxed);
    *asked.span.lock().unwrap() = None;
}

async fn seconds(State(asked): State<Arc<Asked>>) -> String {
    assert_eq!(asked.count.load(Ordering::Relaxed), ENTRIES, "each entry is to be asked for once");
    let (first, last) = asked.span.lock().unwrap().unwrap();
    (last - first).as_secs_f64().to_string()
}

async fn start_upstream() -> (Child, String) {
    let mut child = myself().arg("upstream").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().unwrap();
    (child, url)
}

async fn reset(url: &str) {
    ask(url, "reset").await;
}

async fn rate(url: &str) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let entries = ENTRIES as f64;
    entries / ask(url, "seconds").await.parse::<f64>().unwrap()
}

async fn ask(url: &str, what: &str) -> String {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    http.get(format!("{url}/{what}")).send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
}
