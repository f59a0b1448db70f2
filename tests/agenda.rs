//! The agenda: due times, claims, their order, and priorities.
use std::time::Duration;

use crate::support::{Parts, TestRedis, art, eventually, job};
use samovar::agenda::{Claimed, Due, Finished, Next, State, When};
use samovar::entry::EntryKey;
use samovar::entry::Outcome;
use samovar::entry::{Priority, Trigger};
use samovar::redis::RedisTime;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);
const MANY: usize = 1_000;

async fn parts() -> (TestRedis, Parts) {
    let redis = TestRedis::start().await;
    let parts = Parts::of(&redis).await;
    (redis, parts)
}

async fn put(parts: &Parts, names: &[&str], when: When, trigger: Trigger) -> u64 {
    let keys: Vec<EntryKey> = names.iter().map(|name| art(name)).collect();
    parts.agenda.put(&job(), &keys, when, trigger).await.unwrap()
}

/// Claims what is due by now, and what is due in a millisecond because a worker had it.
async fn claim(parts: &Parts, most: usize, cap: usize, time: Duration) -> Vec<Claimed> {
    let before = parts.now().await;
    while parts.now().await == before {}
    parts.agenda.claim(&job(), most, cap, time).await.unwrap().entries
}

async fn take(parts: &Parts, claimed: &[Claimed]) -> Vec<Option<String>> {
    parts.agenda.take(&job(), claimed, LONG, None).await.unwrap()
}

async fn finish(parts: &Parts, name: &str, score: &str, next: Next) {
    let key = art(name).as_str().to_owned();
    let finished = Finished { key, score: score.to_owned(), next, outcome: Some(Outcome::Warmed) };
    parts.agenda.finish(&job(), &[finished], "").await.unwrap();
}

async fn state(parts: &Parts, name: &str) -> Option<(State, Trigger)> {
    parts.score(name).await.map(Due::from_score).map(|due| (due.state, due.trigger))
}

fn names(claimed: &[Claimed]) -> Vec<&str> {
    claimed.iter().map(|entry| entry.key.strip_prefix("art:").unwrap()).collect()
}

#[tokio::test]
async fn an_entry_is_on_the_agenda_once_however_often_it_is_named() {
    let (redis, parts) = parts().await;
    for trigger in [Trigger::Cron, Trigger::Demand, Trigger::Manual] {
        put(&parts, &["a", "a"], When::NOW, trigger).await;
        put(&parts, &["a"], When::Urgent, trigger).await;
    }
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:agenda:{art}"]).await, 1);
    assert_eq!(claim(&parts, MANY, MANY, LONG).await.len(), 1);
    put(&parts, &["a"], When::Urgent, Trigger::Demand).await;
    assert_eq!(claim(&parts, MANY, MANY, LONG).await.len(), 0, "it is claimed already");
}

#[tokio::test]
async fn what_is_due_earlier_already_is_not_put_off() {
    let (_redis, parts) = parts().await;
    let now = parts.now().await;
    put(&parts, &["a"], When::Due(now + Duration::from_millis(1_000)), Trigger::Cron).await;
    assert_eq!(put(&parts, &["a"], When::Due(now + Duration::from_millis(9_000)), Trigger::Cron).await, 0);
    assert_eq!(put(&parts, &["a"], When::Keep(now + Duration::from_millis(500)), Trigger::Cron).await, 0);
    assert_eq!(Due::from_score(parts.score("a").await.unwrap()).at, now + Duration::from_millis(1_000));
    assert_eq!(put(&parts, &["a"], When::Due(now + Duration::from_millis(500)), Trigger::Cron).await, 1);
    assert_eq!(put(&parts, &["b"], When::IfThere, Trigger::Cron).await, 0);
    assert_eq!(parts.score("b").await, None);
}

#[tokio::test]
async fn claimed_entries_come_due_again_when_the_claim_runs_out() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a"], When::NOW, Trigger::Expiry).await;
    let first = claim(&parts, MANY, MANY, SHORT).await;
    let again = eventually("it is claimed again", async || claim(&parts, MANY, MANY, LONG).await.pop()).await;
    assert_eq!(again.due().trigger, Trigger::Expiry);
    assert_eq!(take(&parts, &first).await, [None], "the first claim has run out");
    assert!(take(&parts, &[again]).await[0].is_some());
}

#[tokio::test]
async fn taken_entries_come_due_again_when_their_worker_is_gone() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a"], When::Urgent, Trigger::Demand).await;
    let claimed = claim(&parts, MANY, MANY, LONG).await;
    let score = parts.agenda.take(&job(), &claimed, SHORT, None).await.unwrap().remove(0).unwrap();
    let again = eventually("it is claimed again", async || claim(&parts, MANY, MANY, LONG).await.pop()).await;
    assert_eq!(again.due().priority, Priority::High, "it is as urgent as before");
    finish(&parts, "a", &score, Next::Out).await;
    assert_eq!(state(&parts, "a").await, Some((State::Claimed, Trigger::Demand)), "the first worker came too late");
}

#[tokio::test]
async fn only_one_of_two_that_hold_the_same_claim_takes_it() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a", "b"], When::NOW, Trigger::Cron).await;
    let claimed = claim(&parts, MANY, MANY, LONG).await;
    let first = take(&parts, &claimed[..1]).await;
    let second = take(&parts, &claimed).await;
    assert!(first[0].is_some());
    assert_eq!((second[0].as_ref(), second[1].is_some()), (None, true));
}

#[tokio::test]
async fn two_dispatchers_never_claim_the_same_entry() {
    let (_redis, parts) = parts().await;
    let all: Vec<String> = (0..400).map(|n| n.to_string()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    put(&parts, &all, When::NOW, Trigger::Cron).await;
    let claims = (0..10).map(async |dispatcher| {
        let agenda = parts.agenda.clone().claiming_as(&dispatcher.to_string());
        agenda.claim(&job(), 50, MANY, LONG).await.unwrap().entries
    });
    let claims = futures_util::future::join_all(claims).await;
    let mut claimed: Vec<String> = claims.into_iter().flatten().map(|entry| entry.key).collect();
    assert_eq!(claimed.len(), 400);
    claimed.sort();
    claimed.dedup();
    assert_eq!(claimed.len(), 400);
}

#[tokio::test]
async fn urgent_work_goes_before_a_backlog_of_ten_thousand() {
    let (_redis, parts) = parts().await;
    let backlog: Vec<String> = (0..10_000).map(|n| format!("backlog {n}")).collect();
    let backlog: Vec<&str> = backlog.iter().map(String::as_str).collect();
    put(&parts, &backlog, When::Due(RedisTime::from_millis(1)), Trigger::Cron).await;
    put(&parts, &["now"], When::Urgent, Trigger::Invalidation).await;
    let claimed = claim(&parts, 3, MANY, LONG).await;
    assert_eq!(names(&claimed)[0], "now");
    assert_eq!(
        claimed.iter().map(|entry| entry.due().priority).collect::<Vec<_>>(),
        [Priority::High, Priority::Normal, Priority::Normal]
    );
}

#[tokio::test]
async fn the_cap_holds_back_what_is_scheduled_but_not_what_is_urgent() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a", "b", "c", "d"], When::NOW, Trigger::Cron).await;
    assert_eq!(claim(&parts, MANY, 2, LONG).await.len(), 2);
    let held_back = parts.agenda.claim(&job(), MANY, 2, LONG).await.unwrap();
    assert!(held_back.entries.is_empty());
    assert_eq!(held_back.next, Some(Duration::ZERO), "there is more, only no room");
    put(&parts, &["now"], When::Urgent, Trigger::Demand).await;
    assert_eq!(names(&claim(&parts, MANY, 2, LONG).await), ["now"]);
}

#[tokio::test]
async fn bulk_runs_at_most_twice_the_cap_and_leaves_room_for_others() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a", "b", "c", "d"], When::NOW, Trigger::Cron).await;
    assert_eq!(claim(&parts, MANY, 2, LONG).await.len(), 2);
    put(&parts, &["1", "2", "3", "4", "5", "6"], When::BULK_NOW, Trigger::Invalidation).await;
    assert_eq!(claim(&parts, MANY, 2, SHORT).await.len(), 2);
    assert_eq!(claim(&parts, MANY, 2, LONG).await.len(), 0);
    put(&parts, &["named"], When::Urgent, Trigger::Invalidation).await;
    let named = claim(&parts, MANY, 2, LONG).await;
    assert_eq!(names(&named), ["named"]);
    let score = take(&parts, &named).await.remove(0).unwrap();
    finish(&parts, "named", &score, Next::Out).await;
    let lapsed = eventually("two claims have run out", async || {
        let claimed = claim(&parts, MANY, 2, LONG).await;
        if claimed.is_empty() { Err(0) } else { Ok(claimed) }
    })
    .await;
    assert_eq!(lapsed.len(), 2);
}

#[tokio::test]
async fn a_lapsed_claim_of_high_priority_goes_before_bulk() {
    let (_redis, parts) = parts().await;
    put(&parts, &["scheduled"], When::NOW, Trigger::Cron).await;
    assert_eq!(claim(&parts, MANY, MANY, SHORT).await.len(), 1);
    put(&parts, &["named"], When::Urgent, Trigger::Demand).await;
    let named = claim(&parts, MANY, MANY, SHORT).await;
    put(&parts, &["1", "2"], When::BULK_NOW, Trigger::Invalidation).await;
    eventually("both claims have run out", async || parts.now().await > named[0].due().at).await;
    assert_eq!(names(&claim(&parts, 1, MANY, LONG).await), ["named"]);
    assert_eq!(names(&claim(&parts, MANY, 2, LONG).await), ["1", "2", "scheduled"]);
}

#[tokio::test]
async fn an_entry_that_ends_makes_room_under_the_cap() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a", "b"], When::NOW, Trigger::Cron).await;
    let claimed = claim(&parts, MANY, 1, LONG).await;
    assert_eq!(names(&claimed), ["a"]);
    let score = take(&parts, &claimed).await.remove(0).unwrap();
    assert_eq!(claim(&parts, MANY, 1, LONG).await.len(), 0, "taken counts as well");
    finish(&parts, "a", &score, Next::At(parts.now().await + Duration::from_millis(60_000))).await;
    assert_eq!(names(&claim(&parts, MANY, 1, LONG).await), ["b"]);
}

#[tokio::test]
async fn who_asks_is_told_when_something_is_due_next() {
    let (_redis, parts) = parts().await;
    assert_eq!(parts.agenda.claim(&job(), MANY, MANY, LONG).await.unwrap().next, None);
    put(&parts, &["a"], When::Due(parts.now().await + Duration::from_millis(30_000)), Trigger::Expiry).await;
    let next = parts.agenda.claim(&job(), MANY, MANY, LONG).await.unwrap().next.unwrap();
    assert!(next > Duration::from_secs(20) && next <= Duration::from_secs(30), "{next:?}");
    put(&parts, &["b"], When::NOW, Trigger::Cron).await;
    let next = parts.agenda.claim(&job(), MANY, MANY, Duration::from_secs(10)).await.unwrap().next.unwrap();
    assert!(next <= Duration::from_secs(10), "the claim that runs out comes first: {next:?}");
}

#[tokio::test]
async fn an_invalidation_makes_a_taken_entry_due_whatever_its_finish() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a"], When::NOW, Trigger::Cron).await;
    let score = take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
    assert_eq!(put(&parts, &["a"], When::Urgent, Trigger::Demand).await, 0, "a demand does not overtake");
    assert_eq!(put(&parts, &["a"], When::Urgent, Trigger::Invalidation).await, 1);
    for next in
        [Next::At(RedisTime::from_millis(i64::MAX >> 20)), Next::Out, Next::In(LONG), Next::Dead("too late".to_owned())]
    {
        finish(&parts, "a", &score, next).await;
        assert_eq!(state(&parts, "a").await, Some((State::Urgent, Trigger::Invalidation)));
    }
    assert_eq!(names(&claim(&parts, MANY, MANY, LONG).await), ["a"]);
}

/// The fetch that runs may have begun before somebody asked for a new one.
#[tokio::test]
async fn a_manual_request_overtakes_what_runs() {
    for (when, state_then) in [(When::NOW, State::Scheduled), (When::Urgent, State::Urgent)] {
        let (_redis, parts) = parts().await;
        put(&parts, &["a"], When::NOW, Trigger::Cron).await;
        let taken = take(&parts, &claim(&parts, 1, 10, LONG).await).await;
        assert_eq!(put(&parts, &["a"], when, Trigger::Manual).await, 1);
        finish(&parts, "a", taken[0].as_ref().unwrap(), Next::Out).await;
        assert_eq!(state(&parts, "a").await, Some((state_then, Trigger::Manual)));
    }
}

#[tokio::test]
async fn each_end_leads_where_it_says() {
    let (redis, parts) = parts().await;
    let all = ["at", "in", "again", "out", "dead"];
    put(&parts, &all, When::Urgent, Trigger::Demand).await;
    let claimed = claim(&parts, MANY, MANY, LONG).await;
    let scores = take(&parts, &claimed).await;
    let then = parts.now().await + Duration::from_millis(60_000);
    for (entry, score) in claimed.iter().zip(scores) {
        let name = entry.key.strip_prefix("art:").unwrap();
        let next = match name {
            "at" => Next::At(then),
            "in" => Next::In(LONG),
            "again" => Next::In(Duration::ZERO),
            "out" => Next::Out,
            _ => Next::Dead("no answer".to_owned()),
        };
        finish(&parts, name, &score.unwrap(), next).await;
    }
    let due = async |name: &str| parts.score(name).await.map(Due::from_score);
    let at = Due { at: then, state: State::Scheduled, trigger: Trigger::Expiry, priority: Priority::Normal };
    assert_eq!((due("at").await, due("out").await, due("dead").await), (Some(at), None, None));
    assert_eq!(state(&parts, "in").await, Some((State::Urgent, Trigger::Demand)));
    assert!(due("in").await.unwrap().at >= then - Duration::from_secs(1));
    assert_eq!(names(&claim(&parts, MANY, MANY, LONG).await), ["again"]);
    assert_eq!(redis.ask::<String>(&["HGET", "samovar:dead-reasons:{art}", "art:dead"]).await, "no answer");
    assert_eq!(redis.ask::<Vec<String>>(&["ZRANGE", "samovar:dead:{art}", "0", "-1"]).await, ["art:dead"]);
}

#[tokio::test]
async fn dead_letters_are_bounded_and_the_oldest_go_first() {
    let (redis, parts) = parts().await;
    let mut fill = redis::pipe();
    for n in 0..10_000 {
        fill.cmd("ZADD").arg("samovar:dead:{art}").arg(n).arg(format!("art:old {n}")).ignore();
        fill.cmd("HSET").arg("samovar:dead-reasons:{art}").arg(format!("art:old {n}")).arg("long ago").ignore();
    }
    fill.query_async::<()>(&mut redis.connection().await).await.unwrap();
    put(&parts, &["new"], When::NOW, Trigger::Cron).await;
    let score = take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
    finish(&parts, "new", &score, Next::Dead("just now".to_owned())).await;
    assert_eq!(redis.ask::<u64>(&["ZCARD", "samovar:dead:{art}"]).await, 10_000);
    assert_eq!(redis.ask::<u64>(&["HLEN", "samovar:dead-reasons:{art}"]).await, 10_000);
    assert_eq!(redis.ask::<Option<f64>>(&["ZSCORE", "samovar:dead:{art}", "art:old 0"]).await, None);
    assert!(redis.ask::<Option<f64>>(&["ZSCORE", "samovar:dead:{art}", "art:new"]).await.is_some());
}

/// Somebody else's key stands where the dead letters, their reasons or the counters should.
#[tokio::test]
async fn a_stranger_s_key_beside_the_agenda_keeps_no_entry_in_flight() {
    let names: Vec<String> = (0..600).map(|n| format!("{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (key, letters) in [("samovar:dead:{art}", 0), ("samovar:dead-reasons:{art}", 200), ("samovar:stats:{art}", 200)]
    {
        let (redis, parts) = parts().await;
        redis.set(key, "a stranger's", LONG).await;
        put(&parts, &names, When::NOW, Trigger::Cron).await;
        let claimed = claim(&parts, MANY, MANY, LONG).await;
        let scores = take(&parts, &claimed).await;
        let then = parts.now().await + Duration::from_millis(60_000);
        let ends = claimed.iter().zip(scores).enumerate().map(|(n, (entry, score))| {
            let next = [Next::Dead("no answer".to_owned()), Next::Out, Next::At(then)][n % 3].clone();
            Finished { key: entry.key.clone(), score: score.unwrap(), next, outcome: Some(Outcome::Failed) }
        });
        let ends: Vec<Finished> = ends.collect();
        let e = parts.agenda.finish(&job(), &ends, "").await.unwrap_err();
        assert_eq!(e.code(), Some("WRONGTYPE"), "{key}: {e}");
        let agenda: Vec<f64> = scores_on(&redis).await;
        assert_eq!(agenda.len(), 200, "{key}: what is finished has left");
        assert!(agenda.iter().all(|score| Due::from_score(*score).state == State::Scheduled), "{key}");
        assert_eq!(redis.get(key).await.as_deref(), Some("a stranger's"));
        if letters > 0 {
            assert_eq!(redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await, letters, "{key}");
        }
    }
}

/// A full Redis stores no dead letter, so the entry stays in flight until it can.
#[tokio::test]
async fn a_full_redis_loses_no_dead_letter() {
    let (redis, parts) = parts().await;
    put(&parts, &["a"], When::NOW, Trigger::Cron).await;
    let claimed = claim(&parts, MANY, MANY, LONG).await;
    let score = take(&parts, &claimed).await.remove(0).unwrap();
    let dead = Next::Dead("no answer".to_owned());
    let end = Finished { key: claimed[0].key.clone(), score, next: dead, outcome: None };
    redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    parts.agenda.finish(&job(), std::slice::from_ref(&end), "").await.unwrap_err();
    assert!(parts.score("a").await.is_some());
    redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    parts.agenda.finish(&job(), &[end], "").await.unwrap();
    assert_eq!(parts.score("a").await, None);
    assert_eq!(redis.ask::<Vec<String>>(&["ZRANGE", "samovar:dead:{art}", "0", "-1"]).await, ["art:a"]);
}

/// The scores on the agenda of the job `art`.
async fn scores_on(redis: &TestRedis) -> Vec<f64> {
    let all: Vec<(String, f64)> = redis.ask(&["ZRANGE", "samovar:agenda:{art}", "0", "-1", "WITHSCORES"]).await;
    all.into_iter().map(|(_, score)| score).collect()
}

#[tokio::test]
async fn an_entry_that_is_on_the_agenda_again_is_no_dead_letter() {
    let (redis, parts) = parts().await;
    // It is warm again, or is tried again.
    for next in [Next::At(parts.now().await + Duration::from_millis(60_000)), Next::In(Duration::from_secs(60))] {
        for next in [Next::Dead("down".to_owned()), next] {
            put(&parts, &["a"], When::NOW, Trigger::Cron).await;
            let score = take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
            finish(&parts, "a", &score, next).await;
        }
        assert_eq!(redis.keys("samovar:dead*").await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn scores_come_back_from_redis_exactly() {
    let (_redis, parts) = parts().await;
    for trigger in
        [Trigger::Cron, Trigger::Invalidation, Trigger::Expiry, Trigger::Demand, Trigger::Manual, Trigger::Recheck]
    {
        for (when, priority) in [
            (When::Urgent, Priority::High),
            (When::Bulk(RedisTime::from_millis(1_732_270_000_123)), Priority::Bulk),
            (When::Due(RedisTime::from_millis(1_732_270_000_123)), Priority::Normal),
        ] {
            let name = format!("{trigger:?} {when:?}");
            put(&parts, &[&name], when, trigger).await;
            let put = Due::from_score(parts.score(&name).await.unwrap());
            assert_eq!((put.trigger, put.priority), (trigger, priority), "{name}");
            let claimed = claim(&parts, MANY, MANY, LONG).await.remove(0);
            assert_eq!(claimed.since, put.at, "{name}");
            assert_eq!(parts.score(&name).await, Some(claimed.score.parse().unwrap()), "{name}");
            assert_eq!(claimed.due().priority, priority, "{name}");
            let taken = take(&parts, &[claimed]).await.remove(0).unwrap();
            assert_eq!(parts.score(&name).await, Some(taken.parse().unwrap()), "{name}");
            let taken = Due::from_score(taken.parse().unwrap());
            let as_put = (State::Running, trigger, priority);
            assert_eq!((taken.state, taken.trigger, taken.priority), as_put, "{name}");
        }
    }
}

#[tokio::test]
async fn odd_names_pass_through_the_agenda_unharmed() {
    let (_redis, parts) = parts().await;
    let odd = ["", " ", "a\nb", "\"quoted\"", "{brace}", "[x]?*", "Kaplumbağa 🐢", "100%"];
    put(&parts, &odd, When::NOW, Trigger::Cron).await;
    let mut claimed = claim(&parts, MANY, MANY, LONG).await;
    assert!(take(&parts, &claimed).await.iter().all(Option::is_some));
    claimed.sort_by(|a, b| a.key.cmp(&b.key));
    let mut odd = odd.to_vec();
    odd.sort_unstable();
    assert_eq!(names(&claimed), odd);
}

#[tokio::test]
async fn what_is_named_by_itself_goes_before_what_was_named_with_many() {
    let (_redis, parts) = parts().await;
    let bulk: Vec<String> = (0..300).map(|n| format!("bulk {n}")).collect();
    put(&parts, &bulk.iter().map(String::as_str).collect::<Vec<_>>(), When::BULK_NOW, Trigger::Invalidation).await;
    put(&parts, &["named", "bulk 250"], When::Urgent, Trigger::Invalidation).await;
    let mut first: Vec<String> = claim(&parts, 2, MANY, LONG).await.into_iter().map(|entry| entry.key).collect();
    first.sort();
    assert_eq!(first, ["art:bulk 250", "art:named"]);
    assert_eq!(claim(&parts, MANY, MANY, LONG).await.len(), 299);
}

#[tokio::test]
async fn a_stronger_trigger_replaces_a_weaker_one_and_not_vice_versa() {
    let (_redis, parts) = parts().await;
    for when in [When::Urgent, When::BULK_NOW, When::NOW] {
        put(&parts, &["a"], when, Trigger::Demand).await;
        put(&parts, &["a"], when, Trigger::Invalidation).await;
        put(&parts, &["a"], when, Trigger::Cron).await;
        let claimed = claim(&parts, MANY, MANY, LONG).await;
        assert_eq!(claimed[0].due().trigger, Trigger::Invalidation, "{when:?}");
        let score = take(&parts, &claimed).await.remove(0).unwrap();
        finish(&parts, "a", &score, Next::Out).await;
    }
}

#[tokio::test]
async fn what_waits_for_its_input_comes_forward_as_urgent_as_it_is() {
    let (_redis, parts) = parts().await;
    for (when, priority) in
        [(When::Urgent, Priority::High), (When::BULK_NOW, Priority::Bulk), (When::NOW, Priority::Normal)]
    {
        put(&parts, &["a"], when, Trigger::Demand).await;
        let score = take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
        finish(&parts, "a", &score, Next::In(LONG)).await;
        assert_eq!(claim(&parts, MANY, MANY, LONG).await, []);
        assert_eq!(put(&parts, &["a"], When::IfThere, Trigger::Invalidation).await, 1);
        let claimed = claim(&parts, MANY, MANY, LONG).await.remove(0);
        assert_eq!((claimed.due().priority, claimed.due().trigger), (priority, Trigger::Invalidation));
        take(&parts, &[claimed]).await.remove(0).unwrap();
        assert_eq!(put(&parts, &["a"], When::IfThere, Trigger::Invalidation).await, 1, "it is made again");
        let claimed = claim(&parts, MANY, MANY, LONG).await.remove(0);
        assert_eq!(claimed.due().priority, priority, "as urgently as before");
        let score = take(&parts, &[claimed]).await.remove(0).unwrap();
        finish(&parts, "a", &score, Next::Out).await;
    }
    put(&parts, &["a"], When::Urgent, Trigger::Demand).await;
    parts.next_instant().await;
    assert_eq!(put(&parts, &["a"], When::IfThere, Trigger::Demand).await, 0, "it waits for nothing");
}

#[tokio::test]
async fn a_warmup_or_a_person_brings_what_waits_forward() {
    let (_redis, parts) = parts().await;
    for (when, priority) in [(When::Urgent, Priority::High), (When::BULK_NOW, Priority::Bulk)] {
        for trigger in [Trigger::Cron, Trigger::Manual] {
            put(&parts, &["a"], when, Trigger::Demand).await;
            let score = take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
            finish(&parts, "a", &score, Next::In(LONG)).await;
            assert_eq!(put(&parts, &["a"], When::NOW, Trigger::Demand).await, 0, "a retry keeps its time");
            assert_eq!(put(&parts, &["a"], When::NOW, trigger).await, 1, "{trigger}");
            let claimed = claim(&parts, MANY, MANY, LONG).await;
            assert_eq!((claimed[0].due().priority, claimed[0].due().trigger), (priority, trigger));
            let score = take(&parts, &claimed).await.remove(0).unwrap();
            finish(&parts, "a", &score, Next::Out).await;
        }
    }
}

#[tokio::test]
async fn what_is_due_soon_comes_forward_for_its_own_trigger() {
    let (_redis, parts) = parts().await;
    let soon = When::IfSoon(LONG);
    assert_eq!(put(&parts, &["a"], soon, Trigger::Recheck).await, 0, "it is not on the agenda");
    for (when, priority) in [(When::Urgent, Priority::High), (When::NOW, Priority::Normal)] {
        put(&parts, &["a"], when, Trigger::Demand).await;
        let claimed = claim(&parts, MANY, MANY, LONG).await;
        assert_eq!(put(&parts, &["a"], soon, Trigger::Recheck).await, 0, "it is claimed");
        let score = take(&parts, &claimed).await.remove(0).unwrap();
        assert_eq!(put(&parts, &["a"], soon, Trigger::Recheck).await, 0, "it runs");
        finish(&parts, "a", &score, Next::In(2 * LONG)).await;
        assert_eq!(put(&parts, &["a"], soon, Trigger::Recheck).await, 0, "it is due later");
        assert_eq!(put(&parts, &["a"], When::IfSoon(3 * LONG), Trigger::Recheck).await, 1);
        let claimed = claim(&parts, MANY, MANY, LONG).await.remove(0);
        assert_eq!((claimed.due().priority, claimed.due().trigger), (priority, Trigger::Demand));
        let score = take(&parts, &[claimed]).await.remove(0).unwrap();
        finish(&parts, "a", &score, Next::Out).await;
    }
}

#[tokio::test]
async fn a_recheck_after_an_eviction_moves_nothing_that_is_due() {
    let (_redis, parts) = parts().await;
    for trigger in [Trigger::Cron, Trigger::Invalidation, Trigger::Expiry, Trigger::Demand, Trigger::Manual] {
        put(&parts, &["a"], When::NOW, trigger).await;
        assert_eq!(
            put(&parts, &["a"], When::Keep(RedisTime::from_millis(1)), Trigger::Recheck).await,
            0,
            "{trigger:?}"
        );
        parts.agenda.remove(&job(), &[art("a")]).await.unwrap();
    }
    assert_eq!(put(&parts, &["a"], When::Keep(RedisTime::from_millis(1)), Trigger::Recheck).await, 1);
}

#[tokio::test]
async fn what_is_only_looked_at_once_more_gives_way_to_a_demand() {
    let (_redis, parts) = parts().await;
    put(&parts, &["a"], When::NOW, Trigger::Recheck).await;
    let score = take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
    put(&parts, &["a"], When::Urgent, Trigger::Demand).await;
    finish(&parts, "a", &score, Next::Out).await;
    assert_eq!(claim(&parts, MANY, MANY, LONG).await[0].due().trigger, Trigger::Demand);
}

/// As after Redis's clock was set back by a day.
#[tokio::test]
async fn what_was_claimed_or_put_off_in_the_future_is_due() {
    let (redis, parts) = parts().await;
    let tomorrow = parts.now().await + Duration::from_millis(86_400_000);
    let dues = [
        ("claimed", State::Claimed, Priority::Normal),
        ("taken", State::Running, Priority::Bulk),
        ("bulk", State::Urgent, Priority::Bulk),
        ("single", State::Urgent, Priority::High),
    ];
    for (name, state, priority) in dues {
        let due = Due { at: tomorrow, state, trigger: Trigger::Invalidation, priority };
        let score = format!("{:.6}", due.score());
        redis.ask::<u64>(&["ZADD", "samovar:agenda:{art}", &score, art(name).as_str()]).await;
    }
    put(&parts, &["scheduled"], When::Due(tomorrow), Trigger::Expiry).await;
    let claimed = claim(&parts, MANY, MANY, LONG).await;
    assert_eq!(names(&claimed), ["single", "bulk", "claimed", "taken"]);
    assert_eq!(claim(&parts, MANY, MANY, LONG).await.len(), 0, "once");
}

#[tokio::test]
async fn an_eviction_leaves_what_was_asked_for_since() {
    let (_redis, parts) = parts().await;
    let cancel = async |at| parts.agenda.cancel(&job(), &[art("a")], at).await.unwrap();
    let stays = async |when, trigger, asked_first: bool| {
        let before = parts.now().await;
        parts.next_instant().await;
        put(&parts, &["a"], when, trigger).await;
        let asked = parts.score("a").await;
        parts.next_instant().await;
        cancel(if asked_first { parts.now().await } else { before }).await;
        let left = parts.score("a").await;
        parts.agenda.remove(&job(), &[art("a")]).await.unwrap();
        left.is_some() && left == asked
    };
    for trigger in [Trigger::Cron, Trigger::Demand, Trigger::Manual] {
        assert!(stays(When::NOW, trigger, false).await, "{trigger}: since the eviction");
        assert!(!stays(When::NOW, trigger, true).await, "{trigger}: before it");
    }
    assert!(stays(When::Urgent, Trigger::Invalidation, false).await);
    assert!(!stays(When::NOW, Trigger::Expiry, false).await);
}

/// A value that was loaded since the eviction may be invalidated: only its metadata tell.
#[tokio::test]
async fn an_eviction_makes_rechecks_of_pending_refreshes() {
    let (_redis, parts) = parts().await;
    let cancelled = async || {
        parts.agenda.cancel(&job(), &[art("a")], parts.now().await).await.unwrap();
        let due = parts.score("a").await.map(Due::from_score).unwrap();
        parts.agenda.remove(&job(), &[art("a")]).await.unwrap();
        (due.state, due.trigger, due.priority)
    };
    for (when, priority) in [(When::Urgent, Priority::High), (When::BULK_NOW, Priority::Bulk)] {
        let recheck = (State::Urgent, Trigger::Recheck, priority);
        put(&parts, &["a"], when, Trigger::Invalidation).await;
        assert_eq!(cancelled().await, recheck, "it waits");
        put(&parts, &["a"], when, Trigger::Invalidation).await;
        claim(&parts, MANY, MANY, LONG).await;
        assert_eq!(cancelled().await, recheck, "it is claimed");
        for trigger in [Trigger::Invalidation, Trigger::Demand, Trigger::Expiry] {
            put(&parts, &["a"], when, trigger).await;
            take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
            assert_eq!(cancelled().await, recheck, "it runs: {trigger}");
        }
    }
}

/// Taken again in one millisecond, it could have the same score, and one worker would end the other's work.
#[tokio::test]
async fn an_entry_is_not_taken_twice_in_one_millisecond() {
    let (_redis, parts) = parts().await;
    let due = async || parts.score("a").await.map(Due::from_score).unwrap().at;
    for when in [When::Urgent, When::BULK_NOW, When::NOW, When::IfThere] {
        put(&parts, &["a"], When::Urgent, Trigger::Invalidation).await;
        let claimed = claim(&parts, MANY, MANY, LONG).await;
        let before = parts.now().await;
        let score = take(&parts, &claimed).await.remove(0).unwrap();
        put(&parts, &["a"], when, Trigger::Invalidation).await;
        assert!(due().await > before, "{when:?}: it is made due again");
        let again = claim(&parts, MANY, MANY, LONG).await;
        assert_ne!(take(&parts, &again).await.remove(0).unwrap(), score, "{when:?}");
        parts.agenda.remove(&job(), &[art("a")]).await.unwrap();
    }
    put(&parts, &["a"], When::Urgent, Trigger::Demand).await;
    let score = take(&parts, &claim(&parts, MANY, MANY, LONG).await).await.remove(0).unwrap();
    let before = parts.now().await;
    finish(&parts, "a", &score, Next::In(Duration::ZERO)).await;
    assert!(due().await > before, "it is handed back");
}
