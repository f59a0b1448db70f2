//! A master that Sentinels name: the worker and the library follow a failover, and nothing published is lost.
use std::time::{Duration, Instant};

use crate::support::{
    Art, Parts, SERVICE, TestRedis, TestSentinels, Upstream, WorkerProcess, eventually, number_from_environment,
    publish_safely, readable, samovar, version,
};
use redis::AsyncTypedCommands;
use samovar::cache::{Cache, Heard};
use samovar::redis::{Connection, RedisUrl};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);

async fn connected(url: &str) -> redis::RedisResult<Connection> {
    RedisUrl::parse(url, None).unwrap().manager(PATIENCE).await
}

/// Waits until writes through this connection arrive at this server.
async fn leads_to(connection: &mut Connection, server: &TestRedis) {
    eventually("the connection leads to the server", async || {
        connection.set("probe", server.port()).await.is_ok()
            && server.get("probe").await == Some(server.port().to_string())
    })
    .await;
}

/// A worker on Sentinels, and an edit that it answers on this server.
async fn answers(url: &str, server: &TestRedis, upstream: &Upstream, name: &str) {
    let parts = Parts::at(&RedisUrl::parse(url, None).unwrap()).await;
    let edited = upstream.edit(&format!("/art/{name}"));
    parts.invalidate(&json!({"keys": [format!("art:{name}")], "action": "warm"}).to_string()).await;
    version(server, name, edited).await;
}

#[tokio::test]
async fn both_forms_lead_to_the_master() {
    let all = TestSentinels::start().await;
    let ports = all.ports();
    for url in [
        all.url(),
        format!("redis+sentinel://127.0.0.1:{}/{SERVICE}", ports[1]),
        format!("redis://127.0.0.1:{},127.0.0.1:{},{SERVICE}", ports[0], ports[2]),
    ] {
        let mut connection = connected(&url).await.unwrap();
        connection.set("by", &url).await.unwrap();
        assert_eq!(all.servers[0].get("by").await, Some(url));
    }
}

#[tokio::test]
async fn a_connection_follows_a_failover() {
    let mut all = TestSentinels::start().await;
    // One Sentinel is enough: it tells of the others.
    let mut connection = connected(&format!("redis+sentinel://127.0.0.1:{}/{SERVICE}", all.ports()[0])).await.unwrap();
    leads_to(&mut connection, &all.servers[0]).await;
    all.servers[0].kill9();
    all.named(&all.servers[1]).await;
    leads_to(&mut connection, &all.servers[1]).await;
    all.kill9(0);
    all.servers[0].start_again().await;
    all.replicates(&all.servers[0]).await;
    all.servers[1].kill9();
    all.named(&all.servers[0]).await;
    leads_to(&mut connection, &all.servers[0]).await;
}

#[tokio::test]
async fn a_master_that_wakes_after_a_failover_is_left_alone() {
    let all = TestSentinels::start().await;
    let mut connection = connected(&all.url()).await.unwrap();
    let cache = Cache::builder(all.url().as_str()).prefix("art").bound(PATIENCE).build().await.unwrap();
    let mut subscription = cache.subscribe::<String>("news").await;
    leads_to(&mut connection, &all.servers[0]).await;
    all.servers[0].freeze();
    all.named(&all.servers[1]).await;
    leads_to(&mut connection, &all.servers[1]).await;
    all.servers[0].thaw();
    assert_eq!(subscription.next().await, Heard::Gap, "it is made anew, at the new master");
    for n in 0..200 {
        connection.set("counted", n).await.unwrap();
        assert_eq!(all.servers[1].get("counted").await, Some(n.to_string()));
    }
    all.servers[1].publish("news", "\"here\"").await;
    assert_eq!(subscription.next().await, Heard::Message("here".to_owned()));
}

#[tokio::test]
async fn a_silent_sentinel_delays_nothing() {
    let mut all = TestSentinels::start().await;
    all.freeze(0);
    let mut connection = connected(&all.url()).await.unwrap();
    leads_to(&mut connection, &all.servers[0]).await;
    all.servers[0].kill9();
    leads_to(&mut connection, &all.servers[1]).await;
}

#[tokio::test]
async fn a_worker_answers_again_after_a_failover() {
    let (mut all, upstream) = tokio::join!(TestSentinels::start(), Upstream::start());
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker: WorkerProcess = samovar(["worker"]).redis_at(&all.url()).jobs(&jobs).spawn();
    readable(&all.servers[0], "a").await;
    answers(&all.url(), &all.servers[0], &upstream, "b").await;
    eventually("the replica has it", async || all.servers[1].get("art:b").await.is_some()).await;
    eventually("the worker hears, and has checked what was before", async || {
        let records: Vec<String> = all.servers[0].ask(&["HVALS", "samovar:ears"]).await;
        if records.iter().any(|record| record.split(' ').count() == 4) { Ok(()) } else { Err(records) }
    })
    .await;
    all.servers[0].kill9();
    let edited = upstream.edit("/art/a");
    all.named(&all.servers[1]).await;
    // Nobody publishes this edit: a failover makes everything suspect.
    version(&all.servers[1], "a", edited).await;
    answers(&all.url(), &all.servers[1], &upstream, "c").await;
    worker.wait_for_log(&["another master"]).await;
    let new = format!("the master 127.0.0.1:{} was restarted, or has taken another one's place", all.servers[1].port());
    worker.wait_for_log(&[&new]).await;
    worker.wait_for_log(&["nobody was listening"]).await;
    let gap = |line: &String| line.contains("are revalidated") || line.contains("are fetched again");
    let gaps: Vec<String> = worker.log().into_iter().filter(gap).collect();
    assert!(gaps.len() > 1 && gaps.iter().filter(|line| !line.contains("the gap goes on: ")).count() == 1, "{gaps:?}");
    assert!(worker.is_running());
}

/// Nothing else must be there before the message can be sent.
#[tokio::test]
async fn an_invalidation_is_sent_over_a_failover() {
    let (mut all, upstream) = tokio::join!(TestSentinels::start(), Upstream::start());
    let jobs = Art::of(&upstream).folder();
    all.servers[0].kill9();
    let sent = samovar(["invalidate", "art:a"]).redis_at(&all.url()).jobs(&jobs).run().await;
    assert_eq!(sent.code, Some(0), "{sent:?}");
    assert_eq!(all.servers[1].ask::<usize>(&["XLEN", "samovar:inbox"]).await, 1);
}

#[tokio::test]
async fn the_master_and_its_sentinels_are_shown() {
    let (mut all, upstream) = tokio::join!(TestSentinels::start(), Upstream::start());
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = samovar(["worker"]).redis_at(&all.url()).jobs(&jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    readable(&all.servers[0], "a").await;
    let http = worker.http().await;
    let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    let get = async |path: &str| client.get(format!("{http}{path}")).send().await.unwrap().text().await.unwrap();
    let (master, url) = (format!("127.0.0.1:{}", all.servers[0].port()), all.url());
    let replicas: Vec<String> = all.servers[1..].iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    let shown = async |answering: usize| {
        eventually(&format!("{answering} of 3 Sentinels answer"), async || {
            let health: Value = serde_json::from_str(&get("/health").await).unwrap();
            let told = json!({"master": master, "answering": answering, "known": 3});
            if health["sentinels"] == told { Ok(()) } else { Err(health) }
        })
        .await;
        let health: Value = serde_json::from_str(&get("/health").await).unwrap();
        assert_eq!((&health["topology"], &health["masters"]), (&json!("sentinel"), &json!([master])), "{health}");
        let metrics = get("/metrics").await;
        let masters = format!("samovar_redis_master_info{{topology=\"sentinel\",master=\"{master}\"}} 1\n");
        assert!(metrics.contains(&masters), "{metrics}");
        assert!(metrics.contains(&format!("\nsamovar_sentinels_answering {answering}\n")), "{metrics}");
        assert!(metrics.contains("\nsamovar_sentinels_known 3\n"), "{metrics}");
        for args in [&["jobs"][..], &["check", "--diff"]] {
            let run = samovar(args.iter().copied()).redis_at(&url).jobs(&jobs).run().await;
            let told = format!("Redis: the master is {master}; {answering} of 3 Sentinels answer.");
            assert!(run.stdout.contains(&told), "{run:?}");
            if args[0] == "check" {
                let told = run.stdout.split("Replicas: ").nth(1).unwrap_or_default().replace("\n  ", " ");
                assert!(replicas.iter().all(|replica| told.contains(replica)), "{replicas:?}: {run:?}");
                assert_eq!(told.split("Sentinels: ").nth(1).unwrap_or_default().matches("127.0.0.1:").count(), 3);
            }
        }
    };
    shown(3).await;
    all.kill9(0);
    shown(2).await;
}

#[tokio::test]
async fn a_worker_and_a_service_start_without_sentinels() {
    let (mut all, upstream) = tokio::join!(TestSentinels::start(), Upstream::start());
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    for nth in 0..3 {
        all.kill9(nth);
    }
    let run = samovar(["jobs"]).redis_at(&all.url()).jobs(&jobs).run().await;
    assert!(run.code == Some(69) && run.stderr.contains("no Sentinel answers"), "{run:?}");
    let builder = Cache::builder(all.url().as_str()).prefix("art").bound(Duration::from_millis(500));
    let cache = builder.build().await.unwrap();
    assert_eq!(cache.get::<u64>("a").await.unwrap(), None);
    let mut worker = samovar(["worker"]).redis_at(&all.url()).jobs(&jobs).spawn();
    worker.wait_for_log(&["waits for Redis", "no Sentinel answers"]).await;
    all.start_again(1);
    readable(&all.servers[0], "a").await;
    eventually("the service reads it", async || cache.get::<Value>("a").await.is_ok_and(|a| a.is_some())).await;
}

/// Editors, two workers, and masters that die or freeze again and again: `SAMOVAR_TEST_SECONDS` sets how long. A master
/// that froze wakes when its replica has taken its place.
#[tokio::test]
async fn no_edit_that_a_replica_has_is_lost_in_failovers() {
    let lasts = Duration::from_secs(number_from_environment("SAMOVAR_TEST_SECONDS").unwrap_or(8));
    let (mut all, upstream) = tokio::join!(TestSentinels::start(), Upstream::start());
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    for name in &names {
        upstream.edit(&format!("/art/{name}"));
    }
    let jobs = Art::of(&upstream).list(&names).folder();
    let spawn = || samovar(["worker"]).redis_at(&all.url()).jobs(&jobs).env("SAMOVAR_CLAIM", "2s").spawn();
    let mut workers = [spawn(), spawn()];
    for name in &names {
        readable(&all.servers[0], name).await;
    }
    let (url, begun) = (all.url(), Instant::now());
    let (mut master, mut failovers, mut edits) = (0, 0, 0);
    while begun.elapsed() < lasts || failovers < 2 {
        let editing = async {
            let mut redis = RedisUrl::parse(&url, None).unwrap().lazy_manager(PATIENCE).unwrap();
            for name in &names {
                upstream.edit(&format!("/art/{name}"));
                publish_safely(&mut redis, &json!({ "keys": [format!("art:{name}")] })).await;
            }
        };
        let failing = async {
            all.replicates(&all.servers[1 - master]).await;
            let freezes = failovers % 2 == 0;
            if freezes {
                all.servers[master].freeze()
            } else {
                all.servers[master].kill9()
            }
            all.named(&all.servers[1 - master]).await;
            if freezes {
                all.servers[master].thaw()
            } else {
                all.servers[master].start_again().await
            }
            all.replicates(&all.servers[master]).await;
        };
        tokio::join!(editing, failing);
        (master, failovers, edits) = (1 - master, failovers + 1, edits + names.len());
    }
    for name in &names {
        version(&all.servers[master], name, upstream.version(&format!("/art/{name}"))).await;
    }
    eprintln!("{failovers} failovers, {edits} edits in {:?}", begun.elapsed());
    assert!(workers.iter_mut().all(WorkerProcess::is_running));
}

#[tokio::test]
async fn a_service_keeps_its_near_cache_true_over_a_failover() {
    let mut all = TestSentinels::start().await;
    let cache = |near: u64| {
        let builder = Cache::builder(all.url().as_str()).prefix("art").bound(PATIENCE);
        builder.near(near, Duration::from_secs(60)).announce(true).build()
    };
    let (reader, writer) = (cache(1 << 20).await.unwrap(), cache(1 << 20).await.unwrap());
    writer.set("a", &1).await.unwrap();
    eventually("the reader has it", async || reader.get::<u64>("a").await.ok().flatten() == Some(1)).await;
    all.replicates(&all.servers[1]).await;
    all.servers[0].kill9();
    all.named(&all.servers[1]).await;
    // Until the writer leads to the new master, its writes are dropped.
    eventually("the writer writes again", async || {
        writer.set("a", &2).await.unwrap();
        all.servers[1].get("art:a").await == Some("2".to_owned())
    })
    .await;
    for n in 2..50 {
        writer.set("a", &n).await.unwrap();
        eventually("the reader reads it", async || match reader.get::<u64>("a").await {
            Ok(Some(read)) if read == n => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

#[tokio::test]
async fn a_worker_goes_on_without_sentinels_and_says_so() {
    let (mut all, upstream) = tokio::join!(TestSentinels::start(), Upstream::start());
    upstream.edit("/art/a");
    let jobs = Art::of(&upstream).list(["a"]).folder();
    let mut worker = samovar(["worker"]).redis_at(&all.url()).jobs(&jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    readable(&all.servers[0], "a").await;
    for nth in 0..3 {
        all.kill9(nth);
    }
    worker.wait_for_log(&["connections stay where they are"]).await;
    let http = worker.http().await;
    let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    eventually("health says so", async || {
        let health = client.get(format!("{http}/health")).send().await.unwrap().text().await.unwrap();
        (health.contains("degraded") && health.contains("the Sentinels do not name the master"))
            .then_some(())
            .ok_or(health)
    })
    .await;
    let edited = upstream.edit("/art/a");
    crate::support::publish(&all.servers[0], "art:a").await;
    version(&all.servers[0], "a", edited).await;
}

#[tokio::test]
async fn what_is_wrong_with_sentinels_is_told() {
    let all = TestSentinels::of(TestRedis::options().password("Mpass"), Some("Spass")).await;
    let url = |login: &str, name: &str, options: &str| {
        format!("redis+sentinel://{login}127.0.0.1:{}/{name}?{options}", all.ports()[0])
    };
    let plain = TestRedis::options().direct().start().await;
    let login = ":Mpass@";
    let right = "sentinel_password=Spass";
    connected(&url(login, SERVICE, right)).await.unwrap().set("a", 1).await.unwrap();
    for (url, part) in [
        (url(login, "other", right), "knows cache, not `other`"),
        (url(login, SERVICE, ""), "sentinel_password"),
        (url(login, SERVICE, "sentinel_password=wrong"), "sentinel_password"),
        (url(":wrong@", SERVICE, right), "authentication failed"),
        ("redis+sentinel://127.0.0.1:1/cache".to_owned(), "no Sentinel answers (127.0.0.1:1"),
        (format!("redis+sentinel://127.0.0.1:{}/cache", plain.port()), "it is no Sentinel"),
    ] {
        let error = connected(&url).await.unwrap_err().to_string();
        assert!(error.contains(part), "{url}: {error}");
        assert!(!error.contains("wrong") && !error.contains("pass@") && !error.contains("Spass"), "{error}");
    }
}

#[tokio::test]
async fn the_address_of_a_sentinel_is_recognised() {
    let all = TestSentinels::start().await;
    let jobs = Art::of(&Upstream::start().await).folder();
    let url = format!("redis://127.0.0.1:{}", all.ports()[0]);
    let run = samovar(["jobs"]).jobs(&jobs).redis_at(&url).run().await;
    let told = "the server is a Sentinel, which knows cache: write redis+sentinel://";
    assert!(run.code == Some(69) && run.stderr.contains(told), "{run:?}");
}
