//! The ear: bare invalidations on the channel, and the signals by which workers wake one another.
//!
//! A bare `PUBLISH` is honoured at pub/sub's own at-most-once: what is published while nobody is subscribed is lost, and
//! the listener says when that may have been.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Invalidator, Message};
use crate::dispatcher::Bell;
use crate::health::Sign;
use crate::job::{JobName, UpstreamName};
use crate::queue::{QUEUED_SIGNAL, Queue};
use crate::redis::{Keys, Patience};
use crate::source::Gate;
use crate::telemetry::Telemetry;

/// Messages that wait to be handled; a faster publisher makes Redis wait, and in the end drop the subscriber.
const WAITING: usize = 10_000;
/// How often malformed messages are told of.
const TELL: Duration = Duration::from_secs(60);
/// Longest excerpt of a malformed message in the log, in characters.
const EXCERPT: usize = 80;

/// Listens on the channels.
#[derive(Debug)]
pub struct Listener {
    /// For a connection of its own.
    pub client: Client,
    /// The names.
    pub keys: Keys,
    /// Who handles invalidations.
    pub invalidator: Invalidator,
    /// Who is woken when something is due.
    pub bell: Arc<Bell>,
    /// Who is woken when something is queued.
    pub queue: Queue,
    /// Who is told when an upstream closes or opens.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// Where malformed messages are counted.
    pub telemetry: Telemetry,
    /// Whether it is subscribed.
    pub sign: Sign,
}

impl Listener {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (heard, messages) = mpsc::channel(WAITING);
        let handler = Handler {
            invalidator: self.invalidator.clone(),
            telemetry: self.telemetry.clone(),
            malformed: 0,
            told: None,
        };
        tokio::join!(self.listen(heard, &stop), handler.run(messages, &stop));
    }

    async fn listen(&self, heard: mpsc::Sender<Heard>, stop: &CancellationToken) {
        let mut patience = Patience::new("the subscription").showing(&self.sign);
        let mut deaf_since: Option<Instant> = None;
        while !stop.is_cancelled() {
            match self.subscribe(&heard, stop, &mut deaf_since, &mut patience).await {
                // The connection ended.
                Ok(()) => self.sign.ill("the connection ended"),
                Err(e) => patience.ill(&e, stop).await,
            }
            deaf_since.get_or_insert_with(Instant::now);
        }
    }

    async fn subscribe(
        &self,
        heard: &mpsc::Sender<Heard>,
        stop: &CancellationToken,
        deaf_since: &mut Option<Instant>,
        patience: &mut Patience,
    ) -> redis::RedisResult<()> {
        let connect = self.client.get_async_pubsub();
        let mut pubsub = tokio::time::timeout(Duration::from_secs(5), connect)
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let signals = self.keys.signal_channel();
        pubsub.subscribe(&[self.keys.invalidate_channel(), &signals]).await?;
        patience.well();
        if let Some(since) = deaf_since.take() {
            info!(
                channel = self.keys.invalidate_channel(),
                "subscribed again; what was published bare in the last {:.1} s was not heard",
                since.elapsed().as_secs_f32()
            );
        }
        // Whatever was signalled meanwhile.
        self.queue.wake();
        let mut messages = pubsub.into_on_message();
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = stop.cancelled() => return Ok(()),
            };
            let Some(message) = message else { return Ok(()) };
            let bytes = message.get_payload_bytes();
            if message.get_channel_name() == signals {
                self.signal(&String::from_utf8_lossy(bytes)).await;
            } else if heard.send((Instant::now(), String::from_utf8_lossy(bytes).into_owned())).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn signal(&self, text: &str) {
        match text.split_once(' ') {
            Some(("due", job)) => self.bell.ring(&JobName::new(job)),
            Some(("upstream", name)) => {
                if let Some(gate) = self.gates.get(name) {
                    gate.refresh().await;
                }
            }
            _ if text == QUEUED_SIGNAL => self.queue.wake(),
            _ => {}
        }
    }
}

/// A message and when it was received.
type Heard = (Instant, String);

/// Handles what was heard, apart from hearing, so that a slow pattern does not make the subscription overflow.
struct Handler {
    invalidator: Invalidator,
    telemetry: Telemetry,
    malformed: u64,
    told: Option<Instant>,
}

impl Handler {
    async fn run(mut self, mut messages: mpsc::Receiver<Heard>, stop: &CancellationToken) {
        let mut patience = Patience::new("invalidating");
        loop {
            let heard = tokio::select! {
                heard = messages.recv() => heard,
                () = stop.cancelled() => return,
            };
            let Some((received, text)) = heard else { return };
            let message = match Message::parse(&text) {
                Ok(message) => message,
                Err(e) => {
                    self.complain(&text, &e.to_string());
                    continue;
                }
            };
            let mut at = None;
            while !stop.is_cancelled() {
                // The time stays that of the receipt however often the handling is tried.
                let handled = match at {
                    None => {
                        // Measured before Redis is asked, so that the time is not before the receipt.
                        let waited = i64::try_from(received.elapsed().as_millis()).unwrap_or(0);
                        match self.invalidator.now().await {
                            Ok(now) => {
                                at = Some(now - waited);
                                self.invalidator.handle(&message, now - waited).await
                            }
                            Err(e) => Err(e),
                        }
                    }
                    Some(at) => self.invalidator.handle(&message, at).await,
                };
                match handled {
                    Ok(handled) => {
                        patience.well();
                        self.telemetry.invalidation("channel", &handled);
                        break;
                    }
                    Err(e) => patience.ill(&e, stop).await,
                }
            }
        }
    }

    fn complain(&mut self, text: &str, reason: &str) {
        self.malformed += 1;
        self.telemetry.malformed();
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            let excerpt: String = text.chars().take(EXCERPT).collect();
            warn!(count = self.malformed, excerpt, "cannot follow a message on the invalidation channel: {reason}");
            self.told = Some(Instant::now());
            self.malformed = 0;
        }
    }
}
