//! Network faults between a worker and its Redis.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Longest piece handed on at once.
const PIECE: usize = 4096;

/// A fault of the connections through a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Present connections end, new ones are closed at once.
    Refuse,
    /// All data is delayed by this time.
    Delay(Duration),
    /// Each connection ends in the middle of a reply, after so many of its bytes from now on.
    CutReplies(usize),
    /// Each connection ends before a reply that contains this text.
    CutBefore(&'static str),
    /// Redis receives everything, and its answers are lost. A connection that has lost one answer loses all later ones,
    /// without a sign.
    Deaf,
    /// As [`Fault::Deaf`], for subscriptions only.
    DeafSubscriptions,
    /// Data sent to Redis is lost in the same way; everything that it sends arrives.
    Mute,
    /// Redis's answer to `HELLO` has this value in this field.
    Says(&'static str, &'static str),
}

/// A TCP proxy on a free port; it ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    fault: watch::Sender<Fault>,
    target: Arc<Mutex<u16>>,
    accepted: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Proxy {
    /// Before the server on this port.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (fault, _) = watch::channel(Fault::None);
        let (target, accepted, sent) = (Arc::new(Mutex::new(port)), Arc::default(), Arc::default());
        let mut server = JoinSet::new();
        let counts = (Arc::clone(&accepted), Arc::clone(&sent));
        server.spawn(serve(listener, fault.clone(), Arc::clone(&target), counts));
        Self { port: own, fault, target, accepted, sent, _server: server }
    }

    /// Where a worker finds Redis.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// From now on, for present connections and new ones.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// New connections lead to another server; the present ones stay, as after a failover.
    pub fn lead_to(&self, port: u16) {
        *self.target.lock().unwrap() = port;
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Pieces that clients sent so far. A client that waits for each answer sends one a command, unless it is long.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

async fn serve(
    listener: TcpListener,
    fault: watch::Sender<Fault>,
    target: Arc<Mutex<u16>>,
    (accepted, sent): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        accepted.fetch_add(1, Ordering::Relaxed);
        let (fault, port, sent) = (fault.subscribe(), *target.lock().unwrap(), Arc::clone(&sent));
        connections.spawn(async move {
            if *fault.borrow() == Fault::Refuse {
                return;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            let subscribed = watch::Sender::new(false);
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let refused = async {
                let mut fault = fault.clone();
                let _ = fault.wait_for(|fault| *fault == Fault::Refuse).await;
            };
            // Whatever ends first ends both ways.
            tokio::select! {
                () = tell(from_client, to_server, fault.clone(), &subscribed, &sent) => {}
                () = answer(from_server, to_client, fault.clone(), &subscribed) => {}
                () = refused => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn tell(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    fault: watch::Receiver<Fault>,
    subscribed: &watch::Sender<bool>,
    sent: &AtomicUsize,
) {
    let mut piece = [0; PIECE];
    let mut lost = false;
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        sent.fetch_add(1, Ordering::Relaxed);
        let said = &piece[..length];
        if said.windows(9).any(|word| word.eq_ignore_ascii_case(b"SUBSCRIBE")) {
            subscribed.send_replace(true);
        }
        let fault = *fault.borrow();
        lost |= fault == Fault::Mute;
        match fault {
            _ if lost => continue,
            Fault::Delay(time) => tokio::time::sleep(time).await,
            _ => {}
        }
        if to.write_all(said).await.is_err() {
            return;
        }
    }
}

async fn answer(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    fault: watch::Receiver<Fault>,
    subscribed: &watch::Sender<bool>,
) {
    let mut piece = [0; PIECE];
    let (mut cut, mut lost) = (0, false);
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let mut said = &piece[..length];
        let fault = *fault.borrow();
        lost |= fault == Fault::Deaf || (fault == Fault::DeafSubscriptions && *subscribed.borrow());
        match fault {
            _ if lost => continue,
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::CutReplies(after) if cut + length > after => {
                said = &said[..(after - cut).min(length / 2)];
                let _ = to.write_all(said).await;
                return;
            }
            Fault::CutReplies(_) => cut += length,
            Fault::Says(field, value) => {
                if let Some(said) = rewritten(said, field, value)
                    && to.write_all(&said).await.is_ok()
                {
                    continue;
                }
            }
            Fault::CutBefore(text) if said.windows(text.len()).any(|word| word == text.as_bytes()) => return,
            _ => {}
        }
        if to.write_all(said).await.is_err() {
            return;
        }
    }
}

/// A reply to `HELLO` with another value of a field; `None` if it is none.
fn rewritten(said: &[u8], field: &str, value: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(said).ok().filter(|text| text.contains("\r\nproto\r\n"))?;
    let (before, after) = text.split_once(&format!("\r\n{field}\r\n"))?;
    let (_, after) = after.split_once("\r\n")?;
    let (_, after) = after.split_once("\r\n")?;
    Some(format!("{before}\r\n{field}\r\n${}\r\n{value}\r\n{after}", value.len()).into_bytes())
}
