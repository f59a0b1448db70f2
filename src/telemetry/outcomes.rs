//! Counts of outcomes: each outcome is logged at debug level, and a summary of each job at intervals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::feed::{Event, Feed};
use super::journal::{self, Heard, Journal};
use super::{history, metrics};
use crate::entry::Trigger;
use crate::entry::duration::millis;
use crate::entry::{EntryKey, JobName, excerpt};
use crate::entry::{Outcome, Recheck};
use crate::job::Job;
use crate::protocol::Keys;
use crate::protocol::{Handled, Message};
use crate::redis::{Connection, RedisTime};

/// The interval between summaries in the log.
const SUMMARY: Duration = Duration::from_secs(10);

/// The longest excerpt of a name in the log, in characters.
const EXCERPT: usize = 80;

/// The counters of one process, and the name of the worker that counts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Telemetry(Arc<Inner>, Arc<str>);

#[derive(Debug, Default)]
struct Inner {
    jobs: Mutex<BTreeMap<JobName, Tally>>,
    paused: Mutex<BTreeSet<JobName>>,
    invalidations: AtomicU64,
    /// The names that belong to no job, and the first of them.
    foreign: Mutex<(u64, String)>,
    feed: Feed,
    journal: Journal,
}

/// The outcomes of one job since the last summary.
#[derive(Clone, Debug, Default)]
struct Tally {
    outcomes: BTreeMap<&'static str, u64>,
    slowest: Duration,
    failure: Option<String>,
    dead: u64,
}

/// Returns `true` if an entry with this outcome was most likely fetched, so that its duration counts.
fn is_timed(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Warmed | Outcome::Unchanged | Outcome::Gone | Outcome::Fenced | Outcome::Failed => true,
        Outcome::Busy | Outcome::Deferred | Outcome::Unread | Outcome::Unowned => false,
    }
}

impl Telemetry {
    /// Returns the same counters for a worker with this name, which its events bear.
    #[must_use]
    pub fn of(&self, worker: &Arc<str>) -> Self {
        Self(Arc::clone(&self.0), Arc::clone(worker))
    }

    /// Records the outcome of an entry. `late` is the time from due to the start of the warming, `took` the duration of
    /// the warming.
    #[expect(clippy::too_many_arguments, reason = "all of it is one line of the log")]
    pub fn record(
        &self,
        job: &Job,
        key: &EntryKey,
        trigger: Trigger,
        outcome: Outcome,
        reason: Option<&str>,
        late: Duration,
        took: Duration,
    ) {
        metrics::entry(&job.name, outcome, trigger);
        history::entry(&job.name, outcome, trigger, late + took);
        if matches!(outcome, Outcome::Warmed | Outcome::Unchanged) {
            metrics::lag(&job.name, late + took);
        }
        debug!(%outcome, reason, ms = millis(took), "ended");
        self.0
            .feed
            .record(&self.1, || Event::ended(job.name.as_str(), key.as_str(), trigger, outcome, reason, late, took));
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = jobs.entry(job.name.clone()).or_default();
        *tally.outcomes.entry(outcome.as_str()).or_default() += 1;
        if is_timed(outcome) {
            tally.slowest = tally.slowest.max(took);
        }
        if outcome == Outcome::Failed {
            tally.failure = Some(format!("{key} ({trigger}): {}", reason.unwrap_or("no reason")));
        }
    }

    /// Records the result of a recheck.
    pub fn recheck(&self, job: &JobName, found: Recheck) {
        metrics::recheck(job, found);
        debug!(%job, found = found.as_str(), "rechecked");
    }

    /// Records an answer whose version is lower than the stored one, or than an announced one.
    pub fn behind(&self, job: &JobName) {
        metrics::behind(job);
    }

    /// Records an entry that moved to the dead letters.
    pub fn dead_letter(&self, job: &Job) {
        metrics::dead_letter(&job.name);
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.entry(job.name.clone()).or_default().dead += 1;
    }

    /// Records a handled invalidation; `way` is `channel` or `inbox`, `times` are those at which it was published and
    /// handled, and `debounced` is the number of entries that are put off.
    pub fn invalidation(
        &self,
        way: &'static str,
        message: &Message,
        times: [RedisTime; 2],
        handled: &Handled,
        debounced: usize,
    ) {
        self.0.journal.add(&self.1, Heard::handled(way, message, times, handled, debounced));
        self.0.feed.record(&self.1, || Event::invalidation(way, message, handled));
        self.0.invalidations.fetch_add(1, Ordering::Relaxed);
        metrics::invalidation(way, handled.foreign);
        let Handled { entries, due, removed, fenced, foreign, .. } = *handled;
        let (what, at, ms) = (journal::what(message), times[0], millis(times[1].saturating_since(times[0])));
        debug!(way, what, %at, ms, entries, due, removed, fenced, foreign, debounced, "invalidation");
        if let Some(first) = &handled.first_foreign {
            let mut told = self.0.foreign.lock().unwrap_or_else(PoisonError::into_inner);
            if told.0 == 0 {
                told.1 = excerpt(first, EXCERPT);
            }
            told.0 += foreign;
        }
    }

    /// Records an invalid message, which was published at `at` or somewhat later.
    pub fn malformed(&self, way: &'static str, at: RedisTime, text: &[u8], reason: &str) {
        metrics::malformed();
        self.0.journal.add(&self.1, Heard::malformed(way, at, text, reason));
    }

    /// Records whether a job is paused, and logs a change.
    pub fn paused(&self, job: &JobName, is: bool) {
        let mut paused = self.0.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if is && paused.insert(job.clone()) {
            warn!(%job, "the job is paused; nothing is fetched until `samovar resume {job}`");
        } else if !is && paused.remove(job) {
            info!(%job, "the job is no longer paused: a person resumed it, or Redis lost the pause");
        } else {
            return;
        }
        metrics::paused(job, is);
    }

    /// Logs summaries until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(SUMMARY) => {}
                () = stop.cancelled() => {}
            }
            self.log_summary();
            metrics::upkeep();
        }
    }

    /// Publishes the events of this process's workers until `over`.
    pub async fn feed(self, redis: Connection, keys: Keys, over: CancellationToken) {
        self.0.feed.run(redis, &keys.watched_channel(), over).await;
    }

    /// Notes in Redis what this process's workers heard, until `over`.
    pub async fn journal(self, redis: Connection, keys: Keys, over: CancellationToken) {
        self.0.journal.run(&redis, &keys.heard(), &over).await;
    }

    fn log_summary(&self) {
        let tallies = std::mem::take(&mut *self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner));
        for (job, tally) in tallies {
            let counts: Vec<String> =
                tally.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            let count = |outcome: Outcome| tally.outcomes.get(outcome.as_str()).copied();
            info!(
                %job,
                warmed = count(Outcome::Warmed),
                unchanged = count(Outcome::Unchanged),
                busy = count(Outcome::Busy),
                fenced = count(Outcome::Fenced),
                deferred = count(Outcome::Deferred),
                gone = count(Outcome::Gone),
                unread = count(Outcome::Unread),
                failed = count(Outcome::Failed),
                unowned = count(Outcome::Unowned),
                slowest_ms = millis(tally.slowest),
                "{}",
                counts.join(", ")
            );
            if tally.dead > 0 {
                warn!(%job, given_up = tally.dead, "entries moved to the dead letters; see `samovar dead`");
            }
            if let Some(failure) = tally.failure {
                warn!(%job, "last failure: {failure}");
            }
        }
        let invalidations = self.0.invalidations.swap(0, Ordering::Relaxed);
        if invalidations > 0 {
            info!(invalidations, "invalidations handled");
        }
        let (foreign, first) = std::mem::take(&mut *self.0.foreign.lock().unwrap_or_else(PoisonError::into_inner));
        if foreign > 0 {
            warn!(foreign, first, "invalidations named keys or jobs that belong to no job of this worker");
        }
    }
}
