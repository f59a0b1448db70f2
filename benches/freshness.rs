//! Measures hits and upstream calls for a Zipf read trace through several TTLs: Samovar beside an API that fills misses
//! itself, against the same API alone (plain cache-aside).
//!
//! Both read the same trace at the same time, each on a Redis and an upstream of its own. The API knows nothing of
//! Samovar, which learns from Redis what is read.
//!
//! Arguments: seconds of a TTL, TTLs, reads a second, upstream latency in ms.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and stops at the first surprise")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::Zipf;
use samovar::redis::Connection;
use serde_json::json;
use tokio::task::JoinSet;

use support::{JobsFolder, TestRedis, eventually, samovar};

/// Entries there are, and how steeply popularity falls among them (Breslau et al., "Web Caching and Zipf-like
/// Distributions", INFOCOM 1999, found 0.64 to 0.83 for web proxies; single sites are steeper).
const ENTRIES: usize = 3_000;
const EXPONENT: f64 = 1.0;
/// Kept warm as the most read, and how many of the truly most read are looked at: the boundary between them is chance.
const POPULAR: usize = 100;
const LOOKED_AT: usize = 50;
/// Until so many TTLs have passed, everything is cold for both.
const COLD: u32 = 2;

struct Setting {
    ttl: Duration,
    ttls: u32,
    rate: f64,
    latency: Duration,
}

/// Answers everything after its latency, and counts.
struct Upstream {
    url: String,
    calls: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Upstream {
    async fn start(latency: Duration) -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let answer = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(latency).await;
                axum::Json(json!({"title": "Mona Lisa"}))
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await.unwrap() });
        Self { url, calls, _server: server }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Tally {
    reads: AtomicUsize,
    hits: AtomicUsize,
    kept_reads: AtomicUsize,
    kept_hits: AtomicUsize,
}

#[tokio::main]
async fn main() {
    let numbers: Vec<f64> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").map(|n| n.parse().unwrap()).collect();
    let number = |at: usize, default: f64| numbers.get(at).copied().unwrap_or(default);
    let setting = Arc::new(Setting {
        ttl: Duration::from_secs_f64(number(0, 30.0)),
        ttls: number(1, 6.0) as u32,
        rate: number(2, 150.0),
        latency: Duration::from_secs_f64(number(3, 450.0) / 1_000.0),
    });
    let seed: u64 = rand::random();
    let trace = Arc::new(trace(&setting, seed));
    println!(
        "{} reads of {ENTRIES} entries in {} TTLs of {:?}, Zipf {EXPONENT}, upstream latency {:?}, seed {seed}",
        trace.len(),
        setting.ttls,
        setting.ttl,
        setting.latency
    );
    println!("counted from TTL {} on; kept warm: the {LOOKED_AT} most read of {POPULAR}\n", COLD + 1);
    let (plain, beside) =
        tokio::join!(run("cache-aside", &setting, &trace, false), run("Samovar", &setting, &trace, true));
    println!("\nupstream calls, Samovar to cache-aside: {:.3}", beside / plain);
}

/// When which entry is read, by rank.
fn trace(setting: &Setting, seed: u64) -> Vec<(Duration, usize)> {
    let mut random = StdRng::seed_from_u64(seed);
    let zipf = Zipf::new(ENTRIES as f64, EXPONENT).unwrap();
    let (mut at, end) = (0.0, setting.ttl.as_secs_f64() * f64::from(setting.ttls));
    let mut trace = Vec::new();
    loop {
        at += -(1.0 - random.random::<f64>()).ln() / setting.rate;
        if at >= end {
            return trace;
        }
        trace.push((Duration::from_secs_f64(at), random.sample(zipf) as usize - 1));
    }
}

/// Reads the trace; returns the upstream calls once it is no longer cold.
async fn run(name: &str, setting: &Arc<Setting>, trace: &Arc<Vec<(Duration, usize)>>, samovar: bool) -> f64 {
    let redis =
        TestRedis::options().arg("--maxmemory", "200mb").arg("--maxmemory-policy", "volatile-lru").start().await;
    let upstream = Upstream::start(setting.latency).await;
    let jobs = JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url)).job(
        "art",
        &format!(
            "key = \"art:{{name}}\"\nttl = \"{}\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
             path = \"/art/{{{{ name }}}}\"\n[entries]\npopular = {POPULAR}\n",
            humantime::format_duration(setting.ttl)
        ),
    );
    let _worker = samovar.then(|| samovar_worker(&redis, &jobs));
    if samovar {
        eventually("the worker is at work", async || redis.ask::<u8>(&["EXISTS", "samovar:marker"]).await == 1).await;
    }
    let tally = Arc::new(Tally::default());
    let connection = redis.redis_url().manager(Duration::from_secs(30)).await.unwrap();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let (begun, mut reads, mut before) = (Instant::now(), JoinSet::new(), None);
    for (at, rank) in trace.iter().copied() {
        tokio::time::sleep_until((begun + at).into()).await;
        let counted = at >= setting.ttl * COLD;
        if counted && before.is_none() {
            before = Some(upstream.calls());
        }
        let (tally, redis, http) = (Arc::clone(&tally), connection.clone(), http.clone());
        let (url, ttl) = (format!("{}/art/{rank}", upstream.url), setting.ttl);
        reads.spawn(async move {
            let hit = read(redis, &http, &url, rank, ttl).await;
            if counted {
                tally.count(rank, hit);
            }
        });
        while reads.try_join_next().is_some() {}
    }
    while let Some(read) = reads.join_next().await {
        read.unwrap();
    }
    let calls = upstream.calls() - before.unwrap_or(0);
    let share = |hits: &AtomicUsize, reads: &AtomicUsize| {
        100.0 * hits.load(Ordering::Relaxed) as f64 / reads.load(Ordering::Relaxed).max(1) as f64
    };
    println!(
        "{name:<12} hits {:6.2} %   hits of what is kept warm {:7.3} %   upstream calls {calls:6}",
        share(&tally.hits, &tally.reads),
        share(&tally.kept_hits, &tally.kept_reads)
    );
    if samovar {
        let stats: Vec<String> = redis.ask(&["HGETALL", "samovar:stats:{art}"]).await;
        println!(
            "{:<12} {}",
            "",
            stats
                .chunks(2)
                .filter(|pair| pair[0] != "last")
                .map(|pair| format!("{} {}", pair[1], pair[0]))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    calls as f64
}

fn samovar_worker(redis: &TestRedis, jobs: &JobsFolder) -> support::WorkerProcess {
    samovar(["worker"]).redis(redis).jobs(jobs).env("SAMOVAR_SAMPLE", "1s").spawn()
}

/// Plain cache-aside; whether it was a hit.
async fn read(mut redis: Connection, http: &reqwest::Client, url: &str, rank: usize, ttl: Duration) -> bool {
    let key = format!("art:{rank}");
    let value: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
    if value.is_some() {
        return true;
    }
    let body = http.get(url).send().await.unwrap().text().await.unwrap();
    let ttl = u64::try_from(ttl.as_millis()).unwrap();
    redis::cmd("SET").arg(&key).arg(body).arg("PX").arg(ttl).exec_async(&mut redis).await.unwrap();
    false
}

impl Tally {
    fn count(&self, rank: usize, hit: bool) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.hits.fetch_add(usize::from(hit), Ordering::Relaxed);
        if rank < LOOKED_AT {
            self.kept_reads.fetch_add(1, Ordering::Relaxed);
            self.kept_hits.fetch_add(usize::from(hit), Ordering::Relaxed);
        }
    }
}
