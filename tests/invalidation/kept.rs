//! Absent entries that a job keeps warm: a refresh by job or pattern fetches them, an eviction does not.

use std::time::Duration;

use samovar::protocol::{Handled, Message};
use serde_json::json;

use super::warmed;
use crate::support::{
    Art, Parts, Reply, TestRedis, Upstream, at_rest, both, eventually, publish, readable, samovar, version, worker,
};

/// Evicts entries, and waits until the message is handled.
async fn evicted(parts: &Parts, redis: &TestRedis, names: &[&str]) {
    let keys: Vec<String> = names.iter().map(|name| format!("art:{name}")).collect();
    parts.invalidate(&json!({ "keys": keys, "action": "evict" }).to_string()).await;
    for key in keys {
        assert_eq!(redis.get(&key).await, None);
    }
}

#[tokio::test]
async fn a_refresh_by_job_or_pattern_fetches_listed_absent_entries() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "b", "c"]).await;
    let parts = Parts::of(&redis).await;
    let mut fetches = 1;
    for message in [r#"{"jobs": ["art"]}"#, r#"{"patterns": ["art:*"]}"#, r#"{"patterns": ["*:[ab]", "art:?"]}"#] {
        for is_bare in [true, false] {
            evicted(&parts, &redis, &["a", "c"]).await;
            if is_bare {
                publish(&redis, message).await;
            } else {
                parts.invalidate(message).await;
            }
            fetches += 1;
            for name in ["a", "c"] {
                readable(&redis, name).await;
            }
            at_rest(&redis).await;
            assert_eq!(upstream.calls("/art/c"), fetches, "{message}");
        }
    }
}

#[tokio::test]
async fn what_a_pattern_does_not_match_stays_absent() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "ab", "b"]).await;
    let parts = Parts::of(&redis).await;
    evicted(&parts, &redis, &["a", "ab", "b"]).await;
    parts.invalidate(r#"{"patterns": ["art:a*"]}"#).await;
    for name in ["a", "ab"] {
        readable(&redis, name).await;
    }
    at_rest(&redis).await;
    assert_eq!((redis.get("art:b").await, upstream.calls("/art/b")), (None, 1));
}

#[tokio::test]
async fn an_eviction_by_job_or_pattern_fetches_nothing() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "b"]).await;
    let parts = Parts::of(&redis).await;
    evicted(&parts, &redis, &["a"]).await;
    for message in [r#"{"jobs": ["art"], "action": "evict"}"#, r#"{"patterns": ["art:*"], "action": "evict"}"#] {
        parts.invalidate(message).await;
        at_rest(&redis).await;
    }
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/art/b"), redis.keys("art:*").await), (1, 1, vec![]));
}

/// Entries of the last answer of a feed, and the most read ones.
#[tokio::test]
async fn fed_and_popular_absent_entries_are_refreshed_as_well() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({ "version": 1 })));
    upstream.on("/names", Reply::json(json!({ "names": ["fed", "listed"] })));
    let entries = "popular = 1\nfeed = { upstream = \"museum\", path = \"/names\", select = \"/names\" }";
    let jobs = Art::of(&upstream).list(["listed"]).entries(entries).folder();
    let _worker = worker(&redis, &jobs);
    for name in ["fed", "listed"] {
        readable(&redis, name).await;
    }
    at_rest(&redis).await;
    redis.ask::<u8>(&["ZADD", "samovar:popular:{art}", "1000", "art:read"]).await;
    let parts = Parts::of(&redis).await;
    evicted(&parts, &redis, &["fed", "listed"]).await;
    parts.invalidate(r#"{"jobs": ["art"]}"#).await;
    for name in ["fed", "listed", "read"] {
        readable(&redis, name).await;
    }
    at_rest(&redis).await;
    assert_eq!(["fed", "listed", "read"].map(|name| upstream.calls(&format!("/art/{name}"))), [2, 2, 1]);
}

#[tokio::test]
async fn absent_entries_of_a_long_list_are_counted_once() {
    const LISTED: usize = 1_203;
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let jobs = Art::of(&upstream).list(0..LISTED).folder();
    let parts = Parts::of(&redis).await;
    let invalidator = parts.invalidator(&jobs);
    let _lease = parts.lease("7", Duration::from_secs(60)).await;
    parts.next_instant().await;
    let now = parts.now().await;
    let all = Message::parse(r#"{"jobs": ["art"], "patterns": ["art:*", "*7"]}"#).unwrap();
    let handled = invalidator.handle(&all, now).await.unwrap();
    // The scans of the job and of both patterns find the lease, whose worker fetches again.
    let others = LISTED as u64 - 1;
    assert_eq!(handled, Handled { entries: others + 3, due: others, fenced: 3, ..Handled::default() });
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:agenda:{art}"]).await, others);
    let some = Message::parse(r#"{"patterns": ["art:120?"]}"#).unwrap();
    let handled = invalidator.handle(&some, parts.now().await).await.unwrap();
    assert_eq!(handled.entries, 3, "{handled:?}");
}

#[tokio::test]
async fn a_dry_run_counts_absent_entries_of_a_job_or_pattern() {
    let (redis, _upstream, jobs, _worker) = warmed(&["a", "ab", "b"]).await;
    let parts = Parts::of(&redis).await;
    evicted(&parts, &redis, &["a", "ab"]).await;
    for (args, said) in [
        (&["--job", "art"][..], "3 entries of art: 3 fetches"),
        (&["--pattern", "art:a*"], "2 entries of art: 2 fetches"),
        (&["--pattern", "art:x*"], "It concerns no entry."),
        (&["--job", "art", "--evict"], "1 entry of art: 1 fetch"),
    ] {
        let told = samovar([&["invalidate", "--dry-run"], args].concat()).redis(&redis).jobs(&jobs).run().await;
        assert!(told.stdout.contains(said), "{args:?}: {told:?}");
    }
}

/// An upstream that does not have an entry is asked again: the invalidation may say that it has it now.
#[tokio::test]
async fn an_entry_that_was_gone_is_asked_for_once_more() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "b"]).await;
    let parts = Parts::of(&redis).await;
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    eventually("it is gone", async || redis.get("art:a").await.is_none()).await;
    at_rest(&redis).await;
    upstream.edit("/art/a");
    parts.invalidate(r#"{"jobs": ["art"]}"#).await;
    version(&redis, "a", 2).await;
    assert_eq!(parts.meta("a").await.unwrap().invalidated, None);
}
