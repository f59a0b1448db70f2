//! Revalidation: after a gap, a restart or a failover, nothing fetched before is trusted.

use std::time::Duration;

use samovar::agenda::Due;
use samovar::entry::{EntryKey, Trigger};
use samovar::job::Jobs;
use samovar::protocol::Message;
use samovar::store::{Fresh, Gap, LastAttempt, Leased, Removal, Written};
use serde_json::json;

use super::{LONG, TTL, identity};
use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, art, at_rest, both, eventually, job, samovar, version, worker,
};

#[tokio::test]
async fn revalidation_asks_for_all_again_and_pays_for_nothing() {
    let (redis, upstream) = both().await;
    let names: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.edit(&format!("/art/{name}"));
    }
    upstream.on(
        "/v1/chat/completions",
        Reply::json(json!({"choices": [{"message": {"content": "Once"}, "finish_reason": "stop"}],
            "usage": {"total_tokens": 7}})),
    );
    let ai = format!(
        "key = \"tale:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nurl = \"{}/v1/chat/completions\"\n\
         model = \"m\"\nprompt = \"Tell of {{{{ name }}}}\"\n[entries]\nlist = [\"a\"]\n",
        upstream.url()
    );
    // Without looking once more, which would mix in.
    let art = Art::of(&upstream).list(&names).warm("recheck = []");
    let jobs = art.folder().job("tale", &ai);
    let _worker = worker(&redis, &jobs);
    eventually("all is warm", async || {
        redis.ask::<usize>(&["DBSIZE"]).await > 61 && upstream.all_requests().len() == 61
    })
    .await;
    at_rest(&redis).await;
    let parts = Parts::of(&redis).await;
    for (doubt, calls) in [(Gap::Missed, 1), (Gap::Lost, 2)] {
        let before = upstream.all_requests().len();
        parts.next_instant().await;
        parts.store.note_gap(parts.now().await, doubt).await.unwrap();
        eventually("everything was asked for again", async || {
            let mut asked: Vec<String> =
                upstream.all_requests()[before..].iter().map(|call| call.path().to_owned()).collect();
            asked.retain(|path| path.starts_with("/art/"));
            if asked.len() < names.len() { Err(asked.len()) } else { Ok(()) }
        })
        .await;
        eventually("the gap is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
        eventually("the tale is at rest", async || {
            redis.ask::<Vec<String>>(&["ZRANGEBYSCORE", "samovar:agenda:{tale}", "-inf", "(0"]).await.is_empty()
                && upstream.calls("/v1/chat/completions") == calls
        })
        .await;
    }
}

/// Two workers handle two gaps a few milliseconds apart, and the second finds the leases of the first's rechecks.
#[tokio::test]
async fn a_doubt_does_not_fence_the_recheck_of_an_ai_value() {
    let redis = TestRedis::start().await;
    let ai = "key = \"tale:{name}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\n\
              url = \"http://127.0.0.1:1/v1/chat/completions\"\nmodel = \"m\"\nprompt = \"Tell of {{ name }}\"\n";
    let jobs = JobsFolder::new().job("tale", ai);
    let parts = Parts::of(&redis).await;
    let tale = EntryKey::new("tale:a");
    let lease = async || match parts.store.lease(&tale, LONG, Fresh::default()).await.unwrap() {
        Leased::Yes(lease) => *lease,
        other => panic!("no lease: {other:?}"),
    };
    parts.store.commit(&tale, &lease().await, "1", TTL, &LastAttempt::default()).await.unwrap();
    for (gap, is_invalidated) in [(Gap::Missed, false), (Gap::Missed, true), (Gap::Lost, false)] {
        parts.next_instant().await;
        let recheck = lease().await;
        parts.next_instant().await;
        let message = Message::parse("tale:a").unwrap();
        if is_invalidated {
            parts.invalidator(&jobs).handle(&message, parts.now().await).await.unwrap();
        }
        parts.store.note_gap(parts.now().await, gap).await.unwrap();
        parts.revalidator(&jobs).revalidate().await.unwrap();
        let score: Option<f64> = redis.ask(&["ZSCORE", "samovar:agenda:{tale}", "tale:a"]).await;
        let is_certain = is_invalidated || gap == Gap::Lost;
        assert!(is_certain || score.map(|score| Due::from_score(score).trigger) == Some(Trigger::Invalidation));
        let meta = parts.store.snapshot(&tale).await.unwrap().meta.unwrap();
        assert_eq!(meta.invalidated.is_some(), is_certain, "{gap:?}");
        let written = parts.store.extend_unasked(&tale, &recheck, TTL, &LastAttempt::default()).await.unwrap();
        assert_eq!(matches!(written, Written::Done { .. }), !is_certain, "{gap:?}: {written:?}");
        assert_eq!(matches!(written, Written::Again(_)), is_certain, "{gap:?}: {written:?}");
        if let Written::Again(at) = written {
            let mut again = recheck;
            again.begin_again(at);
            parts.store.commit(&tale, &again, "1", TTL, &LastAttempt::default()).await.unwrap();
        }
    }
}

/// The first began after the gap, the second was evicted, the third is of a job that is done with the gap.
#[tokio::test]
async fn a_doubt_makes_only_ai_fetches_of_its_time_due() {
    let redis = TestRedis::start().await;
    let ai = "key = \"tale:{name}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\n\
              url = \"http://127.0.0.1:1/v1/chat/completions\"\nmodel = \"m\"\nprompt = \"Tell of {{ name }}\"\n";
    let jobs = JobsFolder::new().job("tale", ai).job("poem", &ai.replace("tale:", "poem:"));
    let known = Jobs::load(jobs.path(), TTL, &|_| None).unwrap();
    let parts = Parts::of(&redis).await;
    let lease = async |key: &str| {
        let leased = parts.store.lease(&EntryKey::new(key), LONG, Fresh::default()).await.unwrap();
        assert!(matches!(leased, Leased::Yes(_)), "{leased:?}");
    };
    for key in ["tale:before", "tale:evicted", "poem:done"] {
        lease(key).await;
    }
    parts.next_instant().await;
    let gap = parts.now().await;
    parts.store.invalidate(&EntryKey::new("tale:evicted"), gap, Removal::Evict).await.unwrap();
    parts.next_instant().await;
    lease("tale:after").await;
    parts.store.note_gap_for(&[&known.jobs["tale"], &known.jobs["poem"]], gap, Gap::Missed).await.unwrap();
    let note = redis.get("samovar:{suspect}").await.unwrap();
    let done = known.jobs["poem"].identity();
    redis.ask::<u8>(&["HSET", "samovar:{suspect}:dealt", &done, &note]).await;
    parts.revalidator(&jobs).revalidate().await.unwrap();
    let due = async |job: &str| -> Vec<String> {
        redis.ask(&["ZRANGE", &format!("samovar:agenda:{{{job}}}"), "0", "-1"]).await
    };
    assert_eq!(due("tale").await, ["tale:before"]);
    assert_eq!(due("poem").await, Vec::<String>::new());
}

/// The upstream takes one request a minute.
#[tokio::test]
async fn a_busy_ai_entry_spends_no_request_of_the_rate() {
    let (redis, upstream) = both().await;
    upstream.on(
        "/v1/chat/completions",
        Reply::json(json!({"choices": [{"message": {"content": "Once"}, "finish_reason": "stop"}],
            "usage": {"total_tokens": 7}})),
    );
    let ai = "key = \"tale:{name}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nupstream = \"teller\"\n\
              path = \"/v1/chat/completions\"\nmodel = \"m\"\nprompt = \"Tell of {{ name }}\"\n\
              [entries]\nlist = [\"a\"]\n";
    let limits = format!("[teller]\nurl = \"{}\"\nrate = \"1/minute\"\n", upstream.url());
    let jobs = JobsFolder::new().upstreams(&limits).job("tale", ai);
    let parts = Parts::of(&redis).await;
    let tale = EntryKey::new("tale:a");
    let Leased::Yes(lease) = parts.store.lease(&tale, LONG, Fresh::default()).await.unwrap() else {
        panic!("no lease")
    };
    let _worker = worker(&redis, &jobs);
    eventually("the worker found the entry busy", async || {
        let busy: Option<u64> = redis.ask(&["HGET", "samovar:stats:{tale}", "busy"]).await;
        busy.unwrap_or_default() >= 2
    })
    .await;
    parts.store.release(&tale, &lease.token, None).await.unwrap();
    upstream.called("/v1/chat/completions", 1).await;
}

#[tokio::test]
async fn an_ai_call_in_flight_is_not_repeated_for_a_doubt() {
    let (redis, upstream) = both().await;
    let ai = upstream.gate("/v1/chat/completions");
    upstream.on(
        "/v1/chat/completions",
        Reply::json(json!({"choices": [{"message": {"content": "Once"}, "finish_reason": "stop"}],
            "usage": {"total_tokens": 7}})),
    );
    let tale = format!(
        "key = \"tale:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"ai\"\nurl = \"{}/v1/chat/completions\"\n\
         model = \"m\"\nprompt = \"Tell of {{{{ name }}}}\"\n[entries]\nlist = [\"a\"]\n",
        upstream.url()
    );
    let jobs = JobsFolder::new().job("tale", &tale);
    let _worker = worker(&redis, &jobs);
    ai.arrived(1).await;
    let parts = Parts::of(&redis).await;
    parts.next_instant().await;
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    eventually("the gap is dealt with", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    ai.open();
    eventually("the tale was compared after its fetch", async || {
        let unchanged: Option<u64> = redis.ask(&["HGET", "samovar:stats:{tale}", "unchanged"]).await;
        unchanged.unwrap_or_default() > 0
    })
    .await;
    assert_eq!(upstream.calls("/v1/chat/completions"), 1);
}

/// The entries are fetched only when the gap is closed.
#[tokio::test]
async fn an_entry_revalidated_after_a_gap_is_rechecked_once() {
    let (redis, upstream) = both().await;
    let names = ["a", "b", "c"];
    for name in names {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).list(names).warm("recheck = [\"500ms\", \"1s\", \"2s\"]").folder();
    let mut worker = worker(&redis, &jobs);
    eventually("all is warm", async || redis.keys("art:*").await.len() == names.len()).await;
    at_rest(&redis).await;
    // Each is found twice: among the most read, and by the scan.
    for name in names {
        redis.ask::<u64>(&["ZADD", "samovar:popular:{art}", "100", &format!("art:{name}")]).await;
    }
    let parts = Parts::of(&redis).await;
    assert_eq!(samovar(["pause", "art"]).redis(&redis).jobs(&jobs).run().await.code, Some(0));
    let before = upstream.all_requests().len();
    parts.next_instant().await;
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    let line = worker.wait_for_log(&["what was fetched before the gap is being revalidated"]).await;
    assert!(line.contains("values=3"), "{line}");
    eventually("the gap is closed", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    assert_eq!(samovar(["resume", "art"]).redis(&redis).jobs(&jobs).run().await.code, Some(0));
    eventually("no recheck is left", async || {
        let mut left = Vec::new();
        for name in names {
            let meta = parts.meta(name).await.unwrap();
            left.extend(meta.invalidated.map(|_| name));
            left.extend(meta.last_attempt.rechecks.map(|_| name));
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    assert_eq!(upstream.all_requests().len() - before, 2 * names.len(), "{:?}", upstream.all_requests());
}

/// A gap that comes while an invalidation is open takes no recheck from it.
#[tokio::test]
async fn an_invalidation_before_a_gap_keeps_its_rechecks() {
    let (redis, upstream) = both().await;
    for name in ["a", "b"] {
        upstream.edit(&format!("/art/{name}"));
    }
    let steps = [1, 2].map(|hours| Duration::from_secs(hours * 3_600));
    let art = Art::of(&upstream).list(["a", "b"]).warm("recheck = [\"1h\", \"2h\"]");
    let jobs = art.ttl("12h").folder();
    let mut worker = worker(&redis, &jobs);
    eventually("all is warm", async || redis.keys("art:*").await.len() == 2).await;
    at_rest(&redis).await;
    let parts = Parts::of(&redis).await;
    assert_eq!(samovar(["pause", "art"]).redis(&redis).jobs(&jobs).run().await.code, Some(0));
    parts.next_instant().await;
    parts.invalidate("{\"patterns\": [\"art:a*\"]}").await;
    eventually("it is noted", async || parts.meta("a").await.unwrap().invalidated).await;
    parts.next_instant().await;
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    worker.wait_for_log(&["what was fetched before the gap is being revalidated"]).await;
    eventually("the gap is closed", async || redis.keys("samovar:{suspect}*").await.is_empty()).await;
    assert_eq!(samovar(["resume", "art"]).redis(&redis).jobs(&jobs).run().await.code, Some(0));
    for (name, step) in [("a", steps[0]), ("b", steps[1])] {
        let rechecks = async || parts.meta(name).await.unwrap().last_attempt.rechecks;
        let rechecks = eventually(&format!("{name} is fetched"), rechecks).await;
        let next = rechecks.next(&steps, parts.now().await).unwrap();
        assert_eq!(next.saturating_since(rechecks.since), step, "{name}");
    }
}

/// The upstream may lag still.
#[tokio::test]
async fn a_gap_takes_no_recheck_from_an_answered_edit() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let steps = [1, 2].map(|hours| Duration::from_secs(hours * 3_600));
    let jobs = Art::of(&upstream).list(["a"]).warm("recheck = [\"1h\", \"2h\"]").ttl("12h").folder();
    let mut worker = worker(&redis, &jobs);
    eventually("it is warm", async || redis.get("art:a").await.is_some()).await;
    at_rest(&redis).await;
    let parts = Parts::of(&redis).await;
    parts.next_instant().await;
    parts.invalidate("art:a").await;
    let rechecks = async || parts.meta("a").await.unwrap().last_attempt.rechecks;
    let edited = eventually("the edit is answered", rechecks).await;
    parts.next_instant().await;
    let gap = parts.now().await;
    parts.store.note_gap(gap, Gap::Missed).await.unwrap();
    worker.wait_for_log(&["what was fetched before the gap is being revalidated"]).await;
    let left = eventually("it is asked for again", async || {
        let meta = parts.meta("a").await.unwrap();
        meta.last_attempt.rechecks.filter(|_| meta.invalidated.is_none() && meta.fetched_at > gap)
    })
    .await;
    let times: Vec<Duration> = left.after(&steps, gap).map(|at| at.saturating_since(edited.since)).collect();
    assert_eq!(times, [steps[0], steps[1], 2 * steps[1]]);
}

/// Entries are claimed in the order in which they become due; of those claimed together, any may be asked for first.
#[tokio::test]
async fn the_most_read_entry_becomes_due_first_after_a_gap() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    for n in 0..60 {
        let lease = parts.lease(&n.to_string(), LONG).await;
        parts.store.commit(&art(&n.to_string()), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    }
    redis.ask::<u64>(&["ZADD", "samovar:popular:{art}", "100", "art:37"]).await;
    parts.next_instant().await;
    for gap in [Gap::Missed, Gap::Lost] {
        parts.store.note_gap(parts.now().await, gap).await.unwrap();
        parts.revalidator(&jobs).revalidate().await.unwrap();
        let agenda = parts.keys.agenda(&job());
        assert_eq!(redis.ask::<u64>(&["ZCARD", &agenda]).await, 60);
        assert_eq!(redis.ask::<Vec<String>>(&["ZRANGE", &agenda, "0", "0"]).await, ["art:37"]);
        redis.ask::<u64>(&["DEL", &agenda]).await;
    }
}

#[tokio::test]
async fn the_lock_of_a_revalidation_ends_whatever_the_clock_did() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let revalidator = parts.revalidator(&Art::of(&upstream).folder());
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    let [_, lock, _] = parts.keys.revalidation();
    redis.set(&lock, "somebody", 100 * LONG).await;
    revalidator.revalidate().await.unwrap();
    assert!(redis.ttl(&lock).await.unwrap() <= revalidator.claim);
}

/// The worker was held up for longer than its claim.
#[tokio::test]
async fn a_lock_that_another_worker_took_is_not_extended() {
    let (redis, upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let revalidator = parts.revalidator(&Art::of(&upstream).folder());
    let [note, lock, _] = parts.keys.revalidation();
    // More than become due at once, so that it takes a while.
    for batch in 0..3 {
        let mut fill = redis::pipe();
        let (start, expires) = (parts.now().await, parts.now().await + Duration::from_millis(600_000));
        for n in 0..1_000 {
            let key = art(&format!("{batch}-{n}"));
            fill.cmd("SET").arg(key.as_str()).arg("1").arg("PXAT").arg(expires).ignore();
            fill.cmd("SET").arg(parts.keys.meta(&key)).arg(format!("{start} {expires} 0 0 abc {{}}")).ignore();
        }
        fill.exec_async(&mut redis.connection().await).await.unwrap();
    }
    parts.next_instant().await;
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    let (looked, ()) = tokio::join!(revalidator.revalidate(), async {
        eventually("it has the lock", async || redis.get(&lock).await).await;
        redis.set(&lock, "another", revalidator.claim / 2).await;
    });
    assert!(looked.unwrap_err().to_string().contains("another worker took it"));
    assert_eq!(redis.get(&lock).await.as_deref(), Some("another"));
    assert!(redis.ttl(&lock).await.unwrap() <= revalidator.claim / 2);
    assert!(redis.get(&note).await.is_some(), "the gap is left to the other");
}

#[tokio::test]
async fn a_restarted_redis_is_not_believed() {
    let mut redis = TestRedis::options().append_only().start().await;
    let upstream = Upstream::start().await;
    upstream.edit("/art/a");
    let recheck = "recheck = [\"500ms\", \"1s\", \"1500ms\", \"2s\", \"4s\"]";
    let jobs = Art::of(&upstream).list(["a"]).warm(recheck).folder();
    let _worker = worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let edited = upstream.edit("/art/a");
    redis.restart().await;
    version(&redis, "a", edited).await;
    let parts = Parts::of(&redis).await;
    eventually("it waits for its expiry again", async || {
        parts.score("a").await.map(|score| Due::from_score(score).trigger) == Some(Trigger::Expiry)
    })
    .await;
    assert!(upstream.calls("/art/a") <= 4, "a gap is rechecked once, or twice where two were noted");
}

/// Redis was away in the middle of a round.
#[tokio::test]
async fn a_lock_that_a_failed_round_left_delays_no_other() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    parts.next_instant().await;
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    let revalidator = parts.revalidator(&jobs);
    redis.ask::<String>(&["SET", "samovar:{suspect}:lock", "another", "PX", "60000"]).await;
    revalidator.revalidate().await.unwrap();
    assert_eq!(parts.score("a").await, None, "another worker is at work");
    redis.ask::<String>(&["SET", "samovar:{suspect}:lock", &revalidator.worker, "PX", "60000"]).await;
    revalidator.revalidate().await.unwrap();
    assert!(parts.score("a").await.is_some(), "it is looked at");
}

/// A gap from another clock is dealt with already, but for a job that nobody here knows.
#[tokio::test]
async fn a_gap_from_the_future_swallows_no_other() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    parts.next_instant().await;
    let note = "99999999999999 1";
    redis.ask::<String>(&["SET", "samovar:{suspect}", note]).await;
    redis.ask::<u8>(&["HSET", "samovar:{suspect}:dealt", "art", note, &identity(&jobs), note]).await;
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "unknown", "x"]).await;
    let revalidator = parts.revalidator(&jobs);
    revalidator.revalidate().await.unwrap();
    assert_eq!(parts.score("a").await, None);
    parts.store.note_gap(parts.now().await, Gap::Missed).await.unwrap();
    revalidator.revalidate().await.unwrap();
    assert!(parts.score("a").await.is_some(), "it is looked at");
    let note: String = redis.ask(&["GET", "samovar:{suspect}"]).await;
    assert_eq!(redis.ask::<String>(&["HGET", "samovar:{suspect}:dealt", "art"]).await, note);
}

/// A gap that concerns some jobs leaves what was done for the others.
#[tokio::test]
async fn a_gap_of_some_jobs_spares_the_others() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let known = Jobs::load(jobs.path(), TTL, &|_| None).unwrap();
    let revalidator = parts.revalidator(&jobs);
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "art", "x", "poem", "x", "song", "x"]).await;
    let dealt = async |job: &str| redis.ask::<Option<String>>(&["HGET", "samovar:{suspect}:dealt", job]).await;
    let note = async || redis.ask::<Option<String>>(&["GET", "samovar:{suspect}"]).await;
    parts.store.note_gap_for(&[&known.jobs["art"]], parts.now().await, Gap::Missed).await.unwrap();
    assert_eq!((dealt("art").await, dealt("poem").await), (None, note().await));
    revalidator.revalidate().await.unwrap();
    assert_eq!(note().await, None, "nothing is left to do");
    // Of all jobs, of which one is dealt with.
    parts.store.note_gap(parts.now().await, Gap::Lost).await.unwrap();
    redis.ask::<u8>(&["HSET", "samovar:{suspect}:dealt", "poem", &note().await.unwrap()]).await;
    parts.next_instant().await;
    parts.store.note_gap_for(&[&known.jobs["art"]], parts.now().await, Gap::Missed).await.unwrap();
    assert_eq!((dealt("poem").await, dealt("song").await), (note().await, None));
}

/// A gap of other jobs is open, with a later time.
#[tokio::test]
async fn a_job_that_was_spared_is_revalidated_after_its_own_gap() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let other = Art::of(&upstream).toml().replace("art:{name}", "poem:{name}");
    let both = Art::of(&upstream).folder().job("poem", &other);
    let known = Jobs::load(both.path(), TTL, &|_| None).unwrap();
    let revalidator = parts.revalidator(&jobs);
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "art", "x", "poem", "x"]).await;
    redis.ask::<u8>(&["HSET", "samovar:ears", "a worker", &format!("1 2 2 {}", identity(&jobs))]).await;
    parts.next_instant().await;
    let heard_again = parts.now().await;
    parts.next_instant().await;
    parts.store.note_gap_for(&[&known.jobs["poem"]], parts.now().await, Gap::Missed).await.unwrap();
    revalidator.revalidate().await.unwrap();
    assert_eq!(parts.score("a").await, None, "it is not in doubt");
    parts.store.note_gap_for(&[&known.jobs["art"]], heard_again, Gap::Missed).await.unwrap();
    revalidator.revalidate().await.unwrap();
    assert!(parts.score("a").await.is_some(), "it is looked at");
    // What was looked at stays so for another note of the same gap.
    let dealt = async || redis.ask::<Option<String>>(&["HGET", "samovar:{suspect}:dealt", "art"]).await;
    assert!(dealt().await.is_some());
    parts.store.note_gap_for(&[&known.jobs["art"]], heard_again, Gap::Missed).await.unwrap();
    assert!(dealt().await.is_some());
}

/// A gap of all jobs is open for another one.
#[tokio::test]
async fn a_job_handled_for_an_open_gap_is_looked_at_after_its_next() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let other = Art::of(&upstream).toml().replace("art:{name}", "poem:{name}");
    let known = Jobs::load(Art::of(&upstream).folder().job("poem", &other).path(), TTL, &|_| None).unwrap();
    let (art_job, poem) = (&known.jobs["art"], &known.jobs["poem"]);
    let revalidator = parts.revalidator(&jobs);
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "art", "x", "poem", "x"]).await;
    let record = format!("1 2 2 {}", identity(&jobs));
    redis.ask::<u8>(&["HSET", "samovar:ears", "a worker", &record]).await;
    parts.next_instant().await;
    parts.store.note_gap_for(&[art_job, poem], parts.now().await, Gap::Missed).await.unwrap();
    revalidator.revalidate().await.unwrap();
    assert!(parts.score("a").await.is_some(), "it is looked at");
    parts.next_instant().await;
    let heard_again = parts.now().await;
    parts.next_instant().await;
    parts.store.note_gap_for(&[poem], parts.now().await, Gap::Missed).await.unwrap();
    let dealt = async || redis.ask::<Option<String>>(&["HGET", "samovar:{suspect}:dealt", "art"]).await;
    assert!(dealt().await.is_some(), "it is not in doubt");
    parts.store.note_gap_for(&[art_job], heard_again, Gap::Missed).await.unwrap();
    assert_eq!(dealt().await, None, "its own gap is another one");
}

/// The job that was left was removed, and long after that the fleet forgot it.
#[tokio::test]
async fn a_gap_is_closed_once_the_job_that_was_left_is_forgotten() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let revalidator = parts.revalidator(&jobs);
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "art", "x", "removed", "x"]).await;
    parts.store.note_gap(parts.now().await, Gap::Lost).await.unwrap();
    for _ in 0..2 {
        revalidator.revalidate().await.unwrap();
    }
    assert!(redis.get("samovar:{suspect}").await.is_some(), "another worker may know it");
    redis.ask::<u8>(&["HDEL", "samovar:{schedules}:digests", "removed"]).await;
    redis.ask::<String>(&["SET", "samovar:{suspect}:lock", "another", "PX", "60000"]).await;
    revalidator.revalidate().await.unwrap();
    assert_eq!(redis.keys("samovar:{suspect}*").await, ["samovar:{suspect}:lock"], "the next gap inherits nothing");
}

/// The clock was set back by a minute, and has passed the time of that gap since, which is open for another job.
#[tokio::test]
async fn a_gap_of_a_time_shown_twice_swallows_no_other() {
    let (redis, upstream) = both().await;
    let (parts, jobs) = (Parts::of(&redis).await, Art::of(&upstream).folder());
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    parts.next_instant().await;
    let heard_again = parts.now().await;
    parts.next_instant().await;
    let set_back = heard_again - Duration::from_secs(60);
    let note = format!("{} 1 {set_back}", parts.now().await);
    redis.ask::<String>(&["SET", "samovar:{suspect}", &note]).await;
    redis.ask::<u8>(&["HSET", "samovar:{suspect}:dealt", "art", &note, &identity(&jobs), &note]).await;
    redis.ask::<u8>(&["HSET", "samovar:{schedules}:digests", "unknown", "x"]).await;
    parts.next_instant().await;
    parts.store.note_gap(heard_again, Gap::Missed).await.unwrap();
    parts.revalidator(&jobs).revalidate().await.unwrap();
    assert!(parts.score("a").await.is_some(), "it is looked at");
}
