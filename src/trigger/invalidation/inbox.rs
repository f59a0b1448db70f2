//! The inbox: a stream of invalidations that cannot be lost.
//!
//! All workers read the stream as one consumer group. A message is acknowledged and deleted when it is handled; the
//! messages of a crashed worker are taken over. A message's time S is the id that Redis gave it. If the stream is
//! trimmed, a gap in it says how many messages were lost, and everything fetched before is made anew.
//!
//! Any client may write anything to the stream. A message that cannot be read is logged and deleted. Messages are read
//! in batches of bounded size; of one that is too long, only its length is read. A blocking read returns a message of
//! any length, so it asks for one message only.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script, Value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::ack::Ack;
use super::complaints::Complaints;
use super::pipeline::{At, Pipeline};
use super::watermark::{Watermark, last_and_now};
use crate::entry::duration;
use crate::protocol::Message;
use crate::protocol::{Keys, inbox};
use crate::redis::LoopHealth;
use crate::redis::{Backoff, Connection, RedisTime};
use crate::store::{Gap, Store};
use crate::telemetry::Telemetry;

/// The consumer group of all workers.
const GROUP: &str = "samovar";
/// The field of a message.
const FIELD: &str = "message";
/// The field of a gap: the number of messages that were lost.
const GAP: &str = "gap";
/// Messages acknowledged in one round trip.
const ACKNOWLEDGED: usize = 500;
/// The interval at which readers that are gone are removed, and the time for which such a reader has been idle.
const SWEEP: Duration = Duration::from_secs(600);
/// Messages read at once, and the bytes after which no more are read.
const MOST: usize = 100;
const BYTES: usize = 4 << 20;
/// The longest message with the names of its fields, in bytes.
const LONGEST: usize = inbox::LARGEST + FIELD.len();
/// An id lower than those of all messages.
const FIRST: &str = "0-0";
/// The time after an error of Redis for which a reader asks for the messages that it was given: Redis may have given
/// some to a read whose answer was lost, and carry out another one late.
const ASKS_FOR_OWN: Duration = Duration::from_secs(10);
/// The time that Redis's clock may seem to lag behind within one look.
const CLOCK_SLACK: Duration = Duration::from_secs(1);
/// The longest time for which a read blocks, and so for which ending takes.
const WAIT: Duration = Duration::from_millis(2_000);

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/read.lua")));
static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/leave.lua")));

/// One worker's reader of the inbox.
#[derive(Debug)]
pub struct Inbox {
    /// A connection of its own, since reads block it.
    pub redis: Connection,
    /// The connection for everything else.
    pub control: Connection,
    /// The key names.
    pub keys: Keys,
    /// Handles the messages.
    pub pipeline: Pipeline,
    /// Notes gaps.
    pub store: Store,
    /// Remembers how far the inbox was read.
    pub watermark: Watermark,
    /// Counts malformed messages.
    pub telemetry: Telemetry,
    /// The worker's name, unique.
    pub worker: Arc<str>,
    /// The time after which a message in flight is taken over by another worker, or read again by this one.
    pub claim: Duration,
    /// The messages that cannot be read.
    pub complaints: Complaints,
    /// Shows whether the inbox is read.
    pub loop_health: LoopHealth,
}

/// The ids of messages in flight. They are not accepted a second time, however long they take.
type InFlight = Arc<Mutex<HashSet<String>>>;

/// The names and values of a message's fields.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The messages that a read is for; those that are pending from an id on.
enum Pending {
    New,
    /// Those that this reader was given.
    Own(String),
    /// Those that any reader was given so long ago.
    Any(String, Duration),
}

/// The time at which the reader asks for the messages that it was given.
#[derive(Debug, Default)]
struct Own {
    failed: Option<tokio::time::Instant>,
    asked: Option<tokio::time::Instant>,
}

impl Own {
    /// Notes an error of Redis: the answer to a read may be lost.
    fn failed(&mut self) {
        *self = Self { failed: Some(tokio::time::Instant::now()), asked: None };
    }

    /// Returns true now and then for some time after an error.
    fn is_due(&mut self) -> bool {
        let is_due = self.failed.is_some_and(|failed| failed.elapsed() < ASKS_FOR_OWN)
            && self.asked.is_none_or(|asked| asked.elapsed() >= WAIT);
        if is_due {
            self.asked = Some(tokio::time::Instant::now());
        }
        is_due
    }
}

/// Redis's clock, as the reader has seen it.
#[derive(Debug, Default)]
struct Clock {
    seen: Option<(RedisTime, tokio::time::Instant)>,
    /// No message that was pending then has been looked at since.
    was_set_back: bool,
}

impl Clock {
    /// Notes the time, and whether it has gone on since the last look, and since the last message.
    fn look(&mut self, last: RedisTime, now: RedisTime) {
        let expected = self.seen.map(|(then, at)| then + at.elapsed()).max(Some(last));
        self.was_set_back |= expected.is_some_and(|expected| now + CLOCK_SLACK < expected);
        self.seen = Some((now, tokio::time::Instant::now()));
    }
}

/// A message as it was found in the inbox.
#[derive(Debug, PartialEq)]
struct Found {
    id: String,
    /// The fields, or their length in bytes if the message is too long.
    fields: Result<Fields, usize>,
}

/// The content of a message in the inbox.
#[derive(Debug, PartialEq)]
enum Content<'a> {
    Message(Message),
    /// The number of messages that were lost.
    Gap(u64),
    /// Something that cannot be read: an excerpt, and the reason.
    Malformed(&'a [u8], String),
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

    fn content(&self) -> Content<'_> {
        let fields = match &self.fields {
            Ok(fields) => fields,
            Err(length) => {
                return Content::Malformed(b"", inbox::check_size(*length).err().unwrap_or_default());
            }
        };
        let named = |wanted: &str| {
            let values = fields.iter().filter(|(name, _)| name == wanted.as_bytes()).map(|(_, value)| value.as_slice());
            values.collect::<Vec<&[u8]>>()
        };
        let excerpt = || fields.first().map_or(&b""[..], |(name, _)| name);
        match *named(FIELD) {
            [text] => match Message::read(text) {
                Ok(message) => Content::Message(message),
                Err(e) => Content::Malformed(text, e.to_string()),
            },
            [first, ..] => {
                Content::Malformed(first, format!("it has several fields `{FIELD}`: publish several messages"))
            }
            [] => match named(GAP).first().and_then(|lost| str::from_utf8(lost).ok()?.parse().ok()) {
                Some(lost) => Content::Gap(lost),
                None => Content::Malformed(excerpt(), format!("it has no field `{FIELD}`")),
            },
        }
    }
}

/// Adds a message to the inbox; returns its id.
///
/// # Errors
/// Redis's. The message may be there all the same; publishing it again is safe.
pub async fn publish(redis: &mut Connection, keys: &Keys, message: &Message) -> RedisResult<String> {
    let text = serde_json::to_string(message).map_err(std::io::Error::other)?;
    inbox::publish(redis, keys, &text).await
}

impl Inbox {
    /// Runs until `stop`, and until the messages read by then are handled or dropped. Then leaves the group, unless
    /// messages are pending.
    pub async fn run(self, stop: CancellationToken) {
        self.run_until(stop.clone(), stop).await;
    }

    /// Runs as [`Self::run`] does, but aborts a blocking read only at `hurry` instead of at `stop`. A message that
    /// Redis gives to an aborted read waits for the claim time.
    pub async fn run_until(mut self, stop: CancellationToken, hurry: CancellationToken) {
        let (done, acks) = mpsc::unbounded_channel();
        let (mut control, keys, worker) = (self.control.clone(), self.keys.clone(), Arc::clone(&self.worker));
        let in_flight = InFlight::default();
        let acknowledging =
            acknowledge(control.clone(), keys.clone(), self.watermark.clone(), acks, &in_flight, stop.clone());
        let reading = async {
            self.read_all(done, &in_flight, &stop, &hurry).await;
            // The pipeline ends with the last of its entrances.
            drop(self);
        };
        tokio::join!(reading, acknowledging);
        let _ = remove(&mut control, &keys, &worker).await;
    }

    async fn read_all(
        &mut self,
        done: mpsc::UnboundedSender<String>,
        in_flight: &InFlight,
        stop: &CancellationToken,
        hurry: &CancellationToken,
    ) {
        let mut backoff = Backoff::new("the inbox").showing(&self.loop_health);
        // The id from which messages of other readers are taken over. It starts again after the claim time.
        let (mut left, mut taken_over) = (Some(FIRST.to_owned()), tokio::time::Instant::now());
        let (mut own, mut clock) = (Own::default(), Clock::default());
        let mut swept: Option<tokio::time::Instant> = None;
        while !stop.is_cancelled() {
            if swept.is_none_or(|last| last.elapsed() >= SWEEP) && self.sweep().await.is_ok() {
                swept = Some(tokio::time::Instant::now());
            }
            if left.is_none() && taken_over.elapsed() >= self.claim {
                left = Some(FIRST.to_owned());
            }
            let takes_over = left.is_some();
            let messages = match self.next(own.is_due(), &mut left, &mut clock, hurry).await {
                Ok(messages) => messages,
                Err(e) => {
                    own.failed();
                    let lost_group = e.code() == Some("NOGROUP");
                    // The gap comes first: the missing group is the evidence, and a crash in between only repeats this.
                    if lost_group && self.note_lost_inbox().await.is_ok() && self.create_group().await.is_ok() {
                        continue;
                    }
                    backoff.ill(&e, stop).await;
                    continue;
                }
            };
            backoff.well();
            if takes_over {
                taken_over = tokio::time::Instant::now();
            }
            for message in messages {
                if in_flight.lock().unwrap_or_else(PoisonError::into_inner).insert(message.id.clone()) {
                    let ack = Ack::new(message.id.clone(), done.clone());
                    self.take(&message, ack, stop).await;
                }
            }
        }
    }

    /// Returns messages that this reader was given, if it asks for those; messages that no reader finished, from the id
    /// `left` on; and new ones. Blocks if there are none.
    async fn next(
        &mut self,
        asks_for_own: bool,
        left: &mut Option<String>,
        clock: &mut Clock,
        hurry: &CancellationToken,
    ) -> RedisResult<Vec<Found>> {
        let mut found = Vec::new();
        let took_over = left.is_some();
        if asks_for_own {
            let mut from = FIRST.to_owned();
            loop {
                let (next, messages) = self.read(&Pending::Own(from)).await?;
                found.extend(messages);
                from = next;
                if from == FIRST {
                    break;
                }
            }
        }
        if let Some(from) = left.clone() {
            if from == FIRST {
                inbox::bound(&mut self.control, &self.keys, inbox::LONGEST).await?;
                let (last, now) = last_and_now(&mut self.control, &self.keys).await?;
                clock.look(last, now);
            }
            // Since a clock was set back, nothing has been pending for any time, as Redis sees it.
            let idle = if clock.was_set_back { Duration::ZERO } else { self.claim };
            let (next, messages) = self.read(&Pending::Any(from, idle)).await?;
            *left = Some(next).filter(|next| next != FIRST);
            clock.was_set_back &= left.is_some();
            found.extend(messages);
        }
        let (_, new) = self.read(&Pending::New).await?;
        found.extend(new);
        // The first round does not block, so that the loop shows that it is well.
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
            // The readers of the lost group are unknown, so nothing else would delete their marks.
            Ok(()) => redis::cmd("DEL").arg(self.keys.acknowledged()).exec_async(&mut self.redis).await,
            other => other,
        }
    }

    /// Notes a gap if Redis holds the marker but not the group: then it evicted the inbox, perhaps with messages.
    async fn note_lost_inbox(&mut self) -> RedisResult<()> {
        let (has_marker, now): (bool, RedisTime) =
            redis::pipe().exists(self.keys.marker()).cmd("TIME").query_async(&mut self.control).await?;
        if has_marker {
            let gap = self.store.gap_line();
            warn!("{gap}the inbox was gone, its messages may be lost; values fetched before are revalidated");
            self.store.note_gap(now, Gap::Missed).await?;
            self.watermark.compare(&self.store, None).await?;
        }
        Ok(())
    }

    /// Removes readers from the group that are long gone, as crashed workers are.
    async fn sweep(&mut self) -> RedisResult<()> {
        // Any client may add a reader, of any name; the names of workers are UTF-8.
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

    /// Reads such messages. Returns the id from which to go on, and the messages.
    async fn read(&mut self, which: &Pending) -> RedisResult<(String, Vec<Found>)> {
        let (which, from) = match which {
            Pending::New => (String::new(), FIRST),
            Pending::Own(from) => ("own".to_owned(), from.as_str()),
            Pending::Any(from, idle) => (duration::millis(*idle).to_string(), from.as_str()),
        };
        let mut call = READ.key(self.keys.inbox());
        call.arg(GROUP).arg(&*self.worker).arg(MOST).arg(BYTES).arg(LONGEST).arg(which).arg(from);
        let (next, found): (String, Vec<Value>) = call.invoke_async(&mut self.redis).await?;
        Ok((next, found.into_iter().map(Found::read).collect::<RedisResult<_>>()?))
    }

    /// Blocks until there is a message, at most for [`WAIT`].
    async fn wait(&mut self, hurry: &CancellationToken) -> RedisResult<Vec<Found>> {
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(GROUP)
            .arg(&*self.worker)
            .arg("COUNT")
            .arg(1)
            .arg("BLOCK")
            .arg(duration::millis(WAIT))
            .arg("STREAMS")
            .arg(self.keys.inbox())
            .arg(">");
        let reply: Value = tokio::select! {
            reply = command.query_async(&mut self.redis) => reply?,
            // What Redis gives to an aborted read stays pending and is taken over.
            () = hurry.cancelled() => Value::Nil,
        };
        let streams: Option<Vec<(String, Vec<Value>)>> = redis::from_redis_value(reply)?;
        streams.into_iter().flatten().flat_map(|(_, entries)| entries).map(Found::read).collect()
    }

    /// Passes a message to the pipeline; it is acknowledged when it is handled.
    async fn take(&mut self, found: &Found, ack: Ack, stop: &CancellationToken) {
        self.watermark.read(&found.id);
        let at = found.id.split_once('-').and_then(|(time, _)| time.parse().ok()).unwrap_or_default();
        let at = self.redis.on_fleets_clock(at);
        match found.content() {
            Content::Message(message) => return self.pipeline.take(message, At::Redis(at), "inbox", ack).await,
            Content::Gap(lost) => {
                warn!(
                    lost,
                    "invalidations were dropped from the inbox, which no worker read for long; all values are made anew"
                );
                let mut backoff = Backoff::new("the inbox");
                while let Err(e) = self.store.note_gap(at, Gap::Lost).await {
                    backoff.ill(&e, stop).await;
                    if stop.is_cancelled() {
                        return;
                    }
                }
            }
            Content::Malformed(excerpt, reason) => {
                self.telemetry.malformed("inbox", at, excerpt, &reason);
                self.complaints.complain(excerpt, &format!("{} {reason}", found.id));
            }
        }
        ack.done();
    }
}

/// Removes a reader from the group, unless it has messages pending.
async fn remove(redis: &mut Connection, keys: &Keys, reader: &str) -> RedisResult<()> {
    let out: u8 = LEAVE.key(keys.inbox()).arg(GROUP).arg(reader).invoke_async(redis).await?;
    if out == 0 {
        return Ok(());
    }
    redis::cmd("HDEL").arg(keys.acknowledged()).arg(reader).exec_async(redis).await
}

/// The results of deleting messages, acknowledging them, reading the mark, and writing the next one.
type Steps = (RedisResult<u64>, RedisResult<u64>, RedisResult<Option<String>>, RedisResult<u64>);

/// Deletes and acknowledges messages that are done, in batches, until no [`Ack`] is left.
///
/// If only the first of the two commands is carried out, the message is pending without being there, and whoever takes
/// it over drops it. In the other order, it would stay in the inbox, pending for nobody.
async fn acknowledge(
    mut redis: Connection,
    keys: Keys,
    watermark: Watermark,
    mut done: mpsc::UnboundedReceiver<String>,
    in_flight: &InFlight,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new("acknowledging");
    let mut ids = Vec::new();
    while done.recv_many(&mut ids, ACKNOWLEDGED).await > 0 {
        loop {
            let (inbox, marks, mark) = (keys.inbox(), keys.acknowledged(), watermark.mark(&ids));
            let mut steps = redis::pipe();
            steps.cmd("XDEL").arg(&inbox).arg(&ids);
            steps.cmd("XACK").arg(&inbox).arg(GROUP).arg(&ids);
            steps.hget(&marks, watermark.worker()).hset(&marks, watermark.worker(), &mark).ignore_errors();
            let steps: RedisResult<Steps> = steps.query_async(&mut redis).await;
            match steps.and_then(|(deleted, acknowledged, before, left)| Ok((deleted.and(acknowledged)?, before, left)))
            {
                Ok((_, before, left)) => {
                    // A Redis without memory refuses the mark.
                    if let (Ok(before), Ok(_)) = (before, left) {
                        watermark.marked(before.as_deref(), &mark);
                    }
                    break;
                }
                // They stay pending and are taken over.
                Err(_) if stop.is_cancelled() => return,
                Err(e) => backoff.ill(&e, &stop).await,
            }
        }
        backoff.well();
        let mut in_flight = in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids.drain(..) {
            in_flight.remove(&id);
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

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_is_noticed_once() {
        let (mut clock, minute) = (Clock::default(), Duration::from_secs(60));
        let mut now = RedisTime::from_millis(1_700_000_000_000);
        clock.look(now - minute, now);
        assert!(!clock.was_set_back, "it was not seen before");
        for (went_on, was_set_back) in [(minute, false), (Duration::ZERO, true), (minute, false), (minute * 3, false)] {
            tokio::time::advance(minute).await;
            now = now + went_on;
            clock.look(now - minute, now);
            assert_eq!(std::mem::take(&mut clock.was_set_back), was_set_back, "{went_on:?}");
        }
        let mut another = Clock::default();
        another.look(now + minute, now);
        assert!(another.was_set_back, "a message tells it");
    }

    #[test]
    fn whatever_is_in_the_inbox_is_followed_or_told() {
        let key = |key: &str| Content::Message(Message::parse(key).unwrap());
        assert_eq!(found(&[(b"message", b"art:a")]).content(), key("art:a"));
        assert_eq!(found(&[(b"by", b"\xff"), (b"message", b"art:a"), (b"gap", b"1")]).content(), key("art:a"));
        assert_eq!(found(&[(b"gap", b"17")]).content(), Content::Gap(17));
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
            let Content::Malformed(_, said) = found.content() else { panic!("{fields:?}") };
            assert!(said.contains(reason), "{said}");
        }
    }
}
