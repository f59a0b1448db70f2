//! One node is emptied, restarted, or new.

use std::collections::BTreeSet;

use samovar::protocol::keys::slot;
use serde_json::json;

use super::Stage;
use crate::support::TestCluster;

const ENTRIES: usize = 60;

#[tokio::test]
async fn a_flushed_node_is_filled_and_makes_all_suspect() {
    let stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    for nth in 0..3 {
        // Nobody publishes these edits.
        stage.edit(&stage.keys);
        stage.cluster.nodes[nth].flush().await;
        stage.fresh().await;
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
