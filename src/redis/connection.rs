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
//! then the name may resolve to another server. Where Sentinels name the master, all connections follow them. To a
//! Cluster, a connection is one to each master: see [`router`].

mod router;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{BoxStream, StreamExt};
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, PubSub, PubSubSink};
use redis::{
    AsyncConnectionConfig, Client, Cmd, Msg, Pipeline, RedisError, RedisFuture, RedisResult, ToRedisArgs, Value,
};
use tokio::runtime::Handle;
use tokio_util::context::TokioContext;

use super::cluster::Cluster;
use super::cluster::topology::Topology;
use super::endpoint::Address;
use super::named::{named, named_answer};
use super::refused::is_refusal;
use super::sentinels::SentinelStatus;
#[cfg(feature = "simulation")]
use super::simulated::{self, Manager};
use super::stranger;
use super::target::{Moved, Target};
#[cfg(feature = "worker")]
use super::{RedisTime, Servers};
use super::{ServerInfo, WrongTypes};
use crate::entry::duration;
use crate::protocol::slot_of;
use router::Router;
pub(crate) use router::UNANSWERED;

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

/// The attempts to reconnect to a master that Sentinels named: about five seconds. By then it may be replaced, and a
/// socket that nobody uses any more ends only with its attempts.
const ATTEMPTS: usize = 8;

/// The time after which a refused `INFO` is retried, so that a right granted later is used.
const REFUSED: Duration = Duration::from_secs(60);

/// The error codes of a server that is not the master any more: a replica that receives a write or has lost its master,
/// a master that became a replica during a blocking command.
const NO_MASTER: [&str; 3] = ["READONLY", "MASTERDOWN", "UNBLOCKED"];

/// The error code of a master that its replicas have left: others may have another master.
const NO_REPLICAS: &str = "NOREPLICAS";

/// The error code of a command on a key of another type.
const WRONGTYPE: &str = "WRONGTYPE";

/// A multiplexed connection that reconnects by itself. Cheap to clone; clones share the socket.
///
/// A failed command may have been executed: the connection may have broken after Redis read it. Blocking commands delay
/// every user of the socket; give them a connection of their own.
#[derive(Clone)]
pub struct Connection {
    line: Arc<Mutex<Option<Line>>>,
    target: Target,
    /// Sends each command to its master, where there are several.
    router: Option<Router>,
    server: Arc<str>,
    timeout: Duration,
    wrong_types: WrongTypes,
    /// The runtime that created the connection and drives its sockets, whichever task sends the command: a runtime that
    /// ends closes its sockets.
    home: Handle,
    /// When `INFO` was last refused.
    refused: Arc<Mutex<Option<Instant>>>,
    /// The digest of the last script that was loaded to identify the server's incarnation.
    #[cfg_attr(not(feature = "worker"), expect(dead_code, reason = "only a worker looks for restarts"))]
    loaded: Arc<Mutex<Option<String>>>,
}

/// The current socket, when it was opened, and the number of its server.
struct Line {
    manager: Manager,
    since: Instant,
    number: u64,
}

/// A subscription over a connection of its own. Its messages end with the connection, and when the server is replaced.
pub(crate) struct Subscribed {
    /// Subscribes and unsubscribes. The connection lives as long as it does.
    #[cfg_attr(not(feature = "worker"), expect(dead_code, reason = "only a worker unsubscribes"))]
    pub(crate) sink: PubSubSink,
    /// The messages.
    pub(crate) messages: BoxStream<'static, Msg>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).field("timeout", &self.timeout).finish()
    }
}

impl Connection {
    /// Connects once. A failure (no server, wrong password, still loading) is returned at once, and the caller decides
    /// about another attempt. Later failures are retried without limit.
    pub(super) async fn open(target: Target, server: Arc<str>, timeout: Duration) -> RedisResult<Self> {
        probe(&*target.find().await?, timeout).await?;
        let mut connection = Self::lazy(target, server, timeout);
        ping(&mut connection).await?;
        Ok(connection)
    }

    /// Connects with the first command, which fails like any later one. Call it on the runtime that shall drive the
    /// connection.
    pub(super) fn lazy(target: Target, server: Arc<str>, timeout: Duration) -> Self {
        let (line, home) = (Arc::default(), Handle::current());
        let (refused, loaded, wrong_types) = (Arc::default(), Arc::default(), WrongTypes::default());
        let router = if let Target::Cluster(cluster) = &target { Some(Router::new(Arc::clone(cluster))) } else { None };
        Self { line, target, router, server, timeout, wrong_types, home, refused, loaded }
    }

    /// Returns a connection to one master of a Cluster, which the same runtime drives.
    pub(super) fn at_node(&self, cluster: &Arc<Cluster>, address: &Address) -> Self {
        let _home = self.home.enter();
        let server = format!("{address}, a master of {}", self.server);
        Self::lazy(Target::Node(Arc::clone(cluster), address.clone()), server.into(), self.timeout)
    }

    /// Returns connections to all masters: this one alone, unless it is one to a Cluster.
    pub(crate) async fn masters(&self) -> Vec<Self> {
        let Some(router) = &self.router else { return vec![self.clone()] };
        router.topology().await.masters().iter().map(|address| router.node(address, self)).collect()
    }

    /// Returns `true` if this is a connection to a Cluster.
    #[cfg(feature = "worker")]
    pub(crate) fn is_cluster(&self) -> bool {
        self.router.is_some()
    }

    /// Returns the slots of a Cluster's masters, as far as they are known; `None` if this is no Cluster.
    pub(super) fn slots(&self) -> Option<Arc<Topology>> {
        self.router.as_ref()?.cluster().known()
    }

    /// Returns the connection to this master of a Cluster.
    pub(super) fn master_at(&self, address: &Address) -> Option<Self> {
        Some(self.router.as_ref()?.node(address, self))
    }

    /// Returns the connection to this master of a Cluster, if it answered the last question.
    #[cfg(feature = "worker")]
    pub(super) fn answering(&self, address: &Address) -> Option<Self> {
        let router = self.router.as_ref().filter(|router| !router.cluster().is_silent(address))?;
        Some(router.node(address, self))
    }

    /// Returns a time that a server gave, such as that of an id in a stream, on the fleet's clock: the latest that it
    /// may be, since any master may have given it.
    #[cfg(feature = "worker")]
    pub(crate) fn on_fleets_clock(&self, at: RedisTime) -> RedisTime {
        let behind = self.router.as_ref().map_or(0, |router| router.cluster().behind());
        // Rounded up.
        RedisTime::from_millis(at.as_millis() - (-behind).div_euclid(1_000))
    }

    /// Returns the address of the master that serves a key. `None` if it is not known.
    #[cfg(feature = "worker")]
    pub(crate) fn master_of(&self, key: &str) -> Option<String> {
        self.target.master_of(key)
    }

    /// Returns the master of a Cluster that serves a key. `None` if it is not known, or this is no Cluster.
    pub(crate) fn owner_of(&self, key: &str) -> Option<String> {
        Some(self.slots()?.owner(slot_of(key.as_bytes()))?.to_string())
    }

    /// Returns `true` if this is a master of the Cluster, as far as that is known.
    pub(crate) fn has_master(&self, master: &str) -> bool {
        self.slots().is_some_and(|known| known.masters().iter().any(|address| address.to_string() == master))
    }

    /// Waits until the slots of a Cluster's masters are known as they are now.
    pub(super) async fn slots_anew(&self) {
        if let Some(router) = &self.router {
            router.cluster().asked_anew(self.timeout).await;
        }
    }

    /// Returns what is wrong with the clocks of a Cluster's masters: one is far ahead of another. `None` if they agree,
    /// or there is one.
    #[cfg(feature = "worker")]
    pub(crate) fn fault_of_clocks(&self) -> Option<String> {
        self.router.as_ref()?.cluster().fault_of_clocks()
    }

    /// Runs `f` on the runtime that drives the connection.
    pub(super) fn home<T>(&self, f: impl FnOnce() -> T) -> T {
        let _home = self.home.enter();
        f()
    }

    /// Returns the digest of the last script that was loaded to identify the server's incarnation.
    #[cfg(feature = "worker")]
    pub(super) fn loaded(&self) -> &Mutex<Option<String>> {
        &self.loaded
    }

    pub(super) fn wrong_types(&self) -> &WrongTypes {
        &self.wrong_types
    }

    /// Returns the current socket to the current server.
    async fn manager(&self) -> RedisResult<(Manager, Moved)> {
        let (client, moved) = self.target.current().await?;
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = line.as_ref().filter(|line| line.number == moved.number()) {
            return Ok((line.manager.clone(), moved));
        }
        let opened = self.opened(&client, moved.number())?;
        let manager = opened.manager.clone();
        *line = Some(opened);
        Ok((manager, moved))
    }

    fn opened(&self, client: &Client, number: u64) -> RedisResult<Line> {
        let _home = self.home.enter();
        let attempts = if self.target.may_move() { ATTEMPTS } else { usize::MAX };
        Ok(Line { manager: manager(client, attempts)?, since: Instant::now(), number })
    }

    /// Reconnects, for all clones, unless the connection is younger than `age`. The next command opens it.
    fn renew(&self, age: Duration) {
        self.home(|| self.target.ask_soon());
        self.line.lock().unwrap_or_else(PoisonError::into_inner).take_if(|line| line.since.elapsed() >= age);
    }

    /// Opens a connection of its own and subscribes to channels.
    ///
    /// # Errors
    /// Redis cannot be reached within five seconds, or refuses the user.
    pub(crate) async fn subscribe(&self, channels: impl ToRedisArgs) -> RedisResult<Subscribed> {
        let subscribing = async {
            let (client, moved) = self.target.current().await?;
            let subscribed = async {
                let (mut sink, messages) = subscriber(&client).await?.split();
                sink.subscribe(channels).await?;
                Ok((sink, messages))
            };
            let subscribed = moved.clone().or_moved(subscribed).await;
            let (sink, messages) = subscribed.map_err(|error| named(error, &address_of(&client)))?;
            Ok(Subscribed { sink, messages: messages.take_until(moved.moved()).boxed() })
        };
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        tokio::time::timeout(CONNECT_TIMEOUT, subscribing).await.unwrap_or_else(late)
    }

    /// Returns why a failover would go unnoticed (no Sentinel names the master, or no master of a Cluster answers), or
    /// which masters of a Cluster do not answer. `None` if all is well, or the server of the URL is the only one.
    #[cfg(feature = "worker")]
    pub fn fault_of_masters(&self) -> Option<String> {
        self.target.fault_of_masters()
    }

    /// Returns the master and the number of Sentinels that answer; `None` if no Sentinels name the server. Waits until
    /// each Sentinel has answered or failed, for `patience` at most.
    pub async fn sentinels(&self, patience: Duration) -> Option<SentinelStatus> {
        self.target.sentinels(patience).await
    }

    /// Returns the servers that are known without a question. The replicas are known of a Cluster only.
    #[cfg(feature = "worker")]
    pub fn servers(&self) -> Servers {
        self.target.servers()
    }

    /// Returns the servers, with the replicas that the master names. Waits for `patience` at most until each Sentinel
    /// has answered.
    #[cfg(feature = "worker")]
    pub async fn all_servers(&self, patience: Duration) -> Servers {
        self.sentinels(patience).await;
        let mut servers = self.servers();
        if self.router.is_none()
            && let Ok(Some(info)) = self.clone().info(&["replication"]).await
        {
            servers.replicas = info.replicas();
        }
        servers
    }

    /// Returns the name of the user; `None` for the default user.
    pub(super) fn user(&self) -> Option<&str> {
        self.target.user()
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

    /// Reads these sections of `INFO`; `None` if the user has no right to `INFO`, as on some managed servers. Those of
    /// a Cluster's masters are added up, as far as they answer.
    ///
    /// # Errors
    /// Fails if Redis returns any other error.
    pub async fn info(&mut self, sections: &[&str]) -> RedisResult<Option<ServerInfo>> {
        if self.router.is_some() {
            let mut masters = self.masters().await;
            let asking = masters.iter_mut().map(|master| Box::pin(master.info(sections)));
            let (mut all, mut failed) = (Vec::new(), None);
            for answer in join_all(asking).await {
                match answer {
                    Ok(Some(info)) => all.push(info),
                    Ok(None) => return Ok(None),
                    // What is on a master that does not answer cannot be used either.
                    Err(e) => failed = Some(e),
                }
            }
            return match failed {
                Some(e) if all.is_empty() => Err(e),
                _ => Ok(Some(ServerInfo::of_all(all))),
            };
        }
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

    /// Leaves a server that seems not to be the master any more.
    fn notice<'a>(&self, codes: impl IntoIterator<Item = &'a str>, error: Option<&RedisError>) {
        let is_broken = || self.target.may_move() && error.is_some_and(|e| e.code().is_none());
        let mut codes = codes.into_iter();
        let is_sign = |code| NO_MASTER.contains(&code) || (code == NO_REPLICAS && self.target.may_move());
        if codes.any(is_sign) || is_broken() {
            self.renew(RENEW);
        }
    }

    /// Reports keys of the wrong type to `wrong_types`.
    #[must_use]
    pub fn telling(mut self, wrong_types: &WrongTypes) -> Self {
        self.wrong_types = wrong_types.clone();
        self
    }

    pub(super) fn timed_out(&self) -> redis::RedisError {
        self.renew(self.timeout);
        let Self { server, timeout, .. } = self;
        let why = self.target.fault().map(|fault| format!(": {fault}")).unwrap_or_default();
        let what = format!("no answer from {server} within {}{why}", duration::text(*timeout));
        io::Error::new(io::ErrorKind::TimedOut, what).into()
    }
}

/// Returns the address of a client's server.
fn address_of(client: &Client) -> String {
    client.get_connection_info().addr().to_string()
}

async fn subscriber(client: &Client) -> RedisResult<PubSub> {
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
    let address = address_of(client);
    let answered = ping(&mut stranger::connect(client, &first_try, &address).await?).await;
    answered.map_err(|error| stranger::explained_first(error, client.get_connection_info().addr(), &address))
}

fn manager(client: &Client, attempts: usize) -> RedisResult<Manager> {
    #[cfg(feature = "simulation")]
    if let Some(simulated) = simulated::socket(client) {
        return Ok(simulated);
    }
    let for_good = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        // `Connection` applies its own timeout to each command.
        .set_response_timeout(None)
        .set_number_of_retries(attempts)
        .set_exponent_base(2.0)
        .set_min_delay(FIRST_DELAY)
        .set_max_delay(LONGEST_DELAY);
    let manager = ConnectionManager::new_lazy_with_config(client.clone(), for_good)?;
    #[cfg(feature = "simulation")]
    let manager = Manager::Real(manager);
    Ok(manager)
}

/// Returns the error code if the answer is an error of the server.
fn code_of(answer: &Value) -> Option<&str> {
    match answer {
        Value::ServerError(e) => Some(e.code()),
        _ => None,
    }
}

async fn ping(connection: &mut impl ConnectionLike) -> RedisResult<()> {
    redis::cmd("PING").exec_async(connection).await
}

impl Connection {
    /// Sends a command to the current server.
    pub(super) async fn send(&self, cmd: &Cmd) -> RedisResult<Value> {
        let sending = async {
            let (mut manager, moved) = self.manager().await?;
            let sent = TokioContext::new(manager.send_packed_command(cmd), self.home.clone());
            moved.or_moved(sent).await
        };
        let Ok(answer) = tokio::time::timeout(self.timeout, sending).await else { return Err(self.timed_out()) };
        let code = answer.as_ref().map_or_else(|e| e.code(), code_of);
        self.notice(code, answer.as_ref().err());
        if code == Some(WRONGTYPE) {
            self.wrong_types.met(cmd);
        }
        let answer = answer.map_err(|error| self.named(error));
        answer.map(|answer| if code_of(&answer).is_some() { self.named_answer(answer) } else { answer })
    }

    /// Sends a pipeline to the current server.
    pub(super) async fn send_all(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let sending = async {
            let (mut manager, moved) = self.manager().await?;
            let sent = TokioContext::new(manager.send_packed_commands(pipeline, offset, count), self.home.clone());
            moved.or_moved(sent).await
        };
        let Ok(answers) = tokio::time::timeout(self.timeout, sending).await else { return Err(self.timed_out()) };
        let codes: Vec<&str> = match &answers {
            Ok(answers) => answers.iter().filter_map(code_of).collect(),
            Err(e) => e.code().into_iter().collect(),
        };
        self.notice(codes.iter().copied(), answers.as_ref().err());
        if codes.contains(&WRONGTYPE) {
            // In a transaction, and where only the first error is reported, any of the commands may have failed.
            let each = answers.as_ref().ok().filter(|answers| answers.len() == pipeline.len());
            for (n, cmd) in pipeline.cmd_iter().enumerate() {
                if each.is_none_or(|answers| code_of(&answers[n]) == Some(WRONGTYPE)) {
                    self.wrong_types.met(cmd);
                }
            }
        }
        let mut answers = answers.map_err(|error| self.named(error))?;
        for answer in answers.iter_mut().filter(|answer| code_of(answer).is_some()) {
            *answer = self.named_answer(std::mem::replace(answer, Value::Nil));
        }
        Ok(answers)
    }

    /// Returns an error of this connection with the address of its server.
    fn named(&self, error: RedisError) -> RedisError {
        match self.target.address() {
            Some(address) => named(error, &address),
            None => error,
        }
    }

    fn named_answer(&self, answer: Value) -> Value {
        match self.target.address() {
            Some(address) => named_answer(answer, &address),
            None => answer,
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self.router.clone() {
            None => Box::pin(self.send(cmd)),
            Some(router) => Box::pin(async move { router.send(cmd, self).await }),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.router.clone() {
            None => Box::pin(self.send_all(pipeline, offset, count)),
            Some(router) => Box::pin(async move { Box::pin(router.send_all(pipeline, offset, count, self)).await }),
        }
    }

    fn get_db(&self) -> i64 {
        self.target.db()
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
}
