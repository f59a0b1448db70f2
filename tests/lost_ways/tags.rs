//! Tags: of values that outlive their TTL, and of generated values.

use std::time::Duration;

use samovar::agenda::When;
use samovar::entry::{JobName, Trigger};
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use samovar::store::{LastAttempt, Removal};
use serde_json::json;

use super::{AI, HOUR, LONG, commit, extended, known, looked_at, story, story_is, tagged_stories, with_story};
use crate::support::{Art, Parts, Reply, art, both, eventually, worker};

/// An entry whose tags were put for as short a life as its job gave it then; by now it gives a longer one.
async fn tagged_for_a_short_life(parts: &Parts) -> RedisTime {
    let lease = parts.lease("a", LONG).await;
    let tags = vec!["t".to_owned()];
    parts.store.tag(&art("a"), &tags, Duration::from_millis(1)).await.unwrap();
    let last_attempt = LastAttempt { tags, ..LastAttempt::default() };
    parts.store.commit(&art("a"), &lease, "1", LONG, &last_attempt).await.unwrap();
    parts.next_instant().await;
    parts.next_instant().await;
    parts.store.sweep_tags().await.unwrap();
    assert_eq!(parts.store.tagged("t", 0).await.unwrap().1, []);
    lease.fetched_at
}

#[tokio::test]
async fn a_tag_finds_what_outlives_the_life_that_it_was_put_there_for() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let jobs = Art::of(&upstream).top("tags = [\"t\"]").folder();
    tagged_for_a_short_life(&parts).await;
    let lives = parts.store.extend_stale(&art("a"), HOUR, HOUR).await.unwrap().expect("there is an old value");
    assert!(lives.expires > lives.ends);
    parts.next_instant().await;
    let message = Message::parse(r#"{"tags": ["t"]}"#).unwrap();
    parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
    let meta = parts.meta("a").await.unwrap();
    assert!(meta.invalidated.is_some() && meta.stale_for.is_zero(), "{meta:?}");
}

#[tokio::test]
async fn what_a_tag_did_not_find_any_more_does_not_outlive_its_ttl() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let jobs = Art::of(&upstream).top("tags = [\"t\"]").folder();
    let start = tagged_for_a_short_life(&parts).await;
    let at = parts.now().await;
    assert!(at > start);
    parts.invalidator(&jobs).handle(&Message::parse(r#"{"tags": ["t"]}"#).unwrap(), at).await.unwrap();
    assert_eq!(parts.store.extend_stale(&art("a"), HOUR, HOUR).await.unwrap(), None);
    assert_eq!(parts.meta("a").await.unwrap().invalidated, Some(at));
}

/// The tag is stamped, and its entries are not read yet, when the story is inspected.
#[tokio::test]
async fn a_tags_invalidation_older_than_a_recheck_generates_again() {
    let (redis, upstream, _jobs, _worker) = with_story("\"told\"").await;
    let parts = Parts::of(&redis).await;
    let at = looked_at(&parts).await;
    assert_eq!(upstream.calls(AI), 1);
    parts.store.stamp("told", at, Removal::Evict).await.unwrap();
    looked_at(&parts).await;
    assert_eq!(upstream.calls(AI), 2);
    // The same of what is only kept for longer.
    let last_attempt = LastAttempt { tags: vec!["told".to_owned()], ..LastAttempt::default() };
    commit(&parts, &art("a"), &json!("told")).await;
    let at = extended(&parts, &art("a"), &last_attempt).await;
    parts.store.stamp("told", at, Removal::Refresh).await.unwrap();
    assert_eq!(parts.store.extend_stale(&art("a"), HOUR * 2, HOUR * 2).await.unwrap(), None);
    assert_eq!(parts.meta("a").await.unwrap().invalidated, Some(at));
}

/// An AI value is not generated again for that.
#[tokio::test]
async fn tags_that_a_job_or_an_input_gains_reach_what_ai_made_before() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one", "artist": "Frida"})));
    let parts = Parts::of(&redis).await;
    let jobs = tagged_stories(&upstream, "\"old\"");
    let mut first = worker(&redis, &jobs);
    story_is(&redis, "one").await;
    first.kill9();
    first.wait().await;
    let jobs = tagged_stories(&upstream, r#""by:{{ artwork.artist }}", "of:{{ value }}""#);
    let _second = worker(&redis, &jobs);
    let tags_are = async |tags: &[&str]| {
        eventually("the story has its tags", async || {
            let found = known(&parts, &story()).await.unwrap().last_attempt.tags;
            if found == tags { Ok(()) } else { Err(found) }
        })
        .await;
    };
    looked_at(&parts).await;
    tags_are(&["by:Frida", "of:one"]).await;
    eventually("it has left its old tag", async || redis.keys("samovar:tag:*:old").await.is_empty()).await;
    // Of the title, which alone is in the prompt, nothing changes.
    upstream.on("/art/a", Reply::json(json!({"title": "one", "artist": "Diego"})));
    parts.invalidate("art:a").await;
    tags_are(&["by:Diego", "of:one"]).await;
    assert_eq!(upstream.calls(AI), 1);
    parts.invalidate(r#"{"tags": ["by:Frida"]}"#).await;
    parts.invalidate(r#"{"tags": ["by:Diego"]}"#).await;
    upstream.called(AI, 2).await;
}

#[tokio::test]
async fn a_new_tag_that_fails_costs_neither_the_value_nor_a_call() {
    let (redis, upstream, _jobs, mut first) = with_story("").await;
    let parts = Parts::of(&redis).await;
    first.kill9();
    first.wait().await;
    let jobs = tagged_stories(&upstream, r#""by:{{ artwork.artist }}""#);
    let _second = worker(&redis, &jobs);
    parts.next_instant().await;
    parts.agenda.put(&JobName::new("story"), &[story()], When::Urgent, Trigger::Invalidation).await.unwrap();
    eventually("it says why", async || match known(&parts, &story()).await.unwrap().last_attempt.reason {
        Some(reason) if reason.contains("the tag `by:") => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!((redis.json("story:a").await, upstream.calls(AI)), (Some(json!("one")), 1));
}
