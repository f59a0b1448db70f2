//! Which server and which user a worker can work with, and what it says where it cannot; two fleets on one server.
use std::time::Duration;

use crate::support::{
    Art, Fault, JobsFolder, Parts, Proxy, Reply, Samovar, TestRedis, Upstream, WorkerProcess, both, eventually,
    listening, samovar, talkative, version,
};
use futures_util::StreamExt as _;
use samovar::cache::{Cache, Invalidation, InvalidationPublisher, Lock};
use samovar::protocol::Keys;
use samovar::redis::RedisUrl;
use serde_json::{Value, json};

/// The page that says which rights suffice.
const PAGE: &str = include_str!("../docs/redis.md");

/// A user of this name with the rights that the page gives it, for the jobs of a test.
async fn as_documented(redis: &TestRedis, name: &str) {
    let line = PAGE.lines().find_map(|line| line.trim().strip_prefix(&format!("ACL SETUSER {name} "))).unwrap();
    let mut jobs = line.replace("artwork_info:*", "art:*").replace("ai_content:*", "other:*");
    assert_ne!(jobs, line, "the line names the jobs' keys");
    jobs = jobs.replace(">PASSWORD", ">secret");
    user(redis, name, &jobs).await;
}

async fn user(redis: &TestRedis, name: &str, rules: &str) {
    let words: Vec<&str> = ["ACL", "SETUSER", name].into_iter().chain(rules.split(' ')).collect();
    redis.ask::<()>(&words).await;
}

fn url(redis: &TestRedis, user: &str, database: u32) -> String {
    format!("redis://{user}:secret@127.0.0.1:{}/{database}", redis.port())
}

fn worker_as(redis: &TestRedis, jobs: &JobsFolder, user: &str) -> Samovar {
    talkative(redis, jobs)
        .redis_at(&url(redis, user, 0))
        .env("SAMOVAR_LISTEN", "127.0.0.1:0")
        .env("SAMOVAR_SAMPLE", "1s")
}

async fn health(worker: &mut WorkerProcess) -> (u16, Value) {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    let answer = client.get(format!("{}/health", worker.http().await)).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn is_healthy(worker: &mut WorkerProcess) {
    eventually("it is healthy", async || match health(worker).await {
        (200, _) => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Waits until `/health` gives a reason that holds all these texts.
async fn is_ill(worker: &mut WorkerProcess, texts: &[&str]) {
    eventually("/health says why", async || match health(worker).await {
        (503, state) if texts.iter().all(|text| state["reasons"].to_string().contains(text)) => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Warmups, invalidations on both ways, tags, reads that are noticed, and a restart: all of it works for this user.
async fn does_everything(mut redis: TestRedis, user: &str, rules: Option<&str>) {
    let upstream = Upstream::start().await;
    for name in ["a", "b", "fed"] {
        upstream.edit(&format!("/art/{name}"));
    }
    upstream.publish("/names", json!(["fed"]));
    let jobs = Art::of(&upstream).list(["a", "b"]).top("tags = [\"all\"]");
    let jobs = jobs.entries("feed = { upstream = \"museum\", path = \"/names\" }\npopular = 10").folder();
    match rules {
        Some(rules) => self::user(&redis, user, rules).await,
        None => as_documented(&redis, user).await,
    }
    redis.ask::<()>(&["ACL", "SAVE"]).await;
    redis.ask::<()>(&["SET", "art:theirs", "{\"by\": \"them\"}", "EX", "3600"]).await;
    let mut worker = worker_as(&redis, &jobs, user).spawn();
    for name in ["a", "b", "fed"] {
        version(&redis, name, 1).await;
    }
    is_healthy(&mut worker).await;

    let next = upstream.edit("/art/a");
    assert_eq!(redis.publish("samovar:invalidate", "art:a").await, 1);
    version(&redis, "a", next).await;
    let (parts, next) = (Parts::of(&redis).await, [upstream.edit("/art/a"), upstream.edit("/art/b")]);
    parts.invalidate(r#"{"tags": ["all"]}"#).await;
    version(&redis, "a", next[0]).await;
    version(&redis, "b", next[1]).await;
    parts.invalidate(r#"{"patterns": ["art:b"], "action": "evict"}"#).await;
    assert_eq!(redis.get("art:b").await, None);

    // What is read counts, and what somebody else wrote is then taken up.
    eventually("a read is noticed", async || {
        redis.get("art:theirs").await;
        redis.ask::<Option<f64>>(&["ZSCORE", "samovar:popular:{art}", "art:theirs"]).await
    })
    .await;

    redis.restart().await;
    worker.wait_for_log(&["Redis was restarted; all values are revalidated"]).await;
    let next = upstream.edit("/art/a");
    Parts::of(&redis).await.publish(r#"{"keys": ["art:a"]}"#).await;
    version(&redis, "a", next).await;
    is_healthy(&mut worker).await;
    let flushed = worker.log().len();
    redis.flush().await;
    version(&redis, "fed", 1).await;
    is_healthy(&mut worker).await;
    let refused: Vec<String> = worker.log().into_iter().skip(flushed).filter(|line| line.contains("NOPERM")).collect();
    assert_eq!(refused, [""; 0]);
    worker.term();
    assert_eq!(worker.wait().await.code(), Some(0));
}

/// A server whose users and data survive a restart, and the folder with its users.
async fn lasting() -> (TestRedis, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.acl");
    std::fs::write(&users, "user default on nopass ~* &* +@all\n").unwrap();
    (TestRedis::options().append_only().arg("--aclfile", users.to_str().unwrap()).start().await, folder)
}

#[tokio::test]
async fn a_worker_with_the_documented_rights_does_everything() {
    let (redis, _users) = lasting().await;
    does_everything(redis, "samovar-worker", None).await;
}

#[tokio::test]
async fn a_worker_without_admin_and_dangerous_rights_works() {
    let (redis, _users) = lasting().await;
    does_everything(redis, "managed", Some("reset on >secret ~* &* +@all -@admin -@dangerous")).await;
}

#[tokio::test]
async fn what_is_done_without_is_told_once_with_its_cost() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    user(&redis, "managed", "reset on >secret ~* &* +@all -@admin -@dangerous -object").await;
    let mut worker = worker_as(&redis, &jobs, "managed").spawn();
    worker.wait_for_log(&["WARN", "without +info", "without +object|idletime", "docs/redis.md"]).await;
    version(&redis, "a", 1).await;
    is_healthy(&mut worker).await;
    let told: Vec<String> = worker.log().into_iter().filter(|line| line.contains("without +info")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
}

/// A stranger's key stands where it would be noted in which life Redis is.
#[tokio::test]
async fn no_beat_loads_a_script_where_redis_does_not_say_who_it_is() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    user(&redis, "managed", "reset on >secret ~* &* +@all -@admin -@dangerous").await;
    redis.ask::<u64>(&["HSET", "samovar:marker", "a", "stranger's"]).await;
    let mut worker = worker_as(&redis, &jobs, "managed").spawn();
    worker.wait_for_log(&["(the marker)"]).await;
    let mut since = (0, 0);
    eventually("no script is loaded for three seconds of beats", async || {
        let workers: Vec<(String, u64)> =
            redis.ask(&["ZRANGE", "{samovar:queue}:workers", "0", "0", "WITHSCORES"]).await;
        let memory: String = redis.ask(&["INFO", "memory"]).await;
        let scripts = memory.lines().find_map(|line| line.strip_prefix("number_of_cached_scripts:")).unwrap();
        let now = (workers.first().map_or(0, |(_, beat)| *beat), scripts.parse::<u64>().unwrap());
        if now.1 != since.1 {
            since = now;
        }
        if now.0 >= since.0 + 3 { Ok(()) } else { Err((since, now)) }
    })
    .await;
    assert_eq!(redis.ask::<String>(&["TYPE", "samovar:marker"]).await, "hash");
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_taken_up_once_granted() {
    let cases = [
        ("-xreadgroup", "to run xreadgroup", "+xreadgroup"),
        ("-evalsha -script", "to run evalsha", "+evalsha"),
        ("-subscribe", "to run subscribe", "+subscribe"),
        ("-multi", "to run multi", "+multi"),
        (
            "resetchannels &samovar:signal &samovar:watched &samovar:changed",
            "samovar:invalidate",
            "&samovar:invalidate",
        ),
        ("resetkeys ~art:* ~{samovar:queue}*", "to use keys samovar:*", "~samovar:*"),
        ("resetkeys ~art:* ~samovar:*", "to use keys {samovar:queue}:*", "~{samovar:queue}:*"),
    ];
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let case = async |(rule, missing, grant): (&str, &str, &str)| {
        let name = grant.replace(|c: char| !c.is_ascii_alphanumeric(), "x");
        user(&redis, &name, &format!("reset on >secret ~* &* +@all {rule}")).await;
        let mut worker = worker_as(&redis, &jobs, &name).spawn();
        let line = worker.wait_for_log(&["WARN", "waits for Redis", missing, &format!("ACL SETUSER {name} ")]).await;
        assert!(line.contains(grant), "{line}");
        is_ill(&mut worker, &[missing, grant]).await;
        let told = worker.log().into_iter().filter(|line| line.contains("WARN")).count();
        assert_eq!(told, 1, "{:?}", worker.log());
        let grants = line.split_once(&format!("ACL SETUSER {name} ")).unwrap().1.split_once(" (docs").unwrap().0;
        user(&redis, &name, grants).await;
        is_healthy(&mut worker).await;
    };
    for one in cases {
        case(one).await;
    }
}

#[tokio::test]
async fn a_job_whose_keys_are_forbidden_is_named_and_stops_no_other() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    upstream.on("/other", Reply::json(json!(1)));
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let source = format!("key = \"other:{{id}}\"\n[source]\nkind = \"http\"\nurl = \"{}/other\"\n", upstream.url());
    let jobs = jobs.job("other", &format!("{source}[entries]\nlist = [\"x\"]\n"));
    user(&redis, "app", "reset on >secret ~samovar:* ~{samovar:queue}* ~art:* &* +@all").await;
    let mut worker = worker_as(&redis, &jobs, "app").env("SAMOVAR_CLAIM", "2s").spawn();
    worker
        .wait_for_log(&["ERROR", "jobs cannot be kept warm", "to use keys other:*", "ACL SETUSER app ~other:*"])
        .await;
    version(&redis, "a", 1).await;
    is_ill(&mut worker, &["jobs' keys", "~other"]).await;
    user(&redis, "app", "~other:*").await;
    eventually("the other is warm, too", async || redis.get("other:x").await).await;
    is_healthy(&mut worker).await;
}

#[tokio::test]
async fn the_documented_rights_of_the_command_line_suffice() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    as_documented(&redis, "samovar-cli").await;
    let worker = talkative(&redis, &jobs).spawn();
    version(&redis, "a", 1).await;
    let lines: [&[&str]; 9] = [
        &["jobs", "--json"],
        &["jobs"],
        &["get", "art:a", "--json"],
        &["invalidate", "art:a"],
        &["warm", "art:a", "--wait"],
        &["warm", "art", "--dry-run"],
        &["pause", "art"],
        &["resume", "art"],
        &["dead", "--retry"],
    ];
    for line in lines {
        let run = samovar(line).jobs(&jobs).redis_at(&url(&redis, "samovar-cli", 0)).run().await;
        assert_eq!(run.code, Some(0), "{line:?}: {run:?}");
    }
    let watch = samovar(["watch"]).jobs(&jobs).redis_at(&url(&redis, "samovar-cli", 0)).spawn();
    eventually("what is warmed is shown", async || {
        redis.publish("samovar:invalidate", "art:a").await;
        watch.printed().iter().any(|line| line.contains("art:a"))
    })
    .await;
    let run = samovar(["get", "secret:a"]).jobs(&jobs).redis_at(&url(&redis, "samovar-cli", 0)).run().await;
    assert_ne!(run.code, Some(0), "{run:?}");
    drop(worker);
}

#[tokio::test]
async fn the_documented_rights_of_an_api_suffice() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    as_documented(&redis, "samovar-api").await;
    let _worker = talkative(&redis, &jobs).spawn();
    version(&redis, "a", 1).await;

    let cache = Cache::builder(url(&redis, "samovar-api", 0)).prefix("art").build().await.unwrap();
    assert_eq!(cache.get::<Value>("a").await.unwrap().unwrap()["version"], 1);
    let mut changes = cache.changes().await;
    let next = upstream.edit("/art/a");
    InvalidationPublisher::new(&cache).publish(&Invalidation::keys(["art:a"])).await.unwrap();
    version(&redis, "a", next).await;
    changes.next().await;
    let next = upstream.edit("/art/a");
    let mut connection = cache.connection().clone();
    let heard: usize =
        redis::cmd("PUBLISH").arg("samovar:invalidate").arg("art:a").query_async(&mut connection).await.unwrap();
    assert_eq!(heard, 1);
    version(&redis, "a", next).await;
    let report = redis::cmd("ZINCRBY").arg("samovar:reads").arg(1).arg("art:a").exec_async(&mut connection).await;
    report.unwrap();
    let refused = redis::cmd("DEL").arg("art:a").exec_async(&mut connection).await.unwrap_err();
    assert_eq!(refused.code(), Some("NOPERM"));
}

#[tokio::test]
async fn a_service_with_a_workers_rights_has_the_whole_library() {
    let redis = TestRedis::start().await;
    as_documented(&redis, "samovar-worker").await;
    let builder = Cache::builder(url(&redis, "samovar-worker", 0)).prefix("art").bound(Duration::from_secs(5));
    let cache = builder.near(1 << 20, Duration::from_secs(60)).demand(true).build().await.unwrap();
    let mut changes = cache.changes().await;
    cache.set("a", &1).await.unwrap();
    changes.next().await;
    assert_eq!(cache.get_many::<u64, _>(["a", "b"]).await.unwrap().len(), 1);
    assert_eq!(cache.get_or_load("b", async || Ok::<_, samovar::cache::Error>(2)).await.unwrap(), 2);
    assert_eq!(cache.increment("views", 1).await.unwrap(), 1);
    let lock = Lock::new(&cache, "art");
    lock.acquire(Duration::ZERO).await.unwrap().release().await.unwrap();
    assert!(cache.delete("a").await.unwrap());
    assert_eq!(cache.clear_pattern("*").await.unwrap(), 2);
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_named_by_who_needs_it() {
    let (redis, upstream) = both().await;
    let jobs = Art::of(&upstream).folder();
    user(&redis, "app", "reset on >secret ~* &* +@all").await;
    let mut worker = worker_as(&redis, &jobs, "app").spawn();
    is_healthy(&mut worker).await;
    user(&redis, "app", "-xreadgroup").await;
    worker.wait_for_log(&["WARN", "the inbox", "names the missing rights", "docs/redis.md"]).await;
    is_ill(&mut worker, &["the inbox", "docs/redis.md"]).await;
    user(&redis, "app", "+xreadgroup").await;
    is_healthy(&mut worker).await;
}

#[tokio::test]
async fn an_unsupported_server_is_named_and_waited_out() {
    let cases = [
        (Fault::Says("version", "6.2.14"), "the server is Redis 6.2.14: Redis 7.0 or newer, or Valkey, is needed"),
        (Fault::Says("version", "6.3.4"), "the server is Redis 6.3.4"),
        (Fault::Says("mode", "cluster"), "the server is a node of a Redis Cluster: write redis+cluster://"),
        (Fault::Says("mode", "sentinel"), "the server is a Sentinel, which knows no service: write redis+sentinel://"),
    ];
    let (redis, upstream) = both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    for (fault, told) in cases {
        redis.flush().await;
        let proxy = Proxy::before(redis.port()).await;
        proxy.set(fault);
        for line in [&["jobs"][..], &["get", "art:a"], &["invalidate", "art:a"], &["warm", "art"], &["dead"]] {
            let run = samovar(line).jobs(&jobs).redis_at(&proxy.url()).run().await;
            assert_eq!(run.code, Some(69), "{run:?}");
            assert!(run.stderr.contains(told) && run.stderr.lines().count() == 1, "{run:?}");
        }
        let worker = samovar(["worker"]).jobs(&jobs).redis_at(&proxy.url()).env("SAMOVAR_LISTEN", "127.0.0.1:0");
        let mut worker = worker.spawn();
        worker.wait_for_log(&["WARN", "waits for Redis", told]).await;
        is_ill(&mut worker, &[told]).await;
        let told = worker.log().into_iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
        assert_eq!(told, 1, "{:?}", worker.log());
        proxy.set(Fault::None);
        version(&redis, "a", 1).await;
        is_healthy(&mut worker).await;
    }
}

/// Who runs a server may have renamed commands, so that it tells nobody what it is.
#[tokio::test]
async fn a_server_that_does_not_tell_its_version_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("renamed.conf");
    std::fs::write(&config, "rename-command HELLO \"\"\nrename-command CONFIG \"\"\n").unwrap();
    let redis = TestRedis::options().arg("--include", config.to_str().unwrap()).start().await;
    let upstream = Upstream::start().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    user(&redis, "silent", "reset on >secret ~* &* +@all -info").await;
    let mut worker = worker_as(&redis, &jobs, "silent").spawn();
    version(&redis, "a", 1).await;
    is_healthy(&mut worker).await;
    let run = samovar(["get", "art:a"]).jobs(&jobs).redis_at(&url(&redis, "silent", 0)).run().await;
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[tokio::test]
async fn the_library_says_that_a_server_is_too_old() {
    let redis = TestRedis::start().await;
    let proxy = Proxy::before(redis.port()).await;
    proxy.set(Fault::Says("version", "6.2.14"));
    let refused = Cache::builder(proxy.url()).bound(Duration::from_secs(5)).build().await.unwrap_err();
    assert!(refused.to_string().contains("the server is Redis 6.2.14: Redis 7.0 or newer"), "{refused}");
}

/// A fleet of one in a database, with an upstream of its own.
struct Fleet {
    upstream: Upstream,
    jobs: JobsFolder,
    redis: String,
}

impl Fleet {
    async fn of(redis: &TestRedis, database: u32) -> Self {
        let upstream = Upstream::start().await;
        let names: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        for name in &names {
            upstream.edit(&format!("/art/{name}"));
        }
        let jobs = Art::of(&upstream).list(names).folder();
        Self { upstream, jobs, redis: format!("redis://127.0.0.1:{}/{database}", redis.port()) }
    }

    fn worker(&self) -> Samovar {
        samovar(["worker"]).jobs(&self.jobs).redis_at(&self.redis).env("SAMOVAR_LOG", "debug")
    }

    async fn connection(&self) -> samovar::redis::Connection {
        RedisUrl::parse(&self.redis, None).unwrap().manager(Duration::from_secs(20)).await.unwrap()
    }

    /// Returns the number of values.
    async fn warm(&self) -> usize {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg("art:*").query_async(&mut self.connection().await).await.unwrap();
        keys.len()
    }

    async fn is_warm(&self) {
        eventually("all is warm", async || match self.warm().await {
            50 => Ok(()),
            other => Err(other),
        })
        .await;
    }

    async fn version_of(&self, name: &str) -> Option<Value> {
        let get = redis::cmd("GET").arg(format!("art:{name}")).query_async(&mut self.connection().await).await;
        let text: Option<String> = get.unwrap();
        Some(serde_json::from_str::<Value>(&text?).unwrap()["version"].take())
    }
}

#[tokio::test]
async fn fleets_on_two_databases_do_not_hear_each_other() {
    let redis = TestRedis::start().await;
    let [staging, production] = [Fleet::of(&redis, 1).await, Fleet::of(&redis, 0).await];
    let mut workers = [staging.worker().spawn(), production.worker().spawn()];
    workers[0].wait_for_log(&["database=1", "channel=\"samovar:db1:invalidate\""]).await;
    workers[1].wait_for_log(&["database=0", "channel=\"samovar:invalidate\""]).await;
    staging.is_warm().await;
    production.is_warm().await;

    let client = redis.client();
    let mut changed = client.get_async_pubsub().await.unwrap();
    changed.subscribe("samovar:changed").await.unwrap();
    let near = async |fleet: &Fleet| {
        let builder = Cache::builder(fleet.redis.clone()).prefix("art").near(1 << 20, Duration::from_secs(3_600));
        builder.demand(true).build().await.unwrap()
    };
    let [near_staging, near_production] = [near(&staging).await, near(&production).await];
    let mut heard = near_staging.changes().await;

    // An eviction of one leaves the other as it is.
    let heard_by = redis.publish("samovar:db1:invalidate", r#"{"jobs": ["art"], "action": "evict"}"#).await;
    assert_eq!(heard_by, 1);
    eventually("staging is empty", async || staging.warm().await == 0).await;
    heard.next().await;
    assert_eq!(production.warm().await, 50);

    // A demand of one is no demand of the other.
    assert_eq!(near_staging.get::<Value>("7").await.unwrap(), None);
    eventually("what was asked for is warm", async || staging.warm().await == 1).await;
    assert_eq!(production.upstream.calls("/art/7"), 1);

    // A refresh through the command line, and one through the channel.
    assert_eq!(near_production.get::<Value>("1").await.unwrap().unwrap()["version"], 1);
    let next = production.upstream.edit("/art/1");
    staging.upstream.edit("/art/1");
    let line = samovar(["invalidate", "art:1"]).jobs(&production.jobs).redis_at(&production.redis).run().await;
    assert_eq!(line.code, Some(0), "{line:?}");
    eventually("production has the new value", async || production.version_of("1").await == Some(json!(next))).await;
    eventually("the near cache hears it", async || {
        near_production.get::<Value>("1").await.unwrap().unwrap()["version"] == next
    })
    .await;
    let next = production.upstream.edit("/art/2");
    assert_eq!(redis.publish("samovar:invalidate", "art:2").await, 1);
    eventually("and the next", async || production.version_of("2").await == Some(json!(next))).await;
    assert_eq!(staging.warm().await, 1, "staging fetched nothing");

    // Only production's changes are told on production's channel.
    let messages = changed.on_message();
    let keys: Vec<String> = messages
        .take(2)
        .map(|message| {
            let text: String = message.get_payload().unwrap();
            serde_json::from_str::<Value>(&text).unwrap()["key"].as_str().unwrap().to_owned()
        })
        .collect()
        .await;
    assert_eq!(keys, ["art:1", "art:2"]);
}

#[tokio::test]
async fn two_databases_that_hear_one_channel_are_warned_of() {
    let redis = TestRedis::start().await;
    let [first, second] = [Fleet::of(&redis, 3).await, Fleet::of(&redis, 0).await];
    let mut one = first.worker().env("SAMOVAR_CHANNEL", "samovar:invalidate").spawn();
    one.wait_for_log(&["database=3", "channel=\"samovar:invalidate\""]).await;
    listening(&redis, 1).await;
    let mut other = second.worker().env("SAMOVAR_PREFIX", "other").env("SAMOVAR_CHANNEL", "samovar:invalidate").spawn();
    let texts = ["WARN", "database 3", "prefix `samovar`", "database 0", "SAMOVAR_CHANNEL"];
    other.wait_for_log(&texts).await;

    // Workers of one database are a fleet, whatever its prefix.
    let mut third = first.worker().env("SAMOVAR_PREFIX", "third").env("SAMOVAR_CHANNEL", "purge").spawn();
    listening(&redis, 3).await;
    let mut fourth = first.worker().env("SAMOVAR_PREFIX", "fourth").env("SAMOVAR_CHANNEL", "purge").spawn();
    listening(&redis, 4).await;
    first.is_warm().await;
    for worker in [&mut third, &mut fourth] {
        assert!(worker.is_running());
        assert!(!worker.log().iter().any(|line| line.contains("SAMOVAR_CHANNEL")), "{:?}", worker.log());
    }
}

#[tokio::test]
async fn check_says_on_which_channel_and_for_which_database() {
    let upstream = Upstream::start().await;
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let check = samovar(["check"]).jobs(&jobs).env("REDIS_DB", "7").run().await;
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.stdout.contains("samovar:db7:invalidate") && check.stdout.contains("database 7"), "{check:?}");
    let check = samovar(["check", "--json"]).jobs(&jobs).redis_at("unix:///nowhere.sock?db=7").run().await;
    let report: Value = serde_json::from_str(&check.stdout).unwrap();
    assert_eq!((&report["channel"], &report["database"]), (&json!("samovar:db7:invalidate"), &json!(7)));
    let keys = Keys::of("samovar").in_database(7);
    assert_eq!(report["channel"], keys.invalidate_channel());
}
