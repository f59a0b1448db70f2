//! A private Redis server on a free loopback port, with its data in a temporary folder.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rand::RngExt as _;
use redis::RedisResult;

use super::minder::{Minder, Ward};
use crate::redis::{RedisUrl, ServerInfo};

/// The programs; the first one on the PATH is used.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];
/// Ports below the kernel's range for outgoing connections, so that a restart finds its port free.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// The timeout of a starting server.
const START: Duration = Duration::from_secs(10);
/// The polling interval of a starting server.
const POLL: Duration = Duration::from_millis(5);

/// A running server. Dropping it kills it.
pub(super) struct Server {
    process: Option<Ward>,
    program: &'static str,
    folder: PathBuf,
    settings: Vec<String>,
    port: u16,
    minder: Minder,
}

/// Returns the Redis program on the PATH, if there is one.
pub(super) fn program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|program| {
        let asked = Command::new(program).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
        !matches!(asked, Err(e) if e.kind() == ErrorKind::NotFound)
    })
}

impl Server {
    /// Starts a server with more `settings` in `folder`, which must exist and be empty.
    pub(super) async fn start(
        program: &'static str,
        folder: &Path,
        settings: &[&str],
        minder: &Minder,
    ) -> anyhow::Result<Self> {
        let (folder, settings) = (folder.to_owned(), settings.iter().map(|word| (*word).to_owned()).collect());
        let mut server = Self { process: None, program, folder, settings, port: 0, minder: minder.clone() };
        for _ in 0..10 {
            server.port = free_port()?;
            if server.launch().await? {
                return Ok(server);
            }
        }
        bail!("{program} does not start: {}", server.last_words())
    }

    /// Returns its port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Returns its URL.
    pub(super) fn url(&self) -> RedisUrl {
        RedisUrl::at("127.0.0.1", self.port, 0, None)
    }

    /// Kills it, like a power failure.
    pub(super) fn kill9(&mut self) {
        self.process = None;
    }

    /// Restarts it on its data.
    pub(super) async fn start_again(&mut self) -> anyhow::Result<()> {
        if !self.launch().await? {
            bail!("{} does not start again: {}", self.program, self.last_words());
        }
        Ok(())
    }

    /// Starts the process; returns whether it answers.
    async fn launch(&mut self) -> anyhow::Result<bool> {
        let mut command = Command::new(self.program);
        command
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "yes", "--logfile", "redis.log"])
            .args(["--maxmemory", "256mb", "--maxmemory-policy", "volatile-lru"])
            .args(&self.settings)
            .current_dir(&self.folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = self.minder.spawn(&mut command).with_context(|| format!("cannot start {}", self.program))?;
        let begun = Instant::now();
        while process.is_running() && begun.elapsed() < START {
            if self.answers(process.pid()).await.unwrap_or(false) {
                self.process = Some(process);
                return Ok(true);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(false)
    }

    async fn answers(&self, pid: Option<u32>) -> RedisResult<bool> {
        let mut redis = self.url().client()?.get_multiplexed_async_connection().await?;
        // While it loads its file it answers only `INFO`.
        let info: String = redis::cmd("INFO").query_async(&mut redis).await?;
        let info = ServerInfo::parse(&info);
        Ok(pid.is_some() && info.process_id() == pid && info.is_loading() == Some(false))
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("redis.log")).unwrap_or_default();
        log.lines().last().unwrap_or("it left no log").to_owned()
    }
}

pub(super) fn free_port() -> anyhow::Result<u16> {
    let mut random = rand::rng();
    (0..1_000)
        .map(|_| random.random_range(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no port between 10000 and 32000 is free")
}
