//! The ways in which other caches lost an invalidation, or served what they should not, each tried here.
//!
//! Those that concern one fetch and one invalidation are in `invalidation`; the whole fleet at once is in
//! `consistency`.
mod extended;
mod inputs;
mod jobs;
mod messages;
mod restored;
mod steps;
mod tags;

use std::time::Duration;

use samovar::agenda::When;
use samovar::entry::{EntryKey, JobName, Trigger};
use samovar::redis::RedisTime;
use samovar::store::{Fresh, LastAttempt, Leased, Meta, Written};
use serde_json::{Value, json};

use crate::support::{
    Art, Gate, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, both, eventually, worker,
};

const LONG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
/// The path of the AI.
const AI: &str = "/v1/chat/completions";

/// `story:a` is made from `art:a` by an AI that repeats what it was told; both are listed.
fn stories(upstream: &Upstream) -> JobsFolder {
    tagged_stories(upstream, "")
}

/// Makes `story:a` as [`stories`] does, with these tags.
fn tagged_stories(upstream: &Upstream, tags: &str) -> JobsFolder {
    upstream.answer(AI, |call, _| {
        let prompt = call.json()["messages"].as_array().unwrap().last().unwrap()["content"].clone();
        let message = json!({"role": "assistant", "content": prompt});
        Reply::json(json!({
            "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }))
    });
    let ai = format!("[openai]\nurl = \"{}/v1\"\ntimeout = \"60s\"", upstream.url());
    let head = format!("key = \"story:{{name}}\"\nttl = \"1h\"\ntags = [{tags}]\n");
    let rest = r#"
        [inputs]
        artwork = "art:{name}"
        [source]
        kind = "ai"
        upstream = "openai"
        model = "tiny"
        prompt = "{{ artwork.title }}"
        [entries]
        list = ["a"]
        "#;
    Art::of(upstream).limits(&ai).list(["a"]).folder().job("story", &(head + rest))
}

/// Starts a Redis, an upstream, and a worker that has made the story of the title `one`, with these tags.
async fn with_story(tags: &str) -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = tagged_stories(&upstream, tags);
    let worker = worker(&redis, &jobs);
    story_is(&redis, "one").await;
    (redis, upstream, jobs, worker)
}

/// Starts a Redis, an upstream, and a worker whose request for the story of the title `one` is at the gate.
async fn with_story_at_gate() -> (TestRedis, Upstream, JobsFolder, WorkerProcess, Gate) {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream);
    let gate = upstream.gate(AI);
    let worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    (redis, upstream, jobs, worker, gate)
}

fn story() -> EntryKey {
    EntryKey::new("story:a")
}

async fn known(parts: &Parts, key: &EntryKey) -> Option<Meta> {
    parts.store.snapshot(key).await.unwrap().meta
}

/// Lets a worker recheck the story, whose input is unchanged; returns a time between its generation and the recheck.
async fn looked_at(parts: &Parts) -> RedisTime {
    parts.next_instant().await;
    let at = parts.now().await;
    parts.next_instant().await;
    parts.agenda.put(&JobName::new("story"), &[story()], When::Urgent, Trigger::Invalidation).await.unwrap();
    eventually("the story is looked at", async || match known(parts, &story()).await {
        Some(meta) if meta.validated_at > at => Ok(()),
        other => Err(other),
    })
    .await;
    at
}

/// Extends an entry with nobody asked; returns a time between its fetch and that.
async fn extended(parts: &Parts, key: &EntryKey, last_attempt: &LastAttempt) -> RedisTime {
    parts.next_instant().await;
    let at = parts.now().await;
    for _ in 0..2 {
        parts.next_instant().await;
        let Leased::Yes(lease) = parts.store.lease(key, LONG, Fresh::default()).await.unwrap() else {
            panic!("somebody fetches {key}");
        };
        let written = parts.store.extend_unasked(key, &lease, HOUR, last_attempt).await.unwrap();
        assert!(matches!(written, Written::Done { changed: false, .. }), "{written:?}");
    }
    at
}

async fn story_is(redis: &TestRedis, title: &str) {
    eventually(&format!("the story is of {title}"), async || match redis.json("story:a").await {
        Some(Value::String(told)) if told == title => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Commits by hand, as a worker does that then dies before it tells anybody.
async fn commit(parts: &Parts, key: &EntryKey, value: &Value) {
    let Leased::Yes(lease) = parts.store.lease(key, LONG, Fresh::default()).await.unwrap() else {
        panic!("somebody fetches {key}");
    };
    let written = parts.store.commit(key, &lease, &value.to_string(), HOUR, &LastAttempt::default()).await.unwrap();
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
}
