//! Several instances of a service at once: single flight and its fence, limits, locks.
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Art, Parts, Reply, TestRedis, Upstream, eventually, worker};
use futures_util::future::join_all;
use samovar::agenda::{Due, State};
use samovar::cache::{Builder, Cache, Error, Lock, RateLimiter, Ttl};
use samovar::entry::EntryKey;
use samovar::entry::Trigger;
use samovar::protocol::Keys;
use samovar::protocol::Message;
use samovar::redis::RedisTime;
use samovar::store::{Fresh, LastAttempt, Leased, Removal, Store, Written};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

const SOON: Duration = Duration::from_secs(10);
const LATER: Duration = Duration::from_secs(60);

fn builder(redis: &TestRedis) -> Builder {
    Cache::builder(redis.redis_url()).prefix("art").bound(SOON).load_wait(LATER).lease(LATER)
}

async fn instance(redis: &TestRedis) -> Cache {
    builder(redis).build().await.unwrap()
}

fn store(redis: &TestRedis) -> impl Future<Output = (Store, Keys)> {
    let url = redis.redis_url();
    async move {
        let keys = Keys::new("samovar", "samovar:invalidate");
        (Store::new(url.manager(SOON).await.unwrap(), keys.clone()), keys)
    }
}

/// A load that waits until it is let go on.
struct Load {
    begun: oneshot::Receiver<()>,
    go_on: oneshot::Sender<()>,
    task: JoinHandle<i32>,
}

#[expect(clippy::disallowed_methods, reason = "a test watches over its tasks")]
fn load(cache: &Cache, value: i32) -> Load {
    let ((begin, begun), (go_on, wait)) = (oneshot::channel(), oneshot::channel());
    let cache = cache.clone();
    let task = tokio::spawn(async move {
        let load = async || {
            begin.send(()).unwrap();
            let _ = wait.await;
            Ok::<_, Infallible>(value)
        };
        cache.get_or_load("k", load).await.unwrap()
    });
    Load { begun, go_on, task }
}

impl Load {
    async fn begun(&mut self) {
        (&mut self.begun).await.unwrap();
    }

    async fn ends(self) -> i32 {
        let _ = self.go_on.send(());
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_ask_in_however_many_instances_one_loads() {
    let redis = TestRedis::start().await;
    let instances = join_all((0..4).map(|_| instance(&redis))).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for n in 0..200 {
        let (cache, loads) = (instances[n % 4].clone(), Arc::clone(&loads));
        callers.spawn(async move {
            let load = async || {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok::<_, Infallible>(format!("value of {n}"))
            };
            cache.get_or_load("k", load).await.unwrap()
        });
    }
    let mut answers = callers.join_all().await;
    answers.dedup();
    assert_eq!((answers.len(), loads.load(Ordering::SeqCst)), (1, 1), "{answers:?}");
    assert_eq!(redis.json("art:k").await.unwrap(), answers[0].as_str());
    assert!(redis.ttl("art:k").await.is_some());
    assert_eq!(redis.ask::<u64>(&["DBSIZE"]).await, 1, "no lease is left");
}

#[tokio::test]
async fn an_error_is_shared_and_nothing_is_left_of_it() {
    let redis = TestRedis::start().await;
    let cache = instance(&redis).await;
    let loads = AtomicUsize::new(0);
    let calls = (0..10).map(|_| {
        cache.get_or_load::<i32, String, _>("k", async || {
            loads.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err("the museum is closed".to_owned())
        })
    });
    for answer in join_all(calls).await {
        assert_eq!(*answer.unwrap_err(), "the museum is closed");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(cache.get_or_load("k", async || Ok::<_, Infallible>(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_loader_that_is_cancelled_leaves_its_place_to_the_next() {
    let redis = TestRedis::start().await;
    let (one, other) = (instance(&redis).await, instance(&redis).await);
    let mut first = load(&one, 1);
    first.begun().await;
    let second = load(&one, 2);
    let elsewhere = load(&other, 3);
    first.task.abort();
    let (second, elsewhere) = tokio::join!(second.ends(), elsewhere.ends());
    assert!(second == elsewhere && second > 1, "{second} {elsewhere}");
}

#[tokio::test]
async fn a_slow_loader_elsewhere_is_not_waited_for_beyond_load_wait() {
    let redis = TestRedis::start().await;
    let hasty = builder(&redis).load_wait(Duration::from_millis(50)).build().await.unwrap();
    let mut slow = load(&instance(&redis).await, 1);
    slow.begun().await;
    let mut own = load(&hasty, 2);
    own.begun().await;
    assert_eq!(own.ends().await, 2);
    assert_eq!(redis.get("art:k").await, None, "who has no lease writes nothing");
    assert_eq!(slow.ends().await, 1);
    assert_eq!(redis.get("art:k").await.as_deref(), Some("1"));
}

/// Changes a key during a load, and returns the value in Redis afterwards.
async fn overtaken(redis: &TestRedis, loading: &Cache, change: impl AsyncFnOnce()) -> Option<String> {
    let mut stale = load(loading, 1);
    stale.begun().await;
    change().await;
    assert_eq!(stale.ends().await, 1, "its caller gets its answer");
    assert_eq!(loading.stats().fenced_loads, 1);
    redis.get("art:k").await
}

#[tokio::test]
async fn what_is_deleted_while_it_is_loaded_is_not_brought_back() {
    for same_instance in [true, false] {
        let redis = TestRedis::start().await;
        let loading = instance(&redis).await;
        let deleting = if same_instance { loading.clone() } else { instance(&redis).await };
        let left = overtaken(&redis, &loading, async || {
            assert!(!deleting.delete("k").await.unwrap(), "there is no value yet");
        });
        assert_eq!(left.await, None);
        assert_eq!(redis.ask::<u64>(&["DBSIZE"]).await, 0, "no lease is left");
    }
}

#[tokio::test]
async fn what_is_written_while_it_is_loaded_is_not_overwritten() {
    let redis = TestRedis::start().await;
    let (loading, writing) = (instance(&redis).await, instance(&redis).await);
    let left = overtaken(&redis, &loading, async || writing.set("k", &2).await.unwrap()).await;
    assert_eq!(left.as_deref(), Some("2"));
    let redis = TestRedis::start().await;
    let (loading, writing) = (instance(&redis).await, instance(&redis).await);
    let many = async || writing.set_many([("k", 3)]).await.unwrap();
    assert_eq!(overtaken(&redis, &loading, many).await.as_deref(), Some("3"));
    let redis = TestRedis::start().await;
    let loading = instance(&redis).await;
    let foreign = async || redis.set("art:k", "4", LATER).await;
    assert_eq!(overtaken(&redis, &loading, foreign).await.as_deref(), Some("4"), "also by who knows no leases");
}

#[tokio::test]
async fn what_is_cleared_while_it_is_loaded_is_not_brought_back() {
    let redis = TestRedis::start().await;
    let (loading, clearing) = (instance(&redis).await, instance(&redis).await);
    let left = overtaken(&redis, &loading, async || {
        assert_eq!(clearing.clear_pattern("*").await.unwrap(), 0);
    });
    assert_eq!(left.await, None);
}

/// The loaded value is not written, and the service does not load it again: a worker fetches it.
#[tokio::test]
async fn a_key_invalidated_during_a_load_is_fetched_by_a_worker() {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    upstream.edit("/art/k");
    let jobs = Art::of(&upstream).folder();
    let _worker = worker(&redis, &jobs);
    let mut loading = load(&instance(&redis).await, 0);
    loading.begun().await;
    Parts::of(&redis).await.invalidate("art:k").await;
    assert_eq!(loading.ends().await, 0);
    eventually("a worker has fetched it", async || {
        redis.json("art:k").await.is_some_and(|value| value["version"] == 1)
    })
    .await;
}

#[tokio::test]
async fn a_load_does_not_bring_back_what_samovar_invalidated() {
    for removal in [Removal::Refresh, Removal::Evict] {
        let redis = TestRedis::start().await;
        let (store, _) = store(&redis).await;
        let loading = instance(&redis).await;
        let left = overtaken(&redis, &loading, async || {
            let now = store.now().await.unwrap();
            assert!(store.invalidate(&EntryKey::new("art:k"), now, removal).await.unwrap().fenced);
        });
        assert_eq!(left.await, None, "{removal:?}");
    }
}

/// Somebody else's list stands where the lease of a key should.
#[tokio::test]
async fn a_stranger_s_key_at_a_lease_stops_no_write() {
    let redis = TestRedis::start().await;
    let (cache, keys) = (instance(&redis).await, Keys::new("samovar", "samovar:invalidate"));
    let lease = keys.lease(&EntryKey::new("art:k"));
    redis.ask::<u64>(&["RPUSH", &lease, "x"]).await;
    cache.set("k", &1).await.unwrap();
    assert_eq!(cache.increment("k", 2).await.unwrap(), 3);
    assert!(cache.delete("k").await.unwrap());
    assert_eq!(redis.ask::<String>(&["TYPE", &lease]).await, "list");
    assert_eq!(cache.get_or_load("k", async || Ok::<_, Infallible>(4)).await.unwrap(), 4);
    assert_eq!(redis.json("art:k").await, Some(json!(4)));
}

/// Invalidates a tag during and after loads under a job with tags, and checks the values.
async fn loaded_and_tagged(top: &str, action: &str, first: bool) {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    for name in ["k", "before"] {
        upstream.publish(&format!("/art/{name}"), json!({"artist": "x", "version": 1}));
    }
    let jobs = Art::of(&upstream).top(top).folder();
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let _worker = worker(&redis, &jobs);
    let cache = instance(&redis).await;
    let tag = json!({"tags": ["artist:x"], "action": action}).to_string();
    if !first {
        parts.invalidate(&tag).await;
    }
    let old = json!({"artist": "x", "version": 0});
    let before = cache.get_or_load_with("before", Ttl::For(LATER), async || Ok::<_, Infallible>(old.clone())).await;
    assert_eq!((before.unwrap(), redis.json("art:before").await), (old.clone(), Some(old.clone())));
    // What lives on is found all the same, and by a tag that its job never gave it.
    assert!(cache.expire("before", LATER * 10).await.unwrap());
    let mut loading = load(&cache, 0);
    loading.begun().await;
    parts.invalidate(&tag).await;
    assert_eq!(loading.ends().await, 0, "its caller gets its answer");
    if action == "evict" {
        assert_eq!((redis.get("art:k").await, redis.get("art:before").await), (None, None));
        assert_eq!(cache.stats().fenced_loads, 1);
        return;
    }
    for key in ["art:k", "art:before"] {
        eventually("a worker has fetched it", async || {
            redis.json(key).await.is_some_and(|value| value["version"] == 1)
        })
        .await;
    }
}

#[tokio::test]
async fn a_tag_concerns_all_that_services_loaded_of_a_job_with_tags() {
    let tags = "tags = [\"artist:{{ value.artist }}\"]";
    for action in ["refresh", "evict"] {
        for first in [true, false] {
            loaded_and_tagged(tags, action, first).await;
        }
    }
}

#[tokio::test]
async fn what_is_loaded_of_a_job_without_tags_is_left_alone_by_a_tag() {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    let tagged = Art::of(&upstream).top("tags = [\"t\"]").toml().replace("art:", "other:");
    let jobs = Art::of(&upstream).folder().job("other", &tagged);
    let (parts, cache) = (Parts::of(&redis).await, instance(&redis).await);
    let invalidator = parts.invalidator(&jobs);
    let message = Message::parse(r#"{"tags": ["t"], "action": "evict"}"#).unwrap();
    for n in 0..2 {
        cache.get_or_load(&n.to_string(), async || Ok::<_, Infallible>(n)).await.unwrap();
        cache.with_prefix("other").unwrap().get_or_load("k", async || Ok::<_, Infallible>(n)).await.unwrap();
        parts.next_instant().await;
        invalidator.handle(&message, parts.now().await).await.unwrap();
        assert_eq!(redis.get("other:k").await, None, "{n}");
    }
    assert_eq!(redis.keys("art:*").await, ["art:0", "art:1"]);
    assert_eq!(redis.keys("samovar:loaded:*").await.len(), 1, "nothing is tracked but what may have a tag");
    // What is gone is tracked no more.
    let [set, _] = parts.keys.loaded("other:k");
    let members: Vec<String> = redis.ask(&["ZRANGE", &set, "0", "-1"]).await;
    eventually("it has left", async || {
        invalidator.handle(&message, parts.now().await).await.unwrap();
        redis.ask::<u64>(&["ZCARD", &set]).await == 1
    })
    .await;
    assert!(members.len() <= 2);
}

/// A worker reads the message from the inbox, and nobody who knows the job hears of it.
#[tokio::test]
async fn a_tag_finds_what_was_loaded_of_a_job_the_reader_lacks() {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    let parts = Parts::of(&redis).await;
    parts.mark().await;
    let tagged = |key: &str| Art::of(&upstream).top("tags = [\"t\"]").toml().replace("art:{name}", key);
    let (known, unknown) = (Art::of(&upstream).folder(), Art::of(&upstream).folder());
    known.write("art.toml", &tagged("known:{name}"));
    unknown.write("art.toml", &tagged("art:{name}"));
    unknown.write("any.toml", &tagged("any{lang}:{name}").replace("list = []", ""));
    unknown.write("plain.toml", &Art::of(&upstream).toml().replace("art:", "plain:"));
    // It was there once, and is replaced by one with other jobs.
    let mut left = worker(&redis, &unknown);
    eventually("it says what it knows", async || redis.ask::<u64>(&["ZCARD", "samovar:tagged"]).await == 2).await;
    left.term();
    left.wait().await;
    let _reader = worker(&redis, &known);
    let cache = instance(&redis).await;
    let message = |action: &str| json!({"tags": ["t"], "action": action}).to_string();
    for (n, action) in ["refresh", "evict", "refresh"].into_iter().enumerate() {
        for prefix in ["art", "anyde", "plain", "known"] {
            let cache = cache.with_prefix(prefix).unwrap();
            cache.get_or_load_with("before", Ttl::For(LATER), async || Ok::<_, Infallible>(n)).await.unwrap();
        }
        let mut loading = load(&cache, 0);
        loading.begun().await;
        parts.invalidate(&message(action)).await;
        assert_eq!(loading.ends().await, 0, "its caller gets its answer");
        for key in ["art:before", "art:k", "anyde:before"] {
            assert_eq!(redis.get(key).await, None, "{key}, {action} {n}");
        }
        assert_eq!(redis.json("plain:before").await, Some(json!(0)), "a job without tags has nothing to do with it");
    }
}

/// A key of a job whose pattern says nothing of how its keys begin.
#[tokio::test]
async fn a_tag_finds_what_was_loaded_under_any_beginning() {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    let toml = Art::of(&upstream).top("tags = [\"t\"]").toml().replace("art:{name}", "a{lang}:{name}");
    let toml = toml.replace("list = []", "");
    let jobs = Art::of(&upstream).folder();
    jobs.write("art.toml", &toml);
    let (parts, cache) = (Parts::of(&redis).await, instance(&redis).await);
    let invalidator = parts.invalidator(&jobs);
    let message = Message::parse(r#"{"tags": ["t"], "action": "evict"}"#).unwrap();
    for n in 0..2 {
        cache.get_or_load("k", async || Ok::<_, Infallible>(n)).await.unwrap();
        parts.next_instant().await;
        invalidator.handle(&message, parts.now().await).await.unwrap();
        assert_eq!(redis.get("art:k").await, None, "{n}");
    }
}

#[tokio::test]
async fn a_read_after_a_delete_gets_nothing_loaded_before_it() {
    let redis = TestRedis::start().await;
    let (loading, deleting) = (instance(&redis).await, instance(&redis).await);
    for deleting in [&deleting, &loading] {
        let mut stale = load(&loading, 1);
        stale.begun().await;
        deleting.delete("k").await.unwrap();
        let fresh = load(&loading, 2);
        let elsewhere = load(&instance(&redis).await, 2);
        assert_eq!(stale.ends().await, 1);
        assert_eq!(tokio::join!(fresh.ends(), elsewhere.ends()), (2, 2));
        assert_eq!(redis.get("art:k").await.as_deref(), Some("2"));
        loading.delete("k").await.unwrap();
    }
}

#[tokio::test]
async fn a_service_and_a_worker_do_not_fetch_the_same_at_once() {
    let redis = TestRedis::start().await;
    let (store, _) = store(&redis).await;
    let cache = instance(&redis).await;
    let key = EntryKey::new("art:k");
    let Leased::Yes(lease) = store.lease(&key, LATER, Fresh::default()).await.unwrap() else { panic!("leased") };
    let waiting = load(&cache, 1);
    store.commit(&key, &lease, "7", LATER, &LastAttempt::default()).await.unwrap();
    assert_eq!(waiting.ends().await, 7, "it gets what the worker fetched");

    cache.delete("k").await.unwrap();
    let mut loading = load(&cache, 1);
    loading.begun().await;
    assert!(matches!(store.lease(&key, LATER, Fresh::default()).await.unwrap(), Leased::Busy(_)));
    loading.ends().await;
}

#[tokio::test]
async fn what_a_service_deletes_or_writes_no_worker_brings_back() {
    let redis = TestRedis::start().await;
    let (store, _) = store(&redis).await;
    let cache = instance(&redis).await;
    let key = EntryKey::new("art:k");
    for write in [false, true] {
        let Leased::Yes(lease) = store.lease(&key, LATER, Fresh::default()).await.unwrap() else { panic!("leased") };
        if write {
            cache.set("k", &8).await.unwrap();
        } else {
            cache.delete("k").await.unwrap();
        }
        let written = store.commit(&key, &lease, "7", LATER, &LastAttempt::default()).await.unwrap();
        assert_eq!(written, Written::Evicted);
        assert_eq!(cache.get::<i32>("k").await.unwrap(), write.then_some(8));
    }
}

#[tokio::test]
async fn the_library_leaves_a_key_alone_that_holds_no_string() {
    let redis = TestRedis::start().await;
    let cache = instance(&redis).await;
    let commands: [&[&str]; 5] = [
        &["HSET", "art:k", "f", "theirs"],
        &["RPUSH", "art:k", "theirs"],
        &["SADD", "art:k", "theirs"],
        &["ZADD", "art:k", "1", "theirs"],
        &["XADD", "art:k", "1-1", "f", "theirs"],
    ];
    for command in commands {
        let mut overtaken = load(&cache, 1);
        overtaken.begun().await;
        redis.ask::<redis::Value>(command).await;
        let theirs: Vec<u8> = redis.ask(&["DUMP", "art:k"]).await;
        assert_eq!(overtaken.ends().await, 1, "{command:?}");
        let refused = cache.set("k", &2).await.unwrap_err();
        assert!(matches!(&refused, Error::Redis(e) if e.code() == Some("WRONGTYPE")), "{refused}");
        assert!(cache.set_many([("k", 2), ("other", 2)]).await.is_err());
        assert!(cache.increment("k", 1).await.is_err());
        assert!(!cache.delete("k").await.unwrap());
        assert_eq!(cache.clear_pattern("k*").await.unwrap(), 0);
        assert_eq!(cache.get_or_load("k", async || Ok::<_, Infallible>(3)).await.unwrap(), 3, "past the cache");
        assert_eq!(redis.ask::<Vec<u8>>(&["DUMP", "art:k"]).await, theirs, "{command:?}");
        redis.ask::<u64>(&["DEL", "art:k"]).await;
    }
}

/// Waits until an entry is scheduled, for its expiry; returns when.
async fn scheduled(parts: &Parts) -> RedisTime {
    eventually("the entry waits for its expiry", async || match parts.score("k").await.map(Due::from_score) {
        Some(due) if (due.state, due.trigger) == (State::Scheduled, Trigger::Expiry) => Ok(due.at),
        other => Err(other),
    })
    .await
}

#[tokio::test]
async fn a_services_write_during_a_refresh_leaves_the_entry_scheduled() {
    for status in [200, 500] {
        for what in ["set", "forever", "delete", "increment", "expire", "load"] {
            let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
            upstream.on("/art/k", Reply::json(json!(7)));
            let jobs = Art::of(&upstream).list(["k"]).warm("recheck = []").folder();
            let _worker = worker(&redis, &jobs);
            let (parts, cache) = (Parts::of(&redis).await, instance(&redis).await);
            scheduled(&parts).await;
            upstream.on("/art/k", Reply::json(json!(8)).with_status(status));
            let gate = upstream.gate("/art/k");
            parts.publish("art:k").await;
            gate.arrived(1).await;
            match what {
                "set" => cache.set_with("k", &1, LATER).await.unwrap(),
                "forever" => cache.set_with("k", &1, Ttl::Forever).await.unwrap(),
                "delete" => assert!(cache.delete("k").await.unwrap()),
                "increment" => assert_eq!(cache.increment("k", 1).await.unwrap(), 8),
                "expire" => assert!(cache.expire("k", LATER).await.unwrap()),
                _ => assert_eq!(cache.get_or_load("k", async || Ok::<_, Infallible>(2)).await.unwrap(), 7),
            }
            gate.open();
            let expires: i64 = redis.ask(&["PEXPIRETIME", "art:k"]).await;
            match (what, status) {
                ("forever", _) => {
                    eventually("a value without a TTL is left alone", async || parts.score("k").await.is_none()).await;
                }
                // Nobody wrote, so the fetch is tried again.
                ("expire" | "load", 500) => {}
                _ => {
                    let at = scheduled(&parts).await;
                    assert!(
                        expires < 0 || what == "expire" || what == "load" || at.as_millis() < expires,
                        "{what}: {at} {expires}"
                    );
                    assert!(at > parts.now().await, "{what}: not at once");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_a_service_wrote_during_a_refresh_is_refreshed_in_time() {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    upstream.edit("/art/k");
    let jobs = Art::of(&upstream).list(["k"]).folder();
    let _worker = worker(&redis, &jobs);
    let (parts, cache) = (Parts::of(&redis).await, instance(&redis).await);
    scheduled(&parts).await;
    let gate = upstream.gate("/art/k");
    parts.publish("art:k").await;
    gate.arrived(1).await;
    upstream.edit("/art/k");
    cache.set_with("k", &json!({"version": 0}), Duration::from_secs(2)).await.unwrap();
    gate.open();
    eventually("it is fetched before it expires, or just after", async || {
        redis.json("art:k").await.is_some_and(|value| value["version"] == 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_burst_over_a_limit_exactly_the_limit_is_admitted() {
    let redis = TestRedis::start().await;
    let instances = join_all((0..4).map(|_| instance(&redis))).await;
    let limiters: Vec<_> = instances.iter().map(|cache| RateLimiter::new(cache, "100/hour").unwrap()).collect();
    let mut requests = JoinSet::new();
    for n in 0..400 {
        let limiter = limiters[n % 4].clone();
        requests.spawn(async move { limiter.check("sender").await.unwrap() });
    }
    let decisions = requests.join_all().await;
    let mut remaining: Vec<_> = decisions.iter().filter(|d| d.allowed).map(|d| d.remaining).collect();
    remaining.sort_unstable();
    assert_eq!(remaining, (0..100).collect::<Vec<_>>(), "each was told how many are left");
    for refused in decisions.iter().filter(|d| !d.allowed) {
        assert_eq!((refused.remaining, refused.limit, refused.local), (0, 100, false));
        assert!(refused.retry_after > Duration::from_secs(3_000) && refused.reset_after >= refused.retry_after);
    }
    assert!(limiters[0].check("other").await.unwrap().allowed, "senders are counted apart");
    let stricter = RateLimiter::new(&instances[0], "1 per 2 hours").unwrap();
    assert!(stricter.check("sender").await.unwrap().allowed, "and so are limits");
    let ttl = redis.ttl(&limiters[0].key("sender")).await.unwrap();
    assert!(ttl <= Duration::from_secs(3_601), "the log goes with its last entry");
}

/// The log of an earlier time is written by hand, so that nobody waits for a clock.
#[tokio::test]
async fn places_come_back_one_by_one_as_they_leave_the_window() {
    let redis = TestRedis::start().await;
    let limiter = RateLimiter::new(&instance(&redis).await, "4/hour").unwrap();
    let (seconds, _): (i64, i64) = redis.ask(&["TIME"]).await;
    let ago = |minutes: i64| ((seconds - minutes * 60) * 1_000_000).to_string();
    let key = limiter.key("sender");
    redis.ask::<()>(&["RPUSH", &key, &ago(90), &ago(61), &ago(30), &ago(10)]).await;
    let first = limiter.check("sender").await.unwrap();
    assert_eq!((first.allowed, first.remaining, first.retry_after), (true, 1, Duration::ZERO));
    assert!(limiter.check("sender").await.unwrap().allowed);
    let refused = limiter.check("sender").await.unwrap();
    assert!(!refused.allowed);
    let minutes = refused.retry_after.as_secs_f64() / 60.0;
    assert!((29.0..30.1).contains(&minutes), "the one of 30 minutes ago leaves first: {minutes}");
    assert_eq!(redis.ask::<u64>(&["LLEN", &key]).await, 4);
}

/// As after Redis's clock was set back by ten hours.
#[tokio::test]
async fn requests_admitted_in_the_future_count_as_admitted_now() {
    let redis = TestRedis::start().await;
    let limiter = RateLimiter::new(&instance(&redis).await, "4/hour").unwrap();
    let (seconds, _): (i64, i64) = redis.ask(&["TIME"]).await;
    let at = |hours: i64| ((seconds + hours * 3_600) * 1_000_000).to_string();
    let key = limiter.key("sender");
    redis.ask::<()>(&["RPUSH", &key, &at(8), &at(9), &at(10), &at(10)]).await;
    let refused = limiter.check("sender").await.unwrap();
    let hour = Duration::from_secs(3_600);
    assert!(!refused.allowed && refused.retry_after <= hour && refused.reset_after <= hour, "{refused:?}");
    assert_eq!(redis.ask::<u64>(&["LLEN", &key]).await, 4);
    assert!(redis.ttl(&key).await.unwrap() <= Duration::from_secs(3_601), "the log goes with its last entry");
}

/// As after Redis's clock was set back by ten hours.
#[tokio::test]
async fn a_lock_taken_in_the_future_ends_in_time() {
    let redis = TestRedis::start().await;
    let cache = instance(&redis).await;
    let (seconds, _): (i64, i64) = redis.ask(&["TIME"]).await;
    let future = (seconds + 36_000) * 1_000_000;
    let [name, number] = Keys::new("samovar", "").lock("l");
    redis.set(&name, &format!("dead {future}"), 600 * LATER).await;
    redis.set(&number, &future.to_string(), 600 * LATER).await;
    let held = Lock::new(&cache, "l").ttl(Duration::from_millis(300)).acquire(SOON).await.unwrap();
    assert!(held.number() > future as u64);
}

/// As after Redis's clock was set back by ten hours.
#[tokio::test]
async fn a_load_waits_for_no_lease_of_the_future() {
    let redis = TestRedis::start().await;
    let short = builder(&redis).lease(Duration::from_millis(300)).build().await.unwrap();
    let (store, keys) = store(&redis).await;
    let future = store.now().await.unwrap() + Duration::from_millis(36_000_000);
    redis.set(&keys.lease(&EntryKey::new("art:k")), &format!("dead-1 {future} -"), 600 * LATER).await;
    assert_eq!(short.get_or_load("k", async || Ok::<_, Infallible>(1)).await.unwrap(), 1);
    assert_eq!(redis.get("art:k").await.as_deref(), Some("1"), "it is written");
}

#[tokio::test]
async fn a_lock_has_one_holder_and_growing_numbers() {
    let redis = TestRedis::start().await;
    let (one, other) = (instance(&redis).await, instance(&redis).await);
    let lock = |cache: &Cache| Lock::new(cache, "reindex").ttl(LATER);
    let held = lock(&one).acquire(Duration::ZERO).await.unwrap();
    assert!(held.is_held());
    let error = lock(&other).acquire(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::Taken(_)), "{error}");
    assert!(Lock::new(&other, "something else").acquire(Duration::ZERO).await.is_ok());
    let first = held.number();
    held.release().await.unwrap();
    let second = lock(&other).acquire(SOON).await.unwrap();
    assert!(second.number() > first);
    // A clock of Redis that was set back gives no smaller one.
    let last = (second.number() + 1_000_000_000_000).to_string();
    let [_, number] = Keys::new("samovar", "").lock("reindex");
    redis.ask::<()>(&["SET", &number, &last]).await;
    second.release().await.unwrap();
    let third = lock(&one).acquire(SOON).await.unwrap();
    assert_eq!(third.number(), last.parse::<u64>().unwrap() + 1);
}

#[tokio::test]
async fn a_lock_is_waited_for_and_let_go_when_dropped() {
    let redis = TestRedis::start().await;
    let (one, other) = (instance(&redis).await, instance(&redis).await);
    let held = Lock::new(&one, "l").ttl(LATER).acquire(Duration::ZERO).await.unwrap();
    let lock = Lock::new(&other, "l").ttl(LATER);
    let wait = lock.acquire(LATER);
    let (waited, ()) = tokio::join!(wait, async { drop(held) });
    assert!(waited.unwrap().is_held());
}

#[tokio::test]
async fn a_held_lock_is_extended_for_as_long_as_it_is_held() {
    let redis = TestRedis::start().await;
    let cache = instance(&redis).await;
    let [name, _] = Keys::new("samovar", "").lock("l");
    let ttl = Duration::from_secs(3);
    let held = Lock::new(&cache, "l").ttl(ttl).acquire(Duration::ZERO).await.unwrap();
    let mut before = ttl;
    for _ in 0..2 {
        eventually("the lock is extended", async || {
            let now = redis.ttl(&name).await.unwrap();
            let extended = now > before;
            before = now;
            extended
        })
        .await;
    }
    assert!(held.is_held());
    held.release().await.unwrap();
    assert_eq!(redis.get(&name).await, None);
}

#[tokio::test]
async fn who_loses_a_lock_is_told_and_lets_nobody_elses_go() {
    let redis = TestRedis::start().await;
    let cache = instance(&redis).await;
    let held = Lock::new(&cache, "l").ttl(Duration::from_millis(300)).acquire(Duration::ZERO).await.unwrap();
    let [name, _] = Keys::new("samovar", "").lock("l");
    redis.set(&name, "somebody 1", LATER).await;
    held.lost().await;
    assert!(!held.is_held());
    assert!(matches!(held.release().await, Err(Error::Lost(_))));
    assert_eq!(redis.get(&name).await.as_deref(), Some("somebody 1"));
}

#[tokio::test]
async fn keys_of_a_lock_share_a_slot() {
    let [lock, number] = Keys::new("samovar", "").lock("a lock {with} braces");
    assert_eq!(samovar::protocol::keys::slot(&lock), samovar::protocol::keys::slot(&number));
}
