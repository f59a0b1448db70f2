//! Invalidations: once one is handled, nothing fetched before it can be read anew.
#![cfg(test)]

mod support;

use std::time::Duration;

use samovar::agenda::{Due, State, When};
use samovar::entry::Trigger;
use samovar::entry::{EntryKey, JobName};
use samovar::protocol::Message;
use samovar::store::{Fresh, Lease, Leased, Meta, Note, Removal, Written};
use serde_json::json;
use support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, at_rest, eventually, hasty_worker, job,
    listening, publish, talkative, version, worker,
};

const CHANNEL: &str = "samovar:invalidate";
const LONG: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(600);

/// Redis, an upstream and a worker on the job `art`.
async fn warmed(names: &[&str]) -> (TestRedis, Upstream, JobsFolder, WorkerProcess) {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    for name in names {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).list(names).folder();
    let worker = worker(&redis, &jobs);
    for name in names {
        version(&redis, name, 1).await;
    }
    at_rest(&redis).await;
    (redis, upstream, jobs, worker)
}

#[tokio::test]
async fn late_writer_is_fenced_out() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let gate = upstream.gate("/art/a");
    assert_eq!(upstream.edit("/art/a"), 2);
    publish(&redis, "art:a").await;
    gate.arrived(1).await;
    // The answer at the gate is that of version 2, and an old one from here on.
    assert_eq!(upstream.edit("/art/a"), 3);
    parts.invalidate("art:a").await;
    gate.let_one_out();
    gate.arrived(2).await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1, "a refresh serves the old value meanwhile");
    gate.open();
    version(&redis, "a", 3).await;
    assert_eq!((upstream.most_in_flight("/art/a"), upstream.calls("/art/a")), (1, 3));
}

#[tokio::test]
async fn late_304_is_fenced_out() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let gate = upstream.gate("/art/a");
    publish(&redis, "art:a").await;
    gate.arrived(1).await;
    // The answer at the gate says that version 1 still holds.
    assert_eq!(upstream.edit("/art/a"), 2);
    parts.invalidate("art:a").await;
    let expires: i64 = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    gate.let_one_out();
    gate.arrived(2).await;
    assert_eq!(redis.ask::<i64>(&["PEXPIRETIME", "art:a"]).await, expires, "nothing was extended");
    gate.open();
    version(&redis, "a", 2).await;
}

/// Nothing is readable before, so that whatever the late writer wrote would show.
#[tokio::test]
async fn late_writer_of_a_key_that_is_being_born_is_fenced_out() {
    for message in ["art:new", r#"{"patterns": ["art:n*"]}"#, r#"{"jobs": ["art"]}"#, r#"{"keys": ["art:new"]}"#] {
        let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
        upstream.edit("/art/new");
        let gate = upstream.gate("/art/new");
        let jobs = Art::of(&upstream).list(["new"]).folder();
        let _worker = worker(&redis, &jobs);
        gate.arrived(1).await;
        upstream.edit("/art/new");
        Parts::of(&redis).await.invalidate(message).await;
        gate.let_one_out();
        gate.arrived(2).await;
        assert_eq!(redis.get("art:new").await, None, "{message}");
        gate.open();
        version(&redis, "new", 2).await;
    }
}

#[tokio::test]
async fn refresh_serves_the_old_value_until_the_new_one_lands() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    upstream.edit("/art/a");
    let gate = upstream.gate("/art/a");
    publish(&redis, "art:a").await;
    gate.arrived(1).await;
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1);
    gate.open();
    version(&redis, "a", 2).await;
}

#[tokio::test]
async fn evict_removes_at_once_and_stays_until_the_next_warmup() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a", "b"]).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(redis.get("art:a").await, None);
    let due = Due::from_score(parts.score("a").await.unwrap());
    assert_eq!((due.trigger, due.state), (Trigger::Settle, State::Scheduled), "it is only looked at once more");
    // Whatever else is due is warmed, and this is not.
    upstream.edit("/art/b");
    parts.invalidate("art:b").await;
    version(&redis, "b", 2).await;
    at_rest(&redis).await;
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, 1));
}

#[tokio::test]
async fn a_fetch_in_flight_does_not_resurrect_what_was_evicted() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let gate = upstream.gate("/art/a");
    parts.invalidate("art:a").await;
    gate.arrived(1).await;
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(redis.get("art:a").await, None);
    gate.open();
    eventually("the fetch has ended", async || parts.stat("fenced").await == 1).await;
    at_rest(&redis).await;
    eventually("it was looked at once more", async || parts.score("a").await.is_none()).await;
    assert_eq!((redis.get("art:a").await, upstream.calls("/art/a")), (None, 2));
}

#[tokio::test]
async fn warm_fetches_what_is_absent_and_nothing_else() {
    let (redis, upstream, _jobs, _worker) = warmed(&["there"]).await;
    upstream.edit("/art/absent");
    upstream.edit("/art/last");
    publish(&redis, r#"{"keys": ["art:there", "art:absent", "foreign:absent"], "action": "warm"}"#).await;
    version(&redis, "absent", 1).await;
    publish(&redis, r#"{"keys": ["art:last", "art:there"], "action": "warm"}"#).await;
    version(&redis, "last", 1).await;
    at_rest(&redis).await;
    assert_eq!(upstream.calls("/art/there"), 1);
    assert_eq!(upstream.all_requests().len(), 3);
}

#[tokio::test]
async fn warm_leaves_alone_what_the_api_wrote_itself() {
    let (redis, upstream, _jobs, _worker) = warmed(&["there"]).await;
    redis.set("art:theirs", r#"{"version": 0}"#, TTL).await;
    upstream.edit("/art/theirs");
    upstream.edit("/art/absent");
    let parts = Parts::of(&redis).await;
    parts.invalidate(r#"{"keys": ["art:theirs"], "action": "warm"}"#).await;
    parts.invalidate(r#"{"keys": ["art:absent"], "action": "warm"}"#).await;
    version(&redis, "absent", 1).await;
    at_rest(&redis).await;
    assert_eq!(
        (redis.json("art:theirs").await.unwrap()["version"].clone(), upstream.calls("/art/theirs")),
        (json!(0), 0)
    );
}

#[tokio::test]
async fn a_value_the_api_wrote_is_refreshed_when_invalidated() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    upstream.edit("/art/theirs");
    redis.set("art:theirs", r#"{"version": 0}"#, TTL).await;
    publish(&redis, "art:theirs").await;
    version(&redis, "theirs", 1).await;
    redis.set("art:a", r#"{"version": 0}"#, TTL).await;
    publish(&redis, "art:a").await;
    version(&redis, "a", 1).await;
}

#[tokio::test]
async fn an_eviction_leaves_a_key_alone_that_holds_no_string() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    // Where ours was, and where nothing of ours ever was.
    let lease = parts.lease("ours", LONG).await;
    parts.store.commit(&art("ours"), &lease, "1", TTL, &Note::default()).await.unwrap();
    redis.ask::<u64>(&["DEL", "art:ours"]).await;
    for key in ["art:ours", "art:theirs"] {
        redis.ask::<u64>(&["ZADD", key, "1", "theirs"]).await;
    }
    parts.next_instant().await;
    for what in [r#""keys": ["art:ours", "art:theirs"]"#, r#""patterns": ["art:*"]"#, r#""jobs": ["art"]"#] {
        let message = Message::parse(&format!("{{{what}, \"action\": \"evict\"}}")).unwrap();
        let handled = parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
        assert_eq!((handled.entries, handled.removed), (2, 0), "{what}");
    }
    assert_eq!(redis.ask::<u64>(&["EXISTS", "art:ours", "art:theirs"]).await, 2);
    assert_eq!((parts.score("ours").await, parts.score("theirs").await), (None, None), "nor is it looked at again");
}

/// A command for each type, which makes the key one of that type.
const TYPES: [(&str, &[&str]); 5] = [
    ("hash", &["HSET", "KEY", "f", "theirs"]),
    ("list", &["RPUSH", "KEY", "theirs"]),
    ("set", &["SADD", "KEY", "theirs"]),
    ("zset", &["ZADD", "KEY", "1", "theirs"]),
    ("stream", &["XADD", "KEY", "1-1", "f", "theirs"]),
];

/// Somebody replaces a key by one of this type, which expires when the value there would have.
async fn replace(redis: &TestRedis, key: &str, command: &[&str]) -> Vec<u8> {
    let expires: i64 = redis.ask(&["PEXPIRETIME", key]).await;
    redis.ask::<u64>(&["DEL", key]).await;
    let words: Vec<&str> = command.iter().map(|word| if *word == "KEY" { key } else { *word }).collect();
    redis.ask::<redis::Value>(&words).await;
    if expires > 0 {
        redis.ask::<u64>(&["PEXPIREAT", key, &expires.to_string()]).await;
    }
    redis.ask(&["DUMP", key]).await
}

#[tokio::test]
async fn what_holds_no_string_by_now_is_not_written_by_a_fetch() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let store = &parts.store;
    for (kind, command) in TYPES {
        for script in ["first", "commit", "extend", "unasked", "gone", "outlive"] {
            let name = format!("{kind} {script}");
            let (key, entry) = (format!("art:{name}"), art(&name));
            if script != "first" {
                let lease = parts.lease(&name, LONG).await;
                store.commit(&entry, &lease, "1", TTL, &Note::default()).await.unwrap();
            }
            let lease = parts.lease(&name, LONG).await;
            let theirs = replace(&redis, &key, command).await;
            let before: i64 = redis.ask(&["PEXPIRETIME", &key]).await;
            let note = Note::default();
            let expected = match script {
                "extend" | "unasked" => Some(Written::Foreign),
                "outlive" => None,
                _ => Some(Written::WrongType),
            };
            let written = match script {
                "gone" => Some(store.gone(&entry, &lease, &note).await.unwrap()),
                "extend" => Some(store.extend(&entry, &lease, TTL, &note).await.unwrap()),
                "unasked" => Some(store.extend_unasked(&entry, &lease, TTL, &note).await.unwrap()),
                "outlive" => {
                    assert_eq!(store.extend_stale(&entry, 2 * TTL, 2 * TTL).await.unwrap(), None, "{name}");
                    None
                }
                _ => Some(store.commit(&entry, &lease, "2", TTL, &note).await.unwrap()),
            };
            assert_eq!(written, expected, "{name}");
            assert_eq!(redis.ask::<Vec<u8>>(&["DUMP", &key]).await, theirs, "{name}");
            assert_eq!(redis.ask::<i64>(&["PEXPIRETIME", &key]).await, before, "{name}");
            if expected == Some(Written::WrongType) {
                assert_eq!(redis.get(&parts.keys.lease(&entry)).await, None, "{name}: nobody waits for the lease");
            }
            for removal in [Removal::Refresh, Removal::Evict] {
                parts.next_instant().await;
                store.invalidate(&entry, parts.now().await, removal).await.unwrap();
                assert_eq!(redis.ask::<Vec<u8>>(&["DUMP", &key]).await, theirs, "{name} {removal:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_holds_no_string_when_the_answer_comes_is_told() {
    for status in [200, 404] {
        let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
        upstream.on("/art/a", Reply::json(json!({"version": 2})).with_status(status));
        let gate = upstream.gate("/art/a");
        publish(&redis, "art:a").await;
        gate.arrived(1).await;
        let theirs = replace(&redis, "art:a", TYPES[0].1).await;
        gate.open();
        let reason = eventually("it is a dead letter", async || {
            redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{art}", "art:a"]).await
        })
        .await;
        assert!(reason.contains("somebody else wrote"), "{reason}");
        assert_eq!(redis.ask::<Vec<u8>>(&["DUMP", "art:a"]).await, theirs, "{status}");
    }
}

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
        let name = format!("content_since {n}");
        let lease = parts.lease(&name, LONG).await;
        let (at, moment) = (parts.now().await, whole.mul_f32(n as f32 / 50.0));
        let commit = async {
            tokio::time::sleep(moment).await;
            parts.store.commit(&art(&name), &lease, "1", TTL, &Note::default()).await.unwrap()
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
        parts.store.commit(&art(name), &lease, "1", TTL, &Note::default()).await.unwrap();
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
        assert_eq!(parts.meta(name).await.unwrap().invalidated, at, "{name}");
        assert_eq!(Due::from_score(parts.score(name).await.unwrap()).state, State::Urgent, "{name}");
    }
}

/// Strangers' keys stand where an entry's lease or metadata should: its value goes or is fetched anew all the same.
#[tokio::test]
async fn a_stranger_s_key_beside_a_value_hides_no_invalidation() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let invalidator = parts.invalidator(&jobs);
    for beside in [parts.keys.lease(&art("a")), parts.keys.meta(&art("a"))] {
        for action in ["refresh", "evict"] {
            redis.set("art:a", "1", TTL).await;
            redis.ask::<u64>(&["DEL", &parts.keys.agenda(&job())]).await;
            redis.ask::<redis::Value>(&["EVAL", STRANGER, "1", &beside]).await;
            let message = Message::parse(&json!({"keys": ["art:a"], "action": action}).to_string()).unwrap();
            parts.next_instant().await;
            invalidator.handle(&message, parts.now().await).await.unwrap();
            if action == "evict" {
                assert_eq!(redis.get("art:a").await, None, "{beside}");
                assert_eq!(redis.ask::<String>(&["TYPE", &beside]).await, "list", "it is nobody's to remove");
            } else {
                let due = Due::from_score(parts.score("a").await.unwrap());
                assert_eq!((due.state, due.trigger), (State::Urgent, Trigger::Invalidation), "{beside}");
            }
        }
    }
}

/// A stranger's key stands where the loads of one job are tracked: those of another are found all the same.
#[tokio::test]
async fn a_stranger_s_key_at_one_set_of_loads_hides_no_other() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let tagged = Art::of(&upstream).top("tags = [\"t\"]");
    let jobs = tagged.folder().job("song", &tagged.toml().replace("art:", "song:"));
    let jobs = jobs.job("book", &tagged.toml().replace("art:", "book:"));
    let parts = Parts::of(&redis).await;
    let message = Message::parse(r#"{"tags": ["t"], "action": "evict"}"#).unwrap();
    let keys = ["art:1", "book:1", "song:1"];
    for bad in keys {
        let [set, _] = parts.keys.loaded(bad);
        redis.ask::<redis::Value>(&["EVAL", STRANGER, "1", &set]).await;
        for key in keys {
            redis.set(key, "1", TTL).await;
        }
        parts.next_instant().await;
        parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
        for key in keys {
            assert_eq!(redis.get(key).await.is_some(), key == bad, "{key} while {bad} cannot be tracked");
        }
        redis.ask::<u64>(&["DEL", &set]).await;
    }
}

/// Its failures are counted, so that it is given up some day.
#[tokio::test]
async fn a_stranger_s_key_at_metadata_hides_no_failure() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    redis.ask::<redis::Value>(&["EVAL", STRANGER, "1", &parts.keys.meta(&art("a"))]).await;
    let note = Note { failures: 3, ..Note::default() };
    assert_eq!(parts.store.release(&art("a"), &lease.token, Some(&note)).await.unwrap(), None);
    assert_eq!(parts.meta("a").await.unwrap().note.failures, 3);
}

/// Makes a key somebody else's list.
const STRANGER: &str = "redis.call('DEL', KEYS[1]) return redis.call('LPUSH', KEYS[1], 'x')";

#[tokio::test]
async fn malformed_messages_are_survived_and_told() {
    let (redis, upstream, _jobs, mut worker) = warmed(&["a"]).await;
    for bad in [
        "",
        "{}",
        r#"{"keys": 7}"#,
        r#"{"keys": ["art:a"], "action": "explode"}"#,
        r#"{"patterns": ["*"], "action": "warm"}"#,
    ] {
        publish(&redis, bad).await;
        redis.ask::<String>(&["XADD", "samovar:inbox", "*", "message", bad]).await;
    }
    let binary = redis::cmd("PUBLISH").arg(CHANNEL).arg(&b"\xff\xfe{"[..]).to_owned();
    binary.exec_async(&mut redis.connection().await).await.unwrap();
    redis.ask::<String>(&["XADD", "samovar:inbox", "*", "other", "field"]).await;
    for (name, value) in
        [(&b"\xff\xfe"[..], &b"art:a"[..]), (b"message", b"\xff"), (b"gap", b"\xff"), (b"\xff", b"\xff")]
    {
        let mut add = redis::cmd("XADD");
        add.arg("samovar:inbox").arg("*").arg(name).arg(value);
        add.exec_async(&mut redis.connection().await).await.unwrap();
    }
    let long = "x".repeat((1 << 20) + 1);
    publish(&redis, &long).await;
    Parts::of(&redis).await.inbox_is_empty().await;
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    worker.wait_for_log(&["cannot follow a message", "it is empty"]).await;
    for what in ["on the invalidation channel", "in the inbox"] {
        let told = worker.log().iter().filter(|line| line.contains(&format!("cannot follow a message {what}"))).count();
        assert_eq!(told, 1, "once a minute at most");
    }
    assert!(worker.log().iter().all(|line| line.len() < 2_000), "excerpts are bounded");
}

#[tokio::test]
async fn an_invalidation_that_is_older_than_the_value_changes_nothing() {
    let (redis, upstream, jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    let invalidator = parts.invalidator(&jobs);
    let before = (redis.get("art:a").await, parts.meta("a").await, parts.score("a").await);
    let late = parts.meta("a").await.unwrap().start - 1;
    for action in ["refresh", "evict"] {
        for what in [r#""keys": ["art:a"]"#, r#""patterns": ["art:*"]"#, r#""jobs": ["art"]"#] {
            let message = Message::parse(&format!("{{{what}, \"action\": \"{action}\"}}")).unwrap();
            let handled = invalidator.handle(&message, late).await.unwrap();
            assert_eq!((handled.due, handled.removed, handled.fenced), (0, 0, 0), "{action} {what}");
        }
    }
    let after = (redis.get("art:a").await, parts.meta("a").await, parts.score("a").await);
    assert_eq!((after, upstream.calls("/art/a")), (before, 1));
}

#[tokio::test]
async fn an_invalidation_that_is_handled_twice_is_answered_once() {
    let (redis, upstream, jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    upstream.edit("/art/a");
    let (message, at) = (Message::parse("art:a").unwrap(), parts.now().await);
    parts.next_instant().await;
    let invalidator = parts.invalidator(&jobs);
    assert_eq!(invalidator.handle(&message, at).await.unwrap().due, 1);
    version(&redis, "a", 2).await;
    at_rest(&redis).await;
    for _ in 0..3 {
        let handled = invalidator.handle(&message, at).await.unwrap();
        assert_eq!((handled.due, handled.removed, handled.fenced), (0, 0, 0));
    }
    at_rest(&redis).await;
    assert_eq!(upstream.calls("/art/a"), 2);
}

#[tokio::test]
async fn a_fetch_that_began_after_the_invalidation_is_left_alone() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let late = parts.now().await;
    parts.next_instant().await;
    let lease = parts.lease("a", LONG).await;
    for removal in [Removal::Refresh, Removal::Evict] {
        assert!(!parts.store.invalidate(&art("a"), late, removal).await.unwrap().fenced);
    }
    let written = parts.store.commit(&art("a"), &lease, "1", TTL, &Note::default()).await.unwrap();
    assert!(matches!(written, Written::Done { changed: true, .. }), "{written:?}");
}

#[tokio::test]
async fn a_message_published_without_workers_waits_for_one() {
    let (redis, upstream, jobs, mut first) = warmed(&["a"]).await;
    first.kill9();
    upstream.edit("/art/a");
    let parts = Parts::of(&redis).await;
    parts.publish("art:a").await;
    let _second = worker(&redis, &jobs);
    version(&redis, "a", 2).await;
    parts.inbox_is_empty().await;
}

#[tokio::test]
async fn a_message_published_before_the_first_worker_is_handled() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    redis.set("art:old", "0", TTL).await;
    let parts = Parts::of(&redis).await;
    parts.publish(r#"{"keys": ["art:old"], "action": "evict"}"#).await;
    let jobs = Art::of(&upstream).folder();
    let _worker = worker(&redis, &jobs);
    eventually("it is evicted", async || redis.get("art:old").await.is_none()).await;
}

#[tokio::test]
async fn a_message_that_a_crashed_worker_held_is_taken_over() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let _worker = hasty_worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    upstream.edit("/art/a");
    // Whoever gets the message: a consumer that reads it and is never heard of again, or the worker; tried until the former.
    let parts = Parts::of(&redis).await;
    let mut connection = redis.connection().await;
    let mut read = redis::cmd("XREADGROUP");
    read.arg(&["GROUP", "samovar", "crashed", "COUNT", "1", "STREAMS", "samovar:inbox", ">"]);
    loop {
        let mut both = redis::pipe();
        both.atomic();
        both.cmd("XADD").arg(&["samovar:inbox", "*", "message", "art:a"]).ignore();
        both.add_command(read.clone());
        let (reply,): (redis::Value,) = both.query_async(&mut connection).await.unwrap();
        if reply != redis::Value::Nil {
            break;
        }
    }
    version(&redis, "a", 2).await;
    parts.inbox_is_empty().await;
    let pending: redis::Value = redis.ask(&["XPENDING", "samovar:inbox", "samovar", "-", "+", "10"]).await;
    assert_eq!(pending, redis::Value::Array(vec![]));
}

#[tokio::test]
async fn an_inbox_that_was_deleted_is_made_anew() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    redis.ask::<u64>(&["DEL", "samovar:inbox"]).await;
    upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    version(&redis, "a", 2).await;
}

#[tokio::test]
async fn changes_are_announced_and_what_stays_the_same_is_not() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let mut heard = redis.redis_url().client().unwrap().get_async_pubsub().await.unwrap();
    heard.subscribe("samovar:changed").await.unwrap();
    let mut heard = heard.into_on_message();
    let mut next = async || {
        let message = tokio::time::timeout(Duration::from_secs(20), futures_util::StreamExt::next(&mut heard));
        let text: String = message.await.expect("an announcement").unwrap().get_payload().unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let parts = Parts::of(&redis).await;
    parts.invalidate("art:a").await;
    at_rest(&redis).await;
    assert_eq!(parts.stat("unchanged").await, 1);
    upstream.edit("/art/a");
    parts.invalidate("art:a").await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "warmed"}));
    parts.invalidate(r#"{"keys": ["art:a"], "action": "evict"}"#).await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "evicted"}));
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "warmed"}));
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    assert_eq!(next().await, json!({"key": "art:a", "event": "gone"}));
}

#[tokio::test]
async fn an_invalidation_between_take_and_lease_leaves_the_entry_due() {
    let redis = TestRedis::start().await;
    let (upstream, parts) = (Upstream::start().await, Parts::of(&redis).await);
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &Note::default()).await.unwrap();
    parts.agenda.put(&job(), &[art("a")], When::Due(0), Trigger::Cron).await.unwrap();
    let claimed = parts.agenda.claim(&job(), 10, 10, LONG).await.unwrap().entries;
    let held = parts.agenda.take(&job(), &claimed, LONG).await.unwrap().remove(0).unwrap();
    parts.next_instant().await;
    let message = Message::parse("art:a").unwrap();
    parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
    let next = samovar::agenda::Next::At(parts.now().await + 60_000);
    let finished = samovar::agenda::Finished { key: "art:a".into(), score: held, next, outcome: None };
    parts.agenda.finish(&job(), &[finished], "").await.unwrap();
    let due = Due::from_score(parts.score("a").await.unwrap());
    assert_eq!((due.state, due.trigger), (State::Urgent, Trigger::Invalidation));
    // And the value counts as fresh to nobody, until it was fetched anew.
    for fresh in [Fresh { since: Some(1), ..Fresh::default() }, Fresh { any: true, ..Fresh::default() }] {
        let leased = parts.store.lease(&art("a"), Duration::from_millis(1), fresh).await.unwrap();
        assert!(matches!(leased, Leased::Yes(_)), "{leased:?}");
        eventually("the lease is over", async || redis.keys("samovar:lease:*").await.is_empty()).await;
    }
}

#[tokio::test]
async fn a_lease_that_ran_out_cannot_commit() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let late = parts.lease("a", Duration::from_millis(20)).await;
    eventually("the lease is over", async || redis.keys("samovar:lease:*").await.is_empty()).await;
    let (key, note) = (art("a"), Note::default());
    assert_eq!(parts.store.commit(&key, &late, "1", TTL, &note).await.unwrap(), Written::Lost);
    let present = parts.lease("a", LONG).await;
    assert_eq!(parts.store.commit(&key, &late, "1", TTL, &note).await.unwrap(), Written::Lost);
    assert_eq!(parts.store.gone(&key, &late, &note).await.unwrap(), Written::Lost);
    assert_eq!(parts.store.extend(&key, &late, TTL, &note).await.unwrap(), Written::Lost);
    assert_eq!(parts.store.release(&key, &late.token, Some(&note)).await.unwrap(), None);
    assert_eq!(redis.get("art:a").await, None);
    let written = parts.store.commit(&key, &present, "2", TTL, &note).await.unwrap();
    assert!(matches!(written, Written::Done { changed: true, .. }), "the present lease is unharmed: {written:?}");
}

#[tokio::test]
async fn an_entry_is_leased_once_at_a_time() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    let other = parts.store.lease(&art("a"), LONG, Fresh::default()).await.unwrap();
    assert!(matches!(other, Leased::Busy(left) if left > Duration::from_secs(50)), "{other:?}");
    parts.store.release(&art("a"), &lease.token, None).await.unwrap();
    parts.lease("a", LONG).await;
}

#[tokio::test]
async fn a_fenced_commit_keeps_the_lease_and_begins_anew() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (key, note) = (art("a"), Note::default());
    let lease = parts.lease("a", LONG).await;
    assert!(parts.store.invalidate(&key, parts.now().await, Removal::Refresh).await.unwrap().fenced);
    let written = parts.store.commit(&key, &lease, "1", TTL, &note).await.unwrap();
    assert!(matches!(written, Written::Again(start) if start >= lease.start), "{written:?}");
    assert_eq!(redis.get("art:a").await, None);
    let other = parts.store.lease(&key, LONG, Fresh::default()).await.unwrap();
    assert!(matches!(other, Leased::Busy(_)), "nobody gets in between: {other:?}");
    let Written::Again(start) = written else { unreachable!() };
    let renewed = Lease { start, ..lease };
    let written = parts.store.commit(&key, &renewed, "2", TTL, &note).await.unwrap();
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
    assert_eq!(redis.get("art:a").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn no_second_message_lifts_the_fence_of_the_first() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (key, note) = (art("a"), Note::default());
    for (first, second) in [(Removal::Evict, Removal::Refresh), (Removal::Refresh, Removal::Evict)] {
        let lease = parts.lease("a", LONG).await;
        let at = parts.now().await;
        assert!(parts.store.invalidate(&key, at, first).await.unwrap().fenced);
        assert!(!parts.store.invalidate(&key, lease.start - 1, second).await.unwrap().fenced);
        assert!(parts.store.invalidate(&key, at, second).await.unwrap().fenced);
        let written = parts.store.commit(&key, &lease, "1", TTL, &note).await.unwrap();
        assert!(matches!(written, Written::Again(_) | Written::Evicted), "{written:?}");
        assert_eq!(redis.get("art:a").await, None);
        parts.store.release(&key, &lease.token, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_redis_that_is_full_still_evicts_and_fences() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &Note::default()).await.unwrap();
    let lease = parts.lease("a", LONG).await;
    parts.next_instant().await;
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let handled = parts.store.invalidate(&art("a"), parts.now().await, Removal::Evict).await.unwrap();
    assert!(handled.fenced && handled.removed);
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let written = parts.store.commit(&art("a"), &lease, "2", TTL, &Note::default()).await.unwrap();
    assert_eq!((written, redis.get("art:a").await), (Written::Evicted, None));
}

#[tokio::test]
async fn a_value_that_somebody_else_wrote_is_not_extended() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (key, note) = (art("a"), Note::default());
    let first = parts.lease("a", LONG).await;
    parts.store.commit(&key, &first, "1", TTL, &note).await.unwrap();
    let second = parts.lease("a", LONG).await;
    redis.set("art:a", "\"theirs\"", TTL / 2).await;
    assert_eq!(parts.store.extend(&key, &second, TTL, &note).await.unwrap(), Written::Foreign);
    assert!(redis.ttl("art:a").await.unwrap() <= TTL / 2);
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    assert_eq!(parts.store.extend(&key, &second, TTL, &note).await.unwrap(), Written::Foreign);
    let written = parts.store.commit(&key, &second, "2", TTL, &note).await.unwrap();
    assert!(matches!(written, Written::Done { .. }), "the lease is kept for a whole answer: {written:?}");
}

/// The API wrote its own value while the upstream was being asked with the validators of ours.
#[tokio::test]
async fn a_304_does_not_bless_what_somebody_else_wrote() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let gate = upstream.gate("/art/a");
    publish(&redis, "art:a").await;
    gate.arrived(1).await;
    redis.set("art:a", r#"{"version": 0}"#, TTL).await;
    gate.open();
    version(&redis, "a", 1).await;
    let asked = upstream.requests("/art/a");
    let conditional: Vec<bool> = asked.iter().map(|call| call.headers.contains_key("if-none-match")).collect();
    assert_eq!(conditional, [false, true, false]);
}

#[tokio::test]
async fn a_failed_fetch_keeps_the_invalidation_open() {
    let (redis, upstream, _jobs, _worker) = warmed(&["a"]).await;
    let parts = Parts::of(&redis).await;
    upstream.on("/art/a", Reply::status(500));
    parts.invalidate("art:a").await;
    eventually("the fetch has failed", async || parts.stat("failed").await > 0).await;
    let meta: Meta = parts.meta("a").await.unwrap();
    assert!(meta.invalidated > 0, "{meta:?}");
    assert_eq!(redis.json("art:a").await.unwrap()["version"], 1);
    upstream.edit("/art/a");
    version(&redis, "a", 2).await;
    assert_eq!(parts.meta("a").await.unwrap().invalidated, 0);
}

/// All of them hear it, and one may make the entry due again while another fetches it already.
#[tokio::test]
async fn after_four_workers_hear_it_no_entry_waits_for_a_lease_to_end() {
    let (redis, upstream, jobs, _worker) = warmed(&["a"]).await;
    let _more: Vec<WorkerProcess> = (0..3).map(|_| worker(&redis, &jobs)).collect();
    listening(&redis, 4).await;
    for _ in 0..20 {
        let edited = upstream.edit("/art/a");
        publish(&redis, "art:a").await;
        version(&redis, "a", edited).await;
        at_rest(&redis).await;
    }
    let parts = Parts::of(&redis).await;
    eventually("it is looked at once more, and then waits for its expiry", async || {
        parts.score("a").await.map(|score| Due::from_score(score).trigger) == Some(Trigger::Expiry)
    })
    .await;
    assert_eq!(upstream.most_in_flight("/art/a"), 1);
}

/// Step by step: while the holder of the lease fetches, the entry is made due, claimed and taken by another worker.
#[tokio::test]
async fn a_worker_that_finds_a_fetch_handles_what_the_fetch_leaves() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let lease = parts.lease("a", LONG).await;
    let _worker = worker(&redis, &jobs);
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    eventually("the worker has found it busy", async || parts.stat("busy").await > 0).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &Note::default()).await.unwrap();
    // The lease would have held for longer than this test waits.
    at_rest(&redis).await;
    assert_eq!((redis.get("art:a").await.as_deref(), upstream.calls("/art/a")), (Some("1"), 0));
}

/// Each of them would be read, one after the other, by every worker that starts.
#[tokio::test]
async fn messages_of_any_size_in_the_inbox_are_dropped_unread() {
    let (redis, upstream, _jobs, mut worker) = warmed(&["a"]).await;
    let before = worker.resident();
    let huge = vec![b'x'; 16 << 20];
    let mut add = redis::pipe();
    // At once, so that all but the first are there when it looks.
    add.atomic();
    for _ in 0..16 {
        add.cmd("XADD").arg("samovar:inbox").arg("*").arg("message").arg(&huge).ignore();
    }
    add.exec_async(&mut redis.connection().await).await.unwrap();
    upstream.edit("/art/a");
    Parts::of(&redis).await.invalidate("art:a").await;
    version(&redis, "a", 2).await;
    worker.wait_for_log(&["cannot follow a message in the inbox", "longer than 1048576"]).await;
    let grown = worker.most_resident().saturating_sub(before);
    assert!(grown < 100 << 20, "it held {} MiB more", grown >> 20);
}

#[tokio::test]
async fn signals_of_strangers_are_not_kept() {
    let (redis, upstream, _jobs, worker) = warmed(&["a"]).await;
    let before = worker.resident();
    let mut connection = redis.connection().await;
    for round in 0..50 {
        let mut flood = redis::pipe();
        for n in 0..1_000 {
            let stranger = format!("due {round}-{n}-{}", "x".repeat(4_000));
            flood.cmd("PUBLISH").arg("samovar:signal").arg(stranger).ignore();
        }
        flood.exec_async(&mut connection).await.unwrap();
        // Redis cuts off whoever lags too far behind.
        eventually("all is on its way", async || {
            redis.ask::<String>(&["CLIENT", "LIST", "TYPE", "pubsub"]).await.contains(" omem=0 ")
        })
        .await;
    }
    // It is heard after all of them.
    upstream.edit("/art/a");
    publish(&redis, "art:a").await;
    version(&redis, "a", 2).await;
    eventually("what it held meanwhile is free again", async || {
        let grown = worker.resident().saturating_sub(before);
        if grown < 80 << 20 { Ok(()) } else { Err(grown >> 20) }
    })
    .await;
}

/// All that it was given has been in its hands for an hour; the claim time of the worker is long.
#[tokio::test]
async fn a_backlog_of_a_dead_worker_is_taken_over_to_its_end() {
    let (redis, upstream) = (TestRedis::start().await, Upstream::start().await);
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let mut connection = redis.connection().await;
    let mut add = redis::pipe();
    for n in 0..5_000 {
        add.cmd("XADD").arg("samovar:inbox").arg("*").arg("message").arg(format!("other:{n}"));
    }
    let ids: Vec<String> = add.query_async(&mut connection).await.unwrap();
    let mut given = redis::pipe();
    given
        .cmd("XREADGROUP")
        .arg(&["GROUP", "samovar", "dead", "COUNT", "5000", "STREAMS", "samovar:inbox", ">"])
        .ignore();
    given.cmd("XCLAIM").arg(&["samovar:inbox", "samovar", "dead", "0"]).arg(&ids).arg(&["IDLE", "3600000", "JUSTID"]);
    given.exec_async(&mut connection).await.unwrap();
    let jobs = Art::of(&upstream).folder();
    let _worker = talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "10m").spawn();
    parts.inbox_is_empty().await;
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
        at = first + i64::try_from(n).unwrap() / 100 - 200;
        let removal = if n % 2 == 0 { Removal::Evict } else { Removal::Refresh };
        parts.store.stamp(&tag(n), at, removal).await.unwrap();
    }
    assert!(redis.keys("samovar:tag:*").await.is_empty());
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:stamps"]).await, 10_001);
    let stamps = parts.store.tag(&art("a"), &[tag(10_099), tag(10_098), tag(0), "unheard of".to_owned()], TTL).await;
    let stamps = stamps.unwrap().into_iter().map(|stamp| stamp.map(|stamp| (stamp.at, stamp.removal)));
    let stamps: Vec<Option<(i64, Removal)>> = stamps.collect();
    assert_eq!(stamps[..2], [Some((at, Removal::Refresh)), Some((at, Removal::Evict))]);
    // The latest of those that were forgotten stands for what is not known.
    let forgotten = Some((first - 200, Removal::Refresh));
    assert_eq!(stamps[2..], [forgotten, forgotten]);
    // From now on it has an entry, and a stamp of its own.
    parts.store.stamp(&tag(0), at, Removal::Evict).await.unwrap();
    let stamp = parts.store.tag(&art("a"), &[tag(0)], TTL).await.unwrap()[0].unwrap();
    assert_eq!((stamp.at, stamp.removal), (at, Removal::Evict));
}
