//! Rate limits of the library: requests of several processes at random times, and how many may be admitted.

use crate::calls;
use crate::db::Db;
use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties::{BOUNDED, CONTRACT, LIMITED};
use crate::world::{EPOCH, Step, violated};

/// Limits, and their periods (µs).
const LIMITS: [(usize, i64); 4] = [(1, 1_500), (2, 10_000), (3, 1_000_000), (7, 20_333)];

#[derive(Debug, Default)]
struct Sender {
    db: Db,
    limit: usize,
    period: i64,
    /// The time that has passed (µs): it goes on when the clock is set back.
    passed: i64,
    /// When requests were admitted, by that time, and by the clock. One of the future counts as admitted now.
    admitted: Vec<i64>,
    stamps: Vec<i64>,
    is_set_back: bool,
}

/// Makes requests at random times. A process may not hear of an admission, which counts all the same.
///
/// # Errors
/// The property that does not hold.
pub fn walk(engine: &Engine, seed: u64, steps: usize) -> Step {
    let mut random = Random(seed);
    let (limit, period) = LIMITS[random.below(LIMITS.len())];
    let mut sender = Sender { limit, period, ..Sender::default() };
    engine.set_clock(&mut sender.db, EPOCH);
    for _ in 0..steps {
        let below = |random: &mut Random, limit: i64| i64::try_from(random.below(usize::try_from(limit).unwrap_or(1)));
        match random.below(12) {
            0 => sender.pass(engine, 1)?,
            1 => sender.pass(engine, period)?,
            2 => sender.pass(engine, below(&mut random, period).unwrap_or(0))?,
            3 => sender.pass(engine, below(&mut random, 3 * period / 2).unwrap_or(0))?,
            4 => {
                // To the very end of the oldest request's period, or just before.
                let ends = sender.stamps.first().map_or(0, |at| at + period - sender.db.now_us);
                sender.pass(engine, (ends - below(&mut random, 2).unwrap_or(0)).max(0))?;
            }
            5 if random.below(5) == 0 => sender.set_back(engine, below(&mut random, 2 * period).unwrap_or(0)),
            _ => sender.ask(engine)?,
        }
    }
    Ok(())
}

impl Sender {
    fn pass(&mut self, engine: &Engine, time: i64) -> Step {
        self.passed += time;
        let now = self.db.now_us + time;
        engine.set_clock_us(&mut self.db, now);
        if self.db.slot("log").is_some() {
            return Ok(());
        }
        if self.stamps.iter().any(|at| *at + self.period > now) {
            return violated(LIMITED, format!("the log ended at {now} with {:?}", self.stamps));
        }
        self.stamps.clear();
        Ok(())
    }

    fn set_back(&mut self, engine: &Engine, time: i64) {
        self.is_set_back = true;
        let now = self.db.now_us - time;
        engine.set_clock_us(&mut self.db, now);
    }

    fn ask(&mut self, engine: &Engine) -> Step {
        let (now, period) = (self.db.now_us, self.period);
        let reply = engine.run(&mut self.db, &calls::admit(self.limit, period));
        self.stamps.iter_mut().for_each(|at| *at = now.min(*at));
        self.stamps.retain(|at| *at + period > now);
        let admits = self.stamps.len() < self.limit;
        if admits {
            self.stamps.push(now);
            self.admitted.push(self.passed);
        }
        let (left, ends) = (self.limit - self.stamps.len(), |at: Option<&i64>| at.map_or(0, |at| at + period - now));
        let wait = if left == 0 { ends(self.stamps.first()) } else { 0 };
        let expected = [i64::from(admits), i64::try_from(left).unwrap_or(0), wait, ends(self.stamps.last())];
        let told = [0, 1, 2, 3].map(|n| reply.part(n).int());
        if told[0] != expected[0] {
            return violated(LIMITED, format!("{reply:?} with {:?} at {now}", self.stamps));
        }
        if told != expected {
            return violated(CONTRACT, format!("admit_within.lua: {told:?}, not {expected:?}"));
        }
        // Whatever the clock did: within any period of time.
        let within = self.admitted.iter().filter(|at| **at + period > self.passed).count();
        if within > self.limit {
            return violated(LIMITED, format!("{within} of {} within {period} µs: {:?}", self.limit, self.admitted));
        }
        let latest = self.db.now() + (period + 999) / 1_000 + 1;
        match self.db.slot("log").map(|slot| slot.expires) {
            Some(Some(at)) if at <= latest || self.is_set_back => Ok(()),
            found => violated(BOUNDED, format!("the log lasts until {found:?}, not {latest}")),
        }
    }
}
