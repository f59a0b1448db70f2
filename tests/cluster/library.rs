//! The cache library on three masters.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use samovar::cache::Cache;

use crate::support::{TestCluster, TestRedis, eventually};

const KEYS: usize = 300;
const BOUND: Duration = Duration::from_secs(2);

fn names() -> Vec<String> {
    (0..KEYS).map(|n| n.to_string()).collect()
}

async fn cache(cluster: &TestCluster) -> Cache {
    Cache::builder(cluster.url().as_str()).prefix("art").bound(BOUND).build().await.unwrap()
}

#[tokio::test]
async fn many_values_are_read_written_and_cleared_at_once() {
    let cluster = TestCluster::start().await;
    let cache = cache(&cluster).await;
    let all: HashMap<String, usize> = names().into_iter().zip(0..).collect();
    cache.set_many(&all).await.unwrap();
    assert_eq!(cache.get_many::<usize, _>(names()).await.unwrap(), all);
    assert_eq!(cache.clear_pattern("1*").await.unwrap(), 111);
    assert_eq!(cache.get_many::<usize, _>(names()).await.unwrap().len(), KEYS - 111);
    assert_eq!(cache.clear_pattern("*").await.unwrap(), KEYS as u64 - 111);
    assert!(cache.get_many::<usize, _>(names()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_dead_master_takes_only_its_own_values_along() {
    let options = TestRedis::options().arg("--cluster-require-full-coverage", "no");
    let mut cluster = TestCluster::of(vec![options; 3], 0).await;
    let cache = cache(&cluster).await;
    let all: HashMap<String, usize> = names().into_iter().zip(0..).collect();
    cache.set_many(&all).await.unwrap();
    let mut lost = BTreeSet::new();
    for name in names() {
        if cluster.owner(&format!("art:{name}")).await == 1 {
            lost.insert(name);
        }
    }
    cluster.nodes[1].kill9();
    let kept: HashMap<String, usize> = all.into_iter().filter(|(name, _)| !lost.contains(name)).collect();
    for _ in 0..5 {
        assert_eq!(cache.get_many::<usize, _>(names()).await.unwrap(), kept, "the others answer");
    }
    let new: HashMap<String, usize> = names().into_iter().zip(1_000..).collect();
    cache.set_many(&new).await.unwrap();
    let kept: HashMap<String, usize> = new.into_iter().filter(|(name, _)| !lost.contains(name)).collect();
    assert_eq!(cache.get_many::<usize, _>(names()).await.unwrap(), kept, "the others are written");
    for (name, value) in &kept {
        assert_eq!(cache.get::<usize>(name).await.unwrap(), Some(*value));
    }
    assert!(cache.clear_pattern("*").await.is_err(), "not all were cleared");
    cluster.nodes[1].start_again().await;
    cluster.settled().await;
    eventually("all are written again", async || {
        cache.set_many(names().into_iter().map(|name| (name, 1))).await.unwrap();
        cache.get_many::<usize, _>(names()).await.unwrap().len() == KEYS
    })
    .await;
    assert_eq!(cache.clear_pattern("*").await.unwrap(), KEYS as u64);
}

/// Reads a value until its master counts as dead.
async fn given_up(cache: &Cache, name: &str) {
    eventually("a breaker is open", async || {
        assert_eq!(cache.get::<usize>(name).await.unwrap(), None);
        cache.stats().degraded
    })
    .await;
}

/// The values are on other masters than the sums of one job, whose master dies.
#[tokio::test]
async fn a_dead_master_keeps_no_report_of_others() {
    let options = TestRedis::options().arg("--cluster-require-full-coverage", "no");
    let mut cluster = TestCluster::of(vec![options; 3], 0).await;
    let dead = (cluster.owner("samovar:jobs").await + 1) % 3;
    let alive = (dead + 1) % 3;
    let mut jobs = Vec::new();
    for nth in [dead, alive] {
        let all = (0..KEYS).map(|n| format!("samovar:reported:{{job{n}}}"));
        let reported = cluster.key_on(nth, all).await;
        let job = reported["samovar:reported:{".len()..reported.len() - 1].to_owned();
        let name = cluster.key_on(alive, names().into_iter().map(|name| format!("{job}:{name}"))).await;
        jobs.push((reported, name[job.len() + 1..].to_owned(), job));
    }
    let mut link = cluster.connection().await;
    for (_, _, job) in &jobs {
        let described = format!(r#"{{"key": "{job}:{{name}}"}}"#);
        redis::cmd("HSET").arg("samovar:jobs").arg(job).arg(described).exec_async(&mut link).await.unwrap();
    }
    let cache = cache(&cluster).await;
    let [of_dead, of_alive] = [0, 1].map(|n: usize| (cache.with_prefix(&jobs[n].2).unwrap(), jobs[n].1.as_str()));
    let read = async |(cache, name): &(Cache, &str)| assert_eq!(cache.get::<u8>(name).await.unwrap(), None);
    cluster.nodes[dead].kill9();
    eventually("reports have opened a breaker", async || {
        read(&of_dead).await;
        cache.stats().degraded
    })
    .await;
    for _ in 0..3 {
        let misses = redis::cmd("HGET").arg(&jobs[1].0).arg("misses").to_owned();
        let before: Option<u64> = misses.query_async(&mut link).await.unwrap();
        read(&of_dead).await;
        read(&of_alive).await;
        eventually("the other job's are reported", async || {
            misses.query_async::<Option<u64>>(&mut link).await.unwrap() > before
        })
        .await;
    }
    cluster.nodes[dead].start_again().await;
    cluster.settled().await;
    eventually("a service that only reads recovers", async || {
        read(&of_dead).await;
        !cache.stats().degraded
    })
    .await;
}

#[tokio::test]
async fn a_dead_master_opens_no_breaker_of_others() {
    let options = TestRedis::options().arg("--cluster-require-full-coverage", "no");
    let mut cluster = TestCluster::of(vec![options; 3], 0).await;
    let cache = cache(&cluster).await;
    cache.set_many(names().into_iter().zip(0_usize..)).await.unwrap();
    let on = async |nth: usize| cluster.key_on(nth, names().into_iter().map(|name| format!("art:{name}"))).await;
    let [one, dead, other] = [on(0).await, on(1).await, on(2).await].map(|key| key["art:".len()..].to_owned());
    cluster.nodes[1].kill9();
    for _ in 0..3 {
        given_up(&cache, &dead).await;
        for name in [&one, &other] {
            assert!(cache.get::<usize>(name).await.unwrap().is_some(), "its master answers");
            cache.set(name, &1).await.unwrap();
        }
    }
    assert_eq!(cache.stats().dropped_writes, 0);
    cluster.nodes[1].start_again().await;
    cluster.settled().await;
    eventually("the dead one is back", async || {
        cache.set(&dead, &1).await.unwrap();
        cache.get::<usize>(&dead).await.unwrap() == Some(1) && !cache.stats().degraded
    })
    .await;
}

#[tokio::test]
async fn a_breaker_ends_with_its_master() {
    let cluster = TestCluster::replicated().await;
    let cache = cache(&cluster).await;
    cache.set("0", &1).await.unwrap();
    let owner = cluster.owner("art:0").await;
    cluster.replicates(owner + 3).await;
    cluster.nodes[owner].crash();
    given_up(&cache, "0").await;
    eventually("the replica is read", async || cache.get::<usize>("0").await.unwrap() == Some(1)).await;
    assert!(!cache.stats().degraded, "the dead master is none any more");
}

#[tokio::test]
async fn a_near_cache_hears_of_writes_on_all_masters() {
    let cluster = TestCluster::start().await;
    let near = async || {
        let builder = Cache::builder(cluster.url().as_str()).prefix("art").bound(BOUND).announce(true);
        builder.near(1 << 20, Duration::from_secs(600)).build().await.unwrap()
    };
    let (reader, writer) = (near().await, near().await);
    for round in 0..3 {
        for name in names().iter().step_by(10) {
            writer.set(name, &round).await.unwrap();
            eventually("the reader reads it", async || match reader.get::<u64>(name).await {
                Ok(Some(read)) if read == round => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        }
    }
}
