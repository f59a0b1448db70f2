//! A Redis Cluster: its masters, the slots that they serve, and their clocks.
//!
//! All masters are asked each second, and whenever a command was redirected or a connection broke. The answer of the
//! highest epoch holds: a master that was away, or is on the smaller side of a partition, has a lower one. Commands in
//! flight to a server that is no master any more fail at once.
//!
//! The clocks of masters differ. The fleet's clock is that of one master, and each process measures by how much the
//! other clocks are ahead of it: see [`clocks`] and [`scripts`].

mod clocks;
pub(super) mod routing;
pub(super) mod scripts;
pub(super) mod topology;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Value};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::endpoint::{Address, Endpoint, Login, Tls};
use super::stranger;
use clocks::{Clocks, Measured, REFERENCE};
use scripts::Scripts;
use topology::Topology;

/// The interval between two questions to a master.
const ASK: Duration = Duration::from_secs(1);
/// The shortest interval, however many signs of a change there are.
const ASK_SOON: Duration = Duration::from_millis(50);
/// The time that a master has for its answer, and for the connection to it.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time after which a lower epoch is believed, if no other is told.
const BELIEVED: Duration = Duration::from_secs(60);
/// The difference between two masters' clocks that is told, in microseconds.
#[cfg(feature = "worker")]
const SKEWED: u64 = 1_000_000;
/// The unanswered questions in a row from which on a master counts as silent: one may be lost on a busy machine.
#[cfg(feature = "worker")]
const SILENT: u32 = 2;
/// The consequence of silent masters.
const UNKNOWN: &str = "no master of the Cluster answers, and commands wait";

/// The masters of a Cluster, one after the other.
pub(super) type Topologies = watch::Receiver<Option<Arc<Topology>>>;

/// A Cluster by its URL.
#[derive(Clone)]
pub(super) struct Nodes {
    pub(super) seeds: Vec<Address>,
    pub(super) login: Login,
    pub(super) tls: Tls,
}

/// A Cluster, and what is known of it. The task that asks ends with the last reference.
pub(super) struct Cluster {
    nodes: Nodes,
    state: Mutex<State>,
    topology: watch::Sender<Option<Arc<Topology>>>,
    /// Counts the rounds of questions.
    asked: watch::Sender<u64>,
    /// Wakes the task.
    sign: watch::Sender<()>,
    task: Mutex<JoinSet<()>>,
    scripts: Scripts,
}

#[derive(Default)]
struct State {
    clocks: Clocks,
    /// Why no master answers.
    fault: Option<String>,
    /// The highest epoch, and when it was last told.
    epoch: Option<(u64, Instant)>,
    /// The servers that did not answer the last question, with the number of questions since their last answer.
    silent: BTreeMap<Address, u32>,
    /// Servers that a redirection named, and that no master tells of yet.
    named: BTreeSet<Address>,
}

/// The answer of a master.
struct Answer {
    epoch: u64,
    topology: Topology,
    clock: Measured,
    /// The masters that receive slots, as far as it knows.
    importing: BTreeSet<Address>,
}

impl Cluster {
    pub(super) fn new(nodes: Nodes) -> Self {
        let (topology, asked, sign) = (watch::Sender::new(None), watch::Sender::new(0), watch::Sender::new(()));
        Self {
            nodes,
            state: Mutex::default(),
            topology,
            asked,
            sign,
            task: Mutex::default(),
            scripts: Scripts::default(),
        }
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.nodes.login.user.as_deref()
    }

    /// Returns a client of one of its servers.
    ///
    /// # Errors
    /// Fails if the root certificates are invalid.
    pub(super) fn client(&self, address: &Address) -> RedisResult<Client> {
        Endpoint::Tcp(address.clone(), self.nodes.tls.clone()).client(&self.nodes.login)
    }

    /// Returns the scripts that were loaded.
    pub(super) fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    /// Starts to ask on the current runtime, unless a task does already.
    pub(super) fn ask_on(self: &Arc<Self>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        while task.try_join_next().is_some() {}
        if task.is_empty() {
            task.spawn(keep_asking(Arc::downgrade(self)));
        }
    }

    /// Asks at once. Call it on a runtime: it starts the task again if it ended.
    pub(super) fn ask_soon(self: &Arc<Self>) {
        self.ask_on();
        self.sign.send_replace(());
    }

    /// Returns the masters and their slots, and the receiver of what comes after. Waits until they are known.
    pub(super) async fn topology(&self) -> (Arc<Topology>, Topologies) {
        let mut topologies = self.topology.subscribe();
        loop {
            let known = topologies.borrow_and_update().clone();
            if let Some(topology) = known {
                return (topology, topologies);
            }
            // The sender is `self`, so this cannot fail.
            let _ = topologies.changed().await;
        }
    }

    /// Returns the masters and their slots, as [`Self::topology`] does.
    ///
    /// # Errors
    /// No server that the URL names answers.
    pub(super) async fn find(&self) -> RedisResult<Arc<Topology>> {
        let mut asked = self.asked.subscribe();
        loop {
            if let Some(topology) = self.topology.borrow().clone() {
                return Ok(topology);
            }
            if let Some(fault) = self.fault() {
                return Err(io::Error::new(io::ErrorKind::NotConnected, fault).into());
            }
            // The sender is `self`, so this cannot fail.
            let _ = asked.changed().await;
        }
    }

    /// Returns why no master answers; `None` if one does.
    pub(super) fn fault(&self) -> Option<String> {
        self.state().fault.clone()
    }

    /// Takes a redirection: another master serves the slot.
    pub(super) fn moved(self: &Arc<Self>, slot: u16, to: &str) {
        if let Some(to) = address(to) {
            self.topology.send_if_modified(|topology| {
                let Some(known) = topology.as_ref().filter(|known| known.owner(slot) != Some(&to)) else {
                    return false;
                };
                let mut given = Topology::clone(known);
                given.give(slot, to);
                *topology = Some(Arc::new(given));
                true
            });
        }
        self.ask_soon();
    }

    /// Takes a redirection to a server that receives a slot: it is asked from now on, although it may serve none yet.
    pub(super) fn named(self: &Arc<Self>, to: &Address) {
        if !self.known().is_some_and(|topology| topology.servers().contains(to))
            && self.state().named.insert(to.clone())
        {
            self.ask_soon();
        }
    }

    /// Returns `true` if a server did not answer the last question.
    #[cfg(feature = "worker")]
    pub(super) fn is_silent(&self, address: &Address) -> bool {
        self.state().silent.contains_key(address)
    }

    /// Returns the masters and their slots, if they are known.
    pub(super) fn known(&self) -> Option<Arc<Topology>> {
        self.topology.borrow().clone()
    }

    /// Returns a master that answers what concerns no key: the first one that answered the last question.
    pub(super) fn any(&self, topology: &Topology) -> Option<Address> {
        let masters = topology.masters();
        let state = self.state();
        let answering = masters.iter().find(|address| !state.silent.contains_key(*address));
        answering.or(masters.first()).cloned()
    }

    /// Returns by how many microseconds a master's clock is ahead of the fleet's. Waits until both have been read.
    pub(super) async fn ahead(self: &Arc<Self>, address: &Address) -> i64 {
        let mut asked = self.asked.subscribe();
        loop {
            if let Some(ahead) = self.state().clocks.ahead(address) {
                return ahead;
            }
            // The sender is `self`, so this cannot fail.
            let _ = asked.changed().await;
        }
    }

    /// Returns by how much the times of two workers may differ for the same moment.
    pub(super) fn doubt(&self) -> i64 {
        self.state().clocks.doubt()
    }

    /// Returns by how many microseconds a time of any master may be behind the fleet's clock.
    #[cfg(feature = "worker")]
    pub(super) fn behind(&self) -> i64 {
        let state = self.state();
        state.clocks.behind() + state.clocks.doubt()
    }

    /// Returns which masters have not answered for a while; `None` if all do.
    #[cfg(feature = "worker")]
    pub(super) fn fault_of_silence(&self) -> Option<String> {
        let (known, state) = (self.known()?, self.state());
        let is_silent = |address: &&Address| state.silent.get(*address).is_some_and(|questions| *questions >= SILENT);
        let silent: Vec<String> = known.masters().iter().filter(is_silent).map(Address::to_string).collect();
        match silent.as_slice() {
            [] => None,
            [one] => Some(format!("the master {one} does not answer; its keys cannot be read")),
            all => Some(format!("the masters {} do not answer; their keys cannot be read", all.join(", "))),
        }
    }

    /// Returns which master's clock is far from the fleet's; `None` if none is.
    #[cfg(feature = "worker")]
    pub(super) fn fault_of_clocks(&self) -> Option<String> {
        let state = self.state();
        let (address, ahead) = state.clocks.furthest()?;
        (ahead.unsigned_abs() > SKEWED).then(|| {
            let by = Duration::from_millis(ahead.unsigned_abs() / 1_000);
            let how = if ahead > 0 { "ahead of" } else { "behind" };
            format!("the clock of the master {address} is {by:?} {how} the fleet's; set all by NTP")
        })
    }

    /// Waits until all masters have been asked in a round that begins from now on, or `patience` has passed.
    pub(super) async fn asked_anew(self: &Arc<Self>, patience: Duration) {
        let mut asked = self.asked.subscribe();
        // The present round may have begun before.
        let round = *asked.borrow_and_update() + 2;
        let waiting = async {
            while *asked.borrow_and_update() < round {
                self.ask_soon();
                // The sender is `self`, so this cannot fail.
                let _ = asked.changed().await;
            }
        };
        let _ = timeout(patience, waiting).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the answers of a round.
    fn take(&self, answers: Vec<(Address, RedisResult<Answer>)>) {
        let mut best: Option<(u64, Topology)> = None;
        let (mut faults, mut all_importing) = (Vec::new(), BTreeSet::new());
        let mut state = self.state();
        let silent_before = mem::take(&mut state.silent);
        for (address, answer) in answers {
            match answer {
                Ok(Answer { epoch, topology, clock, importing }) => {
                    all_importing.extend(importing);
                    state.clocks.measured(address, clock);
                    if best.as_ref().is_none_or(|(highest, _)| epoch > *highest) {
                        best = Some((epoch, topology));
                    }
                }
                Err(e) => {
                    faults.push(format!("{address}: {e}"));
                    state.named.remove(&address);
                    let questions = silent_before.get(&address).copied().unwrap_or_default();
                    state.silent.insert(address, questions.saturating_add(1));
                }
            }
        }
        let fault = best.is_none().then(|| format!("{UNKNOWN}: {}", faults.join("; ")));
        match (&fault, &state.fault) {
            (Some(fault), None) if self.topology.borrow().is_some() => warn!("{fault}"),
            (None, Some(_)) => info!("a master of the Cluster answers again"),
            _ => {}
        }
        state.fault = fault;
        if let Some((_, mut topology)) = best.filter(|(epoch, _)| state.believes(*epoch)) {
            topology.import(all_importing);
            let mut servers = topology.servers();
            let State { clocks, named, .. } = &mut *state;
            named.retain(|address| !servers.contains(address));
            servers.extend(&*named);
            clocks.refer(topology.owner(REFERENCE), &servers);
            self.topology.send_if_modified(|known| {
                let is_new = known.as_deref() != Some(&topology);
                if is_new {
                    *known = Some(Arc::new(topology));
                }
                is_new
            });
        }
        drop(state);
        self.asked.send_modify(|rounds| *rounds += 1);
    }

    /// Returns `true` if a master's clock has not been read, so that scripts wait.
    fn lacks_clocks(&self) -> bool {
        let known = self.known();
        let state = self.state();
        known.is_some_and(|known| known.masters().iter().any(|address| state.clocks.ahead(address).is_none()))
    }
}

impl State {
    /// Takes the epoch of an answer; returns `false` if a higher one was told lately: the answer is of a master that
    /// was away.
    fn believes(&mut self, epoch: u64) -> bool {
        let is_old = self.epoch.is_some_and(|(highest, at)| epoch < highest && at.elapsed() < BELIEVED);
        if !is_old {
            self.epoch = Some((epoch, Instant::now()));
        }
        !is_old
    }
}

/// Reads `host:port`, as a redirection names a server.
pub(super) fn address(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(Address { host, port: port.parse().ok()? }).filter(|address| !address.host.is_empty())
}

/// Asks all masters, and the servers of the URL, again and again.
async fn keep_asking(cluster: Weak<Cluster>) {
    let mut connections: HashMap<Address, MultiplexedConnection> = HashMap::new();
    let Some(mut sign) = cluster.upgrade().map(|cluster| cluster.sign.subscribe()) else { return };
    loop {
        {
            let Some(cluster) = cluster.upgrade() else { return };
            let topology = cluster.topology.borrow().clone();
            // Replicas and new masters as well: their clocks are known when they serve slots.
            let servers = topology.iter().flat_map(|topology| topology.servers()).chain(&cluster.nodes.seeds);
            let mut all: BTreeSet<Address> = servers.cloned().collect();
            all.extend(cluster.state().named.iter().cloned());
            connections.retain(|address, _| all.contains(address));
            let asking = all.into_iter().map(|address| {
                let (cluster, connection) = (&cluster, connections.remove(&address));
                async move {
                    let late = |_| Err(RedisError::from(io::Error::from(io::ErrorKind::TimedOut)));
                    let answer = timeout(PATIENCE, ask(cluster, &address, connection)).await.unwrap_or_else(late);
                    (address, answer)
                }
            });
            let mut answers = Vec::new();
            for (address, answer) in join_all(asking).await {
                let answer = answer.map(|(answer, connection)| {
                    connections.insert(address.clone(), connection);
                    answer
                });
                answers.push((address, answer));
            }
            cluster.take(answers);
            if cluster.lacks_clocks() {
                cluster.sign.send_replace(());
            }
        }
        tokio::time::sleep(ASK_SOON).await;
        let _ = timeout(ASK - ASK_SOON, sign.changed()).await;
    }
}

/// Asks a server for the masters and for its time.
async fn ask(
    cluster: &Cluster,
    address: &Address,
    connection: Option<MultiplexedConnection>,
) -> RedisResult<(Answer, MultiplexedConnection)> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => {
            let config = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(None);
            stranger::connect(&cluster.client(address)?, &config, "it").await?
        }
    };
    let mut ask = redis::pipe();
    ask.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS").cmd("CLUSTER").arg("NODES").ignore_errors();
    let (info, slots, nodes): (RedisResult<String>, RedisResult<Value>, RedisResult<String>) =
        ask.query_async(&mut connection).await?;
    // Without a right to the epoch, all answers count the same.
    let field = |name: &str| info.as_ref().ok()?.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.trim().parse().ok()).unwrap_or_default();
    let slots = slots.map_err(|e| match &e {
        e if e.to_string().contains("cluster support disabled") => {
            io::Error::other("it is a lone server: write redis://, without +cluster").into()
        }
        _ => e,
    })?;
    let mut topology = Topology::read(slots, address)?;
    if topology.masters().is_empty() {
        return Err(io::Error::other("it belongs to a Cluster in which no slot is assigned").into());
    }
    let importing = nodes.map(|nodes| topology.read_nodes(&nodes, address)).unwrap_or_default();
    let clock = measure(&mut connection).await?;
    Ok((Answer { epoch, topology, clock, importing }, connection))
}

/// Reads a server's clock.
async fn measure(connection: &mut MultiplexedConnection) -> RedisResult<Measured> {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let micros = |since: Duration| i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    let begun = START.elapsed();
    let (seconds, part): (i64, i64) = redis::cmd("TIME").query_async(connection).await?;
    let ended = START.elapsed();
    let ahead = seconds * 1_000_000 + part - micros(begun + (ended - begun) / 2);
    Ok(Measured { ahead, doubt: micros((ended - begun) / 2) + 1, at: Instant::now() })
}
