//! A connection that comes back by itself and never makes a caller wait longer than its patience.
//!
//! The crate's [`ConnectionManager`] has two habits that a process meant to run for years cannot have. While it
//! reconnects, commands wait without limit, whatever its response time-out. And once its attempts are used up by anything
//! but an I/O error (a refused password, too many clients), it answers every later command with that error and never
//! tries again. So it is told never to give up, and each command waits for it no longer than `patience`.
//!
//! Two things are not seen by it at all. A server that became a replica keeps its connections and refuses every write; and a
//! path that swallows what is sent (a firewall that forgot the connection) takes TCP a quarter of an hour to give up. So who is
//! refused for that, or is not answered in time, connects anew: by then the name may lead elsewhere, and the path is another.

use super::ServerInfo;
use super::requirements::is_refusal;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisFuture, RedisResult, Value};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::context::TokioContext;

use super::WrongTypes;
use crate::entry::duration;

/// For one attempt: name resolution, TCP, TLS and authentication together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Before the second attempt; each later delay doubles, plus as much again at random.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// No delay grows beyond this (and its random part), so a fleet is back within two seconds of Redis.
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// How often a replica is left for another connection, which may end at the same one.
const RENEW: Duration = Duration::from_secs(1);

/// How long `INFO` is not asked for again once it was refused, so that a right that is granted later is used.
const REFUSED: Duration = Duration::from_secs(60);

/// What begins the name of a server's life where a script's digest follows.
const SCRIPT: &str = "script:";

/// What a replica answers to a write.
const READONLY: &str = "READONLY";

/// What is answered where a key is of another type than the command takes.
const WRONGTYPE: &str = "WRONGTYPE";

/// A multiplexed connection that comes back by itself. Cheap to clone; clones share the socket.
///
/// A command that fails was perhaps carried out: the connection may have died after Redis read it. Blocking commands
/// hold up everybody who shares the socket; give them a connection of their own.
#[derive(Clone)]
pub struct Connection {
    line: Arc<Mutex<Line>>,
    client: Arc<Client>,
    server: Arc<str>,
    patience: Duration,
    wrong_types: WrongTypes,
    /// Where it was made, and where its sockets are driven whoever's command finds that one is needed: a runtime that ends
    /// takes its sockets with it.
    home: Handle,
    /// When `INFO` was refused last.
    refused: Arc<Mutex<Option<Instant>>>,
    /// The digest of the script that was loaded last to tell the server's life by.
    loaded: Arc<Mutex<Option<String>>>,
}

/// The present connection, and since when it is.
struct Line {
    manager: ConnectionManager,
    since: Instant,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).field("patience", &self.patience).finish()
    }
}

impl Connection {
    /// Connects, once: what is wrong now (no server, wrong password, still loading) is returned at once, so that the
    /// caller can say so and decide whether to try again. What goes wrong later mends itself.
    pub(super) async fn open(client: Client, server: Arc<str>, patience: Duration) -> RedisResult<Self> {
        let first_try = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(patience));
        let mut probe = client.get_multiplexed_async_connection_with_config(&first_try).await?;
        ping(&mut probe).await?;
        drop(probe);

        let mut connection = Self::lazy(client, server, patience)?;
        ping(&mut connection).await?;
        Ok(connection)
    }

    /// Connects in its own time, with the first command at the latest; that fails as any later one would. To be called on the
    /// runtime that is to drive it.
    pub(super) fn lazy(client: Client, server: Arc<str>, patience: Duration) -> RedisResult<Self> {
        let line = Line { manager: manager(&client)?, since: Instant::now() };
        let (line, home) = (Arc::new(Mutex::new(line)), Handle::current());
        let (refused, loaded, wrong_types) = (Arc::default(), Arc::default(), WrongTypes::default());
        Ok(Self { line, client: client.into(), server, patience, home, refused, loaded, wrong_types })
    }

    fn manager(&self) -> ConnectionManager {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).manager.clone()
    }

    /// Connects anew, for all clones, unless the connection is younger than `age`.
    fn renew(&self, age: Duration) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.since.elapsed() >= age
            && let Ok(manager) = {
                let _home = self.home.enter();
                manager(&self.client)
            }
        {
            *line = Line { manager, since: Instant::now() };
        }
    }

    /// For connections of one's own to the same server: subscriptions and blocking commands.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How long a command waits at most.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The same connection for somebody with another patience.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// These sections of `INFO`; `None` where the user may not ask for it, as with managed servers.
    ///
    /// # Errors
    /// Redis's, but for that refusal.
    pub async fn info(&mut self, sections: &[&str]) -> RedisResult<Option<ServerInfo>> {
        let refused = Arc::clone(&self.refused);
        let refused = || refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused().is_some_and(|at| at.elapsed() < REFUSED) {
            return Ok(None);
        }
        match redis::cmd("INFO").arg(sections).query_async::<String>(self).await {
            Err(e) if is_refusal(&e) => {
                *refused() = Some(Instant::now());
                Ok(None)
            }
            answer => answer.map(|text| Some(ServerInfo::parse(&text))),
        }
    }

    /// Which of its lives the server is in: another value after each restart and failover. It is the server's `run_id`,
    /// or where that may not be asked for, a script of its own that only a server has which was not started anew since.
    /// `known` is the value as it was noted; that of a script holds for whoever asks. Where it could not be noted, the
    /// connection and its clones go by the script that they loaded before.
    ///
    /// # Errors
    /// Redis's.
    pub async fn incarnation(&mut self, known: Option<&str>) -> RedisResult<String> {
        if let Some(digest) = known.and_then(|known| known.strip_prefix(SCRIPT))
            && self.has_script(digest).await?
        {
            return Ok(format!("{SCRIPT}{digest}"));
        }
        if let Some(info) = self.info(&["server"]).await? {
            return Ok(info.run_id().unwrap_or_default().to_owned());
        }
        let loaded = Arc::clone(&self.loaded);
        let loaded = || loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let before = loaded().clone();
        if let Some(digest) = before
            && self.has_script(&digest).await?
        {
            return Ok(format!("{SCRIPT}{digest}"));
        }
        let script = format!("return '{:032x}'", rand::random::<u128>());
        let digest: String = redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async(self).await?;
        *loaded() = Some(digest.clone());
        Ok(format!("{SCRIPT}{digest}"))
    }

    async fn has_script(&mut self, digest: &str) -> RedisResult<bool> {
        let there: Vec<bool> = redis::cmd("SCRIPT").arg("EXISTS").arg(digest).query_async(self).await?;
        Ok(there == [true])
    }

    /// The same connection, which tells these of keys of the wrong type.
    #[must_use]
    pub fn telling(mut self, wrong_types: &WrongTypes) -> Self {
        self.wrong_types = wrong_types.clone();
        self
    }

    fn out_of_patience(&self) -> redis::RedisError {
        self.renew(self.patience);
        let Self { server, patience, .. } = self;
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {server} within {}", duration::text(*patience)))
            .into()
    }
}

fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let for_good = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        // Each command has its timer here already.
        .set_response_timeout(None)
        .set_number_of_retries(usize::MAX)
        .set_exponent_base(2.0)
        .set_min_delay(FIRST_DELAY)
        .set_max_delay(LONGEST_DELAY);
    ConnectionManager::new_lazy_with_config(client.clone(), for_good)
}

/// Whether a server answers with this error.
fn is_error(code: &str, answer: &Value) -> bool {
    matches!(answer, Value::ServerError(e) if e.code() == code)
}

async fn ping(connection: &mut impl ConnectionLike) -> RedisResult<()> {
    redis::cmd("PING").exec_async(connection).await
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut manager = self.manager();
            let sent = TokioContext::new(manager.send_packed_command(cmd), self.home.clone());
            match timeout(self.patience, sent).await {
                Ok(answer) => {
                    let is =
                        |code| answer.as_ref().map_or_else(|e| e.code() == Some(code), |answer| is_error(code, answer));
                    if is(READONLY) {
                        self.renew(RENEW);
                    }
                    if is(WRONGTYPE) {
                        self.wrong_types.met(cmd);
                    }
                    answer
                }
                Err(_) => Err(self.out_of_patience()),
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut manager = self.manager();
            let sent = TokioContext::new(manager.send_packed_commands(pipeline, offset, count), self.home.clone());
            match timeout(self.patience, sent).await {
                Ok(answers) => {
                    let is = |code| {
                        answers.as_ref().map_or_else(
                            |e| e.code() == Some(code),
                            |all| all.iter().any(|answer| is_error(code, answer)),
                        )
                    };
                    if is(READONLY) {
                        self.renew(RENEW);
                    }
                    if is(WRONGTYPE) {
                        // In a transaction, and where only the first error is told, it may be any of them.
                        let each = answers.as_ref().ok().filter(|answers| answers.len() == pipeline.len());
                        for (n, cmd) in pipeline.cmd_iter().enumerate() {
                            if each.is_none_or(|answers| is_error(WRONGTYPE, &answers[n])) {
                                self.wrong_types.met(cmd);
                            }
                        }
                    }
                    answers
                }
                Err(_) => Err(self.out_of_patience()),
            }
        })
    }

    fn get_db(&self) -> i64 {
        self.client.get_connection_info().redis_settings().db()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::server::Server;

    #[tokio::test]
    async fn a_socket_outlives_the_runtime_whose_command_needed_it() {
        let server = Server::start().await;
        let mut here = server.connect().await;
        let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();

        let () = redis::cmd("CLIENT")
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .exec_async(&mut server.connect().await)
            .await
            .unwrap();
        let mut there = here.clone();
        let again = async move { while ping(&mut there).await.is_err() {} };
        elsewhere.spawn(again).await.unwrap();
        tokio::task::spawn_blocking(move || elsewhere.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
        ping(&mut here).await.unwrap();
    }

    /// It could not be noted, or somebody else notes another each time.
    #[tokio::test]
    async fn a_life_that_no_script_is_noted_for_takes_one_script() {
        let server = Server::start().await;
        let mut admin = server.connect().await;
        let () = redis::cmd("ACL").arg(&["SETUSER", "default", "-info"]).exec_async(&mut admin).await.unwrap();
        let mut connection = server.connect().await;
        let life = connection.incarnation(None).await.unwrap();
        assert!(life.starts_with(SCRIPT), "{life}");
        for known in [None, Some(""), Some("a run_id"), Some("script:of another life"), Some(life.as_str())] {
            assert_eq!(connection.clone().incarnation(known).await.unwrap(), life, "{known:?}");
        }
        // A server that forgot it was started anew.
        let () = redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut admin).await.unwrap();
        assert_ne!(connection.incarnation(Some(&life)).await.unwrap(), life);
    }
}
