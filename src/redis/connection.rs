//! A connection that reconnects by itself and fails a command that takes longer than its command timeout.
//!
//! The crate's [`ConnectionManager`] has two properties that a long-running process cannot accept. While it reconnects,
//! commands wait without limit, whatever its response timeout. Once its attempts are used up by anything but an I/O
//! error (a wrong password, too many clients), it answers every later command with that error and never tries again. So
//! it is configured to retry without limit, and each command waits at most `timeout`.
//!
//! It does not notice two failures. A server that became a replica keeps its connections and refuses every write. A
//! network path that drops packets silently (a firewall that lost the connection's state) keeps TCP waiting for up to
//! 15 minutes. So a connection that is refused for that reason, or gets no answer in time, is replaced by a new one: by
//! then the name may resolve to another server.

use super::ServerInfo;
use super::refused::is_refusal;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, PubSub};
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisFuture, RedisResult, Value};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::context::TokioContext;

use super::WrongTypes;
#[cfg(feature = "simulation")]
use super::simulated::{self, Manager};
use crate::entry::duration;

#[cfg(not(feature = "simulation"))]
type Manager = ConnectionManager;

/// The timeout of one attempt: name resolution, TCP, TLS and authentication together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The delay before the second attempt. Each later delay doubles, plus a random part of the same size.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// The longest delay before its random part, so a fleet reconnects within two seconds of Redis's return.
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// The shortest interval between two reconnects away from a replica. The new connection may reach the same replica.
const RENEW: Duration = Duration::from_secs(1);

/// The time after which a refused `INFO` is retried, so that a right granted later is used.
const REFUSED: Duration = Duration::from_secs(60);

/// The prefix of an incarnation that is the digest of a script.
const SCRIPT: &str = "script:";

/// The error code of a replica that receives a write.
const READONLY: &str = "READONLY";

/// The error code of a command on a key of another type.
const WRONGTYPE: &str = "WRONGTYPE";

/// A multiplexed connection that reconnects by itself. Cheap to clone; clones share the socket.
///
/// A failed command may have been executed: the connection may have broken after Redis read it. Blocking commands delay
/// every user of the socket; give them a connection of their own.
#[derive(Clone)]
pub struct Connection {
    line: Arc<Mutex<Line>>,
    client: Arc<Client>,
    server: Arc<str>,
    timeout: Duration,
    wrong_types: WrongTypes,
    /// The runtime that created the connection and drives its sockets, whichever task sends the command: a runtime that
    /// ends closes its sockets.
    home: Handle,
    /// When `INFO` was last refused.
    refused: Arc<Mutex<Option<Instant>>>,
    /// The digest of the last script that was loaded to identify the server's incarnation.
    loaded: Arc<Mutex<Option<String>>>,
}

/// The current connection and when it was opened.
struct Line {
    manager: Manager,
    since: Instant,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).field("timeout", &self.timeout).finish()
    }
}

impl Connection {
    /// Connects once. A failure (no server, wrong password, still loading) is returned at once, and the caller decides
    /// about another attempt. Later failures are retried without limit.
    pub(super) async fn open(client: Client, server: Arc<str>, timeout: Duration) -> RedisResult<Self> {
        probe(&client, timeout).await?;
        let mut connection = Self::lazy(client, server, timeout)?;
        ping(&mut connection).await?;
        Ok(connection)
    }

    /// Connects lazily, at the latest with the first command, which fails like any later one. Call it on the runtime
    /// that shall drive the connection.
    pub(super) fn lazy(client: Client, server: Arc<str>, timeout: Duration) -> RedisResult<Self> {
        let line = Line { manager: manager(&client)?, since: Instant::now() };
        let (line, home) = (Arc::new(Mutex::new(line)), Handle::current());
        let (refused, loaded, wrong_types) = (Arc::default(), Arc::default(), WrongTypes::default());
        Ok(Self { line, client: client.into(), server, timeout, home, refused, loaded, wrong_types })
    }

    fn manager(&self) -> Manager {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).manager.clone()
    }

    /// Reconnects, for all clones, unless the connection is younger than `age`.
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

    /// Returns the client, for separate connections to the same server: subscriptions and blocking commands.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the command timeout.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sets another command timeout for this clone.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Reads these sections of `INFO`; `None` if the user has no right to `INFO`, as on some managed servers.
    ///
    /// # Errors
    /// Fails if Redis returns any other error.
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

    /// Returns the server's incarnation: a value that changes with each restart and failover. It is the server's
    /// `run_id`, or, without a right to `INFO`, the digest of a script that a restarted server has lost. `known` is the
    /// stored value; a stored script digest is valid for every client. Without one, the connection and its clones use
    /// the script that they loaded before.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
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

    /// Reports keys of the wrong type to `wrong_types`.
    #[must_use]
    pub fn telling(mut self, wrong_types: &WrongTypes) -> Self {
        self.wrong_types = wrong_types.clone();
        self
    }

    fn timed_out(&self) -> redis::RedisError {
        self.renew(self.timeout);
        let Self { server, timeout, .. } = self;
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {server} within {}", duration::text(*timeout)))
            .into()
    }
}

/// Opens a connection of its own for subscriptions.
///
/// # Errors
/// Redis cannot be reached, or refuses the user.
pub(crate) async fn subscriber(client: &Client) -> RedisResult<PubSub> {
    #[cfg(feature = "simulation")]
    if let Some(simulated) = simulated::subscriber(client).await {
        return simulated;
    }
    client.get_async_pubsub().await
}

/// Connects once, without a second attempt.
async fn probe(client: &Client, timeout: Duration) -> RedisResult<()> {
    #[cfg(feature = "simulation")]
    if simulated::is_on() {
        return Ok(());
    }
    let first_try =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(Some(timeout));
    ping(&mut client.get_multiplexed_async_connection_with_config(&first_try).await?).await
}

fn manager(client: &Client) -> RedisResult<Manager> {
    #[cfg(feature = "simulation")]
    if let Some(simulated) = simulated::socket(client) {
        return Ok(simulated);
    }
    let for_good = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        // `Connection` applies its own timeout to each command.
        .set_response_timeout(None)
        .set_number_of_retries(usize::MAX)
        .set_exponent_base(2.0)
        .set_min_delay(FIRST_DELAY)
        .set_max_delay(LONGEST_DELAY);
    let manager = ConnectionManager::new_lazy_with_config(client.clone(), for_good)?;
    #[cfg(feature = "simulation")]
    let manager = Manager::Real(manager);
    Ok(manager)
}

/// Returns `true` if the answer is this error of the server.
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
            match tokio::time::timeout(self.timeout, sent).await {
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
                Err(_) => Err(self.timed_out()),
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
            match tokio::time::timeout(self.timeout, sent).await {
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
                        // In a transaction, and where only the first error is reported, any of the commands may have
                        // failed.
                        let each = answers.as_ref().ok().filter(|answers| answers.len() == pipeline.len());
                        for (n, cmd) in pipeline.cmd_iter().enumerate() {
                            if each.is_none_or(|answers| is_error(WRONGTYPE, &answers[n])) {
                                self.wrong_types.met(cmd);
                            }
                        }
                    }
                    answers
                }
                Err(_) => Err(self.timed_out()),
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

    /// Covers a value that could not be stored and a value that another client overwrites.
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
