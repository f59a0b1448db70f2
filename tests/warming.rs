//! The whole path: job files, worker processes, an upstream, and what the API then reads.
use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, both, eventually, listening,
    readable_key as readable, samovar, talkative, worker,
};
use samovar::agenda::{Due, State, When};
use samovar::entry::Outcome;
use samovar::entry::Trigger;
use samovar::entry::{EntryKey, JobName};
use samovar::store::LastAttempt;
use serde_json::{Value, json};

/// Answers everything with its path.
fn obliging(upstream: &Upstream) {
    upstream.otherwise(|call, _| Reply::json(json!({"data": {"path": call.path()}})));
}

async fn version(redis: &TestRedis, key: &str, version: u64) {
    eventually(&format!("version {version} of {key} is readable"), async || match redis.json(key).await {
        Some(value) if value["version"] == version => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn listed_entries_are_readable_as_plain_json_with_a_ttl() {
    let (redis, upstream) = both().await;
    obliging(&upstream);
    let jobs = Art::of(&upstream).source("select = \"/data\"").list(["Mona Lisa", "Kaplumbağa Terbiyecisi"]).folder();
    let _worker = worker(&redis, &jobs);
    for (name, path) in
        [("Mona Lisa", "/art/Mona%20Lisa"), ("Kaplumbağa Terbiyecisi", "/art/Kaplumba%C4%9Fa%20Terbiyecisi")]
    {
        let key = format!("art:{name}");
        assert_eq!(readable(&redis, &key).await, json!({"path": path}));
        let ttl = redis.ttl(&key).await.expect("a value has a TTL");
        assert!(ttl > Duration::from_secs(3_500) && ttl <= Duration::from_secs(3_600), "{ttl:?}");
        assert_eq!(upstream.calls(&format!("/art/{name}")), 1);
    }
}

#[tokio::test]
async fn what_one_worker_warmed_no_second_one_fetches_again() {
    let (redis, upstream) = both().await;
    obliging(&upstream);
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).list(&names).folder();
    let _first = worker(&redis, &jobs);
    for name in &names {
        readable(&redis, &format!("art:{name}")).await;
    }
    let mut second = worker(&redis, &jobs);
    second.wait_for_log(&["samovar"]).await;
    // A new entry goes through both workers' hands or either's: by then both are at work.
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:new"], "action": "warm"}"#).await;
    readable(&redis, "art:new").await;
    assert_eq!(upstream.all_requests().len(), 21);
}

#[tokio::test]
async fn workers_that_start_together_fetch_each_entry_once() {
    let (redis, upstream) = both().await;
    obliging(&upstream);
    let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).list(&names).folder();
    let _workers: Vec<WorkerProcess> = (0..3).map(|_| worker(&redis, &jobs)).collect();
    for name in &names {
        readable(&redis, &format!("art:{name}")).await;
    }
    assert_eq!((upstream.all_requests().len(), upstream.most_in_flight_for_any()), (100, 1));
}

#[tokio::test]
async fn two_workers_share_the_work() {
    const MANY: usize = 3_000;
    let (redis, upstream) = both().await;
    obliging(&upstream);
    let jobs = Art::of(&upstream).folder();
    let mut workers: Vec<WorkerProcess> = (0..2).map(|_| worker(&redis, &jobs)).collect();
    for worker in &mut workers {
        worker.wait_for_log(&["samovar"]).await;
    }
    listening(&redis, 2).await;
    eventually("both are at work", async || redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await == 2).await;
    upstream.otherwise(|_, _| Reply::json(json!({})).after(Duration::from_millis(20)));
    // Many more than the fleet has in flight: one worker may be the first to take all that is on the queue at a time.
    let keys: Vec<String> = (0..MANY).map(|n| format!("art:{n}")).collect();
    let message = json!({"keys": keys, "action": "warm"}).to_string();
    Parts::of(&redis).await.publish(&message).await;
    for key in &keys {
        readable(&redis, key).await;
    }
    let shares: Vec<usize> = workers
        .iter()
        .map(|worker| worker.log().iter().filter(|line| line.contains("outcome=warmed")).count())
        .collect();
    assert_eq!(shares.iter().sum::<usize>(), MANY, "{shares:?}");
    assert!(shares.iter().all(|share| *share > MANY / 20), "{shares:?}");
}

#[tokio::test]
async fn a_get_always_hits_while_an_entry_is_refreshed_ahead() {
    let (redis, upstream) = both().await;
    upstream.answer("/art/a", |_, call| Reply::json(json!({"version": call})));
    let jobs = Art::of(&upstream).ttl("2s").list(["a"]).warm("ahead = \"1s\"").folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "art:a").await;
    // Three refreshes are more than one life of the first value.
    let mut seen = 0;
    while seen < 4 {
        let value = redis.json("art:a").await.expect("a GET hits always");
        seen = value["version"].as_u64().unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

#[tokio::test]
async fn a_304_extends_the_ttl_without_a_new_body() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).ttl("3s").list(["a"]).warm("ahead = \"2s\"").folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "art:a").await;
    let parts = Parts::of(&redis).await;
    let first = parts.meta("a").await.unwrap();
    upstream.called("/art/a", 3).await;
    let meta = eventually("it was extended", async || {
        // Both at once: it may be extended again at any moment.
        let found = parts.store.snapshot(&EntryKey::new("art:a")).await.unwrap();
        found.into_ours().filter(|meta| meta.last_attempt.outcome == Some(Outcome::Unchanged))
    })
    .await;
    assert!(meta.own_expiry > first.own_expiry);
    assert_eq!(meta.hash, first.hash);
    let asked = upstream.requests("/art/a");
    assert_eq!(asked[0].headers.get("if-none-match"), None);
    assert!(asked[1..].iter().all(|call| call.headers["if-none-match"] == "\"v1\""));
    // The validators live on, too.
    upstream.edit("/art/a");
    version(&redis, "art:a", 2).await;
}

#[tokio::test]
async fn an_entry_gone_upstream_is_removed_until_the_next_warmup() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut first = worker(&redis, &jobs);
    readable(&redis, "art:a").await;
    let parts = Parts::of(&redis).await;
    upstream.on("/art/a", Reply::status(410));
    parts.invalidate("art:a").await;
    eventually("it is gone", async || redis.get("art:a").await.is_none()).await;
    eventually("it waits for its recheck", async || {
        parts.score("a").await.map(|score| Due::from_score(score).trigger) == Some(Trigger::Recheck)
    })
    .await;
    assert_eq!((upstream.calls("/art/a"), parts.stat("gone").await), (2, 1));
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.outcome, Some(Outcome::Gone));
    // A changed job file is a warmup.
    first.kill9();
    upstream.edit("/art/a");
    jobs.write("art.toml", &format!("description = \"changed\"\n{}", Art::of(&upstream).list(["a"]).toml()));
    let _second = worker(&redis, &jobs);
    version(&redis, "art:a", 2).await;
}

#[tokio::test]
async fn any_fault_of_the_upstream_keeps_the_old_value_and_says_why() {
    let json = || Reply::json(json!({"data": {"version": 9}, "pad": "x".repeat(400)}));
    let wrong = [
        ("500", Reply::status(500), "500"),
        ("400", Reply::status(400), "400"),
        ("silence", Reply::silence(), "timed out|within"),
        ("stalled", json().stall_after(20), "timed out|within"),
        ("half", json().cut_after(20), ""),
        ("huge", Reply::json(json!({"data": "x".repeat(100_000)})), "1"),
        ("endless", Reply::endless(), ""),
        ("html", Reply::text("<html>Sorry</html>").header("Content-Type", "text/html"), "JSON"),
        ("invalid", Reply::text("{\"data\": {\"version\": 9}"), "JSON"),
        ("empty", Reply::text(""), ""),
        ("elsewhere", Reply::json(json!({"other": 1})), "/data"),
        ("refused", Reply::json(json!({"data": {"version": 9, "error": "no"}})), "accept"),
        ("redirect", Reply::status(302).header("Location", "http://localhost:1/"), ""),
    ];
    let (redis, upstream) = both().await;
    let names: Vec<&str> = wrong.iter().map(|(name, ..)| *name).collect();
    for name in &names {
        upstream.on(&format!("/art/{name}"), Reply::json(json!({"data": {"version": 1}})));
    }
    let jobs = Art::of(&upstream)
        .limits("timeout = \"300ms\"\nmax_bytes = \"10KiB\"")
        .source("select = \"/data\"\naccept = \"{{ value.error is undefined }}\"")
        .list(&names)
        .warm("attempts = 1")
        .folder();
    let _worker = worker(&redis, &jobs);
    for name in &names {
        version(&redis, &format!("art:{name}"), 1).await;
    }
    let parts = Parts::of(&redis).await;
    for (n, (name, reply, reason)) in wrong.into_iter().enumerate() {
        upstream.on(&format!("/art/{name}"), reply);
        parts.invalidate(&format!("art:{name}")).await;
        let said = eventually(&format!("{name} has failed"), async || {
            let last_attempt = parts.meta(name).await.unwrap().last_attempt;
            if last_attempt.outcome == Some(Outcome::Failed) {
                Ok(last_attempt.reason.unwrap())
            } else {
                Err(last_attempt)
            }
        })
        .await;
        assert!(!said.is_empty() && reason.split('|').any(|reason| said.contains(reason)), "{name}: {said}");
        assert!(said.len() < 1_000 && !said.contains('\n'), "{name}: {said}");
        assert_eq!(redis.json(&format!("art:{name}")).await.unwrap(), json!({"version": 1}), "{name}");
        eventually("it is counted", async || parts.stat("failed").await == n as u64 + 1).await;
        let last: String = redis.ask(&["HGET", "samovar:stats:{art}", "last"]).await;
        let last: Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&last["outcome"], &last["key"]), (&json!("failed"), &json!(format!("art:{name}"))));
        // A breaker that opens is another test's claim.
        redis.ask::<u64>(&["DEL", "samovar:limit:{museum}"]).await;
    }
}

#[tokio::test]
async fn a_fetch_that_fails_is_tried_again() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", [Reply::status(500), Reply::status(503), Reply::json(json!({"version": 1}))]);
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "art:a", 1).await;
    let parts = Parts::of(&redis).await;
    assert_eq!((upstream.calls("/art/a"), parts.stat("failed").await), (3, 2));
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.failures, 0);
}

#[tokio::test]
async fn after_the_last_try_an_entry_is_a_dead_letter_with_its_reason() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::status(500));
    let jobs = Art::of(&upstream).list(["a"]).warm("attempts = 3").folder();
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    let dead = async || redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{art}", "art:a"]).await;
    let reason = eventually("it is a dead letter", dead).await;
    assert!(reason.contains("3 times") && reason.contains("500"), "{reason}");
    assert_eq!((upstream.calls("/art/a"), parts.score("a").await), (3, None));
    // Somebody says that it is well again.
    upstream.edit("/art/a");
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    version(&redis, "art:a", 1).await;
    eventually("it is a dead letter no more", async || dead().await.is_none()).await;
}

#[tokio::test]
async fn a_fallback_answers_when_the_source_does_not() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::status(500));
    upstream.on("/other/a", Reply::json(json!({"from": "the other"})));
    let source = "fallback = [{ kind = \"http\", upstream = \"museum\", path = \"/other/{{ name }}\" }]";
    let jobs = Art::of(&upstream).source(source).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    assert_eq!(readable(&redis, "art:a").await, json!({"from": "the other"}));
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/other/a")), (1, 1));
}

#[tokio::test]
async fn a_403_that_asks_to_wait_is_a_rate_limit_for_all() {
    let (redis, upstream) = both().await;
    let limited = |reply: Reply| reply.header("X-RateLimit-Remaining", "0").header("X-RateLimit-Reset", "600");
    upstream.otherwise(move |_, _| limited(Reply::text("{\"message\": \"API rate limit\"}").with_status(403)));
    let jobs = Art::of(&upstream).list(["a", "b", "c", "d", "e"]).limits("concurrency = 1").folder();
    let mut worker = worker(&redis, &jobs);
    let told = worker.wait_for_log(&["INFO", "it asks to be left alone for 10m"]).await;
    assert!(told.contains("API rate limit"), "{told}");
    let parts = Parts::of(&redis).await;
    eventually("all are put off", async || {
        let deferred = parts.stat("deferred").await;
        if deferred >= 5 { Ok(()) } else { Err(deferred) }
    })
    .await;
    let asked = upstream.all_requests().len();
    assert_eq!((asked, redis.keys("samovar:dead:*").await.len()), (1, 0));
}

#[tokio::test]
async fn an_exhausted_account_is_told_at_warn_and_left_alone() {
    let (redis, upstream) = both().await;
    let spent = json!({"error": {"message": "see your plan", "code": "insufficient_quota"}}).to_string();
    upstream.otherwise(move |_, _| Reply::text(&spent).with_status(429));
    let jobs = Art::of(&upstream).list(["a", "b", "c"]).limits("concurrency = 1").folder();
    let mut worker = worker(&redis, &jobs);
    let told = worker.wait_for_log(&["WARN", "it refuses this account", "insufficient_quota"]).await;
    assert!(told.contains("quota, its billing"), "{told}");
    let said = async |command: &[&str]| samovar(command).redis(&redis).jobs(&jobs).run().await.stdout;
    eventually("`jobs` says why", async || {
        let jobs = said(&["jobs", "--json"]).await;
        let all = [jobs.contains("insufficient_quota"), jobs.contains("\"closed\": \"refused\"")];
        if all == [true; 2] { Ok(()) } else { Err(jobs) }
    })
    .await;
    let asked = upstream.all_requests();
    assert_eq!(asked.len(), 1);
    let key = format!("art:{}", asked[0].path().trim_start_matches("/art/"));
    eventually("`get` says why", async || {
        let shown = said(&["get", &key]).await;
        if shown.contains("insufficient_quota") { Ok(()) } else { Err(shown) }
    })
    .await;
    assert_eq!(worker.log().iter().filter(|line| line.contains("it refuses this account")).count(), 1);
}

#[tokio::test]
async fn a_fallback_answers_while_the_breaker_of_the_source_is_open() {
    let (redis, upstream) = both().await;
    let other = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::status(500));
    other.otherwise(|_, _| Reply::json(json!({"from": "the other"})));
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let source = "fallback = [{ kind = \"http\", upstream = \"other\", path = \"/{{ name }}\" }]";
    let limits = format!("concurrency = 2\n[other]\nurl = \"{}\"", other.url());
    let jobs = Art::of(&upstream).source(source).limits(&limits).list(&names).folder();
    let _worker = worker(&redis, &jobs);
    for name in &names {
        assert_eq!(readable(&redis, &format!("art:{name}")).await, json!({"from": "the other"}));
    }
    let asked = upstream.all_requests().len();
    assert!(asked < 20, "the breaker spares the source: {asked}");
}

#[tokio::test]
async fn two_workers_together_respect_an_upstreams_concurrency() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})).after(Duration::from_millis(15)));
    let names: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let jobs = Art::of(&upstream).limits("concurrency = 3").list(&names).folder();
    let _workers = [worker(&redis, &jobs), worker(&redis, &jobs)];
    for name in &names {
        readable(&redis, &format!("art:{name}")).await;
    }
    assert_eq!(upstream.most_at_once(), 3);
}

#[tokio::test]
async fn names_reach_the_upstream_whole_and_the_key_is_unchanged() {
    let names = [
        "Mona Lisa",
        "a/b",
        "//",
        "100%",
        "%2F",
        "why?",
        "#1",
        "a&b=c",
        "a+b",
        "\"quoted\"",
        "it's",
        "a:b:c",
        "{brace}",
        "a..b",
        "...",
        "../../etc/passwd",
        "back\\slash",
        "a;b",
        "[x]*",
        "Kaplumbağa Terbiyecisi",
        "İIıi",
        "神奈川沖浪裏",
        "🖼️",
        "~",
        "<b>",
        "tab\there",
        "e\u{301}",
        "a,b@c$d!",
    ];
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!(call.target)));
    let jobs = Art::of(&upstream).list(names).folder();
    let _worker = worker(&redis, &jobs);
    for name in names {
        let target = readable(&redis, &format!("art:{name}")).await;
        let segment = target.as_str().unwrap().strip_prefix("/art/").unwrap().to_owned();
        let decoded = percent_encoding::percent_decode_str(&segment).decode_utf8().unwrap();
        assert_eq!(decoded, name, "{target}");
        assert!(!segment.contains(['/', '?', '#', '&', '+']), "{target}");
    }
    let expected: BTreeSet<String> = names.iter().map(|name| format!("art:{name}")).collect();
    assert_eq!(redis.keys("art:*").await.into_iter().collect::<BTreeSet<_>>(), expected);
}

/// A program that normalises a URL takes such a segment for a step up, percent-encoded or not.
#[tokio::test]
async fn a_name_no_url_can_carry_fails_with_the_reason_and_no_request() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!(call.target)));
    let jobs = Art::of(&upstream).list(["..", "."]).warm("attempts = 1").folder();
    let _worker = worker(&redis, &jobs);
    for name in ["..", "."] {
        let key = format!("art:{name}");
        let reason = eventually(&format!("{key} is a dead letter"), async || {
            redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{art}", &key]).await
        })
        .await;
        assert!(reason.contains("no URL can carry"), "{reason}");
    }
    assert_eq!(upstream.all_requests().len(), 0);
}

/// A museum and an AI behind one upstream server; `story:a` is made from `art:a`.
fn stories(upstream: &Upstream, art: &Art) -> JobsFolder {
    upstream.answer("/v1/chat/completions", |call, count| {
        let prompt = call.json()["messages"].as_array().unwrap().last().unwrap()["content"].clone();
        Reply::json(json!({
            "choices": [{
                "message": {"role": "assistant", "content": format!("Story {count} of {}", prompt.as_str().unwrap())},
                "finish_reason": "stop",
            }],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }))
    });
    let ai = format!("[openai]\nurl = \"{}/v1\"\nconcurrency = 2", upstream.url());
    art.clone().limits(&ai).folder().job(
        "story",
        r#"
        key = "story:{name}"
        ttl = "1h"
        [inputs]
        artwork = "art:{name}"
        [source]
        kind = "ai"
        upstream = "openai"
        model = "tiny"
        prompt = "{{ name }}: {{ artwork | tojson }}"
        [entries]
        list = ["a"]
        "#,
    )
}

#[tokio::test]
async fn a_dependant_is_warmed_after_its_input_and_when_it_changes() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let gate = upstream.gate("/art/a");
    let jobs = stories(&upstream, &Art::of(&upstream).list(["a"]));
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    assert_eq!(upstream.calls("/v1/chat/completions"), 0);
    gate.open();
    assert_eq!(readable(&redis, "story:a").await, json!(r#"Story 1 of a: {"title":"one"}"#));
    upstream.on("/art/a", Reply::json(json!({"title": "two"})));
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:a").await;
    eventually("the story is told anew", async || {
        redis.json("story:a").await == Some(json!(r#"Story 2 of a: {"title":"two"}"#))
    })
    .await;
    assert_eq!(upstream.calls("/v1/chat/completions"), 2);
}

/// The input is not listed anywhere: it is fetched because it is wanted.
#[tokio::test]
async fn a_missing_input_is_fetched_although_nobody_listed_it() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream, &Art::of(&upstream));
    let _worker = worker(&redis, &jobs);
    assert_eq!(readable(&redis, "story:a").await, json!(r#"Story 1 of a: {"title":"one"}"#));
    assert_eq!(upstream.calls("/art/a"), 1);
}

/// An API that helps itself on a miss may be faster than the worker, and write the same.
#[tokio::test]
async fn an_entry_goes_on_when_its_input_is_there_whoever_wrote_it() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let gate = upstream.gate("/art/a");
    let jobs = stories(&upstream, &Art::of(&upstream).list(["a"]));
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    let story = async |field: &str| redis.ask::<Option<String>>(&["HGET", "samovar:stats:{story}", field]).await;
    eventually("the story waits", async || story("deferred").await).await;
    redis.set("art:a", r#"{"title":"one"}"#, Duration::from_secs(3_600)).await;
    gate.open();
    assert_eq!(readable(&redis, "story:a").await, json!(r#"Story 1 of a: {"title":"one"}"#));
    // Not by the wait having run out.
    let last =
        eventually("the story's end is told", async || story("last").await.filter(|last| last.contains("warmed")))
            .await;
    assert!(last.contains(r#""trigger":"invalidation""#), "{last}");
}

#[tokio::test]
async fn nobody_pays_for_a_prompt_that_is_unchanged() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream, &Art::of(&upstream).list(["a"]));
    let text = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
    jobs.write("story.toml", &format!("{}\n[warm]\nahead = \"2s\"", text.replace("\"1h\"", "\"3s\"")));
    let _worker = worker(&redis, &jobs);
    let first = readable(&redis, "story:a").await;
    let expires: i64 = redis.ask(&["PEXPIRETIME", "story:a"]).await;
    let unchanged = async || redis.ask::<Option<u64>>(&["HGET", "samovar:stats:{story}", "unchanged"]).await;
    eventually("it was kept twice", async || unchanged().await.unwrap_or_default() >= 2).await;
    assert!(redis.ask::<i64>(&["PEXPIRETIME", "story:a"]).await > expires);
    assert_eq!((redis.json("story:a").await, upstream.calls("/v1/chat/completions")), (Some(first), 1));
}

#[tokio::test]
async fn an_invalidated_story_is_told_anew_with_an_unchanged_prompt() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream, &Art::of(&upstream).list(["a"]));
    let _worker = worker(&redis, &jobs);
    readable(&redis, "story:a").await;
    Parts::of(&redis).await.invalidate("story:a").await;
    eventually("the story is told anew", async || {
        redis.json("story:a").await == Some(json!(r#"Story 2 of a: {"title":"one"}"#))
    })
    .await;
}

#[tokio::test]
async fn an_ai_answer_that_was_cut_short_is_paid_for_once() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream, &Art::of(&upstream).list(["a"]));
    upstream.on(
        "/v1/chat/completions",
        Reply::json(json!({
            "choices": [{"message": {"content": "Once upon"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        })),
    );
    let _worker = worker(&redis, &jobs);
    eventually("it has failed", async || {
        redis.ask::<Option<u64>>(&["HGET", "samovar:stats:{story}", "failed"]).await.is_some()
    })
    .await;
    let reason = eventually("it is given up", async || {
        redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{story}", "story:a"]).await
    })
    .await;
    assert!(reason.contains("was cut off at") && reason.contains("raise the limit"), "{reason}");
    assert!(!reason.contains("times, last"), "{reason}");
    assert_eq!((redis.get("story:a").await, upstream.calls("/v1/chat/completions")), (None, 1));
}

#[tokio::test]
async fn all_names_follow_the_prefix_and_the_channel() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let set_up = talkative(&redis, &jobs).env("SAMOVAR_PREFIX", "tea").env("SAMOVAR_CHANNEL", "news");
    let _worker = set_up.spawn();
    version(&redis, "art:a", 1).await;
    upstream.edit("/art/a");
    listening(&redis, 1).await;
    assert_eq!(redis.publish("news", "art:a").await, 1);
    version(&redis, "art:a", 2).await;
    let strangers: Vec<String> = redis.keys("*").await;
    let strangers: Vec<&String> = strangers
        .iter()
        .filter(|key| !key.starts_with("tea:") && !key.starts_with("{tea:") && *key != "art:a")
        .collect();
    assert_eq!(strangers, Vec::<&String>::new());
}

#[tokio::test]
async fn an_input_that_cannot_be_read_is_fetched_anew() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    redis.set("art:a", "no JSON", Duration::from_secs(3_600)).await;
    let jobs = stories(&upstream, &Art::of(&upstream));
    let _worker = worker(&redis, &jobs);
    assert_eq!(readable(&redis, "story:a").await, json!(r#"Story 1 of a: {"title":"one"}"#));
    let deferred: u64 = redis.ask(&["HGET", "samovar:stats:{story}", "deferred"]).await;
    assert!(deferred <= 3, "it waited {deferred} times");
}

#[tokio::test]
async fn an_entry_whose_input_does_not_exist_is_gone_at_once() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, &Art::of(&upstream));
    let _worker = worker(&redis, &jobs);
    let story = async |field: &str| redis.ask::<Option<String>>(&["HGET", "samovar:stats:{story}", field]).await;
    eventually("it is gone", async || story("gone").await).await;
    let last = story("last").await.unwrap_or_default();
    assert!(last.contains("its input art:a is gone"), "{last}");
    assert_eq!((upstream.calls("/art/a"), story("failed").await), (1, None));
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:dead:{story}"]).await, 0);
}

#[tokio::test]
async fn an_entry_whose_input_was_given_up_gives_up_in_the_end() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::status(500));
    let jobs = stories(&upstream, &Art::of(&upstream).warm("attempts = 2"));
    let text = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
    jobs.write("story.toml", &format!("{text}\n[warm]\nattempts = 2"));
    let _worker = worker(&redis, &jobs);
    let reason = eventually("it is a dead letter", async || {
        redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{story}", "story:a"]).await
    })
    .await;
    assert!(reason.contains("its input art:a is missing"), "{reason}");
}

/// A worker dies, or Redis's reply is lost, after the commit and before it wakes the entry's dependants.
#[tokio::test]
async fn a_dependant_follows_though_a_worker_died_after_the_commit() {
    let (redis, upstream) = both().await;
    upstream.on("/art/a", Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream, &Art::of(&upstream).list(["a"]));
    let mut first = worker(&redis, &jobs);
    assert_eq!(readable(&redis, "story:a").await, json!(r#"Story 1 of a: {"title":"one"}"#));
    first.kill9();
    let parts = Parts::of(&redis).await;
    parts.next_instant().await;
    let lease = parts.lease("a", Duration::from_secs(60)).await;
    let (two, hour) = (r#"{"title":"two"}"#, Duration::from_secs(3_600));
    parts.store.commit(&crate::support::art("a"), &lease, two, hour, &LastAttempt::default()).await.unwrap();
    parts.agenda.put(&crate::support::job(), &[crate::support::art("a")], When::NOW, Trigger::Expiry).await.unwrap();
    let _second = worker(&redis, &jobs);
    eventually("the story is told anew", async || {
        redis.json("story:a").await == Some(json!(r#"Story 2 of a: {"title":"two"}"#))
    })
    .await;
    assert_eq!(upstream.calls("/art/a"), 1);
}

#[tokio::test]
async fn a_key_that_holds_no_string_is_left_to_its_owner_and_told() {
    let (redis, upstream) = both().await;
    obliging(&upstream);
    redis.ask::<u64>(&["HSET", "art:a", "field", "1"]).await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let _worker = worker(&redis, &jobs);
    let reason = eventually("it is a dead letter", async || {
        redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{art}", "art:a"]).await
    })
    .await;
    assert!(reason.contains("hash"), "{reason}");
    readable(&redis, "art:b").await;
    assert_eq!((redis.ask::<String>(&["TYPE", "art:a"]).await.as_str(), upstream.calls("/art/a")), ("hash", 0));
}

/// An entry whose input changes while it waits for its upstream is made again from the new input.
#[tokio::test]
async fn an_input_that_changes_during_the_wait_for_a_permit_counts() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({"title": "one"})));
    let jobs = stories(&upstream, &Art::of(&upstream).list(["a", "b"]));
    for (file, old, new) in [("story.toml", r#"["a"]"#, r#"["a", "b"]"#), ("upstreams.toml", "cy = 2", "cy = 1")] {
        let text = std::fs::read_to_string(jobs.path().join(file)).unwrap();
        jobs.write(file, &text.replace(old, new));
    }
    let gate = upstream.gate("/v1/chat/completions");
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    let first = upstream.requests("/v1/chat/completions").remove(0).json();
    let waits = if first["messages"].to_string().contains("a: ") { "b" } else { "a" };
    let (story, key) = (JobName::new("story"), EntryKey::new(format!("story:{waits}")));
    eventually("it has been taken", async || {
        let score: Option<f64> = redis.ask(&["ZSCORE", "samovar:agenda:{story}", key.as_str()]).await;
        score.map(Due::from_score).is_some_and(|due| due.state == State::Running)
    })
    .await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease(waits, Duration::from_secs(60)).await;
    let (two, hour) = (r#"{"title":"two"}"#, Duration::from_secs(3_600));
    parts.store.commit(&crate::support::art(waits), &lease, two, hour, &LastAttempt::default()).await.unwrap();
    parts.agenda.put(&story, [&key], When::NOW, Trigger::Invalidation).await.unwrap();
    eventually("another has taken it, too", async || {
        let score: Option<f64> = redis.ask(&["ZSCORE", "samovar:agenda:{story}", key.as_str()]).await;
        score.map(Due::from_score).is_some_and(|due| due.state == State::Running)
    })
    .await;
    gate.open();
    eventually("the story is of what is there now", async || {
        redis.get(key.as_str()).await.filter(|story| story.contains("two"))
    })
    .await;
}
