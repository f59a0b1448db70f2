//! How a cache is set up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::RedisResult;
use redis::aio::ConnectionLike as _;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use super::error::is_absence;
use super::flight::Flights;
use super::inner::{Inner, Shared};
use super::link::Link;
use super::near::Near;
use super::prefix::check_prefix;
use super::subscriber::Ear;
use super::{Cache, Error, Ttl};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisUrl, requirements};

/// How long the first attempt to connect may take; after that the cache is there without Redis.
const FIRST_CONNECT: Duration = Duration::from_secs(2);

/// Where Redis is: a URL (`&str`, `String`, [`RedisUrl`]) or a [`Connection`] that is there already.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Source {
    /// A URL as text: `redis://`, `rediss://` or `unix://`.
    Text(String),
    /// A URL that was read.
    Url(RedisUrl),
    /// A connection.
    Connection(Connection),
}

impl From<&str> for Source {
    fn from(url: &str) -> Self {
        Self::Text(url.to_owned())
    }
}

impl From<String> for Source {
    fn from(url: String) -> Self {
        Self::Text(url)
    }
}

impl From<RedisUrl> for Source {
    fn from(url: RedisUrl) -> Self {
        Self::Url(url)
    }
}

impl From<Connection> for Source {
    fn from(connection: Connection) -> Self {
        Self::Connection(connection)
    }
}

impl Cache {
    /// Sets one up over a URL or a connection.
    pub fn builder(source: impl Into<Source>) -> Builder {
        Builder::new(source.into())
    }
}

/// Sets up a [`Cache`]; see [`Cache::builder`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing until `build`"]
pub struct Builder {
    source: Source,
    names: Keys,
    prefix: String,
    ttl: Ttl,
    bound: Duration,
    near: Option<(u64, Duration)>,
    announce: bool,
    demand: bool,
    lease: Duration,
    patience: Duration,
}

impl Builder {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            names: Keys::of("samovar"),
            prefix: "cache".to_owned(),
            ttl: Ttl::For(Duration::from_secs(3_600)),
            bound: Duration::from_millis(250),
            near: None,
            announce: true,
            demand: false,
            lease: Duration::from_secs(30),
            patience: Duration::from_secs(5),
        }
    }

    /// What keys begin with: the entry `k` is the Redis key `prefix:k`. Default `cache`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long a value lives for which nothing else is said. Default one hour.
    pub fn default_ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// How long a call waits for Redis. Default 250 ms. A [`Connection`] keeps its own patience where that is shorter.
    pub fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Keeps values in this process's memory: at most `max_bytes`, none older than `ttl` (a few seconds, say). What is
    /// announced on `samovar:changed` goes at once; a value that somebody writes past this library and past Samovar is
    /// not announced, and its old one may be answered for up to `ttl`. Off by default.
    pub fn near(mut self, max_bytes: u64, ttl: Duration) -> Self {
        self.near = Some((max_bytes, ttl));
        self
    }

    /// Whether this cache's own writes and deletes are announced on `samovar:changed`, which near caches and
    /// [`Cache::changes`] live by. Default yes.
    pub fn announce(mut self, announce: bool) -> Self {
        self.announce = announce;
        self
    }

    /// Whether a miss asks Samovar's workers to warm the key, for keys of their jobs. They fetch it for the next reader;
    /// this one gets its miss. One key is asked for every few seconds at most. Default no.
    pub fn demand(mut self, demand: bool) -> Self {
        self.demand = demand;
        self
    }

    /// How long one loader of [`Cache::get_or_load`] has before others in the fleet may load the same, and its value is
    /// no longer written. Default 30 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long [`Cache::get_or_load`] waits for another process that loads the same, before it loads by itself.
    /// Default 5 s.
    pub fn load_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The names of the fleet of workers, where they run with `SAMOVAR_PREFIX` ([`Keys::of`]) or with
    /// `SAMOVAR_CHANNEL`, too ([`Keys::new`]). Channels are those of the database that the cache is in.
    pub fn names(mut self, names: Keys) -> Self {
        self.names = names;
        self
    }

    /// Builds it. Redis may be away: then the cache does without until it comes.
    ///
    /// # Errors
    /// A faulty URL or prefix, a server that is not supported (docs/redis.md), and what Redis says against it (a wrong
    /// password, for one).
    pub async fn build(self) -> Result<Cache, Error> {
        check_prefix(&self.prefix, &self.names)?;
        let redis = connect(self.source, self.bound).await?;
        let names = self.names.in_database(redis.get_db());
        let link = Arc::new(Link::new(redis, names, self.bound));
        let mut tasks = JoinSet::new();
        let near = self.near.map(|(max_bytes, ttl)| {
            let near = Arc::new(Near::new(max_bytes, ttl));
            let ear = Ear::new(link.redis.client().clone(), link.names.changed_channel());
            let listener = Arc::clone(&near);
            tasks.spawn(async move { listener.listen(ear).await });
            near
        });
        let shared = Arc::new(Shared {
            link,
            flights: Flights::default(),
            demanded: moka::sync::Cache::builder().max_capacity(10_000).time_to_live(Duration::from_secs(5)).build(),
            lease: self.lease,
            patience: self.patience,
            _tasks: Mutex::new(tasks),
        });
        Ok(Cache::from_inner(Inner {
            shared,
            prefix: format!("{}:", self.prefix),
            lenient: false,
            ttl: self.ttl,
            announce: self.announce,
            demand: self.demand,
            near,
        }))
    }
}

async fn connect(source: Source, bound: Duration) -> Result<Connection, Error> {
    let url = match source {
        Source::Connection(connection) => return Ok(connection),
        Source::Text(text) => RedisUrl::parse(&text, None)?,
        Source::Url(url) => url,
    };
    let first: RedisResult<Connection> = timeout(FIRST_CONNECT, url.manager(bound))
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
    match first {
        Err(e) if is_absence(&e) => {
            warn!(redis = %url, "the cache does without Redis until it comes: {e}");
            url.lazy_manager(bound).map_err(Error::Redis)
        }
        connected => supported(connected.map_err(Error::Redis)?).await,
    }
}

/// The same connection, if its server is one that will do.
async fn supported(mut redis: Connection) -> Result<Connection, Error> {
    match requirements::unsupported(&mut redis).await {
        Ok(Some(fault)) => Err(Error::Invalid(fault)),
        // What it cannot do shows where it is asked to.
        Ok(None) | Err(_) => Ok(redis),
    }
}
