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
