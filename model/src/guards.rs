//! The guard of a job: random removals, recoveries and decisions, and what its scripts must make of them.

use std::collections::BTreeMap;

use crate::calls::{self, AGENDA, Call, GUARD, HOLDS, MINUTE};
use crate::commands::Reply;
use crate::db::{Db, Value};
use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties::{BOUNDED, CONTRACT, HELD};
use crate::world::{EPOCH, Step, violated};

const ENTRIES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// So many removals are enough, and in a small job.
const ENOUGH: (u32, u32) = (4, 2);

/// A guard as it must be.
#[derive(Clone, Debug, Default, PartialEq)]
struct Guard {
    since: i64,
    until: i64,
    accepted: bool,
    gone: i64,
    of: i64,
    held: BTreeMap<&'static str, i64>,
    restored: bool,
    last: i64,
    /// Removals, by the minute: at most the last two in which some were.
    removed: BTreeMap<i64, i64>,
    /// The most entries on the agenda, by the minute.
    most: BTreeMap<i64, i64>,
}

#[derive(Debug, Default)]
struct Job {
    db: Db,
    guard: Guard,
    /// The marks of the entries that are held back.
    marks: BTreeMap<&'static str, i64>,
    is_set_back: bool,
}

/// Makes random calls.
///
/// # Errors
/// The property that does not hold.
pub fn walk(engine: &Engine, seed: u64, steps: usize) -> Step {
    let mut random = Random(seed);
    let mut job = Job::default();
    engine.set_clock(&mut job.db, EPOCH);
    for _ in 0..steps {
        let entry = ENTRIES[random.below(ENTRIES.len())];
        match random.below(20) {
            0..=8 => job.remove(engine, entry)?,
            9 => job.recover(engine, entry, false)?,
            10 => job.recover(engine, entry, true)?,
            11 if random.below(3) == 0 => job.decide(engine, "accept")?,
            12 => {
                let times = if random.below(4) == 0 { 26 } else { 1 };
                (0..times).try_for_each(|_| job.decide(engine, "hold"))?;
            }
            13 if random.below(8) == 0 => job.decide(engine, "forget")?,
            14 => {
                let size = [0, 3, 7, 20, 40][random.below(5)];
                engine.command(&mut job.db, &["DEL", AGENDA]);
                for n in 0..size {
                    engine.command(&mut job.db, &["ZADD", AGENDA, "1", &n.to_string()]);
                }
            }
            15 if random.below(6) == 0 => {
                job.is_set_back = true;
                job.pass(engine, -MINUTE / 2);
            }
            15 => job.pass(engine, HOLDS.1 - HOLDS.0 / 2),
            16 => job.pass(engine, HOLDS.0),
            17 => job.pass(engine, MINUTE),
            // By a clock that ran ahead.
            18 if random.below(9) == 0 => _ = job.marks.insert(entry, job.db.now() + HOLDS.1 + 1),
            _ => job.pass(engine, i64::try_from(random.below(20_000)).unwrap_or(0)),
        }
    }
    Ok(())
}

impl Job {
    fn pass(&mut self, engine: &Engine, time: i64) {
        let now = self.db.now();
        engine.set_clock(&mut self.db, now + time);
        if self.db.slot(GUARD).is_none() {
            self.guard = Guard::default();
        }
    }

    fn is_active(&self) -> bool {
        (self.guard.since..self.guard.until).contains(&self.db.now())
    }

    /// Removals within the minute that ends now: all of this one, and as much of the one before as lies in it.
    fn within_a_minute(&self, now: i64) -> i64 {
        let (minute, past) = (now.div_euclid(MINUTE), now.rem_euclid(MINUTE));
        let count = |minute: i64| self.guard.removed.get(&minute).copied().unwrap_or(0);
        (count(minute - 1) * (MINUTE - past) + MINUTE - 1).div_euclid(MINUTE) + count(minute) + 1
    }

    fn remove(&mut self, engine: &Engine, entry: &'static str) -> Step {
        let now = self.db.now();
        let noted = self.marks.get(entry).copied().unwrap_or(0);
        let entries = i64::try_from(self.db.members(AGENDA).len()).unwrap_or(0);
        let expected = self.removal(entry, noted, now, entries);
        let guard = &self.guard;
        let held = i64::try_from(guard.held.len()).unwrap_or(0);
        let told = match expected {
            0 => vec![0],
            how => vec![how, now, guard.since, guard.until, guard.gone, guard.of, held],
        };
        self.marks.remove(entry);
        if expected > 0 {
            self.marks.insert(entry, self.guard.until);
        }
        self.runs(engine, &calls::guard_removal(entry, noted, ENOUGH), &told)
    }

    /// Decides as the script must: 0 for a removal, 1 where it is held back, 2 where it trips the guard.
    fn removal(&mut self, entry: &'static str, mark: i64, now: i64, entries: i64) -> i64 {
        let is_active = self.is_active();
        let mark = if mark > now + HOLDS.1 { 0 } else { mark };
        let (has_begun, is_over) = (self.guard.since <= now && self.guard.since > 0, mark > 0 && mark <= now);
        if is_active && (self.guard.accepted || is_over && self.guard.since >= mark) {
            self.forget(entry, now);
            return 0;
        }
        if is_active {
            let guard = &mut self.guard;
            if guard.held.insert(entry, now).is_none() && guard.held.len() == 1 && !guard.restored {
                guard.until = guard.until.max((now + HOLDS.0).min(guard.since + HOLDS.1));
            }
            guard.last = now;
            return 1;
        }
        if is_over {
            return 0;
        }
        let mark = if has_begun { 0 } else { mark };
        let minute = now.div_euclid(MINUTE);
        // The clock was set back.
        if self.guard.most.keys().any(|of| *of > minute) {
            self.guard.removed.clear();
            self.guard.most.clear();
        }
        let gone = self.within_a_minute(now);
        // Of three minutes or more, and of the future, nothing is known.
        self.guard.removed.retain(|of, _| *of == minute || *of == minute - 1);
        self.guard.most.retain(|of, _| *of == minute || *of == minute - 1);
        let most = self.guard.most.entry(minute).or_default();
        *most = entries.max(*most);
        let of = self.guard.most.values().copied().max().unwrap_or(0).max(gone);
        let is_enough = gone >= i64::from(ENOUGH.0) || gone >= i64::from(ENOUGH.1) && gone * 2 > of;
        if mark == 0 && !(is_enough && gone * 100 > 10 * of) {
            *self.guard.removed.entry(minute).or_default() += 1;
            return 0;
        }
        let until = if mark > 0 { mark.min(now + HOLDS.0) } else { now + HOLDS.0 };
        let guard = &mut self.guard;
        (guard.since, guard.until, guard.gone, guard.of, guard.last) = (now, until, gone, of, now);
        (guard.accepted, guard.restored, guard.held) = (false, mark > 0, BTreeMap::from([(entry, now)]));
        2
    }

    /// Forgets an entry; the guard ends a minute after the last one was held back.
    fn forget(&mut self, entry: &str, now: i64) -> i64 {
        let guard = &mut self.guard;
        if guard.held.remove(entry).is_none() {
            return 0;
        }
        if guard.held.is_empty() && !guard.accepted && !guard.restored {
            guard.until = guard.until.min(now.max(guard.last + MINUTE));
        }
        1
    }

    /// The upstream has an entry again; or (`is_swept`) a sweep takes it out that read it some time ago.
    fn recover(&mut self, engine: &Engine, entry: &'static str, is_swept: bool) -> Step {
        let now = self.db.now();
        let noted = self.guard.held.get(entry).copied().unwrap_or(0);
        // Read long ago, or just now.
        let read = if now % 2 == 0 { noted } else { noted - 1 };
        let text = if is_swept { read.to_string() } else { String::new() };
        let forgets = !is_swept || read == noted;
        let expected = if forgets { self.forget(entry, now) } else { 0 };
        if expected == 1 {
            self.marks.remove(entry);
        }
        self.runs(engine, &calls::guard_recovery(entry, &text), &[expected])
    }

    fn decide(&mut self, engine: &Engine, decision: &str) -> Step {
        let (now, is_active, is_there) = (self.db.now(), self.is_active(), self.db.slot(GUARD).is_some());
        let guard = &mut self.guard;
        let holds_any = !guard.held.is_empty() || guard.restored;
        let done = match decision {
            "forget" => {
                *guard = Guard::default();
                is_there
            }
            "accept" => {
                if !is_active {
                    let (removed, most) = (std::mem::take(&mut guard.removed), std::mem::take(&mut guard.most));
                    *guard = Guard { since: now, removed, most, ..Guard::default() };
                }
                (guard.accepted, guard.until) = (true, now + HOLDS.0);
                true
            }
            _ if is_active && guard.accepted && !holds_any => {
                (guard.accepted, guard.until) = (false, now);
                true
            }
            _ if is_active && holds_any => {
                (guard.accepted, guard.until) = (false, (guard.until + HOLDS.0).min(now + HOLDS.1));
                true
            }
            _ => false,
        };
        self.runs(engine, &calls::guard_decision(decision), &[i64::from(done)])
    }

    /// Runs a script, and compares its reply and the guard with what they must be.
    fn runs(&mut self, engine: &Engine, call: &Call, expected: &[i64]) -> Step {
        let now = self.db.now();
        let reply = engine.run(&mut self.db, call);
        let told: Vec<i64> = match &reply {
            Reply::Array(parts) => parts.iter().map(Reply::int).collect(),
            reply => vec![reply.int()],
        };
        if told != expected || matches!(reply, Reply::Error(_)) {
            return violated(CONTRACT, format!("{} {:?}: {reply:?}, not {expected:?}", call.script.path(), call.args));
        }
        let Some(slot) = self.db.slot(GUARD) else {
            return match self.guard == Guard::default() {
                true => Ok(()),
                false => violated(HELD, format!("there is no guard, and it must be {:?}", self.guard)),
            };
        };
        let longer = if self.guard.since > 0 { 86_520_000 } else { 120_000 };
        // One that was not written since may end sooner.
        let latest = self.guard.until.max(now) + longer;
        let Some(expires) = slot.expires.filter(|at| self.is_set_back || *at <= latest) else {
            return violated(BOUNDED, format!("the guard lasts until {:?}, not {latest}", slot.expires));
        };
        if expires < self.guard.until + longer {
            return violated(HELD, format!("the guard is lost at {expires}"));
        }
        let Value::Hash(fields) = &*slot.value else { return violated(CONTRACT, "the guard is no hash") };
        let number = |name: &str| fields.get(name.as_bytes()).and_then(|text| text.as_str().parse::<i64>().ok());
        let named =
            fields.iter().filter_map(|(name, at)| Some((name.as_str().strip_prefix('=')?, at.as_str().parse().ok()?)));
        let guard = &self.guard;
        let held: BTreeMap<&str, i64> = named.collect();
        let is_right = held == guard.held
            && number("held") == i64::try_from(guard.held.len()).ok()
            && number("since") == Some(guard.since)
            && number("until") == Some(guard.until)
            && number("accepted") == Some(i64::from(guard.accepted))
            && number("restored") == Some(i64::from(guard.restored))
            && number("last") == Some(guard.last);
        match is_right {
            true => Ok(()),
            false => violated(CONTRACT, format!("{}: {fields:?}, not {guard:?}", call.script.path())),
        }
    }
}
