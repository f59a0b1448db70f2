//! Fences: no fetch that began before an invalidation writes after it.

use std::time::Duration;

use samovar::agenda::{Due, State, When};
use samovar::entry::Trigger;
use samovar::protocol::Message;
use samovar::store::{Fresh, LastAttempt, Lease, Leased, Removal, Written};

use super::{LONG, TTL, warmed};
use crate::support::{
    Art, Parts, TestRedis, Upstream, WorkerProcess, art, at_rest, eventually, job, listening, publish, version, worker,
};

#[tokio::test]
async fn late_writer_is_fenced_out() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let gate = upstream.gate("/art/a");
    assert_eq!(upstream.edit("/art/a"), 2);
    publish(&redis, "art:a").await;
    gate.arrived(1).await;
    // The answer at the gate is that of version 2, and an old one from here on.
    assert_eq!(upstream.edit("/art/a"), 3);
    parts.invalidate("art:a").await;
    gate.let_one_out();
    gate.arrived(2).await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1, "a refresh serves the old value meanwhile");
    gate.open();
    version(&redis, "a", 3).await;
    assert_eq!((upstream.most_in_flight("/art/a"), upstream.calls("/art/a")), (1, 3));
}

#[tokio::test]
async fn late_304_is_fenced_out() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let gate = upstream.gate("/art/a");
    publish(&redis, "art:a").await;
    gate.arrived(1).await;
    // The answer at the gate says that version 1 still holds.
    assert_eq!(upstream.edit("/art/a"), 2);
    parts.invalidate("art:a").await;
    let expires: i64 = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    gate.let_one_out();
    gate.arrived(2).await;
    assert_eq!(redis.ask::<i64>(&["PEXPIRETIME", "art:a"]).await, expires, "nothing was extended");
    gate.open();
    version(&redis, "a", 2).await;
}

/// Nothing is readable before, so that whatever the late writer wrote would show.
#[tokio::test]
async fn late_writer_of_a_key_that_is_being_born_is_fenced_out() {
    for message in ["art:new", r#"{"patterns": ["art:n*"]}"#, r#"{"jobs": ["art"]}"#, r#"{"keys": ["art:new"]}"#] {
        let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
        upstream.edit("/art/new");
        let gate = upstream.gate("/art/new");
        let jobs = Art::of(&upstream).list(["new"]).folder();
        let _worker = worker(&redis, &jobs);
        gate.arrived(1).await;
        upstream.edit("/art/new");
        Parts::of(&redis).await.invalidate(message).await;
        gate.let_one_out();
        gate.arrived(2).await;
        assert_eq!(redis.get("art:new").await, None, "{message}");
        gate.open();
        version(&redis, "new", 2).await;
    }
}

#[tokio::test]
async fn a_fetch_in_flight_does_not_resurrect_what_was_evicted() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let gate = upstream.gate("/art/a");
    parts.invalidate("art:a").await;
    gate.arrived(1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(redis.get("art:a").await, None);
    gate.open();
    eventually("the fetch has ended", async || parts.stat("fenced").await == 1).await;
    at_rest(&redis).await;
    let due = Due::from_score(parts.score("a").await.unwrap());
    assert_eq!(due.trigger, Trigger::Recheck, "nothing but its recheck is due");
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, 2));
}

/// Without rechecks, which would put it back.
#[tokio::test]
async fn a_refresh_after_an_eviction_puts_the_entry_back() {
    let redis = TestRedis::start().await;
    let (upstream, parts) = (Upstream::start().await, Parts::of(&redis).await);
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = []").folder();
    let invalidator = parts.invalidator(&jobs);
    parts.agenda.put(&job(), &[art("a")], When::NOW, Trigger::Cron).await.unwrap();
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries;
    parts.agenda.take(&job(), &claimed, LONG, None).await.unwrap();
    let lease = parts.lease("a", LONG).await;
    for _ in 0..2 {
        for message in [r#"{"keys": ["art:a"], "action": "evict"}"#, "art:a"] {
            parts.next_instant().await;
            invalidator.handle(&Message::parse(message).unwrap(), parts.now().await).await.unwrap();
        }
    }
    let due = parts.score("a").await.map(Due::from_score);
    assert_eq!(due.map(|due| (due.state, due.trigger)), Some((State::Urgent, Trigger::Invalidation)));
    let written = parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    assert!(matches!(written, Written::Again(_)), "the fetch under way is begun anew: {written:?}");
}

#[tokio::test]
async fn a_fetch_that_began_after_the_invalidation_is_left_alone() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let late = parts.now().await;
    parts.next_instant().await;
    let lease = parts.lease("a", LONG).await;
    for removal in [Removal::Refresh, Removal::Evict] {
        assert!(!parts.store.invalidate(&art("a"), late, removal).await.unwrap().fenced);
    }
    let written = parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    assert!(matches!(written, Written::Done { changed: true, .. }), "{written:?}");
}

#[tokio::test]
async fn an_invalidation_between_take_and_lease_leaves_the_entry_due() {
    let redis = TestRedis::start().await;
    let (upstream, parts) = (Upstream::start().await, Parts::of(&redis).await);
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    parts.agenda.put(&job(), &[art("a")], When::NOW, Trigger::Cron).await.unwrap();
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries;
    let held = parts.agenda.take(&job(), &claimed, LONG, None).await.unwrap().remove(0).unwrap();
    parts.next_instant().await;
    let message = Message::parse("art:a").unwrap();
    parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
    let next = samovar::agenda::Next::At(parts.now().await + Duration::from_millis(60_000));
    let finished = samovar::agenda::Finished { key: "art:a".into(), score: held, next, outcome: None };
    parts.agenda.finish(&job(), &[finished], "").await.unwrap();
    let due = Due::from_score(parts.score("a").await.unwrap());
    assert_eq!((due.state, due.trigger), (State::Urgent, Trigger::Invalidation));
    // And the value counts as fresh to nobody, until it was fetched anew.
    for fresh in [Fresh::ours(), Fresh { any: true, ..Fresh::default() }] {
        let leased = parts.store.lease(&art("a"), Duration::from_millis(1), fresh).await.unwrap();
        assert!(matches!(leased, Leased::Yes(_)), "{leased:?}");
        eventually("the lease is over", async || redis.keys("samovar:lease:*").await.is_empty()).await;
    }
}

#[tokio::test]
async fn a_lease_that_ran_out_cannot_commit() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let late = parts.lease("a", Duration::from_millis(20)).await;
    eventually("the lease is over", async || redis.keys("samovar:lease:*").await.is_empty()).await;
    let (key, last_attempt) = (art("a"), LastAttempt::default());
    assert_eq!(parts.store.commit(&key, &late, "1", TTL, &last_attempt).await.unwrap(), Written::Lost);
    let present = parts.lease("a", LONG).await;
    assert_eq!(parts.store.commit(&key, &late, "1", TTL, &last_attempt).await.unwrap(), Written::Lost);
    assert_eq!(parts.store.gone(&key, &late, &last_attempt).await.unwrap(), Written::Lost);
    assert_eq!(parts.store.extend(&key, &late, TTL, &last_attempt).await.unwrap(), Written::Lost);
    assert_eq!(parts.store.release(&key, &late.token, Some(&last_attempt)).await.unwrap(), None);
    assert_eq!(redis.get("art:a").await, None);
    let written = parts.store.commit(&key, &present, "2", TTL, &last_attempt).await.unwrap();
    assert!(matches!(written, Written::Done { changed: true, .. }), "the present lease is unharmed: {written:?}");
}

#[tokio::test]
async fn an_entry_is_leased_once_at_a_time() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    let other = parts.store.lease(&art("a"), LONG, Fresh::default()).await.unwrap();
    assert!(matches!(other, Leased::Busy(left) if left > Duration::from_secs(50)), "{other:?}");
    parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    parts.lease("a", LONG).await;
}

#[tokio::test]
async fn a_fenced_commit_keeps_the_lease_and_begins_anew() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (key, last_attempt) = (art("a"), LastAttempt::default());
    let lease = parts.lease("a", LONG).await;
    assert!(parts.store.invalidate(&key, parts.now().await, Removal::Refresh).await.unwrap().fenced);
    let written = parts.store.commit(&key, &lease, "1", TTL, &last_attempt).await.unwrap();
    assert!(matches!(written, Written::Again(start) if start >= lease.fetched_at), "{written:?}");
    assert_eq!(redis.get("art:a").await, None);
    let other = parts.store.lease(&key, LONG, Fresh::default()).await.unwrap();
    assert!(matches!(other, Leased::Busy(_)), "nobody gets in between: {other:?}");
    let Written::Again(start) = written else { unreachable!() };
    let renewed = Lease { fetched_at: start, ..lease };
    let written = parts.store.commit(&key, &renewed, "2", TTL, &last_attempt).await.unwrap();
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
    assert_eq!(redis.get("art:a").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn no_second_message_lifts_the_fence_of_the_first() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (key, last_attempt) = (art("a"), LastAttempt::default());
    for (first, second) in [(Removal::Evict, Removal::Refresh), (Removal::Refresh, Removal::Evict)] {
        let lease = parts.lease("a", LONG).await;
        let at = parts.now().await.max(lease.fetched_at);
        assert!(parts.store.invalidate(&key, at, first).await.unwrap().fenced);
        assert!(
            !parts.store.invalidate(&key, lease.fetched_at - Duration::from_millis(1), second).await.unwrap().fenced
        );
        assert!(parts.store.invalidate(&key, at, second).await.unwrap().fenced);
        let written = parts.store.commit(&key, &lease, "1", TTL, &last_attempt).await.unwrap();
        assert!(matches!(written, Written::Again(_) | Written::Evicted), "{written:?}");
        assert_eq!(redis.get("art:a").await, None);
        parts.store.release(&key, &lease.token, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_redis_that_is_full_still_evicts_and_fences() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    let lease = parts.lease("a", LONG).await;
    parts.next_instant().await;
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let handled = parts.store.invalidate(&art("a"), parts.now().await, Removal::Evict).await.unwrap();
    assert!(handled.fenced && handled.removed);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let written = parts.store.commit(&art("a"), &lease, "2", TTL, &LastAttempt::default()).await.unwrap();
    assert_eq!((written, redis.get("art:a").await), (Written::Evicted, None));
}

/// All of them hear it, and one may make the entry due again while another fetches it already.
#[tokio::test]
async fn after_four_workers_hear_it_no_entry_waits_for_a_lease_to_end() {
    let (redis, upstream, jobs, _worker) = warmed(&["a"]).await;
    let _more: Vec<WorkerProcess> = (0..3).map(|_| worker(&redis, &jobs)).collect();
    listening(&redis, 4).await;
    for _ in 0..20 {
        let edited = upstream.edit("/art/a");
        publish(&redis, "art:a").await;
        version(&redis, "a", edited).await;
        at_rest(&redis).await;
    }
    let parts = Parts::of(&redis).await;
    eventually("it waits for its recheck", async || {
        parts.score("a").await.map(|score| Due::from_score(score).trigger) == Some(Trigger::Recheck)
    })
    .await;
    assert_eq!(upstream.most_in_flight("/art/a"), 1);
}

/// Step by step: while the holder of the lease fetches, the entry is made due, claimed and taken by another worker.
#[tokio::test]
async fn a_worker_that_finds_a_fetch_handles_what_the_fetch_leaves() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let lease = parts.lease("a", LONG).await;
    let _worker = worker(&redis, &jobs);
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    eventually("the worker has found it busy", async || parts.stat("busy").await > 0).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    // The lease would have held for longer than this test waits.
    at_rest(&redis).await;
    assert_eq!((redis.get("art:a").await.as_deref(), upstream.calls("/art/a")), (Some("1"), 0));
}
