//! A Redis Cluster: the worker and the library find each key where it lives, through reshards and failovers.
#![cfg(test)]

mod support;

use std::collections::BTreeSet;

use futures_util::future::join_all;
use samovar::protocol::keys::slot;
use support::{TestCluster, eventually};

/// Returns so many keys.
fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("art:{n}")).collect()
}

#[tokio::test]
async fn a_test_cluster_serves_all_slots() {
    let cluster = TestCluster::start().await;
    let mut link = cluster.connection().await;
    for key in keys(300) {
        redis::cmd("SET").arg(&key).arg(&key).exec_async(&mut link).await.unwrap();
    }
    let sizes: Vec<u64> = join_all(cluster.nodes.iter().map(|node| node.ask::<u64>(&["DBSIZE"]))).await;
    assert!(sizes.iter().sum::<u64>() == 300 && sizes.iter().all(|size| *size > 50), "{sizes:?}");
    for key in keys(30) {
        assert_eq!(cluster.nodes[cluster.owner(&key).await].get(&key).await, Some(key));
    }
}

#[tokio::test]
async fn a_test_cluster_survives_its_masters() {
    let mut cluster = TestCluster::replicated().await;
    cluster.replicates(3).await;
    let mut link = cluster.connection().await;
    redis::cmd("SET").arg("a").arg(1).exec_async(&mut link).await.unwrap();
    let (slot, owner) = (slot("a"), cluster.owner("a").await);
    eventually("the replica has it", async || cluster.nodes[owner + 3].ask::<u64>(&["DBSIZE"]).await == 1).await;
    cluster.nodes[owner].kill9();
    assert_eq!(cluster.replaced(owner, slot).await, owner + 3);
    cluster.settled().await;
    assert_eq!(cluster.get("a").await.as_deref(), Some("1"));
    cluster.nodes[owner].start_again().await;
    cluster.replicates(owner).await;
    cluster.settled().await;
    cluster.fail_over_to(owner).await;
    assert_eq!(cluster.owner("a").await, owner);
    cluster.nodes[owner].freeze();
    cluster.replaced(owner, slot).await;
    cluster.nodes[owner].thaw();
    cluster.replicates(owner).await;
    assert_eq!(cluster.get("a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_test_cluster_moves_its_slots() {
    let mut cluster = TestCluster::start().await;
    let mut link = cluster.connection().await;
    for key in keys(200) {
        redis::cmd("SET").arg(&key).arg(&key).exec_async(&mut link).await.unwrap();
    }
    let new = cluster.add_master().await;
    let slots: BTreeSet<u16> = keys(50).iter().map(|key| slot(key)).collect();
    cluster.move_slots(slots.iter().copied(), new).await;
    assert_eq!(cluster.nodes[new].ask::<usize>(&["DBSIZE"]).await, slots.len());
    let open = slot(&keys(1)[0]);
    cluster.open_slot(open, 0).await;
    for key in keys(200) {
        let found: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut link).await.unwrap();
        assert_eq!(found, Some(key));
    }
    cluster.close_slot(open, 0).await;
    cluster.settled().await;
    assert_eq!(cluster.owner_of_slot(open).await, 0);
}
