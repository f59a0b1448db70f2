//! HTTP: what a worker answers, to whom, and what it does about it.
mod access;
mod dead_letters;
mod document;
mod entries;
mod health;
mod metrics;

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{JobsFolder, Reply, Samovar, TestRedis, Upstream, WorkerProcess, eventually, talkative};

/// A worker and the address where it answers.
struct Server {
    worker: WorkerProcess,
    url: String,
    client: reqwest::Client,
}

/// An answer.
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

    /// Waits until it is ready.
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
    let (redis, upstream) = crate::support::both().await;
    upstream.otherwise(|call, count| Reply::json(json!({"path": call.path(), "count": count})));
    (redis, upstream)
}

/// Requests that change or fetch something, or show values.
const OWNERS: [(&str, &str); 12] = [
    ("DELETE", "/redis/clear"),
    ("DELETE", "/redis/clear/art:*"),
    ("POST", "/invalidate"),
    ("POST", "/warm"),
    ("POST", "/warm?wait=true"),
    ("POST", "/jobs/art/pause"),
    ("POST", "/jobs/art/resume"),
    ("POST", "/jobs/art/gone/accept"),
    ("POST", "/jobs/art/gone/hold"),
    ("GET", "/entries?key=art:a"),
    ("POST", "/dead/retry"),
    ("POST", "/reload"),
];
/// Requests that only read.
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
