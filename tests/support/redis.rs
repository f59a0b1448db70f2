//! A Redis server of a test's own.

use super::cluster;
use super::eventually::{DEADLINE, eventually};
use super::link::Link;
use super::sentinels::{SERVICE, Sentinel};
use super::topology::Topology;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use samovar::redis::RedisUrl;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Either will do; the first that is on the PATH is used.
const SERVERS: [&str; 2] = ["redis-server", "valkey-server"];

/// Below the range from which the kernel takes ports for outgoing connections, so that a restart finds its port free.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A Redis server on a free port in a temporary folder; it ends when this is dropped. Where SAMOVAR_TEST_TOPOLOGY says
/// so, it is a Cluster: what is done to it is done to each node.
#[derive(Debug)]
pub struct TestRedis {
    child: Option<Child>,
    options: RedisOptions,
    port: u16,
    /// The port for the other nodes, if it is a node of a Cluster.
    pub(super) bus: u16,
    folder: TempDir,
    /// The other nodes, if tests shall take it for a whole Cluster.
    others: Vec<TestRedis>,
    /// It is frozen, or crashed.
    is_away: AtomicBool,
    /// Names the server, if tests shall reach it so.
    sentinel: Option<Sentinel>,
}

/// The settings of a [`TestRedis`].
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    args: Vec<String>,
    pub(super) password: Option<String>,
    environment: Vec<(&'static str, PathBuf)>,
    tls: Option<(String, String)>,
    /// The topology, whatever tests are told.
    topology: Option<Topology>,
    /// It is a node of a Cluster.
    is_node: bool,
}

impl RedisOptions {
    /// Data survive a restart, and a kill but for the last second.
    pub fn append_only(self) -> Self {
        self.arg("--appendonly", "yes")
    }

    /// Clients must give this password.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self.arg("--requirepass", password)
    }

    /// Speaks TLS only, with this certificate (its own authority) and key, both PEM.
    pub fn tls(mut self, certificate: String, key: String) -> Self {
        self.tls = Some((certificate, key));
        self
    }

    /// Goes by this clock.
    pub fn clock(mut self, clock: &super::OffsetClock) -> Self {
        self.environment.extend(clock.environment());
        self
    }

    /// Is one server, reached without Sentinels, whatever SAMOVAR_TEST_TOPOLOGY says.
    pub fn direct(mut self) -> Self {
        self.topology = Some(Topology::Single);
        self
    }

    /// Is a Cluster, whatever SAMOVAR_TEST_TOPOLOGY says.
    pub fn cluster(mut self) -> Self {
        self.topology = Some(Topology::Cluster);
        self
    }

    /// Is a node of a Cluster, on its own as yet.
    pub(super) fn node(mut self) -> Self {
        self.is_node = true;
        self.direct()
    }

    /// Any other setting: `arg("--maxmemory", "2mb")`.
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.into(), value.into()]);
        self
    }

    /// Starts the server and waits until it answers.
    pub async fn start(self) -> TestRedis {
        let topology = match self.topology {
            _ if self.tls.is_some() => Topology::Single,
            Some(topology) => topology,
            None => Topology::of_test(),
        };
        if topology == Topology::Cluster {
            let mut nodes = cluster::formed(vec![self; cluster::MASTERS], 0).await;
            let mut first = nodes.remove(0);
            first.others = nodes;
            return first;
        }
        let mut server = self.launched().await;
        if topology == Topology::Sentinel {
            let sentinel = Sentinel::launch(&server, None, 1);
            sentinel.ready().await;
            server.sentinel = Some(sentinel);
        }
        server
    }

    /// Starts one server.
    pub(super) async fn launched(self) -> TestRedis {
        let folder = tempfile::tempdir().unwrap();
        if let Some((certificate, key)) = &self.tls {
            std::fs::write(folder.path().join("cert.pem"), certificate).unwrap();
            std::fs::write(folder.path().join("key.pem"), key).unwrap();
        }
        let (others, is_away, sentinel) = (Vec::new(), AtomicBool::new(false), None);
        let mut server = TestRedis { child: None, options: self, port: 0, bus: 0, folder, others, is_away, sentinel };
        for _ in 0..20 {
            server.port = free_port();
            server.bus = if server.options.is_node { free_port() } else { 0 };
            if server.launch().await {
                return server;
            }
        }
        panic!("redis-server does not start: {}", server.log());
    }
}

impl TestRedis {
    /// Starts a server without persistence.
    pub async fn start() -> Self {
        Self::options().start().await
    }

    /// For a server that is set up otherwise.
    pub fn options() -> RedisOptions {
        RedisOptions::default()
    }

    /// Its URL, with the password: what Samovar is told.
    pub fn url(&self) -> String {
        match &self.sentinel {
            Some(Sentinel { port, .. }) => format!("redis+sentinel://{}127.0.0.1:{port}/{SERVICE}/0", self.login()),
            None if !self.others.is_empty() => cluster::url(&self.login(), self.nodes()),
            None => self.own_url(),
        }
    }

    /// Its nodes, if it is a Cluster; else itself.
    pub fn nodes(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// Returns `true` if it is a Cluster.
    pub fn is_cluster(&self) -> bool {
        !self.others.is_empty()
    }

    /// Its URL for this user, without Sentinels.
    pub fn url_of(&self, user: &str, password: &str) -> String {
        if self.is_cluster() {
            return cluster::url(&format!("{user}:{password}@"), self.nodes());
        }
        format!("redis://{user}:{password}@127.0.0.1:{}/0", self.port)
    }

    fn login(&self) -> String {
        self.options.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default()
    }

    fn own_url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://{}127.0.0.1:{}/0", self.login(), self.port)
    }

    /// Leads to it, without Sentinels; to the first node of a Cluster.
    pub fn client(&self) -> redis::Client {
        RedisUrl::parse(&self.own_url(), self.ca().as_deref()).unwrap().client().expect("the URL is one")
    }

    /// Its URL, as Samovar reads it.
    pub fn redis_url(&self) -> RedisUrl {
        RedisUrl::parse(&self.url(), self.ca().as_deref()).unwrap()
    }

    pub fn password(&self) -> Option<&str> {
        self.options.password.as_deref()
    }

    /// The file that holds the authority of a server with TLS.
    pub fn ca(&self) -> Option<PathBuf> {
        self.options.tls.as_ref().map(|_| self.folder.path().join("cert.pem"))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it in good order and starts it again on the same port and data.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Ends it in good order.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + DEADLINE;
        for node in std::iter::once(&mut self.child).chain(self.others.iter_mut().map(|node| &mut node.child)) {
            while let Some(child) = node {
                if child.try_wait().unwrap().is_some() {
                    *node = None;
                }
                assert!(Instant::now() < deadline, "redis-server does not stop");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Ends it at once, as a power cut would.
    pub fn kill9(&mut self) {
        for node in &mut self.others {
            node.kill9();
        }
        *self.is_away.get_mut() = false;
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again on the same port and data.
    pub async fn start_again(&mut self) {
        self.launch_again().await;
        if self.is_cluster() {
            for node in &mut self.others {
                node.launch_again().await;
            }
            cluster::settled(&self.nodes().collect::<Vec<_>>()).await;
        }
    }

    /// Returns `true` unless it was ended, or is frozen.
    pub fn is_up(&self) -> bool {
        self.child.is_some() && !self.is_away.load(Ordering::Relaxed)
    }

    /// Ends it at once, as [`Self::kill9`] does, while others use it.
    pub fn crash(&self) {
        self.is_away.store(true, Ordering::Relaxed);
        self.signal(Signal::SIGKILL);
    }

    async fn launch_again(&mut self) {
        assert!(self.child.is_none(), "still running");
        let deadline = Instant::now() + DEADLINE;
        while !self.launch().await {
            assert!(Instant::now() < deadline, "redis-server does not start again: {}", self.log());
        }
    }

    /// It hangs: connections are accepted by the kernel and nobody answers.
    pub fn freeze(&self) {
        self.is_away.store(true, Ordering::Relaxed);
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on where it was.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
        self.is_away.store(false, Ordering::Relaxed);
    }

    /// A connection that does not come back by itself.
    pub async fn connection(&self) -> Link {
        let link = if self.is_cluster() {
            Link::to(&self.nodes().map(Self::port).collect::<Vec<_>>(), self.password()).await
        } else {
            Link::of(self.client()).await
        };
        link.expect("the test's Redis answers")
    }

    /// One command: `redis.ask::<u64>(&["DBSIZE"])`. On a Cluster, the nodes answer as if they were one server.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query_async(&mut self.connection().await).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub async fn get(&self, key: &str) -> Option<String> {
        self.ask(&["GET", key]).await
    }

    /// A value as JSON; `None` where the key is absent.
    pub async fn json(&self, key: &str) -> Option<serde_json::Value> {
        let text = self.get(key).await?;
        Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{key}` holds no JSON ({error}): {text}")))
    }

    pub async fn set(&self, key: &str, value: &str, ttl: Duration) {
        self.ask(&["SET", key, value, "PX", &ttl.as_millis().to_string()]).await
    }

    /// Time to live; `None` where the key is absent or lives for ever.
    pub async fn ttl(&self, key: &str) -> Option<Duration> {
        u64::try_from(self.ask::<i64>(&["PTTL", key]).await).ok().map(Duration::from_millis)
    }

    /// All keys that match a glob, sorted.
    pub async fn keys(&self, glob: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(&["KEYS", glob]).await;
        keys.sort();
        keys
    }

    /// Publishes a message and returns how many clients heard it.
    pub async fn publish(&self, channel: &str, message: &str) -> usize {
        self.ask(&["PUBLISH", channel, message]).await
    }

    pub async fn flush(&self) {
        self.ask(&["FLUSHALL"]).await
    }

    pub(super) async fn try_connection(&self) -> redis::RedisResult<MultiplexedConnection> {
        self.client().get_multiplexed_async_connection().await
    }

    /// Starts the server; returns whether it is the one that answers on the port.
    async fn launch(&mut self) -> bool {
        let port = self.port.to_string();
        let mut args = vec!["--bind", "127.0.0.1", "--save", "", "--logfile", "redis.log", "--protected-mode", "no"];
        if self.options.tls.is_some() {
            args.extend(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"]);
            args.extend(["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "cert.pem"]);
        } else {
            args.extend(["--port", &port]);
        }
        let bus = self.bus.to_string();
        if self.options.is_node {
            args.extend(["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-announce-ip", "127.0.0.1"]);
            args.extend(cluster::SETTINGS);
        }
        args.extend(self.options.args.iter().map(String::as_str));
        let child = spawn_server(&args, &self.options.environment, &self.folder);
        let pid = child.id();
        self.child = Some(child);
        let up = eventually("redis-server is up or has ended", async || {
            if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                self.child = None;
                return Ok(false);
            }
            let mut connection = self.try_connection().await?;
            redis::cmd("PING").exec_async(&mut connection).await?;
            let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
            redis::RedisResult::Ok(info.lines().any(|line| line == format!("process_id:{pid}")))
        });
        let up = up.await;
        if !up {
            self.kill9();
        }
        up
    }

    fn signal(&self, signal: Signal) {
        for node in self.nodes() {
            if let Some(child) = &node.child {
                kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("redis.log")).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        self.kill9();
    }
}

pub(super) fn spawn_server(args: &[&str], environment: &[(&str, PathBuf)], folder: &TempDir) -> Child {
    for server in SERVERS {
        let mut command = Command::new(server);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => return child,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => panic!("{server} cannot be started: {error}"),
        }
    }
    panic!("no redis-server or valkey-server on the PATH: run `make setup`, which installs one");
}

pub(super) fn free_port() -> u16 {
    let mut random = rand::rng();
    let mut ports = std::iter::repeat_with(|| random.random_range(PORTS));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("some port is free")
}
