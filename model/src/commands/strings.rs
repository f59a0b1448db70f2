//! Commands on strings.

use super::number::int;
use super::{Answer, NOT_INT, Reply, SYNTAX, WRONG_TYPE, bulk, count, ok};
use crate::db::{Bytes, Db, Slot, Value};

fn text(slot: Option<&Slot>) -> Result<Option<Bytes>, String> {
    match slot.map(|slot| &*slot.value) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(WRONG_TYPE.into()),
    }
}

fn nil_or(text: Option<Bytes>) -> Reply {
    text.map_or(Reply::Nil, Reply::Bulk)
}

pub(super) fn get(db: &mut Db, args: &[Bytes]) -> Answer {
    text(db.read(&args[0])).map(nil_or)
}

pub(super) fn getdel(db: &mut Db, args: &[Bytes]) -> Answer {
    let found = text(db.read(&args[0]))?;
    db.remove(&args[0]);
    Ok(nil_or(found))
}

pub(super) fn getset(db: &mut Db, args: &[Bytes]) -> Answer {
    let found = text(db.read(&args[0]))?;
    db.put(&args[0], Value::Text(args[1].clone()), None);
    Ok(nil_or(found))
}

pub(super) fn mget(db: &mut Db, keys: &[Bytes]) -> Answer {
    let read = |key: &Bytes| match db.read(key).map(|slot| &*slot.value) {
        Some(Value::Text(text)) => Reply::Bulk(text.clone()),
        _ => Reply::Nil,
    };
    Ok(Reply::Array(keys.iter().map(read).collect()))
}

pub(super) fn mset(db: &mut Db, args: &[Bytes]) -> Answer {
    if !args.len().is_multiple_of(2) {
        return Err("ERR wrong number of arguments for 'mset' command".into());
    }
    for pair in args.chunks_exact(2) {
        db.put(&pair[0], Value::Text(pair[1].clone()), None);
    }
    Ok(ok())
}

pub(super) fn setnx(db: &mut Db, args: &[Bytes]) -> Answer {
    let is_new = db.slot(&args[0]).is_none();
    if is_new {
        db.put(&args[0], Value::Text(args[1].clone()), None);
    }
    Ok(Reply::Int(i64::from(is_new)))
}

/// Returns when a key expires whose command gives this time.
fn expiry(db: &Db, name: &str, unit: &[u8], time: &[u8]) -> Result<i64, String> {
    let factor = if unit.starts_with(b"EX") { 1_000 } else { 1 };
    let from = if unit.ends_with(b"AT") { 0 } else { db.now() };
    let at = Some(int(time)?).filter(|time| *time > 0);
    at.and_then(|time| time.checked_mul(factor)?.checked_add(from))
        .ok_or_else(|| format!("ERR invalid expire time in '{name}' command"))
}

pub(super) fn setex(db: &mut Db, args: &[Bytes]) -> Answer {
    let at = expiry(db, "setex", b"EX", &args[1])?;
    db.put(&args[0], Value::Text(args[2].clone()), Some(at));
    Ok(ok())
}

pub(super) fn psetex(db: &mut Db, args: &[Bytes]) -> Answer {
    let at = expiry(db, "psetex", b"PX", &args[1])?;
    db.put(&args[0], Value::Text(args[2].clone()), Some(at));
    Ok(ok())
}

pub(super) fn set(db: &mut Db, args: &[Bytes]) -> Answer {
    let (mut only_new, mut only_old, mut keeps, mut gets) = (false, false, false, false);
    let mut time: Option<(Vec<u8>, &Bytes)> = None;
    let mut words = args[2..].iter();
    while let Some(word) = words.next() {
        let word = word.to_ascii_uppercase();
        match word.as_slice() {
            b"NX" if !only_old => only_new = true,
            b"XX" if !only_new => only_old = true,
            b"GET" => gets = true,
            b"KEEPTTL" if time.is_none() => keeps = true,
            b"EX" | b"PX" | b"EXAT" | b"PXAT" if time.is_none() && !keeps => {
                time = Some((word, words.next().ok_or(SYNTAX)?));
            }
            _ => return Err(SYNTAX.into()),
        }
    }
    let mut expires = time.map(|(unit, time)| expiry(db, "set", &unit, time)).transpose()?;
    let before = if gets { Some(text(db.read(&args[0]))?) } else { None };
    let slot = db.slot(&args[0]);
    let is_refused = only_new && slot.is_some() || only_old && slot.is_none();
    if keeps {
        expires = slot.and_then(|slot| slot.expires);
    }
    if !is_refused {
        db.put(&args[0], Value::Text(args[1].clone()), expires);
    }
    Ok(match before {
        Some(before) => nil_or(before),
        None if is_refused => Reply::Nil,
        None => ok(),
    })
}

fn add(db: &mut Db, key: &Bytes, amount: i64) -> Answer {
    let expires = db.slot(key).and_then(|slot| slot.expires);
    let before = text(db.slot(key))?.map_or(Ok(0), |text| int(&text))?;
    let sum = before.checked_add(amount).ok_or("ERR increment or decrement would overflow")?;
    db.put(key, Value::Text(sum.to_string().into()), expires);
    Ok(Reply::Int(sum))
}

pub(super) fn incr(db: &mut Db, args: &[Bytes]) -> Answer {
    add(db, &args[0], 1)
}

pub(super) fn decr(db: &mut Db, args: &[Bytes]) -> Answer {
    add(db, &args[0], -1)
}

pub(super) fn incrby(db: &mut Db, args: &[Bytes]) -> Answer {
    add(db, &args[0], int(&args[1])?)
}

pub(super) fn decrby(db: &mut Db, args: &[Bytes]) -> Answer {
    add(db, &args[0], int(&args[1])?.checked_neg().ok_or("ERR decrement would overflow")?)
}

pub(super) fn append(db: &mut Db, args: &[Bytes]) -> Answer {
    let expires = db.slot(&args[0]).and_then(|slot| slot.expires);
    let mut whole = text(db.slot(&args[0]))?.map(|text| text.to_vec()).unwrap_or_default();
    whole.extend_from_slice(&args[1]);
    let length = whole.len();
    db.put(&args[0], Value::Text(whole.into()), expires);
    Ok(count(length))
}

pub(super) fn strlen(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(count(text(db.read(&args[0]))?.map_or(0, |text| text.len())))
}

pub(super) fn getrange(db: &mut Db, args: &[Bytes]) -> Answer {
    let (first, last) = (int(&args[1])?, int(&args[2])?);
    let Some(text) = text(db.read(&args[0]))? else { return Ok(bulk("")) };
    let length = i64::try_from(text.len()).map_err(|_| NOT_INT)?;
    if first < 0 && last < 0 && first > last {
        return Ok(bulk(""));
    }
    let place = |at: i64| if at < 0 { (length + at).max(0) } else { at };
    let (first, last) = (place(first), place(last).min(length - 1));
    if first > last {
        return Ok(bulk(""));
    }
    let range = usize::try_from(first).unwrap_or(0)..=usize::try_from(last).unwrap_or(0);
    Ok(if range == (0..=text.len() - 1) { Reply::Bulk(text) } else { bulk(&text[range]) })
}
