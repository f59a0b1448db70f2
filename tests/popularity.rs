//! Which entries are read is learnt from Redis alone, and what is read is kept warm while the rest is left to expire.
use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Art, JobsFolder, Parts, Reply, TestRedis, Upstream, WorkerProcess, art, both, eventually, readable_key, samovar,
    talkative,
};
use samovar::job::{Job, Jobs};
use samovar::popularity::{Popularity, Sampler};
use samovar::redis::{RedisTime, Troubles};
use samovar::store::{LastAttempt, Written};
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3_600);

fn policy(name: &str) -> crate::support::RedisOptions {
    TestRedis::options().arg("--maxmemory", "100mb").arg("--maxmemory-policy", name)
}

/// Popularity of the job `art`, step by step.
struct Learnt {
    parts: Parts,
    job: Arc<Job>,
    popularity: Popularity,
    sampler: Sampler,
}

impl Learnt {
    async fn of(redis: &TestRedis, jobs: &JobsFolder) -> Self {
        let parts = Parts::of(redis).await;
        let jobs = Arc::new(Jobs::load(jobs.path(), HOUR, &|_| None).unwrap());
        let job = Arc::clone(&jobs.jobs["art"]);
        let popularity = Popularity::new(parts.redis.clone(), parts.keys.clone());
        let sampler = Sampler {
            redis: parts.redis.clone(),
            keys: parts.keys.clone(),
            jobs,
            agenda: parts.agenda.clone(),
            popularity: popularity.clone(),
            every: Duration::from_secs(10),
            claim: Duration::from_secs(30),
            troubles: Troubles::default(),
        };
        Self { parts, job, popularity, sampler }
    }

    /// Writes a value as the warmer does.
    async fn commit(&self, name: &str, value: &str) {
        let lease = self.parts.lease(name, Duration::from_secs(5)).await;
        let last_attempt = LastAttempt { attempted: lease.fetched_at, ..LastAttempt::default() };
        let written = self.parts.store.commit(&art(name), &lease, value, self.job.ttl, &last_attempt).await.unwrap();
        assert!(matches!(written, Written::Done { .. }), "{written:?}");
    }

    /// Lets its life begin anew, as a 304 does.
    async fn extend(&self, name: &str) {
        let lease = self.parts.lease(name, Duration::from_secs(5)).await;
        let last_attempt = LastAttempt { attempted: lease.fetched_at, ..LastAttempt::default() };
        let written = self.parts.store.extend(&art(name), &lease, self.job.ttl, &last_attempt).await.unwrap();
        assert!(matches!(written, Written::Done { .. }), "{written:?}");
    }

    /// Waits until earlier touches and those from now on lie in different seconds, and the server's clock of touches,
    /// which lags a little, is in the present one.
    async fn next_second(&self) {
        let then = self.parts.now().await.as_millis() / 1_000;
        eventually("Redis's clock is two seconds on", async || {
            let now = self.parts.now().await.as_millis();
            now / 1_000 >= then + 2 && (200..700).contains(&(now % 1_000))
        })
        .await;
    }

    /// Takes a sample of what was read since `since`; returns what is counted, the most read first.
    async fn sample(&self, since: RedisTime) -> Vec<String> {
        self.sampler.sample(&self.job, since).await.unwrap();
        self.top().await
    }

    async fn top(&self) -> Vec<String> {
        let top = self.popularity.top(&self.job, 100).await.unwrap();
        top.into_iter().map(|(key, _)| key.as_str().strip_prefix("art:").unwrap().to_owned()).collect()
    }
}

async fn nothing() -> (Upstream, JobsFolder) {
    let upstream = Upstream::start().await;
    let jobs = Art::of(&upstream).folder();
    (upstream, jobs)
}

/// Frequencies that count every touch tell of each.
#[tokio::test]
async fn reading_inputs_does_not_age_what_else_the_connection_reads() {
    let redis = policy("volatile-lfu").arg("--lfu-log-factor", "0").arg("--lfu-decay-time", "0").start().await;
    let (_upstream, jobs) = nothing().await;
    let learnt = Learnt::of(&redis, &jobs).await;
    learnt.commit("a", "{}").await;
    let meta = learnt.parts.keys.meta(&art("a"));
    let frequency = async |key: &str| redis.ask::<i64>(&["OBJECT", "FREQ", key]).await;
    let before = (frequency("art:a").await, frequency(&meta).await);
    learnt.parts.store.values(&[art("a")]).await.unwrap();
    learnt.parts.store.snapshot(&art("a")).await.unwrap();
    let after = (frequency("art:a").await, frequency(&meta).await);
    assert_eq!(after.1, before.1 + 1, "its metadata were read");
    // An older Redis takes our reads for the API's; that is remembered then.
    if redis.get(&learnt.parts.keys.touched(&art("a"))).await.is_none() {
        assert_eq!(after.0, before.0, "the value was not read by the API");
    }
}

#[tokio::test]
async fn reads_are_learnt_from_idle_times_and_from_frequencies() {
    for name in ["noeviction", "volatile-lru", "allkeys-lfu", "volatile-lfu"] {
        let redis = policy(name).start().await;
        let (_upstream, jobs) = nothing().await;
        let learnt = Learnt::of(&redis, &jobs).await;
        for entry in ["read", "unread", "often"] {
            learnt.commit(entry, "{\"a\":1}").await;
        }
        learnt.parts.next_instant().await;
        let before = learnt.parts.now().await;
        learnt.next_second().await;
        assert!(learnt.sample(before).await.is_empty(), "{name}: what we wrote is not read");
        redis.get("art:read").await;
        // Frequencies are a matter of chance above the first few.
        for _ in 0..300 {
            redis.get("art:often").await;
        }
        let read = learnt.sample(before).await;
        let mut sorted = read.clone();
        sorted.sort();
        assert_eq!(sorted, ["often", "read"], "{name}");
        if name.ends_with("lfu") {
            assert_eq!(read[0], "often", "{name}");
        }
    }
}

/// A sample that begins early in a second sees touches of the second before; the next sample counts those of this one.
#[tokio::test]
async fn a_read_is_counted_once_wherever_in_its_second_a_sample_began() {
    let redis = TestRedis::start().await;
    let (_upstream, jobs) = nothing().await;
    let learnt = Learnt::of(&redis, &jobs).await;
    redis.set("art:a", "{\"by\":\"api\"}", HOUR).await;
    let read = async |since: RedisTime| learnt.sampler.sample(&learnt.job, since).await.unwrap().read;
    eventually("it is read and sampled within one second, and counted by the first of two samples", async || {
        learnt.next_second().await;
        let second = learnt.parts.now().await.as_millis() / 1_000;
        redis.get("art:a").await;
        let first = read(RedisTime::from_millis(second * 1_000 + 50)).await;
        let began = learnt.parts.now().await;
        let again = read(began).await;
        let found = (first, again, learnt.parts.now().await.as_millis() / 1_000 - second);
        if found == (1, 0, 0) { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn our_own_touches_are_not_counted() {
    for name in ["volatile-lru", "allkeys-lfu"] {
        let redis = policy(name).start().await;
        let (_upstream, jobs) = nothing().await;
        let learnt = Learnt::of(&redis, &jobs).await;
        for entry in ["committed", "extended", "input"] {
            learnt.commit(entry, "{\"a\":1}").await;
        }
        learnt.parts.next_instant().await;
        let before = learnt.parts.now().await;
        learnt.next_second().await;
        assert!(learnt.sample(before).await.is_empty());
        learnt.commit("committed", "{\"a\":2}").await;
        learnt.extend("extended").await;
        learnt.parts.store.values(&[art("input")]).await.unwrap();
        assert_eq!(learnt.sample(before).await, Vec::<String>::new(), "{name}");
        learnt.next_second().await;
        for entry in ["committed", "extended", "input"] {
            // Frequencies are a matter of chance above the first few.
            for _ in 0..200 {
                redis.get(&format!("art:{entry}")).await;
            }
        }
        assert_eq!(learnt.sample(before).await.len(), 3, "{name}");
    }
}

#[tokio::test]
async fn a_read_of_a_small_integer_is_nobodys_where_redis_shares_them() {
    let redis = TestRedis::start().await;
    let (_upstream, jobs) = nothing().await;
    let learnt = Learnt::of(&redis, &jobs).await;
    for (entry, value) in [("seven", "7"), ("other seven", "7"), ("text", "\"7\"")] {
        learnt.commit(entry, value).await;
    }
    let before = learnt.parts.now().await;
    learnt.next_second().await;
    redis.get("art:seven").await;
    redis.get("art:text").await;
    assert_eq!(learnt.sample(before).await, ["text"]);
}

#[tokio::test]
async fn entries_are_ranked_by_how_much_they_were_read_of_late() {
    let redis = TestRedis::start().await;
    let (_upstream, jobs) = nothing().await;
    let learnt = Learnt::of(&redis, &jobs).await;
    redis
        .ask::<u64>(&["ZADD", "samovar:reads", "3", "art:some", "9", "art:most", "1", "art:least", "5", "nobody's"])
        .await;
    let _worker = talkative(&redis, &jobs).env("SAMOVAR_SAMPLE", "100ms").spawn();
    eventually("reports are counted", async || redis.ask::<u64>(&["EXISTS", "samovar:reads"]).await == 0).await;
    eventually("all three are", async || learnt.top().await == ["most", "some", "least"]).await;
    let counts: Vec<f64> =
        learnt.popularity.top(&learnt.job, 10).await.unwrap().into_iter().map(|(_, count)| count).collect();
    for (count, reported) in counts.into_iter().zip([9.0, 3.0, 1.0]) {
        assert!((0.9 * reported..=reported).contains(&count), "{count} of {reported}");
    }
    let entries = ["unknown", "least", "most", "unheard-of"].map(art).into_iter().collect();
    let ranked = learnt.popularity.ranked(&learnt.job, &entries).await.unwrap();
    let ranked: Vec<&str> = ranked.filter_map(|number| entries.get(number)).collect();
    assert_eq!(ranked, ["art:most", "art:least", "art:unknown", "art:unheard-of"]);
}

#[tokio::test]
async fn counts_are_bounded_and_the_least_read_go() {
    let redis = TestRedis::start().await;
    let (_upstream, jobs) = nothing().await;
    let learnt = Learnt::of(&redis, &jobs).await;
    let mut reports = redis::pipe();
    for n in 0..10_500 {
        reports.cmd("ZADD").arg("samovar:reads").arg(n + 1).arg(format!("art:{n}")).ignore();
    }
    reports.exec_async(&mut redis.connection().await).await.unwrap();
    let _worker = talkative(&redis, &jobs).env("SAMOVAR_SAMPLE", "100ms").spawn();
    eventually("reports are counted", async || redis.ask::<u64>(&["EXISTS", "samovar:reads"]).await == 0).await;
    eventually("there are as many as may be", async || {
        redis.ask::<u64>(&["ZCARD", "samovar:popular:{art}"]).await == 10_000
    })
    .await;
    assert_eq!(learnt.top().await[0], "10499");
    assert_eq!(redis.ask::<Option<f64>>(&["ZSCORE", "samovar:popular:{art}", "art:0"]).await, None);
}

/// To keep an entry warm for a single read costs more fetches than its readers make.
#[tokio::test]
async fn a_recent_read_counts_as_wanted_after_several_reads() {
    let redis = policy("volatile-lru").start().await;
    let upstream = Upstream::start().await;
    let jobs = Art::of(&upstream).ttl("1h").folder();
    let learnt = Learnt::of(&redis, &jobs).await;
    for name in ["once", "several"] {
        learnt.commit(name, "{}").await;
    }
    learnt.next_second().await;
    for name in ["once", "several"] {
        redis.get(&format!("art:{name}")).await;
    }
    let wanted = async |name: &str| learnt.popularity.wanted(&learnt.job, &art(name)).await.unwrap();
    assert!(wanted("once").await, "without samples all that is known is that it is read");
    let now = learnt.parts.now().await.to_string();
    redis.ask::<u64>(&["HSET", "samovar:sample:{art}", "every", "10000", "last", &now]).await;
    redis.ask::<u64>(&["ZADD", "samovar:reads", "1", "art:once", "7", "art:several"]).await;
    learnt.sampler.take_reports().await.unwrap();
    assert!(!wanted("once").await);
    assert!(wanted("several").await);
    redis.ask::<u64>(&["HSET", "samovar:sample:{art}", "every", "1200000"]).await;
    assert!(wanted("once").await, "three samples in a TTL cannot see many reads");
    redis.ask::<u64>(&["HSET", "samovar:sample:{art}", "every", "10000"]).await;
    let score: String = redis.ask(&["ZSCORE", "samovar:popular:{art}", "art:once"]).await;
    for (score, uncounted) in [("-100", false), (score.as_str(), true)] {
        let mut others = redis::pipe();
        for n in 0..10_000 {
            others.cmd("ZADD").arg("samovar:popular:{art}").arg(score).arg(format!("art:{n}")).ignore();
        }
        others.exec_async(&mut redis.connection().await).await.unwrap();
        assert_eq!(wanted("once").await, uncounted, "where more is read of late than is counted, a count says little");
    }
    redis.ask::<u64>(&["DEL", "samovar:popular:{art}"]).await;
    assert!(!wanted("several").await);
    redis.ask::<u64>(&["HSET", "samovar:sample:{art}", "last", "1000"]).await;
    assert!(wanted("several").await, "without samples of late all that is known is that it is read");
}

/// A worker that samples often.
fn sampling(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    talkative(redis, jobs).env("SAMOVAR_SAMPLE", "200ms").spawn()
}

async fn exists(redis: &TestRedis, name: &str) -> bool {
    redis.ask::<u8>(&["EXISTS", &format!("art:{name}")]).await == 1
}

async fn what_is_read_is_refreshed_and_the_rest_expires(name: &str) {
    let redis = policy(name).start().await;
    let upstream = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).ttl("4s").warm("ahead = \"1s\"").folder();
    let parts = Parts::of(&redis).await;
    // Else what is fetched in the worker's first moments is looked at once more.
    parts.mark().await;
    let _worker = sampling(&redis, &jobs);
    parts.invalidate(r#"{"keys": ["art:read", "art:unread"], "action": "warm"}"#).await;
    eventually("what nobody reads has expired, and what is read was refreshed", async || {
        redis.get("art:read").await;
        let (expired, calls) = (!exists(&redis, "unread").await, upstream.calls("/art/read"));
        if expired && upstream.calls("/art/unread") == 1 && calls >= 3 { Ok(()) } else { Err((expired, calls)) }
    })
    .await;
    assert!(parts.stat("unread").await >= 1, "{name}");
    assert_eq!(parts.score("unread").await, None, "{name}: nobody thinks of it any more");
    // Frequencies fade by one a minute.
    if name.ends_with("lru") {
        eventually("what is no longer read has expired, too", async || !exists(&redis, "read").await).await;
    }
}

#[tokio::test]
async fn entries_still_read_are_refreshed_and_the_rest_expires() {
    what_is_read_is_refreshed_and_the_rest_expires("volatile-lru").await;
}

#[tokio::test]
async fn under_lfu_too_entries_still_read_are_refreshed() {
    what_is_read_is_refreshed_and_the_rest_expires("volatile-lfu").await;
}

#[tokio::test]
async fn the_most_read_are_kept_warm_even_when_unread_for_a_while() {
    let redis = policy("volatile-lru").start().await;
    let upstream = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).ttl("4s").entries("popular = 2").warm("ahead = \"1s\"").folder();
    let parts = Parts::of(&redis).await;
    let _worker = sampling(&redis, &jobs);
    let names = ["a", "b", "c", "d"];
    parts.invalidate(r#"{"keys": ["art:a", "art:b", "art:c", "art:d"], "action": "warm"}"#).await;
    redis.ask::<u64>(&["ZADD", "samovar:reads", "50", "art:a", "40", "art:b", "1", "art:c"]).await;
    eventually("the others have expired, and the two were refreshed", async || {
        let there: Vec<_> = futures_util::future::join_all(names.map(|name| exists(&redis, name))).await;
        let calls = (upstream.calls("/art/a"), upstream.calls("/art/b"));
        if there[2..] == [false, false] && calls.0 >= 3 && calls.1 >= 3 { Ok(()) } else { Err((there, calls)) }
    })
    .await;
    // What is gone comes back with the next warmup.
    redis.ask::<u64>(&["DEL", "art:a"]).await;
    redis.ask::<u64>(&["ZADD", "samovar:{schedules}", "1", "art"]).await;
    eventually("it is back", async || exists(&redis, "a").await).await;
    assert!(!exists(&redis, "c").await && !exists(&redis, "d").await);
}

#[tokio::test]
async fn what_the_api_wrote_itself_is_adopted_if_it_is_read() {
    let redis = policy("volatile-lru").start().await;
    let upstream = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::json(json!({"by": "samovar"})));
    let jobs = Art::of(&upstream).ttl("6s").warm("ahead = \"2s\"").folder();
    let parts = Parts::of(&redis).await;
    let _worker = sampling(&redis, &jobs);
    let six = Duration::from_secs(6);
    redis.set("art:read", "{\"by\":\"api\"}", six).await;
    redis.set("art:unread", "{\"by\":\"api\"}", six).await;
    redis.ask::<()>(&["SET", "art:for ever", "{\"by\":\"api\"}"]).await;
    let adopted = eventually("it is adopted", async || {
        redis.get("art:read").await;
        redis.get("art:for ever").await;
        parts.score("read").await
    })
    .await;
    let expires: i64 = redis.ask(&["PEXPIRETIME", "art:read"]).await;
    assert!(adopted < expires as f64 - 2_000.0 + 1.0, "{adopted} for {expires}");
    assert_eq!(redis.get("art:read").await.unwrap(), "{\"by\":\"api\"}", "untouched until then");
    eventually("it is refreshed", async || redis.get("art:read").await.is_some_and(|value| value.contains("samovar")))
        .await;
    assert!(parts.meta("read").await.is_some());
    eventually("what nobody reads has expired", async || !exists(&redis, "unread").await).await;
    assert_eq!(upstream.calls("/art/unread"), 0);
    assert_eq!(
        (parts.score("for ever").await, upstream.calls("/art/for ever")),
        (None, 0),
        "no TTL, no business of ours"
    );
}

#[tokio::test]
async fn the_most_read_are_remembered_over_a_flush() {
    let redis = TestRedis::start().await;
    let upstream = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).entries("popular = 2").folder();
    let learnt = Learnt::of(&redis, &jobs).await;
    let mut worker = sampling(&redis, &jobs);
    eventually("the worker is at work", async || redis.ask::<u8>(&["EXISTS", "samovar:marker"]).await == 1).await;
    redis.ask::<u64>(&["ZADD", "samovar:reads", "50", "art:a", "40", "art:b", "1", "art:c"]).await;
    eventually("they are counted", async || learnt.top().await.len() == 3).await;
    worker.wait_for_log(&["remembered", "entries=3"]).await;
    redis.flush().await;
    eventually("the most read are warm", async || exists(&redis, "a").await && exists(&redis, "b").await).await;
    assert_eq!(learnt.top().await, ["a", "b", "c"]);
    assert!(!exists(&redis, "c").await);
}

#[tokio::test]
async fn keys_that_are_missed_are_fetched_if_that_is_switched_on() {
    let redis = TestRedis::options().arg("--notify-keyspace-events", "Kg").start().await;
    let upstream = Upstream::start().await;
    upstream.on("/art/wanted", Reply::json(json!({})));
    let jobs = Art::of(&upstream).folder();
    let off = sampling(&redis, &jobs);
    redis.get("art:wanted").await;
    drop(off);
    let flags = async || redis.ask::<(String, String)>(&["CONFIG", "GET", "notify-keyspace-events"]).await.1;
    assert!(!flags().await.contains('m'));
    let workers: Vec<_> = (0..2).map(|_| talkative(&redis, &jobs).env("SAMOVAR_MISSES", "on").spawn()).collect();
    eventually("Redis tells of misses besides what it told", async || {
        let flags = flags().await;
        if "KgEm".chars().all(|flag| flags.contains(flag)) { Ok(()) } else { Err(flags) }
    })
    .await;
    eventually("what is missed is fetched", async || redis.get("art:wanted").await).await;
    assert_eq!(upstream.calls("/art/wanted"), 1);
    let listening = async || redis.ask::<(String, usize)>(&["PUBSUB", "NUMSUB", "__keyevent@0__:keymiss"]).await.1;
    assert_eq!(listening().await, redis.nodes().count(), "one of the fleet, on each master");
    // Asked for again and again, and the upstream has none.
    let parts = Parts::of(&redis).await;
    eventually("it is found to be gone", async || {
        redis.get("art:nothing").await;
        parts.stat("gone").await >= 1
    })
    .await;
    // Another listener, which remembers nothing.
    drop(workers);
    redis.ask::<u64>(&["DEL", "samovar:misses"]).await;
    eventually("nobody listens", async || listening().await == 0).await;
    let _worker = talkative(&redis, &jobs).env("SAMOVAR_MISSES", "on").spawn();
    eventually("somebody listens again", async || listening().await == 1).await;
    redis.get("art:nothing").await;
    redis.get("nobody's").await;
    eventually("another one is fetched meanwhile", async || {
        upstream.on("/art/other", Reply::json(json!({})));
        redis.get("art:other").await
    })
    .await;
    assert_eq!(upstream.calls("/art/nothing"), 1);
}

#[tokio::test]
async fn without_config_misses_are_not_heard_and_the_log_says_so() {
    let redis = TestRedis::start().await;
    redis.ask::<()>(&["ACL", "SETUSER", "default", "-config"]).await;
    let upstream = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_MISSES", "on").spawn();
    worker.wait_for_log(&["notify-keyspace-events", "in its configuration"]).await;
    eventually("it works nevertheless", async || exists(&redis, "a").await).await;
}

#[tokio::test]
async fn counts_outlive_a_change_of_the_ttl_and_go_on_for_a_century() {
    let redis = TestRedis::start().await;
    let upstream = Upstream::start().await;
    let (short, long) = (Art::of(&upstream).ttl("5s").folder(), Art::of(&upstream).ttl("30d").folder());
    let (short, long) = (Learnt::of(&redis, &short).await, Learnt::of(&redis, &long).await);
    // As if half-lives of ten seconds had passed since 1970 until 2128.
    let now = short.parts.now().await.to_string();
    let clock = ["HSET", "samovar:sample:{art}", "at", now.as_str(), "passed", "498614400", "half", "10000"];
    redis.ask::<u64>(&clock).await;
    for (name, reads) in [("a", 40), ("b", 2), ("a", 60), ("c", 1)] {
        redis.ask::<u64>(&["ZADD", "samovar:reads", &reads.to_string(), &format!("art:{name}")]).await;
        short.sampler.take_reports().await.unwrap();
    }
    let counts = async |learnt: &Learnt| -> Vec<f64> {
        learnt.popularity.top(&learnt.job, 10).await.unwrap().into_iter().map(|(_, count)| count).collect()
    };
    let before = counts(&short).await;
    assert_eq!(short.top().await, ["a", "b", "c"]);
    assert!((70.0..=100.0).contains(&before[0]) && (0.7..=1.0).contains(&before[2]), "{before:?}");
    let after = counts(&long).await;
    assert!(
        after.iter().zip(&before).all(|(after, before)| (0.7..=1.0).contains(&(after / before))),
        "{after:?} {before:?}"
    );
    assert_eq!(counts(&long).await, after, "a long half-life: nothing fades meanwhile");
}

/// Redis notes no reads while it saves, so it cannot say that there were none.
#[tokio::test]
async fn nothing_is_taken_for_unread_while_redis_saves() {
    let redis = policy("volatile-lru").arg("--rdb-key-save-delay", "5000000").start().await;
    let upstream = Upstream::start().await;
    upstream.otherwise(|_, _| Reply::json(json!({})));
    let jobs = Art::of(&upstream).ttl("6s").warm("ahead = \"1s\"").folder();
    let parts = Parts::of(&redis).await;
    let _worker = sampling(&redis, &jobs);
    parts.invalidate(r#"{"keys": ["art:a"], "action": "warm"}"#).await;
    eventually("it is there", async || exists(&redis, "a").await).await;
    redis.ask::<()>(&["BGSAVE"]).await;
    upstream.called("/art/a", 2).await;
    assert_eq!(parts.stat("unread").await, 0);
}

#[tokio::test]
async fn reads_of_an_earlier_key_pattern_are_not_wanted() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!(1)));
    let art = Art::of(&upstream).list(["a"]).entries("popular = 10");
    let jobs = art.folder();
    let worker = talkative(&redis, &jobs).spawn();
    readable_key(&redis, "art:a").await;
    redis.ask::<u64>(&["ZADD", "samovar:popular:{art}", "3", "art:a", "2", "art:b", "1", "art:c"]).await;
    let wanted = async || {
        let shown = samovar(["jobs", "art", "--absent", "--json"]).redis(&redis).jobs(&jobs).run().await.stdout;
        serde_json::from_str::<serde_json::Value>(&shown).unwrap_or_default()
    };
    assert_eq!(wanted().await["wanted"], 3);
    jobs.write("art.toml", &art.toml().replace("art:{name}", "art2:{name}"));
    worker.hangup();
    readable_key(&redis, "art2:a").await;
    eventually("only the new key is wanted", async || {
        let page = wanted().await;
        if page["wanted"] == 1 && page["absent"] == json!([]) { Ok(()) } else { Err(page) }
    })
    .await;
    let old: u64 = redis.ask(&["ZCARD", "samovar:popular:{art}"]).await;
    assert!(old >= 3, "{old}");
}
