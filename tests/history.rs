//! Minute figures of jobs and upstreams: what workers leave in Redis, and what the console shows of it.
use std::time::Duration;

use samovar::entry::UpstreamName;
use samovar::ops::history::{History, Span, last_hour, of_job, of_upstream};
use samovar::telemetry::history::{Counted, Counts, HOURS, add};
use serde_json::json;

use crate::support::{Art, Parts, Reply, TestRedis, both, eventually, http_get, job, readable, talkative};

const MINUTE: Duration = Duration::from_secs(60);

/// Returns a count of each step that is known.
fn known(history: &History, counted: Counted) -> Vec<u64> {
    history.steps.iter().filter_map(|step| step.count(counted)).collect()
}

#[tokio::test]
async fn a_worker_that_drains_loses_none_of_its_figures() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, count| Reply::json(json!({"count": count})));
    upstream.on("/art/bad", Reply::status(500));
    let jobs = Art::of(&upstream).list(["a", "b", "bad"]).warm("attempts = 1").folder();
    let mut worker = talkative(&redis, &jobs).spawn();
    let parts = Parts::of(&redis).await;
    readable(&redis, "a").await;
    readable(&redis, "b").await;
    eventually("the third one failed", async || parts.stat("failed").await == 1).await;
    let before = upstream.calls("/art/a");
    parts.publish(&json!({"keys": ["art:a"]}).to_string()).await;
    eventually("it is fetched again", async || upstream.calls("/art/a") > before).await;
    eventually("it is counted", async || parts.stat("warmed").await >= 3).await;
    assert_eq!(redis.keys("samovar:history:*").await.len(), 0, "nothing is written before a minute is over");
    worker.term();
    assert!(worker.wait().await.success());

    let history = of_job(&parts.redis, &parts.keys, &job(), Span::Hours).await.unwrap();
    let total = history.total();
    assert_eq!(total.counts[&Counted::Warmed], parts.stat("warmed").await);
    assert_eq!(total.counts[&Counted::Failed], 1);
    assert_eq!(total.counts[&Counted::Answered], 1);
    assert!(total.percentile(0.99).is_some());
    assert!(history.steps.len() == 360 && (1..=2).contains(&known(&history, Counted::Warmed).len()), "{total:?}");
    let hour = last_hour(&parts.redis, &parts.keys, &[&job()]).await.unwrap();
    assert_eq!(hour.counts, total.counts);
    let name = redis.keys("samovar:requests:*").await.pop().unwrap();
    let name = name.trim_start_matches("samovar:requests:{").trim_end_matches('}');
    let requests = of_upstream(&parts.redis, &parts.keys, &UpstreamName::new(name), Span::Days).await.unwrap();
    let requests = requests.total();
    assert_eq!(requests.counts[&Counted::Requests], upstream.all_requests().len() as u64);
    assert_eq!(requests.counts[&Counted::Failed], 1);
}

#[tokio::test]
async fn figures_of_several_workers_add_up() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let key = parts.keys.history(&job());
    for warmed in [3, 4] {
        let counts = Counts::from([(Counted::Warmed, warmed), (Counted::Took(2), 1)]);
        add(&parts.redis, &key, MINUTE * 30, &counts).await.unwrap();
    }
    add(&parts.redis, &key, MINUTE * 90, &Counts::from([(Counted::Failed, 5)])).await.unwrap();
    let history = of_job(&parts.redis, &parts.keys, &job(), Span::Hours).await.unwrap();
    let expected = [(Counted::Warmed, 7), (Counted::Failed, 5), (Counted::Took(2), 2)];
    assert_eq!(history.total().counts, Counts::from(expected));
    let days = of_job(&parts.redis, &parts.keys, &job(), Span::Days).await.unwrap();
    assert_eq!(days.total().counts, Counts::from(expected));
}

#[tokio::test]
async fn a_minute_without_a_worker_is_unknown_and_not_zero() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let there = Counts::from([(Counted::Workers, 1)]);
    for age in [10, 11] {
        add(&parts.redis, &parts.keys.attended(), MINUTE * age, &there).await.unwrap();
    }
    let history = of_job(&parts.redis, &parts.keys, &job(), Span::Hours).await.unwrap();
    assert_eq!(known(&history, Counted::Warmed), [0, 0]);
    redis.set("samovar:history:{art}", "somebody else's", MINUTE).await;
    let history = of_job(&parts.redis, &parts.keys, &job(), Span::Hours).await.unwrap();
    assert_eq!(known(&history, Counted::Warmed), [0, 0]);
}

/// Each minute of 80 hours has outcomes, tokens, and lags in eight buckets.
#[tokio::test]
async fn three_days_of_a_busy_job_are_all_that_is_kept() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let busy = [Counted::Warmed, Counted::Unchanged, Counted::Failed, Counted::Answered, Counted::Tokens];
    let busy = busy.into_iter().chain((4..12).map(Counted::Took)).map(|counted| (counted, 123));
    let (busy, there) = (busy.collect::<Counts>(), Counts::from([(Counted::Workers, 3)]));
    let (own, all) = (parts.keys.history(&job()), parts.keys.attended());
    for age in (0..80 * 60).rev() {
        add(&parts.redis, &own, MINUTE * age, &busy).await.unwrap();
        add(&parts.redis, &all, MINUTE * age, &there).await.unwrap();
    }
    let history = of_job(&parts.redis, &parts.keys, &job(), Span::Days).await.unwrap();
    let counted = history.total().counts[&Counted::Warmed] / 123;
    assert!((72 * 60 - 12..=72 * 60).contains(&counted), "{counted}");
    for (key, most) in [(&own, 500_000), (&all, 60_000)] {
        let bytes: u64 = redis.ask(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).await;
        assert!(redis.ask::<u32>(&["HLEN", key]).await <= HOURS && bytes < most, "{key}: {bytes} bytes");
        println!("{key}: {bytes} bytes");
        let left = redis.ttl(key).await.unwrap();
        assert!(left > MINUTE * 60 * 72 && left <= MINUTE * 60 * HOURS, "{left:?}");
    }
}

#[tokio::test]
async fn the_console_draws_what_is_known_and_tells_it_in_words() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let parts = Parts::of(&redis).await;
    let counts = Counts::from([(Counted::Warmed, 90), (Counted::Answered, 2), (Counted::Took(4), 2)]);
    add(&parts.redis, &parts.keys.history(&job()), MINUTE * 20, &counts).await.unwrap();
    add(&parts.redis, &parts.keys.attended(), MINUTE * 20, &Counts::from([(Counted::Workers, 1)])).await.unwrap();
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let url = worker.http().await;
    readable(&redis, "a").await;
    let page = async |path: &str| http_get(&format!("{url}{path}")).await.text().await.unwrap();
    let hours = page("/console/jobs/art?span=6h").await;
    assert!(hours.contains("warmed: 90 at last, 90 at least, 90 at most, known in 1 of 360 steps"), "{hours}");
    assert!(hours.contains("p99: 4ms at last"), "{hours}");
    assert!(!hours.contains("Hit rate"), "nobody reports reads: {hours}");
    let overview = page("/").await;
    assert!(overview.contains("99 % within 4ms") && overview.contains("Known of 1 of the last 60"), "{overview}");
    let upstreams = page("/console/upstreams").await;
    assert!(upstreams.contains("failures: 0 at last") && upstreams.contains("p99: nothing is known"), "{upstreams}");
}
