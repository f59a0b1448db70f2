//! Versions: no commit goes back, and an announced version is waited for.

use std::time::Duration;

use samovar::agenda::{Due, State};
use samovar::entry::{Announced, Outcome, Trigger, Version};
use samovar::redis::RedisTime;
use samovar::store::{LastAttempt, Lease, Removal, Terms, Versions, Written};
use serde_json::json;

use super::{LONG, TTL};
use crate::support::{
    Art, Parts, Reply, TestRedis, Upstream, art, at_rest, both, eventually, job, samovar, version, worker,
};

const VERSION: &str = "version = \"{{ value.version }}\"";

/// Answers of `/art/a` in turn; the last one stays.
fn answers(upstream: &Upstream, versions: &[u64]) {
    let replies: Vec<Reply> =
        versions.iter().map(|n| Reply::json(json!({"version": n})).header("ETag", &format!("\"v{n}\""))).collect();
    upstream.on_each("/art/a", replies);
}

fn last_attempt(version: u64) -> LastAttempt {
    LastAttempt { version: Some(Version::new(version)), ..LastAttempt::default() }
}

/// The rule of a refresh whose job waits for announced versions.
const WAITS: Versions = Versions { patience: Some(LONG), look: false };
/// The rule of a refresh after the patience.
const TAKES: Versions = Versions { patience: Some(Duration::ZERO), look: false };
/// A recheck after the patience.
const LOOKS: Versions = Versions { patience: Some(Duration::ZERO), look: true };

async fn lease(parts: &Parts, versions: Versions) -> Lease {
    Lease { versions, ..parts.lease("a", LONG).await }
}

async fn commit(parts: &Parts, version: u64, versions: Versions) -> Written {
    let lease = lease(parts, versions).await;
    let json = json!({"version": version}).to_string();
    let written = parts.store.commit(&art("a"), &lease, &json, TTL, &last_attempt(version)).await.unwrap();
    parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    written
}

async fn announce(parts: &Parts, removal: Removal, version: Announced) -> samovar::store::Invalidated {
    parts.next_instant().await;
    announce_at(parts, parts.now().await, removal, version).await
}

async fn announce_at(
    parts: &Parts,
    at: RedisTime,
    removal: Removal,
    version: Announced,
) -> samovar::store::Invalidated {
    let terms = Terms { version, ..Terms::default() };
    parts.store.invalidate_on(&art("a"), at, removal, terms).await.unwrap()
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
        let written = commit(&parts, version, TAKES).await;
        assert_eq!(matches!(written, Written::Done { .. }), version >= most, "{version}: {written:?}");
        if version < most {
            assert_eq!(written, Written::Older { stored: Version::new(most), invalidated: None });
        }
        most = most.max(version);
        assert_eq!(redis.json("art:a").await.unwrap()["version"], most);
    }
    // Nobody can go back where nothing is readable.
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    assert!(matches!(commit(&parts, 3, TAKES).await, Written::Done { .. }));
}

/// Returns how far a written value is behind: `None` if it is not, else whether the announced version is waited for.
fn behind(written: &Written) -> Option<bool> {
    match written {
        Written::Done { behind, .. } => behind.map(|behind| behind.waits),
        other => panic!("{other:?}"),
    }
}

/// Returns the version that an answer was refused for, and whether it is waited for.
fn refused(written: &Written) -> (Version, bool) {
    match written {
        Written::Behind(announced, behind) => (*announced, behind.waits),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_announced_version_is_answered_by_no_lower_one() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 5, TAKES).await;
    assert!(announce(&parts, Removal::Refresh, at_least(7)).await.due);
    assert_eq!(refused(&commit(&parts, 5, WAITS).await), (Version::new(7), true), "it is no gain");
    // What is newer than the value is stored; the invalidation stays open.
    assert_eq!(behind(&commit(&parts, 6, WAITS).await), Some(true));
    assert!(parts.meta("a").await.unwrap().invalidated.is_some());
    assert_eq!(refused(&commit(&parts, 6, WAITS).await), (Version::new(7), true));
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 6);
    assert_eq!(behind(&commit(&parts, 7, WAITS).await), None);
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
    assert_eq!(behind(&commit(&parts, 8, WAITS).await), Some(true));
    assert_eq!(refused(&commit(&parts, 8, WAITS).await), (Version::new(9), true));
}

#[tokio::test]
async fn after_its_patience_an_announcement_holds_nothing_up() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 8, TAKES).await;
    announce(&parts, Removal::Refresh, at_least(1_000)).await;
    assert_eq!(behind(&commit(&parts, 8, TAKES).await), Some(false));
    let meta = parts.meta("a").await.unwrap();
    assert_eq!((meta.invalidated, meta.announced, meta.is_behind()), (None, Some(Version::new(1_000)), true));
    // A look stores only what is newer, so that it does not keep the value alive.
    assert_eq!(refused(&commit(&parts, 8, LOOKS).await), (Version::new(1_000), false));
    assert_eq!(parts.meta("a").await.unwrap().own_expiry, meta.own_expiry);
    assert_eq!(behind(&commit(&parts, 9, LOOKS).await), Some(false));
    // The next invalidation is answered by whatever comes after it.
    announce(&parts, Removal::Refresh, Announced::None).await;
    assert_eq!(behind(&commit(&parts, 9, WAITS).await), None);
    assert!(!parts.meta("a").await.unwrap().is_behind());
    // So is the refresh at the end of the TTL.
    announce(&parts, Removal::Refresh, at_least(1_000)).await;
    commit(&parts, 9, TAKES).await;
    assert_eq!(behind(&commit(&parts, 9, TAKES).await), None);
    let older = commit(&parts, 7, TAKES).await;
    assert_eq!(older, Written::Older { stored: Version::new(9), invalidated: None });
}

/// Invalidations that follow one another do not begin the patience anew.
#[tokio::test]
async fn the_patience_counts_from_the_first_announcement() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 1, TAKES).await;
    let first = parts.now().await;
    for version in [2, 3, 4] {
        announce(&parts, Removal::Refresh, at_least(version)).await;
    }
    let Written::Behind(_, behind) = commit(&parts, 1, WAITS).await else { panic!() };
    let since = behind.since.saturating_since(first);
    assert!(since < parts.now().await.saturating_since(first) && since < Duration::from_millis(20), "{since:?}");
    announce(&parts, Removal::Refresh, Announced::None).await;
    assert_eq!(commit(&parts, 1, WAITS).await, Written::Behind(Version::new(4), behind));
}

/// A message from the inbox may be handled after a fetch that began later than it.
#[tokio::test]
async fn a_value_fetched_after_the_message_may_lack_its_version() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let published = parts.now().await;
    parts.next_instant().await;
    commit(&parts, 5, TAKES).await;
    assert!(!announce_at(&parts, published, Removal::Refresh, at_least(5)).await.due);
    assert!(announce_at(&parts, published, Removal::Refresh, at_least(6)).await.due);
    assert!(announce_at(&parts, published, Removal::Evict, at_least(6)).await.removed);
}

/// Nothing is known of the key but a fetch in flight.
#[tokio::test]
async fn a_first_fetch_in_flight_hears_of_the_version() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let mut lease = lease(&parts, WAITS).await;
    assert!(announce(&parts, Removal::Refresh, at_least(7)).await.fenced);
    let write = async |lease: &Lease, version| {
        parts.store.commit(&art("a"), lease, "{}", TTL, &last_attempt(version)).await.unwrap()
    };
    let Written::Again(at) = write(&lease, 7).await else { panic!() };
    lease.begin_again(at);
    assert_eq!(refused(&write(&lease, 6).await), (Version::new(7), true));
    assert_eq!(behind(&write(&lease, 7).await), None);
}

#[tokio::test]
async fn an_eviction_keeps_what_it_announced_until_it_is_there() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 5, TAKES).await;
    assert!(announce(&parts, Removal::Evict, at_least(7)).await.removed);
    assert_eq!(refused(&commit(&parts, 5, WAITS).await), (Version::new(7), true));
    assert_eq!(refused(&commit(&parts, 6, WAITS).await), (Version::new(7), true));
    assert_eq!(redis.get("art:a").await, None);
    // An upstream that does not have it yet has not lost it.
    let lease = lease(&parts, WAITS).await;
    let written = parts.store.gone(&art("a"), &lease, &LastAttempt::default()).await.unwrap();
    assert_eq!(refused(&written), (Version::new(7), true));
    parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    assert_eq!(behind(&commit(&parts, 7, WAITS).await), None);
    // One whose value is there was deleted.
    announce(&parts, Removal::Refresh, at_least(8)).await;
    let lease = self::lease(&parts, WAITS).await;
    let written = parts.store.gone(&art("a"), &lease, &LastAttempt::default()).await.unwrap();
    assert_eq!((behind(&written), redis.get("art:a").await), (None, None));
}

#[tokio::test]
async fn a_restored_backup_may_lower_the_version() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    for removal in [Removal::Refresh, Removal::Evict] {
        commit(&parts, 7, TAKES).await;
        announce(&parts, removal, at_least(9)).await;
        assert!(announce(&parts, removal, Announced::Any).await.debounced.is_none());
        assert_eq!(behind(&commit(&parts, 2, WAITS).await), None);
        assert_eq!(redis.json("art:a").await.unwrap()["version"], 2);
    }
}

#[tokio::test]
async fn a_304_answers_no_higher_version() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    commit(&parts, 5, TAKES).await;
    announce(&parts, Removal::Refresh, at_least(6)).await;
    let extend = async |versions| {
        let lease = lease(&parts, versions).await;
        let written = parts.store.extend(&art("a"), &lease, TTL, &last_attempt(5)).await.unwrap();
        parts.store.release(&art("a"), &lease.token, None).await.unwrap();
        written
    };
    assert_eq!(refused(&extend(WAITS).await), (Version::new(6), true));
    assert_eq!(behind(&extend(TAKES).await), Some(false));
    let expires = parts.meta("a").await.unwrap().own_expiry;
    assert_eq!(refused(&extend(LOOKS).await), (Version::new(6), false));
    assert_eq!(parts.meta("a").await.unwrap().own_expiry, expires);
    assert_eq!(behind(&extend(TAKES).await), None);
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.version, Some(Version::new(5)));
}

#[tokio::test]
async fn an_upstream_that_lags_is_asked_until_it_has_the_version() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[1, 1, 1, 1, 2]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).warm("recheck = [\"1s\", \"2s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "version": 2}"#).await;
    version(&redis, "a", 2).await;
    assert_eq!(upstream.calls("/art/a"), 5);
    // The version is there: only the last recheck asks for it, since another edit may have announced none.
    eventually("it waits for its refresh", async || {
        due(&parts).await.is_some_and(|due| due.trigger == Trigger::Expiry)
    })
    .await;
    assert_eq!((upstream.calls("/art/a"), parts.stat("failed").await), (6, 0));
    assert!(parts.stat("unchanged").await <= 2, "each recheck once");
}

async fn due(parts: &Parts) -> Option<Due> {
    parts.agenda.dues(&job(), &[art("a")]).await.unwrap().remove(0)
}

/// No value is there, and none is fetched.
#[tokio::test]
async fn an_evicted_version_is_looked_for_as_often_as_any() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[1]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).warm("recheck = [\"1s\", \"2s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict", "version": 2}"#).await;
    eventually("it is off the agenda", async || due(&parts).await.is_none()).await;
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, 1));
    assert!(parts.stat("unchanged").await <= 2, "each recheck once");
}

/// A restored backup: the upstream confirms the value with a 304, and the version is to be known all the same.
#[tokio::test]
async fn a_version_is_known_after_any_was_let_in() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "version": null}"#).await;
    eventually("it is answered", async || {
        let meta = parts.meta("a").await.unwrap();
        meta.invalidated.is_none() && upstream.calls("/art/a") == 2
    })
    .await;
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.version, Some(Version::new(1)));
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
    at_rest(&redis).await;
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
    parts.publish(r#"{"keys": ["art:a"], "version": 3}"#).await;
    version(&redis, "a", 2).await;
    eventually("its patience has ended", async || {
        let meta = parts.meta("a").await.unwrap();
        meta.is_behind() && meta.invalidated.is_none()
    })
    .await;
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
    eventually("its warming has ended", async || due(&parts).await.is_some_and(|due| due.state == State::Scheduled))
        .await;
    parts.agenda.put(&job(), &[art("a")], samovar::agenda::When::Urgent, Trigger::Manual).await.unwrap();
    eventually("the answer is refused", async || {
        parts.meta("a").await.unwrap().last_attempt.outcome == Some(Outcome::Unchanged) && upstream.calls("/art/a") == 5
    })
    .await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 6);
    // It is due for its recheck, which is sooner than its refresh.
    let due =
        eventually("it is due again", async || due(&parts).await.filter(|due| due.state == State::Scheduled)).await;
    assert_eq!(due.trigger, Trigger::Recheck);
}

#[tokio::test]
async fn a_replica_that_is_behind_lets_no_value_expire() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[5, 4]);
    let jobs = Art::of(&upstream).ttl("4s").list(["a"]).top(VERSION).warm("ahead = \"2s\"").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 5).await;
    let expires: i64 = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    eventually("it is refreshed in vain", async || upstream.calls("/art/a") == 2).await;
    let due =
        eventually("it is due again", async || due(&parts).await.filter(|due| due.state == State::Scheduled)).await;
    assert!(due.at.as_millis() < expires, "{due:?}, {expires}");
}

#[tokio::test]
async fn a_replica_that_is_behind_ends_no_rechecks() {
    let (redis, upstream) = both().await;
    answers(&upstream, &[5, 6, 5, 7]);
    let jobs = Art::of(&upstream).list(["a"]).top(VERSION).warm("recheck = [\"1s\", \"2s\"]").folder();
    let parts = Parts::of(&redis).await;
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 5).await;
    // The first recheck finds a replica that is behind, the second one the last edit.
    parts.invalidate("art:a").await;
    version(&redis, "a", 7).await;
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
    assert_eq!(behind(&commit(&parts, 3, WAITS).await), None);
    assert_eq!(commit(&parts, 2, TAKES).await, Written::Older { stored: Version::new(3), invalidated: None });
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
