//! Schedules of warmups, locks, tracked loads and marks of tags: random calls by two callers, and what must hold.

use crate::calls::{self, CLAIM, LEASE, SCHEDULES, TICKS, TTL};
use crate::db::Db;
use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties::{BOUNDED, CONTRACT, LOCKED, TICKS as ONE_TICK};
use crate::world::{EPOCH, Step, violated};

/// A tick that a caller expands.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Claim {
    job: usize,
    tick: i64,
    till: i64,
}

const JOBS: [&str; 2] = ["art", "zoo"];
const PERIOD: i64 = 10_000;

#[derive(Debug, Default)]
struct Fleet {
    db: Db,
    claims: [Option<Claim>; 2],
    /// The digest of each job's file.
    digests: [u32; 2],
    /// The warmups that were not expanded to their end: a changed file, or a tick whose time has come.
    owed: [bool; 2],
    /// The last lock's number.
    number: i64,
    is_set_back: bool,
    counted: i64,
}

/// Makes random calls.
///
/// # Errors
/// The property that does not hold.
pub fn walk(engine: &Engine, seed: u64, steps: usize) -> Step {
    let mut random = Random(seed);
    let mut fleet = Fleet::default();
    engine.set_clock(&mut fleet.db, EPOCH);
    for _ in 0..steps {
        let (caller, job) = (random.below(2), random.below(2));
        match random.below(20) {
            0 => fleet.set_clock(engine, CLAIM),
            1 => fleet.set_clock(engine, 1),
            2 => fleet.set_clock(engine, PERIOD),
            3 => fleet.set_clock(engine, 400),
            4 if random.below(4) == 0 => {
                fleet.is_set_back = true;
                fleet.set_clock(engine, -PERIOD);
            }
            5 => fleet.ensure(engine, job, random.below(2) == 0)?,
            6..=8 => fleet.tick(engine, caller)?,
            9 | 10 => fleet.end(engine, caller, random.below(5) > 0)?,
            11 => fleet.hold(engine, caller)?,
            12 => fleet.retry(engine, caller)?,
            13 | 14 => fleet.lock(engine, caller)?,
            15 => fleet.renew(engine, caller, random.below(2) == 0)?,
            16 => fleet.track(engine, random.below(3))?,
            17 => fleet.mark(engine, random.below(3), random.below(3) == 0)?,
            18 => fleet.claims[caller] = None,
            _ => fleet.count(engine, random.below(3))?,
        }
        fleet.holds()?;
    }
    fleet.rest(engine)
}

impl Fleet {
    fn set_clock(&mut self, engine: &Engine, by: i64) {
        let now = self.db.now();
        engine.set_clock(&mut self.db, now + by);
    }

    fn score(&self, job: usize) -> Option<i64> {
        #[expect(clippy::cast_possible_truncation, reason = "times in ms")]
        self.db.score(SCHEDULES, JOBS[job]).map(|score| score as i64)
    }

    fn next(&self) -> i64 {
        (self.db.now() / PERIOD + 1) * PERIOD
    }

    fn ensure(&mut self, engine: &Engine, job: usize, is_changed: bool) -> Step {
        let is_new = is_changed || self.db.field(calls::DIGESTS, JOBS[job]).is_none();
        self.digests[job] += u32::from(is_changed);
        let (before, next) = (self.score(job), self.next());
        let is_claimed = self.db.field(TICKS, JOBS[job]).is_some();
        let call = calls::ensure(JOBS[job], &self.digests[job].to_string(), &next.to_string());
        let begins = engine.run(&mut self.db, &call).int() == 1;
        if begins != is_new {
            return violated(ONE_TICK, format!("ensure.lua began a warmup: {begins}; the file is new: {is_new}"));
        }
        let now = self.db.now();
        let latest = if is_claimed { next.max(now + CLAIM) } else { next };
        let expected = if is_new { now } else { before.map_or(latest, |before| before.min(latest)) };
        if self.score(job) != Some(expected) || is_new && self.db.field(TICKS, JOBS[job]).is_some() {
            return violated(CONTRACT, format!("ensure.lua: due at {:?}, not {expected}", self.score(job)));
        }
        self.owed[job] |= is_new;
        if is_new {
            // Two changes of a file in one millisecond give two claims that cannot be told apart.
            self.set_clock(engine, 1);
        }
        Ok(())
    }

    fn tick(&mut self, engine: &Engine, caller: usize) -> Step {
        let now = self.db.now();
        let before = self.db.clone();
        let reply = engine.run(&mut self.db, &calls::tick());
        let (job, tick, till) = (reply.part(1).text(), reply.part(2).int(), reply.part(3).int());
        let due = (0..2).filter_map(|job| {
            #[expect(clippy::cast_possible_truncation, reason = "times in ms")]
            before.score(SCHEDULES, JOBS[job]).map(|at| (at as i64, job))
        });
        let first = due.min();
        let Some(job) = JOBS.iter().position(|of| *of == job) else {
            return match first {
                Some((at, _)) if at <= now || tick != at => violated(CONTRACT, format!("tick.lua: {reply:?} at {now}")),
                None if tick != -1 => violated(CONTRACT, format!("tick.lua: {reply:?} of nothing")),
                _ => Ok(()),
            };
        };
        let expected = before.field(TICKS, JOBS[job]).and_then(|tick| tick.parse().ok());
        let expected = expected.or(first.map(|(at, _)| at)).unwrap_or(0);
        let is_first = first.is_some_and(|(at, of)| at <= now && of == job);
        if !is_first || tick != expected || till != now + CLAIM || self.score(job) != Some(till) {
            return violated(CONTRACT, format!("tick.lua: {reply:?} at {now}, not tick {expected}"));
        }
        let claim = Claim { job, tick, till };
        let other = self.claims[1 - caller];
        if other == Some(claim) && !self.is_set_back {
            return violated(ONE_TICK, format!("two workers hold {claim:?}"));
        }
        self.claims[caller] = Some(claim);
        self.owed[job] = true;
        Ok(())
    }

    /// Returns true if a claim is that of the schedule.
    fn is_held(&self, claim: Claim) -> bool {
        let tick = self.db.field(TICKS, JOBS[claim.job]).and_then(|tick| tick.parse().ok());
        tick == Some(claim.tick) && self.score(claim.job) == Some(claim.till)
    }

    fn end(&mut self, engine: &Engine, caller: usize, is_last: bool) -> Step {
        let Some(claim) = self.claims[caller].take() else { return Ok(()) };
        let (held, before) = (self.is_held(claim), self.db.clone());
        let next = if is_last { self.next().to_string() } else { String::new() };
        let ended = engine.run(&mut self.db, &calls::end_tick(JOBS[claim.job], claim.tick, claim.till, &next)).int();
        if (ended == 1) != held || !held && self.db != before {
            return violated(ONE_TICK, format!("{claim:?} ended: {ended}, held: {held}"));
        }
        if held {
            self.owed[claim.job] = false;
            let expected = next.parse().ok();
            if self.score(claim.job) != expected || self.db.field(TICKS, JOBS[claim.job]).is_some() {
                return violated(
                    CONTRACT,
                    format!("end_tick.lua: due at {:?}, not {expected:?}", self.score(claim.job)),
                );
            }
        }
        Ok(())
    }

    fn hold(&mut self, engine: &Engine, caller: usize) -> Step {
        let Some(claim) = self.claims[caller] else { return Ok(()) };
        let held = self.is_held(claim);
        let call = calls::hold_tick(JOBS[claim.job], claim.tick, claim.till);
        let till = engine.run(&mut self.db, &call).int();
        let expected = if held { claim.till.max(self.db.now() + CLAIM) } else { -1 };
        if till != expected || held && self.score(claim.job) != Some(till) {
            return violated(CONTRACT, format!("hold_tick.lua: {till}, not {expected}"));
        }
        self.claims[caller] = held.then_some(Claim { till, ..claim });
        Ok(())
    }

    fn retry(&mut self, engine: &Engine, caller: usize) -> Step {
        let Some(claim) = self.claims[caller].take() else { return Ok(()) };
        let held = self.is_held(claim);
        let call = calls::retry_tick(JOBS[claim.job], claim.tick, claim.till);
        let left = engine.run(&mut self.db, &call).int() == 1;
        let at = self.db.now() + calls::RETRY;
        if left != held
            || held && (self.score(claim.job) != Some(at) || self.db.field(TICKS, JOBS[claim.job]).is_none())
        {
            return violated(CONTRACT, format!("retry_tick.lua: due at {:?}, not {at}", self.score(claim.job)));
        }
        Ok(())
    }

    fn lock(&mut self, engine: &Engine, caller: usize) -> Step {
        let token = format!("t{caller}");
        let holder = self.db.text("lock").and_then(|text| text.split(' ').next().map(str::to_owned));
        let reply = engine.run(&mut self.db, &calls::lock(&token));
        let number: i64 = reply.part(0).int();
        let is_free = holder.as_ref().is_none_or(|holder| *holder == token);
        if reply.part(0).text().is_empty() {
            // A clock that was set back has made it longer, which a caller shortens.
            return match is_free || !(0..=2 * LEASE).contains(&reply.part(1).int()) {
                true => violated(LOCKED, format!("{token} did not get the lock of {holder:?}: {reply:?}")),
                false => Ok(()),
            };
        }
        let right = if holder.is_some() { number == self.number } else { number > self.number };
        if !is_free || !right {
            return violated(LOCKED, format!("{token} got number {number} after {}, from {holder:?}", self.number));
        }
        self.number = number;
        Ok(())
    }

    fn renew(&mut self, engine: &Engine, caller: usize, releases: bool) -> Step {
        let token = format!("t{caller}");
        let held = self.db.text("lock").is_some_and(|text| text.starts_with(&format!("{token} ")));
        let time = if releases { 0 } else { LEASE };
        let before = self.db.clone();
        let reply = engine.run(&mut self.db, &calls::renew_lock(&token, time)).int();
        let ends = self.db.slot("lock").map(|slot| slot.expires);
        let right = match (held, releases) {
            (false, _) => self.db == before,
            (true, true) => ends.is_none(),
            (true, false) => ends == Some(Some(self.db.now() + LEASE)),
        };
        if (reply == 1) != held || !right {
            return violated(LOCKED, format!("renew_lock.lua: {reply} of {token}, which holds it: {held}"));
        }
        Ok(())
    }

    fn track(&mut self, engine: &Engine, how: usize) -> Step {
        if how == 0 {
            engine.command(&mut self.db, &["ZADD", "loaded", "-1", "\0"]);
        }
        let is_there = self.db.slot("loaded").is_some();
        let (entry, life) = (["a", "b", "c"][how], TTL * (1 + how as i64));
        let before = self.db.score("loaded", entry);
        let tracked = engine.run(&mut self.db, &calls::track(entry, life)).int() == 1;
        let now = self.db.now();
        #[expect(clippy::cast_precision_loss, reason = "times in ms")]
        let until = (now + life) as f64;
        let expected = if is_there { Some(before.map_or(until, |before| before.max(until))) } else { None };
        if tracked != is_there || self.db.score("loaded", entry) != expected {
            return violated(CONTRACT, format!("track.lua: {entry} until {:?}", self.db.score("loaded", entry)));
        }
        #[expect(clippy::cast_precision_loss, reason = "times in ms")]
        let dead = |at: f64| (0.0..=now as f64).contains(&at);
        if is_there && self.db.members("loaded").iter().any(|(score, _)| dead(score.0)) {
            return violated(BOUNDED, "track.lua kept what has expired");
        }
        Ok(())
    }

    fn mark(&mut self, engine: &Engine, how: usize, is_made: bool) -> Step {
        if is_made {
            engine.command(&mut self.db, &["ZADD", calls::TAG, "-5", ""]);
        }
        let there = self.db.score(calls::TAG, "\0");
        let is_index = self.db.slot(calls::TAG).is_some();
        let (before, mark) = [(0, -7), (-7, -1), (-9, -1)][how];
        let marked = engine.run(&mut self.db, &calls::mark(before, mark)).int() == 1;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let (before, mark) = (before as f64, mark as f64);
        let expected = is_index && (before == 0.0 || there == Some(before));
        let now = self.db.score(calls::TAG, "\0");
        if marked != expected || now != if expected { Some(mark) } else { there } {
            return violated(CONTRACT, format!("mark.lua: {marked}, {now:?} after {there:?}"));
        }
        Ok(())
    }

    fn count(&mut self, engine: &Engine, how: usize) -> Step {
        let ttl = ["", "20000", "20000"][how];
        let lives = self.db.slot("n").map(|slot| slot.expires);
        if lives.is_none() {
            self.counted = 0;
        }
        let reply = engine.run(&mut self.db, &calls::increment("n", 2, ttl));
        self.counted += 2;
        let now = self.db.slot("n").map(|slot| slot.expires);
        let expected = lives.unwrap_or(ttl.parse::<i64>().ok().map(|ttl| self.db.now() + ttl));
        if reply.text() != self.counted.to_string() || now != Some(expected) {
            return violated(crate::properties::COUNTER, format!("{reply:?}, not {}; until {now:?}", self.counted));
        }
        Ok(())
    }

    fn holds(&self) -> Step {
        for (job, name) in JOBS.into_iter().enumerate() {
            if self.owed[job] && self.score(job).is_none() {
                return violated(ONE_TICK, format!("the warmup of {name} is lost"));
            }
        }
        let ends = self.db.slot("lock").map(|slot| slot.expires);
        let latest = self.db.now() + LEASE;
        match ends {
            Some(None) => violated(BOUNDED, "a lock never ends"),
            Some(Some(at)) if at > latest && !self.is_set_back => violated(BOUNDED, "a lock lasts too long"),
            _ => Ok(()),
        }
    }

    /// A worker that lives on expands what is owed.
    fn rest(&mut self, engine: &Engine) -> Step {
        for _ in 0..2 {
            self.set_clock(engine, 2 * PERIOD);
            // Each worker looks after the schedules.
            (0..2).try_for_each(|job| self.ensure(engine, job, false))?;
            self.set_clock(engine, 2 * PERIOD);
            for _ in 0..2 {
                self.tick(engine, 0)?;
                self.end(engine, 0, true)?;
            }
        }
        match self.owed {
            [false, false] => Ok(()),
            owed => violated(ONE_TICK, format!("warmups are owed still: {owed:?}")),
        }
    }
}
