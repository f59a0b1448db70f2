//! Inputs: a change of one reaches what is made from it.

use samovar::agenda::{Due, When};
use samovar::entry::{EntryKey, JobName, Trigger};
use samovar::protocol::Message;
use samovar::store::LastAttempt;
use serde_json::json;

use super::{AI, HOUR, LONG, commit, stories, story, story_is, with_story, with_story_at_gate};
use crate::support::{Parts, Reply, TestRedis, art, both, eventually, job, worker};

#[tokio::test]
async fn an_input_that_changes_while_its_dependant_is_made_counts() {
    let (redis, upstream, _jobs, _worker, gate) = with_story_at_gate().await;
    upstream.on("/art/a", Reply::json(json!({"title": "two"})));
    Parts::of(&redis).await.invalidate("art:a").await;
    eventually("the input has changed", async || redis.json("art:a").await == Some(json!({"title": "two"}))).await;
    gate.open();
    story_is(&redis, "two").await;
}

/// The fetch of the input began before its dependant was made, and ended after; then the worker died.
#[tokio::test]
async fn a_value_made_during_the_fetch_of_its_input_follows_it_untold() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, stories(&upstream));
    commit(&parts, &art("a"), &json!({"title": "one"})).await;
    let lease = parts.lease("a", LONG).await;
    parts.next_instant().await;
    commit(&parts, &story(), &json!("one")).await;
    parts.next_instant().await;
    let two = json!({"title": "two"}).to_string();
    parts.store.commit(&art("a"), &lease, &two, HOUR, &LastAttempt::default()).await.unwrap();
    parts.agenda.put(&job(), &[art("a")], When::NOW, Trigger::Expiry).await.unwrap();
    parts.mark().await;
    let _worker = worker(&redis, &jobs);
    story_is(&redis, "two").await;
    assert_eq!(upstream.calls("/art/a"), 0);
}

/// The next who fetches the input finds it unchanged.
#[tokio::test]
async fn a_change_a_dead_worker_kept_is_told_at_the_next_invalidation() {
    let (redis, upstream, jobs, mut first) = with_story("").await;
    first.kill9();
    let parts = Parts::of(&redis).await;
    parts.next_instant().await;
    upstream.on("/art/a", Reply::json(json!({"title": "two"})));
    commit(&parts, &art("a"), &json!({"title": "two"})).await;
    parts.next_instant().await;
    parts.publish("art:a").await;
    let _second = worker(&redis, &jobs);
    story_is(&redis, "two").await;
}

/// It was due since before it was made the last time, so that nothing on the agenda tells of the change.
#[tokio::test]
async fn a_changed_input_counts_whatever_its_dependant_was_due_for() {
    for trigger in [Trigger::Cron, Trigger::Invalidation, Trigger::Expiry, Trigger::Demand] {
        let (redis, upstream) = both().await;
        let (parts, jobs) = (Parts::of(&redis).await, stories(&upstream));
        upstream.on("/art/a", Reply::json(json!({"title": "two"})));
        commit(&parts, &art("a"), &json!({"title": "one"})).await;
        parts.agenda.put(&JobName::new("story"), &[story()], When::Urgent, trigger).await.unwrap();
        parts.next_instant().await;
        commit(&parts, &story(), &json!("one")).await;
        parts.next_instant().await;
        commit(&parts, &art("a"), &json!({"title": "two"})).await;
        let _worker = worker(&redis, &jobs);
        story_is(&redis, "two").await;
    }
}

/// Both an input and what AI makes of it, by themselves and with many.
const TOGETHER: [&str; 2] = [r#"{"keys": ["story:a", "art:a"]}"#, r#"{"patterns": ["*:a"]}"#];

/// Waits until a story was put off once more than `before` times; returns how often it was.
async fn put_off(redis: &TestRedis, before: u64) -> u64 {
    eventually("the story waits for its input", async || {
        let times = times_put_off(redis).await;
        if times > before { Ok(times) } else { Err(times) }
    })
    .await
}

/// Returns the number of times that it was deferred.
async fn times_put_off(redis: &TestRedis) -> u64 {
    redis.ask::<Option<u64>>(&["HGET", "samovar:stats:{story}", "deferred"]).await.unwrap_or(0)
}

#[tokio::test]
async fn input_and_dependant_invalidated_together_cost_one_generation() {
    for message in TOGETHER {
        let (redis, upstream, _jobs, _worker) = with_story("").await;
        let before = times_put_off(&redis).await;
        upstream.on("/art/a", Reply::json(json!({"title": "two"})));
        let gate = upstream.gate("/art/a");
        Parts::of(&redis).await.publish(message).await;
        gate.arrived(1).await;
        put_off(&redis, before).await;
        assert_eq!(redis.json("story:a").await, Some(json!("one")), "the old one is served meanwhile");
        gate.open();
        story_is(&redis, "two").await;
        assert_eq!(upstream.calls(AI), 2, "{message}");
    }
}

/// Its input is found later, but marked before the entry is due.
#[tokio::test]
async fn what_ai_makes_becomes_due_last_of_what_a_message_names() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, stories(&upstream));
    let arts: Vec<EntryKey> = (0..2_000).map(|n| art(&n.to_string())).collect();
    let mut fill = redis::pipe();
    for key in arts.iter().chain([&story()]) {
        fill.cmd("SET").arg(key.as_str()).arg("0").arg("EX").arg(600).ignore();
    }
    fill.query_async::<()>(&mut redis.connection().await).await.unwrap();
    let message = Message::parse(r#"{"jobs": ["story", "art"]}"#).unwrap();
    let handled = parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
    // With the one that is listed and absent.
    assert_eq!(handled.due, 2_002);
    let since = async |job: &str, keys: &[EntryKey]| {
        let scores = parts.agenda.scores(&JobName::new(job), keys).await.unwrap();
        scores.into_iter().map(|score| Due::from_score(score.unwrap().parse().unwrap()).at).max().unwrap()
    };
    assert!(since("story", &[story()]).await >= since("art", &arts).await);
}

#[tokio::test]
async fn a_generation_goes_on_when_its_invalidated_input_is_unchanged() {
    for message in TOGETHER {
        let (redis, upstream, _jobs, _worker) = with_story("").await;
        let before = times_put_off(&redis).await;
        let gate = upstream.gate("/art/a");
        Parts::of(&redis).await.publish(message).await;
        gate.arrived(1).await;
        put_off(&redis, before).await;
        // By itself it would come again after longer than this test waits.
        let agenda = "samovar:agenda:{story}";
        let score: f64 = redis.ask(&["ZSCORE", agenda, "story:a"]).await;
        redis.ask::<usize>(&["ZADD", agenda, "XX", &format!("{:.6}", score + 600_000.0), "story:a"]).await;
        gate.open();
        eventually("the story is made anew", async || upstream.calls(AI) == 2).await;
    }
}

#[tokio::test]
async fn what_ai_makes_does_not_wait_for_an_input_whose_fetch_failed() {
    let (redis, upstream, _jobs, _worker) = with_story("").await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:a").await;
    eventually("the fetch of the input has failed", async || parts.stat("failed").await > 0).await;
    parts.invalidate("story:a").await;
    eventually("the story is made anew", async || upstream.calls(AI) == 2).await;
}
