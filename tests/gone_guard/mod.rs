//! The guard against a bad deploy of an upstream: removals that it holds back, and what ends that.
mod decisions;
mod earlier_key;
mod marks;

use std::time::Duration;

use crate::support::{
    Art, JobsFolder, OffsetClock, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, at_rest, both, eventually,
    eventually_within, job, samovar, talkative, worker,
};
use samovar::agenda::{State, When};
use samovar::entry::{EntryKey, Trigger};
use samovar::redis::RedisTime;
use samovar::store::{Gap, Snapshot};
use serde_json::{Value, json};

const GUARD: &str = "samovar:gone:{art}";
const HOUR: Duration = Duration::from_secs(3_600);
/// More than the values of a job of 30 entries that may be removed within a minute.
const MANY: usize = 30;

/// The upstream has every entry, in this version.
fn has_all(upstream: &Upstream, version: u64) {
    upstream.otherwise(move |_, _| Reply::json(json!({ "version": version })));
}

/// The upstream answers of every entry that it is gone.
fn has_none(upstream: &Upstream) {
    upstream.otherwise(|_, _| Reply::status(404));
}

/// Returns the readable values of the job.
async fn served(redis: &TestRedis) -> usize {
    redis.keys("art:*").await.len()
}

async fn held(redis: &TestRedis) -> usize {
    redis.ask::<Option<usize>>(&["HGET", GUARD, "held"]).await.unwrap_or_default()
}

/// Waits until so many values are readable, and no others.
async fn all_served(redis: &TestRedis, entries: usize) {
    eventually(&format!("{entries} are readable"), async || {
        let served = served(redis).await;
        if served == entries { Ok(()) } else { Err(served) }
    })
    .await;
}

/// Waits until the guard has held back so many removals.
async fn all_held(redis: &TestRedis, entries: usize) {
    eventually(&format!("{entries} removals are held back"), async || {
        let held = held(redis).await;
        if held == entries { Ok(()) } else { Err(held) }
    })
    .await;
}

/// Waits until of all entries of the job so many have a value, of each of which the removal is noted as held back.
async fn all_noted(parts: &Parts, all: usize, entries: usize) {
    let keys: Vec<EntryKey> = (0..all).map(|name| art(&name.to_string())).collect();
    eventually("each is removed, or its removal held back", async || {
        let snapshots = parts.store.snapshots(&keys).await.unwrap();
        let ours: Vec<_> = snapshots.iter().filter_map(Snapshot::ours).collect();
        let held = ours.iter().filter(|meta| meta.last_attempt.held_until > RedisTime::ZERO).count();
        if (ours.len(), held) == (entries, entries) { Ok(()) } else { Err((ours.len(), held)) }
    })
    .await;
}

/// A job of so many listed entries, with these lines of `[warm]`.
fn many(upstream: &Upstream, entries: usize, warm: &str) -> Art {
    Art::of(upstream).list(0..entries).warm(warm)
}

/// A worker whose job has [`MANY`] entries; of 9 the values are removed, and the guard holds the others back.
async fn tripped() -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    tripped_with("").await
}

/// As [`tripped`], with these lines of `[warm]`.
async fn tripped_with(warm: &str) -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let jobs = many(&upstream, MANY, warm).folder();
    let worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    all_served(&redis, MANY).await;
    at_rest(&redis).await;
    has_none(&upstream);
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    all_noted(&parts, MANY, MANY - 9).await;
    assert_eq!(held(&redis).await, MANY - 9);
    (redis, upstream, jobs, worker)
}

async fn run(redis: &TestRedis, jobs: &JobsFolder, args: &[&str]) -> crate::support::Finished {
    samovar(args).redis(redis).jobs(jobs).run().await
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

async fn health(worker: &mut WorkerProcess) -> Value {
    let url = format!("{}/health", worker.http().await);
    client().get(url).send().await.unwrap().json().await.unwrap()
}

/// The warnings of guards that tripped.
fn warnings(worker: &WorkerProcess) -> usize {
    let of_guards = |line: &String| line.contains("WARN") && line.contains("removals are held back");
    worker.log().iter().filter(|line| of_guards(line)).count()
}

/// A Redis whose clock the test sets, and an upstream that has every entry.
async fn with_clock() -> (OffsetClock, TestRedis, Upstream) {
    let clock = OffsetClock::new();
    let redis = TestRedis::options().clock(&clock).start().await;
    let upstream = Upstream::start().await;
    has_all(&upstream, 1);
    (clock, redis, upstream)
}

/// Has all values fetched anew, and waits until the removals of so many are held back.
async fn all_gone_but(redis: &TestRedis, parts: &Parts, upstream: &Upstream, entries: usize) {
    at_rest(redis).await;
    has_none(upstream);
    let keys: Vec<EntryKey> = redis.keys("art:*").await.into_iter().map(EntryKey::new).collect();
    parts.agenda.put(&job(), &keys, When::NOW, Trigger::Manual).await.unwrap();
    all_noted(parts, keys.len(), entries).await;
}

#[tokio::test]
async fn a_tenth_is_removed_and_the_rest_is_served_beyond_its_ttl() {
    let (clock, redis, upstream) = with_clock().await;
    let jobs = many(&upstream, 200, "").ttl("20m").folder();
    let fleet = [worker(&redis, &jobs), worker(&redis, &jobs)];
    all_served(&redis, 200).await;
    let parts = Parts::of(&redis).await;
    all_gone_but(&redis, &parts, &upstream, 180).await;
    assert_eq!(held(&redis).await, 180, "two workers count together");
    let asked = upstream.all_requests().len();
    clock.set(25 * 60_000);
    let all_again = async || upstream.all_requests().len() >= asked + 180;
    eventually_within(Duration::from_secs(90), "they are asked again, spread over time", all_again).await;
    assert_eq!(served(&redis).await, 180);
    assert_eq!(redis.keys("samovar:dead:*").await, Vec::<String>::new());
    assert_eq!(redis.ask::<Option<String>>(&["HGET", "samovar:limit:{museum}", "open"]).await, None, "no breaker");
    assert_eq!(fleet.iter().map(warnings).sum::<usize>(), 1, "a warning for all of it");
    assert_eq!((parts.stat("gone").await, parts.stat("failed").await), (20, 0));
}

/// A bad deploy must not empty a job of a few entries either. Without refreshes, the agenda does not tell how many
/// entries a job has: of a thousand, three may be due.
#[tokio::test]
async fn of_a_small_job_more_than_half_are_held_back() {
    for (entries, warm, go) in [(3, "", 2), (5, "", 2), (9, "", 4), (9, "ahead = \"0s\"", 9)] {
        let (redis, upstream) = both().await;
        has_all(&upstream, 1);
        let jobs = many(&upstream, entries, warm).folder();
        let worker = worker(&redis, &jobs);
        all_served(&redis, entries).await;
        at_rest(&redis).await;
        has_none(&upstream);
        let parts = Parts::of(&redis).await;
        parts.invalidate("{\"jobs\": [\"art\"]}").await;
        all_noted(&parts, entries, entries - go).await;
        eventually("the first are removed", async || parts.stat("gone").await == go as u64).await;
        assert_eq!((served(&redis).await, warnings(&worker)), (entries - go, usize::from(go < entries)));
    }
}

#[tokio::test]
async fn a_few_deleted_entries_are_removed() {
    // All of two, two of three, and half of six.
    for (entries, gone) in [(2, 2), (3, 2), (6, 3)] {
        let (redis, upstream) = both().await;
        has_all(&upstream, 1);
        let jobs = many(&upstream, entries, "").folder();
        let worker = worker(&redis, &jobs);
        all_served(&redis, entries).await;
        at_rest(&redis).await;
        let parts = Parts::of(&redis).await;
        for name in 0..gone {
            upstream.on(&format!("/art/{name}"), Reply::status(404));
            parts.invalidate(&format!("art:{name}")).await;
        }
        all_served(&redis, entries - gone).await;
        assert_eq!(warnings(&worker), 0);
    }
}

#[tokio::test]
async fn a_guard_that_is_off_holds_nothing_back() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let jobs = many(&upstream, MANY, "gone_guard = \"off\"").folder();
    let _worker = worker(&redis, &jobs);
    all_served(&redis, MANY).await;
    has_none(&upstream);
    Parts::of(&redis).await.invalidate("{\"jobs\": [\"art\"]}").await;
    eventually("all are gone", async || served(&redis).await == 0).await;
    assert_eq!(redis.keys("samovar:gone:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn entries_that_are_absent_do_not_count() {
    let (redis, upstream) = both().await;
    has_none(&upstream);
    let jobs = many(&upstream, MANY, "").folder();
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    eventually("all were asked for", async || parts.stat("gone").await == MANY as u64).await;
    assert_eq!(redis.keys("samovar:gone:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn all_is_fresh_once_the_upstream_has_it_again() {
    let (redis, upstream, jobs, _worker) = tripped().await;
    let kept = redis.keys("art:*").await;
    has_all(&upstream, 2);
    for key in &kept {
        eventually(&format!("{key} is fresh"), async || redis.json(key).await.filter(|value| value["version"] == 2))
            .await;
    }
    all_held(&redis, 0).await;
    // The guard ends a minute after the last such answer, which a wavering upstream may take back.
    let until: RedisTime = redis.ask(&["HGET", GUARD, "until"]).await;
    let last: RedisTime = redis.ask(&["HGET", GUARD, "last"]).await;
    assert_eq!(until.saturating_since(last), Duration::from_secs(60));
    redis.ask::<usize>(&["HSET", GUARD, "until", "1"]).await;
    let state = run(&redis, &jobs, &["gone", "art"]).await;
    assert!(state.stdout.contains("none are held back"), "{state:?}");
    // Each entry is as any other from now on.
    let parts = Parts::of(&redis).await;
    assert!(
        parts.meta(kept[0].strip_prefix("art:").unwrap()).await.unwrap().last_attempt.held_until == RedisTime::ZERO
    );
}

/// Invalidated values live no longer than their TTL, also where their removal is held back.
#[tokio::test]
async fn a_guard_ends_with_the_last_value_that_it_held() {
    let (redis, _upstream, _jobs, _worker) = tripped().await;
    let keys: Vec<EntryKey> = redis.keys("art:*").await.into_iter().map(EntryKey::new).collect();
    for key in &keys {
        redis.ask::<usize>(&["PEXPIRE", key.as_str(), "1"]).await;
    }
    all_served(&redis, 0).await;
    let parts = Parts::of(&redis).await;
    parts.agenda.put(&job(), &keys, When::NOW, Trigger::Manual).await.unwrap();
    all_held(&redis, 0).await;
    let until: RedisTime = redis.ask(&["HGET", GUARD, "until"]).await;
    assert!(until <= parts.now().await + Duration::from_secs(60), "{until}");
}

#[tokio::test]
async fn after_an_hour_what_is_still_gone_is_removed() {
    let (clock, redis, upstream) = with_clock().await;
    let jobs = many(&upstream, MANY, "every = \"2s\"\nrefetch = true").ttl("3h").folder();
    let worker = talkative(&redis, &jobs).spawn();
    all_served(&redis, MANY).await;
    has_none(&upstream);
    let parts = Parts::of(&redis).await;
    // A leap of the clock ends the leases of those whose removal is not yet noted.
    all_noted(&parts, MANY, MANY - 9).await;
    // Each warmup asks for them again.
    eventually("the others are removed", async || parts.stat("gone").await >= 9).await;
    let kept = redis.keys("art:*").await.remove(0).replace(':', "/");
    clock.set(3_500_000);
    let asked = upstream.calls(&format!("/{kept}"));
    upstream.called(&format!("/{kept}"), asked + 2).await;
    assert_eq!(served(&redis).await, MANY - 9, "the hour is not over");
    clock.set(3_660_000);
    eventually("all are gone", async || served(&redis).await == 0).await;
    eventually("their upstream was asked", async || parts.stat("gone").await >= MANY as u64).await;
    assert_eq!(warnings(&worker), 1, "the guard does not hold them back once more");
}

/// Of one input many entries are made: it goes alone, and trips no guard.
#[tokio::test]
async fn values_made_from_an_input_that_is_gone_are_held_back() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let names: Vec<String> = (0..MANY).map(|name| format!("\"{name}\"")).collect();
    let page = format!(
        "key = \"page:{{name}}\"\nttl = \"1h\"\n[entries]\nlist = [{}]\n[inputs]\nmenu = \"art:menu\"\n[source]\n\
         kind = \"compose\"\nvalue = {{ version = \"{{{{ menu.version }}}}\" }}\n",
        names.join(", ")
    );
    let jobs = Art::of(&upstream).warm("recheck = []").folder().job("page", &page);
    let worker = talkative(&redis, &jobs).spawn();
    let pages = async || redis.keys("page:*").await.len();
    eventually("all pages are there", async || pages().await == MANY).await;
    at_rest(&redis).await;
    has_none(&upstream);
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:menu").await;
    eventually("the others are held back", async || {
        let held: Option<usize> = redis.ask(&["HGET", "samovar:gone:{page}", "held"]).await;
        if held == Some(MANY - 9) { Ok(()) } else { Err(held) }
    })
    .await;
    eventually("nine are removed", async || pages().await == MANY - 9).await;
    assert_eq!(warnings(&worker), 1);
    let kept = redis.keys("page:*").await.remove(0);
    let shown = run(&redis, &jobs, &["get", &kept]).await.stdout;
    assert!(shown.contains("its input art:menu is gone; within a minute 10 of about 30 entries were gone"), "{shown}");
    has_all(&upstream, 2);
    parts.invalidate("art:menu").await;
    for name in 0..MANY {
        let key = format!("page:{name}");
        eventually(&format!("{key} is made anew"), async || {
            redis.json(&key).await.filter(|value| value["version"] == 2)
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_held_back_is_not_given_up() {
    let (redis, upstream, _jobs, _worker) = tripped_with("attempts = 1").await;
    upstream.otherwise(|_, _| Reply::status(400));
    let parts = Parts::of(&redis).await;
    eventually("each fails", async || parts.stat("failed").await >= 2 * MANY as u64).await;
    assert_eq!(redis.keys("samovar:dead:*").await, Vec::<String>::new());
    has_all(&upstream, 2);
    all_held(&redis, 0).await;
}

#[tokio::test]
async fn what_is_held_back_comes_behind_other_work() {
    let (redis, _upstream, _jobs, _worker) = tripped().await;
    let parts = Parts::of(&redis).await;
    let keys: Vec<EntryKey> = redis.keys("art:*").await.into_iter().map(EntryKey::new).collect();
    eventually("none is urgent", async || {
        let dues = parts.agenda.dues(&job(), &keys).await.unwrap();
        dues.iter().flatten().all(|due| due.state == State::Scheduled)
    })
    .await;
}

/// Values without our metadata, as services that use the library load them.
#[tokio::test]
async fn values_of_other_writers_are_held_back() {
    let (redis, upstream) = both().await;
    has_none(&upstream);
    let jobs = Art::of(&upstream).folder();
    let _worker = worker(&redis, &jobs);
    for name in 0..MANY {
        redis.set(&format!("art:{name}"), "1", HOUR).await;
    }
    let keys: Vec<EntryKey> = (0..MANY).map(|name| art(&name.to_string())).collect();
    let parts = Parts::of(&redis).await;
    parts.agenda.put(&job(), &keys, When::NOW, Trigger::Manual).await.unwrap();
    all_held(&redis, MANY - 9).await;
    all_served(&redis, MANY - 9).await;
    let accepted = run(&redis, &jobs, &["gone", "art", "--accept"]).await;
    assert!(accepted.stdout.contains("entries are asked for again"), "{accepted:?}");
    eventually("all are gone", async || served(&redis).await == 0).await;
}

/// After a gap an invalidation may have been missed. That is no reason to let values end that the guard keeps.
#[tokio::test]
async fn a_gap_ends_no_value_that_is_held_back() {
    let (clock, redis, upstream) = with_clock().await;
    let jobs = many(&upstream, MANY, "").ttl("20m").folder();
    let _worker = worker(&redis, &jobs);
    all_served(&redis, MANY).await;
    at_rest(&redis).await;
    has_none(&upstream);
    let parts = Parts::of(&redis).await;
    let revalidated = async || {
        parts.next_instant().await;
        parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
        eventually("the gap is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    };
    // First a gap, and then the answers.
    revalidated().await;
    all_noted(&parts, MANY, MANY - 9).await;
    clock.set(25 * 60_000);
    assert_eq!(served(&redis).await, MANY - 9, "beyond their TTL");
    // A gap while they are held back.
    revalidated().await;
    at_rest(&redis).await;
    assert_eq!(served(&redis).await, MANY - 9);
    // An invalidation is no doubt, before and after a gap.
    let kept = redis.keys("art:*").await.remove(0);
    parts.publish(&kept).await;
    eventually("it has ended", async || redis.get(&kept).await.is_none()).await;
    assert_eq!(served(&redis).await, MANY - 10);
}

#[tokio::test]
async fn accept_keeps_a_value_from_shrinking_to_nothing() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let jobs = Art::of(&upstream).list(0..3).source("accept = \"{{ value | length > 0 }}\"").folder();
    let _worker = worker(&redis, &jobs);
    all_served(&redis, 3).await;
    for (name, empty) in [json!([]), json!({}), json!("")].into_iter().enumerate() {
        upstream.on(&format!("/art/{name}"), Reply::json(empty));
    }
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    eventually("all were refused", async || parts.stat("failed").await >= 3).await;
    for key in redis.keys("art:*").await {
        assert_eq!(redis.json(&key).await, Some(json!({"version": 1})), "{key}");
    }
    assert_eq!(served(&redis).await, 3);
}

#[tokio::test]
async fn an_eviction_removes_at_once_what_is_held_back() {
    let (redis, _upstream, _jobs, _worker) = tripped().await;
    let kept = redis.keys("art:*").await.remove(0);
    Parts::of(&redis).await.invalidate(&json!({"keys": [kept], "action": "evict"}).to_string()).await;
    assert_eq!(redis.get(&kept).await, None);
    assert_eq!(served(&redis).await, MANY - 10);
    all_held(&redis, MANY - 10).await;
}

async fn ends_soon(redis: &TestRedis) {
    all_held(redis, 0).await;
    let [until, last] = [redis.ask(&["HGET", GUARD, "until"]).await, redis.ask(&["HGET", GUARD, "last"]).await];
    let (until, last): (RedisTime, RedisTime) = (until, last);
    assert_eq!(until.saturating_since(last), Duration::from_secs(60));
}

#[tokio::test]
async fn a_guard_ends_with_the_last_value_that_is_evicted() {
    let (redis, _upstream, _jobs, _worker) = tripped().await;
    let kept = redis.keys("art:*").await;
    let parts = Parts::of(&redis).await;
    // Every worker that hears of it handles it, and each value counts once.
    for _ in 0..2 {
        parts.invalidate(&json!({"keys": &kept[1..], "action": "evict"}).to_string()).await;
        all_held(&redis, 1).await;
    }
    parts.invalidate("{\"patterns\": [\"art:*\"], \"action\": \"evict\"}").await;
    ends_soon(&redis).await;
}

#[tokio::test]
async fn a_guard_ends_if_the_last_is_evicted_after_it_expired() {
    let (redis, _upstream, _jobs, _worker) = tripped().await;
    let parts = Parts::of(&redis).await;
    let kept = redis.keys("art:*").await;
    redis.ask::<usize>(&["DEL", "samovar:agenda:{art}"]).await;
    for key in &kept {
        redis.ask::<usize>(&["PEXPIRE", key, "1"]).await;
    }
    all_served(&redis, 0).await;
    parts.invalidate(&json!({"keys": &kept, "action": "evict"}).to_string()).await;
    ends_soon(&redis).await;
}

#[tokio::test]
async fn a_value_that_expired_and_fails_is_not_held_back() {
    let (redis, upstream, _jobs, _worker) = tripped().await;
    let keys: Vec<EntryKey> = redis.keys("art:*").await.into_iter().map(EntryKey::new).collect();
    upstream.otherwise(|_, _| Reply::status(400));
    for key in &keys {
        redis.ask::<usize>(&["PEXPIRE", key.as_str(), "1"]).await;
    }
    all_served(&redis, 0).await;
    let parts = Parts::of(&redis).await;
    parts.agenda.put(&job(), &keys, When::NOW, Trigger::Manual).await.unwrap();
    ends_soon(&redis).await;
}

#[tokio::test]
async fn a_key_of_another_type_at_the_guard_s_place_removes_nothing() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let jobs = many(&upstream, 9, "ahead = \"0s\"").folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    all_served(&redis, 9).await;
    redis.set(GUARD, "somebody else's", HOUR).await;
    has_none(&upstream);
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    eventually("all were asked for", async || parts.stat("deferred").await >= 9).await;
    assert_eq!((served(&redis).await, parts.stat("gone").await), (9, 0));
    eventually("health names the key", async || {
        let health = health(&mut worker).await;
        if health["reasons"].to_string().contains(GUARD) { Ok(()) } else { Err(health) }
    })
    .await;
    redis.ask::<usize>(&["DEL", GUARD]).await;
    for name in 0..9 {
        parts.publish(&format!("art:{name}")).await;
    }
    eventually("all are gone", async || served(&redis).await == 0).await;
}

#[tokio::test]
async fn values_that_are_held_back_survive_a_killed_worker() {
    let (clock, redis, upstream) = with_clock().await;
    let jobs = many(&upstream, MANY, "").ttl("20m").folder();
    let mut first = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "1s").spawn();
    all_served(&redis, MANY).await;
    all_gone_but(&redis, &Parts::of(&redis).await, &upstream, MANY - 9).await;
    first.kill9();
    clock.set(25 * 60_000);
    let kept = redis.keys("art:*").await;
    assert_eq!(kept.len(), MANY - 9, "beyond their TTL");
    has_all(&upstream, 2);
    let second = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "1s").spawn();
    for key in kept {
        eventually(&format!("{key} is fresh"), async || redis.json(&key).await.filter(|value| value["version"] == 2))
            .await;
    }
    assert_eq!((warnings(&first), warnings(&second)), (1, 0));
}

/// Until its source has answered, whatever its trigger and however long its value lives.
#[tokio::test]
async fn what_is_held_back_is_asked_for_again_though_unread() {
    for (listed, ttl) in [(false, "1h"), (true, "5h")] {
        let (redis, upstream) = both().await;
        has_all(&upstream, 1);
        let many = if listed { many(&upstream, MANY, "") } else { Art::of(&upstream) };
        let jobs = many.ttl(ttl).folder();
        let _worker = worker(&redis, &jobs);
        let parts = Parts::of(&redis).await;
        let keys: Vec<EntryKey> = (0..MANY).map(|name| art(&name.to_string())).collect();
        parts.agenda.put(&job(), &keys, When::NOW, Trigger::Manual).await.unwrap();
        all_served(&redis, MANY).await;
        all_gone_but(&redis, &parts, &upstream, MANY - 9).await;
        let kept: Vec<EntryKey> = redis.keys("art:*").await.into_iter().map(EntryKey::new).collect();
        redis.ask::<usize>(&["DEL", "samovar:agenda:{art}"]).await;
        parts.agenda.put(&job(), &kept, When::NOW, Trigger::Expiry).await.unwrap();
        let asked = upstream.all_requests().len();
        eventually("each is asked for", async || upstream.all_requests().len() >= asked + kept.len()).await;
        has_all(&upstream, 2);
        for key in &kept {
            let fresh = async || redis.json(key.as_str()).await.filter(|value| value["version"] == 2);
            eventually(&format!("{key} is fresh"), fresh).await;
        }
        assert_eq!(parts.stat("unread").await, 0);
        all_held(&redis, 0).await;
    }
}
