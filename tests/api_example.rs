//! The example APIs in Python and Node as the processes that users run, on a Redis that is stopped and started under
//! the one in Python.
//!
//! `make test` installs what they need into `target/`; where there is no Python or npm, this says so and tries nothing.
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{JobsFolder, Reply, TestRedis, Upstream, eventually, http_get, listening, worker};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct Api {
    url: String,
    http: reqwest::Client,
    _child: Child,
    _log: Lines<BufReader<ChildStderr>>,
}

impl Api {
    async fn start(python: &Path, redis: &TestRedis, museum: &Upstream) -> Self {
        let mut command = Command::new(python);
        command.args(["-B", "-m", "uvicorn", "main:app", "--port", "0", "--no-access-log"]);
        command.current_dir(Path::new(ROOT).join("examples/api"));
        command.env("REDIS_URL", redis.url()).env("MUSEUM_URL", museum.url()).env_remove("SAMOVAR_CHANNEL");
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = loop {
            let line = log.next_line().await.unwrap().expect("it says where it listens");
            if let Some(url) = line.split(' ').find(|word| word.starts_with("http://")) {
                break url.to_owned();
            }
        };
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        Self { url, http, _child: child, _log: log }
    }

    /// The status, `X-Cache`, and the body as it came.
    async fn ask(&self, method: Method, path: &str) -> (StatusCode, String, String) {
        let answer = self.http.request(method, format!("{}{path}", self.url)).send().await.unwrap();
        let cache = answer.headers().get("x-cache").map(|cache| cache.to_str().unwrap().to_owned());
        (answer.status(), cache.unwrap_or_default(), answer.text().await.unwrap())
    }

    async fn artwork(&self, name: &str) -> (String, Value) {
        let (status, cache, text) = self.ask(Method::GET, &format!("/artworks/{name}")).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        (cache, serde_json::from_str(&text).unwrap())
    }
}

#[tokio::test]
async fn the_python_api_reads_invalidates_and_survives_without_redis() {
    let venv = Path::new(ROOT).join("target/venv");
    if !venv.join("installed").exists() {
        eprintln!("NOT TRIED: there is no {}; `make test` makes it where python3 and its venv are", venv.display());
        return;
    }
    let (mut redis, museum) = tokio::join!(TestRedis::start(), Upstream::start());
    let data = |title: &str| Reply::json(json!({"data": {"title": title}}));
    museum.on("/artworks/Mona Lisa", data("Mona Lisa"));
    museum.on("/artworks/Kaplumbağa Terbiyecisi", data("Kaplumbağa Terbiyecisi"));
    let jobs = JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"", museum.url())).job(
        "artwork_info",
        r#"
        key = "artwork_info:{name}"
        ttl = "1h"
        [source]
        kind = "http"
        upstream = "museum"
        path = "/artworks/{{ name }}"
        select = "/data"
        [entries]
        list = ["Mona Lisa"]
        "#,
    );
    let mut worker = worker(&redis, &jobs);
    eventually("it is warm", async || redis.json("artwork_info:Mona Lisa").await).await;
    listening(&redis, 1).await;
    let api = Api::start(&venv.join("bin/python"), &redis, &museum).await;

    // As it is in Redis, without an envelope, and without asking the museum.
    let (_, cache, text) = api.ask(Method::GET, "/artworks/Mona%20Lisa").await;
    assert_eq!((cache.as_str(), Some(text)), ("hit", redis.get("artwork_info:Mona Lisa").await));
    assert_eq!(museum.calls("/artworks/Mona Lisa"), 1);

    let reported =
        async |field: &str| redis.ask::<Option<u64>>(&["HGET", "samovar:reported:{artwork_info}", field]).await;
    eventually("the hit is reported", async || reported("hits").await == Some(1)).await;
    assert_eq!(reported("misses").await, None);

    // A miss is answered, and warm for the next.
    let turtles = "Kaplumba%C4%9Fa%20Terbiyecisi";
    assert_eq!(api.artwork(turtles).await, ("miss".to_owned(), json!({"title": "Kaplumbağa Terbiyecisi"})));
    eventually("it is a hit", async || api.artwork(turtles).await.0 == "hit").await;
    assert_eq!(api.ask(Method::GET, "/artworks/nobody").await.0, StatusCode::NOT_FOUND);
    eventually("misses are reported", async || reported("misses").await >= Some(2)).await;

    // An editor saves.
    museum.on("/artworks/Mona Lisa", data("La Gioconda"));
    let said = api.ask(Method::POST, "/artworks/Mona%20Lisa/changed").await;
    assert_eq!((said.0, said.2.as_str()), (StatusCode::ACCEPTED, r#"{"workers":1}"#));
    let new = ("hit".to_owned(), json!({"title": "La Gioconda"}));
    eventually("the new title is warm", async || api.artwork("Mona%20Lisa").await == new).await;

    for frozen in [true, false] {
        if frozen {
            redis.freeze();
        } else {
            redis.kill9();
        }
        museum.on("/artworks/Mona Lisa", data("Monna Lisa"));
        assert_eq!(api.artwork("Mona%20Lisa").await, ("miss".to_owned(), json!({"title": "Monna Lisa"})));
        let said = api.ask(Method::POST, "/artworks/Mona%20Lisa/changed").await;
        assert_eq!(said.0, StatusCode::SERVICE_UNAVAILABLE, "what is lost is told: {}", said.2);
        if frozen {
            redis.thaw();
        } else {
            redis.start_again().await;
        }
        eventually("it is a hit again", async || api.artwork("Mona%20Lisa").await.0 == "hit" && worker.is_running())
            .await;
    }
}

#[tokio::test]
async fn the_node_api_reads_and_reports_what_it_found() {
    let node = Path::new(ROOT).join("target/node");
    if !node.join("installed").exists() {
        eprintln!("NOT TRIED: there is no {}; `make test` makes it where npm is", node.display());
        return;
    }
    let (redis, museum) = tokio::join!(TestRedis::start(), Upstream::start());
    museum.on("/artworks/Mona Lisa", Reply::json(json!({"data": {"title": "Mona Lisa"}})));
    let mut command = Command::new("node");
    command.arg(Path::new(ROOT).join("examples/node/server.js")).env("NODE_PATH", node.join("node_modules"));
    command.env("REDIS_URL", redis.url()).env("MUSEUM_URL", museum.url()).env("PORT", "0");
    command.env_remove("SAMOVAR_CHANNEL");
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = log.next_line().await.unwrap().expect("it says where it listens");
    let url = line.strip_prefix("listening on ").unwrap();
    let ask = async || {
        let answer = http_get(&format!("{url}/artworks/Mona%20Lisa")).await;
        let cache = answer.headers()["x-cache"].to_str().unwrap().to_owned();
        (cache, answer.text().await.unwrap())
    };
    let value = r#"{"title":"Mona Lisa"}"#;
    let reported =
        async |field: &str| redis.ask::<Option<u64>>(&["HGET", "samovar:reported:{artwork_info}", field]).await;
    eventually("a miss is reported", async || {
        assert_eq!(ask().await, ("miss".to_owned(), value.to_owned()));
        reported("misses").await.is_some()
    })
    .await;
    assert_eq!(reported("hits").await, None);
    redis.set("artwork_info:Mona Lisa", value, Duration::from_secs(600)).await;
    assert_eq!(ask().await, ("hit".to_owned(), value.to_owned()));
    eventually("the hit is reported", async || reported("hits").await == Some(1)).await;
    assert!(redis.ttl("samovar:reported:{artwork_info}").await.is_some(), "sums of a job that is gone expire");

    // A query is no part of the key.
    let answer = http_get(&format!("{url}/artworks/Mona%20Lisa?size=1")).await;
    assert_eq!(answer.headers()["x-cache"].to_str().unwrap(), "hit");
    redis.freeze();
    let asked = tokio::time::timeout(Duration::from_secs(30), ask()).await;
    assert_eq!(asked.expect("Redis delays no request"), ("miss".to_owned(), value.to_owned()));
    redis.thaw();
    eventually("it is a hit again", async || ask().await.0 == "hit").await;
    for _ in 0..10 {
        assert_eq!(ask().await.0, "hit");
    }
    let process = i32::try_from(child.id().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().await.unwrap().success());
    let hits = reported("hits").await;
    assert!(hits >= Some(1 + 1 + 10), "what was read last is reported at the end: {hits:?}");
}
