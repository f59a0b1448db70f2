//! The pipeline: handles invalidations, whether they came over the channel or the inbox.
//!
//! Narrow messages, which name a few keys, are handled as they come. Wide ones, which name many entries, have a line of
//! their own, so that they delay no narrow one. Debounced refreshes wait in the [`Debounce`]. A message is acknowledged
//! by its [`Ack`] when all of it is done. If Redis fails, what it did not answer is tried again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::ack::Ack;
use super::backlog::{Backlog, Place};
use super::complaints::Complaints;
use super::debounce::Debounce;
use super::invalidator::{Debounced, Invalidator};
use crate::protocol::{Action, Handled, Message};
use crate::redis::{Backoff, RedisTime, is_of_keys};
use crate::telemetry::Telemetry;

/// Narrow messages that may wait. More wait where they came from.
const NARROW: usize = 10_000;
/// Wide messages that may wait.
const WIDE: usize = 1_000;
/// KiB of names that may wait in each line. More wait where they came from.
const WEIGHT: u32 = 32 << 10;
/// Narrow messages that are handled at once.
const ABREAST: usize = 64;
/// Tags of messages that are handled together; no message names more.
const TAGS: usize = 1_000;
/// Acknowledgements that may wait for debounced refreshes before no more messages are accepted.
const ACKS: usize = 100_000;
/// The interval at which a message that is not accepted is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The time at which a message was published.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// Redis's own time.
    Redis(RedisTime),
    /// The time at which it was received, on this process's clock.
    Received(Instant),
}

/// A reading of Redis's clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    read: RedisTime,
    at: Instant,
}

impl Clock {
    fn now(self) -> RedisTime {
        self.read + self.at.elapsed()
    }
}

/// A message to handle, or several that ask for the same.
#[derive(Debug)]
struct Work {
    message: Message,
    at: At,
    way: &'static str,
    /// The acknowledgements of all its messages.
    acks: Vec<Ack>,
    /// Its share of its line's weight, until it is done.
    room: Option<OwnedSemaphorePermit>,
    /// The places of its messages in the backlog.
    places: Vec<Place>,
    /// Redis refused a part of it, or of the messages handled with it, so it is handled by itself from now on.
    failed: bool,
}

impl Work {
    /// Returns `true` if it may be handled together with others.
    fn joins(&self) -> bool {
        self.message.is_of_tags() && !self.failed
    }

    /// Returns `true` if no other worker hears of it.
    fn is_alone(&self) -> bool {
        self.acks.iter().any(|ack| ack.number().is_none())
    }
}

/// The entrance to one line, which bounds the number and the size of the messages that wait.
#[derive(Clone, Debug)]
struct Entrance {
    line: mpsc::Sender<Work>,
    room: Arc<Semaphore>,
}

impl Entrance {
    fn to(line: mpsc::Sender<Work>) -> Self {
        Self { line, room: Arc::new(Semaphore::new(WEIGHT as usize)) }
    }

    async fn enter(&self, mut work: Work) {
        let weight = u32::try_from(work.message.bytes() / 1024 + 1).unwrap_or(WEIGHT).min(WEIGHT);
        work.room = Arc::clone(&self.room).acquire_many_owned(weight).await.ok();
        // This fails only when the loops have ended, and then the worker ends.
        let _ = self.line.send(work).await;
    }
}

/// Merges messages that ask for the same into one, with the last of their times.
fn merge(round: &mut Vec<Work>) {
    let mut merged: Vec<Work> = Vec::new();
    for work in round.drain(..) {
        let same = merged.iter_mut().find(|other| {
            other.message == work.message
                && matches!((other.at, work.at), (At::Redis(_), At::Redis(_)) | (At::Received(_), At::Received(_)))
        });
        match same {
            Some(other) => {
                other.at = match (other.at, work.at) {
                    (At::Redis(a), At::Redis(b)) => At::Redis(a.max(b)),
                    (At::Received(a), At::Received(b)) => At::Received(a.max(b)),
                    (at, _) => at,
                };
                other.failed |= work.failed;
                other.acks.extend(work.acks);
                other.places.extend(work.places);
            }
            None => merged.push(work),
        }
    }
    *round = merged;
}

/// Returns the number of messages to handle together, from the first on. Messages that name only tags come forward and
/// are handled together, since one scan finds the entries of all their tags.
fn tags_together(round: &mut Vec<Work>) -> usize {
    if !round.first().is_some_and(Work::joins) {
        return 1;
    }
    let mut tags = TAGS;
    let fits = |work: &mut Work| {
        work.joins() && tags.checked_sub(work.message.tags.len()).inspect(|left| tags = *left).is_some()
    };
    let together: Vec<Work> = round.extract_if(.., fits).collect();
    let count = together.len();
    round.splice(..0, together);
    count
}

/// The entrance for all messages. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pipeline {
    narrow: Entrance,
    wide: Entrance,
    backlog: Backlog,
    debounce: Arc<Debounce>,
}

impl Pipeline {
    /// Creates a pipeline, and the loops that handle its messages.
    pub fn new(invalidator: Invalidator, telemetry: Telemetry) -> (Self, PipelineLoop) {
        let (narrow, narrow_end) = mpsc::channel(NARROW);
        let (wide, wide_end) = mpsc::channel(WIDE);
        let debounce = Arc::<Debounce>::default();
        let (narrow, wide) = (Entrance::to(narrow), Entrance::to(wide));
        let pipeline = Self { narrow, wide, backlog: Backlog::default(), debounce: Arc::clone(&debounce) };
        let complaints = Mutex::new(Complaints::of("a message on the invalidation channel or in the inbox"));
        let (narrow, wide) = (narrow_end, wide_end);
        (pipeline, PipelineLoop { invalidator, telemetry, complaints, narrow, wide, debounce })
    }

    /// Accepts a message; waits while there are too many. `way` is `channel` or `inbox`.
    pub async fn take(&self, message: Message, at: At, way: &'static str, ack: Ack) {
        while self.debounce.acks() > ACKS {
            tokio::time::sleep(RETRY).await;
        }
        let (line, places) = match message.is_narrow() {
            true => (&self.narrow, Vec::new()),
            false => (&self.wide, vec![self.backlog.enter()]),
        };
        line.enter(Work { message, at, way, acks: vec![ack], room: None, places, failed: false }).await;
    }

    /// Returns the wide messages that wait.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }
}

/// The loops of a pipeline.
#[derive(Debug)]
pub struct PipelineLoop {
    invalidator: Invalidator,
    telemetry: Telemetry,
    complaints: Mutex<Complaints>,
    narrow: mpsc::Receiver<Work>,
    wide: mpsc::Receiver<Work>,
    debounce: Arc<Debounce>,
}

impl PipelineLoop {
    /// Runs until all [`Pipeline`]s are dropped and their messages are handled, or until `cut`.
    pub async fn run(self, cut: CancellationToken) {
        let Self { invalidator, telemetry, complaints, narrow, wide, debounce } = self;
        let line = |work, most, name| {
            let (invalidator, telemetry) = (invalidator.clone(), telemetry.clone());
            let (complaints, debounce, backoff) = (&complaints, &debounce, Backoff::new(name));
            Line { invalidator, telemetry, complaints, debounce, work, most, backoff }.run(&cut)
        };
        let lines = async {
            tokio::join!(line(narrow, ABREAST, "invalidating"), line(wide, 1, "invalidating many"));
            debounce.close();
        };
        tokio::join!(lines, debounce.run(&invalidator, &cut));
        debounce.clear();
    }
}

/// Handles the messages of one line.
struct Line<'a> {
    invalidator: Invalidator,
    telemetry: Telemetry,
    complaints: &'a Mutex<Complaints>,
    debounce: &'a Debounce,
    work: mpsc::Receiver<Work>,
    most: usize,
    backoff: Backoff,
}

impl Line<'_> {
    async fn run(mut self, cut: &CancellationToken) {
        let mut waiting: Vec<Work> = Vec::new();
        loop {
            if waiting.is_empty() {
                tokio::select! {
                    count = self.work.recv_many(&mut waiting, self.most) => if count == 0 { return },
                    () = cut.cancelled() => return,
                }
            }
            // A message that fails goes behind the others.
            while waiting.len() < WIDE
                && let Ok(work) = self.work.try_recv()
            {
                waiting.push(work);
            }
            if self.most == 1 {
                merge(&mut waiting);
            }
            let turn = if self.most == 1 { tags_together(&mut waiting) } else { self.most };
            let later = waiting.split_off(waiting.len().min(turn));
            if cut.is_cancelled() {
                return;
            }
            let (failed, error) = self.round(waiting).await;
            match error {
                None => self.backoff.well(),
                Some(e) => self.backoff.ill(&e, cut).await,
            }
            waiting = later;
            waiting.extend(failed);
        }
    }

    /// Handles a round of messages; returns those that must be tried again, and the last error.
    async fn round(&self, mut round: Vec<Work>) -> (Vec<Work>, Option<redis::RedisError>) {
        // The ages are taken before Redis is asked, so that no time is earlier than the message's. A message keeps its
        // time when it is tried again.
        let ages: Vec<Duration> = round
            .iter()
            .map(|work| match work.at {
                At::Received(then) => then.elapsed(),
                At::Redis(_) => Duration::ZERO,
            })
            .collect();
        let now = match self.invalidator.now().await {
            Ok(now) => now,
            Err(e) => return (round, Some(e)),
        };
        let clock = Clock { read: now, at: Instant::now() };
        for (work, age) in round.iter_mut().zip(ages) {
            // An id from the future was chosen by the publisher, or comes from another clock.
            work.at = match work.at {
                At::Received(_) => At::Redis(now - age),
                At::Redis(at) => At::Redis(at.min(now)),
            };
        }
        let results = match round.as_slice() {
            [first, _, ..] if first.joins() => self.handle_tags(&round, clock).await,
            _ => join_all(round.iter_mut().map(|work| self.handle(work, clock))).await,
        };
        let (mut failed, mut error) = (Vec::new(), None);
        for (work, result) in round.into_iter().zip(results) {
            match result {
                Ok(()) => work.acks.into_iter().for_each(Ack::done),
                Err(e) => {
                    failed.push(Work { failed: work.failed || is_of_keys(&e), ..work });
                    error = Some(e);
                }
            }
        }
        (failed, error)
    }

    async fn handle(&self, work: &mut Work, clock: Clock) -> redis::RedisResult<()> {
        let At::Redis(at) = work.at else { return Ok(()) };
        if work.message.action == Action::Refresh && work.message.is_narrow() {
            let joined = |key: &mut String| self.debounce.joins(key, at, work.message.version, &work.acks);
            let joined: Vec<String> = work.message.keys.extract_if(.., joined).collect();
            if !joined.is_empty() {
                let (entries, number) = (joined.len() as u64, joined.len());
                let told = Message { keys: joined, ..work.message.clone() };
                let handled = Handled { entries, ..Handled::default() };
                self.telemetry.invalidation(work.way, &told, [at, clock.now()], &handled, number);
            }
            if work.message.keys.is_empty() {
                return Ok(());
            }
        }
        let (handled, debounced) = self.invalidator.begin(&work.message, at, work.is_alone()).await?;
        self.begun(work, at, clock, &handled, debounced);
        Ok(())
    }

    /// Handles messages that name only tags.
    async fn handle_tags(&self, round: &[Work], clock: Clock) -> Vec<redis::RedisResult<()>> {
        let timed = round.iter().filter_map(|work| match work.at {
            At::Redis(at) => Some((work, (&work.message, at, work.is_alone()))),
            At::Received(_) => None,
        });
        let (works, messages): (Vec<&Work>, Vec<_>) = timed.unzip();
        let result = self.invalidator.begin_tags(&messages).await.map(|begun| {
            for (work, (handled, debounced)) in works.into_iter().zip(begun) {
                if let At::Redis(at) = work.at {
                    self.begun(work, at, clock, &handled, debounced);
                }
            }
        });
        vec![result; round.len()]
    }

    /// Reports a message that is handled except for its debounced entries, and lets those wait.
    fn begun(&self, work: &Work, at: RedisTime, clock: Clock, handled: &Handled, debounced: Vec<Debounced>) {
        if let Some(text) = work.message.keys.first().filter(|_| handled.is_broken) {
            let reason = "it is not a message of valid JSON, and no job has such a key";
            self.telemetry.malformed(work.way, at, text.as_bytes(), reason);
            let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
            complaints.complain(text.as_bytes(), reason);
            return;
        }
        self.telemetry.invalidation(work.way, &work.message, [at, clock.now()], handled, debounced.len());
        for entry in debounced {
            self.debounce.add(entry, work.acks.iter().map(Ack::part).collect());
        }
    }
}
