//! Values kept without a request: they are as old as they were.

use samovar::entry::JobName;
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use samovar::store::{Gap, LastAttempt, Meta, Removal, Written};
use serde_json::json;

use super::{AI, HOUR, LONG, commit, extended, known, looked_at, stories, story, with_story};
use crate::support::{Parts, TestRedis, art, both};

/// The invalidation is older than the lease, and is handled only while the lease holds.
#[tokio::test]
async fn an_invalidation_handled_late_is_not_answered_without_a_fetch() {
    let redis = TestRedis::start().await;
    let (parts, last_attempt) = (Parts::of(&redis).await, LastAttempt::default());
    commit(&parts, &art("a"), &json!("told")).await;
    parts.next_instant().await;
    let at = parts.now().await;
    parts.next_instant().await;
    let lease = parts.lease("a", LONG).await;
    let handled = parts.store.invalidate(&art("a"), at, Removal::Refresh).await.unwrap();
    assert!(!handled.fenced && !handled.due, "{handled:?}");
    assert_eq!(parts.store.extend_unasked(&art("a"), &lease, HOUR, &last_attempt).await.unwrap(), Written::Foreign);
    assert!(parts.meta("a").await.unwrap().invalidated.is_some());
    // A request to the source came after the invalidation.
    let written = parts.store.extend(&art("a"), &lease, HOUR, &last_attempt).await.unwrap();
    assert!(matches!(written, Written::Done { changed: false, .. }), "{written:?}");
    assert_eq!(parts.meta("a").await.unwrap().invalidated, None);
}

/// The invalidation is older than the extension, and is handled only after it.
#[tokio::test]
async fn what_was_extended_with_nobody_asked_is_as_old_as_it_was() {
    let redis = TestRedis::start().await;
    let (parts, last_attempt) = (Parts::of(&redis).await, LastAttempt::default());
    for removal in [Removal::Refresh, Removal::Evict] {
        commit(&parts, &art("a"), &json!("told")).await;
        let at = extended(&parts, &art("a"), &last_attempt).await;
        let before = parts.meta("a").await.unwrap();
        assert!(before.fetched_at < at && at < before.validated_at, "{before:?}");
        let handled = parts.store.invalidate(&art("a"), at, removal).await.unwrap();
        assert_eq!((handled.due, handled.removed), (removal == Removal::Refresh, removal == Removal::Evict));
        let after = parts.meta("a").await;
        match removal {
            Removal::Refresh => assert_eq!(after, Some(Meta { invalidated: Some(at), ..before })),
            Removal::Evict => {
                let known = after.map(|meta| (meta.validated_at, meta.invalidated));
                assert_eq!(known, Some((RedisTime::ZERO, Some(at))), "only the eviction is known");
                assert_eq!(redis.get("art:a").await, None);
            }
        }
    }
    // A request that was answered 304, or fetched the same content, came after it.
    commit(&parts, &art("a"), &json!("told")).await;
    for fetched in [false, true] {
        let at = extended(&parts, &art("a"), &last_attempt).await;
        let content_since = parts.meta("a").await.unwrap().content_since;
        let lease = parts.lease("a", LONG).await;
        let written = if fetched {
            parts.store.commit(&art("a"), &lease, "\"told\"", HOUR, &last_attempt).await
        } else {
            parts.store.extend(&art("a"), &lease, HOUR, &last_attempt).await
        };
        assert!(matches!(written.unwrap(), Written::Done { changed: false, .. }));
        let handled = parts.store.invalidate(&art("a"), at, Removal::Refresh).await.unwrap();
        let meta = parts.meta("a").await.unwrap();
        assert!(!handled.due, "{handled:?}");
        assert_eq!((meta.invalidated, meta.fetched_at, meta.content_since), (None, lease.fetched_at, content_since));
    }
}

/// As left by a version that did not keep it.
#[tokio::test]
async fn metadata_without_a_content_time_mean_when_the_fetch_began() {
    let redis = TestRedis::start().await;
    let (parts, last_attempt) = (Parts::of(&redis).await, LastAttempt::default());
    commit(&parts, &art("a"), &json!("told")).await;
    let at = extended(&parts, &art("a"), &last_attempt).await;
    let meta = parts.meta("a").await.unwrap();
    let packed = redis.get(&parts.keys.meta(&art("a"))).await.unwrap().replace(&format!("~{}", meta.fetched_at), "");
    redis.set(&parts.keys.meta(&art("a")), &packed, HOUR).await;
    assert!(!parts.store.invalidate(&art("a"), at, Removal::Refresh).await.unwrap().due);
    extended(&parts, &art("a"), &last_attempt).await;
    assert_eq!(parts.meta("a").await.unwrap().fetched_at, meta.validated_at);
    assert!(parts.store.invalidate(&art("a"), meta.validated_at, Removal::Refresh).await.unwrap().due);
}

#[tokio::test]
async fn an_invalidation_older_than_a_recheck_still_generates_again() {
    let (redis, upstream, jobs, _worker) = with_story("").await;
    let parts = Parts::of(&redis).await;
    let at = looked_at(&parts).await;
    assert_eq!(upstream.calls(AI), 1);
    parts.invalidator(&jobs).handle(&Message::parse("story:a").unwrap(), at).await.unwrap();
    upstream.called(AI, 2).await;
}

#[tokio::test]
async fn what_was_lost_is_made_good_for_what_was_only_looked_at_since() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, stories(&upstream));
    redis.ask::<usize>(&["HSET", &parts.keys.digests(), "story", "x", "art", "x"]).await;
    commit(&parts, &story(), &json!("one")).await;
    let at = extended(&parts, &story(), &LastAttempt::default()).await;
    let revalidator = parts.revalidator(&jobs);
    let due =
        async || redis.ask::<Option<f64>>(&["ZSCORE", &parts.keys.agenda(&JobName::new("story")), "story:a"]).await;
    // To be looked at is all that would be done.
    parts.store.note_gap(at, Gap::Missed).await.unwrap();
    revalidator.revalidate().await.unwrap();
    assert_eq!((known(&parts, &story()).await.unwrap().invalidated, due().await), (None, None));
    parts.store.note_gap(at, Gap::Lost).await.unwrap();
    revalidator.revalidate().await.unwrap();
    assert_eq!(known(&parts, &story()).await.unwrap().invalidated, Some(at));
    assert!(due().await.is_some());
}
