//! Workers are killed: what they held is freed as soon as the fleet notices, and is nobody's loss.
//!
//! Leases, permits and taken entries would hold for minutes here, longer than a test waits.

use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;
use serde_json::json;

use super::{Progress, both, choices, kills, readable, version, works};
use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Versions, WorkerProcess, eventually, hasty_worker, talkative,
};

/// The shortest claim time at which a worker counts as dead within half of it.
const CLAIM: &str = "10s";

pub(super) fn worker(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    talkative(redis, jobs).env("SAMOVAR_CLAIM", CLAIM).spawn()
}

/// Nothing of a dead worker's is left.
pub(super) async fn nothing_is_held(redis: &TestRedis, workers: usize) {
    eventually("leases, permits and tasks are gone", async || {
        let mut left = redis.keys("samovar:lease:*").await;
        left.extend(redis.keys("samovar:permits:*").await);
        left.extend(redis.keys("{samovar:queue}*").await);
        left.retain(|key| key != "{samovar:queue}:workers");
        let living = redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await;
        if left.is_empty() && living == workers { Ok(()) } else { Err((left, living)) }
    })
    .await;
}

#[tokio::test]
async fn lease_permit_and_entries_of_a_dead_worker_are_freed() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).limits("timeout = \"120s\"\nconcurrency = 1").list(&names).folder();
    let gates: Vec<_> = names.iter().map(|name| upstream.gate(&format!("/art/{name}"))).collect();
    let mut first = worker(&redis, &jobs);
    eventually("one is being fetched", async || upstream.in_flight() == 1).await;
    let _second = worker(&redis, &jobs);
    eventually("both live", async || redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await == 2).await;
    first.kill9();
    assert_eq!(redis.keys("samovar:lease:*").await.len(), 1, "its lease is still there");
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:permits:{museum}"]).await, 1, "and its permit");
    gates.iter().for_each(|gate| gate.open());
    for name in &names {
        readable(&redis, name).await;
    }
    nothing_is_held(&redis, 1).await;
    assert!(upstream.most_in_flight_for_any() <= 1);
}

/// The worker counted as dead while it hung, and another worker has its entries.
#[tokio::test]
async fn who_was_taken_for_dead_writes_nothing_when_it_wakes() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).limits("timeout = \"120s\"\nconcurrency = 1").list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    gate.arrived(1).await;
    first.freeze();
    upstream.edit("/art/a");
    let _second = worker(&redis, &jobs);
    gate.arrived(2).await;
    gate.open();
    version(&redis, "a", 2).await;
    let before = Parts::of(&redis).await.meta("a").await;
    first.thaw();
    first.wait_for_log(&["ended outcome=", "fenced"]).await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 2);
    assert_eq!(Parts::of(&redis).await.meta("a").await, before);
    works(&redis, &upstream, "b").await;
    assert!(first.is_running());
}

/// All of it, again and again, while there is much to do.
#[tokio::test]
async fn a_queue_that_is_lost_loses_no_work() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})).after(Duration::from_millis(20)));
    let names: Vec<String> = (0..150).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).limits("timeout = \"2s\"\nconcurrency = 4").list(&names).folder();
    let mut fleet = [hasty_worker(&redis, &jobs), hasty_worker(&redis, &jobs)];
    for so_many in [10, 40, 70] {
        eventually("some are warm", async || redis.keys("art:*").await.len() >= so_many).await;
        let mut delete = vec!["DEL".to_owned()];
        delete.extend(redis.keys("{samovar:queue}*").await);
        redis.ask::<u64>(&delete.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    for name in &names {
        readable(&redis, name).await;
    }
    assert!(upstream.most_in_flight_for_any() <= 1);
    assert!(fleet.iter_mut().all(WorkerProcess::is_running));
}

/// The job `art` with these entries, of an upstream of versions.
pub(super) fn museum(upstream: &Versions, names: &[&str], warm: &str) -> JobsFolder {
    JobsFolder::new()
        .upstreams(&format!("[museum]\nurl = \"{}\"\ntimeout = \"120s\"\nconcurrency = 12\n", upstream.url()))
        .job(
            "art",
            &format!(
                "key = \"art:{{name}}\"\nttl = \"24h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                 path = \"/art/{{{{ name }}}}\"\n[entries]\nlist = {}\n[warm]\n{warm}\n",
                json!(names)
            ),
        )
}

#[tokio::test]
async fn workers_that_are_killed_again_and_again_lose_nothing() {
    const FLEET: usize = 3;
    let mut random = choices("killed");
    let (redis, upstream) = tokio::join!(TestRedis::start(), Versions::start(random.random()));
    let keys: Vec<String> = (0..60).map(|n| format!("art:{n}")).collect();
    let names: Vec<&str> = keys.iter().map(|key| key.strip_prefix("art:").unwrap()).collect();
    let folder = museum(&upstream, &names, "attempts = 1000");
    let parts = Parts::of(&redis).await;
    let mut fleet: Vec<WorkerProcess> = (0..FLEET).map(|_| worker(&redis, &folder)).collect();
    let kills = kills(6);
    let mut progress = Progress::of("kills", kills);
    for kill in 1..=kills {
        for key in keys.sample(&mut random, 20) {
            upstream.edit(key);
            let action = if random.random_bool(0.3) { "evict" } else { "refresh" };
            parts.publish(&json!({"keys": [key], "action": action}).to_string()).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..900))).await;
        let victim = random.random_range(0..FLEET);
        fleet[victim].kill9();
        fleet[victim] = worker(&redis, &folder);
        progress.done(kill);
    }
    upstream.calm_down();
    parts.inbox_is_empty().await;
    // What was evicted and asked for by nobody since.
    parts.publish(&json!({"keys": &keys, "action": "warm"}).to_string()).await;
    for key in &keys {
        let newest = upstream.version(key);
        eventually(&format!("version {newest} of {key} is readable"), async || match redis.json(key).await {
            Some(value) if value["v"] == newest => Ok(()),
            other => Err(other),
        })
        .await;
    }
    nothing_is_held(&redis, FLEET).await;
    assert!(upstream.crowded().is_empty(), "fetched by two at once: {:?}", upstream.crowded());
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await, 0);
    assert!(fleet.iter_mut().all(WorkerProcess::is_running));
}
