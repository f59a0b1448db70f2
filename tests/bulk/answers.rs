//! The part of each entry in an answer for many.

use std::sync::Arc;

use serde_json::json;

use super::{BY_NAME, Museum, answer_items, asked, bulk, item, jobs, listed, museum, names, served};
use crate::support::{Parts, Reply, at_rest, both, eventually, samovar, worker};

#[tokio::test]
async fn entries_without_an_item_are_gone_or_fail() {
    for absent in ["gone", "failed"] {
        let (redis, upstream) = both().await;
        let museum = Museum::of(upstream, names(30));
        let source = format!("{}\nabsent = \"{absent}\"", bulk(100));
        let jobs = jobs(&museum.upstream, BY_NAME, &source, &listed(&names(30)));
        let _worker = worker(&redis, &jobs);
        served(&redis, &names(30), 1).await;
        at_rest(&redis).await;
        for name in names(30) {
            museum.edit(&name, 2);
        }
        museum.remove("n7");
        let parts = Parts::of(&redis).await;
        parts.invalidate("{\"jobs\": [\"art\"]}").await;
        let others: Vec<String> = names(30).into_iter().filter(|name| name != "n7").collect();
        served(&redis, &others, 2).await;
        eventually("the entry without an item ends", async || {
            let outcome = parts.meta("n7").await.and_then(|meta| meta.last_attempt.outcome);
            outcome.is_some_and(|outcome| outcome.as_str() == absent)
        })
        .await;
        assert_eq!(redis.get("art:n7").await.is_some(), absent == "failed", "{absent}");
    }
}

#[tokio::test]
async fn an_unusable_item_fails_alone() {
    let (redis, museum, _) = museum(20, 100).await;
    let source = format!("{}\naccept = \"{{{{ value.version < 9 }}}}\"", bulk(100));
    let jobs = jobs(&museum.upstream, BY_NAME, &source, &listed(&names(20)));
    museum.edit("n3", 9);
    let _worker = worker(&redis, &jobs);
    let others: Vec<String> = names(20).into_iter().filter(|name| name != "n3").collect();
    served(&redis, &others, 1).await;
    let reason = reason(&redis, "n3").await;
    assert!(reason.starts_with("item in the answer of") && reason.contains("is refused by `accept`"), "{reason}");
}

/// Waits for the reason of an entry's last attempt.
async fn reason(redis: &crate::support::TestRedis, name: &str) -> String {
    let parts = Parts::of(redis).await;
    eventually("it has a reason", async || parts.meta(name).await.and_then(|meta| meta.last_attempt.reason)).await
}

#[tokio::test]
async fn an_item_without_a_name_lets_no_entry_count_as_gone() {
    let (redis, museum, jobs) = museum(3, 10).await;
    museum.upstream.on("/artworks", Reply::json(json!({ "data": [item("n0", 1), { "title": "?" }, item("n2", 1)] })));
    let _worker = worker(&redis, &jobs);
    served(&redis, &["n0".to_owned(), "n2".to_owned()], 1).await;
    let reason = reason(&redis, "n1").await;
    assert!(reason.contains("has no item of this entry, and its item 2 gives no `name`"), "{reason}");
}

#[tokio::test]
async fn an_answer_about_other_entries_lets_none_count_as_gone() {
    let (redis, museum, jobs) = museum(2, 10).await;
    museum.upstream.on("/artworks", Reply::json(json!({ "data": [item("x", 1), item("y", 1)] })));
    let _worker = worker(&redis, &jobs);
    let reason = reason(&redis, "n0").await;
    assert!(reason.contains("and items of entries that were not asked for (2)"), "{reason}");
}

#[tokio::test]
async fn an_item_under_another_name_lets_no_entry_count_as_gone() {
    let (redis, museum, jobs) = museum(3, 10).await;
    museum.upstream.on("/artworks", Reply::json(json!({ "data": [item("n0", 1), item("N1", 1), item("n2", 1)] })));
    let _worker = worker(&redis, &jobs);
    served(&redis, &["n0".to_owned(), "n2".to_owned()], 1).await;
    let reason = reason(&redis, "n1").await;
    assert!(reason.contains("and items of entries that were not asked for (1)"), "{reason}");
}

/// The upstream lists five entries at most.
#[tokio::test]
async fn entries_that_a_short_answer_leaves_out_are_asked_for_again() {
    let (redis, museum, jobs) = museum(20, 20).await;
    let versions = Arc::clone(&museum.versions);
    museum.upstream.answer("/artworks", move |call, _| {
        let asked = asked(call);
        answer_items(&asked[..asked.len().min(5)], &versions)
    });
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(20), 1).await;
    at_rest(&redis).await;
    for name in names(20) {
        museum.edit(&name, 2);
    }
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    served(&redis, &names(20), 2).await;
    assert_eq!(parts.stat("gone").await, 0);
    let first: Vec<usize> = museum.groups().iter().take(4).map(Vec::len).collect();
    assert_eq!(first, [20, 15, 10, 5]);
}

#[tokio::test]
async fn a_name_with_two_items_fails_its_entry_alone() {
    let (redis, upstream) = both().await;
    upstream.on("/artworks", Reply::text("{\"n0\": {\"id\": \"n0\", \"version\": 1}, \"n1\": 1, \"n1\": 2}"));
    let jobs = jobs(&upstream, BY_NAME, "bulk = 10\nitem = { name = \"{{ name }}\" }", &listed(&names(2)));
    let _worker = worker(&redis, &jobs);
    served(&redis, &["n0".to_owned()], 1).await;
    let reason = reason(&redis, "n1").await;
    assert!(reason.contains("has 2 items of this entry"), "{reason}");
}

#[tokio::test]
async fn an_entry_with_two_items_fails() {
    let (redis, museum, jobs) = museum(2, 10).await;
    let items = [item("n0", 1), item("n1", 1), item("n1", 2)];
    museum.upstream.on("/artworks", Reply::json(json!({ "data": items })));
    let _worker = worker(&redis, &jobs);
    served(&redis, &["n0".to_owned()], 1).await;
    let reason = reason(&redis, "n1").await;
    assert!(reason.contains("has 2 items of this entry"), "{reason}");
}

#[tokio::test]
async fn a_cut_answer_overwrites_nothing() {
    let (redis, museum, jobs) = museum(20, 100).await;
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(20), 1).await;
    at_rest(&redis).await;
    let items: Vec<_> = names(20).iter().map(|name| item(name, 2)).collect();
    museum.upstream.on("/artworks", Reply::json(json!({ "data": items })).cut_after(300));
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    for name in names(20) {
        eventually("it fails", async || parts.meta(&name).await.is_some_and(|meta| meta.last_attempt.failures > 0))
            .await;
    }
    served(&redis, &names(20), 1).await;
}

#[tokio::test]
async fn items_by_name_are_told_apart_by_it_and_null_is_none() {
    let (redis, upstream) = both().await;
    upstream.answer("/artworks", |call, _| {
        let body = call.json();
        let asked = body["ids"].as_array().unwrap();
        let item = |name: &str| if name == "n1" { json!(null) } else { item(name, 1) };
        Reply::json(
            asked.iter().map(|name| (name.as_str().unwrap().to_owned(), item(name.as_str().unwrap()))).collect(),
        )
    });
    let source = "body = { ids = \"{{ entries | map(attribute='name') | list }}\" }\nbulk = 10\n\
                  item = { name = \"{{ name }}\" }";
    let jobs = jobs(&upstream, "/artworks", source, &listed(&names(3)));
    let _worker = worker(&redis, &jobs);
    served(&redis, &["n0".to_owned(), "n2".to_owned()], 1).await;
    let parts = Parts::of(&redis).await;
    eventually("the one without an item is gone", async || parts.stat("gone").await == 1).await;
    let asked: Vec<usize> =
        upstream.all_requests().iter().map(|call| call.json()["ids"].as_array().unwrap().len()).collect();
    assert_eq!(asked, [3, 1], "it is asked for once more, alone");
}

#[tokio::test]
async fn each_entry_of_a_request_has_its_inputs() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({ "code": call.path().replace('/', "c-") })));
    upstream.answer("/artworks", |call, _| {
        let items = asked(call).into_iter().map(|code| json!({ "name": code.replace("c-", ""), "code": code }));
        Reply::json(items.collect())
    });
    let code =
        format!("key = \"code:{{name}}\"\n[source]\nkind = \"http\"\nurl = \"{}/{{{{ name }}}}\"\n", upstream.url());
    let path = "/artworks?ids={{ entries | map(attribute='code.code') | join(',') }}";
    let rest = format!("[inputs]\ncode = \"code:{{name}}\"\n{}", listed(&names(3)));
    let jobs = jobs(&upstream, path, "bulk = 10\naccept = \"{{ value.code == code.code }}\"", &rest).job("code", &code);
    let _worker = worker(&redis, &jobs);
    eventually("each is made from its item", async || {
        let value = redis.json("art:n2").await;
        if value == Some(json!({ "name": "n2", "code": "c-n2" })) { Ok(()) } else { Err(value) }
    })
    .await;
}

#[tokio::test]
async fn check_shows_and_fetches_a_request_for_many() {
    let (redis, museum, jobs) = museum(25, 10).await;
    let checked = samovar(["check", "--fetch"]).redis(&redis).jobs(&jobs).run().await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for said in ["/artworks?ids=n0%2Cn1%2Cn2  for up to 10 entries", "✓ art: art:n0: "] {
        assert!(checked.stdout.contains(said), "{said}: {checked:?}");
    }
    assert_eq!(museum.groups(), [["n0", "n1", "n2"]]);
}

#[tokio::test]
async fn a_dry_run_counts_requests_and_not_entries() {
    let (redis, _museum, jobs) = museum(25, 10).await;
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(25), 1).await;
    let counted = samovar(["warm", "art", "--dry-run"]).redis(&redis).jobs(&jobs).run().await;
    assert!(counted.stdout.contains("25 entries of art: 3 fetches"), "{counted:?}");
}

#[tokio::test]
async fn another_number_of_entries_in_a_request_makes_nothing_anew() {
    let (redis, museum, jobs) = museum(25, 10).await;
    let mut worker = worker(&redis, &jobs);
    served(&redis, &names(25), 1).await;
    at_rest(&redis).await;
    let before = museum.groups().len();
    let text = std::fs::read_to_string(jobs.path().join("art.toml")).unwrap();
    jobs.write("art.toml", &text.replace("bulk = 10", "bulk = 20"));
    worker.hangup();
    worker.wait_for_log(&["the new jobs are in use"]).await;
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    eventually("they are asked for in larger groups", async || {
        museum.groups()[before..].iter().any(|group| group.len() == 20)
    })
    .await;
    at_rest(&redis).await;
    assert_eq!(museum.groups()[before..].iter().map(Vec::len).sum::<usize>(), 25, "by the invalidation alone");
}
