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
    /// The masters that serve no slot yet.
    slotless: BTreeSet<Address>,
    /// The masters that receive slots, also their first ones.
    importing: BTreeSet<Address>,
    ids: BTreeMap<Address, String>,
}

impl Topology {
    /// Reads the reply of `CLUSTER SLOTS`. A server that does not know its own address has that of `asked`.
    ///
    /// # Errors
    /// It is no such reply.
    pub(super) fn read(reply: Value, asked: &Address) -> RedisResult<Self> {
        let mut ids = BTreeMap::new();
        let mut server = |server: Value| {
            let mut parts = redis::from_redis_value::<Vec<Value>>(server)?.into_iter();
            let host = parts.next().map(redis::from_redis_value::<Option<String>>).transpose()?.flatten();
            let port = parts.next().map(redis::from_redis_value::<u16>).transpose()?.unwrap_or_default();
            // `?` stands for a host that the server does not know.
            let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.host.clone());
            let address = Address { host, port };
            if let Some(id) = parts.next().map(redis::from_redis_value::<Option<String>>).transpose()?.flatten() {
                ids.insert(address.clone(), id);
            }
            RedisResult::Ok(address)
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
        topology.ids = ids;
        Ok(topology)
    }

    /// Takes from the reply of `CLUSTER NODES`, of the server at `asked`, the masters that serve no slot yet. Returns
    /// those that receive slots, as far as that server knows: it is one of them, or gives slots to them.
    pub(super) fn read_nodes(&mut self, reply: &str, asked: &Address) -> BTreeSet<Address> {
        let nodes: Vec<Node<'_>> = reply.lines().filter_map(|line| Node::read(line, asked)).collect();
        // Names, if the servers tell each other's.
        let known = |id: &str| self.ids.iter().find(|(_, known)| *known == id).map(|(address, _)| address.clone());
        let has_names = nodes.iter().any(|node| node.name.is_some() && node.name == known(node.id));
        let address_of = |node: &Node<'_>| {
            known(node.id).or_else(|| node.name.clone().filter(|_| has_names)).unwrap_or_else(|| node.address.clone())
        };
        let masters: BTreeMap<&str, Address> =
            nodes.iter().filter(|node| node.is_master).map(|node| (node.id, address_of(node))).collect();
        let mut importing = BTreeSet::new();
        // A server tells of its own slots only that they are open: `[93-<-id]` of one that it receives, `[93->-id]` of
        // one that it gives away.
        for myself in nodes.iter().filter(|node| node.is_myself) {
            let receivers = myself.open.iter().filter_map(|open| {
                let to = open.trim_end_matches(']').split_once("->-").map(|(_, to)| to);
                to.or_else(|| open.contains("-<-").then_some(myself.id))
            });
            importing.extend(receivers.filter_map(|id| masters.get(id).cloned()));
        }
        let slotless = masters.into_values().filter(|address| !self.masters.contains(address));
        self.slotless = slotless.collect();
        importing
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

    /// Returns all servers: masters, also those without slots, and replicas.
    pub(super) fn servers(&self) -> BTreeSet<&Address> {
        self.masters.iter().chain(&self.slotless).chain(&self.importing).chain(&self.replicas).collect()
    }

    /// Returns `true` for a master, also one without slots.
    pub(in crate::redis) fn has_master(&self, address: &Address) -> bool {
        [&self.masters, &self.slotless, &self.importing].iter().any(|masters| masters.contains(address))
    }

    /// Returns the id of a server.
    #[cfg(feature = "worker")]
    pub(in crate::redis) fn id_of(&self, server: &Address) -> Option<&str> {
        self.ids.get(server).map(String::as_str)
    }

    /// Returns the ids of the masters that serve slots.
    #[cfg(feature = "worker")]
    pub(in crate::redis) fn master_ids(&self) -> BTreeSet<&str> {
        self.masters.iter().filter_map(|master| self.id_of(master)).collect()
    }

    /// Returns the ids of the replicas.
    #[cfg(feature = "worker")]
    pub(in crate::redis) fn replica_ids(&self) -> BTreeSet<String> {
        self.replicas.iter().filter_map(|replica| self.ids.get(replica).cloned()).collect()
    }

    /// Returns the last slot that a master serves. Slots are usually moved from the first one on.
    #[cfg(feature = "worker")]
    pub(in crate::redis) fn last_of(&self, master: &Address) -> Option<u16> {
        self.ranges.iter().rfind(|(_, (_, owner))| owner == master).map(|(last, _)| *last)
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
    pub(in crate::redis) fn gained<'a>(&'a self, before: &'a Self) -> BTreeSet<&'a Address> {
        let moved = (0..SLOTS).filter(|slot| self.owner(*slot) != before.owner(*slot));
        let moved = moved.filter_map(|slot| self.owner(slot));
        let received = before.importing.iter().filter(|to| self.has_master(to));
        moved.chain(&self.importing).chain(received).collect()
    }
}

/// A line of `CLUSTER NODES`.
struct Node<'a> {
    id: &'a str,
    address: Address,
    /// The address with the server's name instead of its number.
    name: Option<Address>,
    /// It is a master, and not taken for dead.
    is_master: bool,
    is_myself: bool,
    /// The slots that it receives or gives away.
    open: Vec<&'a str>,
}

impl<'a> Node<'a> {
    /// Reads a line, of the server at `asked`; `None` if it is none.
    fn read(line: &'a str, asked: &Address) -> Option<Self> {
        let mut fields = line.split(' ');
        let (id, address, flags) = (fields.next()?, fields.next()?, fields.next()?);
        let mut parts = address.split(',');
        // `host:port@bus`, then the name, then `field=value`.
        let (host, port) = parts.next()?.split('@').next()?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let name = parts.next().filter(|name| !name.is_empty() && !name.contains('='));
        let has = |flag: &str| flags.split(',').any(|own| own == flag);
        let host = if host.is_empty() { asked.host.as_str() } else { host };
        Some(Self {
            id,
            address: Address { host: host.to_owned(), port },
            name: name.map(|name| Address { host: name.to_owned(), port }),
            is_master: has("master") && !["fail", "handshake", "noaddr"].into_iter().any(has),
            is_myself: has("myself"),
            open: fields.filter(|slots| slots.starts_with('[')).collect(),
        })
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
    fn a_master_without_slots_is_known_and_may_gain_keys() {
        let mut two = two();
        two.ids = BTreeMap::from([(at(1), "a".to_owned()), (at(2), "b".to_owned())]);
        let nodes = "a :1@11 myself,master - 0 0 1 connected 0-8191 [93->-c]\n\
                     b 127.0.0.1:2@12,,shard-id=7 master - 0 0 2 connected 8192-16383\n\
                     c 127.0.0.1:3@13, master - 0 0 0 connected\n\
                     d 127.0.0.1:4@14 slave b 0 0 2 connected\n\
                     e 127.0.0.1:5@15 master,fail - 0 0 3 disconnected\n";
        let importing = two.read_nodes(nodes, &at(1));
        assert_eq!(importing, BTreeSet::from([at(3)]));
        assert_eq!(two.slotless, BTreeSet::from([at(3)]));
        let before = two.clone();
        two.import(importing);
        assert_eq!(two.gained(&before), BTreeSet::from([&at(3)]));
        let nodes =
            nodes.replace("myself,master", "master").replace("c 127.0.0.1:3@13, master", "c :3@13 myself,master");
        assert_eq!(two.read_nodes(&nodes.replace("0 connected\n", "0 connected [93-<-a]\n"), &at(3)), [at(3)].into());
    }

    #[test]
    fn a_master_without_slots_has_a_name_where_others_have() {
        let named = |port| Address { host: format!("node{port}"), port };
        let mut topology = Topology { ids: [(named(1), "a".to_owned())].into(), ..Topology::default() };
        topology.masters.insert(named(1));
        let nodes = "a 10.0.0.1:1@11,node1 myself,master - 0 0 1 connected 0-16383\n\
                     b 10.0.0.2:2@12,node2 master - 0 0 0 connected\n";
        topology.read_nodes(nodes, &named(1));
        assert_eq!(topology.slotless, BTreeSet::from([named(2)]));
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
