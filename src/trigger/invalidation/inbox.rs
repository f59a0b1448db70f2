//! The inbox: invalidations that cannot be lost.
//!
//! A stream read by one consumer group. A message is acknowledged, and deleted, after all its steps; what a crashed worker
//! was given is taken over. Its time S is the id that Redis gave it. What is trimmed for want of room leaves a note in the
//! stream (a gap), and everything fetched before is then suspect.
//!
//! Anybody may write into the stream, and whatever they write. What cannot be read is told and deleted like all else;
//! messages are read in pieces of bounded size, and only their length where they are too long. Only a read that waits
//! gets a message however long it is, and so waits for a single one.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script, Value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::{Ack, At, Pipeline, Watermark};
use super::invalidator::Complaints;
use crate::protocol::Message;
use crate::protocol::{Keys, inbox};
use crate::redis::LoopHealth;
use crate::redis::{Backoff, Connection};
use crate::store::{Gap, Store};
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
/// Messages read at once, and bytes after which no more are.
const MOST: usize = 100;
const BYTES: usize = 4 << 20;
/// The longest message with the names of its fields, in bytes.
const LONGEST: usize = inbox::LARGEST + FIELD.len();
/// An id before all messages.
const FIRST: &str = "0-0";
/// How long one read waits for messages. Also how long ending takes at most.
const WAIT: Duration = Duration::from_millis(2_000);

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/read.lua")));
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
    pub pipeline: Pipeline,
    /// Who is told of gaps.
    pub store: Store,
    /// Where is remembered what was read.
    pub watermark: Watermark,
    /// Where it is counted.
    pub telemetry: Telemetry,
    /// The worker's name, unique.
    pub worker: Arc<str>,
    /// How long a message may be in a worker's hands before another takes it over.
    pub claim: Duration,
    /// Messages that cannot be followed.
    pub complaints: Complaints,
    /// Whether it is read.
    pub loop_health: LoopHealth,
}

/// The ids of messages that are being handled here: they are not taken in once more, however long that takes.
type InHand = Arc<Mutex<HashSet<String>>>;

/// Names and values.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A message as it was found in the inbox.
#[derive(Debug, PartialEq)]
struct Found {
    id: String,
    /// Names and values, or how many bytes they have, which are too many.
    fields: Result<Fields, usize>,
}

/// What a message in the inbox says.
#[derive(Debug, PartialEq)]
enum Said<'a> {
    Message(Message),
    /// So many were lost.
    Gap(u64),
    /// Nothing that can be followed: an excerpt, and why.
    Nothing(&'a [u8], String),
}

impl Found {
    /// Reads `[id, fields or length]`.
    fn read(entry: Value) -> RedisResult<Self> {
        let (id, fields): (String, Value) = redis::from_redis_value(entry)?;
        let fields = match fields {
            Value::Int(length) => Err(usize::try_from(length).unwrap_or(usize::MAX)),
            fields => Ok(redis::from_redis_value::<Fields>(fields)?),
        };
        let length = |fields: &[(Vec<u8>, Vec<u8>)]| fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        let fields = fields.and_then(|fields| match length(&fields) {
            ..=LONGEST => Ok(fields),
            long => Err(long),
        });
        Ok(Self { id, fields })
    }

    fn said(&self) -> Said<'_> {
        let fields = match &self.fields {
            Ok(fields) => fields,
            Err(length) => {
                return Said::Nothing(b"", inbox::check_size(*length).err().unwrap_or_default());
            }
        };
        let named = |wanted: &str| {
            let values = fields.iter().filter(|(name, _)| name == wanted.as_bytes()).map(|(_, value)| value.as_slice());
            values.collect::<Vec<&[u8]>>()
        };
        let excerpt = || fields.first().map_or(&b""[..], |(name, _)| name);
        match *named(FIELD) {
            [text] => match Message::read(text) {
                Ok(message) => Said::Message(message),
                Err(e) => Said::Nothing(text, e.to_string()),
            },
            [first, ..] => Said::Nothing(first, format!("it has several fields `{FIELD}`: publish several messages")),
            [] => match named(GAP).first().and_then(|lost| str::from_utf8(lost).ok()?.parse().ok()) {
                Some(lost) => Said::Gap(lost),
                None => Said::Nothing(excerpt(), format!("it has no field `{FIELD}`")),
            },
        }
    }
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
        let in_hand = InHand::default();
        let acknowledging =
            acknowledge(control.clone(), keys.clone(), self.watermark.clone(), acks, &in_hand, stop.clone());
        let reading = async {
            self.read_all(done, &in_hand, &stop, &hurry).await;
            // The pipeline ends when nobody can put anything into it.
            drop(self);
        };
        tokio::join!(reading, acknowledging);
        let _ = remove(&mut control, &keys, &worker).await;
    }

    async fn read_all(
        &mut self,
        done: mpsc::UnboundedSender<String>,
        in_hand: &InHand,
        stop: &CancellationToken,
        hurry: &CancellationToken,
    ) {
        let mut backoff = Backoff::new("the inbox").showing(&self.loop_health);
        // From where it goes on to take over what others left; begun anew after the claim time.
        let (mut left, mut taken_over) = (Some(FIRST.to_owned()), tokio::time::Instant::now());
        let mut swept: Option<tokio::time::Instant> = None;
        while !stop.is_cancelled() {
            if swept.is_none_or(|last| last.elapsed() >= SWEEP) && self.sweep().await.is_ok() {
                swept = Some(tokio::time::Instant::now());
            }
            if left.is_none() && taken_over.elapsed() >= self.claim {
                left = Some(FIRST.to_owned());
            }
            let messages = match self.next(&mut left, hurry).await {
                Ok(messages) => messages,
                Err(e) => {
                    let lost_group = e.code() == Some("NOGROUP");
                    // First the doubt, then the group, whose absence is what tells: a crash in between only repeats it.
                    if lost_group && self.ask_what_went().await.is_ok() && self.create_group().await.is_ok() {
                        continue;
                    }
                    backoff.ill(&e, stop).await;
                    continue;
                }
            };
            backoff.well();
            if left.is_some() {
                taken_over = tokio::time::Instant::now();
            }
            for message in messages {
                if in_hand.lock().unwrap_or_else(PoisonError::into_inner).insert(message.id.clone()) {
                    let ack = Ack::new(message.id.clone(), done.clone());
                    self.take(&message, ack, stop).await;
                }
            }
        }
    }

    /// What others have left, as far as there is any, from the id `left`; and what is new. Waits where there is
    /// neither.
    async fn next(&mut self, left: &mut Option<String>, hurry: &CancellationToken) -> RedisResult<Vec<Found>> {
        let mut found = Vec::new();
        let took_over = left.is_some();
        if let Some(from) = left.clone() {
            if from == FIRST {
                inbox::bound(&mut self.control, &self.keys, inbox::LONGEST).await?;
            }
            let (next, messages) = self.read(Some(&from)).await?;
            *left = Some(next).filter(|next| next != FIRST);
            found = messages;
        }
        let (_, new) = self.read(None).await?;
        found.extend(new);
        // It is well before it waits for the first time.
        if found.is_empty() && !took_over {
            return self.wait(hurry).await;
        }
        Ok(found)
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
            self.store.note_gap(seconds * 1_000 + micros / 1_000, Gap::Missed).await?;
            self.watermark.compare(&self.store, None).await?;
        }
        Ok(())
    }

    /// Takes readers out of the group that are long gone: crashed workers do not take their leave.
    async fn sweep(&mut self) -> RedisResult<()> {
        // Their names are anybody's: those of workers are text.
        let readers: Vec<HashMap<String, Value>> = redis::cmd("XINFO")
            .arg("CONSUMERS")
            .arg(self.keys.inbox())
            .arg(GROUP)
            .query_async(&mut self.control)
            .await?;
        let number = |reader: &HashMap<String, Value>, field| {
            reader.get(field).and_then(|n| redis::from_redis_value_ref::<i64>(n).ok())
        };
        for reader in readers {
            let silent = number(&reader, "idle")
                .is_some_and(|idle| u128::try_from(idle).is_ok_and(|idle| idle > SWEEP.as_millis()));
            if number(&reader, "pending") == Some(0)
                && silent
                && let Some(Ok(name)) = reader.get("name").map(redis::from_redis_value_ref::<String>)
            {
                remove(&mut self.control, &self.keys, &name).await?;
            }
        }
        Ok(())
    }

    /// What is new, or, from an id on, what others were given and did not finish within the claim time; and from where
    /// to go on.
    async fn read(&mut self, left_from: Option<&str>) -> RedisResult<(String, Vec<Found>)> {
        let idle = left_from.map(|_| self.claim.as_millis().to_string()).unwrap_or_default();
        let mut call = READ.key(self.keys.inbox());
        call.arg(GROUP).arg(&*self.worker).arg(MOST).arg(BYTES).arg(LONGEST).arg(idle).arg(left_from.unwrap_or(FIRST));
        let (next, found): (String, Vec<Value>) = call.invoke_async(&mut self.redis).await?;
        Ok((next, found.into_iter().map(Found::read).collect::<RedisResult<_>>()?))
    }

    /// Waits for a message.
    async fn wait(&mut self, hurry: &CancellationToken) -> RedisResult<Vec<Found>> {
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(GROUP)
            .arg(&*self.worker)
            .arg("COUNT")
            .arg(1)
            .arg("BLOCK")
            .arg(WAIT.as_millis().to_string())
            .arg("STREAMS")
            .arg(self.keys.inbox())
            .arg(">");
        let reply: Value = tokio::select! {
            reply = command.query_async(&mut self.redis) => reply?,
            // What Redis gives out to a reader that is gone stays pending and is taken over.
            () = hurry.cancelled() => Value::Nil,
        };
        let streams: Option<Vec<(String, Vec<Value>)>> = redis::from_redis_value(reply)?;
        streams.into_iter().flatten().flat_map(|(_, entries)| entries).map(Found::read).collect()
    }

    /// Hands a message on; it is acknowledged when it is handled.
    async fn take(&mut self, found: &Found, ack: Ack, stop: &CancellationToken) {
        self.watermark.read(&found.id);
        let at = found.id.split_once('-').and_then(|(ms, _)| ms.parse::<i64>().ok()).unwrap_or_default();
        match found.said() {
            Said::Message(message) => return self.pipeline.take(message, At::Redis(at), "inbox", ack).await,
            Said::Gap(lost) => {
                warn!(lost, "invalidations were dropped from the inbox, which nobody had read for too long");
                let mut backoff = Backoff::new("the inbox");
                while let Err(e) = self.store.note_gap(at, Gap::Lost).await {
                    backoff.ill(&e, stop).await;
                    if stop.is_cancelled() {
                        return;
                    }
                }
            }
            Said::Nothing(excerpt, reason) => {
                self.telemetry.malformed();
                self.complaints.complain(excerpt, &format!("{} {reason}", found.id));
            }
        }
        ack.done();
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

/// Acknowledges messages, and deletes them, as many at a time as are done, until nobody has a ack any more.
async fn acknowledge(
    mut redis: Connection,
    keys: Keys,
    watermark: Watermark,
    mut done: mpsc::UnboundedReceiver<String>,
    in_hand: &InHand,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new("acknowledging");
    let mut ids = Vec::new();
    while done.recv_many(&mut ids, ACKNOWLEDGED).await > 0 {
        loop {
            let (inbox, noted, note) = (keys.inbox(), keys.acknowledged(), watermark.note(&ids));
            let mut steps = redis::pipe();
            steps.cmd("XACK").arg(&inbox).arg(GROUP).arg(&ids);
            steps.cmd("XDEL").arg(&inbox).arg(&ids);
            steps.hget(&noted, watermark.worker()).hset(&noted, watermark.worker(), &note).ignore_errors();
            let steps: RedisResult<Steps> = steps.query_async(&mut redis).await;
            match steps.and_then(|(acknowledged, deleted, before, left)| Ok((acknowledged.and(deleted)?, before, left)))
            {
                Ok((_, before, left)) => {
                    // A full Redis takes no note.
                    if let (Ok(before), Ok(_)) = (before, left) {
                        watermark.noted(before.as_deref(), &note);
                    }
                    break;
                }
                // They stay pending and are taken over.
                Err(_) if stop.is_cancelled() => return,
                Err(e) => backoff.ill(&e, &stop).await,
            }
        }
        backoff.well();
        let mut in_hand = in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids.drain(..) {
            in_hand.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(fields: &[(&[u8], &[u8])]) -> Found {
        let fields = fields.iter().flat_map(|(name, value)| [name, value]).map(|text| Value::BulkString(text.to_vec()));
        let entry = vec![Value::BulkString(b"5-0".to_vec()), Value::Array(fields.collect())];
        Found::read(Value::Array(entry)).unwrap()
    }

    #[test]
    fn whatever_is_in_the_inbox_is_followed_or_told() {
        let key = |key: &str| Said::Message(Message { keys: vec![key.to_owned()], ..Message::default() });
        assert_eq!(found(&[(b"message", b"art:a")]).said(), key("art:a"));
        assert_eq!(found(&[(b"by", b"\xff"), (b"message", b"art:a"), (b"gap", b"1")]).said(), key("art:a"));
        assert_eq!(found(&[(b"gap", b"17")]).said(), Said::Gap(17));
        let long = vec![b'x'; LONGEST + 1];
        for (fields, reason) in [
            (&[][..], "no field"),
            (&[(&b"other"[..], &b"field"[..])], "no field"),
            (&[(b"\xff\xfe", b"art:a")], "no field"),
            (&[(b"gap", b"many")], "no field"),
            (&[(b"gap", b"\xff")], "no field"),
            (&[(b"message", b"\xff")], "not UTF-8"),
            (&[(b"message", b"{}")], "names nothing"),
            (&[(b"message", b"art:a"), (b"message", b"art:b")], "several"),
            (&[(b"message", &long)], "longer than"),
            (&[(&long, b"art:a")], "longer than"),
        ] {
            let found = found(fields);
            let Said::Nothing(_, said) = found.said() else { panic!("{fields:?}") };
            assert!(said.contains(reason), "{said}");
        }
    }
}
