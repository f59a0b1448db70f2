//! Sentinels of a test's own, over a master and a replica.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::FromRedisValue;
use samovar::redis::{Connection, RedisUrl};
use serde_json::Value;
use tempfile::TempDir;

use super::eventually::{eventually, eventually_within};
use super::redis::{RedisOptions, TestRedis, free_port, spawn_server};

/// The name of the service.
pub const SERVICE: &str = "cache";
/// The time that a failover may take on a busy machine. Sentinels turn an old master into a replica after ten seconds.
const FAILOVER: Duration = Duration::from_secs(90);
/// Sentinels, and how many of them must agree that the master is down.
const SENTINELS: usize = 3;
const QUORUM: usize = 2;

/// A master, a replica, and three Sentinels on free ports. They end when this is dropped.
pub struct TestSentinels {
    /// The first begins as the master.
    pub servers: [TestRedis; 2],
    sentinels: Vec<Sentinel>,
    password: Option<String>,
}

#[derive(Debug)]
pub(super) struct Sentinel {
    child: Child,
    pub(super) port: u16,
    folder: TempDir,
}

impl TestSentinels {
    /// Starts all, without passwords.
    pub async fn start() -> Self {
        Self::of(TestRedis::options(), None).await
    }

    /// Starts all: the servers with these options, the Sentinels with this password.
    pub async fn of(options: RedisOptions, password: Option<&str>) -> Self {
        let options = options.direct().arg("--repl-diskless-sync-delay", "0").arg("--repl-ping-replica-period", "1");
        let options = match options.password.clone() {
            Some(password) => options.arg("--masterauth", &password),
            None => options,
        };
        let servers: [TestRedis; 2] = tokio::join!(options.clone().start(), options.start()).into();
        let port = servers[0].port().to_string();
        let () = servers[1].ask(&["REPLICAOF", "127.0.0.1", &port]).await;
        let password = password.map(str::to_owned);
        let sentinels = (0..SENTINELS).map(|_| Sentinel::launch(&servers[0], password.as_deref(), QUORUM)).collect();
        let all = Self { servers, sentinels, password };
        for sentinel in &all.sentinels {
            eventually("the Sentinel knows the replica and the other Sentinels", async || {
                let known: HashMap<String, String> = all.ask(sentinel, "MASTER").await.unwrap_or_default();
                let has = |field: &str, count: usize| known.get(field).is_some_and(|n| *n == count.to_string());
                has("num-slaves", 1) && has("num-other-sentinels", SENTINELS - 1)
            })
            .await;
        }
        all
    }

    /// The URL that names all Sentinels, without logins.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{SERVICE}", hosts.join(","))
    }

    /// The ports of the Sentinels.
    pub fn ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.port).collect()
    }

    /// Ends a Sentinel at once.
    pub fn kill9(&mut self, nth: usize) {
        let child = &mut self.sentinels[nth].child;
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Makes a Sentinel hang, until it ends.
    pub fn freeze(&self, nth: usize) {
        kill(Pid::from_raw(self.sentinels[nth].child.id().cast_signed()), Signal::SIGSTOP).unwrap();
    }

    /// Starts a Sentinel again that was ended, with what it knew.
    pub fn start_again(&mut self, nth: usize) {
        let Sentinel { child, folder, .. } = &mut self.sentinels[nth];
        *child = spawn_server(&["sentinel.conf", "--sentinel"], &[], folder);
    }

    /// Sets the silence after which the master counts as dead.
    pub async fn down_after(&self, silence: Duration) {
        for sentinel in &self.sentinels {
            let client = RedisUrl::at("127.0.0.1", sentinel.port, 0, self.password.as_deref()).client().unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let mut set = redis::cmd("SENTINEL");
            set.arg(&["SET", SERVICE, "down-after-milliseconds", &silence.as_millis().to_string()]);
            set.exec_async(&mut connection).await.unwrap();
        }
    }

    /// Waits until all Sentinels that answer name this server as the master.
    pub async fn named(&self, server: &TestRedis) {
        eventually_within(FAILOVER, "the Sentinels name the server", async || {
            let mut named = Vec::new();
            for sentinel in &self.sentinels {
                if let Ok((_, port)) = self.ask::<(String, u16)>(sentinel, "GET-MASTER-ADDR-BY-NAME").await {
                    named.push(port);
                }
            }
            !named.is_empty() && named.iter().all(|port| *port == server.port())
        })
        .await;
    }

    /// Waits until this server is a replica that is up to date with its master.
    pub async fn replicates(&self, server: &TestRedis) {
        eventually_within(FAILOVER, "the server is a replica", async || {
            // A Sentinel that makes it a replica breaks its connections.
            let mut connection = server.client().get_multiplexed_async_connection().await?;
            let replication: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
            let is_replica = replication.contains("role:slave") && replication.contains("master_link_status:up");
            if is_replica { Ok(()) } else { Err(redis::RedisError::from(std::io::Error::other("it is none"))) }
        })
        .await;
    }

    async fn ask<T: FromRedisValue>(&self, sentinel: &Sentinel, question: &str) -> redis::RedisResult<T> {
        sentinel.ask(self.password.as_deref(), question).await
    }
}

/// Publishes to the inbox until a replica has the message too; returns its id.
pub async fn publish_safely(redis: &mut Connection, message: &Value) -> String {
    eventually_within(FAILOVER, "a replica has the message", async || {
        let mut steps = redis::pipe();
        steps.cmd("XADD").arg("samovar:inbox").arg("*").arg("message").arg(message.to_string());
        steps.cmd("WAIT").arg(1).arg(1_000);
        let (id, replicas): (String, u64) = steps.query_async(redis).await?;
        if replicas > 0 { Ok(id) } else { Err(redis::RedisError::from(std::io::Error::other("no replica"))) }
    })
    .await
}

impl Sentinel {
    pub(super) fn launch(master: &TestRedis, password: Option<&str>, quorum: usize) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let mut settings = format!(
            "port {port}\nbind 127.0.0.1\nprotected-mode no\nlogfile sentinel.log\ndir .\n\
             sentinel monitor {SERVICE} 127.0.0.1 {} {quorum}\n\
             sentinel down-after-milliseconds {SERVICE} 1000\n\
             sentinel failover-timeout {SERVICE} 1000\n",
            master.port()
        );
        if let Some(password) = master.password() {
            settings += &format!("sentinel auth-pass {SERVICE} \"{password}\"\n");
        }
        if let Some(password) = password {
            settings += &format!("requirepass \"{password}\"\nsentinel sentinel-pass \"{password}\"\n");
        }
        let file: PathBuf = folder.path().join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        let child = spawn_server(&["sentinel.conf", "--sentinel"], &[], &folder);
        Self { child, port, folder }
    }

    /// Waits until it answers, if it has no password.
    pub(super) async fn ready(&self) {
        eventually("the Sentinel answers", async || {
            self.ask::<(String, u16)>(None, "GET-MASTER-ADDR-BY-NAME").await.map(|_| ())
        })
        .await;
    }

    async fn ask<T: FromRedisValue>(&self, password: Option<&str>, question: &str) -> redis::RedisResult<T> {
        let client = RedisUrl::at("127.0.0.1", self.port, 0, password).client()?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("SENTINEL").arg(question).arg(SERVICE).query_async(&mut connection).await
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
