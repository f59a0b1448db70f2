//! One worker: what it hears, what it concludes, and what it does about it.

use super::redis::{Gap, Letter, Note, Record, Value};
use super::rules::{Rule, Rules};
use super::{JOBS, Jobs, Time, WORKERS, World};

/// Canaries after which the others have recorded what they heard: `CHECK_AFTER`.
const CHECK_AFTER: u8 = 3;
/// Ticks for which a worker without canaries may be alive: `SILENT`.
const SILENT: Time = 5;
/// Ticks after which a record is dropped: `FORGOTTEN`.
const FORGOTTEN: Time = 8;
/// Canaries without an answer after which the subscription is stalled: `STALLED`.
const STALLED: u8 = 3;

/// A worker's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Life {
    /// It has not begun.
    #[default]
    Unborn,
    /// It runs.
    Up,
    /// It stands still.
    Frozen,
    /// It has ended.
    Gone,
}

/// A worker's subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Link {
    /// There is none.
    #[default]
    Down,
    /// It works.
    Up,
    /// Nothing comes over it, and nobody has noticed.
    Stalled,
}

/// A message or a canary that is heard and not handled: `Unhandled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heard {
    /// A message about a job.
    Message(usize),
    /// A canary of this time.
    Canary(Time),
}

/// A gap that the worker revalidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Revalidation {
    /// The gap as it was read.
    pub note: Note,
    /// The jobs that are left, and those that are done.
    pub left: Jobs,
    /// See `left`.
    pub done: Jobs,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Its life.
    pub life: Life,
    /// The jobs that it knows.
    pub jobs: Jobs,
    /// Its subscription.
    pub link: Link,
    /// `Hearing`: the first and the last canary of this connection, and the last before a gap that is not checked.
    pub since: Time,
    /// See `since`.
    pub last: Time,
    /// See `since`.
    pub before: Time,
    /// The first canary of all.
    pub began: Time,
    /// A nonce counts that others know before this worker hears its canary.
    pub is_exposed: bool,
    /// Canaries that did not come back.
    pub unheard: u8,
    /// `Unhandled`.
    pub queue: Vec<Heard>,
    /// The last canary before which all is handled.
    pub handled: Time,
    /// This connection is checked.
    pub is_checked: bool,
    /// The connection that is checked, by its first canary.
    pub checked: Time,
    /// Canaries since it hears.
    pub waited: u8,
    /// The jobs whose gap is noted, and the connection for which.
    pub noted: (Time, Jobs),
    /// `Clock`: the last reading, the ticks since, and how often the clock was set back by then.
    pub reading: Option<(Time, Time, u8)>,
    /// `RestartMonitor`: the Redis for which a gap is noted.
    pub gap_noted: u8,
    /// `Revalidator`.
    pub revalidation: Option<Revalidation>,
    /// Messages are heard, and not handled for now.
    pub is_stuck: bool,
    /// The message of the inbox that it reads, and whether it is handled.
    pub letter: Option<(Letter, bool)>,
    /// `Watermark`: the highest id seen, the highest acknowledged, and the Redis of the last comparison.
    pub highest: i16,
    /// See `highest`.
    pub acknowledged: i16,
    /// See `highest`.
    pub run_id: u8,
    /// An older mark was found; none was found.
    pub is_older: bool,
    /// See `is_older`.
    pub is_blank: bool,
}

impl Worker {
    /// Returns true if it knows a job.
    pub fn knows(&self, job: usize) -> bool {
        self.jobs & (1 << job) != 0
    }

    /// Returns true if it has heard a canary. A first worker subscribes before it fetches.
    pub fn has_heard(&self) -> bool {
        self.began != 0
    }

    /// `Hearing::hear`.
    pub fn hear(&mut self, rules: Rules, at: Time) {
        if self.since == 0 || at < self.last {
            self.since = at;
        }
        if self.began == 0 {
            self.began = at;
        }
        self.last = at;
        (self.is_exposed, self.unheard) = (false, 0);
        // `Unhandled::canary`
        match self.queue.last_mut() {
            Some(Heard::Canary(last)) => *last = at,
            _ => self.queue.push(Heard::Canary(at)),
        }
        self.settle_queue(rules);
    }

    /// `Unhandled::handled`: takes the canaries before which all is handled.
    pub fn settle_queue(&mut self, rules: Rules) {
        if !rules.has(Rule::InOrder)
            && let Some(Heard::Canary(at)) = self.queue.iter().rev().find(|heard| matches!(heard, Heard::Canary(_)))
        {
            self.handled = *at;
            self.queue.retain(|heard| matches!(heard, Heard::Message(_)));
        }
        while let Some(Heard::Canary(at)) = self.queue.first() {
            self.handled = *at;
            self.queue.remove(0);
        }
    }

    /// `Hearing::lose`.
    pub fn lose(&mut self, rules: Rules) {
        if self.last != 0 && (self.is_checked || !rules.has(Rule::KeepBefore)) {
            self.before = self.last;
        }
        (self.since, self.last) = (0, 0);
        self.is_checked = false;
        self.link = Link::Down;
        self.unheard = 0;
        self.is_exposed &= !rules.has(Rule::NoncesEnd);
    }
}

/// `Coverage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coverage {
    Covered,
    Open,
    Missed(Time),
}

/// `Asking::coverage`: what the records of others say about a job.
fn coverage(
    rules: Rules,
    worker: usize,
    (since, before, began, now): (Time, Time, Time, Time),
    job: usize,
    others: &[(usize, Record)],
) -> Coverage {
    let is_fresh = before == 0;
    // `Other::is_before`
    let counts = |(other, record): &(usize, Record)| {
        let is_older = if record.is_checked {
            (record.since, *other) < (since, worker)
        } else if record.before == 0 && rules.has(Rule::Began) {
            (record.began, *other) < (began, worker)
        } else {
            (record.since, *other) < (since, worker) || record.before != 0 && rules.has(Rule::GapCounts)
        };
        !is_fresh || !rules.has(Rule::FreshOrder) || is_older
    };
    let heard: Vec<Record> = others.iter().filter(|other| counts(other)).map(|(_, record)| *record).collect();
    if is_fresh && (heard.is_empty() || !rules.has(Rule::FreshAsks)) {
        let is_fleet = began < since && rules.has(Rule::FleetAlone);
        return if is_fleet { Coverage::Missed(since) } else { Coverage::Covered };
    }
    let knows = |record: &Record| record.jobs & (1 << job) != 0 || !rules.has(Rule::KnowsJob);
    let heard: Vec<Record> = heard.into_iter().filter(knows).collect();
    let before = if is_fresh { heard.iter().map(|record| record.last).max().unwrap_or(0) } else { before };
    let strict = rules.has(Rule::Strict);
    let is_earlier = |a: Time, b: Time| if strict && !is_fresh { a < b } else { a <= b };
    let covers =
        |record: &&Record| (is_earlier(record.since, before) || !rules.has(Rule::SinceBefore)) && before <= now;
    let has_handled = |record: &Record| {
        let until = if rules.has(Rule::Handled) { record.handled } else { record.last };
        if strict { until > since } else { until >= since }
    };
    let is_trusted = |record: &Record| !is_fresh || record.is_checked || !rules.has(Rule::Unchecked);
    if heard.iter().filter(covers).any(|record| has_handled(record) && is_trusted(record)) {
        return Coverage::Covered;
    }
    let silent = if rules.has(Rule::Silent) { SILENT } else { Time::MAX / 2 };
    let is_alive = |record: &Record| record.last + silent > now;
    let alive: Vec<&Record> = heard.iter().filter(covers).filter(|record| is_alive(record)).collect();
    let is_busy = alive.iter().any(|record| record.last >= since);
    if is_busy || !alive.is_empty() && now - since < silent {
        return Coverage::Open;
    }
    Coverage::Missed(
        heard.iter().filter(|record| has_handled(record)).map(|record| record.since).fold(since, Time::min),
    )
}

impl World {
    /// A worker's turn: what its loops do within a second.
    pub fn work(&mut self, rules: Rules, w: usize) {
        self.handle(rules, w);
        self.check_redis(rules, w);
        self.read_inbox(rules, w);
        self.revalidate(rules, w);
        self.fetch(w);
        self.beat(rules, w);
    }

    /// `Pipeline`: handles what was heard. A message about an unknown job is dropped.
    fn handle(&mut self, rules: Rules, w: usize) {
        if self.workers[w].is_stuck {
            return;
        }
        for heard in std::mem::take(&mut self.workers[w].queue) {
            match heard {
                Heard::Message(job) if self.workers[w].knows(job) => self.invalidate(job, self.redis.now),
                Heard::Message(_) => {}
                Heard::Canary(at) => self.workers[w].handled = at,
            }
        }
        self.workers[w].settle_queue(rules);
    }

    /// `invalidate.lua`: what was fetched at or before a time, or in the future, is fetched anew.
    fn invalidate(&mut self, job: usize, at: Time) {
        let now = self.redis.now;
        if let Some(value) = &mut self.redis.values[job] {
            value.is_invalidated |= value.fetched_at <= at || value.fetched_at > now;
        }
    }

    fn note_gap(&mut self, rules: Rules, at: Time, kind: Gap, jobs: Jobs) {
        self.noted.0 += 1;
        self.redis.note_gap(rules, at, kind, jobs);
    }

    /// `Heartbeat::beat`: `RestartMonitor::check`, and `Clock::inspect`.
    fn check_redis(&mut self, rules: Rules, w: usize) {
        let life = self.redis.life;
        self.redis.digests |= self.workers[w].jobs;
        self.compare(rules, w, true);
        if self.redis.marker != life {
            let last = rules.has(Rule::MarkerLast);
            if !rules.has(Rule::Restart) {
                self.redis.marker = life;
            } else if self.workers[w].gap_noted != life {
                self.workers[w].gap_noted = life;
                if last {
                    self.note_gap(rules, self.redis.now, Gap::Missed, Jobs::MAX);
                } else {
                    self.redis.marker = life;
                }
            } else {
                self.redis.marker = life;
            }
        } else if !rules.has(Rule::MarkerLast) && self.workers[w].gap_noted == life {
            // Broken on purpose: the gap is noted a step after the marker.
            self.note_gap(rules, self.redis.now, Gap::Missed, Jobs::MAX);
            self.workers[w].gap_noted = 0;
        } else {
            self.workers[w].gap_noted = 0;
        }
        let before = self.redis.set_back;
        self.redis.inspect_clock(rules, self.workers[w].reading);
        self.noted.0 += u32::from(self.redis.set_back - before);
        self.workers[w].reading = Some((self.redis.now, 0, self.redis.set_back));
    }

    /// `Watermark::compare`.
    fn compare(&mut self, rules: Rules, w: usize, knows_run_id: bool) {
        let (mark, last, life) = (self.redis.marks[w], self.redis.last_id, self.redis.life);
        let worker = &mut self.workers[w];
        match mark {
            Some(mark) => worker.is_older |= mark < worker.acknowledged,
            None => worker.is_blank |= worker.acknowledged != 0,
        }
        let is_another = worker.run_id != 0 && knows_run_id && worker.run_id != life;
        let is_marked = worker.is_older || worker.is_blank && is_another;
        let lost = rules.has(Rule::Highest) && worker.highest > last || rules.has(Rule::Mark) && is_marked;
        let highest = worker.highest;
        if lost || mark.is_none() {
            worker.acknowledged = mark.unwrap_or(0);
        }
        worker.is_older = false;
        worker.highest = if lost { last } else { worker.highest.max(last) };
        if knows_run_id {
            worker.run_id = life;
            worker.is_blank = false;
        }
        if lost {
            self.note_gap(rules, (highest / 16).min(self.redis.now), Gap::Lost, Jobs::MAX);
        }
    }

    /// `Inbox::read_all`: handles the message that it reads, or reads the next one.
    fn read_inbox(&mut self, rules: Rules, w: usize) {
        if self.redis.inbox.is_none() {
            // `Inbox::note_lost_inbox`, `Inbox::create_group`
            if self.redis.marker != 0 && rules.has(Rule::InboxGone) {
                self.note_gap(rules, self.redis.now, Gap::Missed, Jobs::MAX);
                self.compare(rules, w, false);
            }
            self.redis.inbox = Some(Vec::new());
            self.redis.marks = [None; WORKERS];
        }
        match self.workers[w].letter.take() {
            Some((letter, true)) => return self.acknowledge(w, letter),
            Some((letter, false)) => {
                self.handle_letter(rules, w, letter);
                self.workers[w].letter = Some((letter, true));
                return;
            }
            None => {}
        }
        let lives = self.workers.each_ref().map(|worker| worker.life);
        let takes_over = rules.has(Rule::TakeOver);
        let is_free = |letter: &&mut Letter| {
            letter.owner.is_none_or(|owner| takes_over && matches!(lives[owner], Life::Gone | Life::Frozen))
        };
        let Some(letter) = self.redis.inbox.iter_mut().flatten().find(is_free) else { return };
        letter.owner = Some(w);
        let letter = *letter;
        if let Some(job) = letter.job {
            self.readers[job] |= 1 << w;
        }
        let worker = &mut self.workers[w];
        worker.highest = worker.highest.max(letter.id);
        worker.letter = Some((letter, false));
        if !rules.has(Rule::AckLast) {
            self.acknowledge(w, letter);
        }
    }

    fn handle_letter(&mut self, rules: Rules, w: usize, letter: Letter) {
        let at = (letter.id / 16).min(self.redis.now);
        match letter.job {
            None => self.note_gap(rules, at, Gap::Lost, Jobs::MAX),
            Some(job) if self.workers[w].knows(job) => self.invalidate(job, at),
            // `Invalidator::remove_foreign`
            Some(job) => {
                let is_old = |value: &Value| value.fetched_at <= at || value.fetched_at > self.redis.now;
                if rules.has(Rule::Foreign) && self.redis.values[job].as_ref().is_some_and(is_old) {
                    self.redis.values[job] = None;
                }
            }
        }
    }

    /// `acknowledge`: deletes the message, and writes the mark.
    fn acknowledge(&mut self, w: usize, letter: Letter) {
        self.redis.inbox.iter_mut().for_each(|inbox| inbox.retain(|other| other.id != letter.id));
        let worker = &mut self.workers[w];
        match self.redis.marks[w] {
            Some(mark) => worker.is_older |= mark < worker.acknowledged,
            None => worker.is_blank |= worker.acknowledged != 0,
        }
        worker.acknowledged = worker.acknowledged.max(letter.id);
        self.redis.marks[w] = Some(worker.acknowledged);
    }

    /// `Revalidator::revalidate`, a step at a time: reads the note, examines each job, closes the gap.
    fn revalidate(&mut self, rules: Rules, w: usize) {
        let Some(mut now) = self.workers[w].revalidation else {
            let Some(note) = self.redis.note else { return };
            let is_left = |job: &usize| self.workers[w].knows(*job) && self.redis.handled[*job] != Some(note);
            let left = (0..JOBS).filter(is_left).fold(0, |jobs, job| jobs | 1 << job);
            if left == 0 && rules.has(Rule::CloseAgain) {
                // It holds no lock.
                let lock = self.redis.lock.take();
                self.redis.close_gap(rules, note, w, 0);
                self.redis.lock = lock;
            }
            if left != 0 && self.redis.lock.is_none() {
                self.redis.lock = Some(w);
                if !rules.has(Rule::HandledLast) {
                    for job in (0..JOBS).filter(|job| left & (1 << job) != 0) {
                        self.redis.handled[job] = Some(note);
                    }
                }
                self.workers[w].revalidation = Some(Revalidation { note, left, done: 0 });
            }
            return;
        };
        if now.left == 0 {
            self.redis.close_gap(rules, now.note, w, now.done);
            self.workers[w].revalidation = None;
            return;
        }
        // `Revalidator::renew`
        if self.redis.lock.is_none() {
            self.redis.lock = Some(w);
        }
        if self.redis.lock != Some(w) {
            self.workers[w].revalidation = None;
            return;
        }
        let job = now.left.trailing_zeros() as usize;
        self.examine(rules, job, now.note);
        now.left &= !(1 << job);
        now.done |= 1 << job;
        self.workers[w].revalidation = Some(now);
    }

    /// `Revalidator::affected`, `Revalidator::mark_stale`: a value that may be kept without a request is kept, unless
    /// invalidations were lost.
    fn examine(&mut self, rules: Rules, job: usize, note: Note) {
        let Some(value) = &mut self.redis.values[job] else { return };
        let is_lost = note.kind == Gap::Lost || note.from.is_some_and(|from| value.fetched_at > from);
        let is_future = rules.has(Rule::FutureFetch) && value.fetched_at > self.redis.now;
        let is_affected = value.fetched_at <= note.at || is_future;
        value.is_invalidated |= is_affected && (is_lost || self.paid & (1 << job) == 0);
    }

    /// `Warmer`: fetches what is invalidated or absent, of the jobs that the worker knows.
    fn fetch(&mut self, w: usize) {
        let jobs = self.workers[w].jobs;
        if !self.workers[w].has_heard() {
            return;
        }
        for job in (0..JOBS).filter(|job| jobs & (1 << job) != 0) {
            if self.redis.values[job].is_none_or(|value| value.is_invalidated) {
                self.fetch_job(job);
            }
        }
    }

    /// Fetches a job's entry in one step.
    pub fn fetch_job(&mut self, job: usize) {
        let content = self.upstream[job];
        self.redis.values[job] = Some(Value { fetched_at: self.redis.now, content, is_invalidated: false });
    }

    /// `GapDetector::run`: sends a canary, and checks for a gap once the worker hears.
    fn beat(&mut self, rules: Rules, w: usize) {
        let worker = &mut self.workers[w];
        worker.settle_queue(rules);
        let (since, last, unheard) = (worker.since, worker.last, worker.unheard);
        let Worker { before, began, is_checked, handled, jobs, .. } = *worker;
        let (before, began) = if is_checked { (0, 0) } else { (before, began) };
        let record = Record { since, last, handled, jobs, is_checked, before, began };
        let at = self.redis.canary(rules, w, record);
        if worker.link == Link::Up {
            worker.hear(rules, at);
        } else {
            worker.unheard = (unheard + 1).min(STALLED + 1);
            worker.is_exposed = true;
            if unheard > STALLED && rules.has(Rule::Stalled) {
                worker.unheard = 0;
                worker.is_exposed = false;
                if worker.link == Link::Stalled {
                    worker.lose(rules);
                }
            }
        }
        let is_checked = if rules.has(Rule::EachChecked) { worker.is_checked } else { worker.checked == since };
        worker.waited = if since != 0 && !is_checked { (worker.waited + 1).min(CHECK_AFTER) } else { 0 };
        if worker.waited >= CHECK_AFTER {
            if worker.noted.0 != since {
                worker.noted = (since, 0);
            }
            if self.check(rules, w, since) {
                let worker = &mut self.workers[w];
                (worker.checked, worker.waited) = (since, 0);
                worker.is_checked = worker.since == since;
            }
        }
    }

    /// `GapDetector::check`: notes a gap for the jobs that no worker heard and handled. Returns false while one has not
    /// recorded it yet.
    fn check(&mut self, rules: Rules, w: usize, since: Time) -> bool {
        let now = if rules.has(Rule::Steady) { self.redis.steady_now() } else { self.redis.now };
        let mut others = Vec::new();
        for (other, place) in self.redis.records.iter_mut().enumerate().filter(|(other, _)| *other != w) {
            let Some(record) = *place else { continue };
            let is_future = record.since.max(record.last).max(record.handled) > now;
            if is_future && rules.has(Rule::FutureGoes) {
                *place = None;
            }
            if !is_future || !rules.has(Rule::NoFuture) {
                others.push((other, record));
            }
        }
        let (before, jobs, noted) = (self.workers[w].before, self.workers[w].jobs, self.workers[w].noted.1);
        let began = self.workers[w].began;
        let (mut is_open, mut missed, mut until) = (false, 0, 0);
        for job in (0..JOBS).filter(|job| jobs & !noted & (1 << job) != 0) {
            match coverage(rules, w, (since, before, began, now), job, &others) {
                Coverage::Covered => {}
                Coverage::Open => is_open = true,
                Coverage::Missed(at) => {
                    missed |= 1 << job;
                    until = at.max(until);
                }
            }
        }
        if missed != 0 {
            self.note_gap(rules, until - self.redis.steady.1, Gap::Missed, missed);
            self.workers[w].noted.1 |= missed;
        }
        let counts = |record: &Record| record.is_checked || !rules.has(Rule::NewestChecked);
        let newest = others.iter().map(|(_, record)| *record).filter(counts).map(|record| record.last).max();
        for (other, record) in others {
            let is_newest = rules.has(Rule::NewestStays) && newest.is_none_or(|newest| record.last >= newest);
            if record.last < now - FORGOTTEN && !is_newest {
                self.redis.records[other] = None;
            }
        }
        !is_open
    }
}
