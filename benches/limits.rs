//! The cost of an idle worker, of size, of a fleet of two, and the size of the binary.
//!
//! Arguments: the parts to run (`idle agenda start fleet binary`); all where none is named.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and stops at the first surprise")]

mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use samovar::agenda::{Agenda, Finished, Next, When};
use samovar::entry::Trigger;
use samovar::entry::{EntryKey, JobName};
use samovar::protocol::Keys;
use samovar::redis::RedisTime;

use tokio::sync::Semaphore;

use measure::{Upstream, median, memory, redis_cpu};
use support::{JobsFolder, TestRedis, WorkerProcess, eventually, eventually_within, samovar};

const IDLE_ENTRIES: usize = 10_000;
/// For how long idleness is looked at, after the new worker has rechecked all entries and the first sample has passed.
const IDLE: Duration = Duration::from_secs(60);
/// Longer than the last recheck takes (30 s, and the spread), since a worker that starts alone revalidates everything.
const SETTLE: Duration = Duration::from_secs(100);
const SMALL: usize = 1_000;
const LARGE: usize = 1_000_000;
const FLEET_ENTRIES: usize = 20_000;
const WAITING: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if measure::serve(&arguments).await {
        return;
    }
    let wanted = |part: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == part);
    if wanted("binary") {
        binary().await;
    }
    if wanted("idle") {
        idle().await;
    }
    if wanted("agenda") {
        agenda().await;
    }
    if wanted("start") {
        start().await;
    }
    if wanted("fleet") {
        fleet("the machine is the limit", Duration::ZERO, Semaphore::MAX_PERMITS).await;
        fleet("the upstream is the limit", WAITING / 5, 16).await;
        fleet("each fetch waits", WAITING, Semaphore::MAX_PERMITS).await;
    }
}

/// A job whose feed names all entries of the upstream.
fn jobs(upstream: &Upstream) -> JobsFolder {
    JobsFolder::new().upstreams(&format!("[upstream]\nurl = \"{}\"\nmax_bytes = \"64MiB\"\n", upstream.url)).job(
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
    )
}

fn worker(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    samovar(["worker", "--concurrency", "64"]).redis(redis).jobs(jobs).spawn()
}

async fn warm(redis: &TestRedis, entries: usize) {
    eventually("the entries are warm", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        match redis.ask::<Option<usize>>(&["HGET", "samovar:stats:{entry}", "warmed"]).await {
            Some(warm) if warm >= entries => Ok(()),
            warm => Err(warm),
        }
    })
    .await;
}

async fn binary() {
    let path = env!("CARGO_BIN_EXE_samovar");
    let megabytes = std::fs::metadata(path).unwrap().len() as f64 / 1e6;
    let mut took = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        let output = tokio::process::Command::new(path).arg("--version").output().await.unwrap();
        assert!(output.status.success());
        took.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    println!("binary: {megabytes:.1} MB; --version in {:.1} ms", median(took));
}

async fn idle() {
    let redis = TestRedis::start().await;
    let upstream = Upstream::start(IDLE_ENTRIES, Duration::ZERO).await;
    let worker = {
        let jobs = jobs(&upstream);
        let first = worker(&redis, &jobs);
        warm(&redis, IDLE_ENTRIES).await;
        drop(first);
        // Idle memory is that of a worker that found everything warm.
        (samovar(["worker", "--concurrency", "64"]).redis(&redis).jobs(&jobs).spawn(), jobs)
    };
    let worker = &worker.0;
    tokio::time::sleep(SETTLE).await;
    let (before, cpu, redis_before) = (calls(&redis).await, measure::cpu(worker.pid()), redis_cpu(&redis).await);
    tokio::time::sleep(IDLE).await;
    let (after, cpu, redis_cpu) =
        (calls(&redis).await, measure::cpu(worker.pid()) - cpu, redis_cpu(&redis).await - redis_before);
    let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / IDLE.as_secs_f64();
    let mut more: Vec<(f64, &String)> = after
        .iter()
        .map(|(command, calls)| ((calls - before.get(command).unwrap_or(&0.0)) / IDLE.as_secs_f64(), command))
        .collect();
    more.sort_by(|a, b| b.0.total_cmp(&a.0));
    let all: f64 = more.iter().map(|(calls, _)| calls).sum();
    println!(
        "idle with {IDLE_ENTRIES} warm entries: {:.2} % of a core, {:.2} % in Redis; {:.1} MB; {all:.1} commands/s",
        share(cpu),
        share(redis_cpu),
        memory(worker.pid(), "VmRSS")
    );
    let told: Vec<String> = more
        .iter()
        .filter(|(calls, _)| *calls >= 0.05)
        .map(|(calls, command)| format!("{command} {calls:.2}"))
        .collect();
    println!("      {}", told.join(", "));
}

/// Calls of each command so far; those of scripts count, too.
async fn calls(redis: &TestRedis) -> BTreeMap<String, f64> {
    let info: String = redis.ask(&["INFO", "commandstats"]).await;
    info.lines()
        .filter_map(|line| {
            let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((command.to_owned(), figures.split(',').next()?.parse().ok()?))
        })
        .collect()
}

/// Claiming, taking and finishing on a small and on a large agenda, in turn.
async fn agenda() {
    const BATCH: usize = 250;
    const ROUNDS: usize = 200;
    const OTHERS: usize = 20;
    let redis = TestRedis::start().await;
    let agenda = Agenda::new(
        redis.redis_url().manager(Duration::from_secs(30)).await.unwrap(),
        Keys::new("samovar", "samovar:invalidate"),
    );
    // As with a TTL of an hour: the entries of one round are due within the same minute and a half an hour later (a
    // quarter of a tenth of the TTL: see `keep`), and entries of earlier rounds are due in the hour until then.
    let far = 4_000_000_000_000;
    let jitter = || rand::random_range(0..90_000);
    let mut took = [Vec::new(), Vec::new()];
    let names = [JobName::new("small"), JobName::new("large")];
    for (name, size) in names.iter().zip([SMALL, LARGE]) {
        let keys: Vec<EntryKey> = (0..size).map(|id| EntryKey::new(format!("entry:{id:07}"))).collect();
        for (n, keys) in (0..).zip(keys.chunks((size / 1_000).clamp(1, BATCH))) {
            let due = far + n * 3_600_000 * keys.len() as i64 / size as i64 + jitter();
            agenda.put(name, keys, When::Due(RedisTime::from_millis(due)), Trigger::Expiry).await.unwrap();
        }
    }
    for round in 0..ROUNDS {
        let next = far + 3_600_000 + round as i64 * 3_600_000 / ROUNDS as i64;
        for ((name, size), took) in names.iter().zip([SMALL, LARGE]).zip(&mut took) {
            let pick = |n: usize| (round * 7_919 + n * (size / BATCH)) % size;
            let keys: Vec<EntryKey> = (0..BATCH).map(|n| EntryKey::new(format!("entry:{:07}", pick(n)))).collect();
            agenda.put(name, &keys, When::NOW, Trigger::Manual).await.unwrap();
            // In life an entry was put there an hour ago: by now other things are in the processor's caches.
            for _ in 0..OTHERS {
                let others: Vec<EntryKey> =
                    (0..1_000).map(|_| EntryKey::new(format!("entry:{:07}", rand::random_range(0..size)))).collect();
                agenda.scores(name, &others).await.unwrap();
            }
            let begun = redis_micros(&redis).await;
            let claims = agenda.claim(name, BATCH, 10_000, Duration::from_secs(60)).await.unwrap();
            let held = agenda.take(name, &claims.entries, Duration::from_secs(60), None).await.unwrap();
            let ends: Vec<Finished> = claims
                .entries
                .into_iter()
                .zip(held)
                .map(|(claimed, score)| Finished {
                    key: claimed.key,
                    score: score.unwrap(),
                    next: Next::At(RedisTime::from_millis(next + jitter())),
                    outcome: Some(samovar::entry::Outcome::Warmed),
                })
                .collect();
            assert_eq!(ends.len(), BATCH);
            agenda.finish(name, &ends, "").await.unwrap();
            let ended = redis_micros(&redis).await;
            took.push([0, 1].map(|n| (ended[n] - begun[n]) / BATCH as f64));
        }
    }
    for (n, what) in ["all of Redis's time", "its scripts"].into_iter().enumerate() {
        let [small, large] = took.each_ref().map(|took| median(took.iter().map(|micros| micros[n]).collect()));
        println!(
            "claim, take, finish, {what}: {small:.2} µs an entry on an agenda of {SMALL}, {large:.2} µs on one of \
             {LARGE}: {:.2} times",
            large / small
        );
    }
}

/// CPU time of the thread in which Redis does everything, and what of it scripts took, µs.
async fn redis_micros(redis: &TestRedis) -> [f64; 2] {
    let info: String = redis.ask(&["INFO", "everything"]).await;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    let seconds = |name: &str| -> f64 { field(name).parse().unwrap() };
    let scripts = field("cmdstat_evalsha:").split(',').find_map(|field| field.strip_prefix("usec=")?.parse().ok());
    let all = seconds("used_cpu_user_main_thread:") + seconds("used_cpu_sys_main_thread:");
    [all * 1e6, scripts.unwrap_or(0.0)]
}

/// From the start of a worker, where so many entries are warm, until it has answered an invalidation.
async fn start() {
    let redis = TestRedis::start().await;
    let upstream = Upstream::start(LARGE, Duration::ZERO).await;
    let jobs = jobs(&upstream);
    let mut connection = redis.redis_url().manager(Duration::from_secs(30)).await.unwrap();
    let (seconds, _): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await.unwrap();
    let (start, end) = (seconds * 1_000, (seconds + 3_600) * 1_000);
    let keys = Keys::new("samovar", "samovar:invalidate");
    for batch in (0..LARGE).collect::<Vec<_>>().chunks(10_000) {
        let mut pipe = redis::pipe();
        for id in batch {
            let key = EntryKey::new(format!("entry:{id}"));
            pipe.cmd("SET").arg(key.as_str()).arg(format!("{{\"id\":\"{id}\"}}")).arg("PXAT").arg(end).ignore();
            let meta = format!("{start} {end} 0 0 0@{start} {{}}");
            pipe.cmd("SET").arg(keys.meta(&key)).arg(meta).arg("PXAT").arg(end + 3_600_000).ignore();
            let due = end - 360_000;
            pipe.cmd("ZADD").arg("samovar:agenda:{entry}").arg(format!("{due}.03125")).arg(key.as_str()).ignore();
        }
        let () = pipe.query_async(&mut connection).await.unwrap();
    }
    for (which, begun_before) in [("that nobody knew before", false), ("that was stopped", true)] {
        let mut changed = redis::Client::open(redis.url()).unwrap().get_async_pubsub().await.unwrap();
        changed.subscribe("samovar:changed").await.unwrap();
        let id = if begun_before { 17 } else { 4_711 };
        let message = format!("{{\"keys\":[\"entry:{id}\"]}}");
        let _: String = redis.ask(&["XADD", "samovar:inbox", "*", "message", &message]).await;
        let begun = Instant::now();
        let worker = worker(&redis, &jobs);
        let mut messages = changed.on_message();
        let announced = format!("\"entry:{id}\"");
        while !messages.next().await.unwrap().get_payload::<String>().unwrap().contains(&announced) {}
        println!(
            "start on {LARGE} warm entries of a job {which}: an invalidation is answered after {:.2} s",
            begun.elapsed().as_secs_f64()
        );
        drop(messages);
        if !begun_before {
            eventually_within(Duration::from_secs(120), "the first warmup has passed", async || {
                match redis.ask::<Option<String>>(&["HGET", "samovar:{schedules}:ticks", "entry"]).await {
                    None => Ok(()),
                    tick => Err(tick),
                }
            })
            .await;
            println!(
                "      its first warmup, which looks at all of them, takes {:.1} s; peak memory {:.0} MB",
                begun.elapsed().as_secs_f64(),
                memory(worker.pid(), "VmHWM")
            );
            for message in ["{\"jobs\":[\"entry\"]}", "{\"patterns\":[\"entry:*\"]}"] {
                let _: String = redis.ask(&["XADD", "samovar:inbox", "*", "message", message]).await;
                eventually_within(Duration::from_secs(600), "all entries are invalidated", async || {
                    match redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await {
                        0 => Ok(()),
                        left => Err(left),
                    }
                })
                .await;
                println!("      after {message}: peak memory {:.0} MB", memory(worker.pid(), "VmHWM"));
            }
        }
        drop(worker);
    }
}

/// Compares two workers with one, on an upstream that gives `at_once` answers at a time.
async fn fleet(what: &str, latency: Duration, at_once: usize) {
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (count, rates) in (1..).zip(&mut rates) {
            let redis = TestRedis::start().await;
            let upstream = Upstream::narrow(FLEET_ENTRIES, latency, at_once).await;
            let jobs = jobs(&upstream);
            let _workers: Vec<WorkerProcess> = (0..count).map(|_| worker(&redis, &jobs)).collect();
            warm(&redis, FLEET_ENTRIES).await;
            let (asked, took) = upstream.asked().await;
            assert_eq!(asked, FLEET_ENTRIES, "each entry is asked for once");
            rates.push(asked as f64 / took.as_secs_f64());
        }
    }
    let [one, two] = rates.map(median);
    println!(
        "fleet, {what} (latency {latency:?}): one worker {one:.0}/s, two {two:.0}/s together: {:.2} times",
        two / one
    );
}
