//! The state of a server besides its keys: counters, the index of expiries, subscriptions.

use std::collections::{BTreeMap, BTreeSet};

use crate::commands::Reply;
use crate::db::Bytes;

/// A connection.
pub type ClientId = u64;

/// The state of a server besides its keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    /// Each expiry, and its key.
    pub(crate) expiries: BTreeSet<(i64, Bytes)>,
    /// Each key at its place in scans.
    pub(crate) places: BTreeSet<(u64, Bytes)>,
    /// Reads that found a key, and that found none.
    pub(crate) reads: [u64; 2],
    /// Keys that expired.
    pub(crate) expired: u64,
    /// Keys that were evicted.
    pub(crate) evicted: u64,
    /// The calls of each command.
    pub(crate) calls: BTreeMap<&'static str, u64>,
    /// Keys that are gone, or streams that have news, since blocked readers were last looked at.
    pub(crate) changed: Vec<Bytes>,
    /// The memory is used up.
    pub(crate) is_full: bool,
    /// Keys have frequencies instead of idle times.
    pub(crate) is_lfu: bool,
    /// `notify-keyspace-events`.
    pub(crate) events: String,
    /// The subscriptions.
    pub(crate) channels: Channels,
    /// The seed of the next random number.
    pub(crate) seed: u64,
}

/// Returns where scans find a name: from 1 to 2^48.
pub(crate) fn place(name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 16) + 1
}

impl Live {
    /// Notes that a key is gone from scans.
    pub(crate) fn forget(&mut self, key: &Bytes) {
        self.places.remove(&(place(key), key.clone()));
    }

    /// Returns a random number below `end`.
    pub(crate) fn random(&mut self, end: usize) -> usize {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) >> 1).unwrap_or(0) % end.max(1)
    }

    /// Returns the frequency of a key that is used once more: it grows with the logarithm.
    pub(crate) fn used_again(&mut self, frequency: u8) -> u8 {
        let odds = usize::from(frequency.saturating_sub(5)) * 10 + 1;
        if self.is_lfu && self.random(odds) == 0 { frequency.saturating_add(1) } else { frequency }
    }

    /// Counts a read, and tells of a miss who wants to hear of it.
    pub(crate) fn note_read(&mut self, key: &[u8], found: bool) {
        self.reads[usize::from(!found)] += 1;
        if !found && self.events.contains('m') {
            self.tell("keymiss", key);
        }
    }

    fn tell(&mut self, event: &str, key: &[u8]) {
        if self.events.contains('K') {
            let channel = [b"__keyspace@0__:", key].concat();
            self.channels.publish(&channel, &event.into());
        }
        if self.events.contains('E') {
            self.channels.publish(format!("__keyevent@0__:{event}").as_bytes(), &key.into());
        }
    }
}

/// Who is subscribed to what, and what they have not fetched yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Channels {
    exact: BTreeMap<Bytes, Vec<ClientId>>,
    globs: BTreeMap<Bytes, Vec<ClientId>>,
    pushes: BTreeMap<ClientId, Vec<Reply>>,
}

impl Channels {
    fn of(&mut self, is_glob: bool) -> &mut BTreeMap<Bytes, Vec<ClientId>> {
        if is_glob { &mut self.globs } else { &mut self.exact }
    }

    /// Subscribes a client.
    pub(crate) fn subscribe(&mut self, client: ClientId, name: &Bytes, is_glob: bool) {
        let clients = self.of(is_glob).entry(name.clone()).or_default();
        if !clients.contains(&client) {
            clients.push(client);
        }
    }

    /// Ends a client's subscription.
    pub(crate) fn unsubscribe(&mut self, client: ClientId, name: &Bytes, is_glob: bool) {
        let all = self.of(is_glob);
        if let Some(clients) = all.get_mut(name) {
            clients.retain(|of| *of != client);
            if clients.is_empty() {
                all.remove(name);
            }
        }
    }

    /// Returns a client's channels, or patterns.
    pub(crate) fn names(&self, client: ClientId, is_glob: bool) -> Vec<Bytes> {
        let all = if is_glob { &self.globs } else { &self.exact };
        all.iter().filter(|(_, clients)| clients.contains(&client)).map(|(name, _)| name.clone()).collect()
    }

    /// Returns the number of a client's subscriptions.
    pub(crate) fn count(&self, client: ClientId) -> usize {
        let clients = self.exact.values().chain(self.globs.values());
        clients.filter(|clients| clients.contains(&client)).count()
    }

    /// Returns the channels that somebody is subscribed to by name, and by how many.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Bytes, usize)> {
        self.exact.iter().map(|(name, clients)| (name, clients.len()))
    }

    /// Returns the number of subscribers by name to a channel.
    pub(crate) fn subscribers(&self, name: &[u8]) -> usize {
        self.exact.get(name).map_or(0, Vec::len)
    }

    /// Returns the number of patterns.
    pub(crate) fn patterns(&self) -> usize {
        self.globs.len()
    }

    /// Adds what a client is sent.
    pub(crate) fn push(&mut self, client: ClientId, push: Reply) {
        self.pushes.entry(client).or_default().push(push);
    }

    /// Delivers a message; returns the number of deliveries.
    pub(crate) fn publish(&mut self, channel: &[u8], message: &Bytes) -> usize {
        let mut count = 0;
        for client in self.exact.get(channel).into_iter().flatten() {
            let push = [Bytes::from("message"), channel.into(), message.clone()].map(Reply::Bulk);
            self.pushes.entry(*client).or_default().push(Reply::Array(push.into()));
            count += 1;
        }
        for (glob, clients) in &self.globs {
            if !crate::commands::glob::matches(glob, channel) {
                continue;
            }
            for client in clients {
                let push = [Bytes::from("pmessage"), glob.clone(), channel.into(), message.clone()].map(Reply::Bulk);
                self.pushes.entry(*client).or_default().push(Reply::Array(push.into()));
                count += 1;
            }
        }
        count
    }

    /// Returns what a client was sent since it last asked.
    pub(crate) fn take(&mut self, client: ClientId) -> Vec<Reply> {
        self.pushes.remove(&client).unwrap_or_default()
    }

    /// Returns the clients that were sent something.
    pub(crate) fn waiting(&self) -> Vec<ClientId> {
        self.pushes.keys().copied().collect()
    }

    /// Forgets a client.
    pub(crate) fn forget(&mut self, client: ClientId) {
        for all in [&mut self.exact, &mut self.globs] {
            all.retain(|_, clients| {
                clients.retain(|of| *of != client);
                !clients.is_empty()
            });
        }
        self.pushes.remove(&client);
    }
}
