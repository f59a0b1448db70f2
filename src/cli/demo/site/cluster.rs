//! A Cluster of three masters with a replica each.

use std::path::Path;

use redis::{Cmd, FromRedisValue, RedisResult};

use super::{DOWN, eventually};
use crate::cli::demo::minder::Minder;
use crate::cli::demo::server::{Server, free_port};
use crate::redis::RedisUrl;

/// The masters, each of which has a replica.
const MASTERS: usize = 3;
/// The slots of a Cluster.
const SLOTS: usize = 16_384;
/// The master that is killed.
const VICTIM: usize = 0;

/// The nodes: the masters, then their replicas in the same order.
pub(in crate::cli::demo) struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    server: Server,
    /// The port on which nodes talk to each other.
    bus: u16,
}

impl Cluster {
    /// Starts the nodes and joins them.
    pub(super) async fn start(program: &'static str, folder: &Path, minder: &Minder) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for number in 1..=2 * MASTERS {
            let (bus, timeout) = (free_port()?, DOWN.as_millis().to_string());
            let bus_port = bus.to_string();
            let settings = [
                ["--cluster-enabled", "yes"],
                ["--cluster-port", &bus_port],
                ["--cluster-node-timeout", &timeout],
                // A replica takes its master's place however long it had no word of it.
                ["--cluster-replica-validity-factor", "0"],
                ["--repl-diskless-sync-delay", "0"],
            ];
            let place = super::place(folder, &format!("node-{number}"))?;
            nodes.push(Node { server: Server::start(program, &place, settings.as_flattened(), minder).await?, bus });
        }
        let cluster = Self { nodes };
        cluster.join().await?;
        Ok(cluster)
    }

    /// Gives each master its slots, and each replica its master.
    async fn join(&self) -> anyhow::Result<()> {
        for (place, node) in self.nodes.iter().enumerate() {
            node.ask::<()>(cluster("SET-CONFIG-EPOCH").arg(place + 1)).await?;
            if place < MASTERS {
                let [first, end] = [place, place + 1].map(|nth| nth * SLOTS / MASTERS);
                node.ask::<()>(cluster("ADDSLOTSRANGE").arg(first).arg(end - 1)).await?;
            }
        }
        // A node takes an epoch only while it knows no other.
        for (place, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[place + 1..] {
                node.ask::<()>(cluster("MEET").arg("127.0.0.1").arg(other.server.port()).arg(other.bus)).await?;
            }
        }
        for (replica, master) in self.nodes[MASTERS..].iter().zip(&self.nodes) {
            let id: String = master.ask(&cluster("MYID")).await?;
            let replicate = cluster("REPLICATE").arg(id).to_owned();
            // Refused until it has heard of its master.
            eventually("a node does not replicate its master", async || {
                replica.ask::<()>(&replicate).await.map(|()| true)
            })
            .await?;
        }
        for node in &self.nodes {
            eventually("its nodes do not form a Cluster", async || node.is_ready().await).await?;
        }
        Ok(())
    }

    /// Returns the URL, which names all nodes.
    pub(super) fn url(&self) -> anyhow::Result<RedisUrl> {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.server.port())).collect();
        Ok(RedisUrl::parse(&format!("redis+cluster://{}", nodes.join(",")), None)?)
    }

    /// Returns the port of a master that is not killed.
    pub(super) fn port(&self) -> u16 {
        self.nodes[VICTIM + 1].server.port()
    }

    pub(super) fn kill9(&mut self) {
        self.nodes[VICTIM].server.kill9();
    }

    /// Waits until the replica of the killed master has its slots.
    pub(super) async fn recover(&self) -> anyhow::Result<()> {
        let replica = &self.nodes[VICTIM + MASTERS];
        eventually("the replica does not take its master's place", async || {
            let replication: String = replica.ask(redis::cmd("INFO").arg("replication")).await?;
            Ok(replication.contains("role:master") && replica.state().await?.contains("cluster_state:ok"))
        })
        .await
    }

    /// Starts the killed master, which becomes a replica.
    pub(super) async fn replenish(&mut self) -> anyhow::Result<()> {
        self.nodes[VICTIM].server.start_again().await
    }
}

impl Node {
    /// Returns `true` if it knows all nodes and all slots, and, as a replica, has its master's data.
    async fn is_ready(&self) -> RedisResult<bool> {
        let state = self.state().await?;
        let nodes = format!("cluster_known_nodes:{}\r", 2 * MASTERS);
        let replication: String = self.ask(redis::cmd("INFO").arg("replication")).await?;
        let has_data = replication.contains("role:master") || replication.contains("master_link_status:up");
        Ok(has_data && state.contains("cluster_state:ok") && state.contains(&nodes))
    }

    async fn state(&self) -> RedisResult<String> {
        self.ask(&cluster("INFO")).await
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let mut connection = self.server.url().client()?.get_multiplexed_async_connection().await?;
        command.query_async(&mut connection).await
    }
}

fn cluster(subcommand: &str) -> Cmd {
    redis::cmd("CLUSTER").arg(subcommand).to_owned()
}
