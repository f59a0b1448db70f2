//! Messages: none is lost with a connection or a reader, and a late one changes nothing.

use std::sync::Arc;
use std::time::Duration;

use samovar::redis::LoopHealth;
use samovar::telemetry::Telemetry;
use samovar::trigger::{Complaints, Inbox, Pipeline, Watermark};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::LONG;
use crate::support::{Art, JobsFolder, Parts, TestRedis, both, eventually, hasty_worker, version, worker};

#[tokio::test]
async fn no_message_in_the_inbox_is_lost_with_cut_connections() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let parts = Parts::of(&redis).await;
    for round in 0..15 {
        let edited = upstream.edit("/art/a");
        // The publisher is disconnected only after Redis has confirmed the message.
        let add = ["XADD", "samovar:inbox", "*", "message", "art:a"];
        redis.ask::<String>(&add).await;
        redis.ask::<u64>(&["CLIENT", "KILL", "TYPE", if round % 2 == 0 { "normal" } else { "pubsub" }]).await;
        version(&redis, "a", edited).await;
    }
    eventually("nothing is in anybody's hands", async || {
        let pending: redis::RedisResult<redis::streams::StreamPendingReply> =
            redis::cmd("XPENDING").arg(parts.keys.inbox()).arg("samovar").query_async(&mut parts.redis.clone()).await;
        pending.is_ok_and(|pending| pending.count() == 0)
    })
    .await;
}

/// Starts a reader of the inbox, and what handles its messages, until `stop`.
async fn reader(
    redis: &TestRedis,
    jobs: &JobsFolder,
    name: &str,
    claim: Duration,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let parts = Parts::of(redis).await;
    let (pipeline, pipeline_loop) = Pipeline::new(parts.invalidator(jobs), Telemetry::default());
    let inbox = Inbox {
        redis: redis.redis_url().manager(Duration::from_secs(10)).await.unwrap(),
        control: parts.redis.clone(),
        keys: parts.keys.clone(),
        pipeline,
        store: parts.store.clone(),
        watermark: Watermark::of(&Arc::from(name)),
        telemetry: Telemetry::default(),
        worker: Arc::from(name),
        claim,
        complaints: Complaints::of("a message in the inbox"),
        loop_health: LoopHealth::default(),
    };
    let (mut reader, stop) = (JoinSet::new(), stop.clone());
    reader.spawn(async move { _ = tokio::join!(inbox.run(stop.clone()), pipeline_loop.run(stop)) });
    reader
}

/// The claim time is longer than the test waits.
#[tokio::test]
async fn a_reader_takes_new_messages_and_leaves_those_of_others() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let mut ids = Vec::new();
    for name in ["held", "new"] {
        redis.set(&format!("art:{name}"), "0", LONG).await;
        ids.push(parts.publish(&format!(r#"{{"keys": ["art:{name}"], "action": "evict"}}"#)).await);
    }
    let take = ["XREADGROUP", "GROUP", "samovar", "live", "COUNT", "1", "STREAMS", "samovar:inbox", ">"];
    redis.ask::<redis::Value>(&take).await;
    let stop = CancellationToken::new();
    let mut reader = reader(&redis, &jobs, "another", LONG, &stop).await;
    eventually("a message is handled", async || redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await == 1).await;
    let pending: Vec<(String, String, u64, usize)> =
        redis.ask(&["XPENDING", "samovar:inbox", "samovar", "-", "+", "10"]).await;
    let pending: Vec<_> = pending.into_iter().map(|(id, reader, _, times)| (id, reader, times)).collect();
    assert_eq!(pending, [(ids[0].clone(), "live".to_owned(), 1)]);
    assert_eq!(redis.keys("art:*").await, ["art:held"]);
    stop.cancel();
    reader.join_next().await.unwrap().unwrap();
}

/// Readers leave at the moment when a message is given to them, which evicts a key of its own.
#[tokio::test]
async fn a_reader_that_leaves_the_inbox_takes_no_message_with_it() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let claim = Duration::from_millis(500);
    for round in 0..40 {
        let stop = CancellationToken::new();
        let mut leaving = reader(&redis, &jobs, &format!("reader {round}"), claim, &stop).await;
        eventually("it waits for messages", async || {
            redis.ask::<String>(&["INFO", "clients"]).await.contains("blocked_clients:1")
        })
        .await;
        let mut publish = redis::pipe();
        publish.cmd("SET").arg(format!("art:{round}")).arg("0").cmd("XADD").arg(&["samovar:inbox", "*", "message"]);
        publish.arg(format!("{{\"keys\": [\"art:{round}\"], \"action\": \"evict\"}}"));
        if round % 2 == 0 {
            publish.exec_async(&mut parts.redis.clone()).await.unwrap();
            stop.cancel();
        } else {
            stop.cancel();
            // Somewhere between its steps.
            for _ in 0..round / 2 {
                tokio::task::yield_now().await;
            }
            publish.exec_async(&mut parts.redis.clone()).await.unwrap();
        }
        leaving.join_next().await.unwrap().unwrap();
    }
    let stop = CancellationToken::new();
    let mut last = reader(&redis, &jobs, "the last", claim, &stop).await;
    eventually("all that was published is handled", async || {
        let left = redis.keys("art:*").await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    stop.cancel();
    last.join_next().await.unwrap().unwrap();
}

/// The stream is told to give it an id from then.
#[tokio::test]
async fn a_message_older_than_all_rechecks_changes_nothing() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let parts = Parts::of(&redis).await;
    let (before, late) = (parts.meta("a").await, parts.now().await - Duration::from_secs(700));
    for (n, message) in [
        r#"{"keys": ["art:a"]}"#,
        r#"{"keys": ["art:a"], "action": "evict"}"#,
        r#"{"patterns": ["art:*"], "action": "evict"}"#,
        r#"{"jobs": ["art"], "action": "evict"}"#,
    ]
    .iter()
    .enumerate()
    {
        redis.ask::<String>(&["XADD", "samovar:inbox", &format!("{late}-{n}"), "message", message]).await;
    }
    parts.inbox_is_empty().await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1);
    assert_eq!((parts.meta("a").await, upstream.calls("/art/a")), (before, 1));
}
