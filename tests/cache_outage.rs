//! The cache library while Redis hangs, is gone, comes back; and what is kept near meanwhile.
use std::convert::Infallible;
use std::time::Duration;

use crate::support::{TestRedis, eventually};
use futures_util::future::join_all;
use samovar::cache::{
    Builder, Cache, Error, Heard, Invalidation, InvalidationPublisher, Lock, RateLimiter, SessionCache,
};
use samovar::entry::EntryKey;
use samovar::protocol::Keys;
use samovar::store::{Fresh, LastAttempt, Leased, Removal, Store};
use tokio::time::timeout;

const HOUR: Duration = Duration::from_secs(3_600);
/// For calls that without a bound would wait for ever.
const DEADLINE: Duration = Duration::from_secs(15);
const NEAR: u64 = 1 << 20;

fn builder(redis: &TestRedis) -> Builder {
    Cache::builder(redis.redis_url()).prefix("art")
}

/// One whose near cache hears changes. Its bound is long: what is tried is not how long a busy machine takes.
async fn near(redis: &TestRedis) -> Cache {
    let cache = builder(redis).bound(DEADLINE).near(NEAR, HOUR).build().await.unwrap();
    redis.set("art:probe", "1", HOUR).await;
    eventually("changes are heard, and values are kept near", async || {
        cache.get::<i32>("probe").await.unwrap();
        cache.stats().near_hits > 0
    })
    .await;
    cache
}

async fn far(redis: &TestRedis) -> Cache {
    builder(redis).bound(DEADLINE).build().await.unwrap()
}

/// Every call does what the table says while Redis does not answer.
async fn does_without(cache: &Cache) {
    let before = cache.stats();
    let get: Option<i32> = cache.get("k").await.unwrap();
    assert_eq!(get, None);
    assert!(cache.get_many::<i32, _>(["k", "l"]).await.unwrap().is_empty());
    assert!(!cache.exists("k").await.unwrap());
    assert_eq!(cache.ttl("k").await.unwrap(), None);
    cache.set("k", &2).await.unwrap();
    cache.set_many([("k", 2), ("l", 2)]).await.unwrap();
    assert!(!cache.delete("k").await.unwrap());
    assert!(!cache.expire("k", HOUR).await.unwrap());
    SessionCache::new(cache).set("s", &1).await.unwrap();
    let loaded = cache.get_or_load("k", async || Ok::<_, Infallible>(3)).await.unwrap();
    assert_eq!(loaded, 3);

    let limiter = RateLimiter::new(cache, "5/day").unwrap();
    let decisions = join_all((0..20).map(|_| limiter.check("sender"))).await;
    let decisions: Vec<_> = decisions.into_iter().map(Result::unwrap).collect();
    assert_eq!(decisions.iter().filter(|d| d.allowed).count(), 5);
    assert!(decisions.iter().all(|d| d.local && d.limit == 5));
    assert!(decisions.iter().filter(|d| !d.allowed).all(|d| d.retry_after > Duration::ZERO));

    let publisher = InvalidationPublisher::new(cache);
    let errors = [
        cache.increment("n", 1).await.unwrap_err(),
        cache.clear_pattern("*").await.unwrap_err(),
        cache.publish("news", &1).await.unwrap_err(),
        publisher.publish(&Invalidation::keys(["k"])).await.unwrap_err(),
        Lock::new(cache, "l").acquire(HOUR).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_unavailable(), "{error}");
    }

    let stats = cache.stats();
    assert!(stats.degraded, "after so many failures nobody waits any more");
    assert_eq!(stats.dropped_writes - before.dropped_writes, 6);
    assert_eq!(stats.degraded_reads - before.degraded_reads, 6);
    assert_eq!(stats.local_limits - before.local_limits, 20);
}

async fn comes_back(cache: &Cache) {
    eventually("writes arrive again", async || {
        cache.set("back", &1).await.unwrap();
        cache.get::<i32>("back").await.unwrap()
    })
    .await;
    eventually("everything works again", async || {
        let limiter = RateLimiter::new(cache, "5/day").unwrap();
        let shared = !limiter.check("another").await.unwrap().local;
        let locked = Lock::new(cache, "l").acquire(Duration::ZERO).await.is_ok();
        shared && locked && cache.increment("n", 1).await.is_ok() && !cache.stats().degraded
    })
    .await;
}

#[tokio::test]
async fn a_hung_redis_holds_nobody_up_and_is_used_again_afterwards() {
    let redis = TestRedis::start().await;
    let cache = builder(&redis).build().await.unwrap();
    cache.set("k", &1).await.unwrap();
    redis.freeze();
    timeout(DEADLINE, does_without(&cache)).await.expect("every call has a bound");
    redis.thaw();
    comes_back(&cache).await;
}

#[tokio::test]
async fn a_lost_redis_holds_nobody_up_and_is_used_again_afterwards() {
    let mut redis = TestRedis::start().await;
    let cache = builder(&redis).build().await.unwrap();
    for _ in 0..2 {
        cache.set("k", &1).await.unwrap();
        redis.kill9();
        timeout(DEADLINE, does_without(&cache)).await.expect("every call has a bound");
        redis.start_again().await;
        comes_back(&cache).await;
        cache.delete("k").await.unwrap();
    }
}

#[tokio::test]
async fn a_service_starts_without_redis_and_uses_it_when_it_comes() {
    let mut redis = TestRedis::start().await;
    redis.kill9();
    let cache = builder(&redis).near(NEAR, HOUR).build().await.unwrap();
    let mut changes = cache.changes().await;
    timeout(DEADLINE, does_without(&cache)).await.expect("every call has a bound");
    redis.start_again().await;
    comes_back(&cache).await;
    assert_eq!(changes.next().await, Heard::Gap);
    cache.set("k", &1).await.unwrap();
    eventually("values are kept near", async || {
        cache.get::<i32>("k").await.unwrap();
        cache.stats().near_hits > 0
    })
    .await;
}

#[tokio::test]
async fn without_redis_one_call_loads_for_all_of_the_process() {
    let mut redis = TestRedis::start().await;
    let cache = builder(&redis).build().await.unwrap();
    redis.kill9();
    let loads = std::sync::atomic::AtomicUsize::new(0);
    let calls = (0..20).map(|_| {
        cache.get_or_load("k", async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(loads.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
        })
    });
    assert!(join_all(calls).await.into_iter().all(|answer| answer.unwrap() == 0));
}

#[tokio::test]
async fn a_full_redis_drops_writes_and_still_deletes() {
    let redis = TestRedis::start().await;
    let cache = far(&redis).await;
    cache.set("k", &1).await.unwrap();
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    cache.set("k", &2).await.unwrap();
    cache.set_many([("k", 3)]).await.unwrap();
    assert_eq!(cache.stats().dropped_writes, 2);
    assert_eq!(cache.get::<i32>("k").await.unwrap(), Some(1));
    assert!(RateLimiter::new(&cache, "1/day").unwrap().check("sender").await.unwrap().local);
    assert!(cache.delete("k").await.unwrap());
    assert!(!cache.stats().degraded, "it is there");
}

#[tokio::test]
async fn what_redis_objects_to_is_an_error_and_no_absence() {
    let redis = TestRedis::start().await;
    redis.ask::<()>(&["ACL", "SETUSER", "reader", "on", ">pass", "~*", "&*", "+@all", "-evalsha"]).await;
    let url = redis.url_of("reader", "pass");
    let cache = Cache::builder(url).bound(DEADLINE).build().await.unwrap();
    for _ in 0..5 {
        assert!(matches!(cache.set("k", &1).await, Err(Error::Redis(_))));
        assert!(matches!(RateLimiter::new(&cache, "1/day").unwrap().check("s").await, Err(Error::Redis(_))));
    }
    assert!(!cache.stats().degraded && cache.stats().dropped_writes == 0);
}

#[tokio::test]
async fn a_lock_that_cannot_be_extended_is_lost() {
    let mut redis = TestRedis::start().await;
    let cache = builder(&redis).build().await.unwrap();
    let held = Lock::new(&cache, "l").ttl(Duration::from_secs(1)).acquire(Duration::ZERO).await.unwrap();
    redis.kill9();
    timeout(DEADLINE, held.lost()).await.expect("its holder is told");
    assert!(!held.is_held());
}

#[tokio::test]
async fn a_lock_outlives_an_outage_shorter_than_its_ttl() {
    let redis = TestRedis::start().await;
    let cache = builder(&redis).build().await.unwrap();
    let held = Lock::new(&cache, "l").ttl(Duration::from_secs(12)).acquire(Duration::ZERO).await.unwrap();
    redis.freeze();
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    redis.thaw();
    let [name, _] = Keys::new("samovar", "").lock("l");
    eventually("it is extended", async || redis.ttl(&name).await.is_some_and(|ttl| ttl > Duration::from_secs(10)))
        .await;
    assert!(held.is_held());
}

#[tokio::test]
async fn near_values_answer_while_redis_is_gone() {
    let mut redis = TestRedis::start().await;
    let cache = builder(&redis).near(NEAR, HOUR).build().await.unwrap();
    redis.set("art:k", "1", HOUR).await;
    eventually("it is kept near", async || {
        cache.get::<i32>("k").await.unwrap();
        cache.stats().near_hits > 0
    })
    .await;
    redis.kill9();
    eventually("the outage is noticed", async || {
        assert_eq!(cache.get::<i32>("k").await.unwrap(), Some(1));
        assert_eq!(cache.get_many::<i32, _>(["k", "l"]).await.unwrap().len(), 1);
        cache.get::<i32>("l").await.unwrap();
        cache.stats().degraded
    })
    .await;
    assert_eq!(cache.get_or_load("k", async || Ok::<_, Infallible>(2)).await.unwrap(), 1);
    redis.start_again().await;
    eventually("the new Redis is believed, which is empty", async || cache.get::<i32>("k").await.unwrap().is_none())
        .await;
}

#[tokio::test]
async fn near_values_go_when_anybody_announces_a_change() {
    let redis = TestRedis::start().await;
    let (cache, other) = (near(&redis).await, far(&redis).await);
    let sees = async |what: &str, expected: Option<i32>| {
        let what = format!("{expected:?} is seen after {what}");
        eventually(&what, async || {
            let seen = cache.get::<i32>("k").await.unwrap();
            if seen == expected { Ok(()) } else { Err(seen) }
        })
        .await;
        let hits = cache.stats().near_hits;
        eventually("it is kept near", async || {
            cache.get::<i32>("k").await.unwrap();
            expected.is_none() || cache.stats().near_hits > hits
        })
        .await;
    };
    other.set("k", &1).await.unwrap();
    sees("a write", Some(1)).await;
    other.set_many([("k", 2)]).await.unwrap();
    sees("a write of many", Some(2)).await;
    other.increment("k", 1).await.unwrap();
    sees("an increment", Some(3)).await;
    other.delete("k").await.unwrap();
    sees("a delete", None).await;
    other.get_or_load("k", async || Ok::<_, Infallible>(4)).await.unwrap();
    sees("a load", Some(4)).await;
    other.clear_pattern("*").await.unwrap();
    sees("a clearing", None).await;

    let keys = Keys::new("samovar", "samovar:invalidate");
    let store = Store::new(redis.redis_url().manager(DEADLINE).await.unwrap(), keys);
    let key = EntryKey::new("art:k");
    let Leased::Yes(lease) = store.lease(&key, HOUR, Fresh::default()).await.unwrap() else { panic!("leased") };
    store.commit(&key, &lease, "5", HOUR, &LastAttempt::default()).await.unwrap();
    sees("a worker's commit", Some(5)).await;
    store.invalidate(&key, store.now().await.unwrap() + Duration::from_millis(1), Removal::Evict).await.unwrap();
    sees("an eviction", None).await;
}

#[tokio::test]
async fn who_writes_reads_what_it_wrote() {
    let redis = TestRedis::start().await;
    let cache = near(&redis).await;
    for n in 0..200 {
        cache.set("k", &n).await.unwrap();
        assert_eq!(cache.get::<i32>("k").await.unwrap(), Some(n));
        cache.get::<i32>("k").await.unwrap();
    }
    cache.delete("k").await.unwrap();
    assert_eq!(cache.get::<i32>("k").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_that_races_with_a_change_leaves_an_old_value_near() {
    let redis = TestRedis::start().await;
    let (cache, other) = (near(&redis).await, far(&redis).await);
    let stop = tokio_util::sync::CancellationToken::new();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (cache, stop) = (cache.clone(), stop.clone());
        readers.spawn(async move {
            while !stop.is_cancelled() {
                cache.get::<i32>("k").await.unwrap();
                tokio::task::yield_now().await;
            }
        });
    }
    for n in 0..300 {
        other.set("k", &n).await.unwrap();
        if n % 20 == 0 {
            let seen = async || cache.get::<i32>("k").await.unwrap() == Some(n);
            eventually("the new value is seen", seen).await;
        }
    }
    eventually("the last value is seen", async || cache.get::<i32>("k").await.unwrap() == Some(299)).await;
    for _ in 0..1_000 {
        assert_eq!(cache.get::<i32>("k").await.unwrap(), Some(299));
    }
    stop.cancel();
}

#[tokio::test]
async fn after_a_gap_nothing_from_before_it_is_believed() {
    let redis = TestRedis::start().await;
    let cache = near(&redis).await;
    redis.set("art:k", "1", HOUR).await;
    let hits = cache.stats().near_hits;
    eventually("it is kept near", async || {
        cache.get::<i32>("k").await.unwrap();
        cache.stats().near_hits > hits
    })
    .await;
    // A change that was announced while nobody heard.
    redis.set("art:k", "2", HOUR).await;
    assert_eq!(cache.get::<i32>("k").await.unwrap(), Some(1), "nobody announced it");
    redis.ask::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    eventually("the old value is gone", async || cache.get::<i32>("k").await.unwrap() == Some(2)).await;
    let hits = cache.stats().near_hits;
    eventually("values are kept near again", async || {
        assert_eq!(cache.get::<i32>("k").await.unwrap(), Some(2));
        cache.stats().near_hits > hits
    })
    .await;
}

#[tokio::test]
async fn no_near_value_is_older_than_its_time_nor_than_redis_keeps_it() {
    let redis = TestRedis::start().await;
    let cache = builder(&redis).bound(DEADLINE).near(NEAR, Duration::from_millis(200)).build().await.unwrap();
    redis.set("art:k", "1", HOUR).await;
    eventually("it is kept near", async || {
        cache.get::<i32>("k").await.unwrap();
        cache.stats().near_hits > 0
    })
    .await;
    redis.set("art:k", "2", HOUR).await;
    eventually("its time is over", async || cache.get::<i32>("k").await.unwrap() == Some(2)).await;

    let long = near(&redis).await;
    redis.set("art:k", "3", Duration::from_secs(1)).await;
    eventually("it is gone with its value in Redis", async || long.get::<i32>("k").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_subscription_comes_back_and_says_that_there_was_a_gap() {
    let mut redis = TestRedis::start().await;
    let cache = far(&redis).await;
    let mut heard = cache.subscribe::<i32>("news").await;
    cache.publish("news", &1).await.unwrap();
    assert_eq!(heard.next().await, Heard::Message(1));
    redis.ask::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(heard.next().await, Heard::Gap);
    cache.publish("news", &2).await.unwrap();
    assert_eq!(heard.next().await, Heard::Message(2));
    redis.kill9();
    let (gap, ()) = tokio::join!(heard.next(), redis.start_again());
    assert_eq!(gap, Heard::Gap);
    eventually("the cache is back", async || cache.publish("news", &3).await).await;
    assert_eq!(heard.next().await, Heard::Message(3));
}
