//! Values that somebody else wrote, and keys of another type.

use samovar::agenda::{Due, State};
use samovar::entry::Trigger;
use samovar::protocol::Message;
use samovar::store::{LastAttempt, Removal, Written};
use serde_json::{Value, json};

use super::{LONG, TTL, warmed};
use crate::support::{
    Art, Finished, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, at_rest, both, eventually, job, publish,
    samovar, talkative, version,
};

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
    parts.store.commit(&art("ours"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
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
                store.commit(&entry, &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
            }
            let lease = parts.lease(&name, LONG).await;
            let theirs = replace(&redis, &key, command).await;
            let before: i64 = redis.ask(&["PEXPIRETIME", &key]).await;
            let last_attempt = LastAttempt::default();
            let expected = match script {
                "extend" | "unasked" => Some(Written::Foreign),
                "outlive" => None,
                _ => Some(Written::WrongType),
            };
            let written = match script {
                "gone" => Some(store.gone(&entry, &lease, &last_attempt).await.unwrap()),
                "extend" => Some(store.extend(&entry, &lease, TTL, &last_attempt).await.unwrap()),
                "unasked" => Some(store.extend_unasked(&entry, &lease, TTL, &last_attempt).await.unwrap()),
                "outlive" => {
                    assert_eq!(store.extend_stale(&entry, 2 * TTL, 2 * TTL).await.unwrap(), None, "{name}");
                    None
                }
                _ => Some(store.commit(&entry, &lease, "2", TTL, &last_attempt).await.unwrap()),
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
        assert!(reason.contains("another program wrote"), "{reason}");
        assert_eq!(redis.ask::<Vec<u8>>(&["DUMP", "art:a"]).await, theirs, "{status}");
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
    let last_attempt = LastAttempt { failures: 3, ..LastAttempt::default() };
    assert_eq!(parts.store.release(&art("a"), &lease.token, Some(&last_attempt)).await.unwrap(), None);
    assert_eq!(parts.meta("a").await.unwrap().last_attempt.failures, 3);
}

/// Makes a key somebody else's list.
const STRANGER: &str = "redis.call('DEL', KEYS[1]) return redis.call('LPUSH', KEYS[1], 'x')";

#[tokio::test]
async fn a_value_that_somebody_else_wrote_is_not_extended() {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    let (key, last_attempt) = (art("a"), LastAttempt::default());
    let first = parts.lease("a", LONG).await;
    parts.store.commit(&key, &first, "1", TTL, &last_attempt).await.unwrap();
    let second = parts.lease("a", LONG).await;
    redis.set("art:a", "\"theirs\"", TTL / 2).await;
    assert_eq!(parts.store.extend(&key, &second, TTL, &last_attempt).await.unwrap(), Written::Foreign);
    assert!(redis.ttl("art:a").await.unwrap() <= TTL / 2);
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    assert_eq!(parts.store.extend(&key, &second, TTL, &last_attempt).await.unwrap(), Written::Foreign);
    let written = parts.store.commit(&key, &second, "2", TTL, &last_attempt).await.unwrap();
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

/// A fleet whose entry `art:a` was warm, until another program replaced its value by a hash.
struct Replaced {
    redis: TestRedis,
    _upstream: Upstream,
    worker: WorkerProcess,
}

impl Replaced {
    async fn start() -> Self {
        let (redis, upstream) = both().await;
        let jobs = Art::of(&upstream).list(["a", "b"]).folder();
        for name in ["a", "b"] {
            upstream.edit(&format!("/art/{name}"));
        }
        let worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
        for name in ["a", "b"] {
            version(&redis, name, 1).await;
        }
        at_rest(&redis).await;
        redis.ask::<u64>(&["DEL", "art:a"]).await;
        redis.ask::<u64>(&["HSET", "art:a", "f", "theirs"]).await;
        Self { redis, _upstream: upstream, worker }
    }

    /// Runs a command. Its output is one line.
    async fn run(&self, args: &[&str]) -> Finished {
        let mut done = samovar(args).redis(&self.redis).env("SAMOVAR_JOBS", "/nowhere").run().await;
        done.stdout = done.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        done
    }
}

const LEFT_ALONE: &str = "holds a hash, which another program wrote and Samovar leaves alone";

#[tokio::test]
async fn a_wait_fails_for_a_key_of_another_type() {
    let mut stage = Replaced::start().await;
    let done = stage.run(&["warm", "art:a", "--wait"]).await;
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.starts_with("0 warmed, 0 unchanged, 0 gone, 1 failed"), "{done:?}");
    assert!(done.stderr.contains("art:a: the key holds a hash"), "{done:?}");
    let done = stage.run(&["warm", "art", "--wait"]).await;
    assert!(done.code == Some(1) && done.stdout.contains(", 1 failed"), "{done:?}");
    let url = format!("{}/warm?wait=true", stage.worker.http().await);
    let client = reqwest::Client::builder().timeout(LONG).build().unwrap();
    let answer = client.post(url).json(&json!({"keys": ["art:a"]})).send().await.unwrap();
    let (status, problem) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
    let result = &problem["result"];
    assert_eq!((status, &result["unchanged"], &result["failed"][0]["key"]), (502, &json!(0), &json!("art:a")));
    assert!(result["failed"][0]["reason"].as_str().unwrap().contains("the key holds a hash"), "{problem}");
}

#[tokio::test]
async fn a_key_of_another_type_is_told_with_its_remedy() {
    let stage = Replaced::start().await;
    publish(&stage.redis, "art:a").await;
    let remedy = "`DEL art:a`, then `samovar warm art:a` fetches it";
    eventually("get tells it", async || {
        let shown = stage.run(&["get", "art:a"]).await.stdout;
        let is_told = ["invalidated ", "dead letter", LEFT_ALONE, remedy].iter().all(|text| shown.contains(text));
        if is_told && !shown.contains("absent") { Ok(()) } else { Err(shown) }
    })
    .await;
    let shown = stage.run(&["get", "art:a", "--json"]).await.stdout;
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["other_type"], "hash", "{shown}");
    let shown = stage.run(&["jobs", "art", "--absent"]).await.stdout;
    assert!(shown.starts_with("1 of 2 entries that art keeps warm has no value."), "{shown}");
    assert!(shown.contains(LEFT_ALONE) && shown.contains(remedy), "{shown}");
    let shown = stage.run(&["dead"]).await.stdout;
    assert!(shown.contains(LEFT_ALONE) && shown.contains("`DEL KEY`, then `samovar warm KEY`"), "{shown}");
    stage.redis.ask::<u64>(&["DEL", "art:a"]).await;
    let done = stage.run(&["warm", "art:a", "--wait"]).await;
    assert!(done.code == Some(0) && done.stdout.starts_with("1 warmed"), "{done:?}");
    assert!(stage.run(&["dead"]).await.stdout.starts_with("No dead letters"));
}
