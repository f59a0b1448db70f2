//! Commands on lists.

use std::collections::VecDeque;

use super::keys::{positions, positive};
use super::number::int;
use super::{Answer, Reply, count, ok, typed};
use crate::db::{Bytes, Db, Value};

typed!(List, VecDeque<Bytes>);

pub(super) fn lpush(db: &mut Db, args: &[Bytes]) -> Answer {
    let items = edit(db, &args[0])?;
    args[1..].iter().for_each(|item| items.push_front(item.clone()));
    Ok(count(items.len()))
}

pub(super) fn rpush(db: &mut Db, args: &[Bytes]) -> Answer {
    let items = edit(db, &args[0])?;
    items.extend(args[1..].iter().cloned());
    Ok(count(items.len()))
}

pub(super) fn llen(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(count(read(db, &args[0])?.map_or(0, VecDeque::len)))
}

fn pop(db: &mut Db, args: &[Bytes], take: fn(&mut VecDeque<Bytes>) -> Option<Bytes>) -> Answer {
    let most = args.get(1).map(|most| positive(most)).transpose()?;
    let Some(items) = change(db, &args[0])? else { return Ok(Reply::Nil) };
    let reply = match most {
        None => take(items).map_or(Reply::Nil, Reply::Bulk),
        Some(most) => Reply::Array((0..most.min(items.len())).filter_map(|_| take(items)).map(Reply::Bulk).collect()),
    };
    db.settle(&args[0]);
    Ok(reply)
}

pub(super) fn lpop(db: &mut Db, args: &[Bytes]) -> Answer {
    pop(db, args, VecDeque::pop_front)
}

pub(super) fn rpop(db: &mut Db, args: &[Bytes]) -> Answer {
    pop(db, args, VecDeque::pop_back)
}

pub(super) fn lrange(db: &mut Db, args: &[Bytes]) -> Answer {
    let _ = (int(&args[1])?, int(&args[2])?);
    let Some(items) = read(db, &args[0])? else { return Ok(Reply::Array(Vec::new())) };
    let range = positions(&args[1], &args[2], items.len())?;
    Ok(Reply::Array(items.range(range).cloned().map(Reply::Bulk).collect()))
}

pub(super) fn ltrim(db: &mut Db, args: &[Bytes]) -> Answer {
    let _ = (int(&args[1])?, int(&args[2])?);
    if let Some(items) = change(db, &args[0])? {
        let range = positions(&args[1], &args[2], items.len())?;
        items.truncate(range.end);
        items.drain(..range.start);
        db.settle(&args[0]);
    }
    Ok(ok())
}

/// Returns a position of which a negative one counts from the end; `None` before the first.
fn place(at: &[u8], length: usize) -> Result<Option<usize>, String> {
    let at = int(at)?;
    Ok(usize::try_from(if at < 0 { at + i64::try_from(length).unwrap_or(0) } else { at }).ok())
}

pub(super) fn lindex(db: &mut Db, args: &[Bytes]) -> Answer {
    let Some(items) = read(db, &args[0])? else { return Ok(Reply::Nil) };
    let item = place(&args[1], items.len())?.and_then(|at| items.get(at));
    Ok(item.map_or(Reply::Nil, |item| Reply::Bulk(item.clone())))
}

pub(super) fn lset(db: &mut Db, args: &[Bytes]) -> Answer {
    let items = change(db, &args[0])?.ok_or("ERR no such key")?;
    let at = place(&args[1], items.len())?;
    let item = at.and_then(|at| items.get_mut(at)).ok_or("ERR index out of range")?;
    *item = args[2].clone();
    Ok(ok())
}

pub(super) fn lrem(db: &mut Db, args: &[Bytes]) -> Answer {
    let most = int(&args[1])?;
    let Some(items) = change(db, &args[0])? else { return Ok(Reply::Int(0)) };
    let mut found: Vec<usize> = (0..items.len()).filter(|at| items[*at] == args[2]).collect();
    let most = match most {
        0 => usize::MAX,
        most => usize::try_from(most.unsigned_abs()).unwrap_or(usize::MAX),
    };
    if int(&args[1])? < 0 {
        found.drain(..found.len().saturating_sub(most));
    } else {
        found.truncate(most);
    }
    for at in found.iter().rev() {
        items.remove(*at);
    }
    db.settle(&args[0]);
    Ok(count(found.len()))
}
