//! Warmups: once per tick in the whole fleet, and what they keep warm.
use std::time::Duration;

use crate::support::{
    Art, Parts, Reply, TestRedis, WorkerProcess, at_rest, both, eventually, hasty_worker, listening, readable, worker,
};
use samovar::redis::RedisTime;
use serde_json::json;

const FEED: &str = "feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }";

/// The feed is asked at each warmup, so its calls count them.
#[tokio::test]
async fn a_tick_is_expanded_once_by_several_workers() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    upstream.on("/art/a", Reply::json(json!({})));
    let jobs = Art::of(&upstream).entries(FEED).warm("every = \"1s\"\nrefetch = true").folder();
    let _workers: Vec<WorkerProcess> = (0..3).map(|_| worker(&redis, &jobs)).collect();
    readable(&redis, "a").await;
    let (started, from) = (upstream.calls("/popular"), std::time::Instant::now());
    upstream.called("/popular", started + 3).await;
    // Ticks lie on full seconds: no more of them than seconds were begun.
    let most = from.elapsed().as_secs() as usize + 2;
    let asked = upstream.calls("/popular") - started;
    assert!(asked <= most, "{asked} in {:?}", from.elapsed());
    let warmed = upstream.calls("/art/a");
    assert!(warmed <= upstream.calls("/popular"), "{warmed} fetches");
}

#[tokio::test]
async fn workers_that_start_together_warm_up_once() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": ["a", "b", "c"]})));
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).entries(FEED).warm("every = \"1h\"\nrefetch = true").folder();
    let _workers: Vec<WorkerProcess> = (0..4).map(|_| worker(&redis, &jobs)).collect();
    for name in ["a", "b", "c"] {
        readable(&redis, name).await;
    }
    eventually("all workers are at work", async || {
        redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await == 4
    })
    .await;
    at_rest(&redis).await;
    assert_eq!((upstream.calls("/popular"), upstream.calls("/art/a")), (1, 1));
}

#[tokio::test]
async fn a_warmup_leaves_alone_what_lives_until_the_next_one() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": []})));
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).list(["a"]).entries(FEED).warm("every = \"1s\"").folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    let started = upstream.calls("/popular");
    upstream.called("/popular", started + 2).await;
    assert_eq!(upstream.calls("/art/a"), 1);
    // What somebody deleted is filled in.
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    readable(&redis, "a").await;
    assert_eq!(upstream.calls("/art/a"), 2);
}

/// It would expire before the next warmup, but is refreshed before it does.
#[tokio::test]
async fn a_warmup_does_not_fetch_at_once_what_is_refreshed_in_time() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).ttl("1h").entries(FEED).warm("every = \"366d\"\nahead = \"10m\"").folder();
    let _first = worker(&redis, &jobs);
    readable(&redis, "a").await;
    at_rest(&redis).await;
    let before = Parts::of(&redis).await.now().await - Duration::from_millis(1_000);
    redis.ask::<i64>(&["ZADD", "samovar:{schedules}", &before.to_string(), "art"]).await;
    let _second = worker(&redis, &jobs);
    eventually("the warmup is over", async || {
        redis.ask::<RedisTime>(&["ZSCORE", "samovar:{schedules}", "art"]).await > before
            && redis.ask::<usize>(&["HLEN", "samovar:{schedules}:ticks"]).await == 0
    })
    .await;
    at_rest(&redis).await;
    assert_eq!((upstream.calls("/popular"), upstream.calls("/art/a")), (2, 1));
}

#[tokio::test]
async fn a_missed_tick_is_caught_up_once_at_start() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).entries(FEED).warm("every = \"1h\"\nrefetch = true").folder();
    let mut first = worker(&redis, &jobs);
    readable(&redis, "a").await;
    at_rest(&redis).await;
    first.kill9();
    let next: RedisTime = redis.ask(&["ZSCORE", "samovar:{schedules}", "art"]).await;
    let parts = Parts::of(&redis).await;
    let now = parts.now().await;
    assert!(next > now && next <= now + Duration::from_secs(3_600), "{next}");
    // Three of them passed while nobody was there.
    let missed = (now - Duration::from_secs(3 * 3_600)).to_string();
    redis.ask::<i64>(&["ZADD", "samovar:{schedules}", &missed, "art"]).await;
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    let _second = worker(&redis, &jobs);
    let _third = worker(&redis, &jobs);
    upstream.called("/art/a", 2).await;
    eventually("the next tick lies ahead", async || {
        redis.ask::<RedisTime>(&["ZSCORE", "samovar:{schedules}", "art"]).await >= next
            && redis.ask::<usize>(&["HLEN", "samovar:{schedules}:ticks"]).await == 0
    })
    .await;
    listening(&redis, 2).await;
    assert_eq!((upstream.calls("/popular"), upstream.calls("/art/a")), (2, 2));
}

#[tokio::test]
async fn a_tick_whose_worker_died_is_expanded_by_another() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let gate = upstream.gate("/popular");
    let jobs = Art::of(&upstream).entries(FEED).folder();
    let mut first = hasty_worker(&redis, &jobs);
    gate.arrived(1).await;
    first.kill9();
    gate.open();
    let _second = hasty_worker(&redis, &jobs);
    readable(&redis, "a").await;
}

#[tokio::test]
async fn a_changed_job_file_is_warmed_up_at_once_an_unchanged_one_not() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let art = Art::of(&upstream).list(["a"]).warm("every = \"1h\"");
    let jobs = art.folder().job(
        "other",
        "key = \"other:x\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\npath = \"/other\"\n\
         [warm]\nrefetch = true",
    );
    let mut first = worker(&redis, &jobs);
    readable(&redis, "a").await;
    eventually("the other is readable", async || redis.json("other:x").await).await;
    first.kill9();
    jobs.write("art.toml", &art.clone().list(["a", "b"]).source("value = { new = \"{{ value.path }}\" }").toml());
    let _second = worker(&redis, &jobs);
    assert_eq!(readable(&redis, "b").await, json!({"new": "/art/b"}));
    assert_eq!(upstream.calls("/other"), 1);
}

/// Returns the names that the worker keeps of its feed.
async fn named_last(redis: &TestRedis) -> Vec<String> {
    let buckets: Vec<String> = redis.ask(&["HVALS", "samovar:feed:{art}"]).await;
    let mut names: Vec<String> =
        buckets.iter().flat_map(|bucket| serde_json::from_str::<Vec<String>>(bucket).unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn entries_of_a_feed_are_kept_warm_and_dropped_ones_expire() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    upstream.on("/popular", Reply::json(json!({"names": ["stays", "goes"]})));
    let jobs = Art::of(&upstream).ttl("3s").entries(FEED).warm("every = \"1s\"\nahead = \"1s\"").folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "stays").await;
    readable(&redis, "goes").await;
    upstream.on("/popular", Reply::json(json!({"names": ["stays"]})));
    let dropped = upstream.calls("/popular");
    upstream.called("/popular", dropped + 1).await;
    eventually("it is no longer named", async || named_last(&redis).await == ["art:stays"]).await;
    // Not by reading it, which would keep it warm.
    eventually("what was dropped has expired", async || redis.ask::<u8>(&["EXISTS", "art:goes"]).await == 0).await;
    let parts = Parts::of(&redis).await;
    assert_eq!(parts.score("goes").await, None, "nobody thinks of it any more");
    let asked = upstream.calls("/popular");
    upstream.called("/popular", asked + 2).await;
    assert_eq!(redis.get("art:goes").await, None);
    assert!(redis.get("art:stays").await.is_some());
}

#[tokio::test]
async fn the_last_list_of_a_feed_stays_until_the_new_one_is_complete() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    upstream.on("/popular", Reply::json(json!({"names": ["a", "b"]})));
    let jobs = Art::of(&upstream).entries(FEED).warm("every = \"1s\"").folder();
    let _worker = worker(&redis, &jobs);
    eventually("both are named", async || named_last(&redis).await == ["art:a", "art:b"]).await;
    // As if it died just before the last step.
    redis.ask::<()>(&["ACL", "SETUSER", "default", "-rename"]).await;
    upstream.on("/popular", Reply::json(json!({"names": ["c"]})));
    eventually("it is written but for the last step", async || !redis.keys("samovar:feed:{art}:*").await.is_empty())
        .await;
    let asked = upstream.calls("/popular");
    assert_eq!(named_last(&redis).await, ["art:a", "art:b"]);
    let unfinished = redis.keys("samovar:feed:{art}:*").await;
    let left: i64 = redis.ask(&["PTTL", &unfinished[0]]).await;
    assert!((1..=600_000).contains(&left), "{unfinished:?} goes by itself: {left}");
    redis.ask::<()>(&["ACL", "SETUSER", "default", "+rename"]).await;
    // Not after half a minute, when the claim on the tick has run out.
    redis.ask::<u64>(&["ZADD", "samovar:{schedules}", "1", "art"]).await;
    upstream.called("/popular", asked + 1).await;
    eventually("only the new one is named", async || named_last(&redis).await == ["art:c"]).await;
    assert_eq!(redis.ask::<i64>(&["PTTL", "samovar:feed:{art}"]).await, -1, "and stays");
}

#[tokio::test]
async fn what_a_feed_named_is_left_to_expire_once_the_job_has_none() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let job = || Art::of(&upstream).ttl("3s").warm("ahead = \"1s\"");
    let with = job().entries(FEED).folder();
    let first = worker(&redis, &with);
    readable(&redis, "a").await;
    assert_eq!(named_last(&redis).await, ["art:a"]);
    drop(first);
    let without = job().folder();
    let _worker = worker(&redis, &without);
    eventually("it is no longer named", async || named_last(&redis).await.is_empty()).await;
    eventually("it has expired", async || redis.ask::<u8>(&["EXISTS", "art:a"]).await == 0).await;
}

#[tokio::test]
async fn a_feed_that_fails_keeps_warm_what_it_named_last() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    upstream.on("/popular", Reply::json(json!({"names": ["a", "b"]})));
    let jobs = Art::of(&upstream).ttl("3s").entries(FEED).warm("every = \"1s\"").folder();
    let mut worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    for (bad, path) in [
        (Reply::status(500), "500"),
        (Reply::json(json!({"names": [null, {}]})), "no entry"),
        (Reply::text("<html>"), "HTML"),
    ] {
        upstream.on("/popular", bad);
        let calls = (upstream.calls("/popular"), upstream.calls("/art/b"));
        upstream.called("/popular", calls.0 + 1).await;
        upstream.called("/art/b", calls.1 + 1).await;
        assert!(redis.get("art:b").await.is_some(), "{path}");
        assert_eq!(named_last(&redis).await, ["art:a", "art:b"], "{path}");
    }
    worker.wait_for_log(&["asking a job's feed fails (art)"]).await;
}

#[tokio::test]
async fn a_large_feed_is_warmed_whole() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..1_200).map(|n| format!("n {n}")).collect();
    upstream.on("/popular", Reply::json(json!({"names": names})));
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).entries(FEED).folder();
    let mut named_before = redis::cmd("HSET");
    named_before.arg("samovar:feed:{art}");
    for n in 0..1_200 {
        named_before.arg(n).arg(format!("[\"art:old {n}\"]"));
    }
    named_before.exec_async(&mut redis.connection().await).await.unwrap();
    let _worker = worker(&redis, &jobs);
    eventually("all are readable", async || {
        let count = redis.keys("art:*").await.len();
        if count == 1_200 { Ok(()) } else { Err(count) }
    })
    .await;
    assert_eq!((upstream.most_in_flight_for_any(), upstream.all_requests().len()), (1, 1_201));
    let mut wanted: Vec<String> = names.iter().map(|name| format!("art:{name}")).collect();
    wanted.sort();
    assert_eq!(named_last(&redis).await, wanted, "what it named before is forgotten");
}

#[tokio::test]
async fn a_schedule_without_entries_does_nothing_and_does_not_mind() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).warm("every = \"1s\"").folder();
    let mut worker = worker(&redis, &jobs);
    worker.wait_for_log(&["warmup", "entries=0"]).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        while worker.log().iter().filter(|line| line.contains("entries=0")).count() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it goes on");
    assert!(worker.is_running());
}

/// Another worker may have files that this one has not, or somebody has removed one.
#[tokio::test]
async fn a_warmup_of_a_job_unknown_to_a_worker_is_left_to_others() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    redis.ask::<u64>(&["ZADD", "samovar:{schedules}", "1", "other"]).await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    assert_eq!(redis.ask::<i64>(&["ZSCORE", "samovar:{schedules}", "other"]).await, 1);
}

#[tokio::test]
async fn a_feed_is_not_asked_while_its_upstream_is_paused() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::status(429).header("Retry-After", "60"));
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).entries(FEED).warm("every = \"1s\"").folder();
    let mut worker = worker(&redis, &jobs);
    worker.wait_for_log(&["asking a job's feed fails (art)", "retry-after"]).await;
    assert_eq!(upstream.calls("/popular"), 1);
}
