//! The actions, and which of them can happen.

use super::invalidator::Scope;
use super::worker::How;
use super::{ENTRIES, Load, Step, World};
use crate::calls::{self, TTL};
use crate::engine::Engine;

/// A kind of action that a scenario bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Action` says what each is")]
pub enum Kind {
    Refresh,
    Evict,
    RefreshTag,
    EvictTag,
    Repeat,
    Announce,
    AnyVersion,
    Vanish,
    Crash,
    Lost,
    HandBack,
    Fail,
    Lag,
    Load,
    Set,
    Delete,
    Increment,
    Foreign,
    ForeignForever,
    ForeignHash,
    Demand,
    Manual,
    Cron,
    Tick,
    Jump,
    Back,
    FarBack,
    Sweep,
    OtherTag,
    Pause,
    Wake,
    Late,
    RefreshAll,
    EvictAll,
    Doubt,
    Stranger,
    Lose,
    Accept,
    Uphold,
    LoseGuard,
    Slow,
}

impl Kind {
    /// The number of kinds.
    pub const COUNT: usize = Self::Slow as usize + 1;
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An editor saves an entry and publishes its refresh.
    Refresh(usize),
    /// An editor saves an entry and publishes its eviction.
    Evict(usize),
    /// An editor saves all entries and publishes the refresh of the tag.
    RefreshTag,
    /// As above, with an eviction.
    EvictTag,
    /// A refresh without an edit.
    Repeat(usize),
    /// An editor saves an entry and announces its version.
    Announce(usize),
    /// An editor allows any version.
    AnyVersion(usize),
    /// The upstream loses an entry, and publishes its refresh.
    Vanish(usize),
    /// The next step of a message.
    Message(usize),
    /// As above; the reply is lost, and the message begins anew.
    MessageLost(usize),
    /// The worker that handles a message dies.
    MessageCrash(usize),
    /// The next step of a worker.
    Work(usize),
    /// As above; the reply is lost.
    WorkLost(usize),
    /// A worker claims, and gives up before Redis carries it out.
    WorkLate(usize),
    /// Redis carries out the oldest such claim.
    Arrive,
    /// A worker's request fails.
    Fail(usize),
    /// A worker's request is answered with the content before.
    Lag(usize),
    /// A worker dies.
    Crash(usize),
    /// A worker stops, and gives back what it holds.
    HandBack(usize),
    /// The lease of a dead worker is released.
    Rescue,
    /// The next step of a service's load.
    Load(usize),
    /// As above; the reply is lost.
    LoadLost,
    /// The service dies.
    LoadCrash,
    /// The loader fails.
    LoadFails,
    /// A service writes.
    Set(usize),
    /// A service deletes.
    Delete(usize),
    /// A service counts.
    Increment,
    /// Another program writes the content that it read before the last edit, with a TTL.
    Foreign(usize),
    /// As above, without a TTL.
    ForeignForever(usize),
    /// Another program writes a hash.
    ForeignHash(usize),
    /// A miss makes an entry due.
    Demand(usize),
    /// A person makes an entry due.
    Manual(usize),
    /// A warmup makes an entry due.
    Cron(usize),
    /// A millisecond passes.
    Tick,
    /// Time passes until something is due or expires.
    Jump,
    /// The clock is set back by a few milliseconds.
    Back,
    /// The clock is set back by three hours.
    FarBack,
    /// Dead parts of the tag are swept; in a job with a guard, its entries without a mark are sought.
    Sweep,
    /// One of these leaves the guard.
    Forget,
    /// A person accepts removals.
    Accept,
    /// A person has them held back for longer.
    Uphold,
    /// Redis loses the guard.
    LoseGuard,
    /// An invalidation of another tag, which no entry has.
    OtherTag,
    /// The job is paused, or goes on.
    Pause,
    /// An input of an entry changed.
    Wake(usize),
    /// Time passes until a second before the first value expires.
    Late,
    /// An editor saves all entries and publishes the refresh of a pattern.
    RefreshAll,
    /// As above, with an eviction.
    EvictAll,
    /// After a gap, an invalidation of an entry may have been missed.
    Doubt(usize),
    /// Another program writes texts to the keys of dead letters, their reasons and the counters.
    Stranger,
    /// The upstream loses an entry, and publishes nothing.
    Lose(usize),
}

impl Action {
    /// Returns the kind that bounds it.
    pub fn kind(self) -> Option<Kind> {
        Some(match self {
            Self::Refresh(_) => Kind::Refresh,
            Self::Evict(_) => Kind::Evict,
            Self::RefreshTag => Kind::RefreshTag,
            Self::EvictTag => Kind::EvictTag,
            Self::Repeat(_) => Kind::Repeat,
            Self::Announce(_) => Kind::Announce,
            Self::AnyVersion(_) => Kind::AnyVersion,
            Self::Vanish(_) => Kind::Vanish,
            Self::MessageLost(_) | Self::WorkLost(_) | Self::LoadLost => Kind::Lost,
            Self::MessageCrash(_) | Self::Crash(_) | Self::LoadCrash => Kind::Crash,
            Self::Fail(_) | Self::LoadFails => Kind::Fail,
            Self::Lag(_) => Kind::Lag,
            Self::HandBack(_) => Kind::HandBack,
            Self::Set(_) => Kind::Set,
            Self::Delete(_) => Kind::Delete,
            Self::Increment => Kind::Increment,
            Self::Foreign(_) => Kind::Foreign,
            Self::ForeignForever(_) => Kind::ForeignForever,
            Self::ForeignHash(_) => Kind::ForeignHash,
            Self::Demand(_) => Kind::Demand,
            Self::Manual(_) => Kind::Manual,
            Self::Cron(_) => Kind::Cron,
            Self::Tick => Kind::Tick,
            Self::Jump => Kind::Jump,
            Self::Back => Kind::Back,
            Self::FarBack => Kind::FarBack,
            Self::Sweep => Kind::Sweep,
            Self::OtherTag => Kind::OtherTag,
            Self::Pause => Kind::Pause,
            Self::Wake(_) => Kind::Wake,
            Self::Late => Kind::Late,
            Self::RefreshAll => Kind::RefreshAll,
            Self::EvictAll => Kind::EvictAll,
            Self::Doubt(_) => Kind::Doubt,
            Self::Stranger => Kind::Stranger,
            Self::Lose(_) => Kind::Lose,
            Self::Accept => Kind::Accept,
            Self::Uphold => Kind::Uphold,
            Self::LoseGuard => Kind::LoseGuard,
            Self::WorkLate(_) => Kind::Slow,
            Self::Message(_) | Self::Work(_) | Self::Arrive | Self::Rescue | Self::Load(_) | Self::Forget => {
                return None;
            }
        })
    }
}

impl World {
    /// Returns the actions that can happen, for so many entries.
    pub fn actions(&self, engine: &Engine, entries: usize) -> Vec<Action> {
        let mut all = Vec::new();
        for entry in 0..entries {
            all.extend([
                Action::Refresh(entry),
                Action::Evict(entry),
                Action::Repeat(entry),
                Action::Announce(entry),
                Action::AnyVersion(entry),
                Action::Vanish(entry),
                Action::Set(entry),
                Action::Delete(entry),
                Action::Foreign(entry),
                Action::ForeignForever(entry),
                Action::ForeignHash(entry),
                Action::Demand(entry),
                Action::Manual(entry),
                Action::Cron(entry),
                Action::Wake(entry),
                Action::Doubt(entry),
                Action::Lose(entry),
            ]);
            if self.load == Load::None && self.left[Kind::Load as usize] > 0 {
                all.push(Action::Load(entry));
            }
        }
        all.extend([Action::RefreshTag, Action::EvictTag, Action::Increment, Action::Tick, Action::Jump]);
        all.extend([Action::Back, Action::FarBack, Action::Sweep, Action::OtherTag, Action::Pause]);
        all.extend([Action::Late, Action::RefreshAll, Action::EvictAll, Action::Stranger]);
        all.extend([Action::Accept, Action::Uphold, Action::LoseGuard]);
        all.extend((!self.swept.is_empty()).then_some(Action::Forget));
        for (n, message) in self.messages.iter().enumerate() {
            if message.retry_at <= self.now() {
                all.extend([Action::Message(n), Action::MessageLost(n), Action::MessageCrash(n)]);
            }
        }
        for (n, worker) in self.workers.iter().enumerate() {
            // Of two that are idle, one is enough.
            let is_other = n == 1 && worker.task.is_none() && self.workers[0].task.is_none();
            if !is_other && self.has_work(engine, n) {
                all.extend([Action::Work(n), Action::WorkLost(n)]);
                all.extend(worker.task.is_none().then_some(Action::WorkLate(n)));
            }
            if let Some(task) = &worker.task {
                all.push(Action::Crash(n));
                if task.stage == super::Stage::Leased {
                    all.extend([Action::HandBack(n), Action::Fail(n), Action::Lag(n)]);
                }
            }
        }
        all.extend((!self.late.is_empty()).then_some(Action::Arrive));
        if !self.orphans.is_empty() {
            all.push(Action::Rescue);
        }
        if self.load != Load::None {
            all.extend([Action::Load(0), Action::LoadLost, Action::LoadCrash, Action::LoadFails]);
        }
        all.retain(|action| action.kind().is_none_or(|kind| self.left[kind as usize] > 0));
        all
    }

    pub(super) fn put(&mut self, engine: &Engine, entry: usize, how: &str, trigger: u8) -> Step {
        let was_there = self.db.score(calls::AGENDA, ENTRIES[entry]).is_some();
        self.run(engine, &calls::due(how, trigger, 0, &[ENTRIES[entry]]))?;
        if !was_there {
            self.known[entry].wanted = Some(self.now());
        }
        Ok(())
    }

    fn edit(&mut self, entry: usize) {
        self.known[entry].content += 1;
        self.known[entry].missing = false;
    }

    pub(super) fn act(&mut self, engine: &Engine, action: Action) -> Step {
        match action {
            Action::Refresh(entry) | Action::Evict(entry) => {
                self.edit(entry);
                self.publish(Scope::Entry(entry), matches!(action, Action::Evict(_)), String::new());
            }
            Action::RefreshTag | Action::EvictTag => {
                (0..ENTRIES.len()).for_each(|entry| self.edit(entry));
                self.publish(Scope::Tag, action == Action::EvictTag, String::new());
            }
            Action::RefreshAll | Action::EvictAll => {
                (0..ENTRIES.len()).for_each(|entry| self.edit(entry));
                self.publish(Scope::All, action == Action::EvictAll, String::new());
            }
            Action::Repeat(entry) => self.publish(Scope::Entry(entry), false, String::new()),
            Action::Announce(entry) => {
                self.edit(entry);
                self.publish(Scope::Entry(entry), false, self.known[entry].content.to_string());
            }
            Action::Doubt(entry) => self.doubt(entry),
            Action::Lose(entry) => self.known[entry].missing = true,
            Action::AnyVersion(entry) => self.publish(Scope::Entry(entry), false, "any".into()),
            Action::Vanish(entry) => {
                self.edit(entry);
                self.known[entry].missing = true;
                self.publish(Scope::Entry(entry), false, String::new());
            }
            Action::Message(n) => self.handle(engine, n, false)?,
            Action::MessageLost(n) => self.handle(engine, n, true)?,
            Action::MessageCrash(n) => self.begin_anew(n),
            Action::Work(n) => self.work(engine, n, How::Well)?,
            Action::WorkLost(n) => self.work(engine, n, How::Lost)?,
            Action::WorkLate(n) => self.work(engine, n, How::Late)?,
            Action::Arrive => self.arrive(engine)?,
            Action::Fail(n) => self.work(engine, n, How::Fails)?,
            Action::Lag(n) => self.work(engine, n, How::Lags)?,
            Action::Crash(n) => self.crash(engine, n),
            Action::HandBack(n) => self.hand_back(engine, n)?,
            Action::Rescue => self.rescue(engine)?,
            Action::Load(entry) => {
                if self.load == Load::None {
                    self.left[Kind::Load as usize] -= 1;
                }
                self.load(engine, entry, false)?;
            }
            Action::LoadLost => self.load(engine, 0, true)?,
            Action::LoadCrash => self.end_load(engine, false)?,
            Action::LoadFails => self.end_load(engine, true)?,
            Action::Set(entry) => self.set(engine, entry)?,
            Action::Delete(entry) => self.delete(engine, entry)?,
            Action::Increment => self.increment(engine)?,
            Action::Foreign(entry) => {
                let value = format!("f{}", self.known[entry].content.saturating_sub(1));
                engine.command(&mut self.db, &["SET", ENTRIES[entry], &value, "PX", &(TTL / 2).to_string()]);
            }
            Action::ForeignForever(entry) => {
                let value = format!("f{}", self.known[entry].content.saturating_sub(1));
                engine.command(&mut self.db, &["SET", ENTRIES[entry], &value]);
            }
            Action::ForeignHash(entry) => {
                engine.command(&mut self.db, &["DEL", ENTRIES[entry]]);
                engine.command(&mut self.db, &["HSET", ENTRIES[entry], "x", "1"]);
            }
            Action::Stranger => {
                for key in [calls::DEAD_LETTERS, calls::REASONS, calls::STATS] {
                    engine.command(&mut self.db, &["SET", key, "x"]);
                }
            }
            Action::Demand(entry) => self.put(engine, entry, "urgent", 3)?,
            Action::Manual(entry) => self.put(engine, entry, "urgent", 4)?,
            Action::Cron(entry) => self.put(engine, entry, "due", 0)?,
            Action::Wake(entry) => {
                self.run(engine, &calls::due("there", 1, 0, &[ENTRIES[entry]]))?;
            }
            Action::Late => {
                let at = self.expiry(0) - 1_000;
                if at > self.now() {
                    engine.set_clock(&mut self.db, at);
                }
            }
            Action::Tick => {
                let now = self.now();
                engine.set_clock(&mut self.db, now + 1);
            }
            Action::Jump => {
                if let Some(at) = self.next_event(engine) {
                    engine.set_clock(&mut self.db, at);
                }
            }
            Action::Back | Action::FarBack => {
                let by = if action == Action::Back { 3 } else { 3 * 3_600_000 };
                let now = self.now();
                engine.set_clock(&mut self.db, now - by);
                self.epoch += 1;
                // Workers wait by their own clocks.
                self.messages.iter_mut().for_each(|message| message.retry_at -= by);
                self.known.iter_mut().for_each(|known| known.wanted = None);
            }
            Action::Sweep if self.job.held => self.sweep_guard(engine),
            Action::Sweep => {
                self.run(engine, &calls::sweep())?;
            }
            Action::Forget => self.forget_swept(engine)?,
            Action::Accept => self.accept_removals(engine)?,
            Action::Uphold => {
                self.upheld = true;
                self.run(engine, &calls::guard_decision("hold"))?;
            }
            Action::LoseGuard => {
                engine.command(&mut self.db, &["DEL", calls::GUARD]);
            }
            Action::OtherTag => {
                let at = self.now();
                let other = format!("other{}", self.left[Kind::OtherTag as usize] % 3);
                self.run(engine, &calls::stamp_unknown(&other, at, false))?;
            }
            Action::Pause => {
                if self.db.slot(calls::PAUSED).is_none() {
                    engine.command(&mut self.db, &["SET", calls::PAUSED, "1"]);
                } else {
                    engine.command(&mut self.db, &["DEL", calls::PAUSED]);
                }
            }
        }
        Ok(())
    }
}
