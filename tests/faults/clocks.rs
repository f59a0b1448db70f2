//! Clocks are wrong: nobody compares them.

use serde_json::json;

use super::support::{Art, JobsFolder, Reply, TestRedis, WorkerProcess, eventually, talkative};
use super::{both, readable, version, works};

/// A worker whose clock is off by this much; only its wall clock, as it is in life.
fn worker(redis: &TestRedis, jobs: &JobsFolder, off: &str) -> WorkerProcess {
    let found = std::process::Command::new("faketime").arg("--version").output();
    assert!(found.is_ok(), "no faketime on the PATH: apt-get install faketime, or brew install libfaketime");
    let worker = talkative(redis, jobs).env("SAMOVAR_CLAIM", "10s").through(&["faketime", "-f", off]);
    worker.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1").spawn()
}

#[tokio::test]
async fn workers_an_hour_ahead_and_behind_do_no_harm() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": ["fed"]})));
    upstream.edit("/art/fed");
    let jobs = Art::of(&upstream)
        .ttl("10m")
        .limits("rate = \"200/second\"\nconcurrency = 4\ntimeout = \"2s\"")
        .entries("feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }")
        .warm("every = \"2s\"")
        .list((0..20).map(|n| n.to_string()))
        .folder();
    upstream.otherwise(|_, _| Reply::json(json!({"version": 1})));
    let mut fleet = [worker(&redis, &jobs, "+1h"), worker(&redis, &jobs, "+0"), worker(&redis, &jobs, "-1h")];
    let begun = std::time::Instant::now();
    eventually("all of them live", async || redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await == 3).await;
    for name in (0..20).map(|n| n.to_string()) {
        readable(&redis, &name).await;
        assert_eq!(upstream.calls(&format!("/art/{name}")), 1, "{name} is fetched once");
    }
    let before = upstream.calls("/popular");
    for n in 0..5 {
        let edited = upstream.edit("/art/fed");
        redis.publish("samovar:invalidate", "art:fed").await;
        version(&redis, "fed", edited).await;
        works(&redis, &upstream, &format!("more {n}")).await;
    }
    upstream.called("/popular", before + 2).await;
    let ticks = begun.elapsed().as_secs() as usize / 2 + 2;
    assert!(upstream.calls("/popular") <= ticks, "{} ticks where {ticks} are due", upstream.calls("/popular"));
    assert_eq!(redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await, 3, "nobody took another for dead");
    // Each alone does it all, also what the others had in hand when they froze.
    for alone in 0..fleet.len() {
        for (n, worker) in fleet.iter().enumerate() {
            if n != alone {
                worker.freeze()
            }
        }
        works(&redis, &upstream, &format!("alone {alone}")).await;
        fleet.iter().for_each(WorkerProcess::thaw);
        eventually("all of them live again", async || {
            redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await == 3
        })
        .await;
    }
    let ttl = redis.ttl("art:0").await.unwrap().as_secs();
    assert!((300..=600).contains(&ttl), "{ttl}");
    assert!(fleet.iter_mut().all(WorkerProcess::is_running));
    assert!(upstream.most_in_flight_for_any() <= 1);
}
