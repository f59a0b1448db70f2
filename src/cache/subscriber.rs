//! Subscriptions that reconnect by themselves and report gaps.
//!
//! Pub/sub delivers at most once: messages published during a disconnection are lost. A [`Subscription`] reports such a
//! gap.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use redis::RedisResult;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::redis::{Connection, Subscribed};

/// The wait before the second attempt; each later wait doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A change of a value, as announced on `samovar:changed`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// The whole key.
    pub key: String,
    /// The kind of the change.
    pub event: ChangeEvent,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ChangeEvent {
    /// There is a new value.
    Warmed,
    /// It was removed: an invalidation, or a service's own delete.
    Evicted,
    /// The upstream no longer has it, or an entry that it is made from is gone.
    Gone,
    /// An event that this version does not know.
    #[serde(other)]
    Other,
}

/// An item of a [`Subscription`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// A message.
    Message(T),
    /// The subscription was interrupted and is restored; messages published in between are lost.
    Gap,
    /// A message that is not JSON of the requested type, with the reason.
    Unreadable(String),
}

/// JSON messages on one channel.
///
/// It is driven by [`Subscription::next`]. If that is not called for long, Redis closes the connection, which is
/// reported as a gap.
pub struct Subscription<T> {
    listener: ChannelListener,
    message: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("channel", &self.listener.channel).finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned> Subscription<T> {
    /// Subscribes. After a failure each [`Subscription::next`] tries again, and success is reported as a gap.
    pub(super) async fn open(redis: Connection, channel: String) -> Self {
        let mut listener = ChannelListener::new(redis, channel);
        listener.first().await;
        Self { listener, message: PhantomData }
    }

    /// Returns the next item. Waits through any outage. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Heard<T> {
        loop {
            match self.listener.next().await {
                ChannelEvent::Up { gap: true } => return Heard::Gap,
                ChannelEvent::Up { gap: false } | ChannelEvent::Down => {}
                ChannelEvent::Message(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(message) => return Heard::Message(message),
                    Err(e) => return Heard::Unreadable(e.to_string()),
                },
            }
        }
    }

    /// Returns the items as an endless stream.
    pub fn into_stream(self) -> impl Stream<Item = Heard<T>> + Send {
        stream::unfold(self, async |mut subscription| {
            let heard = subscription.next().await;
            Some((heard, subscription))
        })
    }
}

/// An event of a [`ChannelListener`].
pub(super) enum ChannelEvent {
    /// Subscribed from now on; `gap` if the subscription was interrupted before.
    Up { gap: bool },
    /// The subscription ended.
    Down,
    /// A message.
    Message(Vec<u8>),
}

/// A subscription to one channel over a separate connection.
pub(super) struct ChannelListener {
    redis: Connection,
    channel: String,
    subscribed: Option<Subscribed>,
    /// `true` if an interruption is not reported yet.
    gap: bool,
    wait: Duration,
    next_try: Instant,
}

impl ChannelListener {
    pub(super) fn new(redis: Connection, channel: String) -> Self {
        let next_try = Instant::now();
        Self { redis, channel, subscribed: None, gap: false, wait: FIRST_WAIT, next_try }
    }

    /// Makes one attempt; a failure counts as a gap.
    async fn first(&mut self) {
        match self.subscribe().await {
            Ok(subscribed) => self.subscribed = Some(subscribed),
            Err(e) => {
                warn!(channel = self.channel, "cannot subscribe yet: {e}");
                self.gap = true;
            }
        }
    }

    /// Returns the next event. Cancelling it loses at most an attempt to connect.
    pub(super) async fn next(&mut self) -> ChannelEvent {
        loop {
            if let Some(Subscribed { messages, .. }) = &mut self.subscribed {
                if let Some(message) = messages.next().await {
                    return ChannelEvent::Message(message.get_payload_bytes().to_vec());
                }
                debug!(channel = self.channel, "the subscription ended");
                self.subscribed = None;
                self.gap = true;
                self.next_try = Instant::now();
                return ChannelEvent::Down;
            }
            sleep_until(self.next_try).await;
            match self.subscribe().await {
                Ok(subscribed) => {
                    self.subscribed = Some(subscribed);
                    self.wait = FIRST_WAIT;
                    let gap = std::mem::take(&mut self.gap);
                    if gap {
                        info!(channel = self.channel, "subscribed again; messages published in between are lost");
                    }
                    return ChannelEvent::Up { gap };
                }
                Err(e) => {
                    debug!(channel = self.channel, "cannot subscribe: {e}");
                    self.gap = true;
                    self.next_try = Instant::now() + self.wait.mul_f64(rand::random_range(0.5..=1.0));
                    self.wait = LONGEST_WAIT.min(self.wait * 2);
                }
            }
        }
    }

    async fn subscribe(&mut self) -> RedisResult<Subscribed> {
        self.redis.subscribe(&self.channel).await
    }
}
