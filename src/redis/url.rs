//! Redis URLs (`REDIS_URL`) and connections to them.
//!
//! A [`RedisUrl`] is valid as far as its text tells. Neither its output nor an error ever contains the password: an
//! error quotes the text only if no password can be in it.

use super::Connection;
use percent_encoding::percent_decode_str;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use url::{Host, Url};

/// The port of a URL that names none.
const DEFAULT_PORT: u16 = 6379;

/// The time without an acknowledgement after which a connection is closed, instead of the kernel's 15 minutes.
const DEAD_PEER: Duration = Duration::from_secs(15);

/// The placeholder that is printed instead of the password.
const HIDDEN: &str = "***";

const FORM: &str = "write redis://[[user]:password@]host[:port][/db], and percent-encode special characters in the \
                    password (`/` as %2F, `@` as %40, `%` as %25)";

/// The address and credentials of a Redis server. `Display` and `Debug` never show the password.
#[derive(Clone)]
pub struct RedisUrl {
    server: Server,
    db: u32,
    user: Option<String>,
    password: Option<String>,
}

#[derive(Clone)]
enum Server {
    Tcp {
        host: String,
        port: u16,
    },
    Tls {
        host: String,
        port: u16,
        /// PEM; the system's roots if absent.
        roots: Option<Arc<[u8]>>,
    },
    Unix(PathBuf),
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
        let (scheme, host, port) = match &self.server {
            Server::Tcp { host, port } => ("redis", host, port),
            Server::Tls { host, port, .. } => ("rediss", host, port),
            Server::Unix(path) => return write!(f, "unix://{}?db={}", path.display(), self.db),
        };
        write!(f, "{scheme}://")?;
        match (&self.user, &self.password) {
            (Some(user), Some(_)) => write!(f, "{user}:{HIDDEN}@")?,
            (Some(user), None) => write!(f, "{user}@")?,
            (None, Some(_)) => write!(f, "{HIDDEN}@")?,
            (None, None) => {}
        }
        if host.contains(':') {
            write!(f, "[{host}]:{port}/{}", self.db)
        } else {
            write!(f, "{host}:{port}/{}", self.db)
        }
    }
}

impl RedisUrl {
    /// Reads `redis://`, `rediss://` (TLS) or `unix://` with the usual parts; `valkey` may stand for `redis`. A lone
    /// name before the `@` is the password. `ca` is a PEM file of root certificates that replace the system's.
    ///
    /// # Errors
    /// Returns what is wrong with the text or the file and the remedy, without the password.
    pub fn parse(text: &str, ca: Option<&Path>) -> Result<Self, UrlError> {
        let text = text.trim();
        refuse_what_comes_later(text)?;
        let url = Url::parse(text).map_err(|error| fault(text, format!("is not a URL ({error}); {FORM}")))?;
        if url.fragment().is_some() {
            let remedy = "to trust a private certificate authority, set SAMOVAR_REDIS_CA to its PEM file";
            return Err(fault(text, format!("has a fragment (`#…`), which is not supported; {remedy}")));
        }
        let scheme = url.scheme();
        let tls = matches!(scheme, "rediss" | "valkeys");
        if !tls && ca.is_some() {
            let remedy = "write rediss:// for TLS, or unset SAMOVAR_REDIS_CA";
            return Err(fault(text, format!("is not encrypted, but SAMOVAR_REDIS_CA names a CA; {remedy}")));
        }
        match scheme {
            "redis" | "valkey" | "rediss" | "valkeys" => Self::over_tcp(text, &url, tls, ca),
            "unix" | "redis+unix" | "valkey+unix" => Self::over_unix_socket(text, &url),
            _ => Err(fault(text, "is of an unknown kind; write redis://, rediss:// or unix://".into())),
        }
    }

    /// Returns the URL of this server, without TLS and with the default user.
    #[must_use]
    pub fn at(host: &str, port: u16, db: u32, password: Option<&str>) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Self { server: Server::Tcp { host, port }, db, user: None, password: password.map(str::to_owned) }
    }

    fn over_tcp(text: &str, url: &Url, tls: bool, ca: Option<&Path>) -> Result<Self, UrlError> {
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(fault(text, format!("names no host; {FORM}"))),
        };
        if host == "0.0.0.0" || host == "::" {
            return Err(fault(text, "names an address to listen on, not to connect to; write 127.0.0.1".into()));
        }
        let port = url.port().unwrap_or(DEFAULT_PORT);
        let mut options = Options::read(text, url)?;
        let path = url.path().trim_matches('/');
        if !path.is_empty() {
            options.db = Some(database(text, path)?);
        }
        let (user, password) = match (decoded(text, url.username())?, url.password()) {
            (name, Some(password)) => {
                let (user, password) = (filled(name), decoded(text, password)?);
                // A user without a password: Redis accepts any (`nopass`).
                let password = if user.is_some() { Some(password) } else { filled(password) };
                (user, password)
            }
            (lone, None) => (None, filled(lone)),
        };
        let server = if tls {
            Server::Tls { host, port, roots: ca.map(roots).transpose()? }
        } else {
            Server::Tcp { host, port }
        };
        Ok(Self {
            server,
            db: options.db.unwrap_or(0),
            user: user.or(options.user),
            password: password.or(options.password),
        })
    }

    fn over_unix_socket(text: &str, url: &Url) -> Result<Self, UrlError> {
        if url.host_str().is_some_and(|host| !host.is_empty()) {
            return Err(fault(text, "must name an absolute path: unix:///run/redis.sock".into()));
        }
        let path = decoded(text, url.path())?;
        if path.trim_matches('/').is_empty() {
            return Err(fault(text, "names no socket; write unix:///run/redis.sock?db=0".into()));
        }
        let Options { db, user, password } = Options::read(text, url)?;
        Ok(Self { server: Server::Unix(path.into()), db: db.unwrap_or(0), user, password })
    }

    /// Returns the number of the database.
    #[must_use]
    pub fn database(&self) -> i64 {
        self.db.into()
    }

    /// Returns a client that is not connected yet, for pub/sub and blocking reads.
    ///
    /// # Errors
    /// Fails if the root certificates are invalid.
    pub fn client(&self) -> redis::RedisResult<redis::Client> {
        let address = match &self.server {
            Server::Tcp { host, port } => ConnectionAddr::Tcp(host.clone(), *port),
            Server::Tls { host, port, .. } => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            Server::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let mut login = RedisConnectionInfo::default()
            .set_db(self.db.into())
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password);
        }
        let info = address.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp_settings());
        match &self.server {
            Server::Tls { roots, .. } => {
                // An application that embeds this crate may have installed another provider; it is then used.
                let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
                let root_cert = roots.as_deref().map(<[u8]>::to_vec);
                redis::Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
            }
            Server::Tcp { .. } | Server::Unix(_) => redis::Client::open(info),
        }
    }

    /// Opens a multiplexed connection that reconnects without limit. Commands fail after `timeout`, also while Redis is
    /// unreachable. Not for blocking commands, which delay all users of the connection.
    ///
    /// # Errors
    /// The first attempt is not repeated: its error is returned at once, and the caller decides about another.
    pub async fn manager(&self, timeout: Duration) -> redis::RedisResult<Connection> {
        Connection::open(self.client()?, self.to_string().into(), timeout).await
    }

    /// Opens the connection lazily, for callers that can work while Redis is unreachable.
    ///
    /// # Errors
    /// Fails if the root certificates are invalid.
    pub fn lazy_manager(&self, timeout: Duration) -> redis::RedisResult<Connection> {
        Connection::lazy(self.client()?, self.to_string().into(), timeout)
    }
}

/// The options in a URL's query.
#[derive(Default)]
struct Options {
    db: Option<u32>,
    user: Option<String>,
    password: Option<String>,
}

impl Options {
    fn read(text: &str, url: &Url) -> Result<Self, UrlError> {
        let mut options = Self::default();
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "db" => options.db = Some(database(text, &value)?),
                "user" | "username" => options.user = filled(value.into_owned()),
                "pass" | "password" => options.password = filled(value.into_owned()),
                "protocol" if matches!(value.as_ref(), "2" | "3" | "resp2" | "resp3") => {}
                _ => return Err(fault(text, "has an unknown option after `?`; known: db, user, password".into())),
            }
        }
        Ok(options)
    }
}

fn refuse_what_comes_later(text: &str) -> Result<(), UrlError> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if scheme.contains("sentinel") {
        return Err(fault(text, "names Sentinels, which are not supported yet; give the master's own URL".into()));
    }
    if scheme.contains("cluster") {
        return Err(fault(text, "names a Cluster, which is not supported yet; give the URL of one server".into()));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    if hosts.contains(',') {
        return Err(fault(text, "lists several hosts, which is not supported yet; give the URL of one server".into()));
    }
    Ok(())
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

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(DEAD_PEER).with_interval(DEAD_PEER / 5);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(DEAD_PEER);
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    fn parse(text: &str) -> RedisUrl {
        RedisUrl::parse(text, None).unwrap()
    }

    fn refused(text: &str) -> String {
        RedisUrl::parse(text, None).unwrap_err().to_string()
    }

    #[test]
    fn missing_parts_have_the_usual_defaults() {
        assert_eq!(parse("redis://cache").to_string(), "redis://cache:6379/0");
        assert_eq!(parse(" redis://cache:6380/\n").to_string(), "redis://cache:6380/0");
        assert_eq!(parse("redis://cache/7").to_string(), "redis://cache:6379/7");
        assert_eq!(parse("redis://cache?db=7").to_string(), "redis://cache:6379/7");
    }

    #[test]
    fn a_lone_name_before_the_host_is_the_password() {
        let url = parse("redis://secret@cache");
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (None, Some("secret")));
        let url = parse("redis://:secret@cache");
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (None, Some("secret")));
        let url = parse("redis://app:secret@cache");
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("app"), Some("secret")));
        let url = parse("redis://:@cache");
        assert_eq!((url.user, url.password), (None, None));
    }

    #[test]
    fn valkey_means_redis() {
        assert_eq!(parse("valkey://cache").to_string(), "redis://cache:6379/0");
        assert_eq!(parse("valkeys://cache").to_string(), "rediss://cache:6379/0");
    }

    #[test]
    fn ipv6_hosts_have_brackets_in_print_and_none_on_the_wire() {
        let url = parse("redis://[::1]:6380/2");
        assert_eq!(url.to_string(), "redis://[::1]:6380/2");
        let client = url.client().unwrap();
        assert_eq!(*client.get_connection_info().addr(), ConnectionAddr::Tcp("::1".into(), 6380));
    }

    #[test]
    fn unix_sockets_take_their_options_from_the_query() {
        let url = parse("unix:///run/my%20redis.sock?db=3&user=app&pass=secret");
        assert_eq!(url.to_string(), "unix:///run/my redis.sock?db=3");
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("app"), Some("secret")));
        assert!(refused("unix://run/redis.sock").contains("absolute path"));
    }

    #[test]
    fn what_comes_later_is_said_to_come_later() {
        for text in [
            "redis-sentinel://a:26379/mymaster",
            "redis+sentinel://a/mymaster",
            "redis+cluster://a",
            "redis://a:1,b:2",
            "redis://:pa,ss@a,b",
        ] {
            assert!(refused(text).contains("not supported yet"), "{text}");
        }
        assert_eq!(parse("redis://:pa,ss@cache").password.as_deref(), Some("pa,ss"));
    }

    #[test]
    fn faults_name_the_value_and_the_remedy() {
        assert_eq!(
            refused("http://cache"),
            "`http://cache` is of an unknown kind; write redis://, rediss:// or unix://"
        );
        assert!(refused("cache:6379").contains("write redis://"));
        assert!(refused("redis://cache/zero").contains("write /0"));
        assert!(refused("redis://0.0.0.0").contains("127.0.0.1"));
        assert!(refused("redis:///0").contains("names no host"));
        assert!(refused("").contains("not a URL"));
        assert!(refused("rediss://cache#insecure").contains("SAMOVAR_REDIS_CA"));
        assert!(refused("rediss://cache?ssl_cert_reqs=none").contains("unknown option"));
    }

    #[test]
    fn a_ca_is_refused_where_nothing_is_encrypted() {
        let error = RedisUrl::parse("redis://cache", Some(Path::new("ca.pem"))).unwrap_err().to_string();
        assert!(error.contains("rediss://"), "{error}");
    }

    #[test]
    fn a_ca_file_must_hold_a_certificate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "nothing here").unwrap();
        let error = RedisUrl::parse("rediss://cache", Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
        let error = RedisUrl::parse("rediss://cache", Some(Path::new("/nowhere.pem"))).unwrap_err().to_string();
        assert!(error.contains("cannot read the CA file"), "{error}");
    }

    proptest! {
        #[test]
        fn an_encoded_password_arrives_whole(password in "\\PC{1,40}", user in "[a-z]{0,8}") {
            let encoded = utf8_percent_encode(&password, NON_ALPHANUMERIC);
            let url = parse(&format!("redis://{user}:{encoded}@cache:6380/4"));
            prop_assert_eq!(url.password.as_deref(), Some(password.as_str()));
            prop_assert_eq!(url.user.as_deref().unwrap_or_default(), user.as_str());
            let client = url.client().unwrap();
            prop_assert_eq!(client.get_connection_info().redis_settings().password(), Some(password.as_str()));
        }

        #[test]
        fn nothing_printed_holds_the_password(
            password in "[A-Z0-9/@:?#%&,\\[\\] ]{0,4}(ZZ|77)[A-Z0-9/@:?#%&,\\[\\] ]{4,12}",
            shape in prop::sample::select(vec![
                "redis://:PW@cache", "redis://app:PW@cache:6380/1", "redis://PW@cache/x", "rediss://PW@a,b/1",
                "redis+sentinel://:PW@a/b", "http://:PW@cache", "redis://:PW@", "unix:///s?pass=PW", "redis://:PW@[::1",
                "unix:///s?secret=PW", "redis://cache?pass=PW&db=x", ":PW@cache", "redis//:PW@cache", "redis://cache#PW",
            ]),
            encode in any::<bool>(),
        ) {
            let encoded = utf8_percent_encode(&password, NON_ALPHANUMERIC).to_string();
            let text = shape.replace("PW", if encode { &encoded } else { &password });
            let printed = match RedisUrl::parse(&text, None) {
                Ok(url) => format!("{url} {url:?} {:?}", url.client().unwrap()),
                Err(error) => format!("{error} {error:?}"),
            };
            // Any four characters in a row would be a piece of it; the shape's own host may hold shorter ones.
            prop_assert!(!printed.contains(&password), "{printed}");
            prop_assert!(!printed.contains(&encoded), "{printed}");
            let secret: Vec<char> = password.chars().collect();
            for piece in secret.windows(4).map(|piece| piece.iter().collect::<String>()) {
                prop_assert!(!printed.contains(&piece), "`{piece}` of `{password}` in `{printed}`");
            }
        }
    }
}
