//! Hit rates of jobs, of the reads that services report.
use std::time::Duration;

use crate::support::{Art, Parts, TestRedis, WorkerProcess, both, eventually, http_get, job, samovar, talkative};
use samovar::cache::{Builder, Cache};
use samovar::ops::reads::{Reads, reported, roll};
use samovar::redis::RedisTime;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

fn builder(redis: &TestRedis) -> Builder {
    Cache::builder(redis.redis_url()).prefix("art").bound(Duration::from_secs(10))
}

/// Describes the job `art`, as a worker does.
async fn describe(redis: &TestRedis) {
    redis.ask::<u64>(&["HSET", "samovar:jobs", "art", r#"{"job": "art", "key": "art:{name}"}"#]).await;
}

/// Returns the hits, misses and stale hits that are reported of the job `art`.
async fn sums(redis: &TestRedis) -> [u64; 3] {
    let sums: [Option<u64>; 3] = redis.ask(&["HMGET", "samovar:reported:{art}", "hits", "misses", "stale"]).await;
    sums.map(Option::unwrap_or_default)
}

async fn come(redis: &TestRedis, expected: [u64; 3]) {
    eventually("the reads are reported", async || {
        let sums = sums(redis).await;
        if sums == expected { Ok(()) } else { Err(sums) }
    })
    .await;
}

/// A miss that the loader fills at once is a miss.
#[tokio::test]
async fn the_library_counts_each_read_for_its_job() {
    let redis = TestRedis::start().await;
    describe(&redis).await;
    let cache = builder(&redis).near(1 << 20, MINUTE).build().await.unwrap();
    let other = cache.with_prefix("poem").unwrap();
    for cache in [&cache, &other] {
        cache.set("1", &1).await.unwrap();
        assert_eq!(cache.get::<u8>("1").await.unwrap(), Some(1));
        assert_eq!(cache.get::<u8>("none").await.unwrap(), None);
        assert_eq!(cache.get_many::<u8, _>(["1", "none", "nor this"]).await.unwrap().len(), 1);
        assert_eq!(cache.get_or_load("2", async || Ok::<u8, String>(2)).await, Ok(2));
        assert_eq!(cache.get_or_load("2", async || Ok::<u8, String>(3)).await, Ok(2));
    }
    come(&redis, [3, 4, 0]).await;
    assert_eq!(redis.keys("samovar:reported:*").await, ["samovar:reported:{art}"], "keys of no job");
    assert_eq!(cache.stats().unreported_reads, 0);
    assert_eq!(cache.get::<u8>("1").await.unwrap(), Some(1));
    come(&redis, [4, 4, 0]).await;
    let left = redis.ttl("samovar:reported:{art}").await;
    assert!(left.is_some_and(|left| left > MINUTE * 4_319), "sums of a job that is gone expire: {left:?}");
}

#[tokio::test]
async fn a_service_learns_of_jobs_that_are_described_later() {
    let redis = TestRedis::start().await;
    let cache = builder(&redis).build().await.unwrap();
    assert_eq!(cache.get::<u8>("none").await.unwrap(), None);
    describe(&redis).await;
    eventually("reads are reported", async || {
        assert_eq!(cache.get::<u8>("none").await.unwrap(), None);
        sums(&redis).await[1] > 0
    })
    .await;
}

#[tokio::test]
async fn a_report_that_redis_did_not_answer_counts_at_most_once() {
    let redis = TestRedis::start().await;
    describe(&redis).await;
    let builder = builder(&redis).bound(Duration::from_millis(250)).near(1 << 20, MINUTE);
    let cache = builder.build().await.unwrap();
    cache.set("1", &1).await.unwrap();
    let mut made = 0;
    // From the near cache, so that nothing else asks Redis.
    eventually("it is near", async || {
        assert_eq!(cache.get::<u8>("1").await.unwrap(), Some(1));
        made += 1;
        cache.stats().near_hits > 0
    })
    .await;
    come(&redis, [made, 0, 0]).await;
    redis.freeze();
    assert_eq!(cache.get::<u8>("1").await.unwrap(), Some(1));
    eventually("it is given up", async || cache.stats().unreported_reads == 1).await;
    redis.thaw();
    eventually("later ones are reported", async || {
        assert_eq!(cache.get::<u8>("1").await.unwrap(), Some(1));
        made += 1;
        sums(&redis).await[0] >= made
    })
    .await;
    assert!(sums(&redis).await[0] <= made + 1);
}

#[tokio::test]
async fn reports_go_on_after_an_outage() {
    let redis = TestRedis::start().await;
    describe(&redis).await;
    let cache = builder(&redis).bound(Duration::from_millis(250)).near(1 << 20, MINUTE * 10).build().await.unwrap();
    cache.set("1", &1).await.unwrap();
    let mut made = 0;
    let mut read = async || {
        assert_eq!(cache.get::<u8>("1").await.unwrap(), Some(1));
        made += 1;
        made
    };
    eventually("it is near", async || {
        read().await;
        cache.stats().near_hits > 0
    })
    .await;
    redis.freeze();
    eventually("the breaker is open", async || {
        read().await;
        cache.stats().degraded
    })
    .await;
    redis.thaw();
    let before = sums(&redis).await[0];
    let made = eventually("later ones are reported", async || {
        let made = read().await;
        if sums(&redis).await[0] > before { Ok(made) } else { Err(made) }
    })
    .await;
    assert!(!cache.stats().degraded);
    assert!(sums(&redis).await[0] <= made, "none counts twice");
}

/// Returns a cache whose user may not report.
async fn without_the_right(redis: &TestRedis) -> Cache {
    redis.ask::<()>(&["ACL", "SETUSER", "api", "on", ">pass", "~art:*", "~samovar:jobs", "&*", "+@all"]).await;
    let url = samovar::redis::RedisUrl::parse(&redis.url_of("api", "pass"), None).unwrap();
    Cache::builder(url).prefix("art").bound(Duration::from_secs(10)).build().await.unwrap()
}

#[tokio::test]
async fn what_waits_too_long_is_not_counted_as_read_now() {
    let redis = TestRedis::start().await;
    describe(&redis).await;
    let cache = without_the_right(&redis).await;
    assert_eq!(cache.get::<u8>("1").await.unwrap(), None);
    eventually("it is refused", async || cache.stats().unreported_reads == 1).await;
    redis.ask::<()>(&["ACL", "SETUSER", "api", "~samovar:reported:*"]).await;
    assert_eq!(cache.get::<u8>("1").await.unwrap(), None);
    // The next attempt is a minute after the refusal.
    eventually("it is too late", async || cache.stats().unreported_reads == 2).await;
    assert_eq!(redis.keys("samovar:reported:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn without_the_right_to_report_reads_go_on() {
    let redis = TestRedis::start().await;
    describe(&redis).await;
    let cache = without_the_right(&redis).await;
    redis.set("art:1", "1", MINUTE).await;
    assert_eq!(cache.get::<u8>("1").await.unwrap(), Some(1));
    eventually("it is told", async || cache.stats().unreported_reads == 1).await;
    assert_eq!((cache.get::<u8>("1").await.unwrap(), cache.stats().degraded), (Some(1), false));
}

#[tokio::test]
async fn a_cache_that_reports_nothing_leaves_no_count() {
    let redis = TestRedis::start().await;
    describe(&redis).await;
    let (silent, telling) = (builder(&redis).report(false), builder(&redis));
    let (silent, telling) = (silent.build().await.unwrap(), telling.build().await.unwrap());
    assert_eq!(silent.get::<u8>("1").await.unwrap(), None);
    assert_eq!(telling.get::<u8>("1").await.unwrap(), None);
    come(&redis, [0, 1, 0]).await;
    assert_eq!(telling.get::<u8>("1").await.unwrap(), None);
    come(&redis, [0, 2, 0]).await;
}

/// Returns the jobs; none before the worker is ready.
async fn jobs(worker: &mut WorkerProcess) -> Vec<Value> {
    let answer = http_get(&format!("{}/jobs", worker.http().await)).await;
    if answer.status().is_success() { answer.json().await.unwrap() } else { Vec::new() }
}

/// By the documented command, with a worker that notes when.
#[tokio::test]
async fn reported_reads_are_shown_wherever_jobs_are() {
    let (redis, upstream) = both().await;
    let (reporting, other) = (Art::of(&upstream), Art::of(&upstream));
    let folder = reporting.folder().job("poem", &other.toml().replace("art:{name}", "poem:{name}"));
    let mut worker = talkative(&redis, &folder).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let shown = eventually("the jobs are there", async || {
        let jobs = jobs(&mut worker).await;
        (jobs.len() == 2).then_some(jobs)
    })
    .await;
    assert_eq!((&shown[0]["reads"], &shown[1]["reads"]), (&Value::Null, &Value::Null));
    redis.ask::<u64>(&["HINCRBY", "samovar:reported:{art}", "hits", "7"]).await;
    let http = worker.http().await;
    let noted = eventually("a worker has noted when", async || {
        let jobs = jobs(&mut worker).await;
        jobs.first()?["reads"]["hour"].is_object().then_some(jobs)
    })
    .await;
    assert_eq!(noted[0]["reads"]["all"]["hits"], 0, "nobody knows when the first ones were");
    for (field, count) in [("hits", "30"), ("misses", "10"), ("stale", "2")] {
        redis.ask::<u64>(&["HINCRBY", "samovar:reported:{art}", field, count]).await;
    }
    let shown = jobs(&mut worker).await;
    for span in ["hour", "day", "all"] {
        let reads = &shown[0]["reads"][span];
        let counts = ["hits", "misses", "stale"].map(|field| reads[field].as_u64().unwrap());
        assert_eq!((counts, &reads["hit_rate"]), ([30, 10, 2], &json!(0.75)), "{shown:?}");
    }
    assert!(shown[0]["reads"]["as_of_ms"].as_i64() > shown[0]["reads"]["all"]["since_ms"].as_i64());
    assert_eq!(shown[1]["reads"], Value::Null);
    let stats: Value = http_get(&format!("{http}/redis/stats")).await.json().await.unwrap();
    assert_eq!((&stats["hit_rate"], &stats["jobs"][0]["hit_rate"]), (&json!(0.75), &json!(0.75)));
    assert_eq!(stats["jobs"][1]["hit_rate"], Value::Null);
    let metrics = http_get(&format!("{http}/metrics")).await.text().await.unwrap();
    for line in ["hits_total{job=\"art\"} 30", "misses_total{job=\"art\"} 10", "stale_hits_total{job=\"art\"} 2"] {
        assert!(metrics.contains(&format!("\nsamovar_job_{line}\n")), "{line} in {metrics}");
    }
    assert!(!metrics.contains("samovar_job_hits_total{job=\"poem\"}"), "not reported is not 0");
    let printed = samovar(["jobs"]).redis(&redis).jobs(&folder).run().await.stdout;
    let lines: Vec<String> =
        printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    // Reads of a few seconds are not called those of an hour.
    let is_told = |line: &String| line.starts_with("art 75.0 % (of ") && line.contains(") 40 75.0 % (of ");
    assert!(lines.iter().any(is_told), "{printed}");
    assert!(lines.iter().any(|line| line == "poem not reported"), "{printed}");
}

/// Writes the minute figures by hand, as workers left them.
async fn minute(redis: &TestRedis, at: RedisTime, figure: &str, gap: bool) {
    let at = at.to_string();
    let mut add = vec!["XADD", "samovar:minutes:{art}", at.as_str(), "sums", figure];
    add.extend(gap.then_some(["gap", "1"]).into_iter().flatten());
    redis.ask::<String>(&add).await;
}

#[tokio::test]
async fn the_last_hour_is_what_came_since_an_hour_ago() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let now = parts.now().await;
    let reported = async || reported(&parts.redis, &parts.keys, &job()).await.unwrap().unwrap();
    redis.ask::<u64>(&["HSET", "samovar:reported:{art}", "hits", "100", "misses", "50"]).await;
    assert_eq!((reported().await.hour, reported().await.all), (None, None), "nobody has noted when");
    let (since, noted) = ((now - MINUTE * 3_000).to_string(), now.to_string());
    let noted = ["since", &since, "base", "1 0 0", "rolled", "100 50 0", "rolled_ms", &noted];
    redis.ask::<u64>(&[&["HSET", "samovar:reported:{art}"][..], &noted].concat()).await;
    for (minutes_ago, figure) in [(2_900, "1 1 0"), (90, "40 40 0"), (59, "50 45 0"), (1, "100 50 0")] {
        minute(&redis, now - MINUTE * minutes_ago, figure, false).await;
    }
    let counts = |reads: Option<Reads>| reads.map(|reads| [reads.hits, reads.misses, reads.stale]);
    let found = reported().await;
    let found = [found.hour, found.day, found.all].map(counts);
    assert_eq!(found, [Some([60, 10, 0]), Some([99, 49, 0]), Some([99, 50, 0])]);
    redis.ask::<u64>(&["DEL", "samovar:minutes:{art}"]).await;
    let found = reported().await;
    assert_eq!((found.hour, counts(found.all)), (None, Some([99, 50, 0])), "figures that are lost are not guessed");
    for junk in ["junk", "-1", "9223372036854775807"] {
        redis.ask::<u64>(&["HSET", "samovar:reported:{art}", "stale", junk]).await;
        assert_eq!((reported().await.hour, reported().await.all), (None, None), "{junk} is no count");
    }
}

#[tokio::test]
async fn a_minute_is_noted_once_and_says_where_no_worker_was() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let roll = async || roll(&parts.redis, &parts.keys, &job()).await.unwrap().added;
    assert!(!roll().await, "nothing is reported");
    assert_eq!(redis.keys("*").await, Vec::<String>::new());
    let report = async || redis.ask::<u64>(&["HINCRBY", "samovar:reported:{art}", "hits", "5"]).await;
    report().await;
    assert!(roll().await);
    report().await;
    assert!(!roll().await, "the minute is not over");
    let ago = async |minutes| {
        let at = (parts.now().await - MINUTE * minutes).to_string();
        redis.ask::<u64>(&["HSET", "samovar:reported:{art}", "rolled_ms", &at]).await;
    };
    ago(1).await;
    assert!(roll().await);
    ago(1).await;
    assert!(!roll().await, "nothing was read");
    report().await;
    ago(10).await;
    assert!(roll().await);
    let figures =
        async || redis.ask::<Vec<(String, Vec<String>)>>(&["XRANGE", "samovar:minutes:{art}", "-", "+"]).await;
    let fields: Vec<String> = figures().await.iter().map(|(_, fields)| fields.join(" ")).collect();
    assert_eq!(fields, ["sums 5 0 0", "sums 10 0 0", "sums 15 0 0 gap 1"]);
    for key in ["samovar:reported:{art}", "samovar:minutes:{art}"] {
        let left = redis.ttl(key).await.unwrap();
        assert!(left > MINUTE * 4_000 && left <= MINUTE * 4_320, "{left:?}");
    }
}

/// The worker's hash and stream after one roll: the sums, and the number of figures.
async fn begun_anew(redis: &TestRedis) -> (String, u64) {
    let base = redis.ask(&["HGET", "samovar:reported:{art}", "base"]).await;
    (base, redis.ask(&["XLEN", "samovar:minutes:{art}"]).await)
}

#[tokio::test]
async fn reads_before_a_beginning_count_in_no_span() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let set = async |fields: &[&str]| {
        redis.ask::<u64>(&[&["HSET", "samovar:reported:{art}"][..], fields].concat()).await;
        roll(&parts.redis, &parts.keys, &job()).await.unwrap()
    };
    let hits = async || {
        let found = reported(&parts.redis, &parts.keys, &job()).await.unwrap().unwrap();
        [found.hour, found.day, found.all].map(|reads| reads.map(|reads| reads.hits))
    };
    assert!(set(&["hits", "3000000"]).await.added);
    assert_eq!(hits().await, [Some(0); 3], "no worker was there before");
    redis.ask::<u64>(&["HINCRBY", "samovar:reported:{art}", "hits", "5"]).await;
    assert_eq!(hits().await, [Some(5); 3]);
    assert!(set(&["hits", "2999999"]).await.added);
    assert_eq!((hits().await, begun_anew(&redis).await), ([Some(0); 3], ("2999999 0 0".to_owned(), 1)));
    for junk in ["-5", "1e9", "0x10", " 7", "", "9223372036854775807"] {
        let refused = set(&["hits", junk, "misses", "4"]).await.refused;
        assert_eq!(refused, [("hits".to_owned(), junk.to_owned())]);
        assert_eq!((hits().await, begun_anew(&redis).await), ([Some(0); 3], ("0 4 0".to_owned(), 1)));
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_is_a_beginning() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let roll = async || roll(&parts.redis, &parts.keys, &job()).await.unwrap().added;
    redis.ask::<u64>(&["HSET", "samovar:reported:{art}", "hits", "5"]).await;
    assert!(roll().await);
    redis.ask::<u64>(&["HINCRBY", "samovar:reported:{art}", "hits", "5"]).await;
    let ahead = (parts.now().await + MINUTE * 10).to_string();
    redis.ask::<u64>(&["HSET", "samovar:reported:{art}", "rolled_ms", &ahead]).await;
    let found = reported(&parts.redis, &parts.keys, &job()).await.unwrap().unwrap();
    assert_eq!((found.hour, found.day), (None, None), "no worker has noted it yet");
    assert!(roll().await);
    assert_eq!(begun_anew(&redis).await, ("10 0 0".to_owned(), 1));
    assert!(!roll().await, "the minute is not over");
    // By figures alone: an id of a later time.
    redis.ask::<String>(&["XADD", "samovar:minutes:{art}", "18446744073709551615-1", "sums", "10 0 0"]).await;
    let earlier = (parts.now().await - MINUTE).to_string();
    redis.ask::<u64>(&["HSET", "samovar:reported:{art}", "hits", "12", "rolled_ms", &earlier]).await;
    assert!(roll().await);
    assert_eq!(begun_anew(&redis).await, ("12 0 0".to_owned(), 1));
    let ids: Vec<(String, Vec<String>)> = redis.ask(&["XRANGE", "samovar:minutes:{art}", "-", "+"]).await;
    let noted: String = redis.ask(&["HGET", "samovar:reported:{art}", "rolled_ms"]).await;
    assert_eq!(ids[0].0, format!("{noted}-0"), "an id is the time that was noted");
}
