//! Inputs that are gone: what is made from them goes too, and comes back with them.

use std::time::Duration;

use samovar::agenda::When;
use samovar::entry::{EntryKey, JobName, Outcome, Trigger, Validators};
use samovar::job::Jobs;
use samovar::redis::RedisTime;
use samovar::store::{LastAttempt, Meta, Written};
use serde_json::{Value, json};

use super::TTL;
use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, both, eventually, eventually_within,
    samovar, worker,
};

const AI: &str = "/v1/chat/completions";
const MS: Duration = Duration::from_millis(1);
/// `told:{lang}:{name}`, from the museum: the key of its input `art:{name}` does not tell its own.
const TOLD: &str = "key = \"told:{lang}:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n\
                    [source]\nkind = \"http\"\nupstream = \"museum\"\npath = \"/told/{{ lang }}/{{ art.version }}\"\n\
                    [warm]\nrecheck = []\n";
/// `page:{name}`, composed of `story:{name}`, which is made of `art:{name}`.
const PAGE: &str = "key = \"page:{name}\"\nttl = \"1h\"\n[inputs]\nstory = \"story:{name}\"\n\
                    [source]\nkind = \"compose\"\nvalue = { story = \"{{ story }}\" }\n";

/// The source of a story that is told of `frame`.
const STORY_OF_FRAME: &str = "kind = \"ai\"\nupstream = \"openai\"\nmodel = \"tiny\"\nprompt = \"Of {{ frame }}\"";

/// The jobs `art`, which lists `a`, and `story`, which an AI tells of it and which nobody lists.
fn stories(upstream: &Upstream, recheck: &str) -> JobsFolder {
    upstream.edit("/art/a");
    upstream.answer(AI, |call, _| {
        let content = call.json()["messages"][0]["content"].clone();
        Reply::json(json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}))
    });
    upstream.otherwise(|call, _| match call.path().starts_with("/told") {
        true => Reply::json(json!({"path": call.path()})),
        false => Reply::status(404),
    });
    let story = "key = \"story:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n\
                 [source]\nkind = \"ai\"\nupstream = \"openai\"\nmodel = \"tiny\"\nprompt = \"Of {{ art.version }}\"\n";
    let ai = format!("[openai]\nurl = \"{}/v1\"\n", upstream.url());
    let art = Art::of(upstream).list(["a"]).warm(&format!("recheck = {recheck}")).limits(&ai).folder();
    art.job("story", story)
}

async fn warm(redis: &TestRedis, keys: &[&str]) {
    Parts::of(redis).await.invalidate(&json!({"keys": keys, "action": "warm"}).to_string()).await;
}

async fn shows(redis: &TestRedis, key: &str, value: Value) {
    eventually(&format!("{key} is {value}"), async || {
        let shown = redis.json(key).await;
        if shown.as_ref() == Some(&value) { Ok(()) } else { Err(shown) }
    })
    .await;
}

async fn gone(redis: &TestRedis, key: &str) {
    eventually(&format!("{key} is gone"), async || redis.get(key).await.is_none()).await;
}

/// Lets time pass, in what is known of these entries: an input that is gone first, then what was made before that.
async fn pass(redis: &TestRedis, parts: &Parts, time: Duration, keys: &[&str]) -> RedisTime {
    let ago = parts.now().await - time;
    for (before, key) in (0..).zip(keys) {
        let key = EntryKey::new(*key);
        let snapshot = parts.store.snapshot(&key).await.unwrap();
        let Meta { hash, own_expiry, last_attempt, .. } = snapshot.meta.unwrap();
        let attempted = LastAttempt { attempted: ago - before * MS, ..last_attempt };
        let (attempt, note) = (attempted.attempt(), attempted.to_json());
        let (made, since) = (attempted.attempted, attempted.attempted + MS);
        let packed = format!("{made} {own_expiry} 0 0 {hash}/{attempt}@{since} {note}");
        redis.set(&parts.keys.meta(&key), &packed, TTL).await;
    }
    ago
}

async fn count(redis: &TestRedis, job: &str, outcome: &str) -> u64 {
    redis.ask::<Option<u64>>(&["HGET", &format!("samovar:stats:{{{job}}}"), outcome]).await.unwrap_or_default()
}

async fn dead_letters(redis: &TestRedis) -> u64 {
    let mut all = 0;
    for job in ["art", "story", "page", "told"] {
        all += redis.ask::<u64>(&["ZCARD", &format!("samovar:dead:{{{job}}}")]).await;
    }
    all
}

#[tokio::test]
async fn what_is_made_from_something_gone_goes_and_returns_with_it() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, r#"["1s"]"#).job("page", PAGE).job("told", TOLD);
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    let made = ["story:a", "page:a", "told:tr:a", "told:en:a"];
    warm(&redis, &made).await;
    shows(&redis, "page:a", json!({"story": "Of 1"})).await;
    for lang in ["tr", "en"] {
        shows(&redis, &format!("told:{lang}:a"), json!({"path": format!("/told/{lang}/1")})).await;
    }
    let asked = upstream.all_requests().len();
    let only_of_art = |calls| assert_eq!(upstream.all_requests().len(), asked + calls);
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    for key in made {
        gone(&redis, key).await;
    }
    only_of_art(2);
    // It never had a value.
    warm(&redis, &["told:de:a"]).await;
    eventually("a demand finds it gone", async || count(&redis, "told", "gone").await == 3).await;
    for job in ["story", "page"] {
        let before = count(&redis, job, "gone").await;
        parts.invalidate(&format!("{job}:a")).await;
        eventually("an invalidation finds it gone", async || count(&redis, job, "gone").await > before).await;
        assert_eq!(count(&redis, job, "failed").await, 0);
    }
    only_of_art(2);
    assert_eq!(dead_letters(&redis).await, 0);
    for (key, input) in [("story:a", "art:a"), ("page:a", "story:a"), ("told:tr:a", "art:a")] {
        let shown = samovar(["get", key]).redis(&redis).jobs(&jobs).run().await;
        assert!(shown.stdout.contains(&format!("its input {input} is gone")), "{shown:?}");
    }

    upstream.edit("/art/a");
    parts.invalidate("art:a").await;
    shows(&redis, "page:a", json!({"story": "Of 2"})).await;
    for lang in ["tr", "en"] {
        shows(&redis, &format!("told:{lang}:a"), json!({"path": format!("/told/{lang}/2")})).await;
    }
    assert_eq!(upstream.calls(AI), 2);
    eventually("what nobody reads is left", async || count(&redis, "told", "unread").await == 1).await;
    assert_eq!(redis.get("told:de:a").await, None);
}

/// The input is back, and nobody has said so: `absent_for` holds for the upstream's answer alone.
#[tokio::test]
async fn a_demand_makes_what_went_with_an_input_again() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, "[]").job("told", TOLD);
    upstream.on("/art/a", Reply::status(404));
    let _worker = worker(&redis, &jobs);
    eventually("the artwork is gone", async || count(&redis, "art", "gone").await == 1).await;
    warm(&redis, &["told:tr:a"]).await;
    eventually("it is gone", async || count(&redis, "told", "gone").await == 1).await;
    redis.set("art:a", r#"{"version": 5}"#, TTL).await;
    warm(&redis, &["told:tr:a"]).await;
    shows(&redis, "told:tr:a", json!({"path": "/told/tr/5"})).await;
    assert_eq!(upstream.calls("/art/a"), 1);
}

/// The first answer after the edit is a 404 of a replica that lags, and the last recheck finds the artwork.
#[tokio::test]
async fn a_paid_for_entry_outlasts_a_404_that_a_recheck_revokes() {
    let (redis, upstream) = both().await;
    let page = PAGE.replace("story", "art");
    let jobs = stories(&upstream, r#"["1s", "2s"]"#).job("page", &page);
    let there = || Reply::json(json!({"version": 1}));
    upstream.on_each("/art/a", [there(), Reply::status(404), there()]);
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    warm(&redis, &["story:a", "page:a"]).await;
    shows(&redis, "story:a", json!("Of 1")).await;
    shows(&redis, "page:a", json!({"art": {"version": 1}})).await;
    parts.invalidate("art:a").await;
    gone(&redis, "art:a").await;
    gone(&redis, "page:a").await;
    eventually("the story waits", async || count(&redis, "story", "deferred").await > 0).await;
    let unchanged = count(&redis, "story", "unchanged").await;
    shows(&redis, "page:a", json!({"art": {"version": 1}})).await;
    eventually("the story holds", async || count(&redis, "story", "unchanged").await > unchanged).await;
    assert_eq!((redis.json("story:a").await, upstream.calls(AI)), (Some(json!("Of 1")), 1));
    assert_eq!(count(&redis, "story", "gone").await, 0);
}

/// The last recheck is due when the story is, and its answer comes a little later.
#[tokio::test]
async fn a_paid_for_entry_waits_for_the_answer_of_the_last_recheck() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, r#"["1s", "2s"]"#);
    let there = || Reply::json(json!({"version": 1}));
    let late = there().after(Duration::from_millis(300));
    upstream.on_each("/art/a", [there(), Reply::status(404), Reply::status(404), late]);
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    warm(&redis, &["story:a"]).await;
    shows(&redis, "story:a", json!("Of 1")).await;
    parts.invalidate("art:a").await;
    gone(&redis, "art:a").await;
    let unchanged = count(&redis, "story", "unchanged").await;
    shows(&redis, "art:a", json!({"version": 1})).await;
    eventually("the story holds", async || count(&redis, "story", "unchanged").await > unchanged).await;
    assert_eq!((redis.json("story:a").await, upstream.calls(AI)), (Some(json!("Of 1")), 1));
    assert_eq!((count(&redis, "story", "gone").await, upstream.calls("/art/a")), (0, 4));
}

/// A composed value costs nothing, but an AI value is made from it.
#[tokio::test]
async fn what_a_paid_for_entry_is_made_from_outlasts_a_404_too() {
    let (redis, upstream) = both().await;
    let page = PAGE.replace("story", "art");
    let jobs = stories(&upstream, r#"["1s", "2s"]"#).job("page", &page);
    let story = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
    jobs.write("story.toml", &story.replace("\"art:", "\"page:").replace("art.version", "art.art.version"));
    let there = || Reply::json(json!({"version": 1}));
    upstream.on_each("/art/a", [there(), Reply::status(404), there()]);
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["story:a"]).await;
    shows(&redis, "story:a", json!("Of 1")).await;
    Parts::of(&redis).await.invalidate("art:a").await;
    gone(&redis, "art:a").await;
    let before = count(&redis, "page", "warmed").await;
    shows(&redis, "art:a", json!({"version": 1})).await;
    eventually("the page is composed again", async || count(&redis, "page", "warmed").await > before).await;
    assert_eq!((count(&redis, "page", "gone").await, upstream.calls(AI)), (0, 1));
    assert_eq!(redis.json("story:a").await, Some(json!("Of 1")));
}

#[tokio::test]
async fn a_paid_for_entry_goes_after_the_last_recheck() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, r#"["1s", "2s"]"#).job("page", PAGE);
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    warm(&redis, &["story:a", "page:a"]).await;
    shows(&redis, "page:a", json!({"story": "Of 1"})).await;
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    eventually("all of it is gone", async || {
        let (story, page) = (redis.get("story:a").await, redis.get("page:a").await);
        assert!(story.is_some() || upstream.calls("/art/a") == 4, "the warmup, the invalidation, two rechecks");
        story.is_none() && page.is_none()
    })
    .await;
    assert_eq!((upstream.calls(AI), dead_letters(&redis).await), (1, 0));
}

/// No recheck follows a refresh: another replica is asked before anything is lost that was paid for.
#[tokio::test]
async fn a_paid_for_entry_goes_after_a_second_404() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, "[]").job("told", TOLD);
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    warm(&redis, &["story:a", "told:tr:a"]).await;
    shows(&redis, "story:a", json!("Of 1")).await;
    shows(&redis, "told:tr:a", json!({"path": "/told/tr/1"})).await;
    upstream.on("/art/a", Reply::status(404));
    parts.agenda.put(&crate::support::job(), &[art("a")], When::Urgent, Trigger::Manual).await.unwrap();
    gone(&redis, "told:tr:a").await;
    eventually("the story waits", async || count(&redis, "story", "deferred").await > 0).await;
    assert_eq!(redis.json("story:a").await, Some(json!("Of 1")));
    let story = EntryKey::new("story:a");
    pass(&redis, &parts, Duration::from_secs(120), &["art:a", "story:a"]).await;
    parts.agenda.put(&JobName::new("story"), &[story], When::Urgent, Trigger::Manual).await.unwrap();
    gone(&redis, "story:a").await;
    assert_eq!((upstream.calls("/art/a"), upstream.calls(AI), dead_letters(&redis).await), (3, 1, 0));
}

/// Makes a story, lets its input be gone for one answer, and makes the story due `late` ago, as in a paused job.
async fn late_story(upstream: &Upstream, redis: &TestRedis, jobs: &JobsFolder, late: Duration) -> WorkerProcess {
    let worker = worker(redis, jobs);
    let parts = Parts::of(redis).await;
    warm(redis, &["story:a"]).await;
    shows(redis, "story:a", json!("Of 1")).await;
    let waits = count(redis, "story", "deferred").await;
    parts.agenda.put(&crate::support::job(), &[art("a")], When::Urgent, Trigger::Manual).await.unwrap();
    eventually("the story waits", async || count(redis, "story", "deferred").await > waits).await;
    assert_eq!(upstream.calls("/art/a"), 2);
    let ago = pass(redis, &parts, late, &["art:a", "story:a"]).await;
    let (job, story) = (JobName::new("story"), [EntryKey::new("story:a")]);
    parts.agenda.remove(&job, &story).await.unwrap();
    parts.agenda.put(&job, &story, When::Due(ago), Trigger::Invalidation).await.unwrap();
    worker
}

/// The upstream has the artwork again, and is asked before anything is lost or paid for.
#[tokio::test]
async fn a_late_paid_for_entry_outlasts_a_single_404() {
    for optional in [false, true] {
        let (redis, upstream) = both().await;
        let jobs = stories(&upstream, "[]");
        if optional {
            let story = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
            let story = story.replace("\"art:{name}\"", "{ key = \"art:{name}\", optional = true }");
            jobs.write("story.toml", &story.replace("art.version", "art.version if art else 'nothing'"));
        }
        let there = || Reply::json(json!({"version": 1}));
        upstream.on_each("/art/a", [there(), Reply::status(404), there()]);
        let _worker = late_story(&upstream, &redis, &jobs, Duration::from_secs(120)).await;
        shows(&redis, "art:a", json!({"version": 1})).await;
        eventually("the story holds", async || count(&redis, "story", "unchanged").await > 0).await;
        assert_eq!((redis.json("story:a").await, upstream.calls(AI)), (Some(json!("Of 1")), 1));
        assert_eq!((count(&redis, "story", "gone").await, upstream.calls("/art/a")), (0, 3));
    }
}

/// The second request is made after five minutes, though no other demand asks again so soon.
#[tokio::test]
async fn a_second_404_is_asked_for_within_a_long_absent_for() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, "[]\nabsent_for = \"1h\"");
    upstream.on_each("/art/a", [Reply::json(json!({"version": 1})), Reply::status(404)]);
    let _worker = late_story(&upstream, &redis, &jobs, Duration::from_secs(301)).await;
    gone(&redis, "story:a").await;
    assert_eq!((upstream.calls("/art/a"), upstream.calls(AI), dead_letters(&redis).await), (3, 1, 0));
}

/// A replica that lags is asked for the inputs of entries that have no value yet.
#[tokio::test]
async fn an_entry_without_a_value_waits_for_the_rechecks_of_its_input() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, r#"["1s", "2s"]"#).job("told", TOLD);
    upstream.on_each("/art/a", [vec![Reply::status(404); 2], vec![Reply::json(json!({"version": 3}))]].concat());
    let _worker = worker(&redis, &jobs);
    eventually("the warmup found nothing", async || count(&redis, "art", "gone").await == 1).await;
    Parts::of(&redis).await.invalidate("art:a").await;
    eventually("neither did the invalidation", async || count(&redis, "art", "gone").await == 2).await;
    warm(&redis, &["told:tr:a"]).await;
    shows(&redis, "told:tr:a", json!({"path": "/told/tr/3"})).await;
    assert_eq!((count(&redis, "told", "gone").await, upstream.calls("/art/a")), (0, 3));
}

#[tokio::test]
async fn an_optional_input_that_is_gone_is_null() {
    let (redis, upstream) = both().await;
    let page = "key = \"page:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n\
                frame = { key = \"frame:{name}\", optional = true }\n[source]\nkind = \"compose\"\n\
                value = { art = \"{{ art.version }}\", frame = \"{{ frame }}\" }\n[entries]\nlist = [\"a\"]\n";
    let frame = "key = \"frame:{name}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                 path = \"/frame/{{ name }}\"\n[warm]\nrecheck = []\nattempts = 2\n";
    let jobs = stories(&upstream, "[]").job("page", page).job("frame", frame);
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    shows(&redis, "page:a", json!({"art": 1, "frame": null})).await;
    let checked = samovar(["check", "--fetch"]).redis(&redis).jobs(&jobs).run().await;
    assert!(checked.stdout.contains(r#"✓ page: page:a: "#), "{checked:?}");
    assert!(checked.stdout.contains("input     frame = frame:{name} (optional)"), "{checked:?}");
    upstream.on("/frame/a", Reply::json(json!("oak")));
    parts.invalidate("frame:a").await;
    shows(&redis, "page:a", json!({"art": 1, "frame": "oak"})).await;
    // A failure is no 404.
    upstream.on("/frame/a", Reply::status(500));
    parts.invalidate("frame:a").await;
    eventually("it fails", async || count(&redis, "frame", "failed").await > 0).await;
    shows(&redis, "page:a", json!({"art": 1, "frame": "oak"})).await;
    upstream.on("/frame/a", Reply::status(404));
    parts.invalidate("frame:a").await;
    shows(&redis, "page:a", json!({"art": 1, "frame": null})).await;
    assert_eq!(count(&redis, "page", "gone").await, 0);
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    gone(&redis, "page:a").await;
    let checked = samovar(["check", "--fetch"]).redis(&redis).jobs(&jobs).run().await;
    assert!(checked.stdout.contains("✗ page: page:a: its input art:a is gone: art:a does not exist"), "{checked:?}");
}

/// Its refresh comes later than `absent_for`, and asks for the input again. The value was made without it.
#[tokio::test]
async fn a_refresh_does_not_wait_for_an_optional_input_that_is_gone() {
    for source in ["kind = \"compose\"\nvalue = { frame = \"{{ frame }}\" }", STORY_OF_FRAME] {
        let (redis, upstream) = both().await;
        let page = format!(
            "key = \"page:{{name}}\"\nttl = \"1h\"\n[inputs]\nframe = {{ key = \"frame:{{name}}\", optional = true }}\n\
             [source]\n{source}\n[entries]\nlist = [\"a\"]\n"
        );
        let frame = "key = \"frame:{name}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                     path = \"/frame/{{ name }}\"\n[warm]\nrecheck = []\n";
        let jobs = stories(&upstream, "[]").job("page", &page).job("frame", frame);
        let _worker = worker(&redis, &jobs);
        let parts = Parts::of(&redis).await;
        eventually("the page is there", async || count(&redis, "page", "warmed").await == 1).await;
        pass(&redis, &parts, Duration::from_secs(120), &["frame:a"]).await;
        let (waits, calls) = (count(&redis, "page", "deferred").await, upstream.calls(AI));
        parts.agenda.put(&JobName::new("page"), &[EntryKey::new("page:a")], When::NOW, Trigger::Expiry).await.unwrap();
        eventually("the refresh ends", async || count(&redis, "page", "unchanged").await > 0).await;
        eventually("the frame is asked for", async || count(&redis, "frame", "gone").await == 2).await;
        assert_eq!((count(&redis, "page", "deferred").await, upstream.calls(AI)), (waits, calls), "{source}");
    }
}

/// Nobody lists the frame or tells of its return, and the page is fresh.
#[tokio::test]
async fn a_warmup_asks_again_for_an_optional_input() {
    let (redis, upstream) = both().await;
    let page = "key = \"page:{name}\"\nttl = \"1h\"\n[inputs]\nframe = { key = \"frame:{name}\", optional = true }\n\
                [source]\nkind = \"compose\"\nvalue = { frame = \"{{ frame }}\" }\n[entries]\nlist = [\"a\"]\n\
                [warm]\nevery = \"1s\"\n";
    let frame = "key = \"frame:{name}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                 path = \"/frame/{{ name }}\"\n[warm]\nrecheck = []\nabsent_for = \"3s\"\n";
    let jobs = stories(&upstream, "[]").job("page", page).job("frame", frame);
    let _worker = worker(&redis, &jobs);
    shows(&redis, "page:a", json!({"frame": null})).await;
    eventually("it is asked for again", async || upstream.calls("/frame/a") >= 2).await;
    upstream.on("/frame/a", Reply::json(json!("oak")));
    shows(&redis, "page:a", json!({"frame": "oak"})).await;
    let calls = upstream.calls("/frame/a");
    assert!(calls <= 20, "not at each warmup: {calls}");
}

/// Nobody reads the artwork. It expires before the page, and has the same content when it is fetched for the page's
/// refresh.
#[tokio::test]
async fn a_refresh_goes_on_as_soon_as_its_input_is_there() {
    let (redis, upstream) = both().await;
    let page = "key = \"page:{name}\"\nttl = \"19s\"\n[inputs]\nart = \"art:{name}\"\n[entries]\nlist = [\"a\"]\n\
                [source]\nkind = \"compose\"\nvalue = { art = \"{{ art.version }}\" }\n[warm]\nahead = \"13s\"\n";
    let jobs = stories(&upstream, "[]").job("page", page);
    let _worker = worker(&redis, &jobs);
    shows(&redis, "page:a", json!({"art": 1})).await;
    let made = redis.ask::<i64>(&["PEXPIRETIME", "page:a"]).await;
    Parts::of(&redis).await.agenda.remove(&crate::support::job(), &[art("a")]).await.unwrap();
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    // It would wait for the artwork for 15 s, from 3 s on.
    eventually_within(Duration::from_secs(14), "the page is refreshed", async || {
        let expires = redis.ask::<i64>(&["PEXPIRETIME", "page:a"]).await;
        assert_ne!(expires, -2, "the page is there all the time");
        if expires > made { Ok(()) } else { Err(expires) }
    })
    .await;
    assert_eq!(count(&redis, "page", "gone").await, 0);
}

/// A worker dies after it has removed the input, and before it wakes what is made from it.
#[tokio::test]
async fn an_attempt_finds_that_an_input_is_gone() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, "[]").job("told", TOLD);
    let mut first = worker(&redis, &jobs);
    warm(&redis, &["told:tr:a"]).await;
    shows(&redis, "told:tr:a", json!({"path": "/told/tr/1"})).await;
    eventually("its attempt has ended", async || count(&redis, "told", "warmed").await == 1).await;
    first.kill9();
    let parts = Parts::of(&redis).await;
    parts.next_instant().await;
    let lease = parts.lease("a", Duration::from_secs(60)).await;
    let requests = Jobs::load(jobs.path(), TTL, &|_| None).unwrap().jobs["art"].requests.clone();
    let validators = Validators { prompt: Some(requests), ..Validators::default() };
    let answered = LastAttempt { validators, outcome: Some(Outcome::Gone), ..LastAttempt::default() };
    let written = parts.store.gone(&art("a"), &lease, &answered).await.unwrap();
    assert!(matches!(written, Written::Done { changed: true, .. }), "{written:?}");
    // A demand leaves a value alone that is not outdated. The refresh of one that nobody reads does so, too.
    let (told, key) = (JobName::new("told"), [EntryKey::new("told:tr:a")]);
    parts.agenda.remove(&told, &key).await.unwrap();
    parts.agenda.put(&told, &key, When::NOW, Trigger::Demand).await.unwrap();
    let _second = worker(&redis, &jobs);
    gone(&redis, "told:tr:a").await;
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/told/tr/1")), (1, 1));
}

/// The answer is let out when the input is gone. With a message for both, the lease is renewed as well.
#[tokio::test]
async fn an_input_that_goes_during_a_fetch_takes_the_entry_along() {
    for message in ["art:a", r#"{"keys": ["art:a", "told:tr:a"]}"#] {
        let (redis, upstream) = both().await;
        let jobs = stories(&upstream, "[]").job("told", TOLD);
        let gate = upstream.gate("/told/tr/1");
        let _worker = worker(&redis, &jobs);
        let parts = Parts::of(&redis).await;
        warm(&redis, &["told:tr:a"]).await;
        gate.arrived(1).await;
        upstream.on("/art/a", Reply::status(404));
        parts.invalidate(message).await;
        gone(&redis, "art:a").await;
        gate.open();
        eventually("it is gone, too", async || count(&redis, "told", "gone").await > 0).await;
        eventually("nothing is left to do", async || redis.ask::<u64>(&["ZCARD", "samovar:agenda:{told}"]).await == 0)
            .await;
        assert_eq!((redis.get("told:tr:a").await, dead_letters(&redis).await), (None, 0), "{message}");
    }
}
