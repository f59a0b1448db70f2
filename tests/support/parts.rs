//! Samovar's parts over a test's Redis, for what must be forced step by step.

use std::sync::Arc;
use std::time::Duration;

use samovar::agenda::Agenda;
use samovar::entry::{EntryKey, JobName};
use samovar::job::Jobs;
use samovar::popularity::Popularity;
use samovar::protocol::{Keys, Message};
use samovar::redis::{Connection, RedisTime, RedisUrl, Troubles};
use samovar::store::{Fresh, Lease, Leased, Meta, Store};
use samovar::trigger::Invalidator;
use samovar::trigger::invalidation::inbox;
use samovar::worker::maintenance::Revalidator;

use super::{JobsFolder, TestRedis, eventually, eventually_within};

/// The parts.
#[derive(Debug)]
pub struct Parts {
    pub redis: Connection,
    pub keys: Keys,
    pub store: Store,
    pub agenda: Agenda,
    /// Leads to each node, if they are over a test's Cluster.
    nodes: Vec<redis::Client>,
}

impl Parts {
    pub async fn of(redis: &TestRedis) -> Self {
        let nodes = if redis.is_cluster() { redis.nodes().map(TestRedis::client).collect() } else { Vec::new() };
        Self { nodes, ..Self::at(&redis.redis_url()).await }
    }

    /// Over the Redis at this URL, as the user that it names.
    pub async fn at(url: &RedisUrl) -> Self {
        let redis = url.manager(Duration::from_secs(5)).await.unwrap();
        let keys = Keys::new("samovar", "samovar:invalidate");
        let store = Store::new(redis.clone(), keys.clone());
        let agenda = Agenda::new(redis.clone(), keys.clone());
        Self { redis, keys, store, agenda, nodes: Vec::new() }
    }

    /// Returns the invalidator of these jobs.
    pub fn invalidator(&self, jobs: &JobsFolder) -> Invalidator {
        let jobs = Jobs::load(jobs.path(), Duration::from_secs(3_600), &|_| None).unwrap();
        Invalidator::new(self.redis.clone(), self.keys.clone(), Arc::new(jobs), self.store.clone(), self.agenda.clone())
    }

    /// Returns the revalidator of these jobs.
    pub fn revalidator(&self, jobs: &JobsFolder) -> Revalidator {
        Revalidator {
            redis: self.redis.clone(),
            keys: self.keys.clone(),
            jobs: Arc::new(Jobs::load(jobs.path(), Duration::from_secs(3_600), &|_| None).unwrap()),
            agenda: self.agenda.clone(),
            store: self.store.clone(),
            invalidator: self.invalidator(jobs),
            popularity: Popularity::new(self.redis.clone(), self.keys.clone()),
            worker: Arc::from("a test"),
            claim: Duration::from_secs(60),
            wakeup: Arc::default(),
            troubles: Troubles::default(),
        }
    }

    /// Leaves the marks of a fleet that has worked here before, so that a worker trusts what it finds: the server's
    /// run id, or those of a Cluster's masters, and the inbox with its readers.
    pub async fn mark(&self) {
        let mut redis = self.redis.clone();
        let mut marks = redis::pipe();
        marks.cmd("XGROUP").arg("CREATE").arg(self.keys.inbox()).arg("samovar").arg("0").arg("MKSTREAM").ignore();
        if self.nodes.is_empty() {
            marks.set(self.keys.marker(), run_of(&mut redis).await).ignore();
        } else {
            let mut masters = Vec::new();
            for node in &self.nodes {
                let mut node = node.get_multiplexed_async_connection().await.unwrap();
                let nodes: String = redis::cmd("CLUSTER").arg("NODES").query_async(&mut node).await.unwrap();
                let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
                let slot = own.split(' ').nth(8).and_then(|slots| slots.split('-').next()).unwrap();
                masters.push(format!("{}/{}/{slot}", own.split(' ').next().unwrap(), run_of(&mut node).await));
                marks.set(self.keys.marker_at(slot.parse().unwrap()), "a test").ignore();
            }
            masters.sort();
            marks.set(self.keys.marker(), format!("test {}", masters.join(" "))).ignore();
        }
        marks.exec_async(&mut redis).await.unwrap();
    }

    /// Begins a fetch, which nothing makes unnecessary.
    pub async fn lease(&self, name: &str, time: Duration) -> Lease {
        match self.store.lease(&art(name), time, Fresh::default()).await.unwrap() {
            Leased::Yes(lease) => *lease,
            other => panic!("no lease: {other:?}"),
        }
    }

    /// Publishes through the inbox, where nothing is lost; returns the message's id.
    pub async fn publish(&self, message: &str) -> String {
        let message = Message::parse(message).unwrap();
        inbox::publish(&mut self.redis.clone(), &self.keys, &message).await.unwrap()
    }

    /// Publishes through the inbox and waits until the message is handled.
    pub async fn invalidate(&self, message: &str) {
        self.publish(message).await;
        self.inbox_is_empty().await;
    }

    pub async fn inbox_is_empty(&self) {
        // A message of a killed worker is taken over after twice the claim time, which is 10 s in some tests.
        eventually_within(Duration::from_secs(40), "all messages in the inbox are handled", async || {
            let length: usize =
                redis::cmd("XLEN").arg(self.keys.inbox()).query_async(&mut self.redis.clone()).await.unwrap();
            if length == 0 { Ok(()) } else { Err(length) }
        })
        .await;
    }

    /// Returns the metadata of an entry of the job `art`.
    pub async fn meta(&self, name: &str) -> Option<Meta> {
        self.store.snapshot(&art(name)).await.unwrap().meta
    }

    /// An entry's score on the agenda of the job `art`, if it is there.
    pub async fn score(&self, name: &str) -> Option<f64> {
        let agenda = self.keys.agenda(&job());
        redis::cmd("ZSCORE").arg(agenda).arg(art(name).as_str()).query_async(&mut self.redis.clone()).await.unwrap()
    }

    /// A counter of the job `art`.
    pub async fn stat(&self, outcome: &str) -> u64 {
        let stats = self.keys.stats(&job());
        let count: Option<u64> =
            redis::cmd("HGET").arg(stats).arg(outcome).query_async(&mut self.redis.clone()).await.unwrap();
        count.unwrap_or_default()
    }

    /// Redis's clock. That of a Cluster is exact to a millisecond, if the clocks of its masters agree.
    pub async fn now(&self) -> RedisTime {
        // Samovar itself reads the latest that the time may be on any master.
        let time = redis::cmd("EVAL").arg("return redis.call('TIME')").arg(0).to_owned();
        time.query_async(&mut self.redis.clone()).await.unwrap()
    }

    /// Waits until Redis's clock has moved on, so that what comes next is later than all before.
    pub async fn next_instant(&self) {
        let doubt = if self.nodes.is_empty() { Duration::ZERO } else { Duration::from_millis(2) };
        let now = self.now().await + doubt;
        eventually("Redis's clock moves on", async || self.now().await > now).await;
    }
}

/// Returns the `run_id` of a server.
async fn run_of(redis: &mut impl redis::aio::ConnectionLike) -> String {
    let info: String = redis::cmd("INFO").arg("server").query_async(redis).await.unwrap();
    info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().to_owned()
}

/// The key of an entry of the job `art`.
pub fn art(name: &str) -> EntryKey {
    EntryKey::new(format!("art:{name}"))
}

/// The job `art`.
pub fn job() -> JobName {
    JobName::new("art")
}
