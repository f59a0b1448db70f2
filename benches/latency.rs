//! Measures the time from publishing an invalidation to hearing that the fresh value is readable, less the time of the
//! upstream itself: idle, while 100,000 other entries are warmed up, and while a pattern invalidates them; through a
//! bare `PUBLISH` and through the inbox.
//!
//! Argument: entries of the warmup.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and stops at the first surprise")]

mod measure;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::aio::PubSub;
use samovar::agenda::{Agenda, When};
use samovar::entry::Trigger;
use samovar::entry::{EntryKey, JobName};
use samovar::protocol::Keys;

use measure::{Upstream, quantile};
use support::{JobsFolder, Link, TestRedis, eventually, samovar};

/// Entries that are invalidated, one after the other: so many that none follows itself closely, as in a storm.
const ENTRIES: usize = 500;
/// Invalidations while idle.
const SAMPLES: usize = 500;
/// Entries of the warmup.
const BULK: usize = 100_000;
/// Between two invalidations.
const REST: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if measure::serve(&arguments).await {
        return;
    }
    let bulk = arguments.first().map_or(BULK, |bulk| bulk.parse().unwrap());
    println!("ms from publishing to readable, without the upstream's own time");
    println!(
        "{:>9} {:>9} {:>26} {:>8} {:>8} {:>8} {:>8}",
        "upstream", "way", "meanwhile", "samples", "p50", "p99", "most"
    );
    for latency in [Duration::ZERO, Duration::from_millis(5)] {
        measure_with(latency, bulk).await;
    }
}

async fn measure_with(latency: Duration, bulk: usize) {
    let redis = TestRedis::start().await;
    let upstream = Upstream::start(ENTRIES, latency).await;
    let job = |key: &str, path: &str, entries: &str| {
        format!(
            "key = \"{key}:{{id}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"upstream\"\n\
             path = \"/entries/{path}{{{{ id }}}}\"\n{entries}"
        )
    };
    let jobs = JobsFolder::new()
        .upstreams(&format!("[upstream]\nurl = \"{}\"\n", upstream.url))
        .job("entry", &job("entry", "", "[entries]\nfeed = { upstream = \"upstream\", path = \"/ids\" }\n"))
        .job("bulk", &job("bulk", "bulk-", ""));
    let _worker = samovar(["worker", "--concurrency", "64"]).redis(&redis).jobs(&jobs).spawn();
    let ended = async |job: &str| -> usize {
        let stats: Vec<Option<usize>> =
            redis.ask(&["HMGET", &format!("samovar:stats:{{{job}}}"), "warmed", "unchanged"]).await;
        stats.into_iter().flatten().sum()
    };
    eventually("the entries are warm", async || match ended("entry").await {
        ENTRIES => Ok(()),
        warm => Err(warm),
    })
    .await;
    let mut probe = Probe::new(&redis, &upstream).await;
    for way in ["PUBLISH", "inbox"] {
        let mut taken = Vec::new();
        for _ in 0..SAMPLES {
            taken.push(probe.sample(way).await);
        }
        print(latency, way, "idle", taken);
    }
    let agenda = Agenda::new(
        redis.redis_url().manager(Duration::from_secs(30)).await.unwrap(),
        Keys::new("samovar", "samovar:invalidate"),
    );
    let slow = [["CONFIG", "SET", "slowlog-log-slower-than", "1000"], ["CONFIG", "SET", "slowlog-max-len", "100000"]];
    for (run, (way, meanwhile)) in (1..).zip([
        ("PUBLISH", "a warmup"),
        ("inbox", "a warmup"),
        ("PUBLISH", "an invalidation"),
        ("inbox", "an invalidation"),
    ]) {
        upstream.ask("edit").await;
        for command in &slow {
            let _: String = redis.ask(command).await;
        }
        let _: String = redis.ask(&["SLOWLOG", "RESET"]).await;
        if meanwhile == "a warmup" {
            let keys: Vec<EntryKey> = (0..bulk).map(|id| EntryKey::new(format!("bulk:{id}"))).collect();
            agenda.put(&JobName::new("bulk"), &keys, When::NOW, Trigger::Manual).await.unwrap();
        } else {
            let _: usize = redis.ask(&["PUBLISH", "samovar:invalidate", r#"{"patterns": ["bulk:*"]}"#]).await;
        }
        let (begun, mut taken) = (Instant::now(), Vec::new());
        loop {
            let sample = probe.sample(way).await;
            if ended("bulk").await >= run * bulk {
                break;
            }
            taken.push(sample);
        }
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let rate = bulk as f64 / begun.elapsed().as_secs_f64();
        print(latency, way, &format!("{meanwhile} at {rate:.0}/s"), taken);
        let slow: Vec<f64> =
            redis.ask::<Vec<redis::Value>>(&["SLOWLOG", "GET", "-1"]).await.into_iter().map(ms).collect();
        let (count, longest) = (slow.len(), slow.iter().copied().fold(0.0, f64::max));
        println!("{:>18} commands of Redis that took 1 ms or more: {count}, the longest {longest:.1} ms", "");
    }
}

/// Returns the duration of a command in Redis's slow log.
fn ms(entry: redis::Value) -> f64 {
    let fields: Vec<redis::Value> = redis::from_redis_value(entry).unwrap();
    redis::from_redis_value::<f64>(fields[2].clone()).unwrap() / 1_000.0
}

struct Probe<'a> {
    upstream: &'a Upstream,
    redis: Link,
    changed: PubSub,
    http: reqwest::Client,
    next: usize,
}

impl<'a> Probe<'a> {
    async fn new(redis: &TestRedis, upstream: &'a Upstream) -> Self {
        let mut changed = redis::Client::open(redis.url()).unwrap().get_async_pubsub().await.unwrap();
        changed.subscribe("samovar:changed").await.unwrap();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        Self { upstream, redis: redis.connection().await, changed, http, next: 0 }
    }

    /// Changes an entry, says so, and waits for its fresh value; ms.
    async fn sample(&mut self, way: &str) -> f64 {
        tokio::time::sleep(REST).await;
        let id = self.next % ENTRIES;
        self.next += 1;
        let key = format!("entry:{id}");
        self.get(&format!("edit/{id}")).await;
        let begun = Instant::now();
        if way == "inbox" {
            let message = serde_json::json!({ "keys": [key] }).to_string();
            let mut add = redis::cmd("XADD");
            add.arg("samovar:inbox").arg("*").arg("message").arg(message);
            let _: String = add.query_async(&mut self.redis).await.unwrap();
        } else {
            let mut publish = redis::cmd("PUBLISH");
            publish.arg("samovar:invalidate").arg(&key);
            let heard: usize = publish.query_async(&mut self.redis).await.unwrap();
            assert_eq!(heard, 1, "the worker hears");
        }
        let announced = format!("\"{key}\"");
        let mut messages = self.changed.on_message();
        while let Some(message) = messages.next().await {
            if message.get_payload::<String>().unwrap().contains(&announced) {
                break;
            }
        }
        let took = begun.elapsed();
        drop(messages);
        let own: f64 = self.get(&format!("took/{id}")).await.parse().unwrap();
        (took.as_secs_f64() - own) * 1_000.0
    }

    async fn get(&self, what: &str) -> String {
        let url = format!("{}/{what}", self.upstream.url);
        self.http.get(url).send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }
}

fn print(latency: Duration, way: &str, meanwhile: &str, taken: Vec<f64>) {
    let at = |share| quantile(taken.clone(), share);
    let (upstream, samples, p50, p99, most) = (latency.as_millis(), taken.len(), at(0.5), at(0.99), at(1.0));
    println!("{upstream:>6} ms {way:>9} {meanwhile:>26} {samples:>8} {p50:>8.2} {p99:>8.2} {most:>8.2}");
}
