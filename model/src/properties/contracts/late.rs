//! The time of an invalidation that is handled late.

use crate::calls::Call;
use crate::db::Db;
use crate::engine::{Engine, Meta};

/// Returns the time that an invalidation counts from: its own, that of one that is not answered yet, or that of a
/// fetch since then which did not know of it; and true in this last case.
pub(super) fn time(engine: &Engine, before: &Db, call: &Call) -> (i64, bool) {
    let number = |n: usize| call.args[n].parse::<i64>().unwrap_or(0);
    let (at, last, now) = (number(0), number(10), before.now());
    let meta = before.text(&call.keys[2]).and_then(|packed| engine.meta(packed));
    let lease = before.text(&call.keys[1]).and_then(|record| record.split(' ').nth(1)?.parse::<i64>().ok());
    let Some(fetched_at) = lease.or(meta.as_ref().map(|meta| meta.fetched_at)) else { return (at, false) };
    let mark = before.text(&call.keys[1]).and_then(|record| record.split(' ').nth(2));
    // A doubt, a version that is waited for, or a fetch that does not land.
    let is_never_late = call.args[9] == "1" || call.args[8].parse::<u32>().is_ok() || mark == Some("e");
    if call.args[1] == "e" || is_never_late {
        return (at, false);
    }
    let is_certain = |meta: &&Meta| meta.invalidated != meta.doubted;
    let open = meta.as_ref().filter(is_certain).map_or(0, |meta| meta.invalidated);
    let rechecks = meta.as_ref().and_then(|meta| meta.rechecks.filter(|(_, flags)| flags & 32 == 0));
    let known = open.max(rechecks.map_or(0, |(since, _)| since));
    match fetched_at > at && fetched_at <= now && last > 0 {
        true if open >= fetched_at => (open.min(now), false),
        true if known < at - last / 4 && fetched_at < at + last - last / 4 => (fetched_at, true),
        _ => (at, false),
    }
}
