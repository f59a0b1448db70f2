//! Entries warmed per second through the whole path, against bare loops, and what each entry costs.
//!
//! Redis, the upstream and the program under test are processes of their own. In each round all runs ask the same
//! upstream on the same machine one after the other, and the upstream tells how long it was asked. Read the ratios, not
//! the figures.
//!
//! - *plain*: fetch, parse, `SET`. *fenced*: fetch, parse, and around it a lease and a write that compares it.
//! - *stored*: the same loop with the worker's own lease and commit, which keep what invalidations and refreshes need.
//! - *agenda*: the same, and claim, take and finish on the agenda in batches: a warmer of one process without a queue.
//! - *whole*: a worker's first warmup. *unchanged*: the same entries again, answered 304.
//! - *bulk 50*, *bulk 100*: a worker's first warmup with so many entries in a request.
//! - *set*: Redis's cost of a pipelined `SET` of the same value; there is no upstream.
//! - *bullmq*, *wrk* (`make bench PEERS=1`): a program with `BullMQ` that does as *plain* does, in one process of Node;
//!   and requests to the upstream by `wrk`, which keeps nothing.
//!
//! Arguments: rounds; runs to leave out all others (`fenced,whole`).
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and stops at the first surprise")]

mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use futures_util::StreamExt;
use redis::Script;
use samovar::agenda::{Agenda, Finished, Next, When};
use samovar::entry::Trigger;
use samovar::entry::Validators;
use samovar::entry::{EntryKey, JobName};
use samovar::protocol::Keys;
use samovar::redis::RedisUrl;
use samovar::store::{Fresh, LastAttempt, Leased, Store, Written};

use measure::{Upstream, info, median, memory, myself, redis_cpu};
use support::{JobsFolder, TestRedis, eventually, samovar};

const ENTRIES: usize = 20_000;
const CONCURRENCY: usize = 64;
const ROUNDS: usize = 3;
/// The source of a job with one request for each entry, and those with one for many.
const ONE: &str = "path = \"/entries/{{ id }}\"";
const BULK: [(&str, &str); 2] = [
    ("bulk 50", "path = \"/entries?ids={{ entries | map(attribute='id') | join(',') }}\"\nbulk = 50"),
    ("bulk 100", "path = \"/entries?ids={{ entries | map(attribute='id') | join(',') }}\"\nbulk = 100"),
];

/// The result of one run.
struct Run {
    name: &'static str,
    /// Entries per second.
    rate: f64,
    /// CPU time per entry, µs: of the fetching process, Redis and the upstream.
    cost: [f64; 3],
    /// Bytes in Redis per entry.
    bytes: f64,
    /// The peak memory of the fetching process, MB.
    memory: f64,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if measure::serve(&arguments).await {
        return;
    }
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [loops @ ("plain" | "fenced"), upstream, redis] => bare(loops == "fenced", upstream, redis).await,
        [loops @ ("stored" | "agenda"), upstream, redis] => promised(loops == "agenda", upstream, redis).await,
        ref settings => {
            let rounds = settings.first().map_or(ROUNDS, |rounds| rounds.parse().unwrap());
            compare(rounds, settings.get(1).copied().unwrap_or("plain,fenced,stored,agenda,whole,unchanged,bulk,set"))
                .await;
        }
    }
}

/// Runs all, in turn, and prints what they reach.
async fn compare(rounds: usize, names: &str) {
    let upstream = Upstream::start(ENTRIES, Duration::ZERO).await;
    println!("{ENTRIES} entries of {} bytes, concurrency {CONCURRENCY}, {rounds} rounds", measure::BYTES);
    println!("{:>21} {:>10} {:>33} {:>15} {:>9}", "", "", "µs of CPU per entry", "", "");
    println!(
        "{:>21} {:>10} {:>10} {:>10} {:>10} {:>15} {:>9}",
        "run", "entries/s", "itself", "redis", "upstream", "bytes per entry", "MB most"
    );
    let mut runs: Vec<Run> = Vec::new();
    for round in 1..=rounds {
        let from = runs.len();
        for loops in ["plain", "fenced", "stored", "agenda"].into_iter().filter(|loops| names.contains(loops)) {
            runs.push(run_bare(loops, &upstream).await);
        }
        if names.contains("whole") {
            runs.extend(run_whole(&upstream, "whole", ONE, names.contains("unchanged")).await);
        }
        for (name, source) in BULK.into_iter().filter(|_| names.contains("bulk")) {
            runs.extend(run_whole(&upstream, name, source, false).await);
        }
        if names.contains("set") {
            runs.push(run_set().await);
        }
        if names.contains("bullmq") {
            runs.push(run_bullmq(&upstream).await);
        }
        if names.contains("wrk") {
            runs.push(run_wrk(&upstream).await);
        }
        for Run { name, rate, cost: [itself, redis, asked], bytes, memory } in &runs[from..] {
            println!(
                "{round:>8}. {name:>11} {rate:>10.0} {itself:>10.1} {redis:>10.1} {asked:>10.1} {bytes:>15.0} \
                 {memory:>9.1}"
            );
        }
    }
    let of =
        |name: &str, figure: fn(&Run) -> f64| median(runs.iter().filter(|run| run.name == name).map(figure).collect());
    let ratio = |of_one: f64, to: f64| if to > 0.0 { of_one / to } else { f64::NAN };
    println!("\nmedians:");
    let pairs =
        [("stored", "fenced"), ("agenda", "fenced"), ("whole", "plain"), ("whole", "fenced"), ("whole", "agenda")];
    let bulk = [("bulk 50", "whole"), ("bulk 100", "whole"), ("bulk 50", "wrk")];
    let peers = [("whole", "bullmq"), ("whole", "wrk"), ("unchanged", "whole")];
    for (one, other) in pairs.into_iter().chain(peers).chain(bulk) {
        println!("{one} to {other}: {:.2}", ratio(of(one, |run| run.rate), of(other, |run| run.rate)));
    }
    let redis = |name| of(name, |run| run.cost[1]);
    for name in ["plain", "whole", "bulk 50"] {
        println!("Redis's CPU time, {name} to set: {:.1}", ratio(redis(name), redis("set")));
    }
    println!("bytes of an entry beyond its value: {:.0}", of("whole", |run| run.bytes) - of("plain", |run| run.bytes));
}

async fn run_bare(name: &'static str, upstream: &Upstream) -> Run {
    let redis = TestRedis::start().await;
    let before = info(&redis, "memory", "used_memory").await;
    upstream.ask("reset").await;
    let (redis_before, upstream_before) = (redis_cpu(&redis).await, upstream.cpu());
    let output = myself().args([name, &upstream.url, &redis.url()]).output().await.unwrap();
    assert!(output.status.success(), "the bare loop failed: {}", String::from_utf8_lossy(&output.stderr));
    let itself: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(redis.ask::<usize>(&["DBSIZE"]).await >= ENTRIES);
    let cost =
        [Duration::from_secs_f64(itself), redis_cpu(&redis).await - redis_before, upstream.cpu() - upstream_before];
    let bytes = info(&redis, "memory", "used_memory").await - before;
    run(name, upstream, cost, bytes, f64::NAN).await
}

/// Values of the same size, without anything around them.
async fn run_set() -> Run {
    const PIPELINE: usize = 100;
    let redis = TestRedis::start().await;
    let mut connection = redis.client().get_multiplexed_async_connection().await.unwrap();
    let value = "x".repeat(measure::BYTES);
    let (before, began) = (redis_cpu(&redis).await, std::time::Instant::now());
    for from in (0..ENTRIES).step_by(PIPELINE) {
        let mut pipe = redis::pipe();
        for id in from..from + PIPELINE {
            pipe.cmd("SET").arg(format!("entry:{id}")).arg(&value).arg("EX").arg(3_600).ignore();
        }
        let () = pipe.query_async(&mut connection).await.unwrap();
    }
    let took = began.elapsed();
    let cost = per_entry([Duration::ZERO, redis_cpu(&redis).await - before, Duration::ZERO]);
    Run { name: "set", rate: rate(took), cost, bytes: f64::NAN, memory: f64::NAN }
}

/// Returns the folder with the packages of the peers.
fn peers() -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    assert!(folder.join("bullmq.mjs").exists(), "`make bench PEERS=1` installs the peers");
    folder
}

async fn run_bullmq(upstream: &Upstream) -> Run {
    let redis = TestRedis::start().await;
    upstream.ask("reset").await;
    let before = (redis_cpu(&redis).await, upstream.cpu());
    let mut node = tokio::process::Command::new("node");
    node.arg(peers().join("bullmq.mjs")).arg(&upstream.url).arg(redis.port().to_string());
    let output = node.arg(ENTRIES.to_string()).arg(CONCURRENCY.to_string()).output().await.unwrap();
    assert!(output.status.success(), "BullMQ failed: {}", String::from_utf8_lossy(&output.stderr));
    let itself: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(redis.ask::<usize>(&["DBSIZE"]).await >= ENTRIES);
    let cost = [Duration::from_secs_f64(itself), redis_cpu(&redis).await - before.0, upstream.cpu() - before.1];
    run("bullmq", upstream, cost, f64::NAN, f64::NAN).await
}

async fn run_wrk(upstream: &Upstream) -> Run {
    let before = upstream.cpu();
    let mut wrk = tokio::process::Command::new("wrk");
    wrk.args(["--threads", "1", "--duration", "3", "--connections"]).arg(CONCURRENCY.to_string());
    let output = wrk.arg(format!("{}/entries/1", upstream.url)).output().await.unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let figure = |name: &str| told.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().parse::<f64>().ok());
    let rate = figure("Requests/sec:").unwrap_or_else(|| panic!("wrk says: {told}"));
    let asked = (upstream.cpu() - before).as_secs_f64() * 1e6 / (rate * 3.0);
    Run { name: "wrk", rate, cost: [f64::NAN, f64::NAN, asked], bytes: f64::NAN, memory: f64::NAN }
}

/// Returns the entries per second, if all of them took so long.
fn rate(took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let entries = ENTRIES as f64;
    entries / took.as_secs_f64()
}

/// Returns CPU times in µs per entry.
fn per_entry(cost: [Duration; 3]) -> [f64; 3] {
    cost.map(|cost| 1e6 / rate(cost).max(f64::MIN_POSITIVE))
}

async fn run(name: &'static str, upstream: &Upstream, cost: [Duration; 3], bytes: f64, memory: f64) -> Run {
    let (count, took) = upstream.asked().await;
    assert_eq!(count, ENTRIES, "each entry is to be asked for once");
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let bytes = bytes / ENTRIES as f64;
    Run { name, rate: rate(took), cost: per_entry(cost), bytes, memory }
}

/// A worker's first warmup with a source of these lines, and another one in which nothing has changed.
async fn run_whole(upstream: &Upstream, name: &'static str, source: &str, unchanged: bool) -> Vec<Run> {
    let redis = TestRedis::start().await;
    let before = info(&redis, "memory", "used_memory").await;
    upstream.ask("reset").await;
    let jobs = JobsFolder::new().upstreams(&format!("[upstream]\nurl = \"{}\"\n", upstream.url)).job(
        "entry",
        &format!(
            "key = \"entry:{{id}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"upstream\"\n{source}\n\
             [entries]\nfeed = {{ upstream = \"upstream\", path = \"/ids\" }}\n"
        ),
    );
    let concurrency = CONCURRENCY.to_string();
    let (redis_before, upstream_before) = (redis_cpu(&redis).await, upstream.cpu());
    let worker = samovar(["worker", "--concurrency", &concurrency]).redis(&redis).jobs(&jobs).spawn();
    all(&redis, "warmed").await;
    let cost = [measure::cpu(worker.pid()), redis_cpu(&redis).await - redis_before, upstream.cpu() - upstream_before];
    let bytes = info(&redis, "memory", "used_memory").await - before;
    println!("{:>8}  {name:>11}: {} requests", "", upstream.requests().await);
    let mut runs = vec![run(name, upstream, cost, bytes, memory(worker.pid(), "VmHWM")).await];
    if unchanged {
        upstream.ask("reset").await;
        let agenda = Agenda::new(
            redis.redis_url().manager(Duration::from_secs(30)).await.unwrap(),
            Keys::new("samovar", "samovar:invalidate"),
        );
        let keys: Vec<EntryKey> = (0..ENTRIES).map(|id| EntryKey::new(format!("entry:{id}"))).collect();
        let before = (measure::cpu(worker.pid()), redis_cpu(&redis).await, upstream.cpu());
        agenda.put(&JobName::new("entry"), &keys, When::NOW, Trigger::Manual).await.unwrap();
        all(&redis, "unchanged").await;
        let cost =
            [measure::cpu(worker.pid()) - before.0, redis_cpu(&redis).await - before.1, upstream.cpu() - before.2];
        runs.push(run("unchanged", upstream, cost, f64::NAN, memory(worker.pid(), "VmHWM")).await);
    }
    runs
}

async fn all(redis: &TestRedis, outcome: &str) {
    eventually("all entries have ended", async || {
        let ended: Option<usize> = redis.ask(&["HGET", "samovar:stats:{entry}", outcome]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if ended == Some(ENTRIES) { Ok(()) } else { Err(format!("{ended:?} are {outcome}")) }
    })
    .await;
}

/// Runs the loop of a program without queue, schedule and invalidation; prints the seconds of CPU that it took.
async fn bare(fenced: bool, upstream: &str, redis: &str) {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let redis = redis::Client::open(redis).unwrap().get_multiplexed_async_connection().await.unwrap();
    let commit = Script::new(
        "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end\n\
         redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])\n\
         return redis.call('DEL', KEYS[2])",
    );
    let workers = futures_util::stream::iter(0..ENTRIES).map(|id| {
        let (http, mut redis, url, commit) =
            (http.clone(), redis.clone(), format!("{upstream}/entries/{id}"), commit.clone());
        let (key, lease) = (format!("entry:{id}"), format!("lease:entry:{id}"));
        async move {
            let warm = async move {
                if fenced {
                    let mut take = redis::cmd("SET");
                    take.arg(&lease).arg(id).arg("NX").arg("EX").arg(30);
                    assert!(take.query_async::<bool>(&mut redis).await.unwrap());
                }
                let body = http.get(url).send().await.unwrap().text().await.unwrap();
                serde_json::from_str::<serde_json::Value>(&body).unwrap();
                if fenced {
                    let mut write = commit.key(&key);
                    write.key(&lease).arg(id).arg(body).arg(3_600);
                    assert_eq!(write.invoke_async::<u8>(&mut redis).await.unwrap(), 1);
                } else {
                    let mut write = redis::cmd("SET");
                    write.arg(&key).arg(body).arg("EX").arg(3_600);
                    let () = write.query_async(&mut redis).await.unwrap();
                }
            };
            // On all cores, as the worker does.
            let mut set = tokio::task::JoinSet::new();
            set.spawn(warm);
            set.join_next().await.unwrap().unwrap();
        }
    });
    workers.buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
    println!("{}", measure::cpu(std::process::id()).as_secs_f64());
}

/// Runs the bare loop with the worker's lease and commit, or also with its agenda; prints the seconds of CPU it took.
async fn promised(agenda: bool, upstream: &str, redis: &str) {
    const BATCH: usize = 256;
    const HOLDS: Duration = Duration::from_secs(30);
    const TTL: Duration = Duration::from_secs(3_600);
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let redis = RedisUrl::parse(redis, None).unwrap();
    let (redis, keys) =
        (redis.manager(Duration::from_secs(30)).await.unwrap(), Keys::new("samovar", "samovar:invalidate"));
    let (store, plan, job) = (Store::new(redis.clone(), keys.clone()), Agenda::new(redis, keys), JobName::new("entry"));
    let all: Vec<EntryKey> = (0..ENTRIES).map(|id| EntryKey::new(format!("entry:{id}"))).collect();
    if agenda {
        plan.put(&job, &all, When::NOW, Trigger::Cron).await.unwrap();
    }
    let batches = futures_util::stream::iter(all.chunks(BATCH).map(<[EntryKey]>::to_vec).collect::<Vec<_>>());
    let (plan, job, finished) = (&plan, &job, &std::sync::Mutex::new(Vec::new()));
    let due = batches.then(async |batch| {
        if !agenda {
            return batch.into_iter().map(|key| (key, None)).collect::<Vec<_>>();
        }
        let claimed = plan.claim(job, BATCH, 10 * BATCH, HOLDS).await.unwrap().entries;
        let scores = plan.take(job, &claimed, HOLDS, None).await.unwrap();
        claimed.into_iter().zip(scores).map(|(claimed, score)| (EntryKey::new(claimed.key), score)).collect()
    });
    let warmed = due.flat_map(futures_util::stream::iter).map(|(key, score)| {
        let id = key.as_str().strip_prefix("entry:").unwrap();
        let (http, store, url) = (http.clone(), store.clone(), format!("{upstream}/entries/{id}"));
        async move {
            let warm = async move {
                let Leased::Yes(lease) = store.lease(&key, HOLDS, Fresh::default()).await.unwrap() else { panic!() };
                let answer = http.get(url).send().await.unwrap();
                let etag = answer.headers()["etag"].to_str().unwrap().to_owned();
                let body = answer.text().await.unwrap();
                serde_json::from_str::<serde_json::Value>(&body).unwrap();
                let validators = Validators { etag: Some(etag), ..Validators::default() };
                let last_attempt = LastAttempt { validators, trigger: Some(Trigger::Cron), ..LastAttempt::default() };
                let written = store.commit(&key, &lease, &body, TTL, &last_attempt).await.unwrap();
                assert!(matches!(written, Written::Done { .. }));
                (key, lease.fetched_at)
            };
            let mut set = tokio::task::JoinSet::new();
            set.spawn(warm);
            let (key, start) = set.join_next().await.unwrap().unwrap();
            if let Some(score) = score {
                let next = Next::At(start + Duration::from_secs(3_240));
                let done =
                    Finished { key: key.to_string(), score, next, outcome: Some(samovar::entry::Outcome::Warmed) };
                let full = {
                    let mut finished = finished.lock().unwrap();
                    finished.push(done);
                    (finished.len() >= CONCURRENCY).then(|| std::mem::take(&mut *finished))
                };
                if let Some(batch) = full {
                    plan.finish(job, &batch, "").await.unwrap();
                }
            }
        }
    });
    warmed.buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
    let rest = std::mem::take(&mut *finished.lock().unwrap());
    if !rest.is_empty() {
        plan.finish(job, &rest, "").await.unwrap();
    }
    println!("{}", measure::cpu(std::process::id()).as_secs_f64());
}
