//! Versions: no commit goes back, and an announced version is waited for.

use std::time::Duration;

use samovar::entry::{Announced, Outcome, Trigger, Version};
use samovar::store::{Accepts, LastAttempt, Removal, Written};
use serde_json::json;

use super::support::{Art, Parts, Reply, TestRedis, Upstream, art, both, eventually, job, samovar, version, worker};
use super::{LONG, TTL};

const VERSION: &str = "version = \"{{ value.version }}\"";

/// Answers of `/art/a` in turn; the last one stays.
fn answers(upstream: &Upstream, versions: &[u64]) {
    let replies: Vec<Reply> =
        versions.iter().map(|n| Reply::json(json!({"version": n})).header("ETag", &format!("\"v{n}\""))).collect();
    upstream.on_each("/art/a", replies);
}

fn last_attempt(version: u64, accepts: Accepts) -> LastAttempt {
    LastAttempt { version: Some(Version::new(version)), accepts, ..LastAttempt::default() }
}

async fn commit(parts: &Parts, version: u64, accepts: Accepts) -> Written {
    let lease = parts.lease("a", LONG).await;
    let json = json!({"version": version}).to_string();
    let written = parts.store.commit(&art("a"), &lease, &json, TTL, &last_attempt(version, accepts)).await.unwrap();
    parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    written
}

async fn announce(parts: &Parts, removal: Removal, announced: Announced) -> samovar::store::Invalidated {
    parts.next_instant().await;
    parts.store.announce(&art("a"), parts.now().await, removal, announced, false).await.unwrap()
}

fn at_least(version: u64) -> Announced {
    Announced::AtLeast(Version::new(version))
}

#[tokio::test]
async fn whatever_order_answers_come_in_no_commit_goes_back() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let mut most = 0;
    // Versions of different lengths, beyond what doubles tell apart, and the same twice.
    for version in [7, 5, 10, 9, 9_007_199_254_740_993, 9_007_199_254_740_992, u64::MAX, u64::MAX, u64::MAX - 1, 0] {
        let written = commit(&parts, version, Accepts::Stored).await;
        assert_eq!(matches!(written, Written::Done { .. }), version >= most, "{version}: {written:?}");
        if version < most {
            assert_eq!(written, Written::Older(Version::new(most)));
        }
        most = most.max(version);
        assert_eq!(redis.json("art:a").await.unwrap()["version"], most);
    }
    // Nobody can go back where nothing is readable.
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    assert!(matches!(commit(&parts, 3, Accepts::Stored).await, Written::Done { .. }));
}

#[tokio::test]
async fn an_announced_version_is_answered_by_no_lower_one() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 5, Accepts::Stored).await;
    assert!(announce(&parts, Removal::Refresh, at_least(7)).await.due);
    assert_eq!(commit(&parts, 6, Accepts::Announced).await, Written::Behind(Version::new(7)));
    assert!(parts.meta("a").await.unwrap().invalidated.is_some(), "it is still to be answered");
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 5);
    assert!(matches!(commit(&parts, 7, Accepts::Announced).await, Written::Done { behind: false, .. }));
    let meta = parts.meta("a").await.unwrap();
    assert_eq!((meta.invalidated, meta.announced, meta.is_behind()), (None, None, false));
    // A message that is heard late, or twice, costs nothing.
    for version in [7, 6] {
        for removal in [Removal::Refresh, Removal::Evict] {
            let handled = announce(&parts, removal, at_least(version)).await;
            assert!(!handled.due && !handled.removed && !handled.unknown && !handled.fenced, "{handled:?}");
        }
    }
    assert_eq!(parts.meta("a").await.unwrap().invalidated, None);
    // Of two announcements the higher counts, in whatever order they come.
    for version in [9, 8] {
        announce(&parts, Removal::Refresh, at_least(version)).await;
    }
    assert_eq!(commit(&parts, 8, Accepts::Announced).await, Written::Behind(Version::new(9)));
    // After its patience a worker stores what there is, and the entry stays behind.
    assert!(matches!(commit(&parts, 8, Accepts::Stored).await, Written::Done { behind: true, .. }));
    let meta = parts.meta("a").await.unwrap();
    assert_eq!((meta.invalidated, meta.announced, meta.is_behind()), (None, Some(Version::new(9)), true));
    assert_eq!(commit(&parts, 7, Accepts::Stored).await, Written::Older(Version::new(8)));
}

#[tokio::test]
async fn an_eviction_keeps_what_it_announced_until_it_is_there() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 5, Accepts::Stored).await;
    assert!(announce(&parts, Removal::Evict, at_least(7)).await.removed);
    assert_eq!(commit(&parts, 5, Accepts::Announced).await, Written::Behind(Version::new(7)));
    assert_eq!(redis.get("art:a").await, None);
    // An upstream that does not have it yet has not lost it.
    let lease = parts.lease("a", LONG).await;
    let written = parts.store.gone(&art("a"), &lease, &last_attempt(0, Accepts::Announced)).await.unwrap();
    assert_eq!(written, Written::Behind(Version::new(7)));
    parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    assert!(matches!(commit(&parts, 7, Accepts::Announced).await, Written::Done { behind: false, .. }));
}

#[tokio::test]
async fn a_restored_backup_may_lower_the_version() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    for removal in [Removal::Refresh, Removal::Evict] {
        commit(&parts, 7, Accepts::Stored).await;
        announce(&parts, removal, at_least(9)).await;
        assert!(announce(&parts, removal, Announced::Any).await.debounced.is_none());
        assert!(matches!(commit(&parts, 2, Accepts::Announced).await, Written::Done { behind: false, .. }));
        assert_eq!(redis.json("art:a").await.unwrap()["version"], 2);
    }
}

#[tokio::test]
async fn a_304_answers_no_higher_version() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 5, Accepts::Stored).await;
    announce(&parts, Removal::Refresh, at_least(6)).await;
    let lease = parts.lease("a", LONG).await;
    let extend = async |accepts| parts.store.extend(&art("a"), &lease, TTL, &last_attempt(5, accepts)).await.unwrap();
    assert_eq!(extend(Accepts::Announced).await, Written::Behind(Version::new(6)));
    assert!(matches!(extend(Accepts::Stored).await, Written::Done { behind: true, .. }));
    assert!(parts.meta("a").await.unwrap().is_behind());
}

#[tokio::test]
async fn an_upstream_that_lags_is_asked_until_it_has_the_version() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[1, 1, 1, 1, 2]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "version": 2}"#).await;
    version(&redis, "a", 2).await;
    assert_eq!(upstream.calls("/art/a"), 5);
    eventually("both are told", async || {
        let meta = parts.meta("a").await.unwrap();
        meta.last_attempt.version == Some(Version::new(2)) && meta.invalidated.is_none()
    })
    .await;
    // The version is there: no recheck need ask for it.
    let rechecks = parts.meta("a").await.unwrap().last_attempt.rechecks.unwrap();
    assert!(rechecks.verified, "{rechecks:?}");
    assert_eq!(parts.stat("failed").await, 0);
}

#[tokio::test]
async fn a_message_about_a_version_that_is_there_asks_nobody() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[5]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 5).await;
    for message in [r#"{"keys": ["art:a"], "version": 5}"#, r#"{"keys": ["art:a"], "version": 4, "action": "evict"}"#] {
        parts.invalidate(message).await;
    }
    assert_eq!((version(&redis, "a", 5).await, upstream.calls("/art/a")), ((), 1));
}

#[tokio::test]
async fn when_patience_ends_what_there_is_is_stored_and_told() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[1, 2]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).warm("version_patience = \"300ms\"").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "version": 3}"#).await;
    version(&redis, "a", 2).await;
    let told = samovar(["get", "art:a"]).redis(&redis).jobs(&jobs).run().await.stdout;
    assert!(told.contains("version       2\n") && told.contains("version 3 was announced"), "{told}");
    assert!(upstream.calls("/art/a") > 2, "it was asked again within its patience");
    // It is looked at again until the version is there.
    answers(&upstream, &[3]);
    version(&redis, "a", 3).await;
    assert!(!parts.meta("a").await.unwrap().is_behind());
}

#[tokio::test]
async fn a_replica_that_is_behind_never_takes_readers_back() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[5, 4, 4, 6]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 5).await;
    // Without a version: the answers of before are refused, and the upstream is asked again.
    parts.invalidate("art:a").await;
    version(&redis, "a", 6).await;
    assert_eq!((upstream.calls("/art/a"), parts.stat("deferred").await), (4, 2));
    // Nobody has invalidated it: it holds, and is looked at before it expires.
    answers(&upstream, &[3]);
    parts.agenda.put(&job(), &[art("a")], samovar::agenda::When::Urgent, Trigger::Manual).await.unwrap();
    eventually("the answer is refused", async || {
        parts.meta("a").await.unwrap().last_attempt.outcome == Some(Outcome::Unchanged) && upstream.calls("/art/a") == 5
    })
    .await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 6);
    let due = eventually("it is due again", async || {
        let due = parts.agenda.dues(&job(), &[art("a")]).await.unwrap().remove(0);
        due.filter(|due| due.trigger == Trigger::Expiry)
    })
    .await;
    let wait = due.at.saturating_since(parts.now().await);
    assert!(wait < Duration::from_secs(1_000), "{wait:?}");
}

/// Entries that an older worker wrote, or that were fetched before their job told versions.
#[tokio::test]
async fn entries_without_versions_take_any_and_keep_it() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "{}", TTL, &LastAttempt::default()).await.unwrap();
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.version, None);
    assert!(announce(&parts, Removal::Refresh, at_least(3)).await.due, "nothing says that it has the version");
    assert!(matches!(commit(&parts, 3, Accepts::Announced).await, Written::Done { behind: false, .. }));
    assert_eq!(commit(&parts, 2, Accepts::Stored).await, Written::Older(Version::new(3)));
    // The job tells none any more.
    let lease = parts.lease("a", LONG).await;
    let written = parts.store.commit(&art("a"), &lease, "{}", TTL, &LastAttempt::default()).await.unwrap();
    assert!(matches!(written, Written::Done { .. }));
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.version, None);
}

#[tokio::test]
async fn a_version_that_cannot_be_read_fails_the_fetch_and_says_why() {
    for (template, reason) in [
        ("{{ value.version }}", "the version `{{ value.version }}`: `one` is no version"),
        ("{{ value.updated }}", "the version `{{ value.updated }}`: "),
    ] {
        let (redis, upstream) = both().await;
        upstream.on("/art/a", Reply::json(json!({"version": "one"})));
        let jobs = Art::of(&upstream).list(["a"]).top(&format!("version = \"{template}\"")).folder();
        let parts = Parts::of(&redis).await;
        let _worker = worker(&redis, &jobs);
        eventually("it has failed", async || parts.stat("failed").await > 0).await;
        let told = parts.meta("a").await.unwrap().last_attempt.reason.unwrap();
        assert!(told.contains(reason), "{told}");
        assert_eq!(redis.get("art:a").await, None);
    }
}

#[tokio::test]
async fn the_command_line_announces_versions() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[1, 1, 2, 1]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let invalidate = async |version: &str| {
        samovar(["invalidate", "art:a", "--version", version]).redis(&redis).jobs(&jobs).run().await
    };
    assert!(invalidate("2").await.stdout.contains("published"));
    version(&redis, "a", 2).await;
    assert!(invalidate("any").await.stdout.contains("published"));
    version(&redis, "a", 1).await;
    let refused = invalidate("soon").await;
    assert!(refused.stderr.contains("is no version"), "{}", refused.stderr);
    let refused = samovar(["invalidate", "--tag", "t", "--version", "2"]).redis(&redis).jobs(&jobs).run().await;
    assert!(refused.stderr.contains("`version` takes keys only"), "{}", refused.stderr);
}
