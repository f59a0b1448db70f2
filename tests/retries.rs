//! Entries that were given up while their service failed: a worker tries them again by itself.

use std::sync::Arc;
use std::time::Duration;

use samovar::agenda::When;
use samovar::entry::Trigger;
use samovar::job::{Jobs, KnownJobs};
use samovar::ops::Ops;
use samovar::redis::Troubles;
use samovar::worker::maintenance::Retrier;
use samovar::worker::maintenance::retrier::Retried;
use serde_json::{Value, json};

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, art, at_rest, both, eventually, job, readable, samovar, worker,
};

/// As good as none; a lock has a TTL.
const NO_REST: Duration = Duration::from_millis(1);

/// Returns the retrier of these jobs, whose entries rest for so long.
fn retrier(parts: &Parts, jobs: &JobsFolder, every: Duration) -> Retrier {
    let jobs = Jobs::load(jobs.path(), Duration::from_secs(3_600), &|_| None).unwrap();
    Retrier {
        ops: Ops::new(parts.redis.clone(), parts.keys.clone(), Arc::new(KnownJobs::from(&jobs))),
        worker: Arc::from("a test"),
        every,
        troubles: Troubles::default(),
    }
}

async fn dead(redis: &TestRedis) -> usize {
    redis.ask(&["ZCARD", "samovar:dead:{art}"]).await
}

/// Waits until so many dead letters are left, and so many requests were made.
async fn settled(redis: &TestRedis, upstream: &Upstream, letters: usize, requests: usize) {
    eventually("what was put back has ended", async || {
        let found = (dead(redis).await, upstream.all_requests().len());
        if found == (letters, requests) { Ok(()) } else { Err(found) }
    })
    .await;
}

/// `attempts = 1`: each try is one request.
fn failing(upstream: &Upstream) -> JobsFolder {
    upstream.otherwise(|_, _| Reply::text("<html>Please wait</html>"));
    Art::of(upstream).list(0..12).warm("attempts = 1\nevery = \"30d\"").folder()
}

#[tokio::test]
async fn twice_as_many_are_tried_as_landed_and_one_where_none_did() {
    let (redis, upstream) = both().await;
    let jobs = failing(&upstream);
    let mut worker = worker(&redis, &jobs);
    settled(&redis, &upstream, 12, 12).await;
    let parts = Parts::of(&redis).await;
    let mut retried = Retried::new();
    round(&parts, &retrier(&parts, &jobs, Duration::from_secs(600)), &mut retried).await;
    settled(&redis, &upstream, 12, 12).await;
    let retrier = retrier(&parts, &jobs, NO_REST);
    for requests in [13, 14] {
        round(&parts, &retrier, &mut retried).await;
        settled(&redis, &upstream, 12, requests).await;
    }
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    for (letters, requests) in [(11, 15), (9, 17), (5, 21), (0, 26)] {
        round(&parts, &retrier, &mut retried).await;
        settled(&redis, &upstream, letters, requests).await;
    }
    assert!(worker.is_running());
}

/// Runs a round, whoever has the lock.
async fn round(parts: &Parts, retrier: &Retrier, retried: &mut Retried) {
    parts.next_instant().await;
    redis::cmd("DEL").arg(parts.keys.retrier()).exec_async(&mut parts.redis.clone()).await.unwrap();
    retrier.round(retried).await.unwrap();
}

#[tokio::test]
async fn a_paused_job_is_given_one_entry_to_try() {
    let (redis, upstream) = both().await;
    let jobs = failing(&upstream);
    let _worker = worker(&redis, &jobs);
    settled(&redis, &upstream, 12, 12).await;
    let paused = samovar(["pause", "art"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    let parts = Parts::of(&redis).await;
    let (retrier, mut retried) = (retrier(&parts, &jobs, NO_REST), Retried::new());
    for _ in 0..3 {
        round(&parts, &retrier, &mut retried).await;
        assert_eq!((dead(&redis).await, upstream.all_requests().len()), (12, 12));
    }
}

#[tokio::test]
async fn a_worker_tries_by_itself_what_its_service_failed() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let long_ago = (parts.now().await - Duration::from_secs(61)).to_string();
    let letters = [
        ("art:a", &long_ago, "failed 5 times, last: 503"),
        ("art:b", &long_ago, "no request can be made for this key: correct the template"),
        ("art:c", &long_ago, "failed 5 times, last: its input art:a is missing: failed 5 times, last: 503"),
        ("art:d", &parts.now().await.to_string(), "failed 5 times, last: 503"),
    ];
    for (key, at, reason) in letters {
        redis.ask::<u64>(&["ZADD", "samovar:dead:{art}", at, key]).await;
        redis.ask::<u64>(&["HSET", "samovar:dead-reasons:{art}", key, reason]).await;
    }
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    eventually("it is no dead letter any more", async || dead(&redis).await == 3).await;
    assert_eq!(upstream.all_requests().len(), 1);
    let shown = samovar(["dead"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert_eq!(shown.matches("tried again every minute").count(), 1, "{shown}");
}

/// And not as often as its job's attempts allow.
#[tokio::test]
async fn an_entry_that_is_tried_again_is_asked_for_once() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::text("<html>Please wait</html>"));
    let jobs = Art::of(&upstream).list(["a"]).warm("attempts = 2\nevery = \"30d\"").folder();
    let _worker = worker(&redis, &jobs);
    settled(&redis, &upstream, 1, 2).await;
    let parts = Parts::of(&redis).await;
    let (retrier, mut retried) = (retrier(&parts, &jobs, NO_REST), Retried::new());
    for requests in [3, 4] {
        round(&parts, &retrier, &mut retried).await;
        settled(&redis, &upstream, 1, requests).await;
        at_rest(&redis).await;
        assert_eq!(upstream.all_requests().len(), requests);
    }
}

#[tokio::test]
async fn a_dead_letter_that_is_due_says_when_it_is_tried_again() {
    let (redis, upstream) = both().await;
    let jobs = failing(&upstream);
    let _worker = worker(&redis, &jobs);
    settled(&redis, &upstream, 12, 12).await;
    let parts = Parts::of(&redis).await;
    let at = parts.now().await + Duration::from_secs(605);
    parts.agenda.put(&job(), [&art("7")], When::Due(at), Trigger::Recheck).await.unwrap();
    let shown = samovar(["dead", "art:7", "--json"]).redis(&redis).jobs(&jobs).run().await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["dead"][0]["due_ms"], json!(at.as_millis()), "{shown}");
    let shown = samovar(["dead"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(shown.contains("TRIED AGAIN") && shown.contains("in 10m"), "{shown}");
}

#[tokio::test]
async fn a_job_most_of_which_is_given_up_tells_that_it_is_tried() {
    let (redis, upstream) = both().await;
    let jobs = failing(&upstream);
    let _worker = worker(&redis, &jobs);
    settled(&redis, &upstream, 12, 12).await;
    let shown = samovar(["jobs", "--json"]).redis(&redis).jobs(&jobs).run().await.stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown[0]["faults"].to_string().contains("is tried again every minute"), "{shown}");
}

#[test]
fn only_jobs_that_cost_nothing_are_tried_again() {
    let http = "{ kind = \"http\", upstream = \"museum\", path = \"/\" }";
    let ai = "{ kind = \"ai\", upstream = \"openai\", model = \"tiny\", prompt = \"Hello\" }";
    let job = |name: &str, source: &str, rest: &str| {
        let text = format!("key = \"{name}:{{name}}\"\nttl = \"1h\"\nsource = {source}\n{rest}");
        (format!("{name}.toml"), text)
    };
    let upstream = |name: &str, more: &str| format!("[{name}]\nurl = \"http://127.0.0.1:1\"\n{more}\n");
    let upstreams =
        [upstream("museum", ""), upstream("openai", ""), upstream("budgeted", "tokens = \"1000/hour\"")].concat();
    let files = [
        job("free", http, ""),
        job("story", ai, ""),
        job("budgeted", &http.replace("museum", "budgeted"), ""),
        job("fallback", &http.replace(" }", &format!(", fallback = [{ai}] }}")), ""),
        job("composed", "{ kind = \"compose\", value = { a = \"{{ a }}\" } }", "[inputs]\na = \"free:{name}\""),
        job("retold", "{ kind = \"compose\", value = { a = \"{{ a }}\" } }", "[inputs]\na = \"story:{name}\""),
        ("upstreams.toml".into(), upstreams),
    ];
    let known = KnownJobs::from(&Jobs::parse(&files, Duration::from_secs(60), &|_| None).unwrap());
    let retried: Vec<&str> = known.jobs.values().filter(|job| job.is_retried).map(|job| job.name.as_str()).collect();
    assert_eq!(retried, ["composed", "free"]);
}
