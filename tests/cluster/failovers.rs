//! Masters die, freeze and are replaced under load.

use std::cell::Cell;

use redis::AsyncTypedCommands;
use samovar::protocol::keys::slot;

use super::{INBOX, Stage, connected};
use crate::support::{TestCluster, eventually};

/// Entries that are edited all the time.
const ENTRIES: usize = 40;

/// Lets editors edit while the master that owns this key dies, until its replica has taken its place.
async fn the_master_dies(key: &str) {
    let mut stage = Stage::warm(TestCluster::replicated().await, ENTRIES).await;
    let (owner, is_replaced) = (stage.cluster.owner(key).await, Cell::new(false));
    let editing = async {
        while !is_replaced.get() {
            stage.edit_and_publish().await;
        }
        stage.edit_and_publish().await;
    };
    let dying = async {
        stage.cluster.nodes[owner].crash();
        stage.cluster.replaced(owner, slot(key)).await;
        stage.cluster.settled().await;
        is_replaced.set(true);
    };
    tokio::join!(editing, dying);
    stage.fresh().await;
    stage.handled().await;
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn the_master_of_an_entry_dies_under_load() {
    the_master_dies("art:0").await;
}

#[tokio::test]
async fn the_master_of_the_inbox_dies_under_load() {
    the_master_dies(INBOX).await;
}

#[tokio::test]
async fn the_master_of_the_queue_dies_under_load() {
    the_master_dies("{samovar:queue}:active").await;
}

#[tokio::test]
async fn the_master_of_the_agenda_dies_under_load() {
    the_master_dies("samovar:agenda:{art}").await;
}

#[tokio::test]
async fn the_master_of_the_tag_dies_under_load() {
    the_master_dies("samovar:tag:{all}:all").await;
}

#[tokio::test]
async fn an_edit_that_nobody_published_is_found_after_a_failover() {
    let stage = Stage::warm(TestCluster::replicated().await, ENTRIES).await;
    stage.edit(&stage.keys);
    let owner = stage.cluster.owner("art:0").await;
    stage.cluster.nodes[owner].crash();
    stage.fresh().await;
}

#[tokio::test]
async fn a_rolling_restart_loses_no_edit() {
    let mut stage = Stage::warm(TestCluster::replicated().await, ENTRIES).await;
    let is_over = Cell::new(false);
    let editing = async {
        while !is_over.get() {
            stage.edit_and_publish().await;
        }
        stage.edit_and_publish().await;
    };
    let rolling = async {
        for nth in 3..6 {
            stage.cluster.fail_over_to(nth).await;
        }
        is_over.set(true);
    };
    tokio::join!(editing, rolling);
    stage.fresh().await;
    stage.handled().await;
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn a_master_that_wakes_after_a_failover_is_left_alone() {
    let cluster = TestCluster::replicated().await;
    let mut connection = connected(&cluster).await;
    connection.set("counted", -1).await.unwrap();
    let owner = cluster.owner("counted").await;
    cluster.nodes[owner].freeze();
    let new = cluster.replaced(owner, slot("counted")).await;
    eventually("writes arrive at the new master", async || connection.set("counted", 0).await).await;
    cluster.nodes[owner].thaw();
    for n in 0..200 {
        connection.set("counted", n).await.unwrap();
        assert_eq!(cluster.nodes[new].get("counted").await, Some(n.to_string()));
    }
}

#[tokio::test]
async fn a_frozen_master_delays_no_other() {
    let cluster = TestCluster::replicated().await;
    let mut connection = connected(&cluster).await;
    let frozen = cluster.owner("art:0").await;
    let elsewhere = cluster.key_on((frozen + 1) % 3, super::keys(100).into_iter()).await;
    connection.set(&elsewhere, 0).await.unwrap();
    cluster.nodes[frozen].freeze();
    for n in 0..50 {
        connection.set(&elsewhere, n).await.unwrap();
    }
    eventually("the replica takes writes", async || connection.set("art:0", 1).await).await;
}
