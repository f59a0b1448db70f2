//! Values that are composed from an entry's inputs: when they appear, change, stay and fail.
use std::time::Duration;

use crate::support::{Art, JobsFolder, Parts, Reply, TestRedis, Upstream, eventually, samovar, talkative, worker};
use samovar::entry::EntryKey;
use samovar::store::Meta;
use serde_json::{Value, json};

const ASKED: &str = "/v1/chat/completions";
const PAGE: &str = "key = \"page:{name}\"\nttl = \"1h\"\ntags = [\"{{ value.info.artist }}\"]\n\
                    [inputs]\ninfo = \"art:{name}\"\nstory = \"story:{name}\"\n\
                    [source]\nkind = \"compose\"\nvalue = { info = \"{{ info }}\", story = \"{{ story }}\" }\n\
                    [entries]\nlist = [\"a\"]\n";

async fn both() -> (TestRedis, Upstream) {
    tokio::join!(TestRedis::start(), Upstream::start())
}

/// The jobs `art`, `story` and, made from both, `page`. The story is the title of the artwork that it is told of.
fn pages(upstream: &Upstream, page: &str) -> JobsFolder {
    upstream.publish("/art/a", json!({"title": "one", "artist": "Osman Hamdi Bey"}));
    upstream.answer(ASKED, |call, _| {
        let content = call.json()["messages"][0]["content"].clone();
        Reply::json(json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}))
    });
    let story = "key = \"story:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n\
                 [source]\nkind = \"ai\"\nupstream = \"openai\"\nmodel = \"tiny\"\nprompt = \"Of {{ art.title }}\"\n";
    let limits = format!("concurrency = 1\n[openai]\nurl = \"{}/v1\"\nconcurrency = 1\n", upstream.url());
    let art = Art::of(upstream).top("tags = [\"{{ value.artist }}\"]").warm("recheck = []").limits(&limits).folder();
    art.job("story", story).job("page", page)
}

fn page(title: &str) -> Value {
    json!({"info": {"title": title, "artist": "Osman Hamdi Bey"}, "story": format!("Of {title}")})
}

async fn shows(redis: &TestRedis, value: Value) {
    eventually(&format!("the page is {value}"), async || {
        let shown = redis.json("page:a").await;
        if shown.as_ref() == Some(&value) { Ok(()) } else { Err(shown) }
    })
    .await;
}

async fn count(redis: &TestRedis, outcome: &str) -> u64 {
    redis.ask::<Option<u64>>(&["HGET", "samovar:stats:{page}", outcome]).await.unwrap_or_default()
}

async fn meta(redis: &TestRedis) -> Option<Meta> {
    Parts::of(redis).await.store.snapshot(&EntryKey::new("page:a")).await.unwrap().meta
}

async fn run(redis: &TestRedis, jobs: &JobsFolder, args: &[&str]) -> crate::support::Finished {
    samovar(args.iter().copied()).redis(redis).jobs(jobs).run().await
}

#[tokio::test]
async fn a_composed_value_follows_each_of_its_inputs() {
    let (redis, upstream) = both().await;
    let jobs = pages(&upstream, PAGE);
    let _worker = worker(&redis, &jobs);
    shows(&redis, page("one")).await;
    upstream.publish("/art/a", json!({"title": "two", "artist": "Osman Hamdi Bey"}));
    Parts::of(&redis).await.invalidate("art:a").await;
    shows(&redis, page("two")).await;
    let ttl = redis.ttl("page:a").await.unwrap().as_secs();
    assert!((3_500..=3_600).contains(&ttl), "{ttl}");
    let shown = run(&redis, &jobs, &["get", "page:a", "--json"]).await;
    let entry: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((&entry["value"], &entry["tags"]), (&page("two"), &json!(["Osman Hamdi Bey"])), "{entry}");
}

/// An invalidation by tag marks the page and its inputs at once.
#[tokio::test]
async fn a_composed_value_waits_for_an_input_that_was_invalidated() {
    let (redis, upstream) = both().await;
    let jobs = pages(&upstream, PAGE);
    let _worker = worker(&redis, &jobs);
    shows(&redis, page("one")).await;
    let gate = upstream.gate("/art/a");
    upstream.publish("/art/a", json!({"title": "two", "artist": "Osman Hamdi Bey"}));
    let before = count(&redis, "deferred").await;
    Parts::of(&redis).await.invalidate(r#"{"tags": ["Osman Hamdi Bey"]}"#).await;
    gate.arrived(1).await;
    eventually("the page waits", async || count(&redis, "deferred").await > before).await;
    assert!(meta(&redis).await.unwrap().invalidated.is_some(), "made from old inputs, it would count as answered");
    gate.open();
    shows(&redis, page("two")).await;
    eventually("the invalidation is answered", async || meta(&redis).await.unwrap().invalidated.is_none()).await;
}

#[tokio::test]
async fn a_compose_source_takes_no_permit() {
    let (redis, upstream) = both().await;
    let jobs = pages(&upstream, PAGE);
    let _worker = worker(&redis, &jobs);
    shows(&redis, page("one")).await;
    // The one permit of each upstream is in use.
    let gates = [upstream.gate("/art/b"), upstream.gate(ASKED)];
    upstream.publish("/art/c", json!({"title": "three", "artist": "nobody"}));
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["story:c"], "action": "warm"}"#).await;
    gates[1].arrived(1).await;
    parts.invalidate(r#"{"keys": ["art:b"], "action": "warm"}"#).await;
    gates[0].arrived(1).await;
    let warmed = count(&redis, "warmed").await;
    let done = run(&redis, &jobs, &["warm", "page:a", "--wait"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    eventually("it is counted", async || count(&redis, "warmed").await > warmed).await;
    for upstream in ["museum", "openai"] {
        let held: u64 = redis.ask(&["ZCARD", &format!("samovar:permits:{{{upstream}}}")]).await;
        assert_eq!(held, 1, "{upstream}");
    }
    let shown = run(&redis, &jobs, &["jobs", "--json"]).await;
    let all: Vec<Value> = serde_json::from_str(&shown.stdout).unwrap();
    let page = all.iter().find(|job| job["job"] == "page").unwrap();
    assert_eq!(page["upstreams"], json!([]), "{page}");
    gates.iter().for_each(crate::support::Gate::open);
}

#[tokio::test]
async fn a_composed_value_stays_while_an_input_fails_and_goes_with_it() {
    let (redis, upstream) = both().await;
    let jobs = pages(&upstream, &format!("{PAGE}[warm]\nattempts = 2\n"));
    let _worker = worker(&redis, &jobs);
    shows(&redis, page("one")).await;
    let parts = Parts::of(&redis).await;
    upstream.on("/art/a", Reply::status(500));
    parts.invalidate("art:a").await;
    eventually("the input fails", async || parts.stat("failed").await > 0).await;
    shows(&redis, page("one")).await;
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    eventually("the page is gone with its input", async || redis.get("page:a").await.is_none()).await;
    parts.invalidate("page:a").await;
    eventually("it is found gone again", async || count(&redis, "gone").await > 1).await;
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:dead:{page}"]).await, 0);
    upstream.publish("/art/a", json!({"title": "two", "artist": "Osman Hamdi Bey"}));
    parts.invalidate("art:a").await;
    shows(&redis, page("two")).await;
}

#[tokio::test]
async fn a_value_that_cannot_be_composed_is_told_and_not_stored() {
    let (redis, upstream) = both().await;
    let broken = PAGE.replace("{{ story }}", "{{ info.year }}");
    let jobs = pages(&upstream, &format!("{broken}[warm]\nattempts = 2\n"));
    let _worker = worker(&redis, &jobs);
    let reason = eventually("it is given up", async || {
        redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{page}", "page:a"]).await
    })
    .await;
    assert!(reason.contains("`value` cannot be composed: story: `info.year` is undefined"), "{reason}");
    assert_eq!(redis.get("page:a").await, None);
    let shown = run(&redis, &jobs, &["get", "page:a"]).await;
    assert!(shown.stdout.contains("`info.year` is undefined"), "{shown:?}");
}

#[tokio::test]
async fn commands_show_and_try_what_would_be_composed() {
    let (redis, upstream) = both().await;
    let jobs = pages(&upstream, PAGE);
    let shown = run(&redis, &jobs, &["check"]).await.stdout;
    let line = r#"COMPOSE {"info":"{{ info }}","story":"{{ story }}"}"#;
    assert!(shown.contains(line), "{shown}");
    let done = run(&redis, &jobs, &["check", "--fetch", "--json"]).await;
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    let fetched = report["fetched"].as_array().unwrap().iter().find(|one| one["job"] == "page").unwrap();
    assert_eq!((done.code, &fetched["value"]), (Some(0), &page("one")), "{fetched}");
    let request = &report["jobs"].as_array().unwrap().iter().find(|job| job["name"] == "page").unwrap()["example"];
    assert_eq!(request["requests"][0]["url"], Value::Null, "{request}");
    let planned = run(&redis, &jobs, &["warm", "page", "--dry-run"]).await.stdout;
    assert!(planned.contains("0 fetches, 0 AI calls"), "{planned}");
}

#[tokio::test]
async fn a_fresh_value_waits_for_no_input_that_has_expired() {
    let (redis, upstream) = both().await;
    let jobs = pages(&upstream, PAGE);
    let art = std::fs::read_to_string(jobs.path().join("art.toml")).unwrap();
    jobs.write(
        "art.toml",
        &art.replace("ttl = \"1h\"", "ttl = \"2s\"").replace("[warm]\n", "[warm]\nahead = \"0s\"\n"),
    );
    let mut worker = worker(&redis, &jobs);
    shows(&redis, page("one")).await;
    worker.term();
    worker.wait().await;
    eventually("the input has expired", async || redis.get("art:a").await.is_none()).await;
    redis.ask::<u8>(&["DEL", "story:a"]).await;
    let shown = run(&redis, &jobs, &["get", "page:a"]).await.stdout;
    for said in [
        "input         art:a has expired, and is not fetched again yet; the value is fresh, and was made from it ",
        "input         story:a was removed, and is not fetched again yet; the value is fresh",
    ] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    assert!(!shown.contains("waits for  "), "{shown}");
}

/// An attempt that ends before its fetch notes nothing. `samovar get` derives what keeps the entry.
#[tokio::test]
async fn what_keeps_an_entry_from_its_fetch_is_shown() {
    let (redis, upstream) = both().await;
    let jobs = pages(&upstream, PAGE);
    assert_eq!(run(&redis, &jobs, &["pause", "art"]).await.code, Some(0));
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let get = async |key: &str| run(&redis, &jobs, &["get", key]).await.stdout;
    let entry = async |key: &str| -> Value {
        let shown = run(&redis, &jobs, &["get", key, "--json"]).await.stdout;
        serde_json::from_str(&shown).unwrap_or_else(|e| panic!("{e}: {shown}"))
    };
    let shows = async |key: &str, said: &str| {
        eventually(&format!("{key}: {said}"), async || {
            let shown = get(key).await;
            if shown.contains(said) { Ok(()) } else { Err(shown) }
        })
        .await;
    };
    shows("page:a", "waits for     its input art:a, which has no value yet").await;
    shows("page:a", "waits for     its input story:a, which has no value yet").await;
    let http = worker.http().await;
    let request = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let answer = request.get(format!("{http}/entries?key=page:a")).send().await.unwrap();
    let shown: Value = answer.json().await.unwrap();
    assert_eq!(shown["missing_inputs"].as_array().map(Vec::len), Some(2), "{shown}");
    assert!(entry("art:a").await["job_paused_ms"].is_number());
    let late = async |key: &str| {
        let tried = run(&redis, &jobs, &["warm", key, "--wait", "--timeout", "300ms"]).await;
        assert_eq!(tried.code, Some(1), "{tried:?}");
        tried.stderr
    };
    assert!(late("art:a").await.contains("art was paused "));
    assert!(late("page:a").await.contains("not fetched within 300ms: its input art:a has no value yet"));
    upstream.on("/art/a", Reply::status(422));
    assert_eq!(run(&redis, &jobs, &["resume", "art"]).await.code, Some(0));
    shows("story:a", "waits for     its input art:a, which has no value: ").await;
    assert!(get("story:a").await.contains("(status 422)"), "{}", get("story:a").await);
    // The story is made, but its upstream asks for a pause then.
    upstream.on("/art/a", Reply::json(json!({"title": "one", "artist": "Osman Hamdi Bey"})));
    upstream.on(ASKED, Reply::status(429).header("Retry-After", "600"));
    assert_eq!(run(&redis, &jobs, &["warm", "art:a", "--wait"]).await.code, Some(0));
    shows("story:a", "upstream      openai: no requests for").await;
    let shown = entry("story:a").await;
    assert_eq!(shown["closed_upstreams"][0]["closed"], "retry-after", "{shown}");
    assert_eq!(shown["missing_inputs"], json!([]), "{shown}");
    let late = late("story:a").await;
    assert!(late.contains("not fetched within 300ms: upstream openai: no requests for"), "{late}");
}

/// One with an input that it needs, one whose input is optional, and one whose key its input does not tell. One has an
/// input with a key that is longer than a reason.
#[tokio::test]
async fn dead_letters_of_a_missing_input_return_when_it_is_back() {
    let (redis, upstream) = both().await;
    let long = "x".repeat(400);
    for name in ["a", "b", &long] {
        upstream.on(&format!("/art/{name}"), Reply::status(422));
    }
    let page = |job: &str, key: &str, list: &str| {
        format!(
            "key = \"{job}:{key}\"\nttl = \"1h\"\n[inputs]\nart = {{ key = \"art:{{name}}\", optional = {} }}\n\
             [source]\nkind = \"compose\"\nvalue = {{ art = \"{{{{ art }}}}\" }}\n\
             [entries]\nlist = [{list}]\n[warm]\nattempts = 1\n",
            job == "maybe"
        )
    };
    let art = Art::of(&upstream).list(["a", "b", &long]);
    let jobs = art.warm("attempts = 1\nrecheck = []\nabsent_for = \"0s\"").folder();
    let jobs = jobs
        .job("page", &page("page", "{name}", &format!("\"a\", \"{long}\"")))
        .job("maybe", &page("maybe", "{name}", "\"a\", \"b\""))
        .job("wide", &page("wide", "{lang}:{name}", r#"{ lang = "tr", name = "a" }"#));
    let _worker = worker(&redis, &jobs);
    let dead = async || {
        let mut all = Vec::new();
        for job in ["page", "maybe", "wide"] {
            all.extend(redis.ask::<Vec<String>>(&["ZRANGE", &format!("samovar:dead:{{{job}}}"), "0", "-1"]).await);
        }
        all
    };
    let far = format!("page:{long}");
    let given_up = ["page:a", &far, "maybe:a", "maybe:b", "wide:tr:a"];
    eventually("all are dead letters", async || {
        let dead = dead().await;
        if dead.len() == given_up.len() { Ok(()) } else { Err(dead) }
    })
    .await;
    for name in ["a", &long] {
        upstream.on(&format!("/art/{name}"), Reply::json(json!({"title": "one"})));
    }
    upstream.on("/art/b", Reply::status(404));
    for name in ["a", "b", &long] {
        samovar(["warm", &format!("art:{name}"), "--wait"]).redis(&redis).jobs(&jobs).run().await;
    }
    eventually("they are made", async || {
        let mut left = Vec::new();
        for key in given_up {
            let art = if key == "maybe:b" { serde_json::Value::Null } else { json!({"title": "one"}) };
            left.extend(redis.json(key).await.filter(|value| value["art"] == art).is_none().then_some(key));
        }
        let dead = dead().await;
        if left.is_empty() && dead.is_empty() { Ok(()) } else { Err((left, dead)) }
    })
    .await;
}
