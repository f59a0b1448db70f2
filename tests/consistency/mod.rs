//! The whole fleet under fire: editors, readers and workers that die, with an upstream that answers late, in any order.
//!
//! Whatever happens, no reader sees a key go back to an older version, nothing older is readable once an eviction is
//! handled, each key is fetched once at a time, and when the dust has settled no key is older than its last published
//! version. `SAMOVAR_TEST_SEED` repeats a run's choices (not its timing), `SAMOVAR_TEST_SECONDS` sets how long it runs.
//!
//! With `SAMOVAR_TEST_TOPOLOGY=sentinel` or `=cluster`, masters die as well, and their replicas take their places. On
//! the Cluster, slots move there and back, and the clock of one master is 3 s off. A master acknowledges what its
//! replica does not have yet, and such a thing is lost with it. So:
//!
//! - An editor publishes to the inbox until a replica has the message, and to the channel while no master is dead.
//! - What was read, and that an eviction was handled, counts from the moment at which all replicas have it, if no other
//!   master has taken the place of one since.
//! - A fetch that began under a lease of a master that died may overlap one that began later, if the lease is of one of
//!   its slots: nobody could extend it.

mod disturbances;
mod replication;
mod servers;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::{Crowded, JobsFolder, Link, Parts, Versions, WorkerProcess, number_from_environment, samovar};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use redis::streams::{StreamInfoGroupsReply, StreamPendingCountReply};
use redis::{AsyncTypedCommands, FromRedisValue};
use samovar::agenda::{Due, State};
use samovar::entry::Trigger;
use samovar::entry::{EntryKey, JobName};
use samovar::protocol::Message;
use samovar::redis::{Connection, RedisUrl};
use samovar::trigger::invalidation::inbox;
use serde_json::{Value, json};
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use replication::Replication;
use servers::{Outage, Servers};

const CHANNEL: &str = "samovar:invalidate";
const WORKERS: usize = 3;
const READERS: u64 = 3;
const EDITORS: u64 = 4;
/// The jobs, and how many entries each has: `art` lives long, `brief` expires again and again, a `story` is made from
/// an `art`.
const SHELVES: [(&str, u64); 3] = [("art", 90), ("brief", 60), ("story", 50)];
/// The time that a failing test waits: longer than a lease, an entry of a dead worker and a wait for an input together.
const PATIENCE: Duration = Duration::from_secs(120);
/// The time that a reader waits for an answer. A dead master gives none.
const LOOK: Duration = Duration::from_secs(1);

fn jobs(upstream: &Versions) -> JobsFolder {
    let listed = |of: u64| json!((0..of * 3 / 4).map(|n| n.to_string()).collect::<Vec<_>>()).to_string();
    let mut folder = JobsFolder::new()
        .upstreams(&format!("[museum]\nurl = \"{}\"\ntimeout = \"2s\"\nconcurrency = 48\n", upstream.url()));
    for (job, of) in SHELVES {
        let (ttl, more, path, inputs) = match job {
            "art" => ("1h", "", "/art/{{ name }}", ""),
            "brief" => ("5s", "ahead = \"1s\"\nschedule = \"*/2 * * * * *\"", "/brief/{{ name }}", ""),
            _ => ("1h", "", "/story/{{ name }}/{{ art.v }}", "[inputs]\nart = \"art:{name}\""),
        };
        folder = folder.job(
            job,
            &format!(
                "key = \"{job}:{{name}}\"\nttl = \"{ttl}\"\ntags = [\"{job} row {{{{ name[-1:] }}}}\"]\n{inputs}\n\
                 [source]\nkind = \"http\"\nupstream = \"museum\"\npath = \"{path}\"\n\
                 [entries]\nlist = {}\n[warm]\nattempts = 1000\n{more}\n",
                listed(of)
            ),
        );
    }
    // What editors evict to see that a bare message was handled.
    let probe = "key = \"probe:{name}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                 path = \"/probe/{{ name }}\"\n";
    folder.job("probe", probe)
}

fn all_keys() -> Vec<String> {
    SHELVES.iter().flat_map(|(job, of)| (0..*of).map(move |n| format!("{job}:{n}"))).collect()
}

/// The oldest versions that readers may still see, the published versions, and the faults found.
#[derive(Debug, Default)]
struct Ledger {
    floors: HashMap<String, (u64, String)>,
    published: BTreeMap<String, (u64, String)>,
    faults: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    /// Whose lease was lost: these may be fetched by two at once.
    unleased: BTreeSet<String>,
    outages: Vec<Outage>,
}

impl Ledger {
    fn floor(&self, key: &str) -> (u64, String) {
        self.floors.get(key).cloned().unwrap_or_default()
    }

    fn raise(&mut self, key: &str, version: u64, why: &str) {
        let floor = self.floors.entry(key.to_owned()).or_default();
        if version > floor.0 {
            *floor = (version, why.to_owned());
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Returns `true` if two fetches may have been in flight at once.
    fn excuses(&self, Crowded { key, arrived: [first, then] }: &Crowded) -> bool {
        self.unleased.contains(key) || self.outages.iter().any(|outage| outage.excuses(key, *first, *then))
    }
}

/// The state that all tasks of a run share.
struct World {
    seed: u64,
    begun: Instant,
    servers: RwLock<Servers>,
    replication: Replication,
    url: String,
    upstream: Versions,
    parts: Parts,
    ledger: Mutex<Ledger>,
    /// Publishers of bare messages hold it shared, so that subscribers stay connected; the one that cuts subscriptions
    /// holds it alone.
    air: RwLock<()>,
    /// A master is dead, and nobody has taken its place.
    is_masterless: Cell<bool>,
    stop: CancellationToken,
    /// Readers ask for what they miss.
    demand: CancellationToken,
}

/// An invalidation: what it says, whom it concerns, and what is not to be read once it is handled.
#[derive(Debug)]
struct Edit {
    message: Value,
    concerned: Vec<(String, u64)>,
    evicts: bool,
}

impl World {
    fn note<T>(&self, with: impl FnOnce(&mut Ledger) -> T) -> T {
        with(&mut self.ledger.lock().unwrap())
    }

    fn tell(&self, what: &str) {
        eprintln!("at {:.3} s: {what}", self.begun.elapsed().as_secs_f32());
    }

    fn fault(&self, what: String) {
        let at = self.begun.elapsed().as_secs_f32();
        eprintln!("FAULT at {at:.3} s: {what}");
        self.note(|ledger| ledger.faults.push(format!("at {at:.3} s: {what}")));
    }

    /// Until Redis says so: connections are cut all the time.
    async fn insist<T>(&self, mut command: impl AsyncFnMut(Connection) -> redis::RedisResult<T>) -> T {
        let begun = Instant::now();
        loop {
            match command(self.parts.redis.clone()).await {
                Ok(done) => return done,
                Err(e) => assert!(begun.elapsed() < PATIENCE, "Redis does not answer: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn is_cluster(&self) -> bool {
        matches!(&*self.servers.read().await, Servers::Cluster { .. })
    }

    /// A connection to the master, or to the masters as if they were one, while none of them is dead.
    async fn connection(&self) -> Link {
        self.servers.read().await.connection().await
    }

    async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.connection().await).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn json(&self, key: &str) -> Option<Value> {
        let text: Option<String> = self.ask(&["GET", key]).await;
        text.map(|text| serde_json::from_str(&text).unwrap())
    }

    /// Waits for a state, longer than the other tests do.
    async fn until<T, E: Debug>(&self, what: &str, mut probe: impl AsyncFnMut() -> Result<T, E>) -> T {
        let begun = Instant::now();
        loop {
            match probe().await {
                Ok(reached) => return reached,
                Err(e) => assert!(begun.elapsed() < PATIENCE, "seed {}: never came to pass: {what}: {e:?}", self.seed),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn start(seed: u64) -> Rc<Self> {
        let servers = Servers::start(&mut StdRng::seed_from_u64(seed ^ 400)).await;
        let url = servers.url();
        Rc::new(Self {
            seed,
            begun: Instant::now(),
            replication: servers.replication(),
            servers: RwLock::new(servers),
            upstream: Versions::start(seed).await,
            parts: Parts::at(&RedisUrl::parse(&url, None).unwrap()).await,
            url,
            ledger: Mutex::default(),
            air: RwLock::default(),
            is_masterless: Cell::default(),
            stop: CancellationToken::new(),
            demand: CancellationToken::new(),
        })
    }

    /// Starts those that look until the end.
    fn spawn_readers(self: &Rc<Self>, end: &CancellationToken) -> JoinSet<()> {
        let mut readers = JoinSet::new();
        for n in 0..READERS {
            let (world, end, keys) = (Rc::clone(self), end.clone(), all_keys());
            let mut random = StdRng::seed_from_u64(self.seed ^ (100 + n));
            readers.spawn_local(async move {
                while !end.is_cancelled() {
                    world.read(&mut random, &keys).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        let (world, end) = (Rc::clone(self), end.clone());
        readers.spawn_local(async move { world.replication.run(&end).await });
        readers
    }

    fn spawn_editors(self: &Rc<Self>) -> JoinSet<()> {
        let mut editors = JoinSet::new();
        for n in 0..EDITORS {
            let (world, keys) = (Rc::clone(self), all_keys());
            let mut random = StdRng::seed_from_u64(self.seed ^ (200 + n));
            editors.spawn_local(async move {
                while !world.stop.is_cancelled() {
                    world.edit(&mut random, &keys, n).await;
                    let pause = Duration::from_millis(random.random_range(0..200));
                    tokio::time::sleep(pause).await;
                }
            });
        }
        editors
    }

    /// Prints what happened, and fails if there were faults.
    async fn report(&self) {
        let events = self.servers.read().await.events().iter().map(|event| event.name());
        let (Self { seed, begun, upstream, .. }, ledger) = (self, self.ledger.lock().unwrap());
        let Ledger { counts, faults, .. } = &*ledger;
        eprintln!("seed {seed}: {counts:?}, {:?}, {:.1} s in all", upstream.asked(), begun.elapsed().as_secs_f32());
        let mut crowded = upstream.crowded();
        crowded.retain(|crowded| !ledger.excuses(crowded));
        assert!(crowded.is_empty(), "seed {seed}: fetched more than once at a time: {crowded:?}");
        assert!(faults.is_empty(), "seed {seed}: {} faults:\n{}", faults.len(), faults.join("\n"));
        for what in ["hits", "evictions", "refreshes"].into_iter().chain(events) {
            assert!(counts.get(what).is_some_and(|count| *count > 0), "seed {seed}: nothing was tried: {counts:?}");
        }
    }

    // Readers

    async fn read(self: &Rc<Self>, random: &mut StdRng, keys: &[String]) {
        let era = self.replication.era();
        let key = keys.choose(random).unwrap();
        let below = [self.note(|ledger| ledger.floor(key)), self.note(|ledger| ledger.floor(&of(key)))];
        let mut both = redis::pipe();
        both.atomic().cmd("GET").arg(key).cmd("PTTL").arg(key);
        let (value, ttl): (Option<String>, i64) =
            match both.query_async(&mut self.parts.redis.clone().with_timeout(LOOK)).await {
                Ok(both) => both,
                Err(_) => return,
            };
        let Some(text) = value else {
            self.note(|ledger| ledger.count("misses"));
            if random.random_bool(0.5) && !self.demand.is_cancelled() {
                self.publish_into_inbox(&json!({ "keys": [key], "action": "warm" })).await;
            }
            return;
        };
        self.note(|ledger| ledger.count("hits"));
        if ttl < 0 {
            self.fault(format!("{key} has no TTL ({ttl})"));
        }
        let Ok(value) = serde_json::from_str::<Value>(&text) else {
            return self.fault(format!("{key} is no JSON: {text}"));
        };
        for ((least, why), field, name) in [(&below[0], "v", key.clone()), (&below[1], "of", of(key))]
            .map(|(floor, field, name)| (floor.clone(), field, name))
        {
            match value[field].as_u64() {
                Some(seen) if seen < least => {
                    self.fault(format!("{name} went back: {seen} was read where {least} was readable before ({why})"));
                }
                Some(seen) if seen > least => self.saw(era, name, seen),
                _ => {}
            }
        }
    }

    /// Takes a version that was read in this era for the oldest that readers may see, once no failover takes it back.
    fn saw(self: &Rc<Self>, era: u64, name: String, version: u64) {
        let world = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if world.replication.have(era).await {
                world.note(|ledger| ledger.raise(&name, version, "read"));
            }
        });
    }

    // Editors

    fn compose(&self, random: &mut StdRng, keys: &[String]) -> Edit {
        let evicts = random.random_bool(0.3);
        let action = if evicts { "evict" } else { "refresh" };
        let (message, concerned, share) = match random.random_range(0..100) {
            0..70 => {
                let key = keys.choose(random).unwrap();
                (json!({ "keys": [key], "action": action }), vec![key.clone()], 1.0)
            }
            70..85 => {
                let some: Vec<String> = keys.sample(random, 4).cloned().collect();
                (json!({ "keys": some, "action": action }), some, 0.7)
            }
            85..91 => {
                let (job, _) = SHELVES.choose(random).unwrap();
                let row = random.random_range(0..10).to_string();
                let tagged = |key: &&String| key.starts_with(&format!("{job}:")) && key.ends_with(&row);
                let tagged = keys.iter().filter(tagged).cloned().collect();
                (json!({ "tags": [format!("{job} row {row}")], "action": action }), tagged, 0.6)
            }
            91..98 => {
                let (job, _) = SHELVES.choose(random).unwrap();
                let from = format!("{job}:{}", random.random_range(1..9));
                let matching = keys.iter().filter(|key| key.starts_with(&from)).cloned().collect();
                (json!({ "patterns": [format!("{from}*")], "action": action }), matching, 0.5)
            }
            _ => {
                let (job, _) = SHELVES.choose(random).unwrap();
                let matching = keys.iter().filter(|key| key.starts_with(&format!("{job}:"))).cloned().collect();
                (json!({ "jobs": [job], "action": action }), matching, 0.2)
            }
        };
        for key in &concerned {
            if random.random_bool(share) {
                self.upstream.edit(key);
            }
        }
        let concerned = concerned.into_iter().map(|key| (key.clone(), self.upstream.version(&key))).collect();
        Edit { message, concerned, evicts }
    }

    async fn edit(&self, random: &mut StdRng, keys: &[String], me: u64) {
        let era = self.replication.era();
        let edit = self.compose(random, keys);
        let of_stories = self.of_stories(&edit);
        let way = match random.random_range(0..100) {
            0..45 if !self.is_masterless.get() => self.publish_bare(&edit.message, me).await,
            0..97 => format!("inbox {}", self.publish_safely(&edit.message).await),
            _ => format!("inbox {}", self.publish_by_hand(&edit.message).await),
        };
        self.record(era, edit, &of_stories, &way).await;
    }

    /// Returns the oldest inputs that a story may be made from: those readable when it was evicted.
    fn of_stories(&self, edit: &Edit) -> Vec<(String, u64)> {
        let stories = edit.concerned.iter().filter_map(|(key, _)| Some((key, key.strip_prefix("story:")?)));
        stories.map(|(key, n)| (of(key), self.note(|ledger| ledger.floor(&format!("art:{n}")).0))).collect()
    }

    /// Notes what was published in this era, and once it is handled, what must not be readable any more.
    async fn record(&self, era: u64, edit: Edit, of_stories: &[(String, u64)], way: &str) {
        let why = format!("{} {way} at {:.3} s", edit.message, self.begun.elapsed().as_secs_f32());
        self.note(|ledger| {
            ledger.count(if edit.evicts { "evictions" } else { "refreshes" });
            for (key, version) in &edit.concerned {
                let last = ledger.published.entry(key.clone()).or_default();
                if *version >= last.0 {
                    *last = (*version, why.clone());
                }
            }
        });
        if !edit.evicts {
            return;
        }
        if let Some(id) = way.strip_prefix("inbox ") {
            self.acknowledged(id).await;
        }
        if !self.replication.have(era).await {
            return self.note(|ledger| ledger.count("evictions over a failover"));
        }
        self.note(|ledger| {
            for (key, version) in edit.concerned.iter().chain(of_stories) {
                ledger.raise(key, *version, &why);
            }
        });
    }

    /// Returns once a worker has handled it: messages are handled in order, and the last one evicts a probe.
    async fn publish_bare(&self, message: &Value, me: u64) -> String {
        let _quiet = self.air.read().await;
        // A new one each time: a slow worker may evict the last one only now.
        let probe = format!("probe:{me} {}", self.begun.elapsed().as_nanos());
        self.insist(async |mut redis| redis.set_ex(&probe, "0", 600).await).await;
        let heard = self.insist(async |mut redis| redis.publish(CHANNEL, message.to_string()).await).await;
        // A Cluster's master counts only those that listen at itself.
        assert!(heard > 0 || self.is_cluster().await, "no worker hears the channel");
        // What names many has a line of its own.
        let many = message["patterns"].is_array() || message["jobs"].is_array() || message["tags"].is_array();
        let evict = json!({ if many { "patterns" } else { "keys" }: [&probe], "action": "evict" }).to_string();
        self.insist(async |mut redis| redis.publish(CHANNEL, &evict).await).await;
        self.until("a worker handles what was published bare", async || {
            let there = self.insist(async |mut redis| redis.exists(&probe).await).await;
            if there { Err(message) } else { Ok(()) }
        })
        .await;
        format!("bare, heard by {heard}")
    }

    async fn publish_into_inbox(&self, message: &Value) -> String {
        let message = Message::parse(&message.to_string()).unwrap();
        self.insist(async |mut redis| inbox::publish(&mut redis, &self.parts.keys, &message).await).await
    }

    async fn publish_by_hand(&self, message: &Value) -> String {
        let mut args = vec!["invalidate".to_owned(), "--json".to_owned()];
        let strings = |field: &str| -> Vec<String> {
            let list = message[field].as_array().into_iter().flatten();
            list.map(|item| item.as_str().unwrap().to_owned()).collect()
        };
        args.extend(strings("patterns").into_iter().flat_map(|glob| ["--pattern".to_owned(), glob]));
        args.extend(strings("tags").into_iter().flat_map(|tag| ["--tag".to_owned(), tag]));
        args.extend(strings("jobs").into_iter().flat_map(|job| ["--job".to_owned(), job]));
        args.extend((message["action"] == "evict").then(|| "--evict".to_owned()));
        args.extend(strings("keys"));
        self.until("`samovar invalidate` goes through", async || {
            let era = self.replication.era();
            let done = samovar(&args).redis_at(&self.url).run().await;
            let said: Value = serde_json::from_str(&done.stdout).map_err(|_| done.stderr)?;
            let id = said["id"].as_str().map(str::to_owned).ok_or_else(|| said.to_string())?;
            if self.replication.have(era).await { Ok(id) } else { Err("it may be lost with a master".to_owned()) }
        })
        .await
    }

    /// Waits until a message in the inbox has been handled.
    async fn acknowledged(&self, id: &str) {
        let inbox = self.parts.keys.inbox();
        self.until("a message in the inbox is acknowledged", async || {
            let groups: StreamInfoGroupsReply = self.insist(async |mut redis| redis.xinfo_groups(&inbox).await).await;
            let read = groups.groups.iter().any(|group| moment(&group.last_delivered_id) >= moment(id));
            let pending: StreamPendingCountReply =
                self.insist(async |mut redis| redis.xpending_count(&inbox, "samovar", id, id, 1).await).await;
            if read && pending.ids.is_empty() { Ok(()) } else { Err((id.to_owned(), read)) }
        })
        .await;
    }

    /// Keys of others, so that a scan takes a while.
    async fn crowd(&self) {
        let mut fill = redis::pipe();
        for n in 0..15_000 {
            fill.cmd("SET").arg(format!("session:{n}")).arg("0").ignore();
        }
        fill.exec_async(&mut self.connection().await).await.unwrap();
    }

    // The end

    /// Waits until workers know the masters that there are, and with that, that some took the places of others.
    async fn masters_are_known(&self) {
        let runs = self.servers.read().await.runs().await;
        self.until("the mark names all masters", async || {
            let mark: String = self.ask(&["GET", &self.parts.keys.marker()]).await;
            if runs.iter().all(|run| mark.contains(run)) { Ok(()) } else { Err((mark, &runs)) }
        })
        .await;
    }

    /// Waits until no gap is open, and nothing is in the inbox, urgent, in flight, or due.
    async fn settled(&self) {
        let inbox = self.parts.keys.inbox();
        self.until("the dust settles", async || {
            let entries: usize = self.ask(&["XLEN", &inbox]).await;
            let gap: usize = self.ask(&["EXISTS", "samovar:{suspect}"]).await;
            let groups: StreamInfoGroupsReply = self.connection().await.xinfo_groups(&inbox).await.unwrap();
            let pending: usize = groups.groups.iter().map(|group| group.pending).sum();
            let behind = groups.groups.iter().map(|group| group.entries_read).max().flatten();
            let mut left = Vec::new();
            let now = self.parts.now().await;
            for (job, _) in SHELVES {
                let agenda = self.parts.keys.agenda(&JobName::new(job));
                let scores: Vec<(String, f64)> = self.ask(&["ZRANGE", &agenda, "0", "-1", "WITHSCORES"]).await;
                // Only what is refreshed in time before it expires may wait; what is brief does so all the time.
                left.extend(scores.into_iter().map(|(key, score)| (key, Due::from_score(score))).filter(|(_, due)| {
                    due.state != State::Scheduled || due.trigger != Trigger::Expiry || (due.at <= now && job != "brief")
                }));
            }
            left.truncate(5);
            if pending == 0 && gap == 0 && left.is_empty() && self.all_read(&groups).await {
                Ok(())
            } else {
                Err((entries, pending, behind, gap, left))
            }
        })
        .await;
    }

    /// Asks for evicted entries until all are there: a slow worker may evict one only now.
    async fn fill(&self) {
        self.until("everything is there", async || {
            self.publish_into_inbox(&json!({ "keys": all_keys(), "action": "warm" })).await;
            self.settled().await;
            let keys: Vec<EntryKey> = all_keys().into_iter().map(EntryKey::new).collect();
            let found = self.parts.store.snapshots(&keys).await.map_err(|e| e.to_string())?;
            let absent: Vec<EntryKey> = keys
                .into_iter()
                .zip(found)
                .filter(|(_, found)| found.expiry.at().is_none())
                .map(|(key, _)| key)
                .collect();
            // What lives for seconds only may be gone just now.
            if absent.iter().all(|key| key.as_str().starts_with("brief:")) {
                Ok(())
            } else {
                Err(format!("{absent:?}"))
            }
        })
        .await;
    }

    async fn all_read(&self, groups: &StreamInfoGroupsReply) -> bool {
        let last: redis::streams::StreamInfoStreamReply =
            self.connection().await.xinfo_stream(self.parts.keys.inbox()).await.unwrap();
        groups.groups.iter().all(|group| moment(&group.last_delivered_id) >= moment(&last.last_generated_id))
    }

    /// No key is older than its last published version, and no story is of another `art` than what is readable.
    async fn judge(&self) {
        let published = self.note(|ledger| ledger.published.clone());
        for (key, (version, why)) in published {
            match self.json(&key).await.and_then(|value| value["v"].as_u64()) {
                Some(seen) if seen >= version => {}
                None if key.starts_with("brief:") => {}
                other => {
                    let known = self.known(&key).await;
                    self.fault(format!("{key} is {other:?} at last, where {version} was published: {why}; {known}"));
                }
            }
        }
        for n in 0..SHELVES[2].1 {
            let (story, art) = (format!("story:{n}"), format!("art:{n}"));
            let of = self.json(&story).await.map(|story| story["of"].clone());
            let readable = self.json(&art).await.map(|art| art["v"].clone());
            if of != readable {
                let known = format!("{}; {}", self.known(&story).await, self.known(&art).await);
                self.fault(format!("{story} is of {of:?} at last, where {art} is {readable:?}; {known}"));
            }
        }
    }

    /// Describes what Samovar knows about a key.
    async fn known(&self, key: &str) -> String {
        let meta: Option<String> = self.ask(&["GET", &self.parts.keys.meta(&EntryKey::new(key))]).await;
        let expires: i64 = self.ask(&["PEXPIRETIME", key]).await;
        format!("{key} expires {expires}, meta {meta:?}")
    }
}

/// Returns the name under which the ledger keeps the input of a story.
fn of(key: &str) -> String {
    format!("{key}#of")
}

/// A stream id, to compare.
fn moment(id: &str) -> (u64, u64) {
    let (ms, number) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap(), number.parse().unwrap())
}

fn worker(url: &str, jobs: &JobsFolder) -> WorkerProcess {
    samovar(["worker"])
        .redis_at(url)
        .jobs(jobs)
        .env("SAMOVAR_CLAIM", "1s")
        .env("SAMOVAR_DRAIN", "5s")
        .env("SAMOVAR_CONCURRENCY", "24")
        .spawn()
}

#[tokio::test]
async fn a_fleet_under_fire_never_serves_what_it_should_not() {
    tokio::task::LocalSet::new().run_until(Box::pin(under_fire())).await;
}

async fn under_fire() {
    let seed = number_from_environment("SAMOVAR_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let time = Duration::from_secs(number_from_environment("SAMOVAR_TEST_SECONDS").unwrap_or(20));
    eprintln!("SAMOVAR_TEST_SEED={seed} for {time:?}");
    let world = World::start(seed).await;
    let jobs = jobs(&world.upstream);
    let mut workers: Vec<WorkerProcess> = (0..WORKERS).map(|_| worker(&world.url, &jobs)).collect();
    world.all_subscribed(&BTreeSet::new(), WORKERS).await;
    world.crowd().await;

    let end = CancellationToken::new();
    let (readers, editors) = (world.spawn_readers(&end), world.spawn_editors());
    world.disturb(time, &mut workers, &jobs).await;
    world.stop.cancel();
    editors.join_all().await;
    world.upstream.calm_down();
    world.demand.cancel();
    world.masters_are_known().await;
    world.fill().await;
    world.judge().await;
    end.cancel();
    readers.join_all().await;
    world.report().await;
}
