//! Redis's clock is set back: times from before do not compare with those after.

use std::time::Duration;

use samovar::redis::RedisTime;
use samovar::store::{Fresh, Gap, LastAttempt, Leased, Removal};
use samovar::trigger::{Clock, Gone};

use super::{LONG, TTL};
use crate::support::{Art, Parts, art, both, eventually, samovar};

/// A master whose clock ran ahead wrote it; after the failover, its time lies in the future.
#[tokio::test]
async fn a_value_from_the_future_is_not_safe_from_invalidations() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let future = parts.now().await + Duration::from_millis(3_600_000);
    let expires = future + Duration::from_secs(3_600);
    redis.ask::<String>(&["SET", "art:a", "1", "PXAT", &expires.to_string()]).await;
    let meta = format!("{future} {expires} 0 0 abc {{}}");
    redis.ask::<String>(&["SET", &parts.keys.meta(&art("a")), &meta]).await;
    let handled = parts.store.invalidate(&art("a"), parts.now().await, Removal::Refresh).await.unwrap();
    assert!(handled.due);
    let token = format!("somebody {future} -");
    redis.ask::<String>(&["SET", &parts.keys.lease(&art("b")), &token]).await;
    let handled = parts.store.invalidate(&art("b"), parts.now().await, Removal::Refresh).await.unwrap();
    assert!(handled.fenced);
}

/// As after Redis's clock was set back by an hour.
#[tokio::test]
async fn a_stamp_of_the_future_fences_once_and_hides_no_other() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let (tag, tags) = (parts.keys.tag("t"), ["t".to_owned()]);
    let stamped = async || parts.store.tag(&art("a"), &tags, LONG).await.unwrap()[0].unwrap();
    for removal in [Removal::Refresh, Removal::Evict] {
        let future = parts.now().await + Duration::from_millis(3_600_000);
        parts.store.stamp("t", future, removal).await.unwrap();
        let begun = parts.now().await;
        let first = stamped().await;
        assert!(first.at >= begun && first.at < future && first.removal == removal, "{first:?}");
        parts.next_instant().await;
        assert!(stamped().await.at < parts.now().await, "what begins from now on is not fenced by it");
        // One that comes before anybody has looked.
        redis.ask::<u64>(&["ZADD", &tag, &format!("-{future}"), ""]).await;
        parts.next_instant().await;
        let at = parts.now().await;
        parts.store.stamp("t", at, Removal::Refresh).await.unwrap();
        let found = stamped().await;
        assert!(found.at >= at && found.at < future, "{found:?}");
        redis.ask::<u64>(&["DEL", &tag]).await;
    }
}

/// As after Redis's clock was set back by an hour.
#[tokio::test]
async fn a_lease_of_the_future_ends_in_time() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let future = parts.now().await + Duration::from_millis(3_600_000);
    let lease = format!("dead-1 {future} -");
    redis.set(&parts.keys.lease(&art("a")), &lease, 100 * LONG).await;
    let short = Duration::from_millis(200);
    eventually("it has ended", async || {
        matches!(parts.store.lease(&art("a"), short, Fresh::default()).await.unwrap(), Leased::Yes(_))
    })
    .await;
}

#[tokio::test]
async fn what_was_fetched_in_the_future_is_fresh_to_nobody() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let future = parts.now().await + Duration::from_millis(3_600_000);
    let expires = (future + Duration::from_secs(3_600)).to_string();
    redis.ask::<String>(&["SET", "art:a", "1", "PXAT", &expires]).await;
    redis.ask::<String>(&["SET", &parts.keys.meta(&art("a")), &format!("{future} {expires} 0 0 abc {{}}")]).await;
    let fresh = Fresh { since: Some(parts.now().await), until: Some(RedisTime::from_millis(1)), ..Fresh::default() };
    let leased = parts.store.lease(&art("a"), LONG, fresh).await.unwrap();
    assert!(matches!(leased, Leased::Yes(_)), "{leased:?}");
}

/// A revalidation from before the clock was set back marked the value: it is older than any invalidation.
#[tokio::test]
async fn what_was_marked_in_the_future_is_older_than_anything() {
    let (redis, _) = both().await;
    let parts = Parts::of(&redis).await;
    let lease = parts.lease("a", LONG).await;
    parts.store.commit(&art("a"), &lease, "1", TTL, &LastAttempt::default()).await.unwrap();
    let future = parts.now().await + Duration::from_millis(3_600_000);
    assert!(parts.store.invalidate(&art("a"), future, Removal::Refresh).await.unwrap().due);
    let meta = parts.meta("a").await.unwrap();
    assert_eq!(
        (meta.validated_at, meta.fetched_at, meta.invalidated, meta.own_expiry),
        (RedisTime::from_millis(1), RedisTime::from_millis(1), Some(future), meta.own_expiry)
    );
    assert!(parts.store.snapshot(&art("a")).await.unwrap().ours().is_some(), "it is ours as before");
    assert!(
        parts
            .store
            .invalidate(&art("a"), lease.fetched_at - Duration::from_millis(60), Removal::Evict)
            .await
            .unwrap()
            .removed
    );
}

/// Its latest time is later than the present one.
#[tokio::test]
async fn a_clock_set_back_is_noted_once() {
    let (redis, _upstream) = both().await;
    let parts = Parts::of(&redis).await;
    let clock = || Clock::new(parts.redis.clone(), parts.keys.clone());
    let [note, ..] = parts.keys.revalidation();
    let (mut first, mut second) = (clock(), clock());
    assert_eq!((first.inspect().await.unwrap(), second.inspect().await.unwrap()), (Gone::On, Gone::On));
    assert_eq!(redis.get(&note).await, None);
    let high = parts.now().await + Duration::from_millis(3_600_000);
    redis.ask::<u64>(&["HSET", &parts.keys.clock(), "high", &high.to_string()]).await;
    assert_eq!(first.inspect().await.unwrap(), Gone::Back);
    let noted = redis.get(&note).await.unwrap();
    let words: Vec<RedisTime> = noted.split(' ').map(|word| word.parse().unwrap()).collect();
    assert!(words[0] >= high && words[1].as_millis() == 1 && words[2] <= parts.now().await, "{noted}");
    assert_eq!((second.inspect().await.unwrap(), first.inspect().await.unwrap()), (Gone::Back, Gone::On));
    assert_eq!(redis.get(&note).await.as_deref(), Some(noted.as_str()), "nobody notes it again");
    assert_eq!(clock().inspect().await.unwrap(), Gone::On);
    assert_eq!(redis.ask::<u64>(&["HGET", &parts.keys.clock(), "set_back"]).await, 1);
    // Another gap leaves it as it is.
    parts.store.note_gap(RedisTime::from_millis(1), Gap::Missed).await.unwrap();
    assert_eq!(redis.get(&note).await.as_deref(), Some(noted.as_str()));
    // A smaller step while it is open. Jobs may be done with the first one.
    let high = parts.now().await + Duration::from_millis(600_000);
    redis.ask::<u64>(&["HSET", &parts.keys.clock(), "high", &high.to_string()]).await;
    assert_eq!(first.inspect().await.unwrap(), Gone::Back);
    let again = redis.get(&note).await.unwrap();
    assert_eq!(again, noted.replace(&words[0].to_string(), &(words[0] + Duration::from_millis(1)).to_string()));
}

#[tokio::test]
async fn get_never_shows_the_past_as_future() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    let parts = Parts::of(&redis).await;
    let future = parts.now().await + Duration::from_millis(3_600_000);
    let expires = future + Duration::from_secs(3_600);
    redis.ask::<String>(&["SET", "art:a", "1", "PXAT", &expires.to_string()]).await;
    let meta = format!("{future} {expires} {future} 0 abc/0.0.0.{future} {{}}");
    redis.ask::<String>(&["SET", &parts.keys.meta(&art("a")), &meta]).await;
    let shown = samovar(["get", "art:a"]).redis(&redis).jobs(&jobs).run().await.stdout;
    for what in ["fetched ", "invalidated ", "last attempt "] {
        let line = shown.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {shown}"));
        assert!(line.contains(" 0ms ago, ") && !line.contains(" in "), "{line}");
    }
    assert!(shown.contains("age 0ms"), "{shown}");
}
