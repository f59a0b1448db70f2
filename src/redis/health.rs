//! How the loops of a worker fare, for whoever asks over HTTP whether it is ready.
//!
//! Each loop shows a [`LoopHealth`] as it goes round; who looks judges by this process's own clock, so that Redis need not be
//! there to be told that it is away.
//!
//! A loop that works for several jobs keeps what fails in one of them in [`Troubles`]: it is told, and no other job waits for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::RedisResult;
use tracing::{info, warn};

use crate::entry::duration;
use crate::redis::{WrongTypes, is_of_keys};

/// A worker looks at its agendas at least every 5 s; twice late is too late.
const AGENDA: Duration = Duration::from_secs(15);
/// It beats every second, and a command may take 5 s.
const BEAT: Duration = Duration::from_secs(10);

/// The longest time for which something that failed is left alone.
const LONGEST: Duration = Duration::from_secs(5);
/// How long after a trouble was told it is told again, at first and at most; twice as long each time.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// So long after it failed last something counts as well: a step that succeeds between two that fail is no recovery.
const SETTLED: Duration = Duration::from_secs(3);
/// Longest cause kept, in characters.
const CAUSE: usize = 300;

/// Failures of single jobs, upstreams or steps, each with a backoff of its own, for all loops of a worker. Cheap to clone; clones
/// share what they know.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    /// The loop that this clone speaks for.
    of: &'static str,
    all: Arc<Mutex<BTreeMap<(&'static str, String), Trouble>>>,
}

/// One thing that does not work.
#[derive(Debug)]
struct Trouble {
    cause: String,
    since: Instant,
    failed: Instant,
    tries: u32,
    /// When the log was told last, and after how long it is told again.
    told: Instant,
    again: Duration,
    /// It has worked since it failed last.
    works: bool,
    /// It works again, and has for long enough.
    is_over: bool,
    /// The log was told, and not yet that it is over.
    is_told: bool,
}

impl Troubles {
    /// Returns the same troubles, for a loop that people know by this name.
    #[must_use]
    pub fn of(&self, name: &'static str) -> Self {
        Self { of: name, all: Arc::clone(&self.all) }
    }

    /// Notes that the loop works for this job, upstream or step, and tells so if it did not.
    pub fn well(&self, subject: &str) {
        let mut all = self.all();
        if !all.is_empty()
            && let Some(trouble) = all.get_mut(&(self.of, subject.to_owned()))
        {
            trouble.works = true;
        }
    }

    /// Notes that the loop fails for this job, upstream or step, and tells so: once for each cause, and now and then while it
    /// lasts. Returns for how long to leave it alone.
    pub fn ill(&self, subject: &str, cause: impl fmt::Display) -> Duration {
        let cause: String = cause.to_string().chars().take(CAUSE).collect();
        let mut all = self.all();
        let now = Instant::now();
        let trouble = all.entry((self.of, subject.to_owned())).or_insert_with(|| Trouble {
            cause: String::new(),
            since: now,
            failed: now,
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
                "{} fails ({subject}), all else goes on: {cause}", self.of
            );
            trouble.again = if is_new { AGAIN.0 } else { (trouble.again * 2).min(AGAIN.1) };
            (trouble.cause, trouble.told, trouble.is_told) = (cause, now, true);
        }
        let ceiling = LONGEST.min(Duration::from_millis(100) * 2_u32.saturating_pow(trouble.tries.min(10)));
        trouble.tries = trouble.tries.saturating_add(1);
        ceiling.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Lets what fails for this job, upstream or step only hinder no other: it is noted, and `None` returned.
    ///
    /// # Errors
    /// The same, where Redis fails as a whole.
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

    /// Returns how many jobs, upstreams or steps the loop fails for.
    pub fn count(&self) -> usize {
        self.all().iter().filter(|((of, _), trouble)| *of == self.of && !trouble.is_over).count()
    }

    /// Returns what does not work, in all loops, a sentence each.
    pub fn reasons(&self) -> Vec<String> {
        let all = self.all();
        let all = all.iter().filter(|(_, trouble)| !trouble.is_over);
        // Anybody may ask for it, so what an upstream answered is left to the log.
        let bare = |cause: &str| cause.split("; it begins: ").next().unwrap_or_default().to_owned();
        all.map(|((of, subject), trouble)| format!("{of} fails ({subject}): {}", bare(&trouble.cause))).collect()
    }

    /// Returns all, after those are marked, and told, that have come to an end: they worked and have not failed for a while, or
    /// nobody tried for long.
    fn all(&self) -> MutexGuard<'_, BTreeMap<(&'static str, String), Trouble>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for ((of, subject), trouble) in &mut *all {
            let quiet = if trouble.works { SETTLED } else { AGAIN.1 };
            if !trouble.is_over && trouble.failed.elapsed() >= quiet {
                trouble.is_over = true;
                if std::mem::take(&mut trouble.is_told) {
                    info!("{of} works again ({subject}) after {}", duration::rough(trouble.since.elapsed()));
                }
            }
        }
        // Kept for a while, so that what comes and goes is not told each time.
        all.retain(|_, trouble| !trouble.is_over || trouble.told.elapsed() < trouble.again);
        all
    }
}

/// What one loop shows of itself. Cheap to clone; clones are the same loop_health.
#[derive(Clone, Debug, Default)]
pub struct LoopHealth(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    well: Option<Instant>,
    trouble: Option<String>,
}

impl LoopHealth {
    /// It went round, just now.
    pub fn well(&self) {
        let mut shown = self.shown();
        shown.well = Some(Instant::now());
        shown.trouble = None;
    }

    /// It could not, for this reason.
    pub fn ill(&self, reason: impl fmt::Display) {
        self.shown().trouble = Some(reason.to_string());
    }

    /// Whether it went round last time, and within this time, if one is given.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence about the loop.
    pub fn judge(&self, within: Option<Duration>) -> Result<(), String> {
        let shown = self.shown();
        if let Some(trouble) = &shown.trouble {
            return Err(format!("waits for Redis: {trouble}"));
        }
        match (shown.well, within) {
            (None, _) => Err("has not begun yet".to_owned()),
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

/// The signs of one worker.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// The dispatcher's: the agenda moves.
    pub agenda: LoopHealth,
    /// The pulse's: the fleet hears that this worker lives.
    pub beat: LoopHealth,
    /// The queue's: tasks can be pulled.
    pub queue: LoopHealth,
    /// The listener's: bare invalidations are heard.
    pub subscription: LoopHealth,
    /// The inbox's: invalidations that cannot be lost are read.
    pub inbox: LoopHealth,
    /// That of the jobs' keys: the Redis user may use them.
    pub keys: LoopHealth,
    /// What fails in single jobs, and hinders no other.
    pub troubles: Troubles,
    /// Keys of another type than Samovar's, in their places.
    pub wrong_types: WrongTypes,
}

impl Health {
    /// Whether the fleet knows of the worker, and invalidations reach it, whichever way they come.
    pub fn is_heard_and_hears(&self) -> bool {
        [&self.beat, &self.subscription, &self.inbox].iter().all(|loop_health| loop_health.judge(None).is_ok())
    }

    /// What keeps the worker from being ready, a sentence each; empty if it is.
    pub fn faults(&self) -> Vec<String> {
        [
            ("the dispatcher", &self.agenda, Some(AGENDA)),
            ("the worker's beat", &self.beat, Some(BEAT)),
            ("the queue", &self.queue, None),
            ("the subscription", &self.subscription, None),
            ("the inbox", &self.inbox, None),
            ("whoever uses the jobs' keys", &self.keys, None),
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

    /// What does not work while the worker serves its purpose, a sentence each: single jobs or upstreams, single steps.
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
    fn a_loop_is_well_from_its_first_round_until_it_fails_or_stalls() {
        let loop_health = LoopHealth::default();
        assert!(loop_health.judge(None).unwrap_err().contains("not begun"));
        loop_health.well();
        assert_eq!(loop_health.judge(Some(Duration::from_secs(60))), Ok(()));
        assert!(loop_health.judge(Some(Duration::ZERO)).unwrap_err().contains("has not run for"));
        loop_health.clone().ill("no route");
        assert!(loop_health.judge(None).unwrap_err().contains("no route"));
        loop_health.well();
        assert_eq!(loop_health.judge(None), Ok(()));
    }
}
