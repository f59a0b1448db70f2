//! The commit of an answer, and what follows from each reply (`src/warmer/commit.rs`).

use super::{
    Answer, DEFERRED, FAILED, FENCED, GONE, How, Lease, Next, ROUNDS, Stage, Task, UNCHANGED, WARMED, keep,
    next_recheck, pause,
};
use crate::calls::{self, Attempt, Call, LEASE, PATIENCE, RETRY, SHORT_WAIT, TTL, Versions};
use crate::commands::Reply;
use crate::engine::Engine;
use crate::properties::{self, OVERWRITTEN, SCRIPT_FAILS, VERSION_BACK};
use crate::world::{ENTRIES, Rule, Step, Violation, World, violated};

impl World {
    pub(super) fn write(&mut self, engine: &Engine, worker: usize, mut task: Task, answer: Answer, how: How) -> Step {
        let Some(lease) = task.lease.clone() else { return Ok(()) };
        let entry = task.entry;
        let before = lease.before.as_ref();
        let failed = matches!(answer, Answer::Failed);
        // Its value has expired.
        let is_freed = lease.before_expiry == -2 && lease.is_marked();
        let attempt = Attempt {
            trigger: lease.trigger,
            storm: lease.storm,
            tagged: match answer {
                Answer::Value(content) | Answer::Unchanged { content, .. } => self.is_tagged(content),
                Answer::Gone(_) => false,
                Answer::Failed => before.is_some_and(|meta| meta.tagged),
            },
            failures: if failed { before.map_or(0, |meta| meta.failures) + 1 } else { 0 },
            held_until: before.filter(|_| failed && !is_freed).map_or(0, |meta| meta.held_until),
            doubted: before.filter(|_| failed).map_or(0, |meta| meta.doubted),
            rechecks: match failed {
                true => before.and_then(|meta| meta.rechecks),
                false => lease.rechecks().filter(|_| self.job.last_recheck() > 0),
            },
            version: match answer {
                Answer::Value(content) if self.job.versions => Some(content),
                Answer::Unchanged { .. } => before.and_then(|meta| meta.version),
                _ => None,
            },
            ..Attempt::default()
        };
        let versions = Versions { kept: self.job.versions, look: lease.look };
        let (name, token, began) = (ENTRIES[entry], lease.token.as_str(), lease.fetched_at);
        if matches!(answer, Answer::Gone(_)) && !lease.may_remove {
            return self.ask_guard(engine, worker, task, how);
        }
        let call = match answer {
            Answer::Value(content) => calls::commit(name, token, &format!("c{content}"), &attempt, began, versions),
            Answer::Unchanged { asked, .. } => {
                let attempt = Attempt { outcome: UNCHANGED, ..attempt };
                calls::extend(name, token, lease.before_expiry, &attempt, asked, began, versions)
            }
            Answer::Gone(_) => calls::gone(name, token, &Attempt { outcome: GONE, ..attempt }, began, versions),
            Answer::Failed => {
                let attempt = Attempt { outcome: FAILED, began, trigger: task.trigger, ..attempt.clone() };
                calls::release(name, token, Some(&attempt))
            }
        };
        let reply = self.judged(engine, entry, &lease, answer, &call)?;
        if how == How::Lost {
            // It is sent again.
            task.lease = Some(Lease { over: true, ..lease });
            self.workers[worker].task = Some(task);
            return Ok(());
        }
        task.stage = match self.written(engine, &mut task, answer, &attempt, &reply)? {
            Stage::Ended(outcome, next) if outcome == WARMED && lease.is_marked() || failed && is_freed => {
                Stage::Recover(outcome, next)
            }
            stage => stage,
        };
        self.workers[worker].task = Some(task);
        Ok(())
    }

    /// Writes an answer, and checks that it may be written.
    fn judged(
        &mut self,
        engine: &Engine,
        entry: usize,
        lease: &Lease,
        answer: Answer,
        call: &Call,
    ) -> Result<Reply, Violation> {
        let value = self.readable(entry);
        let (fetched, stored) = (self.known[entry].fetched, self.meta(engine, entry));
        let reply = self.run(engine, call)?;
        if reply.part(0).text() != "done" || answer == Answer::Failed {
            return Ok(reply);
        }
        if lease.overwritten {
            return violated(OVERWRITTEN, format!("{} wrote over what a service wrote or deleted", lease.token));
        }
        let (content, at, epoch) = match answer {
            Answer::Value(content) | Answer::Gone(content) => (content, lease.fetched_at, lease.epoch),
            Answer::Unchanged { content, asked: true } => (content, lease.fetched_at, lease.epoch),
            // Its content is as old as before.
            Answer::Unchanged { content, asked: false } => (content, fetched.0, fetched.1),
            Answer::Failed => return Ok(reply),
        };
        properties::may_be_written(self, entry, ('c', content), at, epoch)?;
        if let (Answer::Unchanged { .. }, Some((_, there))) = (answer, value)
            && there != content
        {
            return violated(OVERWRITTEN, format!("content {there} was extended as {content}"));
        }
        let known = &mut self.known[entry];
        if self.job.versions && matches!(answer, Answer::Value(_)) {
            let before = stored.as_ref().and_then(|meta| meta.version);
            if value.is_some() && before > Some(content) && !known.any_version {
                return violated(VERSION_BACK, format!("version {content} replaced {before:?}"));
            }
            known.any_version = false;
        }
        if known.announced.is_some_and(|(version, _)| content >= version) || matches!(answer, Answer::Gone(_)) {
            known.announced = None;
        }
        if !matches!(answer, Answer::Gone(_)) {
            known.fetched = (at, epoch, reply.part(2).int());
        }
        (known.wanted, known.dead, known.held) = (None, false, 0);
        self.landed += 1;
        Ok(reply)
    }

    fn written(
        &mut self,
        engine: &Engine,
        task: &mut Task,
        answer: Answer,
        attempt: &Attempt,
        reply: &Reply,
    ) -> Result<Stage, Violation> {
        let Some(lease) = task.lease.clone() else { return Ok(Stage::Ended(FENCED, Next::Out)) };
        let (entry, now) = (task.entry, self.now());
        let what = reply.part(0).text();
        let is_leased = matches!(what.as_str(), "again" | "foreign" | "behind" | "older");
        if !is_leased {
            task.lease = None;
        }
        let refused = |attempt: &Attempt, trigger| Attempt {
            trigger,
            outcome: UNCHANGED,
            began: lease.fetched_at,
            tagged: lease.before.as_ref().is_some_and(|meta| meta.tagged),
            version: None,
            ..attempt.clone()
        };
        Ok(match what.as_str() {
            "done" if answer == Answer::Failed => self.failed(task, attempt, &reply.part(1).text(), &lease),
            "done" if matches!(answer, Answer::Gone(_)) => {
                Stage::Ended(GONE, next_recheck(attempt.rechecks, lease.fetched_at).unwrap_or(Next::Out))
            }
            "done" => self.committed(&lease, attempt, reply),
            "again" => {
                let begun = reply.part(1).int();
                let again = Lease {
                    fetched_at: begun,
                    // The first reply may have been lost.
                    ends: begun + LEASE,
                    epoch: self.epoch,
                    overwritten: false,
                    over: false,
                    trigger: 1,
                    storm: true,
                    may_keep: lease.may_keep && !self.job.paid,
                    indexed: self.has(Rule::IndexedRounds) && (lease.indexed || attempt.tagged),
                    rounds: lease.rounds + 1,
                    ..lease
                };
                let is_over = again.rounds >= ROUNDS;
                task.lease = Some(again);
                if is_over {
                    self.give_back(engine, task)?;
                    return Ok(Stage::Ended(FENCED, Next::In(0)));
                }
                Stage::Leased
            }
            "foreign" => {
                if lease.rounds + 1 >= ROUNDS {
                    self.give_back(engine, task)?;
                    return Ok(Stage::Ended(FENCED, Next::In(0)));
                }
                task.lease = Some(Lease { may_keep: false, rounds: lease.rounds + 1, ..lease });
                Stage::Leased
            }
            "behind" | "older" => {
                let behind_for = now - reply.part(2).int();
                let waits = match what.as_str() {
                    "behind" => reply.part(3).int() == 1,
                    _ => reply.part(2).int() > 0 && behind_for < PATIENCE,
                };
                self.run(engine, &calls::release(ENTRIES[entry], &lease.token, Some(&refused(attempt, task.trigger))))?;
                task.lease = None;
                match waits {
                    true => Stage::Ended(DEFERRED, Next::In(pause(behind_for))),
                    false => Stage::Ended(UNCHANGED, Next::Recheck(now + 5_000)),
                }
            }
            "evicted" if !self.has(Rule::AfterForeign) => Stage::Ended(FENCED, Next::Out),
            "evicted" => {
                let expiry = match self.expiry(entry) {
                    -2 => lease.fetched_at + TTL,
                    at => at,
                };
                Stage::Ended(FENCED, keep(expiry))
            }
            "lost" => Stage::Ended(FENCED, Next::In(SHORT_WAIT)),
            "wrongtype" => Stage::Ended(FAILED, Next::Dead),
            _ => return violated(SCRIPT_FAILS, format!("{reply:?}")),
        })
    }

    fn failed(&self, task: &Task, attempt: &Attempt, mark: &str, lease: &Lease) -> Stage {
        if mark == "e" {
            return Stage::Ended(FAILED, keep(lease.fetched_at + TTL));
        }
        if self.job.attempts > 0 && attempt.failures >= self.job.attempts && task.trigger != 4 {
            return Stage::Ended(FAILED, Next::Dead);
        }
        if self.job.stale { Stage::KeepStale(FAILED, RETRY) } else { Stage::Ended(FAILED, Next::In(RETRY)) }
    }

    /// Returns the next step of an entry whose value was written.
    fn committed(&self, lease: &Lease, attempt: &Attempt, reply: &Reply) -> Stage {
        let now = self.now();
        let next = match reply.part(4).int() {
            1 => Next::In(pause(now - reply.part(5).int())),
            2 => Next::Recheck(now + 5_000),
            _ => next_recheck(attempt.rechecks, lease.fetched_at).unwrap_or_else(|| keep(reply.part(2).int())),
        };
        let had = lease.indexed || lease.before.as_ref().is_some_and(|meta| meta.tagged);
        match had && !attempt.tagged {
            true => Stage::Untag(lease.fetched_at + TTL + calls::STALE + LEASE, next),
            false => Stage::Ended(WARMED, next),
        }
    }
}
