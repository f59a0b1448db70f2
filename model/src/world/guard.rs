//! The guard of the job: `src/warmer/guard.rs`, the sweep of `Store::sweep_guard`, and a person's decisions.

use super::worker::{DEFERRED, How, Next, Stage, Task, keep};
use super::{ENTRIES, Step, World, violated};
use crate::calls::{self, Attempt, HELD_WAIT, LEASE, MINUTE, SETTLED, SHORT_WAIT, TTL};
use crate::db::Value;
use crate::engine::Engine;
use crate::properties::HELD;

/// So many removals trip the guard.
const ENOUGH: (u32, u32) = (1, 1);

impl World {
    /// `Attempt::guard_removal`: may the value be removed?
    pub(super) fn ask_guard(&mut self, engine: &Engine, worker: usize, mut task: Task, how: How) -> Step {
        let (entry, now) = (task.entry, self.now());
        let Some(lease) = &mut task.lease else { return Ok(()) };
        let marked = lease.held_until();
        if lease.has_value() {
            let reply = self.run(engine, &calls::guard_removal(ENTRIES[entry], marked, ENOUGH))?;
            if how == How::Lost {
                return self.deferred(engine, worker, task);
            }
            match reply.part(0).int() {
                0 if self.known[entry].held > now && self.readable(entry).is_some() => {
                    return violated(HELD, format!("{} is removed before {}", ENTRIES[entry], self.known[entry].held));
                }
                0 => lease.may_remove(),
                _ => task.stage = Stage::Hold(reply.part(3).int()),
            }
        } else {
            if marked > 0 {
                self.run(engine, &calls::guard_recovery(ENTRIES[entry], ""))?;
            }
            lease.may_remove();
        }
        self.workers[worker].task = Some(task);
        Ok(())
    }

    /// Ends an attempt to which Redis did not reply.
    fn deferred(&mut self, engine: &Engine, worker: usize, mut task: Task) -> Step {
        self.give_back(engine, &mut task)?;
        task.stage = Stage::Ended(DEFERRED, Next::In(SHORT_WAIT));
        self.workers[worker].task = Some(task);
        Ok(())
    }

    /// `Attempt::note_held_back`, its first step: the value stays, beyond its TTL where that is only in doubt.
    pub(super) fn hold(&mut self, engine: &Engine, worker: usize, mut task: Task, until: i64, how: How) -> Step {
        let time = until - self.now() + LEASE + 2 * HELD_WAIT;
        self.run(engine, &calls::extend_held(ENTRIES[task.entry], time))?;
        if how == How::Lost {
            return self.deferred(engine, worker, task);
        }
        task.stage = Stage::Mark(until);
        self.workers[worker].task = Some(task);
        Ok(())
    }

    /// `Attempt::note_held_back`, its second step.
    pub(super) fn mark_held(&mut self, engine: &Engine, worker: usize, mut task: Task, until: i64, how: How) -> Step {
        let Some(lease) = task.lease.take() else { return Ok(()) };
        let attempt = Attempt {
            outcome: DEFERRED,
            began: lease.fetched_at,
            trigger: task.trigger(),
            held_until: until,
            doubted: lease.doubted(),
            ..Attempt::default()
        };
        let reply = self.run(engine, &calls::release(ENTRIES[task.entry], &lease.token, Some(&attempt)))?;
        let mark = reply.part(1).text();
        if reply.part(0).text() == "done" && mark != "e" && self.guard("accepted") == 0 {
            self.known[task.entry].held = until;
        }
        task.stage = match mark.as_str() {
            _ if how == How::Lost => Stage::Ended(DEFERRED, Next::In(SHORT_WAIT)),
            "e" => Stage::Recover(DEFERRED, keep(lease.fetched_at + TTL)),
            "r" => Stage::Ended(DEFERRED, Next::In(0)),
            _ => Stage::Ended(DEFERRED, Next::In(HELD_WAIT)),
        };
        self.workers[worker].task = Some(task);
        Ok(())
    }

    /// Returns a number of the guard.
    pub(crate) fn guard(&self, name: &str) -> i64 {
        self.db.field(calls::GUARD, name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Returns the entries that the guard names, each with the time.
    pub(crate) fn guarded(&self) -> Vec<(usize, String)> {
        let Some(Value::Hash(fields)) = self.db.slot(calls::GUARD).map(|slot| &*slot.value) else { return Vec::new() };
        let named = fields.iter().filter_map(|(name, noted)| {
            let name = name.as_str().strip_prefix('=')?;
            Some((ENTRIES.iter().position(|entry| *entry == name)?, noted.as_str().to_owned()))
        });
        named.collect()
    }

    /// `Snapshot::was_held_back`.
    pub(crate) fn was_held_back(&self, engine: &Engine, entry: usize) -> bool {
        self.expiry(entry) != -2 && self.meta(engine, entry).is_some_and(|meta| meta.held_until > 0)
    }

    /// `Store::sweep_guard`, its first step: finds what the guard must forget.
    pub(super) fn sweep_guard(&mut self, engine: &Engine) {
        let now = self.now();
        let mut found = self.guarded();
        found.retain(|(_, noted)| noted.parse::<i64>().is_ok_and(|at| at + SETTLED < now || at > now));
        found.retain(|(entry, _)| !self.was_held_back(engine, *entry));
        self.swept = found;
    }

    /// `Store::sweep_guard`, its second step.
    pub(super) fn forget_swept(&mut self, engine: &Engine) -> Step {
        if let Some((entry, noted)) = self.swept.pop() {
            self.run(engine, &calls::guard_recovery(ENTRIES[entry], &noted))?;
        }
        Ok(())
    }

    /// `Ops::accept_gone`.
    pub(super) fn accept_removals(&mut self, engine: &Engine) -> Step {
        self.run(engine, &calls::guard_decision("accept"))?;
        self.known.iter_mut().for_each(|known| known.held = 0);
        for entry in 0..ENTRIES.len() {
            if self.was_held_back(engine, entry) {
                self.put(engine, entry, "urgent", 4)?;
            }
        }
        Ok(())
    }

    /// Checks that the guard knows what it holds back, and does not end before.
    pub(crate) fn is_guarded(&self, entry: usize) -> Step {
        let (now, until) = (self.now(), self.known[entry].held);
        let counts = self.db.slot(calls::GUARD).is_some() && self.guard("restored") == 0 && self.guard("accepted") == 0;
        if until <= now || self.readable(entry).is_none() || !counts {
            return Ok(());
        }
        if self.guard("until") <= now {
            return violated(HELD, format!("the guard ended before {until}, until when {} is held", ENTRIES[entry]));
        }
        match self.guarded().iter().any(|(of, _)| *of == entry) {
            true => Ok(()),
            false => violated(HELD, format!("the guard does not know {}", ENTRIES[entry])),
        }
    }

    /// Sweeps the guard, long after all is at rest: it knows only what has a mark, and ends with the last of these.
    pub(crate) fn rests_guard(&mut self, engine: &Engine) -> Step {
        let now = self.now() + SETTLED + 1;
        engine.set_clock(&mut self.db, now);
        self.sweep_guard(engine);
        while !self.swept.is_empty() {
            self.forget_swept(engine)?;
        }
        let held = self.guarded();
        if let Some((entry, _)) = held.iter().find(|(entry, _)| !self.was_held_back(engine, *entry)) {
            return violated(HELD, format!("the guard holds {} for ever", ENTRIES[*entry]));
        }
        let is_plain = self.guard("restored") == 0 && self.guard("accepted") == 0 && self.guard("gone") > 0;
        match held.is_empty() && is_plain && !self.upheld && self.guard("until") > now.max(self.guard("last") + MINUTE)
        {
            true => violated(HELD, "the guard holds nothing, and does not end"),
            false => Ok(()),
        }
    }
}
