//! Redis fails in every way: the worker never ends or spins, says that it is not ready, and recovers within seconds.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::{choices, factor, version, works};
use crate::support::{
    Art, Fault, JobsFolder, Parts, Proxy, TestRedis, Upstream, WorkerProcess, eventually, eventually_within, samovar,
    talkative,
};

/// The duration of a fault.
const LASTS: Duration = Duration::from_secs(3);
/// The most log lines in a second, and those allowed for each fault that begins or ends.
const LINES: (usize, usize) = (5, 60);
/// The most connections in a second, and those allowed for each fault.
const CONNECTIONS: (usize, usize) = (25, 40);

/// Asks when each worker beat last.
const BEATS: [&str; 5] = ["ZRANGE", "{samovar:queue}:workers", "0", "-1", "WITHSCORES"];

/// A worker behind a proxy.
struct Stage {
    redis: TestRedis,
    proxy: Proxy,
    upstream: Upstream,
    worker: WorkerProcess,
    http: String,
    client: reqwest::Client,
    _jobs: JobsFolder,
    works: usize,
}

impl Stage {
    async fn set() -> Self {
        Self::on(
            TestRedis::options()
                .append_only()
                .arg("--appendfsync", "always")
                .arg("--enable-debug-command", "local")
                .start()
                .await,
        )
        .await
    }

    async fn on(redis: TestRedis) -> Self {
        let (proxy, upstream) = (Proxy::before(redis.port()).await, Upstream::start().await);
        upstream.edit("/art/a");
        let jobs = Art::of(&upstream).limits("timeout = \"2s\"\nconcurrency = 4").list(["a"]).folder();
        let mut worker = samovar(["worker"])
            .redis_at(&proxy.url())
            .jobs(&jobs)
            .env("SAMOVAR_CLAIM", "2s")
            .env("SAMOVAR_LISTEN", "127.0.0.1:0")
            .spawn();
        let http = worker.http().await;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let stage = Self { redis, proxy, upstream, worker, http, client, _jobs: jobs, works: 0 };
        version(&stage.redis, "a", 1).await;
        stage.is_ready(200).await;
        stage
    }

    async fn is_ready(&self, status: u16) {
        eventually(&format!("readiness is {status}"), async || {
            let answer =
                self.client.get(format!("{}/health/ready", self.http)).send().await.map_err(|e| e.to_string())?;
            if answer.status().as_u16() == status { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
        })
        .await;
    }

    /// Something happens for a while; then all works again, and nothing was spun meanwhile.
    async fn survives(&mut self, what: &str, happens: impl AsyncFnOnce(&mut Self)) {
        let (begun, lines, connections) = (Instant::now(), self.worker.log().len(), self.proxy.accepted());
        let busy = self.worker.busy();
        happens(self).await;
        self.is_ready(200).await;
        self.works += 1;
        works(&self.redis, &self.upstream, &format!("{what} {}", self.works)).await;
        let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
        let lines = self.worker.log().len() - lines;
        let connections = self.proxy.accepted() - connections;
        let busy = self.worker.busy() - busy;
        eprintln!("{what}: {seconds} s, {lines} lines, {connections} connections, {busy:?} busy");
        assert!(lines <= LINES.0 * seconds + LINES.1, "{lines} lines in {seconds} s of {what}");
        assert!(connections <= CONNECTIONS.0 * seconds + CONNECTIONS.1, "{connections} in {seconds} s of {what}");
        assert!(busy < begun.elapsed() / 2 + Duration::from_secs(1), "busy for {busy:?} in {seconds} s of {what}");
        assert!(self.worker.is_running(), "it ended by {what}");
    }

    /// The network fails for a while, so that the worker is not ready.
    async fn network(&mut self, fault: Fault) {
        self.survives(&format!("{fault:?}"), async |stage| {
            stage.proxy.set(fault);
            stage.is_ready(503).await;
            tokio::time::sleep(LASTS).await;
            stage.proxy.set(Fault::None);
        })
        .await;
    }
}

#[tokio::test]
async fn connections_that_are_refused_come_back() {
    Stage::set().await.network(Fault::Refuse).await;
}

#[tokio::test]
async fn a_redis_that_is_heard_by_nobody_is_noticed() {
    Stage::set().await.network(Fault::Deaf).await;
}

#[tokio::test]
async fn a_redis_that_hears_nobody_is_noticed() {
    Stage::set().await.network(Fault::Mute).await;
}

#[tokio::test]
async fn replies_that_are_cut_in_the_middle_do_no_harm() {
    let mut stage = Stage::set().await;
    for after in [0, 1, 7, 300] {
        stage
            .survives(&format!("replies cut after {after} bytes"), async |stage| {
                stage.proxy.set(Fault::CutReplies(after));
                tokio::time::sleep(LASTS / 2).await;
                stage.proxy.set(Fault::None);
            })
            .await;
    }
}

/// A pull or a push whose reply is lost has moved tasks all the same.
#[tokio::test]
async fn replies_that_are_lost_leave_no_task_behind() {
    let mut stage = Stage::set().await;
    let parts = Parts::of(&stage.redis).await;
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let mut random = choices("lost replies");
    for _ in 0..3 * factor() {
        // Nothing that is pulled arrives.
        stage.proxy.set(Fault::CutBefore("\"entries\":["));
        for _ in 0..10 {
            for name in names.sample(&mut random, 10) {
                stage.upstream.edit(&format!("/art/{name}"));
                let message = serde_json::json!({"keys": [format!("art:{name}")]}).to_string();
                stage.redis.publish("samovar:invalidate", &message).await;
                let warm = serde_json::json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string();
                parts.publish(&warm).await;
            }
            tokio::time::sleep(LASTS / 60).await;
        }
        stage.proxy.set(Fault::None);
    }
    for name in &names {
        let path = format!("/art/{name}");
        stage.upstream.edit(&path);
        parts.publish(&serde_json::json!({"keys": [format!("art:{name}")]}).to_string()).await;
    }
    eventually_within(Duration::from_secs(60), "all are new", async || {
        for name in &names {
            let (value, newest) =
                (stage.redis.json(&format!("art:{name}")).await, stage.upstream.version(&format!("/art/{name}")));
            if value.as_ref().is_none_or(|value| value["version"] != newest) {
                return Err(format!("{name} is {value:?}, not {newest}"));
            }
        }
        Ok(())
    })
    .await;
    // Other workers would have to wait for the end of this one.
    eventually_within(Duration::from_secs(60), "no task is left", async || {
        let left = stage.redis.keys("{samovar:queue}:*").await;
        if left == ["{samovar:queue}:workers"] { Ok(()) } else { Err(left) }
    })
    .await;
    for name in &names {
        assert!(stage.upstream.most_in_flight(&format!("/art/{name}")) <= 1, "two fetched {name} at once");
    }
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn a_slow_network_only_makes_it_slow() {
    let mut stage = Stage::set().await;
    stage.proxy.set(Fault::Delay(Duration::from_millis(150)));
    stage.works += 1;
    works(&stage.redis, &stage.upstream, "slow").await;
    stage.is_ready(200).await;
    stage.survives("a delay", async |stage| stage.proxy.set(Fault::None)).await;
}

/// The path swallows what is sent on the connections there are, for good; new ones are well.
#[tokio::test]
async fn connections_that_lead_nowhere_are_left() {
    for fault in [Fault::Deaf, Fault::Mute] {
        let mut stage = Stage::set().await;
        stage
            .survives("a path that forgot", async |stage| {
                stage.proxy.set(fault);
                stage.is_ready(503).await;
                stage.proxy.set(Fault::None);
            })
            .await;
    }
}

/// Redis believes that it is subscribed, and the worker too.
#[tokio::test]
async fn what_was_published_bare_to_a_deaf_subscription_becomes_fresh() {
    let mut stage = Stage::set().await;
    // From here on there is something to miss.
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.proxy.set(Fault::DeafSubscriptions);
    stage.upstream.edit("/art/a");
    assert_eq!(stage.redis.publish("samovar:invalidate", "art:a").await, 1, "Redis believes that it is heard");
    stage.worker.wait_for_log(&["nothing is heard on the subscription"]).await;
    assert_eq!(stage.redis.json("art:a").await.unwrap()["version"], 1);
    stage.survives("a deaf subscription", async |stage| stage.proxy.set(Fault::None)).await;
    version(&stage.redis, "a", 2).await;
}

#[tokio::test]
async fn a_redis_that_sleeps_or_pauses_is_waited_for() {
    let mut stage = Stage::set().await;
    let lasts = LASTS.as_millis().to_string();
    for words in
        [&["DEBUG", "SLEEP", "3"][..], &["CLIENT", "PAUSE", &lasts, "ALL"], &["CLIENT", "PAUSE", &lasts, "WRITE"]]
    {
        stage.survives(&words.join(" "), async |stage| stage.redis.ask::<()>(words).await).await;
    }
}

#[tokio::test]
async fn a_redis_that_restarts_or_is_emptied_is_filled_again() {
    let mut stage = Stage::set().await;
    for emptied in [false, true, false] {
        stage
            .survives("a restart", async |stage| {
                stage.redis.kill9();
                stage.is_ready(503).await;
                stage.redis.start_again().await;
            })
            .await;
        if emptied {
            stage.survives("a flush", async |stage| stage.redis.flush().await).await;
        }
        version(&stage.redis, "a", 1).await;
    }
}

#[tokio::test]
async fn scripts_and_connections_come_back_however_often_killed() {
    let mut stage = Stage::set().await;
    stage
        .survives("kills", async |stage| {
            let begun = Instant::now();
            while begun.elapsed() < LASTS {
                stage.redis.ask::<()>(&["SCRIPT", "FLUSH"]).await;
                for class in ["normal", "pubsub"] {
                    stage.redis.ask::<u64>(&["CLIENT", "KILL", "TYPE", class]).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
}

#[tokio::test]
async fn a_redis_without_memory_is_waited_for_and_keeps_its_values() {
    let mut stage = Stage::set().await;
    stage
        .survives("no memory", async |stage| {
            stage.redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
            stage.is_ready(503).await;
            let beat = async || stage.redis.ask::<Vec<(String, u64)>>(&BEATS).await[0].1;
            let refused = beat().await;
            eventually("the fleet knows that the worker lives", async || beat().await >= refused + 2).await;
            let told = samovar(["jobs"]).redis(&stage.redis).env("SAMOVAR_CLAIM", "2s").run().await.stdout;
            assert!(told.contains("1 worker is running") && told.contains("Redis refuses to write"), "{told}");
            assert_eq!(stage.redis.json("art:a").await.unwrap()["version"], 1);
            stage.redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
        })
        .await;
}

/// The old one stays reachable, and its connections stay open.
#[tokio::test]
async fn a_redis_that_became_a_replica_is_left_for_its_successor() {
    let mut stage = Stage::set().await;
    let successor = TestRedis::start().await;
    stage.redis.ask::<()>(&["CONFIG", "SET", "repl-timeout", "3600"]).await;
    let port = successor.port().to_string();
    successor.ask::<()>(&["REPLICAOF", "127.0.0.1", &stage.redis.port().to_string()]).await;
    eventually("the successor has it all", async || {
        successor.ask::<String>(&["INFO", "replication"]).await.contains("master_link_status:up")
    })
    .await;
    stage.proxy.lead_to(successor.port());
    successor.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    stage.redis.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]).await;
    stage.upstream.edit("/art/a");
    let old = std::mem::replace(&mut stage.redis, successor);
    stage.survives("a failover", async |_| {}).await;
    version(&stage.redis, "a", 2).await;
    assert!(stage.worker.is_running());
    drop(old);
}

/// As the same server does whose operator looked away for a moment.
#[tokio::test]
async fn a_redis_that_is_read_only_for_a_while_is_waited_for() {
    let mut stage = Stage::set().await;
    stage
        .survives("a replica", async |stage| {
            let nobody = ["REPLICAOF", "127.0.0.1", "1"];
            stage.redis.ask::<()>(&nobody).await;
            stage.is_ready(503).await;
            tokio::time::sleep(LASTS).await;
            assert_eq!(stage.redis.json("art:a").await.unwrap()["version"], 1);
            stage.redis.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
        })
        .await;
}

#[tokio::test]
async fn schedules_that_redis_evicted_are_set_up_again() {
    let (redis, upstream) = super::both().await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).warm("every = \"1h\"").folder();
    let _worker = crate::support::worker(&redis, &jobs);
    version(&redis, "a", 1).await;
    let next = eventually("the next warmup is set", async || {
        let at: Option<f64> = redis.ask(&["ZSCORE", "samovar:{schedules}", "art"]).await;
        let under_way: usize = redis.ask(&["HLEN", "samovar:{schedules}:ticks"]).await;
        at.filter(|_| under_way == 0)
    })
    .await;
    redis.ask::<()>(&["DEL", "samovar:{schedules}"]).await;
    eventually("the next warmup is set again", async || {
        let at: Option<f64> = redis.ask(&["ZSCORE", "samovar:{schedules}", "art"]).await;
        if at.is_some_and(|at| at >= next) { Ok(()) } else { Err(at) }
    })
    .await;
}

/// Redis evicts what was used least of late, which is not ours; the test does as if it were.
#[tokio::test]
async fn an_agenda_that_redis_evicted_is_written_again() {
    let (redis, upstream) = super::both().await;
    for n in 0..2_000 {
        redis.set(&format!("other:{n}"), &"x".repeat(1_000), Duration::from_secs(600)).await;
    }
    let parts = Parts::of(&redis).await;
    let written = parts.now().await;
    eventually("it is not used of late", async || parts.now().await > written + Duration::from_secs(2)).await;
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_SAMPLE", "1h").spawn();
    version(&redis, "a", 1).await;
    let on_agenda = async || redis.ask::<usize>(&["EXISTS", "samovar:agenda:{art}"]).await == 1;
    eventually("it is to be refreshed", on_agenda).await;
    worker.wait_for_log(&["inspected evictions", "agendas=1"]).await;
    let used = redis.ask::<String>(&["INFO", "memory"]).await;
    let used: u64 = used.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap();
    let less = (used - 500_000).to_string();
    for (name, value) in [("maxmemory-policy", "allkeys-lru"), ("maxmemory-samples", "64"), ("maxmemory", &less)] {
        redis.ask::<()>(&["CONFIG", "SET", name, value]).await;
    }
    redis.set("one more", "1", Duration::from_secs(600)).await;
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert!(!redis.ask::<String>(&["INFO", "stats"]).await.contains("evicted_keys:0"));
    assert!(redis.get("samovar:marker").await.is_some(), "nothing else tells that something is missing");
    redis.ask::<()>(&["DEL", "samovar:agenda:{art}"]).await;
    eventually("it is to be refreshed again", on_agenda).await;
    assert_eq!(upstream.calls("/art/a"), 1, "what was there is not fetched again");
}

/// One after the other, in any order, and two at a time.
#[tokio::test]
async fn a_worker_survives_whatever_comes() {
    const NETWORK: [Fault; 5] =
        [Fault::Refuse, Fault::Deaf, Fault::Mute, Fault::CutReplies(100), Fault::Delay(Duration::from_millis(200))];
    let mut random = choices("whatever comes");
    let mut stage = Stage::set().await;
    for _ in 0..10 * factor() {
        let network = *NETWORK.choose(&mut random).unwrap();
        let (server, lasts) = (random.random_range(0..6), Duration::from_millis(random.random_range(100..6_000)));
        stage
            .survives(&format!("{network:?} and {server} for {lasts:?}"), async |stage| {
                stage.proxy.set(network);
                match server {
                    0 => stage.redis.flush().await,
                    1 => stage.redis.ask::<()>(&["SCRIPT", "FLUSH"]).await,
                    2 => stage.redis.restart().await,
                    3 => {
                        stage.redis.kill9();
                        stage.redis.start_again().await;
                    }
                    4 => stage.redis.ask::<()>(&["CLIENT", "PAUSE", "2000", "ALL"]).await,
                    _ => {}
                }
                tokio::time::sleep(lasts).await;
                stage.proxy.set(Fault::None);
            })
            .await;
    }
}
