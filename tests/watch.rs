//! `samovar watch`: what a fleet does is seen as it happens, and told only while somebody watches.
use std::time::Duration;

use crate::support::{Art, JobsFolder, Parts, Reply, TestRedis, WorkerProcess, both, eventually, samovar, worker};
use futures_util::StreamExt;
use samovar::redis::RedisTime;
use serde_json::{Value, json};

/// `samovar watch`, once it hears.
async fn watch(redis: &TestRedis, jobs: &JobsFolder, args: &[&str]) -> WorkerProcess {
    let watch = samovar(["watch"].iter().chain(args)).redis(redis).jobs(jobs).spawn();
    eventually("it is subscribed", async || watchers(redis).await == 1).await;
    watch
}

async fn watchers(redis: &TestRedis) -> u64 {
    let (_, watchers): (String, u64) = redis.ask(&["PUBSUB", "NUMSUB", "samovar:watched"]).await;
    watchers
}

fn events(watch: &WorkerProcess) -> Vec<Value> {
    let printed = watch.printed();
    printed.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Waits for an event that has all these fields.
async fn event(watch: &WorkerProcess, fields: Value) -> Value {
    eventually(&format!("an event with {fields}"), async || {
        let wanted = fields.as_object().unwrap();
        let all = events(watch);
        let found = all.iter().find(|event| wanted.iter().all(|(name, value)| event[name] == *value)).cloned();
        found.ok_or(all)
    })
    .await
}

/// Invalidates an entry until the workers have noticed that somebody watches.
async fn noticed(redis: &TestRedis, watch: &WorkerProcess, key: &str) {
    let parts = Parts::of(redis).await;
    eventually("workers tell what they do", async || {
        parts.invalidate(key).await;
        watch.printed().iter().any(|line| line.contains("inbox"))
    })
    .await;
}

#[tokio::test]
async fn a_program_sees_invalidations_warmings_and_failures() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    upstream.edit("/art/b");
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let _worker = worker(&redis, &jobs);
    eventually("it is warm", async || redis.get("art:b").await).await;
    let mut watch = watch(&redis, &jobs, &["--json"]).await;
    noticed(&redis, &watch, "art:a").await;
    let parts = Parts::of(&redis).await;
    upstream.edit("/art/b");
    let began = parts.now().await;
    parts.invalidate("art:b").await;
    let seen = event(&watch, json!({"event": "invalidation", "way": "inbox", "keys": ["art:b"]})).await;
    assert_eq!((&seen["action"], &seen["due"]), (&json!("refresh"), &json!(1)), "{seen}");
    let warmed = json!({"event": "ended", "key": "art:b", "outcome": "warmed", "trigger": "invalidation"});
    let warmed = event(&watch, warmed).await;
    assert_eq!(warmed["job"], "art");
    assert!(warmed["worker"].as_str().is_some_and(|worker| !worker.is_empty()), "{warmed}");
    assert!(warmed["lag_ms"].as_u64() >= warmed["took_ms"].as_u64(), "{warmed}");
    let at = RedisTime::from_millis(warmed["at_ms"].as_i64().unwrap());
    // Its clock is Redis's, as of at most a second before.
    assert!(
        (began - Duration::from_millis(100)..=parts.now().await + Duration::from_millis(100)).contains(&at),
        "{at} began {began}"
    );
    upstream.on("/art/b", Reply::status(500));
    parts.invalidate("art:b").await;
    let failed = event(&watch, json!({"event": "ended", "key": "art:b", "outcome": "failed"})).await;
    assert!(failed["reason"].as_str().unwrap().contains("500"), "{failed}");
    let summary = event(&watch, json!({"event": "summary"})).await;
    assert_eq!((&summary["workers"], &summary["jobs"][0]["job"]), (&json!(1), &json!("art")), "{summary}");
    watch.term();
    assert_eq!(watch.wait().await.code(), Some(0));
}

#[tokio::test]
async fn nothing_is_told_while_nobody_watches() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).list(&names).folder();
    let client = redis.client();
    // Who subscribes to a pattern is not counted as a subscriber of the channel.
    let mut tap = client.get_async_pubsub().await.unwrap();
    tap.psubscribe("samovar:watche*").await.unwrap();
    let mut told = tap.into_on_message();
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    eventually("all are warm", async || parts.stat("warmed").await == 50).await;
    upstream.edit("/art/1");
    parts.invalidate("art:1").await;
    eventually("it is warm again", async || parts.stat("warmed").await == 51).await;
    // Two looks of the worker.
    let beat = parts.now().await + Duration::from_millis(2_500);
    eventually("some seconds pass", async || parts.now().await > beat).await;
    assert!(futures_util::poll!(told.next()).is_pending(), "nobody watches");
    let mut watch = watch(&redis, &jobs, &["--json"]).await;
    noticed(&redis, &watch, "art:1").await;
    let first = told.next().await.unwrap().get_payload::<String>().unwrap();
    assert!(first.contains(r#""event":"#), "{first}");
    watch.term();
    watch.wait().await;
    eventually("the worker falls silent", async || {
        while let std::task::Poll::Ready(Some(_)) = futures_util::poll!(told.next()) {}
        let before = parts.stat("warmed").await + parts.stat("unchanged").await;
        parts.invalidate("art:2").await;
        let ended = async || parts.stat("warmed").await + parts.stat("unchanged").await > before;
        eventually("it ended", ended).await;
        let later = parts.now().await + Duration::from_millis(300);
        eventually("it would have been told", async || parts.now().await > later).await;
        futures_util::poll!(told.next()).is_pending()
    })
    .await;
}

#[tokio::test]
async fn only_what_was_asked_for_is_shown() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    upstream.edit("/art/bee");
    let jobs = Art::of(&upstream).list(["a", "bee"]).folder();
    let _worker = worker(&redis, &jobs);
    let watch = watch(&redis, &jobs, &["--json", "--job", "art", "--key", "art:b?e"]).await;
    noticed(&redis, &watch, "art:bee").await;
    let parts = Parts::of(&redis).await;
    for name in ["a", "bee"] {
        upstream.edit(&format!("/art/{name}"));
        parts.invalidate(&format!("art:{name}")).await;
    }
    event(&watch, json!({"event": "ended", "key": "art:bee", "outcome": "warmed", "trigger": "invalidation"})).await;
    let shown = events(&watch);
    assert!(!shown.iter().any(|event| event.to_string().contains("art:a")), "{shown:?}");
    let unknown = samovar(["watch", "--job", "arts"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
}

#[tokio::test]
async fn a_bare_message_that_two_workers_handle_is_shown_once() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _workers = [worker(&redis, &jobs), worker(&redis, &jobs)];
    crate::support::listening(&redis, 2).await;
    eventually("it is warm", async || redis.get("art:a").await).await;
    let watch = watch(&redis, &jobs, &["--json"]).await;
    noticed(&redis, &watch, "art:a").await;
    let of_channel = || events(&watch).into_iter().filter(|event| event["way"] == "channel").collect::<Vec<_>>();
    for round in 0..5 {
        redis.publish("samovar:invalidate", &json!({"jobs": [format!("none{round}")]}).to_string()).await;
        redis.publish("samovar:invalidate", &format!("art:{round}")).await;
        let shown = async || of_channel().len() >= 2 * (round + 1);
        eventually("both are shown", shown).await;
    }
    // A batch of events is published every 100 ms.
    let later = std::time::Instant::now() + Duration::from_millis(500);
    eventually("all is reported", async || std::time::Instant::now() > later).await;
    assert_eq!(of_channel().len(), 10, "{:?}", of_channel());
}

#[tokio::test]
async fn without_a_terminal_people_see_lines_and_the_state() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    eventually("it is warm", async || redis.get("art:a").await).await;
    let watch = watch(&redis, &jobs, &[]).await;
    noticed(&redis, &watch, "art:a").await;
    let said = async |words: &[&str]| {
        eventually(&format!("a line with {words:?}"), async || {
            let printed = watch.printed();
            let found = printed.iter().any(|line| words.iter().all(|word| line.contains(word)));
            if found { Ok(()) } else { Err(printed) }
        })
        .await;
    };
    upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    said(&["invalidation inbox", "refresh art:a"]).await;
    said(&["warmed", "invalidation", "took", "lag", "art:a"]).await;
    said(&["-- 1 worker; 0 due", "warmed", "lag p50"]).await;
}

#[tokio::test]
async fn watching_goes_on_when_redis_is_back() {
    let (mut redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    eventually("it is warm", async || redis.get("art:a").await).await;
    let mut watch = watch(&redis, &jobs, &["--json"]).await;
    redis.stop().await;
    watch.wait_for_log(&["no events are received"]).await;
    event(&watch, json!({"event": "disconnected"})).await;
    event(&watch, json!({"event": "unreachable"})).await;
    // Each failure is told once, however often it is met.
    let failures = watch.log().len();
    let later = std::time::Instant::now() + Duration::from_secs(3);
    eventually("some attempts are made", async || std::time::Instant::now() > later).await;
    assert!(watch.log().len() <= failures + 1, "{:?}", watch.log());
    redis.start_again().await;
    eventually("it is subscribed again", async || watchers(&redis).await == 1).await;
    noticed(&redis, &watch, "art:a").await;
}

#[tokio::test]
async fn figures_of_a_frozen_redis_are_marked() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    eventually("it is warm", async || redis.get("art:a").await).await;
    let watch = watch(&redis, &jobs, &["--json"]).await;
    let lines = samovar(["watch"]).redis(&redis).jobs(&jobs).spawn();
    let says = async |words: &str| {
        let what = format!("a line begins with {words}");
        eventually(&what, async || {
            let printed = lines.printed();
            let found = printed.iter().rev().find(|line| line.starts_with(words)).cloned();
            found.ok_or(printed)
        })
        .await
    };
    says("-- 1 worker").await;
    assert_eq!(event(&watch, json!({"event": "summary"})).await["unanswered_since_ms"], Value::Null);
    redis.freeze();
    let marked = says("-- Redis has not answered since ").await;
    assert!(marked.contains(", as of then: 1 worker; 0 due"), "{marked}");
    let marked = eventually("a summary is marked", async || {
        let all = events(&watch);
        all.iter().find(|event| event["unanswered_since_ms"].is_i64()).cloned().ok_or(all)
    })
    .await;
    assert!(marked["event"] == "summary" && marked["unanswered_since_ms"] == marked["at_ms"], "{marked}");
    let before = lines.printed().len();
    redis.thaw();
    eventually("it answers again", async || {
        lines.printed()[before..].iter().any(|line| line.starts_with("-- 1 worker"))
    })
    .await;
}
