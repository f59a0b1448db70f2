//! The commands of Redis that scripts and callers use, with Redis's replies. `tests/real_redis.rs` compares them with a
//! real server.

use std::collections::BTreeMap;

use crate::db::{Db, Score, Value};

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A number.
    Int(i64),
    /// A text.
    Bulk(String),
    /// A status, such as `OK`.
    Status(String),
    /// An error.
    Error(String),
    /// Several replies.
    Array(Vec<Reply>),
}

impl Reply {
    /// Returns a text or a number as text; empty for all else.
    pub fn text(&self) -> String {
        match self {
            Self::Bulk(text) | Self::Status(text) => text.clone(),
            Self::Int(number) => number.to_string(),
            Self::Nil | Self::Error(_) | Self::Array(_) => String::new(),
        }
    }

    /// Returns a number; 0 for all else.
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(number) => *number,
            Self::Bulk(text) => text.parse().unwrap_or(0),
            Self::Nil | Self::Status(_) | Self::Error(_) | Self::Array(_) => 0,
        }
    }

    /// Returns the replies of an array.
    pub fn parts(&self) -> &[Reply] {
        match self {
            Self::Array(parts) => parts,
            _ => &[],
        }
    }

    /// Returns the n-th reply of an array.
    pub fn part(&self, n: usize) -> &Reply {
        self.parts().get(n).unwrap_or(&Self::Nil)
    }
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

type Answer = Result<Reply, String>;

/// Carries out a command.
pub fn execute(db: &mut Db, words: &[String]) -> Reply {
    run(db, words).unwrap_or_else(Reply::Error)
}

fn run(db: &mut Db, words: &[String]) -> Answer {
    let Some((name, args)) = words.split_first() else { return Err("ERR no command".into()) };
    match name.as_str() {
        "TIME" => {
            let (seconds, micros) = (db.now_us.div_euclid(1_000_000), db.now_us.rem_euclid(1_000_000));
            Ok(Reply::Array(vec![bulk(seconds), bulk(micros)]))
        }
        "PUBLISH" => {
            db.published.push((args[0].clone(), args[1].clone()));
            Ok(Reply::Int(0))
        }
        "GET" | "SET" | "MGET" | "INCRBY" => strings(db, name, args),
        "DEL" | "UNLINK" | "EXISTS" | "TYPE" | "PEXPIRE" | "PEXPIREAT" | "PEXPIRETIME" | "PTTL" => keys(db, name, args),
        _ if name.starts_with('H') => hashes(db, name, args),
        _ if name.starts_with('Z') => sorted(db, name, args),
        _ => Err(format!("ERR the model does not know {name}")),
    }
}

fn bulk(number: impl ToString) -> Reply {
    Reply::Bulk(number.to_string())
}

fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "ERR value is not an integer or out of range".to_owned())
}

fn text_of(db: &Db, key: &str) -> Result<Option<String>, String> {
    match db.slot(key).map(|slot| &*slot.value) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(WRONG_TYPE.into()),
    }
}

fn strings(db: &mut Db, name: &str, args: &[String]) -> Answer {
    match name {
        "GET" => Ok(text_of(db, &args[0])?.map_or(Reply::Nil, Reply::Bulk)),
        "MGET" => Ok(Reply::Array(
            args.iter().map(|key| db.text(key).map_or(Reply::Nil, |text| Reply::Bulk(text.to_owned()))).collect(),
        )),
        "INCRBY" => {
            let expires = db.slot(&args[0]).and_then(|slot| slot.expires);
            let sum = number(&text_of(db, &args[0])?.unwrap_or_else(|| "0".into()))? + number(&args[1])?;
            db.put(&args[0], Value::Text(sum.to_string()), expires);
            Ok(Reply::Int(sum))
        }
        _ => {
            let (mut expires, mut keeps, mut only_new) = (None, false, false);
            let mut words = args[2..].iter();
            while let Some(word) = words.next() {
                match word.as_str() {
                    "NX" => only_new = true,
                    "KEEPTTL" => keeps = true,
                    "PX" | "PXAT" => {
                        let time = number(words.next().ok_or("ERR syntax error")?)?;
                        if time <= 0 {
                            return Err("ERR invalid expire time in 'set' command".into());
                        }
                        expires = Some(if word == "PX" { db.now() + time } else { time });
                    }
                    _ => return Err("ERR syntax error".into()),
                }
            }
            let slot = db.slot(&args[0]);
            if only_new && slot.is_some() {
                return Ok(Reply::Nil);
            }
            if keeps {
                expires = slot.and_then(|slot| slot.expires);
            }
            db.put(&args[0], Value::Text(args[1].clone()), expires);
            Ok(Reply::Status("OK".into()))
        }
    }
}

fn keys(db: &mut Db, name: &str, args: &[String]) -> Answer {
    let key = args[0].as_str();
    let expires = db.slot(key).map(|slot| slot.expires);
    Ok(match name {
        "DEL" | "UNLINK" => Reply::Int(args.iter().filter(|key| db.remove(key)).count() as i64),
        "EXISTS" => Reply::Int(i64::from(expires.is_some())),
        "TYPE" => Reply::Status(db.slot(key).map_or("none", |slot| slot.value.kind()).into()),
        "PEXPIRETIME" => Reply::Int(expires.map_or(-2, |at| at.unwrap_or(-1))),
        "PTTL" => Reply::Int(expires.map_or(-2, |at| at.map_or(-1, |at| at - db.now()))),
        _ => {
            let at = number(&args[1])? + if name == "PEXPIRE" { db.now() } else { 0 };
            let only_less = args.get(2).is_some_and(|word| word == "LT");
            match expires {
                None => Reply::Int(0),
                Some(Some(before)) if only_less && before <= at => Reply::Int(0),
                Some(_) => {
                    db.expire(key, at);
                    Reply::Int(1)
                }
            }
        }
    })
}

fn hashes(db: &mut Db, name: &str, args: &[String]) -> Answer {
    let key = args[0].as_str();
    let expires = db.slot(key).and_then(|slot| slot.expires);
    let mut fields: BTreeMap<String, String> = match db.slot(key).map(|slot| &*slot.value) {
        None => BTreeMap::new(),
        Some(Value::Hash(fields)) => fields.clone(),
        Some(_) => return Err(WRONG_TYPE.into()),
    };
    let get = |field: &String| fields.get(field).map_or(Reply::Nil, |text| Reply::Bulk(text.clone()));
    let reply = match name {
        "HGET" => return Ok(get(&args[1])),
        "HMGET" => return Ok(Reply::Array(args[1..].iter().map(get).collect())),
        "HEXISTS" => return Ok(Reply::Int(i64::from(fields.contains_key(&args[1])))),
        "HSET" => {
            let pairs = args[1..].chunks_exact(2);
            pairs.filter(|pair| fields.insert(pair[0].clone(), pair[1].clone()).is_none()).count() as i64
        }
        "HSETNX" if fields.contains_key(&args[1]) => 0,
        "HSETNX" => {
            fields.insert(args[1].clone(), args[2].clone());
            1
        }
        "HDEL" => args[1..].iter().filter(|field| fields.remove(*field).is_some()).count() as i64,
        "HINCRBY" => {
            let sum = fields.get(&args[1]).map_or(Ok(0), |text| number(text))? + number(&args[2])?;
            fields.insert(args[1].clone(), sum.to_string());
            sum
        }
        _ => return Err(format!("ERR the model does not know {name}")),
    };
    db.put(key, Value::Hash(fields), expires);
    Ok(Reply::Int(reply))
}

/// Returns a double as C's `%.17g` prints it.
pub fn double(number: f64) -> String {
    if number == 0.0 {
        return "0".into();
    }
    let scientific = format!("{number:.16e}");
    let exponent: i32 = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    if !(-5..17).contains(&exponent) {
        return scientific;
    }
    let fixed = format!("{number:.*}", usize::try_from(16 - exponent).unwrap_or(0));
    if fixed.contains('.') { fixed.trim_end_matches('0').trim_end_matches('.').to_owned() } else { fixed }
}

fn score(text: &str) -> Result<f64, String> {
    match text {
        "-inf" => Ok(f64::NEG_INFINITY),
        "+inf" | "inf" => Ok(f64::INFINITY),
        _ => text.parse().map_err(|_| "ERR value is not a valid float".to_owned()),
    }
}

/// Returns a bound of a range, and whether the range excludes it.
fn bound(text: &str) -> Result<(f64, bool), String> {
    let (text, excludes) = text.strip_prefix('(').map_or((text, false), |text| (text, true));
    score(text).map(|at| (at, excludes)).map_err(|_| "ERR min or max is not a float".to_owned())
}

fn within(from: &str, to: &str) -> Result<impl Fn(f64) -> bool + use<>, String> {
    let ((from, after), (to, before)) = (bound(from)?, bound(to)?);
    Ok(move |at: f64| (if after { at > from } else { at >= from }) && (if before { at < to } else { at <= to }))
}

fn flat(members: &[(Score, String)], with_scores: bool) -> Reply {
    let mut parts = Vec::new();
    for (at, member) in members {
        parts.push(Reply::Bulk(member.clone()));
        if with_scores {
            parts.push(Reply::Bulk(double(at.0)));
        }
    }
    Reply::Array(parts)
}

fn sorted(db: &mut Db, name: &str, args: &[String]) -> Answer {
    let key = args[0].as_str();
    let expires = db.slot(key).and_then(|slot| slot.expires);
    let mut members: Vec<(Score, String)> = match db.slot(key).map(|slot| &*slot.value) {
        None => Vec::new(),
        Some(Value::Sorted(members)) => members.clone(),
        Some(_) => return Err(WRONG_TYPE.into()),
    };
    let find = |members: &[(Score, String)], member: &str| members.iter().position(|(_, of)| of == member);
    let told = |member: &String| find(&members, member).map_or(Reply::Nil, |at| Reply::Bulk(double(members[at].0.0)));
    let with_scores = args.iter().any(|word| word == "WITHSCORES");
    let reply = match name {
        "ZSCORE" => return Ok(told(&args[1])),
        "ZMSCORE" => return Ok(Reply::Array(args[1..].iter().map(told).collect())),
        "ZCARD" => return Ok(Reply::Int(members.len() as i64)),
        "ZCOUNT" => {
            let within = within(&args[1], &args[2])?;
            return Ok(Reply::Int(members.iter().filter(|(at, _)| within(at.0)).count() as i64));
        }
        "ZRANGE" => {
            let last = number(&args[2])?;
            let last = if last < 0 { members.len() as i64 + last } else { last.min(members.len() as i64 - 1) };
            let first = number(&args[1])?;
            let shown = if last < first { &[] } else { &members[first as usize..=last as usize] };
            return Ok(flat(shown, with_scores));
        }
        "ZRANGEBYSCORE" => {
            let within = within(&args[1], &args[2])?;
            let limit = args.iter().position(|word| word == "LIMIT");
            let (skip, most) = match limit {
                Some(at) => (number(&args[at + 1])?, number(&args[at + 2])?),
                None => (0, -1),
            };
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let found = members.iter().filter(|(at, _)| within(at.0)).skip(skip as usize).take(most);
            return Ok(flat(&found.cloned().collect::<Vec<_>>(), with_scores));
        }
        "ZADD" => {
            let mut from = 1;
            let (mut only_there, mut greater, mut less) = (false, false, false);
            while let Some(flag) = args.get(from) {
                match flag.as_str() {
                    "XX" => only_there = true,
                    "GT" => greater = true,
                    "LT" => less = true,
                    _ => break,
                }
                from += 1;
            }
            if args.len() <= from || !(args.len() - from).is_multiple_of(2) {
                return Err("ERR syntax error".into());
            }
            let pairs: Vec<(f64, &String)> = args[from..]
                .chunks_exact(2)
                .map(|pair| Ok((score(&pair[0])?, &pair[1])))
                .collect::<Result<_, String>>()?;
            let mut added = 0;
            for (at, member) in pairs {
                match find(&members, member) {
                    Some(n) => {
                        let before = members[n].0.0;
                        if !(greater && at <= before || less && at >= before) {
                            members[n].0 = Score(at);
                        }
                    }
                    None if only_there => {}
                    None => {
                        members.push((Score(at), member.clone()));
                        added += 1;
                    }
                }
            }
            Reply::Int(added)
        }
        "ZREM" => {
            let before = members.len();
            members.retain(|(_, member)| !args[1..].contains(member));
            Reply::Int((before - members.len()) as i64)
        }
        "ZPOPMIN" | "ZPOPMAX" => {
            let count = args.get(1).map_or(Ok(1), |count| number(count))?.max(0) as usize;
            let count = count.min(members.len());
            let popped: Vec<_> = if name == "ZPOPMIN" {
                members.drain(..count).collect()
            } else {
                members.drain(members.len() - count..).rev().collect()
            };
            flat(&popped, true)
        }
        _ => return Err(format!("ERR the model does not know {name}")),
    };
    members.sort_by(|a, b| a.0.0.total_cmp(&b.0.0).then_with(|| a.1.cmp(&b.1)));
    db.put(key, Value::Sorted(members), expires);
    Ok(reply)
}
