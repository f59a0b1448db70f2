//! The channel: bare invalidations over pub/sub, and the signals by which workers wake each other.
//!
//! A bare `PUBLISH` is delivered at most once: no worker hears what is published while none is subscribed. The
//! [`GapDetector`] notices that. If the connection ends, the channel subscribes again. Messages are passed on by a task
//! of their own, so that a slow pipeline does not make the subscription overflow.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, Stream, StreamExt};
use redis::Msg;
use tokio::sync::{Notify, mpsc};
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::ack::Ack;
use super::complaints::Complaints;
use super::gap_detector::GapDetector;
use super::pipeline::{At, Pipeline};
use crate::agenda::Wakeup;
use crate::entry::UpstreamName;
use crate::entry::duration;
use crate::protocol::Message;
use crate::protocol::{Keys, inbox};
use crate::queue::{QUEUED_SIGNAL, Queue};
use crate::redis::LoopHealth;
use crate::redis::{Backoff, Connection, RedisTime, Subscribed};
use crate::source::Gate;
use crate::store::REVALIDATE_SIGNAL;
use crate::telemetry::Telemetry;

/// Messages that may wait to be passed on. More wait on the connection, which has no bound.
const WAITING: usize = 10_000;
/// The first word of the signal that a warmup was brought forward; the job follows. Workers of builds before it ignore
/// the signal, and notice the warmup within the longest wait between two looks at the schedules.
pub(in crate::trigger) const WARMUP_SIGNAL: &str = "warmup";
/// The time that Redis may take to confirm the end of a subscription. Longer than the longest pauses of Redis.
const CONFIRMED: Duration = Duration::from_secs(5);

/// One worker's subscription.
#[derive(Debug)]
pub struct Channel {
    /// The connection; the subscription opens another.
    pub redis: Connection,
    /// The key names.
    pub keys: Keys,
    /// Handles the invalidations.
    pub pipeline: Pipeline,
    /// Checks that the subscription works.
    pub gap_detector: GapDetector,
    /// Woken when there is a gap.
    pub revalidator: Arc<Notify>,
    /// Woken when a warmup is brought forward.
    pub schedules: Arc<Notify>,
    /// Woken when an entry is due.
    pub wakeup: Arc<Wakeup>,
    /// Woken when a task is queued.
    pub queue: Queue,
    /// Refreshed when an upstream closes or opens.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// Counts malformed messages.
    pub telemetry: Telemetry,
    /// Shows whether the worker is subscribed.
    pub loop_health: LoopHealth,
}

impl Channel {
    /// Runs until `stop`, and until what was heard by then is passed on.
    pub async fn run(self, stop: CancellationToken) {
        let (heard, messages) = mpsc::channel(WAITING);
        let (news, changed) = mpsc::channel(self.gates.len().max(1) * 4);
        let listening = self.listen(heard, news, &stop);
        tokio::join!(listening, self.gap_detector.run(&stop), self.pass_on(messages), self.refresh_gates(changed));
    }

    /// Refreshes the gates of upstreams that have changed.
    async fn refresh_gates(&self, mut changed: mpsc::Receiver<UpstreamName>) {
        while let Some(name) = changed.recv().await {
            if let Some(gate) = self.gates.get(&name) {
                gate.refresh().await;
            }
        }
    }

    async fn listen(&self, heard: mpsc::Sender<Heard>, news: mpsc::Sender<UpstreamName>, stop: &CancellationToken) {
        let mut backoff = Backoff::new("the subscription").showing(&self.loop_health);
        let mut lost_since: Option<Instant> = None;
        while !stop.is_cancelled() {
            match self.subscribe(&heard, &news, stop, &mut lost_since, &mut backoff).await {
                Ok(()) => self.loop_health.ill("the connection ended"),
                Err(e) => backoff.ill(&e, stop).await,
            }
            self.gap_detector.lost();
            lost_since.get_or_insert_with(Instant::now);
        }
    }

    async fn subscribe(
        &self,
        heard: &mpsc::Sender<Heard>,
        news: &mpsc::Sender<UpstreamName>,
        stop: &CancellationToken,
        lost_since: &mut Option<Instant>,
        backoff: &mut Backoff,
    ) -> redis::RedisResult<()> {
        let signals = self.keys.signal_channel();
        let channels = [self.keys.invalidate_channel(), signals.clone(), self.keys.hearing_channel()];
        let Subscribed { mut sink, mut messages } = self.redis.subscribe(&channels).await?;
        self.gap_detector.subscribed();
        backoff.well();
        if let Some(since) = lost_since.take() {
            info!(channel = channels[0], "subscribed again after {}", duration::rough(since.elapsed()));
        }
        // Signals may have been missed meanwhile.
        self.queue.wake();
        self.revalidator.notify_one();
        // Beside listening: where Redis does not answer, messages come all the same.
        let mut warning = pin!(self.warn_of_other_databases().fuse());
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = &mut warning => continue,
                () = self.gap_detector.is_stalled() => break,
                () = stop.cancelled() => {
                    // Redis confirms the end after the last message, so all messages have come by then.
                    let ended = tokio::time::timeout(CONFIRMED, sink.unsubscribe(&channels)).await;
                    if !matches!(ended, Ok(Ok(()))) {
                        warn!("Redis did not confirm the end of the subscription; unsent messages are missed");
                    }
                    break;
                }
            };
            let Some(message) = message else { return Ok(()) };
            self.take(&message, &signals, heard, news).await;
        }
        while let Some(message) = received(&mut messages) {
            self.take(&message, &signals, heard, news).await;
        }
        Ok(())
    }

    /// Warns if workers of another database hear invalidations on the same channel. That needs a channel set by hand.
    async fn warn_of_other_databases(&self) {
        let mut list = redis::cmd("PUBSUB");
        list.arg("CHANNELS").arg(self.keys.hearing_glob());
        let hearing: Vec<String> = match list.query_async(&mut self.redis.clone()).await {
            Ok(hearing) => hearing,
            Err(e) => return debug!("cannot check for workers of other databases on the channel: {e}"),
        };
        let own = self.keys.database();
        for (database, prefix) in hearing.iter().filter_map(|channel| self.keys.hearing_of(channel)) {
            if database != own {
                warn!(
                    channel = self.keys.invalidate_channel(),
                    "workers of database {database} (prefix `{prefix}`) hear invalidations on the same channel as this \
                     worker of database {own}: what is published for one is done in both; leave SAMOVAR_CHANNEL unset, \
                     or give each database another"
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
            // One byte more than allowed is enough to refuse the message.
            let text = payload.get(..=inbox::LARGEST).unwrap_or(payload).to_owned();
            // The receiver ends after this loop, so this cannot fail.
            let _ = heard.send((Instant::now(), self.gap_detector.unhandled().hear(), text)).await;
        }
    }

    /// Passes messages to the pipeline, down to the last one.
    async fn pass_on(&self, mut messages: mpsc::Receiver<Heard>) {
        let mut complaints = Complaints::of("a message on the invalidation channel");
        while let Some((received_at, number, text)) = messages.recv().await {
            let ack = Ack::heard(number, Arc::clone(self.gap_detector.unhandled()));
            match Message::read(&text) {
                Ok(message) => self.pipeline.take(message, At::Received(received_at), "channel", ack).await,
                Err(e) => {
                    ack.done();
                    self.telemetry.malformed("channel", RedisTime::ZERO, &text, &e.to_string());
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
                    // If the channel is full, a refresh of all these gates is pending anyway.
                    let _ = news.try_send(name.clone());
                }
            }
            Some(("canary", canary)) => self.gap_detector.heard(canary),
            _ if text == QUEUED_SIGNAL => self.queue.wake(),
            Some((WARMUP_SIGNAL, _)) => self.schedules.notify_one(),
            _ if text == REVALIDATE_SIGNAL => self.revalidator.notify_one(),
            _ => {}
        }
    }
}

/// Returns the next message that has been received; `None` if there is none. It runs without tokio's budget for one
/// turn, which makes a stream seem empty that is not.
fn received<T>(messages: &mut (impl Stream<Item = T> + Unpin)) -> Option<T> {
    unconstrained(messages.next()).now_or_never().flatten()
}

/// The time at which a message was received, its number ([`super::gap_detector::Unhandled`]), and its text.
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
        assert_eq!(std::iter::from_fn(|| received(&mut messages)).count(), 10_000);
    }
}
