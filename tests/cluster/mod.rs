//! A Redis Cluster: the worker and the library find each key where it lives, through reshards and failovers.
mod clocks;
mod down;
mod failovers;
mod library;
mod losses;
mod nodes;
mod reshards;
mod servers;
mod warming;

use std::time::Duration;

use crate::support::{Art, JobsFolder, TestCluster, Upstream, WorkerProcess, eventually, eventually_within, samovar};
use redis::AsyncTypedCommands;
use samovar::redis::{Connection, RedisUrl};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);
/// The time that entries may take to be fresh again on a busy machine, after a failover.
const FRESH: Duration = Duration::from_secs(90);
const INBOX: &str = "samovar:inbox";
const MARKER: &str = "samovar:marker";

/// Returns so many keys of the job `art`.
fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("art:{n}")).collect()
}

/// Connects as the worker and the library do.
async fn connected(cluster: &TestCluster) -> Connection {
    RedisUrl::parse(&cluster.url(), None).unwrap().manager(PATIENCE).await.unwrap()
}

/// A worker on a Cluster, with the entries that it keeps warm.
struct Stage {
    cluster: TestCluster,
    upstream: Upstream,
    keys: Vec<String>,
    worker: WorkerProcess,
    jobs: JobsFolder,
}

impl Stage {
    /// Warms up so many entries, which all have the tag `all`.
    async fn warm(cluster: TestCluster, entries: usize) -> Self {
        let (upstream, keys) = (Upstream::start().await, keys(entries));
        for key in &keys {
            upstream.edit(&path(key));
        }
        let names = keys.iter().map(|key| &key["art:".len()..]);
        let jobs = Art::of(&upstream).top("tags = [\"all\"]").list(names).folder();
        let worker = samovar(["worker"]).redis_at(&cluster.url()).jobs(&jobs).env("SAMOVAR_CLAIM", "2s");
        let worker = worker.env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
        let stage = Self { cluster, upstream, keys, worker, jobs };
        stage.fresh().await;
        stage.at_rest().await;
        stage
    }

    fn edit(&self, keys: &[String]) {
        for key in keys {
            self.upstream.edit(&path(key));
        }
    }

    /// Waits until all entries are readable as they were last edited.
    async fn fresh(&self) {
        self.are_fresh(&self.keys).await;
    }

    async fn are_fresh(&self, keys: &[String]) {
        eventually_within(FRESH, "the entries are fresh", async || {
            let values = self.cluster.values(keys).await?;
            let stale = keys.iter().zip(values).filter(|(key, value)| {
                let version = self.upstream.version(&path(key));
                value.as_ref().is_none_or(|value| value["version"] != version)
            });
            let stale: Vec<_> = stale.map(|(key, value)| (key.clone(), value)).collect();
            let first: Vec<_> = stale.iter().take(3).collect();
            if stale.is_empty() { Ok(()) } else { Err(format!("{} are not: {first:?}", stale.len())) }
        })
        .await;
    }

    /// Waits until no warmup runs, no gap is open, and no entry is urgent, claimed or running.
    async fn at_rest(&self) {
        eventually("nothing is being warmed", async || {
            let mut link = self.cluster.connection().await;
            let ticks = link.hlen("samovar:{schedules}:ticks").await.unwrap();
            let busy: Vec<String> = link.zrangebyscore("samovar:agenda:{art}", "-inf", "(0").await.unwrap();
            let gap = link.exists("samovar:{suspect}").await.unwrap();
            if ticks == 0 && !gap && busy.is_empty() { Ok(()) } else { Err((ticks, gap, busy)) }
        })
        .await;
    }

    /// Waits until the mark of all masters contains this.
    async fn is_marked(&self, text: &str) {
        eventually_within(FRESH, "the mark is left", async || {
            let mut link = self.cluster.connection().await;
            match link.get(MARKER).await.unwrap() {
                Some(mark) if mark.contains(text) => Ok(()),
                mark => Err(format!("{mark:?} without {text}")),
            }
        })
        .await;
    }

    /// Publishes to the inbox.
    async fn publish(&self, message: &Value) {
        self.cluster.publish_safely(message).await;
    }

    /// Publishes on the channel, through this node.
    async fn announce(&self, message: &Value, nth: usize) {
        eventually("the worker listens", async || {
            let mut link = self.cluster.connection().await;
            let clients: String =
                redis::cmd("CLIENT").arg("LIST").arg("TYPE").arg("pubsub").query_async(&mut link).await.unwrap();
            if clients.contains(" sub=3 ") { Ok(()) } else { Err(clients) }
        })
        .await;
        self.cluster.nodes[nth].publish("samovar:invalidate", &message.to_string()).await;
    }

    /// Edits all entries one after the other, and publishes each edit so that no failover takes it back.
    async fn edit_and_publish(&self) {
        for key in &self.keys {
            self.upstream.edit(&path(key));
            self.cluster.publish_safely(&json!({ "keys": [key] })).await;
        }
    }

    /// Waits until each message in the inbox is handled.
    async fn handled(&self) {
        eventually_within(FRESH, "the inbox is empty", async || {
            let mut link = self.cluster.connection().await;
            let length: usize = redis::cmd("XLEN").arg(INBOX).query_async(&mut link).await.unwrap();
            if length == 0 { Ok(()) } else { Err(length) }
        })
        .await;
    }

    /// Returns how many lines of the log say this.
    fn said(&self, text: &str) -> usize {
        self.worker.log().iter().filter(|line| line.contains(text)).count()
    }
}

/// The path of an entry's document.
fn path(key: &str) -> String {
    format!("/{}", key.replace(':', "/"))
}
