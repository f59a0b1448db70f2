//! Rechecks: an upstream that lags behind its own invalidations, and replicas that lag differently.

use std::time::Duration;

use samovar::agenda::When;
use samovar::entry::Trigger;
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use samovar::store::{LastAttempt, Rechecks, Removal, Terms, Written};
use serde_json::{Value, json};

use super::{LONG, TTL};
use crate::support::{Art, Parts, Reply, TestRedis, art, both, eventually, job, publish, version, worker};

/// Answers of `/art/a` in turn, each with an `ETag` of its own; the last one stays.
fn versions(all: &[u64]) -> Vec<Reply> {
    all.iter().map(|n| Reply::json(json!({"version": n})).header("ETag", &format!("\"v{n}\""))).collect()
}

fn stored(value: Option<Value>) -> u64 {
    value.and_then(|value| value["version"].as_u64()).unwrap_or_default()
}

#[tokio::test]
async fn an_edit_that_shows_late_is_found_without_a_second_message() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 1, 1, 2]));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"1s\", \"2s\"]").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    assert_eq!(upstream.calls("/art/a"), 4, "the warmup, the invalidation, two rechecks");
    eventually("the entry waits for its refresh", async || {
        let parts = Parts::of(&redis).await;
        let meta = parts.store.snapshot(&art("a")).await.unwrap().meta.unwrap();
        meta.last_attempt.rechecks.is_none() && meta.last_attempt.trigger == Some(Trigger::Recheck)
    })
    .await;
}

/// The rechecks go with the data, and the warmup asks an upstream that still lags.
#[tokio::test]
async fn what_is_first_fetched_after_a_flush_is_rechecked() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"5s\"]").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let parts = Parts::of(&redis).await;
    let rechecks =
        async || parts.store.snapshot(&art("a")).await.unwrap().meta.and_then(|meta| meta.last_attempt.rechecks);
    assert_eq!(rechecks().await, None, "a new Redis has lost nothing");
    // The edit, which the upstream does not show yet.
    publish(&redis, "art:a").await;
    eventually("the message is handled", async || rechecks().await.is_some()).await;
    redis.flush().await;
    version(&redis, "a", 1).await;
    upstream.edit("/art/a");
    version(&redis, "a", 2).await;
    assert_eq!(rechecks().await, None, "one recheck is enough");
}

/// The default list.
#[tokio::test]
async fn rechecks_are_on_by_default_and_follow_only_invalidations() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 1, 2]));
    let toml = Art::of(&upstream).list(["a", "b"]).warm("# recheck").toml();
    let upstreams = format!("[museum]\nurl = \"{}\"\n", upstream.url());
    let jobs = crate::support::JobsFolder::new().upstreams(&upstreams).job("art", &toml);
    upstream.on("/art/b", versions(&[1]).remove(0));
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    version(&redis, "b", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    assert_eq!(upstream.calls("/art/b"), 1, "nobody invalidated it");
}

#[tokio::test]
async fn an_answer_from_before_the_invalidation_replaces_no_newer_one() {
    let (redis, upstream) = both().await;
    // The last answer is that of a replica which was edited back: the last recheck takes it.
    upstream.on_each("/art/a", versions(&[1, 2, 1, 1, 2, 1]));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"1s\", \"2s\", \"3s\", \"4s\"]").folder();
    let mut seen = Vec::new();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    eventually("all rechecks were made", async || {
        let now = stored(redis.json("art:a").await);
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        upstream.calls("/art/a") == 6 && now == 1
    })
    .await;
    assert_eq!(seen, [2, 1], "it goes back only with the last recheck");
}

#[tokio::test]
async fn what_an_upstream_does_not_have_yet_is_sought_again() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", [vec![Reply::status(404); 3], versions(&[1])].concat());
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"1s\", \"2s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    eventually("the warmup found nothing", async || upstream.calls("/art/a") == 1).await;
    parts.invalidate("art:a").await;
    version(&redis, "a", 1).await;
}

/// The entry is not kept warm: nothing but its rechecks asks for it.
#[tokio::test]
async fn a_recheck_that_fails_forgets_no_entry_that_is_gone() {
    let (redis, upstream) = both().await;
    let answers = [vec![Reply::status(404); 2], vec![Reply::status(500)], versions(&[1])].concat();
    upstream.on_each("/art/a", answers);
    let jobs = Art::of(&upstream).warm("recheck = [\"1s\", \"2s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    eventually("it is known to be gone", async || parts.stat("gone").await == 1).await;
    parts.invalidate("art:a").await;
    version(&redis, "a", 1).await;
    assert_eq!(upstream.calls("/art/a"), 4);
}

/// A miss after an eviction is answered by a lagging upstream.
#[tokio::test]
async fn what_is_fetched_after_an_eviction_is_rechecked() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 1, 2]));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"2s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(redis.get("art:a").await, None);
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    version(&redis, "a", 2).await;
}

/// Whatever fetches the entry meanwhile takes the place of the rechecks that are due by then.
#[tokio::test]
async fn an_invalidation_in_between_begins_the_list_anew() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 2, 3, 3, 4]));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"1s\", \"2s\"]").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 3).await;
    version(&redis, "a", 4).await;
    assert_eq!(upstream.calls("/art/a"), 5, "two rechecks, both after the second invalidation");
}

#[tokio::test]
async fn a_recheck_that_fails_leaves_the_value_to_its_refresh() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", [versions(&[1, 2]), vec![Reply::status(500)]].concat());
    let jobs = Art::of(&upstream).list(["a"]).warm("attempts = 2\nrecheck = [\"1s\", \"2s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    eventually("the recheck was given up", async || {
        let due = parts.agenda.dues(&crate::support::job(), &[art("a")]).await.unwrap().remove(0);
        upstream.calls("/art/a") >= 4 && due.is_some_and(|due| due.trigger == Trigger::Expiry)
    })
    .await;
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:dead:{art}"]).await, 0);
    let ttl = Duration::from_millis(redis.ask(&["PTTL", "art:a"]).await);
    assert!(ttl > Duration::from_secs(3_000), "{ttl:?}");
}

/// An API removes the value before its recheck.
#[tokio::test]
async fn a_value_that_another_program_removed_is_not_rechecked() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 2]));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"2s\", \"10m\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    eventually("it is off the agenda", async || parts.score("a").await.is_none()).await;
    assert_eq!((upstream.calls("/art/a"), parts.stat("unchanged").await), (2, 1));
}

/// The lagging replica is asked again, and its old value is not.
#[tokio::test]
async fn what_was_deleted_does_not_come_back() {
    let (redis, upstream) = both().await;
    let (one, gone) = (versions(&[1]).remove(0), Reply::status(404));
    upstream.on_each("/art/a", [one.clone(), gone.clone(), one.clone(), one, gone]);
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"1s\", \"2s\", \"3s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    parts.invalidate("art:a").await;
    eventually("it is gone", async || redis.get("art:a").await.is_none()).await;
    eventually("all rechecks were made", async || {
        assert_eq!(redis.get("art:a").await, None);
        upstream.calls("/art/a") == 5 && parts.score("a").await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_refused_answer_does_not_put_off_the_refresh() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 2, 1, 2]));
    let jobs = Art::of(&upstream).list(["a"]).ttl("6s").warm("ahead = \"2s\"\nrecheck = [\"1s\", \"1h\"]").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    eventually("it is refreshed", async || {
        assert!(redis.get("art:a").await.is_some());
        upstream.calls("/art/a") >= 5
    })
    .await;
}

#[tokio::test]
async fn a_value_of_an_earlier_file_is_compared_with_no_answer() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 2]));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"10m\", \"20m\"]").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let key = redis.keys("samovar:meta:*:art:a").await.remove(0);
    let meta: String = redis.ask(&["GET", &key]).await;
    redis.ask::<String>(&["SET", &key, &meta.replace("\"m\":\"", "\"m\":\"earlier-"), "KEEPTTL"]).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    let rechecks = Parts::of(&redis).await.meta("a").await.unwrap().last_attempt.rechecks.unwrap();
    assert_eq!((rechecks.before.as_str(), rechecks.lone), ("", false));
}

/// The recheck comes before the refresh and takes its place on the agenda. The pause makes it late.
#[tokio::test]
async fn a_recheck_after_its_values_end_brings_a_listed_value_back() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 2, 3]));
    let jobs = Art::of(&upstream).ttl("3s").list(["a"]).warm("recheck = [\"1s\"]\nevery = \"1h\"").folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    redis.set("samovar:paused:{art}", "1", LONG).await;
    eventually("its TTL has ended", async || redis.get("art:a").await.is_none()).await;
    redis.ask::<()>(&["DEL", "samovar:paused:{art}"]).await;
    version(&redis, "a", 3).await;
}

#[tokio::test]
async fn a_recheck_refreshes_nothing_for_a_job_without_refreshes() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 2, 3]));
    let jobs = Art::of(&upstream).ttl("3s").list(["a"]).warm("ahead = \"0s\"\nrecheck = [\"1s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    redis.set("samovar:paused:{art}", "1", LONG).await;
    eventually("its TTL has ended", async || redis.get("art:a").await.is_none()).await;
    redis.ask::<()>(&["DEL", "samovar:paused:{art}"]).await;
    eventually("it is off the agenda", async || parts.score("a").await.is_none()).await;
    assert_eq!(upstream.calls("/art/a"), 2);
}

/// A fetch for another reason comes between a refresh and its handling, and its upstream still lags.
#[tokio::test]
async fn a_value_fetched_before_a_late_refresh_is_rechecked() {
    let (redis, upstream) = both().await;
    upstream.on_each("/art/a", versions(&[1, 1, 1, 2]));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"1s\", \"3s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let at = parts.now().await;
    parts.next_instant().await;
    parts.agenda.put(&job(), &[art("a")], When::Urgent, Trigger::Manual).await.unwrap();
    eventually("it is fetched again", async || parts.meta("a").await.unwrap().fetched_at > at).await;
    let refresh = Message::parse(r#"{"keys": ["art:a"]}"#).unwrap();
    // Every worker handles a bare message, at a time of its own.
    for sooner in [0, 5, 0] {
        parts.invalidator(&jobs).handle(&refresh, at - ms(sooner)).await.unwrap();
    }
    version(&redis, "a", 2).await;
    eventually("the rechecks have ended", async || {
        let last_attempt = parts.meta("a").await.unwrap().last_attempt;
        last_attempt.rechecks.is_none() && last_attempt.trigger == Some(Trigger::Recheck)
    })
    .await;
    parts.invalidator(&jobs).handle(&refresh, at).await.unwrap();
    // The warmup, the operator, the refresh, and two rechecks, of which the first may be over on a slow machine.
    assert!(upstream.calls("/art/a") <= 5, "{}", upstream.calls("/art/a"));
    assert_eq!(parts.meta("a").await.unwrap().invalidated, None);
}

/// Returns the terms of a job with the default list.
fn rechecked() -> Terms {
    Terms { rechecked_for: Duration::from_secs(30), ..Terms::default() }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test]
async fn a_late_refresh_fetches_what_no_near_one_had_fetched() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    // Since how long before the refresh rechecks are to come, and how long after it the value was fetched.
    let none: Option<u64> = None;
    let cases = [(none, 1, true), (none, 28_999, true), (none, 29_000, false), (none, 0, true)];
    let noted = [(Some(0), 5, false), (Some(1_000), 5, false), (Some(1_001), 5, true)];
    for (since, ago, is_due) in cases.into_iter().chain(noted) {
        let lease = parts.lease("a", LONG).await;
        let at = lease.fetched_at - ms(ago);
        let rechecks = since.map(|since| Rechecks::new(at - ms(since), "h".into(), true));
        let last_attempt = LastAttempt { rechecks, tags: vec!["\"k\":[1,\"\",0]".into()], ..LastAttempt::default() };
        parts.store.commit(&art("a"), &lease, "1", TTL, &last_attempt).await.unwrap();
        parts.next_instant().await;
        let doubt = Terms { is_doubt: true, ..rechecked() };
        for terms in [Terms::default(), doubt].into_iter().filter(|_| ago > 0) {
            let done = parts.store.invalidate_on(&art("a"), at, Removal::Refresh, terms).await.unwrap();
            assert!(!done.due, "{terms:?}");
        }
        // The one that comes again is told that the entry is due, and marks it no later.
        let mut marked: Vec<Option<RedisTime>> = Vec::new();
        for _ in 0..2 {
            let done = parts.store.invalidate_on(&art("a"), at, Removal::Refresh, rechecked()).await.unwrap();
            assert_eq!(done.due, is_due, "{since:?} {ago}");
            marked.push(parts.meta("a").await.unwrap().invalidated);
            parts.next_instant().await;
        }
        assert_eq!((marked[0], marked[0].is_some()), (marked[1], is_due), "{since:?} {ago}");
        assert!(marked[0].is_none_or(|at| at >= lease.fetched_at), "{since:?} {ago}");
    }
}

#[tokio::test]
async fn rechecks_of_a_doubt_stand_for_no_late_refresh() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    for is_doubt in [true, false] {
        let lease = parts.lease("a", LONG).await;
        let rechecks = Rechecks::new(lease.fetched_at, "h".into(), true);
        let rechecks = Some(if is_doubt { rechecks.after_doubt() } else { rechecks });
        // A fetch for another reason keeps them.
        let last_attempt = LastAttempt { trigger: Some(Trigger::Cron), rechecks, ..LastAttempt::default() };
        parts.store.commit(&art("a"), &lease, "1", TTL, &last_attempt).await.unwrap();
        let at = lease.fetched_at - ms(5);
        let done = parts.store.invalidate_on(&art("a"), at, Removal::Refresh, rechecked()).await.unwrap();
        assert_eq!(done.due, is_doubt);
    }
}

/// An older refresh does not bring back what was evicted, or set by a service.
#[tokio::test]
async fn a_late_refresh_lifts_no_later_eviction_of_a_fetch() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.next_instant().await;
    let evicted = parts.store.invalidate_on(&art("a"), parts.now().await, Removal::Evict, rechecked()).await.unwrap();
    assert!(evicted.fenced, "{evicted:?}");
    let at = lease.fetched_at - ms(5);
    let done = parts.store.invalidate_on(&art("a"), at, Removal::Refresh, rechecked()).await.unwrap();
    assert!(!done.fenced && !done.due, "{done:?}");
    let written = parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    assert!(matches!(written, Written::Evicted), "{written:?}");
}

#[tokio::test]
async fn a_late_eviction_leaves_what_was_asked_for_since() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let at = parts.now().await - ms(100);
    let lease = parts.lease("a", LONG).await;
    let in_flight = parts.store.invalidate_on(&art("a"), at, Removal::Evict, rechecked()).await.unwrap();
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    let stored = parts.store.invalidate_on(&art("a"), at, Removal::Evict, rechecked()).await.unwrap();
    assert!(!in_flight.fenced && !stored.removed, "{in_flight:?} {stored:?}");
}
