//! The listener: connections, their limits, and shutdown.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::access::LEAST_TOKEN;
use super::{Admin, guard, openapi};
use crate::config::{DEFAULT_PORT, Listen};
use crate::redis::Backoff;

/// Ports tried after the default one before any free port is used.
const NEXT_PORTS: u16 = 100;
/// The most connections. Beyond that, the one that is idle longest is closed for a new one.
const CONNECTIONS: usize = 512;
/// The timeout of a request's headers, and of an idle connection.
const HEADERS: Duration = Duration::from_secs(10);
/// The longest headers of a request, in bytes.
const HEADER_BYTES: usize = 64 * 1024;
/// The timeout of pending answers at shutdown.
const DRAIN: Duration = Duration::from_secs(1);
/// The pause after a system error, such as no file handles left.
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// The age after which a count of all entries is old.
const CENSUS: Duration = Duration::from_secs(30);
/// The pause between counts, as a multiple of a count's duration.
const CENSUS_SHARE: u32 = 10;

/// The address from which a request came: that of the client, or of a proxy in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// A bound address.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

/// Binds the address of HTTP; `None` if HTTP is off.
///
/// # Errors
/// The address cannot be bound; the error tells the remedy.
pub async fn listen(listen: Listen) -> anyhow::Result<Option<Listening>> {
    let listener = match listen {
        Listen::Off => return Ok(None),
        Listen::At(address) => TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}: choose another address with --listen or SAMOVAR_LISTEN, or `off`")
        })?,
        Listen::Anywhere => next_free(DEFAULT_PORT).await.with_context(|| {
            format!("cannot listen on {}: choose an address with --listen, or `off`", local(DEFAULT_PORT))
        })?,
    };
    let address = listener.local_addr()?;
    Ok(Some(Listening { listener, address }))
}

async fn next_free(first: u16) -> io::Result<TcpListener> {
    for port in (first..first + NEXT_PORTS).chain([0]) {
        match TcpListener::bind(local(port)).await {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Listening {
    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `over`; pending answers then have a moment to finish.
    ///
    /// `pages` are further routes, beside those of the API.
    pub async fn run(self, admin: Arc<Admin>, pages: Router<Arc<Admin>>, over: CancellationToken) {
        self.announce(&admin);
        let (router, document) = openapi::router(&admin, pages);
        // The router is built once.
        let _ = admin.document.set(document.into());
        let router = router
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&admin), guard::everybody))
            .with_state(Arc::clone(&admin));
        tokio::join!(self.accept(router, &over), count(&admin, &over));
    }

    fn announce(&self, admin: &Admin) {
        let address = self.address;
        let default = local(DEFAULT_PORT);
        if address.ip() == default.ip() && address.port() > DEFAULT_PORT && address.port() - DEFAULT_PORT < NEXT_PORTS {
            info!(
                "http://{address} answers health, statistics and metrics, and has the console ({default} may be in use)"
            );
        } else {
            info!("http://{address} answers health, statistics and metrics, and has the console");
        }
        if !admin.access.local && !admin.access.has_roles() {
            warn!("HTTP is open to other machines and SAMOVAR_TOKEN is not set; only read requests are answered");
        }
        if admin.access.local && !admin.access.has_roles() && !admin.access.hosts.is_empty() {
            warn!(
                "SAMOVAR_HOSTS is set and SAMOVAR_TOKEN is not: everybody who reaches this worker under one of these \
                 names, as through a proxy, may change things and see values; set SAMOVAR_TOKEN"
            );
        }
        for name in admin.access.short_tokens() {
            warn!("{name} is shorter than {LEAST_TOKEN} characters, so it may be guessed; choose a longer one");
        }
    }

    async fn accept(self, router: Router, over: &CancellationToken) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEADER_BYTES);
        let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
        let places = Arc::new(Places::default());
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept(), if places.has_room() => accepted,
                () = places.room.notified() => continue,
                _ = connections.join_next(), if !connections.is_empty() => continue,
                () = over.cancelled() => break,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    debug!("cannot accept a connection: {e}");
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            // It fails if the client is gone, which the next read detects.
            let _ = stream.set_nodelay(true);
            let (place, close) = places.take();
            let place = Arc::new(place);
            let answers = TowerToHyperService::new(router.clone());
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(Peer(client.ip()));
                let (place, answer) = (Arc::clone(&place), answers.call(request));
                async move {
                    place.is_waiting(false);
                    let answer = answer.await;
                    place.is_waiting(true);
                    answer
                }
            });
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            connections.spawn(async move {
                tokio::select! {
                    ended = connection => if let Err(e) = ended {
                        debug!("a connection broke: {e}");
                    },
                    () = close.cancelled() => debug!("an idle connection was closed to make room for another"),
                }
            });
        }
        drop(self.listener);
        if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
            debug!("answers were cut off");
        }
    }
}

/// The open connections, at most [`CONNECTIONS`].
#[derive(Debug, Default)]
struct Places {
    held: Mutex<Held>,
    /// Notified when a connection becomes idle, or a slot becomes free.
    room: Notify,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    /// When it became idle; `None` while a request is being answered.
    waiting: Option<Instant>,
    close: CancellationToken,
}

/// A connection's slot, until it is dropped.
#[derive(Debug)]
struct Place {
    id: u64,
    places: Arc<Places>,
}

impl Places {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if another connection finds a slot.
    fn has_room(&self) -> bool {
        let held = self.held();
        held.open.len() < CONNECTIONS || held.open.values().any(|open| open.waiting.is_some())
    }

    /// Returns a slot for a new connection and its shutdown signal. If all are taken, the one that is idle longest is
    /// closed.
    fn take(self: &Arc<Self>) -> (Place, CancellationToken) {
        let mut held = self.held();
        if held.open.len() >= CONNECTIONS {
            let waiting = held.open.iter().filter_map(|(id, open)| Some((open.waiting?, *id)));
            if let Some(open) = waiting.min().and_then(|(_, id)| held.open.remove(&id)) {
                open.close.cancel();
            }
        }
        let (id, close) = (held.next, CancellationToken::new());
        held.next += 1;
        held.open.insert(id, Open { waiting: Some(Instant::now()), close: close.clone() });
        (Place { id, places: Arc::clone(self) }, close)
    }
}

impl Place {
    fn is_waiting(&self, waiting: bool) {
        let mut held = self.places.held();
        if let Some(open) = held.open.get_mut(&self.id) {
            open.waiting = waiting.then(Instant::now);
        }
        if waiting && held.open.len() >= CONNECTIONS {
            self.places.room.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held();
        held.open.remove(&self.id);
        self.places.room.notify_one();
    }
}

/// Counts the entries of all jobs on request if the last count of any worker is old.
async fn count(admin: &Admin, over: &CancellationToken) {
    let mut backoff = Backoff::new("counting entries");
    loop {
        tokio::select! {
            () = admin.census_wanted.notified() => {}
            () = over.cancelled() => return,
        }
        let Some(parts) = admin.parts() else { continue };
        let counted = async {
            if let Some(last) = parts.ops.last_count().await? {
                let now = parts.ops.store.now().await?;
                let took = Duration::from_millis(u64::try_from(last.took_ms).unwrap_or(0));
                let kept = (took * CENSUS_SHARE).max(CENSUS);
                if (last.at_ms..last.at_ms + kept).contains(&now) {
                    return Ok(last);
                }
            }
            let census = parts.ops.count().await?;
            parts.ops.tell_count(&census).await?;
            redis::RedisResult::Ok(census)
        };
        let counted = tokio::select! {
            counted = counted => counted,
            () = over.cancelled() => return,
        };
        match counted {
            Ok(census) => {
                backoff.well();
                admin.census.send_replace(Some(Arc::new(census)));
            }
            Err(e) => backoff.ill(&e, over).await,
        }
    }
}
