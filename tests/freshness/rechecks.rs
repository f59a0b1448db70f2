//! Rechecks: an upstream that lags behind its own invalidations, and replicas that lag differently.

use std::time::Duration;

use samovar::entry::Trigger;
use serde_json::{Value, json};

use super::LONG;
use crate::support::{Art, Parts, Reply, art, both, eventually, publish, version, worker};

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
