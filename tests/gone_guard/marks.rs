//! The scripts of guards and of doubts: marks of entries, and which invalidations end a value that is held back.

use std::time::Duration;

use samovar::redis::RedisTime;
use samovar::store::{GoneGuard, GuardState, HeldBack, LastAttempt, Removal, Terms};

use super::{GUARD, HOUR, ends_soon, held};
use crate::support::{Parts, art, both, job};

async fn removal(parts: &Parts, marked: RedisTime) -> Option<HeldBack> {
    removal_of(parts, "a", marked).await
}

async fn removal_of(parts: &Parts, name: &str, marked: RedisTime) -> Option<HeldBack> {
    parts.store.guard_removal(&job(), &art(name), 10, false, marked).await.unwrap()
}

#[tokio::test]
async fn a_guard_goes_by_marks_of_entries_and_by_its_own_time() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    for _ in 0..9 {
        assert_eq!(removal(&parts, RedisTime::ZERO).await, None);
    }
    let tripped = removal(&parts, RedisTime::ZERO).await.unwrap();
    assert_eq!((tripped.tripped, tripped.gone, tripped.until), (true, 10, tripped.now + HOUR));
    let again = removal(&parts, tripped.until).await.unwrap();
    assert_eq!((again.tripped, held(&redis).await), (false, 1), "an entry that is asked again counts once");
    // Redis lost the guard; the mark of an entry tells until when it held.
    redis.ask::<usize>(&["DEL", GUARD]).await;
    let restored = removal(&parts, tripped.until).await.unwrap();
    assert_eq!((restored.until, restored.tripped), (tripped.until, true));
    // A person accepted the removals: no mark of before holds them back after that.
    parts.store.accept_removals(&job()).await.unwrap();
    redis.ask::<usize>(&["HSET", GUARD, "until", "1"]).await;
    assert_eq!(removal(&parts, tripped.until).await, None);
    assert!(redis.ttl(GUARD).await.unwrap() > HOUR * 24, "so long may a mark be valid");
    // A mark that a person prolonged sets up no guard for longer than an hour.
    redis.ask::<usize>(&["DEL", GUARD]).await;
    let restored = removal(&parts, tripped.until + HOUR * 20).await.unwrap();
    assert_eq!(restored.until, restored.now + HOUR);
    // A person prolonged it: a mark of its first end is not over.
    let now = parts.now().await;
    let [before, after] = [now - HOUR, now + HOUR].map(|at| at.to_string());
    let marked = now - Duration::from_secs(60);
    redis.ask::<usize>(&["HSET", GUARD, "since", &before, "until", &after]).await;
    assert!(removal(&parts, marked).await.is_some());
    // That of an earlier guard is.
    redis.ask::<usize>(&["HSET", GUARD, "since", &now.to_string()]).await;
    assert_eq!(removal(&parts, marked).await, None);
    // A guard of the future, and a mark that no guard can have given, are by a clock that ran ahead.
    redis.ask::<usize>(&["HSET", GUARD, "since", &after, "until", &(now + HOUR * 2).to_string()]).await;
    redis.ask::<usize>(&["HSET", GUARD, "count", "0", "before", "0"]).await;
    assert_eq!(removal(&parts, now + HOUR * 30).await, None);
    for garbage in ["garbage", "inf", "nan", "-1", "1e300", ""] {
        for field in ["since", "until", "accepted", "count", "before", "minute", "most", "most_before", "held"] {
            redis.ask::<usize>(&["DEL", GUARD]).await;
            redis.ask::<usize>(&["HSET", GUARD, field, garbage]).await;
            assert_eq!(removal(&parts, RedisTime::ZERO).await, None, "{field} = {garbage}");
        }
    }
    let ttl = redis.ttl(GUARD).await.unwrap();
    assert!(ttl <= Duration::from_secs(120), "{ttl:?}");
}

#[tokio::test]
async fn a_wavering_upstream_trips_a_guard_once() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    for _ in 0..9 {
        assert_eq!(removal(&parts, RedisTime::ZERO).await, None);
    }
    for round in 0..20 {
        let held = removal(&parts, RedisTime::ZERO).await.unwrap();
        assert_eq!((held.tripped, held.until.saturating_since(held.now)), (round == 0, HOUR));
        parts.store.note_recovery(&job(), &art("a")).await.unwrap();
    }
    assert_eq!(held(&redis).await, 0);
    // A day after it tripped it ends, however the upstream wavers.
    let now = parts.now().await;
    let since = now - HOUR * 24 + Duration::from_secs(60);
    let [since_text, until] = [since, now + Duration::from_secs(30)].map(|at| at.to_string());
    redis.ask::<usize>(&["HSET", GUARD, "since", &since_text, "until", &until]).await;
    assert_eq!(removal(&parts, RedisTime::ZERO).await.unwrap().until, since + HOUR * 24);
    // At most a day from now.
    for _ in 0..30 {
        assert!(parts.store.hold_removals(&job()).await.unwrap());
    }
    let until: RedisTime = redis.ask(&["HGET", GUARD, "until"]).await;
    assert!(until <= parts.now().await + HOUR * 24, "{until}");
    parts.store.accept_removals(&job()).await.unwrap();
    assert_eq!(removal(&parts, RedisTime::ZERO).await, None);
    let now = parts.now().await;
    let guard = GoneGuard::read(&mut parts.redis.clone(), &parts.keys, &job(), now).await.unwrap();
    assert_eq!(guard.unwrap().state, GuardState::Accepted);
    // Nothing is left to hold: the acceptance ends, and there is nothing to do after that.
    assert!(parts.store.hold_removals(&job()).await.unwrap());
    let now = parts.now().await;
    assert_eq!(GoneGuard::read(&mut parts.redis.clone(), &parts.keys, &job(), now).await.unwrap(), None);
    assert!(!parts.store.hold_removals(&job()).await.unwrap());
}

/// A guard that was set up from the mark of an entry does not know the others at first.
#[tokio::test]
async fn a_lost_guard_does_not_end_with_the_first_that_is_well() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    for _ in 0..9 {
        assert_eq!(removal(&parts, RedisTime::ZERO).await, None);
    }
    let until = removal(&parts, RedisTime::ZERO).await.unwrap().until;
    // Redis lost the guard, or its clock was set back.
    for lost in [true, false] {
        if lost {
            redis.ask::<usize>(&["DEL", GUARD]).await;
        } else {
            let future = (parts.now().await + Duration::from_secs(60)).to_string();
            redis.ask::<usize>(&["HSET", GUARD, "since", &future]).await;
        }
        let restored = removal_of(&parts, "a", until).await.unwrap();
        assert_eq!((restored.tripped, restored.until, restored.held), (true, until, 1));
        for _ in 0..2 {
            parts.store.note_recovery(&job(), &art("a")).await.unwrap();
        }
        assert_eq!(redis.ask::<RedisTime>(&["HGET", GUARD, "until"]).await, until);
        for name in ["b", "c"] {
            for _ in 0..2 {
                let held = removal_of(&parts, name, until).await.unwrap();
                assert_eq!((held.tripped, held.until), (false, until));
            }
        }
        assert_eq!(held(&redis).await, 2, "it knows them now");
    }
}

/// A worker of the previous build counts entries without naming them.
#[tokio::test]
async fn a_guard_of_the_previous_build_does_not_end_too_early() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let now = parts.now().await;
    let [since, until] = [now, now + HOUR].map(|at| at.to_string());
    redis.ask::<usize>(&["HSET", GUARD, "since", &since, "until", &until, "held", "20", "last", &since]).await;
    assert!(removal_of(&parts, "a", now + HOUR).await.is_some());
    parts.store.note_recovery(&job(), &art("a")).await.unwrap();
    assert_eq!(removal_of(&parts, "b", now + HOUR).await.unwrap().until, now + HOUR);
}

#[tokio::test]
async fn a_guard_ends_with_the_last_entry_that_it_knows() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    for _ in 0..9 {
        assert_eq!(removal(&parts, RedisTime::ZERO).await, None);
    }
    let until = removal(&parts, RedisTime::ZERO).await.unwrap().until;
    removal_of(&parts, "b", RedisTime::ZERO).await.unwrap();
    // A worker may note twice that an entry is well.
    for _ in 0..2 {
        parts.store.note_recovery(&job(), &art("a")).await.unwrap();
    }
    assert_eq!(redis.ask::<RedisTime>(&["HGET", GUARD, "until"]).await, until);
    parts.store.note_recovery(&job(), &art("b")).await.unwrap();
    ends_soon(&redis).await;
    // An entry with a mark is held back as long as it says, and gets no shorter one.
    assert!(removal_of(&parts, "c", until).await.unwrap().until >= until);
}

/// Its worker died before it gave the entry a mark, another program deleted the value, or an earlier build found the
/// entry well.
#[tokio::test]
async fn entries_without_a_mark_leave_the_guard_by_a_sweep() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    for _ in 0..9 {
        assert_eq!(removal(&parts, RedisTime::ZERO).await, None);
    }
    let until = removal(&parts, RedisTime::ZERO).await.unwrap().until;
    for name in ["b", "c", "d"] {
        removal_of(&parts, name, RedisTime::ZERO).await.unwrap();
    }
    for name in ["a", "b"] {
        let lease = parts.lease(name, HOUR).await;
        parts.store.commit(&art(name), &lease, "1", HOUR, &LastAttempt::default()).await.unwrap();
        let (lease, marked) = (parts.lease(name, HOUR).await, LastAttempt { held_until: until, ..Default::default() });
        parts.store.release(&art(name), &lease.token, Some(&marked)).await.unwrap();
    }
    let noted = |name: &str| format!("={}", art(name));
    let swept = async || {
        let swept = parts.store.sweep_guard(&job()).await.unwrap();
        (swept, parts.store.held_entries(&job()).await.unwrap().len())
    };
    assert_eq!(swept().await, (0, 4), "their workers may be about to mark them");
    let long_ago = (parts.now().await - Duration::from_secs(301)).to_string();
    redis.ask::<usize>(&["HSET", GUARD, &noted("a"), &long_ago, &noted("c"), &long_ago, &noted("d"), "1"]).await;
    assert_eq!(swept().await, (2, 2));
    redis.ask::<usize>(&["DEL", "art:a"]).await;
    assert_eq!(swept().await, (1, 1));
    assert_eq!(redis.ask::<RedisTime>(&["HGET", GUARD, "until"]).await, until);
    redis.ask::<usize>(&["DEL", &parts.keys.meta(&art("b"))]).await;
    let future = (parts.now().await + HOUR).to_string();
    redis.ask::<usize>(&["HSET", GUARD, &noted("b"), &future]).await;
    assert_eq!(swept().await, (1, 0), "the clock was set back");
    ends_soon(&redis).await;
}

/// While an entry is fetched: a doubt may become certain, and a doubt may come.
#[tokio::test]
async fn a_failed_fetch_leaves_an_invalidation_what_it_is() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let (key, doubt) = (art("a"), Terms { is_doubt: true, ..Terms::default() });
    let lease = parts.lease("a", Duration::from_secs(60)).await;
    parts.store.commit(&key, &lease, "1", HOUR, &LastAttempt::default()).await.unwrap();
    parts.next_instant().await;
    let at = parts.now().await;
    let fetched = async |during: Terms, note: LastAttempt| {
        let lease = parts.lease("a", Duration::from_secs(60)).await;
        parts.store.invalidate_on(&key, at, Removal::Refresh, during).await.unwrap();
        parts.store.release(&key, &lease.token, Some(&note)).await.unwrap();
        let meta = parts.meta("a").await.unwrap();
        (meta.invalidated, meta.is_in_doubt())
    };
    assert_eq!(fetched(doubt, LastAttempt::default()).await, (Some(at), true));
    let before = parts.meta("a").await.unwrap().last_attempt;
    assert_eq!(fetched(Terms::default(), before).await, (Some(at), false));
}
