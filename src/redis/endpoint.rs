//! One server's address, and what a client says to it when it connects.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisResult, TlsCertificates};

/// The time without an acknowledgement after which a connection is closed, instead of the kernel's 15 minutes.
const DEAD_PEER: Duration = Duration::from_secs(15);

/// The placeholder that is printed instead of the password.
const HIDDEN: &str = "***";

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The encryption of a connection.
#[derive(Clone)]
pub(super) enum Tls {
    Off,
    /// With root certificates in PEM, or else the system's.
    On(Option<Arc<[u8]>>),
}

/// The way to a server.
#[derive(Clone)]
pub(super) enum Endpoint {
    Tcp(Address, Tls),
    Unix(PathBuf),
}

/// The database, user and password. `Display` shows user and password as a URL does, with the password hidden.
#[derive(Clone, Default)]
pub(super) struct Login {
    pub(super) db: u32,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.user, &self.password) {
            (Some(user), Some(_)) => write!(f, "{user}:{HIDDEN}@"),
            (Some(user), None) => write!(f, "{user}@"),
            (None, Some(_)) => write!(f, "{HIDDEN}@"),
            (None, None) => Ok(()),
        }
    }
}

impl Endpoint {
    /// Returns a client that is not connected yet.
    ///
    /// # Errors
    /// Fails if the root certificates are invalid.
    pub(super) fn client(&self, login: &Login) -> RedisResult<Client> {
        let address = match self {
            Self::Tcp(Address { host, port }, Tls::Off) => ConnectionAddr::Tcp(host.clone(), *port),
            Self::Tcp(Address { host, port }, Tls::On(_)) => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            Self::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let mut settings = RedisConnectionInfo::default()
            .set_db(login.db.into())
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if let Some(user) = &login.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &login.password {
            settings = settings.set_password(password);
        }
        let info = address.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp_settings());
        match self {
            Self::Tcp(_, Tls::On(roots)) => {
                // An application that embeds this crate may have installed another provider; it is then used.
                let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
                let root_cert = roots.as_deref().map(<[u8]>::to_vec);
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
            }
            Self::Tcp(_, Tls::Off) | Self::Unix(_) => Client::open(info),
        }
    }
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(DEAD_PEER).with_interval(DEAD_PEER / 5);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(DEAD_PEER);
    settings
}
