//! The example service as the process that users run, on a Redis that is stopped and started under it.
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Reply, TestRedis, Upstream, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const HOUR: Duration = Duration::from_secs(3_600);

struct Service {
    url: String,
    http: reqwest::Client,
    _child: Child,
}

/// Builds the example, unless it is as it should be, and says where it is.
async fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(std::path::Path::parent).unwrap();
    let mut build = Command::new(env!("CARGO"));
    // With the whole workspace and the features of the tests: so it is there already.
    build.args(["build", "--locked", "--quiet", "--workspace", "--example", "service"]);
    if !cfg!(feature = "jemalloc") {
        build.args(["--no-default-features", "--features", "worker"]);
    }
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    build.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().await.unwrap().success(), "the example builds");
    profile.join("examples").join("service")
}

impl Service {
    async fn start(redis: &TestRedis, museum: &Upstream, limit: &str) -> Self {
        let mut command = Command::new(example().await);
        command.args(["--redis", &redis.url(), "--museum", museum.url(), "--listen", "127.0.0.1:0", "--limit", limit]);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.next_line().await.unwrap().expect("it says where it listens");
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        Self { url, http, _child: child }
    }

    async fn ask(&self, method: Method, path: &str) -> reqwest::Response {
        let request = self.http.request(method, format!("{}{path}", self.url));
        request.json(&json!({ "id": 7, "name": "Ayşe" })).send().await.unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let answer = self.ask(Method::GET, path).await;
        (answer.status(), answer.json().await.unwrap_or_default())
    }

    async fn cached(&self, path: &str) -> String {
        let answer = self.ask(Method::GET, path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.headers()["x-cache"].to_str().unwrap().to_owned()
    }
}

async fn museum() -> Upstream {
    let museum = Upstream::start().await;
    museum.on("/artworks/Mona Lisa", Reply::json(json!({ "data": { "title": "Mona Lisa", "year": 1503 } })));
    museum
}

#[tokio::test]
async fn the_service_survives_an_outage_of_redis_and_recovers() {
    let mut redis = TestRedis::start().await;
    let museum = museum().await;
    let service = Service::start(&redis, &museum, "10000/second").await;

    redis.set("artwork_info:Mona Lisa", r#"{"title": "warm"}"#, HOUR).await;
    assert_eq!(service.get("/artworks/Mona%20Lisa").await, (StatusCode::OK, json!({ "title": "warm" })));
    assert_eq!(museum.calls("/artworks/Mona Lisa"), 0);
    for _ in 0..3 {
        let summary = service.get("/summaries/Mona%20Lisa").await;
        assert_eq!(summary.1, json!({ "title": "Mona Lisa", "summary": "All about Mona Lisa." }));
    }
    assert_eq!(museum.calls("/artworks/Mona Lisa"), 1, "made once");
    assert_eq!(service.ask(Method::POST, "/artworks/Mona%20Lisa/changed").await.status(), StatusCode::ACCEPTED);
    assert_eq!(redis.ask::<u64>(&["XLEN", "samovar:inbox"]).await, 1);
    assert_eq!(redis.get("summary:Mona Lisa").await, None);
    assert_eq!(service.ask(Method::POST, "/sessions/5f2c").await.status(), StatusCode::CREATED);
    assert_eq!(service.get("/sessions/5f2c").await, (StatusCode::OK, json!({ "id": 7, "name": "Ayşe" })));
    assert_eq!(service.get("/sessions/other").await.0, StatusCode::UNAUTHORIZED);
    let report: Value = service.ask(Method::POST, "/reports").await.json().await.unwrap();
    assert_eq!(report["report"], 1);

    for frozen in [true, false] {
        if frozen {
            redis.freeze();
        } else {
            redis.kill9();
        }
        eventually("the outage is noticed", async || {
            // Near for some seconds yet, then from the museum; never an error.
            service.cached("/artworks/Mona%20Lisa").await;
            assert_eq!(service.get("/summaries/Mona%20Lisa").await.0, StatusCode::OK);
            service.get("/stats").await.1["degraded"] == true
        })
        .await;
        assert_eq!(service.ask(Method::POST, "/sessions/dropped").await.status(), StatusCode::CREATED);
        assert_eq!(service.get("/sessions/5f2c").await.0, StatusCode::UNAUTHORIZED);
        let said = service.ask(Method::POST, "/artworks/Mona%20Lisa/changed").await.status();
        assert_eq!(said, StatusCode::SERVICE_UNAVAILABLE, "what must not be lost is an error");
        assert_eq!(service.ask(Method::POST, "/reports").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        if frozen {
            redis.thaw();
        } else {
            redis.start_again().await;
        }
        eventually("reports are made again", async || {
            service.ask(Method::POST, "/reports").await.status().is_success()
        })
        .await;
        redis.set("artwork_info:Mona Lisa", r#"{"title": "warm again"}"#, HOUR).await;
        eventually("the warm value is served", async || {
            service.get("/artworks/Mona%20Lisa").await.1["title"] == "warm again"
        })
        .await;
        assert_eq!(service.get("/stats").await.1["degraded"], false);
    }
}

#[tokio::test]
async fn two_instances_admit_no_more_than_the_limit_together() {
    let redis = TestRedis::start().await;
    let museum = museum().await;
    let instances =
        [Service::start(&redis, &museum, "20/hour").await, Service::start(&redis, &museum, "20/hour").await];
    let calls = (0..60).map(|n| instances[n % 2].ask(Method::GET, "/artworks/Mona%20Lisa"));
    let answers = futures_util::future::join_all(calls).await;
    let admitted: Vec<_> = answers.iter().filter(|answer| answer.status() == StatusCode::OK).collect();
    assert_eq!(admitted.len(), 20);
    assert!(admitted.iter().any(|answer| answer.headers()["x-ratelimit-remaining"] == "0"));
    let refused = answers.iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).unwrap();
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 3_000);
    assert_eq!(refused.headers()["x-ratelimit-limit"], "20");
}
