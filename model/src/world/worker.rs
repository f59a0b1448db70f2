//! A worker: claims an entry, takes it, leases, fetches, commits, and ends it (`src/warmer/`).

mod commit;

use super::{ENTRIES, Step, Violation, World, violated};
use crate::calls::{self, AHEAD, ANSWER, Attempt, Fresh, LEASE, REMEMBERED, RUN, SHORT_WAIT};
use crate::commands::Reply;
use crate::engine::{Engine, Meta};
use crate::properties::{self, COSTS, PAID_FOR_DOUBT, SCRIPT_FAILS, STRANDED, TWO_FETCHES};

/// Rounds of fetch and commit under one lease.
const ROUNDS: u8 = 3;
/// Crashes that make an entry suspect, and poison.
const CRASHES: (i64, u32) = (2, 3);
/// The counters' names.
pub(super) const OUTCOMES: [&str; 9] =
    ["warmed", "unchanged", "busy", "fenced", "deferred", "gone", "unread", "failed", "unowned"];

const WARMED: u8 = 0;
const UNCHANGED: u8 = 1;
const BUSY: u8 = 2;
const FENCED: u8 = 3;
pub(super) const DEFERRED: u8 = 4;
const GONE: u8 = 5;
const FAILED: u8 = 7;

/// A worker process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Processes before this one, and leases: for tokens.
    life: (u8, u8),
    /// The work in hand.
    pub task: Option<Task>,
    /// The numbers of its last claim, and of the last that was answered.
    claims: (u64, u64),
    /// Entries that it has claimed in calls without an answer: their scores.
    stranded: Vec<(usize, String)>,
}

/// An entry in a worker's hands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// The entry.
    pub entry: usize,
    score: String,
    since: i64,
    trigger: u8,
    /// When it was first taken, and the score then, if no answer came.
    taken: Option<(i64, String)>,
    /// The lease, while it believes to hold one.
    pub lease: Option<Lease>,
    /// The next step.
    pub stage: Stage,
}

/// A fetch under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The token.
    pub token: String,
    /// When it began.
    pub fetched_at: i64,
    /// When it ends, unless the clock is set back.
    pub ends: i64,
    /// The number of times that the clock was set back when it began.
    pub epoch: u8,
    /// A service wrote or deleted the entry since it began.
    pub overwritten: bool,
    /// Its answer is here, or another fetch took the lease over: it is no fetch in flight.
    pub over: bool,
    before: Option<Meta>,
    before_expiry: i64,
    trigger: u8,
    storm: bool,
    may_keep: bool,
    may_remove: bool,
    indexed: bool,
    rounds: u8,
    look: bool,
}

/// The upstream's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// This content.
    Value(u32),
    /// The value is this content still; `asked` is false where nobody was asked.
    Unchanged {
        /// The content.
        content: u32,
        /// The upstream was asked.
        asked: bool,
    },
    /// The upstream, whose content is this, has no such entry.
    Gone(u32),
    /// None.
    Failed,
}

/// The next step of a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Take it.
    Claimed,
    /// Lease it.
    Running,
    /// Ask the upstream.
    Leased,
    /// Put it under its tag.
    Fetched(Answer),
    /// Read the stamps of unknown tags; the tag's own is this.
    Tagged(Answer, String),
    /// Mark what a tag's invalidation overtook: its time, and whether it evicts.
    Fence(Answer, i64, bool),
    /// Write it.
    Ready(Answer),
    /// Its removal is held back until then: let the value live as long.
    Hold(i64),
    /// Note that.
    Mark(i64),
    /// Tell the guard that nothing is held back any more.
    Recover(u8, Next),
    /// Take it off the tag that it lost, which holds it until then.
    Untag(i64, Next),
    /// Keep the old value beyond its TTL.
    KeepStale(u8, i64),
    /// End it: its outcome, and what becomes of it.
    Ended(u8, Next),
}

/// The next place of an entry on the agenda.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// Due at this time.
    At(i64),
    /// Due for a recheck.
    Recheck(i64),
    /// Due after this time.
    In(i64),
    /// It leaves.
    Out,
    /// A dead letter.
    Dead,
}

/// The course of a worker's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// As it should.
    Well,
    /// The script runs, and its reply is lost.
    Lost,
    /// The script runs later, and nobody waits for its reply.
    Late,
    /// The upstream fails.
    Fails,
    /// The upstream answers with the content before.
    Lags,
}

impl Task {
    /// Returns its trigger's number.
    pub(super) fn trigger(&self) -> u8 {
        self.trigger
    }
}

impl Worker {
    /// Returns the content that it is about to write for an entry.
    pub fn content(&self, entry: usize) -> Option<u32> {
        match &self.task.as_ref().filter(|task| task.entry == entry)?.stage {
            Stage::Fetched(answer) | Stage::Tagged(answer, _) | Stage::Fence(answer, ..) | Stage::Ready(answer) => {
                match answer {
                    Answer::Value(content) | Answer::Unchanged { content, .. } | Answer::Gone(content) => {
                        Some(*content)
                    }
                    Answer::Failed => None,
                }
            }
            _ => None,
        }
    }

    /// Returns true if it has a task for an entry.
    pub fn holds(&self, entry: usize) -> bool {
        self.task.as_ref().is_some_and(|task| task.entry == entry)
    }

    /// Returns the lease that it holds on an entry.
    pub fn lease(&self, entry: usize) -> Option<&Lease> {
        self.task.as_ref().filter(|task| task.entry == entry)?.lease.as_ref()
    }
}

/// Returns when an entry is refreshed whose value expires then.
pub(super) fn keep(expiry: i64) -> Next {
    if expiry > 0 { Next::At(expiry - AHEAD) } else { Next::Out }
}

/// Returns the recheck that follows a fetch at `fetched_at`, of those of an invalidation.
pub(super) fn next_recheck(rechecks: Option<(i64, u8)>, fetched_at: i64) -> Option<Next> {
    let at = rechecks?.0 + calls::RECHECK;
    (at > fetched_at).then_some(Next::Recheck(at))
}

impl Lease {
    /// `Attempt::rechecks_to_come`: returns those that follow its answer.
    pub(super) fn rechecks(&self) -> Option<(i64, u8)> {
        let before = self.before.as_ref();
        let open = before.and_then(|meta| meta.rechecks);
        let is_left = |rechecks: &(i64, u8)| next_recheck(Some(*rechecks), self.fetched_at).is_some();
        let is_doubt = before.is_some_and(|meta| meta.invalidated == meta.doubted) && self.rounds == 0;
        let rechecks = match self.trigger {
            1 if is_doubt && open.as_ref().is_some_and(is_left) => open,
            1 if self.rounds > 0 => Some((self.fetched_at, 0)),
            1 => {
                let since = before.map_or(self.fetched_at, |meta| meta.invalidated.min(self.fetched_at));
                // A message that is handled once more may be older than one whose rechecks are to come.
                let later =
                    open.filter(|(at, flags)| *flags < 32 && *at <= self.fetched_at).map_or(since, |(at, _)| at);
                let since = since.max(later);
                Some((since, if is_doubt { 4 | 32 } else { 1 }))
            }
            _ => open,
        };
        rechecks.filter(is_left)
    }

    /// Returns true if there was a value.
    pub(super) fn has_value(&self) -> bool {
        self.before_expiry != -2
    }

    /// Returns until when the removal of the value was held back.
    pub(super) fn held_until(&self) -> i64 {
        self.before.as_ref().map_or(0, |meta| meta.held_until)
    }

    fn is_marked(&self) -> bool {
        self.held_until() > 0
    }

    /// Returns the time of a doubt; 0 for none.
    pub(super) fn doubted(&self) -> i64 {
        self.before.as_ref().map_or(0, |meta| meta.doubted)
    }

    /// Notes that the guard lets the removal through.
    pub(super) fn may_remove(&mut self) {
        self.may_remove = true;
    }

    fn ours(&self) -> Option<&Meta> {
        self.before.as_ref().filter(|meta| meta.validated_at > 0 && meta.own_expiry == self.before_expiry)
    }
}

impl World {
    /// Returns true if a worker can do something.
    pub(crate) fn has_work(&self, engine: &Engine, worker: usize) -> bool {
        self.workers[worker].task.is_some() || {
            let now = self.now();
            self.db.members(calls::AGENDA).iter().any(|(score, _)| {
                let due = engine.due(score.0);
                due.at <= now || due.at > now + 900_000 && due.state != "scheduled"
            })
        }
    }

    /// Does a worker's next step.
    pub(crate) fn work(&mut self, engine: &Engine, worker: usize, how: How) -> Step {
        let Some(task) = self.workers[worker].task.clone() else { return self.claim(engine, worker, how) };
        let next = match task.stage.clone() {
            Stage::Claimed => return self.take(engine, worker, task, how),
            Stage::Running => return self.lease(engine, worker, task, how),
            Stage::Leased => {
                let (answer, has_value) = (self.fetch(&task, how), task.lease.as_ref().and_then(Lease::ours).is_some());
                if self.job.doubts && has_value && !matches!(answer, Answer::Unchanged { asked: false, .. }) {
                    return violated(PAID_FOR_DOUBT, format!("{}: {answer:?}", ENTRIES[task.entry]));
                }
                Stage::Fetched(answer)
            }
            Stage::Fetched(answer) => self.index(engine, &task, answer, how)?,
            Stage::Tagged(answer, stamp) => self.read_stamps(engine, &task, answer, &stamp, how)?,
            Stage::Fence(answer, at, evict) => {
                self.run(engine, &calls::invalidate(ENTRIES[task.entry], at, evict, (0, 0), (REMEMBERED, 0), ""))?;
                if how == How::Lost { Stage::Fetched(answer) } else { Stage::Ready(answer) }
            }
            Stage::Ready(answer) => return self.write(engine, worker, task, answer, how),
            Stage::Hold(until) => return self.hold(engine, worker, task, until, how),
            Stage::Mark(until) => return self.mark_held(engine, worker, task, until, how),
            Stage::Recover(outcome, next) => {
                self.run(engine, &calls::guard_recovery(ENTRIES[task.entry], ""))?;
                match how {
                    How::Lost => Stage::Ended(DEFERRED, Next::In(SHORT_WAIT)),
                    _ => Stage::Ended(outcome, next),
                }
            }
            Stage::Untag(until, next) => {
                self.run(engine, &calls::untag(ENTRIES[task.entry], until))?;
                Stage::Ended(WARMED, next)
            }
            Stage::KeepStale(outcome, wait) => {
                if let Some(stamp) = self.tag_again(engine, task.entry)? {
                    self.run(
                        engine,
                        &calls::invalidate(ENTRIES[task.entry], stamp.0, stamp.1, (0, 0), (REMEMBERED, 0), ""),
                    )?;
                }
                self.run(engine, &calls::extend_stale(ENTRIES[task.entry], wait + LEASE))?;
                Stage::Ended(outcome, Next::In(wait))
            }
            Stage::Ended(outcome, next) => return self.finish(engine, worker, &task, outcome, &next, how),
        };
        self.workers[worker].task = Some(Task { stage: next, ..task });
        Ok(())
    }

    fn claim(&mut self, engine: &Engine, worker: usize, how: How) -> Step {
        let claims = &mut self.workers[worker].claims;
        claims.0 += 1;
        let (number, answered) = *claims;
        let call = calls::claim(worker, 1, number, answered);
        if how == How::Late {
            self.late.push((worker, call));
            return Ok(());
        }
        let reply = self.run(engine, &call)?;
        if how == How::Lost {
            self.strand(worker, &reply);
            return Ok(());
        }
        self.is_answered(engine, worker, &reply)?;
        if reply.parts().len() < 5 {
            return Ok(());
        }
        let [entry, score, before] = [2, 3, 4].map(|n| reply.part(n).text());
        let Some(entry) = ENTRIES.iter().position(|of| *of == entry) else { return Ok(()) };
        let since = engine.due(before.parse().unwrap_or_default()).at.min(self.now());
        let trigger = engine.due(score.parse().unwrap_or_default()).trigger;
        let stage = Stage::Claimed;
        self.workers[worker].task = Some(Task { entry, score, since, trigger, taken: None, lease: None, stage });
        Ok(())
    }

    /// Notes the entries that a call has claimed without an answer.
    fn strand(&mut self, worker: usize, reply: &Reply) {
        for claimed in reply.parts().get(2..).unwrap_or_default().chunks(3) {
            let entry = ENTRIES.iter().position(|of| *of == claimed[0].text());
            self.workers[worker].stranded.extend(entry.map(|entry| (entry, claimed[1].text())));
        }
    }

    /// `Claimer::answered`; what earlier calls have claimed is claimed anew.
    fn is_answered(&mut self, engine: &Engine, worker: usize, reply: &Reply) -> Step {
        // A paused job claims nothing, not even that.
        if reply.part(1).text() == "-2" {
            return Ok(());
        }
        let claimed: Vec<String> = reply.parts().iter().skip(2).step_by(3).map(Reply::text).collect();
        let now = self.now();
        for (entry, score) in std::mem::take(&mut self.workers[worker].stranded) {
            let is_over = engine.due(score.parse().unwrap_or_default()).at <= now;
            let stays = !is_over && self.db.score(calls::AGENDA, ENTRIES[entry]) == score.parse().ok();
            if stays && !claimed.iter().any(|of| of == ENTRIES[entry]) {
                return violated(STRANDED, format!("{} is claimed, and its claimer does not know", ENTRIES[entry]));
            }
        }
        let claims = &mut self.workers[worker].claims;
        if !claimed.is_empty() {
            claims.1 = claims.0;
        }
        // The last claim says the same as none, so that states stay few.
        if self.late.iter().all(|(of, _)| *of != worker) {
            *claims = (0, 0);
            engine.command(&mut self.db, &["DEL", &calls::last_claim(worker)]);
        }
        Ok(())
    }

    /// Redis carries out a claim late, and nobody waits for its answer.
    pub(crate) fn arrive(&mut self, engine: &Engine) -> Step {
        let (worker, call) = self.late.remove(0);
        let reply = self.run(engine, &call)?;
        self.strand(worker, &reply);
        Ok(())
    }

    fn take(&mut self, engine: &Engine, worker: usize, task: Task, how: How) -> Step {
        // An entry that leaves the agenda does not come back, and to another worker, in the same millisecond. Where the
        // clock was set back, one that only was put off may.
        let now = self.now();
        if self.known[task.entry].left == now || self.epoch > 0 {
            engine.set_clock(&mut self.db, now + 1);
        }
        let now = self.now();
        let again = task.taken.as_ref().map(|(at, _)| now - at);
        let reply = self.run(engine, &calls::take(ENTRIES[task.entry], &task.score, again))?;
        let score = reply.part(0).text();
        if let Some((at, before)) = &task.taken
            && score != *before
            && self.db.score(calls::AGENDA, ENTRIES[task.entry]) == before.parse().ok()
            && (0..RUN - ANSWER).contains(&(now - at))
        {
            return violated(STRANDED, format!("{} runs, and its worker does not know", ENTRIES[task.entry]));
        }
        if how == How::Lost {
            let taken = task.taken.or(Some((now, score)));
            self.workers[worker].task = Some(Task { taken, ..task });
            return Ok(());
        }
        let taken = Task { score, taken: None, stage: Stage::Running, ..task };
        self.workers[worker].task = Some(taken).filter(|task| !task.score.is_empty());
        Ok(())
    }

    fn lease(&mut self, engine: &Engine, worker: usize, mut task: Task, how: How) -> Step {
        let (entry, now) = (task.entry, self.now());
        let life = &mut self.workers[worker].life;
        life.1 += 1;
        let token = format!("w{worker}.{}-{}", life.0, life.1);
        let since = Fresh { since: Some(task.since), ..Fresh::default() };
        let fresh = match task.trigger {
            1 => Fresh { since: Some(1), ..Fresh::default() },
            2 => Fresh { until: Some(task.since + AHEAD + AHEAD / 3), ..Fresh::default() },
            3 => Fresh { any: true, ..Fresh::default() },
            // A value that costs money is no older than its inputs: only another program's is fetched again.
            5 if self.job.paid => Fresh { absent: true, since: Some(1), ..since },
            5 => Fresh { absent: true, ..since },
            _ => since,
        };
        let live = self.fetches_of(entry);
        let mark = properties::mark(&self.db, entry);
        let fresh = Fresh { crashes: Some(CRASHES.0), ..fresh };
        let mut reply = self.run(engine, &calls::lease(ENTRIES[entry], &token, fresh))?;
        if reply.part(0).text() == "poison" {
            reply = self.run(engine, &calls::lease(ENTRIES[entry], &token, Fresh { crashes: None, ..fresh }))?;
        }
        let score = self.db.score(calls::AGENDA, ENTRIES[entry]);
        let (what, number, expiry) = (reply.part(0).text(), reply.part(1).int(), reply.part(2).int());
        if what == "leased" && live > 0 && mark != Some('e') {
            return violated(TWO_FETCHES, format!("{token} got a lease while another fetch holds one"));
        }
        if how == How::Lost {
            task.stage = Stage::Ended(DEFERRED, Next::In(SHORT_WAIT));
            self.workers[worker].task = Some(task);
            return Ok(());
        }
        task.stage = match what.as_str() {
            "busy" => Stage::Ended(BUSY, Next::In(number.clamp(0, SHORT_WAIT))),
            "fresh" => {
                let meta = engine.meta(&reply.part(3).text());
                let next = meta.and_then(|meta| next_recheck(meta.rechecks, meta.fetched_at));
                Stage::Ended(UNCHANGED, next.unwrap_or_else(|| keep(expiry)))
            }
            "absent" => Stage::Ended(UNCHANGED, Next::Out),
            "wrongtype" => Stage::Ended(FAILED, Next::Dead),
            "leased" => {
                self.take_over(entry);
                let before = engine.meta(&reply.part(3).text());
                let crashes = before.as_ref().map_or(0, |meta| meta.crashes);
                let is_open = before.as_ref().is_some_and(|meta| meta.invalidated > 0);
                let trigger = if is_open { 1 } else { task.trigger };
                let follows =
                    |meta: &Meta| meta.trigger == 1 && (meta.fetched_at..meta.fetched_at + 60_000).contains(&now);
                let storm = trigger == 1 && before.as_ref().is_some_and(follows);
                task.lease = Some(Lease {
                    token,
                    fetched_at: number,
                    ends: now + LEASE,
                    epoch: self.epoch,
                    overwritten: false,
                    over: false,
                    before,
                    before_expiry: expiry,
                    trigger,
                    storm,
                    may_keep: true,
                    may_remove: !self.job.held,
                    indexed: false,
                    rounds: 0,
                    look: task.trigger == 5,
                });
                let is_wanted =
                    score.is_some_and(|score| Some(score) == task.score.parse().ok() || engine.due(score).trigger != 5);
                if crashes >= CRASHES.1 && task.trigger != 4 {
                    self.give_back(engine, &mut task)?;
                    Stage::Ended(FAILED, Next::Dead)
                } else if is_wanted {
                    Stage::Leased
                } else {
                    self.give_back(engine, &mut task)?;
                    Stage::Ended(FENCED, Next::Out)
                }
            }
            _ => return violated(SCRIPT_FAILS, format!("lease.lua: {reply:?}")),
        };
        self.workers[worker].task = Some(task);
        Ok(())
    }

    /// Returns how many live processes fetch an entry under a lease that has not ended.
    pub(crate) fn fetches_of(&self, entry: usize) -> usize {
        let now = self.now();
        let leases = self.workers.iter().filter_map(|worker| worker.lease(entry));
        let live = leases.filter(|lease| lease.epoch == self.epoch && now <= lease.ends && !lease.over);
        live.count() + usize::from(self.load.is_live(entry, now, self.epoch))
    }

    /// Notes that the fetches of an entry that are under way have lost their lease.
    pub(crate) fn take_over(&mut self, entry: usize) {
        let tasks = self.workers.iter_mut().filter_map(|worker| worker.task.as_mut());
        for lease in tasks.filter(|task| task.entry == entry).filter_map(|task| task.lease.as_mut()) {
            lease.over = true;
        }
    }

    /// Returns true if no next step of a worker takes the entry off the agenda, whatever its value is by then.
    pub(crate) fn is_kept(&self, entry: usize) -> bool {
        let tasks = self.workers.iter().filter_map(|worker| worker.task.as_ref());
        let leaves = |task: &&Task| matches!(task.stage, Stage::Ended(_, Next::Out | Next::Dead));
        tasks.filter(|task| task.entry == entry).all(|task| !leaves(&task))
    }

    /// Releases a task's lease without a note.
    pub(super) fn give_back(&mut self, engine: &Engine, task: &mut Task) -> Step {
        if let Some(lease) = task.lease.take() {
            self.run(engine, &calls::release(ENTRIES[task.entry], &lease.token, None))?;
        }
        Ok(())
    }

    fn fetch(&mut self, task: &Task, how: How) -> Answer {
        let known = &self.known[task.entry];
        let content = if how == How::Lags { known.content.saturating_sub(1) } else { known.content };
        let lease = task.lease.as_ref();
        let may_keep = lease.filter(|lease| lease.may_keep).and_then(Lease::ours);
        let stored = may_keep.and_then(|meta| meta.hash.strip_prefix("hc")?.parse::<u32>().ok().map(|of| (meta, of)));
        if let Some((meta, stored)) = stored {
            if self.job.paid && meta.invalidated == 0 {
                return Answer::Unchanged { content: stored, asked: false };
            }
            let may_keep = !self.job.versions || meta.version.is_some();
            if self.job.etags && may_keep && stored == content && !known.missing && how != How::Fails {
                self.fetches += 1;
                return Answer::Unchanged { content, asked: true };
            }
        }
        self.fetches += 1;
        match how {
            How::Fails => Answer::Failed,
            _ if known.missing => Answer::Gone(content),
            _ => Answer::Value(content),
        }
    }

    fn index(&mut self, engine: &Engine, task: &Task, answer: Answer, how: How) -> Result<Stage, Violation> {
        let tagged = match answer {
            Answer::Value(content) | Answer::Unchanged { content, .. } => self.is_tagged(content),
            Answer::Gone(_) | Answer::Failed => false,
        };
        if !tagged {
            return Ok(Stage::Ready(answer));
        }
        let reply = self.run(engine, &calls::tag(ENTRIES[task.entry]))?;
        Ok(if how == How::Lost { Stage::Fetched(answer) } else { Stage::Tagged(answer, reply.text()) })
    }

    fn read_stamps(
        &mut self,
        engine: &Engine,
        task: &Task,
        answer: Answer,
        own: &str,
        how: How,
    ) -> Result<Stage, Violation> {
        let reply = self.run(engine, &calls::read_unknown())?;
        if how == How::Lost {
            return Ok(Stage::Fetched(answer));
        }
        let Some(lease) = &task.lease else { return Ok(Stage::Ready(answer)) };
        let asked = match answer {
            Answer::Unchanged { asked: false, .. } => {
                lease.before.as_ref().map_or(lease.fetched_at, |meta| meta.fetched_at)
            }
            _ => lease.fetched_at,
        };
        let finds = lease.indexed || lease.ours().is_some_and(|meta| meta.tagged);
        let stamp = newest([own.to_owned(), reply.part(0).text()]);
        Ok(match stamp.filter(|(at, evict)| *at >= asked && (*evict || !finds)) {
            Some((at, evict)) => Stage::Fence(answer, at, evict),
            None => Stage::Ready(answer),
        })
    }

    /// `Store::tag_again`: returns the stamp that overtook the present value.
    fn tag_again(&mut self, engine: &Engine, entry: usize) -> Result<Option<(i64, bool)>, Violation> {
        let Some(meta) = self.meta(engine, entry) else { return Ok(None) };
        if meta.validated_at == 0 || meta.own_expiry != self.expiry(entry) || !meta.tagged {
            return Ok(None);
        }
        let own = self.run(engine, &calls::tag(ENTRIES[entry]))?.text();
        let other = self.run(engine, &calls::read_unknown())?.part(0).text();
        Ok(newest([own, other]).filter(|(at, _)| *at >= meta.fetched_at))
    }

    fn finish(&mut self, engine: &Engine, worker: usize, task: &Task, outcome: u8, next: &Next, how: How) -> Step {
        let name = ENTRIES[task.entry];
        let is_ours = self.db.score(calls::AGENDA, name) == task.score.parse().ok();
        let (what, arg) = match next {
            Next::At(at) => ("at", at.to_string()),
            Next::Recheck(at) => ("recheck", at.to_string()),
            Next::In(wait) => ("in", wait.to_string()),
            Next::Out => ("out", String::new()),
            Next::Dead => ("dead", "reason".to_owned()),
        };
        let counter = OUTCOMES[usize::from(outcome)];
        self.run(engine, &calls::finish(name, &task.score, counter, (what, &arg)))?;
        let count = &mut self.outcomes[usize::from(outcome)];
        *count = count.saturating_add(1);
        if is_ours {
            let known = &mut self.known[task.entry];
            known.wanted = None;
            known.dead = *next == Next::Dead;
        }
        if how != How::Lost {
            self.workers[worker].task = None;
        }
        Ok(())
    }

    /// Ends a worker's process, which another one replaces.
    pub(crate) fn crash(&mut self, engine: &Engine, worker: usize) {
        let task = self.workers[worker].task.take();
        self.workers[worker] = Worker { life: (self.workers[worker].life.0 + 1, 0), ..Worker::default() };
        // Nobody claims under its name any more.
        self.late.retain(|(of, _)| *of != worker);
        engine.command(&mut self.db, &["DEL", &calls::last_claim(worker)]);
        if let Some(Task { entry, lease: Some(lease), .. }) = task {
            let crashes = lease.before.as_ref().map_or(0, |meta| meta.crashes);
            self.orphans.push((entry, lease.token, crashes));
        }
    }

    /// `Store::rescue`: ends the fetch of a dead worker.
    pub(crate) fn rescue(&mut self, engine: &Engine) -> Step {
        let Some((entry, token, crashes)) = self.orphans.pop() else { return Ok(()) };
        let began = self.now();
        let rechecks = self.meta(engine, entry).and_then(|meta| meta.rechecks);
        let attempt = Attempt { outcome: FAILED, began, crashes: crashes + 1, rechecks, ..Attempt::default() };
        self.run(engine, &calls::release(ENTRIES[entry], &token, Some(&attempt)))?;
        Ok(())
    }

    /// `Warmer::hand_back`: a worker that stops gives back its entry and its lease.
    pub(crate) fn hand_back(&mut self, engine: &Engine, worker: usize) -> Step {
        let Some(mut task) = self.workers[worker].task.take() else { return Ok(()) };
        self.give_back(engine, &mut task)?;
        self.run(engine, &calls::finish(ENTRIES[task.entry], &task.score, "", ("in", "0")))?;
        Ok(())
    }

    /// Checks that requests stay within this number.
    pub(crate) fn costs_at_most(&self, most: u32, what: &str) -> Step {
        if self.fetches > most {
            return violated(COSTS, format!("{} requests, and {most} are allowed: {what}", self.fetches));
        }
        Ok(())
    }
}

/// Returns the pause before an upstream is asked again that has been behind for so long.
fn pause(behind_for: i64) -> i64 {
    (behind_for / 4).clamp(50, 5_000)
}

/// Returns the newest stamp: its time, and whether it evicts.
fn newest(scores: [String; 2]) -> Option<(i64, bool)> {
    let read = |score: &String| {
        let score = score.parse::<f64>().ok().filter(|score| *score < 0.0)?;
        #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
        let at = -score.ceil() as i64;
        Some((at, score.fract() != 0.0))
    };
    scores.iter().filter_map(read).max_by_key(|(at, _)| *at)
}
