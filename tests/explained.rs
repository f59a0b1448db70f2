//! Words of `samovar warm` and `samovar invalidate` on entries that are not fetched, or not yet.

use serde_json::Value;

use crate::support::{
    Art, Finished, JobsFolder, Parts, Reply, TestRedis, at_rest, both, eventually, readable, samovar, worker,
};

async fn run(redis: &TestRedis, jobs: &JobsFolder, args: &[&str]) -> Finished {
    samovar(args).redis(redis).jobs(jobs).run().await
}

/// An upstream that had lost an entry answers with its value again: that may be the answer of a replica that lags.
#[tokio::test]
async fn an_answer_from_before_the_removal_counts_as_refused() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"10m\", \"20m\"]").folder();
    let _worker = worker(&redis, &jobs);
    let value = readable(&redis, "a").await;
    let parts = Parts::of(&redis).await;
    upstream.on("/art/a", Reply::status(404));
    parts.invalidate("art:a").await;
    eventually("it is gone", async || redis.get("art:a").await.is_none()).await;
    at_rest(&redis).await;
    upstream.on("/art/a", Reply::json(value));
    let refused = run(&redis, &jobs, &["warm", "art:a", "--wait"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.starts_with("0 warmed, 0 unchanged, 0 gone, 1 failed"), "{refused:?}");
    let why = "the upstream answered with the content from before the invalidation; the entry stays absent until it is \
               asked again at ";
    let [_, times] = Vec::from_iter(refused.stderr.split(&format!("art:a: {why}")))[..] else { panic!("{refused:?}") };
    assert!(times.contains(" UTC; any answer is stored at "), "{refused:?}");
    let shown = run(&redis, &jobs, &["get", "art:a"]).await.stdout;
    assert!(shown.contains("last attempt  deferred, ") && shown.contains(why) && !shown.contains("gone"), "{shown}");
    let shown = run(&redis, &jobs, &["get", "art:a", "--json"]).await.stdout;
    let entry: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&entry["last_outcome"], &entry["due_for"]), (&"deferred".into(), &"recheck".into()), "{entry}");
    let shown = run(&redis, &jobs, &["jobs", "art", "--absent"]).await.stdout;
    let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("art:a due in ") && shown.contains(why), "{shown}");
    assert_eq!((parts.stat("gone").await, parts.stat("deferred").await), (1, 1));
}

#[tokio::test]
async fn invalidate_says_which_absent_entries_the_refresh_fetches() {
    let (redis, upstream) = both().await;
    for name in ["a", "b"] {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).list(["a", "b"]).folder();
    let _worker = worker(&redis, &jobs);
    for name in ["a", "b"] {
        readable(&redis, name).await;
    }
    at_rest(&redis).await;
    let evict = r#"{"keys": ["art:a", "art:b", "art:x"], "action": "evict"}"#;
    Parts::of(&redis).await.invalidate(evict).await;
    let sent = run(&redis, &jobs, &["invalidate", "art:a"]).await;
    assert_eq!((sent.code, &*sent.stderr), (Some(0), "art:a has no value: the refresh fetches it.\n"), "{sent:?}");
    readable(&redis, "a").await;
    Parts::of(&redis).await.invalidate(evict).await;
    let sent = run(&redis, &jobs, &["invalidate", "art:a", "art:b", "art:x"]).await;
    let fetched = "2 of 3 keys have no value, such as art:a: the refresh fetches them.\n";
    let not = "art:x has no value: the refresh does not fetch it, since no job of a running worker keeps it warm";
    assert!(sent.stderr.starts_with(&format!("{fetched}{not}")), "{sent:?}");
    let sent = run(&redis, &jobs, &["invalidate", "art:x", "--force"]).await;
    let rule = "art:x has no value: a refresh fetches an absent entry only if its job keeps it warm";
    assert!(sent.stderr.starts_with(rule), "{sent:?}");
    let sent = run(&redis, &jobs, &["invalidate", "art:x", "--json"]).await;
    let told: Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!((told["absent"].to_string(), told["absent_fetched"].to_string()), ("[\"art:x\"]".into(), "[]".into()));
}

#[tokio::test]
async fn invalidate_tells_of_a_paused_job() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    assert_eq!(run(&redis, &jobs, &["pause", "art"]).await.code, Some(0));
    let told = "art was paused ";
    for (names, is_told) in [
        (&["art:a"][..], true),
        (&["--job", "art"], true),
        (&["--pattern", "a*"], true),
        (&["--job", "art", "--evict"], false),
        (&["--tag", "by:a", "--force"], false),
    ] {
        let sent = run(&redis, &jobs, &[&["invalidate"], names].concat()).await;
        assert_eq!((sent.code, sent.stderr.contains(told)), (Some(0), is_told), "{names:?}: {sent:?}");
    }
    let sent = run(&redis, &jobs, &["invalidate", "art:a", "--json"]).await;
    let told: Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!(told["jobs_paused"].to_string(), "[\"art\"]", "{told}");
}

#[tokio::test]
async fn invalidate_without_names_lists_all_ways_to_name_entries() {
    let refused = samovar(["invalidate"]).run().await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    for way in ["KEY", "--pattern <GLOB>", "--tag <TAG>", "--job <JOB>"] {
        assert!(refused.stderr.contains(way), "{way}: {refused:?}");
    }
}
