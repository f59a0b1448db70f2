//! The server to which connections lead: the one of the URL, or the master that Sentinels name.

use std::future::pending;
use std::io;
use std::sync::Arc;

use redis::{Client, RedisResult};

use super::sentinels::{Masters, Sentinels};

/// The server to which connections lead. Cheap to clone.
#[derive(Clone)]
pub(super) enum Target {
    Server(Arc<Client>),
    Master(Arc<Sentinels>),
}

impl Target {
    /// Returns a client of the current server, and waits for its end. Waits while Sentinels have named none yet.
    pub(super) async fn current(&self) -> (Arc<Client>, Moved) {
        match self {
            Self::Server(client) => (Arc::clone(client), Moved(None)),
            Self::Master(sentinels) => {
                let (master, masters) = sentinels.master().await;
                (Arc::clone(&master.client), Moved(Some((master.number, masters))))
            }
        }
    }

    /// Returns a client of the current server, as [`Self::current`] does.
    ///
    /// # Errors
    /// Sentinels name no master: none answers, or none knows the service.
    pub(super) async fn find(&self) -> RedisResult<Arc<Client>> {
        match self {
            Self::Server(client) => Ok(Arc::clone(client)),
            Self::Master(sentinels) => Ok(Arc::clone(&sentinels.find().await?.client)),
        }
    }

    /// Returns `true` if the server may be replaced.
    pub(super) fn may_move(&self) -> bool {
        matches!(self, Self::Master(_))
    }

    /// Asks Sentinels for the master at once: a sign was seen that it is another one.
    pub(super) fn ask_soon(&self) {
        if let Self::Master(sentinels) = self {
            sentinels.ask_soon();
        }
    }

    /// Returns why Sentinels do not name the master; `None` if they do, or there are none.
    pub(super) fn fault(&self) -> Option<String> {
        match self {
            Self::Server(_) => None,
            Self::Master(sentinels) => sentinels.fault(),
        }
    }

    /// Returns the user's name; `None` for the default user.
    pub(super) fn user(&self) -> Option<&str> {
        match self {
            Self::Server(client) => client.get_connection_info().redis_settings().username(),
            Self::Master(sentinels) => sentinels.user(),
        }
    }

    /// Returns the number of the database.
    pub(super) fn db(&self) -> i64 {
        match self {
            Self::Server(client) => client.get_connection_info().redis_settings().db(),
            Self::Master(sentinels) => sentinels.db(),
        }
    }
}

/// Waits for the end of a server: connections lead to another one.
#[derive(Clone)]
pub(super) struct Moved(Option<(u64, Masters)>);

impl Moved {
    /// Returns the number of the server: it grows each time that another one takes its place.
    pub(super) fn number(&self) -> u64 {
        self.0.as_ref().map_or(0, |(number, _)| *number)
    }

    /// Waits until another server has taken its place.
    pub(super) async fn moved(self) {
        if let Some((number, mut masters)) = self.0
            && masters.wait_for(|now| now.as_ref().is_some_and(|now| now.number != number)).await.is_ok()
        {
            return;
        }
        pending().await
    }

    /// Waits for an answer of the server, but not for one of a server that was replaced.
    ///
    /// # Errors
    /// Those of `answer`, or the server was replaced: what was sent may have been executed there, and lost.
    pub(super) async fn or_moved<T>(self, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        if self.0.is_none() {
            return answer.await;
        }
        tokio::select! {
            biased;
            answer = answer => answer,
            () = self.moved() => {
                Err(io::Error::new(io::ErrorKind::ConnectionReset, "another server is the master now").into())
            }
        }
    }
}
