//! Messages and replies that could get lost: in the inbox, at the end of a worker, and on the way back.

use std::time::Duration;

use samovar::protocol::inbox;
use samovar::store::{LastAttempt, Removal, Written};
use serde_json::json;

use super::{CHANNEL, LONG, TTL, evicted, warmed_by};
use crate::support::{Art, Parts, art, both, eventually, publish, talkative, version, worker};

/// A worker that runs at intervals: the number of runs, their length, and the pauses.
const STARTS: usize = 40;

const FIT: Duration = Duration::from_millis(2);

const PAUSE: Duration = Duration::from_millis(25);

#[tokio::test]
async fn a_trimmed_inbox_says_so_and_everything_is_made_anew() {
    let (redis, upstream, jobs, mut first) = warmed_by(worker).await;
    first.kill9();
    first.wait().await;
    let edited = upstream.edit("/art/a");
    let parts = Parts::of(&redis).await;
    parts.publish("art:a").await;
    for n in 0..50 {
        parts.publish(&format!("art:other {n}")).await;
    }
    inbox::bound(&mut parts.redis.clone(), &parts.keys, 10).await.unwrap();
    let left: usize = redis.ask(&["XLEN", "samovar:inbox"]).await;
    assert!(left < 15, "{left} are left");
    // Without the records of gap detectors: a gap in those would also revalidate.
    redis.ask::<usize>(&["DEL", "samovar:ears"]).await;
    let mut second = worker(&redis, &jobs);
    second.wait_for_log(&["dropped from the inbox"]).await;
    version(&redis, "a", edited).await;
    parts.inbox_is_empty().await;
    eventually("the gap is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
}

#[tokio::test]
async fn an_inbox_within_its_bound_loses_nothing() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    for n in 0..9 {
        parts.publish(&format!("art:{n}")).await;
    }
    inbox::bound(&mut parts.redis.clone(), &parts.keys, 10).await.unwrap();
    assert_eq!(redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await, 9);
}

/// A publisher that sends more than workers read is told that messages may be lost.
#[tokio::test]
async fn a_message_too_long_to_be_read_is_refused() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let long = json!({"keys": ["a".repeat(inbox::LARGEST)]}).to_string();
    let refused = inbox::publish(&mut parts.redis.clone(), &parts.keys, &long).await.unwrap_err();
    assert!(refused.to_string().contains("publish several"), "{refused}");
    assert_eq!(redis.ask::<usize>(&["XLEN", "samovar:inbox"]).await, 0);
}

/// While workers with new job files replace old ones, a message may be read by one that does not know the job.
#[tokio::test]
async fn a_message_read_by_a_worker_without_its_job_is_not_lost() {
    for message in [
        r#"{"keys": ["new:a"]}"#,
        r#"{"patterns": ["new:*"]}"#,
        r#"{"jobs": ["new"]}"#,
        r#"{"tags": ["t"]}"#,
        r#"{"keys": ["new:a"], "action": "evict"}"#,
    ] {
        let (redis, upstream) = both().await;
        upstream.edit("/new/a");
        let job = "key = \"new:{name}\"\nttl = \"1h\"\ntags = [\"t\"]\n[source]\nkind = \"http\"\n\
                   upstream = \"museum\"\npath = \"/new/{{ name }}\"\n[entries]\nlist = [\"a\"]\n";
        let new = Art::of(&upstream).folder().job("new", job);
        let mut knowing = worker(&redis, &new);
        eventually("it is warm", async || redis.get("new:a").await.is_some()).await;
        knowing.term();
        knowing.wait().await;
        let old = Art::of(&upstream).folder();
        let _unknowing = worker(&redis, &old);
        redis.set("new:foreign", "{}", TTL).await;
        Parts::of(&redis).await.invalidate(message).await;
        assert_eq!(redis.get("new:a").await, None, "{message}");
        // A tag also concerns what services loaded, which is any value of the job without metadata.
        let stays = !message.contains("tags");
        assert_eq!(redis.get("new:foreign").await.is_some(), stays, "what is not ours stays: {message}");
    }
}

/// All that Redis has sent is there, and unread, when the worker is told to stop. The worker then runs in short spells,
/// as on a busy machine.
#[tokio::test]
async fn what_was_heard_before_the_end_is_handled() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_DRAIN", "10m").spawn();
    let names: Vec<String> = (0..2_000).map(|n| format!("art:{n}")).collect();
    let mut connection = redis.connection().await;
    let mut fill = redis::pipe();
    for name in &names {
        fill.cmd("SET").arg(name).arg("{}").arg("EX").arg(600).ignore();
    }
    fill.query_async::<()>(&mut connection).await.unwrap();
    publish(&redis, r#"{"keys": ["art:0"], "action": "evict"}"#).await;
    evicted(&redis, "0").await;
    worker.freeze();
    let mut evict = redis::pipe();
    for name in &names {
        evict.cmd("PUBLISH").arg(CHANNEL).arg(json!({"keys": [name], "action": "evict"}).to_string());
    }
    let heard: Vec<usize> = evict.query_async(&mut connection).await.unwrap();
    assert!(heard.iter().all(|heard| *heard == 1));
    worker.term();
    for _ in 0..STARTS {
        worker.thaw();
        tokio::time::sleep(FIT).await;
        worker.freeze();
        tokio::time::sleep(PAUSE).await;
    }
    worker.thaw();
    worker.wait().await;
    assert_eq!(redis.keys("art:*").await, Vec::<String>::new());
}

/// The fence renews the lease and says so, and nobody hears it: the same answer is offered again.
#[tokio::test]
async fn an_answer_that_was_refused_is_refused_again() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.next_instant().await;
    assert!(parts.store.invalidate(&art("a"), parts.now().await, Removal::Refresh).await.unwrap().fenced);
    parts.next_instant().await;
    for _ in 0..3 {
        let written = parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
        assert!(matches!(written, Written::Again(start) if start > lease.fetched_at), "{written:?}");
    }
    assert_eq!(redis.get("art:a").await, None);
    let Written::Again(start) = parts.store.gone(&art("a"), &lease, &LastAttempt::default()).await.unwrap() else {
        panic!("what was fetched before removes nothing, either");
    };
    let renewed = samovar::store::Lease { fetched_at: start, ..lease };
    let written = parts.store.commit(&art("a"), &renewed, "2", TTL, &LastAttempt::default()).await.unwrap();
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
}
