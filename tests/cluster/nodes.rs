//! One node is emptied, restarted, or new.

use std::collections::BTreeSet;

use samovar::entry::EntryKey;
use samovar::protocol::Keys;
use samovar::protocol::keys::slot;
use samovar::store::Store;
use serde_json::{Value, json};

use super::{Stage, connected};
use crate::support::{TestCluster, eventually, samovar};

const ENTRIES: usize = 60;

/// Waits until the log names the master that lost data.
async fn loss_is_told(stage: &mut Stage, nth: usize) {
    let master = format!("the master 127.0.0.1:{} ", stage.cluster.nodes[nth].port());
    stage.worker.wait_for_log(&["restart_monitor", &master]).await;
}

#[tokio::test]
async fn a_flushed_node_is_filled_and_makes_all_suspect() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let store = Store::new(connected(&stage.cluster).await, Keys::new("samovar", "samovar:invalidate"));
    let keys: Vec<EntryKey> = stage.keys.iter().map(|key| EntryKey::new(key.as_str())).collect();
    let unchecked = async || {
        let snapshots = store.snapshots(&keys).await.unwrap().into_iter();
        snapshots.filter(|entry| entry.ours().is_none_or(|meta| meta.last_attempt.rechecks.is_none())).count()
    };
    assert_eq!(unchecked().await, ENTRIES, "a new Cluster has lost nothing");
    for nth in 0..3 {
        // Nobody publishes these edits.
        stage.edit(&stage.keys);
        stage.cluster.nodes[nth].flush().await;
        stage.fresh().await;
        loss_is_told(&mut stage, nth).await;
        assert_eq!(unchecked().await, 0, "what was lost and what was in doubt is asked again");
    }
}

#[tokio::test]
async fn a_restarted_node_is_filled_and_makes_all_suspect() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    for nth in 0..3 {
        stage.edit(&stage.keys);
        stage.cluster.nodes[nth].restart().await;
        stage.cluster.settled().await;
        stage.fresh().await;
        loss_is_told(&mut stage, nth).await;
    }
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn a_node_that_forgot_its_scripts_is_told_again() {
    let stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    for nth in 0..3 {
        let () = stage.cluster.nodes[nth].ask(&["SCRIPT", "FLUSH"]).await;
        stage.edit_and_publish().await;
        stage.fresh().await;
        stage.handled().await;
    }
    assert_eq!(stage.said("revalidated"), 0, "nothing was lost");
}

#[tokio::test]
async fn a_new_master_with_slots_is_no_alarm() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let new = stage.cluster.add_master().await;
    let slots: BTreeSet<u16> = stage.keys[..ENTRIES / 2].iter().map(|key| slot(key)).collect();
    stage.cluster.move_slots(slots, new).await;
    // Its slot stays: a value in a slot that moves counts as written by another program, and may be fetched anew.
    let (quiet, told) = stage.keys.split_last().unwrap();
    let calls = stage.upstream.calls(&super::path(quiet));
    stage.edit(&stage.keys);
    stage.publish(&json!({ "keys": told })).await;
    stage.are_fresh(told).await;
    stage.publish(&json!({ "tags": ["none"] })).await;
    stage.handled().await;
    assert_eq!(stage.upstream.calls(&super::path(quiet)), calls, "nobody published its edit");
    assert_eq!(stage.said("revalidated"), 0, "nothing was lost");
    stage.edit(&stage.keys);
    stage.publish(&json!({ "patterns": ["art:*"] })).await;
    stage.fresh().await;
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn the_masters_of_a_cluster_are_shown() {
    let mut stage = Stage::warm(TestCluster::replicated().await, 3).await;
    let addresses = |of: std::ops::Range<usize>| -> Vec<String> {
        let mut ports: Vec<u16> = stage.cluster.nodes[of].iter().map(|node| node.port()).collect();
        ports.sort_unstable();
        ports.into_iter().map(|port| format!("127.0.0.1:{port}")).collect()
    };
    let (masters, replicas) = (addresses(0..3), addresses(3..6));
    let health = health(&mut stage).await;
    assert_eq!((&health["topology"], &health["masters"]), (&json!("cluster"), &json!(masters)), "{health}");
    let metrics = get(&mut stage, "metrics").await;
    assert!(metrics.contains("samovar_redis_masters{topology=\"cluster\"} 3\n"), "{metrics}");
    for master in &masters {
        let told = format!("samovar_redis_master_info{{topology=\"cluster\",master=\"{master}\"}} 1\n");
        assert!(metrics.contains(&told), "{told}: {metrics}");
    }
    let told = format!("Redis: a Cluster; the masters are {}.", masters.join(", "));
    for (args, told) in [(&["jobs"][..], &told), (&["check", "--diff"], &format!("{told} Replicas: "))] {
        let run = samovar(args.iter().copied()).redis_at(&stage.cluster.url()).jobs(&stage.jobs).run().await;
        let shown = run.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.contains(told), "{told}: {run:?}");
        assert!(args.len() == 1 || replicas.iter().all(|replica| shown.contains(replica)), "{run:?}");
    }
}

/// Each master still answers what concerns no key.
#[tokio::test]
async fn health_says_that_a_cluster_is_down() {
    let mut stage = Stage::warm(TestCluster::start().await, 3).await;
    let free = slot(&stage.keys[0]).to_string();
    for node in &stage.cluster.nodes {
        node.ask::<String>(&["CLUSTER", "DELSLOTS", &free]).await;
    }
    let ports: Vec<String> = stage.cluster.nodes.iter().map(|node| format!("(127.0.0.1:{})", node.port())).collect();
    eventually("health tells", async || {
        let health = health(&mut stage).await;
        let reasons = health["reasons"].to_string();
        let is_told = reasons.contains("ClusterDown") && ports.iter().any(|port| reasons.contains(port));
        let is_told = is_told && reasons.contains("redis-cli --cluster check");
        if health["redis"] == "disconnected" && is_told { Ok(()) } else { Err(health) }
    })
    .await;
}

async fn get(stage: &mut Stage, path: &str) -> String {
    let url = format!("{}/{path}", stage.worker.http().await);
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(10)).build().unwrap();
    client.get(url).send().await.unwrap().text().await.unwrap()
}

pub(super) async fn health(stage: &mut Stage) -> Value {
    serde_json::from_str(&get(stage, "health").await).unwrap()
}
