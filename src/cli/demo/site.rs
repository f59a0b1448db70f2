//! A contender's Redis: one server, a master and a replica that Sentinels watch, or a Cluster.

mod cluster;
mod sentinels;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use redis::RedisResult;

use self::cluster::Cluster;
use self::sentinels::Pair;
use super::minder::Minder;
use super::server::Server;
use crate::redis::RedisUrl;

/// The silence after which a master counts as down. The defaults, 15 and 30 s, are too long for the demo.
const DOWN: Duration = Duration::from_secs(1);
/// The time that a failover, or the start, may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The interval between two looks at the servers.
const POLL: Duration = Duration::from_millis(20);

/// The servers of each contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Topology {
    /// One server, which is killed and restarted
    Single,
    /// A master, a replica and three Sentinels; the master is killed, and the replica takes its place
    Sentinel,
    /// Three masters with a replica each; a master is killed, and its replica takes its place
    Cluster,
}

/// A contender's Redis.
pub(super) enum Site {
    Single(Server),
    Sentinel(Pair),
    Cluster(Cluster),
}

impl Site {
    /// Starts the servers, with their data in `folder`, which must be empty.
    pub(super) async fn start(
        program: &'static str,
        topology: Topology,
        folder: &Path,
        minder: &Minder,
    ) -> anyhow::Result<Self> {
        Ok(match topology {
            Topology::Single => Self::Single(Server::start(program, &place(folder, "server")?, &[], minder).await?),
            Topology::Sentinel => Self::Sentinel(Pair::start(program, folder, minder).await?),
            Topology::Cluster => Self::Cluster(Cluster::start(program, folder, minder).await?),
        })
    }

    /// Returns the URL for clients.
    pub(super) fn url(&self) -> anyhow::Result<RedisUrl> {
        match self {
            Self::Single(server) => Ok(server.url()),
            Self::Sentinel(pair) => pair.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// Returns the options of `redis-cli` that lead to this Redis.
    pub(super) fn redis_cli(&self) -> String {
        match self {
            Self::Single(server) => format!("-p {}", server.port()),
            Self::Sentinel(pair) => format!("-p {}", pair.port()),
            Self::Cluster(cluster) => format!("-c -p {}", cluster.port()),
        }
    }

    /// Kills the master, or one of them, like a power failure.
    pub(super) fn kill9(&mut self) {
        match self {
            Self::Single(server) => server.kill9(),
            Self::Sentinel(pair) => pair.master().kill9(),
            Self::Cluster(cluster) => cluster.kill9(),
        }
    }

    /// Returns `true` if nothing can be read while the killed master is away.
    pub(super) fn is_away_as_a_whole(&self) -> bool {
        !matches!(self, Self::Cluster(_))
    }

    /// Restarts the server on its data, or waits until a replica has taken the master's place.
    pub(super) async fn recover(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Single(server) => server.start_again().await,
            Self::Sentinel(pair) => pair.recover().await,
            Self::Cluster(cluster) => cluster.recover().await,
        }
    }

    /// Starts the old master, which becomes the replica.
    pub(super) async fn replenish(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Single(_) => Ok(()),
            Self::Sentinel(pair) => pair.replenish().await,
            Self::Cluster(cluster) => cluster.replenish().await,
        }
    }
}

/// Creates the folder of a server.
fn place(folder: &Path, name: &str) -> std::io::Result<PathBuf> {
    let place = folder.join(name);
    std::fs::create_dir_all(&place).map(|()| place)
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
