//! Jobs with several schedules: which warmups fetch everything, and that no refetch is lost.
use std::time::Duration;

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, at_rest, both, eventually, eventually_within, hasty_worker,
    readable, samovar, worker,
};
use chrono::DateTime;
use samovar::redis::RedisTime;
use serde_json::json;

const FEED: &str = "feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }";

/// A job that fills at one interval, and fetches everything at one time of the year.
struct Yearly {
    redis: TestRedis,
    upstream: Upstream,
    parts: Parts,
    art: Art,
    /// The time of the refetch.
    refetch: RedisTime,
    fill: &'static str,
}

impl Yearly {
    /// With a refetch in so many seconds.
    async fn refetch_in(seconds: u64, fill: &'static str) -> Self {
        let (redis, upstream) = both().await;
        upstream.otherwise(|_, _| Reply::json(json!({"edition": 1})));
        let parts = Parts::of(&redis).await;
        let now = parts.now().await.as_millis() / 1_000 * 1_000;
        let refetch = RedisTime::from_millis(now) + Duration::from_secs(seconds);
        Self { redis, parts, art: Art::of(&upstream).list(["a"]), upstream, refetch, fill }
    }

    fn folder(&self) -> JobsFolder {
        let at = DateTime::from_timestamp_millis(self.refetch.as_millis()).unwrap();
        let schedules = format!(
            "attempts = 1\nschedules = [{{ every = \"{}\" }}, {{ schedule = \"{}\", refetch = true }}]",
            self.fill,
            at.format("%-S %-M %-H %-d %-m *")
        );
        self.art.clone().warm(&schedules).folder()
    }

    /// Waits until Redis's time is later than this one.
    async fn past(&self, time: RedisTime) {
        eventually_within(Duration::from_secs(60), "the time has come", async || self.parts.now().await > time).await;
    }

    /// Waits until the next tick is later than this one.
    async fn tick_past(&self, time: RedisTime) {
        let mut redis = self.redis.connection().await;
        // In one step: the score of a claimed tick is the end of the claim.
        let mut ask = redis::pipe();
        ask.atomic().hlen("samovar:{schedules}:ticks").zscore("samovar:{schedules}", "art");
        eventually_within(Duration::from_secs(60), "the tick has come", async || {
            let (claimed, tick): (usize, Option<RedisTime>) = ask.query_async(&mut redis).await.unwrap();
            claimed == 0 && tick > Some(time)
        })
        .await;
    }
}

#[tokio::test]
async fn of_two_schedules_one_fills_and_the_other_refetches() {
    let yearly = Yearly::refetch_in(8, "1s").await;
    let Yearly { redis, upstream, .. } = &yearly;
    let jobs = yearly.folder();
    let _worker = worker(redis, &jobs);
    readable(redis, "a").await;
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    upstream.called("/art/a", 2).await;
    yearly.tick_past(yearly.refetch + Duration::from_secs(2)).await;
    at_rest(redis).await;
    assert_eq!(upstream.calls("/art/a"), 3, "the first, the one that was missing, and the refetch");
    let shown = samovar(["jobs"]).redis(redis).jobs(&jobs).run().await;
    let shown = shown.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("every 1s;") && shown.contains("(refetch)"), "{shown}");
}

#[tokio::test]
async fn a_refetch_that_nobody_ran_is_caught_up_by_a_later_tick() {
    let yearly = Yearly::refetch_in(12, "1s").await;
    let Yearly { redis, upstream, .. } = &yearly;
    let jobs = yearly.folder();
    let mut first = worker(redis, &jobs);
    readable(redis, "a").await;
    first.kill9();
    yearly.past(yearly.refetch + Duration::from_secs(1)).await;
    let _second = worker(redis, &jobs);
    upstream.called("/art/a", 2).await;
    yearly.tick_past(yearly.refetch + Duration::from_secs(3)).await;
    at_rest(redis).await;
    assert_eq!(upstream.calls("/art/a"), 2);
}

#[tokio::test]
async fn with_a_list_a_changed_file_fills_and_catches_up() {
    let mut yearly = Yearly::refetch_in(3_600, "366d").await;
    yearly.art = yearly.art.clone().list(["a", "b"]);
    let Yearly { redis, upstream, .. } = &yearly;
    let single = Art::of(upstream).list(["a"]).warm("every = \"366d\"").folder();
    let mut first = worker(redis, &single);
    readable(redis, "a").await;
    at_rest(redis).await;
    first.kill9();
    // A change fills.
    let jobs = yearly.folder();
    let mut second = worker(redis, &jobs);
    readable(redis, "b").await;
    at_rest(redis).await;
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/art/b")), (1, 1));
    second.kill9();
    // The next one comes while a refetch is overdue.
    let now = yearly.parts.now().await;
    let refetch = RedisTime::from_millis(now.as_millis() / 1_000 * 1_000 + 1_000);
    yearly.redis.ask::<u64>(&["ZADD", "samovar:{schedules}", &now.to_string(), "art"]).await;
    yearly.past(refetch).await;
    yearly.refetch = refetch;
    let jobs = yearly.folder();
    let _third = worker(&yearly.redis, &jobs);
    yearly.upstream.called("/art/a", 2).await;
    yearly.upstream.called("/art/b", 2).await;
}

#[tokio::test]
async fn a_refetch_whose_worker_died_stays_one() {
    let mut yearly = Yearly::refetch_in(6, "1s").await;
    yearly.art = yearly.art.clone().entries(FEED);
    let Yearly { redis, upstream, .. } = &yearly;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let jobs = yearly.folder();
    let mut first = hasty_worker(redis, &jobs);
    readable(redis, "a").await;
    let gate = upstream.gate("/popular");
    yearly.past(yearly.refetch).await;
    gate.arrived(1).await;
    first.kill9();
    gate.open();
    yearly.past(yearly.refetch + Duration::from_secs(2)).await;
    let _second = hasty_worker(redis, &jobs);
    upstream.called("/art/a", 2).await;
}

#[tokio::test]
async fn ticks_that_fill_leave_the_entries_of_a_refetch_due() {
    let mut yearly = Yearly::refetch_in(8, "1s").await;
    yearly.art = yearly.art.clone().list(["a", "b"]).limits("concurrency = 1");
    let Yearly { redis, upstream, .. } = &yearly;
    let jobs = yearly.folder();
    let _worker = worker(redis, &jobs);
    readable(redis, "a").await;
    readable(redis, "b").await;
    let gates = [upstream.gate("/art/a"), upstream.gate("/art/b")];
    eventually_within(Duration::from_secs(60), "one is being fetched, and one waits", async || {
        upstream.calls("/art/a") + upstream.calls("/art/b") == 3
    })
    .await;
    yearly.tick_past(yearly.parts.now().await + Duration::from_secs(3)).await;
    for gate in gates {
        gate.open();
    }
    upstream.called("/art/a", 2).await;
    upstream.called("/art/b", 2).await;
    at_rest(redis).await;
    assert_eq!((upstream.calls("/art/a"), upstream.calls("/art/b")), (2, 2));
}

/// The upstream answers nonsense at the time of the refetch, so that the feed and the fetches fail.
#[tokio::test]
async fn a_refetch_is_open_until_its_feed_answers() {
    let mut yearly = Yearly::refetch_in(6, "1s").await;
    yearly.art = yearly.art.clone().list(["listed"]).entries(FEED);
    let Yearly { redis, upstream, .. } = &yearly;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let jobs = yearly.folder();
    let mut worker = worker(redis, &jobs);
    readable(redis, "a").await;
    readable(redis, "listed").await;
    for path in ["/popular", "/art/a", "/art/listed"] {
        upstream.on(path, Reply::text("<html>"));
    }
    yearly.past(yearly.refetch + Duration::from_secs(2)).await;
    eventually("the refetch failed", async || redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await == 2).await;
    // What is missing is filled meanwhile.
    upstream.on("/art/listed", Reply::json(json!({"edition": 2})));
    redis.ask::<u64>(&["DEL", "art:listed"]).await;
    eventually("the missing entry is there", async || {
        redis.json("art:listed").await.is_some_and(|value| value["edition"] == 2)
    })
    .await;
    assert_eq!(redis.json("art:a").await, Some(json!({"edition": 1})));
    upstream.on("/art/a", Reply::json(json!({"edition": 2})));
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    eventually("it is fetched anew", async || redis.json("art:a").await.is_some_and(|value| value["edition"] == 2))
        .await;
    yearly.tick_past(yearly.parts.now().await).await;
    worker.wait_for_log(&["warmup without the job's feed"]).await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_changed_file_fills_while_the_feed_of_a_refetch_fails() {
    let mut yearly = Yearly::refetch_in(5, "366d").await;
    yearly.art = yearly.art.clone().entries(FEED);
    let Yearly { redis, upstream, .. } = &yearly;
    upstream.on_each("/popular", [Reply::json(json!({"names": ["a"]})), Reply::text("<html>")]);
    let jobs = yearly.folder();
    let mut first = worker(redis, &jobs);
    upstream.called("/art/a", 2).await;
    first.wait_for_log(&["warmup without the job's feed", "entries=1"]).await;
    first.kill9();
    yearly.art = yearly.art.clone().list(["a", "new"]);
    let jobs = yearly.folder();
    let _second = worker(&yearly.redis, &jobs);
    readable(&yearly.redis, "new").await;
}
