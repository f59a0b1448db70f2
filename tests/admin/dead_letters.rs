//! Dead letters: told, put back, and read in pages.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, both, send};
use crate::support::{Art, Reply, TestRedis, eventually, readable_key as readable, samovar};

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
    let all = samovar(["dead", "art"]).redis(&redis).jobs(&jobs).run().await.stdout;
    let reasons = all.matches(&"r".repeat(70)).count();
    assert!((1..20).contains(&reasons) && all.contains("art:00001") && all.contains("art:01202"), "{reasons}: {all}");
    assert!(all.lines().all(|line| line.chars().count() <= 110), "{all}");
    let retry = samovar(["dead", "--retry", key]).redis(&redis).jobs(&jobs).run().await;
    assert!(retry.stdout.contains("\n1 put back"), "{retry:?}");
    assert_eq!(server.post("/dead/retry", json!({})).await.ok(), json!({"retried": 1_202}));
    assert_eq!(server.get("/dead").await.ok(), json!({"total": 0, "dead": []}));
}

/// Any client may ask, with any number of requests at once.
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
