//! Commands on sorted sets.

use std::ops::Range;

use super::keys::{positions, positive};
use super::number::{double, float, int};
use super::{Answer, Reply, SYNTAX, bulk, count, typed};
use crate::db::{Bytes, Db, Score, Sorted, Value};

typed!(Sorted, Sorted);

/// A range of scores.
#[derive(Clone, Copy)]
struct Scores {
    from: (f64, bool),
    to: (f64, bool),
}

impl Scores {
    /// Reads a range; a `(` excludes its bound.
    fn read(from: &[u8], to: &[u8]) -> Result<Self, String> {
        let bound = |text: &[u8]| {
            let excludes = text.first() == Some(&b'(');
            let number = float(if excludes { &text[1..] } else { text });
            number.map(|at| (at, excludes)).map_err(|_| "ERR min or max is not a float".to_owned())
        };
        Ok(Self { from: bound(from)?, to: bound(to)? })
    }

    fn ranks(self, sorted: &Sorted) -> Range<usize> {
        let Self { from: (from, after), to: (to, before) } = self;
        let first = sorted.before(|at| if after { at <= from } else { at < from });
        let end = sorted.before(|at| if before { at < to } else { at <= to });
        first..end.max(first)
    }
}

fn told(score: Option<f64>) -> Reply {
    score.map_or(Reply::Nil, |score| bulk(double(score)))
}

fn flat<'a>(members: impl Iterator<Item = &'a (Score, Bytes)>, with_scores: bool) -> Reply {
    let mut parts = Vec::new();
    for (score, member) in members {
        parts.push(Reply::Bulk(member.clone()));
        if with_scores {
            parts.push(bulk(double(score.0)));
        }
    }
    Reply::Array(parts)
}

pub(super) fn zscore(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(told(read(db, &args[0])?.and_then(|sorted| sorted.score(&args[1]))))
}

pub(super) fn zmscore(db: &mut Db, args: &[Bytes]) -> Answer {
    let sorted = read(db, &args[0])?;
    Ok(Reply::Array(args[1..].iter().map(|of| told(sorted.and_then(|sorted| sorted.score(of)))).collect()))
}

pub(super) fn zcard(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(count(read(db, &args[0])?.map_or(0, |sorted| sorted.members().len())))
}

pub(super) fn zcount(db: &mut Db, args: &[Bytes]) -> Answer {
    let scores = Scores::read(&args[1], &args[2])?;
    Ok(count(read(db, &args[0])?.map_or(0, |sorted| scores.ranks(sorted).len())))
}

pub(super) fn zrank(db: &mut Db, args: &[Bytes]) -> Answer {
    let rank = read(db, &args[0])?.and_then(|sorted| sorted.rank(&args[1]));
    Ok(rank.map_or(Reply::Nil, count))
}

pub(super) fn zrevrank(db: &mut Db, args: &[Bytes]) -> Answer {
    let sorted = read(db, &args[0])?;
    let rank = sorted.and_then(|sorted| Some(sorted.members().len() - 1 - sorted.rank(&args[1])?));
    Ok(rank.map_or(Reply::Nil, count))
}

pub(super) fn zadd(db: &mut Db, args: &[Bytes]) -> Answer {
    let (mut only_new, mut only_old, mut greater, mut less) = (false, false, false, false);
    let (mut changes, mut adds) = (false, false);
    let mut from = 1;
    while let Some(flag) = args.get(from) {
        match flag.to_ascii_uppercase().as_slice() {
            b"NX" => only_new = true,
            b"XX" => only_old = true,
            b"GT" => greater = true,
            b"LT" => less = true,
            b"CH" => changes = true,
            b"INCR" => adds = true,
            _ => break,
        }
        from += 1;
    }
    let pairs = &args[from.min(args.len())..];
    if pairs.is_empty() || !pairs.len().is_multiple_of(2) {
        return Err(SYNTAX.into());
    }
    if only_new && only_old {
        return Err("ERR XX and NX options at the same time are not compatible".into());
    }
    if greater && less || only_new && (greater || less) {
        return Err("ERR GT, LT, and/or NX options at the same time are not compatible".into());
    }
    if adds && pairs.len() > 2 {
        return Err("ERR INCR option supports a single increment-element pair".into());
    }
    let pairs: Vec<(f64, &Bytes)> =
        pairs.chunks_exact(2).map(|pair| Ok((float(&pair[0])?, &pair[1]))).collect::<Result<_, String>>()?;
    if change(db, &args[0])?.is_none() && only_old {
        return Ok(if adds { Reply::Nil } else { Reply::Int(0) });
    }
    let sorted = edit(db, &args[0])?;
    let (mut added, mut changed, mut last) = (0, 0, None);
    for (score, member) in pairs {
        let before = sorted.score(member);
        let after = if adds { before.map_or(score, |before| before + score) } else { score };
        if after.is_nan() {
            db.settle(&args[0]);
            return Err("ERR resulting score is not a number (NaN)".into());
        }
        let is_refused = match before {
            Some(before) => only_new || greater && after <= before || less && after >= before,
            None => only_old,
        };
        last = (!is_refused).then_some(after);
        if !is_refused && before != Some(after) {
            sorted.set(after, member);
            added += usize::from(before.is_none());
            changed += usize::from(before.is_some());
        }
    }
    db.settle(&args[0]);
    Ok(if adds { told(last) } else { count(if changes { added + changed } else { added }) })
}

pub(super) fn zincrby(db: &mut Db, args: &[Bytes]) -> Answer {
    zadd(db, &[args[0].clone(), "INCR".into(), args[1].clone(), args[2].clone()])
}

pub(super) fn zrem(db: &mut Db, args: &[Bytes]) -> Answer {
    let Some(sorted) = change(db, &args[0])? else { return Ok(Reply::Int(0)) };
    let gone = args[1..].iter().filter(|member| sorted.remove(member)).count();
    db.settle(&args[0]);
    Ok(count(gone))
}

fn take(db: &mut Db, key: &Bytes, ranks: Range<usize>) -> Vec<(Score, Bytes)> {
    let taken = match change(db, key) {
        Ok(Some(sorted)) => sorted.take(ranks),
        _ => Vec::new(),
    };
    db.settle(key);
    taken
}

pub(super) fn zremrangebyscore(db: &mut Db, args: &[Bytes]) -> Answer {
    let scores = Scores::read(&args[1], &args[2])?;
    let Some(sorted) = change(db, &args[0])? else { return Ok(Reply::Int(0)) };
    let ranks = scores.ranks(sorted);
    Ok(count(take(db, &args[0], ranks).len()))
}

pub(super) fn zremrangebyrank(db: &mut Db, args: &[Bytes]) -> Answer {
    let _ = (int(&args[1])?, int(&args[2])?);
    let Some(sorted) = change(db, &args[0])? else { return Ok(Reply::Int(0)) };
    let ranks = positions(&args[1], &args[2], sorted.members().len())?;
    Ok(count(take(db, &args[0], ranks).len()))
}

fn pop(db: &mut Db, args: &[Bytes], from_end: bool) -> Answer {
    if args.len() > 2 {
        return Err(SYNTAX.into());
    }
    let most = args.get(1).map_or(Ok(1), |most| positive(most))?;
    let Some(sorted) = change(db, &args[0])? else { return Ok(Reply::Array(Vec::new())) };
    let length = sorted.members().len();
    let most = most.min(length);
    Ok(if from_end {
        flat(take(db, &args[0], length - most..length).iter().rev(), true)
    } else {
        flat(take(db, &args[0], 0..most).iter(), true)
    })
}

pub(super) fn zpopmin(db: &mut Db, args: &[Bytes]) -> Answer {
    pop(db, args, false)
}

pub(super) fn zpopmax(db: &mut Db, args: &[Bytes]) -> Answer {
    pop(db, args, true)
}

/// The arguments of a command of ranges.
#[derive(Default)]
struct Ask {
    by_score: bool,
    backwards: bool,
    with_scores: bool,
    limit: Option<(i64, i64)>,
}

impl Ask {
    fn read(mut self, words: &[Bytes], is_zrange: bool) -> Result<Self, String> {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.to_ascii_uppercase().as_slice() {
                b"WITHSCORES" => self.with_scores = true,
                b"LIMIT" => {
                    let (Some(skip), Some(most)) = (words.next(), words.next()) else { return Err(SYNTAX.into()) };
                    self.limit = Some((int(skip)?, int(most)?));
                }
                b"BYSCORE" if is_zrange => self.by_score = true,
                b"REV" if is_zrange => self.backwards = true,
                b"BYLEX" if is_zrange => return Err("ERR the model does not know BYLEX".into()),
                _ => return Err(SYNTAX.into()),
            }
        }
        if self.limit.is_some() && !self.by_score {
            return Err("ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX".into());
        }
        Ok(self)
    }

    fn answer(&self, db: &mut Db, args: &[Bytes]) -> Answer {
        let (from, to) = if self.by_score && self.backwards { (&args[2], &args[1]) } else { (&args[1], &args[2]) };
        let scores = if self.by_score { Some(Scores::read(from, to)?) } else { None };
        if scores.is_none() {
            let _ = (int(from)?, int(to)?);
        }
        let Some(sorted) = read(db, &args[0])? else { return Ok(Reply::Array(Vec::new())) };
        let members = sorted.members();
        let Some(scores) = scores else {
            let ranks = positions(from, to, members.len())?;
            return Ok(if self.backwards {
                flat(members.iter().rev().skip(ranks.start).take(ranks.len()), self.with_scores)
            } else {
                flat(members[ranks].iter(), self.with_scores)
            });
        };
        let (skip, most) = self.limit.unwrap_or((0, -1));
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let found = members[scores.ranks(sorted)].iter();
        Ok(if self.backwards {
            flat(found.rev().skip(skip).take(most), self.with_scores)
        } else {
            flat(found.skip(skip).take(most), self.with_scores)
        })
    }
}

pub(super) fn zrange(db: &mut Db, args: &[Bytes]) -> Answer {
    Ask::default().read(&args[3..], true)?.answer(db, args)
}

pub(super) fn zrevrange(db: &mut Db, args: &[Bytes]) -> Answer {
    Ask { backwards: true, ..Ask::default() }.read(&args[3..], false)?.answer(db, args)
}

pub(super) fn zrangebyscore(db: &mut Db, args: &[Bytes]) -> Answer {
    Ask { by_score: true, ..Ask::default() }.read(&args[3..], false)?.answer(db, args)
}

pub(super) fn zrevrangebyscore(db: &mut Db, args: &[Bytes]) -> Answer {
    Ask { by_score: true, backwards: true, ..Ask::default() }.read(&args[3..], false)?.answer(db, args)
}
