//! Which entries share a request, and how many requests there are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{BY_NAME, Museum, answer_items, asked, bulk, jobs, listed, museum, names, served};
use crate::support::{
    Parts, Reply, at_rest, both, eventually, eventually_within, hasty_worker, number_from_environment, samovar,
    talkative, worker,
};

/// Returns the number of entries of a test, which `SAMOVAR_BULK_ENTRIES` raises.
fn entries(fewest: usize) -> usize {
    let asked = number_from_environment("SAMOVAR_BULK_ENTRIES").and_then(|entries| usize::try_from(entries).ok());
    asked.unwrap_or(fewest).max(fewest)
}

#[tokio::test]
async fn many_entries_take_few_requests() {
    let entries = entries(2_000);
    let (redis, museum, jobs) = museum(entries, 100).await;
    let _worker = samovar(["worker"]).redis(&redis).jobs(&jobs).spawn();
    served(&redis, &names(entries), 1).await;
    let groups = museum.groups();
    let all: BTreeSet<&String> = groups.iter().flatten().collect();
    assert_eq!((all.len(), groups.iter().flatten().count()), (entries, entries), "each is asked for once");
    assert!(groups.len() <= entries / 90, "{}: {:?}", groups.len(), groups.iter().map(Vec::len).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_refused_entry_is_found_by_halves() {
    let (redis, museum, jobs) = museum(64, 64).await;
    let versions = Arc::clone(&museum.versions);
    museum.upstream.answer("/artworks", move |call, _| {
        let asked = asked(call);
        if asked.contains(&"n40".to_owned()) {
            return Reply::status(if asked.len() == 1 { 404 } else { 400 });
        }
        answer_items(&asked, &versions)
    });
    let _worker = worker(&redis, &jobs);
    let others: Vec<String> = names(64).into_iter().filter(|name| name != "n40").collect();
    served(&redis, &others, 1).await;
    let parts = Parts::of(&redis).await;
    eventually("the refused one is gone", async || parts.stat("gone").await == 1).await;
    let groups = museum.groups();
    // The group, and two halves of each group that the entry is in.
    assert!(groups.len() <= 13 && groups.contains(&vec!["n40".to_owned()]), "{groups:?}");
}

#[tokio::test]
async fn a_failing_upstream_is_asked_for_no_halves() {
    let (redis, museum, jobs) = museum(50, 50).await;
    let versions = Arc::clone(&museum.versions);
    museum.upstream.answer("/artworks", move |call, count| {
        if count <= 2 {
            return Reply::status(500);
        }
        answer_items(&asked(call), &versions)
    });
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(50), 1).await;
    let sizes: Vec<usize> = museum.groups().iter().map(Vec::len).collect();
    assert_eq!(sizes, [50, 50, 50], "retried together");
}

#[tokio::test]
async fn an_entry_invalidated_in_flight_is_fetched_again_alone() {
    let (redis, museum, jobs) = museum(20, 100).await;
    let gate = museum.upstream.gate("/artworks");
    let _worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    museum.edit("n5", 2);
    Parts::of(&redis).await.invalidate("{\"keys\": [\"art:n5\"]}").await;
    gate.open();
    let others: Vec<String> = names(20).into_iter().filter(|name| name != "n5").collect();
    served(&redis, &others, 1).await;
    served(&redis, &["n5".to_owned()], 2).await;
    at_rest(&redis).await;
    let groups = museum.groups();
    assert_eq!(groups[0].len(), 20);
    assert!(groups[1..].iter().all(|group| *group == ["n5"]), "{groups:?}");
}

#[tokio::test]
async fn rechecks_of_many_entries_share_their_requests() {
    let (redis, upstream) = both().await;
    let museum = Museum::of(upstream, names(1_000));
    let rest = listed(&names(1_000)).replace("[\"10m\"]", "[\"4s\"]");
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(1_000), &rest);
    let _worker = samovar(["worker"]).redis(&redis).jobs(&jobs).spawn();
    served(&redis, &names(1_000), 1).await;
    at_rest(&redis).await;
    let first = museum.groups().len();
    let parts = Parts::of(&redis).await;
    parts.invalidate("{\"jobs\": [\"art\"]}").await;
    eventually("each is fetched, and rechecked", async || {
        let asked = museum.groups()[first..].iter().map(Vec::len).sum::<usize>();
        if asked >= 2_000 { Ok(()) } else { Err(asked) }
    })
    .await;
    let sizes: Vec<usize> = museum.groups()[first..].iter().map(Vec::len).collect();
    // The entries of the message come in as many groups as it takes to put them on the queue.
    let mut fetched = 0;
    let rechecks = sizes.iter().filter(|size| {
        fetched += *size;
        fetched > 1_000
    });
    assert!(rechecks.count() <= 2, "many requests for a recheck of all: {sizes:?}");
}

#[tokio::test]
async fn long_names_make_smaller_groups() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..100).map(|number| format!("{number}-{}", "x".repeat(200))).collect();
    let museum = Museum::of(upstream, names.clone());
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(100), &listed(&names));
    let _worker = worker(&redis, &jobs);
    served(&redis, &names, 1).await;
    let requests = museum.upstream.all_requests();
    assert!(requests.iter().all(|call| call.target.len() <= 8_000), "as many servers take no longer URL");
    assert!(requests.len() <= 8, "{}", requests.len());
}

#[tokio::test]
async fn a_group_of_a_killed_worker_is_fetched_by_another() {
    let (redis, museum, jobs) = museum(60, 20).await;
    let gate = museum.upstream.gate("/artworks");
    let mut first = hasty_worker(&redis, &jobs);
    gate.arrived(3).await;
    first.kill9();
    gate.open();
    let _second = hasty_worker(&redis, &jobs);
    served(&redis, &names(60), 1).await;
}

/// Each entry that is due alone at first joins the others at their refreshes.
#[tokio::test]
async fn refreshes_of_many_entries_stay_few_requests() {
    let (redis, upstream) = both().await;
    let entries = entries(300);
    let museum = Museum::of(upstream, names(entries));
    let rest = listed(&names(entries)).replace("[warm]\n", "[warm]\nahead = \"4s\"\n");
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(100), &rest);
    let text = std::fs::read_to_string(jobs.path().join("art.toml")).unwrap();
    let jobs = jobs.job("art", &text.replace("ttl = \"1h\"", "ttl = \"10s\""));
    let _worker = samovar(["worker"]).redis(&redis).jobs(&jobs).spawn();
    served(&redis, &names(entries), 1).await;
    let parts = Parts::of(&redis).await;
    for name in ["n1", "n2", "n3"] {
        museum.edit(name, 2);
        parts.invalidate(&format!("{{\"keys\": [\"art:{name}\"]}}")).await;
    }
    let first = museum.groups().len();
    eventually_within(Duration::from_secs(60), "each is refreshed four times", async || {
        let asked = museum.groups()[first..].iter().map(Vec::len).sum::<usize>();
        if asked >= entries * 4 { Ok(()) } else { Err(asked) }
    })
    .await;
    let sizes: Vec<usize> = museum.groups()[first..].iter().map(Vec::len).collect();
    println!("requests for 4 × {entries} refreshes: {}: {sizes:?}", sizes.len());
    // Twelve, if those that were invalidated alone did not go their own way for a time.
    assert!(sizes.len() <= entries * 4 / 60, "{} requests for 4 × {entries} refreshes: {sizes:?}", sizes.len());
}

/// A crash counts for each entry of a group; from the second on each of them is asked for alone.
#[tokio::test]
async fn poison_in_a_group_is_given_up_and_the_others_are_warmed() {
    let (redis, museum, _) = museum(20, 10).await;
    let (victim, versions) = (Arc::new(AtomicI32::new(0)), Arc::clone(&museum.versions));
    let pid = Arc::clone(&victim);
    museum.upstream.answer("/artworks", move |call, _| {
        let asked = asked(call);
        if asked.contains(&"poison".to_owned()) {
            let _ = kill(Pid::from_raw(pid.load(Ordering::Relaxed)), Signal::SIGKILL);
            return Reply::silence();
        }
        answer_items(&asked, &versions)
    });
    let mut all = names(20);
    all.insert(7, "poison".to_owned());
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(10), &listed(&all));
    let start = || talkative(&redis, &jobs).env("SAMOVAR_CLAIM", "10s").spawn();
    let mut minded = start();
    eventually_within(Duration::from_secs(90), "it is given up", async || {
        victim.store(minded.pid().cast_signed(), Ordering::Relaxed);
        if !minded.is_running() {
            minded = start();
            victim.store(minded.pid().cast_signed(), Ordering::Relaxed);
        }
        let dead: Vec<String> = redis.ask(&["ZRANGE", "samovar:dead:{art}", "0", "-1"]).await;
        if dead == ["art:poison"] { Ok(()) } else { Err(dead) }
    })
    .await;
    served(&redis, &names(20), 1).await;
    let alone = museum.groups().iter().filter(|group| *group == &["poison"]).count();
    assert!(alone >= 1, "its last crash concerned no other");
}

#[tokio::test]
async fn entries_of_two_workers_are_each_asked_for_once() {
    let (redis, museum, jobs) = museum(400, 50).await;
    let _fleet = [worker(&redis, &jobs), worker(&redis, &jobs)];
    served(&redis, &names(400), 1).await;
    let groups = museum.groups();
    assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 400);
    assert!(groups.len() <= 14, "{:?}", groups.iter().map(Vec::len).collect::<Vec<_>>());
}
