//! A rolling deploy: workers with an earlier job file end nothing that belongs to a newer one.
use crate::support::{Art, Reply, at_rest, both, listening, readable_key, worker};
use serde_json::json;

/// So many that a worker with the earlier file certainly gets some.
const ENTRIES: usize = 40;

fn names() -> Vec<String> {
    (0..ENTRIES).map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn an_earlier_key_ends_no_entry_of_a_newer_key() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let base = Art::of(&upstream).list(names()).warm("every = \"30m\"");
    let jobs = base.folder();
    let mut first = worker(&redis, &jobs);
    let second = worker(&redis, &jobs);
    listening(&redis, 2).await;
    for name in names() {
        readable_key(&redis, &format!("art:{name}")).await;
    }
    jobs.write("art.toml", &base.toml().replace("art:{name}", "work:{name}"));
    first.hangup();
    first.wait_for_log(&["the new jobs are in use"]).await;
    for name in names() {
        readable_key(&redis, &format!("work:{name}")).await;
    }
    at_rest(&redis).await;
    for name in names() {
        assert_eq!(upstream.calls(&format!("/art/{name}")), 2, "{name} is fetched once for each key");
    }
    drop(second);
}

#[tokio::test]
async fn a_404_of_an_earlier_source_ends_no_entry_of_a_newer() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| match call.path().starts_with("/new/") {
        true => Reply::json(json!({"path": call.path()})),
        false => Reply::status(404),
    });
    let base = Art::of(&upstream).warm("every = \"30m\"\ngone_guard = \"off\"");
    let jobs = base.folder();
    let first = worker(&redis, &jobs);
    let second = worker(&redis, &jobs);
    listening(&redis, 2).await;
    jobs.write("art.toml", &base.list(names()).toml().replace("/art/", "/new/"));
    first.hangup();
    for name in names() {
        upstream.called(&format!("/new/{name}"), 1).await;
    }
    drop(second);
}

#[tokio::test]
async fn an_earlier_list_ends_no_entry_that_a_newer_one_names() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.path()})));
    let base = Art::of(&upstream).ttl("4s").warm("every = \"30m\"");
    let jobs = base.folder();
    let first = worker(&redis, &jobs);
    let second = worker(&redis, &jobs);
    listening(&redis, 2).await;
    jobs.write("art.toml", &base.list(names()).toml());
    first.hangup();
    for name in names() {
        upstream.called(&format!("/art/{name}"), 4).await;
    }
    drop(second);
}
