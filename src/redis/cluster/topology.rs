//! Which master serves which slot.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use redis::{RedisResult, Value};

use crate::protocol::SLOTS;
use crate::redis::endpoint::Address;

/// The masters of a Cluster, and the slots that each serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::redis) struct Topology {
    /// Ranges of slots by their last one. A slot that no master serves is in none.
    ranges: BTreeMap<u16, (u16, Address)>,
    masters: BTreeSet<Address>,
    replicas: BTreeSet<Address>,
    /// The masters that receive slots.
    importing: BTreeSet<Address>,
}

impl Topology {
    /// Reads the reply of `CLUSTER SLOTS`. A server that does not know its own address has that of `asked`.
    ///
    /// # Errors
    /// It is no such reply.
    pub(super) fn read(reply: Value, asked: &Address) -> RedisResult<Self> {
        let server = |server: Value| {
            let mut parts = redis::from_redis_value::<Vec<Value>>(server)?.into_iter();
            let host = parts.next().map(redis::from_redis_value::<Option<String>>).transpose()?.flatten();
            let port = parts.next().map(redis::from_redis_value::<u16>).transpose()?.unwrap_or_default();
            // `?` stands for a host that the server does not know.
            let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.host.clone());
            RedisResult::Ok(Address { host, port })
        };
        let mut topology = Self::default();
        for row in redis::from_redis_value::<Vec<Vec<Value>>>(reply)? {
            let mut row = row.into_iter();
            let (Some(first), Some(last), Some(master)) = (row.next(), row.next(), row.next()) else { continue };
            let (first, last): (u16, u16) = (redis::from_redis_value(first)?, redis::from_redis_value(last)?);
            let master = server(master)?;
            topology.masters.insert(master.clone());
            topology.ranges.insert(last, (first, master));
            for replica in row {
                topology.replicas.insert(server(replica)?);
            }
        }
        Ok(topology)
    }

    /// Takes the masters that receive slots.
    pub(super) fn import(&mut self, importing: BTreeSet<Address>) {
        self.importing = importing;
    }

    /// Returns the master that serves a slot.
    pub(in crate::redis) fn owner(&self, slot: u16) -> Option<&Address> {
        let (_, (first, owner)) = self.ranges.range(slot..).next()?;
        (*first <= slot).then_some(owner)
    }

    /// Returns all masters that serve slots.
    pub(in crate::redis) fn masters(&self) -> &BTreeSet<Address> {
        &self.masters
    }

    /// Returns all replicas.
    #[cfg(feature = "worker")]
    pub(in crate::redis) fn replicas(&self) -> &BTreeSet<Address> {
        &self.replicas
    }

    /// Returns all masters, those that receive their first slot, and replicas.
    pub(super) fn servers(&self) -> BTreeSet<&Address> {
        self.masters.iter().chain(&self.replicas).chain(&self.importing).collect()
    }

    /// Returns the first slot that a master serves.
    #[cfg(feature = "worker")]
    pub(in crate::redis) fn first_of(&self, master: &Address) -> Option<u16> {
        self.ranges.values().find(|(_, owner)| owner == master).map(|(first, _)| *first)
    }

    /// Returns `true` if each slot is served.
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        (0..SLOTS).all(|slot| self.owner(slot).is_some())
    }

    /// Gives a slot to another master, as a redirection names it.
    pub(super) fn give(&mut self, slot: u16, to: Address) {
        let ranges: Vec<(RangeInclusive<u16>, Address)> =
            self.ranges.iter().map(|(last, (first, owner))| (*first..=*last, owner.clone())).collect();
        self.ranges.clear();
        for (range, owner) in ranges {
            let (first, last) = range.into_inner();
            if slot < first || slot > last {
                self.ranges.insert(last, (first, owner));
                continue;
            }
            if slot > first {
                self.ranges.insert(slot - 1, (first, owner.clone()));
            }
            if slot < last {
                self.ranges.insert(last, (slot + 1, owner));
            }
        }
        self.ranges.insert(slot, (slot, to));
        self.masters = self.ranges.values().map(|(_, owner)| owner.clone()).collect();
    }

    /// Returns the masters that may have received keys since `before`: they serve a slot that another one served, or
    /// received slots then or now.
    pub(in crate::redis) fn gained(&self, before: &Self) -> BTreeSet<&Address> {
        let moved = (0..SLOTS).filter(|slot| self.owner(*slot) != before.owner(*slot));
        let moved = moved.filter_map(|slot| self.owner(slot));
        let received = self.masters.iter().filter(|to| self.importing.contains(*to) || before.importing.contains(*to));
        moved.chain(received).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Address {
        Address { host: "127.0.0.1".into(), port }
    }

    fn row(first: i64, last: i64, host: Value, port: i64) -> Value {
        Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(vec![host, Value::Int(port), Value::Nil])])
    }

    fn two() -> Topology {
        let host = Value::BulkString(b"127.0.0.1".to_vec());
        let reply = Value::Array(vec![row(0, 8_191, host, 1), row(8_192, 16_383, Value::Nil, 2)]);
        Topology::read(reply, &at(9)).unwrap()
    }

    #[test]
    fn a_reply_says_who_serves_a_slot() {
        let two = two();
        assert_eq!([0, 8_191, 8_192, 16_383].map(|slot| two.owner(slot).unwrap().port), [1, 1, 2, 2]);
        assert!(two.is_whole());
        assert_eq!(Topology::default().owner(0), None);
    }

    #[test]
    fn a_master_that_receives_slots_may_gain_keys() {
        let (mut before, after) = (two(), two());
        assert_eq!(after.gained(&before), BTreeSet::new());
        before.import(BTreeSet::from([at(2)]));
        assert_eq!(after.gained(&before), BTreeSet::from([&at(2)]));
        assert_eq!(before.gained(&after), BTreeSet::from([&at(2)]));
    }

    #[test]
    fn a_slot_that_moves_takes_no_other_with_it() {
        for slot in [0, 1, 8_191, 8_192, 16_383] {
            let (before, mut after) = (two(), two());
            after.give(slot, at(3));
            assert_eq!(after.owner(slot), Some(&at(3)));
            assert!((0..SLOTS).filter(|other| *other != slot).all(|other| after.owner(other) == before.owner(other)));
            assert_eq!(after.gained(&before), BTreeSet::from([&at(3)]));
        }
    }
}
