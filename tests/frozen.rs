//! A command that waits goes on while Redis hangs.

use std::collections::BTreeMap;

use crate::support::{Art, TestRedis, Upstream, WorkerProcess, both, eventually, listening, samovar, worker};

/// Asks for an entry whose fetch is under way, with Redis frozen.
async fn warming_while_frozen(redis: &TestRedis, upstream: &Upstream, args: &[&str]) -> (WorkerProcess, WorkerProcess) {
    // The answer comes after the freeze.
    let jobs = Art::of(upstream).limits("timeout = \"1m\"").folder();
    let worker = worker(redis, &jobs);
    listening(redis, 1).await;
    let clients = async || {
        let list = redis.ask::<String>(&["CLIENT", "LIST"]).await;
        let of = |line: &str, field: &str| line.split(' ').find_map(|word| Some(word.strip_prefix(field)?.to_owned()));
        let client = |line: &str| (of(line, "id=").unwrap(), of(line, "cmd=").unwrap());
        list.lines().map(client).collect::<BTreeMap<String, String>>()
    };
    let before = clients().await;
    let warming = samovar(["warm", "art:a", "--wait"].iter().chain(args)).redis(redis).jobs(&jobs).spawn();
    upstream.called("/art/a", 1).await;
    // Only the command asks for scores outside scripts.
    eventually("the command waits", async || {
        clients().await.into_iter().any(|(id, command)| !before.contains_key(&id) && command == "zmscore")
    })
    .await;
    redis.freeze();
    (worker, warming)
}

#[tokio::test]
async fn warm_waits_through_a_freeze_of_redis() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    let (_worker, mut warming) = warming_while_frozen(&redis, &upstream, &[]).await;
    warming.wait_for_log(&["no answer from", "the wait goes on until it answers, 10m at most"]).await;
    redis.thaw();
    gate.open();
    assert_eq!(warming.wait().await.code(), Some(0), "{:?}", warming.log());
    let told = warming.log().iter().filter(|line| line.contains("the wait goes on")).count();
    assert_eq!(told, 1, "it is told once: {:?}", warming.log());
    assert!(warming.printed().iter().any(|line| line.starts_with("1 warmed")), "{:?}", warming.printed());
}

#[tokio::test]
async fn warm_ends_at_its_timeout_though_redis_hangs() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let _gate = upstream.gate("/art/a");
    let (_worker, mut warming) = warming_while_frozen(&redis, &upstream, &["--timeout", "7s"]).await;
    assert_eq!(warming.wait().await.code(), Some(1), "{:?}", warming.log());
    warming.wait_for_log(&["art:a: not fetched within 7s: Redis: no answer from"]).await;
    redis.thaw();
}
