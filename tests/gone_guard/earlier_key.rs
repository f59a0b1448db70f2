//! A job whose `key` was changed: entries of the earlier key are no part of it.

use samovar::entry::{EntryKey, Trigger};
use serde_json::{Value, json};

use super::{GUARD, When, all_held, all_served, at_rest, has_all, has_none, many, run};
use crate::support::{Parts, TestRedis, both, eventually, job, worker};

/// Waits until a job's agenda has these entries.
async fn on_the_agenda(redis: &TestRedis, expected: usize, glob: &str) {
    eventually(&format!("{expected} entries {glob} are on the agenda"), async || {
        let all: Vec<String> = redis.ask(&["ZRANGE", "samovar:agenda:{art}", "0", "-1"]).await;
        let prefix = glob.trim_end_matches('*');
        if all.len() == expected && all.iter().all(|key| key.starts_with(prefix)) { Ok(()) } else { Err(all) }
    })
    .await;
}

#[tokio::test]
async fn entries_of_an_earlier_key_do_not_count() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let base = many(&upstream, 110, "");
    let jobs = base.folder();
    let mut worker = worker(&redis, &jobs);
    all_served(&redis, 110).await;
    jobs.write("art.toml", &base.toml().replace("art:{name}", "work:{name}"));
    worker.hangup();
    worker.wait_for_log(&["the key pattern has changed: entries of the earlier one are left to expire", "110"]).await;
    on_the_agenda(&redis, 110, "work:*").await;
    at_rest(&redis).await;
    all_served(&redis, 110).await;
    has_none(&upstream);
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    // A tenth may go.
    all_held(&redis, 99).await;
    assert_eq!(redis.ask::<usize>(&["HGET", GUARD, "of"]).await, 110);
    assert_eq!((redis.keys("work:*").await.len(), parts.stat("gone").await), (99, 11));
}

#[tokio::test]
async fn an_entry_of_an_earlier_key_ends_as_unowned() {
    let (redis, upstream) = both().await;
    has_all(&upstream, 1);
    let base = many(&upstream, 1, "");
    let jobs = base.folder();
    jobs.write("art.toml", &base.toml().replace("art:{name}", "work:{name}"));
    let worker = worker(&redis, &jobs);
    on_the_agenda(&redis, 1, "work:*").await;
    let parts = Parts::of(&redis).await;
    eventually("the entry of the new key is warm", async || parts.stat("warmed").await == 1).await;
    parts.agenda.put(&job(), &[EntryKey::new("art:0")], When::NOW, Trigger::Expiry).await.unwrap();
    eventually("it has left", async || parts.stat("unowned").await == 1).await;
    on_the_agenda(&redis, 1, "work:*").await;
    assert_eq!(parts.stat("gone").await, 0, "nobody answered 404");
    let shown = run(&redis, &jobs, &["jobs", "art", "--json"]).await.stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown[0]["outcomes"]["unowned"], &shown[0]["last"]["outcome"]), (&json!(1), &json!("unowned")));
    let reason = shown[0]["last"]["reason"].as_str().unwrap();
    assert!(reason.contains("key pattern has changed") && reason.contains("nothing makes it anew"), "{reason}");
    assert!(worker.log().iter().any(|line| line.contains("outcome=unowned")), "{:?}", worker.log());
}
