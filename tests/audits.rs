//! Freshness audits: warm values compared with what their upstream answers, and nothing stored.
use std::time::Duration;

use crate::support::{
    Art, Finished, JobsFolder, Parts, Reply, TestRedis, Upstream, art, at_rest, both, eventually, http_get, job,
    readable, samovar, talkative, version, worker,
};
use serde_json::{Value, json};

const SOON: &str = "2m";

async fn audit(redis: &TestRedis, jobs: &JobsFolder, sample: usize, timeout: &str) -> Finished {
    let sample = sample.to_string();
    let args = ["audit", "art", "--json", "--sample", &sample, "--timeout", timeout];
    samovar(args).redis(redis).jobs(jobs).run().await
}

/// Returns the counts of an audit that are not 0.
fn counts(finished: &Finished) -> Vec<(String, u64)> {
    let all: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
    let outcomes = ["current", "different", "announced", "gone", "unsettled", "failed", "skipped"];
    let counts = outcomes.map(|outcome| (outcome.to_owned(), all[0][outcome].as_u64().unwrap()));
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

fn only(outcome: &str, count: u64) -> Vec<(String, u64)> {
    vec![(outcome.to_owned(), count)]
}

/// Starts Redis and an upstream with these entries.
async fn with(names: &[&str]) -> (TestRedis, Upstream) {
    let (redis, upstream) = both().await;
    for name in names {
        upstream.edit(&format!("/art/{name}"));
    }
    (redis, upstream)
}

/// Waits until these entries are warm and nothing is under way.
async fn warm(redis: &TestRedis, names: &[&str]) {
    for name in names {
        readable(redis, name).await;
    }
    at_rest(redis).await;
}

#[tokio::test]
async fn an_edit_that_nobody_announced_is_found_and_not_stored() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    let current = audit(&redis, &jobs, 3, SOON).await;
    assert_eq!((current.code, counts(&current)), (Some(0), only("current", 3)), "{current:?}");
    let unconditional = upstream.requests("/art/a").iter().all(|call| call.header("if-none-match").is_empty());
    assert!(unconditional, "audits fetch without validators");
    upstream.edit("/art/a");
    let parts = Parts::of(&redis).await;
    let before = (redis.get("art:a").await, parts.meta("a").await, parts.score("a").await);
    let found = audit(&redis, &jobs, 1, SOON).await;
    assert_eq!((found.code, counts(&found)), (Some(1), only("different", 1)), "{found:?}");
    let last: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(last[0]["last_different"]["key"], "art:a");
    assert_eq!((redis.get("art:a").await, parts.meta("a").await, parts.score("a").await), before);
    assert_eq!(redis.keys("samovar:lease:*").await, Vec::<String>::new());
    worker.wait_for_log(&["WARN", "out of date", "art:a"]).await;
    let shown = samovar(["jobs", "art"]).redis(&redis).jobs(&jobs).run().await.stdout;
    let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("3 of 4 audited values of art were current; 1 different without an invalidation."));
    assert!(shown.contains("The last one out of date: art:a (different, "), "{shown}");
}

/// The editor saves, and publishes while the audit compares.
#[tokio::test]
async fn an_edit_that_is_announced_meanwhile_is_not_different() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    upstream.edit("/art/a");
    let calls = upstream.calls("/art/a");
    let announce = async {
        upstream.called("/art/a", calls + 1).await;
        Parts::of(&redis).await.publish("art:a").await
    };
    let (found, _) = tokio::join!(audit(&redis, &jobs, 1, SOON), announce);
    assert_eq!((found.code, counts(&found)), (Some(0), only("announced", 1)), "{found:?}");
    version(&redis, "a", 2).await;
}

/// While rechecks are to come, the upstream may lag, and it is asked again anyway.
#[tokio::test]
async fn an_entry_that_is_to_be_rechecked_is_not_audited() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"10m\"]").folder();
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    version(&redis, "a", 2).await;
    at_rest(&redis).await;
    let calls = upstream.calls("/art/a");
    let found = audit(&redis, &jobs, 1, SOON).await;
    assert_eq!((counts(&found), upstream.calls("/art/a")), (only("skipped", 1), calls), "{found:?}");
}

#[tokio::test]
async fn answers_that_differ_each_time_prove_nothing() {
    let (redis, upstream) = both().await;
    upstream.answer("/art/a", |_, call| Reply::json(json!({ "call": call })));
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    let found = audit(&redis, &jobs, 1, SOON).await;
    assert_eq!((found.code, counts(&found)), (Some(0), only("unsettled", 1)), "{found:?}");
}

#[tokio::test]
async fn an_audit_tells_gone_from_failed() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    upstream.on("/art/a", Reply::text("nonsense"));
    let failed = audit(&redis, &jobs, 1, SOON).await;
    assert_eq!((failed.code, counts(&failed)), (Some(0), only("failed", 1)), "{failed:?}");
    upstream.on("/art/a", Reply::status(404));
    let gone = audit(&redis, &jobs, 1, SOON).await;
    assert_eq!((gone.code, counts(&gone)), (Some(1), only("gone", 1)), "{gone:?}");
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1, "the value stays");
}

#[tokio::test]
async fn audits_keep_to_the_limits_of_the_upstream() {
    let names = ["a", "b", "c", "d"];
    let (redis, upstream) = with(&names).await;
    let jobs = Art::of(&upstream).list(names).limits("concurrency = 1").folder();
    let _workers = [worker(&redis, &jobs), worker(&redis, &jobs)];
    warm(&redis, &names).await;
    let found = audit(&redis, &jobs, 20, SOON).await;
    assert_eq!((counts(&found), upstream.most_at_once()), (only("current", 20), 1), "{found:?}");
    for name in names {
        upstream.on(&format!("/art/{name}"), Reply::status(429).header("Retry-After", "600"));
    }
    let refused = audit(&redis, &jobs, 1, SOON).await;
    assert_eq!(counts(&refused), only("failed", 1), "{refused:?}");
    let calls = upstream.all_requests().len();
    let waiting = audit(&redis, &jobs, 1, "3s").await;
    assert_eq!((waiting.code, counts(&waiting)), (Some(1), vec![]), "{waiting:?}");
    assert!(waiting.stderr.contains("0 of 1 audits of art ended within 3s"), "{waiting:?}");
    assert_eq!(upstream.all_requests().len(), calls, "nothing is sent while the upstream asks for a pause");
    assert_eq!(redis.ask::<Option<u64>>(&["HGET", "samovar:audits", "art"]).await, None, "it is withdrawn");
}

#[tokio::test]
async fn an_audit_does_not_exceed_the_rate_of_its_upstream() {
    let (redis, upstream) = with(&["a", "slow"]).await;
    let jobs = Art::of(&upstream).list(["a"]).limits("rate = \"1/hour\"").folder();
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    let parts = Parts::of(&redis).await;
    parts.publish(r#"{"keys": ["art:slow"], "action": "warm"}"#).await;
    eventually("it waits for the rate", async || parts.stat("deferred").await > 0).await;
    let calls = upstream.all_requests().len();
    let waiting = audit(&redis, &jobs, 1, "3s").await;
    assert_eq!(
        (waiting.code, counts(&waiting), upstream.all_requests().len()),
        (Some(1), vec![], calls),
        "{waiting:?}"
    );
}

#[tokio::test]
async fn a_worker_killed_during_an_audit_loses_nothing() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).limits("concurrency = 1\ntimeout = \"2s\"").folder();
    let hasty = || talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "1s").spawn();
    let mut killed = hasty();
    warm(&redis, &["a"]).await;
    let before = redis.get("art:a").await;
    let gate = upstream.gate("/art/a");
    redis.ask::<u64>(&["HINCRBY", "samovar:audits", "art", "1"]).await;
    gate.arrived(1).await;
    killed.kill9();
    gate.open();
    assert_eq!((redis.get("art:a").await, redis.keys("samovar:lease:*").await), (before, vec![]));
    let _other = hasty();
    upstream.edit("/art/a");
    Parts::of(&redis).await.publish("art:a").await;
    version(&redis, "a", 2).await;
}

#[tokio::test]
async fn a_job_file_has_its_values_audited_at_an_interval() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).warm("audit = \"5/second\"").folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let http = worker.http().await;
    warm(&redis, &["a"]).await;
    let job = eventually("values are audited", async || {
        let job: Value = http_get(&format!("{http}/jobs/art")).await.json().await.unwrap();
        (job["audits"]["current"].as_u64() >= Some(2)).then_some(job)
    })
    .await;
    assert!(job["audits"]["since_ms"].is_i64() && job["audits"]["last_ms"].is_i64(), "{job}");
    let metrics = http_get(&format!("{http}/metrics")).await.text().await.unwrap();
    assert!(metrics.contains("samovar_job_audits_total{job=\"art\",result=\"current\"} "), "{metrics}");
    assert!(metrics.contains("samovar_job_audits_total{job=\"art\",result=\"different\"} 0\n"), "{metrics}");
}

#[tokio::test]
async fn nothing_is_audited_without_a_worker_or_of_a_paused_job() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let nobody = audit(&redis, &jobs, 1, SOON).await;
    assert!(nobody.code == Some(1) && nobody.stdout.contains("no worker is running"), "{nobody:?}");
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    assert_eq!(samovar(["pause", "art"]).redis(&redis).jobs(&jobs).run().await.code, Some(0));
    let paused = audit(&redis, &jobs, 1, "3s").await;
    assert_eq!((paused.code, counts(&paused), upstream.calls("/art/a")), (Some(1), vec![], 1), "{paused:?}");
}

#[tokio::test]
async fn values_that_cost_money_are_not_audited() {
    let (redis, upstream) = both().await;
    let source = "kind = \"ai\"\nurl = \"http://127.0.0.1:9/v1/chat/completions\"\nmodel = \"m\"\nprompt = \"x\"";
    let job = format!("key = \"text:{{name}}\"\n[source]\n{source}\n");
    let jobs = Art::of(&upstream).folder().job("text", &job);
    let refused = samovar(["audit", "text"]).redis(&redis).jobs(&jobs).run().await;
    assert!(refused.code == Some(1) && refused.stderr.contains("text is not audited: "), "{refused:?}");
}

#[tokio::test]
async fn audits_asked_for_in_redis_are_carried_out_once() {
    let (redis, upstream) = with(&["a"]).await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    warm(&redis, &["a"]).await;
    redis.ask::<u64>(&["HINCRBY", "samovar:audits", "art", "2"]).await;
    eventually("both are carried out", async || {
        redis.ask::<Option<u64>>(&["HGET", &Parts::of(&redis).await.keys.audit(&job()), "current"]).await == Some(2)
    })
    .await;
    assert_eq!(redis.ask::<u64>(&["EXISTS", "samovar:audits"]).await, 0);
    assert!(redis.ttl(art("a").as_str()).await > Some(Duration::from_secs(60)));
}
