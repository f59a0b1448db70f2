//! Groups whose upstream, worker or Redis fails meanwhile, or whose job is paused.

use std::sync::Arc;
use std::time::Duration;

use samovar::agenda::When;
use samovar::entry::Trigger;
use serde_json::json;

use super::{BY_NAME, Museum, answer_items, asked, bulk, item, jobs, listed, museum, names, served};
use crate::support::{
    JobsFolder, Parts, Reply, TestRedis, WorkerProcess, art, at_rest, both, eventually, eventually_within, job,
    samovar, talkative, worker,
};

/// Returns how a worker ended that was told to stop.
async fn stopped(worker: &mut WorkerProcess) -> Option<i32> {
    worker.wait().await.code()
}

/// Refusals take so long that only two requests fit into the time of a lease.
#[tokio::test]
async fn entries_beside_a_refused_one_are_answered_in_the_end() {
    let (redis, museum, _) = museum(8, 8).await;
    let versions = Arc::clone(&museum.versions);
    museum.upstream.answer("/artworks", move |call, _| {
        let asked = asked(call);
        if asked.contains(&"n0".to_owned()) {
            return Reply::status(400).after(Duration::from_millis(2_600));
        }
        answer_items(&asked, &versions)
    });
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(8), &listed(&names(8)));
    let _worker = worker(&redis, &jobs);
    eventually_within(Duration::from_secs(60), "all others are readable", async || {
        let there: usize = redis.ask(&["EXISTS", "art:n1", "art:n2", "art:n3", "art:n4", "art:n5", "art:n6"]).await;
        if there == 6 { Ok(()) } else { Err((there, museum.groups())) }
    })
    .await;
    assert_eq!(museum.groups()[0].len(), 8, "all were asked for together at first");
    let parts = Parts::of(&redis).await;
    eventually_within(Duration::from_secs(60), "the refused one fails alone", async || {
        parts.meta("n0").await.is_some_and(|meta| meta.last_attempt.failures > 0)
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_always_refused_is_not_made_for_each() {
    let (redis, museum, _) = museum(100, 100).await;
    museum.upstream.answer("/artworks", |_, _| Reply::status(400));
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(100), &listed(&names(100)));
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    eventually("all have failed", async || {
        let failed = parts.stat("failed").await;
        if failed >= 100 { Ok(()) } else { Err(failed) }
    })
    .await;
    let first: Vec<usize> = museum.groups().iter().take(7).map(Vec::len).collect();
    assert_eq!(first, [100, 50, 50, 25, 25, 25, 25], "for all, the halves and the quarters");
    // Groups that try again may have begun by now: eight, of up to 13.
    let sizes: Vec<usize> = museum.groups().iter().skip(7).map(Vec::len).collect();
    assert!(sizes.len() < 100 && sizes.iter().all(|size| *size <= 13), "{sizes:?}");
}

#[tokio::test]
async fn a_part_that_finds_the_upstream_ill_ends_the_others() {
    let (redis, museum, _) = museum(40, 40).await;
    let versions = Arc::clone(&museum.versions);
    museum.upstream.answer("/artworks", move |call, count| match count {
        1 => Reply::status(413),
        2 => Reply::status(500),
        _ => answer_items(&asked(call), &versions),
    });
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(40), &listed(&names(40)));
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(40), 1).await;
    let parts = Parts::of(&redis).await;
    assert_eq!(parts.stat("failed").await, 40, "also those whose half was not asked for");
}

#[tokio::test]
async fn entries_that_fail_again_and_again_part() {
    let (redis, museum, _) = museum(20, 20).await;
    let versions = Arc::clone(&museum.versions);
    museum.upstream.answer("/artworks", move |call, _| {
        let asked = asked(call);
        if asked.contains(&"n3".to_owned()) { Reply::status(500) } else { answer_items(&asked, &versions) }
    });
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(20), &listed(&names(20)));
    let _worker = worker(&redis, &jobs);
    let others: Vec<String> = names(20).into_iter().filter(|name| name != "n3").collect();
    served(&redis, &others, 1).await;
    let sizes: Vec<usize> = museum.groups().iter().map(Vec::len).collect();
    assert_eq!(sizes[..3], [20, 20, 20], "together as long as the upstream may just be ill");
}

#[tokio::test]
async fn an_entry_that_its_group_cannot_use_has_its_fallback() {
    let (redis, museum, _) = museum(5, 10).await;
    museum.upstream.on("/one/n2", Reply::json(item("n2", 7)));
    let source = format!(
        "{}\naccept = \"{{{{ value.version < 5 }}}}\"\nfallback = [{{ kind = \"http\", upstream = \"museum\", path = \
         \"/one/{{{{ name }}}}\" }}]",
        bulk(10)
    );
    museum.edit("n2", 5);
    let jobs = jobs(&museum.upstream, BY_NAME, &source, &listed(&names(5)));
    let _worker = worker(&redis, &jobs);
    served(&redis, &["n2".to_owned()], 7).await;
    let others: Vec<String> = names(5).into_iter().filter(|name| name != "n2").collect();
    served(&redis, &others, 1).await;
}

#[tokio::test]
async fn an_urgent_entry_joins_no_group_that_waits_for_others() {
    let (redis, upstream) = both().await;
    let museum = Museum::of(upstream, names(3));
    let source = bulk(10).replace("300ms", "5s");
    let jobs = jobs(&museum.upstream, BY_NAME, &source, &listed(&names(3)));
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(3), 1).await;
    at_rest(&redis).await;
    let before = museum.groups().len();
    let parts = Parts::of(&redis).await;
    parts.agenda.put(&job(), &[art("n0")], When::NOW, Trigger::Manual).await.unwrap();
    eventually("a worker has it", async || {
        let busy: Vec<String> = redis.ask(&["ZRANGEBYSCORE", "samovar:agenda:{art}", "-inf", "(0"]).await;
        if busy == ["art:n0"] { Ok(()) } else { Err(busy) }
    })
    .await;
    for name in ["n1", "n2"] {
        museum.edit(name, 2);
    }
    parts.invalidate("{\"keys\": [\"art:n1\", \"art:n2\"]}").await;
    served(&redis, &["n1".to_owned(), "n2".to_owned()], 2).await;
    assert!(museum.groups()[before..].iter().flatten().all(|name| name != "n0"), "{:?}", museum.groups());
}

/// Waits until the agenda of the job holds so many entries that are due by an invalidation.
async fn waiting(redis: &TestRedis, entries: usize) {
    eventually("they are due", async || {
        let due: usize = redis.ask(&["ZCOUNT", "samovar:agenda:{art}", "-inf", "+inf"]).await;
        if due == entries { Ok(()) } else { Err(due) }
    })
    .await;
}

#[tokio::test]
async fn a_paused_job_asks_for_no_group_until_it_goes_on() {
    let (redis, museum, jobs) = museum(40, 20).await;
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(40), 1).await;
    at_rest(&redis).await;
    let run = async |command: &str| {
        let ended = samovar([command, "art"]).redis(&redis).jobs(&jobs).run().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
    };
    run("pause").await;
    for name in names(40) {
        museum.edit(&name, 2);
    }
    let before = museum.groups().len();
    Parts::of(&redis).await.invalidate("{\"jobs\": [\"art\"]}").await;
    waiting(&redis, 40).await;
    assert_eq!(museum.groups().len(), before, "none was asked for while the message was handled");
    run("resume").await;
    served(&redis, &names(40), 2).await;
    let sizes: Vec<usize> = museum.groups()[before..].iter().map(Vec::len).collect();
    assert!(sizes.len() <= 4 && sizes.iter().sum::<usize>() == 40, "{sizes:?}");
}

#[tokio::test]
async fn a_group_in_flight_lands_before_its_worker_ends() {
    let (redis, museum, jobs) = museum(20, 20).await;
    let gate = museum.upstream.gate("/artworks");
    let mut worker = worker(&redis, &jobs);
    gate.arrived(1).await;
    worker.term();
    worker.wait_for_log(&["told to stop"]).await;
    gate.open();
    assert_eq!(stopped(&mut worker).await, Some(0));
    served(&redis, &names(20), 1).await;
    assert_eq!(museum.groups().len(), 1, "nothing was asked for again");
    assert_eq!(redis.keys("samovar:lease:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_group_that_waits_is_handed_to_another_worker() {
    let (redis, upstream) = both().await;
    let museum = Museum::of(upstream, names(40));
    let jobs = limited(&museum, "concurrency = 1");
    let gate = museum.upstream.gate("/artworks");
    let mut first = talkative(&redis, &jobs).spawn();
    gate.arrived(1).await;
    first.term();
    first.wait_for_log(&["told to stop"]).await;
    gate.open();
    assert_eq!(stopped(&mut first).await, Some(0));
    assert_eq!(redis.keys("samovar:lease:*").await, Vec::<String>::new());
    assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:permits:{museum}"]).await, 0);
    let _second = worker(&redis, &jobs);
    served(&redis, &names(40), 1).await;
    assert_eq!(museum.groups().iter().map(Vec::len).sum::<usize>(), 40, "each was asked for once");
}

#[tokio::test]
async fn a_group_that_gathers_does_not_hold_up_the_end() {
    let (redis, upstream) = both().await;
    let museum = Museum::of(upstream, names(1));
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(10).replace("300ms", "5s"), &listed(&names(1)));
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "3s").spawn();
    eventually("a worker has it", async || {
        let busy: Vec<String> = redis.ask(&["ZRANGEBYSCORE", "samovar:agenda:{art}", "-inf", "(0"]).await;
        if busy == ["art:n0"] { Ok(()) } else { Err(busy) }
    })
    .await;
    worker.term();
    assert_eq!(stopped(&mut worker).await, Some(0));
    let log = worker.log();
    assert!(!log.iter().any(|line| line.contains("the drain time is over")), "{log:?}");
}

/// A folder with groups of 20, and limits of the upstream.
fn limited(museum: &Museum, limits: &str) -> JobsFolder {
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(20), &listed(&names(40)));
    jobs.upstreams(&format!("[museum]\nurl = \"{}\"\n{limits}\n", museum.upstream.url()))
}

#[tokio::test]
async fn a_group_is_fetched_although_redis_was_away_meanwhile() {
    for is_lost in [false, true] {
        let mut redis = TestRedis::options().direct().append_only().start().await;
        let upstream = crate::support::Upstream::start().await;
        let museum = Museum::of(upstream, names(20));
        let jobs = jobs(&museum.upstream, BY_NAME, &bulk(20), &listed(&names(20)));
        let gate = museum.upstream.gate("/artworks");
        let mut worker = worker(&redis, &jobs);
        gate.arrived(1).await;
        if is_lost {
            redis.flush().await;
        } else {
            redis.restart().await;
        }
        gate.open();
        served(&redis, &names(20), 1).await;
        assert!(worker.is_running());
    }
}

#[tokio::test]
async fn one_request_at_a_time_holds_for_the_parts_of_groups() {
    let (redis, upstream) = both().await;
    let museum = Museum::of(upstream, names(40));
    let versions = Arc::clone(&museum.versions);
    museum.upstream.answer("/artworks", move |call, _| {
        let asked = asked(call);
        if asked.len() > 7 { Reply::status(400) } else { answer_items(&asked, &versions) }
    });
    let jobs = limited(&museum, "concurrency = 1");
    let _worker = worker(&redis, &jobs);
    served(&redis, &names(40), 1).await;
    assert_eq!(museum.upstream.most_at_once(), 1);
}

#[tokio::test]
async fn an_entry_of_a_refused_group_is_named_in_the_reason() {
    let (redis, museum, _) = museum(4, 10).await;
    let refusal = json!({ "error": "unknown id n1-of-the-museum" });
    museum.upstream.answer("/artworks", move |_, _| Reply::json(refusal.clone()).with_status(422));
    let all: Vec<String> = names(4).iter().map(|name| format!("{name}-of-the-museum")).collect();
    let jobs = jobs(&museum.upstream, BY_NAME, &bulk(10), &listed(&all));
    let _worker = worker(&redis, &jobs);
    let parts = Parts::of(&redis).await;
    let reason = eventually("it has failed", async || {
        parts.meta("n1-of-the-museum").await.and_then(|meta| meta.last_attempt.reason)
    })
    .await;
    assert!(reason.contains("unknown id n1-of-the-museum"), "{reason}");
}
