//! Commands on the groups of streams.

use super::keys::unknown_subcommand;
use super::number::int;
use super::streams::{change, edit, entry, exact, id, read};
use super::{Answer, Reply, SYNTAX, bulk, count, ok};
use crate::db::{Bytes, Db, Group, Id, Pending, Stream};

fn no_group(key: &Bytes, group: &Bytes) -> String {
    format!("NOGROUP No such key '{key}' or consumer group '{group}'")
}

fn group_of<'a>(db: &'a mut Db, key: &Bytes, group: &Bytes) -> Result<&'a mut Group, String> {
    change(db, key)?.and_then(|stream| stream.groups.get_mut(group)).ok_or_else(|| no_group(key, group))
}

fn create(db: &mut Db, key: &Bytes, name: &Bytes, last: &Bytes, options: &[Bytes]) -> Answer {
    let mut makes = false;
    let mut options = options.iter();
    while let Some(word) = options.next() {
        match word.to_ascii_uppercase().as_slice() {
            b"MKSTREAM" => makes = true,
            b"ENTRIESREAD" => drop(int(options.next().ok_or(SYNTAX)?)?),
            _ => return Err(SYNTAX.into()),
        }
    }
    let present = change(db, key)?.map(|stream| stream.last);
    if present.is_none() && !makes {
        return Err("ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use \
                    the MKSTREAM option to create an empty stream automatically."
            .into());
    }
    let last = if **last == *b"$" { present.unwrap_or_default() } else { exact(last)? };
    let stream = edit(db, key)?;
    if stream.groups.contains_key(name) {
        return Err("BUSYGROUP Consumer Group name already exists".into());
    }
    stream.groups.insert(name.clone(), Group { last, ..Group::default() });
    Ok(ok())
}

pub(super) fn xgroup(db: &mut Db, args: &[Bytes]) -> Answer {
    let word = args[0].to_ascii_uppercase();
    let now = db.now();
    let arity = || {
        let word = String::from_utf8_lossy(&args[0]).to_ascii_lowercase();
        format!("ERR wrong number of arguments for 'xgroup|{word}' command")
    };
    if let (b"CREATE", [key, name, last, options @ ..]) = (word.as_slice(), &args[1..]) {
        return create(db, key, name, last, options);
    }
    let (key, name) = match word.as_slice() {
        b"CREATE" => return Err(arity()),
        b"DESTROY" if args.len() == 3 => (&args[1], &args[2]),
        b"DELCONSUMER" | b"CREATECONSUMER" | b"SETID" if args.len() == 4 => (&args[1], &args[2]),
        b"DESTROY" | b"DELCONSUMER" | b"CREATECONSUMER" | b"SETID" => return Err(arity()),
        _ => return Err(unknown_subcommand("XGROUP", &args[0])),
    };
    let stream = change(db, key)?.ok_or(
        "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM \
         option to create an empty stream automatically.",
    )?;
    if word == b"DESTROY" {
        let was_there = stream.groups.remove(name).is_some();
        if let Some(live) = &mut db.live {
            live.changed.push(key.clone());
        }
        return Ok(Reply::Int(i64::from(was_there)));
    }
    let last = stream.last;
    let group = stream.groups.get_mut(name);
    let group = group.ok_or_else(|| format!("NOGROUP No such consumer group '{name}' for key name '{key}'"))?;
    match word.as_slice() {
        b"SETID" => {
            group.last = if *args[3] == *b"$" { last } else { exact(&args[3])? };
            Ok(ok())
        }
        b"CREATECONSUMER" => {
            let is_new = !group.readers.contains_key(&args[3]);
            group.readers.entry(args[3].clone()).or_insert(now);
            Ok(Reply::Int(i64::from(is_new)))
        }
        _ => {
            group.readers.remove(&args[3]);
            let before = group.pending.len();
            group.pending.retain(|_, pending| pending.reader != args[3]);
            Ok(count(before - group.pending.len()))
        }
    }
}

/// The words of `XREADGROUP`.
pub(crate) struct ReadGroup<'a> {
    group: &'a Bytes,
    reader: &'a Bytes,
    most: usize,
    /// The time for which it blocks (ms; 0 for ever) if there is nothing.
    pub(crate) block: Option<i64>,
    acknowledges: bool,
    /// The streams.
    pub(crate) keys: &'a [Bytes],
    ids: &'a [Bytes],
}

impl<'a> ReadGroup<'a> {
    /// Reads the words after the name of the command.
    pub(crate) fn read(args: &'a [Bytes]) -> Result<Self, String> {
        let missing = "ERR Missing GROUP option for XREADGROUP";
        let (mut group, mut most, mut block, mut acknowledges) = (None, usize::MAX, None, false);
        let mut at = 0;
        while let Some(word) = args.get(at) {
            match (word.to_ascii_uppercase().as_slice(), &args[at + 1..]) {
                (b"GROUP", [name, reader, ..]) => (group, at) = (Some((name, reader)), at + 3),
                (b"COUNT", [count, ..]) => {
                    let count = int(count)?;
                    (most, at) = (if count > 0 { usize::try_from(count).unwrap_or(0) } else { usize::MAX }, at + 2);
                }
                (b"BLOCK", [time, ..]) => {
                    let time = int(time).map_err(|_| "ERR timeout is not an integer or out of range")?;
                    if time < 0 {
                        return Err("ERR timeout is negative".into());
                    }
                    (block, at) = (Some(time), at + 2);
                }
                (b"NOACK", _) => (acknowledges, at) = (true, at + 1),
                (b"STREAMS", rest) if !rest.is_empty() => {
                    if !rest.len().is_multiple_of(2) {
                        return Err("ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' \
                                    must be specified."
                            .into());
                    }
                    let (keys, ids) = rest.split_at(rest.len() / 2);
                    let (group, reader) = group.ok_or(missing)?;
                    return Ok(Self { group, reader, most, block, acknowledges, keys, ids });
                }
                _ => return Err(SYNTAX.into()),
            }
        }
        Err(SYNTAX.into())
    }

    /// Returns entries; nil if there are none.
    pub(crate) fn answer(&self, db: &mut Db) -> Answer {
        let now = db.now();
        let mut starts = Vec::new();
        for (key, after) in self.keys.iter().zip(self.ids) {
            let is_there = change(db, key)?.is_some_and(|stream| stream.groups.contains_key(self.group));
            if !is_there {
                return Err(format!("{} in XREADGROUP with GROUP option", no_group(key, self.group)));
            }
            if **after == *b"$" {
                return Err(
                    "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the history of \
                            this consumer by specifying a proper ID, or use the > ID to get new messages. The $ ID \
                            would just return an empty result set."
                        .into(),
                );
            }
            starts.push(if **after == *b">" { None } else { Some(id(after, 0)?) });
        }
        let mut all = Vec::new();
        for (key, start) in self.keys.iter().zip(starts) {
            let Some(stream) = change(db, key)? else { continue };
            let found = self.entries(stream, start, now);
            if start.is_some() || !found.is_empty() {
                all.push(Reply::Array(vec![Reply::Bulk(key.clone()), Reply::Array(found)]));
            }
        }
        Ok(if all.is_empty() { Reply::Nil } else { Reply::Array(all) })
    }

    fn entries(&self, stream: &mut Stream, start: Option<Id>, now: i64) -> Vec<Reply> {
        let Some(group) = stream.groups.get_mut(self.group) else { return Vec::new() };
        if let Some(start) = start {
            group.readers.insert(self.reader.clone(), now);
            let Some(first) = start.next() else { return Vec::new() };
            let own = group.pending.range_mut(first..).filter(|(_, pending)| pending.reader == *self.reader);
            let given = own.take(self.most).map(|(id, pending)| {
                let fields = stream.entries.get(id);
                if fields.is_some() {
                    (pending.at, pending.times) = (now, pending.times + 1);
                }
                entry(*id, fields)
            });
            return given.collect();
        }
        let Some(first) = group.last.next() else { return Vec::new() };
        let mut given = Vec::new();
        for (id, fields) in stream.entries.range(first..).take(self.most) {
            given.push(entry(*id, Some(fields)));
            group.last = *id;
            if !self.acknowledges {
                let pending = Pending { reader: self.reader.clone(), at: now, times: 1 };
                group.pending.insert(*id, pending);
            }
        }
        // A reader that finds nothing is not seen.
        if !given.is_empty() {
            group.readers.insert(self.reader.clone(), now);
        }
        given
    }
}

pub(super) fn xreadgroup(db: &mut Db, args: &[Bytes]) -> Answer {
    ReadGroup::read(args)?.answer(db)
}

pub(super) fn xack(db: &mut Db, args: &[Bytes]) -> Answer {
    let is_there = change(db, &args[0])?.is_some_and(|stream| stream.groups.contains_key(&args[1]));
    if !is_there {
        return Ok(Reply::Int(0));
    }
    let ids: Vec<Id> = args[2..].iter().map(|text| exact(text)).collect::<Result<_, _>>()?;
    let group = group_of(db, &args[0], &args[1])?;
    Ok(count(ids.iter().filter(|id| group.pending.remove(id).is_some()).count()))
}

pub(super) fn xpending(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = db.now();
    let (key, name) = (&args[0], &args[1]);
    let (least, words) = match &args[2..] {
        [word, idle, rest @ ..] if word.eq_ignore_ascii_case(b"IDLE") => (int(idle)?, rest),
        rest => (0, rest),
    };
    let group = |db| read(db, key).map(|stream: Option<&Stream>| stream.and_then(|stream| stream.groups.get(name)));
    let (from, to, most, reader) = match words {
        [] => {
            let group = group(db)?.ok_or_else(|| no_group(key, name))?;
            return Ok(summary(group));
        }
        [from, to, most] => (from, to, most, None),
        [from, to, most, reader] => (from, to, most, Some(reader)),
        _ => return Err(SYNTAX.into()),
    };
    let most = usize::try_from(int(most)?.max(0)).unwrap_or(0);
    let (from, to) = (id(from, 0)?, id(to, u64::MAX)?);
    let group = group(db)?.ok_or_else(|| no_group(key, name))?;
    if from > to {
        return Ok(Reply::Array(Vec::new()));
    }
    let found = group.pending.range(from..=to).filter(|(_, pending)| {
        reader.is_none_or(|reader| pending.reader == *reader) && (least == 0 || now - pending.at >= least)
    });
    let told = found.take(most).map(|(id, pending)| {
        let times = Reply::Int(i64::try_from(pending.times).unwrap_or(i64::MAX));
        let idle = Reply::Int((now - pending.at).max(0));
        Reply::Array(vec![bulk(id.to_string()), Reply::Bulk(pending.reader.clone()), idle, times])
    });
    Ok(Reply::Array(told.collect()))
}

fn summary(group: &Group) -> Reply {
    let (Some((first, _)), Some((last, _))) = (group.pending.first_key_value(), group.pending.last_key_value()) else {
        return Reply::Array(vec![Reply::Int(0), Reply::Nil, Reply::Nil, Reply::Nil]);
    };
    let readers = group.readers.keys().filter_map(|reader| {
        let count = group.pending.values().filter(|pending| pending.reader == *reader).count();
        (count > 0).then(|| Reply::Array(vec![Reply::Bulk(reader.clone()), bulk(count.to_string())]))
    });
    let ends = [first, last].map(|id| bulk(id.to_string()));
    let [first, last] = ends;
    Reply::Array(vec![count(group.pending.len()), first, last, Reply::Array(readers.collect())])
}

pub(super) fn xautoclaim(db: &mut Db, args: &[Bytes]) -> Answer {
    let now = db.now();
    let (key, name, reader) = (&args[0], &args[1], &args[2]);
    let least = int(&args[3]).map_err(|_| "ERR Invalid min-idle-time argument for XAUTOCLAIM")?.max(0);
    let start = match args[4].strip_prefix(b"(") {
        Some(after) => id(after, 0)?.next().unwrap_or(Id::MAX),
        None => id(&args[4], 0)?,
    };
    let (mut most, mut only_ids) = (100, false);
    let mut words = args[5..].iter();
    while let Some(word) = words.next() {
        match word.to_ascii_uppercase().as_slice() {
            b"COUNT" => {
                let count = words.next().and_then(|count| int(count).ok()).filter(|count| *count > 0);
                most = usize::try_from(count.ok_or("ERR COUNT must be > 0")?).unwrap_or(usize::MAX);
            }
            b"JUSTID" => only_ids = true,
            _ => return Err(SYNTAX.into()),
        }
    }
    let stream = change(db, key)?.filter(|stream| stream.groups.contains_key(name));
    let Stream { entries, groups, .. } = stream.ok_or_else(|| no_group(key, name))?;
    let group = groups.get_mut(name).ok_or_else(|| no_group(key, name))?;
    let (mut attempts, mut given, mut gone) = (most.saturating_mul(10), Vec::new(), Vec::new());
    let candidates: Vec<Id> = group.pending.range(start..).map(|(id, _)| *id).collect();
    let mut rest = candidates.into_iter();
    while attempts > 0 && most > 0 {
        let Some(id) = rest.next() else { break };
        attempts -= 1;
        let Some(fields) = entries.get(&id) else {
            group.pending.remove(&id);
            gone.push(bulk(id.to_string()));
            most -= 1;
            continue;
        };
        let Some(pending) = group.pending.get_mut(&id) else { continue };
        if least > 0 && now - pending.at < least {
            continue;
        }
        group.readers.insert(reader.clone(), now);
        (pending.reader, pending.at) = (reader.clone(), now);
        pending.times += u64::from(!only_ids);
        given.push(if only_ids { bulk(id.to_string()) } else { entry(id, Some(fields)) });
        most -= 1;
    }
    let next = rest.next().unwrap_or_default();
    Ok(Reply::Array(vec![bulk(next.to_string()), Reply::Array(given), Reply::Array(gone)]))
}
