//! Commands on streams: entries.

use super::keys::unknown_subcommand;
use super::number::int;
use super::{Answer, Reply, SYNTAX, bulk, count, typed};
use crate::db::{Bytes, Db, Id, Stream, Value};

typed!(Stream, Stream);

pub(super) const INVALID: &str = "ERR Invalid stream ID specified as stream command argument";

/// Reads an id; `sequence` stands where it gives none.
pub(super) fn id(text: &[u8], sequence: u64) -> Result<Id, String> {
    let text = str::from_utf8(text).map_err(|_| INVALID)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| INVALID.to_owned());
    match text {
        "-" => Ok(Id::default()),
        "+" => Ok(Id::MAX),
        _ => Ok(match text.split_once('-') {
            Some((ms, seq)) => Id(number(ms)?, number(seq)?),
            None => Id(number(text)?, sequence),
        }),
    }
}

/// Reads an id that is no end of a range.
pub(super) fn exact(text: &[u8]) -> Result<Id, String> {
    if matches!(text, b"-" | b"+") { Err(INVALID.into()) } else { id(text, 0) }
}

pub(super) fn entry(id: Id, fields: Option<&Vec<Bytes>>) -> Reply {
    let fields = fields.map(|fields| Reply::Array(fields.iter().cloned().map(Reply::Bulk).collect()));
    Reply::Array(vec![bulk(id.to_string()), fields.unwrap_or(Reply::Nil)])
}

/// The bound to which a stream is trimmed, and the number of words that it takes.
fn bound(args: &[Bytes]) -> Result<Option<(Bound, usize)>, String> {
    let Some(word) = args.first() else { return Ok(None) };
    let word = word.to_ascii_uppercase();
    if !matches!(word.as_slice(), b"MAXLEN" | b"MINID") {
        return Ok(None);
    }
    let has_sign = args.get(1).is_some_and(|sign| matches!(&**sign, b"=" | b"~"));
    let place = 1 + usize::from(has_sign);
    let limit = args.get(place).ok_or(SYNTAX)?;
    let bound = if word == b"MINID" {
        Bound::First(exact(limit)?)
    } else {
        let most = int(limit)?;
        Bound::Most(usize::try_from(most).map_err(|_| "ERR The MAXLEN argument must be >= 0.")?)
    };
    Ok(Some((bound, place + 1)))
}

#[derive(Clone, Copy)]
enum Bound {
    Most(usize),
    First(Id),
}

impl Bound {
    fn trim(self, stream: &mut Stream) -> usize {
        match self {
            Self::Most(most) => stream.trim(most),
            Self::First(first) => stream.trim(stream.entries.range(first..).count()),
        }
    }
}

pub(super) fn xadd(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = u64::try_from(db.now()).unwrap_or(0);
    let (mut at, mut makes, mut trimmed) = (1, true, None);
    loop {
        if args.get(at).is_some_and(|word| word.eq_ignore_ascii_case(b"NOMKSTREAM")) {
            (makes, at) = (false, at + 1);
        } else if let Some((bound, words)) = bound(&args[at.min(args.len())..])? {
            (trimmed, at) = (Some(bound), at + words);
        } else {
            break;
        }
    }
    let (Some(text), fields) = (args.get(at), args.get(at + 1..).unwrap_or_default()) else {
        return Err("ERR wrong number of arguments for 'xadd' command".into());
    };
    let given: Option<(u64, Option<u64>)> = match &**text {
        b"*" => None,
        [ms @ .., b'-', b'*'] => Some((exact(ms)?.0, None)),
        text => Some(exact(text).map(|Id(ms, seq)| (ms, Some(seq)))?),
    };
    if fields.is_empty() || !fields.len().is_multiple_of(2) {
        return Err("ERR wrong number of arguments for 'xadd' command".into());
    }
    if given == Some((0, Some(0))) {
        return Err("ERR The ID specified in XADD must be greater than 0-0".into());
    }
    let is_there = change(db, &args[0])?.is_some();
    if !is_there && !makes {
        return Ok(Reply::Nil);
    }
    let stream = edit(db, &args[0])?;
    let next = stream.last.next().unwrap_or(Id::MAX);
    let new = match given {
        None if now > stream.last.0 => Id(now, 0),
        None => next,
        Some((ms, None)) if ms == stream.last.0 => next,
        Some((ms, sequence)) => Id(ms, sequence.unwrap_or(0)),
    };
    if new <= stream.last {
        if !is_there {
            db.remove(&args[0]);
        }
        return Err("ERR The ID specified in XADD is equal or smaller than the target stream top item".into());
    }
    stream.entries.insert(new, fields.to_vec());
    (stream.last, stream.added) = (new, stream.added + 1);
    if let Some(bound) = trimmed {
        bound.trim(stream);
    }
    if let Some(live) = &mut db.live {
        live.changed.push(args[0].clone());
    }
    Ok(bulk(new.to_string()))
}

pub(super) fn xlen(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(count(read(db, &args[0])?.map_or(0, |stream| stream.entries.len())))
}

pub(super) fn xtrim(db: &mut Db, args: &[Bytes]) -> Answer {
    let (bound, words) = bound(&args[1..])?.ok_or(SYNTAX)?;
    if args.len() > 1 + words {
        return Err(SYNTAX.into());
    }
    Ok(count(change(db, &args[0])?.map_or(0, |stream| bound.trim(stream))))
}

pub(super) fn xdel(db: &mut Db, args: &[Bytes]) -> Answer {
    let is_there = change(db, &args[0])?.is_some();
    if !is_there {
        return Ok(Reply::Int(0));
    }
    let ids: Vec<Id> = args[1..].iter().map(|text| exact(text)).collect::<Result<_, _>>()?;
    let Some(stream) = change(db, &args[0])? else { return Ok(Reply::Int(0)) };
    Ok(count(ids.into_iter().filter(|id| stream.remove(*id)).count()))
}

/// Reads the end of a range; a `(` excludes it. `None` if nothing can be within it.
fn end(text: &[u8], is_first: bool) -> Result<Option<Id>, String> {
    let sequence = if is_first { 0 } else { u64::MAX };
    let Some(excluded) = text.strip_prefix(b"(") else { return id(text, sequence).map(Some) };
    let Id(ms, seq) = id(excluded, sequence)?;
    Ok(if is_first {
        Id(ms, seq).next()
    } else {
        seq.checked_sub(1).map(|seq| Id(ms, seq)).or(ms.checked_sub(1).map(|ms| Id(ms, u64::MAX)))
    })
}

fn range(db: &mut Db, args: &[Bytes], backwards: bool) -> Answer {
    let (from, to) = if backwards { (&args[2], &args[1]) } else { (&args[1], &args[2]) };
    let (from, to) = (end(from, true)?, end(to, false)?);
    let most = match &args[3..] {
        [] => usize::MAX,
        [word, most] if word.eq_ignore_ascii_case(b"COUNT") => usize::try_from(int(most)?.max(0)).unwrap_or(0),
        _ => return Err(SYNTAX.into()),
    };
    let Some(stream) = read(db, &args[0])? else { return Ok(Reply::Array(Vec::new())) };
    let (Some(from), Some(to)) = (from, to) else { return Ok(Reply::Array(Vec::new())) };
    if from > to {
        return Ok(Reply::Array(Vec::new()));
    }
    let found = stream.entries.range(from..=to);
    let told = |(id, fields): (&Id, &Vec<Bytes>)| entry(*id, Some(fields));
    Ok(Reply::Array(if backwards {
        found.rev().take(most).map(told).collect()
    } else {
        found.take(most).map(told).collect()
    }))
}

pub(super) fn xrange(db: &mut Db, args: &[Bytes]) -> Answer {
    range(db, args, false)
}

pub(super) fn xrevrange(db: &mut Db, args: &[Bytes]) -> Answer {
    range(db, args, true)
}

pub(super) fn xinfo(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = db.now();
    let pairs = |pairs: Vec<(&str, Reply)>| {
        Reply::Array(pairs.into_iter().flat_map(|(name, value)| [bulk(name), value]).collect())
    };
    match (args[0].to_ascii_uppercase().as_slice(), &args[1..]) {
        (b"STREAM", [key]) => {
            let stream = read(db, key)?.ok_or("ERR no such key")?;
            let nodes = stream.entries.len().div_ceil(100);
            let told = |entries: Option<(&Id, &Vec<Bytes>)>| entries.map(|(id, fields)| entry(*id, Some(fields)));
            Ok(pairs(vec![
                ("length", count(stream.entries.len())),
                ("radix-tree-keys", count(nodes)),
                ("radix-tree-nodes", count(nodes + 1)),
                ("last-generated-id", bulk(stream.last.to_string())),
                ("max-deleted-entry-id", bulk(stream.deleted.to_string())),
                ("entries-added", Reply::Int(i64::try_from(stream.added).unwrap_or(i64::MAX))),
                ("recorded-first-entry-id", bulk(stream.first().to_string())),
                ("groups", count(stream.groups.len())),
                ("first-entry", told(stream.entries.first_key_value()).unwrap_or(Reply::Nil)),
                ("last-entry", told(stream.entries.last_key_value()).unwrap_or(Reply::Nil)),
            ]))
        }
        (b"CONSUMERS", [key, name]) => {
            let stream = read(db, key)?.ok_or("ERR no such key")?;
            let group = stream.groups.get(name);
            let group = group.ok_or_else(|| format!("NOGROUP No such consumer group '{name}' for key name '{key}'"))?;
            let told = |(reader, seen): (&Bytes, &i64)| {
                let pending = group.pending.values().filter(|pending| pending.reader == *reader).count();
                let idle = Reply::Int((now - seen).max(0));
                pairs(vec![("name", Reply::Bulk(reader.clone())), ("pending", count(pending)), ("idle", idle)])
            };
            Ok(Reply::Array(group.readers.iter().map(told).collect()))
        }
        (b"STREAM" | b"CONSUMERS" | b"GROUPS", _) => {
            let word = String::from_utf8_lossy(&args[0]).to_ascii_lowercase();
            Err(format!("ERR wrong number of arguments for 'xinfo|{word}' command"))
        }
        _ => Err(unknown_subcommand("XINFO", &args[0])),
    }
}
