//! Writers other than Samovar: an old value that a cache-aside service writes is found and replaced.

use std::time::Duration;

use samovar::agenda::{Due, When};
use samovar::entry::Trigger;
use samovar::store::LastAttempt;
use serde_json::json;

use super::{LONG, TTL};
use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, both, eventually, job, publish, version,
    worker,
};

/// Starts a Redis, an upstream, and a worker that has warmed `art:a` and rechecks it soon after an invalidation.
async fn warm() -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"500ms\"]").folder();
    let worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    (redis, upstream, jobs, worker)
}

/// Runs `before` with the trigger of a warmup and with that of a person. Then a worker fetches `art:a`, and replaces an
/// old value that is written after.
async fn fetched_and_rechecked(before: impl AsyncFn(&TestRedis, &Parts, &JobsFolder, Trigger, When)) {
    for (trigger, when) in [(Trigger::Cron, When::NOW), (Trigger::Manual, When::Urgent)] {
        let (redis, upstream) = both().await;
        upstream.edit("/art/a");
        let jobs = Art::of(&upstream).warm("recheck = [\"2s\"]").folder();
        let parts = Parts::of(&redis).await;
        parts.mark().await;
        before(&redis, &parts, &jobs, trigger, when).await;
        let _worker = worker(&redis, &jobs);
        version(&redis, "a", 1).await;
        redis.set("art:a", r#"{"version": 0}"#, TTL).await;
        version(&redis, "a", 1).await;
    }
}

#[tokio::test]
async fn an_old_value_written_aside_after_a_refresh_is_replaced() {
    let (redis, upstream, _jobs, _worker) = warm().await;
    let edited = upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    version(&redis, "a", edited).await;
    // It had read this before the edit.
    redis.set("art:a", r#"{"version": 1}"#, TTL).await;
    version(&redis, "a", edited).await;
}

#[tokio::test]
async fn an_old_value_written_aside_after_an_eviction_is_replaced() {
    let (redis, upstream, _jobs, _worker) = warm().await;
    let edited = upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    redis.set("art:a", r#"{"version": 1}"#, TTL).await;
    version(&redis, "a", edited).await;
    // Where nothing is written, nothing is fetched.
    let calls = upstream.calls("/art/a");
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    eventually("it was looked at once more", async || parts.score("a").await.is_none()).await;
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, calls));
}

/// A warmup, or a person, comes between the invalidation of an unknown key and its recheck.
#[tokio::test]
async fn a_fetch_in_the_place_of_a_recheck_is_rechecked_itself() {
    fetched_and_rechecked(async |_, parts, jobs, trigger, when| {
        let unknown = samovar::protocol::Message::parse("art:a").unwrap();
        parts.invalidator(jobs).handle(&unknown, parts.now().await).await.unwrap();
        parts.agenda.put(&job(), &[art("a")], when, trigger).await.unwrap();
        assert_eq!(Due::from_score(parts.score("a").await.unwrap()).trigger, trigger);
    })
    .await;
}

/// A warmup, or a person, has claimed what is evicted, and fetches it after.
#[tokio::test]
async fn the_recheck_after_an_eviction_is_not_lost_to_a_claim() {
    fetched_and_rechecked(async |redis, parts, jobs, trigger, when| {
        let lease = parts.lease("a", LONG).await;
        parts.store.commit(&art("a"), &lease, r#"{"version": 0}"#, TTL, &LastAttempt::default()).await.unwrap();
        parts.agenda.put(&job(), &[art("a")], when, trigger).await.unwrap();
        // By a worker that dies.
        parts.agenda.claim(&job(), 1, 1, Duration::from_millis(500)).await.unwrap();
        parts.next_instant().await;
        let evict = samovar::protocol::Message::parse(r#"{"keys": ["art:a"], "action": "evict"}"#).unwrap();
        parts.invalidator(jobs).handle(&evict, parts.now().await).await.unwrap();
        assert_eq!(redis.get("art:a").await, None);
    })
    .await;
}

/// A recheck of an absent value asks for nothing: neither upstreams nor inputs.
#[tokio::test]
async fn looking_once_more_brings_back_nothing_that_was_evicted() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let job = "key = \"story:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"http\"\n\
               upstream = \"museum\"\npath = \"/story/{{ art.version }}\"\n[entries]\nlist = [\"a\"]\n\
               [warm]\nrecheck = [\"300ms\"]\n";
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"300ms\"]").folder().job("story", job);
    let _worker = worker(&redis, &jobs);
    eventually("the story is there", async || redis.get("story:a").await.is_some()).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["story:a", "art:a"], "action": "evict"}"#).await;
    let calls = upstream.all_requests().len();
    eventually("both were looked at once more", async || {
        redis.ask::<usize>(&["ZCARD", "samovar:agenda:{art}"]).await
            + redis.ask::<usize>(&["ZCARD", "samovar:agenda:{story}"]).await
            == 0
    })
    .await;
    assert_eq!((redis.get("story:a").await, redis.get("art:a").await), (None, None));
    assert_eq!(upstream.all_requests().len(), calls);
}

/// An API had read the old row before the edit, and writes it after the invalidation of a key that nobody knew.
#[tokio::test]
async fn an_old_value_written_aside_to_an_unknown_key_is_replaced() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).warm("recheck = [\"2s\"]").folder();
    let _worker = worker(&redis, &jobs);
    let edited = upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    redis.set("art:a", r#"{"version": 1}"#, TTL).await;
    version(&redis, "a", edited).await;
}
