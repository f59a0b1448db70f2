//! Minute figures of 72 hours: what this process counts of each job and upstream, added to the fleet's figures in Redis
//! about once a minute.
//!
//! Jobs and upstreams without activity are not written. Each worker also notes that it was there, so that a minute
//! without figures can be told from one in which nobody counted. Counts are written once: those of a write that fails
//! are lost, and the minute is not noted as attended by this worker. A worker that is killed loses what it counted
//! since its last write; one that drains writes it, if Redis answers in time.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::{RedisError, RedisResult, Script};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::entry::duration::millis;
use crate::entry::{JobName, Outcome, Trigger, UpstreamName};
use crate::protocol::Keys;
use crate::redis::{Connection, is_of_keys};

/// The hours that are kept: 72, and the present one.
pub const HOURS: u32 = 73;
/// The time between two writes: less than a minute, so that none is left out.
const EVERY: Duration = Duration::from_secs(55);
/// The writes that are under way at once.
const AT_ONCE: usize = 32;
/// The last bucket of times.
const LAST_BUCKET: u32 = 46;

static ADD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/add_figures.lua")));
static HISTORY: LazyLock<History> = LazyLock::new(History::default);

/// A count of a minute. Its letter is its name in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// Workers that were there.
    Workers,
    /// Entries that were fetched and written.
    Warmed,
    /// Entries that were found unchanged.
    Unchanged,
    /// Entries without a usable answer, and requests of an upstream that failed.
    Failed,
    /// Entries that are gone.
    Gone,
    /// Entries that were made anew, or confirmed, since they were invalidated.
    Answered,
    /// AI tokens.
    Tokens,
    /// Requests to an upstream.
    Requests,
    /// Times that were within this bucket: see [`bound`].
    Took(u32),
}

impl Counted {
    const NAMED: [(Self, &'static str); 8] = [
        (Self::Workers, "a"),
        (Self::Warmed, "w"),
        (Self::Unchanged, "u"),
        (Self::Failed, "f"),
        (Self::Gone, "g"),
        (Self::Answered, "i"),
        (Self::Tokens, "t"),
        (Self::Requests, "r"),
    ];

    /// Returns the bucket of a time.
    pub fn took(time: Duration) -> Self {
        Self::Took((0..LAST_BUCKET).find(|bucket| time <= bound(*bucket)).unwrap_or(LAST_BUCKET))
    }

    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix('l') {
            Some(bucket) => bucket.parse().ok().filter(|bucket| *bucket <= LAST_BUCKET).map(Self::Took),
            None => Self::NAMED.iter().find(|(_, known)| *known == name).map(|(counted, _)| *counted),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Took(bucket) => format!("l{bucket}"),
            _ => Self::NAMED.iter().find(|(known, _)| *known == self).map(|(_, name)| *name).unwrap_or_default().into(),
        }
    }
}

/// Returns the longest time of a bucket: 1 ms for the first, and for each other one √2 times that of the one before.
pub fn bound(bucket: u32) -> Duration {
    Duration::from_secs_f64(0.001 * f64::from(bucket).mul_add(0.5, 0.0).exp2())
}

/// Counts of a minute.
pub type Counts = BTreeMap<Counted, u64>;

/// A job or an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Job(JobName),
    Upstream(UpstreamName),
}

/// The counts of this process that are not written yet.
#[derive(Debug, Default)]
struct History(Mutex<BTreeMap<Subject, Counts>>);

impl History {
    fn add(&self, subject: Subject, counts: &[(Counted, u64)]) {
        let mut subjects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = subjects.entry(subject).or_default();
        for (counted, count) in counts {
            *known.entry(*counted).or_default() += count;
        }
    }

    fn take(&self) -> BTreeMap<Subject, Counts> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Counts the end of an attempt at an entry. `lag` is the time from when it was due until it was done.
pub(super) fn entry(job: &JobName, outcome: Outcome, trigger: Trigger, lag: Duration) {
    let counted = match outcome {
        Outcome::Warmed => Counted::Warmed,
        Outcome::Unchanged => Counted::Unchanged,
        Outcome::Failed => Counted::Failed,
        Outcome::Gone => Counted::Gone,
        Outcome::Busy | Outcome::Fenced | Outcome::Deferred | Outcome::Unread | Outcome::Unowned => return,
    };
    let subject = Subject::Job(job.clone());
    match (trigger, counted) {
        (Trigger::Invalidation, Counted::Warmed | Counted::Unchanged | Counted::Gone) => {
            HISTORY.add(subject, &[(counted, 1), (Counted::Answered, 1), (Counted::took(lag), 1)]);
        }
        _ => HISTORY.add(subject, &[(counted, 1)]),
    }
}

/// Counts the end of a request to an upstream.
pub(super) fn fetched(upstream: &UpstreamName, job: &JobName, is_failed: bool, took: Duration, tokens: u64) {
    let counts = [(Counted::Requests, 1), (Counted::took(took), 1), (Counted::Failed, 1)];
    HISTORY.add(Subject::Upstream(upstream.clone()), if is_failed { &counts } else { &counts[..2] });
    if tokens > 0 {
        HISTORY.add(Subject::Job(job.clone()), &[(Counted::Tokens, tokens)]);
    }
}

/// The writer of figures. Clones share the time of the last write.
#[derive(Clone, Debug)]
pub struct HistoryWriter {
    redis: Connection,
    keys: Keys,
    written: Arc<Mutex<Instant>>,
}

impl HistoryWriter {
    /// Creates a writer that has written nothing yet.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        Self { redis, keys, written: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Writes about once a minute, until `stop`. Then call [`Self::write`] when nothing is counted any more.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => self.write().await,
                () = stop.cancelled() => return,
            }
        }
    }

    /// Writes what was counted since the last write, as of the middle of that time.
    pub async fn write(&self) {
        let now = Instant::now();
        let before = std::mem::replace(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner), now);
        let age = now.duration_since(before) / 2;
        let writes = HISTORY.take().into_iter().map(async |(subject, counts)| {
            let key = match &subject {
                Subject::Job(job) => self.keys.history(job),
                Subject::Upstream(upstream) => self.keys.upstream_history(upstream),
            };
            add(&self.redis, &key, age, &counts).await.err()
        });
        let failures: Vec<RedisError> =
            futures_util::stream::iter(writes).buffer_unordered(AT_ONCE).filter_map(async |e| e).collect().await;
        // A key of another type is told elsewhere, and concerns its own figures only.
        let failed = failures.into_iter().find(|e| !is_of_keys(e));
        // Minutes whose figures are not complete are not known.
        let noted = match failed {
            Some(e) => Err(e),
            None => add(&self.redis, &self.keys.attended(), age, &Counts::from([(Counted::Workers, 1)])).await,
        };
        if let Err(e) = noted {
            debug!("figures of about a minute could not be written, and are lost: {e}");
        }
    }
}

/// Adds counts to the figures at a key.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn add(redis: &Connection, key: &str, age: Duration, counts: &Counts) -> RedisResult<()> {
    let mut call = ADD.key(key);
    call.arg(millis(age)).arg(HOURS).arg(millis(Duration::from_secs(3_600) * HOURS));
    for (counted, count) in counts {
        call.arg(counted.name()).arg(count);
    }
    call.invoke_async(&mut redis.clone()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_holds_it() {
        let bucket = |ms| Counted::took(Duration::from_micros(ms));
        assert_eq!(bucket(0), Counted::Took(0));
        assert_eq!(bucket(1_000), Counted::Took(0));
        assert_eq!(bucket(1_001), Counted::Took(1));
        assert_eq!(bucket(2_000), Counted::Took(2));
        assert_eq!(Counted::took(Duration::from_secs(1 << 30)), Counted::Took(LAST_BUCKET));
        assert!(bound(LAST_BUCKET) > Duration::from_secs(2 * 3_600));
    }

    #[test]
    fn each_count_has_a_name_of_its_own() {
        let all = Counted::NAMED.iter().map(|(counted, _)| *counted).chain((0..=LAST_BUCKET).map(Counted::Took));
        for counted in all {
            assert_eq!(Counted::parse(&counted.name()), Some(counted));
        }
        assert_eq!([Counted::parse("l47"), Counted::parse("x"), Counted::parse("")], [None; 3]);
    }
}
