//! The properties that must hold: the invariants of ARCHITECTURE.md, and the contract that each script's header states.

mod contracts;

use crate::calls::{self, CAP, DEAD, LEASE, STALE, STAMPS};
use crate::db::{Db, Value};
use crate::engine::Engine;
use crate::world::{ENTRIES, Handled, Step, World, violated};

pub(crate) use contracts::after_script;

/// Invariant 1.
pub const NOT_WRITTEN: &str = "invariant 1: nothing fetched before a handled invalidation is written";
/// Invariant 1.
pub const NOT_READABLE: &str = "invariant 1: an evicted value is not readable";
/// Invariant 1.
pub const BEYOND_TTL: &str = "invariant 1: an invalidated value is not readable beyond its TTL";
/// Invariant 2.
pub const HAS_TTL: &str = "invariant 2: a value has a TTL";
/// Invariant 4.
pub const TWO_FETCHES: &str = "invariant 4: at most one fetch of a key is in flight";
/// Invariant 6.
pub const BOUNDED: &str = "invariant 6: everything is bounded";
/// Invariant 9.
pub const VERSION_BACK: &str = "invariant 9: no commit replaces a value with one of a lower version";
/// An invalidation without its answer stays in the metadata.
pub const OPEN: &str = "a handled refresh stays noted until a fetch answers it";
/// The agenda loses nothing.
pub const WANTED: &str = "nothing wanted leaves the agenda";
/// A fetch before an invalidation was handled may have had an old answer.
pub const RECHECKED: &str = "what was fetched before a late invalidation was handled is rechecked";
/// The agenda keeps what services write.
pub const STAYS: &str = "an entry that a service writes stays on the agenda";
/// An announced version is waited for.
pub const ANNOUNCED: &str = "an announced version is waited for";
/// A value that a service writes stays.
pub const OVERWRITTEN: &str = "a fetch writes nothing over what was written since it began";
/// Counters.
pub const COUNTER: &str = "counters lose nothing";
/// Liveness.
pub const FRESH_AT_LAST: &str = "once invalidations stop, what is invalidated becomes fresh";
/// Liveness in a storm.
pub const STARVED: &str = "in a storm of invalidations fetches land";
/// Costs.
pub const COSTS: &str = "a storm costs a bounded number of requests";
/// Costs.
pub const PAID_FOR_DOUBT: &str = "a value whose prompt is unchanged is not requested for a doubt only";
/// Announcements.
pub const TOLD: &str = "each change of a value is announced, and nothing else";
/// The guard.
pub const HELD: &str = "what is held back is not removed before that ends, and the guard ends with the last of it";
/// Rate limits.
pub const LIMITED: &str = "no more requests are admitted within a period than the limit, and no fewer";
/// A lost reply.
pub const STRANDED: &str = "what a call took whose reply was lost, its caller has when it asks again";
/// The contract of a script's header.
pub const CONTRACT: &str = "a script does what its header states";
/// A script fails.
pub const SCRIPT_FAILS: &str = "no script fails";
/// The budgets of upstreams.
pub const BUDGET: &str = "a budget is passed by one request at most";
/// As above.
pub const TOLD_SPENT: &str = "the log is told of a spent budget once in a window";
/// As above.
pub const COUNTED: &str = "all tokens that living workers spend are counted";
/// Requests at once.
pub const PERMITS: &str = "no more requests than permits";
/// The schedules of warmups.
pub const TICKS: &str = "each tick is expanded, and by one worker at a time";
/// Locks.
pub const LOCKED: &str = "a lock has one holder, and its numbers grow";

/// Returns a lease's mark.
pub(crate) fn mark(db: &Db, entry: usize) -> Option<char> {
    db.text(&calls::lease_key(ENTRIES[entry]))?.chars().last()
}

/// Returns true if an invalidation cannot be told from an earlier one, since the clock was set back in between.
fn is_excused(handled: &Handled, at: i64, epoch: u8) -> bool {
    epoch != handled.epoch && at > handled.at && at <= handled.now
}

impl Handled {
    /// Returns true if content that was asked for then is too old for this invalidation.
    fn forbids(&self, world: &World, (writer, content): (char, u32), at: i64, epoch: u8) -> bool {
        // With versions it is they that tell what is old, since the upstream lags.
        // Nobody knows the tags of what a service loads, so each of them concerns it.
        let concerns = !self.tag || writer == 'c' && world.is_tagged(content) || writer == 'l' && world.job.loads;
        !world.job.versions && content < self.content && concerns && !is_excused(self, at, epoch)
    }
}

/// Checks that content that was asked for at this time may be written, by a worker (`c`) or a load (`l`).
pub(crate) fn may_be_written(world: &World, entry: usize, content: (char, u32), at: i64, epoch: u8) -> Step {
    match world.known[entry].handled.iter().find(|handled| handled.forbids(world, content, at, epoch)) {
        Some(handled) => violated(NOT_WRITTEN, format!("content {content:?}, asked for at {at}, after {handled:?}")),
        None => Ok(()),
    }
}

/// Checks what holds in every state.
pub(crate) fn always(engine: &Engine, world: &World) -> Step {
    for (entry, name) in ENTRIES.into_iter().enumerate() {
        of_value(engine, world, entry)?;
        of_keys(world, entry)?;
        world.is_guarded(entry)?;
        let known = &world.known[entry];
        if known.stays && world.readable(entry).is_some() && world.db.score(calls::AGENDA, name).is_none() {
            return violated(STAYS, format!("{name} left when a service wrote it"));
        }
        if known.wanted.is_some() && world.db.score(calls::AGENDA, name).is_none() {
            return violated(WANTED, format!("{} was demanded, and left before it was tried", name));
        }
    }
    let running = world.db.members(calls::AGENDA).iter().filter(|(score, _)| {
        let due = engine.due(score.0);
        due.at > world.now() && (due.state == "claimed" || due.state == "running")
    });
    if running.count() > 3 * CAP {
        return violated(BOUNDED, "more entries are in flight than a job may have");
    }
    let letters = world.db.members(calls::DEAD_LETTERS);
    let reasons = world.db.slot(calls::REASONS).map(|slot| match &*slot.value {
        Value::Hash(fields) => fields.len(),
        _ => 0,
    });
    let is_text = |key: &str| world.db.text(key).is_some();
    if letters.len() > DEAD
        || reasons.unwrap_or(0) != letters.len() && !is_text(calls::DEAD_LETTERS) && !is_text(calls::REASONS)
        || world.db.members(calls::STAMPS_KEY).len() > STAMPS + 1
    {
        return violated(BOUNDED, "more dead letters or stamps than are kept");
    }
    Ok(())
}

fn of_value(engine: &Engine, world: &World, entry: usize) -> Step {
    let name = ENTRIES[entry];
    let Some((writer, content)) = world.readable(entry).filter(|(writer, _)| matches!(writer, 'c' | 'l')) else {
        return Ok(());
    };
    let known = &world.known[entry];
    let (at, epoch, ends) = known.fetched;
    let (expiry, now, meta) = (world.expiry(entry), world.now(), world.meta(engine, entry));
    if expiry < 0 {
        return violated(HAS_TTL, name);
    }
    if world.epoch == 0 && !world.job.held && now > ends + if world.job.stale { STALE } else { 0 } {
        return violated(BOUNDED, format!("{name} is readable at {now}, and its TTL ended at {ends}"));
    }
    let is_waiting = world.messages.iter().any(|message| message.concerns(entry));
    for handled in known.handled.iter().filter(|handled| handled.forbids(world, (writer, content), at, epoch)) {
        if handled.evict {
            return violated(NOT_READABLE, format!("{name} has content {content} after {handled:?}"));
        }
        // Of a loaded value, metadata that were there before it may end before it; the agenda has it all the same.
        let is_open = meta.as_ref().map_or(writer == 'l', |meta| meta.invalidated > 0);
        if !handled.tag && !is_open {
            return violated(OPEN, format!("{name} has content {content} after {handled:?}"));
        }
        if now > ends && world.epoch == 0 {
            return violated(BEYOND_TTL, format!("{name} is readable at {now}, and its TTL ended at {ends}"));
        }
        if !is_waiting && !known.dead && world.epoch == 0 && world.db.score(calls::AGENDA, name).is_none() {
            return violated(WANTED, format!("{name} has content {content} after {handled:?}"));
        }
    }
    let is_orphan = world.orphans.iter().any(|(orphan, ..)| *orphan == entry);
    let runs = is_orphan || world.workers.iter().any(|worker| worker.holds(entry));
    let rests = !is_waiting && !runs && !known.dead && !known.evicted && world.epoch == 0;
    if writer == 'c' && rests && world.db.score(calls::AGENDA, name).is_none() {
        return violated(WANTED, format!("{name} was warmed, and nobody refreshes it"));
    }
    if let Some((version, until)) = known.announced
        && writer == 'c'
        && content < version
        && world.epoch == 0
        && now < until
        && !is_waiting
        && meta.is_none_or(|meta| meta.invalidated == 0 || meta.announced < Some(version))
    {
        return violated(ANNOUNCED, format!("{name} has version {content}, and {version} was announced"));
    }
    Ok(())
}

fn of_keys(world: &World, entry: usize) -> Step {
    let name = ENTRIES[entry];
    let now = world.now();
    if let Some(slot) = world.db.slot(&calls::lease_key(name))
        && slot.expires.is_none_or(|at| world.epoch == 0 && at > now + LEASE)
    {
        return violated(BOUNDED, format!("the lease of {name} lasts until {:?}", slot.expires));
    }
    if world.db.slot(&calls::meta_key(name)).is_some_and(|slot| slot.expires.is_none()) {
        return violated(BOUNDED, format!("the metadata of {name} never expire"));
    }
    if let Some(slot) = world.db.slot(name)
        && let Value::Text(text) = &*slot.value
        && text.is_empty()
    {
        return violated(HAS_TTL, format!("{name} is empty"));
    }
    Ok(())
}

/// Lets the world come to rest: nothing is published, fails or dies any more. Then what was invalidated must be fresh.
///
/// # Errors
/// A property that does not hold on the way or at the end.
pub fn settle(engine: &Engine, world: &World) -> Step {
    let mut world = world.clone();
    let (began, fetches) = (world.now(), world.fetches);
    let deadline = began + 60_000;
    let allowed = if world.job.versions { 30 } else { 0 } + 4 * (u32::try_from(world.messages.len()).unwrap_or(0) + 4);
    world.left = [0; crate::world::Kind::COUNT];
    engine.command(&mut world.db, &["DEL", calls::PAUSED]);
    // A busy entry is tried again in the same millisecond as its lease ends; time goes on meanwhile.
    let mut rounds = 0;
    for _ in 0..600 {
        let before = world.clone();
        for action in world.fair(engine) {
            if world.can(engine, action) {
                world.apply(engine, action)?;
            }
        }
        rounds += 1;
        if world != before {
            if rounds % 20 == 0 {
                let now = world.now();
                engine.set_clock(&mut world.db, now + 1);
            }
            continue;
        }
        match world.next_event(engine).filter(|at| *at <= deadline) {
            Some(at) => engine.set_clock(&mut world.db, at),
            None => break,
        }
    }
    if !world.messages.is_empty() || world.workers.iter().any(|worker| worker.task.is_some()) {
        return violated(FRESH_AT_LAST, format!("{} ms later, work is left:\n{world}", world.now() - began));
    }
    for (entry, name) in ENTRIES.into_iter().enumerate() {
        let known = &world.known[entry];
        let Some((writer, content)) = world.readable(entry) else { continue };
        let (at, epoch, _) = known.fetched;
        // What is of another clock is revalidated, which is not modelled.
        let same = |handled: &&Handled| epoch == world.epoch && handled.epoch == world.epoch;
        let is_old =
            known.handled.iter().filter(same).any(|handled| handled.forbids(&world, (writer, content), at, epoch));
        let is_held = world.job.held && known.missing;
        // An invalidation of a quarter of that time before may stand for it.
        if writer == 'c' && !known.dead && world.epoch == 0 && at < known.edited + world.job.last_recheck() / 4 * 3 {
            return violated(
                RECHECKED,
                format!("{name} was fetched at {at}, and edited at {}:\n{world}", known.edited),
            );
        }
        if matches!(writer, 'c' | 'l') && is_old && !known.dead && !is_held {
            return violated(FRESH_AT_LAST, format!("{} still has content {content}:\n{world}", name));
        }
        let awaited = known.announced.filter(|(_, until)| *until > began).map(|(version, _)| version);
        if writer == 'c' && !known.dead && awaited.is_some_and(|version| content < version && version <= known.content)
        {
            return violated(FRESH_AT_LAST, format!("{} still has version {content}:\n{world}", name));
        }
    }
    world.costs_at_most(fetches + allowed, "after all was quiet")?;
    if world.job.held { world.rests_guard(engine) } else { Ok(()) }
}
