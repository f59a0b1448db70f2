//! Sentinels: they watch a master and its replica, and make the replica the master when the master dies.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use redis::{FromRedisValue, RedisResult};

use super::{DOWN, eventually};
use crate::cli::demo::minder::{Minder, Ward};
use crate::cli::demo::server::{Server, free_port};
use crate::redis::RedisUrl;

/// The name by which Sentinels know the master.
const SERVICE: &str = "demo";
/// The Sentinels of a master, and how many of them must agree that it is down.
const SENTINELS: usize = 3;
const QUORUM: usize = 2;

/// A master, its replica, and the Sentinels of both.
pub(in crate::cli::demo) struct Pair {
    master: Server,
    replica: Server,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    _process: Ward,
    port: u16,
}

impl Pair {
    pub(super) async fn start(program: &'static str, folder: &Path, minder: &Minder) -> anyhow::Result<Self> {
        let master = Server::start(program, &super::place(folder, "master")?, &[], minder).await?;
        let replica = Server::start(program, &super::place(folder, "replica")?, &[], minder).await?;
        let mut connection = replica.url().client()?.get_multiplexed_async_connection().await?;
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(master.port()).exec_async(&mut connection).await?;
        let mut sentinels = Vec::new();
        for number in 1..=SENTINELS {
            let place = super::place(folder, &format!("sentinel-{number}"))?;
            sentinels.push(Sentinel::start(program, &place, master.port(), minder)?);
        }
        for sentinel in &sentinels {
            eventually("its Sentinels do not find the replica and each other", async || sentinel.is_ready().await)
                .await?;
        }
        Ok(Self { master, replica, sentinels })
    }

    pub(super) fn url(&self) -> anyhow::Result<RedisUrl> {
        let sentinels: Vec<String> = self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        Ok(RedisUrl::parse(&format!("redis+sentinel://{}/{SERVICE}", sentinels.join(",")), None)?)
    }

    /// Returns the server that is the master at present.
    pub(super) fn master(&mut self) -> &mut Server {
        &mut self.master
    }

    /// Returns the master's port.
    pub(super) fn port(&self) -> u16 {
        self.master.port()
    }

    /// Waits until the Sentinels have promoted the replica.
    pub(super) async fn recover(&mut self) -> anyhow::Result<()> {
        let port = self.replica.port();
        for sentinel in &self.sentinels {
            eventually("its Sentinels do not promote the replica", async || sentinel.names(port).await).await?;
        }
        std::mem::swap(&mut self.master, &mut self.replica);
        Ok(())
    }

    /// Starts the old master, which becomes the replica.
    pub(super) async fn replenish(&mut self) -> anyhow::Result<()> {
        self.replica.start_again().await
    }
}

impl Sentinel {
    fn start(program: &'static str, folder: &Path, master: u16, minder: &Minder) -> anyhow::Result<Self> {
        let port = free_port()?;
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nlogfile sentinel.log\ndir .\n\
             sentinel monitor {SERVICE} 127.0.0.1 {master} {QUORUM}\n\
             sentinel down-after-milliseconds {SERVICE} {}\n\
             sentinel failover-timeout {SERVICE} 5000\n",
            DOWN.as_millis(),
        );
        std::fs::write(folder.join("sentinel.conf"), settings)?;
        let mut command = Command::new(program);
        command.args(["sentinel.conf", "--sentinel"]).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        let process = minder.spawn(&mut command).with_context(|| format!("cannot start {program} as a Sentinel"))?;
        Ok(Self { _process: process, port })
    }

    async fn is_ready(&self) -> RedisResult<bool> {
        let known: HashMap<String, String> = self.ask("MASTER").await?;
        let has = |field: &str, count: usize| known.get(field).is_some_and(|known| *known == count.to_string());
        Ok(has("num-slaves", 1) && has("num-other-sentinels", SENTINELS - 1))
    }

    /// Returns `true` if it names the server on this port as the master.
    async fn names(&self, port: u16) -> RedisResult<bool> {
        let (_, named): (String, u16) = self.ask("GET-MASTER-ADDR-BY-NAME").await?;
        Ok(named == port)
    }

    async fn ask<T: FromRedisValue>(&self, question: &str) -> RedisResult<T> {
        let client = RedisUrl::at("127.0.0.1", self.port, 0, None).client()?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("SENTINEL").arg(question).arg(SERVICE).query_async(&mut connection).await
    }
}
