//! Workers are stopped and replaced: nobody waits for that, and nobody notices.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{both, factor, readable};
use crate::support::{Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, eventually, talkative};

const WORKERS: &str = "{samovar:queue}:workers";

/// Five times as many entries as may be fetched at once, from an upstream that never answers. All that is held would be
/// held for longer than a test waits.
async fn busy(drain: &str) -> (TestRedis, Upstream, JobsFolder, WorkerProcess, Vec<String>) {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::silence());
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).limits("timeout = \"10m\"\nconcurrency = 4").list(&names).folder();
    let worker = talkative(&redis, &jobs)
        .env("SAMOVAR_CLAIM", "10m")
        .env("SAMOVAR_CONCURRENCY", "4")
        .env("SAMOVAR_DRAIN", drain)
        .spawn();
    eventually("all are in flight", async || upstream.in_flight() == 4).await;
    (redis, upstream, jobs, worker, names)
}

/// Checks that nothing is held, and that another worker warms the entries that were handed back.
async fn nothing_is_held(redis: &TestRedis, upstream: &Upstream, jobs: &JobsFolder, names: &[String]) {
    assert_eq!(redis.keys("samovar:lease:*").await, Vec::<String>::new());
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:permits:{museum}"]).await, 0);
    assert_eq!(redis.ask::<usize>(&["ZCARD", WORKERS]).await, 0);
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let _second = talkative(redis, jobs).spawn();
    for name in names {
        readable(redis, name).await;
    }
}

#[tokio::test]
async fn a_worker_with_its_hands_full_ends_within_the_drain_time() {
    let (redis, upstream, jobs, mut worker, names) = busy("500ms").await;
    worker.term();
    assert_eq!(worker.wait().await.code(), Some(0));
    nothing_is_held(&redis, &upstream, &jobs, &names).await;
}

#[tokio::test]
async fn a_busy_worker_without_redis_ends_within_the_drain_time() {
    for froze in [false, true] {
        let (mut redis, _upstream, _jobs, mut worker, _) = busy("500ms").await;
        if froze {
            redis.freeze()
        } else {
            redis.kill9()
        }
        worker.term();
        assert_eq!(worker.wait().await.code(), Some(0));
    }
}

/// A second signal ends it at once, and yet it takes its leave.
#[tokio::test]
async fn a_worker_that_is_told_twice_leaves_nothing_behind() {
    let (redis, upstream, jobs, mut worker, names) = busy("10m").await;
    worker.term();
    worker.wait_for_log(&["told to stop"]).await;
    worker.term();
    assert_ne!(worker.wait().await.code(), Some(0));
    nothing_is_held(&redis, &upstream, &jobs, &names).await;
}

#[tokio::test]
async fn a_worker_that_is_told_twice_ends_at_once_though_redis_hangs() {
    let (redis, _upstream, _jobs, mut worker, _) = busy("10m").await;
    redis.freeze();
    worker.term();
    worker.wait_for_log(&["told to stop"]).await;
    worker.term();
    assert_ne!(worker.wait().await.code(), Some(0));
}

/// Values live for four seconds and are refreshed two seconds before their end, while the workers are replaced.
#[tokio::test]
async fn a_rolling_restart_costs_no_miss_and_no_second_tick() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})).after(Duration::from_millis(20)));
    upstream.on("/popular", Reply::json(json!({"names": []})));
    let names: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream)
        .ttl("10s")
        .list(&names)
        .entries("feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }")
        .warm("every = \"2s\"\nahead = \"7s\"")
        .folder();
    let worker = || talkative(&redis, &jobs).spawn();
    let mut fleet: Vec<WorkerProcess> = (0..3).map(|_| worker()).collect();
    for name in &names {
        readable(&redis, name).await;
    }
    let parts = Parts::of(&redis).await;
    let keys: Vec<String> = names.iter().map(|name| format!("art:{name}")).collect();
    let (mut misses, mut reads) = (BTreeSet::new(), 0_u64);
    let (began, fed) = (Instant::now(), upstream.calls("/popular"));
    let ids = |workers: Vec<String>| workers.into_iter().collect::<BTreeSet<_>>();
    for round in 0..6 * factor() {
        let before = ids(redis.ask(&["ZRANGE", WORKERS, "0", "-1"]).await);
        let place = round % fleet.len();
        let fresh = worker();
        let mut old = std::mem::replace(&mut fleet[place], fresh);
        old.term();
        let mut ended = false;
        // Until the next has begun and the old one has ended.
        eventually("it is replaced", async || {
            let values: Vec<Option<String>> =
                redis::cmd("MGET").arg(&keys).query_async(&mut parts.redis.clone()).await.unwrap();
            reads += values.len() as u64;
            misses.extend(values.iter().zip(&keys).filter(|(value, _)| value.is_none()).map(|(_, key)| key.clone()));
            ended = ended || !old.is_running();
            let now = ids(redis.ask(&["ZRANGE", WORKERS, "0", "-1"]).await);
            ended && now.difference(&before).count() >= 1 && now.len() == 3
        })
        .await;
    }
    eprintln!("{reads} reads in {:?}", began.elapsed());
    assert!(misses.is_empty(), "missed: {misses:?}");
    let ticks = began.elapsed().as_secs() as usize / 2 + 2;
    assert!(upstream.calls("/popular") - fed <= ticks, "{} in {ticks}", upstream.calls("/popular") - fed);
    assert!(upstream.most_in_flight_for_any() <= 1);
}
