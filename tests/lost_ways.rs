//! The ways in which other caches lost an invalidation, or served what they should not, each tried here.
//!
//! Those that concern one fetch and one invalidation are in `invalidation.rs`; the whole fleet at once is in
//! `consistency.rs`.
#![cfg(test)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use samovar::agenda::{Claimed, Due, Finished, Next, State, When};
use samovar::entry::Trigger;
use samovar::entry::{EntryKey, JobName};
use samovar::job::Jobs;
use samovar::protocol::Message;
use samovar::redis::LoopHealth;
use samovar::store::Gap;
use samovar::store::{Fresh, Leased, Meta, Note, Removal, Written};
use samovar::telemetry::Telemetry;
use samovar::trigger::{Complaints, Inbox, Pipeline, Watermark};
use samovar::worker::maintenance::JobCleaner;
use serde_json::{Value, json};
use support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, both, eventually, hasty_worker, job,
    version, worker,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// `story:a` is made from `art:a` by an AI that repeats what it was told; both are listed.
fn stories(upstream: &Upstream) -> JobsFolder {
    tagged_stories(upstream, "")
}

/// The same, the stories with these tags.
fn tagged_stories(upstream: &Upstream, tags: &str) -> JobsFolder {
    upstream.answer("/v1/chat/completions", |call, _| {
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

fn story() -> EntryKey {
    EntryKey::new("story:a")
}

async fn known(parts: &Parts, key: &EntryKey) -> Option<Meta> {
    parts.store.look(std::slice::from_ref(key)).await.unwrap().remove(0).1
}

/// Lets a worker look at the story, which it finds to be made from the same; returns a time between its generation and that.
async fn looked_at(parts: &Parts) -> i64 {
    parts.next_instant().await;
    let at = parts.now().await;
    parts.next_instant().await;
    parts.agenda.put(&JobName::new("story"), &[story()], When::Urgent, Trigger::Invalidation).await.unwrap();
    eventually("the story is looked at", async || match known(parts, &story()).await {
        Some(meta) if meta.start > at => Ok(()),
        other => Err(other),
    })
    .await;
    at
}

/// Extends an entry with nobody asked; returns a time between its fetch and that.
async fn extended(parts: &Parts, key: &EntryKey, note: &Note) -> i64 {
    parts.next_instant().await;
    let at = parts.now().await;
    for _ in 0..2 {
        parts.next_instant().await;
        let Leased::Yes(lease) = parts.store.lease(key, LONG, Fresh::default()).await.unwrap() else {
            panic!("somebody fetches {key}");
        };
        let written = parts.store.extend_unasked(key, &lease, HOUR, note).await.unwrap();
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
    let written = parts.store.commit(key, &lease, &value.to_string(), HOUR, &Note::default()).await.unwrap();
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
}

async fn claim_and_take(parts: &Parts) -> (Claimed, String) {
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries.remove(0);
    let held = parts.agenda.take(&job(), std::slice::from_ref(&claimed), LONG).await.unwrap().remove(0).unwrap();
    (claimed, held)
}

// Messages

#[tokio::test]
async fn no_message_in_the_inbox_is_lost_with_cut_connections() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let parts = Parts::of(&redis).await;
    for round in 0..15 {
        let edited = upstream.edit("/art/a");
        // Whoever publishes is not cut off before Redis has said that the message is there.
        let add = ["XADD", "samovar:inbox", "*", "message", "art:a"];
        redis.ask::<String>(&add).await;
        redis.ask::<u64>(&["CLIENT", "KILL", "TYPE", if round % 2 == 0 { "normal" } else { "pubsub" }]).await;
        version(&redis, "a", edited).await;
    }
    eventually("nothing is in anybody's hands", async || {
        let pending: redis::RedisResult<redis::streams::StreamPendingReply> =
            redis::cmd("XPENDING").arg(parts.keys.inbox()).arg("samovar").query_async(&mut parts.redis.clone()).await;
        pending.is_ok_and(|pending| pending.count() == 0)
    })
    .await;
}

/// Readers leave at the moment when a message is given to them, which evicts a key of its own.
#[tokio::test]
async fn a_reader_that_leaves_the_inbox_takes_no_message_with_it() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let control = redis.redis_url().manager(Duration::from_secs(5)).await.unwrap();
    let read = async |readers: &mut JoinSet<()>, worker: &str, stop: &CancellationToken| {
        let (pipeline, pipeline_loop) = Pipeline::new(parts.invalidator(&jobs), Telemetry::default());
        let inbox = Inbox {
            redis: redis.redis_url().manager(Duration::from_secs(10)).await.unwrap(),
            control: control.clone(),
            keys: parts.keys.clone(),
            pipeline,
            store: parts.store.clone(),
            watermark: Watermark::of(&Arc::from(worker)),
            telemetry: Telemetry::default(),
            worker: Arc::from(worker),
            claim: Duration::from_millis(500),
            complaints: Complaints::of("a message in the inbox"),
            loop_health: LoopHealth::default(),
        };
        let stop = stop.clone();
        readers.spawn(async move { _ = tokio::join!(inbox.run(stop.clone()), pipeline_loop.run(stop)) });
    };
    for round in 0..40 {
        let (stop, mut ended) = (CancellationToken::new(), JoinSet::new());
        read(&mut ended, &format!("reader {round}"), &stop).await;
        eventually("it waits for messages", async || {
            redis.ask::<String>(&["INFO", "clients"]).await.contains("blocked_clients:1")
        })
        .await;
        let mut publish = redis::pipe();
        publish.cmd("SET").arg(format!("art:{round}")).arg("0").cmd("XADD").arg(&["samovar:inbox", "*", "message"]);
        publish.arg(format!("{{\"keys\": [\"art:{round}\"], \"action\": \"evict\"}}"));
        if round % 2 == 0 {
            publish.exec_async(&mut parts.redis.clone()).await.unwrap();
            stop.cancel();
        } else {
            stop.cancel();
            // Somewhere between its steps.
            for _ in 0..round / 2 {
                tokio::task::yield_now().await;
            }
            publish.exec_async(&mut parts.redis.clone()).await.unwrap();
        }
        ended.join_next().await.unwrap().unwrap();
    }
    let (stop, mut last) = (CancellationToken::new(), JoinSet::new());
    read(&mut last, "the last", &stop).await;
    eventually("all that was published is handled", async || {
        let left = redis.keys("art:*").await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    stop.cancel();
    last.join_next().await.unwrap().unwrap();
}

/// The stream is told to give it an id from then.
#[tokio::test]
async fn a_message_that_is_handled_ten_minutes_late_changes_nothing() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let parts = Parts::of(&redis).await;
    let (before, late) = (parts.meta("a").await, parts.now().await - 600_000);
    for (n, message) in [
        r#"{"keys": ["art:a"]}"#,
        r#"{"keys": ["art:a"], "action": "evict"}"#,
        r#"{"patterns": ["art:*"], "action": "evict"}"#,
        r#"{"jobs": ["art"], "action": "evict"}"#,
    ]
    .iter()
    .enumerate()
    {
        redis.ask::<String>(&["XADD", "samovar:inbox", &format!("{late}-{n}"), "message", message]).await;
    }
    parts.inbox_is_empty().await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1);
    assert_eq!((parts.meta("a").await, upstream.calls("/art/a")), (before, 1));
}

// Between the steps

#[tokio::test]
async fn an_invalidation_between_claim_and_take_needs_no_other_claim() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    commit(&parts, &art("a"), &json!(1)).await;
    parts.agenda.put(&job(), &[art("a")], When::Due(0), Trigger::Cron).await.unwrap();
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries;
    parts.next_instant().await;
    let at = parts.now().await;
    parts.invalidator(&jobs).handle(&Message::parse("art:a").unwrap(), at).await.unwrap();
    // It goes before what it was claimed with.
    assert_eq!(parts.agenda.take(&job(), &claimed, LONG).await.unwrap(), [None]);
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries;
    parts.invalidator(&jobs).handle(&Message::parse("art:a").unwrap(), at).await.unwrap();
    assert!(parts.agenda.take(&job(), &claimed, LONG).await.unwrap()[0].is_some(), "the claim holds");
    parts.next_instant().await;
    for fresh in [
        Fresh { since: Some(1), ..Fresh::default() },
        Fresh { any: true, ..Fresh::default() },
        Fresh { until: Some(1), ..Fresh::default() },
    ] {
        let Leased::Yes(lease) = parts.store.lease(&art("a"), LONG, fresh).await.unwrap() else {
            panic!("an invalidated value counts as fresh: {fresh:?}");
        };
        assert!(lease.start > at, "its fetch begins after the invalidation");
        parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    }
}

#[tokio::test]
async fn an_invalidation_between_commit_and_finish_leaves_it_due() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    parts.agenda.put(&job(), &[art("a")], When::Due(0), Trigger::Cron).await.unwrap();
    let (claimed, held) = claim_and_take(&parts).await;
    commit(&parts, &art("a"), &json!(1)).await;
    parts.next_instant().await;
    parts.invalidator(&jobs).handle(&Message::parse("art:a").unwrap(), parts.now().await).await.unwrap();
    let next = Next::At(parts.now().await + 60_000);
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
    assert_eq!(Due::from_score(parts.score("a").await.expect("it is in hand")).state, State::Running);
    let written = parts.store.commit(&art("a"), &lease, "1", HOUR, &Note::default()).await.unwrap();
    assert_eq!(written, Written::Evicted);
}

/// The same, where the late step is the last one of the same handling.
#[tokio::test]
async fn what_became_urgent_since_an_eviction_stays_on_the_agenda() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let names = ["before", "scheduled", "taken", "claimed", "asked for", "since"];
    let [before, scheduled, taken, claimed, asked_for, since] = names.map(art);
    let put = async |key: &EntryKey, when, trigger| {
        parts.agenda.put(&job(), [key], when, trigger).await.unwrap();
    };
    put(&taken, When::Due(0), Trigger::Cron).await;
    claim_and_take(&parts).await;
    for (key, trigger) in [(&claimed, Trigger::Expiry), (&asked_for, Trigger::Demand)] {
        put(key, When::Due(0), trigger).await;
    }
    assert_eq!(parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries.len(), 2);
    put(&before, When::Urgent, Trigger::Invalidation).await;
    put(&scheduled, When::Due(parts.now().await + 60_000), Trigger::Expiry).await;
    parts.next_instant().await;
    let at = parts.now().await;
    parts.next_instant().await;
    put(&since, When::Urgent, Trigger::Invalidation).await;
    parts.agenda.cancel(&job(), &names.map(art), at).await.unwrap();
    let mut left: Vec<String> = redis.ask(&["ZRANGE", "samovar:agenda:{art}", "0", "-1"]).await;
    left.sort();
    assert_eq!(left, ["art:asked for", "art:since"]);
}

// Tags

/// An entry whose tags were put for as short a life as its job gave it then; by now it gives a longer one.
async fn tagged_for_a_short_life(parts: &Parts) -> i64 {
    let lease = parts.lease("a", LONG).await;
    let tags = vec!["t".to_owned()];
    parts.store.tag(&art("a"), &tags, Duration::from_millis(1)).await.unwrap();
    let note = Note { tags, ..Note::default() };
    parts.store.commit(&art("a"), &lease, "1", LONG, &note).await.unwrap();
    parts.next_instant().await;
    parts.next_instant().await;
    parts.store.sweep_tags().await.unwrap();
    assert_eq!(parts.store.tagged("t", 0).await.unwrap().1, []);
    lease.start
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
    assert!(meta.invalidated > 0 && meta.outlived == 0, "{meta:?}");
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
    assert_eq!(parts.meta("a").await.unwrap().invalidated, at);
}

// Inputs

#[tokio::test]
async fn an_input_that_changes_while_its_dependant_is_made_counts() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream);
    let gate = upstream.gate("/v1/chat/completions");
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
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
    parts.store.commit(&art("a"), &lease, &two, HOUR, &Note::default()).await.unwrap();
    parts.agenda.put(&job(), &[art("a")], When::Due(0), Trigger::Expiry).await.unwrap();
    parts.mark().await;
    let _worker = worker(&redis, &jobs);
    story_is(&redis, "two").await;
    assert_eq!(upstream.calls("/art/a"), 0);
}

/// The next who fetches the input finds it unchanged.
#[tokio::test]
async fn a_change_a_dead_worker_kept_is_told_at_the_next_invalidation() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream);
    let mut first = worker(&redis, &jobs);
    story_is(&redis, "one").await;
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

const AI: &str = "/v1/chat/completions";
/// Both an input and what AI makes of it, by themselves and with many.
const TOGETHER: [&str; 2] = [r#"{"keys": ["story:a", "art:a"]}"#, r#"{"patterns": ["*:a"]}"#];

/// Waits until a story was put off once more than `before` times; returns how often it was.
async fn put_off(redis: &TestRedis, before: u64) -> u64 {
    eventually("the story waits for its input", async || {
        let stats = ["HGET", "samovar:stats:{story}", "deferred"];
        let times = redis.ask::<Option<u64>>(&stats).await.unwrap_or(0);
        if times > before { Ok(times) } else { Err(times) }
    })
    .await
}

/// How often it was put off until now.
async fn times_put_off(redis: &TestRedis) -> u64 {
    redis.ask::<Option<u64>>(&["HGET", "samovar:stats:{story}", "deferred"]).await.unwrap_or(0)
}

#[tokio::test]
async fn input_and_dependant_invalidated_together_cost_one_generation() {
    for message in TOGETHER {
        let (redis, upstream) = both().await;
        upstream.on("/art/a", Reply::json(json!({"title": "one"})));
        let jobs = stories(&upstream);
        let _worker = worker(&redis, &jobs);
        story_is(&redis, "one").await;
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

/// What it is made from is found later, but marked before it is due.
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
    assert_eq!(handled.due, 2_001);
    let since = async |job: &str, keys: &[EntryKey]| {
        let scores = parts.agenda.scores(&JobName::new(job), keys).await.unwrap();
        scores.into_iter().map(|score| Due::from_score(score.unwrap().parse().unwrap()).at).max().unwrap()
    };
    assert!(since("story", &[story()]).await >= since("art", &arts).await);
}

#[tokio::test]
async fn a_generation_goes_on_when_its_invalidated_input_is_unchanged() {
    for message in TOGETHER {
        let (redis, upstream) = both().await;
        upstream.on("/art/a", Reply::json(json!({"title": "one"})));
        let jobs = stories(&upstream);
        let _worker = worker(&redis, &jobs);
        story_is(&redis, "one").await;
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
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream);
    let _worker = worker(&redis, &jobs);
    story_is(&redis, "one").await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:a").await;
    eventually("the fetch of the input has failed", async || parts.stat("failed").await > 0).await;
    parts.invalidate("story:a").await;
    eventually("the story is made anew", async || upstream.calls(AI) == 2).await;
}

/// Its input goes while it is fetched, and a stranger's key stands where the input's agenda should.
#[tokio::test]
async fn a_fetch_that_redis_broke_off_leaves_no_lease() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    // For longer than this test waits, if nobody gave it back.
    let jobs = stories(&upstream);
    let gate = upstream.gate("/v1/chat/completions");
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
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

/// The invalidation is older than the lease, and is handled only while the lease holds.
#[tokio::test]
async fn an_invalidation_handled_late_is_not_answered_without_a_fetch() {
    let redis = TestRedis::start().await;
    let (parts, note) = (Parts::of(&redis).await, Note::default());
    commit(&parts, &art("a"), &json!("told")).await;
    parts.next_instant().await;
    let at = parts.now().await;
    parts.next_instant().await;
    let lease = parts.lease("a", LONG).await;
    let handled = parts.store.invalidate(&art("a"), at, Removal::Refresh).await.unwrap();
    assert!(!handled.fenced && !handled.due, "{handled:?}");
    assert_eq!(parts.store.extend_unasked(&art("a"), &lease, HOUR, &note).await.unwrap(), Written::Foreign);
    assert!(parts.meta("a").await.unwrap().invalidated > 0);
    // Whoever asked has asked after the invalidation.
    let written = parts.store.extend(&art("a"), &lease, HOUR, &note).await.unwrap();
    assert!(matches!(written, Written::Done { changed: false, .. }), "{written:?}");
    assert_eq!(parts.meta("a").await.unwrap().invalidated, 0);
}

/// The invalidation is older than the extension, and is handled only after it.
#[tokio::test]
async fn what_was_extended_with_nobody_asked_is_as_old_as_it_was() {
    let redis = TestRedis::start().await;
    let (parts, note) = (Parts::of(&redis).await, Note::default());
    for removal in [Removal::Refresh, Removal::Evict] {
        commit(&parts, &art("a"), &json!("told")).await;
        let at = extended(&parts, &art("a"), &note).await;
        let before = parts.meta("a").await.unwrap();
        assert!(before.asked < at && at < before.start, "{before:?}");
        let handled = parts.store.invalidate(&art("a"), at, removal).await.unwrap();
        assert_eq!((handled.due, handled.removed), (removal == Removal::Refresh, removal == Removal::Evict));
        let after = parts.meta("a").await;
        match removal {
            Removal::Refresh => assert_eq!(after, Some(Meta { invalidated: at, ..before })),
            Removal::Evict => assert_eq!((after, redis.get("art:a").await), (None, None)),
        }
    }
    // Whoever asked, or fetched the same, has asked after it.
    commit(&parts, &art("a"), &json!("told")).await;
    for fetched in [false, true] {
        let at = extended(&parts, &art("a"), &note).await;
        let content_since = parts.meta("a").await.unwrap().content_since;
        let lease = parts.lease("a", LONG).await;
        let written = if fetched {
            parts.store.commit(&art("a"), &lease, "\"told\"", HOUR, &note).await
        } else {
            parts.store.extend(&art("a"), &lease, HOUR, &note).await
        };
        assert!(matches!(written.unwrap(), Written::Done { changed: false, .. }));
        let handled = parts.store.invalidate(&art("a"), at, Removal::Refresh).await.unwrap();
        let meta = parts.meta("a").await.unwrap();
        assert!(!handled.due, "{handled:?}");
        assert_eq!((meta.invalidated, meta.asked, meta.content_since), (0, lease.start, content_since));
    }
}

/// As left by a version that did not keep it.
#[tokio::test]
async fn metadata_without_a_content_time_mean_when_the_fetch_began() {
    let redis = TestRedis::start().await;
    let (parts, note) = (Parts::of(&redis).await, Note::default());
    commit(&parts, &art("a"), &json!("told")).await;
    let at = extended(&parts, &art("a"), &note).await;
    let meta = parts.meta("a").await.unwrap();
    let packed = redis.get(&parts.keys.meta(&art("a"))).await.unwrap().replace(&format!("~{}", meta.asked), "");
    redis.set(&parts.keys.meta(&art("a")), &packed, HOUR).await;
    assert!(!parts.store.invalidate(&art("a"), at, Removal::Refresh).await.unwrap().due);
    extended(&parts, &art("a"), &note).await;
    assert_eq!(parts.meta("a").await.unwrap().asked, meta.start);
    assert!(parts.store.invalidate(&art("a"), meta.start, Removal::Refresh).await.unwrap().due);
}

#[tokio::test]
async fn an_invalidation_older_than_a_recheck_still_generates_again() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream);
    let _worker = worker(&redis, &jobs);
    story_is(&redis, "one").await;
    let parts = Parts::of(&redis).await;
    let at = looked_at(&parts).await;
    assert_eq!(upstream.calls("/v1/chat/completions"), 1);
    parts.invalidator(&jobs).handle(&Message::parse("story:a").unwrap(), at).await.unwrap();
    upstream.called("/v1/chat/completions", 2).await;
}

/// Whoever invalidates by the tag has stamped it, and has yet to read its entries when the story is looked at.
#[tokio::test]
async fn a_tags_invalidation_older_than_a_recheck_generates_again() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = tagged_stories(&upstream, "\"told\"");
    let _worker = worker(&redis, &jobs);
    story_is(&redis, "one").await;
    let parts = Parts::of(&redis).await;
    let at = looked_at(&parts).await;
    assert_eq!(upstream.calls("/v1/chat/completions"), 1);
    parts.store.stamp("told", at, Removal::Evict).await.unwrap();
    looked_at(&parts).await;
    assert_eq!(upstream.calls("/v1/chat/completions"), 2);
    // The same of what is only kept for longer.
    let note = Note { tags: vec!["told".to_owned()], ..Note::default() };
    commit(&parts, &art("a"), &json!("told")).await;
    let at = extended(&parts, &art("a"), &note).await;
    parts.store.stamp("told", at, Removal::Refresh).await.unwrap();
    assert_eq!(parts.store.extend_stale(&art("a"), HOUR * 2, HOUR * 2).await.unwrap(), None);
    assert_eq!(parts.meta("a").await.unwrap().invalidated, at);
}

/// What AI made is not generated again for that.
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
            let found = known(&parts, &story()).await.unwrap().note.tags;
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
    assert_eq!(upstream.calls("/v1/chat/completions"), 1);
    parts.invalidate(r#"{"tags": ["by:Frida"]}"#).await;
    parts.invalidate(r#"{"tags": ["by:Diego"]}"#).await;
    upstream.called("/v1/chat/completions", 2).await;
}

#[tokio::test]
async fn a_new_tag_that_fails_costs_neither_the_value_nor_a_call() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let parts = Parts::of(&redis).await;
    let jobs = stories(&upstream);
    let mut first = worker(&redis, &jobs);
    story_is(&redis, "one").await;
    first.kill9();
    first.wait().await;
    let jobs = tagged_stories(&upstream, r#""by:{{ artwork.artist }}""#);
    let _second = worker(&redis, &jobs);
    parts.next_instant().await;
    parts.agenda.put(&JobName::new("story"), &[story()], When::Urgent, Trigger::Invalidation).await.unwrap();
    eventually("it says why", async || match known(&parts, &story()).await.unwrap().note.reason {
        Some(reason) if reason.contains("the tag `by:") => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!((redis.json("story:a").await, upstream.calls("/v1/chat/completions")), (Some(json!("one")), 1));
}

#[tokio::test]
async fn what_was_lost_is_made_good_for_what_was_only_looked_at_since() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, stories(&upstream));
    redis.ask::<usize>(&["HSET", &parts.keys.digests(), "story", "x", "art", "x"]).await;
    commit(&parts, &story(), &json!("one")).await;
    let at = extended(&parts, &story(), &Note::default()).await;
    let revalidator = parts.revalidator(&jobs);
    let due =
        async || redis.ask::<Option<f64>>(&["ZSCORE", &parts.keys.agenda(&JobName::new("story")), "story:a"]).await;
    // To be looked at is all that would be done.
    parts.store.note_gap(at, Gap::Missed).await.unwrap();
    revalidator.look().await.unwrap();
    assert_eq!((known(&parts, &story()).await.unwrap().invalidated, due().await), (0, None));
    parts.store.note_gap(at, Gap::Lost).await.unwrap();
    revalidator.look().await.unwrap();
    assert_eq!(known(&parts, &story()).await.unwrap().invalidated, at);
    assert!(due().await.is_some());
}

// A Redis that comes back older than it was

/// The story tells how often it was generated; the first of them is there.
async fn counted_stories(redis: &TestRedis, upstream: &Upstream) -> (JobsFolder, WorkerProcess) {
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(upstream);
    upstream.answer("/v1/chat/completions", |_, calls| {
        let message = json!({"role": "assistant", "content": calls.to_string()});
        Reply::json(json!({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 2}}))
    });
    let worker = hasty_worker(redis, &jobs);
    story_is(redis, "1").await;
    (jobs, worker)
}

/// Another message may be in the inbox before the worker sees that Redis is another; and it may have handled some before.
#[tokio::test]
async fn invalidations_since_a_restored_snapshot_generate_again() {
    for (overtaken, before) in [(false, false), (true, false), (true, true)] {
        let (mut redis, upstream) = both().await;
        let (_jobs, worker) = counted_stories(&redis, &upstream).await;
        let parts = Parts::of(&redis).await;
        if before {
            parts.invalidate("art:other").await;
            // Which the worker knows once it has seen to the next one.
            parts.invalidate("art:other").await;
        }
        redis.ask::<String>(&["SAVE"]).await;
        parts.invalidate("story:a").await;
        story_is(&redis, "2").await;
        parts.invalidate("art:other").await;
        redis.kill9();
        worker.freeze();
        redis.start_again().await;
        assert_eq!(redis.json("story:a").await, Some(json!("1")));
        if overtaken {
            Parts::of(&redis).await.publish("art:other").await;
        }
        worker.thaw();
        story_is(&redis, "3").await;
    }
}

#[tokio::test]
async fn a_restart_that_lost_nothing_generates_nothing_again() {
    let (mut redis, upstream) = tokio::join!(TestRedis::options().append_only().start(), Upstream::start());
    let (_jobs, mut worker) = counted_stories(&redis, &upstream).await;
    Parts::of(&redis).await.invalidate("story:a").await;
    story_is(&redis, "2").await;
    redis.restart().await;
    worker.wait_for_log(&["Redis was restarted"]).await;
    eventually("the revalidator is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    let meta = known(&Parts::of(&redis).await, &story()).await.unwrap();
    assert_eq!((meta.invalidated, redis.json("story:a").await), (0, Some(json!("2"))));
    assert_eq!(upstream.calls("/v1/chat/completions"), 2);
}

#[tokio::test]
async fn what_was_in_an_inbox_that_redis_evicted_may_be_lost() {
    let (redis, upstream) = both().await;
    let (_jobs, _worker) = counted_stories(&redis, &upstream).await;
    Parts::of(&redis).await.invalidate("story:a").await;
    story_is(&redis, "2").await;
    redis.ask::<usize>(&["DEL", "samovar:inbox"]).await;
    story_is(&redis, "3").await;
    eventually("the revalidator is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    assert_eq!(upstream.calls("/v1/chat/completions"), 3);
}

// Jobs that not everybody knows

#[tokio::test]
async fn a_worker_does_not_absolve_what_it_does_not_know() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let (art_only, both) = (Art::of(&upstream).folder(), stories(&upstream));
    redis.ask::<usize>(&["HSET", &parts.keys.digests(), "story", "x", "art", "x"]).await;
    for key in [story(), art("a")] {
        commit(&parts, &key, &json!("one")).await;
    }
    parts.next_instant().await;
    let (unknowing, knowing) = (parts.revalidator(&art_only), parts.revalidator(&both));
    parts.store.note_gap(parts.now().await, Gap::Lost).await.unwrap();
    let suspected =
        async |key: EntryKey| parts.store.look(&[key]).await.unwrap()[0].1.as_ref().unwrap().invalidated > 0;
    for _ in 0..2 {
        unknowing.look().await.unwrap();
        assert_eq!((suspected(art("a")).await, suspected(story()).await), (true, false));
        assert_eq!(redis.keys("samovar:{suspect}*").await, ["samovar:{suspect}", "samovar:{suspect}:dealt"]);
    }
    knowing.look().await.unwrap();
    assert!(suspected(story()).await);
    assert_eq!(redis.keys("samovar:{suspect}*").await, Vec::<String>::new());
}

// Jobs that are no more

/// Two workers, of which one does not know the job `story`, and some rounds without the other.
#[tokio::test]
async fn a_jobs_state_goes_when_long_unknown_and_not_before() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let jobs = |folder: &JobsFolder| Arc::new(Jobs::load(folder.path(), HOUR, &|_| None).unwrap());
    let (without, with) = (jobs(&Art::of(&upstream).folder()), jobs(&stories(&upstream)));
    let job_cleaner = |jobs: &Arc<Jobs>| JobCleaner::new(parts.redis.clone(), parts.keys.clone(), Arc::clone(jobs));
    let (without, with) = (job_cleaner(&without), job_cleaner(&with));
    let name = JobName::new("story");
    parts.agenda.put(&name, &[story()], When::Due(0), Trigger::Cron).await.unwrap();
    parts.agenda.put(&job(), &[art("a")], When::Due(0), Trigger::Cron).await.unwrap();
    redis.ask::<usize>(&["ZADD", &parts.keys.schedules(), "1", "story", "1", "art"]).await;
    redis.ask::<usize>(&["HSET", &parts.keys.digests(), "story", "x", "art", "x"]).await;
    for key in &parts.keys.all_of(&name)[2..] {
        redis.set(key, "kept", HOUR).await;
    }
    let kept = async || redis.keys("samovar:*:{story}").await.len();
    // What no worker ever said to know was left by one that did not say so.
    assert_eq!((without.round(0).await.unwrap(), kept().await), (0, 10));
    for _ in 0..3 {
        with.know().await.unwrap();
        for _ in 0..2 {
            assert_eq!((without.round(2).await.unwrap(), kept().await), (0, 11));
        }
    }
    assert_eq!((without.round(2).await.unwrap(), kept().await), (1, 0));
    assert_eq!(redis.ask::<Vec<String>>(&["ZRANGE", &parts.keys.schedules(), "0", "-1"]).await, ["art"]);
    assert_eq!(redis.ask::<Vec<String>>(&["HKEYS", &parts.keys.digests()]).await, ["art"]);
    assert!(parts.score("a").await.is_some());
}

#[tokio::test]
async fn key_patterns_of_jobs_that_nobody_knows_are_forgotten() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let job_cleaner = |name: &str| {
        let toml = Art::of(&upstream).top("tags = [\"t\"]").toml().replace("art:{name}", &format!("{name}:{{name}}"));
        let folder = Art::of(&upstream).folder();
        folder.write("art.toml", &toml);
        let jobs = Jobs::load(folder.path(), HOUR, &|_| None).unwrap();
        JobCleaner::new(parts.redis.clone(), parts.keys.clone(), Arc::new(jobs))
    };
    let (art, poem) = (job_cleaner("art"), job_cleaner("poem"));
    let noted = async || redis.ask::<Vec<String>>(&["ZRANGE", "samovar:tagged", "0", "-1"]).await;
    for _ in 0..3 {
        poem.know().await.unwrap();
        for _ in 0..2 {
            art.round(2).await.unwrap();
            assert_eq!(noted().await, ["art:*", "poem:*"]);
        }
    }
    art.round(2).await.unwrap();
    assert_eq!(noted().await, ["art:*"]);
    redis.ask::<u64>(&["DEL", "samovar:tagged"]).await;
    redis.set("samovar:tagged", "a stranger's", HOUR).await;
    art.know().await.unwrap();
    art.round(2).await.unwrap();
}

/// Somebody dropped it who did not know the job, at the moment when this worker took it up.
#[tokio::test]
async fn a_schedule_that_is_missing_is_set_up_again() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).warm("schedule = \"0 0 1 1 *\"").folder();
    let mut worker = worker(&redis, &jobs);
    let scheduled = async || redis.ask::<Option<f64>>(&["ZSCORE", "samovar:{schedules}", "art"]).await.is_some();
    // Its end sets the next one.
    worker.wait_for_log(&["warmup", "entries=1"]).await;
    assert!(scheduled().await);
    redis.ask::<usize>(&["ZADD", "samovar:{schedules}", "9e15", "another"]).await;
    redis.ask::<usize>(&["ZREM", "samovar:{schedules}", "art"]).await;
    redis.ask::<usize>(&["HDEL", "samovar:{schedules}:digests", "art"]).await;
    eventually("it is scheduled again", scheduled).await;
}
