//! Commands on keys of any type.

use super::number::{int, strict};
use super::{Answer, NOT_INT, Reply, SYNTAX, bulk, count, glob, ok};
use crate::db::{Bytes, Db, Slot, Value};

/// `OBJECT REFCOUNT` of a small number, which all keys share.
const SHARED: i64 = 2_147_483_647;

pub(super) fn del(db: &mut Db, keys: &[Bytes]) -> Answer {
    Ok(count(keys.iter().filter(|key| db.remove(key)).count()))
}

pub(super) fn exists(db: &mut Db, keys: &[Bytes]) -> Answer {
    Ok(count(keys.iter().filter(|key| db.peek(key).is_some()).count()))
}

pub(super) fn touch(db: &mut Db, keys: &[Bytes]) -> Answer {
    Ok(count(keys.iter().filter(|key| db.read(key).is_some()).count()))
}

pub(super) fn kind(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(Reply::Status(db.peek(&args[0]).map_or("none", |slot| slot.value.kind()).into()))
}

/// Returns a key's expiry: −2 where there is no key, −1 where it does not expire.
fn expiry(db: &mut Db, key: &[u8], told: impl FnOnce(i64) -> i64) -> Answer {
    Ok(Reply::Int(db.peek(key).map_or(-2, |slot| slot.expires.map_or(-1, told))))
}

pub(super) fn pttl(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = db.now();
    expiry(db, &args[0], |at| at - now)
}

pub(super) fn ttl(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = db.now();
    expiry(db, &args[0], |at| (at - now + 500) / 1_000)
}

pub(super) fn pexpiretime(db: &mut Db, args: &[Bytes]) -> Answer {
    expiry(db, &args[0], |at| at)
}

pub(super) fn expiretime(db: &mut Db, args: &[Bytes]) -> Answer {
    expiry(db, &args[0], |at| (at + 500) / 1_000)
}

pub(super) fn expire(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = db.now();
    expire_at(db, args, "expire", 1_000, now)
}

pub(super) fn pexpire(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = db.now();
    expire_at(db, args, "pexpire", 1, now)
}

pub(super) fn expireat(db: &mut Db, args: &[Bytes]) -> Answer {
    expire_at(db, args, "expireat", 1_000, 0)
}

pub(super) fn pexpireat(db: &mut Db, args: &[Bytes]) -> Answer {
    expire_at(db, args, "pexpireat", 1, 0)
}

fn expire_at(db: &mut Db, args: &[Bytes], name: &str, unit: i64, from: i64) -> Answer {
    let (mut only_none, mut only_some, mut greater, mut less) = (false, false, false, false);
    for word in &args[2..] {
        match word.to_ascii_uppercase().as_slice() {
            b"NX" => only_none = true,
            b"XX" => only_some = true,
            b"GT" => greater = true,
            b"LT" => less = true,
            _ => return Err(format!("ERR Unsupported option {word}")),
        }
    }
    if only_none && (only_some || greater || less) {
        return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
    }
    if greater && less {
        return Err("ERR GT and LT options at the same time are not compatible".into());
    }
    let invalid = || format!("ERR invalid expire time in '{name}' command");
    let at = int(&args[1])?.checked_mul(unit).and_then(|time| time.checked_add(from)).ok_or_else(invalid)?;
    let Some(before) = db.slot(&args[0]).map(|slot| slot.expires) else { return Ok(Reply::Int(0)) };
    let refused = match before {
        Some(before) => only_none || greater && at <= before || less && at >= before,
        None => only_some || greater,
    };
    if !refused {
        db.touch(&args[0]);
        db.expire(&args[0], Some(at));
    }
    Ok(Reply::Int(i64::from(!refused)))
}

pub(super) fn persist(db: &mut Db, args: &[Bytes]) -> Answer {
    let expires = db.slot(&args[0]).is_some_and(|slot| slot.expires.is_some());
    if expires {
        db.expire(&args[0], None);
    }
    Ok(Reply::Int(i64::from(expires)))
}

pub(super) fn rename(db: &mut Db, args: &[Bytes]) -> Answer {
    let slot = db.slot(&args[0]).cloned().ok_or("ERR no such key")?;
    if args[0] != args[1] {
        db.remove(&args[0]);
        db.put_back(&args[1], slot);
    }
    Ok(ok())
}

pub(super) fn renamenx(db: &mut Db, args: &[Bytes]) -> Answer {
    if db.slot(&args[0]).is_none() {
        return Err("ERR no such key".into());
    }
    if db.slot(&args[1]).is_some() {
        return Ok(Reply::Int(0));
    }
    rename(db, args).map(|_| Reply::Int(1))
}

pub(super) fn keys(db: &mut Db, args: &[Bytes]) -> Answer {
    let found = db.keys().map(|(key, _)| key).filter(|key| glob::matches(&args[0], key));
    Ok(Reply::Array(found.cloned().map(Reply::Bulk).collect()))
}

pub(super) fn dbsize(db: &mut Db, _: &[Bytes]) -> Answer {
    Ok(count(db.live.as_ref().map_or_else(|| db.keys().count(), |live| live.places.len())))
}

pub(super) fn flush(db: &mut Db, args: &[Bytes]) -> Answer {
    match args {
        [] => {}
        [how] if how.eq_ignore_ascii_case(b"async") || how.eq_ignore_ascii_case(b"sync") => {}
        _ => return Err(SYNTAX.into()),
    }
    db.clear();
    Ok(ok())
}

pub(super) fn time(db: &mut Db, _: &[Bytes]) -> Answer {
    let (seconds, micros) = (db.now_us.div_euclid(1_000_000), db.now_us.rem_euclid(1_000_000));
    Ok(Reply::Array(vec![bulk(seconds.to_string()), bulk(micros.to_string())]))
}

pub(super) fn echo(_: &mut Db, args: &[Bytes]) -> Answer {
    Ok(Reply::Bulk(args[0].clone()))
}

pub(super) fn publish(db: &mut Db, args: &[Bytes]) -> Answer {
    let Some(live) = &mut db.live else {
        db.published.push((args[0].clone(), args[1].clone()));
        return Ok(Reply::Int(0));
    };
    Ok(count(live.channels.publish(&args[0], &args[1])))
}

pub(super) fn wait(_: &mut Db, args: &[Bytes]) -> Answer {
    int(&args[0])?;
    if int(&args[1]).map_err(|_| "ERR timeout is not an integer or out of range")? < 0 {
        return Err("ERR timeout is negative".into());
    }
    Ok(Reply::Int(0))
}

pub(super) fn memory(db: &mut Db, args: &[Bytes]) -> Answer {
    match (args[0].to_ascii_uppercase().as_slice(), &args[1..]) {
        (b"USAGE", [key, ..]) => Ok(db.slot(key).map_or(Reply::Nil, |slot| count(size(key, slot)))),
        _ => Err(unknown_subcommand("MEMORY", &args[0])),
    }
}

/// Returns the error for a subcommand that a command does not have.
pub(crate) fn unknown_subcommand(name: &str, word: &Bytes) -> String {
    format!("ERR unknown subcommand '{word}'. Try {name} HELP.")
}

/// Estimates the bytes that a key takes.
pub(crate) fn size(key: &Bytes, slot: &Slot) -> usize {
    let content: usize = match &*slot.value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.iter().map(|item| item.len() + 8).sum(),
        Value::Set(members) => members.iter().map(|member| member.len() + 40).sum(),
        Value::Hash(fields) => fields.iter().map(|(field, value)| field.len() + value.len() + 50).sum(),
        Value::Sorted(sorted) => sorted.members().iter().map(|(_, member)| member.len() + 70).sum(),
        Value::Stream(stream) => stream.entries.values().flatten().map(|text| text.len() + 10).sum(),
    };
    content + key.len() + 64
}

pub(super) fn object(db: &mut Db, args: &[Bytes]) -> Answer {
    let word = args[0].to_ascii_uppercase();
    if !matches!(word.as_slice(), b"ENCODING" | b"REFCOUNT" | b"IDLETIME" | b"FREQ") {
        return Err(unknown_subcommand("OBJECT", &args[0]));
    }
    let [_, key] = args else {
        let name = String::from_utf8_lossy(&word).to_ascii_lowercase();
        return Err(format!("ERR wrong number of arguments for 'object|{name}' command"));
    };
    let Some(slot) = db.slot(key) else { return Ok(Reply::Nil) };
    let is_lfu = db.live.as_ref().is_some_and(|live| live.is_lfu);
    let policies = "Please note that when switching between policies at runtime LRU and LFU data will take some time \
                    to adjust.";
    match word.as_slice() {
        b"ENCODING" => Ok(bulk(encoding(&slot.value))),
        b"REFCOUNT" => Ok(Reply::Int(match &*slot.value {
            Value::Text(text) if strict(text).is_some_and(|number| (0..10_000).contains(&number)) => SHARED,
            _ => 1,
        })),
        b"IDLETIME" if is_lfu => {
            Err(format!("ERR An LFU maxmemory policy is selected, idle time not tracked. {policies}"))
        }
        b"IDLETIME" => Ok(Reply::Int((db.now().div_euclid(1_000) - slot.used.div_euclid(1_000)).max(0))),
        _ if is_lfu => Ok(Reply::Int(slot.frequency.into())),
        _ => Err(format!("ERR An LFU maxmemory policy is not selected, access frequency not tracked. {policies}")),
    }
}

/// Returns the encoding that a value of this content gets.
pub(super) fn encoding(value: &Value) -> &'static str {
    let short = |text: &Bytes| text.len() <= 64;
    match value {
        Value::Text(text) if text.len() <= 20 && strict(text).is_some() => "int",
        Value::Text(text) if text.len() <= 44 => "embstr",
        Value::Text(_) => "raw",
        Value::List(_) => "quicklist",
        Value::Set(members) if members.len() <= 512 && members.iter().all(|text| strict(text).is_some()) => "intset",
        Value::Hash(fields) if fields.len() <= 128 && fields.iter().all(|(name, text)| short(name) && short(text)) => {
            "listpack"
        }
        Value::Set(_) | Value::Hash(_) => "hashtable",
        Value::Sorted(sorted) if sorted.members().len() <= 128 && sorted.members().iter().all(|(_, of)| short(of)) => {
            "listpack"
        }
        Value::Sorted(_) => "skiplist",
        Value::Stream(_) => "stream",
    }
}

pub(super) fn randomkey(db: &mut Db, _: &[Bytes]) -> Answer {
    let all = db.keys().count();
    let at = db.live.as_mut().map_or(0, |live| live.random(all));
    Ok(db.keys().nth(at).map_or(Reply::Nil, |(key, _)| Reply::Bulk(key.clone())))
}

/// Reads a number that may not be negative.
pub(super) fn positive(text: &[u8]) -> Result<usize, String> {
    let number = strict(text).ok_or("ERR value is out of range, must be positive")?;
    usize::try_from(number).map_err(|_| "ERR value is out of range, must be positive".to_owned())
}

/// Returns the range of positions between two of which negative ones count from the end.
pub(super) fn positions(from: &[u8], to: &[u8], length: usize) -> Result<std::ops::Range<usize>, String> {
    let length = i64::try_from(length).map_err(|_| NOT_INT)?;
    let place = |at: i64| if at < 0 { (length + at).max(0) } else { at };
    let (first, last) = (int(from)?, int(to)?);
    let is_before = last < 0 && length + last < 0;
    let (first, end) = (place(first), place(last).saturating_add(1).min(length));
    if is_before || first >= end {
        return Ok(0..0);
    }
    Ok(usize::try_from(first).unwrap_or(0)..usize::try_from(end).unwrap_or(0))
}
