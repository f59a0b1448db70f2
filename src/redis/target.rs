//! The server to which connections lead: the one of the URL, the master that Sentinels name, or those of a Cluster.

#[cfg(feature = "worker")]
use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{Client, RedisResult};

use super::cluster::{Cluster, Topologies};
use super::endpoint::Address;
use super::named::Replaced;
use super::sentinels::{Masters, SentinelStatus, Sentinels};
#[cfg(feature = "worker")]
use super::servers::Servers;
#[cfg(feature = "worker")]
use crate::protocol::slot_of;

/// The server to which connections lead. Cheap to clone.
#[derive(Clone)]
pub(super) enum Target {
    Server(Arc<Client>),
    Master(Arc<Sentinels>),
    /// All masters of a Cluster. What needs one server gets one of them.
    Cluster(Arc<Cluster>),
    /// One master of a Cluster.
    Node(Arc<Cluster>, Address),
}

impl Target {
    /// Returns a client of the current server, and waits for its end. Waits while Sentinels have named none yet.
    ///
    /// # Errors
    /// A Cluster has no master, or the root certificates are invalid.
    pub(super) async fn current(&self) -> RedisResult<(Arc<Client>, Moved)> {
        match self {
            Self::Server(client) => Ok((Arc::clone(client), Moved::Never)),
            Self::Master(sentinels) => {
                let (master, masters) = sentinels.master().await;
                Ok((Arc::clone(&master.client), Moved::Master(master.number, masters)))
            }
            Self::Cluster(cluster) => {
                let (topology, topologies) = cluster.topology().await;
                let any = cluster.any(&topology).ok_or_else(replaced)?;
                Ok((Arc::new(cluster.client(&any)?), Moved::Node(any, topologies)))
            }
            Self::Node(cluster, address) => {
                let (topology, topologies) = cluster.topology().await;
                // A server that imports its first slot is no master yet.
                let is_master = topology.masters().contains(address);
                let moved = if is_master { Moved::Node(address.clone(), topologies) } else { Moved::Never };
                Ok((Arc::new(cluster.client(address)?), moved))
            }
        }
    }

    /// Returns a client of the current server, as [`Self::current`] does.
    ///
    /// # Errors
    /// Sentinels name no master: none answers, or none knows the service. No server of a Cluster answers.
    pub(super) async fn find(&self) -> RedisResult<Arc<Client>> {
        match self {
            Self::Server(client) => Ok(Arc::clone(client)),
            Self::Master(sentinels) => Ok(Arc::clone(&sentinels.find().await?.client)),
            Self::Cluster(cluster) | Self::Node(cluster, _) => {
                cluster.find().await?;
                Ok(self.current().await?.0)
            }
        }
    }

    /// Returns `true` if the server may be replaced.
    pub(super) fn may_move(&self) -> bool {
        !matches!(self, Self::Server(_))
    }

    /// Asks for the master at once: a sign was seen that it is another one.
    pub(super) fn ask_soon(&self) {
        match self {
            Self::Server(_) => {}
            Self::Master(sentinels) => sentinels.ask_soon(),
            Self::Cluster(cluster) | Self::Node(cluster, _) => cluster.ask_soon(),
        }
    }

    /// Returns why the masters are not known: no Sentinel names one, or no server of the Cluster answers. `None` if
    /// they are.
    pub(super) fn fault(&self) -> Option<String> {
        match self {
            Self::Server(_) => None,
            Self::Master(sentinels) => sentinels.fault(),
            Self::Cluster(cluster) | Self::Node(cluster, _) => cluster.fault(),
        }
    }

    /// Returns why the masters are not known, as [`Self::fault`] does, or which of them do not answer.
    #[cfg(feature = "worker")]
    pub(super) fn fault_of_masters(&self) -> Option<String> {
        let of_silence = || match self {
            Self::Cluster(cluster) => cluster.fault_of_silence(),
            Self::Server(_) | Self::Master(_) | Self::Node(..) => None,
        };
        self.fault().or_else(of_silence)
    }

    /// Returns the state of the Sentinels, as [`Sentinels::status`] does; `None` if there are none.
    pub(super) async fn sentinels(&self, patience: Duration) -> Option<SentinelStatus> {
        match self {
            Self::Server(_) | Self::Cluster(_) | Self::Node(..) => None,
            Self::Master(sentinels) => Some(sentinels.status(patience).await),
        }
    }

    /// Returns the address of the server; `None` if it is not known, or there are several.
    pub(super) fn address(&self) -> Option<String> {
        match self {
            Self::Server(client) => Some(client.get_connection_info().addr().to_string()),
            Self::Master(sentinels) => sentinels.known().map(|address| address.to_string()),
            Self::Cluster(_) => None,
            Self::Node(_, address) => Some(address.to_string()),
        }
    }

    /// Returns the address of the master that serves a key; `None` if it is not known.
    #[cfg(feature = "worker")]
    pub(super) fn master_of(&self, key: &str) -> Option<String> {
        match self {
            Self::Cluster(cluster) => Some(cluster.known()?.owner(slot_of(key.as_bytes()))?.to_string()),
            Self::Server(_) | Self::Master(_) | Self::Node(..) => self.address(),
        }
    }

    /// Returns the servers that are known, for people.
    #[cfg(feature = "worker")]
    pub(super) fn servers(&self) -> Servers {
        let shown = |addresses: &BTreeSet<Address>| addresses.iter().map(Address::to_string).collect();
        let masters = self.address().into_iter().collect();
        match self {
            Self::Server(_) => Servers { topology: "single", masters, ..Servers::default() },
            Self::Master(of) => {
                let sentinels = of.sentinels().iter().map(Address::to_string).collect();
                Servers { topology: "sentinel", masters, sentinels, ..Servers::default() }
            }
            Self::Cluster(cluster) | Self::Node(cluster, _) => {
                let known = cluster.known().unwrap_or_default();
                let (masters, replicas) = (shown(known.masters()), shown(known.replicas()));
                Servers { topology: "cluster", masters, replicas, ..Servers::default() }
            }
        }
    }

    /// Returns the user's name; `None` for the default user.
    pub(super) fn user(&self) -> Option<&str> {
        match self {
            Self::Server(client) => client.get_connection_info().redis_settings().username(),
            Self::Master(sentinels) => sentinels.user(),
            Self::Cluster(cluster) | Self::Node(cluster, _) => cluster.user(),
        }
    }

    /// Returns the number of the database.
    pub(super) fn db(&self) -> i64 {
        match self {
            Self::Server(client) => client.get_connection_info().redis_settings().db(),
            Self::Master(sentinels) => sentinels.db(),
            Self::Cluster(_) | Self::Node(..) => 0,
        }
    }
}

/// Waits for the end of a server: connections lead to another one.
#[derive(Clone)]
pub(super) enum Moved {
    /// It is never replaced.
    Never,
    /// The master of this number, and those after it.
    Master(u64, Masters),
    /// A master of a Cluster.
    Node(Address, Topologies),
}

impl Moved {
    /// Returns the number of the server: it grows each time that another one takes its place.
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Master(number, _) => *number,
            Self::Never | Self::Node(..) => 0,
        }
    }

    /// Waits until another server has taken its place.
    pub(super) async fn moved(self) {
        let is_replaced = match self {
            Self::Never => false,
            Self::Master(number, mut masters) => {
                masters.wait_for(|now| now.as_ref().is_some_and(|now| now.number != number)).await.is_ok()
            }
            Self::Node(address, mut topologies) => {
                let is_gone =
                    topologies.wait_for(|now| now.as_ref().is_some_and(|now| !now.masters().contains(&address))).await;
                is_gone.is_ok()
            }
        };
        if !is_replaced {
            pending().await
        }
    }

    /// Waits for an answer of the server, but not for one of a server that was replaced.
    ///
    /// # Errors
    /// Those of `answer`, or the server was replaced: what was sent may have been executed there, and lost.
    pub(super) async fn or_moved<T>(self, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        if matches!(self, Self::Never) {
            return answer.await;
        }
        tokio::select! {
            biased;
            answer = answer => answer,
            () = self.moved() => Err(replaced().into()),
        }
    }
}

fn replaced() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, Replaced)
}
