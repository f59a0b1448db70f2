//! What `samovar warm` and `samovar invalidate` say of entries that are not fetched, or not yet.

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
