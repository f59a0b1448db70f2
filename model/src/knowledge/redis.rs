//! The part of Redis that gap detection uses, and its scripts.

use super::rules::{Rule, Rules};
use super::{JOBS, Jobs, Time, WORKERS};

/// A record in `samovar:ears`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The worker heard everything between these two times.
    pub since: Time,
    /// See `since`.
    pub last: Time,
    /// It handled everything that came before this.
    pub handled: Time,
    /// The jobs that it knows.
    pub jobs: Jobs,
    /// It has checked what was before `since`.
    pub is_checked: bool,
    /// If it has not: the last canary before that gap; 0 if it has never checked.
    pub before: Time,
    /// If it has not: its first canary of all.
    pub began: Time,
}

/// The kind of a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gap {
    /// Invalidations may have been missed.
    Missed,
    /// Some were lost.
    Lost,
}

/// The note of a gap, `samovar:{suspect}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Note {
    /// The time until which everything fetched is suspect.
    pub at: Time,
    /// Its kind.
    pub kind: Gap,
    /// The time after which everything fetched is lost: the clock was set back.
    pub from: Option<Time>,
}

/// The value of a job's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    /// When it was fetched.
    pub fetched_at: Time,
    /// The version of its content.
    pub content: u8,
    /// It is to be fetched anew.
    pub is_invalidated: bool,
}

/// A message in the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Letter {
    /// Its id: sixteen times its time, and a number.
    pub id: i16,
    /// The job that it names; `None` for the note of a trimmed inbox.
    pub job: Option<usize>,
    /// The worker that reads it.
    pub owner: Option<usize>,
}

/// The content of Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Redis {
    /// Its clock.
    pub now: Time,
    /// Its `run_id`.
    pub life: u8,
    /// The marker; 0 for none.
    pub marker: u8,
    /// `samovar:ears`.
    pub records: [Option<Record>; WORKERS],
    /// In the same hash: the latest time of a canary, and by how much the times of canaries are ahead of the clock.
    pub steady: (Time, Time),
    /// The clock: the latest time seen, and how often it was set back.
    pub high: Time,
    /// See `high`.
    pub set_back: u8,
    /// The note of a gap.
    pub note: Option<Note>,
    /// The note for which each job is handled.
    pub handled: [Option<Note>; JOBS],
    /// The jobs that are handled because they are not in doubt.
    pub spared: Jobs,
    /// The revalidator's lock.
    pub lock: Option<usize>,
    /// The values.
    pub values: [Option<Value>; JOBS],
    /// The inbox; `None` if it is gone.
    pub inbox: Option<Vec<Letter>>,
    /// The highest id that the inbox gave.
    pub last_id: i16,
    /// `samovar:acknowledged`.
    pub marks: [Option<i16>; WORKERS],
    /// The jobs that were set up.
    pub digests: Jobs,
}

impl Redis {
    /// Returns an empty Redis.
    pub fn empty(now: Time, life: u8) -> Self {
        Self {
            now,
            life,
            marker: 0,
            records: [None; WORKERS],
            steady: (0, 0),
            high: 0,
            set_back: 0,
            note: None,
            handled: [None; JOBS],
            spared: 0,
            lock: None,
            values: [None; JOBS],
            inbox: None,
            last_id: 0,
            marks: [None; WORKERS],
            digests: 0,
        }
    }

    /// `canary.lua`: writes the record, and returns the time of the canary.
    pub fn canary(&mut self, rules: Rules, worker: usize, record: Record) -> Time {
        if rules.has(Rule::Steady) {
            let (high, ahead) = self.steady;
            let back = if self.now < high { high - self.now + 1 } else { 0 };
            self.steady = (self.now, ahead + back);
        }
        let is_deaf = record.began != 0 && self.records[worker].is_none() && rules.has(Rule::Deaf);
        if record.since != 0 {
            self.records[worker] = Some(record);
        } else if is_deaf {
            self.records[worker] = Some(Record { handled: 0, ..record });
        }
        self.now + self.steady.1
    }

    /// Returns the time by the clock of the records.
    pub fn steady_now(&self) -> Time {
        self.now.max(self.steady.0) + self.steady.1
    }

    /// `Store::fleet`: the jobs by their digests, and those that workers know by their records.
    pub fn fleet(&self) -> Jobs {
        self.records.iter().flatten().fold(self.digests, |jobs, record| jobs | record.jobs)
    }

    /// `suspect.lua`: notes a gap for these jobs.
    pub fn note_gap(&mut self, rules: Rules, asked: Time, kind: Gap, jobs: Jobs) {
        let spared = self.fleet() & !jobs;
        let old = self.note;
        let before = old.map_or(0, |note| note.at);
        let from = old.and_then(|note| note.from);
        let asked = asked.min(self.now);
        let is_later = asked > from.unwrap_or(0);
        let anew = rules.has(Rule::NoteAnew) && before > self.now && is_later
            || rules.has(Rule::NoteAnewLater) && from.is_some() && asked <= before && is_later;
        let latest = if rules.has(Rule::LaterNote) { before.max(asked) } else { asked };
        let at = if anew { before + 1 } else { latest };
        let kind = old.map_or(kind, |note| note.kind.max(kind));
        let note = Note { at, kind, from };
        self.note = Some(note);
        for job in 0..JOBS {
            let bit = 1 << job;
            if spared & bit == 0 {
                if self.spared & bit != 0 && rules.has(Rule::SparedOnly) {
                    self.handled[job] = None;
                }
            } else if old.is_none() || self.handled[job] == old || !rules.has(Rule::SpareHandled) {
                if old != Some(note) {
                    self.spared |= bit;
                }
                self.handled[job] = Some(note);
                continue;
            }
            self.spared &= !bit;
        }
    }

    /// `close_gap.lua`; returns true if nothing is left to do for the caller.
    pub fn close_gap(&mut self, rules: Rules, known: Note, worker: usize, jobs: Jobs) -> bool {
        if self.lock == Some(worker) {
            self.lock = None;
        }
        let Some(note) = self.note else {
            (self.handled, self.spared) = ([None; JOBS], 0);
            return true;
        };
        if note != known && rules.has(Rule::SameNote) {
            return false;
        }
        for job in (0..JOBS).filter(|job| jobs & (1 << job) != 0) {
            self.handled[job] = Some(note);
            self.spared &= !(1 << job);
        }
        let fleet = self.fleet();
        let is_left = |job: &usize| fleet & (1 << *job) != 0 && self.handled[*job] != Some(note);
        if rules.has(Rule::AllJobs) && (0..JOBS).any(|job| is_left(&job)) {
            return true;
        }
        self.note = None;
        (self.handled, self.spared) = ([None; JOBS], 0);
        true
    }

    /// `clock.lua`: compares with a worker's last reading (its time, the ticks since, and `set_back` then).
    pub fn inspect_clock(&mut self, rules: Rules, reading: Option<(Time, Time, u8)>) {
        let compared = reading.filter(|(_, _, set_back)| *set_back == self.set_back);
        let is_behind = compared.is_some_and(|(at, age, _)| self.now < at + age);
        if self.now >= self.high && !is_behind {
            self.high = self.now;
            return;
        }
        let (mut at, mut from) = (self.high, 0);
        if let Some((last, age, _)) = compared {
            at = at.max(last + age + 1);
            from = (self.now - age - 2).max(0);
        }
        if rules.has(Rule::ClockBack) {
            let anew = Time::from(rules.has(Rule::StepAnew));
            let at = self.note.map_or(at, |note| at.max(note.at + anew));
            let kind = if from == 0 { Gap::Lost } else { Gap::Missed };
            let kind = self.note.map_or(kind, |note| note.kind.max(kind));
            let since = self.note.and_then(|note| note.from).map_or(from, |since| since.min(from));
            let from = Some(since).filter(|since| *since > 0 || rules.has(Rule::NoteAnewLater));
            self.note = Some(Note { at, kind, from });
        }
        self.high = self.now;
        self.set_back += 1;
    }
}
