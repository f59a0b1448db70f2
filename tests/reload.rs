//! SIGHUP and `POST /reload`: jobs are taken up anew while the worker works.
use std::time::Duration;

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, eventually, listening, readable_key as readable,
    talkative, worker,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The log line after new jobs have taken over.
const IN_USE: &str = "the new jobs are in use";

async fn both() -> (TestRedis, Upstream) {
    let (redis, upstream) = crate::support::both().await;
    upstream.otherwise(|call, count| Reply::json(json!({"path": call.path(), "count": count})));
    (redis, upstream)
}

fn lines(worker: &WorkerProcess, text: &str) -> usize {
    worker.log().iter().filter(|line| line.contains(text)).count()
}

async fn logged(worker: &WorkerProcess, text: &str, times: usize) {
    eventually(&format!("the log says {times} times: {text}"), async || match lines(worker, text) {
        said if said >= times => Ok(()),
        said => Err(said),
    })
    .await;
}

/// Every message is published once, bare or into the inbox, and names a key of its own.
#[tokio::test]
async fn one_worker_that_reloads_misses_nothing_and_cuts_no_fetch() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})).after(Duration::from_millis(200)));
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    // A worker that meets an unknown Redis revalidates what is fetched by then.
    parts.mark().await;
    let worker = worker(&redis, &jobs);
    listening(&redis, 1).await;
    let mut published = 0;
    for reload in 1..=3 {
        worker.hangup();
        while lines(&worker, " ended worker=") < reload {
            let message = json!({"keys": [format!("art:{published}")], "action": "warm"}).to_string();
            if published % 3 == 0 {
                redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", &message]).await;
            } else {
                assert!(redis.publish("samovar:invalidate", &message).await > 0, "nobody listens");
            }
            published += 1;
            // Many in each of the steps of a reload, and no more than the museum can bear.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    for n in 0..published {
        readable(&redis, &format!("art:{n}")).await;
        assert_eq!(upstream.calls(&format!("/art/{n}")), 1, "art:{n}");
    }
    parts.inbox_is_empty().await;
    assert_eq!(lines(&worker, IN_USE), 3);
    assert_eq!(lines(&worker, "may have been missed"), 0);
    assert_eq!(redis.keys("samovar:*suspect*").await, Vec::<String>::new());
    let records: Vec<String> = redis.ask(&["HKEYS", "samovar:ears"]).await;
    assert_eq!(records.iter().filter(|worker| *worker != "clock").count(), 1, "{records:?}");
}

#[tokio::test]
async fn what_went_from_the_jobs_is_left_to_expire() {
    let (redis, upstream) = both().await;
    let art = Art::of(&upstream).ttl("4s");
    let other = art.clone().list(["x"]).toml().replace("art:", "other:");
    let jobs = art.clone().list(["stays", "goes"]).folder().job("other", &other);
    let worker = worker(&redis, &jobs);
    for key in ["art:stays", "art:goes", "other:x"] {
        readable(&redis, key).await;
    }
    let listed = art.list(["stays", "comes"]);
    jobs.write("art.toml", &listed.toml());
    std::fs::remove_file(jobs.path().join("other.toml")).unwrap();
    worker.hangup();
    logged(&worker, IN_USE, 1).await;
    // Looked at without reading them: what is read is kept.
    eventually("what went has expired, and the rest is kept warm", async || {
        let mut there = redis.keys("art:*").await;
        there.extend(redis.keys("other:*").await);
        there.sort();
        if there == ["art:comes", "art:stays"] { Ok(()) } else { Err(there) }
    })
    .await;
    let asked = [upstream.calls("/art/goes"), upstream.calls("/art/x")];
    upstream.called("/art/stays", upstream.calls("/art/stays") + 2).await;
    assert_eq!([upstream.calls("/art/goes"), upstream.calls("/art/x")], asked);
}

#[tokio::test]
async fn a_faulty_folder_is_refused_as_a_whole_and_the_old_one_stays() {
    let (redis, upstream) = both().await;
    let art = Art::of(&upstream);
    let jobs = art.clone().list(["a"]).folder();
    let mut worker = worker(&redis, &jobs);
    readable(&redis, "art:a").await;
    jobs.write("new.toml", &art.clone().list(["n"]).toml().replace("art:", "new:"));
    jobs.write("art.toml", &art.clone().list(["b"]).toml().replace("ttl = \"1h\"", "ttl = \"soon\"\nfrost = true"));
    worker.hangup();
    worker.wait_for_log(&["art.toml:2:", "`ttl` is no time"]).await;
    worker.wait_for_log(&["art.toml:3:", "frost"]).await;
    worker.wait_for_log(&["faults=2", "the old ones stay"]).await;
    redis.publish("samovar:invalidate", "art:a").await;
    upstream.called("/art/a", 2).await;
    assert_eq!(redis.keys("new:*").await, Vec::<String>::new());

    jobs.write("art.toml", &art.list(["b"]).toml());
    worker.hangup();
    readable(&redis, "art:b").await;
    readable(&redis, "new:n").await;
    assert_eq!(lines(&worker, IN_USE), 1);
}

#[tokio::test]
async fn a_reload_asked_for_during_a_reload_ends_with_the_last_jobs() {
    let (redis, upstream) = both().await;
    let art = Art::of(&upstream);
    let jobs = art.clone().list(["a"]).folder();
    let worker = worker(&redis, &jobs);
    readable(&redis, "art:a").await;
    for name in ["b", "c", "d"] {
        jobs.write("art.toml", &art.clone().list([name]).toml());
        worker.hangup();
        logged(&worker, "they are taken up", 1).await;
    }
    assert_eq!(lines(&worker, IN_USE), 0, "all were asked for during the first");
    readable(&redis, "art:d").await;
}

#[tokio::test]
async fn told_to_stop_during_a_reload_it_ends_both_in_order() {
    let (redis, upstream) = both().await;
    // Before the new jobs take over, and while the old ones drain.
    for (step, mark) in ["they are taken up", IN_USE].into_iter().enumerate() {
        let name = format!("held{step}");
        let gate = upstream.gate(&format!("/art/{name}"));
        let jobs = Art::of(&upstream).list([&name]).folder();
        let mut worker = worker(&redis, &jobs);
        gate.arrived(1).await;
        worker.hangup();
        worker.wait_for_log(&[mark]).await;
        worker.term();
        worker.wait_for_log(&["told to stop"]).await;
        gate.open();
        assert_eq!(worker.wait().await.code(), Some(0));
        assert!(redis.json(&format!("art:{name}")).await.is_some(), "its fetch was cut");
        assert_eq!(upstream.calls(&format!("/art/{name}")), 1);
        assert_eq!(lines(&worker, " ended worker="), 2);
        assert_eq!(redis.ask::<u64>(&["ZCARD", "{samovar:queue}:workers"]).await, 0);
    }
}

#[tokio::test]
async fn jobs_are_reloaded_over_http_by_whoever_may() {
    let (redis, upstream) = both().await;
    let art = Art::of(&upstream);
    let jobs: JobsFolder = art.clone().list(["a"]).folder();
    let mut worker =
        talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").env("SAMOVAR_TOKEN", "sesame").spawn();
    let line = worker.wait_for_log(&["answers health"]).await;
    let url = line.split(' ').find(|word| word.starts_with("http://")).unwrap().to_owned();
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
    let ask = async |method: Method, path: &str, token: &str| {
        let answer = client.request(method, format!("{url}{path}")).bearer_auth(token).send().await.unwrap();
        (answer.status(), answer.json::<Value>().await.unwrap())
    };
    readable(&redis, "art:a").await;
    let before = ask(Method::GET, "/health", "").await.1["worker"].clone();
    jobs.write("new.toml", &art.clone().list(["n"]).toml().replace("art:", "new:"));
    assert_eq!(ask(Method::POST, "/reload", "open").await.0, StatusCode::UNAUTHORIZED);

    let broken = jobs.write("broken.toml", "key = 7");
    let (status, problem) = ask(Method::POST, "/reload", "sesame").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    assert!(problem["faults"].as_array().unwrap()[0].as_str().unwrap().contains("broken.toml"), "{problem}");
    worker.wait_for_log(&["ERROR", "broken.toml:1:"]).await;
    logged(&worker, "the old ones stay", 1).await;
    std::fs::remove_file(broken).unwrap();

    let (status, taken) = ask(Method::POST, "/reload", "sesame").await;
    assert_eq!((status, taken), (StatusCode::ACCEPTED, json!({"jobs": ["art", "new"]})));
    eventually("the new worker answers", async || {
        let (status, state) = ask(Method::GET, "/health", "").await;
        assert_eq!(status, StatusCode::OK, "it is ready all the while: {state}");
        state["worker"] != before
    })
    .await;
    readable(&redis, "new:n").await;
    assert_eq!(ask(Method::GET, "/jobs/new", "").await.0, StatusCode::OK);
    std::fs::remove_file(jobs.path().join("new.toml")).unwrap();
    logged(&worker, " ended worker=", 1).await;
    assert_eq!(ask(Method::POST, "/reload", "sesame").await.0, StatusCode::ACCEPTED);
    eventually("the job is gone", async || ask(Method::GET, "/jobs/new", "").await.0 == StatusCode::NOT_FOUND).await;
}
