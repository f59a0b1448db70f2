//! The servers of a run, by topology, and what happens to them there.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use samovar::protocol::keys::slot;
use serde_json::Value;

use super::World;
use super::replication::Replication;
use crate::support::{Link, OffsetClock, TestCluster, TestRedis, TestSentinels, Topology, publish_safely};

/// The masters of a Cluster.
const MASTERS: usize = 3;
/// The clock of one of them is off by so much, ms.
const OFF: i64 = 3_000;
/// The silence after which a master counts as dead. A busy machine starves servers for a second or two.
const DEAD: Duration = Duration::from_secs(4);
/// The slots of entries that are moved at a time.
const MOVED: usize = 2;
/// Keys of Samovar's own, whose slots are moved, and whose masters die, as often as those of entries.
const OF_SAMOVAR: [&str; 6] = [
    "samovar:inbox",
    "{samovar:queue}:active",
    "samovar:agenda:{art}",
    "samovar:agenda:{brief}",
    "samovar:{schedules}",
    "samovar:tag:{art row 1}:art",
];

/// The servers.
pub(super) enum Servers {
    Lone(Box<TestRedis>),
    Sentinels {
        all: Box<TestSentinels>,
        /// The server that is the master.
        master: usize,
    },
    /// Three masters, one of which has a clock that is off, as its replica has.
    Cluster {
        all: TestCluster,
        _clock: OffsetClock,
    },
}

/// An event that a lone server does not have.
#[derive(Clone, Copy)]
pub(super) enum Event {
    /// A master is killed, and its replica takes its place; the dead one comes back empty, as a replica.
    Failover,
    /// Slots move to other masters, and back.
    Reshard,
}

impl Event {
    /// Returns the name under which the ledger counts it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Failover => "failovers",
            Self::Reshard => "reshards",
        }
    }
}

/// An outage of a master, from its death until its replica took its place.
#[derive(Debug)]
pub(super) struct Outage {
    slots: Vec<RangeInclusive<u16>>,
    from: Instant,
    until: Instant,
}

impl Servers {
    pub(super) async fn start(random: &mut StdRng) -> Self {
        match Topology::of_test() {
            Topology::Single => Self::Lone(Box::new(TestRedis::start().await)),
            Topology::Sentinel => {
                let all = Box::new(TestSentinels::start().await);
                all.down_after(DEAD).await;
                Self::Sentinels { all, master: 0 }
            }
            Topology::Cluster => {
                let (clock, off) = (OffsetClock::new(), random.random_range(0..MASTERS));
                let ms = if random.random_bool(0.5) { OFF } else { -OFF };
                eprintln!("the clock of master {off} is {ms} ms ahead");
                clock.set(ms);
                let options = (0..MASTERS).map(|nth| {
                    let dead = DEAD.as_millis().to_string();
                    let options = TestRedis::options().arg("--cluster-node-timeout", &dead);
                    if nth == off { options.clock(&clock) } else { options }
                });
                Self::Cluster { all: TestCluster::of(options.collect(), 1).await, _clock: clock }
            }
        }
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::Lone(redis) => redis.url(),
            Self::Sentinels { all, .. } => all.url(),
            Self::Cluster { all, .. } => all.url(),
        }
    }

    pub(super) fn events(&self) -> &'static [Event] {
        match self {
            Self::Lone(_) => &[],
            Self::Sentinels { .. } => &[Event::Failover],
            Self::Cluster { .. } => &[Event::Failover, Event::Reshard],
        }
    }

    pub(super) fn replication(&self) -> Replication {
        match self {
            Self::Lone(_) => Replication::of([], 0),
            Self::Sentinels { .. } => Replication::of(self.nodes(), 1),
            Self::Cluster { .. } => Replication::of(self.nodes(), MASTERS),
        }
    }

    fn nodes(&self) -> &[TestRedis] {
        match self {
            Self::Lone(redis) => std::slice::from_ref(&**redis),
            Self::Sentinels { all, .. } => &all.servers,
            Self::Cluster { all, .. } => &all.nodes,
        }
    }

    /// A connection to the master, or to all nodes of a Cluster as if they were one server.
    pub(super) async fn connection(&self) -> Link {
        match self {
            Self::Lone(redis) => redis.connection().await,
            Self::Sentinels { all, master } => all.servers[*master].connection().await,
            Self::Cluster { all, .. } => all.connection().await,
        }
    }

    /// Returns the runs of the masters.
    pub(super) async fn runs(&self) -> Vec<String> {
        let mut runs = Vec::new();
        for node in self.nodes() {
            let info: String = node.ask(&["INFO"]).await;
            let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
            runs.extend((field("role:") == "master").then(|| field("run_id:")));
        }
        runs
    }

    /// Kills the master of this key, some time after it has lost sight of its replica, and waits until that takes its
    /// place. Returns the dead one, and the slots that it served.
    async fn lose_master(&self, of: &str, unseen: Duration) -> (usize, Vec<RangeInclusive<u16>>) {
        match self {
            Self::Lone(_) => unreachable!("nothing takes the place of a lone server"),
            Self::Sentinels { all, master } => {
                let replica = &all.servers[1 - master];
                all.replicates(replica).await;
                die(&all.servers[*master], unseen).await;
                all.named(replica).await;
                (*master, vec![0..=u16::MAX])
            }
            Self::Cluster { all, .. } => {
                let owner = all.owner(of).await;
                all.replicates((owner + MASTERS) % (2 * MASTERS)).await;
                let slots = all.slots(owner).await;
                die(&all.nodes[owner], unseen).await;
                all.replaced(owner, slot(of)).await;
                all.settled().await;
                (owner, slots)
            }
        }
    }

    /// Starts a dead server again, without its data, and waits until it is a whole replica.
    async fn replace(&mut self, nth: usize) {
        match self {
            Self::Lone(_) => unreachable!("nothing takes the place of a lone server"),
            Self::Sentinels { all, master } => {
                *master = 1 - nth;
                let port = all.servers[*master].port().to_string();
                all.servers[nth].kill9();
                all.servers[nth].start_again().await;
                let () = all.servers[nth].ask(&["REPLICAOF", "127.0.0.1", &port]).await;
                all.replicates(&all.servers[nth]).await;
            }
            Self::Cluster { all, .. } => {
                all.nodes[nth].kill9();
                all.nodes[nth].start_again().await;
                all.replicates(nth).await;
                all.settled().await;
            }
        }
    }

    /// Moves the slots of these keys to other masters, and back.
    async fn move_slots(&self, keys: &[String]) {
        let Self::Cluster { all, .. } = self else { unreachable!("slots are a Cluster's") };
        for key in keys {
            let owner = all.owner(key).await;
            // The next master, or the replica that has taken its place.
            let next = (owner + 1) % MASTERS;
            let next = if all.slots(next).await.is_empty() { next + MASTERS } else { next };
            for to in [next, owner] {
                all.move_slots([slot(key)], to).await;
            }
        }
    }
}

/// Cuts a master off from its replica, and kills it after some time: what it acknowledges meanwhile is lost. A replica
/// comes back within a second.
async fn die(master: &TestRedis, unseen: Duration) {
    let _: u64 = master.ask(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    tokio::time::sleep(unseen).await;
    master.crash();
}

impl Outage {
    /// Returns `true` if `first` may have begun under a lease of the dead master, which nobody could extend, and `then`
    /// while it was dead or later.
    pub(super) fn excuses(&self, key: &str, first: Instant, then: Instant) -> bool {
        let is_its_own = self.slots.iter().any(|slots| slots.contains(&slot(key)));
        is_its_own && first <= self.until && then >= self.from
    }
}

impl World {
    /// Publishes to the inbox, and waits until the replica of its master has the message: no failover loses it.
    pub(super) async fn publish_safely(&self, message: &Value) -> String {
        let servers = self.servers.read().await;
        match &*servers {
            Servers::Lone(_) => self.publish_into_inbox(message).await,
            Servers::Sentinels { .. } => {
                // It waits for a replica, which may have to come back first.
                drop(servers);
                publish_safely(&mut self.parts.redis.clone(), message).await
            }
            Servers::Cluster { all, .. } => all.publish_safely(message).await,
        }
    }

    /// Lets an event come to pass.
    pub(super) async fn come_to_pass(&self, event: Event, random: &mut StdRng, keys: &[String]) {
        let of_samovar = OF_SAMOVAR.choose(random).unwrap().to_string();
        match event {
            Event::Failover => {
                let of = if random.random_bool(0.5) { of_samovar } else { keys.choose(random).unwrap().clone() };
                let unseen = Duration::from_millis(random.random_range(0..800));
                let _alone = self.air.write().await;
                self.tell(&format!("the master of {of} dies, {unseen:?} after it lost its replica"));
                self.is_masterless.set(true);
                let from = Instant::now();
                let (nth, slots) = self.servers.read().await.lose_master(&of, unseen).await;
                self.is_masterless.set(false);
                self.tell(&format!("the replica of server {nth} is the master"));
                self.note(|ledger| {
                    ledger.count(event.name());
                    ledger.outages.push(Outage { slots, from, until: Instant::now() });
                });
                self.servers.write().await.replace(nth).await;
                self.all_subscribed(&Default::default(), 0).await;
            }
            Event::Reshard => {
                let mut moved: Vec<String> = keys.sample(random, MOVED).cloned().collect();
                moved.push(of_samovar);
                self.tell(&format!("the slots of {moved:?} move there and back"));
                self.note(|ledger| ledger.count(event.name()));
                self.servers.read().await.move_slots(&moved).await;
                // What has moved is to be on the replicas before a master dies.
                self.replication.have(self.replication.era()).await;
            }
        }
    }
}
