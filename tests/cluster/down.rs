//! A master without a replica is down for long: what needs it waits, and is done when it is back.

use std::time::Duration;

use samovar::cache::Cache;
use samovar::protocol::keys::slot;
use serde_json::{Value, json};

use super::nodes::health;
use super::{FRESH, Stage};
use crate::support::{TestCluster, TestRedis, eventually, eventually_within};

const ENTRIES: usize = 60;
/// Of four masters, the one that has hardly any of Samovar's keys but entries.
const DOWN: usize = 1;
/// The silence after which nodes take another for dead. Until then, a Cluster serves what the others have.
const DEAD: &str = "2000";

/// Four masters, with their data after a restart.
async fn four(full_coverage: &str) -> TestCluster {
    let options = TestRedis::options().append_only().arg("--cluster-require-full-coverage", full_coverage);
    let cluster = TestCluster::of(vec![options; 4], 0).await;
    for node in &cluster.nodes {
        let () = node.ask(&["CONFIG", "SET", "cluster-node-timeout", DEAD]).await;
    }
    cluster
}

async fn cache(cluster: &TestCluster) -> Cache {
    let builder = Cache::builder(cluster.url().as_str()).prefix("art");
    builder.bound(Duration::from_millis(500)).build().await.unwrap()
}

/// Returns the entries of the master that goes down, and those of others.
async fn divided(stage: &Stage) -> (Vec<String>, Vec<String>) {
    let slots = stage.cluster.slots(DOWN).await;
    stage.keys.iter().cloned().partition(|key| slots.iter().any(|range| range.contains(&slot(key))))
}

async fn read(cache: &Cache, key: &str) -> Option<Value> {
    cache.get(&key["art:".len()..]).await.unwrap()
}

#[tokio::test]
async fn without_coverage_the_others_go_on() {
    let mut stage = Stage::warm(four("no").await, ENTRIES).await;
    let (cache, (gone, others)) = (cache(&stage.cluster).await, divided(&stage).await);
    let told = format!("127.0.0.1:{} does not answer", stage.cluster.nodes[DOWN].port());
    stage.cluster.nodes[DOWN].kill9();
    eventually_within(FRESH, "health names the master", async || {
        let health = health(&mut stage).await;
        let is_told = health["status"] == "degraded" && health["reasons"].to_string().contains(&told);
        if is_told { Ok(()) } else { Err(health) }
    })
    .await;
    stage.edit(&others);
    stage.publish(&json!({ "keys": others })).await;
    stage.are_fresh(&others).await;
    assert_eq!(read(&cache, &gone[0]).await, None);
    for key in &others {
        assert!(read(&cache, key).await.is_some(), "{key} is on another master");
    }
    stage.edit(&stage.keys);
    stage.publish(&json!({ "patterns": ["art:*"] })).await;
    is_back(stage, &cache).await;
}

#[tokio::test]
async fn with_coverage_all_wait_for_a_master_that_is_down() {
    let mut stage = Stage::warm(four("yes").await, ENTRIES).await;
    let (cache, (_, others)) = (cache(&stage.cluster).await, divided(&stage).await);
    assert!(read(&cache, &others[0]).await.is_some());
    stage.cluster.nodes[DOWN].kill9();
    eventually_within(FRESH, "health says that the Cluster is down", async || {
        let health = health(&mut stage).await;
        let is_told = health["redis"] == "disconnected" && health["reasons"].to_string().contains("ClusterDown");
        if is_told { Ok(()) } else { Err(health) }
    })
    .await;
    eventually("the library does without Redis", async || read(&cache, &others[0]).await.is_none()).await;
    assert!(cache.stats().degraded_reads > 0);
    stage.edit(&stage.keys);
    is_back(stage, &cache).await;
}

/// Starts the master again, and waits until nothing is missing any more.
async fn is_back(mut stage: Stage, cache: &Cache) {
    stage.cluster.nodes[DOWN].start_again().await;
    stage.cluster.settled().await;
    stage.publish(&json!({ "keys": stage.keys })).await;
    stage.fresh().await;
    stage.handled().await;
    for key in &stage.keys {
        eventually("the library reads it", async || read(cache, key).await.is_some()).await;
    }
    eventually_within(FRESH, "health is well", async || match health(&mut stage).await {
        health if health["status"] == "healthy" => Ok(()),
        health => Err(health),
    })
    .await;
    assert!(stage.worker.is_running());
}
