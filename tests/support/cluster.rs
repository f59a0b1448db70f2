//! Redis Clusters of a test's own.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use redis::RedisResult;
use samovar::protocol::keys::slot;
use serde_json::Value;

use super::eventually::{DEADLINE, eventually, eventually_within};
use super::link::Link;
use super::redis::{RedisOptions, TestRedis};

/// The masters of a Cluster, unless a test wants more.
pub(super) const MASTERS: usize = 3;
/// The slots of a Cluster.
const SLOTS: usize = 16_384;
/// The settings of each node, for quick failovers and replicas that stay with their masters.
pub(super) const SETTINGS: [&str; 14] = [
    "--cluster-config-file",
    "nodes.conf",
    "--cluster-node-timeout",
    "2000",
    "--cluster-replica-validity-factor",
    "0",
    "--cluster-allow-replica-migration",
    "no",
    "--repl-diskless-sync",
    "yes",
    "--repl-diskless-sync-delay",
    "0",
    "--repl-ping-replica-period",
    "1",
];
/// The time after which a node is taken for dead where it has no replica that takes its place. A busy machine starves
/// nodes for seconds.
const NO_REPLICAS: &str = "15000";
/// The key of the inbox.
const INBOX: &str = "samovar:inbox";
/// The time that a failover may take on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
/// The time in which a node answers that is neither dead nor frozen.
const SOON: Duration = Duration::from_secs(2);

/// A Cluster of three masters, on free ports. It ends when this is dropped.
#[derive(Debug)]
pub struct TestCluster {
    /// The masters; then their replicas in the same order, if there are any; then those that were added.
    pub nodes: Vec<TestRedis>,
}

/// A node as a node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    port: u16,
    id: String,
    flags: Vec<String>,
    /// The id of the master of a replica.
    master: String,
    is_connected: bool,
    epoch: u64,
    slots: Vec<RangeInclusive<u16>>,
}

impl TestCluster {
    /// Starts three masters without replicas.
    pub async fn start() -> Self {
        Self::of(vec![TestRedis::options(); MASTERS], 0).await
    }

    /// Starts three masters with a replica each.
    pub async fn replicated() -> Self {
        Self::of(vec![TestRedis::options(); MASTERS], 1).await
    }

    /// Starts masters with these options, and so many replicas of each with its master's.
    pub async fn of(masters: Vec<RedisOptions>, replicas: usize) -> Self {
        Self { nodes: formed(masters, replicas).await }
    }

    /// The URL that names all nodes.
    pub fn url(&self) -> String {
        url("", &self.nodes)
    }

    /// A connection to all nodes that run.
    pub async fn connection(&self) -> Link {
        self.try_connection().await.expect("the test's Cluster answers")
    }

    async fn try_connection(&self) -> RedisResult<Link> {
        let ports: Vec<u16> = self.up().map(TestRedis::port).collect();
        Link::to(&ports, self.nodes[0].password()).await
    }

    /// Returns the master that owns this key, as it says itself. A frozen node says nothing.
    pub async fn owner(&self, key: &str) -> usize {
        self.owner_of_slot(slot(key)).await
    }

    /// Returns the master that owns this slot, as [`Self::owner`] does.
    pub async fn owner_of_slot(&self, slot: u16) -> usize {
        eventually_within(FAILOVER, &format!("a master says that it owns slot {slot}"), async || {
            let mut claims = Vec::new();
            for (nth, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_up()) {
                let known = tokio::time::timeout(SOON, known(node)).await.ok().and_then(Result::ok).unwrap_or_default();
                let own = known.into_iter().find(|node| node.has("myself"));
                claims.extend(own.filter(|own| own.has("master") && own.owns(slot)).map(|own| (own.epoch, nth)));
            }
            claims.into_iter().max().map(|(_, nth)| nth)
        })
        .await
    }

    /// Returns the first of these keys that this master owns.
    pub async fn key_on(&self, nth: usize, mut keys: impl Iterator<Item = String>) -> String {
        let slots = self.slots(nth).await;
        let is_there = |key: &String| slots.iter().any(|range| range.contains(&slot(key)));
        keys.find(is_there).expect("one of the keys is there")
    }

    /// Returns the slots of this master; none if it is a replica.
    pub async fn slots(&self, nth: usize) -> Vec<RangeInclusive<u16>> {
        let known = known(&self.nodes[nth]).await.unwrap();
        known.into_iter().find(|node| node.has("myself")).unwrap().slots
    }

    /// Returns the values of keys; `None` where a key is absent.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn values(&self, keys: &[String]) -> Result<Vec<Option<Value>>, String> {
        let asking = async {
            let mut link = self.try_connection().await?;
            redis::cmd("MGET").arg(keys).query_async::<Vec<Option<String>>>(&mut link).await
        };
        let texts = tokio::time::timeout(DEADLINE, asking).await.map_err(|e| e.to_string())?;
        let texts = texts.map_err(|e| e.to_string())?;
        Ok(texts.into_iter().map(|text| text.map(|text| serde_json::from_str(&text).unwrap())).collect())
    }

    /// Publishes to the inbox until a replica has the message, if there is one; returns its id.
    pub async fn publish_safely(&self, message: &Value) -> String {
        eventually_within(FAILOVER, "the replicas have the message", async || {
            let owner = self.owner(INBOX).await;
            // Replicas follow their masters in the same order.
            let is_peer = |nth: &usize| *nth != owner && nth % MASTERS == owner % MASTERS && self.nodes[*nth].is_up();
            let replicas = (0..self.nodes.len().min(2 * MASTERS)).filter(is_peer).count();
            let publishing = async {
                let mut connection = self.nodes[owner].try_connection().await?;
                let mut steps = redis::pipe();
                steps.cmd("XADD").arg(INBOX).arg("*").arg("message").arg(message.to_string());
                steps.cmd("WAIT").arg(replicas).arg(1_000);
                steps.query_async::<(String, usize)>(&mut connection).await
            };
            match tokio::time::timeout(2 * SOON, publishing).await {
                Ok(Ok((id, have))) if have >= replicas => Ok(id),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Waits until the nodes that run agree on who owns each slot, and serve requests.
    pub async fn settled(&self) {
        settled(&self.up().collect::<Vec<_>>()).await;
    }

    /// Waits until another node has taken the place of this master, and returns it.
    pub async fn replaced(&self, nth: usize, slot: u16) -> usize {
        eventually_within(FAILOVER, "a replica is the master", async || {
            let owner = self.owner_of_slot(slot).await;
            if owner == nth { Err(owner) } else { Ok(owner) }
        })
        .await
    }

    /// Makes a replica the master, by `CLUSTER FAILOVER`.
    pub async fn fail_over_to(&self, nth: usize) {
        eventually_within(FAILOVER, "the replica is the master", async || {
            let own = known(&self.nodes[nth]).await?.into_iter().find(|node| node.has("myself")).unwrap();
            if own.has("master") && !own.slots.is_empty() {
                return Ok(());
            }
            // Refused while another one is under way.
            let mut connection = self.nodes[nth].try_connection().await?;
            let _ = redis::cmd("CLUSTER").arg("FAILOVER").exec_async(&mut connection).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            not_yet("it is a replica".to_owned())
        })
        .await;
        self.settled().await;
    }

    /// Waits until this node is a replica that is up to date with its master.
    pub async fn replicates(&self, nth: usize) {
        eventually_within(FAILOVER, "the node is a replica", async || {
            let mut connection = self.nodes[nth].try_connection().await?;
            let replication: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
            let is_replica = replication.contains("role:slave") && replication.contains("master_link_status:up");
            if is_replica { Ok(()) } else { not_yet(replication) }
        })
        .await;
    }

    /// Opens a slot: its keys may be on both nodes from now on.
    pub async fn open_slot(&self, slot: u16, to: usize) {
        let from = self.owner_of_slot(slot).await;
        let (ids, slot) = ((id(&self.nodes[from]).await, id(&self.nodes[to]).await), slot.to_string());
        let () = self.nodes[to].ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids.0]).await;
        let () = self.nodes[from].ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids.1]).await;
    }

    /// Moves the keys of an open slot, which stays open.
    pub async fn move_keys(&self, slot: u16, to: usize) {
        let from = self.owner_of_slot(slot).await;
        let mut source = self.nodes[from].connection().await;
        let port = self.nodes[to].port();
        loop {
            let keys: Vec<String> =
                redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(50).query_async(&mut source).await.unwrap();
            if keys.is_empty() {
                break;
            }
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(port).arg("").arg(0).arg(5_000).arg("KEYS").arg(&keys);
            migrate.exec_async(&mut source).await.unwrap();
        }
    }

    /// Moves the keys of an open slot, and closes it.
    pub async fn close_slot(&self, slot: u16, to: usize) {
        self.move_keys(slot, to).await;
        let from = self.owner_of_slot(slot).await;
        let (id, slot) = (id(&self.nodes[to]).await, slot.to_string());
        // The new owner first: no node sends clients to one that does not know of its slot.
        let masters = [&self.nodes[to], &self.nodes[from]].into_iter();
        for node in masters.chain(self.up()) {
            let mut connection = node.connection().await;
            let told = redis::cmd("CLUSTER").arg("SETSLOT").arg(&slot).arg("NODE").arg(&id).to_owned();
            match told.exec_async(&mut connection).await {
                Err(e) if e.to_string().contains("only with masters") => {}
                told => told.unwrap(),
            }
        }
        // A node that takes the slot back before it has heard of the new epoch would claim it with an older one.
        self.settled().await;
    }

    /// Moves slots with their keys to another master, one after the other.
    pub async fn move_slots(&self, slots: impl IntoIterator<Item = u16>, to: usize) {
        for slot in slots {
            if self.owner_of_slot(slot).await != to {
                self.open_slot(slot, to).await;
                self.close_slot(slot, to).await;
            }
        }
    }

    /// Gives all slots of a master that has ended to another one, without their keys.
    pub async fn seize(&self, from: usize, to: usize) {
        let (port, nodes) = (self.nodes[from].port(), known(&self.nodes[to]).await.unwrap());
        let ranges = nodes.into_iter().find(|node| node.port == port).unwrap().slots;
        for range in ranges {
            let (first, last) = range.into_inner();
            for verb in ["DELSLOTSRANGE", "ADDSLOTSRANGE"] {
                let () = self.nodes[to].ask(&["CLUSTER", verb, &first.to_string(), &last.to_string()]).await;
            }
        }
        let _: String = self.nodes[to].ask(&["CLUSTER", "BUMPEPOCH"]).await;
        self.settled().await;
    }

    /// Adds a master without slots; returns its place.
    pub async fn add_master(&mut self) -> usize {
        let node = TestRedis::options().node().launched().await;
        meet(&node, &self.nodes[0]).await;
        self.nodes.push(node);
        self.settled().await;
        self.nodes.len() - 1
    }

    fn up(&self) -> impl Iterator<Item = &TestRedis> {
        self.nodes.iter().filter(|node| node.is_up())
    }
}

impl Known {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }

    fn owns(&self, slot: u16) -> bool {
        self.slots.iter().any(|range| range.contains(&slot))
    }

    /// Reads a line of `CLUSTER NODES`.
    fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split(' ').collect();
        let [id, address, flags, master, _, _, epoch, link, slots @ ..] = &fields[..] else { panic!("{line}") };
        let port = address.split('@').next().unwrap().rsplit(':').next().unwrap();
        let range = |text: &&&str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            first.parse().unwrap()..=last.parse().unwrap()
        };
        Self {
            port: port.parse().unwrap(),
            id: (*id).to_owned(),
            flags: flags.split(',').map(str::to_owned).collect(),
            master: (*master).to_owned(),
            is_connected: *link == "connected",
            epoch: epoch.parse().unwrap(),
            // An open slot is in brackets.
            slots: slots.iter().filter(|slots| !slots.starts_with('[')).map(|text| range(&text)).collect(),
        }
    }
}

/// Returns the URL of a Cluster.
pub(super) fn url<'a>(login: &str, nodes: impl IntoIterator<Item = &'a TestRedis>) -> String {
    let hosts: Vec<String> = nodes.into_iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    format!("redis+cluster://{login}{}", hosts.join(","))
}

/// Starts nodes and forms a Cluster of them: the masters first, then their replicas in the same order.
pub(super) async fn formed(masters: Vec<RedisOptions>, replicas: usize) -> Vec<TestRedis> {
    let count = masters.len();
    let options = masters.iter().cycle().take(count * (1 + replicas)).map(|options| {
        let options = options.clone().node();
        match options.password.clone() {
            Some(password) => options.arg("--masterauth", &password),
            None => options,
        }
    });
    let nodes = futures_util::future::join_all(options.map(RedisOptions::launched)).await;
    for (nth, node) in nodes.iter().enumerate() {
        let () = node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(nth + 1).to_string()]).await;
        if nth < count {
            let [first, last] = [nth * SLOTS / count, (nth + 1) * SLOTS / count - 1].map(|slot| slot.to_string());
            let () = node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await;
        }
    }
    for (nth, node) in nodes.iter().enumerate() {
        for other in &nodes[nth + 1..] {
            meet(node, other).await;
        }
    }
    for (nth, node) in nodes.iter().enumerate().skip(count) {
        let master = id(&nodes[nth % count]).await;
        eventually("the node replicates its master", async || {
            let mut connection = node.try_connection().await?;
            redis::cmd("CLUSTER").arg("REPLICATE").arg(&master).exec_async(&mut connection).await
        })
        .await;
    }
    settled(&nodes.iter().collect::<Vec<_>>()).await;
    if replicas == 0 {
        for node in &nodes {
            let () = node.ask(&["CONFIG", "SET", "cluster-node-timeout", NO_REPLICAS]).await;
        }
    }
    nodes
}

/// Waits until these nodes agree on who owns each slot, and serve requests.
pub(super) async fn settled(nodes: &[&TestRedis]) {
    eventually_within(FAILOVER, "the nodes of the Cluster agree", async || {
        let mut views = Vec::new();
        for node in nodes {
            views.push(view(node, nodes).await.map_err(|e| e.to_string())?);
        }
        if views.windows(2).all(|pair| pair[0] == pair[1]) { Ok(()) } else { Err(format!("{views:?}")) }
    })
    .await;
}

fn not_yet<T>(what: String) -> RedisResult<T> {
    Err(std::io::Error::other(what).into())
}

/// The slots of a node, its master's id, and the epoch of its claims.
type Claims = (Vec<RangeInclusive<u16>>, String, u64);

/// Returns what each of `nodes` claims, by this one.
async fn view(node: &TestRedis, nodes: &[&TestRedis]) -> RedisResult<BTreeMap<u16, Claims>> {
    let mut connection = node.try_connection().await?;
    let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await?;
    if !info.contains("cluster_state:ok") {
        return not_yet(info);
    }
    let known = known(node).await?;
    let alive: Vec<&Known> = known.iter().filter(|known| nodes.iter().any(|node| node.port() == known.port)).collect();
    let is_well = |known: &&Known| known.is_connected && !["fail", "fail?", "handshake"].iter().any(|f| known.has(f));
    if alive.len() != nodes.len() || !alive.iter().all(is_well) {
        return not_yet(format!("{known:?}"));
    }
    if alive.iter().any(|known| known.has("myself") && known.has("slave")) {
        let replication: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
        if !replication.contains("master_link_status:up") {
            return not_yet(replication);
        }
    }
    Ok(alive.into_iter().map(|known| (known.port, (known.slots.clone(), known.master.clone(), known.epoch))).collect())
}

/// Returns the nodes that this one knows.
async fn known(node: &TestRedis) -> RedisResult<Vec<Known>> {
    let mut connection = node.try_connection().await?;
    let nodes: String = redis::cmd("CLUSTER").arg("NODES").query_async(&mut connection).await?;
    Ok(nodes.lines().map(Known::parse).collect())
}

async fn id(node: &TestRedis) -> String {
    node.ask(&["CLUSTER", "MYID"]).await
}

async fn meet(node: &TestRedis, other: &TestRedis) {
    let [port, bus] = [other.port(), other.bus].map(|port| port.to_string());
    let () = node.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
}
