//! Slots move under load.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use redis::AsyncTypedCommands;
use samovar::cache::Cache;
use samovar::protocol::keys::slot;
use serde_json::{Value, json};

use super::{INBOX, Stage, keys, path};
use crate::support::{TestCluster, TestRedis};

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

/// Moves the slots of these keys to the next masters.
async fn moved(cluster: &TestCluster, keys: &[String]) {
    for key in keys {
        let slot = slot(key);
        cluster.move_slots([slot], (cluster.owner_of_slot(slot).await + 1) % 3).await;
    }
}

/// Changes the expiry of this key, as a slow `MIGRATE` does.
async fn delayed(cluster: &TestCluster, key: &str) {
    let later = expiry(cluster, key).await + 700;
    assert!(cluster.connection().await.pexpire_at(key, later).await.unwrap());
}

async fn expiry(cluster: &TestCluster, key: &str) -> i64 {
    redis::cmd("PEXPIRETIME").arg(key).query_async(&mut cluster.connection().await).await.unwrap()
}

#[tokio::test]
async fn a_value_whose_slot_moved_is_samovars_still() {
    let stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let (moving, foreign) = (&stage.keys[..6], &stage.keys[6]);
    moved(&stage.cluster, moving).await;
    for key in moving {
        delayed(&stage.cluster, key).await;
    }
    let mut link = stage.cluster.connection().await;
    let near = expiry(&stage.cluster, foreign).await + 700;
    let set = redis::cmd("SET").arg(foreign).arg(r#"{"by":"another"}"#).arg("PXAT").arg(near).to_owned();
    set.exec_async(&mut link).await.unwrap();
    stage.publish(&json!({ "keys": &stage.keys[..7] })).await;
    stage.handled().await;
    stage.fresh().await;
    stage.at_rest().await;
    let asked_again = |key: &String| {
        let requests = stage.upstream.requests(&path(key));
        requests.last().is_some_and(|request| requests.len() > 1 && request.headers.contains_key("if-none-match"))
    };
    for key in moving {
        assert!(asked_again(key), "{key} is fetched anew in full");
    }
    let fetched = stage.upstream.requests(&path(foreign));
    assert!(!fetched[1].headers.contains_key("if-none-match"), "the other program's value counts as Samovar's");
}

#[tokio::test]
async fn an_expiry_that_is_over_is_not_given_back() {
    let redis = TestRedis::start().await;
    let script = redis::Script::new(include_str!("../../src/store/lua/restore_expiry.lua"));
    redis.set("art:a", "\"as before\"", Duration::from_secs(30)).await;
    let now: i64 = redis.ask(&["PEXPIRETIME", "art:a"]).await;
    let mut connection = redis.connection().await;
    let mut give = async |seen: i64, given: i64| -> bool {
        script.key("art:a").arg(seen).arg(given).invoke_async(&mut connection).await.unwrap()
    };
    assert!(!give(now, now - 30_500).await, "it would delete the value");
    assert!(!give(now - 1, now + 700).await, "it was written since");
    assert!(give(now, now + 700).await);
    assert!(give(now, now + 700).await, "another caller gave it back");
    assert_eq!(redis.ask::<i64>(&["PEXPIRETIME", "art:a"]).await, now + 700);
}

#[tokio::test]
async fn a_value_whose_slot_moved_is_suspect_after_a_gap() {
    let stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let moving = &stage.keys[..6];
    moved(&stage.cluster, moving).await;
    for key in moving {
        delayed(&stage.cluster, key).await;
    }
    // Nobody publishes these edits.
    stage.edit(&stage.keys);
    let flushed = (stage.cluster.owner(&moving[0]).await + 1) % 3;
    stage.cluster.nodes[flushed].flush().await;
    stage.fresh().await;
}

#[tokio::test]
async fn an_empty_master_gets_what_concerns_keys_that_went_there() {
    let mut stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let new = stage.cluster.add_master().await;
    let key = stage.keys[0].clone();
    // A lease stays while the fetch does, so that the entry has all its keys.
    let gate = stage.upstream.gate(&path(&key));
    stage.publish(&json!({ "keys": [key] })).await;
    gate.arrived(1).await;
    stage.cluster.open_slot(slot(&key), new).await;
    stage.cluster.move_keys(slot(&key), new).await;
    let values = async || stage.cluster.nodes[new].ask::<Vec<String>>(&["KEYS", "art:*"]).await;
    assert_eq!(values().await, std::slice::from_ref(&key));
    stage.publish(&json!({ "patterns": ["art:*"], "action": "evict" })).await;
    stage.handled().await;
    assert!(values().await.is_empty());
    gate.open();
    stage.cluster.close_slot(slot(&key), new).await;
    stage.publish(&json!({ "keys": stage.keys, "action": "warm" })).await;
    stage.fresh().await;
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn a_slot_that_stays_open_holds_no_scan_up() {
    let stage = Stage::warm(TestCluster::start().await, ENTRIES).await;
    let slot = slot("nobody's");
    let from = stage.cluster.owner_of_slot(slot).await;
    let keys: u64 = stage.cluster.nodes[from].ask(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).await;
    assert_eq!(keys, 0);
    stage.cluster.open_slot(slot, (from + 1) % 3).await;
    stage.edit(&stage.keys);
    stage.publish(&json!({ "patterns": ["art:*"] })).await;
    stage.fresh().await;
    stage.handled().await;
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
