//! Between the steps: claim, take, commit, finish, and a fetch that breaks off.

use std::time::Duration;

use samovar::agenda::{Claimed, Due, Finished, Next, State, When};
use samovar::entry::{EntryKey, Trigger};
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use samovar::store::{Fresh, LastAttempt, Leased, Written};
use serde_json::json;

use super::{HOUR, LONG, commit, story, with_story_at_gate};
use crate::support::{Art, Parts, TestRedis, art, both, eventually, job};

async fn claim_and_take(parts: &Parts) -> (Claimed, String) {
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries.remove(0);
    let held = parts.agenda.take(&job(), std::slice::from_ref(&claimed), LONG, None).await.unwrap().remove(0).unwrap();
    (claimed, held)
}

#[tokio::test]
async fn an_invalidation_between_claim_and_take_needs_no_other_claim() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    commit(&parts, &art("a"), &json!(1)).await;
    parts.agenda.put(&job(), &[art("a")], When::NOW, Trigger::Cron).await.unwrap();
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries;
    parts.next_instant().await;
    let at = parts.now().await;
    parts.invalidator(&jobs).handle(&Message::parse("art:a").unwrap(), at).await.unwrap();
    // It goes before what it was claimed with.
    assert_eq!(parts.agenda.take(&job(), &claimed, LONG, None).await.unwrap(), [None]);
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries;
    parts.invalidator(&jobs).handle(&Message::parse("art:a").unwrap(), at).await.unwrap();
    assert!(parts.agenda.take(&job(), &claimed, LONG, None).await.unwrap()[0].is_some(), "the claim holds");
    parts.next_instant().await;
    for fresh in [
        Fresh::ours(),
        Fresh { any: true, ..Fresh::default() },
        Fresh { until: Some(RedisTime::from_millis(1)), ..Fresh::default() },
    ] {
        let Leased::Yes(lease) = parts.store.lease(&art("a"), LONG, fresh).await.unwrap() else {
            panic!("an invalidated value counts as fresh: {fresh:?}");
        };
        assert!(lease.fetched_at > at, "its fetch begins after the invalidation");
        parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    }
}

#[tokio::test]
async fn an_invalidation_between_commit_and_finish_leaves_it_due() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    parts.agenda.put(&job(), &[art("a")], When::NOW, Trigger::Cron).await.unwrap();
    let (claimed, held) = claim_and_take(&parts).await;
    commit(&parts, &art("a"), &json!(1)).await;
    parts.next_instant().await;
    parts.invalidator(&jobs).handle(&Message::parse("art:a").unwrap(), parts.now().await).await.unwrap();
    let next = Next::At(parts.now().await + Duration::from_millis(60_000));
    let finished = Finished { key: claimed.key, score: held, next, outcome: None };
    parts.agenda.finish(&job(), &[finished], "").await.unwrap();
    let due = Due::from_score(parts.score("a").await.unwrap());
    assert_eq!((due.state, due.trigger), (State::Urgent, Trigger::Invalidation));
}

/// An API that misses what was just evicted asks for it, and only then a slow worker comes to the eviction.
#[tokio::test]
async fn a_late_eviction_does_not_undo_what_was_asked_for_since() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let invalidator = parts.invalidator(&jobs);
    let evict = Message::parse(r#"{"keys": ["art:a"], "action": "evict"}"#).unwrap();
    let warm = Message::parse(r#"{"keys": ["art:a"], "action": "warm"}"#).unwrap();
    // While a fetch is under way that began before.
    let lease = parts.lease("a", LONG).await;
    let at = parts.now().await;
    assert_eq!(invalidator.handle(&evict, at).await.unwrap().fenced, 1);
    invalidator.handle(&warm, parts.now().await).await.unwrap();
    invalidator.handle(&evict, at).await.unwrap();
    let due = Due::from_score(parts.score("a").await.expect("it is asked for"));
    assert_eq!((due.state, due.trigger), (State::Urgent, Trigger::Demand));
    claim_and_take(&parts).await;
    invalidator.handle(&evict, at).await.unwrap();
    assert_eq!(Due::from_score(parts.score("a").await.expect("it is in flight")).state, State::Running);
    let written = parts.store.commit(&art("a"), &lease, "1", HOUR, &LastAttempt::default()).await.unwrap();
    assert_eq!(written, Written::Evicted);
}

/// Here the late step is the last one of the same handling.
#[tokio::test]
async fn what_became_urgent_since_an_eviction_stays_on_the_agenda() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let names = ["before", "scheduled", "taken", "claimed", "asked for", "since"];
    let [before, scheduled, taken, claimed, asked_for, since] = names.map(art);
    let put = async |key: &EntryKey, when, trigger| {
        parts.agenda.put(&job(), [key], when, trigger).await.unwrap();
    };
    put(&taken, When::NOW, Trigger::Cron).await;
    claim_and_take(&parts).await;
    for (key, trigger) in [(&claimed, Trigger::Expiry), (&asked_for, Trigger::Demand)] {
        put(key, When::NOW, trigger).await;
    }
    assert_eq!(parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries.len(), 2);
    put(&before, When::Urgent, Trigger::Invalidation).await;
    put(&scheduled, When::Due(parts.now().await + Duration::from_millis(60_000)), Trigger::Expiry).await;
    parts.next_instant().await;
    let at = parts.now().await;
    parts.next_instant().await;
    put(&since, When::Urgent, Trigger::Invalidation).await;
    parts.agenda.cancel(&job(), &names.map(art), at).await.unwrap();
    let mut left: Vec<String> = redis.ask(&["ZRANGE", "samovar:agenda:{art}", "0", "-1"]).await;
    left.sort();
    assert_eq!(left, ["art:asked for", "art:before", "art:since", "art:taken"]);
    // These may hide a refresh since the eviction, which only the metadata tell.
    for name in ["before", "taken"] {
        assert_eq!(
            parts.score(name).await.map(|score| Due::from_score(score).trigger),
            Some(Trigger::Recheck),
            "{name}"
        );
    }
}

/// Its input goes while it is fetched, and a stranger's key stands where the input's agenda should.
#[tokio::test]
async fn a_fetch_that_redis_broke_off_leaves_no_lease() {
    // Its lease holds for longer than this test waits, if nobody gives it back.
    let (redis, _upstream, _jobs, _worker, gate) = with_story_at_gate().await;
    let parts = Parts::of(&redis).await;
    let leased = async || parts.store.leased(&[story()]).await.unwrap()[0];
    assert!(leased().await);
    parts.invalidate("story:a").await;
    redis.ask::<usize>(&["DEL", "art:a", "samovar:agenda:{art}"]).await;
    redis.set("samovar:agenda:{art}", "a stranger's", HOUR).await;
    gate.let_one_out();
    eventually("the lease is given back", async || !leased().await).await;
    assert_eq!(redis.get("story:a").await, None);
}
