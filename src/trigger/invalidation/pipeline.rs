//! The pipeline: sees invalidations through, whichever way they came.
//!
//! A few named keys are handled as they come; what names many has a line of its own, so that it holds nobody up. Refreshes
//! that are held off in a storm wait here, one for each entry however many messages named it, and are handled with the time of
//! the last. A message from the inbox is acknowledged by its [`Ack`] when all of it is done.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::super::Invalidator;
use super::gap_detector::Unhandled;
use super::invalidator::Debounced;
use crate::agenda::When;
use crate::entry::EntryKey;
use crate::job::Job;
use crate::protocol::{Action, Handled, Message};
use crate::redis::{Backoff, is_of_keys};
use crate::telemetry::Telemetry;

/// Messages that wait to be handled; those of a faster publisher wait where they came from.
const WAITING: usize = 10_000;
/// Messages that name many and wait to be handled.
const WIDE: usize = 1_000;
/// KiB of names that wait in each line; more wait where they came from.
const WEIGHT: u32 = 32 << 10;
/// Messages handled at once.
const ABREAST: usize = 64;
/// Tags of messages that are handled together; no message names more.
const TAGS: usize = 1_000;
/// Receipts that may wait for entries that are held off, before no more are taken in.
const ACKS: usize = 100_000;
/// How soon it is tried again what Redis did not answer.
const AGAIN: Duration = Duration::from_millis(100);

/// When a message was published.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// Redis's own time, ms.
    Redis(i64),
    /// It was received just then, on our clock.
    Received(Instant),
}

/// What acknowledges a message when all its parts are done; one that is dropped does not.
#[derive(Debug)]
pub struct Ack(Arc<Pending>);

#[derive(Debug)]
struct Pending {
    parts: AtomicUsize,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    /// Of a message from the inbox: its id, and who is told it.
    Inbox(String, mpsc::UnboundedSender<String>),
    /// Of one that was heard: its number.
    Heard(u64, Arc<Unhandled>),
}

impl Ack {
    /// For the message `id`, which is sent to `done` in the end.
    pub fn new(id: String, done: mpsc::UnboundedSender<String>) -> Self {
        Self::of(Whose::Inbox(id, done))
    }

    /// For a message that was heard on the channel, by its number.
    pub fn heard(number: u64, unhandled: Arc<Unhandled>) -> Self {
        Self::of(Whose::Heard(number, unhandled))
    }

    fn of(whose: Whose) -> Self {
        Self(Arc::new(Pending { parts: AtomicUsize::new(1), whose }))
    }

    /// The number of a message that was heard.
    fn number(&self) -> Option<u64> {
        match &self.0.whose {
            Whose::Heard(number, _) => Some(*number),
            Whose::Inbox(..) => None,
        }
    }

    fn part(&self) -> Self {
        self.0.parts.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&self.0))
    }

    /// This part is done.
    pub fn done(self) {
        if self.0.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            match &self.0.whose {
                Whose::Inbox(id, done) => _ = done.send(id.clone()),
                Whose::Heard(number, unhandled) => unhandled.done(*number),
            }
        }
    }
}

#[derive(Debug)]
struct Work {
    message: Message,
    at: At,
    way: &'static str,
    /// Of all messages that are one with it.
    acks: Vec<Ack>,
    /// Its room in its line, until it is done.
    room: Option<OwnedSemaphorePermit>,
    /// Where it stands in the backlog, with all that are one with it.
    places: Vec<Place>,
    /// Redis refused something of it or of those that it was handled with, so it is handled by itself from now on.
    failed: bool,
}

impl Work {
    /// Whether it may be handled together with others.
    fn joins(&self) -> bool {
        self.message.is_of_tags() && !self.failed
    }

    /// Whether nobody else hears of it.
    fn is_alone(&self) -> bool {
        self.acks.iter().any(|ack| ack.number().is_none())
    }
}

/// The messages that name many and wait to be handled, or are being handled. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Mutex<Standing>>);

#[derive(Debug, Default)]
struct Standing {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

impl Backlog {
    /// How many there are, and since when the oldest is.
    pub fn length(&self) -> (usize, Option<Duration>) {
        let standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (standing.since.len(), standing.since.values().next().map(Instant::elapsed))
    }

    fn enter(&self) -> Place {
        let mut standing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = standing.next;
        standing.next += 1;
        standing.since.insert(number, Instant::now());
        drop(standing);
        Place { backlog: self.clone(), number }
    }
}

/// A place in a backlog, until it is dropped.
#[derive(Debug)]
struct Place {
    backlog: Backlog,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backlog.0.lock().unwrap_or_else(PoisonError::into_inner).since.remove(&self.number);
    }
}

/// The way into one line, with room for so many messages and so much of them.
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
        // Without the loops the worker ends.
        let _ = self.line.send(work).await;
    }
}

/// Makes one of messages that ask for the same: the last time counts.
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
                other.acks.extend(work.acks);
                other.places.extend(work.places);
            }
            None => merged.push(work),
        }
    }
    *round = merged;
}

/// How many messages are handled together: the first; where it names tags and nothing else, with others that do, which come
/// forward, since one search for what has a tag does for all of them.
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

/// Where messages go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pipeline {
    narrow: Entrance,
    wide: Entrance,
    backlog: Backlog,
    held: Arc<Held>,
}

/// The loops that see them through.
#[derive(Debug)]
pub struct PipelineLoop {
    invalidator: Invalidator,
    telemetry: Telemetry,
    narrow: mpsc::Receiver<Work>,
    wide: mpsc::Receiver<Work>,
    held: Arc<Held>,
}

/// Refreshes that are held off.
#[derive(Debug, Default)]
struct Held {
    waiting: Mutex<Waitings>,
    acks: AtomicUsize,
    more: Notify,
    /// Nothing is added any more.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Waitings {
    entries: HashMap<EntryKey, Waiting>,
    /// When each of them has waited long enough.
    line: BTreeSet<(Instant, EntryKey)>,
}

#[derive(Debug)]
struct Waiting {
    job: Arc<Job>,
    /// The time of the last invalidation (Redis time, ms).
    at: i64,
    /// As urgent as the most urgent of them.
    when: When,
    until: Instant,
    acks: Vec<Ack>,
    /// The oldest of those that were heard: it stands for all of them, since they are done together.
    oldest: Option<u64>,
}

impl Waiting {
    fn new(held: Debounced, until: Instant) -> Self {
        Self { job: held.job, at: held.at, when: held.when, until, acks: Vec::new(), oldest: None }
    }

    /// Returns how many acks more it keeps.
    fn join(&mut self, at: i64, when: When, acks: impl IntoIterator<Item = Ack>) -> usize {
        self.at = self.at.max(at);
        if when == When::Urgent {
            self.when = when;
        }
        let before = self.acks.len();
        for ack in acks {
            match ack.number() {
                Some(number) if self.oldest.is_some_and(|oldest| oldest <= number) => ack.done(),
                number => {
                    self.oldest = number.or(self.oldest);
                    self.acks.push(ack);
                }
            }
        }
        self.acks.len() - before
    }
}

impl Pipeline {
    /// An pipeline, and the loops behind it.
    pub fn new(invalidator: Invalidator, telemetry: Telemetry) -> (Self, PipelineLoop) {
        let (narrow, narrow_end) = mpsc::channel(WAITING);
        let (wide, wide_end) = mpsc::channel(WIDE);
        let held = Arc::<Held>::default();
        let (narrow, wide) = (Entrance::to(narrow), Entrance::to(wide));
        let pipeline = Self { narrow, wide, backlog: Backlog::default(), held: Arc::clone(&held) };
        (pipeline, PipelineLoop { invalidator, telemetry, narrow: narrow_end, wide: wide_end, held })
    }

    /// Takes a message in; waits while there are too many. `way` is `channel` or `inbox`.
    pub async fn take(&self, message: Message, at: At, way: &'static str, ack: Ack) {
        while self.held.acks.load(Ordering::Relaxed) > ACKS {
            tokio::time::sleep(AGAIN).await;
        }
        let (line, places) = match message.is_narrow() {
            true => (&self.narrow, Vec::new()),
            false => (&self.wide, vec![self.backlog.enter()]),
        };
        line.enter(Work { message, at, way, acks: vec![ack], room: None, places, failed: false }).await;
    }

    /// Where is seen how many messages that name many wait.
    pub fn backlog(&self) -> &Backlog {
        &self.backlog
    }
}

impl PipelineLoop {
    /// Runs until nobody is there who takes messages in and all of them are done, or until `cut`.
    pub async fn run(self, cut: CancellationToken) {
        let Self { invalidator, telemetry, narrow, wide, held } = self;
        let line = |work, most, name| {
            let (invalidator, telemetry) = (invalidator.clone(), telemetry.clone());
            Line { invalidator, telemetry, held: &held, work, most, backoff: Backoff::new(name) }.run(&cut)
        };
        let lines = async {
            tokio::join!(line(narrow, ABREAST, "invalidating"), line(wide, 1, "invalidating many"));
            held.close();
        };
        tokio::join!(lines, held.run(&invalidator, &cut));
        held.drop_all();
    }
}

/// Handles what comes in one line.
struct Line<'a> {
    invalidator: Invalidator,
    telemetry: Telemetry,
    held: &'a Held,
    work: mpsc::Receiver<Work>,
    most: usize,
    backoff: Backoff,
}

impl Line<'_> {
    async fn run(mut self, cut: &CancellationToken) {
        let mut round: Vec<Work> = Vec::new();
        loop {
            if round.is_empty() {
                tokio::select! {
                    count = self.work.recv_many(&mut round, self.most) => if count == 0 { return },
                    () = cut.cancelled() => return,
                }
            }
            // What cannot be done just now holds up nobody else.
            while round.len() < WIDE
                && let Ok(work) = self.work.try_recv()
            {
                round.push(work);
            }
            if self.most == 1 {
                merge(&mut round);
            }
            let turn = if self.most == 1 { tags_together(&mut round) } else { self.most };
            let later = round.split_off(round.len().min(turn));
            if cut.is_cancelled() {
                return;
            }
            match self.round(round).await {
                (left, None) => {
                    self.backoff.well();
                    round = later;
                    round.extend(left);
                }
                (left, Some(e)) => {
                    self.backoff.ill(&e, cut).await;
                    round = later;
                    round.extend(left);
                }
            }
        }
    }

    /// Handles a round of messages; returns those that are to be tried again, and why.
    async fn round(&self, mut round: Vec<Work>) -> (Vec<Work>, Option<redis::RedisError>) {
        // Before Redis is asked, so that the time is not before the ack; and it stays the same however often it is
        // tried.
        let waited: Vec<i64> = round
            .iter()
            .map(|work| match work.at {
                At::Received(then) => i64::try_from(then.elapsed().as_millis()).unwrap_or(0),
                At::Redis(_) => 0,
            })
            .collect();
        let now = match self.invalidator.now().await {
            Ok(now) => now,
            Err(e) => return (round, Some(e)),
        };
        for (work, waited) in round.iter_mut().zip(waited) {
            // Nothing was published later than now: an id from the future is somebody's own, or from another clock.
            work.at = match work.at {
                At::Received(_) => At::Redis(now - waited),
                At::Redis(at) => At::Redis(at.min(now)),
            };
        }
        let results = match round.as_slice() {
            [first, _, ..] if first.joins() => self.handle_tags(&round).await,
            _ => join_all(round.iter_mut().map(|work| self.handle(work))).await,
        };
        let (mut left, mut error) = (Vec::new(), None);
        for (work, result) in round.into_iter().zip(results) {
            match result {
                Ok(()) => work.acks.into_iter().for_each(Ack::done),
                Err(e) => {
                    left.push(Work { failed: work.failed || is_of_keys(&e), ..work });
                    error = Some(e);
                }
            }
        }
        (left, error)
    }

    async fn handle(&self, work: &mut Work) -> redis::RedisResult<()> {
        let At::Redis(at) = work.at else { return Ok(()) };
        if work.message.action == Action::Refresh && work.message.is_narrow() {
            let joined = |key: &mut String| self.held.joins(key, at, &work.acks);
            let joined: Vec<String> = work.message.keys.extract_if(.., joined).collect();
            if work.message.keys.is_empty() {
                work.message.keys = joined;
                self.telemetry.invalidation(work.way, &work.message, &Handled { entries: 1, ..Handled::default() });
                return Ok(());
            }
        }
        let (handled, held) = self.invalidator.begin(&work.message, at, work.is_alone()).await?;
        self.begun(work, handled, held);
        Ok(())
    }

    /// Handles messages that name nothing but tags.
    async fn handle_tags(&self, round: &[Work]) -> Vec<redis::RedisResult<()>> {
        let timed = round.iter().filter_map(|work| match work.at {
            At::Redis(at) => Some((work, (&work.message, at, work.is_alone()))),
            At::Received(_) => None,
        });
        let (works, messages): (Vec<&Work>, Vec<_>) = timed.unzip();
        let result = self.invalidator.begin_tags(&messages).await.map(|begun| {
            for (work, (handled, held)) in works.into_iter().zip(begun) {
                self.begun(work, handled, held);
            }
        });
        vec![result; round.len()]
    }

    /// A message was handled but for what is held off.
    fn begun(&self, work: &Work, handled: Handled, held: Vec<Debounced>) {
        self.telemetry.invalidation(work.way, &work.message, &handled);
        for held in held {
            self.held.add(held, work.acks.iter().map(Ack::part).collect());
        }
    }
}

impl Held {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waitings> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an entry waits already, and so for this invalidation as well.
    fn joins(&self, key: &str, at: i64, acks: &[Ack]) -> bool {
        let mut all = self.lock();
        let Some(waiting) = all.entries.get_mut(key) else { return false };
        // Only a narrow message asks.
        let more = waiting.join(at, When::Urgent, acks.iter().map(Ack::part));
        self.acks.fetch_add(more, Ordering::Relaxed);
        true
    }

    fn add(&self, held: Debounced, acks: Vec<Ack>) {
        let until = Instant::now() + held.wait;
        let mut all = self.lock();
        let Waitings { entries, line } = &mut *all;
        let key = held.key.clone();
        let more = match entries.entry(key.clone()) {
            Entry::Occupied(mut there) => {
                let there = there.get_mut();
                if until > there.until {
                    line.remove(&(there.until, key.clone()));
                    line.insert((until, key));
                    there.until = until;
                }
                there.join(held.at, held.when, acks)
            }
            Entry::Vacant(place) => {
                line.insert((until, key));
                let (at, when) = (held.at, held.when);
                place.insert(Waiting::new(held, until)).join(at, when, acks)
            }
        };
        self.acks.fetch_add(more, Ordering::Relaxed);
        drop(all);
        self.more.notify_one();
    }

    /// When the first has waited long enough.
    fn next(&self) -> Option<Instant> {
        self.lock().line.first().map(|(until, _)| *until)
    }

    /// What has waited long enough.
    fn due(&self) -> Vec<(EntryKey, Waiting)> {
        let now = Instant::now();
        let mut all = self.lock();
        let mut due = Vec::new();
        while all.line.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, key)) = all.line.pop_first()
        {
            due.extend(all.entries.remove_entry(&key));
        }
        due
    }

    /// Nothing is added any more.
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.more.notify_one();
    }

    /// Drops what is left, with its acks.
    fn drop_all(&self) {
        *self.lock() = Waitings::default();
        self.acks.store(0, Ordering::Relaxed);
    }

    async fn run(&self, invalidator: &Invalidator, cut: &CancellationToken) {
        let mut backoff = Backoff::new("invalidating what was held off");
        while !cut.is_cancelled() {
            let next = self.next();
            if next.is_none() && self.closed.load(Ordering::Acquire) {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600)).into()) => {}
                () = self.more.notified() => continue,
                () = cut.cancelled() => return,
            }
            let due = self.due();
            if due.is_empty() {
                continue;
            }
            let entries = due.iter().map(|(key, waiting)| Debounced {
                job: Arc::clone(&waiting.job),
                key: key.clone(),
                at: waiting.at,
                when: waiting.when,
                wait: Duration::ZERO,
            });
            let entries: Vec<Debounced> = entries.collect();
            let mut acks: HashMap<EntryKey, Vec<Ack>> =
                due.into_iter().map(|(key, waiting)| (key, waiting.acks)).collect();
            let count = acks.values().map(Vec::len).sum();
            self.acks.fetch_sub(count, Ordering::Relaxed);
            let (still, error) = match invalidator.again(entries.clone(), &mut Handled::default()).await {
                Ok(still) => (still, None),
                Err(e) => (entries.into_iter().map(|held| Debounced { wait: AGAIN, ..held }).collect(), Some(e)),
            };
            for held in still {
                let acks = acks.remove(&held.key).unwrap_or_default();
                self.add(held, acks);
            }
            acks.into_values().flatten().for_each(Ack::done);
            match error {
                Some(e) => backoff.ill(&e, cut).await,
                None => backoff.well(),
            }
        }
    }
}
