//! Statistics and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Server, both};
use crate::support::{Art, Parts, Reply, eventually, readable_key as readable};

/// All values of the label `outcome`.
const OUTCOMES: [&str; 9] =
    ["warmed", "unchanged", "busy", "fenced", "deferred", "gone", "unread", "failed", "unowned"];

#[tokio::test]
async fn statistics_tell_of_redis_and_of_each_job() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    redis.set("foreign", "1", Duration::from_secs(600)).await;
    let server = Server::start(&redis, &jobs).await.ready().await;
    for name in ["art:a", "art:b"] {
        readable(&redis, name).await;
    }
    eventually("both ends are counted", async || Parts::of(&redis).await.stat("warmed").await == 2).await;
    for path in ["/redis/stats", "/api/v1/cache/stats"] {
        let stats = server.get(path).await.ok();
        let keys: u64 = redis.ask(&["DBSIZE"]).await;
        assert!(stats["total_keys"].as_u64().unwrap().abs_diff(keys) <= 2, "{stats}");
        assert_eq!(stats["databases"]["db0"]["keys"], stats["total_keys"]);
        assert!(stats["connected_clients"].as_u64().unwrap() > 0);
        assert!(stats["used_memory_bytes"].as_u64().unwrap() > 0);
        assert!(stats["used_memory_human"].as_str().unwrap().ends_with(['K', 'M']), "{stats}");
        assert_eq!(stats["maxmemory_policy"], "noeviction");
        let (hits, misses) = (stats["keyspace_hits"].as_f64().unwrap(), stats["keyspace_misses"].as_f64().unwrap());
        assert!((stats["keyspace_hit_rate"].as_f64().unwrap() - hits / (hits + misses)).abs() < 1e-9);
        assert_eq!(stats["hit_rate"], Value::Null, "nobody reports reads: {stats}");
        let job = &stats["jobs"][0];
        assert_eq!((&job["job"], &job["refreshes"], &job["failures"]), (&json!("art"), &json!(2), &json!(0)));
        assert_eq!((&job["upstream"]["name"], &job["upstream"]["requests"]), (&json!("museum"), &json!(2)), "{job}");
        assert!(job["upstream"]["latency_ms"].as_f64().unwrap() > 0.0);
    }
    // Of the whole fleet, whichever worker is asked; also when it has ended that made the requests.
    let mut server = server;
    server.worker.term();
    server.worker.wait().await;
    let other = Server::start(&redis, &jobs).await.ready().await;
    let stats = other.get("/redis/stats").await.ok();
    let upstream = &stats["jobs"][0]["upstream"];
    assert_eq!((&upstream["requests"], &upstream["slowest_ms"]), (&json!(2), &Value::Null), "{stats}");
    assert!(upstream["latency_ms"].as_f64().unwrap() > 0.0);
}

/// Counting looks at all of Redis, so a count is kept; what is told says when it was made.
#[tokio::test]
async fn entries_are_not_counted_for_each_request() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:a").await;
    let first = eventually("it is counted", async || {
        let job = server.get("/jobs/art").await.ok();
        job["warm_counted_ms"].is_i64().then_some(job)
    })
    .await;
    let scans = async || {
        let stats: String = redis.ask(&["INFO", "commandstats"]).await;
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls=")).unwrap_or("0,").to_owned();
        line.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    let before = scans().await;
    for _ in 0..20 {
        let again = server.get("/jobs").await.ok();
        assert_eq!(again[0]["warm_counted_ms"], first["warm_counted_ms"]);
        server.get("/metrics").await;
    }
    assert_eq!(scans().await, before);
}

/// Name and labels → value.
type Samples = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// The text format, version 0.0.4, read strictly: the samples, and each name's type.
fn parse_metrics(text: &str) -> (Samples, BTreeMap<String, String>) {
    assert!(text.ends_with('\n'));
    let (mut samples, mut types, mut helps) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(!help.is_empty() && helps.insert(name.to_owned()), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, mut rest) = series.split_once('{').map_or((series, ""), |(name, rest)| {
            (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("no end: {line}")))
        });
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.chars().all(allowed) && name.starts_with(|c: char| c.is_ascii_lowercase()), "{line}");
        let mut labels = BTreeMap::new();
        while !rest.is_empty() {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            let (value, after) = after.split_once('"').unwrap();
            assert!(label.chars().all(allowed) && !value.contains(['\\', '\n']), "{line}");
            assert!(labels.insert(label.to_owned(), value.to_owned()).is_none(), "{line}");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let family = name.strip_suffix(end)?;
            (types.get(family).map(String::as_str) == Some("histogram")).then_some(family)
        });
        let family = family.unwrap_or(name);
        let kind = types.get(family).unwrap_or_else(|| panic!("no type before: {line}"));
        assert!(helps.contains(family), "no help before: {line}");
        assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
        assert!(samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
    }
    (samples, types)
}

#[tokio::test]
async fn metrics_and_jobs_say_how_many_values_are_old() {
    let (redis, upstream) = both().await;
    let warm = "ahead = \"1s\"\nstale_if_error = \"1h\"";
    let jobs = Art::of(&upstream).ttl("2s").list(["a"]).warm(warm).folder().job(
        "new",
        &format!(
            "key = \"new:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nurl = \"{}/new\"\n\
             [entries]\nlist = [\"a\"]\n",
            upstream.url()
        ),
    );
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:a").await;
    readable(&redis, "new:a").await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    eventually("the TTL is over, and the value lives on", async || {
        let now = parts.now().await;
        match parts.meta("a").await {
            Some(meta)
                if !meta.stale_for.is_zero() && meta.own_expiry - meta.stale_for < now && now < meta.own_expiry =>
            {
                Ok(())
            }
            meta => Err((now, meta)),
        }
    })
    .await;
    eventually("the metrics tell", async || {
        let text = server.get("/metrics").await.text;
        let told = ["samovar_old_entries{job=\"art\"} 1", "samovar_old_entries{job=\"new\"} 0"]
            .iter()
            .all(|line| text.contains(line));
        if told { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(server.get("/jobs/art").await.ok()["old"], 1);
}

#[tokio::test]
async fn metrics_are_well_formed_and_their_labels_bounded() {
    let (redis, upstream) = both().await;
    upstream.on("/art/bad", Reply::status(500));
    let names: Vec<String> =
        (0..40).map(|n| format!("name-{n}")).chain(["bad".to_owned(), "\"\n}".to_owned()]).collect();
    let jobs = Art::of(&upstream).list(&names).warm("attempts = 1").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:name-1").await;
    parts.invalidate("elsewhere:1").await;
    redis.publish("samovar:invalidate", "{\"keys\": 1}").await;
    redis.publish("samovar:invalidate", "{\"keys\": [\"art:name-1\"").await;
    redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", "['art:name-1']"]).await;
    server.post("/warm?wait=true", json!({"keys": ["art:name-39", "art:more"]})).await.ok();
    eventually("all is done and counted", async || {
        let (samples, _) = parse_metrics(&server.get("/metrics").await.text);
        let sum =
            |name: &str| -> f64 { samples.iter().filter(|((of, _), _)| of == name).map(|(_, value)| value).sum() };
        let seen = (
            sum("samovar_entries_total") >= 43.0,
            sum("samovar_dead_letters_total"),
            sum("samovar_invalidations_malformed_total"),
            sum("samovar_invalidations_foreign_total"),
            sum("samovar_warm_entries") > 0.0,
        );
        if seen == (true, 1.0, 3.0, 1.0, true) { Ok(()) } else { Err(seen) }
    })
    .await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.kind, "text/plain; version=0.0.4; charset=utf-8");
    let (samples, types) = parse_metrics(&answer.text);
    let masters: Vec<String> = redis.nodes().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let bounded: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([
        ("job", BTreeSet::from(["art"])),
        ("upstream", BTreeSet::from(["museum"])),
        ("trigger", BTreeSet::from(["cron", "invalidation", "expiry", "demand", "manual", "recheck"])),
        ("outcome", BTreeSet::from(OUTCOMES)),
        ("way", BTreeSet::from(["channel", "inbox"])),
        ("class", BTreeSet::from(["2xx", "5xx"])),
        ("result", BTreeSet::from(["answer", "unusable", "failed", "busy"])),
        ("version", BTreeSet::from([env!("CARGO_PKG_VERSION")])),
        ("topology", BTreeSet::from(["single", "sentinel", "cluster"])),
        ("master", masters.iter().map(String::as_str).collect()),
    ]);
    for ((name, labels), value) in &samples {
        for (label, value) in labels.iter().filter(|(label, _)| *label != "le") {
            let known = bounded.get(label.as_str()).unwrap_or_else(|| panic!("{name}: a label {label}"));
            assert!(known.contains(value.as_str()), "{name}: {label}={value}");
        }
        assert!(*value >= 0.0 || value.is_nan(), "{name} {labels:?} {value}");
    }
    let one = |name: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        *samples.get(&(name.to_owned(), labels)).unwrap_or_else(|| panic!("no {name}"))
    };
    let is = |value: f64, wanted: f64| (value - wanted).abs() < 1e-9;
    assert!(is(one("samovar_redis_up", &[]), 1.0));
    assert!(is(one("samovar_workers", &[]), 1.0));
    assert!(is(one("samovar_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0));
    assert!(is(one("samovar_job_paused", &[("job", "art")]), 0.0));
    assert!(is(one("samovar_upstream_open", &[("upstream", "museum")]), 0.0));
    assert!(is(one("samovar_dead_letters", &[("job", "art")]), 1.0));
    assert!(one("samovar_fetch_duration_seconds_count", &[("result", "answer"), ("upstream", "museum")]) >= 41.0);
    assert!(one("samovar_upstream_answers_total", &[("class", "2xx"), ("upstream", "museum")]) >= 41.0);
    assert!(is(one("samovar_upstream_answers_total", &[("class", "5xx"), ("upstream", "museum")]), 1.0));
    assert!(is(one("samovar_reload_refused", &[]), 0.0));
    assert!(one("samovar_lag_seconds_count", &[("job", "art")]) >= 41.0);
    assert!(one("process_resident_memory_bytes", &[]) > 1e6);
    assert_eq!(types["samovar_lag_seconds"], "histogram");
}

/// Returns the names of Samovar's metrics in a text.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("samovar_")).collect()
}

#[test]
fn each_metric_is_documented_and_each_documented_one_exists() {
    let code: String =
        include_str!("../../src/telemetry/metrics.rs").lines().filter(|line| line.starts_with("const ")).collect();
    let documented: String = include_str!("../../docs/http.md")
        .lines()
        .filter_map(|row| row.strip_prefix("| `samovar_")?.split('|').next().map(|names| format!("`samovar_{names}")))
        .collect();
    let (code, documented) = (metric_names(&code), metric_names(&documented));
    assert!(code.len() > 25, "{code:?}");
    assert_eq!(documented, code);
}
