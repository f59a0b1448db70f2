//! A command that waits goes on while Redis hangs.
use crate::support::{Art, TestRedis, Upstream, WorkerProcess, both, eventually, samovar, worker};

/// Asks for an entry whose fetch is under way, with Redis frozen.
async fn warming_while_frozen(redis: &TestRedis, upstream: &Upstream, args: &[&str]) -> (WorkerProcess, WorkerProcess) {
    let jobs = Art::of(upstream).folder();
    let worker = worker(redis, &jobs);
    let warming = samovar(["warm", "art:a", "--wait"].iter().chain(args)).redis(redis).jobs(&jobs).spawn();
    upstream.called("/art/a", 1).await;
    let looks = async || {
        let stats = redis.ask::<String>(&["INFO", "commandstats"]).await;
        let looks = stats.lines().find_map(|line| line.strip_prefix("cmdstat_zmscore:calls=")?.split(',').next());
        looks.map_or(0, |looks| looks.parse::<u64>().unwrap())
    };
    let before = looks().await;
    eventually("the command looks again and again", async || looks().await > before + 3).await;
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
