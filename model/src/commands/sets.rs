//! Commands on sets.

use std::collections::BTreeSet;

use super::keys::positive;
use super::number::int;
use super::{Answer, Reply, count, typed};
use crate::db::{Bytes, Db, Value};

typed!(Set, BTreeSet<Bytes>);

pub(super) fn sadd(db: &mut Db, args: &[Bytes]) -> Answer {
    let members = edit(db, &args[0])?;
    Ok(count(args[1..].iter().filter(|member| members.insert((*member).clone())).count()))
}

pub(super) fn srem(db: &mut Db, args: &[Bytes]) -> Answer {
    let Some(members) = change(db, &args[0])? else { return Ok(Reply::Int(0)) };
    let gone = args[1..].iter().filter(|member| members.remove(*member)).count();
    db.settle(&args[0]);
    Ok(count(gone))
}

pub(super) fn scard(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(count(read(db, &args[0])?.map_or(0, BTreeSet::len)))
}

pub(super) fn sismember(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(Reply::Int(i64::from(read(db, &args[0])?.is_some_and(|members| members.contains(&args[1])))))
}

pub(super) fn smismember(db: &mut Db, args: &[Bytes]) -> Answer {
    let members = read(db, &args[0])?;
    let is_in = |member| Reply::Int(i64::from(members.is_some_and(|members| members.contains(member))));
    Ok(Reply::Array(args[1..].iter().map(is_in).collect()))
}

pub(super) fn smembers(db: &mut Db, args: &[Bytes]) -> Answer {
    Ok(Reply::Array(read(db, &args[0])?.into_iter().flatten().cloned().map(Reply::Bulk).collect()))
}

/// Takes a random member out of a list.
fn draw(db: &mut Db, members: &mut Vec<Bytes>) -> Option<Bytes> {
    let at = db.live.as_mut().map_or(0, |live| live.random(members.len()));
    (!members.is_empty()).then(|| members.swap_remove(at))
}

pub(super) fn srandmember(db: &mut Db, args: &[Bytes]) -> Answer {
    let most = args.get(1).map(|most| int(most)).transpose()?;
    if args.len() > 2 {
        return Err(super::SYNTAX.into());
    }
    let mut members: Vec<Bytes> = read(db, &args[0])?.into_iter().flatten().cloned().collect();
    let Some(most) = most else { return Ok(draw(db, &mut members).map_or(Reply::Nil, Reply::Bulk)) };
    let count = usize::try_from(most.unsigned_abs()).unwrap_or(0);
    let mut drawn = Vec::new();
    while drawn.len() < count && !members.is_empty() {
        let member = draw(db, &mut members);
        if most < 0 {
            members.extend(member.clone());
        }
        drawn.extend(member.map(Reply::Bulk));
    }
    Ok(Reply::Array(drawn))
}

pub(super) fn spop(db: &mut Db, args: &[Bytes]) -> Answer {
    let most = args.get(1).map(|most| positive(most)).transpose()?;
    let mut members: Vec<Bytes> =
        change(db, &args[0])?.map(|members| members.iter().cloned().collect()).unwrap_or_default();
    let drawn: Vec<Bytes> = (0..most.unwrap_or(1)).map_while(|_| draw(db, &mut members)).collect();
    if let Some(left) = change(db, &args[0])? {
        left.retain(|member| !drawn.contains(member));
        db.settle(&args[0]);
    }
    let mut drawn = drawn.into_iter().map(Reply::Bulk);
    Ok(if most.is_some() { Reply::Array(drawn.collect()) } else { drawn.next().unwrap_or(Reply::Nil) })
}
