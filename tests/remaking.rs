//! A change of what values are made from: they are made anew, once, and nothing else is.
use std::time::Duration;

use crate::support::{
    Art, Finished, Gate, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, at_rest, both, eventually,
    hasty_worker, publish, readable_key, samovar, talkative, worker,
};
use serde_json::{Value, json};

const ASKED: &str = "/v1/chat/completions";
const MADE: &str = "samovar:{schedules}:made";

/// Waits until a key has this value.
async fn becomes(redis: &TestRedis, key: &str, value: Value) {
    eventually(&format!("{key} is {value}"), async || match redis.json(key).await {
        Some(now) if now == value => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Returns what is noted of a job's values.
async fn noted(redis: &TestRedis, job: &str) -> Option<String> {
    redis.ask(&["HGET", MADE, job]).await
}

/// Waits until all values of a job are made from one file, and it is not this one; returns its digest.
async fn settled(redis: &TestRedis, job: &str, before: &str) -> String {
    eventually(&format!("the values of {job} are made from the new file"), async || match noted(redis, job).await {
        Some(noted) if noted != before && !noted.contains(' ') => Ok(noted),
        other => Err(other),
    })
    .await
}

/// Puts an entry of the job `art` that nothing lists into Redis.
async fn demand(redis: &TestRedis, name: &str) {
    publish(redis, &json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string()).await;
    readable_key(redis, &format!("art:{name}")).await;
}

/// Notes in metadata and in Redis what an earlier build would: nothing of the files.
async fn forget_files(redis: &TestRedis) {
    for key in redis.keys("samovar:meta:*").await {
        let meta: String = redis.ask(&["GET", &key]).await;
        let at = meta.find("\"m\":\"").unwrap_or_else(|| panic!("{meta} tells no file"));
        let end = at + 5 + meta[at + 5..].find('"').unwrap() + 1;
        let rest = meta[end..].strip_prefix(',').unwrap_or(&meta[end..]);
        let packed = format!("{}{rest}", &meta[..at]).replace(",}", "}");
        redis.ask::<String>(&["SET", &key, &packed, "KEEPTTL"]).await;
    }
    redis.ask::<u8>(&["DEL", MADE]).await;
}

async fn diff(redis: &TestRedis, jobs: &JobsFolder) -> Finished {
    samovar(["check", "--diff", "--json"]).redis(redis).jobs(jobs).run().await
}

/// The report of `check --diff` on a job.
async fn diff_of(redis: &TestRedis, jobs: &JobsFolder, name: &str) -> Value {
    let done = diff(redis, jobs).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let document: Value = serde_json::from_str(&done.stdout).unwrap();
    document["jobs"].as_array().unwrap().iter().find(|job| job["job"] == name).cloned().unwrap_or_default()
}

async fn ends(mut worker: WorkerProcess) {
    worker.term();
    assert_eq!(worker.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_304_does_not_bring_the_old_select_back() {
    let (redis, upstream) = both().await;
    for name in ["listed", "unlisted"] {
        upstream.publish(&format!("/art/{name}"), json!({"one": 1, "two": 2}));
    }
    let base = Art::of(&upstream).list(["listed"]);
    let jobs = base.clone().source("select = \"/one\"").folder();
    let mut worker = worker(&redis, &jobs);
    readable_key(&redis, "art:listed").await;
    demand(&redis, "unlisted").await;
    let gate = upstream.gate("/art/unlisted");
    jobs.write("art.toml", &base.source("select = \"/two\"").toml());
    worker.hangup();
    gate.arrived(1).await;
    assert_eq!(redis.json("art:unlisted").await, Some(json!(1)), "the old value is served meanwhile");
    gate.open();
    for name in ["listed", "unlisted"] {
        becomes(&redis, &format!("art:{name}"), json!(2)).await;
        let requests = upstream.requests(&format!("/art/{name}"));
        assert_eq!(requests.len(), 2, "{name}");
        assert_eq!(requests[1].header("If-None-Match"), "", "{name}");
    }
    worker.wait_for_log(&["job=art", "entries=2", "2 requests to come"]).await;
}

#[tokio::test]
async fn each_part_that_values_are_made_from_makes_them_due() {
    let (redis, upstream) = both().await;
    for name in ["a", "b"] {
        upstream.publish(&format!("/art/{name}"), json!({"title": name}));
    }
    let base = Art::of(&upstream).list(["a"]);
    let jobs = base.folder();
    let worker = worker(&redis, &jobs);
    readable_key(&redis, "art:a").await;
    demand(&redis, "b").await;
    let parts = Parts::of(&redis).await;
    let mut before = settled(&redis, "art", "").await;
    let museum = |more: &str| format!("[museum]\nurl = \"{}\"\n{more}", upstream.url());
    let value = base.clone().source("value = { of = \"{{ value.title }}\" }");
    let tagged = value.clone().top("tags = [\"title:{{ value.of }}\"]");
    let versioned = tagged.clone().top("tags = [\"title:{{ value.of }}\"]\nversion = \"7\"");
    let headers = museum("headers = { Accept-Language = \"tr\" }");
    for (round, (job, museum)) in
        [(&value, museum("")), (&tagged, museum("")), (&versioned, museum("")), (&versioned, headers)]
            .iter()
            .enumerate()
    {
        jobs.write("art.toml", &job.toml());
        jobs.write("upstreams.toml", museum);
        worker.hangup();
        before = settled(&redis, "art", &before).await;
        for name in ["a", "b"] {
            upstream.called(&format!("/art/{name}"), round + 2).await;
        }
        at_rest(&redis).await;
        for name in ["a", "b"] {
            assert_eq!(upstream.calls(&format!("/art/{name}")), round + 2, "{name} in round {round}");
            assert_eq!(redis.json(&format!("art:{name}")).await, Some(json!({"of": name})), "round {round}");
        }
    }
    let last = parts.meta("b").await.unwrap().last_attempt;
    assert_eq!(
        (last.tags, last.version.map(|version| version.to_string())),
        (vec!["title:b".into()], Some("7".into()))
    );
    let request = upstream.requests("/art/b").pop().unwrap();
    assert_eq!((request.header("Accept-Language"), request.header("If-None-Match")), ("tr", ""));
}

#[tokio::test]
async fn what_changes_no_value_fetches_nothing() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "a"}));
    let base = Art::of(&upstream).list(["a"]);
    let museum = format!("[museum]\nurl = \"{}\"\nheaders = {{ Token = \"{{{{ env.TOKEN }}}}\" }}", upstream.url());
    let jobs = base.folder().upstreams(&museum);
    let start = |token: &str| talkative(&redis, &jobs).env("TOKEN", token).spawn();
    let first = start("one");
    readable_key(&redis, "art:a").await;
    at_rest(&redis).await;
    let before = noted(&redis, "art").await;
    jobs.write("art.toml", &format!("# of art\n{}", base.ttl("2h").warm("every = \"30m\"").toml()));
    jobs.write("upstreams.toml", &format!("{museum}\nrate = \"50/second\""));
    // One worker always listens: otherwise values are revalidated.
    let mut second = start("rotated");
    second.wait_for_log(&["job=\"art\"", "warmup", "due=0"]).await;
    ends(first).await;
    eventually("the new files are announced, and they alone", async || {
        let all: Vec<String> = redis.ask(&["HVALS", "samovar:{schedules}:files"]).await;
        if all.len() == 1 { Ok(()) } else { Err(all) }
    })
    .await;
    at_rest(&redis).await;
    assert_eq!((noted(&redis, "art").await, upstream.calls("/art/a")), (before, 1));
    let again = diff_of(&redis, &jobs, "art").await;
    assert_eq!((&again["state"], &again["values"]), (&json!("unchanged"), &json!(0)), "{again}");
}

#[tokio::test]
async fn an_upgrade_fetches_nothing_and_the_next_change_does() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"one": 1, "two": 2}));
    let base = Art::of(&upstream).list(["a"]);
    let jobs = base.clone().source("select = \"/one\"").folder();
    let worker = worker(&redis, &jobs);
    readable_key(&redis, "art:a").await;
    settled(&redis, "art", "").await;
    at_rest(&redis).await;
    forget_files(&redis).await;
    let before = settled(&redis, "art", "").await;
    at_rest(&redis).await;
    assert_eq!(upstream.calls("/art/a"), 1);
    jobs.write("art.toml", &base.source("select = \"/two\"").toml());
    worker.hangup();
    becomes(&redis, "art:a", json!(2)).await;
    settled(&redis, "art", &before).await;
    assert_eq!(upstream.calls("/art/a"), 2);
}

#[tokio::test]
async fn a_change_that_was_cut_short_is_begun_again() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.publish(&format!("/art/{name}"), json!({"one": 1, "two": 2}));
    }
    let base = Art::of(&upstream).list(&names);
    let jobs = base.clone().source("select = \"/one\"").folder();
    let mut first = hasty_worker(&redis, &jobs);
    for name in &names {
        readable_key(&redis, &format!("art:{name}")).await;
    }
    let before = settled(&redis, "art", "").await;
    // The change has come as far as the note of its begin, and half of the values.
    jobs.write("art.toml", &base.source("select = \"/two\"").toml());
    first.hangup();
    let after = settled(&redis, "art", &before).await;
    for name in &names {
        becomes(&redis, &format!("art:{name}"), json!(2)).await;
    }
    at_rest(&redis).await;
    let _second = hasty_worker(&redis, &jobs);
    eventually("both workers announce their files", async || {
        redis.ask::<usize>(&["HLEN", "samovar:{schedules}:files"]).await == 2
    })
    .await;
    first.kill9();
    first.wait().await;
    for name in names.iter().take(10) {
        let meta = format!("samovar:meta:*:art:{name}");
        let key = redis.keys(&meta).await.pop().unwrap();
        let text: String = redis.ask(&["GET", &key]).await;
        let text = text.replace(&format!("\"m\":\"{after}\""), &format!("\"m\":\"{before}\""));
        redis.ask::<String>(&["SET", &key, &text, "KEEPTTL"]).await;
    }
    redis.ask::<u8>(&["HSET", MADE, "art", &format!("{before} {after}")]).await;
    for (n, name) in names.iter().enumerate() {
        upstream.called(&format!("/art/{name}"), if n < 10 { 3 } else { 2 }).await;
    }
    settled(&redis, "art", &before).await;
    at_rest(&redis).await;
    let calls: Vec<usize> = names.iter().map(|name| upstream.calls(&format!("/art/{name}"))).collect();
    assert_eq!(calls, [vec![3; 10], vec![2; 10]].concat());
}

#[tokio::test]
async fn workers_with_two_files_do_not_fetch_from_each_other() {
    let (redis, upstream) = both().await;
    for name in ["a", "b"] {
        upstream.publish(&format!("/art/{name}"), json!({"one": 1, "two": 2}));
    }
    let base = Art::of(&upstream).list(["a"]);
    let (old, new) = (base.clone().source("select = \"/one\"").folder(), base.source("select = \"/two\"").folder());
    let first = worker(&redis, &old);
    readable_key(&redis, "art:a").await;
    demand(&redis, "b").await;
    let before = settled(&redis, "art", "").await;
    let mut second = worker(&redis, &new);
    second.wait_for_log(&["warmup", "due=0"]).await;
    eventually("the change is noted", async || noted(&redis, "art").await.is_some_and(|now| now.contains(' '))).await;
    at_rest(&redis).await;
    assert_eq!([upstream.calls("/art/a"), upstream.calls("/art/b")], [1, 1]);
    // The workers are named where people look.
    let name = worker_with(&redis, &before).await;
    let table = samovar(["jobs"]).redis(&redis).jobs(&new).run().await.stdout;
    let said = format!("changeofartwaitsforworkerswiththeoldfile:{name}.");
    assert!(table.split_whitespace().collect::<String>().contains(&said), "{table}");
    let told = diff_of(&redis, &new, "art").await["notes"].to_string();
    assert!(told.contains(&format!("unknown file: {name}\"")), "{told}");
    ends(first).await;
    settled(&redis, "art", &before).await;
    for name in ["a", "b"] {
        becomes(&redis, &format!("art:{name}"), json!(2)).await;
    }
    // A return to the old file is a change as well, though nobody has carried out the new one in between.
    let third = worker(&redis, &old);
    eventually("the return is noted", async || noted(&redis, "art").await.is_some_and(|now| now.contains(' '))).await;
    ends(second).await;
    assert_eq!(settled(&redis, "art", "").await, before);
    for name in ["a", "b"] {
        becomes(&redis, &format!("art:{name}"), json!(1)).await;
        assert_eq!(upstream.calls(&format!("/art/{name}")), 3, "{name}");
    }
    drop(third);
}

/// Returns the worker that announces this digest of what the values of the job `art` are made from.
async fn worker_with(redis: &TestRedis, made: &str) -> String {
    eventually("a worker announces the file", async || {
        let all: Vec<String> = redis.ask(&["HGETALL", "samovar:{schedules}:files"]).await;
        all.chunks(2).find(|pair| pair[1].contains(made)).map(|pair| pair[0].clone())
    })
    .await
}

/// Waits until values of several files of the job `art` may be there.
async fn is_open(redis: &TestRedis) {
    eventually("the change is noted", async || noted(redis, "art").await.is_some_and(|now| now.contains(' '))).await;
}

/// A worker that was taken for dead may fetch with its old file, after the change was carried out without it.
#[tokio::test]
async fn a_worker_that_was_cut_off_leaves_no_old_values() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.publish(&format!("/art/{name}"), json!({"one": 1, "two": 2}));
    }
    let base = Art::of(&upstream).list(&names);
    let (old, new) = (base.clone().source("select = \"/one\"").folder(), base.source("select = \"/two\"").folder());
    let first = hasty_worker(&redis, &old);
    for name in &names {
        readable_key(&redis, &format!("art:{name}")).await;
    }
    let before = settled(&redis, "art", "").await;
    first.freeze();
    let second = hasty_worker(&redis, &new);
    let after = settled(&redis, "art", &before).await;
    for name in &names {
        becomes(&redis, &format!("art:{name}"), json!(2)).await;
    }
    first.thaw();
    is_open(&redis).await;
    let warmed = samovar(["warm", "art", "--wait"]).redis(&redis).jobs(&old).run().await;
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    ends(first).await;
    assert_eq!(settled(&redis, "art", "").await, after);
    for name in &names {
        becomes(&redis, &format!("art:{name}"), json!(2)).await;
    }
    drop(second);
}

#[tokio::test]
async fn two_files_are_noted_again_after_a_flush() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"one": 1, "two": 2}));
    let base = Art::of(&upstream).list(["a"]);
    let (old, new) = (base.clone().source("select = \"/one\"").folder(), base.source("select = \"/two\"").folder());
    let first = worker(&redis, &old);
    readable_key(&redis, "art:a").await;
    let before = settled(&redis, "art", "").await;
    let second = worker(&redis, &new);
    is_open(&redis).await;
    redis.ask::<String>(&["FLUSHALL"]).await;
    is_open(&redis).await;
    worker_with(&redis, &before).await;
    readable_key(&redis, "art:a").await;
    ends(first).await;
    becomes(&redis, "art:a", json!(2)).await;
    assert_ne!(settled(&redis, "art", "").await, before);
    drop(second);
}

#[tokio::test]
async fn ai_calls_of_fallbacks_are_told_beforehand() {
    let (redis, upstream) = both().await;
    for name in ["a", "b"] {
        upstream.publish(&format!("/art/{name}"), json!({"title": name}));
    }
    let openai = format!("[openai]\nurl = \"{}/v1\"", upstream.url());
    let fallback =
        "fallback = [{ kind = \"ai\", upstream = \"openai\", model = \"tiny\", prompt = \"Of {{ name }}\" }]";
    let base = Art::of(&upstream).list(["a", "b"]).limits(&openai);
    let jobs = base.clone().source(fallback).folder();
    let mut worker = worker(&redis, &jobs);
    for name in ["a", "b"] {
        readable_key(&redis, &format!("art:{name}")).await;
    }
    let dry = samovar(["warm", "art", "--dry-run", "--json"]).redis(&redis).jobs(&jobs).run().await;
    let dry: Value = serde_json::from_str(&dry.stdout).unwrap();
    assert_eq!((&dry["ai_calls"], &dry["fallback_ai_calls"]), (&json!(0), &json!(2)), "{dry}");
    jobs.write("art.toml", &base.source(&format!("select = \"/title\"\n{fallback}")).toml());
    let planned = diff_of(&redis, &jobs, "art").await;
    assert_eq!((&planned["ai_calls"], &planned["fallback_ai_calls"]), (&json!(0), &json!(2)), "{planned}");
    assert!(planned["notes"].to_string().contains("2 AI calls come in addition"), "{planned}");
    worker.hangup();
    worker.wait_for_log(&["job=art", "2 requests to come", "fallback_ai_calls=2"]).await;
    assert_eq!(upstream.calls(ASKED), 0);
}

/// A job `story` that tells of the job `art`, by this prompt; each answer costs 15 tokens.
fn story(upstream: &Upstream, jobs: &JobsFolder, names: &[&str], prompt: &str, more: &str) {
    upstream.answer(ASKED, |_, count| {
        Reply::json(json!({
            "choices": [{"message": {"content": format!("Story {count}")}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }))
    });
    let text = format!(
        "key = \"story:{{name}}\"\nttl = \"1h\"\n{more}\n[inputs]\nart = \"art:{{name}}\"\n[source]\nkind = \"ai\"\n\
         upstream = \"openai\"\nmodel = \"tiny\"\nprompt = \"{prompt}\"\n[entries]\nlist = {}\n",
        json!(names)
    );
    jobs.write("story.toml", &text);
}

/// A job that makes plates of artworks.
const PLATE: &str = "key = \"plate:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n\
                     [source]\nkind = \"compose\"\nvalue = { of = \"{{ art }}\" }\n";

/// A job [`story`] that tells of plates instead.
fn story_of_plates(upstream: &Upstream, jobs: &JobsFolder, names: &[&str], prompt: &str) {
    story(upstream, jobs, names, prompt, "");
    let text = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
    jobs.write("story.toml", &text.replace("art = \"art:{name}\"", "art = \"plate:{name}\""));
}

fn museum_and_openai(upstream: &Upstream, budget: &str) -> JobsFolder {
    let openai = format!("[openai]\nurl = \"{}/v1\"\nconcurrency = 1\n{budget}", upstream.url());
    Art::of(upstream).source("select = \"/title\"").limits(&openai).folder()
}

#[tokio::test]
async fn a_prompt_that_renders_the_same_costs_nothing() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "Mona", "year": 1503}));
    let jobs = museum_and_openai(&upstream, "");
    story(&upstream, &jobs, &["a"], "Of {{ art }}", "");
    let worker = worker(&redis, &jobs);
    let first = readable_key(&redis, "story:a").await;
    let before = settled(&redis, "story", "").await;
    story(&upstream, &jobs, &["a"], "Of {{ art | trim }}", "tags = [\"art:{{ name }}\"]");
    let planned = diff_of(&redis, &jobs, "story").await;
    assert_eq!((&planned["values"], &planned["ai_calls"]), (&json!(1), &json!(0)), "{planned}");
    worker.hangup();
    settled(&redis, "story", &before).await;
    let parts = Parts::of(&redis).await;
    eventually("its tags are rendered anew", async || {
        let key = samovar::entry::EntryKey::new("story:a");
        let meta = parts.store.snapshot(&key).await.unwrap().meta.unwrap();
        if meta.last_attempt.tags == ["art:a"] { Ok(()) } else { Err(meta) }
    })
    .await;
    assert_eq!((redis.json("story:a").await, upstream.calls(ASKED)), (Some(first), 1));
}

#[tokio::test]
async fn a_changed_prompt_is_announced_and_stays_in_its_budget() {
    let (redis, upstream) = both().await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        upstream.publish(&format!("/art/{name}"), json!({"title": name}));
    }
    let jobs = museum_and_openai(&upstream, "tokens = \"90/hour\"");
    story(&upstream, &jobs, &names, "Of {{ art }}", "");
    let mut worker = worker(&redis, &jobs);
    for name in names {
        readable_key(&redis, &format!("story:{name}")).await;
    }
    assert_eq!(upstream.calls(ASKED), 4);
    worker.wait_for_log(&["job=\"story\"", "warmup: up to 4 AI calls to come"]).await;
    story(&upstream, &jobs, &names, "Tell of {{ art }}", "");
    let planned = diff_of(&redis, &jobs, "story").await;
    assert_eq!((&planned["changed"], &planned["ai_calls"]), (&json!(["values"]), &json!(4)), "{planned}");
    worker.hangup();
    let line = worker.wait_for_log(&["job=story", "4 AI calls to come"]).await;
    assert!(line.contains("entries=4") && line.contains("90 tokens per 1h"), "{line}");
    let deferred = async || redis.ask::<Option<u64>>(&["HGET", "samovar:stats:{story}", "deferred"]).await;
    eventually("the budget is spent", async || deferred().await.unwrap_or_default() >= 2).await;
    assert!(upstream.calls(ASKED) <= 7, "{}", upstream.calls(ASKED));
    for name in names {
        assert!(redis.json(&format!("story:{name}")).await.is_some(), "the old value stays");
    }
}

/// After a change of two AI stories and of what they are made from, of which `gate` holds one back: each story is told
/// once, from its present input.
async fn the_second_waits_for_its_input(redis: &TestRedis, upstream: &Upstream, gate: Gate, before: &str) {
    gate.arrived(1).await;
    eventually("the other story is told", async || upstream.calls(ASKED) == 3).await;
    gate.open();
    settled(redis, "story", before).await;
    eventually("both stories are told", async || upstream.calls(ASKED) == 4).await;
    at_rest(redis).await;
    let prompts: Vec<String> = upstream.requests(ASKED).iter().skip(2).map(|call| call.body.clone()).collect();
    assert_eq!(prompts.len(), 2, "{prompts:?}");
    assert!(prompts[0].contains("Tell of A") && prompts[1].contains("Tell of B"), "{prompts:?}");
}

#[tokio::test]
async fn a_story_whose_input_changes_too_is_paid_for_once() {
    let (redis, upstream) = both().await;
    let names = ["a", "b"];
    for name in names {
        upstream.publish(&format!("/art/{name}"), json!({"title": name}));
    }
    let jobs = museum_and_openai(&upstream, "");
    story(&upstream, &jobs, &names, "Of {{ art }}", "");
    let worker = worker(&redis, &jobs);
    for name in names {
        readable_key(&redis, &format!("story:{name}")).await;
    }
    let before = settled(&redis, "story", "").await;
    let gate = upstream.gate("/art/b");
    let changed = Art::of(&upstream).source("select = \"/title\"\nvalue = \"{{ value | upper }}\"");
    jobs.write("art.toml", &changed.toml());
    story(&upstream, &jobs, &names, "Tell of {{ art }}", "");
    let planned = diff_of(&redis, &jobs, "story").await;
    assert_eq!(planned["ai_calls"], 2, "{planned}");
    assert!(planned["notes"].to_string().contains("input of art"), "{planned}");
    worker.hangup();
    the_second_waits_for_its_input(&redis, &upstream, gate, &before).await;
}

#[tokio::test]
async fn check_diff_says_what_a_reload_then_does() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let base = Art::of(&upstream).list(["a", "b"]);
    let other = base.clone().toml().replace("art:", "other:");
    let museum = format!("[museum]\nurl = \"{}\"\nheaders = {{ Token = \"{{{{ env.TOKEN }}}}\" }}", upstream.url());
    let jobs = base.folder().job("other", &other).job("same", &other.replace("other:", "same:")).upstreams(&museum);
    let worker = talkative(&redis, &jobs).env("TOKEN", "secret").spawn();
    for key in ["art:a", "art:b", "other:a", "same:a", "same:b"] {
        readable_key(&redis, key).await;
    }
    demand(&redis, "c").await;
    let before = settled(&redis, "art", "").await;
    // Without the variable.
    let same = diff_of(&redis, &jobs, "art").await;
    assert_eq!((&same["state"], &same["changed"]), (&json!("unchanged"), &json!([])), "{same}");

    let changed = base.clone().ttl("2h").list(["a", "d"]).source("select = \"/path\"");
    jobs.write("art.toml", &changed.toml());
    jobs.write("new.toml", &base.toml().replace("art:", "new:"));
    std::fs::remove_file(jobs.path().join("other.toml")).unwrap();
    let art = diff_of(&redis, &jobs, "art").await;
    assert_eq!(art["changed"], json!(["entries", "ttl", "values"]), "{art}");
    assert_eq!((&art["values"], &art["missing"], &art["fetches"]), (&json!(3), &json!(1), &json!(4)), "{art}");
    let new = diff_of(&redis, &jobs, "new").await;
    assert_eq!((&new["state"], &new["missing"], &new["fetches"]), (&json!("new"), &json!(2), &json!(2)), "{new}");
    assert_eq!(diff_of(&redis, &jobs, "same").await["state"], "unchanged");
    let removed = diff_of(&redis, &jobs, "other").await;
    assert_eq!(removed["state"], "removed", "{removed}");
    assert!(removed["notes"].to_string().contains("expire with their TTL"), "{removed}");
    // Under another name it keeps its values.
    let renamed = jobs.write("renamed.toml", &other);
    let removed = diff_of(&redis, &jobs, "other").await;
    assert!(removed["notes"].to_string().contains("taken over by renamed"), "{removed}");
    std::fs::remove_file(renamed).unwrap();
    let text = samovar(["check", "--diff"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(text.contains("entries, ttl, values") && text.contains("removed"), "{text}");
    assert_eq!(noted(&redis, "art").await.as_deref(), Some(&*before), "nothing was changed");

    let calls = upstream.all_requests().len();
    worker.hangup();
    settled(&redis, "art", &before).await;
    for (path, times) in [("/art/a", 5), ("/art/b", 5), ("/art/c", 2), ("/art/d", 1)] {
        upstream.called(path, times).await;
    }
    at_rest(&redis).await;
    assert_eq!(upstream.all_requests().len() - calls, 6, "as many as were told: {:?}", art);
    becomes(&redis, &art_key("c"), json!("/art/c")).await;
}

fn art_key(name: &str) -> String {
    art(name).to_string()
}

#[tokio::test]
async fn check_diff_without_redis_or_with_faults_says_so() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let away = samovar(["check", "--diff"]).redis_at("redis://127.0.0.1:1").jobs(&jobs).run().await;
    assert_eq!(away.code, Some(69), "{away:?}");
    let empty = diff_of(&redis, &jobs, "art").await;
    assert_eq!(empty["state"], "new", "{empty}");
    jobs.write("art.toml", "key = 7");
    assert_eq!(diff(&redis, &jobs).await.code, Some(78));
    let told = samovar(["check", "--diff"]).redis(&redis).jobs(&jobs).run().await.stderr;
    assert!(told.contains("art.toml:1:7: ") && told.lines().count() > 3 && !told.contains("\\n"), "{told}");
    assert_eq!(redis.keys("*").await, Vec::<String>::new());
}

/// A value that a demand or a retry holds at that moment is looked at again.
#[tokio::test]
async fn an_entry_that_is_in_flight_for_a_demand_is_made_anew() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"one": 1, "two": 2}));
    let base = Art::of(&upstream);
    let jobs = base.clone().source("select = \"/one\"").folder();
    let worker = worker(&redis, &jobs);
    demand(&redis, "a").await;
    let before = settled(&redis, "art", "").await;
    let parts = Parts::of(&redis).await;
    // As a claim that a dispatcher has made: nobody finishes it before it runs out.
    let due = samovar::agenda::When::Urgent;
    let key = art("a");
    redis.ask::<String>(&["SET", "samovar:paused:{art}", "1"]).await;
    parts.agenda.put(&crate::support::job(), [&key], due, samovar::entry::Trigger::Demand).await.unwrap();
    jobs.write("art.toml", &base.source("select = \"/two\"").toml());
    worker.hangup();
    eventually("the change is noted", async || noted(&redis, "art").await.is_some_and(|now| now.contains(' '))).await;
    tokio::time::timeout(Duration::from_secs(30), async {
        redis.ask::<u8>(&["DEL", "samovar:paused:{art}"]).await;
        becomes(&redis, "art:a", json!(2)).await;
    })
    .await
    .unwrap();
    settled(&redis, "art", &before).await;
}

/// An invalidated value that is not there anew yet waits for its retry, and no pass brings it forward.
#[tokio::test]
async fn a_change_leaves_the_waits_between_retries_alone() {
    let (redis, upstream) = both().await;
    for name in ["a", "b"] {
        upstream.publish(&format!("/art/{name}"), json!({"one": 1, "two": 2}));
    }
    let base = Art::of(&upstream).list(["a", "b"]).warm("attempts = 50");
    let jobs = base.clone().source("select = \"/one\"").folder();
    let worker = worker(&redis, &jobs);
    for name in ["a", "b"] {
        readable_key(&redis, &format!("art:{name}")).await;
    }
    let before = settled(&redis, "art", "").await;
    at_rest(&redis).await;
    upstream.answer("/art/a", |_, _| Reply::status(500));
    publish(&redis, "art:a").await;
    upstream.called("/art/a", 5).await;
    jobs.write("art.toml", &base.source("select = \"/two\"").toml());
    worker.hangup();
    becomes(&redis, "art:b", json!(2)).await;
    // Otherwise the passes go on for five minutes, and each of them asks the upstream.
    settled(&redis, "art", &before).await;
    upstream.publish("/art/a", json!({"one": 1, "two": 2}));
    let warmed = samovar(["warm", "art:a", "--wait"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    becomes(&redis, "art:a", json!(2)).await;
}

/// Nothing of the entry in between changes but its content.
#[tokio::test]
async fn a_story_of_a_chain_is_paid_for_once() {
    let (redis, upstream) = both().await;
    let names = ["a", "b"];
    for name in names {
        upstream.publish(&format!("/art/{name}"), json!({"title": name}));
    }
    let jobs = museum_and_openai(&upstream, "").job("plate", PLATE);
    let story = |prompt: &str| story_of_plates(&upstream, &jobs, &names, prompt);
    story("Of {{ art.of }}");
    let worker = worker(&redis, &jobs);
    for name in names {
        readable_key(&redis, &format!("story:{name}")).await;
    }
    let before = settled(&redis, "story", "").await;
    let gate = upstream.gate("/art/b");
    let changed = Art::of(&upstream).source("select = \"/title\"\nvalue = \"{{ value | upper }}\"");
    jobs.write("art.toml", &changed.toml());
    story("Tell of {{ art.of }}");
    for (job, input) in [("plate", "art"), ("story", "plate")] {
        let planned = diff_of(&redis, &jobs, job).await;
        assert!(planned["notes"].to_string().contains(&format!("input of {input} changes")), "{planned}");
    }
    worker.hangup();
    the_second_waits_for_its_input(&redis, &upstream, gate, &before).await;
}

#[tokio::test]
async fn an_unreadable_announcement_is_written_again() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let _worker = worker(&redis, &jobs);
    let before = settled(&redis, "art", "").await;
    let worker = worker_with(&redis, &before).await;
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:files", &worker, "gar\x1bbage"]).await;
    assert_eq!(worker_with(&redis, &before).await, worker);
}

/// The plate is older than the artwork that it is made from, and is on no agenda.
#[tokio::test]
async fn an_older_input_that_nobody_makes_is_not_waited_for() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = museum_and_openai(&upstream, "").job("plate", PLATE);
    let story = |prompt: &str| story_of_plates(&upstream, &jobs, &["a"], prompt);
    story("Of {{ art.of }}");
    let worker = worker(&redis, &jobs);
    readable_key(&redis, "story:a").await;
    let before = settled(&redis, "story", "").await;
    at_rest(&redis).await;
    redis.ask::<String>(&["SET", "samovar:paused:{plate}", "1"]).await;
    upstream.publish("/art/a", json!({"title": "two"}));
    publish(&redis, "art:a").await;
    becomes(&redis, "art:a", json!("two")).await;
    story("Tell of {{ art.of }}");
    worker.hangup();
    eventually("the story is told", async || {
        // The change of the artwork may yet put it there.
        redis.ask::<u8>(&["ZREM", "samovar:agenda:{plate}", "plate:a"]).await;
        upstream.calls(ASKED) == 2
    })
    .await;
    settled(&redis, "story", &before).await;
    assert_eq!(redis.json("plate:a").await, Some(json!({"of": "one"})));
}
