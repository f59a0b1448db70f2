//! The console: who may see and do what, what each screen shows, and what it does in a browser.
mod access;
mod browser;
mod failures;
mod hostile;
mod live;
mod login;
mod invalidations;
mod screens;
mod state;
mod updates;

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{JobsFolder, Reply, Samovar, TestRedis, Upstream, WorkerProcess, eventually, talkative};

const OWNER: &str = "owner-owner-owner";
const VIEWER: &str = "viewer-viewer-viewer";

/// A worker with a console.
struct Console {
    worker: WorkerProcess,
    url: String,
    client: reqwest::Client,
}

/// An answer of the console.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: reqwest::header::HeaderMap,
    text: String,
}

async fn both() -> (TestRedis, Upstream) {
    let (redis, upstream) = crate::support::both().await;
    upstream.otherwise(|call, count| Reply::json(json!({"path": call.path(), "count": count})));
    (redis, upstream)
}

/// Returns a worker of both roles that is to be started.
fn with_roles(redis: &TestRedis, jobs: &JobsFolder) -> Samovar {
    talkative(redis, jobs).env("SAMOVAR_TOKEN", OWNER).env("SAMOVAR_VIEWER_TOKEN", VIEWER)
}

impl Console {
    async fn of(set_up: Samovar) -> Self {
        Self::at("127.0.0.1:0", set_up).await
    }

    async fn at(address: &str, set_up: Samovar) -> Self {
        let mut worker = set_up.env("SAMOVAR_LISTEN", address).spawn();
        let url = worker.http().await.replace("0.0.0.0", "127.0.0.1");
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let console = Self { worker, url, client };
        eventually("the worker is ready", async || {
            let answer = console.client.get(format!("{}/health/ready", console.url)).send().await.unwrap();
            answer.status() == StatusCode::OK
        })
        .await;
        console
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse::<Method>().unwrap(), format!("{}{path}", self.url))
    }

    /// Returns the cookie of a session that this token opens.
    async fn log_in(&self, token: &str) -> String {
        let answer =
            send(filled(self.request("POST", "/console/login"), &[("token", token), ("to", "/console/jobs")])).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/console/jobs"), "{answer:?}");
        answer.header("set-cookie").split(';').next().unwrap().to_owned()
    }
}

impl Console {
    /// Returns a page as the holder of this cookie sees it.
    async fn page(&self, cookie: &str, path: &str) -> String {
        let answer = send(self.request("GET", path).header("cookie", cookie)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.text
    }

    /// Carries out an action; returns the page to which it leads.
    async fn act(&self, cookie: &str, action: &str, form: &[(&str, &str)]) -> String {
        let answer = self.try_to_act(cookie, action, form).await;
        assert_eq!(answer.status, 303, "{action}: {answer:?}");
        answer.header("location").to_owned()
    }

    /// Asks for an action as the holder of this cookie, from a page of the console.
    async fn try_to_act(&self, cookie: &str, action: &str, form: &[(&str, &str)]) -> Answer {
        let request = filled(self.request("POST", &format!("/console/do/{action}")), form);
        send(request.header("cookie", cookie).header("sec-fetch-site", "same-origin")).await
    }
}

impl Answer {
    /// Returns an answer with this page.
    fn of_page(text: String) -> Self {
        Self { status: StatusCode::OK, headers: reqwest::header::HeaderMap::new(), text }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

/// Returns a request with a form that is filled in so.
fn filled(request: reqwest::RequestBuilder, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    request.header("content-type", "application/x-www-form-urlencoded").body(body)
}

async fn send(request: reqwest::RequestBuilder) -> Answer {
    let mut response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    // Events have no end.
    let is_endless = headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let text = match is_endless {
        true => String::from_utf8(response.chunk().await.unwrap().unwrap_or_default().into()).unwrap(),
        false => response.text().await.unwrap(),
    };
    Answer { status, headers, text }
}

/// Returns a part of a query, encoded.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
