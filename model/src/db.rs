//! The keys of the modelled Redis, and its clock.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

/// A score of a sorted set; never NaN.
#[derive(Clone, Copy, Debug)]
pub struct Score(pub f64);

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.0.total_cmp(&other.0).is_eq()
    }
}

impl Eq for Score {}

impl Hash for Score {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// The content of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A string.
    Text(String),
    /// A hash.
    Hash(BTreeMap<String, String>),
    /// A sorted set, in the order of scores, then of members.
    Sorted(Vec<(Score, String)>),
}

impl Value {
    /// Returns the type as `TYPE` tells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Hash(_) => "hash",
            Self::Sorted(_) => "zset",
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::Hash(fields) => fields.is_empty(),
            Self::Sorted(members) => members.is_empty(),
        }
    }
}

/// A key's content and expiry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The content, shared between states.
    pub value: Rc<Value>,
    /// When it expires (ms).
    pub expires: Option<i64>,
}

/// All keys, and the clock. A key is there in the millisecond in which it expires, as in Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Db {
    /// The clock (µs).
    pub now_us: i64,
    keys: BTreeMap<Rc<str>, Slot>,
    /// The messages published since they were last taken: channel and message.
    pub published: Vec<(String, String)>,
}

impl Db {
    /// Returns the clock in ms.
    pub fn now(&self) -> i64 {
        self.now_us.div_euclid(1_000)
    }

    /// Sets the clock (ms) and drops what has expired by then.
    pub fn set_clock(&mut self, now: i64) {
        self.now_us = now * 1_000;
        self.keys.retain(|_, slot| slot.expires.is_none_or(|at| now <= at));
    }

    /// Returns a key that is there.
    pub fn slot(&self, key: &str) -> Option<&Slot> {
        self.keys.get(key).filter(|slot| slot.expires.is_none_or(|at| self.now() <= at))
    }

    /// Returns the text of a string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &*self.slot(key)?.value {
            Value::Text(text) => Some(text),
            Value::Hash(_) | Value::Sorted(_) => None,
        }
    }

    /// Returns a hash's field.
    pub fn field(&self, key: &str, field: &str) -> Option<&str> {
        match &*self.slot(key)?.value {
            Value::Hash(fields) => fields.get(field).map(String::as_str),
            Value::Text(_) | Value::Sorted(_) => None,
        }
    }

    /// Returns the members of a sorted set; none where there is no such set.
    pub fn members(&self, key: &str) -> &[(Score, String)] {
        match self.slot(key).map(|slot| &*slot.value) {
            Some(Value::Sorted(members)) => members,
            _ => &[],
        }
    }

    /// Returns a member's score.
    pub fn score(&self, key: &str, member: &str) -> Option<f64> {
        self.members(key).iter().find(|(_, of)| of == member).map(|(score, _)| score.0)
    }

    /// Returns all expiries, for the explorer's clock.
    pub fn expiries(&self) -> impl Iterator<Item = i64> {
        self.keys.values().filter_map(|slot| slot.expires)
    }

    pub(crate) fn put(&mut self, key: &str, value: Value, expires: Option<i64>) {
        if value.is_empty() {
            self.keys.remove(key);
        } else {
            self.keys.insert(key.into(), Slot { value: Rc::new(value), expires });
        }
    }

    pub(crate) fn remove(&mut self, key: &str) -> bool {
        let was_there = self.slot(key).is_some();
        self.keys.remove(key);
        was_there
    }

    pub(crate) fn expire(&mut self, key: &str, at: i64) {
        if at <= self.now() {
            self.keys.remove(key);
        } else if let Some(slot) = self.keys.get_mut(key) {
            slot.expires = Some(at);
        }
    }
}

impl fmt::Display for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, slot) in &self.keys {
            write!(f, "        {key} = ")?;
            match &*slot.value {
                Value::Text(text) => write!(f, "{text:?}")?,
                Value::Hash(fields) => write!(f, "{fields:?}")?,
                Value::Sorted(members) => {
                    for (score, member) in members {
                        write!(f, "{member:?} {}  ", score.0)?;
                    }
                }
            }
            match slot.expires {
                Some(at) => writeln!(f, "  (until {at})")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
