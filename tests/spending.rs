//! AI tokens: their count, the requests saved for unchanged prompts, and the budget's end.
use std::time::Duration;

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, both, eventually, samovar, talkative, worker,
};
use samovar::agenda::Due;
use samovar::entry::{EntryKey, Trigger};
use samovar::redis::RedisTime;
use serde_json::{Value, json};

const ASKED: &str = "/v1/chat/completions";

/// A job `story` whose answers cost 15 tokens each, and the job `art`.
fn stories(upstream: &Upstream, names: &[&str], budget: &str) -> JobsFolder {
    upstream.answer(ASKED, |_, count| {
        Reply::json(json!({
            "choices": [{"message": {"content": format!("Story {count}")}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }))
    });
    let ai = format!("[openai]\nurl = \"{}/v1\"\nconcurrency = 1\n{budget}", upstream.url());
    let story = format!(
        "key = \"story:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nupstream = \"openai\"\nmodel = \"tiny\"\n\
         prompt = \"Tell of {{{{ name }}}}\"\n[entries]\nlist = {}\n",
        json!(names)
    );
    Art::of(upstream).list(["a"]).limits(&ai).folder().job("story", &story)
}

async fn warm(redis: &TestRedis, jobs: &JobsFolder, what: &str) {
    let done = samovar(["warm", what, "--wait"]).redis(redis).jobs(jobs).run().await;
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// A job, as `samovar jobs --json` shows it.
async fn job(redis: &TestRedis, jobs: &JobsFolder, name: &str) -> Value {
    let shown = samovar(["jobs", "--json"]).redis(redis).jobs(jobs).run().await;
    let all: Vec<Value> = serde_json::from_str(&shown.stdout).unwrap_or_else(|e| panic!("{e}: {shown:?}"));
    all.into_iter().find(|job| job["job"] == name).unwrap()
}

/// And it says so.
#[tokio::test]
async fn what_check_fetches_is_paid_for_and_counted_in_no_budget() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a", "b"], "tokens = \"1000/hour\"");
    let done = samovar(["check", "--fetch"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!((done.code, upstream.calls(ASKED)), (Some(0), 1), "{done:?}");
    assert_eq!(redis.keys("*").await, Vec::<String>::new());
    let help = samovar(["check", "--help"]).run().await.stdout;
    assert!(help.contains("cost money") && help.contains("no budget"), "{help}");
}

#[tokio::test]
async fn spending_and_savings_are_the_fleets_and_outlive_its_workers() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a", "b"], "tokens = \"1000/hour\"");
    let mut first = worker(&redis, &jobs);
    eventually("both stories are there", async || redis.keys("story:*").await.len() == 2).await;
    eventually("the artwork is there", async || redis.get("art:a").await).await;
    eventually("it is counted", async || job(&redis, &jobs, "story").await["spending"]["tokens_spent"] == 30).await;
    first.kill9();
    let _second = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").env("SAMOVAR_CLAIM", "1s").spawn();
    warm(&redis, &jobs, "story").await;
    warm(&redis, &jobs, "art").await;
    assert_eq!(upstream.calls(ASKED), 2, "nothing was generated again");
    eventually("what was saved is counted", async || {
        let story = job(&redis, &jobs, "story").await["spending"].clone();
        let counts = (&story["tokens_spent"], &story["tokens_saved"], &story["calls_saved"]);
        if counts == (&json!(30), &json!(30), &json!(2)) { Ok(()) } else { Err(story) }
    })
    .await;
    let art = job(&redis, &jobs, "art").await;
    assert_eq!((&art["spending"]["not_modified"], &art["spending"]["tokens_spent"]), (&json!(1), &json!(0)));
    // Counters of spending are no outcomes.
    let story = job(&redis, &jobs, "story").await;
    assert_eq!(story["outcomes"], json!({"warmed": 2, "unchanged": 2}));
    assert!(story["spending"]["since_ms"].is_i64(), "{story}");
    let openai = &story["upstreams"][0];
    assert_eq!((&openai["upstream"], &openai["tokens_spent"]), (&json!("openai"), &json!(30)));
    assert_eq!(openai["tokens_budget"], 1000);
    let now = redis.ask::<(i64, i64)>(&["TIME"]).await.0 * 1_000;
    let ends = openai["tokens_window_ends_ms"].as_i64().unwrap();
    assert!((now..=now + 3_601_000).contains(&ends), "{ends}");
    let shown = samovar(["jobs"]).redis(&redis).jobs(&jobs).run().await.stdout;
    for text in ["TOKENS SAVED", "30 (3 %)", "1,000", "WINDOW ENDS"] {
        assert!(shown.contains(text), "`{text}` in {shown}");
    }
}

#[tokio::test]
async fn check_diff_tells_the_budget_that_is_left() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a", "b"], "tokens = \"1000/hour\"");
    let diff = async |args: &[&str]| {
        let done = samovar([&["check", "--diff"], args].concat()).redis(&redis).jobs(&jobs).run().await;
        assert_eq!(done.code, Some(0), "{done:?}");
        done.stdout
    };
    let budgets = async || serde_json::from_str::<Value>(&diff(&["--json"]).await).unwrap()["budgets"].clone();
    let whole = json!([{"upstream": "openai", "tokens_left": 1000, "tokens_budget": 1000}]);
    assert_eq!(budgets().await, whole);
    assert!(diff(&[]).await.contains("Budget of openai: 1,000 of 1,000 tokens are left; a window begins"));
    let mut worker = worker(&redis, &jobs);
    eventually("it is counted", async || job(&redis, &jobs, "story").await["spending"]["tokens_spent"] == 30).await;
    assert_eq!(budgets().await, json!([]), "no AI calls are to come");
    worker.term();
    worker.wait().await;
    let story = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
    jobs.write("story.toml", &story.replace("Tell of", "Sing of"));
    let left = budgets().await;
    assert_eq!((left[0]["tokens_left"].as_u64(), left[0]["window_ends_ms"].is_i64()), (Some(970), true), "{left}");
    let text = diff(&[]).await.replace("\n  ", " ");
    assert!(text.contains("Budget of openai: 970 of 1,000 tokens are left in this window, which ends in"), "{text}");
}

/// Changes the prompt of the job `story`, and has a worker take it up.
fn change_the_prompt(jobs: &JobsFolder, worker: &WorkerProcess) {
    let story = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
    jobs.write("story.toml", &story.replace("Tell of", "Sing of"));
    worker.hangup();
}

#[tokio::test]
async fn a_budget_lowered_below_what_is_spent_is_told() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a", "b"], "tokens = \"1000/hour\"");
    let mut worker = worker(&redis, &jobs);
    eventually("it is counted", async || job(&redis, &jobs, "story").await["spending"]["tokens_spent"] == 30).await;
    let upstreams = std::fs::read_to_string(jobs.path().join("upstreams.toml")).unwrap();
    jobs.write("upstreams.toml", &upstreams.replace("1000/hour", "20/hour"));
    let diff = samovar(["check", "--diff"]).redis(&redis).jobs(&jobs).run().await.stdout.replace("\n  ", " ");
    let said = "Budget of openai: 0 of 20 tokens are left, since 30 are spent in this window: AI calls are deferred";
    assert!(diff.contains(said), "{diff}");
    assert!(!worker.log().iter().any(|line| line.contains(" is spent")), "{:?}", worker.log());
    worker.hangup();
    worker.wait_for_log(&["its budget of 20", "is spent: its entries are deferred"]).await;
    let planned = samovar(["invalidate", "story:a", "--dry-run"]).redis(&redis).run().await.stdout.replace("\n  ", " ");
    assert!(planned.contains("1 AI call\n") && planned.contains(said), "{planned}");
    let planned = samovar(["warm", "story", "--dry-run", "--json"]).redis(&redis).run().await.stdout;
    let planned: Value = serde_json::from_str(&planned).unwrap();
    let left = &planned["budgets"][0];
    assert_eq!(
        (&planned["ai_calls"], &left["tokens_left"], &left["tokens_budget"]),
        (&json!(2), &json!(0), &json!(20))
    );
    let told = |worker: &WorkerProcess| worker.log().iter().filter(|line| line.contains("its budget of 20")).count();
    jobs.write("upstreams.toml", &upstreams.replace("1000/hour", "21/hour"));
    worker.hangup();
    worker.wait_for_log(&["its budget of 21"]).await;
    assert_eq!(told(&worker), 1, "once in a window: {:?}", worker.log());
}

#[tokio::test]
async fn a_lowered_budget_is_told_also_after_a_larger_one() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, &["a", "b"], "tokens = \"30/hour\"");
    let mut worker = worker(&redis, &jobs);
    let upstreams = std::fs::read_to_string(jobs.path().join("upstreams.toml")).unwrap();
    worker.wait_for_log(&["its budget of 30", "is spent: its entries are deferred"]).await;
    let lower = |to: &str| jobs.write("upstreams.toml", &upstreams.replace("30/hour", to));
    lower("20/hour");
    worker.hangup();
    worker.wait_for_log(&["its budget of 20", "is spent: its entries are deferred"]).await;
    lower("900000/hour");
    worker.hangup();
    eventually("it is raised", async || {
        let openai = job(&redis, &jobs, "story").await["upstreams"][0].clone();
        if openai["tokens_budget"] == 900_000 { Ok(()) } else { Err(openai) }
    })
    .await;
    lower("15/10m");
    worker.hangup();
    worker.wait_for_log(&["its budget of 15", "is spent: its entries are deferred"]).await;
    let told = worker.log().into_iter().filter(|line| line.contains(" is spent: ")).count();
    assert_eq!(told, 3, "each once in a window: {:?}", worker.log());
}

#[tokio::test]
async fn values_of_an_earlier_file_that_wait_for_the_budget_are_told() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a", "b", "c"], "tokens = \"60/hour\"");
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    eventually("it is counted", async || job(&redis, &jobs, "story").await["spending"]["tokens_spent"] == 45).await;
    assert_eq!(job(&redis, &jobs, "story").await["outdated"], Value::Null);
    change_the_prompt(&jobs, &worker);
    let told = eventually("two wait", async || {
        let outdated = job(&redis, &jobs, "story").await["outdated"].clone();
        let waits = outdated["waits_for"].to_string().contains("the budget of openai: no requests for ");
        if outdated["values"] == 2 && waits { Ok(outdated) } else { Err(outdated) }
    })
    .await;
    assert_eq!(told["reason"], Value::Null, "{told}");
    let shown = samovar(["jobs"]).redis(&redis).jobs(&jobs).run().await.stdout.replace('\n', " ");
    let said = "2 values of story are made from an earlier file. They wait for the budget of openai: no requests for ";
    assert!(shown.contains(said), "{shown}");
    let mut of_an_earlier_file = 0;
    for name in ["a", "b", "c"] {
        let shown = samovar(["get", &format!("story:{name}")]).redis(&redis).jobs(&jobs).run().await.stdout;
        let said = "is of an earlier job file, and is to be made anew: it waits for the budget of openai: no requests";
        of_an_earlier_file += usize::from(shown.contains(said));
    }
    assert_eq!(of_an_earlier_file, 2);
    let base = worker.http().await;
    let one: Value = serde_json::from_str(&get(&format!("{base}/jobs/story")).await).unwrap();
    assert!(one["outdated"]["values"].as_u64() > Some(0), "{one}");
    // A raised budget would let them be made, and changes nothing that values are made from.
    let upstreams = std::fs::read_to_string(jobs.path().join("upstreams.toml")).unwrap();
    jobs.write("upstreams.toml", &upstreams.replace("60/hour", "100/hour"));
    eventually("the change is carried out", async || {
        let done = samovar(["check", "--diff", "--json"]).redis(&redis).jobs(&jobs).run().await;
        let diff: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
        let story = diff["jobs"].as_array().unwrap().iter().find(|job| job["job"] == "story").unwrap();
        let counts = ["state", "values", "ai_calls"].map(|field| story[field].clone());
        let budget = &diff["budgets"][0];
        let left = ["tokens_left", "tokens_per_call", "calls_left"].map(|field| budget[field].clone());
        let expected = ([json!("unchanged"), json!(2), json!(2)], [json!(40), json!(15), json!(2)]);
        if (counts, left) == expected { Ok(()) } else { Err(diff) }
    })
    .await;
    let shown = samovar(["check", "--diff"]).redis(&redis).jobs(&jobs).run().await.stdout.replace("\n  ", " ");
    for said in ["story: its values wait since an earlier change", "last for about 2 AI calls, at 15 tokens each"] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    samovar(["pause", "story"]).redis(&redis).run().await;
    let waits = job(&redis, &jobs, "story").await["outdated"]["waits_for"].to_string();
    assert!(waits.contains("the end of the pause"), "{waits}");
}

/// By themselves they would be tried again in ten minutes.
#[tokio::test]
async fn a_reload_that_raises_the_budget_makes_deferred_entries() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, &["a", "b", "c"], "tokens = \"60/hour\"");
    let worker = worker(&redis, &jobs);
    eventually("it is counted", async || job(&redis, &jobs, "story").await["spending"]["tokens_spent"] == 45).await;
    change_the_prompt(&jobs, &worker);
    let waiting = async || job(&redis, &jobs, "story").await["outdated"]["values"].as_u64().unwrap_or_default();
    eventually("two wait", async || waiting().await == 2).await;
    let upstreams = std::fs::read_to_string(jobs.path().join("upstreams.toml")).unwrap();
    jobs.write("upstreams.toml", &upstreams.replace("60/hour", "900000/hour"));
    worker.hangup();
    eventually("they are made", async || waiting().await == 0).await;
}

#[tokio::test]
async fn values_of_an_earlier_file_that_wait_for_inputs_are_told() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a"], "");
    let story = std::fs::read_to_string(jobs.path().join("story.toml")).unwrap();
    let story = format!("{story}\n[inputs]\nart = \"art:{{name}}\"\n").replace("Tell of", "Tell of {{ art.title }},");
    jobs.write("story.toml", &story);
    let worker = worker(&redis, &jobs);
    eventually("the story is there", async || redis.get("story:a").await).await;
    // Both are made anew, the artwork first; and it must wait.
    samovar(["pause", "art"]).redis(&redis).run().await;
    let art = std::fs::read_to_string(jobs.path().join("art.toml")).unwrap();
    jobs.write("art.toml", &art.replace("[source]", "[source]\nselect = \"/title\""));
    jobs.write("story.toml", &story.replace("Tell of {{ art.title }}", "Sing of {{ art }}"));
    worker.hangup();
    eventually("the story waits", async || {
        let outdated = job(&redis, &jobs, "story").await["outdated"].clone();
        let expected = "inputs that are made anew first, such as art:a for story:a";
        if outdated["waits_for"] == expected { Ok(()) } else { Err(outdated) }
    })
    .await;
    assert_eq!(upstream.calls(ASKED), 1);
    samovar(["resume", "art"]).redis(&redis).run().await;
    eventually("the story is told anew", async || upstream.calls(ASKED) == 2).await;
}

/// The last count takes it for a value of an earlier file.
#[tokio::test]
async fn a_value_made_anew_since_the_count_waits_for_nothing() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, &["a"], "tokens = \"1000/hour\"");
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    eventually("the story is there", async || redis.get("story:a").await).await;
    let story = json!({"warm": 1, "oldest_ms": null, "outdated": 1, "first_outdated": "story:a"});
    let at_ms = Parts::of(&redis).await.now().await.as_millis();
    let census = json!({"at_ms": at_ms, "took_ms": 60_000, "jobs": {"story": story}});
    redis.ask::<String>(&["SET", "samovar:census", &census.to_string()]).await;
    let base = worker.http().await;
    let told = eventually("the count is shown", async || {
        let one: Value = serde_json::from_str(&get(&format!("{base}/jobs/story")).await).unwrap();
        if one["outdated"]["values"] == 1 { Ok(one) } else { Err(one) }
    })
    .await;
    assert_eq!(told["outdated"]["waits_for"], "a turn", "{told}");
}

#[tokio::test]
async fn a_new_window_makes_what_a_change_left_without_a_warmup() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a", "b", "c"], "tokens = \"60/hour\"");
    let worker = worker(&redis, &jobs);
    eventually("all are there", async || redis.keys("story:*").await.len() == 3).await;
    change_the_prompt(&jobs, &worker);
    let parts = Parts::of(&redis).await;
    eventually("two are deferred", async || {
        let now = parts.now().await;
        let all: Vec<(String, f64)> = redis.ask(&["ZRANGE", "samovar:agenda:{story}", "0", "-1", "WITHSCORES"]).await;
        let waits = all.into_iter().map(|(_, score)| Due::from_score(score));
        waits.filter(|due| due.trigger == Trigger::Cron && due.at > now + Duration::from_secs(60)).count() == 2
    })
    .await;
    // The window ends, and with it their wait.
    redis.ask::<u8>(&["DEL", "samovar:budget:{openai}"]).await;
    eventually("all are made from the new prompt", async || {
        let asked = upstream.requests(ASKED).iter().filter(|request| request.body.contains("Sing of")).count();
        let outdated = job(&redis, &jobs, "story").await["outdated"].clone();
        if asked == 3 && outdated.is_null() { Ok(()) } else { Err((asked, outdated)) }
    })
    .await;
}

#[tokio::test]
async fn http_and_metrics_show_what_is_spent_and_saved() {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a"], "tokens = \"1000/hour\"");
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    eventually("the story is there", async || redis.get("story:a").await).await;
    let base = address(&mut worker).await;
    warm(&redis, &jobs, "story").await;
    let expected = [
        "samovar_job_tokens_spent_total{job=\"story\"} 15",
        "samovar_job_tokens_saved_total{job=\"story\"} 15",
        "samovar_job_calls_saved_total{job=\"story\"} 1",
        "samovar_job_not_modified_total{job=\"story\"} 0",
        "samovar_tokens_spent{upstream=\"openai\"} 15",
        "samovar_tokens_budget{upstream=\"openai\"} 1000",
        "samovar_tokens_window_ends_timestamp_seconds{upstream=\"openai\"} 1",
    ];
    eventually("the metrics tell", async || {
        let text = get(&format!("{base}/metrics")).await;
        let missing: Vec<&str> = expected.into_iter().filter(|line| !text.contains(line)).collect();
        if missing.is_empty() { Ok(()) } else { Err((missing.join("\n"), text)) }
    })
    .await;
    let all: Value = serde_json::from_str(&get(&format!("{base}/jobs")).await).unwrap();
    let story = all.as_array().unwrap().iter().find(|job| job["job"] == "story").unwrap();
    assert_eq!(story["spending"]["tokens_saved"], 15);
    assert_eq!(story["upstreams"][0]["tokens_budget"], 1000);
    let one: Value = serde_json::from_str(&get(&format!("{base}/jobs/story")).await).unwrap();
    assert_eq!(one["upstreams"], story["upstreams"]);
    let stats: Value = serde_json::from_str(&get(&format!("{base}/redis/stats")).await).unwrap();
    let story = stats["jobs"].as_array().unwrap().iter().find(|job| job["job"] == "story").unwrap();
    assert_eq!(story["upstream"]["tokens_spent"], 15);
    assert!(story["upstream"]["tokens_window_ends_ms"].is_i64(), "{story}");
}

#[tokio::test]
async fn a_spent_budget_is_told_once_a_window_by_the_whole_fleet() {
    let (redis, upstream) = both().await;
    // Ten stories make 88 %, eleven 97 %, twelve more than all of it.
    let names: Vec<String> = (0..14).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let jobs = stories(&upstream, &names, "tokens = \"170/hour\"");
    let mut fleet = [worker(&redis, &jobs), worker(&redis, &jobs)];
    eventually("the others are deferred", async || {
        redis.ask::<Option<u64>>(&["HGET", "samovar:stats:{story}", "deferred"]).await.unwrap_or_default() >= 2
    })
    .await;
    assert_eq!(upstream.calls(ASKED), 12);
    let shown = job(&redis, &jobs, "story").await;
    assert_eq!(shown["upstreams"][0]["closed"], "tokens", "{shown}");
    for worker in &mut fleet {
        worker.term();
        worker.wait().await;
    }
    let told = |text: &str| -> usize {
        fleet.iter().map(|worker| worker.log().iter().filter(|line| line.contains(text)).count()).sum()
    };
    assert_eq!((told("80 % of its budget"), told("is spent: its entries are deferred")), (1, 1));
}

/// A fleet of two whose budget lets two of six stories be told. Then Redis loses the budget, or all that it holds.
async fn two_more_are_told(redis_loses_all: bool) {
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"title": "one"}));
    let jobs = stories(&upstream, &["a", "b", "c", "d", "e", "f"], "tokens = \"30/hour\"");
    let _fleet = [worker(&redis, &jobs), worker(&redis, &jobs)];
    let deferred = async || {
        let now = Parts::of(&redis).await.now().await;
        let all: Vec<(String, f64)> = redis.ask(&["ZRANGE", "samovar:agenda:{story}", "0", "-1", "WITHSCORES"]).await;
        let dues = all.into_iter().map(|(_, score)| Due::from_score(score));
        // Those that have a value are due at their expiry.
        let waits = dues.filter(|due| due.trigger != Trigger::Expiry && due.at > now + Duration::from_secs(60));
        (waits.count(), upstream.calls(ASKED))
    };
    eventually("four are deferred", async || match deferred().await {
        (4, 2) => Ok(()),
        other => Err(other),
    })
    .await;
    let left = if redis_loses_all { 4 } else { 2 };
    match redis_loses_all {
        true => redis.flush().await,
        false => _ = redis.ask::<u8>(&["DEL", "samovar:budget:{openai}"]).await,
    }
    eventually("two more are told, and the others deferred anew", async || match deferred().await {
        (count, 4) if count == left => Ok(()),
        other => Err(other),
    })
    .await;
}

/// A master of a Cluster that is flushed takes the budget along, and leaves what is to be generated.
#[tokio::test]
async fn entries_that_a_lost_budget_deferred_are_fetched_at_once() {
    two_more_are_told(false).await;
}

/// The worker remembers the spent budget while all is warmed up.
#[tokio::test]
async fn a_flush_defers_no_entry_for_a_budget_from_before_it() {
    two_more_are_told(true).await;
}

#[tokio::test]
async fn requests_of_two_workers_pass_no_budget_together() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for limit in ["max_tokens = 90\n", ""] {
        upstream.answer(ASKED, |_, count| {
            let usage = json!({"prompt_tokens": 20, "completion_tokens": 80, "total_tokens": 100});
            let choice = json!({"message": {"content": format!("Story {count}")}, "finish_reason": "stop"});
            Reply::json(json!({"choices": [choice], "usage": usage})).after(Duration::from_millis(300))
        });
        let before = upstream.calls(ASKED);
        let story = format!(
            "key = \"story:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nupstream = \"openai\"\nmodel = \"tiny\"\n\
             prompt = \"Tell of {{{{ name }}}}\"\n{limit}[entries]\nlist = {}\n",
            json!(names)
        );
        let openai = format!("[openai]\nurl = \"{}/v1\"\ntokens = \"1000/day\"\n", upstream.url());
        let jobs = Art::of(&upstream).limits(&openai).folder().job("story", &story);
        redis.ask::<()>(&["FLUSHALL"]).await;
        let mut fleet = [worker(&redis, &jobs), worker(&redis, &jobs)];
        eventually("the budget is spent", async || {
            let shown = job(&redis, &jobs, "story").await["upstreams"][0].clone();
            if shown["closed"] == "tokens" { Ok(()) } else { Err(shown) }
        })
        .await;
        for worker in &mut fleet {
            worker.term();
            worker.wait().await;
        }
        let calls = upstream.calls(ASKED) - before;
        assert!((10..=11).contains(&calls), "{calls} calls with {limit:?}");
    }
}

/// The worker gives up on its commands. Redis carries them out once it goes on, and the worker sends them again.
#[tokio::test]
async fn tokens_count_once_though_redis_froze_when_they_were_told() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, &["a"], "tokens = \"1000/hour\"");
    let mut worker = talkative(&redis, &jobs).spawn();
    eventually("a story is there", async || redis.get("story:a").await).await;
    let parts = Parts::of(&redis).await;
    let gate = upstream.gate(ASKED);
    parts.invalidate(r#"{"keys": ["story:b"], "action": "warm"}"#).await;
    gate.arrived(1).await;
    redis.freeze();
    gate.open();
    worker.wait_for_log(&["cannot return a permit"]).await;
    let counted = async || redis.ask::<usize>(&["HGET", "samovar:budget:{openai}", "tokens"]).await;
    worker.freeze();
    redis.thaw();
    eventually("Redis counts what it was told before", async || match counted().await {
        30 => Ok(()),
        other => Err(other),
    })
    .await;
    worker.thaw();
    // Before another request is admitted, the tokens are told again.
    parts.invalidate(r#"{"keys": ["story:c"], "action": "warm"}"#).await;
    eventually("another story is there", async || redis.get("story:c").await).await;
    worker.term();
    worker.wait().await;
    assert_eq!(counted().await, 15 * upstream.calls(ASKED), "{:?}", worker.log());
}

#[tokio::test]
async fn odd_answers_are_used_and_counted() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let jobs = stories(&upstream, &names, "tokens = \"120/hour\"");
    let usages = [
        json!({"prompt_tokens": null, "completion_tokens": null, "total_tokens": null}),
        json!({"prompt_tokens": -1, "completion_tokens": 2.5, "total_tokens": "many"}),
        json!({}),
        json!({"total_tokens": 0}),
        json!("none"),
    ];
    upstream.answer(ASKED, move |_, count| {
        let choice = json!({"message": {"content": format!("Story {count}")}, "finish_reason": "eos_token"});
        Reply::json(json!({"choices": [choice], "usage": usages[count % usages.len()]}))
    });
    let _worker = worker(&redis, &jobs);
    eventually("the budget is spent", async || {
        let shown = job(&redis, &jobs, "story").await["upstreams"][0].clone();
        if shown["closed"] == "tokens" { Ok(()) } else { Err(shown) }
    })
    .await;
    let (calls, stored) = (upstream.calls(ASKED), redis.keys("story:*").await.len());
    assert!((2..=8).contains(&calls) && stored == calls, "{calls} calls, {stored} stories");
}

#[tokio::test]
async fn answers_that_never_come_spend_the_budget_too() {
    let (redis, upstream) = both().await;
    let jobs = stories(&upstream, &["a", "b", "c", "d", "e", "f"], "tokens = \"60/hour\"\ntimeout = \"1s\"");
    upstream
        .answer(ASKED, |_, count| if count % 2 == 0 { Reply::silence() } else { Reply::json(json!([])).cut_after(1) });
    let _worker = worker(&redis, &jobs);
    eventually("the budget is spent", async || {
        let shown = job(&redis, &jobs, "story").await["upstreams"][0].clone();
        if shown["closed"] == "tokens" { Ok(()) } else { Err(shown) }
    })
    .await;
    assert!((2..=8).contains(&upstream.calls(ASKED)), "{}", upstream.calls(ASKED));
}

/// The budget is spent as soon as both stories are there.
#[tokio::test]
async fn a_spent_budget_holds_up_only_what_needs_a_request() {
    let (redis, upstream) = both().await;
    for name in ["a", "b", "c"] {
        upstream.publish(&format!("/art/{name}"), json!({"title": "one"}));
    }
    let story = "key = \"story:{name}\"\nttl = \"8s\"\n[inputs]\nart = \"art:{name}\"\n\
                 [source]\nkind = \"ai\"\nupstream = \"openai\"\nmodel = \"tiny\"\n\
                 prompt = \"Tell of {{ art.title }}\"\n[entries]\nlist = [\"a\", \"b\"]\n\
                 [warm]\nahead = \"7s\"\nstale_if_error = \"1h\"\n";
    let jobs = stories(&upstream, &[], "tokens = \"30/hour\"").job("story", story);
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    eventually("both stories are there", async || redis.keys("story:*").await.len() == 2).await;
    let parts = Parts::of(&redis).await;
    upstream.publish("/art/b", json!({"title": "two"}));
    parts.invalidate("art:b").await;
    parts.invalidate(r#"{"keys": ["art:c"], "action": "warm"}"#).await;
    eventually("what it is made from is there", async || redis.get("art:c").await).await;
    parts.invalidate(r#"{"keys": ["story:c"], "action": "warm"}"#).await;
    let ends = parts.now().await + Duration::from_millis(8_000);
    eventually("the TTLs that they had are over", async || parts.now().await > ends).await;

    let [a, b, c] = ["a", "b", "c"].map(|name| EntryKey::new(format!("story:{name}")));
    let looked = parts.store.snapshots(&[a, b.clone(), c.clone()]).await.unwrap();
    let outlived: Vec<_> = looked
        .into_iter()
        .map(|found| found.meta.filter(|m| m.own_expiry > RedisTime::ZERO).map(|m| m.stale_for))
        .collect();
    assert_eq!(outlived[0], Some(Duration::ZERO), "made from the same, its TTL is extended");
    assert!(outlived[1] > Some(Duration::ZERO), "made from something else, its old value lives on: {outlived:?}");
    assert_eq!((outlived[2], upstream.calls(ASKED)), (None, 2));
    // They are looked at again before the window ends, in case the budget is raised; but not all the time.
    let now = parts.now().await;
    for key in [b, c] {
        let score: f64 = redis.ask(&["ZSCORE", "samovar:agenda:{story}", key.as_str()]).await;
        let wait = Due::from_score(score).at.saturating_since(now);
        assert!((Duration::from_secs(300)..Duration::from_secs(800)).contains(&wait), "{key}: {wait:?}");
    }
    let deferred: u64 = redis.ask(&["HGET", "samovar:stats:{story}", "deferred"]).await;
    assert!(deferred < 20, "{deferred}");
    let saved = job(&redis, &jobs, "story").await["spending"]["calls_saved"].as_u64();
    assert!(saved > Some(0), "{saved:?}");
    let shown = samovar(["get", "story:b"]).redis(&redis).jobs(&jobs).run().await.stdout;
    for said in ["because the token budget of openai is spent", "openai: no requests for ", "(tokens)"] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    let health: Value = serde_json::from_str(&get(&format!("{}/health", worker.http().await)).await).unwrap();
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(health["reasons"].to_string().contains("upstream openai has spent its token budget"), "{health}");
}

/// Its value would expire during the wait for the budget.
#[tokio::test]
async fn a_deferred_entry_is_tried_again_before_its_value_expires() {
    let (redis, upstream) = both().await;
    let story = "key = \"story:{name}\"\nttl = \"2m\"\n[source]\nkind = \"ai\"\nupstream = \"openai\"\n\
                 model = \"tiny\"\nprompt = \"Tell of {{ name }}\"\n[entries]\nlist = [\"a\", \"b\"]\n\
                 [warm]\nahead = \"30s\"\n";
    let jobs = stories(&upstream, &[], "tokens = \"30/hour\"").job("story", story);
    let _worker = worker(&redis, &jobs);
    eventually("both stories are there", async || redis.keys("story:*").await.len() == 2).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate("story:a").await;
    eventually("it is deferred until its usual refresh", async || {
        let deferred: Option<u64> = redis.ask(&["HGET", "samovar:stats:{story}", "deferred"]).await;
        let score: f64 = redis.ask(&["ZSCORE", "samovar:agenda:{story}", "story:a"]).await;
        let wait = Due::from_score(score).at.saturating_since(parts.now().await);
        let is_due_in_time = (Duration::from_secs(30)..Duration::from_secs(91)).contains(&wait);
        if deferred > Some(0) && is_due_in_time { Ok(()) } else { Err((deferred, wait)) }
    })
    .await;
    let tried = samovar(["warm", "story:a", "--wait", "--timeout", "3s"]).redis(&redis).jobs(&jobs).run().await;
    assert!(tried.stderr.contains("budget") || tried.stderr.contains("upstream openai: no requests"), "{tried:?}");
    assert!(tried.stderr.contains("budget") || tried.stderr.contains("(tokens)"), "{tried:?}");
}

async fn address(worker: &mut WorkerProcess) -> String {
    let line = worker.wait_for_log(&["http://127.0.0.1:"]).await;
    let rest = &line[line.find("http://").unwrap()..];
    rest.split(|c: char| c.is_whitespace() || c == '"').next().unwrap().trim_end_matches('/').to_owned()
}

async fn get(url: &str) -> String {
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(20)).build().unwrap();
    client.get(url).send().await.unwrap().text().await.unwrap()
}
