//! The contracts in the headers of scripts, as code that reads the keys before and after.

mod agenda;
mod late;

use super::{CONTRACT, SCRIPT_FAILS, TOLD};
use crate::calls::{self, Call};
use crate::commands::Reply;
use crate::db::Db;
use crate::engine::{Engine, Meta};
use crate::scripts::Script;
use crate::world::{Step, violated};

/// Checks what holds of a script by itself.
pub(crate) fn after_script(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    if let Reply::Error(error) = reply {
        let is_foreign = call.keys.first().is_some_and(|key| {
            before.slot(key).is_some_and(|slot| slot.value.kind() == "hash") && error.contains("WRONGTYPE")
        });
        // It does all else first.
        if call.script == Script::Finish && error.contains("WRONGTYPE") {
            return agenda::finish(engine, before, after, call);
        }
        return if is_foreign { Ok(()) } else { violated(SCRIPT_FAILS, format!("{}: {error}", call.script.path())) };
    }
    is_told(before, after, call)?;
    keeps_foreign(before, after, call)?;
    match call.script {
        Script::Lease => lease(engine, before, after, call, reply),
        Script::Commit | Script::Extend | Script::Gone => fenced(engine, before, after, call, reply),
        Script::Release => {
            fenced(engine, before, after, call, reply)?;
            release(engine, before, after, call, reply)
        }
        Script::Invalidate => invalidate(engine, before, after, call, reply),
        Script::ExtendStale => extend_stale(engine, before, after, call, reply),
        Script::Stamp | Script::StampUnknown => stamp(before, after, call, reply),
        Script::ReadUnknown => read_unknown(before, call, reply),
        Script::Untag => untag(before, after, call),
        Script::BeginLoad => begin_load(before, after, call, reply),
        Script::CommitLoad => ends_own_lease(before, after, &call.keys[1], call, reply.int() == 1),
        Script::DropLease => ends_own_lease(before, after, &call.keys[0], call, reply.int() == 1),
        Script::Set | Script::Delete | Script::Increment => marks(before, after, call),
        Script::Due => agenda::due(engine, before, after, call),
        Script::Claim => agenda::claim(engine, before, after, call, reply),
        Script::Take => agenda::take(engine, before, after, call, reply),
        Script::Cancel => agenda::cancel(engine, before, after, call),
        Script::Finish => agenda::finish(engine, before, after, call),
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
    let (at, is_late) = late::time(engine, before, call);
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
    if (due == 3) != (refresh && is_fenced && matches!(mark, Some('=' | 'e'))) {
        return wrong("a fetch that does not see to the entry");
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
    let doubt = call.args[9] == "1";
    // A doubt replaces no certain invalidation, and ends no value that is held back. An older one replaces none either.
    let open = meta.as_ref().filter(|meta| meta.invalidated > 0 && meta.doubted != meta.invalidated);
    let open = open.filter(|meta| doubt || (meta.invalidated > at && meta.invalidated <= now));
    // A late one takes the place of a doubt, with its time.
    let open = open.or(meta.as_ref().filter(|meta| is_late && meta.invalidated > at && meta.invalidated <= now));
    let (at, doubted) = open.map_or((at, doubt), |meta| (meta.invalidated, false));
    let is_noted = |noted: &Meta| noted.invalidated == at && (noted.doubted == noted.invalidated) == doubted;
    let is_to_be_noted = is_text && removed == 0 || value.is_none() && meta.as_ref().is_none_or(is_blank);
    if refresh && is_old && is_to_be_noted && !noted.as_ref().is_some_and(is_noted) {
        return wrong("it is not noted");
    }
    if doubt && ours && meta.as_ref().is_some_and(|meta| meta.held_until > now) && after.slot(&call.keys[0]) != value {
        return wrong("it is held back, and ends");
    }
    let is_evicted = !refresh && is_old && (is_text || value.is_none());
    let held_until = meta.as_ref().filter(|_| is_evicted).map_or(0, |meta| meta.held_until);
    if reply.part(4).int() != held_until {
        return wrong("until when it was held back");
    }
    Ok(())
}

/// Returns true if metadata remember an invalidation, and nothing else.
fn is_blank(meta: &Meta) -> bool {
    meta.validated_at == 0 && (meta.trigger, meta.failures, meta.crashes, meta.held_until) == (2, 0, 0, 0)
}

/// An open invalidation stays a doubt, or more than that, whatever the note says.
fn release(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let in_doubt = |db: &Db| {
        let meta = engine.meta(db.text(&call.keys[2])?)?;
        Some(meta.doubted == meta.invalidated).filter(|_| meta.invalidated > 0)
    };
    let is_noted = reply.part(0).text() == "done" && !call.args[2].is_empty();
    match in_doubt(before) {
        Some(doubt) if is_noted && in_doubt(after) != Some(doubt) => {
            violated(CONTRACT, "release.lua: a doubt is none, or one that was none".to_owned())
        }
        _ => Ok(()),
    }
}

fn extend_stale(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let pxat = before.slot(&call.keys[0]).map_or(-2, |slot| slot.expires.unwrap_or(-1));
    let meta = before.text(&call.keys[2]).and_then(|packed| engine.meta(packed));
    let is_text = before.text(&call.keys[0]).is_some();
    let expires = |db: &Db| db.slot(&call.keys[0]).map(|slot| slot.expires);
    let in_doubt = |meta: &Meta| call.args[3] == "1" && meta.doubted == meta.invalidated;
    let may_live = |meta: &Meta| meta.invalidated == 0 || in_doubt(meta);
    let meta = meta.filter(|meta| is_text && pxat > 0 && meta.own_expiry == pxat && may_live(meta));
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
    let lost = stamps.find(|(score, tag)| -score.0 > stamped(after, tag.as_str()) + 0.5);
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

/// A write or a deletion by a service marks the fetch in flight.
fn marks(before: &Db, after: &Db, call: &Call) -> Step {
    let key = call.keys[1].as_str();
    let expected = before.text(key).map(|record| format!("{}e", &record[..record.len() - 1]));
    let ends = |db: &Db| db.slot(key).map(|slot| slot.expires);
    if after.text(key).map(str::to_owned) != expected || ends(before) != ends(after) {
        return violated(CONTRACT, format!("{}: the lease became {:?}", call.script.path(), after.text(key)));
    }
    Ok(())
}

/// Checks what the fence and the scripts behind it leave of the lease, and what they note.
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
        // A lease that began in this millisecond may as well be given up: see `faults`.
        "r" if what == "lost" && began == now.to_string() && after.slot(key).is_none() => "lost",
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
