//! Storms of invalidations: few fetches, no starvation, and debounced refreshes keep their priority.

use std::time::Duration;

use samovar::agenda::Due;
use samovar::entry::Priority;
use samovar::telemetry::Telemetry;
use samovar::trigger::{Ack, At, Pipeline};
use serde_json::json;

use super::{CHANNEL, TTL, warmed_by};
use crate::support::{Art, Parts, Reply, TestRedis, art, both, eventually, publish, version, worker};

#[tokio::test]
async fn a_storm_of_invalidations_costs_few_fetches_and_stays_fresh() {
    let (redis, upstream, _jobs, _worker) = warmed_by(worker).await;
    publish(&redis, "art:a").await;
    let calls = upstream.calls("/art/a");
    let began = std::time::Instant::now();
    let mut connection = redis.connection().await;
    let (mut last, mut landed) = (1, 0);
    let mut seen = 1;
    let on = |landed: u64| {
        // On a loaded machine two seconds may see no more than one fetch.
        let longest = if landed < 2 { Duration::from_secs(15) } else { Duration::from_secs(2) };
        began.elapsed() < longest
    };
    while on(landed) {
        last = upstream.edit("/art/a");
        let mut storm = redis::pipe();
        for _ in 0..50 {
            storm.cmd("PUBLISH").arg(CHANNEL).arg("art:a").ignore();
            storm.cmd("XADD").arg("samovar:inbox").arg("*").arg("message").arg("art:a").ignore();
        }
        storm.query_async::<()>(&mut connection).await.unwrap();
        let version = redis.json("art:a").await.unwrap()["version"].as_u64().unwrap();
        assert!(version >= seen, "it never goes back");
        landed += u64::from(version > seen);
        seen = version;
    }
    version(&redis, "a", last).await;
    let fetches = upstream.calls("/art/a") - calls;
    let seconds = began.elapsed().as_secs() + 1;
    assert!(landed >= 2, "new versions land while it goes on: {landed}");
    assert!(fetches as u64 <= 8 * seconds, "{fetches} fetches in {seconds} s for {last} edits");
    Parts::of(&redis).await.inbox_is_empty().await;
}

#[tokio::test]
async fn what_names_many_does_not_hold_up_what_is_named_by_itself() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/single");
    let jobs = Art::of(&upstream).limits("concurrency = 2").folder();
    let parts = Parts::of(&redis).await;
    let worker = worker(&redis, &jobs);
    parts.invalidate(r#"{"keys": ["art:single"], "action": "warm"}"#).await;
    version(&redis, "single", 1).await;
    upstream.otherwise(|_, _| Reply::json(json!({})).after(Duration::from_millis(50)));
    let mut connection = redis.connection().await;
    let mut fill = redis::pipe();
    for n in 0..5_000 {
        fill.cmd("SET").arg(format!("art:{n}")).arg("{}").arg("EX").arg(600).ignore();
    }
    fill.query_async::<()>(&mut connection).await.unwrap();
    publish(&redis, r#"{"patterns": ["art:[0-9]*"]}"#).await;
    eventually("the mass is under way", async || upstream.in_flight() == 2).await;
    let edited = upstream.edit("/art/single");
    publish(&redis, "art:single").await;
    version(&redis, "single", edited).await;
    let before = upstream.all_requests().len();
    assert!(before < 1_000, "{before} of 5,000 went before");
    drop(worker);
}

/// A fetch for an invalidation is under way that followed another: refreshes are held off.
async fn debounced(redis: &TestRedis, parts: &Parts, name: &str) {
    let lease = format!("somebody {} +", parts.now().await - Duration::from_millis(1));
    redis.ask::<String>(&["SET", &parts.keys.lease(&art(name)), &lease]).await;
}

#[tokio::test]
async fn debounced_bulk_stays_behind_high_priority() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let invalidator = parts.invalidator(&jobs);
    let named = [("a", "art:a", Priority::High), ("b", r#"{"patterns": ["art:b"]}"#, Priority::Bulk)];
    for (name, message, priority) in named {
        redis.set(&format!("art:{name}"), "1", TTL).await;
        debounced(&redis, &parts, name).await;
        let message = samovar::protocol::Message::parse(message).unwrap();
        let (mut handled, held) = invalidator.begin(&message, parts.now().await, true).await.unwrap();
        assert_eq!((held.is_empty(), parts.score(name).await), (false, None));
        redis.ask::<usize>(&["DEL", &parts.keys.lease(&art(name))]).await;
        assert!(invalidator.again(held, &mut handled).await.unwrap().is_empty());
        assert_eq!(Due::from_score(parts.score(name).await.unwrap()).priority, priority);
    }
}

/// Here the pipeline waits; an entry that is named by itself meanwhile does not wait behind the many.
#[tokio::test]
async fn the_pipeline_keeps_the_priority_of_what_it_debounced() {
    for (messages, priority) in [
        (&[r#"{"patterns": ["art:a"]}"#][..], Priority::Bulk),
        (&[r#"{"patterns": ["art:a"]}"#, "art:a"][..], Priority::High),
    ] {
        let (redis, upstream) = both().await;
        let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
        redis.set("art:a", "1", TTL).await;
        debounced(&redis, &parts, "a").await;
        let (pipeline, pipeline_loop) = Pipeline::new(parts.invalidator(&jobs), Telemetry::default());
        let published = async {
            let (done, mut handled) = tokio::sync::mpsc::unbounded_channel();
            for message in messages {
                let ack = Ack::new((*message).to_owned(), done.clone());
                let message = samovar::protocol::Message::parse(message).unwrap();
                pipeline.take(message, At::Redis(parts.now().await), "inbox", ack).await;
            }
            // It sees the lease some times.
            let _ = tokio::time::timeout(Duration::from_millis(300), handled.recv()).await;
            assert_eq!(parts.score("a").await, None);
            redis.ask::<usize>(&["DEL", &parts.keys.lease(&art("a"))]).await;
            for _ in messages {
                handled.recv().await.unwrap();
            }
            drop(pipeline);
        };
        tokio::join!(pipeline_loop.run(tokio_util::sync::CancellationToken::new()), published);
        assert_eq!(Due::from_score(parts.score("a").await.unwrap()).priority, priority);
    }
}
