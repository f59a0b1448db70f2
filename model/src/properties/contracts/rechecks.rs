//! What was fetched after an invalidation that nobody knew of is rechecked.

use crate::calls::Call;
use crate::commands::Reply;
use crate::db::Db;
use crate::engine::{Engine, Meta};
use crate::properties::RECHECKED;
use crate::world::{Step, violated};

/// Returns an entry's metadata.
fn meta(engine: &Engine, db: &Db, call: &Call) -> Option<Meta> {
    engine.meta(db.text(&call.keys[2])?)
}

/// Checks an answer that was asked for at `asked` and is written.
pub(super) fn written(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply, asked: i64) -> Step {
    let within = call.args.last().and_then(|within| within.parse::<i64>().ok()).unwrap_or(0);
    let since = meta(engine, after, call).map_or(0, |meta| meta.rechecked);
    let open = meta(engine, before, call).filter(|meta| meta.invalidated > 0);
    let is_late = |meta: &Meta| meta.invalidated < asked && asked < meta.invalidated + within;
    let noted = call.args.iter().find_map(|arg| arg.split_once(r#""k":["#)?.1.split(',').next()?.parse::<i64>().ok());
    let is_doubt = |meta: &Meta| meta.doubted == meta.invalidated;
    let is_unknown = |meta: &Meta| match noted {
        Some(noted) => noted < meta.invalidated && !is_doubt(meta),
        None => true,
    };
    let late = open.filter(|meta| is_late(meta) && is_unknown(meta)).map(|meta| meta.invalidated);
    match (since, reply.part(6).int()) == (late.or(noted).unwrap_or(0), late.unwrap_or(0)) {
        true => Ok(()),
        false => violated(RECHECKED, format!("{}: since {since}, not {late:?}: {reply:?}", call.script.path())),
    }
}

/// Checks an invalidation that was handled.
pub(super) fn invalidated(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let number = |n: usize| call.args[n].parse::<i64>().unwrap_or(0);
    let (at, within, now) = (number(0), number(10), before.now());
    let is_late = |fetched_at: i64| (at + 1..at + within).contains(&fetched_at) && fetched_at <= now;
    let record: Vec<&str> = before.text(&call.keys[1]).map(|record| record.split(' ').collect()).unwrap_or_default();
    let began = record.get(1).and_then(|began| began.parse::<i64>().ok());
    if record.last() == Some(&"=") && began.is_some_and(is_late) && reply.part(1).int() != 2 {
        return violated(RECHECKED, format!("invalidate.lua: a load that began at {began:?}: {reply:?}"));
    }
    let pxat = before.slot(&call.keys[0]).map_or(-2, |slot| slot.expires.unwrap_or(-1));
    let is_known = |meta: &Meta| meta.own_expiry == pxat || pxat == -2 && meta.own_expiry == 0;
    let (old, new) = (meta(engine, before, call), meta(engine, after, call));
    // A doubt, and a version that is announced, judge a value by other rules.
    let is_plain = call.args[9] != "1" && matches!(call.args[8].as_str(), "" | "any");
    let Some(old) = old.filter(|old| is_plain && is_known(old) && is_late(old.fetched_at)) else {
        return Ok(());
    };
    let is_noted = |new: &Meta| new.rechecked >= at || new.invalidated >= at;
    if began.is_none_or(|began| began > at) && !new.as_ref().is_some_and(is_noted) {
        return violated(RECHECKED, format!("invalidate.lua: {new:?} after a message of {at}"));
    }
    let is_new = new.is_some_and(|new| new.rechecked == at && old.rechecked != at);
    match reply.part(5).int() == old.fetched_at || !is_new {
        true => Ok(()),
        false => violated(RECHECKED, format!("invalidate.lua: the rechecks are not told: {reply:?}")),
    }
}
