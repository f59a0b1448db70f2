//! Messages on the channel and in the inbox.

use std::time::Instant;

use super::{TTL, warmed};
use crate::support::{
    Art, Parts, TestRedis, Upstream, eventually, give_to_a_dead_reader, hasty_worker, publish, talkative, version,
    worker,
};

const CHANNEL: &str = "samovar:invalidate";

#[tokio::test]
async fn malformed_messages_are_survived_and_told() {
    let (redis, upstream, _jobs, mut worker) = warmed(&["a"]).await;
    for bad in [
        "",
        "{}",
        r#"{"keys": 7}"#,
        r#"{"keys": ["art:a"], "action": "explode"}"#,
        r#"{"patterns": ["*"], "action": "warm"}"#,
    ] {
        publish(&redis, bad).await;
        redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", bad]).await;
    }
    let binary = redis::cmd("PUBLISH").arg(CHANNEL).arg(&b"\xff\xfe{"[..]).to_owned();
    binary.exec_async(&mut redis.connection().await).await.unwrap();
    redis.ask::<String>(&["XADD", "samovar:inbox", "*", "other", "field"]).await;
    for (name, value) in
        [(&b"\xff\xfe"[..], &b"art:a"[..]), (b"message", b"\xff"), (b"gap", b"\xff"), (b"\xff", b"\xff")]
    {
        let mut add = redis::cmd("XADD");
        add.arg("samovar:inbox").arg("*").arg(name).arg(value);
        add.exec_async(&mut redis.connection().await).await.unwrap();
    }
    let long = "x".repeat((1 << 20) + 1);
    publish(&redis, &long).await;
    Parts::of(&redis).await.inbox_is_empty().await;
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    worker.wait_for_log(&["cannot follow a message", "it is empty"]).await;
    for broken in [r#"{"keys": ["team:4401""#, "{'keys': ['team:4401']}", r#"["team:4401"]"#, "\"team:4401\""] {
        publish(&redis, broken).await;
        redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", broken]).await;
    }
    publish(&redis, &format!("team:\u{1b}{}", "x".repeat(500))).await;
    Parts::of(&redis).await.inbox_is_empty().await;
    worker.wait_for_log(&["cannot follow a message", "no job has such a key", "team:4401"]).await;
    let told = worker.wait_for_log(&["foreign=1", "belong to no job"]).await;
    assert!(told.contains(r#"first="team:\u{1b}xxx"#) && told.len() < 400, "{told}");
    for what in ["on the invalidation channel,", "in the inbox,", "on the invalidation channel or in the inbox,"] {
        let told = |line: &&String| line.contains(&format!("cannot follow a message {what}"));
        let told = worker.log().iter().filter(told).count();
        assert_eq!(told, 1, "once a minute at most");
    }
    assert!(worker.log().iter().all(|line| line.len() < 2_000), "excerpts are bounded");
}

#[tokio::test]
async fn a_message_published_without_workers_waits_for_one() {
    let (redis, upstream, jobs, mut first) = warmed(&["a"]).await;
    first.kill9();
    upstream.edit("/art/a");
    let parts = Parts::of(&redis).await;
    parts.publish("art:a").await;
    let _second = worker(&redis, &jobs);
    version(&redis, "a", 2).await;
    parts.inbox_is_empty().await;
}

#[tokio::test]
async fn a_message_published_before_the_first_worker_is_handled() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    redis.set("art:old", "0", TTL).await;
    let parts = Parts::of(&redis).await;
    parts.publish(r#"{"keys": ["art:old"], "action": "evict"}"#).await;
    let jobs = Art::of(&upstream).folder();
    let _worker = worker(&redis, &jobs);
    eventually("it is evicted", async || redis.get("art:old").await.is_none()).await;
}

#[tokio::test]
async fn a_message_that_a_crashed_worker_held_is_taken_over() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    upstream.edit("/art/a");
    give_to_a_dead_reader(&redis, "art:a").await;
    let parts = Parts::of(&redis).await;
    version(&redis, "a", 2).await;
    parts.inbox_is_empty().await;
    let pending: redis::Value = redis.ask(&["XPENDING", "samovar:inbox", "samovar", "-", "+", "10"]).await;
    assert_eq!(pending, redis::Value::Array(vec![]));
}

#[tokio::test]
async fn an_inbox_that_was_deleted_is_made_anew() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    redis.ask::<u64>(&["DEL", "samovar:inbox"]).await;
    upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    version(&redis, "a", 2).await;
}

/// Each of them would be read, one after the other, by every worker that starts.
#[tokio::test]
async fn messages_of_any_size_in_the_inbox_are_dropped_unread() {
    let (redis, upstream, _jobs, mut worker) = warmed(&["a"]).await;
    let before = worker.resident();
    let huge = vec![b'x'; 16 << 20];
    let mut add = redis::pipe();
    // At once, so that all but the first are there when it looks.
    add.atomic();
    for _ in 0..16 {
        add.cmd("XADD").arg("samovar:inbox").arg("*").arg("message").arg(&huge).ignore();
    }
    add.exec_async(&mut redis.connection().await).await.unwrap();
    upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    version(&redis, "a", 2).await;
    worker.wait_for_log(&["cannot follow a message in the inbox", "longer than 1048576"]).await;
    let grown = worker.most_resident().saturating_sub(before);
    assert!(grown < 100 << 20, "it held {} MiB more", grown >> 20);
}

#[tokio::test]
async fn signals_of_strangers_are_not_kept() {
    let (redis, upstream, _jobs, worker) = warmed(&["a"]).await;
    let before = worker.resident();
    let mut connection = redis.connection().await;
    for round in 0..50 {
        let mut flood = redis::pipe();
        for n in 0..1_000 {
            let stranger = format!("due {round}-{n}-{}", "x".repeat(4_000));
            flood.cmd("PUBLISH").arg("samovar:signal").arg(stranger).ignore();
        }
        flood.exec_async(&mut connection).await.unwrap();
        // Redis disconnects a subscriber that is too far behind.
        eventually("all is on its way", async || {
            redis.ask::<String>(&["CLIENT", "LIST", "TYPE", "pubsub"]).await.contains(" omem=0 ")
        })
        .await;
    }
    // It is heard after all of them.
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    eventually("what it held meanwhile is free again", async || {
        let grown = worker.resident().saturating_sub(before);
        if grown < 80 << 20 { Ok(()) } else { Err(grown >> 20) }
    })
    .await;
}

/// All that it was given has been in its hands for an hour; the claim time of the worker is long.
#[tokio::test]
async fn a_backlog_of_a_dead_worker_is_taken_over_to_its_end() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let mut connection = redis.connection().await;
    let mut add = redis::pipe();
    for n in 0..5_000 {
        add.cmd("XADD").arg("samovar:inbox").arg("*").arg("message").arg(format!("other:{n}"));
    }
    let ids: Vec<String> = add.query_async(&mut connection).await.unwrap();
    let mut given = redis::pipe();
    given
        .cmd("XREADGROUP")
        .arg(&["GROUP", "samovar", "dead", "COUNT", "5000", "STREAMS", "samovar:inbox", ">"])
        .ignore();
    given.cmd("XCLAIM").arg(&["samovar:inbox", "samovar", "dead", "0"]).arg(&ids).arg(&["IDLE", "3600000", "JUSTID"]);
    given.exec_async(&mut connection).await.unwrap();
    let jobs = Art::of(&upstream).folder();
    let _worker = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "10m").spawn();
    parts.inbox_is_empty().await;
}

#[tokio::test]
async fn an_empty_inbox_is_looked_through_once_a_claim_time() {
    let (redis, _upstream, jobs, mut first) = warmed(&["a"]).await;
    first.kill9();
    let begun = Instant::now();
    redis.ask::<()>(&["CONFIG", "RESETSTAT"]).await;
    let _hasty = hasty_worker(&redis, &jobs);
    let calls = eventually("the inbox is looked through a few times", async || {
        let stats: String = redis.ask(&["INFO", "commandstats"]).await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_xautoclaim:calls="))?;
        let calls: u64 = calls.split(',').next()?.parse().ok()?;
        (calls >= 4).then_some(calls)
    })
    .await;
    assert!(calls <= begun.elapsed().as_secs() + 2, "at the start, and then every second: {calls}");
}
