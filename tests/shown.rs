//! The output of `samovar jobs` and `samovar get` on long outcomes and on values that wait.
use crate::support::{Art, JobsFolder, Reply, TestRedis, both, eventually, samovar, worker};
use serde_json::{Value, json};

/// Returns the output of a command in one line.
async fn shown(redis: &TestRedis, jobs: &JobsFolder, args: &[&str]) -> String {
    samovar(args).redis(redis).jobs(jobs).run().await.stdout.replace('\n', " ")
}

#[tokio::test]
async fn jobs_shows_a_long_outcome_to_its_end() {
    let (redis, upstream) = both().await;
    let name = "n".repeat(200);
    upstream.on(&format!("/art/{name}"), Reply::text(&"x".repeat(500)).with_status(500));
    let jobs = Art::of(&upstream).list([&name]).folder();
    let _worker = worker(&redis, &jobs);
    let whole = format!("it begins: {}….", "x".repeat(200));
    eventually("all of it is shown", async || {
        let shown = shown(&redis, &jobs, &["jobs", "art"]).await;
        if shown.contains(&whole) { Ok(()) } else { Err(shown) }
    })
    .await;
    // The metadata of the entry note the beginning, and that there was more.
    let entry = shown(&redis, &jobs, &["get", &format!("art:{name}")]).await;
    assert!(entry.contains("x… ") && !entry.contains(&"x".repeat(200)), "{entry}");
}

#[tokio::test]
async fn get_and_jobs_say_the_same_of_an_earlier_file() {
    let (redis, upstream) = both().await;
    let answer = json!({
        "choices": [{"message": {"content": "Once"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    });
    upstream.on("/v1/chat/completions", Reply::json(answer));
    upstream.on("/down/chat/completions", Reply::status(500));
    let limits =
        format!("[openai]\nurl = \"{0}/v1\"\ntokens = \"15/hour\"\n[other]\nurl = \"{0}/down\"\n", upstream.url());
    let source = |upstream| {
        format!("kind = \"ai\"\nupstream = \"{upstream}\"\nmodel = \"m\"\nprompt = \"Tell of {{{{ name }}}}\"\n")
    };
    let story = format!(
        "key = \"story:{{name}}\"\nttl = \"1h\"\n[source]\n{}[[source.fallback]]\n{}[entries]\nlist = [\"a\"]\n",
        source("openai"),
        source("other")
    );
    let jobs = Art::of(&upstream).limits(&limits).folder().job("story", &story);
    let worker = worker(&redis, &jobs);
    eventually("the story is there", async || redis.get("story:a").await).await;
    jobs.write("story.toml", &story.replace("Tell of", "Sing of"));
    worker.hangup();
    eventually("both name the attempt and the budget", async || {
        let of_jobs: Value = serde_json::from_str(&shown(&redis, &jobs, &["jobs", "story", "--json"]).await).unwrap();
        let of_jobs = of_jobs[0]["outdated"]["waits_for"].to_string();
        let of_get = shown(&redis, &jobs, &["get", "story:a"]).await;
        let is_told = |said: &str| {
            said.contains("the next attempt; that at story:a comes in ")
                && said.contains(", or for the budget of openai: no requests for ")
        };
        if is_told(&of_jobs) && is_told(&of_get) { Ok(()) } else { Err((of_jobs, of_get)) }
    })
    .await;
}

#[tokio::test]
async fn what_waits_for_an_input_of_a_paused_job_names_the_pause() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let page = "key = \"page:{name}\"\nttl = \"1h\"\n[inputs]\nart = \"art:{name}\"\n[source]\nkind = \"compose\"\n\
                value = { one = \"{{ art }}\" }\n[entries]\nlist = [\"a\"]\n";
    let jobs = Art::of(&upstream).folder().job("page", page);
    let worker = worker(&redis, &jobs);
    eventually("the page is there", async || redis.get("page:a").await).await;
    shown(&redis, &jobs, &["pause", "art"]).await;
    shown(&redis, &jobs, &["invalidate", "art:a"]).await;
    jobs.write("page.toml", &page.replace("one =", "another ="));
    worker.hangup();
    eventually("both name the pause", async || {
        let of_jobs = shown(&redis, &jobs, &["jobs", "page", "--json"]).await;
        let of_get = shown(&redis, &jobs, &["get", "page:a"]).await;
        let is_told = |said: &str| said.contains("the end of the pause of art (`samovar resume art`)");
        if is_told(&of_jobs) && is_told(&of_get) { Ok(()) } else { Err((of_jobs, of_get)) }
    })
    .await;
}
