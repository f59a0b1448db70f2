//! HTTP: what a worker answers, to whom, and what it does about it.
#![cfg(test)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::{
    Art, JobsFolder, Parts, Reply, Samovar, TestRedis, Upstream, WorkerProcess, art, eventually,
    readable_key as readable, samovar, talkative,
};

/// A worker and the address where it answers.
struct Server {
    worker: WorkerProcess,
    url: String,
    client: reqwest::Client,
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    kind: String,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// The body, if the status is this one.
    fn ok(self) -> Value {
        assert!(self.status.is_success(), "{self:?}");
        self.json()
    }

    /// The reason of an error with this status.
    #[track_caller]
    fn problem(self, status: u16) -> String {
        let problem = self.json();
        assert_eq!((self.status.as_u16(), self.kind.as_str()), (status, "application/problem+json"), "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
        assert!(problem["title"].is_string(), "{self:?}");
        problem["detail"].as_str().unwrap().to_owned()
    }
}

impl Server {
    /// On a free port of 127.0.0.1.
    async fn start(redis: &TestRedis, jobs: &JobsFolder) -> Self {
        Self::of(talkative(redis, jobs)).await
    }

    async fn of(set_up: Samovar) -> Self {
        Self::at("127.0.0.1:0", set_up).await
    }

    async fn at(address: &str, set_up: Samovar) -> Self {
        let mut worker = set_up.env("SAMOVAR_LISTEN", address).spawn();
        let line = worker.wait_for_log(&["answers health"]).await;
        let port = line.split(' ').find_map(|word| word.strip_prefix("http://")?.rsplit(':').next()).unwrap();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { url: format!("http://127.0.0.1:{port}"), worker, client }
    }

    /// The same, once it is ready.
    async fn ready(self) -> Self {
        eventually("the worker is ready", async || match self.get("/health/ready").await {
            answer if answer.status == StatusCode::OK => Ok(()),
            answer => Err(answer),
        })
        .await;
        self
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }
}

async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let headers = response.headers().clone();
    let kind = headers.get("content-type").map(|kind| kind.to_str().unwrap().to_owned()).unwrap_or_default();
    Answer { status: response.status(), kind, headers, text: response.text().await.unwrap() }
}

async fn both() -> (TestRedis, Upstream) {
    let (redis, upstream) = support::both().await;
    upstream.otherwise(|call, count| Reply::json(json!({"path": call.path(), "count": count})));
    (redis, upstream)
}

#[tokio::test]
async fn health_follows_redis_and_says_what_is_wrong() {
    let (mut redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    for path in ["/health", "/health/ready", "/health/redis", "/redis/health"] {
        let state = server.get(path).await.ok();
        assert_eq!((&state["status"], &state["redis"]), (&json!("healthy"), &json!("connected")), "{path}: {state}");
    }
    redis.stop().await;
    for path in ["/health", "/health/ready", "/health/redis", "/redis/health"] {
        let gone = server.get(path).await;
        assert_eq!(gone.status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {gone:?}");
        let state = gone.json();
        assert_eq!((&state["status"], &state["redis"]), (&json!("unhealthy"), &json!("disconnected")), "{path}");
        assert!(state.to_string().contains("Redis at redis://"), "{path}: {state}");
    }
    assert_eq!(server.get("/health/live").await.ok()["status"], "healthy");
    let metrics = server.get("/metrics").await;
    assert_eq!(metrics.status, StatusCode::OK);
    assert!(metrics.text.contains("\nsamovar_redis_up 0\n"), "{}", metrics.text);
    let paths = ["/jobs", "/jobs/art", "/redis/stats", "/dead", "/entries?key=art:a"];
    for (path, answer) in paths.iter().zip(futures_util::future::join_all(paths.map(|path| server.get(path))).await) {
        let said = answer.problem(503);
        assert!(said.contains("Redis") && (said.contains("within 2s") || !said.contains("within")), "{path}: {said}");
    }
    redis.start_again().await;
    let server = server.ready().await;
    eventually("the metrics see Redis again", async || {
        server.get("/metrics").await.text.contains("\nsamovar_redis_up 1\n")
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_finds_no_redis_answers_all_the_same() {
    let (mut redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    redis.stop().await;
    let server = Server::start(&redis, &jobs).await;
    let state = server.get("/health").await;
    assert_eq!(state.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(state.json()["reasons"][0].as_str().unwrap().contains("not reached yet"), "{state:?}");
    assert_eq!(server.get("/health/live").await.status, StatusCode::OK);
    assert!(server.get("/redis/stats").await.problem(503).contains("waits for Redis"));
    assert!(server.post("/warm", json!({"keys": ["art:a"]})).await.problem(503).contains("waits for Redis"));
    assert!(server.get("/metrics").await.text.contains("\nsamovar_redis_up 0\n"));
    redis.start_again().await;
    server.ready().await;
}

#[tokio::test]
async fn statistics_tell_of_redis_and_of_each_job() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    redis.set("foreign", "1", Duration::from_secs(600)).await;
    let server = Server::start(&redis, &jobs).await.ready().await;
    for name in ["art:a", "art:b"] {
        readable(&redis, name).await;
    }
    eventually("both ends are counted", async || Parts::of(&redis).await.stat("warmed").await == 2).await;
    for path in ["/redis/stats", "/api/v1/cache/stats"] {
        let stats = server.get(path).await.ok();
        let keys: u64 = redis.ask(&["DBSIZE"]).await;
        assert!(stats["total_keys"].as_u64().unwrap().abs_diff(keys) <= 2, "{stats}");
        assert_eq!(stats["databases"]["db0"]["keys"], stats["total_keys"]);
        assert!(stats["connected_clients"].as_u64().unwrap() > 0);
        assert!(stats["used_memory_bytes"].as_u64().unwrap() > 0);
        assert!(stats["used_memory_human"].is_string());
        assert_eq!(stats["maxmemory_policy"], "noeviction");
        let (hits, misses) = (stats["hits"].as_f64().unwrap(), stats["misses"].as_f64().unwrap());
        assert!((stats["hit_rate"].as_f64().unwrap() - hits / (hits + misses)).abs() < 1e-9, "{stats}");
        let job = &stats["jobs"][0];
        assert_eq!((&job["job"], &job["refreshes"], &job["failures"]), (&json!("art"), &json!(2), &json!(0)));
        assert_eq!((&job["upstream"]["name"], &job["upstream"]["requests"]), (&json!("museum"), &json!(2)), "{job}");
        assert!(job["upstream"]["latency_ms"].as_f64().unwrap() > 0.0);
    }
    // Of the whole fleet, whichever worker is asked; also when it has ended that made the requests.
    let mut server = server;
    server.worker.term();
    server.worker.wait().await;
    let other = Server::start(&redis, &jobs).await.ready().await;
    let stats = other.get("/redis/stats").await.ok();
    let upstream = &stats["jobs"][0]["upstream"];
    assert_eq!((&upstream["requests"], &upstream["slowest_ms"]), (&json!(2), &Value::Null), "{stats}");
    assert!(upstream["latency_ms"].as_f64().unwrap() > 0.0);
}

/// Counting looks at all of Redis, so a count is kept; what is told says when it was made.
#[tokio::test]
async fn entries_are_not_counted_for_each_request() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:a").await;
    let first = eventually("it is counted", async || {
        let job = server.get("/jobs/art").await.ok();
        job["warm_counted_ms"].is_i64().then_some(job)
    })
    .await;
    let scans = async || {
        let stats: String = redis.ask(&["INFO", "commandstats"]).await;
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls=")).unwrap_or("0,").to_owned();
        line.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    let before = scans().await;
    for _ in 0..20 {
        let again = server.get("/jobs").await.ok();
        assert_eq!(again[0]["warm_counted_ms"], first["warm_counted_ms"]);
        server.get("/metrics").await;
    }
    assert_eq!(scans().await, before);
}

#[tokio::test]
async fn clearing_evicts_entries_and_leaves_what_is_not_ours() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let hour = Duration::from_secs(3_600);
    let foreign = ["foreign", "artless:a", "sessions:1", "samovar:foreign"];
    let library = ["session:1", "user:2", "rate_limit:3"];
    for key in foreign.iter().chain(&library) {
        redis.set(key, "1", hour).await;
    }
    for key in ["art:a", "art:b"] {
        readable(&redis, key).await;
    }
    let control = async || {
        redis.keys("*samovar:*").await.into_iter().filter(|key| {
            // Metadata go with their entries, and the queue's keys when it is empty.
            !key.contains(":meta:") && !key.starts_with("{samovar:queue}")
        })
    };
    let before: BTreeSet<String> = control().await.collect();
    assert_eq!(server.delete("/redis/clear").await.ok(), json!({"deleted": 5}));
    for key in ["art:a", "art:b"].iter().chain(&library) {
        assert_eq!(redis.get(key).await, None, "{key}");
    }
    for key in foreign {
        assert!(redis.get(key).await.is_some(), "{key}");
    }
    let after: BTreeSet<String> = control().await.collect();
    let agenda = "samovar:agenda:{art}".to_owned();
    let gone: Vec<&String> = before.difference(&after).filter(|key| **key != agenda).collect();
    assert_eq!(gone, Vec::<&String>::new(), "control keys stay; the agenda is empty, as nothing is to be fetched");
    assert_eq!(redis.ask::<u64>(&["ZCARD", &agenda]).await, 0);
    // What is asked for afterwards passes through the whole worker; what was cleared would have been fetched before it.
    assert_eq!(server.post("/warm?wait=true", json!({"keys": ["art:c"]})).await.ok()["warmed"], 1);
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/art/b")), (1, 1));
    // On demand it comes back.
    assert_eq!(server.post("/warm?wait=true", json!({"jobs": ["art"]})).await.ok()["warmed"], 2);
    assert!(redis.get("art:a").await.is_some());
}

#[tokio::test]
async fn a_fetch_in_flight_does_not_bring_back_what_was_cleared() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).limits("concurrency = 1").list(["a", "b", "c"]).folder();
    let gates = ["/art/a", "/art/b", "/art/c"].map(|path| upstream.gate(path));
    let server = Server::start(&redis, &jobs).await.ready().await;
    eventually("one is asked for, the others wait for their turn", async || upstream.in_flight() == 1).await;
    assert_eq!(server.delete("/redis/clear/art:*").await.ok(), json!({"deleted": 0}));
    for gate in gates {
        gate.open();
    }
    assert_eq!(server.post("/warm?wait=true", json!({"keys": ["art:d"]})).await.ok()["warmed"], 1);
    assert_eq!(redis.keys("art:*").await, ["art:d"]);
    assert_eq!(upstream.all_requests().len(), 2, "{:?}", upstream.all_requests());
}

#[tokio::test]
async fn a_pattern_clears_what_matches_it_whatever_is_in_it() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b", "x?y", "d/e"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let all = ["art:a", "art:b", "art:d/e", "art:x?y"];
    for key in all {
        readable(&redis, key).await;
    }
    for odd in ["%00", "%0d%0aFLUSHALL%0d%0a", "%2e%2e%2f%2e%2e", "art:%5b", "samovar:*", "%7bsamovar*", "%ff"] {
        let answer = server.delete(&format!("/redis/clear/{odd}")).await;
        assert!(answer.status != StatusCode::OK || answer.json()["deleted"] == 0, "{odd}: {answer:?}");
        assert!(!answer.status.is_server_error(), "{odd}: {answer:?}");
    }
    assert_eq!(redis.keys("art:*").await, all);
    assert_eq!(server.delete("/redis/clear/art:x%5C%3Fy").await.ok(), json!({"deleted": 1}));
    assert_eq!(server.delete("/redis/clear?pattern=art:d/*").await.ok(), json!({"deleted": 1}));
    assert_eq!(server.delete("/redis/clear/art:%5Ba-b%5D").await.ok(), json!({"deleted": 2}));
    assert!(server.delete("/redis/clear?pattern=").await.problem(422).contains("empty"));
    let long = "*".repeat(257);
    assert!(server.delete(&format!("/redis/clear?pattern={long}")).await.problem(422).contains("257 bytes"));
    assert!(server.post("/invalidate", json!({"patterns": [long]})).await.problem(422).contains("257 bytes"));
    assert!(server.delete("/redis/clear?patern=art:a").await.problem(400).contains("patern"));
}

#[tokio::test]
async fn an_invalidation_is_published_and_a_senseless_one_refused() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    assert_eq!(readable(&redis, "art:a").await["count"], 1);
    let published = server.post("/invalidate", json!({"keys": ["art:a"]})).await;
    assert_eq!(published.status, StatusCode::ACCEPTED);
    assert!(published.json()["id"].as_str().unwrap().contains('-'));
    eventually("it is fetched anew", async || redis.json("art:a").await.is_some_and(|value| value["count"] == 2)).await;
    let refused = [
        (json!({}), 422, "names nothing"),
        (json!({"key": "art:a"}), 422, "unknown field"),
        (json!({"keys": ["art:a"], "action": "explode"}), 422, "explode"),
        (json!({"keys": ["a".repeat(2_049)]}), 422, "2049 bytes"),
        (json!({"tags": (0..1_001).map(|n| n.to_string()).collect::<Vec<_>>()}), 422, "1001 tags"),
        (json!({"jobs": (0..65).map(|n| n.to_string()).collect::<Vec<_>>()}), 422, "65 jobs"),
        (json!(["art:a"]), 400, "no JSON object"),
    ];
    for (message, status, reason) in refused {
        let said = server.post("/invalidate", message.clone()).await.problem(status);
        assert!(said.contains(reason), "{message}: {said}");
    }
    let post = |body: String| server.request(Method::POST, "/invalidate").body(body);
    assert!(send(post(r#"{"keys": ["art:a"]}"#.into())).await.problem(415).contains("application/json"));
    let json = |body: String| post(body).header("content-type", "application/json; charset=utf-8");
    send(json(r#"{"keys": "#.into())).await.problem(400);
    assert!(send(json("x".repeat((1 << 20) + 1))).await.problem(413).contains("bytes"));
    assert_eq!(upstream.calls("/art/a"), 2);
}

#[tokio::test]
async fn a_client_that_waits_hears_of_the_value_or_why_there_is_none() {
    let (redis, upstream) = both().await;
    upstream.on("/art/bad", Reply::status(500));
    upstream.on("/art/none", Reply::status(404));
    let slow = upstream.gate("/art/slow");
    let jobs = Art::of(&upstream).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let warm = async |query: &str, key: &str| server.post(&format!("/warm{query}"), json!({"keys": [key]})).await;
    assert_eq!(warm("?wait=true", "art:a").await.ok()["warmed"], 1);
    assert!(redis.get("art:a").await.is_some());
    assert_eq!(warm("?wait=true", "art:a").await.ok()["unchanged"], 1);
    assert_eq!(upstream.calls("/art/a"), 1);
    assert_eq!(warm("?wait=true", "art:none").await.ok()["gone"], 1);
    let bad = warm("?wait=true", "art:bad").await;
    assert!(bad.json()["result"]["failed"][0]["reason"].as_str().unwrap().contains("500"), "{bad:?}");
    bad.problem(502);
    let late = warm("?wait=true&timeout=1", "art:slow").await;
    assert_eq!(late.json()["result"]["failed"][0]["key"], "art:slow");
    late.problem(504);
    slow.open();
    assert_eq!(warm("", "art:b").await.status, StatusCode::ACCEPTED);
    readable(&redis, "art:b").await;
    assert!(warm("", "elsewhere:b").await.problem(404).contains("no job's key"));
    assert!(server.post("/warm", json!({"jobs": ["nobody"]})).await.problem(404).contains("no job"));
    assert!(server.post("/warm", json!({})).await.problem(422).contains("names nothing"));
    warm("?wait=perhaps", "art:b").await.problem(400);
    warm("?timeout=0", "art:b").await.problem(400);
}

#[tokio::test]
async fn a_paused_job_is_fetched_by_no_worker_until_it_is_resumed() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let mut first = Server::start(&redis, &jobs).await.ready().await;
    let mut second = Server::start(&redis, &jobs).await.ready().await;
    for key in ["art:a", "art:b"] {
        readable(&redis, key).await;
    }
    let pause = first.post("/jobs/art/pause", json!({})).await.ok();
    assert_eq!(pause, json!({"job": "art", "paused": true, "changed": true}));
    assert_eq!(second.post("/jobs/art/pause", json!({})).await.ok()["changed"], false);
    assert!(second.get("/jobs/art").await.ok()["paused_ms"].as_i64().unwrap() > 0);
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:a").await;
    parts.invalidate(r#"{"keys": ["art:b"], "action": "evict"}"#).await;
    parts.invalidate(r#"{"keys": ["art:c"], "action": "warm"}"#).await;
    for server in [&mut first, &mut second] {
        server.worker.wait_for_log(&["WARN", "paused", "art"]).await;
    }
    let told = samovar(["jobs"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(told.contains("Paused") && told.contains("art ("), "{told}");
    // An eviction goes through, a refresh is marked, and nothing is fetched.
    assert_eq!(redis.get("art:b").await, None);
    assert!(parts.meta("a").await.unwrap().invalidated > 0);
    assert!(first.post("/warm?wait=true", json!({"keys": ["art:c"]})).await.problem(409).contains("paused"));
    assert_eq!(upstream.all_requests().len(), 2);
    let resumed = samovar(["resume", "art"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!((resumed.code, resumed.stdout.as_str()), (Some(0), "art goes on\n"));
    assert_eq!(readable(&redis, "art:c").await["count"], 1);
    eventually("what was invalidated is fetched anew", async || {
        redis.json("art:a").await.is_some_and(|value| value["count"] == 2)
    })
    .await;
    assert_eq!(first.get("/jobs/art").await.ok()["paused_ms"], Value::Null);
    let paused = samovar(["pause", "art"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    assert_eq!(second.post("/jobs/art/resume", json!({})).await.ok()["changed"], true);
    assert!(second.post("/jobs/nobody/pause", json!({})).await.problem(404).contains("nobody"));
    assert_eq!(samovar(["pause", "nobody"]).redis(&redis).jobs(&jobs).run().await.code, Some(2));
}

#[tokio::test]
async fn an_entry_is_shown_with_its_metadata_and_no_foreign_key_is() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["Mona Lisa"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:Mona Lisa").await;
    redis.set("secret", "1", Duration::from_secs(600)).await;
    let entry = server.get("/entries?key=art:Mona%20Lisa").await.ok();
    assert_eq!((&entry["job"], &entry["value"]["count"]), (&json!("art"), &json!(1)));
    assert_eq!((&entry["written_by_samovar"], &entry["last_outcome"]), (&json!(true), &json!("warmed")));
    assert_eq!(server.get("/entries?key=art:none").await.ok()["value"], Value::Null);
    for key in ["secret", "samovar:marker", "", "%00", "..", "samovar:lease:%7B*%7D:art:a"] {
        server.get(&format!("/entries?key={key}")).await.problem(404);
    }
    server.get("/entries").await.problem(400);
}

#[tokio::test]
async fn dead_letters_are_told_and_put_back() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", [Reply::status(500), Reply::json(json!("well"))]);
    let jobs = Art::of(&upstream).list(["a"]).warm("attempts = 1").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let letters = eventually("it is given up", async || {
        let letters = server.get("/dead").await.ok();
        (letters["total"] == 1).then_some(letters)
    })
    .await;
    assert_eq!(letters["dead"][0]["key"], "art:a");
    assert!(letters["dead"][0]["reason"].as_str().unwrap().contains("500"), "{letters}");
    assert_eq!(server.get("/dead?limit=0").await.ok(), json!({"total": 1, "dead": []}));
    server.get("/dead?job=nobody").await.problem(404);
    server.post("/dead/retry", json!({"only": ["nobody"]})).await.problem(404);
    server.post("/dead/retry", json!(["art"])).await.problem(400);
    let retry = send(server.request(Method::POST, "/dead/retry")).await;
    assert_eq!(retry.ok(), json!({"retried": 1}));
    assert_eq!(readable(&redis, "art:a").await, json!("well"));
    assert_eq!(server.get("/dead").await.ok()["total"], 0);
}

/// Puts dead letters of `art` into Redis, as many and as long as told.
async fn rescue(redis: &TestRedis, letters: usize, key: usize, reason: usize) {
    let mut connection = redis.connection().await;
    for first in (0..letters).step_by(500) {
        let mut pipe = redis::pipe();
        for n in first..letters.min(first + 500) {
            let key = format!("art:{n:05}{}", "k".repeat(key));
            pipe.cmd("ZADD").arg("samovar:dead:{art}").arg(n).arg(&key).ignore();
            pipe.cmd("HSET").arg("samovar:dead-reasons:{art}").arg(&key).arg("r".repeat(reason)).ignore();
        }
        pipe.exec_async(&mut connection).await.unwrap();
    }
}

#[tokio::test]
async fn dead_letters_come_in_pages_until_there_are_none() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    rescue(&redis, 1_203, 10, 100).await;
    for limit in [1, 7, 50, 100, 1_000] {
        let first = server.get(&format!("/dead?limit={limit}")).await.ok();
        assert_eq!(first["total"], 1_203);
        assert!((1..=limit).contains(&first["dead"].as_array().unwrap().len()), "{limit}");
    }
    let (mut seen, mut from) = (BTreeSet::new(), 0);
    loop {
        let page = server.get(&format!("/dead?limit=1000&from={from}")).await.ok();
        seen.extend(page["dead"].as_array().unwrap().iter().map(|letter| letter["key"].as_str().unwrap().to_owned()));
        match page["next"].as_u64() {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(seen.len(), 1_203);
    for beyond in ["from=1203", "from=99999", "limit=0"] {
        assert_eq!(server.get(&format!("/dead?{beyond}")).await.ok(), json!({"total": 1_203, "dead": []}), "{beyond}");
    }
    assert!(server.get("/dead?limit=1001").await.problem(400).contains("1000"));
    let told = samovar(["dead", "--json"]).redis(&redis).jobs(&jobs).run().await;
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!((told["dead"].as_array().unwrap().len(), &told["retried"]), (1_203, &json!(false)));
    let key = seen.first().unwrap();
    let one = samovar(["dead", key, "art:none"]).redis(&redis).jobs(&jobs).run().await;
    assert!(one.stdout.contains(key) && !one.stdout.contains("art:00001"), "{one:?}");
    let retry = samovar(["dead", "--retry", key]).redis(&redis).jobs(&jobs).run().await;
    assert!(retry.stdout.contains("\n1 put back"), "{retry:?}");
    assert_eq!(server.post("/dead/retry", json!({})).await.ok(), json!({"retried": 1_202}));
    assert_eq!(server.get("/dead").await.ok(), json!({"total": 0, "dead": []}));
}

/// Whoever reaches it may ask, as often as he likes at once.
#[tokio::test]
async fn no_flood_of_requests_for_dead_letters_fills_memory() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    rescue(&redis, 10_000, 500, 400).await;
    for path in ["/dead?limit=1", "/dead?limit=1000", "/dead?limit=1000&from=9000"] {
        let asked = (0..200).map(|_| server.get(path));
        for answer in futures_util::future::join_all(asked).await {
            assert_eq!(answer.ok()["total"], 10_000);
        }
    }
    // The letters come to 9 MB, and were loaded 200 times.
    let most = server.worker.most_resident();
    assert!(most < 200 << 20, "{most} bytes");
}

#[tokio::test]
async fn a_value_too_long_to_be_shown_is_not_loaded() {
    let (redis, upstream) = both().await;
    let server = Server::start(&redis, &Art::of(&upstream).folder()).await.ready().await;
    redis.ask::<u64>(&["SETRANGE", "art:long", "9000000", "x"]).await;
    assert!(server.get("/entries?key=art:long").await.problem(422).contains("9000001 bytes"));
    redis.ask::<u64>(&["HSET", "art:hash", "a", "b"]).await;
    assert_eq!(server.get("/entries?key=art:hash").await.ok()["value"], Value::Null);
}

/// A socket to the worker on which this much of a request was sent.
async fn half_sent(server: &Server, text: &str) -> tokio::net::TcpStream {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, text.as_bytes()).await.unwrap();
    socket
}

/// Whether the worker has kept a socket open, on which it has nothing to say.
fn is_open(socket: &tokio::net::TcpStream) -> bool {
    matches!(socket.try_read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn no_flood_of_half_sent_requests_holds_up_a_probe() {
    let (redis, upstream) = both().await;
    let server = Server::start(&redis, &Art::of(&upstream).folder()).await.ready().await;
    for text in ["", "GET /jobs HTT", "GET /jobs HTTP/1.1\r\nHost: localhost\r\nX-Long: "] {
        let mut sockets = Vec::new();
        for _ in 0..1_100 {
            sockets.push(half_sent(&server, text).await);
        }
        for path in ["/health/live", "/health", "/jobs"] {
            assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
        }
        let open = sockets.iter().filter(|socket| is_open(socket)).count();
        // None of them had to time out first.
        assert!((400..=512).contains(&open), "the oldest made room, and only they: {open} are open");
    }
    // As many as are answered at once, whose bodies never come; they are told so.
    let post = "POST /warm HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    let mut sockets = Vec::new();
    for _ in 0..300 {
        sockets.push(half_sent(&server, post).await);
    }
    assert_eq!(server.get("/health/live").await.status, StatusCode::OK);
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut sockets[0], &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not arrive"), "{answer}");
    eventually("there is room again", async || server.get("/jobs").await.status == StatusCode::OK).await;
}

#[tokio::test]
async fn reasons_are_told_to_whoever_shows_the_token() {
    let (redis, upstream) = both().await;
    upstream.answer("/art/bad", |_, _| Reply::text("account 4711 of Frida").with_status(400));
    let jobs = Art::of(&upstream).list(["bad"]).warm("attempts = 1").folder();
    let secret =
        |address: &'static str| Server::at(address, talkative(&redis, &jobs).env("SAMOVAR_TOKEN", "hunter2-hunter2"));
    let loopback = secret("127.0.0.1:0").await.ready().await;
    let open = secret("0.0.0.0:0").await.ready().await;
    let bare = Server::at("0.0.0.0:0", talkative(&redis, &jobs)).await.ready().await;
    eventually("it is given up", async || open.get("/dead").await.ok()["total"] == 1).await;
    let reads = ["/dead", "/jobs", "/jobs/art", "/redis/stats", "/api/v1/cache/stats"];
    for path in reads {
        for server in [&loopback, &open] {
            let shown = send(server.request(Method::GET, path).bearer_auth("hunter2-hunter2")).await;
            assert!(shown.text.contains("4711"), "{path}: {shown:?}");
        }
    }
    for path in OPEN.iter().chain(&reads) {
        for server in [&loopback, &open, &bare] {
            let hidden = server.get(path).await;
            assert!(hidden.status == StatusCode::OK && !hidden.text.contains("4711"), "{path}: {hidden:?}");
        }
    }
    assert_eq!(open.get("/jobs/art").await.ok()["last"]["outcome"], "failed");
    assert_eq!(open.get("/dead").await.ok()["dead"][0]["key"], "art:bad");
}

/// Off the loopback interface, too, a page may have its name point here.
#[tokio::test]
async fn only_known_names_are_answered_and_addresses_for_probes() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let set_up = talkative(&redis, &jobs).env("SAMOVAR_TOKEN", "hunter2-hunter2");
    let server = Server::at("0.0.0.0:0", set_up.env("SAMOVAR_HOSTS", "tea.example, pot")).await.ready().await;
    let ask = async |path: &str, host: &str| send(server.request(Method::GET, path).header("host", host)).await;
    for host in
        ["tea.example", "TEA.example.:80", "pot:7070", "10.1.2.3:7070", "[fd00::7]:7070", "localhost", "127.0.0.1"]
    {
        for path in OPEN {
            assert_eq!(ask(path, host).await.status, StatusCode::OK, "{path} {host}");
        }
    }
    for host in ["evil.example", "tea.example.evil.example", "10.1.2.3.evil.example", "", "a b", "\u{e9}"] {
        for path in ["/jobs", "/jobs/art", "/dead", "/redis/stats", "/api/v1/cache/stats", "/openapi.json"] {
            assert!(ask(path, host).await.problem(403).contains("SAMOVAR_HOSTS"), "{path} {host}");
        }
        // By names that Kubernetes or Prometheus choose.
        for path in ["/health", "/health/live", "/health/ready", "/redis/health", "/metrics"] {
            assert_eq!(ask(path, host).await.status, StatusCode::OK, "{path} {host}");
        }
    }
    let owner = server.request(Method::GET, "/jobs").header("host", "evil.example").bearer_auth("hunter2-hunter2");
    assert_eq!(send(owner).await.status, StatusCode::OK);
    let local = Server::of(talkative(&redis, &jobs).env("SAMOVAR_HOSTS", "tea.example")).await.ready().await;
    let named = send(local.request(Method::GET, "/jobs").header("host", "tea.example")).await;
    assert_eq!(named.status, StatusCode::OK);
}

#[tokio::test]
async fn the_health_command_says_how_the_worker_is() {
    let (mut redis, upstream) = both().await;
    let server = Server::start(&redis, &Art::of(&upstream).list(["a"]).folder()).await.ready().await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let health =
        async |args: &[&str]| samovar(["health"].iter().chain(args)).env("SAMOVAR_LISTEN", &address).run().await;
    let scans = async || redis.ask::<String>(&["INFO", "commandstats"]).await.contains("cmdstat_scan:");
    let before = scans().await;
    let well = health(&[]).await;
    assert_eq!((well.code, well.stdout.as_str()), (Some(0), "healthy\n"), "{well:?}");
    assert_eq!(scans().await, before, "nothing is counted for it");
    redis.stop().await;
    let ill = health(&[]).await;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    assert!(ill.stdout.starts_with("unhealthy\n  ") && ill.stdout.contains("Redis"), "{ill:?}");
    let told: Value = serde_json::from_str(&health(&["--json"]).await.stdout).unwrap();
    assert_eq!(told["redis"], "disconnected");
    // Another server, none, and none that could be asked.
    for (listen, says) in
        [(upstream.url().strip_prefix("http://").unwrap(), "no worker"), ("127.0.0.1:1", "/health"), ("off", "off")]
    {
        let ended = health(&["--listen", listen]).await;
        assert!(ended.code == Some(1) && ended.stderr.contains(says), "{listen}: {ended:?}");
    }
}

/// Nobody invalidated it.
#[tokio::test]
async fn an_entry_fetched_on_demand_is_due_for_its_second_look() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).warm("settle = \"10m\"").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    assert_eq!(server.post("/warm?wait=true", json!({"keys": ["art:a"]})).await.ok()["warmed"], 1);
    let entry = server.get("/entries?key=art:a").await.ok();
    assert_eq!((&entry["last_trigger"], &entry["due_for"]), (&json!("demand"), &json!("settle")));
    let told = samovar(["get", "art:a"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(told.contains("for settle: a second look") && !told.contains("invalidation"), "{told}");
}

/// What changes or fetches something, or shows values.
const OWNERS: [(&str, &str); 10] = [
    ("DELETE", "/redis/clear"),
    ("DELETE", "/redis/clear/art:*"),
    ("POST", "/invalidate"),
    ("POST", "/warm"),
    ("POST", "/warm?wait=true"),
    ("POST", "/jobs/art/pause"),
    ("POST", "/jobs/art/resume"),
    ("GET", "/entries?key=art:a"),
    ("POST", "/dead/retry"),
    ("POST", "/reload"),
];
/// What reads.
const OPEN: [&str; 11] = [
    "/health",
    "/health/live",
    "/health/ready",
    "/health/redis",
    "/redis/health",
    "/redis/stats",
    "/api/v1/cache/stats",
    "/jobs",
    "/jobs/art",
    "/metrics",
    "/openapi.json",
];

fn owners_request(server: &Server, (method, path): (&str, &str)) -> reqwest::RequestBuilder {
    let request = server.request(method.parse().unwrap(), path);
    if method == "POST" { request.json(&json!({"keys": ["art:a"]})) } else { request }
}

#[tokio::test]
async fn with_a_token_only_its_owner_changes_anything() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::of(talkative(&redis, &jobs).env("SAMOVAR_TOKEN", "hunter2-hunter2")).await.ready().await;
    readable(&redis, "art:a").await;
    let before = redis.get("art:a").await;
    for asked in OWNERS {
        for shown in
            [None, Some("Bearer hunter2-hunter3"), Some("Bearer "), Some("hunter2-hunter2"), Some("Basic eDp4")]
        {
            let request = owners_request(&server, asked);
            let answer = send(match shown {
                Some(shown) => request.header("authorization", shown),
                None => request,
            });
            let answer = answer.await;
            assert!(
                answer.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"),
                "{asked:?}: {answer:?}"
            );
            assert!(answer.problem(401).contains("SAMOVAR_TOKEN"), "{asked:?} {shown:?}");
        }
    }
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (before, 1));
    for path in OPEN {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
    // With it, another name of the machine may be used.
    let warm = owners_request(&server, ("POST", "/warm?wait=true"))
        .bearer_auth("hunter2-hunter2")
        .header("host", "tea.example");
    assert_eq!(send(warm).await.ok()["unchanged"], 1);
    // Without it, not even to read: a page whose name is made to point here would ask so.
    for path in OPEN {
        let request = server.request(Method::GET, path).header("host", "tea.example");
        assert!(send(request).await.problem(403).contains("loopback"), "{path}");
    }
    let log = server.worker.log().join("\n");
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn open_to_other_machines_and_without_a_token_it_only_reads() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut server = Server::at("0.0.0.0:0", talkative(&redis, &jobs)).await.ready().await;
    readable(&redis, "art:a").await;
    server.worker.wait_for_log(&["WARN", "SAMOVAR_TOKEN"]).await;
    for asked in OWNERS {
        let said = send(owners_request(&server, asked)).await.problem(403);
        assert!(said.contains("SAMOVAR_TOKEN"), "{asked:?}: {said}");
    }
    for path in OPEN {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert!(redis.get("art:a").await.is_some());
}

/// A page that somebody has open in a browser on this machine can send requests here, and can have its name point here.
#[tokio::test]
async fn a_page_from_elsewhere_may_not_ask() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:a").await;
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    for origin in ["https://evil.example", "null", "http://localhost:1", "file://", &format!("ftp://127.0.0.1:{port}")]
    {
        let request = server.request(Method::DELETE, "/redis/clear").header("origin", origin);
        assert!(send(request).await.problem(403).contains("origin"), "{origin}");
    }
    for host in ["evil.example", &format!("evil.example:{port}"), "localhost.evil.example", "10.0.0.1"] {
        let request = server.request(Method::GET, "/jobs").header("host", host);
        assert!(send(request).await.problem(403).contains("loopback"), "{host}");
    }
    assert!(redis.get("art:a").await.is_some());
    for host in ["localhost", &format!("localhost:{port}"), "[::1]"] {
        assert_eq!(
            send(server.request(Method::GET, "/jobs").header("host", host)).await.status,
            StatusCode::OK,
            "{host}"
        );
    }
    let own =
        server.request(Method::POST, "/warm?wait=true").header("origin", &server.url).json(&json!({"keys": ["art:a"]}));
    assert_eq!(send(own).await.ok()["unchanged"], 1);
}

#[tokio::test]
async fn what_is_not_there_or_cannot_be_asked_is_told_as_a_problem() {
    let (redis, upstream) = both().await;
    let server = Server::start(&redis, &Art::of(&upstream).folder()).await;
    for path in ["/", "/nothing", "/jobs/", "/redis/clear/a/b", "/../etc/passwd", "/%2e%2e/x"] {
        assert!(server.get(path).await.problem(404).contains("openapi.json"), "{path}");
    }
    let put = send(server.request(Method::PUT, "/jobs")).await;
    assert!(put.headers["allow"].to_str().unwrap().contains("GET"), "{put:?}");
    put.problem(405);
    assert_eq!(server.get("/warm").await.headers["allow"], "POST");
    assert_eq!(server.get("/redis/clear").await.headers["allow"], "DELETE");
    server.ready().await.get("/jobs/nobody").await.problem(404);
}

#[tokio::test]
async fn workers_find_free_ports_unless_a_taken_one_is_named() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    // Empty means unset: the default.
    let first = Server::at("", talkative(&redis, &jobs)).await;
    let second = Server::at("", talkative(&redis, &jobs)).await;
    assert_ne!(first.url, second.url);
    let (first, second) = tokio::join!(first.ready(), second.ready());
    let names = [&first, &second].map(async |server| server.get("/health").await.ok()["worker"].clone());
    let [one, other] = names;
    assert_ne!(one.await, other.await);
    let taken = first.url.strip_prefix("http://").unwrap();
    let refused = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", taken).run().await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains(taken) && refused.stderr.contains("--listen"), "{refused:?}");
}

/// SIGTERM while somebody waits: the answer comes, and the process ends in order.
#[tokio::test]
async fn who_waits_is_answered_when_the_worker_ends() {
    let (redis, upstream) = both().await;
    let gate = upstream.gate("/art/slow");
    let jobs = Art::of(&upstream).folder();
    let mut server = Server::start(&redis, &jobs).await.ready().await;
    let request = server.request(Method::POST, "/warm?wait=true").json(&json!({"keys": ["art:slow"]}));
    let tell = async {
        gate.arrived(1).await;
        server.worker.term();
    };
    let (asked, ()) = tokio::join!(send(request), tell);
    assert!(asked.problem(503).contains("ends"));
    let state = server.get("/health/ready").await;
    assert!(state.json()["reasons"].to_string().contains("told to stop"), "{state:?}");
    gate.open();
    assert!(server.worker.wait().await.success());
    assert!(redis.get("art:slow").await.is_some());
}

/// Name and labels → value.
type Samples = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// The text format, version 0.0.4, read strictly: the samples, and each name's type.
fn parse_metrics(text: &str) -> (Samples, BTreeMap<String, String>) {
    assert!(text.ends_with('\n'));
    let (mut samples, mut types, mut helps) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(!help.is_empty() && helps.insert(name.to_owned()), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, mut rest) = series.split_once('{').map_or((series, ""), |(name, rest)| {
            (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("no end: {line}")))
        });
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(name.chars().all(allowed) && name.starts_with(|c: char| c.is_ascii_lowercase()), "{line}");
        let mut labels = BTreeMap::new();
        while !rest.is_empty() {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            let (value, after) = after.split_once('"').unwrap();
            assert!(label.chars().all(allowed) && !value.contains(['\\', '\n']), "{line}");
            assert!(labels.insert(label.to_owned(), value.to_owned()).is_none(), "{line}");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let family = name.strip_suffix(end)?;
            (types.get(family).map(String::as_str) == Some("histogram")).then_some(family)
        });
        let family = family.unwrap_or(name);
        let kind = types.get(family).unwrap_or_else(|| panic!("no type before: {line}"));
        assert!(helps.contains(family), "no help before: {line}");
        assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
        assert!(samples.insert((name.to_owned(), labels), value).is_none(), "twice: {line}");
    }
    (samples, types)
}

#[tokio::test]
async fn metrics_and_jobs_say_how_many_values_are_old() {
    let (redis, upstream) = both().await;
    let warm = "ahead = \"1s\"\nstale_if_error = \"1h\"";
    let jobs = Art::of(&upstream).ttl("2s").list(["a"]).warm(warm).folder().job(
        "new",
        &format!(
            "key = \"new:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nurl = \"{}/new\"\n[entries]\nlist = [\"a\"]\n",
            upstream.url()
        ),
    );
    let server = Server::start(&redis, &jobs).await.ready().await;
    readable(&redis, "art:a").await;
    readable(&redis, "new:a").await;
    upstream.on("/art/a", Reply::status(500));
    let parts = Parts::of(&redis).await;
    eventually("the TTL is over, and the value lives on", async || {
        let now = parts.now().await;
        match parts.meta("a").await {
            Some(meta) if meta.outlived > 0 && meta.written - meta.outlived < now && now < meta.written => Ok(()),
            meta => Err((now, meta)),
        }
    })
    .await;
    eventually("the metrics tell", async || {
        let text = server.get("/metrics").await.text;
        let told = ["samovar_old_entries{job=\"art\"} 1", "samovar_old_entries{job=\"new\"} 0"]
            .iter()
            .all(|line| text.contains(line));
        if told { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(server.get("/jobs/art").await.ok()["old"], 1);
}

#[tokio::test]
async fn metrics_are_well_formed_and_their_labels_bounded() {
    let (redis, upstream) = both().await;
    upstream.on("/art/bad", Reply::status(500));
    let names: Vec<String> =
        (0..40).map(|n| format!("name-{n}")).chain(["bad".to_owned(), "\"\n}".to_owned()]).collect();
    let jobs = Art::of(&upstream).list(&names).warm("attempts = 1").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:name-1").await;
    parts.invalidate("elsewhere:1").await;
    redis.publish("samovar:invalidate", "{\"keys\": 1}").await;
    server.post("/warm?wait=true", json!({"keys": ["art:name-39", "art:more"]})).await.ok();
    eventually("all is done and counted", async || {
        let (samples, _) = parse_metrics(&server.get("/metrics").await.text);
        let sum =
            |name: &str| -> f64 { samples.iter().filter(|((of, _), _)| of == name).map(|(_, value)| value).sum() };
        let seen = (
            sum("samovar_entries_total") >= 43.0,
            sum("samovar_dead_letters_total"),
            sum("samovar_invalidations_malformed_total"),
            sum("samovar_invalidations_foreign_total"),
            sum("samovar_warm_entries") > 0.0,
        );
        if seen == (true, 1.0, 1.0, 1.0, true) { Ok(()) } else { Err(seen) }
    })
    .await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.kind, "text/plain; version=0.0.4; charset=utf-8");
    let (samples, types) = parse_metrics(&answer.text);
    let bounded: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([
        ("job", BTreeSet::from(["art"])),
        ("upstream", BTreeSet::from(["museum"])),
        ("trigger", BTreeSet::from(["cron", "invalidation", "expiry", "demand", "manual", "settle"])),
        ("outcome", BTreeSet::from(["warmed", "unchanged", "busy", "fenced", "deferred", "gone", "unread", "failed"])),
        ("way", BTreeSet::from(["channel", "inbox"])),
        ("result", BTreeSet::from(["answer", "unusable", "failed", "busy"])),
        ("version", BTreeSet::from([env!("CARGO_PKG_VERSION")])),
    ]);
    for ((name, labels), value) in &samples {
        for (label, value) in labels.iter().filter(|(label, _)| *label != "le") {
            let known = bounded.get(label.as_str()).unwrap_or_else(|| panic!("{name}: a label {label}"));
            assert!(known.contains(value.as_str()), "{name}: {label}={value}");
        }
        assert!(*value >= 0.0 || value.is_nan(), "{name} {labels:?} {value}");
    }
    let one = |name: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        *samples.get(&(name.to_owned(), labels)).unwrap_or_else(|| panic!("no {name}"))
    };
    let is = |value: f64, wanted: f64| (value - wanted).abs() < 1e-9;
    assert!(is(one("samovar_redis_up", &[]), 1.0));
    assert!(is(one("samovar_workers", &[]), 1.0));
    assert!(is(one("samovar_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0));
    assert!(is(one("samovar_job_paused", &[("job", "art")]), 0.0));
    assert!(is(one("samovar_upstream_open", &[("upstream", "museum")]), 0.0));
    assert!(is(one("samovar_dead_letters", &[("job", "art")]), 1.0));
    assert!(one("samovar_fetch_duration_seconds_count", &[("result", "answer"), ("upstream", "museum")]) >= 41.0);
    assert!(one("samovar_lag_seconds_count", &[("job", "art")]) >= 41.0);
    assert!(one("process_resident_memory_bytes", &[]) > 1e6);
    assert_eq!(types["samovar_lag_seconds"], "histogram");
}

/// The answers that [`every_route_is_in_the_document_and_answers_as_it_says`] looks at.
fn schema_of<'a>(document: &'a Value, path: &str, method: &str, status: &str) -> &'a Value {
    let answers = &document["paths"][path][method]["responses"];
    let answer = answers.get(status).unwrap_or(&answers["default"]);
    &answer["content"].as_object().unwrap_or_else(|| panic!("{method} {path} {status}")).values().next().unwrap()["schema"]
}

#[tokio::test]
async fn every_route_is_in_the_document_and_answers_as_it_says() {
    let (redis, upstream) = both().await;
    upstream.on("/art/bad", Reply::status(500));
    let jobs = Art::of(&upstream).list(["a", "bad"]).warm("attempts = 1\nevery = \"1h\"").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    eventually("there is a dead letter", async || server.get("/dead").await.ok()["total"] == 1).await;
    let document = server.get("/openapi.json").await.ok();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    // Path as documented, method, request, body.
    let routes = OPEN
        .iter()
        .filter(|path| **path != "/metrics" && **path != "/jobs/art")
        .map(|path| (*path, "get", *path, None))
        .chain([
            ("/jobs/{job}", "get", "/jobs/art", None),
            ("/jobs/{job}", "get", "/jobs/nobody", None),
            ("/dead", "get", "/dead", None),
            ("/entries", "get", "/entries?key=art:a", None),
            ("/entries", "get", "/entries?key=art:none", None),
            ("/entries", "get", "/entries", None),
            ("/invalidate", "post", "/invalidate", Some(json!({"keys": ["art:a"]}))),
            ("/invalidate", "post", "/invalidate", Some(json!({"tags": ["old"], "action": "evict"}))),
            ("/invalidate", "post", "/invalidate", Some(json!({}))),
            ("/warm", "post", "/warm", Some(json!({"keys": ["art:a"]}))),
            ("/warm", "post", "/warm?wait=true", Some(json!({"keys": ["art:b"]}))),
            ("/jobs/{job}/pause", "post", "/jobs/art/pause", None),
            ("/jobs/{job}/resume", "post", "/jobs/art/resume", None),
            ("/dead/retry", "post", "/dead/retry", None),
            ("/reload", "post", "/reload", None),
            ("/redis/clear", "delete", "/redis/clear?pattern=art:b", None),
            ("/redis/clear/{pattern}", "delete", "/redis/clear/art:a", None),
        ]);
    let mut tried: BTreeSet<(String, String)> = BTreeSet::from([("/metrics".into(), "get".into())]);
    for (path, method, target, body) in routes {
        tried.insert((path.to_owned(), method.to_owned()));
        let request = server.request(method.to_uppercase().parse().unwrap(), target);
        let answer = send(if let Some(body) = &body { request.json(body) } else { request }).await;
        let mut schema = schema_of(&document, path, method, answer.status.as_str()).clone();
        if let Some(fields) = schema.as_object_mut() {
            fields.insert("components".to_owned(), document["components"].clone());
        }
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults: Vec<String> =
            validator.iter_errors(&answer.json()).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert_eq!(faults, Vec::<String>::new(), "{method} {target}: {}", answer.text);
    }
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())))
        .collect();
    assert_eq!(documented, tried);
    for (method, path) in OWNERS {
        let path = path.split('?').next().unwrap().replace("art:*", "{pattern}").replace("/art/", "/{job}/");
        let operation = &document["paths"][&path][method.to_lowercase()];
        assert!(operation["security"].to_string().contains("token"), "{method} {path}");
    }
}

/// An entry that its worker has taken and that waits for its upstream's limits has no lease yet that could be marked.
#[tokio::test]
async fn an_entry_evicted_while_it_waits_for_a_permit_is_not_fetched() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).limits("concurrency = 1").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    let gate = upstream.gate("/art/first");
    server.post("/warm", json!({"keys": ["art:first"]})).await.ok();
    gate.arrived(1).await;
    server.post("/warm", json!({"keys": ["art:second"]})).await.ok();
    let parts = Parts::of(&redis).await;
    eventually("it is taken", async || {
        let score = parts.score("second").await;
        score.map(samovar::agenda::Due::from_score).is_some_and(|due| due.state == samovar::agenda::State::Running)
    })
    .await;
    server.delete("/redis/clear?pattern=art:second").await.ok();
    gate.open();
    server.post("/warm?wait=true", json!({"keys": ["art:third"]})).await.ok();
    assert_eq!((upstream.calls("/art/second"), redis.get(art("second").as_str()).await), (0, None));
}
