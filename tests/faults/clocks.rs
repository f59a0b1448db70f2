//! Clocks are wrong: nobody compares them.

use std::time::Duration;

use samovar::entry::EntryKey;
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use serde_json::json;

use super::{both, readable, version, works};
use crate::support::{
    Art, JobsFolder, OffsetClock, Parts, Reply, TestRedis, Upstream, WorkerProcess, eventually, give_to_a_dead_reader,
    talkative,
};

const ASKED: &str = "/v1/chat/completions";

/// A worker whose clock is off by this much; only its wall clock, as it is in life.
fn worker(redis: &TestRedis, jobs: &JobsFolder, off: &str) -> WorkerProcess {
    let found = std::process::Command::new("faketime").arg("--version").output();
    assert!(found.is_ok(), "no faketime on the PATH: apt-get install faketime, or brew install libfaketime");
    let worker = talkative(redis, jobs).env("SAMOVAR_CLAIM", "10s").through(&["faketime", "-f", off]);
    worker.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1").spawn()
}

#[tokio::test]
async fn workers_an_hour_ahead_and_behind_do_no_harm() {
    let (redis, upstream) = both().await;
    upstream.on("/popular", Reply::json(json!({"names": ["fed"]})));
    upstream.edit("/art/fed");
    let jobs = Art::of(&upstream)
        .ttl("10m")
        .limits("rate = \"200/second\"\nconcurrency = 4\ntimeout = \"2s\"")
        .entries("feed = { upstream = \"museum\", path = \"/popular\", select = \"/names\" }")
        .warm("every = \"2s\"")
        .list((0..20).map(|n| n.to_string()))
        .folder();
    upstream.otherwise(|_, _| Reply::json(json!({"version": 1})));
    let mut fleet = [worker(&redis, &jobs, "+1h"), worker(&redis, &jobs, "+0"), worker(&redis, &jobs, "-1h")];
    let begun = std::time::Instant::now();
    eventually("all of them live", async || redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await == 3).await;
    for name in (0..20).map(|n| n.to_string()) {
        readable(&redis, &name).await;
        assert_eq!(upstream.calls(&format!("/art/{name}")), 1, "{name} is fetched once");
    }
    let before = upstream.calls("/popular");
    for n in 0..5 {
        let edited = upstream.edit("/art/fed");
        redis.publish("samovar:invalidate", "art:fed").await;
        version(&redis, "fed", edited).await;
        works(&redis, &upstream, &format!("more {n}")).await;
    }
    upstream.called("/popular", before + 2).await;
    let ticks = begun.elapsed().as_secs() as usize / 2 + 2;
    assert!(upstream.calls("/popular") <= ticks, "{} ticks where {ticks} are due", upstream.calls("/popular"));
    assert_eq!(redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await, 3, "nobody took another for dead");
    // Each alone does all work, also the work that was in flight in the others when they froze.
    for alone in 0..fleet.len() {
        for (n, worker) in fleet.iter().enumerate() {
            if n != alone {
                worker.freeze()
            }
        }
        works(&redis, &upstream, &format!("alone {alone}")).await;
        fleet.iter().for_each(WorkerProcess::thaw);
        eventually("all of them live again", async || {
            redis.ask::<usize>(&["ZCARD", "{samovar:queue}:workers"]).await == 3
        })
        .await;
    }
    let ttl = redis.ttl("art:0").await.unwrap().as_secs();
    assert!((300..=600).contains(&ttl), "{ttl}");
    assert!(fleet.iter_mut().all(WorkerProcess::is_running));
    assert!(upstream.most_in_flight_for_any() <= 1);
}

/// A Redis whose clock the test sets, and a worker on the listed entries `art:a` and `story:a`, both warm.
async fn with_clock(limits: &str, warm: &str) -> (OffsetClock, TestRedis, Upstream, JobsFolder, WorkerProcess, Parts) {
    let clock = OffsetClock::new();
    let redis = TestRedis::options().clock(&clock).start().await;
    let upstream = Upstream::start().await;
    upstream.edit("/art/a");
    upstream.answer(ASKED, |_, count| {
        let message = json!({"role": "assistant", "content": format!("Story {count}")});
        Reply::json(json!({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 2}}))
    });
    let limits = format!("{limits}\n[openai]\nurl = \"{}/v1\"", upstream.url());
    let story = "key = \"story:{name}\"\nttl = \"1h\"\ntags = [\"t\"]\n[source]\nkind = \"ai\"\nupstream = \"openai\"\n\
                 model = \"tiny\"\nprompt = \"Tell\"\n[entries]\nlist = [\"a\"]\n";
    let jobs = Art::of(&upstream).top("tags = [\"t\"]").limits(&limits).list(["a"]).warm(warm).folder();
    let jobs = jobs.job("story", story);
    let worker = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "10s").spawn();
    let parts = Parts::of(&redis).await;
    version(&redis, "a", 1).await;
    eventually("the story is told", async || redis.json("story:a").await.is_some()).await;
    eventually("the clock is known", async || noted(&redis, &parts).await.is_some()).await;
    (clock, redis, upstream, jobs, worker, parts)
}

/// The latest time that a worker saw on Redis's clock.
async fn noted(redis: &TestRedis, parts: &Parts) -> Option<RedisTime> {
    redis.ask(&["HGET", &parts.keys.clock(), "high"]).await
}

async fn set_back(redis: &TestRedis, parts: &Parts) -> Option<u64> {
    redis.ask(&["HGET", &parts.keys.clock(), "set_back"]).await
}

/// When the content of an entry was asked for.
async fn asked(parts: &Parts, key: &str) -> RedisTime {
    parts.store.snapshot(&EntryKey::new(key)).await.unwrap().meta.unwrap().fetched_at
}

#[tokio::test]
async fn messages_of_a_dead_worker_do_not_wait_for_the_clock() {
    let (clock, redis, _upstream, _jobs, _worker, parts) = with_clock("", "").await;
    give_to_a_dead_reader(&redis, "art:a").await;
    clock.set(-60 * 60_000);
    parts.inbox_is_empty().await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_hides_no_invalidation() {
    let (clock, redis, upstream, jobs, _worker, parts) = with_clock("", "").await;
    let (fetched, told) = (asked(&parts, "art:a").await, asked(&parts, "story:a").await);
    clock.set(-4_000);
    let edited = upstream.edit("/art/a");
    // It says that something changed after the clock was set back; as the clock now goes, before it was fetched.
    let both = Message::parse(r#"{"keys": ["art:a", "story:a"]}"#).unwrap();
    eventually("the clock shows the time of the fetches again", async || parts.now().await > fetched.max(told)).await;
    parts.invalidator(&jobs).handle(&both, fetched.min(told) - Duration::from_millis(60)).await.unwrap();
    version(&redis, "a", edited).await;
    eventually("the story is told anew", async || upstream.calls(ASKED) >= 2).await;
    eventually("it is dealt with", async || redis.keys("samovar:{suspect}").await.is_empty()).await;
    assert_eq!(set_back(&redis, &parts).await, Some(1));
}

#[tokio::test]
async fn a_clock_set_back_does_not_pay_again_for_old_generated_values() {
    let (clock, redis, upstream, _jobs, _worker, parts) = with_clock("", "").await;
    clock.set(20 * 60_000);
    let ahead = parts.now().await;
    eventually("it is noticed", async || noted(&redis, &parts).await > Some(ahead)).await;
    clock.set(15 * 60_000);
    eventually("it is dealt with", async || {
        set_back(&redis, &parts).await == Some(1) && redis.keys("samovar:{suspect}").await.is_empty()
    })
    .await;
    eventually("what is made anew is", async || asked(&parts, "art:a").await > ahead - Duration::from_secs(6 * 60))
        .await;
    eventually("all is at rest", async || {
        let now = parts.now().await.to_string();
        redis.ask::<Vec<String>>(&["ZRANGEBYSCORE", "samovar:agenda:{story}", "-inf", &now]).await.is_empty()
    })
    .await;
    assert_eq!(upstream.calls(ASKED), 1);
}

#[tokio::test]
async fn a_pause_lasts_as_asked_though_the_clock_was_set_back() {
    let (clock, redis, upstream, _jobs, _worker, parts) = with_clock("", "").await;
    upstream.on("/art/busy", Reply::status(429).header("Retry-After", "2"));
    parts.invalidate(r#"{"keys": ["art:busy"], "action": "warm"}"#).await;
    let pause = async || {
        let limits = redis.keys("samovar:limit:*").await;
        let asked = limits.iter().map(async |key| redis.ask::<Option<i64>>(&["HGET", key, "blocked"]).await);
        futures_util::future::join_all(asked).await.into_iter().flatten().max()
    };
    eventually("the upstream is left alone", async || pause().await.is_some()).await;
    clock.set(-20 * 60_000);
    let edited = upstream.edit("/art/a");
    parts.invalidate("art:a").await;
    version(&redis, "a", edited).await;
}

#[tokio::test]
async fn after_a_clock_was_set_back_all_works_at_once() {
    let limits = "rate = \"20/second\"\nconcurrency = 2";
    let (clock, redis, upstream, _jobs, mut worker, parts) = with_clock(limits, "every = \"2s\"\nrefetch = true").await;
    works(&redis, &upstream, "before").await;
    // It fails, and waits for its retry.
    upstream.on("/art/failing", Reply::status(500));
    parts.invalidate(r#"{"keys": ["art:failing"], "action": "warm"}"#).await;
    upstream.called("/art/failing", 1).await;
    for minutes in [10, 600] {
        clock.set(-minutes * 60_000);
        eventually("it is noticed", async || set_back(&redis, &parts).await >= Some(u64::from(minutes > 10) + 1)).await;
        works(&redis, &upstream, &format!("after {minutes} minutes")).await;
        let before = upstream.calls("/art/a");
        upstream.called("/art/a", before + 2).await;
        let edited = upstream.edit("/art/a");
        parts.invalidate(r#"{"tags": ["t"]}"#).await;
        version(&redis, "a", edited).await;
        let now = parts.now().await;
        eventually("what was fetched before is not kept for longer than its TTL", async || {
            redis.ttl("art:a").await.is_some_and(|ttl| ttl <= Duration::from_secs(3_600))
        })
        .await;
        assert!(asked(&parts, "art:a").await >= now - Duration::from_secs(60));
    }
    assert!(worker.is_running());
}

/// No worker ran when it was set back.
#[tokio::test]
async fn who_finds_a_clock_earlier_than_it_was_suspects_all() {
    let (clock, redis, upstream, jobs, mut worker, parts) = with_clock("", "").await;
    worker.kill9();
    clock.set(-3_600_000);
    upstream.edit("/art/a");
    let _next = talkative(&redis, &jobs).spawn();
    version(&redis, "a", 2).await;
    eventually("the story is told anew", async || upstream.calls(ASKED) == 2).await;
    assert_eq!(set_back(&redis, &parts).await, Some(1));
}

/// A fetch is under way when it is set back.
#[tokio::test]
async fn a_fetch_from_before_a_clock_was_set_back_is_not_written() {
    let (clock, redis, upstream, _jobs, _worker, parts) = with_clock("timeout = \"60s\"", "").await;
    let gate = upstream.gate("/art/b");
    let old = upstream.edit("/art/b");
    parts.publish(r#"{"keys": ["art:b"], "action": "warm"}"#).await;
    gate.arrived(1).await;
    clock.set(-60_000);
    let begun = parts.now().await;
    eventually("it is dealt with", async || {
        set_back(&redis, &parts).await == Some(1) && redis.keys("samovar:{suspect}").await.is_empty()
    })
    .await;
    let new = upstream.edit("/art/b");
    gate.let_one_out();
    gate.arrived(2).await;
    assert_eq!(redis.get("art:b").await, None, "version {old} is not written");
    gate.open();
    version(&redis, "b", new).await;
    assert!(asked(&parts, "art:b").await >= begun);
}
