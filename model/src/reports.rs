//! Reported reads, audits and minute figures: random calls, and what the scripts' headers promise.

use std::collections::BTreeMap;

use crate::calls::{
    self, AUDITS, AUDITS_LIFE, FIGURES, HISTORY, HISTORY_HOURS, HISTORY_LIFE, MINUTES, MINUTES_LIFE, MOST_AUDITS,
    REPORTED, SHORTEST, UNATTENDED,
};
use crate::commands::Reply;
use crate::db::Db;
use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties::{BOUNDED, CONTRACT, COUNTER};
use crate::world::{EPOCH, Step, violated};

const FIELDS: [&str; 3] = ["hits", "misses", "stale"];
/// Texts that a faulty reporter writes in the place of a sum.
const NO_SUMS: [&str; 4] = ["x", "-3", "9999999999999999", "a text that is longer than any number could ever be here"];
/// Jobs with the intervals of their audits (ms); the first has none.
const JOBS: [(&str, i64); 2] = [("art", 0), ("zoo", INTERVAL)];
const INTERVAL: i64 = 5_000;
/// The steps of the clock (ms).
const STEPS: [i64; 10] = [1, 400, SHORTEST, UNATTENDED, UNATTENDED + 1, INTERVAL, 50_000, 1_700_000, -1, -3_600_000];
/// The ages of counts (ms).
const AGES: [i64; 3] = [0, 70_000, 4_000_000];

/// The counts of an hour: its number, and by minute, by name.
type Hour = (i64, BTreeMap<i64, BTreeMap<String, i64>>);

/// The last call of the script that adds up reads.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rolled {
    sums: [i64; 3],
    at: i64,
}

#[derive(Debug, Default)]
struct Fleet {
    db: Db,
    rolled: Option<Rolled>,
    /// The audits that were asked for, and not withdrawn or taken.
    asked: [i64; 2],
    /// The figures, by the names of their fields.
    hours: BTreeMap<i64, Hour>,
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
        fleet.forget();
        match random.below(20) {
            0..=3 => {
                let now = fleet.db.now() + STEPS[random.below(STEPS.len())];
                engine.set_clock(&mut fleet.db, now);
                fleet.forget();
            }
            4..=6 => fleet.report(engine, &["HINCRBY", REPORTED, FIELDS[random.below(3)], "7"]),
            7 if random.below(3) == 0 => {
                fleet.report(engine, &["HSET", REPORTED, FIELDS[random.below(3)], NO_SUMS[random.below(4)]]);
            }
            7 if random.below(3) == 0 => fleet.report(engine, &["HSET", REPORTED, FIELDS[random.below(3)], "1"]),
            7 => fleet.report(engine, &["DEL", [REPORTED, MINUTES, AUDITS][random.below(3)]]),
            8 if random.below(4) == 0 => {
                // Somebody else's figure, of a time to come.
                let id = (fleet.db.now() + UNATTENDED).to_string();
                fleet.report(engine, &["XADD", MINUTES, &id, "sums", "1 2 3"]);
            }
            8..=12 => fleet.roll(engine)?,
            13 | 14 => {
                let (job, number) = (random.below(2), 1 + random.below(5));
                fleet.report(engine, &["HINCRBY", AUDITS, JOBS[job].0, &number.to_string()]);
            }
            15 => fleet.withdraw(engine, random.below(2), [1, 2, 9][random.below(3)])?,
            16 => fleet.claim(engine)?,
            _ => {
                let counts = [[].as_slice(), &[("w", 1)], &[("w", 2), ("f", 40)], &[("u", 7), ("w", 3)]];
                fleet.add(engine, AGES[random.below(3)], counts[random.below(4)])?;
            }
        }
        fleet.holds()?;
    }
    Ok(())
}

impl Fleet {
    /// A command of somebody else.
    fn report(&mut self, engine: &Engine, words: &[&str]) {
        engine.command(&mut self.db, words);
        self.forget();
        self.asked = JOBS.map(|(job, _)| self.asked_of(job));
    }

    /// Forgets what was in keys that are gone.
    fn forget(&mut self) {
        if self.db.slot(REPORTED).is_none() {
            self.rolled = None;
        }
        if self.db.slot(AUDITS).is_none() {
            self.asked = [0, 0];
        }
        if self.db.slot(HISTORY).is_none() {
            self.hours.clear();
        }
    }

    fn asked_of(&self, job: &str) -> i64 {
        self.db.field(AUDITS, job).and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Returns the ids and fields of all figures.
    fn figures(&mut self, engine: &Engine) -> Vec<(i64, BTreeMap<String, String>)> {
        let all = engine.command(&mut self.db, &["XRANGE", MINUTES, "-", "+"]);
        let read = |figure: &Reply| {
            let words: Vec<String> = figure.part(1).parts().iter().map(Reply::text).collect();
            let fields = words.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
            (figure.part(0).text().split('-').next().and_then(|at| at.parse().ok()).unwrap_or(0), fields)
        };
        all.parts().iter().map(read).collect()
    }

    fn roll(&mut self, engine: &Engine) -> Step {
        let now = self.db.now();
        let texts = FIELDS.map(|field| self.db.field(REPORTED, field).map(str::to_owned));
        let (before, figures) = (self.db.clone(), self.figures(engine));
        let reply = engine.run(&mut self.db, &calls::roll_reads());
        let (added, told): (bool, Vec<String>) =
            (reply.part(0).int() == 1, reply.part(1).parts().iter().map(Reply::text).collect());
        let wrong = |why: &str| violated(CONTRACT, format!("roll_reads.lua: {why}: {reply:?} of {texts:?} at {now}"));
        if texts.iter().all(Option::is_none) {
            return if added || self.db != before { wrong("nothing was reported") } else { Ok(()) };
        }
        let is_sum =
            |text: &str| text.len() <= 15 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let refused: Vec<(usize, &String)> = texts
            .iter()
            .enumerate()
            .filter_map(|(n, text)| text.as_ref().filter(|text| !is_sum(text)).map(|text| (n, text)))
            .collect();
        let expected: Vec<String> =
            refused.iter().flat_map(|(n, text)| [FIELDS[*n].to_owned(), text.chars().take(40).collect()]).collect();
        if told != expected || refused.iter().any(|(n, _)| self.db.field(REPORTED, FIELDS[*n]) != Some("0")) {
            return wrong("what is no sum is told, and is 0");
        }
        let sums = texts
            .each_ref()
            .map(|text| text.as_deref().filter(|text| is_sum(text)).map_or(0, |text| text.parse().unwrap_or(0)));
        let elapsed = self.rolled.map(|rolled| now - rolled.at);
        let fell = self.rolled.is_some_and(|rolled| rolled.sums.iter().zip(sums).any(|(before, now)| now < *before));
        let mut begins = self.rolled.is_none() || fell || !refused.is_empty();
        if !begins && elapsed.is_some_and(|elapsed| elapsed.abs() < SHORTEST) {
            return if added { wrong("a figure came too soon") } else { Ok(()) };
        }
        begins |= elapsed.is_some_and(|elapsed| elapsed < 0);
        let adds = begins || self.rolled.is_some_and(|rolled| rolled.sums != sums);
        let latest = figures.last().map(|(at, _)| *at);
        begins |= adds && latest.is_some_and(|latest| latest >= now);
        self.rolled = Some(Rolled { sums, at: now });
        let text = sums.map(|sum| sum.to_string()).join(" ");
        let is_noted = self.db.field(REPORTED, "rolled") == Some(&text)
            && self.db.field(REPORTED, "rolled_ms") == Some(&now.to_string());
        if added != adds || !is_noted {
            return wrong("a figure is added where something was read");
        }
        let after = self.figures(engine);
        if !adds {
            return if after == figures { Ok(()) } else { wrong("another figure") };
        }
        let has_gap = !begins && elapsed.is_some_and(|elapsed| elapsed > UNATTENDED);
        let last = after.last().map(|(at, fields)| (*at, fields.get("sums").cloned(), fields.contains_key("gap")));
        let count = if begins { 1 } else { (figures.len() + 1).min(FIGURES) };
        if last != Some((now, Some(text.clone()), has_gap)) || after.len() != count {
            return wrong(&format!("{count} figures, the last with a gap: {has_gap}; there are {after:?}"));
        }
        let base = (self.db.field(REPORTED, "since"), self.db.field(REPORTED, "base"));
        if begins && base != (Some(&now.to_string()), Some(&text)) {
            return wrong("it is a beginning");
        }
        let ends = [REPORTED, MINUTES].map(|key| self.db.slot(key).and_then(|slot| slot.expires));
        if ends != [Some(now + MINUTES_LIFE); 2] { wrong("both keys have a life") } else { Ok(()) }
    }

    fn withdraw(&mut self, engine: &Engine, job: usize, most: i64) -> Step {
        let name = JOBS[job].0;
        let left = (self.asked[job] - most).max(0);
        let reply = engine.run(&mut self.db, &calls::withdraw_audits(name, most)).int();
        self.asked[job] = left;
        let is_there = self.db.field(AUDITS, name).is_some();
        if reply != left || is_there != (left > 0) {
            return violated(CONTRACT, format!("withdraw_audits.lua: {reply} left of {name}, not {left}"));
        }
        Ok(())
    }

    fn claim(&mut self, engine: &Engine) -> Step {
        let now = self.db.now();
        let next = |db: &Db, job: &str| db.field(AUDITS, &format!("{job}/next")).and_then(|at| at.parse::<i64>().ok());
        let before = JOBS.map(|(job, _)| next(&self.db, job));
        let reply = engine.run(&mut self.db, &calls::claim_audits(&JOBS));
        let taken: Vec<String> = reply.parts().iter().map(Reply::text).collect();
        let mut expected = Vec::new();
        for (n, (job, interval)) in JOBS.into_iter().enumerate() {
            let some = self.asked[n].min(MOST_AUDITS);
            let is_due = before[n].is_some_and(|due| due <= now);
            let is_set = interval > 0 && some == 0 && before[n].is_none_or(|due| due <= now || due > now + interval);
            if some > 0 || is_set && is_due {
                expected.extend([job.to_owned(), some.to_string()]);
            }
            self.asked[n] -= some;
            let at = if is_set { Some(now + interval) } else { before[n] };
            if next(&self.db, job) != at {
                return violated(CONTRACT, format!("claim_audits.lua: {job} is next at {:?}", next(&self.db, job)));
            }
            if is_set && self.db.slot(AUDITS).and_then(|slot| slot.expires) != Some(now + AUDITS_LIFE) {
                return violated(BOUNDED, "audits never end");
            }
        }
        match taken == expected {
            true => Ok(()),
            false => violated(CONTRACT, format!("claim_audits.lua: {taken:?}, not {expected:?}")),
        }
    }

    fn add(&mut self, engine: &Engine, age: i64, counts: &[(&str, i64)]) -> Step {
        let minute = (self.db.now() - age).div_euclid(60_000);
        let hour = minute.div_euclid(60);
        let of_hour = self.hours.entry(hour % HISTORY_HOURS).or_default();
        if of_hour.0 != hour {
            *of_hour = (hour, BTreeMap::new());
        }
        let of_minute = of_hour.1.entry(minute % 60).or_default();
        for (name, count) in counts {
            *of_minute.entry((*name).to_owned()).or_default() += count;
        }
        let told = engine.run(&mut self.db, &calls::add_figures(age, counts)).int();
        for (field, expected) in &self.hours {
            let found = self.db.field(HISTORY, &field.to_string()).and_then(read);
            if told != minute || found.as_ref() != Some(expected) {
                return violated(CONTRACT, format!("add_figures.lua: {told}, {found:?}, not {minute}, {expected:?}"));
            }
        }
        match self.db.slot(HISTORY).and_then(|slot| slot.expires) == Some(self.db.now() + HISTORY_LIFE) {
            true => Ok(()),
            false => violated(BOUNDED, "figures never end"),
        }
    }

    fn holds(&self) -> Step {
        let asked = JOBS.map(|(job, _)| self.asked_of(job));
        let is_empty = JOBS.iter().any(|(job, _)| self.db.field(AUDITS, job) == Some("0"));
        match asked == self.asked && !is_empty {
            true => Ok(()),
            false => violated(COUNTER, format!("audits that are asked for: {asked:?}, not {:?}", self.asked)),
        }
    }
}

/// Reads the field of an hour: `HOUR MINUTE:NAME=COUNT,… MINUTE:…`, with each minute once.
fn read(text: &str) -> Option<Hour> {
    let mut words = text.split(' ');
    let hour = words.next()?.parse().ok()?;
    let mut minutes = BTreeMap::new();
    for word in words {
        let (minute, counts) = word.split_once(':')?;
        let counts = counts.split(',').filter(|count| !count.is_empty()).map(|count| {
            let (name, count) = count.split_once('=')?;
            Some((name.to_owned(), count.parse().ok()?))
        });
        if minutes.insert(minute.parse().ok()?, counts.collect::<Option<_>>()?).is_some() {
            return None;
        }
    }
    Some((hour, minutes))
}
