//! How the loops of a worker fare, for whoever asks over HTTP whether it is ready.
//!
//! Each loop shows a [`Sign`] as it goes round; who looks judges by this process's own clock, so that Redis need not be
//! there to be told that it is away.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A worker looks at its agendas at least every 5 s; twice late is too late.
const AGENDA: Duration = Duration::from_secs(15);
/// It beats every second, and a command may take 5 s.
const BEAT: Duration = Duration::from_secs(10);

/// What one loop shows of itself. Cheap to clone; clones are the same sign.
#[derive(Clone, Debug, Default)]
pub struct Sign(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    well: Option<Instant>,
    trouble: Option<String>,
}

impl Sign {
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
                Err(format!("stands still since {} s", well.elapsed().as_secs()))
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
    pub agenda: Sign,
    /// The pulse's: the fleet hears that this worker lives.
    pub beat: Sign,
    /// The queue's: tasks can be pulled.
    pub queue: Sign,
    /// The listener's: bare invalidations are heard.
    pub subscription: Sign,
    /// The inbox's: invalidations that cannot be lost are read.
    pub inbox: Sign,
    /// That of the jobs' keys: the Redis user may use them.
    pub keys: Sign,
}

impl Health {
    /// Whether the fleet knows of the worker, and invalidations reach it, whichever way they come.
    pub fn is_heard_and_hears(&self) -> bool {
        [&self.beat, &self.subscription, &self.inbox].iter().all(|sign| sign.judge(None).is_ok())
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
        .filter_map(|(name, sign, within)| sign.judge(within).err().map(|fault| format!("{name} {fault}")))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_well_once_it_went_round_and_until_it_fails_or_stands_still() {
        let sign = Sign::default();
        assert!(sign.judge(None).unwrap_err().contains("not begun"));
        sign.well();
        assert_eq!(sign.judge(Some(Duration::from_secs(60))), Ok(()));
        assert!(sign.judge(Some(Duration::ZERO)).unwrap_err().contains("stands still"));
        sign.clone().ill("no route");
        assert!(sign.judge(None).unwrap_err().contains("no route"));
        sign.well();
        assert_eq!(sign.judge(None), Ok(()));
    }
}
