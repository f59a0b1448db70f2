//! Sources that fail: old values that outlive their TTL, and retries in a storm of invalidations.

use std::time::Duration;

use samovar::agenda::Due;
use samovar::redis::RedisTime;
use samovar::store::{LastAttempt, Leased, Removal, Written};

use super::{LONG, TTL, evicted};
use crate::support::{Art, Parts, Reply, art, both, eventually, hasty_worker, publish, samovar, version, worker};

#[tokio::test]
async fn an_old_value_outlives_its_ttl_while_its_source_fails() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs =
        Art::of(&upstream).ttl("2s").list(["a"]).warm("ahead = \"1s\"\nstale_if_error = \"1h\"\nattempts = 2").folder();
    let mut worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let given: RedisTime = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    eventually("its TTL is over", async || parts.now().await > given + Duration::from_millis(500)).await;
    version(&redis, "a", 1).await;
    let meta = parts.meta("a").await.unwrap();
    assert!(!meta.stale_for.is_zero(), "{meta:?}");
    worker.wait_for_log(&["outlives its TTL"]).await;
    let shown = samovar(["get", "art:a"]).redis(&redis).jobs(&jobs).run().await;
    for said in ["kept beyond its TTL, which ended", "or later: it is extended", "as long as `stale_if_error` allows"] {
        assert!(shown.stdout.split_whitespace().collect::<Vec<_>>().join(" ").contains(said), "{said}: {shown:?}");
    }
    eventually("`jobs` counts it", async || {
        let jobs = samovar(["jobs"]).redis(&redis).jobs(&jobs).run().await.stdout;
        if jobs.contains("1 value of art outlives its TTL") { Ok(()) } else { Err(jobs) }
    })
    .await;
    // Given up is only what nobody is served any more.
    assert_eq!(redis.keys("samovar:dead:*").await, Vec::<String>::new());
    upstream.edit("/art/a");
    // By itself it would be tried again in some minutes.
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    assert_eq!(parts.meta("a").await.unwrap().stale_for, Duration::ZERO);
}

#[tokio::test]
async fn an_old_value_that_was_invalidated_does_not_outlive_its_ttl() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).ttl("3s").list(["a"]).warm("ahead = \"1s\"\nstale_if_error = \"1h\"").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    upstream.on("/art/a", Reply::status(500));
    publish(&redis, "art:a").await;
    evicted(&redis, "a").await;
}

#[tokio::test]
async fn an_invalidation_ends_what_outlives_its_ttl() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).ttl("1s").list(["a"]).warm("ahead = \"500ms\"\nstale_if_error = \"1h\"").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let given: RedisTime = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    eventually("its TTL is over", async || parts.now().await > given).await;
    version(&redis, "a", 1).await;
    parts.invalidate("art:a").await;
    assert_eq!(redis.get("art:a").await, None);
}

/// The breaker opens, so nobody even asks.
#[tokio::test]
async fn old_values_outlive_their_ttl_while_the_breaker_is_open() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).ttl("3s").list(&names).warm("ahead = \"1500ms\"\nstale_if_error = \"1h\"").folder();
    let _worker = hasty_worker(&redis, &jobs);
    for name in &names {
        version(&redis, name, 1).await;
    }
    for name in &names {
        upstream.on(&format!("/art/{name}"), Reply::status(500));
    }
    let parts = Parts::of(&redis).await;
    let then = parts.now().await + Duration::from_millis(5_000);
    eventually("their TTLs are over", async || parts.now().await > then).await;
    for name in &names {
        assert!(redis.get(&format!("art:{name}")).await.is_some(), "art:{name}");
    }
    assert!(redis.ask::<Option<String>>(&["HGET", "samovar:limit:{museum}", "open"]).await.is_some());
}

#[tokio::test]
async fn what_outlives_its_ttl_is_fresh_to_nobody() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", Duration::from_secs(1), &LastAttempt::default()).await.unwrap();
    let fresh = samovar::store::Fresh::ours();
    assert!(matches!(parts.store.lease(&art("a"), LONG, fresh).await.unwrap(), Leased::Fresh { .. }));
    let lives = parts.store.extend_stale(&art("a"), LONG, Duration::from_secs(30)).await.unwrap().unwrap();
    assert_eq!(lives.expires.saturating_since(lives.ends), Duration::from_secs(30), "as long as its job allows");
    let again = parts.store.extend_stale(&art("a"), LONG, Duration::from_secs(30)).await.unwrap().unwrap();
    assert_eq!((again.expires, again.ends), (lives.expires, lives.ends));
    assert!(matches!(parts.store.lease(&art("a"), LONG, fresh).await.unwrap(), Leased::Yes(_)));
    // What somebody else wrote is theirs.
    redis.set("art:a", "2", TTL).await;
    assert_eq!(parts.store.extend_stale(&art("a"), LONG, LONG).await.unwrap(), None);
}

/// A fetch of an entry failed just now, or long ago, and is tried again then.
async fn failed(parts: &Parts, name: &str, attempted: RedisTime, retry: RedisTime) {
    let lease = parts.lease(name, LONG).await;
    let written = parts.store.commit(&art(name), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    assert!(matches!(written, Written::Done { .. }));
    parts.next_instant().await;
    assert!(parts.store.invalidate(&art(name), parts.now().await, Removal::Refresh).await.unwrap().due);
    let lease = parts.lease(name, LONG).await;
    let outcome = Some(samovar::entry::Outcome::Failed);
    let last_attempt = LastAttempt { attempted, retry, outcome, failures: 3, ..LastAttempt::default() };
    parts.store.release(&art(name), &lease.token, Some(&last_attempt)).await.unwrap();
}

#[tokio::test]
async fn a_storm_does_not_hit_a_failing_source_with_each_invalidation() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let now = parts.now().await;
    // On a busy machine a second may pass before it is asked.
    eventually("a failure just now holds the next refresh off", async || {
        failed(&parts, "just now", parts.now().await, now + Duration::from_secs(600)).await;
        parts.next_instant().await;
        let handled = parts.store.invalidate(&art("just now"), parts.now().await, Removal::Refresh).await.unwrap();
        handled.debounced.is_some() && !handled.due
    })
    .await;
    // One of the future is of a clock that ran ahead.
    for (name, attempted) in [("before", now - Duration::from_secs(5)), ("after", now + Duration::from_secs(600))] {
        failed(&parts, name, attempted, now + Duration::from_secs(600)).await;
        parts.next_instant().await;
        let handled = parts.store.invalidate(&art(name), parts.now().await, Removal::Refresh).await.unwrap();
        assert!(handled.due && handled.debounced.is_none(), "{name}: {handled:?}");
    }
    // What is still served beyond its TTL is not, once it is invalidated.
    failed(&parts, "unmarked", parts.now().await, RedisTime::ZERO).await;
    let meta = redis.ask::<String>(&["GET", &parts.keys.meta(&art("unmarked"))]).await;
    let mut head: Vec<&str> = meta.splitn(4, ' ').collect();
    head[2] = "0";
    redis.ask::<String>(&["SET", &parts.keys.meta(&art("unmarked")), &head.join(" ")]).await;
    let handled = parts.store.invalidate(&art("unmarked"), parts.now().await, Removal::Refresh).await.unwrap();
    assert!(handled.due && handled.debounced.is_none(), "{handled:?}");
}

#[tokio::test]
async fn a_fetch_for_an_invalidation_uses_no_try_and_moves_no_retry() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::status(500));
    let jobs = Art::of(&upstream).warm("attempts = 4").folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let retry = parts.now().await + Duration::from_millis(600_000);
    failed(&parts, "a", parts.now().await - Duration::from_millis(5_000), retry).await;
    let _worker = worker(&redis, &jobs);
    publish(&redis, "art:a").await;
    upstream.called("/art/a", 1).await;
    at_rest_until(&parts, "a", retry - Duration::from_secs(60)).await;
    let last_attempt = parts.meta("a").await.unwrap().last_attempt;
    assert_eq!((last_attempt.failures, last_attempt.retry), (3, retry));
    assert_eq!(redis.keys("samovar:dead:*").await, Vec::<String>::new());
}

/// Waits until an entry is due no sooner than then.
async fn at_rest_until(parts: &Parts, name: &str, then: RedisTime) {
    eventually("it waits for its retry", async || match parts.score(name).await.map(Due::from_score) {
        Some(due) if due.at >= then => Ok(()),
        other => Err(other),
    })
    .await;
}
