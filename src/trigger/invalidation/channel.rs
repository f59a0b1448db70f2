//! The gap_detector: bare invalidations on the channel, and the signals by which workers wake one another.
//!
//! A bare `PUBLISH` is honoured at pub/sub's own at-most-once: what is published while nobody is subscribed is not heard.
//! The [`GapDetector`] finds out when that may have been.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, Stream, StreamExt};
use redis::{Client, Msg};
use tokio::sync::{Notify, mpsc};
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::super::{Ack, At, GapDetector, Pipeline};
use super::invalidator::Complaints;
use crate::agenda::Wakeup;
use crate::entry::UpstreamName;
use crate::protocol::Message;
use crate::protocol::{Keys, inbox};
use crate::queue::{QUEUED_SIGNAL, Queue};
use crate::redis::LoopHealth;
use crate::redis::{Backoff, Connection};
use crate::source::Gate;
use crate::store::REVALIDATE_SIGNAL;
use crate::telemetry::Telemetry;

/// Messages that wait to be handed on; those of a faster publisher wait on the connection, which has no bound.
const WAITING: usize = 10_000;
/// How long Redis may take to confirm a subscription, or its end, before it counts as away. Longer than its longest pauses.
const AWAY: Duration = Duration::from_secs(5);

/// Listens on the channels.
#[derive(Debug)]
pub struct Listener {
    /// For a connection of its own.
    pub client: Client,
    /// For all else.
    pub redis: Connection,
    /// The names.
    pub keys: Keys,
    /// Who handles invalidations.
    pub pipeline: Pipeline,
    /// Who knows whether it hears.
    pub gap_detector: GapDetector,
    /// Who is woken when something is suspect.
    pub revalidator: Arc<Notify>,
    /// Who is woken when something is due.
    pub wakeup: Arc<Wakeup>,
    /// Who is woken when something is queued.
    pub queue: Queue,
    /// Who is told when an upstream closes or opens.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// Where malformed messages are counted.
    pub telemetry: Telemetry,
    /// Whether it is subscribed.
    pub loop_health: LoopHealth,
}

impl Listener {
    /// Runs until `stop`, and until what was heard by then is handed on.
    pub async fn run(self, stop: CancellationToken) {
        let (heard, messages) = mpsc::channel(WAITING);
        let (news, changed) = mpsc::channel(self.gates.len().max(1) * 4);
        let listening = self.listen(heard, news, &stop);
        tokio::join!(listening, self.gap_detector.run(&stop), self.hand_on(messages), self.look_at_gates(changed));
    }

    /// Looks at upstreams that have changed, apart from hearing.
    async fn look_at_gates(&self, mut changed: mpsc::Receiver<UpstreamName>) {
        while let Some(name) = changed.recv().await {
            if let Some(gate) = self.gates.get(&name) {
                gate.refresh().await;
            }
        }
    }

    async fn listen(&self, heard: mpsc::Sender<Heard>, news: mpsc::Sender<UpstreamName>, stop: &CancellationToken) {
        let mut backoff = Backoff::new("the subscription").showing(&self.loop_health);
        let mut deaf_since: Option<Instant> = None;
        while !stop.is_cancelled() {
            match self.subscribe(&heard, &news, stop, &mut deaf_since, &mut backoff).await {
                // The connection ended.
                Ok(()) => self.loop_health.ill("the connection ended"),
                Err(e) => backoff.ill(&e, stop).await,
            }
            self.gap_detector.lost();
            deaf_since.get_or_insert_with(Instant::now);
        }
    }

    async fn subscribe(
        &self,
        heard: &mpsc::Sender<Heard>,
        news: &mpsc::Sender<UpstreamName>,
        stop: &CancellationToken,
        deaf_since: &mut Option<Instant>,
        backoff: &mut Backoff,
    ) -> redis::RedisResult<()> {
        let connect = self.client.get_async_pubsub();
        let signals = self.keys.signal_channel();
        let channels = [self.keys.invalidate_channel(), signals.clone(), self.keys.hearing_channel()];
        let subscribed = async {
            let mut pubsub = connect.await?;
            pubsub.subscribe(&channels).await?;
            Ok::<_, redis::RedisError>(pubsub)
        };
        let pubsub = tokio::time::timeout(AWAY, subscribed)
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        backoff.well();
        if let Some(since) = deaf_since.take() {
            info!(channel = channels[0], "subscribed again after {:.1} s", since.elapsed().as_secs_f32());
        }
        self.warn_of_other_databases().await;
        // Whatever was signalled meanwhile.
        self.queue.wake();
        self.revalidator.notify_one();
        let (mut sink, mut messages) = pubsub.split();
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = self.gap_detector.is_deaf() => break,
                () = stop.cancelled() => {
                    // Redis confirms it after the last message, so that all of them have come by then.
                    let ended = tokio::time::timeout(AWAY, sink.unsubscribe(&channels)).await;
                    if !matches!(ended, Ok(Ok(()))) {
                        warn!("Redis did not confirm the end of the subscription: what it did not send is not heard");
                    }
                    break;
                }
            };
            let Some(message) = message else { return Ok(()) };
            self.take(&message, &signals, heard, news).await;
        }
        while let Some(message) = come(&mut messages) {
            self.take(&message, &signals, heard, news).await;
        }
        Ok(())
    }

    /// Warns where workers of another database hear invalidations on the same channel, which only a channel that was
    /// named can be.
    async fn warn_of_other_databases(&self) {
        let mut look = redis::cmd("PUBSUB");
        look.arg("CHANNELS").arg(self.keys.hearing_glob());
        let hearing: Vec<String> = match look.query_async(&mut self.redis.clone()).await {
            Ok(hearing) => hearing,
            Err(e) => return debug!("cannot see who else hears the channel: {e}"),
        };
        let own = self.keys.database();
        for (database, prefix) in hearing.iter().filter_map(|channel| self.keys.hearing_of(channel)) {
            if database != own {
                warn!(
                    channel = self.keys.invalidate_channel(),
                    "workers of database {database} (prefix `{prefix}`) hear invalidations on the same channel as this worker of \
                     database {own}: what is published for one is done in both; leave SAMOVAR_CHANNEL unset, or give each \
                     database another"
                );
            }
        }
    }

    async fn take(&self, message: &Msg, signals: &str, heard: &mpsc::Sender<Heard>, news: &mpsc::Sender<UpstreamName>) {
        let payload = message.get_payload_bytes();
        if message.get_channel_name() == signals {
            if let Ok(text) = str::from_utf8(payload) {
                self.signal(text, news);
            }
        } else {
            // One byte more than may be, and it is known to be too long.
            let text = payload.get(..=inbox::LARGEST).unwrap_or(payload).to_owned();
            // It is handed on for as long as any is heard.
            let _ = heard.send((Instant::now(), self.gap_detector.unhandled().hear(), text)).await;
        }
    }

    /// Hands on what was heard, apart from hearing, so that nothing makes the subscription overflow; to the last message.
    async fn hand_on(&self, mut messages: mpsc::Receiver<Heard>) {
        let mut complaints = Complaints::of("a message on the invalidation channel");
        while let Some((received, number, text)) = messages.recv().await {
            let ack = Ack::heard(number, Arc::clone(self.gap_detector.unhandled()));
            match Message::read(&text) {
                Ok(message) => self.pipeline.take(message, At::Received(received), "channel", ack).await,
                Err(e) => {
                    ack.done();
                    self.telemetry.malformed();
                    complaints.complain(&text, &e.to_string());
                }
            }
        }
    }

    fn signal(&self, text: &str, news: &mpsc::Sender<UpstreamName>) {
        match text.split_once(' ') {
            Some(("due", job)) => self.wakeup.wake(job),
            Some(("upstream", name)) => {
                if let Some((name, _)) = self.gates.get_key_value(name) {
                    // With so many waiting, it is among them.
                    let _ = news.try_send(name.clone());
                }
            }
            Some(("canary", canary)) => self.gap_detector.heard(canary),
            _ if text == QUEUED_SIGNAL => self.queue.wake(),
            _ if text == REVALIDATE_SIGNAL => self.revalidator.notify_one(),
            _ => {}
        }
    }
}

/// What has come and was not read yet; `None` where nothing is left. Without tokio's budget for one turn, which makes a stream
/// seem empty that is not.
fn come<T>(messages: &mut (impl Stream<Item = T> + Unpin)) -> Option<T> {
    unconstrained(messages.next()).now_or_never().flatten()
}

/// When a message was received, its number ([`super::gap_detector::Unhandled`]), and the message.
type Heard = (Instant, u64, Vec<u8>);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_has_come_is_read_however_much_it_is() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for n in 0..10_000 {
            sender.send(n).unwrap();
        }
        let mut messages = futures_util::stream::poll_fn(|cx| receiver.poll_recv(cx));
        assert_eq!(std::iter::from_fn(|| come(&mut messages)).count(), 10_000);
    }
}
