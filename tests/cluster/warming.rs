//! Warming and reading through three masters.

use serde_json::json;

use super::{Stage, keys};
use crate::support::TestCluster;

/// Entries, so many that each master has about a third.
const ENTRIES: usize = 300;

#[tokio::test]
async fn edits_reach_every_entry_wherever_it_lives() {
    let stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    for nth in 0..3 {
        stage.edit(&stage.keys);
        stage.announce(&json!({ "keys": stage.keys }), nth).await;
        stage.fresh().await;
    }
    for message in [
        json!({ "keys": stage.keys }),
        json!({ "tags": ["all"] }),
        json!({ "patterns": ["art:*"] }),
        json!({ "jobs": ["art"] }),
    ] {
        stage.edit(&stage.keys);
        stage.publish(&message).await;
        stage.fresh().await;
        stage.handled().await;
    }
}

#[tokio::test]
async fn an_eviction_reaches_every_entry_wherever_it_lives() {
    let stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let absent = vec![None; ENTRIES];
    for message in [json!({ "tags": ["all"], "action": "evict" }), json!({ "patterns": ["art:*"], "action": "evict" })]
    {
        stage.publish(&message).await;
        stage.handled().await;
        assert_eq!(stage.cluster.values(&stage.keys).await.unwrap(), absent, "{message}");
        stage.edit(&stage.keys);
        stage.publish(&json!({ "keys": stage.keys, "action": "warm" })).await;
        stage.fresh().await;
    }
}

#[tokio::test]
async fn one_seed_of_the_url_is_enough() {
    let cluster = TestCluster::start().await;
    for node in &cluster.nodes {
        let url = format!("redis+cluster://127.0.0.1:{}", node.port());
        let mut connection = super::RedisUrl::parse(&url, None).unwrap().manager(super::PATIENCE).await.unwrap();
        for key in keys(30) {
            redis::cmd("SET").arg(&key).arg(&url).exec_async(&mut connection).await.unwrap();
        }
        let values: Vec<Option<String>> =
            redis::cmd("MGET").arg(keys(30)).query_async(&mut cluster.connection().await).await.unwrap();
        assert_eq!(values, vec![Some(url); 30]);
    }
}
