//! The inbox: invalidations that cannot be lost.
//!
//! A stream read by one consumer group. A message is acknowledged, and deleted, after all its steps; what a crashed worker
//! was given is taken over. Its time S is the id that Redis gave it. What is trimmed for want of room leaves a note in the
//! stream (a gap), and everything fetched before is then suspect.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::streams::{StreamAutoClaimReply, StreamId, StreamInfoConsumersReply, StreamReadReply};
use redis::{RedisResult, Script};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{At, Doubt, Intake, Memory, Message, Receipt, Suspicion};
use crate::health::Sign;
use crate::redis::{Connection, Keys, Patience, inbox};
use crate::telemetry::Telemetry;

/// The consumer group of all workers.
const GROUP: &str = "samovar";
/// The field of a message.
const FIELD: &str = "message";
/// The field of a gap: how many messages were lost.
const GAP: &str = "gap";
/// Messages acknowledged in one round trip.
const ACKNOWLEDGED: usize = 500;
/// How often readers that are gone are looked for, and how long one must have been silent.
const SWEEP: Duration = Duration::from_secs(600);
/// How often messages that cannot be followed are told of.
const TELL: Duration = Duration::from_secs(60);
/// Messages read at once.
const MOST: usize = 100;
/// How long one read waits for messages. Also how long ending takes at most.
const WAIT: Duration = Duration::from_millis(2_000);

static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/leave.lua")));

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
    pub intake: Intake,
    /// Who is told of gaps.
    pub suspicion: Suspicion,
    /// Where is remembered what was read.
    pub memory: Memory,
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
    inbox::publish(redis, keys, &text).await
}

impl Inbox {
    /// Runs until `stop`, and until what was read by then is handled or dropped; then gives up its place in the group if
    /// nothing of it is pending.
    pub async fn run(self, stop: CancellationToken) {
        self.run_until(stop.clone(), stop).await;
    }

    /// The same, but a read that waits at Redis when `stop` comes is given up only when `hurry` does: what Redis gives to a
    /// reader that is gone waits for the claim time.
    pub async fn run_until(mut self, stop: CancellationToken, hurry: CancellationToken) {
        let (done, acks) = mpsc::unbounded_channel();
        let (mut control, keys, worker) = (self.control.clone(), self.keys.clone(), Arc::clone(&self.worker));
        let acknowledging = acknowledge(control.clone(), keys.clone(), self.memory.clone(), acks, stop.clone());
        let reading = async {
            self.read_all(done, &stop, &hurry).await;
            // The intake ends when nobody can put anything into it.
            drop(self);
        };
        tokio::join!(reading, acknowledging);
        let _ = remove(&mut control, &keys, &worker).await;
    }

    async fn read_all(
        &mut self,
        done: mpsc::UnboundedSender<String>,
        stop: &CancellationToken,
        hurry: &CancellationToken,
    ) {
        let mut patience = Patience::new("the inbox").showing(&self.sign);
        let mut taken_over: Option<tokio::time::Instant> = None;
        let mut swept: Option<tokio::time::Instant> = None;
        while !stop.is_cancelled() {
            if swept.is_none_or(|last| last.elapsed() >= SWEEP) && self.sweep().await.is_ok() {
                swept = Some(tokio::time::Instant::now());
            }
            let overdue = taken_over.is_none_or(|last| last.elapsed() >= self.claim);
            let read = if overdue { self.take_over().await } else { self.read(hurry).await };
            let messages = match read {
                Ok(messages) => messages,
                Err(e) => {
                    let lost_group = e.code() == Some("NOGROUP");
                    // First the doubt, then the group, whose absence is what tells: a crash in between only repeats it.
                    if lost_group && self.ask_what_went().await.is_ok() && self.create_group().await.is_ok() {
                        continue;
                    }
                    patience.ill(&e, stop).await;
                    continue;
                }
            };
            patience.well();
            if overdue {
                // What was taken over may be more than one page.
                taken_over = messages.is_empty().then(tokio::time::Instant::now);
            }
            for message in messages {
                let receipt = Receipt::new(message.id.clone(), done.clone());
                self.take(&message, receipt, stop).await;
            }
        }
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
            // Its readers are not known any more, so nobody would take away what they noted.
            Ok(()) => redis::cmd("DEL").arg(self.keys.acknowledged()).exec_async(&mut self.redis).await,
            other => other,
        }
    }

    /// Where Redis knows us and yet there was no group, it evicted the inbox, and with it, perhaps, messages.
    async fn ask_what_went(&mut self) -> RedisResult<()> {
        let (knows_us, (seconds, micros)): (bool, (i64, i64)) =
            redis::pipe().exists(self.keys.marker()).cmd("TIME").query_async(&mut self.control).await?;
        if knows_us {
            warn!("the inbox was gone: what was in it may be lost");
            self.suspicion.raise(seconds * 1_000 + micros / 1_000, Doubt::Missed).await?;
            self.memory.compare(&self.suspicion, None).await?;
        }
        Ok(())
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
                remove(&mut self.control, &self.keys, &reader.name).await?;
            }
        }
        Ok(())
    }

    /// What others were given and did not finish within the claim time.
    async fn take_over(&mut self) -> RedisResult<Vec<StreamId>> {
        inbox::bound(&mut self.control, &self.keys, inbox::LONGEST).await?;
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

    async fn read(&mut self, hurry: &CancellationToken) -> RedisResult<Vec<StreamId>> {
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
            () = hurry.cancelled() => None,
        };
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect())
    }

    /// Hands a message on; it is acknowledged when it is handled.
    async fn take(&mut self, id: &StreamId, receipt: Receipt, stop: &CancellationToken) {
        self.memory.read(&id.id);
        let at = id.id.split_once('-').and_then(|(ms, _)| ms.parse::<i64>().ok()).unwrap_or_default();
        if let Some(lost) = id.map.get(GAP) {
            let lost: u64 = redis::from_redis_value_ref(lost).unwrap_or_default();
            warn!(lost, "invalidations were dropped from the inbox, which nobody had read for too long");
            let mut patience = Patience::new("the inbox");
            while let Err(e) = self.suspicion.raise(at, Doubt::Lost).await {
                patience.ill(&e, stop).await;
                if stop.is_cancelled() {
                    return;
                }
            }
            receipt.done();
            return;
        }
        let text = id.map.get(FIELD).map(redis::from_redis_value_ref::<String>).and_then(Result::ok);
        match text.as_deref().map(Message::parse) {
            Some(Ok(message)) => return self.intake.take(message, At::Redis(at), "inbox", receipt).await,
            Some(Err(e)) => self.complain(&id.id, &e.to_string()),
            None => self.complain(&id.id, "it has no field `message` with text"),
        }
        receipt.done();
    }

    fn complain(&mut self, id: &str, reason: &str) {
        self.telemetry.malformed();
        if self.told.is_none_or(|told| told.elapsed() >= TELL) {
            warn!(id, "dropping a message from the inbox: {reason}");
            self.told = Some(Instant::now());
        }
    }
}

/// Takes a reader out of the group that has nothing in hand.
async fn remove(redis: &mut Connection, keys: &Keys, reader: &str) -> RedisResult<()> {
    let out: u8 = LEAVE.key(keys.inbox()).arg(GROUP).arg(reader).invoke_async(redis).await?;
    if out == 0 {
        return Ok(());
    }
    redis::cmd("HDEL").arg(keys.acknowledged()).arg(reader).exec_async(redis).await
}

/// What came of acknowledging messages, deleting them, reading the note there was, and leaving another.
type Steps = (RedisResult<u64>, RedisResult<u64>, RedisResult<Option<String>>, RedisResult<u64>);

/// Acknowledges messages, and deletes them, as many at a time as are done, until nobody has a receipt any more.
async fn acknowledge(
    mut redis: Connection,
    keys: Keys,
    memory: Memory,
    mut done: mpsc::UnboundedReceiver<String>,
    stop: CancellationToken,
) {
    let mut patience = Patience::new("acknowledging");
    let mut ids = Vec::new();
    while done.recv_many(&mut ids, ACKNOWLEDGED).await > 0 {
        loop {
            let (inbox, noted, note) = (keys.inbox(), keys.acknowledged(), memory.note(&ids));
            let mut steps = redis::pipe();
            steps.cmd("XACK").arg(&inbox).arg(GROUP).arg(&ids);
            steps.cmd("XDEL").arg(&inbox).arg(&ids);
            steps.hget(&noted, memory.worker()).hset(&noted, memory.worker(), &note).ignore_errors();
            let steps: RedisResult<Steps> = steps.query_async(&mut redis).await;
            match steps.and_then(|(acknowledged, deleted, before, left)| Ok((acknowledged.and(deleted)?, before, left)))
            {
                Ok((_, before, left)) => {
                    // A full Redis takes no note.
                    if let (Ok(before), Ok(_)) = (before, left) {
                        memory.noted(before.as_deref(), &note);
                    }
                    break;
                }
                // They stay pending and are taken over.
                Err(_) if stop.is_cancelled() => return,
                Err(e) => patience.ill(&e, &stop).await,
            }
        }
        patience.well();
        ids.clear();
    }
}
