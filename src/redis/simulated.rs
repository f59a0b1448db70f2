//! A simulated network to Redis: on a thread that has one, connections send to the simulator instead of a socket.
//!
//! Only with the feature `simulation`, which no release has. Other threads use real sockets, with the feature as well.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::aio::{ConnectionManager, PubSub};
use redis::{Arg, Client, Cmd, ConnectionAddr, Pipeline, RedisResult, Value};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};

/// The bytes that a subscription's stream holds before its writer waits.
const STREAM: usize = 1 << 16;

static SOCKETS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static NETWORK: RefCell<Option<mpsc::UnboundedSender<Sent>>> = const { RefCell::new(None) };
}

/// A unit that a client sends.
#[derive(Debug)]
pub enum Sent {
    /// Commands over a socket.
    Commands(Commands),
    /// A connection for subscriptions, over a stream of its own.
    Subscriber {
        /// The host in the client's URL.
        host: String,
        /// The server's end.
        stream: DuplexStream,
    },
}

/// Commands that were sent together. Those of one socket are carried out in the order in which they were sent.
#[derive(Debug)]
pub struct Commands {
    /// The host in the client's URL.
    pub host: String,
    /// The socket's number. A socket that broke is replaced by one with another number.
    pub socket: u64,
    /// The words of each command.
    pub commands: Vec<Vec<Vec<u8>>>,
    /// Takes each command's reply in RESP, or an error if the socket broke.
    pub replies: oneshot::Sender<io::Result<Vec<Vec<u8>>>>,
}

/// Sends all that this thread's clients send to `network`, until it is replaced.
pub fn install(network: mpsc::UnboundedSender<Sent>) {
    NETWORK.with_borrow_mut(|installed| *installed = Some(network));
}

/// Returns `true` if this thread's network is simulated.
pub(crate) fn is_on() -> bool {
    NETWORK.with_borrow(Option::is_some)
}

/// Opens a connection for subscriptions; `None` if the network is real.
pub(super) async fn subscriber(client: &Client) -> Option<RedisResult<PubSub>> {
    let network = NETWORK.with_borrow(Clone::clone)?;
    let (stream, servers) = tokio::io::duplex(STREAM);
    if network.send(Sent::Subscriber { host: host(client), stream: servers }).is_err() {
        return Some(Err(broken().into()));
    }
    Some(PubSub::new(client.get_connection_info().redis_settings(), stream).await)
}

/// Returns a socket to the server of this client; `None` if the network is real.
pub(super) fn socket(client: &Client) -> Option<Manager> {
    let network = NETWORK.with_borrow(Clone::clone)?;
    let number = Arc::new(AtomicU64::new(SOCKETS.fetch_add(1, Ordering::Relaxed)));
    Some(Manager::Simulated(Socket { network, host: host(client), number }))
}

fn host(client: &Client) -> String {
    match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => String::new(),
    }
}

/// A connection that reconnects by itself.
#[derive(Clone)]
pub(super) enum Manager {
    Real(ConnectionManager),
    Simulated(Socket),
}

impl Manager {
    pub(super) async fn send_packed_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Real(manager) => manager.send_packed_command(command).await,
            Self::Simulated(socket) => socket.send(vec![words(command)]).await.map(|mut replies| replies.remove(0)),
        }
    }

    pub(super) async fn send_packed_commands(
        &mut self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let socket = match self {
            Self::Real(manager) => return manager.send_packed_commands(pipeline, offset, count).await,
            Self::Simulated(socket) => socket,
        };
        let mut commands: Vec<_> = pipeline.cmd_iter().map(words).collect();
        if offset > 0 {
            // A transaction: all replies but that of `EXEC` are skipped.
            commands.insert(0, vec![b"MULTI".to_vec()]);
            commands.push(vec![b"EXEC".to_vec()]);
        }
        let mut replies = socket.send(commands).await?;
        let rest = replies.split_off(offset.min(replies.len()));
        for skipped in replies {
            skipped.extract_error()?;
        }
        Ok(rest.into_iter().take(count).collect())
    }
}

/// A simulated socket.
#[derive(Clone)]
pub(super) struct Socket {
    network: mpsc::UnboundedSender<Sent>,
    host: String,
    number: Arc<AtomicU64>,
}

impl Socket {
    async fn send(&self, commands: Vec<Vec<Vec<u8>>>) -> RedisResult<Vec<Value>> {
        let (replies, replied) = oneshot::channel();
        let (host, socket) = (self.host.clone(), self.number.load(Ordering::Relaxed));
        let sent = self.network.send(Sent::Commands(Commands { host, socket, commands, replies }));
        sent.map_err(|_| broken())?;
        let replies = replied.await.unwrap_or_else(|_| Err(broken()));
        if replies.is_err() {
            let next = SOCKETS.fetch_add(1, Ordering::Relaxed);
            let _ = self.number.compare_exchange(socket, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        replies?.iter().map(|reply| redis::parse_redis_value(reply)).collect()
    }
}

fn broken() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionReset)
}

/// Returns the words of a command.
fn words(command: &Cmd) -> Vec<Vec<u8>> {
    let word = |arg: Arg<&[u8]>| match arg {
        Arg::Simple(word) => word.to_vec(),
        _ => b"0".to_vec(),
    };
    command.args_iter().map(word).collect()
}
