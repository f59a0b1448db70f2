//! Access: who may ask, from where, and with which token.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{OPEN, OWNERS, Server, both, send};
use crate::support::{Art, Reply, eventually, readable_key as readable, talkative};

#[tokio::test]
async fn reasons_are_told_to_whoever_shows_the_token() {
    let (redis, upstream) = both().await;
    upstream.answer("/art/bad", |_, _| Reply::text("account of Frida Kahlo").with_status(400));
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
            assert!(shown.text.contains("Frida Kahlo"), "{path}: {shown:?}");
        }
    }
    for path in OPEN.iter().chain(&reads) {
        for server in [&loopback, &open, &bare] {
            let hidden = server.get(path).await;
            assert!(hidden.status == StatusCode::OK && !hidden.text.contains("Frida Kahlo"), "{path}: {hidden:?}");
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
    for path in ["/nothing", "/console", "/jobs/", "/redis/clear/a/b", "/../etc/passwd", "/%2e%2e/x"] {
        assert!(server.get(path).await.problem(404).contains("openapi.json"), "{path}");
    }
    let put = send(server.request(Method::PUT, "/jobs")).await;
    assert!(put.headers["allow"].to_str().unwrap().contains("GET"), "{put:?}");
    put.problem(405);
    assert_eq!(server.get("/warm").await.headers["allow"], "POST");
    assert_eq!(server.get("/redis/clear").await.headers["allow"], "DELETE");
    let server = server.ready().await;
    server.get("/jobs/nobody").await.problem(404);
    // A parameter that has no effect is not passed over in silence.
    for (method, path) in
        [("GET", "/jobs"), ("GET", "/redis/stats"), ("POST", "/jobs/art/pause"), ("POST", "/dead/retry")]
    {
        let refused = send(server.request(method.parse().unwrap(), &format!("{path}?for=1h"))).await.problem(400);
        assert!(refused.contains("unknown field `for`, this request has no parameters"), "{path}: {refused}");
    }
    assert!(server.get("/dead?limit=few").await.problem(400).contains("limit: write a whole number"));
    assert_eq!(server.get("/jobs/art").await.ok()["paused_ms"], json!(null));
}
