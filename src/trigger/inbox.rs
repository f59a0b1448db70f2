//! The inbox: invalidations that cannot be lost.
//!
//! A stream read by one consumer group. A message is acknowledged, and deleted, after all its steps; what a crashed worker
//! was given is taken over. Its time S is the id that Redis gave it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;
use redis::streams::{StreamAutoClaimReply, StreamId, StreamInfoConsumersReply, StreamReadReply};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Invalidator, Message};
use crate::health::Sign;
use crate::redis::{Connection, Keys, Patience};
use crate::telemetry::Telemetry;

/// The consumer group of all workers.
const GROUP: &str = "samovar";
/// The stream's one field: the message.
const FIELD: &str = "message";
/// Messages kept that nobody has read: only a fleet that is away for long loses any, the oldest first.
const LONGEST: usize = 1_000_000;
/// How often readers that are gone are looked for, and how long one must have been silent.
const SWEEP: Duration = Duration::from_secs(600);
/// How often messages that cannot be followed are told of.
const TELL: Duration = Duration::from_secs(60);
/// Messages read at once.
const MOST: usize = 100;
/// How long one read waits for messages. Also how long ending takes at most.
const WAIT: Duration = Duration::from_millis(2_000);

/// One worker's end of the inbox.
#[derive(Debug)]
pub struct Inbox {
    /// A connection of its own, since reads block it.
    pub redis: Connection,
    /// For all else.
    pub control: Connection,
    /// The names.
    pub keys: Keys,
    /// Who handles what is read.
    pub invalidator: Invalidator,
    /// Where it is counted.
    pub telemetry: Telemetry,
    /// The worker's name, unique.
    pub worker: Arc<str>,
    /// How long a message may be in a worker's hands before another takes it over.
    pub claim: Duration,
    /// When a message that cannot be followed was told of last.
    pub told: Option<Instant>,
    /// Whether it is read.
    pub sign: Sign,
}

/// Puts a message into the inbox; returns its id.
///
/// # Errors
/// Redis's; then it is unknown whether the message is there. Publishing it again does no harm.
pub async fn publish(redis: &mut Connection, keys: &Keys, message: &Message) -> RedisResult<String> {
    let text = serde_json::to_string(message).map_err(std::io::Error::other)?;
    redis::cmd("XADD")
        .arg(keys.inbox())
        .arg("MAXLEN")
        .arg("~")
        .arg(LONGEST)
        .arg("*")
        .arg(FIELD)
        .arg(text)
        .query_async(redis)
        .await
}

impl Inbox {
    /// Runs until `stop`; then gives up its place in the group if nothing of it is pending.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut patience = Patience::new("the inbox").showing(&self.sign);
        let mut taken_over: Option<tokio::time::Instant> = None;
        let mut swept: Option<tokio::time::Instant> = None;
        while !stop.is_cancelled() {
            if swept.is_none_or(|last| last.elapsed() >= SWEEP) && self.sweep().await.is_ok() {
                swept = Some(tokio::time::Instant::now());
            }
            let overdue = taken_over.is_none_or(|last| last.elapsed() >= self.claim);
            let read = if overdue { self.take_over().await } else { self.read(&stop).await };
            let messages = match read {
                Ok(messages) => messages,
                Err(e) => {
                    let lost_group = e.code() == Some("NOGROUP");
                    if lost_group && self.create_group().await.is_ok() {
                        continue;
                    }
                    patience.ill(&e, &stop).await;
                    continue;
                }
            };
            patience.well();
            if overdue {
                // What was taken over may be more than one page.
                taken_over = messages.is_empty().then(tokio::time::Instant::now);
            }
            for message in messages {
                let begun = Instant::now();
                while let Err(e) = self.handle(&message).await {
                    patience.ill(&e, &stop).await;
                    // It stays pending and is taken over, by us or another.
                    if stop.is_cancelled() || begun.elapsed() >= self.claim {
                        break;
                    }
                }
            }
        }
        let _ = self.leave().await;
    }

    async fn create_group(&mut self) -> RedisResult<()> {
        let created: RedisResult<()> = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(self.keys.inbox())
            .arg(GROUP)
            .arg("0")
            .arg("MKSTREAM")
            .query_async(&mut self.redis)
            .await;
        match created {
            Err(e) if e.code() == Some("BUSYGROUP") => Ok(()),
            other => other,
        }
    }

    /// Takes readers out of the group that are long gone: crashed workers do not take their leave.
    async fn sweep(&mut self) -> RedisResult<()> {
        let readers: StreamInfoConsumersReply = redis::cmd("XINFO")
            .arg("CONSUMERS")
            .arg(self.keys.inbox())
            .arg(GROUP)
            .query_async(&mut self.control)
            .await?;
        for reader in readers.consumers {
            if reader.pending == 0 && reader.idle > usize::try_from(SWEEP.as_millis()).unwrap_or(usize::MAX) {
                self.remove(&reader.name).await?;
            }
        }
        Ok(())
    }

    async fn remove(&mut self, reader: &str) -> RedisResult<()> {
        redis::cmd("XGROUP")
            .arg("DELCONSUMER")
            .arg(self.keys.inbox())
            .arg(GROUP)
            .arg(reader)
            .exec_async(&mut self.control)
            .await
    }

    /// What others were given and did not finish within the claim time.
    async fn take_over(&mut self) -> RedisResult<Vec<StreamId>> {
        let reply: StreamAutoClaimReply = redis::cmd("XAUTOCLAIM")
            .arg(self.keys.inbox())
            .arg(GROUP)
            .arg(&*self.worker)
            .arg(self.claim.as_millis().to_string())
            .arg("0")
            .arg("COUNT")
            .arg(MOST)
            .query_async(&mut self.redis)
            .await?;
        Ok(reply.claimed)
    }

    async fn read(&mut self, stop: &CancellationToken) -> RedisResult<Vec<StreamId>> {
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(GROUP)
            .arg(&*self.worker)
            .arg("COUNT")
            .arg(MOST)
            .arg("BLOCK")
            .arg(WAIT.as_millis().to_string())
            .arg("STREAMS")
            .arg(self.keys.inbox())
            .arg(">");
        let reply: Option<StreamReadReply> = tokio::select! {
            reply = command.query_async(&mut self.redis) => reply?,
            // What Redis gives out to a reader that is gone stays pending and is taken over.
            () = stop.cancelled() => None,
        };
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect())
    }

    async fn handle(&mut self, id: &StreamId) -> RedisResult<()> {
        let at = id.id.split_once('-').and_then(|(ms, _)| ms.parse::<i64>().ok());
        let text = id.map.get(FIELD).map(redis::from_redis_value_ref::<String>).and_then(Result::ok);
        match (at, text.as_deref().map(Message::parse)) {
            (Some(at), Some(Ok(message))) => {
                let handled = self.invalidator.handle(&message, at).await?;
                self.telemetry.invalidation("inbox", &handled);
            }
            (_, Some(Err(e))) => self.complain(&id.id, &e.to_string()),
            _ => self.complain(&id.id, "it has no field `message` with text"),
        }
        let () = redis::pipe()
            .cmd("XACK")
            .arg(self.keys.inbox())
            .arg(GROUP)
            .arg(&id.id)
            .ignore()
            .cmd("XDEL")
            .arg(self.keys.inbox())
            .arg(&id.id)
            .ignore()
            .query_async(&mut self.control)
            .await?;
        Ok(())
    }

    fn complain(&mut self, id: &str, reason: &str) {
        self.telemetry.malformed();
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            warn!(id, "dropping a message from the inbox: {reason}");
            self.told = Some(Instant::now());
        }
    }

    async fn leave(&mut self) -> RedisResult<()> {
        // A consumer that leaves takes its pending messages with it; so only one without any does.
        let (pending,): (Vec<redis::Value>,) = redis::pipe()
            .cmd("XPENDING")
            .arg(self.keys.inbox())
            .arg(GROUP)
            .arg("-")
            .arg("+")
            .arg(1)
            .arg(&*self.worker)
            .query_async(&mut self.control)
            .await?;
        if pending.is_empty() {
            self.remove(&Arc::clone(&self.worker)).await?;
        }
        Ok(())
    }
}
