//! The Clusters of tests are what tests take them for.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use samovar::protocol::keys::slot;

use super::keys;
use crate::support::{TestCluster, TestRedis, eventually};

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
    assert_eq!(cluster.values(&["a".to_owned()]).await.unwrap(), [Some(1.into())]);
    cluster.nodes[owner].start_again().await;
    cluster.replicates(owner).await;
    cluster.settled().await;
    cluster.fail_over_to(owner).await;
    assert_eq!(cluster.owner("a").await, owner);
    cluster.nodes[owner].freeze();
    cluster.replaced(owner, slot).await;
    cluster.nodes[owner].thaw();
    cluster.settled().await;
    assert_eq!(cluster.values(&["a".to_owned()]).await.unwrap(), [Some(1.into())]);
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

/// Commands of a test to its server concern the whole Cluster, if the server is one.
#[tokio::test]
async fn a_cluster_stands_for_a_server() {
    let mut redis = TestRedis::options().append_only().cluster().start().await;
    let names = keys(60);
    let mut pipe = redis::pipe();
    for key in &names {
        pipe.set(key, key).ignore();
    }
    pipe.exec_async(&mut redis.connection().await).await.unwrap();
    assert_eq!(redis.ask::<u64>(&["DBSIZE"]).await, 60);
    assert_eq!(redis.keys("art:1*").await.len(), 11);
    let mut link = redis.connection().await;
    let values: Vec<Option<String>> = redis::cmd("MGET").arg(&names).query_async(&mut link).await.unwrap();
    assert_eq!(values, names.iter().cloned().map(Some).collect::<Vec<_>>());
    let mut steps = redis::pipe();
    steps.atomic().set("{a}1", 1).ignore().set("{a}2", 2).ignore().get("{a}1").get("{a}2");
    assert_eq!(steps.query_async::<(u8, u8)>(&mut link).await.unwrap(), (1, 2));
    let mut steps = redis::pipe();
    steps.atomic().set("a", 1).ignore().set("b", 2).ignore().get("a").get("b");
    assert_eq!(steps.query_async::<(u8, u8)>(&mut link).await.unwrap(), (1, 2));
    assert_eq!(redis.ask::<u64>(&["DEL", "a", "b", "c", "{a}1", "{a}2"]).await, 4);
    assert_eq!(redis.ask::<String>(&["RENAME", "art:1", "other"]).await, "OK");
    assert_eq!(redis.get("other").await.as_deref(), Some("art:1"));
    assert_eq!(redis.ask::<String>(&["EVAL", "return redis.call('GET', KEYS[1])", "1", "art:2"]).await, "art:2");
    assert_eq!(redis.ask::<String>(&["INFO", "server"]).await.matches("run_id:").count(), 3);
    let mut heard = redis.nodes().last().unwrap().client().get_async_pubsub().await.unwrap();
    heard.subscribe("news").await.unwrap();
    assert_eq!(redis.ask::<(String, u64)>(&["PUBSUB", "NUMSUB", "news"]).await, ("news".to_owned(), 1));
    assert_eq!(redis.publish("news", "here").await, 1);
    redis.restart().await;
    assert_eq!(redis.ask::<u64>(&["DBSIZE"]).await, 60);
    redis.kill9();
    redis.start_again().await;
    assert_eq!(redis.ask::<u64>(&["DBSIZE"]).await, 60);
    redis.freeze();
    redis.thaw();
    redis.flush().await;
    assert_eq!(redis.keys("*").await, Vec::<String>::new());
}
