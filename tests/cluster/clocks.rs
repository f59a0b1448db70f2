//! The clocks of masters differ: no invalidation is overtaken by an older value.

use redis::AsyncTypedCommands;
use serde_json::json;

use super::{INBOX, Stage, path};
use crate::support::{OffsetClock, TestCluster, TestRedis, eventually};

const ENTRIES: usize = 12;

/// Edits entries while their fetches are under way, and publishes each edit with this action.
async fn edited_during_fetches(stage: &Stage, action: &str) {
    let gates: Vec<_> = stage.keys.iter().map(|key| stage.upstream.gate(&path(key))).collect();
    let calls: Vec<usize> = stage.keys.iter().map(|key| stage.upstream.calls(&path(key))).collect();
    for (nth, key) in stage.keys.iter().enumerate() {
        stage.publish(&json!({ "keys": [key] })).await;
        gates[nth].arrived(1).await;
        stage.upstream.edit(&path(key));
        stage.publish(&json!({ "keys": [key], "action": action })).await;
    }
    stage.handled().await;
    for gate in &gates {
        gate.open();
    }
    for (key, calls) in stage.keys.iter().zip(calls) {
        assert!(stage.upstream.calls(&path(key)) > calls);
    }
}

/// A worker on three masters, one of which is off by so many milliseconds: the one with the inbox, or the next.
async fn one_clock_is_off(ms: i64, of_the_inbox: bool) {
    let clock = OffsetClock::new();
    let inbox = usize::from(samovar::protocol::keys::slot(INBOX)) * 3 / 16_384;
    let off = if of_the_inbox { inbox } else { (inbox + 1) % 3 };
    let options = (0..3).map(|nth| {
        let options = TestRedis::options();
        if nth == off { options.clock(&clock) } else { options }
    });
    let cluster = TestCluster::of(options.collect(), 0).await;
    clock.set(ms);
    let mut stage = Stage::warm(cluster, ENTRIES).await;
    edited_during_fetches(&stage, "refresh").await;
    stage.fresh().await;
    edited_during_fetches(&stage, "evict").await;
    eventually("the old fetches have ended", async || stage.upstream.in_flight() == 0).await;
    stage.at_rest().await;
    for (key, value) in stage.keys.iter().zip(stage.cluster.values(&stage.keys).await.unwrap()) {
        let version = stage.upstream.version(&path(key));
        assert!(value.is_none_or(|value| value["version"] == version), "{key} is old");
    }
    stage.publish(&json!({ "keys": stage.keys, "action": "warm" })).await;
    stage.fresh().await;
    for message in [json!({ "tags": ["all"] }), json!({ "patterns": ["art:*"] }), json!({ "jobs": ["art"] })] {
        stage.edit(&stage.keys);
        stage.publish(&message).await;
        stage.fresh().await;
    }
    stage.edit(&stage.keys);
    stage.announce(&json!({ "keys": stage.keys }), off).await;
    stage.fresh().await;
    let ttls: Vec<_> = {
        let mut link = stage.cluster.connection().await;
        let mut ttls = Vec::new();
        for key in &stage.keys {
            ttls.push(link.ttl(key).await.unwrap().raw());
        }
        ttls
    };
    assert!(ttls.iter().all(|ttl| (3_500..=3_610).contains(ttl)), "{ttls:?}");
    assert!(stage.worker.is_running());
}

#[tokio::test]
async fn a_master_with_entries_is_ahead() {
    one_clock_is_off(3_000, false).await;
}

#[tokio::test]
async fn a_master_with_entries_is_behind() {
    one_clock_is_off(-3_000, false).await;
}

#[tokio::test]
async fn the_master_with_the_inbox_is_ahead() {
    one_clock_is_off(3_000, true).await;
}

#[tokio::test]
async fn the_master_with_the_inbox_is_behind() {
    one_clock_is_off(-3_000, true).await;
}
