//! The invalidator: the store first, then the agenda, then the acknowledgement. A crash begins the message anew.

use super::{ENTRIES, Rule, Step, Violation, World};
use crate::calls::{self, LOADED, PATIENCE, PAUSE, RECHECK, REMEMBERED, STAMPED, TAG};
use crate::engine::Engine;
use crate::properties;

/// The member that says that the set names all loads.
const WHOLE: &str = "\0";

/// A step of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Todo {
    /// Its time is that of its receipt.
    Receive,
    Invalidate(usize),
    Due(usize),
    /// `Revalidator::mark_leases` and `mark_stale`: the entry becomes due, and nothing is marked.
    Compare(usize),
    Cancel(usize),
    /// The guard is told that nothing is held back.
    Recover(usize),
    /// The entry has no value: a recheck follows.
    Keep(usize),
    Stamp,
    StampUnknown,
    /// The entries under the tag.
    Read,
    /// The loads of services, once all are tracked.
    Loaded,
    /// Tracks earlier loads: those under way, then the values.
    Seek {
        leases: bool,
    },
    /// The entries that match a pattern: those that have leases, then those that have values.
    Scan {
        leases: bool,
    },
}

/// The part that a message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// One entry.
    Entry(usize),
    /// The tag.
    Tag,
    /// All entries of the job, by a pattern or by the job's name.
    All,
}

/// An invalidation that was published.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    scope: Scope,
    evict: bool,
    /// It is only a doubt after a gap.
    doubt: bool,
    /// It only may have been missed, of a value that costs money: its prompt is compared.
    compares: bool,
    /// The version that it announces: `''`, a number or `any`.
    version: String,
    /// The content of each entry when it was published.
    content: [u32; 2],
    at: (i64, u8),
    todo: Vec<Todo>,
    /// When it is tried again.
    pub retry_at: i64,
}

impl Message {
    fn begin(&mut self, channel: bool) {
        self.todo = if channel { vec![Todo::Receive] } else { Vec::new() };
        match self.scope {
            Scope::Entry(entry) if self.compares => self.todo.push(Todo::Compare(entry)),
            Scope::Entry(entry) => self.todo.push(Todo::Invalidate(entry)),
            Scope::Tag => self.todo.push(Todo::Stamp),
            Scope::All => self.todo.extend([Todo::Scan { leases: true }, Todo::Scan { leases: false }]),
        }
    }

    /// Returns true if the message may concern this entry.
    pub fn concerns(&self, entry: usize) -> bool {
        self.scope == Scope::Entry(entry) || !matches!(self.scope, Scope::Entry(_))
    }
}

impl World {
    /// Publishes an invalidation.
    pub(crate) fn publish(&mut self, scope: Scope, evict: bool, version: String) {
        let content = [0, 1].map(|entry: usize| self.known[entry].content);
        let at = (self.now(), self.epoch);
        let (doubt, compares, todo) = (false, false, Vec::new());
        let mut message = Message { scope, evict, doubt, compares, version, content, at, todo, retry_at: 0 };
        message.begin(self.job.channel);
        self.messages.push(message);
    }

    /// Revalidates an entry after a gap.
    pub(crate) fn doubt(&mut self, entry: usize) {
        self.publish(Scope::Entry(entry), false, String::new());
        let (channel, compares) = (self.job.channel, self.job.doubts);
        if let Some(message) = self.messages.last_mut() {
            (message.doubt, message.compares) = (true, compares);
            message.begin(channel);
        }
    }

    /// Does a message's next step. `lost`: the reply does not arrive, and the message is handled anew.
    pub(crate) fn handle(&mut self, engine: &Engine, n: usize, lost: bool) -> Step {
        let mut message = self.messages[n].clone();
        let step = message.todo.remove(0);
        self.carry_out(engine, &mut message, &step)?;
        if lost {
            message.begin(false);
        }
        if message.todo.is_empty() {
            self.messages.remove(n);
        } else {
            self.messages[n] = message;
        }
        Ok(())
    }

    /// Begins a message anew: its worker died.
    pub(crate) fn begin_anew(&mut self, n: usize) {
        let channel = self.job.channel && self.messages[n].todo.first() == Some(&Todo::Receive);
        self.messages[n].begin(channel);
    }

    fn carry_out(&mut self, engine: &Engine, message: &mut Message, step: &Todo) -> Step {
        let (at, evict) = (message.at.0, message.evict);
        match *step {
            Todo::Receive => message.at = (self.now(), self.epoch),
            Todo::Invalidate(entry) => self.invalidate(engine, message, entry)?,
            Todo::Due(entry) => {
                let how = if matches!(message.scope, Scope::Entry(_)) { "urgent" } else { "bulk" };
                self.run(engine, &calls::due(how, 1, 0, &[ENTRIES[entry]]))?;
                // A demand for it goes along with it, and goes with it where it is evicted.
                (self.known[entry].dead, self.known[entry].wanted) = (false, None);
            }
            Todo::Compare(entry) => {
                self.run(engine, &calls::due("due", 1, 0, &[ENTRIES[entry]]))?;
            }
            Todo::Cancel(entry) => {
                let due = self.db.score(calls::AGENDA, ENTRIES[entry]).map(|score| engine.due(score));
                (self.known[entry].stays, self.known[entry].evicted) = (false, true);
                // One that runs leaves, whenever it was asked for: the protocol promises no order of the two.
                let runs = due.as_ref().is_some_and(|due| due.state == "running");
                if self.known[entry].wanted.is_some_and(|wanted| wanted <= at) || runs {
                    self.known[entry].wanted = None;
                }
                // A refresh that has marked a lease of which no worker knows: see `faults`.
                let leaves = due.is_some_and(|due| due.state != "running" && matches!(due.trigger, 2 | 5));
                let is_marked = properties::mark(&self.db, entry) == Some('r');
                self.known[entry].dead |= leaves && is_marked && !self.job.strict;
                self.run(engine, &calls::cancel(ENTRIES[entry], at))?;
            }
            Todo::Recover(entry) => {
                self.run(engine, &calls::guard_recovery(ENTRIES[entry], ""))?;
            }
            Todo::Keep(entry) => {
                self.run(engine, &calls::due("keep", 5, at + RECHECK, &[ENTRIES[entry]]))?;
            }
            Todo::Stamp => {
                let is_known = self.run(engine, &calls::stamp(at, evict))?.int() == 1;
                message.todo.push(if is_known { Todo::Read } else { Todo::StampUnknown });
            }
            Todo::StampUnknown => {
                self.run(engine, &calls::stamp_unknown("T", at, evict))?;
                message.todo.push(Todo::Read);
            }
            Todo::Read => {
                let found = engine.command(&mut self.db, &["ZRANGE", TAG, "0", "-1"]);
                for member in found.parts() {
                    let entry = ENTRIES.iter().position(|of| *of == member.text());
                    message.todo.extend(entry.map(Todo::Invalidate));
                }
                if self.job.loads && self.has(Rule::Loaded) {
                    message.todo.push(Todo::Loaded);
                }
            }
            Todo::Loaded => self.read_loaded(engine, message),
            Todo::Seek { leases } => self.seek_loaded(engine, leases)?,
            Todo::Scan { leases } => {
                let mut found = Vec::new();
                for (entry, name) in ENTRIES.into_iter().enumerate() {
                    let key = if leases { calls::lease_key(name) } else { name.to_owned() };
                    if engine.command(&mut self.db, &["EXISTS", &key]).int() == 1 {
                        found.push(Todo::Invalidate(entry));
                    }
                }
                message.todo.splice(0..0, found);
            }
        }
        if message.todo.is_empty() && !matches!(message.scope, Scope::Entry(_)) {
            for entry in 0..ENTRIES.len() {
                let is_tag = message.scope == Scope::Tag;
                self.handled(entry, message.content[entry], message.at, message.evict, is_tag);
            }
        }
        Ok(())
    }

    /// `Invalidator::loaded_in`: invalidates what services load, and what they loaded.
    fn read_loaded(&mut self, engine: &Engine, message: &mut Message) {
        if self.db.score(LOADED, WHOLE) != Some(-1.0) {
            engine.command(&mut self.db, &["ZADD", LOADED, "-2", WHOLE]);
            message.todo.extend([Todo::Seek { leases: true }, Todo::Seek { leases: false }, Todo::Loaded]);
            return;
        }
        let found = engine.command(&mut self.db, &["ZRANGE", LOADED, "0", "-1"]);
        for member in found.parts() {
            let entry = ENTRIES.iter().position(|of| *of == member.text());
            message
                .todo
                .extend(entry.filter(|entry| self.life_of_load(engine, *entry).is_some()).map(Todo::Invalidate));
        }
    }

    /// `Store::track_all`: tracks the loads under way, or the values that are no worker's.
    fn seek_loaded(&mut self, engine: &Engine, leases: bool) -> Step {
        for (entry, name) in ENTRIES.into_iter().enumerate() {
            let key = if leases { calls::lease_key(name) } else { name.to_owned() };
            let is_there = engine.command(&mut self.db, &["EXISTS", &key]).int() == 1;
            if let Some(life) = self.life_of_load(engine, entry).filter(|life| is_there && *life > 0) {
                self.run(engine, &calls::track_found(name, life))?;
            }
        }
        if !leases {
            engine.command(&mut self.db, &["ZADD", LOADED, "XX", "-1", WHOLE]);
        }
        Ok(())
    }

    /// Returns for how long a load is to be tracked, below zero if it has no end; `None` where there is none.
    fn life_of_load(&self, engine: &Engine, entry: usize) -> Option<i64> {
        if properties::mark(&self.db, entry) == Some('=') {
            return Some(STAMPED);
        }
        let expiry = self.expiry(entry);
        let is_ours = self.meta(engine, entry).is_some_and(|meta| meta.own_expiry == expiry);
        (expiry != -2 && !is_ours).then_some(expiry - self.now())
    }

    fn invalidate(&mut self, engine: &Engine, message: &mut Message, entry: usize) -> Result<(), Violation> {
        let (at, evict) = (message.at.0, message.evict);
        let pauses = if self.job.paid { PAUSE } else { (PAUSE.0, PAUSE.0) };
        let (was_there, before) = (self.readable(entry), self.meta(engine, entry));
        let call = match message.doubt {
            true => calls::doubt(ENTRIES[entry], at, pauses, self.job.last_recheck()),
            false => {
                let times = (REMEMBERED, self.job.last_recheck());
                calls::invalidate(ENTRIES[entry], at, evict, pauses, times, &message.version)
            }
        };
        let reply = self.run(engine, &call)?;
        let [fenced, due, removed, wait] = [0, 1, 2, 3].map(|n| reply.part(n).int());
        if wait > 0 {
            // A message that waits does not hold up what follows it.
            message.todo.insert(0, Todo::Invalidate(entry));
            message.retry_at = self.now() + wait;
            return Ok(());
        }
        message.retry_at = 0;
        match message.version.as_str() {
            "" if message.scope != Scope::Tag && !message.doubt => {
                let is_foreign = self.db.slot(ENTRIES[entry]).is_some_and(|slot| slot.value.kind() != "string");
                if self.job.last_recheck() > 0 && message.at.1 == 0 && !evict && !is_foreign {
                    let known = &mut self.known[entry];
                    known.edited = known.edited.max(at);
                }
                self.handled(entry, message.content[entry], message.at, evict, false);
            }
            "" => {}
            "any" => {
                self.known[entry].any_version = true;
                self.known[entry].announced = None;
            }
            version => {
                let version = version.parse().unwrap_or(0);
                let is_there = was_there.is_some_and(|(writer, content)| writer == 'c' && content >= version);
                if !is_there && self.known[entry].announced.is_none_or(|(before, _)| before < version) {
                    // The patience of several counts from the first one that is not answered.
                    let first = before.filter(|meta| meta.invalidated > 0 && meta.announced.is_some());
                    let since = first.map_or(at, |meta| meta.announced_at).min(self.now());
                    self.known[entry].announced = Some((version, since + PATIENCE));
                }
            }
        }
        // The entry's own steps come before those of the tag's next entry.
        let mut next = Vec::new();
        if reply.part(4).int() > 0 {
            next.push(Todo::Recover(entry));
        }
        if self.expiry(entry) == -2 {
            self.known[entry].held = 0;
        }
        self.known[entry].evicted &= evict || fenced == 0 && due == 0;
        if evict {
            if removed == 1 || fenced == 1 || due == 2 {
                if due != 2 {
                    next.push(Todo::Cancel(entry));
                }
                if self.job.recheck {
                    next.push(Todo::Keep(entry));
                }
            }
        } else if fenced == 1 && due != 3 {
        } else if due == 1 || due == 3 {
            next.push(Todo::Due(entry));
        } else if due == 2 && self.job.recheck {
            next.push(Todo::Keep(entry));
        }
        message.todo.splice(0..0, next);
        Ok(())
    }
}
