//! The builder of a cache.

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
use super::reads::Reads;
use super::subscriber::ChannelListener;
use super::{Cache, Error, Ttl};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisUrl, requirements};

/// The timeout of the first attempt to connect; after that the cache starts without Redis.
const FIRST_CONNECT: Duration = Duration::from_secs(2);

/// The Redis server: a URL (`&str`, `String`, [`RedisUrl`]) or an existing [`Connection`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Source {
    /// A URL as text: `redis://`, `rediss://` or `unix://`.
    Text(String),
    /// A parsed URL.
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
    /// Returns a builder of a cache over a URL or a connection.
    pub fn builder(source: impl Into<Source>) -> Builder {
        Builder::new(source.into())
    }
}

/// The builder of a [`Cache`]; see [`Cache::builder`].
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
    report: bool,
    lease: Duration,
    load_wait: Duration,
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
            report: true,
            lease: Duration::from_secs(30),
            load_wait: Duration::from_secs(5),
        }
    }

    /// Sets the prefix of keys: the entry `k` is the Redis key `prefix:k`. Default `cache`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the default TTL of values. Default one hour.
    pub fn default_ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// Sets how long a call waits for Redis. Default 250 ms. A [`Connection`] keeps its own timeout if that is shorter.
    pub fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Keeps values in this process's memory: at most `max_bytes`, none older than `ttl` (usually a few seconds). A
    /// change announced on `samovar:changed` removes the old value at once. A value that is written without this
    /// library and without Samovar is not announced, and its old value may be returned for up to `ttl`. Off by default.
    pub fn near(mut self, max_bytes: u64, ttl: Duration) -> Self {
        self.near = Some((max_bytes, ttl));
        self
    }

    /// Sets whether this cache announces its writes and deletes on `samovar:changed`, which near caches and
    /// [`Cache::changes`] rely on. Default yes.
    pub fn announce(mut self, announce: bool) -> Self {
        self.announce = announce;
        self
    }

    /// Sets whether a miss asks Samovar's workers to warm the key, for keys of their jobs. The value is there for the
    /// next reader; this call returns the miss. A key is requested at most once every few seconds. Default no.
    pub fn demand(mut self, demand: bool) -> Self {
        self.demand = demand;
        self
    }

    /// Sets whether hits and misses are reported to the fleet, summed by job once a second, so that it knows the hit
    /// rate of its jobs. Default yes. Without workers nothing is sent but a look for their jobs, every few seconds
    /// while there are reads.
    pub fn report(mut self, report: bool) -> Self {
        self.report = report;
        self
    }

    /// Sets how long a loader of [`Cache::get_or_load`] holds its lease. After that, others may load the same key, and
    /// the value is no longer written. Default 30 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets the longest time that [`Cache::get_or_load`] waits for another process that loads the same key. It then
    /// loads the value itself and does not write it. Default 5 s.
    pub fn load_wait(mut self, wait: Duration) -> Self {
        self.load_wait = wait;
        self
    }

    /// Sets the names of the fleet of workers, if they run with `SAMOVAR_PREFIX` ([`Keys::of`]) or also with
    /// `SAMOVAR_CHANNEL` ([`Keys::new`]). Channels are those of the cache's database.
    pub fn names(mut self, names: Keys) -> Self {
        self.names = names;
        self
    }

    /// Builds the cache. If Redis is unreachable, the cache works without it and connects when it can.
    ///
    /// # Errors
    /// Fails on an invalid URL or prefix, an unsupported server (docs/redis.md), or an error of Redis, such as a wrong
    /// password.
    pub async fn build(self) -> Result<Cache, Error> {
        check_prefix(&self.prefix, &self.names)?;
        let (redis, is_there) = connect(self.source, self.bound).await?;
        let names = self.names.in_database(redis.get_db());
        let link = Arc::new(Link::new(redis, names, self.bound));
        let mut tasks = JoinSet::new();
        let near = self.near.map(|(max_bytes, ttl)| {
            let near = Arc::new(Near::new(max_bytes, ttl));
            let changes = ChannelListener::new(link.redis.clone(), link.names.changed_channel());
            let listener = Arc::clone(&near);
            tasks.spawn(async move { listener.listen(changes).await });
            near
        });
        let reads = self.report.then(Arc::<Reads>::default);
        if let Some(reads) = &reads {
            if is_there {
                reads.learn(&link).await;
            }
            tasks.spawn(Arc::clone(reads).run(Arc::clone(&link)));
        }
        let shared = Arc::new(Shared {
            link,
            flights: Flights::default(),
            reads,
            demanded: moka::sync::Cache::builder().max_capacity(10_000).time_to_live(Duration::from_secs(5)).build(),
            lease: self.lease,
            load_wait: self.load_wait,
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

/// Returns the connection, and whether its server has answered.
async fn connect(source: Source, bound: Duration) -> Result<(Connection, bool), Error> {
    let url = match source {
        Source::Connection(connection) => return Ok((connection, true)),
        Source::Text(text) => RedisUrl::parse(&text, None)?,
        Source::Url(url) => url,
    };
    let first: RedisResult<Connection> = timeout(FIRST_CONNECT, url.manager(bound))
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
    match first {
        Err(e) if is_absence(&e) => {
            warn!(redis = %url, "Redis does not answer; the cache works without it until it does: {e}");
            Ok((url.lazy_manager(bound).map_err(Error::Redis)?, false))
        }
        connected => Ok((supported(connected.map_err(Error::Redis)?).await?, true)),
    }
}

/// Returns the connection if its server is supported.
async fn supported(mut redis: Connection) -> Result<Connection, Error> {
    match requirements::unsupported(&mut redis).await {
        Ok(Some(fault)) => Err(Error::Invalid(fault)),
        // A server that cannot be checked fails later, in the call that needs more.
        Ok(None) | Err(_) => Ok(redis),
    }
}
