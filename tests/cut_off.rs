//! AI answers that are cut off: each is paid for, and the same request is not made again by itself.

use std::time::Duration;

use samovar::agenda::{State, When};
use samovar::entry::{EntryKey, JobName, Trigger};
use samovar::store::LastAttempt;
use serde_json::{Value, json};

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, both, eventually, publish, samovar, talkative, worker,
};

const ASKED: &str = "/v1/chat/completions";
const NOT_AGAIN: &str = "the same request is not paid for again";

/// A job `story` with the entry `story:a`, which is listed, and with more lines in its file. Its prompt has `topic`.
fn stories(upstream: &Upstream, topic: &str, top: &str, warm: &str) -> JobsFolder {
    let ai = format!("[openai]\nurl = \"{}/v1\"\n", upstream.url());
    Art::of(upstream).limits(&ai).folder().job("story", &story(topic, top, warm))
}

fn story(topic: &str, top: &str, warm: &str) -> String {
    format!(
        "key = \"story:{{name}}\"\nttl = \"1h\"\n{top}\n[source]\nkind = \"ai\"\nupstream = \"openai\"\n\
         model = \"tiny\"\nmax_tokens = 5\nprompt = \"Tell of {{{{ name }}}} {topic}\"\n[entries]\nlist = [\"a\"]\n\
         [warm]\n{warm}\n"
    )
}

/// Answers with such a `finish_reason`; the text is the number of the answer.
fn answers(upstream: &Upstream, finish_reason: &'static str) {
    upstream.answer(ASKED, move |_, count| {
        Reply::json(json!({
            "choices": [{"message": {"content": format!("{count}")}, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
        }))
    });
}

async fn last_attempt(parts: &Parts) -> LastAttempt {
    let meta = parts.store.snapshot(&EntryKey::new("story:a")).await.unwrap().meta;
    meta.map(|meta| meta.last_attempt).unwrap_or_default()
}

/// Waits for an attempt that began after this one; returns it.
async fn next_attempt(parts: &Parts, after: &LastAttempt) -> LastAttempt {
    eventually("it is tried again", async || {
        let last = last_attempt(parts).await;
        if last.attempted > after.attempted { Ok(last) } else { Err(format!("{last:?}")) }
    })
    .await
}

/// Waits until the entry is given up; returns the reason.
async fn given_up(redis: &TestRedis) -> String {
    eventually("it is given up", async || {
        redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{story}", "story:a"]).await
    })
    .await
}

async fn retry(redis: &TestRedis, jobs: &JobsFolder) {
    let done = samovar(["dead", "story:a", "--retry"]).redis(redis).jobs(jobs).run().await;
    assert!(done.stdout.contains("1 put back"), "{done:?}");
}

#[tokio::test]
async fn a_request_that_was_cut_off_is_made_again_on_request_only() {
    let (redis, upstream) = both().await;
    answers(&upstream, "length");
    let jobs = stories(&upstream, "", "", "");
    let parts = Parts::of(&redis).await;
    let mut first = worker(&redis, &jobs);
    let reason = given_up(&redis).await;
    assert!(reason.contains("was cut off at") && reason.contains(NOT_AGAIN), "{reason}");
    assert_eq!(upstream.calls(ASKED), 1);
    let kept: i64 = redis.ask(&["PTTL", &parts.keys.meta(&EntryKey::new("story:a"))]).await;
    assert!(kept > 29 * 86_400_000, "{kept} ms");
    first.kill9();
    let _second = worker(&redis, &jobs);
    for message in ["story:a", r#"{"action": "warm", "keys": ["story:a"]}"#] {
        let before = last_attempt(&parts).await;
        publish(&redis, message).await;
        let last = next_attempt(&parts, &before).await;
        assert!(last.reason.unwrap().contains(NOT_AGAIN), "{message}");
        assert_eq!(upstream.calls(ASKED), 1, "{message}");
    }
    eventually("it is given up again", async || {
        let shown = samovar(["dead", "story:a"]).redis(&redis).jobs(&jobs).run().await.stdout;
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        if shown.contains(NOT_AGAIN) && shown.contains("dead --retry") { Ok(()) } else { Err(shown) }
    })
    .await;
    retry(&redis, &jobs).await;
    eventually("the operator's request is made", async || upstream.calls(ASKED) == 2).await;
    given_up(&redis).await;
    answers(&upstream, "stop");
    retry(&redis, &jobs).await;
    eventually("it is told", async || redis.json("story:a").await).await;
    assert_eq!(last_attempt(&parts).await.cut, Vec::<String>::new());
}

#[tokio::test]
async fn a_changed_job_file_asks_anew_for_what_was_cut_off() {
    let (redis, upstream) = both().await;
    answers(&upstream, "length");
    let jobs = stories(&upstream, "", "", "");
    let worker = worker(&redis, &jobs);
    given_up(&redis).await;
    answers(&upstream, "stop");
    jobs.write("story.toml", &story("at length", "", ""));
    worker.hangup();
    eventually("it is asked anew", async || redis.json("story:a").await).await;
}

#[tokio::test]
async fn a_changed_input_asks_anew_for_what_was_cut_off() {
    let (redis, upstream) = both().await;
    answers(&upstream, "length");
    upstream.edit("/art/a");
    let jobs = stories(&upstream, "{{ art.version }}", "[inputs]\nart = \"art:{name}\"", "");
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    given_up(&redis).await;
    // The same input again: nothing is paid for.
    parts.invalidate("art:a").await;
    let asked = upstream.calls("/art/a");
    eventually("its input is fetched again", async || upstream.calls("/art/a") >= asked.max(2)).await;
    answers(&upstream, "stop");
    upstream.edit("/art/a");
    parts.invalidate("art:a").await;
    eventually("it is asked anew", async || redis.json("story:a").await).await;
    assert_eq!(upstream.calls(ASKED), 2);
}

/// What `stale_if_error` keeps is tried every few minutes, and no longer for the operator who asked once.
#[tokio::test]
async fn a_kept_value_is_not_paid_for_with_each_try() {
    let (redis, upstream) = both().await;
    answers(&upstream, "stop");
    upstream.edit("/art/a");
    let jobs = stories(&upstream, "", "", "");
    let input = "[inputs]\nart = \"art:{name}\"";
    let kept = story("{{ art.version }}", input, "stale_if_error = \"2h\"").replace("\"1h\"", "\"1m\"");
    jobs.write("story.toml", &kept);
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    eventually("it is told", async || redis.json("story:a").await).await;
    answers(&upstream, "length");
    upstream.edit("/art/a");
    parts.invalidate("art:a").await;
    let waits = async |trigger: Trigger| {
        eventually("it waits for its next try", async || {
            let job = JobName::new("story");
            let due = parts.agenda.dues(&job, &[EntryKey::new("story:a")]).await.unwrap().remove(0);
            let waits = due.is_some_and(|due| due.trigger == trigger && due.state != State::Running);
            let is_cut = !last_attempt(&parts).await.cut.is_empty();
            if waits && is_cut { Ok(()) } else { Err(format!("{due:?}")) }
        })
        .await;
    };
    waits(Trigger::Invalidation).await;
    assert_eq!(upstream.calls(ASKED), 2);
    let warm = samovar(["warm", "story:a"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(warm.code, Some(0), "{warm:?}");
    eventually("the operator's request is made", async || upstream.calls(ASKED) == 3).await;
    waits(Trigger::Expiry).await;
    assert_eq!(redis.json("story:a").await, Some(json!("1")));
}

#[tokio::test]
async fn a_fallback_stands_in_for_what_was_cut_off() {
    let (redis, upstream) = both().await;
    answers(&upstream, "length");
    upstream.edit("/art/a");
    let fallback = "fallback = [{ kind = \"http\", upstream = \"museum\", path = \"/art/{{ name }}\" }]\n[entries]";
    let jobs = stories(&upstream, "", "", "");
    jobs.write("story.toml", &story("", "", "").replace("[entries]", fallback));
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    eventually("the fallback answers", async || redis.json("story:a").await).await;
    upstream.edit("/art/a");
    parts.invalidate("story:a").await;
    eventually("the fallback is asked again", async || {
        redis.json("story:a").await.is_some_and(|story| story["version"] == 2)
    })
    .await;
    assert_eq!(upstream.calls(ASKED), 1);
}

/// A value stays, and is refreshed; so the entry is no dead letter.
#[tokio::test]
async fn a_cut_off_recheck_leaves_no_dead_letter_behind() {
    let (redis, upstream) = both().await;
    answers(&upstream, "length");
    let jobs = stories(&upstream, "", "", "recheck = [\"1s\"]");
    let parts = Parts::of(&redis).await;
    let _worker = talkative(&redis, &jobs).spawn();
    given_up(&redis).await;
    redis.set("story:a", "\"foreign\"", Duration::from_secs(3_600)).await;
    let before = last_attempt(&parts).await;
    let (job, key) = (JobName::new("story"), EntryKey::new("story:a"));
    parts.agenda.put(&job, [&key], When::NOW, Trigger::Recheck).await.unwrap();
    next_attempt(&parts, &before).await;
    eventually("it is refreshed, and no dead letter", async || {
        let due = parts.agenda.dues(&job, std::slice::from_ref(&key)).await.unwrap().remove(0);
        let dead: Option<f64> = redis.ask(&["ZSCORE", "samovar:dead:{story}", "story:a"]).await;
        let is_refreshed = due.is_some_and(|due| due.trigger == Trigger::Expiry);
        if is_refreshed && dead.is_none() { Ok(()) } else { Err(format!("{due:?} {dead:?}")) }
    })
    .await;
    assert_eq!((redis.get("story:a").await.as_deref(), upstream.calls(ASKED)), (Some("\"foreign\""), 1));
}

#[tokio::test]
async fn a_dead_letter_that_is_due_says_when_it_is_tried_again() {
    let (redis, upstream) = both().await;
    answers(&upstream, "length");
    let jobs = stories(&upstream, "", "", "");
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    given_up(&redis).await;
    let at = parts.now().await + Duration::from_secs(605);
    let key = EntryKey::new("story:a");
    parts.agenda.put(&JobName::new("story"), [&key], When::Due(at), Trigger::Recheck).await.unwrap();
    let shown = samovar(["dead", "--json"]).redis(&redis).jobs(&jobs).run().await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["dead"][0]["due_ms"], json!(at.as_millis()));
    let shown = samovar(["dead"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(shown.contains("TRIED AGAIN") && shown.contains("in 10m"), "{shown}");
}
