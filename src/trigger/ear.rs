//! The ear's own test: whether this worker hears, and what the fleet may have missed.
//!
//! Pub/sub tells nobody what was lost. So each worker sends canaries over the channels' own connection and notes between which
//! times it heard them all, and up to when it has handled what it heard. A canary that does not come back means a deaf
//! connection, which is then given up. When a worker hears again, somebody else must have heard all the while, and handled it;
//! if nobody has, what was published bare meanwhile is missed, and everything is suspect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Doubt, Suspicion};
use crate::redis::{Connection, Keys};

/// How often a canary is sent.
const CANARY: Duration = Duration::from_secs(1);
/// Canaries in a row that do not come back before the connection counts as deaf.
const DEAF: i64 = 4;
/// Canaries after which the others have said what they heard.
const SETTLED: u32 = 3;
/// How long what a worker has heard is of interest: ms.
const FORGOTTEN: i64 = 24 * 3_600 * 1_000;

static SEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/canary.lua")));

/// What was heard and is not yet handled.
#[derive(Debug, Default)]
pub struct Unhandled(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    /// The number of the next message.
    next: u64,
    /// Messages under way.
    open: BTreeSet<u64>,
    /// Canaries, each with the number of the message that came after it.
    canaries: VecDeque<(u64, i64)>,
    /// The last canary before which all is handled (Redis time, ms).
    handled: i64,
}

impl Unhandled {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was heard; returns its number.
    pub fn hear(&self) -> u64 {
        let mut book = self.book();
        let number = book.next;
        book.next += 1;
        book.open.insert(number);
        number
    }

    /// The message of this number is handled.
    pub fn done(&self, number: u64) {
        self.book().open.remove(&number);
    }

    /// A canary was heard that was sent at this Redis time (ms).
    fn canary(&self, at: i64) {
        let mut book = self.book();
        let next = book.next;
        match book.canaries.back_mut() {
            Some((before, last)) if *before == next => *last = at.max(*last),
            _ => book.canaries.push_back((next, at)),
        }
    }

    /// The time of the last canary before which all is handled (Redis time, ms); 0 for none.
    fn handled(&self) -> i64 {
        let mut book = self.book();
        let first = book.open.first().copied().unwrap_or(u64::MAX);
        while let Some((_, at)) = book.canaries.front().copied().filter(|(next, _)| *next <= first) {
            book.handled = book.handled.max(at);
            book.canaries.pop_front();
        }
        book.handled
    }
}

/// What one other worker says that it has heard (Redis time, ms).
struct Other {
    worker: String,
    since: i64,
    last: i64,
    handled: i64,
}

impl Other {
    fn read(worker: String, heard: &str) -> Option<Self> {
        let mut times = heard.split(' ').map(str::parse);
        let (since, last) = (times.next()?.ok()?, times.next()?.ok()?);
        Some(Self { worker, since, last, handled: times.next().and_then(Result::ok).unwrap_or(last) })
    }
}

/// What one worker hears.
#[derive(Debug)]
pub struct Ear {
    redis: Connection,
    keys: Keys,
    worker: Arc<str>,
    suspicion: Suspicion,
    /// The first and the last canary heard over the present connection (Redis time, ms); 0 for none.
    since: AtomicI64,
    last: AtomicI64,
    /// The last one heard over the connection before.
    before: AtomicI64,
    unhandled: Arc<Unhandled>,
    /// Rung when the present connection is found to be deaf.
    deaf: Notify,
    /// Set when it hears, and it is known whether anything was missed before.
    settled: CancellationToken,
}

impl Ear {
    /// The ear of `worker`.
    pub fn new(redis: Connection, keys: Keys, worker: Arc<str>, suspicion: Suspicion) -> Self {
        let zero = AtomicI64::default;
        let settled = CancellationToken::new();
        let (since, last, before) = (zero(), zero(), zero());
        let (unhandled, deaf) = (Arc::default(), Notify::new());
        Self { redis, keys, worker, suspicion, since, last, before, unhandled, deaf, settled }
    }

    /// Where messages are noted that were heard, and when they are handled.
    pub fn unhandled(&self) -> &Arc<Unhandled> {
        &self.unhandled
    }

    /// Set once it hears, and once it is known that nothing was missed before, or that all is suspect.
    pub fn settled(&self) -> CancellationToken {
        self.settled.clone()
    }

    /// A canary came: its text.
    pub fn heard(&self, canary: &str) {
        let Some((worker, at)) = canary.rsplit_once(' ') else { return };
        let Some(at) = at.parse().ok().filter(|_| worker == &*self.worker) else { return };
        let _ = self.since.compare_exchange(0, at, Ordering::AcqRel, Ordering::Acquire);
        self.last.fetch_max(at, Ordering::AcqRel);
        self.unhandled.canary(at);
    }

    /// The connection ended.
    pub fn lost(&self) {
        self.since.store(0, Ordering::Release);
        let last = self.last.swap(0, Ordering::AcqRel);
        self.before.fetch_max(last, Ordering::AcqRel);
    }

    /// Waits until the connection is found to be deaf.
    pub async fn is_deaf(&self) {
        self.deaf.notified().await;
    }

    /// Sends canaries until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut unheard = 0;
        let mut sent = 0;
        // The hearing that was checked for a gap before it, and canaries since it began.
        let mut checked = 0;
        let mut waited = 0;
        while !stop.is_cancelled() {
            let (since, last) = (self.since.load(Ordering::Acquire), self.last.load(Ordering::Acquire));
            let mut call = SEND.key(self.keys.ears());
            call.arg(&*self.worker).arg(since).arg(last).arg(self.unhandled.handled()).arg(self.keys.signal_channel());
            call.arg(format!("canary {}", self.worker));
            match call.invoke_async::<i64>(&mut self.redis.clone()).await {
                Ok(now) => {
                    // The one before has had its time to come.
                    unheard = if last >= sent { 0 } else { unheard + 1 };
                    sent = now;
                    if unheard > DEAF {
                        warn!("nothing is heard on the subscription any more: it is made anew");
                        self.deaf.notify_waiters();
                        unheard = 0;
                    }
                    waited = if since != 0 && since != checked { waited + 1 } else { 0 };
                    if waited >= SETTLED {
                        match self.check(since).await {
                            Ok(Some(())) => {
                                (checked, waited) = (since, 0);
                                self.settled.cancel();
                            }
                            // Somebody who may have heard it all has yet to say so.
                            Ok(None) => {}
                            Err(e) => debug!("cannot see what the others heard: {e}"),
                        }
                    }
                }
                Err(e) => debug!("no canary could be sent: {e}"),
            }
            tokio::select! {
                () = tokio::time::sleep(CANARY) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Whether somebody heard, and handled, all that was published since this worker, or the fleet, last did; `None` where that
    /// cannot be said yet.
    async fn check(&self, since: i64) -> RedisResult<Option<()>> {
        let ears: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(self.keys.ears()).query_async(&mut self.redis.clone()).await?;
        let others: Vec<Other> = ears
            .into_iter()
            .filter(|(worker, _)| *worker != *self.worker)
            .filter_map(|(worker, heard)| Other::read(worker, &heard))
            .collect();
        let now = self.last.load(Ordering::Acquire);
        let newest = others.iter().map(|other| other.last).max().unwrap_or(0);
        let before = self.before.load(Ordering::Acquire);
        let fresh = before == 0;
        // Of those that begin together, each goes by who began before: so the first sees that there was nobody.
        let heard: Vec<&Other> = others
            .iter()
            .filter(|other| !fresh || (other.since, other.worker.as_str()) < (since, &*self.worker))
            .collect();
        let before = if fresh { heard.iter().map(|other| other.last).max().unwrap_or(0) } else { before };
        let covers = heard.iter().filter(|other| other.since <= before);
        let covered = covers.clone().any(|other| other.handled >= since);
        let alive = |other: &Other| other.last + 3 * DEAF * 1_000 > now;
        let in_question = covers.clone().any(|other| alive(other));
        // It heard it all, and has yet to handle it; or it dies.
        let busy = covers.clone().any(|other| alive(other) && other.last >= since);
        if before > 0 && !covered {
            if busy || (in_question && now - since < 3 * DEAF * 1_000) {
                return Ok(None);
            }
            let seconds = (since - before) / 1_000;
            info!("nobody was listening for some {seconds} s: bare invalidations may have been missed");
            self.suspicion.raise(since, Doubt::Missed).await?;
        }
        let gone: Vec<String> = others
            .into_iter()
            .filter(|other| other.last < now - FORGOTTEN && other.last < newest)
            .map(|other| other.worker)
            .collect();
        if !gone.is_empty() {
            let () = redis::cmd("HDEL").arg(self.keys.ears()).arg(gone).query_async(&mut self.redis.clone()).await?;
        }
        Ok(Some(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_counts_when_all_that_was_heard_before_it_is_handled() {
        let unhandled = Unhandled::default();
        unhandled.canary(1);
        assert_eq!(unhandled.handled(), 1);
        let (first, second) = (unhandled.hear(), unhandled.hear());
        unhandled.canary(2);
        unhandled.canary(3);
        let third = unhandled.hear();
        unhandled.canary(4);
        unhandled.done(second);
        assert_eq!(unhandled.handled(), 1);
        unhandled.done(first);
        assert_eq!(unhandled.handled(), 3);
        unhandled.done(third);
        assert_eq!(unhandled.handled(), 4);
    }

    #[test]
    fn who_does_not_say_what_it_handled_has_handled_what_it_heard() {
        let other = Other::read("a".to_owned(), "1 2").unwrap();
        assert_eq!((other.since, other.last, other.handled), (1, 2, 2));
        assert_eq!(Other::read("a".to_owned(), "1 5 3").unwrap().handled, 3);
        assert!(Other::read("a".to_owned(), "1").is_none());
    }
}
