//! Feeds: which entries they name, and what becomes of a warmup whose feed fails.
use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, both, eventually, eventually_within,
    hasty_worker, readable, readable_key, samovar, talkative, worker,
};
use samovar::agenda::Due;
use samovar::entry::{Trigger, UpstreamName};
use samovar::job::Jobs;
use samovar::popularity::Popularity;
use samovar::redis::{RedisTime, Troubles};
use samovar::source::{Gate, Sources};
use samovar::trigger::Cron;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const FEED: &str = "feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }";
/// The next warmup after the first one is far away.
const RARELY: &str = "every = \"366d\"";

/// Returns a job whose feed is asked once in a year, and the upstream that answers for all entries.
async fn rarely(feed: &str) -> (TestRedis, Upstream, Art) {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let art = Art::of(&upstream).entries(feed).warm(RARELY);
    (redis, upstream, art)
}

/// Returns a worker that answers over HTTP, and its address.
async fn server(redis: &TestRedis, jobs: &JobsFolder) -> (WorkerProcess, String) {
    let mut worker = talkative(redis, jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let url = worker.http().await;
    (worker, url)
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

async fn answer(url: &str, path: &str) -> reqwest::Response {
    client().get(format!("{url}{path}")).send().await.unwrap()
}

/// Returns what a worker says of its health, also while it is not ready.
async fn health(url: &str) -> Value {
    serde_json::from_str(&answer(url, "/health").await.text().await.unwrap()).unwrap()
}

async fn get(url: &str, path: &str) -> String {
    let answer = answer(url, path).await;
    assert_eq!(answer.status(), 200, "{path}: {answer:?}");
    answer.text().await.unwrap()
}

async fn get_json(url: &str, path: &str) -> Value {
    serde_json::from_str(&get(url, path).await).unwrap()
}

/// Returns what `samovar jobs` prints, in one line.
async fn jobs_table(redis: &TestRedis, jobs: &JobsFolder) -> String {
    let shown = samovar(["jobs"]).redis(redis).jobs(jobs).run().await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    shown.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the number of entries that the worker keeps of its feed.
async fn named_last(redis: &TestRedis) -> usize {
    let buckets: Vec<String> = redis.ask(&["HVALS", "samovar:feed:{art}"]).await;
    buckets.iter().map(|bucket| serde_json::from_str::<Vec<String>>(bucket).unwrap().len()).sum()
}

/// Returns the state of the job's feed.
async fn state(redis: &TestRedis) -> Value {
    let text: Option<String> = redis.ask(&["HGET", "samovar:stats:{art}", "feed"]).await;
    text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn a_failed_feed_is_asked_again_before_the_next_warmup() {
    let (redis, upstream, art) = rarely(FEED).await;
    let good = Reply::json(json!({"names": ["a"]}));
    upstream.on_each("/popular", [Reply::status(500), Reply::text("<html>"), good]);
    let jobs = art.folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    eventually("the warmup is over", async || redis.ask::<usize>(&["HLEN", "samovar:{schedules}:ticks"]).await == 0)
        .await;
    assert_eq!(upstream.calls("/popular"), 3);
    let now = Parts::of(&redis).await.now().await;
    let next: RedisTime = redis.ask(&["ZSCORE", "samovar:{schedules}", "art"]).await;
    assert!(next > now + Duration::from_secs(3_600), "the schedule goes on: {next}");
}

#[tokio::test]
async fn a_failed_feed_is_asked_again_without_a_schedule() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on_each("/popular", [Reply::status(500), Reply::json(json!({"names": ["a"]}))]);
    let jobs = art.warm("").folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    eventually("the warmup is over", async || redis.ask::<usize>(&["ZCARD", "samovar:{schedules}"]).await == 0).await;
}

/// Otherwise a corrected feed that fails once more would wait as long as the old one did.
#[tokio::test]
async fn failures_of_the_feed_in_an_earlier_file_do_not_count() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on_each("/popular", [Reply::status(500), Reply::json(json!({"names": ["a"]}))]);
    let earlier = json!({"failures": 30, "digest": "of another file"}).to_string();
    redis.ask::<usize>(&["HSET", "samovar:stats:{art}", "feed", &earlier]).await;
    let jobs = art.folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
}

/// While a deploy rolls, workers with different files ask the feed in turns.
#[tokio::test]
async fn a_failure_counts_whichever_worker_asked_the_feed() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::status(500));
    let jobs = art.folder();
    let _worker = worker(&redis, &jobs);
    upstream.called("/popular", 1).await;
    let of_another = json!({"failures": 30, "digest": "of another file"}).to_string();
    eventually("the failures add up", async || {
        let failures = state(&redis).await["failures"].as_u64().unwrap_or_default();
        // The worker may have overwritten it with the state from before.
        if failures < 30 {
            redis.ask::<usize>(&["HSET", "samovar:stats:{art}", "feed", &of_another]).await;
        }
        if failures > 30 { Ok(()) } else { Err(failures) }
    })
    .await;
}

#[tokio::test]
async fn a_failed_feed_is_asked_again_after_a_worker_died() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::status(500));
    let jobs = art.folder();
    let mut first = hasty_worker(&redis, &jobs);
    upstream.called("/popular", 2).await;
    first.kill9();
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let _second = hasty_worker(&redis, &jobs);
    readable(&redis, "a").await;
}

#[tokio::test]
async fn a_retry_of_a_feed_puts_no_entry_on_the_agenda_again() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::status(500));
    let jobs = art.list(["a", "b"]).folder();
    let mut worker = worker(&redis, &jobs);
    worker.wait_for_log(&["warmup without the job's feed", "entries=2"]).await;
    readable(&redis, "b").await;
    upstream.called("/popular", 4).await;
    let warmups = worker.log().iter().filter(|line| line.contains("warmup without the job's feed")).count();
    assert_eq!(warmups, 1, "the listed entries are warmed up once");
}

#[tokio::test]
async fn a_failing_feed_shows_on_every_worker() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::text("<html>secret</html>"));
    let jobs = art.folder();
    let (_first, one) = server(&redis, &jobs).await;
    let (_second, other) = server(&redis, &jobs).await;
    for url in [&one, &other] {
        eventually("health is degraded", async || {
            let health = health(url).await;
            let reasons = health["reasons"].to_string();
            let told = health["status"] == "degraded"
                && reasons.contains("asking a job's feed fails (art)")
                && reasons.contains("answered with something unusable")
                && !reasons.contains("secret");
            if told { Ok(()) } else { Err(health) }
        })
        .await;
        assert_eq!(get_json(url, "/health/ready").await["status"], "degraded", "it is ready");
        let feed = get_json(url, "/jobs/art").await["feed"].clone();
        assert!(feed["failures"].as_u64() > Some(0) && feed["failed_ms"].is_i64(), "{feed}");
        assert!(feed["answered_ms"].is_null() && feed["reason"].is_string(), "{feed}");
        assert!(feed["digest"].is_null() && feed["tick_ms"].is_null(), "these are for workers: {feed}");
        let metrics = get(url, "/metrics").await;
        assert!(metrics.contains("samovar_warmup_last_success_timestamp_seconds{job=\"art\"} NaN"), "{metrics}");
        assert!(metrics.contains("samovar_feed_failures_total{job=\"art\"} "), "{metrics}");
    }
    let counted = [get(&one, "/metrics").await, get(&other, "/metrics").await];
    assert!(counted.iter().any(|text| !text.contains("samovar_feed_failures_total{job=\"art\"} 0")), "{counted:?}");
    let table = jobs_table(&redis, &jobs).await;
    assert!(table.contains("Feed of art: failed ") && table.contains("it never answered"), "{table}");
    assert!(table.contains("asked again in") || table.contains("asked again now"), "{table}");

    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    // Workers that have nothing to do look for warmups, and read the state of feeds, every 15 s.
    redis.ask::<u64>(&["ZADD", "samovar:{schedules}", "1", "art"]).await;
    eventually_within(Duration::from_secs(40), "the feed is asked", async || redis.json("art:a").await).await;
    for url in [&one, &other] {
        eventually_within(Duration::from_secs(40), "health is good again", async || {
            let health = health(url).await;
            if health["status"] == "healthy" { Ok(()) } else { Err(health) }
        })
        .await;
        let feed = get_json(url, "/jobs/art").await;
        assert!(feed["feed"]["answered_ms"].is_i64() && feed["warmed_up_ms"].is_i64(), "{feed}");
        assert_eq!((&feed["feed"]["entries"], &feed["feed"]["failures"]), (&json!(1), &json!(0)), "{feed}");
        let metrics = get(url, "/metrics").await;
        assert!(!metrics.contains("samovar_warmup_last_success_timestamp_seconds{job=\"art\"} NaN"), "{metrics}");
    }
    assert!(!jobs_table(&redis, &jobs).await.contains("Feed of art"));
}

#[tokio::test]
async fn numbers_name_entries_and_bad_items_are_skipped() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::json(json!({"names": [7, null, {"name": 8}, [], "x"]})));
    let jobs = art.list(["listed"]).folder();
    let mut worker = worker(&redis, &jobs);
    for name in ["7", "8", "x", "listed"] {
        readable(&redis, name).await;
    }
    let line = worker.wait_for_log(&["items of the job's feed name no entry", "skipped=2"]).await;
    assert!(line.contains("item 2 is null"), "{line}");
    let table = jobs_table(&redis, &jobs).await;
    assert!(
        table.contains("Feed of art: 2 of its items name no entry and are skipped; the first: item 2 is null"),
        "{table}"
    );
    assert_eq!(upstream.calls("/popular"), 1, "it did not fail");
}

#[tokio::test]
async fn a_feed_without_entries_after_many_is_not_believed() {
    let (redis, upstream, art) = rarely(FEED).await;
    let art = art.warm("every = \"1s\"");
    let names: Vec<usize> = (0..10).collect();
    upstream.on("/popular", Reply::json(json!({"names": names})));
    let jobs = art.folder();
    let first = worker(&redis, &jobs);
    readable(&redis, "9").await;
    eventually("all are kept", async || named_last(&redis).await == 10).await;
    upstream.on("/popular", Reply::json(json!({"names": []})));
    eventually("it is told", async || {
        let state = state(&redis).await;
        let reason = state["reason"].as_str().unwrap_or_default();
        if reason.contains("without an entry, and named 10 before") && reason.contains("empty = \"ok\"") {
            Ok(())
        } else {
            Err(state)
        }
    })
    .await;
    assert_eq!(named_last(&redis).await, 10);
    drop(first);
    jobs.write("art.toml", &art.entries(&FEED.replace(" }", ", empty = \"ok\" }")).toml());
    let _second = worker(&redis, &jobs);
    eventually("it may be empty", async || named_last(&redis).await == 0).await;
}

#[tokio::test]
async fn a_feed_of_mostly_useless_items_is_not_believed() {
    let (redis, upstream, art) = rarely(FEED).await;
    let art = art.warm("every = \"1s\"");
    let items = |useful: usize, useless: usize| {
        let items = (0..useful).map(|n| json!(n)).chain((0..useless).map(|n| json!({"sku": n})));
        Reply::json(json!({ "names": items.collect::<Vec<_>>() }))
    };
    upstream.on("/popular", items(16, 20));
    let jobs = art.folder();
    let first = worker(&redis, &jobs);
    eventually("a mixed first answer is used", async || named_last(&redis).await == 16).await;
    upstream.on("/popular", items(8, 20));
    eventually("half as many may be left", async || named_last(&redis).await == 8).await;
    upstream.on("/popular", items(16, 0));
    eventually("all are kept", async || named_last(&redis).await == 16).await;
    upstream.on("/popular", items(1, 15));
    eventually("it is told", async || {
        let table = jobs_table(&redis, &jobs).await;
        let is_told = table.contains("kept warm. 15 of the 16 items in the feed's answer name no entry")
            && table.contains("the first: item 2 has no `name`");
        if is_told { Ok(()) } else { Err(table) }
    })
    .await;
    assert_eq!(named_last(&redis).await, 16);
    upstream.on("/popular", Reply::status(500));
    eventually("a sentence begins with a capital", async || {
        let table = jobs_table(&redis, &jobs).await;
        if table.contains("kept warm. The feed does not work") { Ok(()) } else { Err(table) }
    })
    .await;
    drop(first);
    upstream.on("/popular", items(1, 15));
    jobs.write("art.toml", &art.entries(&FEED.replace(" }", ", empty = \"ok\" }")).toml());
    let _second = worker(&redis, &jobs);
    eventually("it may be so", async || named_last(&redis).await == 1).await;
}

#[tokio::test]
async fn a_feed_of_few_entries_may_become_empty() {
    let (redis, upstream, art) = rarely(FEED).await;
    let art = art.warm("every = \"1s\"");
    upstream.on("/popular", Reply::json(json!({"names": (0..9).collect::<Vec<_>>()})));
    let jobs = art.folder();
    let _worker = worker(&redis, &jobs);
    eventually("all are kept", async || named_last(&redis).await == 9).await;
    upstream.on("/popular", Reply::json(json!({"names": []})));
    eventually("none is kept", async || named_last(&redis).await == 0).await;
    assert_eq!(state(&redis).await["failures"], 0);
}

#[tokio::test]
async fn items_are_mapped_and_crossed_over_all_pages() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    upstream.on("/products", Reply::json(json!({"products": [{"id": 1}, {"id": 2}], "next": "c/2"})));
    upstream.on("/products?after=c%2F2", Reply::json(json!({"products": [{"id": 3}], "next": null})));
    let job = "key = \"text:{lang}:{product}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"shop\"\n\
               path = \"/text/{{ lang }}/{{ product }}\"\n[entries.feed]\nupstream = \"shop\"\npath = \"/products\"\n\
               select = \"/products\"\nitem = { product = \"{{ value.id }}\" }\nwith = { lang = [\"tr\", \"en\"] }\n\
               next = \"/next\"\nnext_param = \"after\"\n";
    let upstreams = format!("[shop]\nurl = \"{}\"\nrate = \"100/second\"\n", upstream.url());
    let jobs = JobsFolder::new().upstreams(&upstreams).job("text", job);
    let _worker = worker(&redis, &jobs);
    for lang in ["tr", "en"] {
        for product in 1..=3 {
            let value = readable_key(&redis, &format!("text:{lang}:{product}")).await;
            assert_eq!(value["path"], format!("/text/{lang}/{product}"));
        }
    }
    let stored: String = redis.ask(&["HGET", "samovar:stats:{text}", "feed"]).await;
    assert_eq!(serde_json::from_str::<Value>(&stored).unwrap()["entries"], 6);
}

#[tokio::test]
async fn a_page_that_fails_fails_the_feed() {
    let (redis, upstream, art) = rarely(&FEED.replace(" }", ", next = \"/next\" }")).await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"], "next": "/rest"})));
    let rest = Reply::json(json!({"names": ["b"]}));
    upstream.on_each("/rest", [Reply::status(500), rest]);
    let jobs = art.folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    readable(&redis, "b").await;
    assert_eq!((upstream.calls("/popular"), upstream.calls("/rest")), (2, 2));
    assert_eq!(named_last(&redis).await, 2, "half of a list is none");
}

/// Returns the time until which the claim on the job's tick holds, or its next tick.
/// A replica refuses what the upstream's limits need, as an old master does during a failover.
#[tokio::test]
async fn a_redis_that_fails_is_no_failure_of_the_feed() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let limits = TestRedis::options().direct().start().await;
    let () = limits.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let jobs = art.limits("concurrency = 1").folder();
    let jobs = Arc::new(Jobs::load(jobs.path(), Duration::from_secs(3_600), &|_| None).unwrap());
    let (parts, elsewhere) = (Parts::of(&redis).await, Parts::of(&limits).await);
    let gate = |(name, upstream): (&UpstreamName, &Arc<_>)| {
        (name.clone(), Arc::new(Gate::new(Arc::clone(upstream), elsewhere.redis.clone(), &parts.keys, 64)))
    };
    let troubles = Troubles::default();
    let cron = Cron {
        redis: parts.redis.clone(),
        keys: parts.keys.clone(),
        agenda: parts.agenda.clone(),
        store: parts.store.clone(),
        sources: Sources::new(&jobs).unwrap(),
        gates: jobs.upstreams.iter().map(gate).collect(),
        popularity: Popularity::new(parts.redis.clone(), parts.keys.clone()),
        claim: Duration::from_secs(60),
        wakeup: Arc::default(),
        troubles: troubles.of("cron"),
        stop: CancellationToken::new(),
        jobs,
    };
    cron.ensure("a run").await.unwrap();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(cron.run());
    eventually("the limits are refused twice", async || {
        let errors: String = limits.ask(&["INFO", "errorstats"]).await;
        let refused =
            errors.split("errorstat_READONLY:count=").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        if refused >= Some(2) { Ok(()) } else { Err(errors) }
    })
    .await;
    assert_eq!((troubles.reasons(), state(&redis).await), (Vec::new(), Value::Null), "nobody asked the feed");
    let () = limits.ask(&["REPLICAOF", "NO", "ONE"]).await;
    eventually("the feed is asked", async || named_last(&redis).await == 1).await;
    assert_eq!((troubles.reasons(), upstream.calls("/popular")), (Vec::new(), 1));
}

async fn claimed_until(redis: &TestRedis) -> RedisTime {
    redis.ask(&["ZSCORE", "samovar:{schedules}", "art"]).await
}

#[tokio::test]
async fn a_claim_holds_while_a_page_is_read() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let gate = upstream.gate("/popular");
    let jobs = art.limits("timeout = \"60s\"").folder();
    let _workers = [hasty_worker(&redis, &jobs), hasty_worker(&redis, &jobs)];
    gate.arrived(1).await;
    let till = claimed_until(&redis).await + Duration::from_secs(2);
    eventually("the claim is renewed", async || claimed_until(&redis).await > till).await;
    assert_eq!(upstream.calls("/popular"), 1, "one worker asks");
    gate.open();
    readable(&redis, "a").await;
}

#[tokio::test]
async fn a_late_failure_does_not_replace_a_success() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on_each("/popular", [Reply::status(500), Reply::json(json!({"names": ["a"]}))]);
    let gate = upstream.gate("/popular");
    let jobs = art.limits("timeout = \"60s\"").folder();
    let mut first = hasty_worker(&redis, &jobs);
    gate.arrived(1).await;
    first.freeze();
    let _second = hasty_worker(&redis, &jobs);
    gate.arrived(2).await;
    gate.open();
    readable(&redis, "a").await;
    eventually("the warmup is over", async || redis.ask::<usize>(&["HLEN", "samovar:{schedules}:ticks"]).await == 0)
        .await;
    let (answered, next) = (state(&redis).await, claimed_until(&redis).await);
    first.thaw();
    first.wait_for_log(&["claim on a warmup has run out", "job=art"]).await;
    assert_eq!((state(&redis).await, claimed_until(&redis).await), (answered, next));
    assert!(!first.log().iter().any(|line| line.contains("asking a job's feed fails")));
}

#[tokio::test]
async fn a_feed_that_hangs_delays_no_warmup_of_another_job() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let gate = upstream.gate("/popular");
    let other = "key = \"other:{name}\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\npath = \"/other\"\n\
                 [entries]\nlist = [\"x\"]\n[warm]\nevery = \"1s\"\nrefetch = true";
    let jobs = art.limits("timeout = \"60s\"").folder().job("other", other);
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    upstream.called("/other", 2).await;
    assert_eq!(upstream.calls("/popular"), 1);
    gate.open();
    readable(&redis, "a").await;
}

#[tokio::test]
async fn a_worker_that_stops_waits_for_no_feed() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let gate = upstream.gate("/popular");
    let jobs = art.limits("timeout = \"60s\"\nconcurrency = 1").folder();
    let mut first = worker(&redis, &jobs);
    gate.arrived(1).await;
    first.term();
    assert_eq!(first.wait().await.code(), Some(0));
    let log = first.log();
    assert!(!log.iter().any(|line| line.contains("Redis does not answer")), "it gave all back: {log:?}");
    let now = Parts::of(&redis).await.now().await;
    assert!(claimed_until(&redis).await <= now, "another worker can take the warmup over at once");
    gate.open();
    let _second = worker(&redis, &jobs);
    readable(&redis, "a").await;
}

#[tokio::test]
async fn a_request_over_http_leaves_the_state_of_a_feed() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::json(json!({"names": ["a", "b"]})));
    let jobs = art.folder();
    let (_worker, url) = server(&redis, &jobs).await;
    readable(&redis, "b").await;
    eventually("the warmup is over", async || redis.ask::<usize>(&["HLEN", "samovar:{schedules}:ticks"]).await == 0)
        .await;
    let before = state(&redis).await;
    upstream.on("/popular", Reply::status(500));
    let body = json!({"jobs": ["art"]});
    let asked = client().post(format!("{url}/warm")).json(&body).send().await.unwrap();
    assert_eq!(asked.status(), 202);
    assert_eq!(asked.json::<Value>().await.unwrap()["due"], 2, "the entries of its last answer");
    assert_eq!((upstream.calls("/popular"), state(&redis).await), (2, before));
    assert_eq!(health(&url).await["status"], "healthy");
}

#[tokio::test]
async fn a_feed_that_is_removed_leaves_no_failures() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::status(500));
    let jobs = art.folder();
    let first = worker(&redis, &jobs);
    eventually("it failed", async || state(&redis).await["failures"].as_u64() > Some(0)).await;
    drop(first);
    jobs.write("art.toml", &art.entries("").toml());
    let _second = worker(&redis, &jobs);
    eventually("its state is gone", async || state(&redis).await.is_null()).await;
}

#[tokio::test]
async fn samovar_warm_asks_no_feed_of_a_paused_upstream() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::status(429).header("Retry-After", "600"));
    let jobs = art.list(["a"]).folder();
    let _worker = worker(&redis, &jobs);
    let failures = async || state(&redis).await["failures"].as_u64();
    eventually("it failed", async || failures().await == Some(1)).await;
    eventually("the warmup waits", async || {
        redis.ask::<Option<String>>(&["HGET", "samovar:{schedules}:ticks", "art/state"]).await.as_deref()
            == Some("waits")
    })
    .await;
    let warmed = samovar(["warm", "art"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    eventually("a worker tried", async || failures().await == Some(2)).await;
    let reason = state(&redis).await["reason"].to_string();
    assert!(reason.contains("museum admits nothing: retry-after"), "{reason}");
    assert_eq!(upstream.calls("/popular"), 1);
}

#[tokio::test]
async fn check_fetch_asks_a_feed_up_to_its_first_entry() {
    let (redis, upstream, art) = rarely(&FEED.replace(" }", ", next = \"/next\" }")).await;
    upstream.on("/popular", Reply::json(json!({"names": [], "next": "/more"})));
    upstream.on("/more", Reply::json(json!({"names": ["a"], "next": "/rest"})));
    let jobs = art.list(["listed"]).folder();
    let checked = samovar(["check", "--fetch"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert_eq!((upstream.calls("/popular"), upstream.calls("/more"), upstream.calls("/rest")), (1, 1, 0));
    assert_eq!((upstream.calls("/art/listed"), upstream.calls("/art/a")), (1, 0));
    upstream.on("/popular", Reply::status(500));
    let checked = samovar(["check", "--fetch"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains("its feed does not work"), "{checked:?}");
}

/// An eviction forgets the entry, and nobody lists it; but its job keeps it warm.
#[tokio::test]
async fn a_refresh_fetches_an_absent_entry_of_the_feed() {
    let (redis, upstream, art) = rarely(FEED).await;
    upstream.on("/popular", Reply::json(json!({"names": ["a"]})));
    let jobs = art.folder();
    let _worker = worker(&redis, &jobs);
    readable(&redis, "a").await;
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(redis.get("art:a").await, None);
    let run = async |args: &[&str]| samovar(args).redis(&redis).jobs(&jobs).run().await;
    let shown = run(&["get", "art:a"]).await.stdout;
    assert!(shown.contains("absent: nothing fetches it before") && !shown.contains("not fetched again yet"), "{shown}");
    let sent = run(&["invalidate", "art:a"]).await;
    assert_eq!(sent.code, Some(0), "{sent:?}");
    assert!(sent.stderr.contains("art:a has no value: the refresh fetches it."), "{sent:?}");
    readable(&redis, "a").await;
    // Nobody wants this one.
    parts.invalidate("art:x").await;
    let shown = run(&["get", "art:x"]).await.stdout;
    assert!(shown.contains("absent: nothing fetches it") && shown.contains("while it is absent, nothing"), "{shown}");
    assert_eq!(upstream.calls("/art/x"), 0);
}

#[tokio::test]
async fn check_diff_counts_what_the_last_answer_names_anew() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    upstream.on("/ids", Reply::json(json!([{"id": 1}, {"id": 2}])));
    let page = |key: &str, langs: &[&str]| {
        format!(
            "key = \"{key}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
             path = \"/{{{{ lang }}}}/{{{{ id }}}}\"\n[entries.feed]\nupstream = \"museum\"\npath = \"/ids\"\n\
             item = {{ id = \"{{{{ value.id }}}}\" }}\nwith = {{ lang = {} }}\n",
            json!(langs)
        )
    };
    let jobs = Art::of(&upstream).folder().job("page", &page("page:{lang}:{id}", &["de"]));
    let _worker = worker(&redis, &jobs);
    for key in ["page:de:1", "page:de:2"] {
        readable_key(&redis, key).await;
    }
    let diff = async || {
        let done = samovar(["check", "--diff", "--json"]).redis(&redis).jobs(&jobs).run().await;
        assert_eq!(done.code, Some(0), "{done:?}");
        let document: Value = serde_json::from_str(&done.stdout).unwrap();
        document["jobs"].as_array().unwrap().iter().find(|job| job["job"] == "page").cloned().unwrap()
    };
    let same = diff().await;
    assert_eq!((&same["state"], &same["notes"]), (&json!("unchanged"), &json!([])), "{same}");
    jobs.write("page.toml", &page("page:{lang}:{id}", &["de", "tr"]));
    let more = diff().await;
    assert_eq!((&more["missing"], &more["fetches"]), (&json!(2), &json!(2)), "{more}");
    assert!(more["notes"].to_string().contains("its feed is not asked"), "{more}");
    jobs.write("page.toml", &page("seite:{id}:{lang}", &["de"]));
    let other = diff().await;
    assert_eq!((&other["missing"], &other["fetches"]), (&json!(2), &json!(2)), "{other}");
    let notes = other["notes"].to_string();
    assert!(notes.contains("2 values at the earlier keys `page:{lang}:{id}`"), "{notes}");
}

/// So many that most still wait when the job names others.
const MANY: usize = 600;

/// A job whose upstream answers one request at a time, with its feed at another; `entries` tells what it names.
fn slow_job(upstream: &Upstream, entries: &str) -> JobsFolder {
    upstream.otherwise(|_, _| Reply::json(json!({})).after(Duration::from_millis(20)));
    let upstreams = format!("[museum]\nurl = \"{0}\"\nconcurrency = 1\n[lists]\nurl = \"{0}\"\n", upstream.url());
    JobsFolder::new().upstreams(&upstreams).job("art", &slow_file(entries))
}

fn slow_file(entries: &str) -> String {
    format!(
        "key = \"art:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
         path = \"/art/{{{{ name }}}}\"\n[entries]\n{entries}\n[warm]\n{RARELY}\n"
    )
}

/// Waits until nothing is due for a warmup any more, and checks that only some entries were fetched, among them the
/// one that is still named.
async fn few_are_fetched(redis: &TestRedis, upstream: &Upstream, left: &str) {
    eventually("nothing is to be fetched", async || {
        let all: Vec<(String, f64)> = redis.ask(&["ZRANGE", "samovar:agenda:{art}", "0", "-1", "WITHSCORES"]).await;
        let due = all.iter().filter(|(_, score)| Due::from_score(*score).trigger == Trigger::Cron).count();
        if due == 0 { Ok(()) } else { Err(due) }
    })
    .await;
    assert_eq!(upstream.calls(left), 1);
    let fetched = upstream.all_requests().iter().filter(|call| call.path().starts_with("/art/")).count();
    assert!(fetched < MANY / 2, "{fetched} of {MANY}");
}

#[tokio::test]
async fn what_a_feed_no_longer_names_is_not_fetched() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": (0..MANY).collect::<Vec<_>>()})));
    let jobs = slow_job(&upstream, &FEED.replace("museum", "lists"));
    let _worker = worker(&redis, &jobs);
    eventually("some are fetched", async || upstream.all_requests().len() > 5).await;
    upstream.on("/popular", Reply::json(json!({"names": [599]})));
    redis.ask::<u8>(&["ZADD", "samovar:{schedules}", "1", "art"]).await;
    redis.publish("samovar:signal", "warmup art").await;
    few_are_fetched(&redis, &upstream, "/art/599").await;
    let parts = Parts::of(&redis).await;
    assert!(parts.stat("unread").await > 0);
}

#[tokio::test]
async fn what_a_list_no_longer_names_is_not_fetched() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..MANY).map(|n| format!("\"{n}\"")).collect();
    let jobs = slow_job(&upstream, &format!("list = [{}]", names.join(", ")));
    let worker = worker(&redis, &jobs);
    eventually("some are fetched", async || upstream.all_requests().len() > 5).await;
    jobs.write("art.toml", &slow_file("list = [\"599\"]"));
    worker.hangup();
    few_are_fetched(&redis, &upstream, "/art/599").await;
}

#[tokio::test]
async fn what_was_asked_for_is_fetched_though_nothing_names_it() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": (0..MANY).collect::<Vec<_>>()})));
    let gate = upstream.gate("/art/0");
    let jobs = slow_job(&upstream, &FEED.replace("museum", "lists"));
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    upstream.on("/popular", Reply::json(json!({"names": [599]})));
    redis.ask::<u8>(&["ZADD", "samovar:{schedules}", "1", "art"]).await;
    redis.publish("samovar:signal", "warmup art").await;
    eventually("the feed is asked again", async || state(&redis).await["entries"] == 1).await;
    let message = "{\"action\": \"warm\", \"keys\": [\"art:300\"]}";
    redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", message]).await;
    eventually("the message is handled", async || redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await == 0).await;
    gate.open();
    readable(&redis, "300").await;
    few_are_fetched(&redis, &upstream, "/art/300").await;
}
