//! Redis goes away, workers die, people stop them: nothing is lost and nothing lives on as a ghost.
use std::collections::BTreeMap;

use crate::support::{
    Art, Parts, Reply, TestRedis, Upstream, WorkerProcess, at_rest, both, eventually, hasty_worker, publish, readable,
    samovar, talkative, version, worker,
};
use serde_json::json;

/// Everything a worker does still works: the inbox, the channel, the agenda, the queue.
async fn works(redis: &TestRedis, upstream: &Upstream, name: &str) {
    let parts = Parts::of(redis).await;
    let path = format!("/art/{name}");
    let first = upstream.edit(&path);
    parts.invalidate(&json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string()).await;
    version(redis, name, first).await;
    let second = upstream.edit(&path);
    publish(redis, &format!("art:{name}")).await;
    version(redis, name, second).await;
}

#[tokio::test]
async fn a_worker_that_starts_before_redis_waits_for_it_and_says_so() {
    let (mut redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    redis.kill9();
    let mut worker = worker(&redis, &jobs);
    worker.wait_for_log(&["waits for Redis", &redis.port().to_string()]).await;
    redis.start_again().await;
    version(&redis, "a", 1).await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_worker_that_waits_for_redis_ends_when_it_is_told_to() {
    let (mut redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    redis.kill9();
    let mut worker = worker(&redis, &jobs);
    worker.wait_for_log(&["waits for Redis"]).await;
    worker.term();
    assert_eq!(worker.wait().await.code(), Some(0));
}

#[tokio::test]
async fn all_is_warm_again_after_redis_came_back_empty() {
    let (mut redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let mut workers = [worker(&redis, &jobs), worker(&redis, &jobs)];
    readable(&redis, "a").await;
    redis.kill9();
    for worker in &mut workers {
        worker.wait_for_log(&["waits for Redis"]).await;
    }
    redis.start_again().await;
    readable(&redis, "a").await;
    readable(&redis, "b").await;
    works(&redis, &upstream, "c").await;
    assert!(workers.iter_mut().all(WorkerProcess::is_running));
}

#[tokio::test]
async fn all_is_warm_again_after_a_flush() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let _workers = [worker(&redis, &jobs), worker(&redis, &jobs)];
    readable(&redis, "a").await;
    readable(&redis, "b").await;
    at_rest(&redis).await;
    redis.flush().await;
    readable(&redis, "a").await;
    readable(&redis, "b").await;
    works(&redis, &upstream, "c").await;
    at_rest(&redis).await;
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/art/b")), (2, 2), "warmed up once for the flush");
}

#[tokio::test]
async fn a_flush_while_an_answer_is_awaited_fences_the_answer() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    redis.flush().await;
    upstream.edit("/art/a");
    gate.arrived(2).await;
    gate.let_one_out();
    let parts = Parts::of(&redis).await;
    eventually("the first answer was dropped", async || parts.stat("fenced").await == 1).await;
    assert_eq!(redis.get("art:a").await, None);
    gate.open();
    version(&redis, "a", 2).await;
}

/// The drain time is longer than any test waits.
#[tokio::test]
async fn a_worker_that_has_nothing_in_flight_ends_at_once() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "10m").spawn();
    version(&redis, "a", 1).await;
    at_rest(&redis).await;
    worker.term();
    assert_eq!(worker.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_killed_redis_with_aof_comes_back_and_the_work_goes_on() {
    let (mut redis, upstream) =
        tokio::join!(TestRedis::options().append_only().arg("--appendfsync", "always").start(), Upstream::start());
    upstream.edit("/art/a");
    upstream.edit("/art/b");
    // What Redis remembers of the fetch it interrupted ends with its lease, which is as long as the timeout asks for.
    let jobs = Art::of(&upstream).limits("timeout = \"1s\"").list(["a"]).folder();
    let mut worker = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let gate = upstream.gate("/art/b");
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:b"], "action": "warm"}"#).await;
    gate.arrived(1).await;
    redis.kill9();
    gate.open();
    worker.wait_for_log(&["waits for Redis"]).await;
    redis.start_again().await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1, "Redis itself lost nothing");
    version(&redis, "b", 1).await;
    works(&redis, &upstream, "c").await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn what_a_killed_worker_was_fetching_another_warms() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).limits("timeout = \"1s\"").list(["a"]).folder();
    let mut first = hasty_worker(&redis, &jobs);
    gate.arrived(1).await;
    first.kill9();
    assert_eq!(redis.keys("samovar:lease:*").await.len(), 1, "its lease is still there");
    gate.open();
    let _second = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
}

#[tokio::test]
async fn what_a_killed_worker_had_not_begun_another_warms() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let gate = upstream.gate("/art/0");
    let names: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).limits("timeout = \"1s\"\nconcurrency = 1").list(&names).folder();
    let mut first = hasty_worker(&redis, &jobs);
    gate.arrived(1).await;
    first.kill9();
    gate.open();
    let _second = hasty_worker(&redis, &jobs);
    for name in &names {
        readable(&redis, name).await;
    }
}

#[tokio::test]
async fn a_stopping_worker_finishes_its_flights_and_returns_the_rest() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let names: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).limits("concurrency = 1").list(&names).folder();
    let gates: Vec<_> = names.iter().map(|name| upstream.gate(&format!("/art/{name}"))).collect();
    let mut first = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "10m").spawn();
    eventually("one is being fetched", async || upstream.in_flight() == 1).await;
    let fetched = upstream.all_requests().remove(0).path().strip_prefix("/art/").unwrap().to_owned();
    first.term();
    first.wait_for_log(&["told to stop"]).await;
    for gate in &gates {
        gate.open();
    }
    assert_eq!(first.wait().await.code(), Some(0));
    assert!(redis.json(&format!("art:{fetched}")).await.is_some(), "what was in flight is readable");
    assert_eq!(upstream.all_requests().len(), 1, "nothing else was begun");
    // The claim time is 30 s: who had to wait for it would be told by the deadline of 20 s.
    let _second = worker(&redis, &jobs);
    for name in &names {
        readable(&redis, name).await;
    }
    assert_eq!(upstream.all_requests().len(), 10);
    assert_eq!(redis.ask::<Vec<String>>(&["ZRANGE", "{samovar:queue}:workers", "0", "-1"]).await.len(), 1);
}

#[tokio::test]
async fn a_second_signal_ends_a_worker_at_once() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::silence());
    let jobs = Art::of(&upstream).limits("timeout = \"60s\"").list(["a"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "10m").spawn();
    upstream.called("/art/a", 1).await;
    worker.term();
    worker.wait_for_log(&["told to stop"]).await;
    assert!(worker.is_running());
    worker.term();
    assert_ne!(worker.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_hung_upstream_does_not_delay_the_end_beyond_the_drain() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", [Reply::silence(), Reply::json(json!({"version": 1}))]);
    let jobs = Art::of(&upstream).limits("timeout = \"60s\"").list(["a"]).folder();
    let mut first = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "300ms").spawn();
    upstream.called("/art/a", 1).await;
    first.term();
    assert_eq!(first.wait().await.code(), Some(0));
    assert_eq!(redis.keys("samovar:lease:*").await, Vec::<String>::new(), "the lease is handed back, too");
    // Both the lease and the claim would hold for longer than this test waits.
    let _second = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
}

/// A drain may take longer than the time after which a silent worker counts as dead.
#[tokio::test]
async fn a_draining_worker_keeps_what_it_fetches() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).limits("timeout = \"60s\"").list(["a"]).folder();
    let mut first = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "10s").env("SAMOVAR_DRAIN", "10m").spawn();
    gate.arrived(1).await;
    let _second = hasty_worker(&redis, &jobs);
    let beats =
        async || redis.ask::<Vec<(String, f64)>>(&["ZRANGE", "{samovar:queue}:workers", "0", "-1", "WITHSCORES"]).await;
    eventually("both live", async || beats().await.len() == 2).await;
    first.term();
    first.wait_for_log(&["told to stop"]).await;
    let before = beats().await;
    eventually("both beat for longer than a dead worker does", async || {
        let now: BTreeMap<String, f64> = beats().await.into_iter().collect();
        before.iter().all(|(worker, at)| now.get(worker).is_some_and(|now| now - at > 6.0))
    })
    .await;
    gate.open();
    version(&redis, "a", 1).await;
    assert_eq!(first.wait().await.code(), Some(0));
    assert_eq!(upstream.calls("/art/a"), 1, "nobody fetched it again");
    assert_eq!(Parts::of(&redis).await.meta("a").await.unwrap().last_attempt.crashes, 0);
}

#[tokio::test]
async fn another_worker_gets_at_once_what_a_hung_upstream_held_up() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", [Reply::silence(), Reply::json(json!({"version": 1}))]);
    let jobs = Art::of(&upstream).limits("timeout = \"60s\"\nconcurrency = 1").list(["a"]).folder();
    let mut first = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "300ms").spawn();
    upstream.called("/art/a", 1).await;
    first.term();
    assert_eq!(first.wait().await.code(), Some(0));
    let _second = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
}

#[tokio::test]
async fn told_to_stop_while_redis_is_away_a_worker_ends() {
    let (mut redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    redis.kill9();
    worker.wait_for_log(&["waits for Redis"]).await;
    worker.term();
    let status = worker.wait().await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_redis_that_hangs_for_a_while_ends_no_worker() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    redis.freeze();
    worker.wait_for_log(&["waits for Redis"]).await;
    redis.thaw();
    works(&redis, &upstream, "b").await;
    assert!(worker.is_running());
}

/// Neither the permit nor the lease would expire within the test.
#[tokio::test]
async fn permit_and_lease_go_back_after_redis_died_in_a_fetch() {
    let always = TestRedis::options().append_only().arg("--appendfsync", "always");
    let (mut redis, upstream) = tokio::join!(always.start(), Upstream::start());
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).limits("timeout = \"10m\"\nconcurrency = 2").list(["a"]).folder();
    let mut worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    let held = async |redis: &TestRedis| {
        let permits: usize = redis.ask(&["ZCARD", "samovar:permits:{museum}"]).await;
        (redis.keys("samovar:lease:*").await.len(), permits)
    };
    assert_eq!(held(&redis).await, (1, 1));
    redis.kill9();
    gate.open();
    worker.wait_for_log(&["waits for Redis"]).await;
    redis.start_again().await;
    version(&redis, "a", 1).await;
    eventually("both are given back", async || {
        let held = held(&redis).await;
        if held == (0, 0) { Ok(()) } else { Err(held) }
    })
    .await;
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_sent_again() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    for n in 0..3 {
        redis.ask::<()>(&["SCRIPT", "FLUSH"]).await;
        works(&redis, &upstream, &n.to_string()).await;
    }
    assert!(worker.is_running());
}

#[tokio::test]
async fn connections_that_are_killed_again_and_again_come_back() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    for n in 0..5 {
        for class in ["normal", "pubsub"] {
            redis.ask::<u64>(&["CLIENT", "KILL", "TYPE", class]).await;
        }
        let name = n.to_string();
        upstream.edit(&format!("/art/{name}"));
        Parts::of(&redis)
            .await
            .invalidate(&json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string())
            .await;
        version(&redis, &name, 1).await;
    }
    works(&redis, &upstream, "last").await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_redis_that_is_full_ends_no_worker_and_harms_no_value() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    upstream.edit("/art/a");
    redis.publish("samovar:invalidate", "art:a").await;
    worker.wait_for_log(&["waits for Redis"]).await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    version(&redis, "a", 2).await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_password_is_never_logged() {
    let (mut redis, upstream) =
        tokio::join!(TestRedis::options().password("hunter2-secret").start(), Upstream::start());
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut right = samovar(["worker"]).redis(&redis).jobs(&jobs).env("SAMOVAR_LOG", "trace").spawn();
    version(&redis, "a", 1).await;
    let url = format!("redis://:wrong-secret@127.0.0.1:{}/0", redis.port());
    let mut wrong =
        samovar(["worker"]).redis(&redis).jobs(&jobs).env("REDIS_URL", &url).env("SAMOVAR_LOG", "trace").spawn();
    wrong.wait_for_log(&["waits for Redis"]).await;
    redis.kill9();
    right.wait_for_log(&["waits for Redis"]).await;
    for worker in [&right, &wrong] {
        let log = worker.log().join("\n");
        assert!(log.contains(&redis.port().to_string()), "it is said where Redis is");
        assert!(!log.contains("secret"), "{log}");
    }
    let bad = samovar(["worker"]).jobs(&jobs).env("REDIS_URL", "redis://:bad-secret@[::1").run().await;
    assert_eq!(bad.code, Some(78));
    assert!(!format!("{bad:?}").contains("secret"), "{bad:?}");
}

#[tokio::test]
async fn faulty_job_files_are_told_at_once_and_no_worker_starts() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream)
        .folder()
        .job(
            "one",
            "key = \"one:{x}\"\nttl = \"soon\"\n[source]\nkind = \"http\"\nupstream = \"museun\"\n\
             path = \"/{{ y }}\"\n",
        )
        .job("two", "this is no TOML");
    let ended = samovar(["worker"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(ended.code, Some(78));
    for said in ["one.toml", "two.toml", "soon", "museun", "museum", "`y`"] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
    assert_eq!(redis.keys("*").await, Vec::<String>::new());
}

#[tokio::test]
async fn the_queue_keeps_nothing_of_what_is_done() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).list(&names).folder();
    let mut first = worker(&redis, &jobs);
    for name in &names {
        readable(&redis, name).await;
    }
    at_rest(&redis).await;
    eventually("only the list of workers is left of the queue", async || {
        let left = redis.keys("*:queue}*").await;
        if left == ["{samovar:queue}:workers"] { Ok(()) } else { Err(left) }
    })
    .await;
    assert_eq!(redis.keys("samovar:lease:*").await, Vec::<String>::new());
    first.term();
    first.wait().await;
    assert_eq!(redis.keys("*:queue}*").await, Vec::<String>::new(), "the last one switches off the light");
    let consumers: redis::Value = redis.ask(&["XINFO", "CONSUMERS", "samovar:inbox", "samovar"]).await;
    assert_eq!(consumers, redis::Value::Array(vec![]));
}

#[tokio::test]
async fn what_a_killed_worker_left_on_the_queue_is_cleared_up() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::silence());
    let jobs = Art::of(&upstream).limits("timeout = \"1s\"").list(["a"]).folder();
    let mut first = hasty_worker(&redis, &jobs);
    upstream.called("/art/a", 1).await;
    first.kill9();
    upstream.edit("/art/a");
    assert!(redis.keys("*:queue}*").await.len() > 1);
    let _second = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    eventually("only the second worker is left", async || {
        let left = redis.keys("*:queue}*").await;
        let workers = redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await;
        if left.len() == 1 && workers == 1 { Ok(()) } else { Err(left) }
    })
    .await;
}

/// A worker hangs with open sockets, and wakes up when other workers have its entries.
#[tokio::test]
async fn a_worker_that_was_frozen_writes_nothing_old_when_it_wakes() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let jobs = Art::of(&upstream).limits("timeout = \"1s\"").list(["a"]).folder();
    let mut first = hasty_worker(&redis, &jobs);
    gate.arrived(1).await;
    first.freeze();
    gate.open();
    upstream.edit("/art/a");
    let _second = hasty_worker(&redis, &jobs);
    version(&redis, "a", 2).await;
    first.thaw();
    first.wait_for_log(&["ended outcome="]).await;
    at_rest(&redis).await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 2);
    works(&redis, &upstream, "b").await;
    assert!(first.is_running());
}
