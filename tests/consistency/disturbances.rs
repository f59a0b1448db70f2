//! Disturbances of workers, connections and servers during a run, one after the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use redis::AsyncTypedCommands;
use serde_json::json;

use super::{CHANNEL, Edit, WORKERS, World, all_keys, worker};
use crate::support::{JobsFolder, WorkerProcess};

/// Of so many disturbances, the last is an event of the topology, if that has any.
const EVENTS: usize = 3;

impl World {
    /// Disturbs for some time, and until each event has come to pass, or until there is a fault.
    pub(super) async fn disturb(&self, time: Duration, workers: &mut [WorkerProcess], jobs: &JobsFolder) {
        let (mut random, keys) = (StdRng::seed_from_u64(self.seed ^ 300), all_keys());
        let mut events = self.servers.read().await.events().iter().cycle().peekable();
        let (begun, mut frozen) = (Instant::now(), None::<usize>);
        let least = EVENTS * self.servers.read().await.events().len();
        for nth in 1.. {
            let is_time_up = begun.elapsed() >= time && nth > least;
            if is_time_up || self.note(|ledger| !ledger.faults.is_empty()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(100..900))).await;
            if let Some(frozen) = frozen.take() {
                workers[frozen].thaw();
            }
            match events.next_if(|_| nth % EVENTS == 0) {
                Some(event) => self.come_to_pass(*event, &mut random, &keys).await,
                None => frozen = self.disturb_once(&mut random, &keys, workers, jobs).await,
            }
        }
        if let Some(frozen) = frozen {
            workers[frozen].thaw();
        }
    }

    /// Returns the connections of workers that are subscribed to all channels, by server and client id.
    async fn subscriptions(&self) -> BTreeSet<(String, String)> {
        let list: String = self.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        let of_workers = list.lines().filter(|line| line.contains(" sub=3 ") && !line.contains(" name=sentinel-"));
        let field = |line: &str, name: &str| {
            let value = line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().to_owned()
        };
        of_workers.map(|line| (field(line, "laddr"), field(line, "id"))).collect()
    }

    /// Waits until all workers are subscribed, `new` of them at least by new connections.
    pub(super) async fn all_subscribed(&self, before: &BTreeSet<(String, String)>, new: usize) {
        self.until("all workers are subscribed", async || {
            let now = self.subscriptions().await;
            if now.len() == WORKERS && now.difference(before).count() >= new { Ok(()) } else { Err(now) }
        })
        .await;
    }

    /// One disturbance; says which worker it left frozen.
    async fn disturb_once(
        &self,
        random: &mut StdRng,
        keys: &[String],
        workers: &mut [WorkerProcess],
        jobs: &JobsFolder,
    ) -> Option<usize> {
        let _alone = self.air.write().await;
        let before = self.subscriptions().await;
        let what = random.random_range(0..100);
        let victim = random.random_range(0..workers.len());
        match what {
            0..20 => {
                self.note(|ledger| ledger.count("kills"));
                workers[victim].kill9();
                workers[victim] = worker(&self.url, jobs);
                self.all_subscribed(&before, 1).await;
            }
            20..35 => {
                self.note(|ledger| ledger.count("stops"));
                workers[victim].term();
                assert!(workers[victim].wait().await.success(), "a worker that is told to stop ends well");
                workers[victim] = worker(&self.url, jobs);
                self.all_subscribed(&before, 1).await;
            }
            35..48 => {
                self.command("cuts", &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
            }
            48..60 => {
                self.command("cuts of subscriptions", &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
                self.publish_unheard(random, keys).await;
                self.all_subscribed(&before, WORKERS).await;
            }
            60..72 => {
                let time = random.random_range(100..700_u32).to_string();
                let mode = ["WRITE", "ALL"].choose(random).unwrap();
                self.command("pauses", &["CLIENT", "PAUSE", &time, mode]).await;
            }
            72..76 => self.command("forgotten scripts", &["SCRIPT", "FLUSH"]).await,
            76..88 => self.lose_leases(random).await,
            _ => {
                // Until the next disturbance.
                self.note(|ledger| ledger.count("freezes"));
                workers[victim].freeze();
                return Some(victim);
            }
        }
        None
    }

    /// Publishes over the channel what hardly any worker hears. A refresh only: nobody can tell when it is handled.
    async fn publish_unheard(&self, random: &mut StdRng, keys: &[String]) {
        let era = self.replication.era();
        let mut edit = self.compose(random, keys);
        (edit.evicts, edit.message["action"]) = (false, json!("refresh"));
        let heard = self.insist(async |mut redis| redis.publish(CHANNEL, edit.message.to_string()).await).await;
        self.note(|ledger| ledger.count(if heard == 0 { "unheard" } else { "heard by some" }));
        self.record(era, edit, &[], &format!("bare, heard by {heard}, as subscriptions are cut")).await;
    }

    /// As a Redis does that is full: leases expire, so it may evict them. Just then, what is being fetched changes.
    async fn lose_leases(&self, random: &mut StdRng) {
        self.note(|ledger| ledger.count("lost leases"));
        let era = self.replication.era();
        let leases: BTreeSet<String> = self.ask(&["KEYS", "samovar:lease:*"]).await;
        let mut leases: Vec<String> = leases.into_iter().collect();
        leases.retain(|_| random.random_bool(0.3));
        let mut concerned = Vec::new();
        for lease in leases {
            let key = self.parts.keys.entry_of_lease(&lease).expect("it is a lease").to_owned();
            self.note(|ledger| ledger.unleased.insert(key.clone()));
            self.insist(async |mut redis| redis.del(&lease).await).await;
            self.upstream.edit(&key);
            concerned.push((key.clone(), self.upstream.version(&key)));
        }
        if concerned.is_empty() {
            return;
        }
        let keys: Vec<&String> = concerned.iter().map(|(key, _)| key).collect();
        let edit = Edit { message: json!({ "keys": keys, "action": "evict" }), concerned, evicts: true };
        let of_stories = self.of_stories(&edit);
        let id = self.publish_safely(&edit.message).await;
        self.record(era, edit, &of_stories, &format!("inbox {id}")).await;
    }

    async fn command(&self, what: &'static str, words: &[&str]) {
        self.note(|ledger| ledger.count(what));
        self.ask::<redis::Value>(words).await;
    }
}
