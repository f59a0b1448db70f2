//! The master of a service, as its Sentinels name it.
//!
//! Each Sentinel is asked each second, and whenever a connection sees a sign of a failover; a slow one delays no other.
//! Of their answers the one with the highest epoch of the configuration holds, and of equal ones the most frequent: a
//! Sentinel that was away names an old master with a lower epoch. A lower epoch is believed when no higher one has been
//! heard for a minute, because Sentinels that are set up anew count from 0. When another master is named, all
//! connections move there at once, also from a server that still answers: a master that froze and woke accepts writes
//! that are lost.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::endpoint::{Address, Endpoint, Login, Tls};
use super::stranger;

/// The interval between two questions to a Sentinel.
const ASK: Duration = Duration::from_secs(1);
/// The shortest interval, however many signs of a failover there are.
const ASK_SOON: Duration = Duration::from_millis(100);
/// The time that a Sentinel has for its answer, and for the connection to it.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time for which an answer counts.
const FRESH: Duration = Duration::from_secs(3);
/// The time after which a lower epoch is believed, if no other is heard.
const BELIEVED: Duration = Duration::from_secs(60);
/// The interval at which a Sentinel is asked for the others, in questions.
const PEERS: u32 = 30;
/// The silence after which a Sentinel is forgotten that the URL does not name.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// The most Sentinels that are asked, those of the URL first.
const MOST: usize = 16;
/// The consequence of silent Sentinels.
const UNNAMED: &str = "the Sentinels do not name the master, and connections stay where they are";

/// A service by its URL.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) sentinels: Vec<Address>,
    pub(super) name: String,
    /// For the Sentinels. Their database is 0.
    pub(super) sentinel_login: Login,
    pub(super) sentinel_tls: Tls,
    /// For the master.
    pub(super) login: Login,
    pub(super) tls: Tls,
}

/// The state of a service's Sentinels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelStatus {
    /// The address of the master to which connections lead; `None` until a Sentinel has named one.
    pub master: Option<String>,
    /// The number of Sentinels that named a master within the last seconds.
    pub answering: usize,
    /// The number of Sentinels that are asked.
    pub known: usize,
}

impl fmt::Display for SentinelStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { master, answering, known } = self;
        match master {
            Some(master) => write!(f, "the master is {master}")?,
            None => f.write_str("no master is known")?,
        }
        write!(f, "; {answering} of {known} Sentinels answer")
    }
}

/// A master that Sentinels named.
pub(super) struct Master {
    pub(super) client: Arc<Client>,
    /// The number of changes before it.
    pub(super) number: u64,
    address: Address,
}

/// The masters, one after the other.
pub(super) type Masters = watch::Receiver<Option<Arc<Master>>>;

/// The fields of an answer about a service or a Sentinel.
type Fields = HashMap<String, String>;

/// An answer of a Sentinel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    epoch: u64,
    address: Address,
}

/// An answer, or why there is none, and when that was known.
type Answer = (Instant, Result<Named, Fault>);

/// The reason why a Sentinel names no master.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// It does not answer.
    Silent(String),
    /// It answers, and people must do something.
    Refused(String),
}

/// The Sentinels of a service, and the master that they name. The tasks that ask them end with the last reference.
pub(super) struct Sentinels {
    service: Service,
    state: Mutex<State>,
    master: watch::Sender<Option<Arc<Master>>>,
    /// Wakes all tasks.
    sign: watch::Sender<()>,
    /// Tells that a Sentinel has answered.
    answered: watch::Sender<()>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    /// The last answer of each Sentinel that is asked; `None` before the first.
    answers: BTreeMap<Address, Option<Answer>>,
    /// When each last named a master.
    named: BTreeMap<Address, Instant>,
    /// The highest epoch, and when it was last named.
    epoch: Option<(u64, Instant)>,
    /// The fault that was logged.
    logged: Option<String>,
}

impl Sentinels {
    pub(super) fn new(service: Service) -> Self {
        let (master, sign, answered) = (watch::Sender::new(None), watch::Sender::new(()), watch::Sender::new(()));
        Self { service, state: Mutex::default(), master, sign, answered, tasks: Mutex::default() }
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.service.login.user.as_deref()
    }

    pub(super) fn db(&self) -> i64 {
        self.service.login.db.into()
    }

    /// Asks at once. Call it on a runtime: it starts the tasks again if theirs ended.
    pub(super) fn ask_soon(self: &Arc<Self>) {
        self.ask_on();
        self.sign.send_replace(());
    }

    /// Starts to ask on the current runtime, unless tasks do already.
    pub(super) fn ask_on(self: &Arc<Self>) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        if tasks.is_empty() {
            let state = &mut *self.state();
            let known: Vec<Address> = self.service.sentinels.iter().chain(state.named.keys()).cloned().collect();
            state.answers.clear();
            self.ask_also(known.iter(), state, &mut tasks);
        }
    }

    /// Asks these Sentinels as well.
    fn ask_also<'a>(
        self: &Arc<Self>,
        addresses: impl Iterator<Item = &'a Address>,
        state: &mut State,
        tasks: &mut JoinSet<()>,
    ) {
        for address in addresses {
            if state.answers.len() < MOST && !state.answers.contains_key(address) {
                state.answers.insert(address.clone(), None);
                tasks.spawn(keep_asking(Arc::downgrade(self), address.clone()));
            }
        }
    }

    /// Waits until a master is known; returns it, and the receiver of those after it.
    pub(super) async fn master(&self) -> (Arc<Master>, Masters) {
        let mut masters = self.master.subscribe();
        loop {
            let known = masters.borrow_and_update().clone();
            if let Some(master) = known {
                return (master, masters);
            }
            // The sender is `self`, so this cannot fail.
            let _ = masters.changed().await;
        }
    }

    /// Returns the master. If none is known, waits until Sentinels have answered.
    ///
    /// # Errors
    /// None of them names it.
    pub(super) async fn find(&self) -> RedisResult<Arc<Master>> {
        let mut answered = self.answered.subscribe();
        let named = async {
            loop {
                if let Some(master) = self.master.borrow().clone() {
                    return Ok(master);
                }
                if let Some(fault) = self.state().fault() {
                    return Err(fault.into());
                }
                // The sender is `self`, so this cannot fail.
                let _ = answered.changed().await;
            }
        };
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        timeout(2 * FRESH, named).await.unwrap_or_else(late)
    }

    /// Returns the address of the master, if one is known.
    pub(super) fn known(&self) -> Option<Address> {
        self.master.borrow().as_ref().map(|master| master.address.clone())
    }

    /// Returns the addresses of the Sentinels that are asked.
    #[cfg(feature = "worker")]
    pub(super) fn sentinels(&self) -> Vec<Address> {
        self.state().answers.keys().cloned().collect()
    }

    /// Returns why the Sentinels do not name the master; `None` if they do.
    pub(super) fn fault(&self) -> Option<String> {
        let mut state = self.state();
        let fault = state.fault().map(|fault| format!("{UNNAMED}: {fault}"));
        match (&fault, &state.logged) {
            (Some(fault), None) => warn!(service = self.service.name, "{fault}"),
            (None, Some(_)) => info!(service = self.service.name, "the Sentinels name the master again"),
            _ => {}
        }
        state.logged.clone_from(&fault);
        fault
    }

    /// Returns the master and the number of Sentinels that answer. Waits until each has answered or failed, for
    /// `patience` at most.
    pub(super) async fn status(&self, patience: Duration) -> SentinelStatus {
        let mut answered = self.answered.subscribe();
        let all = async {
            while self.state().answers.values().any(Option::is_none) {
                // The sender is `self`, so this cannot fail.
                let _ = answered.changed().await;
            }
        };
        let _ = timeout(patience, all).await;
        let master = self.known().map(|master| master.to_string());
        let (state, now) = (self.state(), Instant::now());
        let is_fresh = |(at, answer): &&Answer| answer.is_ok() && now - *at < FRESH;
        let answering = state.answers.values().flatten().filter(is_fresh).count();
        SentinelStatus { master, answering, known: state.answers.len() }
    }

    /// Takes an answer into account.
    fn heard(&self, from: &Address, answer: Result<Named, Fault>) {
        let mut state = self.state();
        let now = Instant::now();
        if answer.is_ok() {
            state.named.insert(from.clone(), now);
        }
        if let Some(last) = state.answers.get_mut(from) {
            *last = Some((now, answer));
        }
        let current = self.master.borrow().clone();
        let Some(named) = state.chosen(current.as_ref().map(|master| &master.address), now) else { return };
        if current.as_ref().is_some_and(|master| master.address == named) {
            return;
        }
        let endpoint = Endpoint::Tcp(named.clone(), self.service.tls.clone());
        // The certificates were read with the URL, so this cannot fail.
        let Ok(client) = endpoint.client(&self.service.login) else { return };
        if let Some(before) = &current {
            let (service, before) = (&self.service.name, &before.address);
            info!(service, "the Sentinels name another master: {named} instead of {before}");
        }
        let number = current.map_or(1, |before| before.number + 1);
        self.master.send_replace(Some(Arc::new(Master { client: Arc::new(client), number, address: named })));
    }

    /// Asks the other Sentinels that one knows, and no longer those that have been silent for long.
    fn learn(self: &Arc<Self>, peers: &[Address]) {
        let mut tasks = self.tasks();
        let state = &mut *self.state();
        let now = Instant::now();
        state.named.retain(|_, at| now - *at < FORGOTTEN);
        state.answers.retain(|address, _| {
            self.service.sentinels.contains(address) || peers.contains(address) || state.named.contains_key(address)
        });
        self.ask_also(peers.iter(), state, &mut tasks);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the master that counts: the highest epoch, then the most Sentinels, then the current one.
    fn chosen(&mut self, current: Option<&Address>, now: Instant) -> Option<Address> {
        let mut votes: BTreeMap<&Named, usize> = BTreeMap::new();
        for (at, answer) in self.answers.values().flatten() {
            if let Ok(named) = answer
                && now - *at < FRESH
            {
                *votes.entry(named).or_default() += 1;
            }
        }
        let best = |(named, count): &(&Named, usize)| (named.epoch, *count, Some(&named.address) == current);
        let (named, _) = votes.into_iter().max_by_key(best)?;
        match self.epoch {
            Some((highest, at)) if named.epoch < highest && now - at < BELIEVED => return None,
            _ => self.epoch = Some((named.epoch, now)),
        }
        Some(named.address.clone())
    }

    /// Returns why no answer counts; `None` while the first answer of one is awaited.
    fn fault(&self) -> Option<Fault> {
        let now = Instant::now();
        if self.answers.values().any(Option::is_none) {
            return None;
        }
        let fresh = |at: &Instant| now - *at < FRESH;
        let named =
            self.answers.values().flatten().filter_map(|(at, answer)| answer.as_ref().ok().filter(|_| fresh(at)));
        if let Some(epoch) = named.map(|named| named.epoch).max() {
            let older = self.epoch.is_some_and(|(highest, _)| epoch < highest);
            return older.then(|| Fault::Silent("those that answer know an older configuration only".into()));
        }
        let told = |refused: bool| {
            let told = self.answers.iter().filter_map(move |(address, answer)| match answer {
                Some((_, Err(Fault::Refused(why)))) => refused.then(|| format!("{address}: {why}")),
                Some((_, Err(Fault::Silent(why)))) => (!refused).then(|| format!("{address}: {why}")),
                Some((_, Ok(_))) | None => (!refused).then(|| format!("{address}: no answer")),
            });
            told.collect::<Vec<_>>()
        };
        let (refused, silent) = (told(true), told(false));
        let all = [refused.clone(), silent.clone()].concat().join("; ");
        let is_refused = refused.len() > silent.len();
        Some(if is_refused { Fault::Refused(all) } else { Fault::Silent(format!("no Sentinel answers ({all})")) })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Silent(why) | Self::Refused(why)) = self;
        f.write_str(why)
    }
}

impl From<Fault> for RedisError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Silent(why) => io::Error::new(io::ErrorKind::NotConnected, why).into(),
            Fault::Refused(why) => (ErrorKind::InvalidClientConfig, "Sentinel", why).into(),
        }
    }
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels").field("service", &self.service.name).finish_non_exhaustive()
    }
}

/// Returns the names of the services that a Sentinel knows.
pub(super) async fn services(sentinel: &mut impl ConnectionLike) -> RedisResult<Vec<String>> {
    let services: Vec<Fields> = redis::cmd("SENTINEL").arg("MASTERS").query_async(sentinel).await?;
    Ok(services.into_iter().filter_map(|mut service| service.remove("name")).collect())
}

/// Returns the services of a Sentinel as a list in a sentence.
pub(super) fn listed(services: &[String]) -> String {
    if services.is_empty() { "no service".into() } else { services.join(", ") }
}

/// Asks one Sentinel until it is no longer one of those to ask.
async fn keep_asking(sentinels: Weak<Sentinels>, address: Address) {
    let (mut connection, mut asked) = (None, 0_u32);
    while let Some(sentinels) = sentinels.upgrade() {
        if !sentinels.state().answers.contains_key(&address) {
            return;
        }
        let (service, mut sign) = (&sentinels.service, sentinels.sign.subscribe());
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        let answer = timeout(PATIENCE, ask(&mut connection, &address, service)).await.unwrap_or_else(late);
        let is_well = answer.is_ok();
        let answer = match answer {
            Ok(Some(named)) => Ok(named),
            Ok(None) => Err(unknown(connection.as_mut(), &service.name).await),
            Err(e) => Err(refused(&e)),
        };
        sentinels.heard(&address, answer);
        sentinels.fault();
        sentinels.answered.send_replace(());
        if !is_well {
            connection = None;
        } else if asked.is_multiple_of(PEERS)
            && let Some(connection) = &mut connection
            && let Ok(Ok(peers)) = timeout(PATIENCE, peers(connection, &service.name)).await
        {
            sentinels.learn(&peers);
        }
        asked = asked.wrapping_add(u32::from(is_well));
        sleep(ASK_SOON).await;
        let _ = timeout(ASK.saturating_sub(ASK_SOON), sign.changed()).await;
    }
}

/// Returns the master that a Sentinel names; `None` if it does not know the service.
async fn ask(
    connection: &mut Option<MultiplexedConnection>,
    address: &Address,
    service: &Service,
) -> RedisResult<Option<Named>> {
    let connection = match connection {
        Some(connection) => connection,
        None => {
            let client =
                Endpoint::Tcp(address.clone(), service.sentinel_tls.clone()).client(&service.sentinel_login)?;
            let bounds = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE));
            connection.insert(stranger::connect(&client, &bounds, "it").await?)
        }
    };
    let mut question = redis::pipe();
    question.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&service.name);
    // Its address is that of before a failover until all replicas follow, but it has the epoch.
    question.cmd("SENTINEL").arg("MASTER").arg(&service.name).ignore_errors();
    let (address, master): (RedisResult<Option<(String, u16)>>, RedisResult<Fields>) =
        question.query_async(connection).await?;
    let epoch = master.ok().and_then(|master| master.get("config-epoch")?.parse().ok()).unwrap_or_default();
    Ok(address?.map(|(host, port)| Named { epoch, address: Address { host, port } }))
}

/// Returns the addresses of the other Sentinels of the service that a Sentinel hears.
async fn peers(connection: &mut MultiplexedConnection, service: &str) -> RedisResult<Vec<Address>> {
    let peers: Vec<Fields> = redis::cmd("SENTINEL").arg("SENTINELS").arg(service).query_async(connection).await?;
    let is_heard = |peer: &&Fields| {
        peer.get("flags").is_none_or(|flags| !flags.split(',').any(|flag| matches!(flag, "s_down" | "disconnected")))
    };
    let address = |peer: &Fields| {
        let port = peer.get("port")?.parse().ok().filter(|port| *port != 0)?;
        Some(Address { host: peer.get("ip")?.clone(), port })
    };
    Ok(peers.iter().filter(is_heard).filter_map(address).collect())
}

/// Returns the fault of a Sentinel that does not know the service.
async fn unknown(connection: Option<&mut MultiplexedConnection>, service: &str) -> Fault {
    let known = match connection {
        Some(connection) => timeout(PATIENCE, services(connection)).await.map(Result::unwrap_or_default),
        None => Ok(Vec::new()),
    };
    Fault::Refused(format!("it knows {}, not `{service}`", listed(&known.unwrap_or_default())))
}

/// Returns the fault that an error means.
fn refused(error: &RedisError) -> Fault {
    let is_login =
        error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"));
    let remedy = if is_login {
        "Sentinels have a login of their own: sentinel_user and sentinel_password in the URL"
    } else if error.code() == Some("NOPERM") {
        "docs/redis.md has the rights that a user of Sentinels needs"
    } else if error.to_string().contains("unknown command") {
        "it is no Sentinel; their usual port is 26379"
    } else {
        return Fault::Silent(error.to_string());
    };
    Fault::Refused(format!("{error}; {remedy}"))
}

#[cfg(test)]
mod tests;
