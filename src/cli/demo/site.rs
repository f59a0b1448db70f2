//! A contender's Redis: one server, or a master and a replica that Sentinels watch.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use redis::{FromRedisValue, RedisResult};

use super::minder::{Minder, Ward};
use super::server::{Server, free_port};
use crate::redis::RedisUrl;

/// The name by which Sentinels know the master.
const SERVICE: &str = "demo";
/// The Sentinels of a master, and how many of them must agree that it is down.
const SENTINELS: usize = 3;
const QUORUM: usize = 2;
/// The silence after which a Sentinel takes the master for down. The default, 30 s, is longer than the demo.
const DOWN: Duration = Duration::from_secs(1);
/// The time that a failover, or the Sentinels at the start, may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The interval between two looks at the Sentinels.
const POLL: Duration = Duration::from_millis(20);

/// The servers of each contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Topology {
    /// One server, which is killed and restarted
    Single,
    /// A master, a replica and three Sentinels; the master is killed, and the replica takes its place
    Sentinel,
}

/// A contender's Redis.
pub(super) struct Site {
    master: Server,
    pair: Option<Pair>,
}

/// A master's replica, and the Sentinels of both.
struct Pair {
    replica: Server,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    _process: Ward,
    port: u16,
}

impl Site {
    /// Starts the servers, with their data in `folder`, which must be empty.
    pub(super) async fn start(
        program: &'static str,
        topology: Topology,
        folder: &Path,
        minder: &Minder,
    ) -> anyhow::Result<Self> {
        let place = |name: &str| {
            let place = folder.join(name);
            std::fs::create_dir_all(&place).map(|()| place)
        };
        let master = Server::start(program, &place("master")?, minder).await?;
        if topology == Topology::Single {
            return Ok(Self { master, pair: None });
        }
        let replica = Server::start(program, &place("replica")?, minder).await?;
        let mut connection = replica.url().client()?.get_multiplexed_async_connection().await?;
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(master.port()).exec_async(&mut connection).await?;
        let mut sentinels = Vec::new();
        for number in 1..=SENTINELS {
            let place = place(&format!("sentinel-{number}"))?;
            sentinels.push(Sentinel::start(program, &place, master.port(), minder)?);
        }
        for sentinel in &sentinels {
            eventually("its Sentinels do not find the replica and each other", async || sentinel.is_ready().await)
                .await?;
        }
        Ok(Self { master, pair: Some(Pair { replica, sentinels }) })
    }

    /// Returns the URL for clients.
    pub(super) fn url(&self) -> anyhow::Result<RedisUrl> {
        let Some(pair) = &self.pair else { return Ok(self.master.url()) };
        let sentinels: Vec<String> = pair.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        Ok(RedisUrl::parse(&format!("redis+sentinel://{}/{SERVICE}", sentinels.join(",")), None)?)
    }

    /// Returns the master's port.
    pub(super) fn port(&self) -> u16 {
        self.master.port()
    }

    /// Kills the master, like a power failure.
    pub(super) fn kill9(&mut self) {
        self.master.kill9();
    }

    /// Restarts the master on its data, or waits until the Sentinels have promoted the replica.
    pub(super) async fn recover(&mut self) -> anyhow::Result<()> {
        if let Some(Pair { replica, sentinels }) = &mut self.pair {
            let port = replica.port();
            for sentinel in &*sentinels {
                eventually("its Sentinels do not promote the replica", async || sentinel.names(port).await).await?;
            }
            std::mem::swap(&mut self.master, replica);
            return Ok(());
        }
        self.master.start_again().await
    }

    /// Starts the old master, which becomes the replica.
    pub(super) async fn replenish(&mut self) -> anyhow::Result<()> {
        match &mut self.pair {
            Some(Pair { replica, .. }) => replica.start_again().await,
            None => Ok(()),
        }
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

/// Waits until it is so.
///
/// # Errors
/// It takes too long: the error says what does not happen, and the last failure.
async fn eventually(otherwise: &str, is_so: impl AsyncFn() -> RedisResult<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let answer = is_so().await;
        match answer {
            Ok(true) => return Ok(()),
            Err(e) if begun.elapsed() > PATIENCE => return Err(e).context(otherwise.to_owned()),
            Ok(false) if begun.elapsed() > PATIENCE => bail!("{otherwise}"),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}
