//! Actions: refresh, evict and warm, and how often an invalidation is answered.

use std::time::Duration;

use samovar::agenda::{Due, State};
use samovar::entry::Trigger;
use samovar::protocol::Message;
use samovar::store::Meta;
use serde_json::json;

use super::{TTL, warmed};
use crate::support::{Parts, Reply, at_rest, eventually, publish, samovar, version};

#[tokio::test]
async fn refresh_serves_the_old_value_until_the_new_one_lands() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    publish(&redis, "art:a").await;
    gate.arrived(1).await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1);
    gate.open();
    version(&redis, "a", 2).await;
}

#[tokio::test]
async fn evict_removes_at_once_and_stays_until_the_next_warmup() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "b"]).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(redis.get("art:a").await, None);
    let due = Due::from_score(parts.score("a").await.unwrap());
    assert_eq!((due.trigger, due.state), (Trigger::Recheck, State::Scheduled), "it is only looked at once more");
    // Whatever else is due is warmed, and this is not.
    upstream.edit("/art/b");
    parts.invalidate("art:b").await;
    version(&redis, "b", 2).await;
    at_rest(&redis).await;
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, 1));
}

#[tokio::test]
async fn warm_fetches_what_is_absent_and_nothing_else() {
    let (redis, upstream, _jobs, _worker) = warmed(&["there"]).await;
    upstream.edit("/art/absent");
    upstream.edit("/art/last");
    publish(&redis, r#"{"keys": ["art:there", "art:absent", "foreign:absent"], "action": "warm"}"#).await;
    version(&redis, "absent", 1).await;
    publish(&redis, r#"{"keys": ["art:last", "art:there"], "action": "warm"}"#).await;
    version(&redis, "last", 1).await;
    at_rest(&redis).await;
    assert_eq!(upstream.calls("/art/there"), 1);
    assert_eq!(upstream.all_requests().len(), 3);
}

#[tokio::test]
async fn warm_leaves_alone_what_the_api_wrote_itself() {
    let (redis, upstream, _jobs, _worker) = warmed(&["there"]).await;
    redis.set("art:theirs", r#"{"version": 0}"#, TTL).await;
    upstream.edit("/art/theirs");
    upstream.edit("/art/absent");
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:theirs"], "action": "warm"}"#).await;
    parts.invalidate(r#"{"keys": ["art:absent"], "action": "warm"}"#).await;
    version(&redis, "absent", 1).await;
    at_rest(&redis).await;
    assert_eq!(
        (redis.json("art:theirs").await.unwrap()["version"].clone(), upstream.calls("/art/theirs")),
        (json!(0), 0)
    );
}

#[tokio::test]
async fn an_invalidation_that_is_older_than_the_value_changes_nothing() {
    let (redis, upstream, jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let invalidator = parts.invalidator(&jobs);
    let before = (redis.get("art:a").await, parts.meta("a").await, parts.score("a").await);
    // Rechecks follow if the value was fetched before the last of them.
    let late = parts.meta("a").await.unwrap().validated_at - Duration::from_secs(3_600);
    for action in ["refresh", "evict"] {
        for what in [r#""keys": ["art:a"]"#, r#""patterns": ["art:*"]"#, r#""jobs": ["art"]"#] {
            let message = Message::parse(&format!("{{{what}, \"action\": \"{action}\"}}")).unwrap();
            let handled = invalidator.handle(&message, late).await.unwrap();
            assert_eq!((handled.due, handled.removed, handled.fenced), (0, 0, 0), "{action} {what}");
        }
    }
    let after = (redis.get("art:a").await, parts.meta("a").await, parts.score("a").await);
    assert_eq!((after, upstream.calls("/art/a")), (before, 1));
}

#[tokio::test]
async fn an_invalidation_that_is_handled_twice_is_answered_once() {
    let (redis, upstream, jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    upstream.edit("/art/a");
    let (message, at) = (Message::parse("art:a").unwrap(), parts.now().await);
    parts.next_instant().await;
    let invalidator = parts.invalidator(&jobs);
    assert_eq!(invalidator.handle(&message, at).await.unwrap().due, 1);
    version(&redis, "a", 2).await;
    at_rest(&redis).await;
    for _ in 0..3 {
        let handled = invalidator.handle(&message, at).await.unwrap();
        assert_eq!((handled.due, handled.removed, handled.fenced), (0, 0, 0));
    }
    at_rest(&redis).await;
    assert_eq!(upstream.calls("/art/a"), 2);
}

#[tokio::test]
async fn changes_are_announced_and_what_stays_the_same_is_not() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let mut heard = redis.client().get_async_pubsub().await.unwrap();
    heard.subscribe("samovar:changed").await.unwrap();
    let mut heard = heard.into_on_message();
    let mut next = async || {
        let message = tokio::time::timeout(Duration::from_secs(20), futures_util::StreamExt::next(&mut heard));
        let text: String = message.await.expect("an announcement").unwrap().get_payload().unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:a").await;
    at_rest(&redis).await;
    assert_eq!(parts.stat("unchanged").await, 1);
    upstream.edit("/art/a");
    parts.invalidate("art:a").await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "warmed"}));
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "evicted"}));
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "warmed"}));
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "gone"}));
}

#[tokio::test]
async fn a_failed_fetch_keeps_the_invalidation_open() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    upstream.on("/art/a", Reply::status(500));
    parts.invalidate("art:a").await;
    eventually("the fetch has failed", async || parts.stat("failed").await > 0).await;
    let meta: Meta = parts.meta("a").await.unwrap();
    assert!(meta.invalidated.is_some(), "{meta:?}");
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1);
    upstream.edit("/art/a");
    version(&redis, "a", 2).await;
    assert_eq!(parts.meta("a").await.unwrap().invalidated, None);
}

#[tokio::test]
async fn a_value_that_is_evicted_meanwhile_counts_as_failed() {
    let (redis, upstream, jobs, _worker) = warmed(&["a"]).await;
    let gate = upstream.gate("/art/a");
    let mut waits = samovar(["warm", "art:a", "--wait"]).redis(&redis).jobs(&jobs).spawn();
    gate.arrived(1).await;
    Parts::of(&redis).await.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    eventually("it is evicted", async || redis.get("art:a").await.is_none()).await;
    gate.open();
    assert_eq!(waits.wait().await.code(), Some(1));
    let said = waits.log().join(" ");
    assert!(said.contains("art:a: it has no value: it was removed meanwhile"), "{said}");
}
