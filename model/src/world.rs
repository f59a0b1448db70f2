//! The state that is explored: Redis, the actors, and what an observer knows who sees everything.
//!
//! Each action is one step: a script, a request to the upstream, a crash. Actors do what their originals do between two
//! scripts: workers as `src/warmer/`, the invalidator as `src/trigger/invalidation/invalidator.rs`, the service as
//! `src/cache/load.rs`.

mod actions;
mod guard;
mod invalidator;
mod service;
mod worker;

use std::fmt;

pub use actions::{Action, Kind};
pub use invalidator::Message;
pub use service::Load;
pub use worker::{Answer, Stage, Worker};

use crate::calls::{self, Call};
use crate::commands::Reply;
use crate::db::Db;
use crate::engine::{Engine, Meta};
use crate::properties;

/// The entries of the one job.
pub const ENTRIES: [&str; 2] = ["a", "b"];
/// When the clock begins (ms).
pub const EPOCH: i64 = 1_700_000_000_000;

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The property.
    pub property: &'static str,
    /// The finding.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.found)
    }
}

/// Returns an error for a property that does not hold.
pub fn violated<T>(property: &'static str, found: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { property, found: found.into() })
}

/// The result of a step.
pub type Step = Result<(), Violation>;

/// A rule of the scripts' callers that protects from a fault. A search without it must find the fault (`mends`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `Attempt::commit`: tags under which an earlier round of the same lease put the entry count as found.
    IndexedRounds,
    /// `Warmer::next_after_foreign`: an entry whose fetch a service's write ended stays on the agenda.
    AfterForeign,
    /// `Invalidator::loaded`: an invalidation by a tag concerns what services loaded.
    Loaded,
    /// `Permit::done`: tokens that could not be counted stay in the sum that later commands tell.
    Owed,
    /// `Permit::done`: they are in the sum of the command that gives permits back.
    OwedFirst,
}

/// The job's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Job {
    /// Values have the tag `T`, except each third content.
    pub tagged: bool,
    /// Values have versions.
    pub versions: bool,
    /// A fetch costs money, and a value is kept without a request while its inputs are the same.
    pub paid: bool,
    /// An old value may outlive its TTL.
    pub stale: bool,
    /// Entries are rechecked after an invalidation.
    pub recheck: bool,
    /// The upstream answers that a value is unchanged.
    pub etags: bool,
    /// Failures after which an entry is a dead letter; 0 for never.
    pub attempts: u32,
    /// A guard holds the removals of values back.
    pub held: bool,
    /// Messages come over the channel: their time is that of their receipt.
    pub channel: bool,
    /// Services load values of a job with tags: an invalidation by the tag concerns them as well.
    pub loads: bool,
    /// Invalidations may only have been missed: what costs money is never requested anew.
    pub doubts: bool,
    /// The faults that are known are not passed over (`faults`).
    pub strict: bool,
    /// The callers lack this rule.
    pub without: Option<Rule>,
}

impl Job {
    /// Returns the time of the last recheck after an invalidation (ms; 0 for none).
    pub fn last_recheck(&self) -> i64 {
        if self.recheck && !self.paid { calls::RECHECK } else { 0 }
    }
}

/// An invalidation that was handled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handled {
    /// The content that the upstream had when it was published.
    pub content: u32,
    /// Its time.
    pub at: i64,
    /// The number of times that the clock was set back by then.
    pub epoch: u8,
    /// When it was handled.
    pub now: i64,
    /// It evicted.
    pub evict: bool,
    /// It concerns values with the tag.
    pub tag: bool,
}

/// The observer's knowledge of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Known {
    /// The content that the upstream has: grows with each edit.
    pub content: u32,
    /// The upstream does not have it.
    pub missing: bool,
    /// The time of the latest refresh of the entry that was handled, if it is rechecked; else 0.
    pub edited: i64,
    /// The handled invalidations that some value or fetch may violate.
    pub handled: Vec<Handled>,
    /// When the readable value was asked for, in which epoch, and when its TTL ends.
    pub fetched: (i64, u8, i64),
    /// A demand put it on the agenda at this time, and it was not tried since.
    pub wanted: Option<i64>,
    /// The last version that was announced and is waited for, and until when.
    pub announced: Option<(u32, i64)>,
    /// A lower version may replace the present one.
    pub any_version: bool,
    /// It was put into the dead letters, or given up.
    pub dead: bool,
    /// A service wrote the readable value while the entry was on the agenda, and nothing has ended it since.
    pub stays: bool,
    /// It has left the agenda for an eviction, and no refresh of it was handled since.
    pub evicted: bool,
    /// When a worker's entry last left the agenda, or came back to it as due, if that is now.
    pub left: i64,
    /// Until when the removal of its value is held back, as a worker has noted; 0 if it is not, or if a person accepted
    /// it.
    pub held: i64,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Redis.
    pub db: Db,
    /// The job.
    pub job: Job,
    /// The number of times that the clock was set back.
    pub epoch: u8,
    /// The knowledge of each entry.
    pub known: [Known; 2],
    /// The workers.
    pub workers: [Worker; 2],
    /// The service's load.
    pub load: Load,
    /// The invalidations that are not handled to their end.
    pub messages: Vec<Message>,
    /// The entries that a sweep takes out of the guard, and when they were held back.
    pub swept: Vec<(usize, String)>,
    /// A person had removals held back: for that time, whatever becomes of them.
    pub upheld: bool,
    /// Claims that Redis has not carried out yet although their workers wait no longer.
    pub late: Vec<(usize, Call)>,
    /// The leases of workers that died: entry, token, and crashes before.
    pub orphans: Vec<(usize, String, u32)>,
    /// The number of actions of each kind that may still happen.
    pub left: [u8; Kind::COUNT],
    /// The number of times that `increment.lua` added one, and what the counter must be.
    pub counted: i64,
    /// Outcomes that were counted at least so often, in the order of `OUTCOMES`.
    pub outcomes: [u8; 8],
    /// Requests to the upstream.
    pub fetches: u32,
    /// Writes of fetched values.
    pub landed: u32,
}

impl World {
    /// Returns an empty world of a job, in which each kind of action may happen so often.
    pub fn new(job: Job, budget: &[(Kind, u8)]) -> Self {
        let mut left = [0; Kind::COUNT];
        for (kind, count) in budget {
            left[*kind as usize] = *count;
        }
        let mut db = Db::default();
        db.set_clock(EPOCH);
        Self {
            db,
            job,
            epoch: 0,
            known: Default::default(),
            workers: Default::default(),
            load: Load::None,
            messages: Vec::new(),
            swept: Vec::new(),
            upheld: false,
            late: Vec::new(),
            orphans: Vec::new(),
            left,
            counted: 0,
            outcomes: [0; 8],
            fetches: 0,
            landed: 0,
        }
    }

    /// Returns Redis's time (ms).
    pub fn now(&self) -> i64 {
        self.db.now()
    }

    /// Returns true if the callers have a rule.
    pub(crate) fn has(&self, rule: Rule) -> bool {
        self.job.without != Some(rule)
    }

    /// Runs a script, and checks what holds of each script by itself.
    pub(crate) fn run(&mut self, engine: &Engine, call: &Call) -> Result<Reply, Violation> {
        let before = self.db.clone();
        let reply = engine.run(&mut self.db, call);
        properties::after_script(engine, &before, &self.db, call, &reply)?;
        let now = self.now();
        for (known, name) in self.known.iter_mut().zip(ENTRIES) {
            let due = |db: &Db| db.score(calls::AGENDA, name).map(|score| engine.due(score));
            let ran = due(&before).is_some_and(|due| due.state == "running");
            if ran && due(&self.db).is_none_or(|due| due.at <= now) {
                known.left = now;
            }
        }
        self.db.published.clear();
        Ok(reply)
    }

    /// Returns true if content has the tag.
    pub fn is_tagged(&self, content: u32) -> bool {
        self.job.tagged && content % 3 != 2
    }

    /// Returns an entry's metadata.
    pub fn meta(&self, engine: &Engine, entry: usize) -> Option<Meta> {
        engine.meta(self.db.text(&calls::meta_key(ENTRIES[entry]))?)
    }

    /// Returns the expiry of an entry's value, as `PEXPIRETIME` does.
    pub fn expiry(&self, entry: usize) -> i64 {
        self.db.slot(ENTRIES[entry]).map_or(-2, |slot| slot.expires.unwrap_or(-1))
    }

    /// Returns the readable value's writer (`c` a worker, `l` a load, `f` another program, `s` a service) and content.
    pub fn readable(&self, entry: usize) -> Option<(char, u32)> {
        let text = self.db.text(ENTRIES[entry])?;
        let writer = text.chars().next()?;
        Some((writer, text[1..].parse().unwrap_or(0)))
    }

    /// Notes an invalidation that was handled.
    pub(crate) fn handled(&mut self, entry: usize, content: u32, (at, epoch): (i64, u8), evict: bool, tag: bool) {
        let handled = Handled { content, at, epoch, now: self.now(), evict, tag };
        if !self.known[entry].handled.contains(&handled) {
            self.known[entry].handled.push(handled);
        }
    }

    /// Forgets handled invalidations that nothing can violate any more.
    fn forget(&mut self) {
        for entry in 0..ENTRIES.len() {
            let value = self.readable(entry).map(|(_, content)| content);
            let fetched = self.workers.iter().filter_map(|worker| worker.content(entry));
            let oldest = fetched.chain(self.load.content(entry)).chain(value).min().unwrap_or(u32::MAX);
            self.known[entry].handled.retain(|handled| handled.content > oldest);
            self.known[entry].stays &= self.readable(entry).is_some_and(|(writer, _)| writer == 's');
            if self.known[entry].left != self.now() {
                self.known[entry].left = 0;
            }
        }
    }

    /// Carries out an action, and checks what must hold afterwards.
    pub fn apply(&mut self, engine: &Engine, action: Action) -> Step {
        if let Some(kind) = action.kind() {
            self.left[kind as usize] = self.left[kind as usize].saturating_sub(1);
        }
        self.act(engine, action)?;
        self.forget();
        properties::always(engine, self)
    }

    /// Returns when something happens next by itself: a claim or a key ends, an entry or a message is due.
    pub fn next_event(&self, engine: &Engine) -> Option<i64> {
        let now = self.now();
        let due = self.db.members(calls::AGENDA).iter().map(|(score, _)| engine.due(score.0).at);
        let retries = self.messages.iter().map(|message| message.retry_at);
        // A key is there in the millisecond in which it expires.
        let expiries = self.db.expiries().map(|at| at + 1);
        due.chain(retries).chain(expiries).filter(|at| *at > now).min()
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "      now {}", self.now())?;
        write!(f, "{}", self.db)?;
        for (n, worker) in self.workers.iter().enumerate() {
            if let Some(task) = &worker.task {
                writeln!(f, "        worker {n}: {} {:?}", ENTRIES[task.entry], task.stage)?;
            }
        }
        if self.load != Load::None {
            writeln!(f, "        service: {:?}", self.load)?;
        }
        for message in &self.messages {
            writeln!(f, "        message: {message:?}")?;
        }
        Ok(())
    }
}
