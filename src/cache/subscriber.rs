//! Subscriptions that come back by themselves and say when they were deaf.
//!
//! Pub/sub delivers at most once: what is published while nobody listens is lost. So whoever builds on messages has to
//! know of gaps, and a [`Subscription`] tells.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use redis::aio::PubSubStream;
use redis::{Client, RedisResult};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

/// For one attempt to connect and subscribe.
const CONNECT: Duration = Duration::from_secs(5);
/// Before the second attempt; each later wait doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// No wait grows beyond this.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A change of a value, as announced on `samovar:changed`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// The whole key.
    pub key: String,
    /// What happened.
    pub event: ChangeEvent,
}

/// What happened to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ChangeEvent {
    /// There is a new value.
    Warmed,
    /// It was removed: an invalidation, or a service's own delete.
    Evicted,
    /// Its upstream no longer has it.
    Gone,
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

/// What a [`Subscription`] hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// A message.
    Message(T),
    /// It is subscribed again, after it was not: what was published meanwhile is lost.
    Gap,
    /// A message that is not JSON of the type asked for, and why.
    Unreadable(String),
}

/// JSON messages on one channel.
///
/// It is driven by whoever awaits [`Subscription::next`]: leave it long without and Redis drops it, which is then told as
/// a gap.
pub struct Subscription<T> {
    ear: Ear,
    message: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("channel", &self.ear.channel).finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned> Subscription<T> {
    /// Subscribes. Where that fails it is tried again with each [`Subscription::next`], and success is told as a gap.
    pub(super) async fn open(client: Client, channel: String) -> Self {
        let mut ear = Ear::new(client, channel);
        ear.first().await;
        Self { ear, message: PhantomData }
    }

    /// What is heard next. Waits for ever, through any outage. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Heard<T> {
        loop {
            match self.ear.next().await {
                Sound::Up { deaf: true } => return Heard::Gap,
                Sound::Up { deaf: false } | Sound::Down => {}
                Sound::Message(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(message) => return Heard::Message(message),
                    Err(e) => return Heard::Unreadable(e.to_string()),
                },
            }
        }
    }

    /// The same as a stream without an end.
    pub fn into_stream(self) -> impl Stream<Item = Heard<T>> + Send {
        stream::unfold(self, async |mut subscription| {
            let heard = subscription.next().await;
            Some((heard, subscription))
        })
    }
}

/// What an [`Ear`] notices.
pub(super) enum Sound {
    /// It is subscribed from now on; `deaf` if there was a time before when it was meant to be and was not.
    Up { deaf: bool },
    /// The subscription ended.
    Down,
    /// A message.
    Message(Vec<u8>),
}

/// One channel, over a connection of its own.
pub(super) struct Ear {
    client: Client,
    channel: String,
    stream: Option<PubSubStream>,
    /// Whether it heard nothing for a while, which nobody was told of yet.
    deaf: bool,
    wait: Duration,
    next_try: Instant,
}

impl Ear {
    pub(super) fn new(client: Client, channel: String) -> Self {
        let next_try = Instant::now();
        Self { client, channel, stream: None, deaf: false, wait: FIRST_WAIT, next_try }
    }

    /// One attempt; without success it is deaf.
    async fn first(&mut self) {
        match self.subscribe().await {
            Ok(stream) => self.stream = Some(stream),
            Err(e) => {
                warn!(channel = self.channel, "cannot subscribe yet: {e}");
                self.deaf = true;
            }
        }
    }

    /// Cancelling it loses nothing but an attempt to connect.
    pub(super) async fn next(&mut self) -> Sound {
        loop {
            if let Some(stream) = &mut self.stream {
                if let Some(message) = stream.next().await {
                    return Sound::Message(message.get_payload_bytes().to_vec());
                }
                debug!(channel = self.channel, "the subscription ended");
                self.stream = None;
                self.deaf = true;
                self.next_try = Instant::now();
                return Sound::Down;
            }
            sleep_until(self.next_try).await;
            match self.subscribe().await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    self.wait = FIRST_WAIT;
                    let deaf = std::mem::take(&mut self.deaf);
                    if deaf {
                        info!(channel = self.channel, "subscribed again; what was published meanwhile is lost");
                    }
                    return Sound::Up { deaf };
                }
                Err(e) => {
                    debug!(channel = self.channel, "cannot subscribe: {e}");
                    self.deaf = true;
                    self.next_try = Instant::now() + self.wait.mul_f64(rand::random_range(0.5..=1.0));
                    self.wait = LONGEST_WAIT.min(self.wait * 2);
                }
            }
        }
    }

    async fn subscribe(&self) -> RedisResult<PubSubStream> {
        let subscribing = async {
            let mut pubsub = self.client.get_async_pubsub().await?;
            pubsub.subscribe(&self.channel).await?;
            Ok(pubsub.into_on_message())
        };
        let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        timeout(CONNECT, subscribing).await.unwrap_or_else(late)
    }
}
