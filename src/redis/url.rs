//! Redis URLs (`REDIS_URL`) and connections to them.
//!
//! A [`RedisUrl`] is valid as far as its text tells. Neither its output nor an error ever contains the password: an
//! error quotes the text only if no password can be in it.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use redis::{ErrorKind, RedisResult};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use url::{Host, Url};

use super::Connection;
use super::cluster::{Cluster, Nodes};
use super::endpoint::{Address, Endpoint, Login, Tls};
use super::sentinels::{Sentinels, Service};
use super::target::Target;

/// The port of a server and of a Sentinel whose URL names none.
const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26379;

const FORM: &str = "write redis://[[user]:password@]host[:port][/db], and percent-encode special characters in the \
                    password (`/` as %2F, `@` as %40, `%` as %25)";
pub(super) const SENTINEL_FORM: &str = "write redis+sentinel://[[user]:password@]host[:port],host[:port]/NAME[/db], \
                                        where NAME is that of `sentinel monitor NAME …`";

pub(super) const CLUSTER_FORM: &str = "write redis+cluster://[[user]:password@]host:port,host:port";

/// The address and credentials of a Redis server, of the Sentinels that name it, or of a Cluster. `Display` and `Debug`
/// never show the password.
#[derive(Clone)]
pub struct RedisUrl {
    servers: Servers,
    login: Login,
}

#[derive(Clone)]
enum Servers {
    One(Endpoint),
    Sentinels(Arc<Shared<Service, Sentinels>>),
    Cluster(Arc<Shared<Nodes, Cluster>>),
}

/// A service and its Sentinels, or the nodes of a Cluster and what is known of it, while connections use them. All
/// connections of one value and its clones share them.
struct Shared<S, U> {
    service: S,
    used: Mutex<Weak<U>>,
}

impl<S: Clone, U> Shared<S, U> {
    fn new(service: S) -> Arc<Self> {
        Arc::new(Self { service, used: Mutex::new(Weak::new()) })
    }

    /// Returns what connections use, made by `new` if none does.
    fn used(&self, new: impl FnOnce(S) -> U) -> Arc<U> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let known = used.upgrade().unwrap_or_else(|| Arc::new(new(self.service.clone())));
        *used = Arc::downgrade(&known);
        known
    }
}

/// The reason why a URL cannot be used; it contains no password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(pub String);

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, login } = self;
        let scheme = |tls: &Tls| if matches!(tls, Tls::On(_)) { "rediss" } else { "redis" };
        match servers {
            Servers::One(Endpoint::Unix(path)) => write!(f, "unix://{}?db={}", path.display(), login.db),
            Servers::One(Endpoint::Tcp(address, tls)) => {
                write!(f, "{}://{login}{address}/{}", scheme(tls), login.db)
            }
            Servers::Sentinels(shared) => {
                let Service { sentinels, name, tls, .. } = &shared.service;
                let sentinels: Vec<String> = sentinels.iter().map(Address::to_string).collect();
                write!(f, "{}+sentinel://{login}{}/{name}/{}", scheme(tls), sentinels.join(","), login.db)
            }
            Servers::Cluster(shared) => {
                let seeds: Vec<String> = shared.service.seeds.iter().map(Address::to_string).collect();
                write!(f, "{}+cluster://{login}{}", scheme(&shared.service.tls), seeds.join(","))
            }
        }
    }
}

impl RedisUrl {
    /// Reads `redis://`, `rediss://` (TLS) or `unix://` with the usual parts, or `redis+sentinel://` or
    /// `redis+cluster://` (docs/redis.md); `valkey` may stand for `redis`. A lone name before the `@` is the password.
    /// `ca` is a PEM file of root certificates that replace the system's.
    ///
    /// # Errors
    /// Returns what is wrong with the text or the file and the remedy, without the password.
    pub fn parse(text: &str, ca: Option<&Path>) -> Result<Self, UrlError> {
        let text = text.trim();
        let (first, hosts) = split_hosts(text);
        let url = Url::parse(&first).map_err(|error| fault(text, format!("is not a URL ({error}); {FORM}")))?;
        if matches!(url.scheme(), "redis-sentinel" | "rediss-sentinel") {
            return Err(fault(text, format!("is of another client's form; {SENTINEL_FORM}")));
        }
        if hosts.is_empty() {
            return Err(fault(text, format!("names no host; {FORM}")));
        }
        if url.fragment().is_some() {
            let remedy = "to trust a private certificate authority, set SAMOVAR_REDIS_CA to its PEM file";
            return Err(fault(text, format!("has a fragment (`#…`), which is not supported; {remedy}")));
        }
        let (base, topology) = url.scheme().split_once('+').unwrap_or((url.scheme(), ""));
        let is_tls = matches!(base, "rediss" | "valkeys");
        if !is_tls && ca.is_some() {
            let remedy = "write rediss:// for TLS, or unset SAMOVAR_REDIS_CA";
            return Err(fault(text, format!("is not encrypted, but SAMOVAR_REDIS_CA names a CA; {remedy}")));
        }
        let tls = |ca: Option<&Path>| Ok(if is_tls { Tls::On(ca.map(roots).transpose()?) } else { Tls::Off });
        match (base, topology) {
            ("redis" | "valkey" | "rediss" | "valkeys", "" | "sentinel" | "cluster") => {}
            ("unix", "") | ("redis" | "valkey", "unix") => return Self::over_unix_socket(text, &url),
            _ => {
                let known = "redis://, rediss:// or unix://, redis+sentinel:// or redis+cluster://";
                return Err(fault(text, format!("is of an unknown kind; write {known}")));
            }
        }
        match (topology, hosts.as_slice()) {
            ("", [_]) => Self::over_tcp(text, &url, tls(ca)?),
            ("sentinel", _) => Self::by_sentinels(text, &url, &hosts, None, tls(ca)?),
            // The form of other clients: a last item without a port, where others have one, is a service's name.
            ("", [sentinels @ .., name]) if !has_port(name) && sentinels.iter().any(|host| has_port(host)) => {
                Self::by_sentinels(text, &url, sentinels, Some(name), tls(ca)?)
            }
            ("", hosts) if !hosts.iter().any(|host| has_port(host)) => {
                let remedy = format!("for a Cluster, {CLUSTER_FORM}; for Sentinels, {SENTINEL_FORM}");
                Err(fault(text, format!("lists several hosts and does not tell what they are; {remedy}")))
            }
            _ => Self::of_cluster(text, &url, &hosts, tls(ca)?),
        }
    }

    /// Reads the URL of a Cluster.
    fn of_cluster(text: &str, url: &Url, hosts: &[&str], tls: Tls) -> Result<Self, UrlError> {
        let seeds = addresses(text, hosts, DEFAULT_PORT, CLUSTER_FORM)?;
        let mut options = Options::read(text, url, &[])?;
        match url.path().trim_matches('/') {
            "" => {}
            path if path.parse::<u32>().is_ok() => options.login.db = database(text, path)?,
            _ => {
                let remedy = format!("leave it out or, if the hosts are Sentinels, {SENTINEL_FORM}");
                return Err(fault(text, format!("names a Cluster, and has a path; {remedy}")));
            }
        }
        if options.login.db != 0 {
            return Err(fault(text, "names a database: a Cluster has database 0 only; leave the number out".into()));
        }
        let login = options.login(text, url)?;
        let nodes = Nodes { seeds, login: login.clone(), tls };
        Ok(Self { servers: Servers::Cluster(Shared::new(nodes)), login })
    }

    /// Returns the URL of this server, without TLS and with the default user.
    #[must_use]
    pub fn at(host: &str, port: u16, db: u32, password: Option<&str>) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let login = Login { db, user: None, password: password.map(str::to_owned) };
        Self { servers: Servers::One(Endpoint::Tcp(Address { host, port }, Tls::Off)), login }
    }

    fn over_tcp(text: &str, url: &Url, tls: Tls) -> Result<Self, UrlError> {
        let address = address(text, url, DEFAULT_PORT)?;
        let mut options = Options::read(text, url, &[])?;
        let path = url.path().trim_matches('/');
        if !path.is_empty() {
            options.login.db = database(text, path)?;
        }
        let login = options.login(text, url)?;
        Ok(Self { servers: Servers::One(Endpoint::Tcp(address, tls)), login })
    }

    /// Reads the URL of Sentinels. `name` is the service's where it stands among the hosts; else it is the first part
    /// of the path.
    fn by_sentinels(text: &str, url: &Url, hosts: &[&str], name: Option<&str>, tls: Tls) -> Result<Self, UrlError> {
        let sentinels = addresses(text, hosts, DEFAULT_SENTINEL_PORT, SENTINEL_FORM)?;
        let mut options = Options::read(text, url, &["sentinel_user", "sentinel_password", "sentinel_tls"])?;
        let mut parts = url.path().split('/').filter(|part| !part.is_empty());
        let name = decoded(text, name.or_else(|| parts.next()).unwrap_or_default())?;
        if name.is_empty() {
            return Err(fault(text, format!("names no service of the Sentinels; {SENTINEL_FORM}")));
        }
        if let Some(db) = parts.next() {
            options.login.db = database(text, db)?;
        }
        if parts.next().is_some() {
            return Err(fault(text, format!("has a part too many in its path; {SENTINEL_FORM}")));
        }
        let sentinel_tls = if options.sentinel_tls.unwrap_or(true) { tls.clone() } else { Tls::Off };
        let sentinel_login = options.sentinel_login.clone();
        let login = options.login(text, url)?;
        let service = Service { sentinels, name, sentinel_login, sentinel_tls, login: login.clone(), tls };
        Ok(Self { servers: Servers::Sentinels(Shared::new(service)), login })
    }

    fn over_unix_socket(text: &str, url: &Url) -> Result<Self, UrlError> {
        if url.host_str().is_some_and(|host| !host.is_empty()) {
            return Err(fault(text, "must name an absolute path: unix:///run/redis.sock".into()));
        }
        let path = decoded(text, url.path())?;
        if path.trim_matches('/').is_empty() {
            return Err(fault(text, "names no socket; write unix:///run/redis.sock?db=0".into()));
        }
        let login = Options::read(text, url, &[])?.login;
        Ok(Self { servers: Servers::One(Endpoint::Unix(path.into())), login })
    }

    /// Returns the number of the database.
    #[must_use]
    pub fn database(&self) -> i64 {
        self.login.db.into()
    }

    /// Returns a client that is not connected yet, for uses beside [`Connection`].
    ///
    /// # Errors
    /// Fails if the root certificates are invalid, or if it names no single server.
    pub fn client(&self) -> RedisResult<redis::Client> {
        match &self.servers {
            Servers::One(endpoint) => endpoint.client(&self.login),
            Servers::Sentinels(_) | Servers::Cluster(_) => {
                Err((ErrorKind::InvalidClientConfig, "the URL names no single server").into())
            }
        }
    }

    /// Returns the server to which connections lead. Sentinels or the nodes of a Cluster are asked from now on, by a
    /// task on the current runtime.
    fn target(&self) -> RedisResult<Target> {
        match &self.servers {
            Servers::One(endpoint) => Ok(Target::Server(Arc::new(endpoint.client(&self.login)?))),
            Servers::Sentinels(shared) => {
                let sentinels = shared.used(Sentinels::new);
                sentinels.ask_on();
                Ok(Target::Master(sentinels))
            }
            Servers::Cluster(shared) => {
                let cluster = shared.used(Cluster::new);
                cluster.ask_on();
                Ok(Target::Cluster(cluster))
            }
        }
    }

    /// Returns `true` if another server may become the master.
    pub fn may_move(&self) -> bool {
        !matches!(self.servers, Servers::One(_))
    }

    /// Opens a multiplexed connection that reconnects without limit. Commands fail after `timeout`, also while Redis is
    /// unreachable. Not for blocking commands, which delay all users of the connection.
    ///
    /// # Errors
    /// The first attempt is not repeated: its error is returned at once, and the caller decides about another.
    pub async fn manager(&self, timeout: Duration) -> RedisResult<Connection> {
        Connection::open(self.target()?, self.to_string().into(), timeout).await
    }

    /// Opens the connection lazily, for callers that can work while Redis is unreachable.
    ///
    /// # Errors
    /// Fails if the root certificates are invalid.
    pub fn lazy_manager(&self, timeout: Duration) -> RedisResult<Connection> {
        Ok(Connection::lazy(self.target()?, self.to_string().into(), timeout))
    }
}

/// The options in a URL's query.
#[derive(Default)]
struct Options {
    login: Login,
    sentinel_login: Login,
    sentinel_tls: Option<bool>,
}

impl Options {
    /// Reads the options; those of Sentinels only if they are in `also`.
    fn read(text: &str, url: &Url, also: &[&str]) -> Result<Self, UrlError> {
        let mut options = Self::default();
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "db" => options.login.db = database(text, &value)?,
                "user" | "username" => options.login.user = filled(value.into_owned()),
                "pass" | "password" => options.login.password = filled(value.into_owned()),
                "protocol" if matches!(value.as_ref(), "2" | "3" | "resp2" | "resp3") => {}
                name if !also.contains(&name) => {
                    let known = [&["db", "user", "password"], also].concat().join(", ");
                    return Err(fault(text, format!("has an unknown option after `?`; known: {known}")));
                }
                "sentinel_user" => options.sentinel_login.user = filled(value.into_owned()),
                "sentinel_password" => options.sentinel_login.password = filled(value.into_owned()),
                _ if matches!(value.as_ref(), "on" | "off") => options.sentinel_tls = Some(value == "on"),
                _ => return Err(fault(text, "says neither on nor off after `sentinel_tls=`".into())),
            }
        }
        Ok(options)
    }

    /// Returns the login: user and password before the `@` have precedence over options.
    fn login(self, text: &str, url: &Url) -> Result<Login, UrlError> {
        let (user, password) = match (decoded(text, url.username())?, url.password()) {
            (name, Some(password)) => {
                let (user, password) = (filled(name), decoded(text, password)?);
                // A user without a password: Redis accepts any (`nopass`).
                let password = if user.is_some() { Some(password) } else { filled(password) };
                (user, password)
            }
            (lone, None) => (None, filled(lone)),
        };
        let Login { db, user: other_user, password: other_password } = self.login;
        Ok(Login { db, user: user.or(other_user), password: password.or(other_password) })
    }
}

/// Splits `scheme://login@host,host/path` into the text with only the first host, and all hosts.
fn split_hosts(text: &str) -> (String, Vec<&str>) {
    let Some((scheme, rest)) = text.split_once("://") else { return (text.to_owned(), Vec::new()) };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let hosts: Vec<&str> = hosts.split(',').map(str::trim).collect();
    (format!("{scheme}://{login}{}{tail}", hosts[0]), hosts)
}

/// Returns `true` if a port follows the host.
fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|end| end.contains(':'))
}

/// Reads hosts of a list.
fn addresses(text: &str, hosts: &[&str], default_port: u16, form: &str) -> Result<Vec<Address>, UrlError> {
    let of_host = |host: &&str| {
        let of_host = Url::parse(&format!("redis://{host}"));
        let of_host = of_host.map_err(|e| fault(text, format!("lists an invalid host ({e}); {form}")));
        address(text, &of_host?, default_port)
    };
    hosts.iter().map(of_host).collect()
}

fn address(text: &str, url: &Url, default_port: u16) -> Result<Address, UrlError> {
    let host = match url.host() {
        Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        _ => return Err(fault(text, format!("names no host; {FORM}"))),
    };
    if host == "0.0.0.0" || host == "::" {
        return Err(fault(text, "names an address to listen on, not to connect to; write 127.0.0.1".into()));
    }
    Ok(Address { host, port: url.port().unwrap_or(default_port) })
}

/// Returns an error that quotes the text only if no password can be in it.
fn fault(text: &str, what: String) -> UrlError {
    let safe = !text.contains(['@', '?', '#', '%']) && !text.is_empty() && text.matches(':').count() <= 2;
    UrlError(if safe { format!("`{text}` {what}") } else { format!("the Redis URL {what}") })
}

fn database(text: &str, number: &str) -> Result<u32, UrlError> {
    number.parse().map_err(|_| fault(text, "names a database that is not a number; write /0 or another number".into()))
}

fn decoded(text: &str, part: &str) -> Result<String, UrlError> {
    match percent_decode_str(part).decode_utf8() {
        Ok(part) => Ok(part.into_owned()),
        Err(_) => Err(fault(text, "is not UTF-8 once percent-decoded".into())),
    }
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn roots(path: &Path) -> Result<Arc<[u8]>, UrlError> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|error| UrlError(format!("cannot read the CA file `{shown}`: {error}")))?;
    let mut certificates = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|error| UrlError(format!("the CA file `{shown}` is damaged: {error}")))?;
        certificates += 1;
    }
    if certificates == 0 {
        let remedy = "it must be PEM, with `-----BEGIN CERTIFICATE-----`";
        return Err(UrlError(format!("the CA file `{shown}` holds no certificate; {remedy}")));
    }
    Ok(pem.into())
}

#[cfg(test)]
mod tests;
