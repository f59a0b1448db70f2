//! Health: what probes, people and the health command are told of a worker.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Server, both};
use crate::support::{Art, Reply, eventually, readable_key, samovar, talkative};

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
        assert!(state.to_string().contains(&format!("Redis at {}", redis.url())), "{path}: {state}");
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
async fn an_open_breaker_is_told_by_health_and_jobs() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::status(500));
    let jobs = Art::of(&upstream).list(0..12).folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    eventually("health is degraded", async || {
        let state = server.get("/health").await.ok();
        let told = state["reasons"].to_string().contains("upstream museum failed too often");
        if told && state["status"] == "degraded" { Ok(()) } else { Err(state) }
    })
    .await;
    let shown = samovar(["jobs"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(shown.contains("Upstream museum: no requests for ") && shown.contains("(breaker)."), "{shown}");
}

#[tokio::test]
async fn a_job_most_of_which_is_given_up_is_told() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::text("<html>Please wait</html>"));
    let jobs = Art::of(&upstream).list(0..4).warm("attempts = 1\nevery = \"30d\"").folder();
    let first = Server::start(&redis, &jobs).await.ready().await;
    let reason = "4 entries of art are given up";
    let is_told = async |server: &Server| {
        eventually("health is degraded", async || {
            let state = server.get("/health").await.ok();
            let told = state["status"] == "degraded" && state["reasons"].to_string().contains(reason);
            if told { Ok(()) } else { Err(state) }
        })
        .await;
    };
    is_told(&first).await;
    drop(first);
    let server = Server::start(&redis, &jobs).await.ready().await;
    is_told(&server).await;
    let shown = samovar(["jobs"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(shown.split_whitespace().collect::<Vec<_>>().join(" ").contains(reason), "{shown}");
    assert!(server.get("/jobs").await.text.contains(reason));

    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    assert_eq!(samovar(["dead", "art", "--retry"]).redis(&redis).jobs(&jobs).run().await.code, Some(0));
    for key in ["art:0", "art:1", "art:2", "art:3"] {
        readable_key(&redis, key).await;
    }
    let state = server.get("/health").await.ok();
    assert_eq!(state["status"], "healthy", "{state}");
    assert_eq!(server.get("/dead").await.ok()["total"], 0);
}

/// A single entry that always fails must not make a job look broken.
#[tokio::test]
async fn a_job_of_which_most_succeeds_stays_healthy() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| match call.path() {
        "/art/0" => Reply::text("<html>"),
        path => Reply::json(json!({ "path": path })),
    });
    let jobs = Art::of(&upstream).list(0..4).warm("attempts = 1\nevery = \"30d\"").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    eventually("it is given up", async || server.get("/dead").await.ok()["total"] == 1).await;
    for key in ["art:1", "art:2", "art:3"] {
        readable_key(&redis, key).await;
    }
    let state = server.get("/health").await.ok();
    assert_eq!(state["status"], "healthy", "{state}");
}

#[tokio::test]
async fn a_worker_that_finds_no_redis_answers_all_the_same() {
    let (mut redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    redis.stop().await;
    let server = Server::start(&redis, &jobs).await;
    let state = server.get("/health").await;
    assert_eq!(state.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(state.json()["reasons"][0].as_str().unwrap().contains("not been reached yet"), "{state:?}");
    assert_eq!(server.get("/health/live").await.status, StatusCode::OK);
    assert!(server.get("/redis/stats").await.problem(503).contains("waits for Redis"));
    assert!(server.post("/warm", json!({"keys": ["art:a"]})).await.problem(503).contains("waits for Redis"));
    assert!(server.get("/metrics").await.text.contains("\nsamovar_redis_up 0\n"));
    redis.start_again().await;
    server.ready().await;
}

/// A socket to the worker on which this much of a request was sent.
async fn half_sent(server: &Server, text: &str) -> tokio::net::TcpStream {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, text.as_bytes()).await.unwrap();
    socket
}

/// Returns `true` if the worker keeps a socket open on which it has nothing to say.
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
async fn the_health_command_says_how_the_worker_is() {
    let (mut redis, upstream) = both().await;
    let server = Server::start(&redis, &Art::of(&upstream).list(["a"]).folder()).await.ready().await;
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let health =
        async |args: &[&str]| samovar(["health"].iter().chain(args)).env("SAMOVAR_LISTEN", &address).run().await;
    let scans = async || redis.ask::<String>(&["INFO", "commandstats"]).await.contains("cmdstat_scan:");
    let before = scans().await;
    let well = health(&[]).await;
    let state = server.get("/health").await.ok();
    let masters: Vec<String> = redis.nodes().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let worker = state["worker"].as_str().unwrap();
    assert_eq!(state["masters"].as_array().map(Vec::len), Some(masters.len()), "{state}");
    let said = format!("healthy\n  worker {worker} at http://{address}\n  Redis: ");
    assert!(well.code == Some(0) && well.stdout.starts_with(&said), "{said}: {well:?}");
    assert!(masters.iter().all(|master| well.stdout.contains(master)), "{masters:?}: {well:?}");
    assert_eq!(scans().await, before, "nothing is counted for it");
    redis.stop().await;
    let ill = health(&[]).await;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    let names_one = masters.iter().any(|master| ill.stdout.contains(&format!("{master}: ")));
    assert!(ill.stdout.starts_with("unhealthy\n  ") && names_one, "{ill:?}");
    let told: Value = serde_json::from_str(&health(&["--json"]).await.stdout).unwrap();
    assert_eq!((&told["redis"], &told["url"]), (&json!("disconnected"), &json!(server.url)));
    // Another server, none, and none that could be asked.
    for (listen, says) in
        [(upstream.url().strip_prefix("http://").unwrap(), "no worker"), ("127.0.0.1:1", "/health"), ("off", "off")]
    {
        let ended = health(&["--listen", listen]).await;
        assert!(ended.code == Some(1) && ended.stderr.contains(says), "{listen}: {ended:?}");
    }
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
