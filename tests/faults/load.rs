//! More than anybody expects: a backlog after a long outage, retries all at once, a burst of invalidations, tasks without end.
//!
//! Each says what it measured; `SAMOVAR_TORTURE=50` makes a backlog of a million, and a million tasks' entries.

use std::time::{Duration, Instant};

use redis::Value;
use samovar::agenda::{Due, State, Trigger, Urgency};
use serde_json::json;

use super::support::{Art, Parts, Reply, TestRedis, WorkerProcess, eventually, talkative};
use super::{both, factor, version};

/// No command may keep Redis from others for longer, µs. A busy machine takes its time, too.
const SLOWEST: u64 = 100_000;
/// What a worker may take in RAM, debug build and all.
const RESIDENT: u64 = 400 << 20;

/// What Redis's slow log holds, the slowest first: µs and command.
async fn slowest(redis: &TestRedis) -> Vec<(u64, String)> {
    let log: Vec<Vec<Value>> = redis.ask(&["SLOWLOG", "GET", "-1"]).await;
    let read = |entry: &Vec<Value>| -> Option<(u64, String)> {
        let took: u64 = redis::from_redis_value_ref(&entry[2]).ok()?;
        let words: Vec<String> = redis::from_redis_value_ref(&entry[3]).ok()?;
        Some((took, words.into_iter().take(3).collect::<Vec<_>>().join(" ")))
    };
    // What the test itself does is none of Samovar's.
    let ours = |(_, words): &(u64, String)| !words.starts_with("KEYS") && !words.starts_with("ZADD");
    let mut slow: Vec<(u64, String)> = log.iter().filter_map(read).filter(ours).collect();
    slow.sort();
    slow.reverse();
    slow
}

async fn watch(redis: &TestRedis) {
    redis.ask::<()>(&["CONFIG", "SET", "slowlog-log-slower-than", "2000"]).await;
    redis.ask::<()>(&["CONFIG", "SET", "slowlog-max-len", "1000"]).await;
    redis.ask::<()>(&["SLOWLOG", "RESET"]).await;
}

async fn redis_is_responsive(redis: &TestRedis, worker: &WorkerProcess, what: &str) {
    let slow = slowest(redis).await;
    eprintln!("{what}: slowest {:?}; the worker holds {} MiB", slow.first(), worker.resident() >> 20);
    assert!(slow.first().is_none_or(|(took, _)| *took < SLOWEST), "{what}: {:?}", &slow[..slow.len().min(5)]);
    assert!(worker.resident() < RESIDENT, "{what}: {} bytes in RAM", worker.resident());
}

/// Puts entries on the agenda as an outage leaves them there.
async fn backlog(parts: &Parts, count: usize, at: impl Fn(usize) -> i64) {
    let agenda = parts.keys.agenda(&super::support::job());
    for from in (0..count).step_by(1_000) {
        let mut add = redis::cmd("ZADD");
        add.arg(&agenda);
        for n in from..(from + 1_000).min(count) {
            let due = Due {
                at: at(n),
                state: State::Scheduled,
                trigger: Trigger::Cron,
                urgency: Urgency::Usual,
                look: false,
            };
            add.arg(format!("{:.6}", due.score())).arg(format!("art:{n}"));
        }
        add.exec_async(&mut parts.redis.clone()).await.unwrap();
    }
}

async fn waiting(redis: &TestRedis) -> usize {
    let (seconds, micros): (i64, i64) = redis.ask(&["TIME"]).await;
    let now = (seconds * 1_000 + micros / 1_000 + 1).to_string();
    redis.ask(&["ZCOUNT", "samovar:agenda:{art}", "0", &now]).await
}

/// The oldest go first, what is urgent before all; and what comes due in the same second does no more harm.
#[tokio::test]
async fn a_backlog_is_worked_off_in_order_and_holds_up_nothing_urgent() {
    for (what, spread) in [("a backlog", 1_000_i64), ("retries of one second", 0)] {
        let count = 20_000 * factor();
        let (redis, upstream) = both().await;
        // So slow that there is a backlog still when the urgent ones have been answered.
        upstream.otherwise(|_, _| Reply::json(json!({"version": 1})).after(Duration::from_millis(20)));
        let jobs = Art::of(&upstream).limits("concurrency = 16").folder();
        let parts = Parts::of(&redis).await;
        let now = parts.now().await;
        backlog(&parts, count, |n| now - 1 - spread * i64::try_from(count - n).unwrap()).await;
        watch(&redis).await;
        let worker = talkative(&redis, &jobs).env("SAMOVAR_LOG", "info").env("SAMOVAR_CONCURRENCY", "16").spawn();
        eventually("it has begun", async || waiting(&redis).await < count - 500).await;
        for n in 0..5 {
            let name = format!("urgent {n}");
            let edited = upstream.edit(&format!("/art/{name}"));
            parts.publish(&json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string()).await;
            version(&redis, &name, edited).await;
        }
        let left = waiting(&redis).await;
        assert!(left > count / 4, "{left} of {count} are left: it was no backlog any more");
        redis_is_responsive(&redis, &worker, &format!("{what} of {count}, {left} left")).await;
        if spread > 0 {
            // The first of them went before the last.
            let of = |call: &super::support::Call| call.path().strip_prefix("/art/")?.parse::<usize>().ok();
            let asked: Vec<usize> = upstream.all_requests().iter().filter_map(of).collect();
            let newest = *asked.iter().max().unwrap();
            assert!(newest < asked.len() + 1_000, "{newest} was fetched among the first {}", asked.len());
        }
        assert!(redis.ask::<usize>(&["LLEN", "{samovar:queue}:active"]).await <= 1_000);
    }
}

#[tokio::test]
async fn a_burst_of_invalidations_is_handled_and_holds_up_nobody() {
    let count = 2_000 * factor().min(50);
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({"version": 1})));
    upstream.edit("/art/last");
    let jobs = Art::of(&upstream).list(["last"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LOG", "info").spawn();
    version(&redis, "last", 1).await;
    watch(&redis).await;
    let parts = Parts::of(&redis).await;
    let edited = upstream.edit("/art/last");
    let begun = Instant::now();
    let messages: Vec<String> = (0..count).map(|n| format!("art:{}", n % 500)).chain(["art:last".to_owned()]).collect();
    for some in messages.chunks(1_000) {
        let mut publish = redis::pipe();
        for message in some {
            publish.cmd("PUBLISH").arg("samovar:invalidate").arg(message).ignore();
        }
        publish.exec_async(&mut parts.redis.clone()).await.unwrap();
    }
    version(&redis, "last", edited).await;
    eprintln!("{count} invalidations handled in {:?}", begun.elapsed());
    redis_is_responsive(&redis, &worker, &format!("a burst of {count}")).await;
    assert!(worker.is_running());
    assert!(!worker.log().iter().any(|line| line.contains("nobody was listening")), "it was heard all the while");
}

/// Bytes that Redis gives to Samovar's own keys, and to the queue.
async fn own_memory(redis: &TestRedis) -> u64 {
    let mut bytes = 0;
    for key in redis.keys("*samovar:*").await {
        bytes += redis.ask::<Option<u64>>(&["MEMORY", "USAGE", &key, "SAMPLES", "0"]).await.unwrap_or_default();
    }
    bytes
}

/// The same entries again and again: what Redis holds for Samovar does not grow.
#[tokio::test]
async fn tasks_without_end_leave_nothing_behind() {
    let (entries, rounds) = (500, if factor() == 1 { 2 } else { 20 * factor() });
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, call| Reply::json(json!({"version": call})));
    let names: Vec<String> = (0..entries).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).list(&names).warm("settle = \"0s\"").folder();
    let worker = talkative(&redis, &jobs).env("SAMOVAR_LOG", "info").spawn();
    let parts = Parts::of(&redis).await;
    let mut halves = Vec::new();
    let all_warm = async |least: u64| {
        eventually("all are warm and nothing is under way", async || {
            let warmed = parts.stat("warmed").await + parts.stat("unchanged").await;
            let under_way = redis.ask::<usize>(&["ZCOUNT", "samovar:agenda:{art}", "-inf", "(0"]).await;
            let queued = redis.ask::<usize>(&["HLEN", "{samovar:queue}:data"]).await;
            if warmed >= least && under_way == 0 && queued == 0 { Ok(()) } else { Err((warmed, under_way, queued)) }
        })
        .await;
    };
    all_warm(entries).await;
    for _ in 0..2 {
        for _ in 0..rounds {
            let before = parts.stat("warmed").await;
            parts.next_instant().await;
            parts.invalidate(r#"{"jobs": ["art"]}"#).await;
            all_warm(before + entries).await;
        }
        halves.push(own_memory(&redis).await);
    }
    let each = halves[1] / entries;
    eprintln!("{} tasks' entries: {halves:?} bytes of our own, {each} for each warm entry", parts.stat("warmed").await);
    assert!(halves[1] <= halves[0] + halves[0] / 20 + 2_000, "it grows: {halves:?}");
    assert!(each < 1_000, "{each} bytes for each warm entry");
    assert!(worker.resident() < RESIDENT);
}
