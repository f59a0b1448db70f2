//! The master of a service, as its Sentinels name it.
//!
//! All Sentinels are asked side by side, each second and whenever a connection sees a sign of a failover. Of their
//! answers the one with the highest epoch of the configuration holds: a Sentinel that was away names an old master with
//! a lower one, and is believed only if most of them do so. When another master is named, all connections move there at
//! once, also from a server that still answers: a master that froze and woke accepts writes that are lost.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::endpoint::{Address, Endpoint, Login, Tls};

/// The interval between two questions.
const ASK: Duration = Duration::from_secs(1);
/// The shortest interval, however many signs of a failover there are.
const ASK_SOON: Duration = Duration::from_millis(100);
/// The time that a Sentinel has for its answer, and for the connection to it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions until Sentinels are asked for each other again.
const PEERS: u32 = 30;
/// The most Sentinels that are asked, those of the URL first.
const MOST: usize = 16;
/// The consequence of silent Sentinels.
const UNNAMED: &str = "the Sentinels do not name the master, and connections stay where they are";

/// What a URL says of Sentinels.
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

/// A master that Sentinels named.
#[derive(Clone)]
pub(super) struct Master {
    pub(super) client: Arc<Client>,
    /// The number of changes before it.
    pub(super) number: u64,
    named: Named,
}

/// What a Sentinel tells of a service or of another Sentinel.
type Fields = HashMap<String, String>;

/// An answer of a Sentinel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    epoch: u64,
    address: Address,
}

/// The Sentinels of a service, and the master that they name. The task that asks them ends with the last reference.
pub(super) struct Sentinels {
    service: Service,
    all: Mutex<Vec<Arc<Sentinel>>>,
    master: watch::Sender<Option<Master>>,
    doubt: Notify,
    /// Why the last question had no answer.
    fault: Mutex<Option<String>>,
    asking: Mutex<JoinSet<()>>,
}

impl Sentinels {
    pub(super) fn new(service: Service) -> RedisResult<Self> {
        let all = service.sentinels.iter().map(|address| Sentinel::new(address.clone(), &service));
        let all = Mutex::new(all.collect::<RedisResult<_>>()?);
        let (master, _) = watch::channel(None);
        Ok(Self { service, all, master, doubt: Notify::new(), fault: Mutex::default(), asking: Mutex::default() })
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.service.login.user.as_deref()
    }

    pub(super) fn db(&self) -> i64 {
        self.service.login.db.into()
    }

    /// Makes the asking task ask at once.
    pub(super) fn ask_soon(&self) {
        self.doubt.notify_one();
    }

    /// Starts to ask on this runtime, unless a task does already.
    pub(super) fn ask_on(self: &Arc<Self>) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        // It ended if its runtime did.
        while asking.try_join_next().is_some() {}
        if asking.is_empty() {
            asking.spawn(keep_asking(Arc::downgrade(self)));
        }
    }

    /// Waits until a master is known; returns it, and what tells of its successors.
    pub(super) async fn master(&self) -> (Master, watch::Receiver<Option<Master>>) {
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

    /// Returns the master, and asks for it if none is known.
    ///
    /// # Errors
    /// No Sentinel answers, or none knows the service.
    pub(super) async fn find(&self) -> RedisResult<Master> {
        if let Some(master) = self.master.borrow().clone() {
            return Ok(master);
        }
        self.ask().await?;
        Ok(self.master().await.0)
    }

    /// Asks all Sentinels, and moves to the master that they name.
    async fn ask(&self) -> RedisResult<()> {
        let all = self.all().clone();
        let name = &self.service.name;
        let answers = join_all(all.iter().map(|sentinel| async move { (sentinel, sentinel.ask(name).await) })).await;
        let named = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()?.as_ref()).max().cloned();
        let answered = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        match named {
            Some(named) => self.follow(named, 2 * answered > all.len()),
            None => Err(self.nameless(answers).await),
        }
    }

    /// Moves to this master, unless a few Sentinels name it that know an older configuration.
    fn follow(&self, named: Named, most_answered: bool) -> RedisResult<()> {
        let before = self.master.borrow().as_ref().map(|master| (master.named.clone(), master.number));
        if let Some((before, _)) = &before {
            if before.address == named.address {
                self.master.send_if_modified(|master| {
                    if let Some(master) = master {
                        master.named = named;
                    }
                    false
                });
                return Ok(());
            }
            if named.epoch < before.epoch && !most_answered {
                return Ok(());
            }
        }
        let client = Endpoint::Tcp(named.address.clone(), self.service.tls.clone()).client(&self.service.login)?;
        let number = before.as_ref().map_or(1, |(_, number)| number + 1);
        if let Some((before, _)) = before {
            let (service, now) = (&self.service.name, &named.address);
            info!(service, "the Sentinels name another master: {now} instead of {}", before.address);
        }
        self.master.send_replace(Some(Master { client: Arc::new(client), number, named }));
        Ok(())
    }

    /// Returns why no Sentinel names a master: an answer rather than a silence.
    async fn nameless(&self, answers: Vec<(&Arc<Sentinel>, RedisResult<Option<Named>>)>) -> RedisError {
        let mut silent = Vec::new();
        for (sentinel, answer) in answers {
            match answer {
                Ok(_) => {
                    let (name, known) = (&self.service.name, sentinel.services().await.unwrap_or_default());
                    let what = format!("the Sentinel {} knows {}, not `{name}`", sentinel.address, listed(&known));
                    return (ErrorKind::InvalidClientConfig, "Sentinel", what).into();
                }
                Err(e) if e.code().is_some() || e.kind() == ErrorKind::AuthenticationFailed => {
                    let what = format!(
                        "{}: {e}; the login of Sentinels is apart from that of the master: sentinel_user and \
                         sentinel_password in the URL",
                        sentinel.address
                    );
                    return (ErrorKind::AuthenticationFailed, "Sentinel", what).into();
                }
                Err(e) => silent.push(format!("{}: {e}", sentinel.address)),
            }
        }
        let what = format!("no Sentinel answers ({})", silent.join("; "));
        io::Error::new(io::ErrorKind::NotConnected, what).into()
    }

    /// Adds the Sentinels that these ones know: those of the URL may go one by one.
    async fn learn_peers(&self) {
        let all = self.all().clone();
        let asked = join_all(all.iter().map(|sentinel| sentinel.peers(&self.service.name))).await;
        let known: BTreeSet<Address> = all.iter().map(|sentinel| sentinel.address.clone()).collect();
        let peers: BTreeSet<Address> = asked.into_iter().flatten().flatten().collect();
        let mut all = self.all();
        for address in peers.difference(&known) {
            if all.len() < MOST
                && let Ok(sentinel) = Sentinel::new(address.clone(), &self.service)
            {
                all.push(sentinel);
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Sentinel>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why the Sentinels do not name the master; `None` if they do.
    pub(super) fn fault(&self) -> Option<String> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.as_ref().map(|fault| format!("{UNNAMED}: {fault}"))
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

/// Asks until the last reference is gone.
async fn keep_asking(sentinels: Weak<Sentinels>) {
    let mut asked = 0_u32;
    while let Some(sentinels) = sentinels.upgrade() {
        let fault = sentinels.ask().await.err().map(|e| e.to_string());
        let is_well = fault.is_none();
        let before =
            std::mem::replace(&mut *sentinels.fault.lock().unwrap_or_else(PoisonError::into_inner), fault.clone());
        let service = &sentinels.service.name;
        match (fault, before) {
            (Some(e), None) => warn!(service, "{UNNAMED}: {e}"),
            (None, Some(_)) => info!(service, "the Sentinels name the master again"),
            _ => {}
        }
        if is_well && asked.is_multiple_of(PEERS) {
            sentinels.learn_peers().await;
        }
        asked = asked.wrapping_add(u32::from(is_well));
        sleep(ASK_SOON).await;
        let _ = timeout(ASK.saturating_sub(ASK_SOON), sentinels.doubt.notified()).await;
    }
}

/// One Sentinel, with a connection that is opened when it is needed.
struct Sentinel {
    address: Address,
    client: Client,
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
}

impl Sentinel {
    fn new(address: Address, service: &Service) -> RedisResult<Arc<Self>> {
        let endpoint = Endpoint::Tcp(address.clone(), service.sentinel_tls.clone());
        let client = endpoint.client(&service.sentinel_login)?;
        Ok(Arc::new(Self { address, client, connection: tokio::sync::Mutex::default() }))
    }

    /// Returns the master of the service that this Sentinel names; `None` if it does not know the service.
    async fn ask(&self, service: &str) -> RedisResult<Option<Named>> {
        let mut question = redis::pipe();
        question.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        // Its address is that of before a failover until all replicas follow, but it has the epoch.
        question.cmd("SENTINEL").arg("MASTER").arg(service).ignore_errors();
        let (address, master): (RedisResult<Option<(String, u16)>>, RedisResult<Fields>) =
            self.send(async |connection| question.query_async(connection).await).await?;
        let epoch = master.ok().and_then(|master| master.get("config-epoch")?.parse().ok()).unwrap_or_default();
        Ok(address?.map(|(host, port)| Named { epoch, address: Address { host, port } }))
    }

    /// Returns the addresses of the other Sentinels of the service; none without a right to the question.
    async fn peers(&self, service: &str) -> RedisResult<Vec<Address>> {
        let mut question = redis::cmd("SENTINEL");
        question.arg("SENTINELS").arg(service);
        let peers: Vec<Fields> = self.send(async |connection| question.query_async(connection).await).await?;
        let address =
            |peer: &Fields| Some(Address { host: peer.get("ip")?.clone(), port: peer.get("port")?.parse().ok()? });
        Ok(peers.iter().filter_map(address).collect())
    }

    /// Returns the names of the services that this Sentinel knows.
    async fn services(&self) -> RedisResult<Vec<String>> {
        self.send(async |connection| services(connection).await).await
    }

    /// Sends a question. A connection that fails is dropped, and the next question opens another.
    async fn send<T>(
        &self,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let mut held = self.connection.lock().await;
        let asking = async {
            let mut connection = match held.take() {
                Some(connection) => connection,
                None => {
                    let bounds = AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(PATIENCE))
                        .set_response_timeout(Some(PATIENCE));
                    self.client.get_multiplexed_async_connection_with_config(&bounds).await?
                }
            };
            let answer = question(&mut connection).await;
            if answer.as_ref().err().is_none_or(|e| e.code().is_some()) {
                *held = Some(connection);
            }
            answer
        };
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        timeout(2 * PATIENCE, asking).await.unwrap_or_else(late)
    }
}
