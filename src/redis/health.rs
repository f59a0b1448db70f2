//! The health of a worker's loops, for readiness checks over HTTP.
//!
//! Each loop updates its [`LoopHealth`] in every round. Readers judge it by this process's own clock, so an unreachable
//! Redis does not block the check.
//!
//! A loop that serves several jobs records the failures of single jobs in [`Troubles`]: they are logged, and the other
//! jobs continue.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::RedisResult;
use tracing::{info, warn};

use crate::entry::{duration, excerpt};
use crate::redis::wrong_types::{WRONG_TYPE, is_wrong_type};
use crate::redis::{WrongTypes, is_of_keys};

/// A worker polls its agendas at least every 5 s. Three missed polls are a fault.
const AGENDA: Duration = Duration::from_secs(15);
/// A worker sends a heartbeat every second, and a command may take 5 s.
const BEAT: Duration = Duration::from_secs(10);

/// The longest backoff of one subject.
const LONGEST: Duration = Duration::from_secs(5);
/// The first and the longest interval between two log lines about the same failure; it doubles each time.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// A subject counts as recovered this long after its last failure: one success between two failures is no recovery.
const SETTLED: Duration = Duration::from_secs(3);
/// A failure that was not repeated for this long counts no more: nothing may need the same work again, or another
/// worker does it. Work that is tried more seldom says so: see [`Troubles::every`].
const NOT_REPEATED: Duration = Duration::from_secs(30);
/// The longest cause that is kept, in characters.
const CAUSE: usize = 300;

/// The failures of single jobs, upstreams or steps, each with its own backoff, for all loops of a worker. Cheap to
/// clone; clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    /// The loop that this clone reports for.
    of: &'static str,
    /// The interval at which that loop tries again what failed; zero if it is shorter than [`NOT_REPEATED`].
    interval: Duration,
    notices: Arc<Mutex<BTreeMap<(&'static str, String), String>>>,
    all: Arc<Mutex<BTreeMap<(&'static str, String), Trouble>>>,
}

/// One failing job, upstream or step.
#[derive(Debug)]
struct Trouble {
    cause: String,
    since: Instant,
    failed: Instant,
    /// The time without another failure after which it counts no more.
    quiet: Duration,
    tries: u32,
    /// When the failure was last logged, and after how long it is logged again.
    told: Instant,
    again: Duration,
    /// It succeeded since the last failure.
    works: bool,
    /// It has recovered.
    is_over: bool,
    /// The failure was logged, and its recovery was not.
    is_told: bool,
}

impl Troubles {
    /// Returns a clone that reports for the loop of this name.
    #[must_use]
    pub fn of(&self, name: &'static str) -> Self {
        let (notices, all) = (Arc::clone(&self.notices), Arc::clone(&self.all));
        Self { of: name, interval: Duration::ZERO, notices, all }
    }

    /// Returns a clone for work that is tried at this interval: a failure counts until the next try is overdue.
    #[must_use]
    pub fn every(&self, interval: Duration) -> Self {
        Self { interval, ..self.clone() }
    }

    /// Records a success for this job, upstream or step. The recovery is logged if the failure was.
    pub fn well(&self, subject: &str) {
        let mut all = self.all();
        if !all.is_empty()
            && let Some(trouble) = all.get_mut(&(self.of, subject.to_owned()))
        {
            trouble.works = true;
        }
    }

    /// Records a failure for this job, upstream or step. It is logged once for each cause, and at growing intervals
    /// while it lasts. Returns the backoff.
    pub fn ill(&self, subject: &str, cause: impl fmt::Display) -> Duration {
        let cause: String = match cause.to_string() {
            text if is_wrong_type(&text) => WRONG_TYPE.to_owned(),
            text => excerpt(&text, CAUSE),
        };
        let mut all = self.all();
        let now = Instant::now();
        let trouble = all.entry((self.of, subject.to_owned())).or_insert_with(|| Trouble {
            cause: String::new(),
            since: now,
            failed: now,
            quiet: self.interval + NOT_REPEATED,
            tries: 0,
            told: now,
            again: AGAIN.0,
            works: false,
            is_over: true,
            is_told: false,
        });
        if trouble.is_over {
            (trouble.is_over, trouble.since, trouble.tries) = (false, now, 0);
        }
        (trouble.failed, trouble.works) = (now, false);
        let is_new = trouble.cause != cause;
        if is_new || trouble.told.elapsed() >= trouble.again {
            warn!(
                for_seconds = trouble.since.elapsed().as_secs(),
                "{} fails ({subject}); everything else continues: {cause}", self.of
            );
            trouble.again = if is_new { AGAIN.0 } else { (trouble.again * 2).min(AGAIN.1) };
            (trouble.cause, trouble.told, trouble.is_told) = (cause, now, true);
        }
        let ceiling = LONGEST.min(Duration::from_millis(100) * 2_u32.saturating_pow(trouble.tries.min(10)));
        trouble.tries = trouble.tries.saturating_add(1);
        ceiling.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Records a state of this job that people must know, or its end. Whoever caused the state logs it.
    pub fn notice(&self, job: &str, state: Option<String>) {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let subject = (self.of, job.to_owned());
        match state {
            Some(state) => notices.insert(subject, state),
            None => notices.remove(&subject),
        };
    }

    /// Returns the state of this job that this loop recorded.
    pub fn notice_of(&self, job: &str) -> Option<String> {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.get(&(self.of, job.to_owned())).cloned()
    }

    /// Records a failure that concerns only this job, upstream or step, and returns `None`, so that the others
    /// continue.
    ///
    /// # Errors
    /// Fails if Redis as a whole fails.
    pub fn alone<T>(&self, subject: &str, done: RedisResult<T>) -> RedisResult<Option<T>> {
        match done {
            Err(e) if is_of_keys(&e) => {
                self.ill(subject, e);
                Ok(None)
            }
            Err(e) => Err(e),
            Ok(done) => {
                self.well(subject);
                Ok(Some(done))
            }
        }
    }

    /// Returns the number of jobs, upstreams or steps that fail in this loop.
    pub fn count(&self) -> usize {
        self.all().iter().filter(|((of, _), trouble)| *of == self.of && !trouble.is_over).count()
    }

    /// Returns one sentence for each failure, of all loops, and for each notice.
    pub fn reasons(&self) -> Vec<String> {
        let all = self.all();
        let all = all.iter().filter(|(_, trouble)| !trouble.is_over);
        // This is public, so the upstream's answer stays in the log.
        let bare = |cause: &str| cause.split("; it begins: ").next().unwrap_or_default().to_owned();
        let failures = all.map(|((of, subject), trouble)| format!("{of} fails ({subject}): {}", bare(&trouble.cause)));
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        failures.chain(notices.values().cloned()).collect()
    }

    /// Marks and logs the failures that ended, then returns all. A failure has ended when the subject succeeded and did
    /// not fail again for a while, or was not tried again for a longer while.
    fn all(&self) -> MutexGuard<'_, BTreeMap<(&'static str, String), Trouble>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for ((of, subject), trouble) in &mut *all {
            let quiet = if trouble.works { SETTLED } else { trouble.quiet };
            if !trouble.is_over && trouble.failed.elapsed() >= quiet {
                trouble.is_over = true;
                let told = std::mem::take(&mut trouble.is_told);
                if told && trouble.works {
                    info!("{of} recovered ({subject}) after {}", duration::rough(trouble.since.elapsed()));
                } else if told {
                    let quiet = duration::rough(quiet);
                    info!("{of} was not tried again ({subject}) for {quiet}; its failure counts no more");
                }
            }
        }
        // Kept for a while, so that an intermittent failure is not logged each time.
        all.retain(|_, trouble| !trouble.is_over || trouble.told.elapsed() < trouble.again);
        all
    }
}

/// The health of one loop. Cheap to clone; clones share their state.
#[derive(Clone, Debug, Default)]
pub struct LoopHealth(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    well: Option<Instant>,
    trouble: Option<String>,
}

impl LoopHealth {
    /// Records a completed round.
    pub fn well(&self) {
        let mut shown = self.shown();
        shown.well = Some(Instant::now());
        shown.trouble = None;
    }

    /// Records a failed round and its reason.
    pub fn ill(&self, reason: impl fmt::Display) {
        self.shown().trouble = Some(reason.to_string());
    }

    /// Checks that the last round succeeded and, if `within` is given, that it is no older.
    ///
    /// # Errors
    /// Returns the fault as the end of a sentence about the loop.
    pub fn judge(&self, within: Option<Duration>) -> Result<(), String> {
        let shown = self.shown();
        if let Some(trouble) = &shown.trouble {
            return Err(format!("waits for Redis: {trouble}"));
        }
        match (shown.well, within) {
            (None, _) => Err("has not started yet".to_owned()),
            (Some(well), Some(within)) if well.elapsed() > within => {
                Err(format!("has not run for {}", duration::seconds(well.elapsed())))
            }
            (Some(_), _) => Ok(()),
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The health of all loops of one worker.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// The dispatcher: due entries reach the queue.
    pub agenda: LoopHealth,
    /// The heartbeat: the fleet knows that this worker lives.
    pub beat: LoopHealth,
    /// The queue: tasks can be pulled.
    pub queue: LoopHealth,
    /// The subscription: published invalidations are received.
    pub subscription: LoopHealth,
    /// The inbox: invalidations in the stream are read.
    pub inbox: LoopHealth,
    /// The jobs' keys: the Redis user has the rights to use them.
    pub keys: LoopHealth,
    /// Failures of single jobs, which do not affect other jobs.
    pub troubles: Troubles,
    /// Foreign keys of another type under Samovar's names.
    pub wrong_types: WrongTypes,
}

impl Health {
    /// Returns `true` if the fleet knows of the worker, and both the channel's and the inbox's invalidations reach it.
    pub fn is_heard_and_hears(&self) -> bool {
        [&self.beat, &self.subscription, &self.inbox].iter().all(|loop_health| loop_health.judge(None).is_ok())
    }

    /// Returns one sentence for each fault that keeps the worker from being ready.
    pub fn faults(&self) -> Vec<String> {
        [
            ("the dispatcher", &self.agenda, Some(AGENDA)),
            ("the heartbeat", &self.beat, Some(BEAT)),
            ("the queue", &self.queue, None),
            ("the subscription", &self.subscription, None),
            ("the inbox", &self.inbox, None),
            ("access to the jobs' keys", &self.keys, None),
        ]
        .into_iter()
        .filter_map(|(name, loop_health, within)| {
            loop_health.judge(within).err().map(|fault| format!("{name} {fault}"))
        })
        .chain(
            self.wrong_types.found().into_iter().filter(|wrong| wrong.is_needed_by_all).map(|wrong| wrong.to_string()),
        )
        .collect()
    }

    /// Returns one sentence for each failure of a single job, upstream or step that does not affect readiness.
    pub fn troubles(&self) -> Vec<String> {
        let wrong = self.wrong_types.found().into_iter().filter(|wrong| !wrong.is_needed_by_all);
        wrong.map(|wrong| wrong.to_string()).chain(self.troubles.reasons()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_of_one_job_is_its_own_and_ends() {
        let all = Troubles::default();
        let (cron, sample) = (all.of("cron"), all.of("the sample"));
        let waits: Vec<Duration> = (0..20).map(|_| cron.ill("art", "WRONGTYPE")).collect();
        assert!(waits[0] <= Duration::from_millis(100) && waits[19] >= LONGEST / 2, "{waits:?}");
        assert!(cron.ill("story", "WRONGTYPE") <= Duration::from_millis(100), "another job's backoff is its own");
        sample.ill(
            "art",
            "WRONGTYPE: Operation against a key holding the wrong kind of value script: 2c9, on @user_script:3.",
        );
        let said = sample.reasons().join(" ");
        assert!(said.contains("delete or rename it") && !said.contains("script"), "{said}");
        sample.ill("art", "x".repeat(10_000));
        assert_eq!((cron.count(), sample.count()), (2, 1));
        assert!(all.reasons().iter().all(|reason| reason.len() < 400), "{:?}", all.reasons());
        cron.ill("art", "NOPERM");
        assert_eq!(all.reasons()[0], "cron fails (art): NOPERM");
        cron.well("art");
        cron.well("nothing");
        assert_eq!(cron.count(), 2, "one step that succeeds is no recovery");
        cron.all().values_mut().for_each(|trouble| trouble.failed = Instant::now().checked_sub(SETTLED).unwrap());
        assert_eq!((cron.count(), all.reasons().len()), (1, 2));
    }

    #[test]
    fn a_failure_that_is_not_repeated_counts_no_more() {
        let all = Troubles::default();
        let finisher = all.of("recording the results of fetches");
        let fail_before = |time: Duration| {
            finisher.ill("art", "WRONGTYPE");
            let mut all = finisher.all.lock().unwrap();
            all.values_mut().for_each(|trouble| trouble.failed = Instant::now().checked_sub(time).unwrap());
        };
        fail_before(NOT_REPEATED / 2);
        assert_eq!(all.reasons(), ["recording the results of fetches fails (art): WRONGTYPE"]);
        fail_before(NOT_REPEATED);
        assert!(all.reasons().is_empty(), "nothing has ended since, and the cause may be gone: {:?}", all.reasons());
        fail_before(Duration::ZERO);
        assert_eq!(all.reasons().len(), 1, "it is not gone");
        let sweeper = all.of("the sweeper").every(Duration::from_secs(600));
        sweeper.ill("art", "WRONGTYPE");
        fail_before(NOT_REPEATED);
        assert_eq!(all.reasons(), ["the sweeper fails (art): WRONGTYPE"], "it is tried again later");
    }

    #[test]
    fn a_loop_is_well_from_its_first_round_until_it_fails_or_stalls() {
        let loop_health = LoopHealth::default();
        assert!(loop_health.judge(None).unwrap_err().contains("not started"));
        loop_health.well();
        assert_eq!(loop_health.judge(Some(Duration::from_secs(60))), Ok(()));
        assert!(loop_health.judge(Some(Duration::ZERO)).unwrap_err().contains("has not run for"));
        loop_health.clone().ill("no route");
        assert!(loop_health.judge(None).unwrap_err().contains("no route"));
        loop_health.well();
        assert_eq!(loop_health.judge(None), Ok(()));
    }
}
