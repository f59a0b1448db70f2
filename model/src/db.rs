//! The keys of the modelled Redis, and its clock.

mod bytes;
mod sorted;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

pub use bytes::Bytes;
pub use sorted::{Score, Sorted};
pub use stream::{Group, Id, Pending, Stream};

use crate::live::{Live, place};

/// The content of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A string.
    Text(Bytes),
    /// A list.
    List(VecDeque<Bytes>),
    /// A set.
    Set(BTreeSet<Bytes>),
    /// A hash.
    Hash(BTreeMap<Bytes, Bytes>),
    /// A sorted set.
    Sorted(Sorted),
    /// A stream.
    Stream(Stream),
}

impl Value {
    /// Returns the type as `TYPE` tells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Hash(_) => "hash",
            Self::Sorted(_) => "zset",
            Self::Stream(_) => "stream",
        }
    }

    /// Returns true if such a key is no key: all but strings and streams end with their last member.
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(_) | Self::Stream(_) => false,
            Self::List(items) => items.is_empty(),
            Self::Set(members) => members.is_empty(),
            Self::Hash(fields) => fields.is_empty(),
            Self::Sorted(sorted) => sorted.members().is_empty(),
        }
    }
}

/// A key's content and expiry.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The content, shared between states.
    pub value: Rc<Value>,
    /// When it expires (ms).
    pub expires: Option<i64>,
    /// When a command last used it (ms). It belongs to no state that is explored.
    pub(crate) used: i64,
    /// Its frequency of use, as `OBJECT FREQ` tells.
    pub(crate) frequency: u8,
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.expires == other.expires && self.value == other.value
    }
}

impl Eq for Slot {}

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.value.hash(state);
        self.expires.hash(state);
    }
}

/// All keys, and the clock. A key is there in the millisecond in which it expires, as in Redis.
#[derive(Clone, Debug, Default)]
pub struct Db {
    /// The clock (µs).
    pub now_us: i64,
    keys: BTreeMap<Bytes, Slot>,
    /// The messages published since they were last taken: channel and message. A live server delivers them instead.
    pub published: Vec<(Bytes, Bytes)>,
    /// The state of a server besides keys; `None` where states are explored.
    pub(crate) live: Option<Box<Live>>,
}

impl PartialEq for Db {
    fn eq(&self, other: &Self) -> bool {
        self.now_us == other.now_us && self.keys == other.keys && self.published == other.published
    }
}

impl Eq for Db {}

impl Hash for Db {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.now_us.hash(state);
        self.keys.hash(state);
        self.published.hash(state);
    }
}

impl Db {
    /// Returns the clock in ms.
    pub fn now(&self) -> i64 {
        self.now_us.div_euclid(1_000)
    }

    /// Sets the clock (ms) and drops what has expired by then.
    pub fn set_clock(&mut self, now: i64) {
        self.set_clock_us(now * 1_000);
    }

    /// Sets the clock (µs) and drops what has expired by then.
    pub(crate) fn set_clock_us(&mut self, now_us: i64) {
        self.now_us = now_us;
        let now = self.now();
        let Some(live) = &mut self.live else {
            return self.keys.retain(|_, slot| slot.expires.is_none_or(|at| now <= at));
        };
        while let Some((at, key)) = live.expiries.pop_first() {
            if now <= at {
                live.expiries.insert((at, key));
                break;
            }
            live.expired += 1;
            self.keys.remove(&key);
            live.forget(&key);
            live.changed.push(key);
        }
    }

    /// Returns a key that is there. Nobody notes that.
    pub fn slot(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Option<&Slot> {
        self.keys.get(key.as_ref()).filter(|slot| slot.expires.is_none_or(|at| self.now() <= at))
    }

    /// Returns a key that a command reads: it counts as a hit or miss, and as used.
    pub(crate) fn read(&mut self, key: &[u8]) -> Option<&Slot> {
        let now = self.now();
        let slot = self.keys.get_mut(key).filter(|slot| slot.expires.is_none_or(|at| now <= at));
        let Some(live) = &mut self.live else { return slot.map(|slot| &*slot) };
        live.note_read(key, slot.is_some());
        let slot = slot?;
        slot.used = now;
        slot.frequency = live.used_again(slot.frequency);
        Some(slot)
    }

    /// Returns a key that a command reads without using it.
    pub(crate) fn peek(&mut self, key: &[u8]) -> Option<&Slot> {
        let now = self.now();
        let slot = self.keys.get(key).filter(|slot| slot.expires.is_none_or(|at| now <= at));
        if let Some(live) = &mut self.live {
            live.note_read(key, slot.is_some());
        }
        slot
    }

    /// Notes that a command uses a key.
    pub(crate) fn touch(&mut self, key: &[u8]) {
        let now = self.now();
        if let Some(live) = &mut self.live
            && let Some(slot) = self.keys.get_mut(key)
        {
            slot.used = now;
            slot.frequency = live.used_again(slot.frequency);
        }
    }

    /// Returns a key's content to change it. Call [`Self::settle`] afterwards.
    pub(crate) fn change(&mut self, key: &[u8]) -> Option<&mut Value> {
        let now = self.now();
        self.touch(key);
        let slot = self.keys.get_mut(key).filter(|slot| slot.expires.is_none_or(|at| now <= at))?;
        Some(Rc::make_mut(&mut slot.value))
    }

    /// Returns all keys in the order of their names.
    pub fn keys(&self) -> impl Iterator<Item = (&Bytes, &Slot)> {
        self.keys.iter()
    }

    /// Returns the keys at a scan's cursor, at most so many, and the next cursor: 0 at the end.
    pub(crate) fn scan(&self, cursor: u64, most: usize) -> (u64, Vec<(&Bytes, &Slot)>) {
        let places = self.live.iter().flat_map(|live| live.places.range((cursor, Bytes::from(""))..));
        let (mut found, mut last) = (Vec::new(), 0);
        for (place, key) in places {
            // Keys of one place belong to one step.
            if found.len() >= most && *place != last {
                return (*place, found);
            }
            last = *place;
            found.extend(self.slot(key).map(|slot| (key, slot)));
        }
        (0, found)
    }

    /// Returns the text of a string.
    pub fn text(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Option<&str> {
        match &*self.slot(key)?.value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// Returns a hash's field.
    pub fn field(&self, key: &(impl AsRef<[u8]> + ?Sized), field: &str) -> Option<&str> {
        match &*self.slot(key)?.value {
            Value::Hash(fields) => fields.get(field.as_bytes()).map(Bytes::as_str),
            _ => None,
        }
    }

    /// Returns the members of a sorted set; none where there is no such set.
    pub fn members(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> &[(Score, Bytes)] {
        match self.slot(key).map(|slot| &*slot.value) {
            Some(Value::Sorted(sorted)) => sorted.members(),
            _ => &[],
        }
    }

    /// Returns a member's score.
    pub fn score(&self, key: &(impl AsRef<[u8]> + ?Sized), member: &str) -> Option<f64> {
        match &*self.slot(key)?.value {
            Value::Sorted(sorted) => sorted.score(member.as_bytes()),
            _ => None,
        }
    }

    /// Returns all expiries, for the explorer's clock.
    pub fn expiries(&self) -> impl Iterator<Item = i64> {
        self.keys.values().filter_map(|slot| slot.expires)
    }

    /// Sets a key's content and expiry.
    pub(crate) fn put(&mut self, key: &Bytes, value: Value, expires: Option<i64>) {
        if expires.is_some_and(|at| at < self.now()) {
            self.remove(key);
            return;
        }
        self.put_slot(key, Slot { value: Rc::new(value), expires, used: self.now(), frequency: 5 });
    }

    pub(crate) fn put_slot(&mut self, key: &Bytes, slot: Slot) {
        let expires = slot.expires;
        let before = self.keys.insert(key.clone(), slot);
        if let Some(live) = &mut self.live {
            match &before {
                None => live.places.extend([(place(key), key.clone())]),
                Some(slot) if matches!(*slot.value, Value::Stream(_)) => live.changed.push(key.clone()),
                Some(_) => {}
            }
        }
        self.index(key, before.and_then(|slot| slot.expires), expires);
    }

    fn index(&mut self, key: &Bytes, before: Option<i64>, after: Option<i64>) {
        if let Some(live) = &mut self.live
            && before != after
        {
            if let Some(at) = before {
                live.expiries.remove(&(at, key.clone()));
            }
            if let Some(at) = after {
                live.expiries.insert((at, key.clone()));
            }
        }
    }

    /// Returns a key's content to change it; made by `new` where there is no key. Call [`Self::settle`] afterwards.
    pub(crate) fn edit(&mut self, key: &Bytes, new: impl FnOnce() -> Value) -> &mut Value {
        if self.slot(key).is_none() {
            self.put(key, new(), None);
        }
        self.change(key).expect("a key that was just put")
    }

    /// Removes a key that has no members left.
    pub(crate) fn settle(&mut self, key: &[u8]) {
        if self.keys.get(key).is_some_and(|slot| slot.value.is_empty()) {
            self.remove(key);
        }
    }

    /// Removes a key and returns it.
    pub(crate) fn take(&mut self, key: &[u8]) -> Option<Slot> {
        let is_there = self.slot(key).is_some();
        let (key, slot) = self.keys.remove_entry(key)?;
        self.index(&key, slot.expires, None);
        if let Some(live) = &mut self.live {
            live.forget(&key);
            live.changed.push(key);
        }
        is_there.then_some(slot)
    }

    /// Removes a key; returns false where there is none.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        self.take(key).is_some()
    }

    /// Puts what was taken under another name.
    pub(crate) fn put_back(&mut self, key: &Bytes, slot: Slot) {
        self.take(key);
        self.put_slot(key, slot);
        if let Some(live) = &mut self.live {
            live.changed.push(key.clone());
        }
    }

    /// Sets when a key expires; it is gone at once if that is past.
    pub(crate) fn expire(&mut self, key: &Bytes, at: Option<i64>) {
        if at.is_some_and(|at| at <= self.now()) {
            self.remove(key);
        } else if let Some(slot) = self.keys.get_mut(key) {
            let before = std::mem::replace(&mut slot.expires, at);
            self.index(key, before, at);
        }
    }

    /// Removes all keys.
    pub(crate) fn clear(&mut self) {
        let gone = std::mem::take(&mut self.keys);
        if let Some(live) = &mut self.live {
            live.expiries.clear();
            live.places.clear();
            live.changed.extend(gone.into_keys());
        }
    }
}

impl fmt::Display for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, slot) in &self.keys {
            write!(f, "        {key} = ")?;
            match &*slot.value {
                Value::Text(text) => write!(f, "{text:?}")?,
                Value::List(items) => write!(f, "{items:?}")?,
                Value::Set(members) => write!(f, "{members:?}")?,
                Value::Hash(fields) => write!(f, "{fields:?}")?,
                Value::Sorted(sorted) => {
                    for (score, member) in sorted.members() {
                        write!(f, "{member:?} {}  ", score.0)?;
                    }
                }
                Value::Stream(stream) => write!(f, "{stream:?}")?,
            }
            match slot.expires {
                Some(at) => writeln!(f, "  (until {at})")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
