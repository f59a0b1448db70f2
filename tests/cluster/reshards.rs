//! Slots move under load.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use samovar::cache::Cache;
use samovar::protocol::keys::slot;
use serde_json::{Value, json};

use super::{INBOX, Stage, keys};
use crate::support::TestCluster;

const ENTRIES: usize = 40;
/// Counters that are counted up while slots move.
const COUNTERS: usize = 20;

async fn cache(cluster: &TestCluster) -> Cache {
    Cache::builder(cluster.url().as_str()).prefix("art").bound(Duration::from_secs(10)).build().await.unwrap()
}

/// Moves the slots of these keys to the next masters, and back.
async fn there_and_back(cluster: &TestCluster, keys: &[String]) {
    for key in keys {
        let (slot, owner) = (slot(key), cluster.owner(key).await);
        cluster.move_slots([slot], (owner + 1) % 3).await;
        cluster.move_slots([slot], owner).await;
    }
}

#[tokio::test]
async fn no_edit_is_lost_while_slots_move() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let of_samovar =
        [INBOX, "{samovar:queue}:active", "samovar:agenda:{art}", "samovar:{schedules}", "samovar:tag:{all}:all"];
    let moved: Vec<String> = of_samovar.map(str::to_owned).into_iter().chain(keys(ENTRIES / 4)).collect();
    let is_over = Cell::new(false);
    let editing = async {
        while !is_over.get() {
            stage.edit_and_publish().await;
        }
        stage.edit_and_publish().await;
    };
    let reading = async {
        let cache = cache(&stage.cluster).await;
        while !is_over.get() {
            for key in &stage.keys {
                let found = cache.get::<Value>(&key["art:".len()..]).await.unwrap();
                assert!(found.is_some(), "{key} is gone");
            }
        }
    };
    let moving = async {
        there_and_back(&stage.cluster, &moved).await;
        is_over.set(true);
    };
    tokio::join!(editing, reading, moving);
    stage.fresh().await;
    stage.handled().await;
    assert!(stage.worker.is_running());
    assert_eq!(stage.said("revalidated"), 0, "nothing was lost");
}

#[tokio::test]
async fn counts_stay_exact_while_slots_move() {
    let cluster = TestCluster::start().await;
    let (cache, is_over) = (cache(&cluster).await, Cell::new(false));
    let counters: Vec<String> = (0..COUNTERS).map(|n| n.to_string()).collect();
    let counting = async {
        let mut rounds = 0;
        while !is_over.get() {
            for counter in &counters {
                cache.increment(counter, 1).await.unwrap();
            }
            rounds += 1;
        }
        rounds
    };
    let moving = async {
        there_and_back(&cluster, &keys(COUNTERS)).await;
        is_over.set(true);
    };
    let (rounds, ()) = tokio::join!(counting, moving);
    assert!(rounds > 0);
    for value in cluster.values(&keys(COUNTERS)).await.unwrap() {
        assert_eq!(value, Some(json!(rounds)));
    }
}

#[tokio::test]
async fn an_open_slot_stops_no_entry_of_others() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let slots: BTreeSet<u16> = stage.keys[..4].iter().map(|key| slot(key)).collect();
    let mut closing = Vec::new();
    for slot in slots {
        let to = (stage.cluster.owner_of_slot(slot).await + 1) % 3;
        stage.cluster.open_slot(slot, to).await;
        closing.push((slot, to));
    }
    stage.edit_and_publish().await;
    stage.are_fresh(&stage.keys[4..]).await;
    for (slot, to) in closing {
        stage.cluster.close_slot(slot, to).await;
    }
    stage.fresh().await;
    stage.handled().await;
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn an_open_slot_of_the_inbox_loses_no_edit() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let slot = slot(INBOX);
    let to = (stage.cluster.owner_of_slot(slot).await + 1) % 3;
    stage.cluster.open_slot(slot, to).await;
    let mut link = stage.cluster.connection().await;
    for key in &stage.keys {
        stage.edit(std::slice::from_ref(key));
        let message = json!({ "keys": [key] }).to_string();
        redis::cmd("XADD").arg(INBOX).arg("*").arg("message").arg(message).exec_async(&mut link).await.unwrap();
    }
    stage.cluster.close_slot(slot, to).await;
    stage.fresh().await;
    stage.handled().await;
    assert!(stage.worker.is_running());
}
