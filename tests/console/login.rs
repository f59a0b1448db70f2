//! Logins that are half sent, wrong or over, and where a login leads.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Console, OWNER, VIEWER, both, filled, send, with_roles};
use crate::support::{Art, eventually, talkative};

/// Returns the value of a session that ends then, as a worker with this token signs it.
fn session(token: &str, ends: u64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    let signature = hmac::sign(&key, format!("samovar console session 1 owner {ends}").as_bytes());
    format!("owner.{ends}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_session_that_is_over_leads_to_the_login() {
    let (redis, upstream) = both().await;
    let console = Console::of(with_roles(&redis, &Art::of(&upstream).folder())).await;
    let name = console.log_in(OWNER).await.split('=').next().unwrap().to_owned();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let ask = async |path: &str, ends| {
        send(console.request("GET", path).header("cookie", format!("{name}={}", session(OWNER, ends)))).await
    };
    assert_eq!(ask("/console/jobs", now + 600).await.status, 200);
    for path in ["/console/jobs", "/console/events"] {
        let over = ask(path, now - 1).await;
        assert_eq!(over.status, 303, "{path}: {over:?}");
        assert!(over.header("location").starts_with("/console/login?to=%2Fconsole"), "{path}: {over:?}");
    }
    // An event source follows no login: it is told so.
    let events = console.request("GET", "/console/events").header("accept", "text/event-stream");
    assert_eq!(send(events).await.status, 401);
}

#[tokio::test]
async fn half_sent_logins_lock_nobody_out() {
    let (redis, upstream) = both().await;
    let console = Console::of(with_roles(&redis, &Art::of(&upstream).folder())).await;
    let owner = console.log_in(OWNER).await;
    let address = console.url.strip_prefix("http://").unwrap();
    let half_sent = async |length: usize| {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /console/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {length}\r\n\r\nt"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        socket
    };
    // What is announced to be too long is refused at once.
    let mut answer = String::new();
    for _ in 0..300 {
        let mut socket = half_sent(2_000_000).await;
        answer.clear();
        let mut beginning = [0; 12];
        socket.read_exact(&mut beginning).await.unwrap();
        assert_eq!(&beginning, b"HTTP/1.1 413");
    }
    // What never comes is given up, and does not hold up a probe.
    let mut sockets = Vec::new();
    for _ in 0..300 {
        sockets.push(half_sent(100).await);
    }
    assert_eq!(send(console.request("GET", "/health/live")).await.status, 200);
    sockets[0].read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not arrive within"), "{answer}");
    eventually("there is room again", async || {
        send(console.request("GET", "/console/jobs").header("cookie", &owner)).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn many_wrong_logins_have_to_wait() {
    let (redis, upstream) = both().await;
    let mut console = Console::of(with_roles(&redis, &Art::of(&upstream).folder())).await;
    let session = console.log_in(OWNER).await;
    let wrong = async || {
        let answer = send(filled(console.request("POST", "/console/login"), &[("token", "guess")])).await;
        answer.status.as_u16()
    };
    for nth in 0..10 {
        assert_eq!(wrong().await, 401, "{nth}");
    }
    assert_eq!(wrong().await, 429);
    let right = send(filled(console.request("POST", "/console/login"), &[("token", OWNER)])).await;
    assert_eq!((right.status.as_u16(), right.header("set-cookie")), (429, ""), "the limit tells nothing of a token");
    // Who is logged in, or has the token in a header, is not concerned.
    console.page(&session, "/console/jobs").await;
    assert_eq!(send(console.request("GET", "/console/jobs").bearer_auth(VIEWER)).await.status, 200);
    console.worker.wait_for_log(&["a login to the console was refused", "127.0.0.1"]).await;
}

#[tokio::test]
async fn a_login_leads_to_no_other_site() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let (console, open) = (Console::of(with_roles(&redis, &jobs)).await, Console::of(talkative(&redis, &jobs)).await);
    for to in ["//evil.example", "/\t/evil.example", "/\n/evil.example", "/\\evil.example", "https://evil.example"] {
        let answer = send(filled(console.request("POST", "/console/login"), &[("token", OWNER), ("to", to)])).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/"), "{to:?}: {answer:?}");
        // Without a token, the page to log in leads on at once.
        let answer = send(open.request("GET", &format!("/console/login?to={}", super::encoded(to)))).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/"), "{to:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_open_door_behind_a_proxy_is_told() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let mut open = Console::of(talkative(&redis, &jobs).env("SAMOVAR_HOSTS", "samovar.example")).await;
    open.worker.wait_for_log(&["WARN", "SAMOVAR_HOSTS is set and SAMOVAR_TOKEN is not"]).await;
    let mut short =
        Console::of(talkative(&redis, &jobs).env("SAMOVAR_HOSTS", "samovar.example").env("SAMOVAR_TOKEN", "owner"))
            .await;
    short.worker.wait_for_log(&["WARN", "SAMOVAR_TOKEN is shorter than 16 characters"]).await;
    assert!(!short.worker.log().join("\n").contains("SAMOVAR_HOSTS is set"));
}
