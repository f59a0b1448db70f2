//! Measures hits and upstream calls for a Zipf read trace through several TTLs: Samovar beside an API that fills misses
//! itself, against the same API alone (plain cache-aside). Then the cost of rechecks, per published edit.
//!
//! All read the same trace at the same time, each on a Redis and an upstream of its own. The API knows nothing of
//! Samovar, which learns from Redis what is read. Rechecks are on where nothing else is said.
//!
//! Arguments: seconds of a TTL, TTLs, reads a second, upstream latency in ms, edits a minute, longest lag of the
//! upstream behind an edit in s.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and stops at the first surprise")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::Zipf;
use samovar::redis::Connection;
use serde_json::{Value, json};
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

/// Characters of text in an answer.
const TEXT: usize = 1_600;

struct Setting {
    ttl: Duration,
    ttls: u32,
    rate: f64,
    latency: Duration,
    /// Edits a second.
    edits: f64,
    lag: Duration,
}

/// One way of keeping the cache, on one trace.
struct Run {
    name: &'static str,
    /// `warm.recheck` of the job, or an empty line; `None` for no Samovar.
    samovar: Option<&'static str>,
    has_edits: bool,
    lag: Duration,
}

const NO_RECHECKS: &str = "recheck = []";

/// Answers everything after its latency, and counts. An edit shows after its lag.
struct Upstream {
    url: String,
    hall: Arc<Hall>,
    _server: JoinSet<()>,
}

struct Hall {
    latency: Duration,
    /// For each path, the times at which its edits show.
    edits: Mutex<HashMap<String, Vec<Instant>>>,
    full: AtomicUsize,
    unchanged: AtomicUsize,
    bytes: AtomicUsize,
}

/// The answers of an upstream.
#[derive(Clone, Copy, Default)]
struct Answers {
    full: usize,
    unchanged: usize,
    bytes: usize,
}

impl Answers {
    fn calls(self) -> usize {
        self.full + self.unchanged
    }
}

impl Upstream {
    async fn start(latency: Duration) -> Self {
        let hall = Arc::new(Hall {
            latency,
            edits: Mutex::default(),
            full: AtomicUsize::default(),
            unchanged: AtomicUsize::default(),
            bytes: AtomicUsize::default(),
        });
        let asked = Arc::clone(&hall);
        let answer = move |path: Uri, headers: HeaderMap| {
            let hall = Arc::clone(&asked);
            async move { hall.answer(path.path(), &headers).await }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await.unwrap() });
        Self { url, hall, _server: server }
    }

    /// Edits an entry; it shows after `lag`.
    fn edit(&self, rank: usize, lag: Duration) {
        let mut edits = self.hall.edits.lock().unwrap();
        edits.entry(format!("/art/{rank}")).or_default().push(Instant::now() + lag);
    }

    fn answers(&self) -> Answers {
        let [full, unchanged, bytes] =
            [&self.hall.full, &self.hall.unchanged, &self.hall.bytes].map(|count| count.load(Ordering::Relaxed));
        Answers { full, unchanged, bytes }
    }
}

impl Hall {
    async fn answer(&self, path: &str, headers: &HeaderMap) -> Response {
        // The state when the request arrives.
        let now = Instant::now();
        let edits =
            self.edits.lock().unwrap().get(path).map_or(0, |edits| edits.iter().filter(|at| **at <= now).count());
        tokio::time::sleep(self.latency).await;
        let etag = format!("\"{edits}\"");
        if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == etag.as_str()) {
            self.unchanged.fetch_add(1, Ordering::Relaxed);
            return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
        }
        let body = json!({"title": "Mona Lisa", "version": edits, "text": "x".repeat(TEXT)}).to_string();
        self.full.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(body.len(), Ordering::Relaxed);
        ([(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)], body).into_response()
    }
}

#[derive(Default)]
struct Tally {
    reads: AtomicUsize,
    hits: AtomicUsize,
    kept_reads: AtomicUsize,
    kept_hits: AtomicUsize,
    /// Reads of content from before an edit that was published and showed already.
    stale: AtomicUsize,
}

/// An event of the trace: its time, and the rank of its entry.
#[derive(Clone, Copy)]
enum Event {
    Read,
    /// With the part of the longest lag after which it shows.
    Edit(f64),
}

type Trace = Vec<(Duration, usize, Event)>;

#[tokio::main]
async fn main() {
    let numbers: Vec<f64> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").map(|n| n.parse().unwrap()).collect();
    let number = |at: usize, default: f64| numbers.get(at).copied().unwrap_or(default);
    let setting = Setting {
        ttl: Duration::from_secs_f64(number(0, 30.0)),
        ttls: number(1, 6.0) as u32,
        rate: number(2, 150.0),
        latency: Duration::from_secs_f64(number(3, 450.0) / 1_000.0),
        edits: number(4, 60.0) / 60.0,
        lag: Duration::from_secs_f64(number(5, 3.0)),
    };
    let seed: u64 = rand::random();
    let trace = trace(&setting, seed);
    println!(
        "{} reads of {ENTRIES} entries in {} TTLs of {:?}, Zipf {EXPONENT}, upstream latency {:?}, seed {seed}",
        trace.iter().filter(|(_, _, event)| matches!(event, Event::Read)).count(),
        setting.ttls,
        setting.ttl,
        setting.latency
    );
    println!("counted from TTL {} on; kept warm: the {LOOKED_AT} most read of {POPULAR}\n", COLD + 1);
    let of = |name, samovar, has_edits, lag| Run { name, samovar, has_edits, lag };
    let (none, all) = (Some(NO_RECHECKS), Some(""));
    let runs = [
        of("cache-aside", None, false, Duration::ZERO),
        of("Samovar", all, false, Duration::ZERO),
        of("no rechecks", none, false, Duration::ZERO),
    ];
    let [plain, with, without] = runs.each_ref().map(|run| play(run, &setting, &trace));
    let (plain, with, without) = tokio::join!(plain, with, without);
    let ratio = |one: usize, other: usize| one as f64 / other as f64;
    println!("\nupstream calls, Samovar to cache-aside: {:.3}", ratio(with.calls(), plain.calls()));
    println!("with rechecks to without: calls {:.3}", ratio(with.calls(), without.calls()));

    let counted = |at: Duration| at >= setting.ttl * COLD;
    let edits = trace.iter().filter(|(at, _, event)| counted(*at) && matches!(event, Event::Edit(_))).count();
    println!(
        "\nwith {:.0} edits a minute of the {POPULAR} most read, each published; {edits} are counted",
        setting.edits * 60.0
    );
    let runs = [
        of("Samovar", all, true, Duration::ZERO),
        of("no rechecks", none, true, Duration::ZERO),
        of("lag", all, true, setting.lag),
        of("lag, none", none, true, setting.lag),
    ];
    let [with, without, lag, lag_without] = runs.each_ref().map(|run| play(run, &setting, &trace));
    let (with, without, lag, lag_without) = tokio::join!(with, without, lag, lag_without);
    for (lag, with, without) in [(Duration::ZERO, with, without), (setting.lag, lag, lag_without)] {
        let more = |with: usize, without: usize| (with as f64 - without as f64) / edits as f64;
        println!(
            "lag to {lag:?}: with rechecks to without: calls {:.3}, bytes {:.3}; for each edit {:.2} calls more, {:.2} \
             of them with 304, and {:.0} bytes",
            ratio(with.calls(), without.calls()),
            ratio(with.bytes, without.bytes),
            more(with.calls(), without.calls()),
            more(with.unchanged, without.unchanged),
            more(with.bytes, without.bytes)
        );
    }
}

/// When which entry is read or edited, by rank.
fn trace(setting: &Setting, seed: u64) -> Trace {
    let mut random = StdRng::seed_from_u64(seed);
    let zipf = Zipf::new(ENTRIES as f64, EXPONENT).unwrap();
    let end = setting.ttl.as_secs_f64() * f64::from(setting.ttls);
    let mut events = |rate: f64, event: &dyn Fn(&mut StdRng) -> (usize, Event)| {
        let (mut at, mut events) = (0.0, Trace::new());
        loop {
            at += -(1.0 - random.random::<f64>()).ln() / rate;
            if at >= end {
                return events;
            }
            let (rank, event) = event(&mut random);
            events.push((Duration::from_secs_f64(at), rank, event));
        }
    };
    let mut trace = events(setting.rate, &|random| (random.sample(zipf) as usize - 1, Event::Read));
    // Entries that are warm: only these cost a recheck.
    let edits = events(setting.edits, &|random| (random.random_range(0..POPULAR), Event::Edit(random.random())));
    trace.extend(edits);
    trace.sort_by_key(|(at, _, _)| *at);
    trace
}

/// Plays the trace; returns what the upstream has answered once it is no longer cold.
async fn play(run: &Run, setting: &Setting, trace: &Trace) -> Answers {
    let redis =
        TestRedis::options().arg("--maxmemory", "200mb").arg("--maxmemory-policy", "volatile-lru").start().await;
    let upstream = Upstream::start(setting.latency).await;
    let jobs = JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url)).job(
        "art",
        &format!(
            "key = \"art:{{name}}\"\nttl = \"{}\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
             path = \"/art/{{{{ name }}}}\"\n[entries]\npopular = {POPULAR}\n[warm]\n{}\n",
            humantime::format_duration(setting.ttl),
            run.samovar.unwrap_or_default()
        ),
    );
    let _worker = run.samovar.map(|_| samovar_worker(&redis, &jobs));
    if run.samovar.is_some() {
        eventually("the worker is at work", async || redis.ask::<u8>(&["EXISTS", "samovar:marker"]).await == 1).await;
    }
    let tally = Arc::new(Tally::default());
    let connection = redis.redis_url().manager(Duration::from_secs(30)).await.unwrap();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let (begun, mut reads, mut before) = (Instant::now(), JoinSet::new(), None);
    // For each entry, the number of its edits, and since when the last one shows.
    let mut shown: HashMap<usize, (u64, Instant)> = HashMap::new();
    for (at, rank, event) in trace.iter().copied() {
        tokio::time::sleep_until((begun + at).into()).await;
        let counted = at >= setting.ttl * COLD;
        if counted && before.is_none() {
            before = Some(upstream.answers());
        }
        let (tally, mut redis, http) = (Arc::clone(&tally), connection.clone(), http.clone());
        match event {
            Event::Edit(_) if !run.has_edits => {}
            Event::Edit(part) => {
                let lag = run.lag.mul_f64(part);
                upstream.edit(rank, lag);
                let edited = shown.entry(rank).or_insert((0, Instant::now()));
                *edited = (edited.0 + 1, edited.1.max(Instant::now() + lag));
                reads.spawn(async move {
                    let key = format!("art:{rank}");
                    redis::cmd("PUBLISH").arg("samovar:invalidate").arg(key).exec_async(&mut redis).await.unwrap();
                });
            }
            Event::Read => {
                let (url, ttl) = (format!("{}/art/{rank}", upstream.url), setting.ttl);
                let expected = shown.get(&rank).filter(|(_, at)| *at <= Instant::now()).map_or(0, |(edits, _)| *edits);
                reads.spawn(async move {
                    let (hit, version) = read(redis, &http, &url, rank, ttl).await;
                    if counted {
                        tally.count(rank, hit, version < expected);
                    }
                });
            }
        }
        while reads.try_join_next().is_some() {}
    }
    while let Some(read) = reads.join_next().await {
        read.unwrap();
    }
    let (before, after) = (before.unwrap_or_default(), upstream.answers());
    let answers = Answers {
        full: after.full - before.full,
        unchanged: after.unchanged - before.unchanged,
        bytes: after.bytes - before.bytes,
    };
    let share = |hits: &AtomicUsize, reads: &AtomicUsize| {
        100.0 * hits.load(Ordering::Relaxed) as f64 / reads.load(Ordering::Relaxed).max(1) as f64
    };
    println!(
        "{:<12} hits {:6.2} %   hits of what is kept warm {:7.3} %   upstream calls {:6}, {:5} with 304, {:6} kB   stale \
         reads {:5}",
        run.name,
        share(&tally.hits, &tally.reads),
        share(&tally.kept_hits, &tally.kept_reads),
        answers.calls(),
        answers.unchanged,
        answers.bytes / 1_000,
        tally.stale.load(Ordering::Relaxed)
    );
    if run.samovar.is_some() {
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
    answers
}

fn samovar_worker(redis: &TestRedis, jobs: &JobsFolder) -> support::WorkerProcess {
    samovar(["worker"]).redis(redis).jobs(jobs).env("SAMOVAR_SAMPLE", "1s").spawn()
}

/// Plain cache-aside; returns `true` for a hit, and the version read.
async fn read(mut redis: Connection, http: &reqwest::Client, url: &str, rank: usize, ttl: Duration) -> (bool, u64) {
    let version = |body: &str| serde_json::from_str::<Value>(body).unwrap()["version"].as_u64().unwrap();
    let key = format!("art:{rank}");
    let value: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
    if let Some(value) = value {
        return (true, version(&value));
    }
    let body = http.get(url).send().await.unwrap().text().await.unwrap();
    let ttl = u64::try_from(ttl.as_millis()).unwrap();
    redis::cmd("SET").arg(&key).arg(&body).arg("PX").arg(ttl).exec_async(&mut redis).await.unwrap();
    (false, version(&body))
}

impl Tally {
    fn count(&self, rank: usize, hit: bool, stale: bool) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.hits.fetch_add(usize::from(hit), Ordering::Relaxed);
        self.stale.fetch_add(usize::from(stale), Ordering::Relaxed);
        if rank < LOOKED_AT {
            self.kept_reads.fetch_add(1, Ordering::Relaxed);
            self.kept_hits.fetch_add(usize::from(hit), Ordering::Relaxed);
        }
    }
}
