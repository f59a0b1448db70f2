//! A service that reads through the library, and loads what is missing (`src/cache/load.rs`).

use super::{ENTRIES, Step, World, violated};
use crate::calls::{self, LEASE, TTL};
use crate::engine::Engine;
use crate::properties::{self, COUNTER, OVERWRITTEN, TWO_FETCHES};

/// The TTLs of loads and of writes. By another expiry a worker tells that a value is not its own.
const TTLS: (i64, i64) = (TTL - 7, TTL / 3);

/// A service's load.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Load {
    /// None.
    None,
    /// It holds a lease, and is tracked next.
    Begun(Held),
    /// It holds a lease, and asks the upstream next.
    Leased(Held),
    /// It has this content.
    Loaded(Held, u32),
}

/// A load's lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    entry: usize,
    token: String,
    at: i64,
    epoch: u8,
    overwritten: bool,
}

impl Load {
    fn held(&self) -> Option<&Held> {
        match self {
            Self::None => None,
            Self::Begun(held) | Self::Leased(held) | Self::Loaded(held, _) => Some(held),
        }
    }

    /// Returns the content that it is about to write for an entry.
    pub fn content(&self, entry: usize) -> Option<u32> {
        match self {
            Self::Loaded(held, content) if held.entry == entry => Some(*content),
            _ => None,
        }
    }

    /// Returns true if it loads the entry under a lease that has not ended.
    pub fn is_live(&self, entry: usize, now: i64, epoch: u8) -> bool {
        self.held().is_some_and(|held| {
            held.entry == entry && held.epoch == epoch && now <= held.at + LEASE && !held.overwritten
        })
    }
}

impl World {
    /// Does the load's next step; begins one of this entry if there is none.
    pub(crate) fn load(&mut self, engine: &Engine, entry: usize, lost: bool) -> Step {
        match self.load.clone() {
            Load::None => {
                let token = format!("s{}-{}", self.left[super::Kind::Load as usize], self.fetches);
                let live = self.fetches_of(entry);
                let mark = properties::mark(&self.db, entry);
                let reply = self.run(engine, &calls::begin_load(ENTRIES[entry], &token))?;
                if reply.part(0).text() == "leased" {
                    if live > 0 && mark != Some('e') {
                        return violated(TWO_FETCHES, format!("{token} got a lease while another fetch holds one"));
                    }
                    self.take_over(entry);
                    let held = Held { entry, token, at: self.now(), epoch: self.epoch, overwritten: false };
                    if lost {
                        self.run(engine, &calls::drop_lease(ENTRIES[entry], &held.token))?;
                    } else if self.job.loads {
                        self.load = Load::Begun(held);
                    } else {
                        self.run(engine, &calls::track(ENTRIES[entry], TTL + LEASE))?;
                        self.load = Load::Leased(held);
                    }
                }
            }
            Load::Begun(held) => {
                self.run(engine, &calls::track(ENTRIES[held.entry], TTL + LEASE))?;
                self.load = if lost { Load::None } else { Load::Leased(held.clone()) };
                if lost {
                    self.run(engine, &calls::drop_lease(ENTRIES[held.entry], &held.token))?;
                }
            }
            Load::Leased(held) => {
                self.fetches += 1;
                let content = self.known[held.entry].content;
                self.load = Load::Loaded(held, content);
            }
            Load::Loaded(held, content) => {
                let Held { entry, ref token, at, epoch, overwritten } = held;
                let call = calls::commit_load(ENTRIES[entry], token, &format!("l{content}"), &TTLS.0.to_string());
                let was_there = self.db.slot(ENTRIES[entry]).is_some();
                let reply = self.run(engine, &call)?;
                if reply.int() == 1 {
                    if overwritten || was_there {
                        return violated(OVERWRITTEN, format!("{token} wrote over what was written meanwhile"));
                    }
                    properties::may_be_written(self, entry, ('l', content), at, epoch)?;
                    self.known[entry].fetched = (at, epoch, self.now() + TTLS.0);
                }
                if lost {
                    self.run(engine, &calls::drop_lease(ENTRIES[entry], token))?;
                }
                self.load = Load::None;
            }
        }
        Ok(())
    }

    /// Ends the load without a value: its process dies, or (`drops`) its loader fails and gives the lease back.
    pub(crate) fn end_load(&mut self, engine: &Engine, drops: bool) -> Step {
        if let Some(Held { entry, token, .. }) = self.load.held().cloned()
            && drops
        {
            self.run(engine, &calls::drop_lease(ENTRIES[entry], &token))?;
        }
        self.load = Load::None;
        Ok(())
    }

    /// Marks fetches under way, which may not write over what a service writes or deletes now.
    fn overwrite(&mut self, entry: usize) {
        let tasks = self.workers.iter_mut().filter_map(|worker| worker.task.as_mut());
        for lease in tasks.filter(|task| task.entry == entry).filter_map(|task| task.lease.as_mut()) {
            lease.overwritten = true;
        }
        if let Load::Begun(held) | Load::Leased(held) | Load::Loaded(held, _) = &mut self.load
            && held.entry == entry
        {
            held.overwritten = true;
        }
    }

    /// `Cache::set`.
    pub(crate) fn set(&mut self, engine: &Engine, entry: usize) -> Step {
        // Each second value has no TTL.
        let is_even = self.left[super::Kind::Set as usize].is_multiple_of(2);
        let ttl = if is_even { String::new() } else { TTLS.1.to_string() };
        let reply = self.run(engine, &calls::set(ENTRIES[entry], "s0", &ttl))?;
        if reply.int() == 1 {
            self.overwrite(entry);
            let is_listed = self.db.score(calls::AGENDA, ENTRIES[entry]).is_some() && self.is_kept(entry);
            self.known[entry].stays = !is_even && is_listed;
        }
        Ok(())
    }

    /// `Cache::delete`.
    pub(crate) fn delete(&mut self, engine: &Engine, entry: usize) -> Step {
        self.run(engine, &calls::delete(ENTRIES[entry]))?;
        if self.readable(entry).is_some() {
            return violated(OVERWRITTEN, "a deleted value is readable");
        }
        self.overwrite(entry);
        Ok(())
    }

    /// `Cache::increment`, of a counter that no job warms; it shares nothing with values but the script.
    pub(crate) fn increment(&mut self, engine: &Engine) -> Step {
        if self.db.slot("n").is_none() {
            self.counted = 0;
        }
        let until = self.db.slot("n").map(|slot| slot.expires);
        let reply = self.run(engine, &calls::increment("n", 1, "60000"))?;
        self.counted += 1;
        if reply.text() != self.counted.to_string() {
            return violated(COUNTER, format!("{} after {} increments", reply.text(), self.counted));
        }
        let now = self.db.slot("n").map(|slot| slot.expires);
        if now == Some(None) || until.is_some() && until != now {
            return violated(COUNTER, format!("its TTL changed from {until:?} to {now:?}"));
        }
        Ok(())
    }
}
