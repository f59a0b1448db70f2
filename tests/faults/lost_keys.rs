//! Redis evicts Samovar's own keys, one kind after the other, under load: nothing is lost for good, and nothing hangs.
//!
//! The test deletes them by hand. What a kind holds that nothing else tells is named in docs/protocol.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use redis::AsyncCommands;
use samovar::entry::JobName;
use serde_json::json;

use super::{both, choices, factor, readable, works};
use crate::support::{Art, Parts, Reply, TestRedis, Upstream, WorkerProcess, eventually, eventually_within, talkative};

/// All keys that begin with Samovar's prefix, by kind, without the locks of services and their numbers, which no test
/// of one job has.
const KINDS: [&str; 47] = [
    "samovar:lease:*",
    "samovar:meta:*",
    "samovar:tag:*",
    "samovar:made-from:*",
    "samovar:loaded:*",
    "samovar:tagged",
    "samovar:clock:*",
    "samovar:unknown:*",
    "samovar:touched:*",
    "samovar:agenda:*",
    "samovar:claim:*",
    "samovar:paused:*",
    "samovar:feed:*",
    "samovar:popular:*",
    "samovar:sample:*",
    "samovar:frequencies*",
    "samovar:dead:*",
    "samovar:dead-reasons:*",
    "samovar:stats:*",
    "samovar:limit:*",
    "samovar:permits:*",
    "samovar:budget:*",
    "samovar:reserved:*",
    "samovar:fetched:*",
    "samovar:census",
    "samovar:jobs",
    "samovar:list:*",
    "samovar:reads",
    "samovar:reported:*",
    "samovar:audit:*",
    "samovar:audits",
    "samovar:minutes:*",
    "samovar:history:*",
    "samovar:requests:*",
    "samovar:attended",
    "samovar:heard",
    "samovar:misses",
    "samovar:marker",
    "samovar:ears",
    "samovar:sweep",
    "samovar:retrier",
    "samovar:inbox",
    "samovar:audit-log",
    "samovar:acknowledged",
    "samovar:{suspect}*",
    "samovar:{schedules}*",
    "{samovar:queue}*",
];
/// Refreshed all the while.
const BUSY: usize = 20;
/// The longest recovery: claims and leases of a few seconds expire, and a worker finds out.
const SOON: Duration = Duration::from_secs(60);

/// Edits entries and says so, one after the other, but for pauses.
async fn load(upstream: Arc<Upstream>, parts: Parts, pause: Arc<AtomicBool>) {
    for n in (0..BUSY).cycle() {
        while pause.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        upstream.edit(&format!("/art/busy {n}"));
        let message = json!({"keys": [format!("art:busy {n}")]});
        parts.publish(&message.to_string()).await;
        let _: usize = parts.redis.clone().zincr(parts.keys.reads(), format!("art:busy {n}"), 1).await.unwrap();
        let _: u64 = parts.redis.clone().hincr(parts.keys.reported(&JobName::new("art")), "hits", 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Each entry's newest version is there.
async fn all_are_new(redis: &TestRedis, upstream: &Upstream, parts: &Parts, names: &[String], after: &str) {
    let keys: Vec<String> = names.iter().map(|name| format!("art:{name}")).collect();
    eventually_within(SOON, &format!("all are new after {after} went"), async || {
        let values: Vec<Option<String>> =
            redis::cmd("MGET").arg(&keys).query_async(&mut parts.redis.clone()).await.unwrap();
        let newest = |name: &String| upstream.version(&format!("/art/{name}"));
        let version = |value: &Option<String>| -> Option<u64> {
            serde_json::from_str::<serde_json::Value>(value.as_ref()?).ok()?["version"].as_u64()
        };
        let old: Vec<&String> = names
            .iter()
            .zip(&values)
            .filter(|(name, value)| version(value) != Some(newest(name)))
            .map(|(name, _)| name)
            .collect();
        if old.is_empty() { Ok(()) } else { Err(format!("{old:?}")) }
    })
    .await;
    assert!(redis.keys("art:*").await.len() >= names.len());
}

#[tokio::test]
async fn whatever_kind_of_key_goes_nothing_is_lost_and_nobody_hangs() {
    let mut random = choices("lost keys");
    let (redis, upstream) = both().await;
    let upstream = Arc::new(upstream);
    let names: Vec<String> = (0..20).map(|n| n.to_string()).chain((0..BUSY).map(|n| format!("busy {n}"))).collect();
    for name in names.iter().chain([&"fed".to_owned()]) {
        upstream.edit(&format!("/art/{name}"));
    }
    upstream.on("/popular", Reply::json(json!({"names": ["fed"]})));
    let mut listed = names.clone();
    listed.push("nowhere to be had".to_owned());
    upstream.on("/art/nowhere to be had", Reply::text("nonsense"));
    let jobs = Art::of(&upstream)
        .top("tags = [\"tag {{ value.version }}\"]")
        .limits("concurrency = 8\nrate = \"1000/second\"\ntimeout = \"2s\"")
        .entries("feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }\npopular = 10")
        .warm("audit = \"2/second\"\nevery = \"2s\"\nattempts = 1\nrecheck = [\"100ms\"]")
        .list(&listed)
        .folder();
    let worker = || {
        let worker = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "2s").env("SAMOVAR_SAMPLE", "500ms");
        worker.env("SAMOVAR_MISSES", "on").env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn()
    };
    let mut fleet = [worker(), worker()];
    let https = [fleet[0].http().await, fleet[1].http().await];
    for name in &names {
        readable(&redis, name).await;
    }
    let parts = Parts::of(&redis).await;
    let pause = Arc::new(AtomicBool::new(false));
    let mut busy = tokio::task::JoinSet::new();
    busy.spawn(load(Arc::clone(&upstream), Parts::of(&redis).await, Arc::clone(&pause)));
    let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..2 * factor() {
        let mut kinds = KINDS;
        kinds.shuffle(&mut random);
        for kind in kinds {
            let begun = std::time::Instant::now();
            for _ in 0..3 {
                let keys = redis.keys(kind).await;
                if !keys.is_empty() {
                    seen.insert(kind);
                    let delete: Vec<&str> = std::iter::once("DEL").chain(keys.iter().map(String::as_str)).collect();
                    redis.ask::<u64>(&delete).await;
                }
                tokio::time::sleep(Duration::from_millis(random.random_range(0..100))).await;
            }
            let edited = names.choose(&mut random).unwrap();
            upstream.edit(&format!("/art/{edited}"));
            parts.publish(&json!({"keys": [format!("art:{edited}")]}).to_string()).await;
            works(&redis, &upstream, &format!("{kind} {round}")).await;
            pause.store(true, Ordering::Release);
            all_are_new(&redis, &upstream, &parts, &names, kind).await;
            pause.store(false, Ordering::Release);
            eprintln!("{round}: {kind} is over after {:?}", begun.elapsed());
            assert!(fleet.iter_mut().all(WorkerProcess::is_running), "somebody ended when {kind} went");
            for http in &https {
                eventually(&format!("it is ready after {kind} went"), async || {
                    let answer = client.get(format!("{http}/health/ready")).send().await.map_err(|e| e.to_string())?;
                    if answer.status().is_success() { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
                })
                .await;
            }
        }
    }
    busy.abort_all();
    let mut unknown = redis.keys("samovar:*").await;
    unknown.extend(redis.keys("{samovar:*").await);
    let prefix = |kind: &str| kind.trim_end_matches('*').to_owned();
    let unknown: Vec<&String> =
        unknown.iter().filter(|key| !KINDS.iter().any(|kind| key.starts_with(&prefix(kind)))).collect();
    assert!(unknown.is_empty(), "kinds of keys that this test does not know: {unknown:?}");
    let unseen: Vec<&str> = KINDS.into_iter().filter(|kind| !seen.contains(kind)).collect();
    eprintln!("kinds that there were none of: {unseen:?}");
}
