//! `SCAN` and its relatives.
//!
//! A cursor is the place of the next key, a hash of its name: what is there during a whole scan is returned, whatever
//! else comes and goes.

use super::number::double;
use super::{Answer, Reply, SYNTAX, WRONG_TYPE, bulk, glob, keys};
use crate::commands::number::int;
use crate::db::{Bytes, Db, Value};
use crate::live::place;

/// The arguments of a scan.
struct Ask {
    cursor: u64,
    most: usize,
    glob: Option<Bytes>,
    kind: Option<Vec<u8>>,
}

impl Ask {
    fn read(cursor: u64, words: &[Bytes], of_keys: bool) -> Result<Self, String> {
        let mut ask = Self { cursor, most: 10, glob: None, kind: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(value) = words.next() else { return Err(SYNTAX.into()) };
            match word.to_ascii_uppercase().as_slice() {
                b"COUNT" => ask.most = usize::try_from(int(value)?).ok().filter(|most| *most > 0).ok_or(SYNTAX)?,
                b"MATCH" => ask.glob = Some(value.clone()),
                b"TYPE" if of_keys => ask.kind = Some(value.to_ascii_lowercase()),
                _ => return Err(SYNTAX.into()),
            }
        }
        Ok(ask)
    }

    /// Returns the next cursor, and the members of this step.
    fn step<'a, T>(&self, all: Vec<(&'a Bytes, T)>) -> (u64, Vec<(&'a Bytes, T)>) {
        let placed = all.into_iter().map(|member| (place(member.0), member));
        let mut rest: Vec<(u64, (&Bytes, T))> = placed.filter(|(place, _)| *place >= self.cursor).collect();
        rest.sort_by_key(|(place, _)| *place);
        // Members of one place belong to one step.
        let mut end = self.most.min(rest.len());
        while end > 0 && end < rest.len() && rest[end].0 == rest[end - 1].0 {
            end += 1;
        }
        let next = rest.get(end).map_or(0, |(place, _)| *place);
        rest.truncate(end);
        (next, rest.into_iter().map(|(_, member)| member).collect())
    }

    fn matches(&self, name: &[u8]) -> bool {
        self.glob.as_ref().is_none_or(|glob| glob::matches(glob, name))
    }
}

fn cursor(text: &[u8]) -> Result<u64, String> {
    str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| "ERR invalid cursor".to_owned())
}

fn reply(next: u64, items: Vec<Reply>) -> Reply {
    Reply::Array(vec![bulk(next.to_string()), Reply::Array(items)])
}

pub(super) fn scan(db: &mut Db, args: &[Bytes]) -> Answer {
    let ask = Ask::read(cursor(&args[0])?, &args[1..], true)?;
    let (next, found) = db.scan(ask.cursor, ask.most);
    let is_kind = |value: &Value| ask.kind.as_ref().is_none_or(|kind| kind == value.kind().as_bytes());
    let found = found.into_iter().filter(|(key, slot)| ask.matches(key) && is_kind(&slot.value));
    Ok(reply(next, found.map(|(key, _)| Reply::Bulk(key.clone())).collect()))
}

/// The value or score beside a member's name.
enum Beside<'a> {
    Text(&'a Bytes),
    Score(f64),
    Nothing,
}

/// Scans the members of a key. A small key is returned at once.
fn members(db: &mut Db, args: &[Bytes], kind: &str) -> Answer {
    let cursor = cursor(&args[1])?;
    let Some(slot) = db.read(&args[0]) else { return Ok(reply(0, Vec::new())) };
    if slot.value.kind() != kind {
        return Err(WRONG_TYPE.into());
    }
    let ask = Ask::read(cursor, &args[2..], false)?;
    let all: Vec<(&Bytes, Beside<'_>)> = match &*slot.value {
        Value::Hash(fields) => fields.iter().map(|(name, text)| (name, Beside::Text(text))).collect(),
        Value::Sorted(sorted) => {
            sorted.members().iter().map(|(score, member)| (member, Beside::Score(score.0))).collect()
        }
        Value::Set(members) => members.iter().map(|member| (member, Beside::Nothing)).collect(),
        Value::Text(_) | Value::List(_) | Value::Stream(_) => Vec::new(),
    };
    let is_small = matches!(keys::encoding(&slot.value), "listpack" | "intset");
    let (next, found) = if is_small { (0, all) } else { ask.step(all) };
    let mut parts = Vec::new();
    for (name, beside) in found {
        if ask.matches(name) {
            parts.push(Reply::Bulk(name.clone()));
            match beside {
                Beside::Text(text) => parts.push(Reply::Bulk(text.clone())),
                Beside::Score(score) => parts.push(bulk(double(score))),
                Beside::Nothing => {}
            }
        }
    }
    Ok(reply(next, parts))
}

pub(super) fn hscan(db: &mut Db, args: &[Bytes]) -> Answer {
    members(db, args, "hash")
}

pub(super) fn sscan(db: &mut Db, args: &[Bytes]) -> Answer {
    members(db, args, "set")
}

pub(super) fn zscan(db: &mut Db, args: &[Bytes]) -> Answer {
    members(db, args, "zset")
}
