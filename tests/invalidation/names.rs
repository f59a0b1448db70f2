//! Names in a message: keys, patterns, jobs and tags.

use std::time::Duration;

use samovar::agenda::{Due, State, When};
use samovar::entry::{EntryKey, JobName, Trigger};
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use samovar::store::{Fresh, LastAttempt, Leased, Removal};
use serde_json::json;

use super::{LONG, TTL, warmed};
use crate::support::{Art, Parts, TestRedis, Upstream, art, at_rest, publish, version};

#[tokio::test]
async fn a_pattern_touches_only_keys_of_jobs_and_never_samovars_own() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "b"]).await;
    redis.set("session:1", "theirs", TTL).await;
    redis.ask::<u64>(&["HSET", "art", "field", "theirs"]).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"patterns": ["*"], "action": "evict"}"#).await;
    assert_eq!((redis.get("art:a").await, redis.get("art:b").await), (None, None));
    assert_eq!(redis.get("session:1").await.as_deref(), Some("theirs"));
    assert_eq!(
        redis.ask::<u64>(&["EXISTS", "art", "samovar:inbox", "samovar:marker", "samovar:{schedules}:digests"]).await,
        4
    );
    // And the worker is as well as before.
    upstream.edit("/art/c");
    parts.invalidate(r#"{"keys": ["art:c"], "action": "warm"}"#).await;
    version(&redis, "c", 1).await;
}

/// While Redis matches a long one with some hundred keys, it serves nobody else.
#[tokio::test]
async fn patterns_too_long_or_too_many_are_dropped_and_told() {
    let (redis, _upstream, _jobs, mut worker) = warmed(&["a"]).await;
    let message = |patterns: &[String]| json!({"patterns": patterns, "action": "evict"}).to_string();
    let matching = |bytes: usize| format!("art:{}", "*".repeat(bytes - 4));
    let many: Vec<String> = (5..70).map(matching).collect();
    for refused in [message(&[matching(257)]), message(&many)] {
        redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", &refused]).await;
        publish(&redis, &refused).await;
    }
    let parts = Parts::of(&redis).await;
    parts.inbox_is_empty().await;
    worker.wait_for_log(&["cannot follow a message", "257 bytes"]).await;
    assert!(redis.get("art:a").await.is_some());
    parts.invalidate(&message(&[matching(256)])).await;
    assert_eq!(redis.get("art:a").await, None);
}

#[tokio::test]
async fn a_pattern_refreshes_what_it_matches_and_nothing_else() {
    let (redis, upstream, _jobs, _worker) = warmed(&["cat 1", "cat 2", "dog"]).await;
    for name in ["cat 1", "cat 2", "dog"] {
        upstream.edit(&format!("/art/{name}"));
    }
    publish(&redis, r#"{"patterns": ["art:cat*"]}"#).await;
    version(&redis, "cat 1", 2).await;
    version(&redis, "cat 2", 2).await;
    at_rest(&redis).await;
    assert_eq!((redis.json("art:dog").await.unwrap()["version"].clone(), upstream.calls("/art/dog")), (json!(1), 1));
}

#[tokio::test]
async fn a_pattern_reaches_more_entries_than_one_step_of_a_scan() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let mut fill = redis::pipe();
    for n in 0..3_000 {
        fill.cmd("SET").arg(format!("art:{n}")).arg("0").arg("EX").arg(600).ignore();
    }
    fill.query_async::<()>(&mut redis.connection().await).await.unwrap();
    let message = Message::parse(r#"{"patterns": ["art:*"], "action": "evict"}"#).unwrap();
    let handled = parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
    assert_eq!((handled.removed, redis.keys("art:*").await.len()), (3_000, 0));
}

/// Its fetch began before the invalidation and is committed at every moment of the handling in turn: before, during and
/// after the scans for leases and for values.
#[tokio::test]
async fn a_key_born_while_its_pattern_is_invalidated_is_caught() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let mut fill = redis::pipe();
    for n in 0..10_000 {
        fill.cmd("SET").arg(format!("foreign:{n}")).arg("0").ignore();
    }
    fill.query_async::<()>(&mut redis.connection().await).await.unwrap();
    let invalidator = parts.invalidator(&jobs);
    let message = Message::parse(r#"{"patterns": ["art:*"], "action": "evict"}"#).unwrap();
    let from = std::time::Instant::now();
    invalidator.handle(&message, parts.now().await).await.unwrap();
    let whole = from.elapsed();
    for n in 0..60 {
        let name = format!("born {n}");
        let lease = parts.lease(&name, LONG).await;
        let (at, moment) = (parts.now().await, whole.mul_f32(n as f32 / 50.0));
        let commit = async {
            tokio::time::sleep(moment).await;
            parts.store.commit(&art(&name), &lease, "1", TTL, &LastAttempt::default()).await.unwrap()
        };
        let (handled, written) = tokio::join!(invalidator.handle(&message, at), commit);
        handled.unwrap();
        assert_eq!(redis.get(&format!("art:{name}")).await, None, "{written:?} after {moment:?} of {whole:?}");
    }
}

#[tokio::test]
async fn a_whole_job_is_invalidated_by_its_name() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "b"]).await;
    upstream.edit("/art/a");
    upstream.edit("/art/b");
    Parts::of(&redis).await.invalidate(r#"{"jobs": ["art"]}"#).await;
    version(&redis, "a", 2).await;
    version(&redis, "b", 2).await;
}

#[tokio::test]
async fn bare_text_is_one_literal_key_whatever_is_in_it() {
    let odd = ["*", "a[bc]?", "\\*", "{x}", "\"q\"", "x y:z", "İstanbul 🎨"];
    let (redis, upstream, _jobs, _worker) =
        warmed(&["a*", "ab", "a[bc]?", "*", "\\*", "{x}", "\"q\"", "x y:z", "İstanbul 🎨"]).await;
    for name in odd {
        upstream.edit(&format!("/art/{name}"));
        publish(&redis, &format!("art:{name}")).await;
        version(&redis, name, 2).await;
    }
    at_rest(&redis).await;
    assert_eq!((upstream.calls("/art/a*"), upstream.calls("/art/ab")), (1, 1), "no key was read as a glob");
}

/// Strangers' keys stand where a lease, metadata, the index of a tag and two agendas should.
#[tokio::test]
async fn a_key_that_fails_holds_up_no_other_key_of_the_message() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let first =
        "key = \"a:{name}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\npath = \"/{{ name }}\"\n";
    let jobs = Art::of(&upstream).folder().job("a", first);
    let parts = Parts::of(&redis).await;
    for name in ["named", "tagged", "matched"] {
        let lease = parts.lease(name, LONG).await;
        parts.store.commit(&art(name), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    }
    parts.store.tag(&art("tagged"), &["good".to_owned()], LONG).await.unwrap();
    redis.set("a:1", "1", TTL).await;
    let foreign = EntryKey::new("foreign:1");
    let (lease, meta) = (parts.keys.lease(&art("bad")), parts.keys.meta(&foreign));
    for key in [
        lease,
        meta,
        parts.keys.tag("bad"),
        parts.keys.agenda(&JobName::new("a")),
        parts.keys.agenda(&JobName::new("gone")),
    ] {
        redis.ask::<u64>(&["LPUSH", &key, "a stranger's"]).await;
    }
    parts.next_instant().await;
    let at = parts.now().await;
    let message = json!({
        "keys": ["art:bad", "foreign:1", "a:1", "art:named"],
        "tags": ["bad", "good"],
        "patterns": ["art:match*"],
        "jobs": ["gone"],
    });
    let message = Message::parse(&message.to_string()).unwrap();
    parts.invalidator(&jobs).handle(&message, at).await.unwrap();
    for name in ["named", "tagged", "matched"] {
        assert_eq!(parts.meta(name).await.unwrap().invalidated, Some(at), "{name}");
        assert_eq!(Due::from_score(parts.score(name).await.unwrap()).state, State::Urgent, "{name}");
    }
}

/// The agenda of the earlier name names the entries; their keys are those of the new name.
#[tokio::test]
async fn the_old_name_of_a_job_evicts_nothing_of_the_new_one() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let jobs = Art::of(&upstream).folder();
    let (parts, old) = (Parts::of(&redis).await, JobName::new("works"));
    let theirs = EntryKey::new("poem:1");
    let store = async |key: &EntryKey| {
        let Leased::Yes(lease) = parts.store.lease(key, LONG, Fresh::default()).await.unwrap() else { panic!("{key}") };
        parts.store.commit(key, &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    };
    for key in [&art("a"), &theirs] {
        store(key).await;
    }
    let later = When::Due(parts.now().await + TTL);
    parts.agenda.put(&old, [&art("a"), &theirs], later, Trigger::Expiry).await.unwrap();
    parts.next_instant().await;
    let at = parts.now().await;
    let message = Message::parse(r#"{"jobs": ["works"]}"#).unwrap();
    let handled = parts.invalidator(&jobs).handle(&message, at).await.unwrap();
    assert_eq!((handled.foreign, handled.removed, handled.due), (1, 1, 1), "{handled:?}");
    assert_eq!((redis.get("art:a").await.as_deref(), redis.get("poem:1").await), (Some("1"), None));
    assert_eq!(parts.meta("a").await.unwrap().invalidated, Some(at));
    assert_eq!(Due::from_score(parts.score("a").await.unwrap()).trigger, Trigger::Invalidation);
    let message = Message::parse(r#"{"jobs": ["works"], "action": "evict"}"#).unwrap();
    let handled = parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
    assert_eq!((handled.removed, redis.get("art:a").await), (1, None), "{handled:?}");
}

/// They may be on their way to an entry, so their stamps count; and anybody may name any.
#[tokio::test]
async fn tags_that_nothing_has_are_remembered_and_bounded() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let tag = |n: usize| format!("stray:{n}");
    let first = parts.now().await;
    let mut at = first;
    for n in 0..10_100 {
        at = first + Duration::from_millis(n as u64 / 100) - Duration::from_millis(200);
        let removal = if n % 2 == 0 { Removal::Evict } else { Removal::Refresh };
        parts.store.stamp(&tag(n), at, removal).await.unwrap();
    }
    assert!(redis.keys("samovar:tag:*").await.is_empty());
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:stamps"]).await, 10_001);
    let stamps = parts.store.tag(&art("a"), &[tag(10_099), tag(10_098), tag(0), "unheard of".to_owned()], TTL).await;
    let stamps = stamps.unwrap().into_iter().map(|stamp| stamp.map(|stamp| (stamp.at, stamp.removal)));
    let stamps: Vec<Option<(RedisTime, Removal)>> = stamps.collect();
    assert_eq!(stamps[..2], [Some((at, Removal::Refresh)), Some((at, Removal::Evict))]);
    // The latest of those that were forgotten stands for what is not known.
    let forgotten = Some((first - Duration::from_millis(200), Removal::Refresh));
    assert_eq!(stamps[2..], [forgotten, forgotten]);
    // From now on it has an entry, and a stamp of its own.
    parts.store.stamp(&tag(0), at, Removal::Evict).await.unwrap();
    let stamp = parts.store.tag(&art("a"), &[tag(0)], TTL).await.unwrap()[0].unwrap();
    assert_eq!((stamp.at, stamp.removal), (at, Removal::Evict));
}
