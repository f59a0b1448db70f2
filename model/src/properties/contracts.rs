//! The contracts in the headers of scripts, as code that reads the keys before and after.

use super::{CONTRACT, SCRIPT_FAILS, TOLD};
use crate::calls::{self, AGENDA, CAP, CLAIM, Call, DEAD_LETTERS, PAUSED, RUN, STATS};
use crate::commands::Reply;
use crate::db::Db;
use crate::engine::{Due, Engine};
use crate::scripts::Script;
use crate::world::{Step, violated};

/// Checks what holds of a script by itself.
pub(crate) fn after_script(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    if let Reply::Error(error) = reply {
        let is_foreign = call.keys.first().is_some_and(|key| {
            before.slot(key).is_some_and(|slot| slot.value.kind() == "hash") && error.contains("WRONGTYPE")
        });
        return if is_foreign { Ok(()) } else { violated(SCRIPT_FAILS, format!("{}: {error}", call.script.path())) };
    }
    is_told(before, after, call)?;
    keeps_foreign(before, after, call)?;
    match call.script {
        Script::Lease => lease(engine, before, after, call, reply),
        Script::Commit | Script::Extend | Script::Gone | Script::Release => fenced(engine, before, after, call, reply),
        Script::Invalidate => invalidate(engine, before, after, call, reply),
        Script::ExtendStale => extend_stale(engine, before, after, call, reply),
        Script::Stamp | Script::StampUnknown => stamp(before, after, call, reply),
        Script::ReadUnknown => read_unknown(before, call, reply),
        Script::Untag => untag(before, after, call),
        Script::BeginLoad => begin_load(before, after, call, reply),
        Script::CommitLoad => ends_own_lease(before, after, &call.keys[1], call, reply.int() == 1),
        Script::DropLease => ends_own_lease(before, after, &call.keys[0], call, reply.int() == 1),
        Script::Set | Script::Delete | Script::Increment => marks(before, after, call),
        Script::Due => due(engine, before, after, call),
        Script::Claim => claim(engine, before, after, call, reply),
        Script::Take => take(engine, before, after, call, reply),
        Script::Cancel => cancel(engine, before, after, call),
        Script::Finish => finish(engine, before, after, call),
        _ => Ok(()),
    }
}

fn is_told(before: &Db, after: &Db, call: &Call) -> Step {
    let events: &[&str] = match call.script {
        Script::Commit | Script::CommitLoad | Script::Set | Script::Increment => &["warmed"],
        Script::Gone => &["gone"],
        Script::Invalidate | Script::Delete => &["evicted"],
        _ => return Ok(()),
    };
    let key = call.keys[0].as_str();
    let changed = before.text(key) != after.text(key) || before.slot(key).is_some() != after.slot(key).is_some();
    let always = matches!(call.script, Script::Set | Script::Increment);
    let told: Vec<&str> = after.published.iter().map(|(_, message)| message.as_str()).collect();
    let expected: Vec<String> =
        if changed || always { events.iter().map(|event| calls::change(key, event)).collect() } else { Vec::new() };
    if told != expected {
        return violated(TOLD, format!("{}: told {told:?}, not {expected:?}", call.script.path()));
    }
    Ok(())
}

/// A key that holds no string is somebody else's, and stays.
fn keeps_foreign(before: &Db, after: &Db, call: &Call) -> Step {
    let Some(key) = call.keys.first().filter(|key| before.slot(key).is_some_and(|slot| slot.value.kind() == "hash"))
    else {
        return Ok(());
    };
    let entry = crate::world::ENTRIES.contains(&key.as_str());
    if entry && before.slot(key) != after.slot(key) {
        return violated(CONTRACT, format!("{} changed a key of another type", call.script.path()));
    }
    Ok(())
}

fn lease(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let number = |n: usize| call.args[n].parse::<i64>().unwrap_or(-1);
    let now = before.now();
    let (value, key) = (before.slot(&call.keys[0]), call.keys[1].as_str());
    let pxat = value.map_or(-2, |slot| slot.expires.unwrap_or(-1));
    let meta = before.text(&call.keys[2]).and_then(|packed| engine.meta(packed));
    let meta = meta.as_ref();
    let ours = meta.is_some_and(|meta| meta.own_expiry == pxat);
    let holds = ours && meta.is_some_and(|meta| meta.stale_for == 0 && meta.validated_at <= now);
    let fresh = value.is_some()
        && meta.is_none_or(|meta| meta.invalidated == 0)
        && (call.args[4] == "1"
            || holds && number(2) >= 0 && meta.is_some_and(|meta| meta.validated_at >= number(2))
            || holds && number(3) >= 0 && pxat >= number(3));
    let crashes = meta.map_or(0, |meta| i64::from(meta.crashes));
    let expected = if before.slot(key).is_some() {
        "busy"
    } else if value.is_none() && call.args[5] == "1" {
        "absent"
    } else if value.is_some_and(|slot| slot.value.kind() != "string") && !ours {
        "wrongtype"
    } else if fresh {
        "fresh"
    } else if number(7) >= 0 && crashes >= number(7) {
        "poison"
    } else {
        "leased"
    };
    let what = reply.part(0).text();
    if what != expected {
        return violated(CONTRACT, format!("lease.lua: {what}, not {expected}"));
    }
    ends_in_time(before, after, key, &call.args[1])?;
    if what == "leased" {
        let follows = meta
            .is_some_and(|meta| meta.trigger == 1 && (meta.validated_at > now - number(6) || meta.invalidated != 0));
        let record = format!("{} {now} {}", call.args[0], if follows { '+' } else { '-' });
        if after.text(key) != Some(&record) || reply.part(2).int() != pxat {
            return violated(CONTRACT, format!("lease.lua: {:?}, not {record}", after.text(key)));
        }
    }
    Ok(())
}

/// A lease that a clock which ran ahead has begun ends no later than one that begins now.
fn ends_in_time(before: &Db, after: &Db, key: &str, time: &str) -> Step {
    let began = after.text(key).and_then(|record| record.split(' ').nth(1)?.parse::<i64>().ok());
    let latest = before.now() + time.parse::<i64>().unwrap_or(0);
    match after.slot(key).and_then(|slot| slot.expires) {
        Some(at) if began.is_some_and(|began| began > before.now()) && at > latest => {
            violated(CONTRACT, format!("{key} ends at {at}, and {latest} is the latest"))
        }
        _ => Ok(()),
    }
}

fn invalidate(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let at = call.args[0].parse::<i64>().unwrap_or(0);
    let (now, refresh, wanted) = (before.now(), call.args[1] == "r", call.args[8].as_str());
    let [fenced, due, removed, wait] = [0, 1, 2, 3].map(|n| reply.part(n).int());
    let wrong = |found: &str| violated(CONTRACT, format!("invalidate.lua: {found}: {reply:?}"));
    let unchanged = [0, 1, 2].into_iter().all(|n| before.slot(&call.keys[n]) == after.slot(&call.keys[n]));
    if wait > 0 {
        return if refresh && unchanged { Ok(()) } else { wrong("held off, and something changed") };
    }
    let is_before = |of: i64| of <= at || of > now;
    let value = before.slot(&call.keys[0]);
    let pxat = value.map_or(-2, |slot| slot.expires.unwrap_or(-1));
    let meta = before.text(&call.keys[2]).and_then(|packed| engine.meta(packed));
    let ours = meta.as_ref().is_some_and(|meta| meta.own_expiry == pxat);
    if let Ok(wanted) = wanted.parse::<u32>()
        && ours
        && value.is_some()
        && meta.as_ref().and_then(|meta| meta.version) >= Some(wanted)
    {
        return if unchanged && due == 0 { Ok(()) } else { wrong("it has the version") };
    }
    let record = before.text(&call.keys[1]);
    let began = record.and_then(|record| record.split(' ').nth(1)?.parse::<i64>().ok());
    let mark = record.and_then(|record| record.chars().last());
    let is_overtaken = began.is_some_and(is_before);
    let is_fenced = is_overtaken && (refresh || mark != Some('e'));
    let marked = record.filter(|_| is_fenced).map(|record| format!("{}{}", &record[..record.len() - 1], call.args[1]));
    let ends = |db: &Db| db.slot(&call.keys[1]).map(|slot| slot.expires);
    if (fenced == 1) != is_fenced || marked.is_some_and(|marked| after.text(&call.keys[1]) != Some(&marked)) {
        return wrong("the fetch in flight");
    }
    if ends(before) != ends(after) {
        return wrong("the lease's end");
    }
    if (due == 3) != (refresh && is_fenced && mark == Some('=')) {
        return wrong("a service's load");
    }
    let has_new = meta.as_ref().is_some_and(|meta| !is_before(meta.fetched_at)) && (value.is_none() || ours);
    let is_old = (!wanted.is_empty() && wanted != "any") || !has_new || wanted == "any" && meta.is_none();
    let is_text = value.is_some_and(|slot| slot.value.kind() == "string");
    if !refresh && (removed == 1) != (is_old && is_text) {
        return wrong("the value");
    }
    let later = began.is_some() && !is_overtaken;
    if refresh && is_old && value.is_some() && !later && due != 1 && due != 3 {
        return wrong("it is to be fetched");
    }
    let noted = after.text(&call.keys[2]).and_then(|packed| engine.meta(packed));
    if refresh && is_old && is_text && removed == 0 && noted.is_none_or(|meta| meta.invalidated != at) {
        return wrong("it is not noted");
    }
    Ok(())
}

fn extend_stale(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let pxat = before.slot(&call.keys[0]).map_or(-2, |slot| slot.expires.unwrap_or(-1));
    let meta = before.text(&call.keys[2]).and_then(|packed| engine.meta(packed));
    let is_text = before.text(&call.keys[0]).is_some();
    let expires = |db: &Db| db.slot(&call.keys[0]).map(|slot| slot.expires);
    let meta = meta.filter(|meta| is_text && pxat > 0 && meta.own_expiry == pxat && meta.invalidated == 0);
    let Some(meta) = meta else {
        return match reply.part(0).int() == -2 && expires(before) == expires(after) {
            true => Ok(()),
            false => violated(CONTRACT, format!("extend_stale.lua: {reply:?} of a value that is not kept")),
        };
    };
    let number = |n: usize| call.args[n].parse::<i64>().unwrap_or(0);
    let ends = pxat - meta.stale_for;
    let till = pxat.max((ends + number(1)).min(before.now() + number(0)));
    let noted = after.text(&call.keys[2]).and_then(|packed| engine.meta(packed));
    let noted = noted.is_some_and(|meta| (meta.own_expiry, meta.stale_for) == (till, till - ends));
    if expires(after) != Some(Some(till)) || !noted || (reply.part(0).int(), reply.part(1).int()) != (till, ends) {
        return violated(CONTRACT, format!("extend_stale.lua: {reply:?}, not {till} {ends}"));
    }
    Ok(())
}

/// A stamp is as late as the invalidation, or later.
fn stamp(before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let is_known = call.script == Script::Stamp;
    let (key, args) = (call.keys[0].as_str(), if is_known { &call.args[..] } else { &call.args[1..] });
    let at = args[0].parse::<f64>().unwrap_or(0.0) + if args[1] == "e" { 0.5 } else { 0.0 };
    if is_known && before.slot(key).is_none() {
        return match after.slot(key).is_none() && reply.int() == 0 {
            true => Ok(()),
            false => violated(CONTRACT, "stamp.lua: it made a tag"),
        };
    }
    let stamped = |db: &Db, tag: &str| db.score(key, tag).or(db.score(key, "")).map_or(0.0, |score| -score);
    let tag = if is_known { "" } else { call.args[0].as_str() };
    // One of a clock that was set back since is capped wherever it is read.
    #[expect(clippy::cast_precision_loss, reason = "times in ms")]
    let latest = before.now() as f64 + 0.5;
    let mut stamps = before.members(key).iter().filter(|(score, _)| !is_known && -score.0 <= latest);
    let lost = stamps.find(|(score, tag)| -score.0 > stamped(after, tag) + 0.5);
    if stamped(after, tag) < at.floor()
        || !(tag.is_empty() || after.score(key, tag).is_none()) && stamped(after, tag) < at
    {
        return violated(
            CONTRACT,
            format!("{}: {tag:?} is stamped {}, not {at}", call.script.path(), stamped(after, tag)),
        );
    }
    if is_known && stamped(after, tag) < at {
        return violated(CONTRACT, format!("stamp.lua: stamped {}, not {at}", stamped(after, tag)));
    }
    match lost {
        Some(lost) => violated(CONTRACT, format!("stamp_unknown.lua: {lost:?} is forgotten")),
        None => Ok(()),
    }
}

fn read_unknown(before: &Db, call: &Call, reply: &Reply) -> Step {
    #[expect(clippy::cast_precision_loss, reason = "times in ms")]
    let latest = before.now() as f64 + 0.5;
    for (n, tag) in call.args.iter().enumerate() {
        let stamp = before.score(&call.keys[0], tag).or(before.score(&call.keys[0], "")).map_or(0.0, |score| -score);
        let told = -reply.part(n).text().parse::<f64>().unwrap_or(0.0);
        if told != stamp && (stamp <= latest || told.floor() + 0.5 != latest) {
            return violated(CONTRACT, format!("read_unknown.lua: {tag} was stamped {stamp}, not {told}"));
        }
    }
    Ok(())
}

fn untag(before: &Db, after: &Db, call: &Call) -> Step {
    let entry = call.args[0].as_str();
    let until = call.args[1].parse::<f64>().unwrap_or(0.0);
    let expected = before.score(&call.keys[0], entry).filter(|score| *score > until);
    if after.score(&call.keys[0], entry) != expected {
        return violated(
            CONTRACT,
            format!("untag.lua: {entry} is there until {:?}", after.score(&call.keys[0], entry)),
        );
    }
    Ok(())
}

fn begin_load(before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    if reply.part(0).text() == "busy" {
        ends_in_time(before, after, &call.keys[1], &call.args[1])?;
    }
    let mark = before.text(&call.keys[1]).and_then(|record| record.chars().last());
    let expected = match (before.text(&call.keys[0]), mark) {
        (Some(_), _) => "there",
        (None, None | Some('e')) => "leased",
        (None, Some(_)) => "busy",
    };
    let record = format!("{} {} =", call.args[0], before.now());
    let is_held = after.text(&call.keys[1]) == Some(&record);
    if reply.part(0).text() != expected || expected == "leased" && !is_held {
        return violated(CONTRACT, format!("begin_load.lua: {reply:?}, not {expected}"));
    }
    Ok(())
}

/// A load ends its own lease, and no other.
fn ends_own_lease(before: &Db, after: &Db, key: &str, call: &Call, done: bool) -> Step {
    let (held, left) = (before.text(key), after.text(key));
    let is_ours = held.is_some_and(|record| record.split(' ').next() == Some(&call.args[0]));
    if is_ours == (left.is_some() || held.is_none()) || done && !is_ours {
        return violated(CONTRACT, format!("{}: the lease {held:?} became {left:?}", call.script.path()));
    }
    Ok(())
}

/// What a service writes or deletes marks the fetch in flight.
fn marks(before: &Db, after: &Db, call: &Call) -> Step {
    let key = call.keys[1].as_str();
    let expected = before.text(key).map(|record| format!("{}e", &record[..record.len() - 1]));
    let ends = |db: &Db| db.slot(key).map(|slot| slot.expires);
    if after.text(key).map(str::to_owned) != expected || ends(before) != ends(after) {
        return violated(CONTRACT, format!("{}: the lease became {:?}", call.script.path(), after.text(key)));
    }
    Ok(())
}

/// What the fence and the scripts behind it leave of the lease, and what they note.
fn fenced(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let (key, now) = (call.keys[1].as_str(), before.now());
    let record = before.text(key).unwrap_or_default();
    let mut words = record.split(' ');
    let (token, began, mark) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let what = reply.part(0).text();
    let wrong = |found: &str| violated(CONTRACT, format!("{}: {what} of {record:?}: {found}", call.script.path()));
    if token != Some(&call.args[0]) {
        return if what == "lost" && before == after { Ok(()) } else { wrong("it is another's") };
    }
    let asked = match call.script {
        Script::Commit => &call.args[10],
        Script::Extend => &call.args[8],
        Script::Gone => &call.args[7],
        _ => began,
    };
    let expected = match mark {
        _ if call.script == Script::Release => "done",
        "e" => "evicted",
        _ if asked != began => "again",
        "r" => "again",
        _ if what == "again" || what == "evicted" || what == "lost" => "done",
        _ => what.as_str(),
    };
    if what != expected {
        return wrong(expected);
    }
    let refused = refused(engine, before, call);
    if matches!(what.as_str(), "done" | "older" | "behind") && refused.unwrap_or("done") != what {
        return wrong(refused.unwrap_or("done"));
    }
    match what.as_str() {
        "done" | "evicted" | "wrongtype" if after.slot(key).is_some() => wrong("the lease is there"),
        "again" if mark == "r" && asked == began => {
            let renewed = after.text(key) == Some(&format!("{} {now} +", call.args[0]));
            if renewed && reply.part(1).int() == now { Ok(()) } else { wrong("the lease is not begun anew") }
        }
        "again" | "foreign" | "older" | "behind" if after.text(key) != before.text(key) => wrong("the lease changed"),
        "done" if call.script == Script::Release && reply.part(1).text() != mark => wrong("the mark is lost"),
        "done" if call.script != Script::Release => {
            let (old, new) = (before.text(&call.keys[2]), after.text(&call.keys[2]));
            let (old, new) = (old.and_then(|packed| engine.meta(packed)), new.and_then(|packed| engine.meta(packed)));
            let unasked = call.script == Script::Extend && call.args[7] == "1";
            let asked = match &old {
                Some(old) if unasked => old.fetched_at,
                _ => asked.parse().unwrap_or(0),
            };
            let waits = call.script == Script::Commit && reply.part(4).int() == 1;
            let expiry = after.slot(&call.keys[0]).and_then(|slot| slot.expires).unwrap_or(0);
            let told = reply.part(2).int().max(0);
            match new {
                Some(new)
                    if new.fetched_at == asked
                        && new.validated_at.to_string() == began
                        && (new.invalidated == 0) != waits
                        && (new.own_expiry, new.stale_for) == (expiry, 0)
                        && told == expiry =>
                {
                    Ok(())
                }
                new => wrong(&format!("{new:?}")),
            }
        }
        _ => Ok(()),
    }
}

/// Returns the objection to an answer's version (`judge` in `meta.lua`).
fn refused(engine: &Engine, before: &Db, call: &Call) -> Option<&'static str> {
    let has_value = before.text(&call.keys[0]).is_some();
    let meta = before.text(&call.keys[2]).and_then(|packed| engine.meta(packed))?;
    let (version, patience, look) = match call.script {
        Script::Commit => (call.args[11].parse().ok(), &call.args[12], &call.args[13]),
        Script::Extend => (meta.version, &call.args[9], &call.args[10]),
        Script::Gone if !has_value => (None, &call.args[8], &call.args[9]),
        _ => return None,
    };
    let patience: i64 = patience.parse().ok()?;
    if has_value && version < meta.version {
        return Some("older");
    }
    let (is_open, now) = (meta.invalidated != 0, before.now());
    if version >= meta.announced || !is_open && look != "1" {
        return None;
    }
    let waits = is_open && (meta.announced_at..meta.announced_at + patience).contains(&now);
    let gains = has_value && meta.version < version;
    (!gains && (waits || !is_open && has_value)).then_some("behind")
}

/// The strength of a trigger.
fn strength(trigger: u8) -> u8 {
    [3, 4, 2, 1, 5, 0][usize::from(trigger)]
}

fn decoded(engine: &Engine, db: &Db, entry: &str) -> Option<Due> {
    db.score(AGENDA, entry).map(|score| engine.due(score))
}

fn due(engine: &Engine, before: &Db, after: &Db, call: &Call) -> Step {
    let (how, trigger) = (call.args[0].as_str(), call.args[1].parse::<u8>().unwrap_or(0));
    let now = before.now();
    let at = call.args[2].parse().ok().filter(|at| *at != 0).unwrap_or(now);
    let priority = match how {
        "urgent" => 2,
        "bulk" => 1,
        _ => 0,
    };
    let override_ = call.args[3] == "1";
    let wrong = |what: &str, old: &Option<Due>, new: &Option<Due>| {
        violated(CONTRACT, format!("due.lua: {how} {trigger} at {at}: {what}: {old:?} became {new:?}"))
    };
    let mut moved = false;
    for entry in &call.args[6..] {
        let (old, new) = (decoded(engine, before, entry), decoded(engine, after, entry));
        moved |= old != new;
        let placed = match how {
            "urgent" => Due { at: now, state: "urgent".into(), trigger, priority: 2 },
            "bulk" => Due { at, state: "urgent".into(), trigger, priority: 1 },
            _ => Due { at, state: "scheduled".into(), trigger, priority: 0 },
        };
        let Some(was) = &old else {
            if new.as_ref() != Some(&placed).filter(|_| how != "there") {
                return wrong("an absent entry", &old, &new);
            }
            continue;
        };
        let Some(is) = &new else { return wrong("it left", &old, &new) };
        if how == "keep" && is != was {
            return wrong("it was there", &old, &new);
        }
        let stays = |is: &Due| strength(is.trigger) >= strength(was.trigger);
        let right = match was.state.as_str() {
            _ if how == "keep" => true,
            "urgent" => {
                is.state == "urgent"
                    && stays(is)
                    && is.priority >= was.priority.max(priority)
                    && (is.priority > was.priority || is.at <= was.at || strength(trigger) > strength(was.trigger))
                    && (how != "there" || at >= was.at || is.at == at || was.priority == 2 && is.at == now)
                    && (priority == 0 || strength(trigger) <= strength(was.trigger) || is.trigger == trigger)
            }
            "scheduled" if priority > 0 => is.state == "urgent" && is.priority == priority && stays(is),
            "scheduled" => {
                let anew = strength(trigger) > strength(was.trigger) && at <= now;
                let expected = if at < was.at || anew { at } else { was.at };
                is.at == expected && stays(is) && is.state == "scheduled"
            }
            state => {
                let must = override_ && (state == "running" || was.priority < priority)
                    || was.trigger == 5 && trigger != 5
                    || was.trigger == 2 && priority > 0;
                let kept = how == "there" && was.priority > 0;
                match must {
                    false => is == was,
                    true if kept => is.state == "urgent" && is.priority == was.priority,
                    true => *is == placed,
                }
            }
        };
        if !right {
            return wrong("it is there", &old, &new);
        }
    }
    let soon = moved && (priority > 0 || at < now + 5_000);
    if soon && after.published.is_empty() {
        return violated(CONTRACT, "due.lua: dispatchers are not woken");
    }
    Ok(())
}

fn claim(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let now = before.now();
    if before.slot(PAUSED).is_some() {
        return match before == after && reply.part(1).text() == "-2" {
            true => Ok(()),
            false => violated(CONTRACT, "claim.lua: a paused job was claimed"),
        };
    }
    let all: Vec<(&str, Due)> =
        before.members(AGENDA).iter().map(|(score, entry)| (entry.as_str(), engine.due(score.0))).collect();
    let future = now + CLAIM + 3_600_000;
    let is = |due: &Due, state: &str, priority: u8| due.state == state && due.priority == priority;
    let holds = |due: &Due| matches!(due.state.as_str(), "claimed" | "running");
    type Class<'a> = (usize, &'a dyn Fn(&Due) -> bool);
    let classes: [Class<'_>; 8] = [
        (3, &|due| is(due, "urgent", 2) && due.at <= now),
        (3, &|due| holds(due) && due.priority == 2 && due.at <= now),
        (2, &|due| is(due, "urgent", 1) && due.at <= now),
        (3, &|due| is(due, "urgent", 2) && due.at > now + 900_000),
        (2, &|due| is(due, "urgent", 1) && due.at > now + 900_000),
        (2, &|due| holds(due) && due.at <= now),
        (2, &|due| holds(due) && due.at > future),
        (1, &|due| due.state == "scheduled" && due.at <= now),
    ];
    let mut room = call.args[0].parse::<usize>().unwrap_or(0);
    let mut held = all.iter().filter(|(_, due)| holds(due) && due.at > now && due.at <= future).count();
    let mut expected: Vec<(&str, &Due)> = Vec::new();
    for (times, class) in classes {
        for (entry, due) in &all {
            if class(due) && room > 0 && held < times * CAP && !expected.iter().any(|(of, _)| of == entry) {
                expected.push((entry, due));
                (room, held) = (room - 1, held + 1);
            }
        }
    }
    let claimed: Vec<String> = reply.parts().iter().skip(2).step_by(3).map(Reply::text).collect();
    if claimed != expected.iter().map(|(entry, _)| *entry).collect::<Vec<_>>() {
        return violated(CONTRACT, format!("claim.lua: {claimed:?}, not {expected:?}"));
    }
    for (n, (entry, due)) in expected.iter().enumerate() {
        let placed = Due { at: now + CLAIM, state: "claimed".into(), ..(*due).clone() };
        let score = after.score(AGENDA, entry);
        if decoded(engine, after, entry).as_ref() != Some(&placed)
            || reply.part(3 + 3 * n).text().parse().ok() != score
            || reply.part(4 + 3 * n).text().parse().ok() != before.score(AGENDA, entry)
        {
            return violated(CONTRACT, format!("claim.lua: {entry} is not claimed until {}", now + CLAIM));
        }
    }
    for (entry, due) in &all {
        if !claimed.iter().any(|of| of == entry) && decoded(engine, after, entry).as_ref() != Some(due) {
            return violated(CONTRACT, format!("claim.lua: {entry} moved"));
        }
    }
    let next = after.members(AGENDA).iter().map(|(score, _)| engine.due(score.0).at).min().unwrap_or(-1);
    if reply.part(1).text() != next.to_string() || reply.part(0).text() != now.to_string() {
        return violated(CONTRACT, format!("claim.lua: due next at {:?}, not {next}", reply.part(1)));
    }
    Ok(())
}

fn take(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let (entry, score) = (call.args[1].as_str(), call.args[2].parse::<f64>().ok());
    let old = before.score(AGENDA, entry);
    let was = score.map(|score| engine.due(score));
    let expected = match was.filter(|_| old.is_some() && old == score) {
        Some(was) => Some(Due { at: before.now() + RUN, state: "running".into(), ..was }),
        None => decoded(engine, before, entry),
    };
    let taken = reply.part(0).text();
    let right = taken.is_empty() || taken.parse().ok() == after.score(AGENDA, entry);
    if decoded(engine, after, entry) != expected || !right || taken.is_empty() == (old.is_some() && old == score) {
        return violated(
            CONTRACT,
            format!("take.lua: {entry} is {:?}, not {expected:?}", decoded(engine, after, entry)),
        );
    }
    Ok(())
}

fn cancel(engine: &Engine, before: &Db, after: &Db, call: &Call) -> Step {
    let at = call.args[0].parse::<i64>().unwrap_or(0);
    for entry in &call.args[1..] {
        let old = decoded(engine, before, entry);
        let stays = old.as_ref().is_some_and(|due| match due.state.as_str() {
            "urgent" => due.at > at && due.at <= before.now(),
            "claimed" => !matches!(due.trigger, 1 | 2 | 5),
            _ => false,
        });
        if decoded(engine, after, entry) != old.clone().filter(|_| stays) {
            return violated(CONTRACT, format!("cancel.lua: {entry}, which was {old:?}, stays: {stays}"));
        }
    }
    Ok(())
}

fn finish(engine: &Engine, before: &Db, after: &Db, call: &Call) -> Step {
    let now = before.now();
    let counters = call.args[4].parse::<usize>().unwrap_or(0);
    for pair in call.args[5..5 + 2 * counters].chunks_exact(2) {
        let count = |db: &Db| db.field(STATS, &pair[0]).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        if count(after) != count(before) + pair[1].parse::<i64>().unwrap_or(0) || after.field(STATS, "since").is_none()
        {
            return violated(super::COUNTER, format!("finish.lua: {} was not counted", pair[0]));
        }
        if !call.args[1].is_empty() && after.field(STATS, "last") != Some(&call.args[1]) {
            return violated(CONTRACT, "finish.lua: the last outcome is another");
        }
    }
    for task in call.args[5 + 2 * counters..].chunks_exact(4) {
        let [entry, score, what, arg] = task else { continue };
        let (old, new) = (decoded(engine, before, entry), decoded(engine, after, entry));
        let number = arg.parse::<i64>().unwrap_or(0);
        let is_ours = before.score(AGENDA, entry).is_some() && before.score(AGENDA, entry) == score.parse().ok();
        if !is_ours {
            if old != new {
                return violated(CONTRACT, format!("finish.lua: {entry} is another's, and moved to {new:?}"));
            }
            continue;
        }
        let was = old.clone().unwrap_or(Due { at: 0, state: String::new(), trigger: 0, priority: 0 });
        let scheduled = |trigger| Some(Due { at: number, state: "scheduled".into(), trigger, priority: 0 });
        let expected = match what.as_str() {
            "at" => scheduled(2),
            "recheck" => scheduled(5),
            "in" => {
                let state = if was.priority > 0 { "urgent" } else { "scheduled" };
                Some(Due { at: now + number, state: state.into(), ..was })
            }
            _ => None,
        };
        if new != expected {
            return violated(CONTRACT, format!("finish.lua: {entry} is {new:?}, not {expected:?}"));
        }
        let soon = expected.is_some_and(|due| due.at < now + 5_000);
        if soon == after.published.is_empty() {
            return violated(CONTRACT, format!("finish.lua: signals {:?}", after.published));
        }
        let (letter, reason) = (after.score(DEAD_LETTERS, entry), after.field(calls::REASONS, entry));
        let is_dead = match what.as_str() {
            "dead" if letter.is_none() => after.members(DEAD_LETTERS).len() == calls::DEAD,
            "dead" => reason == Some(arg),
            "in" => letter == before.score(DEAD_LETTERS, entry),
            _ => letter.is_none() && reason.is_none(),
        };
        if !is_dead {
            return violated(CONTRACT, format!("finish.lua: the dead letter of {entry} is {letter:?} {reason:?}"));
        }
    }
    Ok(())
}
