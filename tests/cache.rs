//! The cache library on a healthy Redis.
use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use crate::support::TestRedis;
use futures_util::StreamExt;
use redis::AsyncCommands;
use samovar::cache::{
    Builder, Cache, ChangeEvent, Error, Heard, Invalidation, InvalidationPublisher, RateLimitCache, SessionCache, Ttl,
    UserCache,
};
use samovar::protocol::Keys;
use serde::{Deserialize, Serialize};
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Artwork {
    title: String,
    year: Option<i32>,
}

/// Patient, since a busy machine is not what is tried here.
fn builder(redis: &TestRedis) -> Builder {
    Cache::builder(redis.redis_url()).bound(Duration::from_secs(10))
}

async fn art(redis: &TestRedis) -> Cache {
    builder(redis).prefix("art").default_ttl(HOUR).build().await.unwrap()
}

fn about(ttl: Option<Duration>, expected: Duration) -> bool {
    ttl.is_some_and(|ttl| ttl <= expected && ttl > expected - Duration::from_secs(60))
}

#[tokio::test]
async fn a_value_is_plain_json_under_the_prefix_with_the_default_ttl() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    let artwork = Artwork { title: "Kaplumbağa Terbiyecisi".into(), year: Some(1906) };
    cache.set("turtles", &artwork).await.unwrap();
    assert_eq!(redis.get("art:turtles").await.unwrap(), r#"{"title":"Kaplumbağa Terbiyecisi","year":1906}"#);
    assert!(about(redis.ttl("art:turtles").await, HOUR));
    assert_eq!(cache.get::<Artwork>("turtles").await.unwrap(), Some(artwork));
    assert_eq!(cache.get::<Artwork>("hares").await.unwrap(), None);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (1, 1));
}

#[tokio::test]
async fn what_a_worker_keeps_warm_is_read_as_it_is() {
    let redis = TestRedis::start().await;
    redis.set("artwork_info:Mona Lisa", r#"{"title": "Mona Lisa", "year": null}"#, HOUR).await;
    let cache = builder(&redis).prefix("artwork_info").build().await.unwrap();
    let artwork: Option<Artwork> = cache.get("Mona Lisa").await.unwrap();
    assert_eq!(artwork, Some(Artwork { title: "Mona Lisa".into(), year: None }));
}

#[tokio::test]
async fn for_ever_has_to_be_said() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    cache.set_with("a", &1, Ttl::Forever).await.unwrap();
    assert_eq!(cache.ttl("a").await.unwrap(), Some(Ttl::Forever));
    cache.set("a", &2).await.unwrap();
    assert!(about(redis.ttl("art:a").await, HOUR), "setting without a TTL gives the default");
    assert!(cache.expire("a", DAY).await.unwrap());
    assert!(about(redis.ttl("art:a").await, DAY));
    assert!(cache.expire("a", Ttl::Forever).await.unwrap());
    assert!(cache.expire("a", Ttl::Forever).await.unwrap(), "it is there, whether or not it had a TTL");
    assert_eq!(cache.ttl("a").await.unwrap(), Some(Ttl::Forever));
    assert_eq!(cache.ttl("b").await.unwrap(), None);
    assert!(!cache.expire("b", DAY).await.unwrap());
    assert!(!cache.expire("b", Ttl::Forever).await.unwrap());
    // Too short and too long are brought to what Redis takes.
    cache.set_with("long", &1, Duration::MAX).await.unwrap();
    assert!(cache.exists("long").await.unwrap());
    cache.set_with("short", &1, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn delete_and_exists_say_what_was_there() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    cache.set("a", "text").await.unwrap();
    assert!(cache.exists("a").await.unwrap());
    assert!(cache.delete("a").await.unwrap());
    assert!(!cache.exists("a").await.unwrap());
    assert!(!cache.delete("a").await.unwrap());
}

#[tokio::test]
async fn many_are_read_and_written_in_one_round_trip() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    cache.set_many([("a", 1), ("b", 2), ("c", 3)]).await.unwrap();
    cache.set_many_with([("d", 4)], DAY).await.unwrap();
    for key in ["art:a", "art:b", "art:c"] {
        assert!(about(redis.ttl(key).await, HOUR), "{key}");
    }
    assert!(about(redis.ttl("art:d").await, DAY));
    let found: HashMap<String, i32> = cache.get_many(["a", "missing", "d"]).await.unwrap();
    assert_eq!(found, HashMap::from([("a".to_owned(), 1), ("d".to_owned(), 4)]));
    cache.set_many(Vec::<(String, i32)>::new()).await.unwrap();
    assert!(cache.get_many::<i32, &str>([]).await.unwrap().is_empty());
    // After a restart Redis knows no script: still one round trip.
    redis.ask::<()>(&["SCRIPT", "FLUSH"]).await;
    cache.set_many([("a", 5), ("b", 6)]).await.unwrap();
    assert_eq!(cache.get::<i32>("b").await.unwrap(), Some(6));
}

#[tokio::test]
async fn a_counters_ttl_is_set_by_its_first_increment_only() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    assert_eq!(cache.increment_with("n", 5, DAY).await.unwrap(), 5);
    assert_eq!(cache.increment_with("n", -2, Duration::from_secs(5)).await.unwrap(), 3);
    assert_eq!(cache.increment("n", 1).await.unwrap(), 4);
    assert!(about(redis.ttl("art:n").await, DAY));
    assert_eq!(cache.increment("m", 1).await.unwrap(), 1);
    assert!(about(redis.ttl("art:m").await, HOUR));
    cache.increment_with("ever", 1, Ttl::Forever).await.unwrap();
    assert_eq!(cache.ttl("ever").await.unwrap(), Some(Ttl::Forever));
    // More than a double holds.
    assert_eq!(cache.increment("big", (1 << 53) + 1).await.unwrap(), (1 << 53) + 1);
    assert_eq!(cache.get::<i64>("n").await.unwrap(), Some(4));
    cache.set("text", "no number").await.unwrap();
    assert!(matches!(cache.increment("text", 1).await, Err(Error::Redis(_))));
}

#[tokio::test]
async fn clearing_never_leaves_the_prefix_whatever_the_pattern() {
    let redis = TestRedis::start().await;
    let cache = builder(&redis).prefix("a*t[1]\\").build().await.unwrap();
    let foreign = ["art:x", "abt1:x", "a*t[1]:x", "a*t[1]\\x", "a*t1\\:x", "samovar:marker", "x"];
    for key in foreign {
        redis.set(key, "1", HOUR).await;
    }
    for pattern in ["*", "", "x", "[", "\\", "**:*", "*\\", "[^a]*", "?", "../*"] {
        cache.set("x", &1).await.unwrap();
        cache.set("x[1]", &1).await.unwrap();
        cache.clear_pattern(pattern).await.unwrap();
        for key in foreign {
            assert!(redis.get(key).await.is_some(), "`{pattern}` took `{key}`");
        }
    }
    cache.set_many([("x", 1), ("x[1]", 1), ("y", 1)]).await.unwrap();
    assert_eq!(cache.clear_pattern("x\\[*").await.unwrap(), 1);
    assert_eq!(cache.clear_pattern("x*").await.unwrap(), 1);
    assert_eq!(cache.clear_pattern("x*").await.unwrap(), 0);
    assert!(matches!(cache.clear_pattern(&"*".repeat(257)).await, Err(Error::Invalid(_))));
    assert_eq!(cache.clear_pattern("*").await.unwrap(), 1);
}

#[tokio::test]
async fn clearing_takes_several_steps_and_counts_all() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    let other = cache.with_prefix("other").unwrap();
    other.set("a0", &1).await.unwrap();
    cache.set_many((0..1_800).map(|n| (format!("a{n}"), n))).await.unwrap();
    cache.set("b", &1).await.unwrap();
    assert_eq!(cache.clear_pattern("a*").await.unwrap(), 1_800);
    assert_eq!(redis.ask::<u64>(&["DBSIZE"]).await, 2);
}

#[tokio::test]
async fn a_prefix_is_neither_empty_nor_samovars_own() {
    let redis = TestRedis::start().await;
    for prefix in ["", "samovar", "samovar:lease", "{samovar:queue}"] {
        let error = builder(&redis).prefix(prefix).build().await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{prefix}: {error}");
    }
    let cache = art(&redis).await;
    assert!(cache.with_prefix("samovar").is_err());
    let elsewhere = Keys::new("museum", "museum:invalidate");
    assert!(builder(&redis).names(elsewhere.clone()).prefix("museum").build().await.is_err());
    assert!(builder(&redis).names(elsewhere).prefix("samovar").build().await.is_ok());
}

#[tokio::test]
async fn sessions_and_users_are_not_prefixed_twice() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    let (sessions, users) = (SessionCache::new(&cache), UserCache::new(&cache));
    sessions.set("5f2c", &json!({ "user": 7 })).await.unwrap();
    assert_eq!(redis.json("session:5f2c").await.unwrap(), json!({ "user": 7 }));
    assert_eq!(sessions.get("session:5f2c").await.unwrap(), Some(json!({ "user": 7 })));
    users.set("user:7", "Ayşe").await.unwrap();
    assert_eq!(users.get("7").await.unwrap(), Some("Ayşe".to_owned()));
    let both: HashMap<String, String> = users.get_many(["user:7", "7"]).await.unwrap();
    assert_eq!(both.len(), 2);
    assert!(users.delete("user:7").await.unwrap());
    // An ordinary cache takes its keys as they are.
    cache.set("art:x", &1).await.unwrap();
    assert!(redis.get("art:art:x").await.is_some());
}

#[tokio::test]
async fn a_rate_limit_counter_counts_from_its_first() {
    let redis = TestRedis::start().await;
    let counters = RateLimitCache::new(&art(&redis).await);
    assert_eq!(counters.count("login:7").await.unwrap(), 0);
    assert_eq!(counters.increment("login:7", DAY).await.unwrap(), 1);
    assert_eq!(counters.increment("rate_limit:login:7", HOUR).await.unwrap(), 2);
    assert!(about(redis.ttl("rate_limit:login:7").await, DAY));
    assert_eq!(counters.count("login:7").await.unwrap(), 2);
    assert!(counters.reset("login:7").await.unwrap());
    assert_eq!(counters.count("login:7").await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_no_such_value_is_an_error_and_stays() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    redis.set("art:text", "not json", HOUR).await;
    redis.ask::<()>(&["HSET", "art:hash", "field", "1"]).await;
    let error = cache.get::<Artwork>("text").await.unwrap_err();
    assert!(matches!(error, Error::Decode { .. }) && error.to_string().contains("art:text"), "{error}");
    assert!(matches!(cache.get::<Artwork>("hash").await, Err(Error::Redis(_))));
    let loaded = cache.get_or_load("text", async || Ok::<_, Error>(1)).await.unwrap();
    let past = cache.get_or_load("hash", async || Ok::<_, Error>(2)).await.unwrap();
    assert_eq!((loaded, past), (1, 2), "neither keeps the service from its work");
    assert_eq!(redis.get("art:text").await.unwrap(), "not json");
    assert_eq!(redis.ask::<String>(&["TYPE", "art:hash"]).await, "hash");
}

#[tokio::test]
async fn the_connection_is_there_for_all_else() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    cache.connection().sadd::<_, _, ()>("set", "member").await.unwrap();
    let again = Cache::builder(cache.connection()).prefix("art").build().await.unwrap();
    again.set("a", &1).await.unwrap();
    assert_eq!(cache.get::<i32>("a").await.unwrap(), Some(1));
}

#[tokio::test]
async fn a_wrong_password_is_told_when_the_cache_is_built() {
    let redis = TestRedis::options().password("secret").start().await;
    let url = format!("redis://:wrong@127.0.0.1:{}", redis.port());
    let error = Cache::builder(url).build().await.unwrap_err();
    assert!(matches!(error, Error::Redis(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("wrong@"));
    assert!(matches!(Cache::builder("http://nowhere").build().await, Err(Error::Url(_))));
}

#[tokio::test]
async fn an_invalidation_lands_in_the_inbox_as_a_worker_reads_it() {
    let redis = TestRedis::start().await;
    let publisher = InvalidationPublisher::new(&art(&redis).await);
    let message = Invalidation::keys(["art:[x]"]).and_pattern("ai_*").and_job("artwork_info").evict();
    let id = publisher.publish(&message).await.unwrap();
    publisher.publish(&Invalidation::warm(["art:a", "art:b"])).await.unwrap();
    let entries: Vec<(String, HashMap<String, String>)> = redis.ask(&["XRANGE", "samovar:inbox", "-", "+"]).await;
    assert_eq!(entries[0].0, id);
    let read = samovar::protocol::Message::parse(&entries[0].1["message"]).unwrap();
    assert_eq!((read.keys, read.patterns), (vec!["art:[x]".to_owned()], vec!["ai_*".to_owned()]));
    assert_eq!((read.jobs, read.action), (vec!["artwork_info".to_owned()], samovar::protocol::Action::Evict));
    let read = samovar::protocol::Message::parse(&entries[1].1["message"]).unwrap();
    assert_eq!(read.action, samovar::protocol::Action::Warm);
    for nothing in [Invalidation::default(), Invalidation::warm(["a"]).and_pattern("*")] {
        assert!(matches!(publisher.publish(&nothing).await, Err(Error::Invalid(_))));
    }
}

#[tokio::test]
async fn a_miss_asks_the_workers_if_wanted_and_once_for_all_readers() {
    let redis = TestRedis::start().await;
    let quiet = art(&redis).await;
    let cache = builder(&redis).prefix("art").demand(true).build().await.unwrap();
    let mut heard = quiet.subscribe::<serde_json::Value>("samovar:invalidate").await;
    quiet.get::<i32>("quiet").await.unwrap();
    for _ in 0..3 {
        cache.get::<i32>("a").await.unwrap();
    }
    cache.get_many::<i32, _>(["a", "b", "c"]).await.unwrap();
    assert_eq!(heard.next().await, Heard::Message(json!({ "keys": ["art:a"], "action": "warm" })));
    assert_eq!(heard.next().await, Heard::Message(json!({ "keys": ["art:b", "art:c"], "action": "warm" })));
}

#[tokio::test]
async fn messages_are_json_of_a_type() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    let mut heard = cache.subscribe::<Artwork>("news").await;
    assert_eq!(cache.publish("news", &json!({ "title": "Sır", "year": 1 })).await.unwrap(), 1);
    cache.publish("news", "no artwork").await.unwrap();
    assert_eq!(heard.next().await, Heard::Message(Artwork { title: "Sır".into(), year: Some(1) }));
    let mut heard = pin!(heard.into_stream());
    assert!(matches!(heard.next().await, Some(Heard::Unreadable(_))));
}

#[tokio::test]
async fn every_change_is_announced_but_those_of_sessions() {
    let redis = TestRedis::start().await;
    let cache = art(&redis).await;
    let mut changes = cache.changes().await;
    SessionCache::new(&cache).set("secret", &1).await.unwrap();
    cache.set("a", &1).await.unwrap();
    cache.delete("a").await.unwrap();
    cache.delete("a").await.unwrap();
    cache.increment("n", 1).await.unwrap();
    cache.get_or_load("l", async || Ok::<_, Error>(1)).await.unwrap();
    cache.clear_pattern("l").await.unwrap();
    let mut told = Vec::new();
    for _ in 0..5 {
        match changes.next().await {
            Heard::Message(change) => told.push((change.key, change.event)),
            other => panic!("{other:?}"),
        }
    }
    let expected = [
        ("art:a", ChangeEvent::Warmed),
        ("art:a", ChangeEvent::Evicted),
        ("art:n", ChangeEvent::Warmed),
        ("art:l", ChangeEvent::Warmed),
        ("art:l", ChangeEvent::Evicted),
    ];
    let mut expected = expected.map(|(key, event)| (key.to_owned(), event));
    if redis.is_cluster() {
        // The masters of different keys announce in no order.
        told.sort_by(|one, other| one.0.cmp(&other.0));
        expected.sort_by(|one, other| one.0.cmp(&other.0));
    }
    assert_eq!(told, expected);
}
