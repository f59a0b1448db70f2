//! Data of a master are lost in ways that leave no trace on those that answer.

use std::collections::BTreeSet;

use samovar::protocol::keys::slot;

use super::{FRESH, MARKER, Stage, keys};
use crate::support::{TestCluster, TestRedis, eventually, eventually_within};

const ENTRIES: usize = 60;
/// Of four masters, the one that has hardly any of Samovar's keys but entries.
const QUIET: usize = 1;
const REVALIDATED: &str = "all values are revalidated";

/// Four masters that go on if one is dead, with their data after a restart.
async fn four() -> TestCluster {
    let options = TestRedis::options().append_only().arg("--cluster-require-full-coverage", "no");
    TestCluster::of(vec![options; 4], 0).await
}

async fn id(node: &TestRedis) -> String {
    node.ask(&["CLUSTER", "MYID"]).await
}

/// Returns the masters' own marks that there are.
async fn own_marks(cluster: &TestCluster) -> BTreeSet<String> {
    let mut marks = BTreeSet::new();
    for node in &cluster.nodes {
        marks.extend(node.ask::<Vec<String>>(&["KEYS", "samovar:marker:*"]).await);
    }
    marks
}

#[tokio::test]
async fn a_master_that_is_gone_with_its_data_makes_all_suspect() {
    let mut stage = Stage::warm(four().await, ENTRIES).await;
    let gone = id(&stage.cluster.nodes[QUIET]).await;
    stage.is_marked(&gone).await;
    // Nobody publishes these edits.
    stage.edit(&stage.keys);
    stage.cluster.nodes[QUIET].kill9();
    stage.cluster.seize(QUIET, 0).await;
    stage.fresh().await;
    assert!(stage.said(REVALIDATED) > 0);
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn a_promoted_master_that_was_restarted_makes_all_suspect() {
    let mut stage = Stage::warm(TestCluster::of(vec![TestRedis::options().append_only(); 3], 1).await, ENTRIES).await;
    stage.is_marked(&id(&stage.cluster.nodes[4]).await).await;
    let slot = slot(MARKER);
    let owner = stage.cluster.owner_of_slot(slot).await;
    // The worker does not look meanwhile.
    stage.worker.freeze();
    stage.cluster.nodes[owner].crash();
    let promoted = stage.cluster.replaced(owner, slot).await;
    stage.cluster.settled().await;
    stage.cluster.nodes[promoted].restart().await;
    stage.cluster.settled().await;
    stage.worker.thaw();
    eventually_within(FRESH, "the worker notices", async || stage.said(REVALIDATED) > 0).await;
}

#[tokio::test]
async fn marks_move_with_their_slots_and_leave_nothing_behind() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    stage.is_marked(&id(&stage.cluster.nodes[0]).await).await;
    let before = own_marks(&stage.cluster).await;
    assert_eq!(before.len(), 3);
    let new = stage.cluster.add_master().await;
    let marked: Vec<u16> = before.iter().map(|mark| slot(mark)).collect();
    stage.cluster.move_slots(marked, new).await;
    stage.is_marked(&id(&stage.cluster.nodes[new]).await).await;
    eventually("each master has one mark", async || {
        let marks = own_marks(&stage.cluster).await;
        if marks.len() == 4 && marks != before { Ok(()) } else { Err(marks) }
    })
    .await;
    assert_eq!(stage.said(REVALIDATED), 0, "nothing was lost");
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn a_silent_master_holds_up_no_mark_of_others() {
    let mut stage = Stage::warm(four().await, ENTRIES).await;
    stage.is_marked(&id(&stage.cluster.nodes[QUIET]).await).await;
    stage.cluster.nodes[QUIET].freeze();
    stage.cluster.nodes[2].restart().await;
    let info: String = stage.cluster.nodes[2].ask(&["INFO", "server"]).await;
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap();
    stage.is_marked(run).await;
    stage.cluster.nodes[QUIET].thaw();
    stage.cluster.settled().await;
    stage.edit(&keys(ENTRIES));
    stage.announce(&serde_json::json!({ "keys": keys(ENTRIES) }), 0).await;
    stage.fresh().await;
    assert_eq!(stage.said(REVALIDATED), 1, "it was one gap");
    assert!(stage.worker.is_running());
}
