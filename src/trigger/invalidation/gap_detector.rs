//! The gap detector: finds out when no worker heard the channel, and notes a gap for the revalidator.
//!
//! Pub/sub does not tell what was lost. So each worker sends a canary a second over the channel's own connection. It
//! records in Redis between which times it heard all canaries, and up to when it has handled what it heard. If canaries
//! stop coming back, the subscription is stalled and is made anew. When a worker hears again, another worker must have
//! heard and handled everything meanwhile; if none did, bare invalidations may have been missed.
//!
//! A worker drops messages about jobs that it does not know. So it vouches only for the jobs that it knows, by name and
//! keys ([`Job::identity`]). Any client may publish signals, so a canary counts once, by a nonce that only its sender
//! knows, and only if it was sent after the subscription began: before that, others hear it first. The times of
//! canaries do not go back when Redis's clock does. Times later than now are forged and do not count.
//!
//! A worker that heard again and has not checked its own gap says so in its record. Until it has, a worker that begins
//! does not rely on it, and its record is not taken for the latest of the fleet. The search in `model/src/knowledge`
//! repeats these rules; docs/verification.md says what it shows.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::coverage::{Asking, Coverage, Other};
use crate::entry::JobName;
use crate::job::{Job, Jobs};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};
use crate::store::{Gap, Store};

/// The interval between two canaries.
const CANARY: Duration = Duration::from_secs(1);
/// Canaries in a row that do not come back before the subscription counts as stalled.
const STALLED: usize = 4;
/// Canaries after which the other workers have recorded what they heard.
const CHECK_AFTER: u32 = 3;
/// The time after which a worker's record is dropped.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3_600);
/// Jobs that one log line names.
const NAMED: usize = 8;

static SEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/canary.lua")));

/// The messages from the channel that are not handled yet.
#[derive(Debug, Default)]
pub struct Unhandled(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    /// The number of the next message.
    next: u64,
    /// Messages in flight.
    open: BTreeSet<u64>,
    /// Canaries, each with the number of the message that came after it.
    canaries: VecDeque<(u64, RedisTime)>,
    /// The time of the last canary before which all is handled.
    handled: RedisTime,
}

impl Unhandled {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; returns its number.
    pub fn hear(&self) -> u64 {
        let mut book = self.book();
        let number = book.next;
        book.next += 1;
        book.open.insert(number);
        number
    }

    /// Removes the message of this number, which is handled.
    pub fn done(&self, number: u64) {
        self.book().open.remove(&number);
    }

    /// Adds a canary that was sent at this time.
    fn canary(&self, at: RedisTime) {
        let mut book = self.book();
        let next = book.next;
        match book.canaries.back_mut() {
            Some((before, last)) if *before == next => *last = at,
            _ => book.canaries.push_back((next, at)),
        }
    }

    /// Returns the time of the last canary before which all is handled; zero for none.
    fn handled(&self) -> RedisTime {
        let mut book = self.book();
        let first = book.open.first().copied().unwrap_or(u64::MAX);
        while let Some((_, at)) = book.canaries.front().copied().filter(|(next, _)| *next <= first) {
            book.handled = at;
            book.canaries.pop_front();
        }
        book.handled
    }
}

/// The clock of the records, as Redis holds it. Earlier builds drop records that are ahead of Redis's clock, and note
/// needless gaps. One that begins after such records only, as after a rollback, takes the fleet for none.
#[derive(Clone, Copy, Debug, Default)]
struct RecordClock {
    /// Redis's time at the last canary.
    high: RedisTime,
    /// By how much the times of canaries are ahead of Redis's clock, which was set back.
    ahead: Duration,
}

impl RecordClock {
    /// The field of the clock among the records.
    const FIELD: &[u8] = b"clock";

    /// Takes the clock out of the records.
    fn take(records: &mut HashMap<Vec<u8>, Vec<u8>>) -> Self {
        let field = records.remove(Self::FIELD).unwrap_or_default();
        let clock = str::from_utf8(&field).ok().and_then(|text| text.split_once(' '));
        let clock = clock.and_then(|(high, ahead)| Some((high.parse().ok()?, ahead.parse().ok()?)));
        let (high, ahead) = clock.unwrap_or_default();
        Self { high, ahead: Duration::from_millis(ahead) }
    }

    /// Returns the present time of this clock.
    fn at(self, now: RedisTime) -> RedisTime {
        now.max(self.high) + self.ahead
    }
}

/// Returns the identities of the jobs that live workers know: see [`Job::identity`].
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn known_to_workers(redis: &mut Connection, keys: &Keys, now: RedisTime) -> RedisResult<HashSet<String>> {
    let mut all: HashMap<Vec<u8>, Vec<u8>> = redis::cmd("HGETALL").arg(keys.gap_detectors()).query_async(redis).await?;
    let now = RecordClock::take(&mut all).at(now);
    let records = all.iter().filter_map(|(worker, heard)| Other::read(worker, heard, now));
    let alive: Vec<Other> = records.filter(|record| record.is_alive(now)).collect();
    let jobs = alive.iter().flat_map(|record| record.jobs.split(','));
    Ok(jobs.filter(|job| !job.is_empty()).map(str::to_owned).collect())
}

/// One worker's gap detector.
#[derive(Debug)]
pub struct GapDetector {
    redis: Connection,
    keys: Keys,
    worker: Arc<str>,
    jobs: Arc<Jobs>,
    store: Store,
    hearing: Mutex<Hearing>,
    unhandled: Arc<Unhandled>,
    /// Notified when the subscription is stalled.
    stalled: Notify,
    /// Set when the worker hears, and any gap before that is noted.
    checked: CancellationToken,
}

#[derive(Debug, Default)]
struct Hearing {
    /// The first and the last canary heard over this connection; zero for none.
    since: RedisTime,
    last: RedisTime,
    /// The last canary before a gap that is not checked, or before the present connection; zero for none.
    before: RedisTime,
    /// The first canary of all; zero for none.
    began: RedisTime,
    /// Any gap before `since` is noted.
    is_checked: bool,
    /// The nonces of canaries that have not come back, the oldest first.
    sent: VecDeque<u128>,
}

impl Hearing {
    /// Takes a canary; returns its time if this worker sent it and it comes for the first time. A copy by another
    /// client comes later than the canary itself.
    fn hear(&mut self, canary: &str) -> Option<RedisTime> {
        let (nonce, at) = canary.split_once(' ')?;
        let nonce = u128::from_str_radix(nonce, 16).ok()?;
        let at = at.parse().ok()?;
        let place = self.sent.iter().position(|sent| *sent == nonce)?;
        // Earlier canaries do not come any more.
        self.sent.drain(..=place);
        // If the clock of the records was lost, earlier times do not compare with later ones.
        if self.since == RedisTime::ZERO || at < self.last {
            self.since = at;
        }
        if self.began == RedisTime::ZERO {
            self.began = at;
        }
        self.last = at;
        Some(at)
    }

    fn lose(&mut self) {
        // A gap that is not checked yet becomes longer.
        if self.is_checked {
            self.before = self.last;
        }
        (self.since, self.last, self.is_checked) = (RedisTime::ZERO, RedisTime::ZERO, false);
        self.sent.clear();
    }
}

impl GapDetector {
    /// Creates the gap detector of `worker`.
    pub fn new(redis: Connection, keys: Keys, worker: Arc<str>, jobs: Arc<Jobs>, store: Store) -> Self {
        let (hearing, checked) = (Mutex::default(), CancellationToken::new());
        Self { redis, keys, worker, jobs, store, hearing, unhandled: Arc::default(), stalled: Notify::new(), checked }
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the messages that are not handled yet.
    pub fn unhandled(&self) -> &Arc<Unhandled> {
        &self.unhandled
    }

    /// Returns a token that is set once the worker hears and any gap before that is noted.
    pub fn checked(&self) -> CancellationToken {
        self.checked.clone()
    }

    /// Takes the text of a canary. Those of other workers and forged ones are ignored.
    pub fn heard(&self, canary: &str) {
        let own = canary.strip_prefix(&*self.worker).and_then(|rest| rest.strip_prefix(' '));
        if let Some(at) = own.and_then(|canary| self.hearing().hear(canary)) {
            self.unhandled.canary(at);
        }
    }

    /// Notes that the subscription begins. Canaries that were sent before that do not count: other clients heard them
    /// already, and could send them with other times.
    pub fn subscribed(&self) {
        self.hearing().sent.clear();
    }

    /// Notes that the connection ended.
    pub fn lost(&self) {
        self.hearing().lose();
    }

    /// Waits until the subscription is stalled.
    pub async fn is_stalled(&self) {
        self.stalled.notified().await;
    }

    /// Sends canaries, and checks for gaps once the worker hears, until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        let jobs: Vec<String> = self.jobs.jobs.values().map(|job| job.identity()).collect();
        let jobs = jobs.join(",");
        // The canaries sent since the worker hears again.
        let mut waited = 0;
        // The connection, by its first canary, and the jobs whose gap before that is noted already.
        let mut noted = (RedisTime::ZERO, BTreeSet::new());
        while !stop.is_cancelled() {
            let nonce: u128 = rand::random();
            let (since, last, unchecked, unheard) = {
                let mut hearing = self.hearing();
                let unheard = hearing.sent.len();
                hearing.sent.push_back(nonce);
                (hearing.since, hearing.last, (!hearing.is_checked).then_some((hearing.before, hearing.began)), unheard)
            };
            let mut call = SEND.key(self.keys.gap_detectors());
            call.arg(&*self.worker).arg(since).arg(last).arg(self.unhandled.handled()).arg(&jobs);
            call.arg(unchecked.map(|(before, began)| format!("{before} {began}")).unwrap_or_default());
            call.arg(self.keys.signal_channel()).arg(format!("canary {} {nonce:032x}", self.worker));
            match call.invoke_async::<i64>(&mut self.redis.clone()).await {
                Ok(_) => {
                    if unheard > STALLED {
                        warn!("nothing is heard on the subscription, it is stalled; subscribing again");
                        self.hearing().sent.clear();
                        self.stalled.notify_waiters();
                    }
                    waited = if since != RedisTime::ZERO && unchecked.is_some() { waited + 1 } else { 0 };
                    if waited >= CHECK_AFTER {
                        if noted.0 != since {
                            noted = (since, BTreeSet::new());
                        }
                        match self.check(since, &mut noted.1).await {
                            Ok(true) => {
                                waited = 0;
                                let mut hearing = self.hearing();
                                // Unless the connection ended meanwhile.
                                hearing.is_checked |= hearing.since == since;
                                self.checked.cancel();
                            }
                            // A worker that may have heard everything has not recorded it yet.
                            Ok(false) => {}
                            Err(e) => debug!("cannot read what the other workers heard; trying again: {e}"),
                        }
                    }
                }
                Err(e) => {
                    // Redis may not have sent it.
                    self.hearing().sent.retain(|sent| *sent != nonce);
                    debug!("could not send a canary; trying again: {e}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(CANARY) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Checks, for each job, that a worker heard and handled all that was published since this worker, or the fleet,
    /// last heard. Notes a gap for the other jobs, and adds them to `noted`. Returns `false` while a worker has not
    /// recorded it yet.
    async fn check(&self, since: RedisTime, noted: &mut BTreeSet<JobName>) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        // The time comes last, so that no true record is later.
        let (mut records, now): (HashMap<Vec<u8>, Vec<u8>>, RedisTime) =
            redis::pipe().hgetall(self.keys.gap_detectors()).cmd("TIME").query_async(&mut redis).await?;
        let clock = RecordClock::take(&mut records);
        let now = clock.at(now);
        let (mut others, mut gone) = (Vec::new(), Vec::new());
        for (worker, heard) in records.into_iter().filter(|(worker, _)| worker != self.worker.as_bytes()) {
            match Other::read(&worker, &heard, now) {
                Some(other) => others.push(other),
                // A worker that lives writes it anew. It must not become true when the clock gets there.
                None => gone.push(worker),
            }
        }
        let (before, began) = {
            let hearing = self.hearing();
            (hearing.before, hearing.began)
        };
        let asking = Asking { worker: &self.worker, since, before, began, now };
        let (mut open, mut missed, mut until) = (false, Vec::new(), RedisTime::ZERO);
        for job in self.jobs.jobs.values().filter(|job| !noted.contains(&job.name)) {
            match asking.coverage(job, &others) {
                Coverage::Covered => {}
                Coverage::Open => open = true,
                Coverage::Missed(at) => {
                    missed.push((&**job, asking.heard_before(job, &others, at), at));
                    until = at.max(until);
                }
            }
        }
        if !missed.is_empty() {
            self.tell(&missed);
            let missed: Vec<&Job> = missed.into_iter().map(|(job, ..)| job).collect();
            self.store.note_gap_for(&missed, until - clock.ahead, Gap::Missed).await?;
            noted.extend(missed.iter().map(|job| job.name.clone()));
        }
        // Workers that begin together after a long time all need the last record from before.
        let checked = others.iter().filter(|other| other.unchecked.is_none());
        let newest = checked.map(|other| other.last).max().unwrap_or_default();
        let old = others.into_iter().filter(|other| other.last < now - FORGOTTEN && other.last < newest);
        gone.extend(old.map(|other| other.worker.into_bytes()));
        if !gone.is_empty() {
            let () = redis::cmd("HDEL").arg(self.keys.gap_detectors()).arg(gone).query_async(&mut redis).await?;
        }
        Ok(!open)
    }

    /// Logs the gaps of these jobs, each from when somebody last heard until its end; zero if nobody ever did.
    fn tell(&self, missed: &[(&Job, RedisTime, RedisTime)]) {
        let (new, deaf): (Vec<_>, Vec<_>) = missed.iter().copied().partition(|(_, heard, _)| *heard == RedisTime::ZERO);
        let names = |gaps: &[(&Job, RedisTime, RedisTime)]| {
            let names: Vec<&str> = gaps.iter().take(NAMED).map(|(job, ..)| job.name.as_str()).collect();
            names.join(", ")
        };
        if !deaf.is_empty() {
            let seconds = deaf.iter().map(|(_, heard, end)| end.saturating_since(*heard).as_secs()).max();
            info!(
                jobs = deaf.len(),
                "{}nobody was listening for {} s who knows {}: bare invalidations may have been missed, values are \
                 revalidated",
                self.store.gap_line(),
                seconds.unwrap_or_default(),
                names(&deaf)
            );
        }
        if !new.is_empty() {
            info!(
                jobs = new.len(),
                "no worker knew {} before, or not with these keys: values that are there already are revalidated",
                names(&new)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> RedisTime {
        RedisTime::from_millis(millis)
    }

    #[test]
    fn a_canary_counts_when_all_that_was_heard_before_it_is_handled() {
        let unhandled = Unhandled::default();
        unhandled.canary(at(1));
        assert_eq!(unhandled.handled(), at(1));
        let (first, second) = (unhandled.hear(), unhandled.hear());
        unhandled.canary(at(2));
        unhandled.canary(at(3));
        let third = unhandled.hear();
        unhandled.canary(at(4));
        unhandled.done(second);
        assert_eq!(unhandled.handled(), at(1));
        unhandled.done(first);
        assert_eq!(unhandled.handled(), at(3));
        unhandled.done(third);
        assert_eq!(unhandled.handled(), at(4));
    }

    #[test]
    fn a_clock_that_went_back_is_followed() {
        let unhandled = Unhandled::default();
        unhandled.canary(at(600_000));
        unhandled.canary(at(10));
        assert_eq!(unhandled.handled(), at(10));
        let mut hearing = Hearing { sent: VecDeque::from([1, 2, 3]), ..Hearing::default() };
        assert_eq!(hearing.hear(&format!("{:032x} 600000", 1)), Some(at(600_000)));
        assert_eq!(hearing.hear(&format!("{:032x} 10", 2)), Some(at(10)));
        assert_eq!((hearing.since, hearing.last), (at(10), at(10)));
    }

    #[test]
    fn a_canary_counts_once_and_only_by_its_nonce() {
        let mut hearing = Hearing { sent: VecDeque::from([7, 8]), ..Hearing::default() };
        for forged in ["99999999999999", " 99999999999999", "0 99999999999999", "7", "zz 1", "9 99999999999999"] {
            assert_eq!(hearing.hear(forged), None, "{forged}");
        }
        assert_eq!(hearing.hear("8 5"), Some(at(5)));
        // It was heard by then; the one before it got lost.
        assert_eq!((hearing.hear("8 99999999999999"), hearing.hear("7 99999999999999")), (None, None));
        assert_eq!((hearing.since, hearing.last), (at(5), at(5)));
        hearing.sent.push_back(9);
        hearing.is_checked = true;
        hearing.lose();
        assert_eq!((hearing.hear("9 6"), hearing.before), (None, at(5)), "it was sent before the connection ended");
    }

    #[test]
    fn a_gap_that_is_not_checked_becomes_longer() {
        let mut hearing = Hearing { sent: VecDeque::from([1]), is_checked: true, last: at(5), ..Hearing::default() };
        hearing.lose();
        hearing.sent.push_back(2);
        hearing.hear("2 60");
        hearing.lose();
        assert_eq!(
            (hearing.before, hearing.began),
            (at(5), at(60)),
            "what was published between them is not known yet"
        );
        hearing.sent.push_back(3);
        hearing.hear("3 70");
        hearing.is_checked = true;
        hearing.lose();
        assert_eq!(hearing.before, at(70));
    }

    #[tokio::test]
    async fn a_canary_from_before_the_subscription_counts_nothing() {
        let server = crate::redis::server::Server::start().await;
        let (redis, keys) = (server.connect().await, Keys::new("test", "test:invalidate"));
        let store = Store::new(redis.clone(), keys.clone());
        let detector = GapDetector::new(redis, keys, Arc::from("w"), jobs("art", "art:{name}"), store);
        detector.lost();
        detector.hearing().sent.push_back(7);
        detector.subscribed();
        detector.heard(&format!("w {:032x} 5", 7));
        assert_eq!(detector.hearing().since, RedisTime::ZERO, "a stranger heard it first, and sends another time");
    }

    #[tokio::test]
    async fn times_of_canaries_go_on_when_the_clock_is_set_back() {
        let server = crate::redis::server::Server::start().await;
        let (redis, keys) = (server.connect().await, Keys::new("test", "test:invalidate"));
        let send = async || {
            let mut call = SEND.key(keys.gap_detectors());
            call.arg("w").arg(0).arg(0).arg(0).arg("art").arg("0 5").arg(keys.signal_channel()).arg("canary w 0");
            call.invoke_async::<i64>(&mut redis.clone()).await.unwrap()
        };
        let before = send().await;
        let records = async || -> HashMap<Vec<u8>, Vec<u8>> {
            redis::cmd("HGETALL").arg(keys.gap_detectors()).query_async(&mut redis.clone()).await.unwrap()
        };
        let mut first = records().await;
        assert_eq!(RecordClock::take(&mut first).at(at(before)), at(before));
        assert_eq!(first[&b"w"[..]], b"0 0 0 art 0 5", "one that does not hear any more is there, too");
        // As it is after a canary, when the clock is then set back by ten minutes.
        let high = before + 600_000;
        let set = redis::cmd("HSET").arg(keys.gap_detectors()).arg("clock").arg(format!("{high} 7")).clone();
        set.exec_async(&mut redis.clone()).await.unwrap();
        let clock = RecordClock::take(&mut records().await);
        assert_eq!(clock.at(at(before)), at(high + 7), "no canary came since");
        let (next, last) = (send().await, send().await);
        assert!(high + 7 < next && next <= last, "{high} {next} {last}");
        let clock = RecordClock::take(&mut records().await);
        assert_eq!(clock.at(clock.high), at(last));
    }

    /// A job of this name over these keys, and nothing else.
    fn jobs(name: &str, key: &str) -> Arc<Jobs> {
        let text = format!("key = \"{key}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1/{{{{ name }}}}\"\n");
        Arc::new(Jobs::parse(&[(format!("{name}.toml"), text)], Duration::from_secs(60), &|_| None).unwrap())
    }
}
