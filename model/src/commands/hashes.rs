//! Commands on hashes.

use super::number::{int, strict};
use super::{Answer, Reply, count, ok, typed};
use crate::db::{Bytes, Db, Value};
use std::collections::BTreeMap;

typed!(Hash, BTreeMap<Bytes, Bytes>);

fn found(text: Option<&Bytes>) -> Reply {
    text.map_or(Reply::Nil, |text| Reply::Bulk(text.clone()))
}

pub(super) fn hget(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(found(read(db, &args[0])?.and_then(|fields| fields.get(&args[1]))))
}

pub(super) fn hmget(db: &mut Db, args: &[Bytes]) -> Answer {
    let fields = read(db, &args[0])?;
    Ok(Reply::Array(args[1..].iter().map(|name| found(fields.and_then(|fields| fields.get(name)))).collect()))
}

pub(super) fn hexists(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(Reply::Int(i64::from(read(db, &args[0])?.is_some_and(|fields| fields.contains_key(&args[1])))))
}

pub(super) fn hstrlen(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(count(read(db, &args[0])?.and_then(|fields| fields.get(&args[1])).map_or(0, |text| text.len())))
}

pub(super) fn hlen(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(count(read(db, &args[0])?.map_or(0, BTreeMap::len)))
}

pub(super) fn hgetall(db: &mut Db, args: &[Bytes]) -> Answer {
    let fields = read(db, &args[0])?.into_iter().flatten();
    Ok(Reply::Array(fields.flat_map(|(name, text)| [name, text]).cloned().map(Reply::Bulk).collect()))
}

pub(super) fn hkeys(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(Reply::Array(read(db, &args[0])?.into_iter().flatten().map(|(name, _)| Reply::Bulk(name.clone())).collect()))
}

pub(super) fn hvals(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(Reply::Array(read(db, &args[0])?.into_iter().flatten().map(|(_, text)| Reply::Bulk(text.clone())).collect()))
}

fn set(db: &mut Db, args: &[Bytes], name: &str) -> Result<usize, String> {
    if args.len().is_multiple_of(2) {
        return Err(format!("ERR wrong number of arguments for '{name}' command"));
    }
    let fields = edit(db, &args[0])?;
    let pairs = args[1..].chunks_exact(2);
    Ok(pairs.filter(|pair| fields.insert(pair[0].clone(), pair[1].clone()).is_none()).count())
}

pub(super) fn hset(db: &mut Db, args: &[Bytes]) -> Answer {
    set(db, args, "hset").map(count)
}

pub(super) fn hmset(db: &mut Db, args: &[Bytes]) -> Answer {
    set(db, args, "hmset").map(|_| ok())
}

pub(super) fn hsetnx(db: &mut Db, args: &[Bytes]) -> Answer {
    if change(db, &args[0])?.is_some_and(|fields| fields.contains_key(&args[1])) {
        return Ok(Reply::Int(0));
    }
    edit(db, &args[0])?.insert(args[1].clone(), args[2].clone());
    Ok(Reply::Int(1))
}

pub(super) fn hdel(db: &mut Db, args: &[Bytes]) -> Answer {
    let Some(fields) = change(db, &args[0])? else { return Ok(Reply::Int(0)) };
    let gone = args[1..].iter().filter(|name| fields.remove(*name).is_some()).count();
    db.settle(&args[0]);
    Ok(count(gone))
}

pub(super) fn hincrby(db: &mut Db, args: &[Bytes]) -> Answer {
    let amount = int(&args[2])?;
    let before = change(db, &args[0])?.and_then(|fields| fields.get(&args[1]));
    let before = before.map_or(Ok(0), |text| strict(text).ok_or("ERR hash value is not an integer"))?;
    let sum = before.checked_add(amount).ok_or("ERR increment or decrement would overflow")?;
    edit(db, &args[0])?.insert(args[1].clone(), sum.to_string().into());
    Ok(Reply::Int(sum))
}
