//! Who heard what: a model of gap detection, and a search of its interleavings.
//!
//! A worker hears messages over its subscription, and records what it heard and handled. Another worker that did not
//! hear concludes from the records that nothing was missed, or notes a gap, and a worker revalidates. The model has
//! these rules, each named after the function of `src/` that it mirrors. The search injects faults between the turns of
//! workers. A stale value that the fleet, left alone, keeps for good is a failure.
//!
//! Steps that the scripts' search covers are joined: a fetch and its commit; a message and what it does to an entry.

pub mod redis;
pub mod rules;
pub mod scenarios;
pub mod search;
pub mod worker;

use std::fmt;
use std::hash::{Hash, Hasher};

use redis::{Letter, Redis};
use rules::{Rule, Rules};
use scenarios::Scenario;
use worker::{Heard, Life, Link, Worker};

/// A time, in ticks of a second or so. More than one thing can happen in a tick, as in a millisecond.
pub type Time = i16;
/// A set of jobs: a bit each.
pub type Jobs = u8;

/// The jobs; each has one entry.
pub const JOBS: usize = 2;
/// The workers that may run in all. The last one only begins where no other worker knows a job at rest.
pub const WORKERS: usize = 4;
/// Rounds until a fleet that is left alone is at rest.
const REST: usize = 20;
/// Rounds for which it then does nothing.
const QUIET: usize = 6;

/// A restart of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restart {
    /// It keeps its data.
    Kept,
    /// Its data are gone.
    Empty,
    /// It has the data of the beginning.
    Older,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The next worker does its turn, or, after the last one, time passes.
    Go,
    /// The next worker is slow, and does nothing in this tick.
    Skip,
    /// A job's content is edited, and a message published.
    Publish(usize),
    /// A job's content is edited, and a message written to the inbox.
    Letter(usize),
    /// A subscription's connection breaks.
    Cut(usize),
    /// Nothing comes over a subscription any more.
    Stall(usize),
    /// A worker subscribes.
    Connect(usize),
    /// A worker dies.
    Kill(usize),
    /// A worker stands still.
    Freeze(usize),
    /// It goes on.
    Thaw(usize),
    /// A worker begins, and subscribes.
    Start(usize),
    /// A worker is replaced by another in its process, and takes its record along.
    Retire(usize),
    /// The keys of a job that no worker knows any more are dropped.
    Vanish(usize),
    /// A worker cannot handle what it hears.
    Stick(usize),
    /// It can again.
    Unstick(usize),
    /// The clock is set back.
    Back(u8),
    /// Redis restarts, a tick later.
    Restart(Restart),
    /// A stranger sends a worker's canary with this time.
    Forge(usize, i16),
    /// A job's entry is fetched.
    Refetch(usize),
    /// The lock of the revalidator expires.
    Unlock,
    /// The inbox is trimmed.
    Trim,
    /// Redis evicts the inbox.
    Evict,
}

/// A kind of action that is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "they are named as the actions are")]
pub enum Kind {
    Tick,
    Skip,
    Publish,
    Letter,
    Cut,
    Stall,
    Kill,
    Freeze,
    Start,
    Retire,
    Vanish,
    Stick,
    Back,
    Restart,
    Forge,
    Refetch,
    Unlock,
    Trim,
    Evict,
}

/// The number of kinds.
const KINDS: usize = Kind::Evict as usize + 1;

/// A count that makes no state different.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count(pub u32);

impl PartialEq for Count {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Count {}

impl Hash for Count {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The fleet, Redis and what is around them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The content of Redis.
    pub redis: Redis,
    /// The workers.
    pub workers: [Worker; WORKERS],
    /// The version of each job's content.
    pub upstream: [u8; JOBS],
    /// Jobs whose values are kept without a request, unless messages were lost.
    pub paid: Jobs,
    /// Jobs that nobody knows any more.
    pub vanished: Jobs,
    /// The workers that read the last message of the inbox about each job.
    pub readers: [u8; JOBS],
    /// The next worker, or the number of workers: time passes.
    pub turn: usize,
    /// The number of times that each kind of action may still happen.
    pub left: [u8; KINDS],
    /// Gaps that were noted.
    pub noted: Count,
}

impl World {
    /// Returns the world of a scenario: the workers that run at first have heard for a while, and all is warm.
    pub fn begin(scenario: &Scenario) -> Self {
        let mut redis = Redis::empty(1, 1);
        (redis.marker, redis.high, redis.inbox, redis.digests) = (1, 1, Some(Vec::new()), scenario.all_jobs());
        let mut world = Self {
            redis,
            workers: Default::default(),
            upstream: [1; JOBS],
            paid: scenario.paid,
            vanished: 0,
            readers: [0; JOBS],
            turn: 0,
            left: [0; KINDS],
            noted: Count(0),
        };
        for (w, jobs) in scenario.workers.iter().enumerate() {
            world.workers[w].jobs = *jobs;
            if w < scenario.running {
                world.apply(Rules::ALL, scenario, Action::Start(w));
            }
        }
        for job in (0..JOBS).filter(|job| scenario.running > 0 && scenario.all_jobs() & (1 << job) != 0) {
            world.fetch_job(job);
        }
        for _ in 0..9 {
            world.round(Rules::ALL);
        }
        for (kind, count) in scenario.budget {
            world.left[*kind as usize] = *count;
        }
        world.noted = Count(0);
        world
    }

    fn round(&mut self, rules: Rules) {
        loop {
            self.go(rules, true);
            if self.turn == 0 {
                return;
            }
        }
    }

    /// Does the next worker's turn, or lets time pass.
    fn go(&mut self, rules: Rules, works: bool) {
        while self.turn < WORKERS && self.workers[self.turn].life != Life::Up {
            self.turn += 1;
        }
        if self.turn >= WORKERS {
            self.redis.now += 1;
            for (_, age, _) in self.workers.iter_mut().filter_map(|worker| worker.reading.as_mut()) {
                *age += 1;
            }
            self.turn = 0;
            return;
        }
        if works {
            self.work(rules, self.turn);
        }
        self.turn += 1;
        while self.turn < WORKERS && self.workers[self.turn].life != Life::Up {
            self.turn += 1;
        }
    }

    fn is_stale(&self, job: usize) -> bool {
        self.vanished & (1 << job) == 0
            && self.redis.values[job].is_some_and(|value| value.content != self.upstream[job])
    }

    /// Returns true if an entry has an old value, and nothing in Redis says so.
    pub fn is_in_danger(&self) -> bool {
        (0..JOBS).any(|job| self.is_stale(job) && self.redis.values[job].is_some_and(|value| !value.is_invalidated))
    }

    /// Returns true if no time is left to pass.
    pub fn is_over(&self) -> bool {
        self.left[Kind::Tick as usize] == 0
    }

    /// Returns the actions that can happen.
    pub fn actions(&self, scenario: &Scenario) -> Vec<Action> {
        let has = |kind: Kind| self.left[kind as usize] > 0;
        let mut actions = Vec::with_capacity(24);
        let is_tick = !self.workers[self.turn.min(WORKERS)..].iter().any(|worker| worker.life == Life::Up);
        if !is_tick || has(Kind::Tick) {
            actions.push(Action::Go);
        }
        if !is_tick && has(Kind::Skip) {
            actions.push(Action::Skip);
        }
        for job in (0..JOBS).filter(|job| scenario.edited & (1 << job) != 0) {
            actions.extend(has(Kind::Publish).then_some(Action::Publish(job)));
            actions.extend((has(Kind::Letter) && !self.is_known_fault()).then_some(Action::Letter(job)));
            let fetches = |worker: &Worker| worker.life == Life::Up && worker.knows(job) && worker.has_heard();
            let may = has(Kind::Refetch) && self.workers.iter().any(fetches);
            actions.extend(may.then_some(Action::Refetch(job)));
        }
        for (w, worker) in self.workers.iter().enumerate() {
            let is_up = worker.life == Life::Up;
            let is_linked = is_up && worker.link == Link::Up;
            let mut add = |may: bool, kind: Kind, action: Action| actions.extend((may && has(kind)).then_some(action));
            add(is_linked, Kind::Cut, Action::Cut(w));
            add(is_linked, Kind::Stall, Action::Stall(w));
            add(is_up, Kind::Kill, Action::Kill(w));
            add(is_up, Kind::Freeze, Action::Freeze(w));
            add(worker.life == Life::Unborn && worker.jobs != 0, Kind::Start, Action::Start(w));
            add(is_up && worker.is_checked && self.has_heir(w), Kind::Retire, Action::Retire(w));
            add(is_up && !worker.is_stuck, Kind::Stick, Action::Stick(w));
            if has(Kind::Forge) && is_linked {
                let times = [1, worker.before + 1, self.redis.now - 1, self.redis.now + 4];
                actions.extend(times.map(|at| Action::Forge(w, at)));
            }
            actions.extend((is_up && worker.link == Link::Down).then_some(Action::Connect(w)));
            actions.extend((worker.life == Life::Frozen).then_some(Action::Thaw(w)));
            actions.extend((is_up && worker.is_stuck).then_some(Action::Unstick(w)));
        }
        if has(Kind::Back) {
            actions.extend(scenario.back.iter().map(|by| Action::Back(*by)));
        }
        if has(Kind::Restart) {
            actions.extend(scenario.restarts.iter().map(|how| Action::Restart(*how)));
        }
        let may_vanish = |job: &usize| has(Kind::Vanish) && self.is_forgotten(*job);
        actions.extend((0..JOBS).filter(may_vanish).map(Action::Vanish));
        actions.extend((has(Kind::Unlock) && self.redis.lock.is_some()).then_some(Action::Unlock));
        let is_filled = self.redis.inbox.as_ref().is_some_and(|inbox| !inbox.is_empty());
        actions.extend((has(Kind::Trim) && is_filled).then_some(Action::Trim));
        actions.extend((has(Kind::Evict) && is_filled).then_some(Action::Evict));
        actions
    }

    /// Returns true if the next message in the inbox hides a loss: a worker has handled a message that Redis lost, and
    /// has not acknowledged it. That fault is known: docs/verification.md.
    fn is_known_fault(&self) -> bool {
        let lost = |letter: &(Letter, bool)| letter.1 && letter.0.id > self.redis.last_id;
        self.workers.iter().any(|worker| worker.letter.as_ref().is_some_and(lost))
    }

    /// Returns true if a later worker knows the jobs of this one, hears and has checked.
    fn has_heir(&self, w: usize) -> bool {
        self.workers[w + 1..].iter().any(|heir| heir.life == Life::Up && heir.is_checked)
    }

    /// Returns true if a job is kept in Redis whose workers are gone.
    fn is_forgotten(&self, job: usize) -> bool {
        let gone = |worker: &Worker| worker.life == Life::Gone || !worker.knows(job);
        self.redis.digests & (1 << job) != 0 && self.workers.iter().all(gone)
    }

    fn spend(&mut self, kind: Kind) {
        let left = &mut self.left[kind as usize];
        *left = left.saturating_sub(1);
    }

    /// Carries out an action.
    pub fn apply(&mut self, rules: Rules, scenario: &Scenario, action: Action) {
        match action {
            Action::Go | Action::Skip => {
                let before = self.redis.now;
                self.go(rules, action == Action::Go);
                if self.redis.now != before {
                    self.spend(Kind::Tick);
                }
                if action == Action::Skip {
                    self.spend(Kind::Skip);
                }
            }
            Action::Publish(job) => {
                self.spend(Kind::Publish);
                self.publish(job);
            }
            Action::Letter(job) => {
                self.spend(Kind::Letter);
                self.write(job);
            }
            Action::Cut(w) => {
                self.spend(Kind::Cut);
                self.workers[w].lose(rules);
            }
            Action::Stall(w) => {
                self.spend(Kind::Stall);
                self.workers[w].link = Link::Stalled;
            }
            Action::Connect(w) => self.connect(rules, w),
            Action::Kill(w) => {
                self.spend(Kind::Kill);
                self.end(w);
            }
            Action::Freeze(w) => {
                self.spend(Kind::Freeze);
                self.workers[w].life = Life::Frozen;
            }
            Action::Thaw(w) => self.workers[w].life = Life::Up,
            Action::Start(w) => {
                self.spend(Kind::Start);
                self.workers[w].life = Life::Up;
                self.connect(rules, w);
            }
            Action::Retire(w) => {
                self.spend(Kind::Retire);
                self.end(w);
                self.redis.records[w] = None;
            }
            Action::Stick(w) => {
                self.spend(Kind::Stick);
                self.workers[w].is_stuck = true;
            }
            Action::Unstick(w) => self.workers[w].is_stuck = false,
            _ => self.meddle(rules, scenario, action),
        }
    }

    /// Carries out what happens to Redis itself, and what strangers do.
    fn meddle(&mut self, rules: Rules, scenario: &Scenario, action: Action) {
        match action {
            Action::Back(by) => {
                self.spend(Kind::Back);
                self.redis.now -= Time::from(by);
            }
            Action::Restart(how) => {
                self.spend(Kind::Restart);
                self.restart(rules, scenario, how);
            }
            Action::Forge(w, at) => {
                self.spend(Kind::Forge);
                if self.workers[w].is_exposed || !rules.has(Rule::Nonce) {
                    self.workers[w].hear(rules, at);
                }
            }
            Action::Refetch(job) => {
                self.spend(Kind::Refetch);
                self.fetch_job(job);
            }
            // `JobCleaner::round`, and the records of workers that are gone for long.
            Action::Vanish(job) => {
                self.spend(Kind::Vanish);
                self.vanished |= 1 << job;
                self.redis.digests &= !self.vanished;
                self.redis.records.iter_mut().flatten().for_each(|record| record.jobs &= !(1 << job));
            }
            Action::Unlock => {
                self.spend(Kind::Unlock);
                self.redis.lock = None;
            }
            Action::Trim => {
                self.spend(Kind::Trim);
                let note = self.new_letter(None);
                self.redis.inbox = Some(Vec::from_iter(rules.has(Rule::Trimmed).then_some(note)));
            }
            _ => {
                self.spend(Kind::Evict);
                (self.redis.inbox, self.redis.last_id) = (None, 0);
            }
        }
    }

    /// Edits a job's content, and publishes that to those that are subscribed.
    fn publish(&mut self, job: usize) {
        self.upstream[job] += 1;
        for worker in &mut self.workers {
            if matches!(worker.life, Life::Up | Life::Frozen) && worker.link == Link::Up {
                worker.queue.push(Heard::Message(job));
            }
        }
    }

    fn new_letter(&mut self, job: Option<usize>) -> Letter {
        self.redis.last_id = (self.redis.now * 16).max(self.redis.last_id + 1);
        Letter { id: self.redis.last_id, job, owner: None }
    }

    fn write(&mut self, job: usize) {
        self.upstream[job] += 1;
        self.readers[job] = 0;
        let letter = self.new_letter(Some(job));
        self.redis.inbox.get_or_insert_default().push(letter);
    }

    /// `Channel::subscribe`.
    fn connect(&mut self, rules: Rules, w: usize) {
        let worker = &mut self.workers[w];
        worker.link = Link::Up;
        // `GapDetector::subscribed`
        if rules.has(Rule::NoncesBegin) {
            (worker.is_exposed, worker.unheard) = (false, 0);
        }
    }

    fn end(&mut self, w: usize) {
        let jobs = self.workers[w].jobs;
        self.workers[w] = Worker { life: Life::Gone, jobs, ..Worker::default() };
        self.readers.iter_mut().for_each(|readers| *readers &= !(1 << w));
    }

    fn restart(&mut self, rules: Rules, scenario: &Scenario, how: Restart) {
        let (now, life) = (self.redis.now + 1, self.redis.life + 1);
        match how {
            Restart::Kept => {}
            Restart::Empty => self.redis = Redis::empty(now, life),
            Restart::Older => self.redis = Self::begin(scenario).redis,
        }
        (self.redis.now, self.redis.life, self.redis.lock) = (now, life, None);
        for worker in &mut self.workers {
            if let Some((_, age, _)) = worker.reading.as_mut() {
                *age += 1;
            }
            if worker.life == Life::Up {
                worker.lose(rules);
            }
            if worker.life == Life::Frozen {
                worker.link = Link::Down;
            }
        }
    }

    /// Leaves the fleet alone until it is at rest: nothing fails, and for each job a worker that knows it runs.
    ///
    /// # Errors
    /// A stale value that stays, a gap that stays open, or gaps that are noted although nothing happens.
    pub fn rest(&self, rules: Rules, is_brief: bool, mut tell: impl FnMut(&Self)) -> Result<(), Violation> {
        let mut world = self.clone();
        let alive = |world: &Self| world.workers.each_ref().map(|worker| worker.life == Life::Up);
        let known = |world: &Self| {
            let up = world.workers.iter().filter(|worker| worker.life == Life::Up);
            up.fold(0, |jobs, worker| jobs | worker.jobs)
        };
        for worker in &mut world.workers {
            if worker.life == Life::Frozen {
                worker.life = Life::Up;
            }
            worker.is_stuck = false;
        }
        let before = alive(&world);
        let all = world.workers.iter().fold(0, |jobs, worker| jobs | worker.jobs) & !world.vanished;
        for w in 0..WORKERS {
            let missing = all & !known(&world);
            let worker = &mut world.workers[w];
            if missing == 0 || worker.life != Life::Unborn {
                continue;
            }
            if worker.jobs == 0 {
                worker.jobs = all;
            }
            worker.life = Life::Up;
        }
        for round in 0..REST {
            for w in 0..WORKERS {
                if world.workers[w].life == Life::Up && world.workers[w].link == Link::Down {
                    world.connect(rules, w);
                }
            }
            if round % 4 == 3 && world.redis.lock.is_some_and(|w| world.workers[w].life != Life::Up) {
                world.redis.lock = None;
            }
            world.round(rules);
            tell(&world);
            if is_brief && !(0..JOBS).any(|job| world.is_stale(job)) {
                return Ok(());
            }
        }
        for job in (0..JOBS).filter(|job| world.is_stale(*job)) {
            let remembers = before.iter().enumerate().any(|(w, up)| *up && world.readers[job] & (1 << w) != 0);
            if world.paid & (1 << job) == 0 || remembers {
                return Err(Violation(format!("job {job} keeps an old value for good")));
            }
        }
        if let Some(note) = world.redis.note {
            return Err(Violation(format!("{note:?} stays open")));
        }
        let noted = world.noted.0;
        for _ in 0..QUIET {
            world.round(rules);
        }
        if world.noted.0 != noted {
            return Err(Violation("gaps are noted although nothing happens".to_owned()));
        }
        Ok(())
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let redis = &self.redis;
        writeln!(f, "      now {} note {:?} handled {:?} lock {:?}", redis.now, redis.note, redis.handled, redis.lock)?;
        writeln!(f, "      upstream {:?} values {:?}", self.upstream, redis.values)?;
        for (w, record) in redis.records.iter().enumerate().filter_map(|(w, record)| Some((w, (*record)?))) {
            writeln!(f, "      record of {w}: {record:?}")?;
        }
        for (w, worker) in self.workers.iter().enumerate().filter(|(_, worker)| worker.life == Life::Up) {
            writeln!(
                f,
                "      worker {w}: {:?} since {} last {} before {} queue {:?} handled {} checked {} {:?}",
                worker.link,
                worker.since,
                worker.last,
                worker.before,
                worker.queue,
                worker.handled,
                worker.is_checked,
                worker.revalidation
            )?;
        }
        if redis.inbox.as_ref().is_none_or(|inbox| !inbox.is_empty()) {
            writeln!(f, "      inbox {:?}", redis.inbox)?;
        }
        Ok(())
    }
}
