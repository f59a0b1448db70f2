//! Upstreams that lag: replicas show an edit late, each after a time of its own, and any of them answers.
//!
//! Without versions, a value is the last edit's once its rechecks have ended, and a single edit never goes back. With
//! versions, no reader ever goes back, and nothing older than announced is readable a second after the lag. Three tests
//! take a mechanism out, and find the faults that it prevents. `SAMOVAR_TEST_SEED` repeats a run's choices (not its
//! timing), `SAMOVAR_TEST_SECONDS` sets how long editors edit.
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::support::{JobsFolder, Parts, Replicas, Shown, TestRedis, WorkerProcess};
use crate::support::{eventually, eventually_within, listening, number_from_environment, samovar};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use redis::AsyncTypedCommands;
use samovar::agenda::{Due, State};
use samovar::entry::{EntryKey, JobName};
use samovar::protocol::Message;
use samovar::trigger::invalidation::inbox;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const CHANNEL: &str = "samovar:invalidate";
const WORKERS: usize = 3;
const READERS: u64 = 2;
const EDITORS: u64 = 3;
const REPLICAS: usize = 2;
/// The time of a fetch and its dispatch, beyond what is promised.
const MARGIN: Duration = Duration::from_millis(1_500);
/// All is late on a busy machine: by so many times as much as this test is.
const BUSY: u32 = 10;
/// An entry that a killed worker was warming is left alone for this time.
const WARMED: Duration = Duration::from_secs(9);
/// A message that a killed worker had read from the inbox is left alone for this time.
const READ: Duration = Duration::from_secs(5);

/// The upstream, the job, and the editors of a run.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// The longest lag of the upstream.
    lag: Duration,
    /// The job's rechecks.
    recheck: &'static str,
    /// When the last recheck of a list should be: later than the lag.
    last_recheck: Duration,
    /// The job tells versions.
    told: bool,
    /// Editors announce versions.
    announced: bool,
    /// The promise of versions is checked.
    versions: bool,
    /// A worker is killed and replaced.
    kills: bool,
    /// The most fetches that an edit may cost on average.
    most_fetches: u64,
    /// The run ends when it finds such a fault. Otherwise any fault ends it.
    sought: Option<Fault>,
}

const WITHOUT_VERSIONS: Setting = Setting {
    lag: Duration::from_secs(3),
    recheck: r#"["300ms", "900ms", "3s", "5s"]"#,
    last_recheck: Duration::from_secs(5),
    told: false,
    announced: false,
    versions: false,
    kills: true,
    // The first fetch, the list, and a recheck at twice the time.
    most_fetches: 6,
    sought: None,
};
// A fetch begins after 4/3 of the time of the last one, from 50 ms on: 15 of them in 3 s.
const WITH_VERSIONS: Setting =
    Setting { told: true, announced: true, versions: true, most_fetches: 16, ..WITHOUT_VERSIONS };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A reader saw older content after newer.
    WentBack,
    /// A value is older than was announced, although all replicas show it.
    Behind,
    /// A value is not the last edit's, although its rechecks have ended.
    Old,
}

/// The way in which a key is edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Once in a run; refreshed.
    Single,
    /// In bursts, all announced; refreshed and evicted.
    Burst,
    /// In bursts, some announced; refreshed.
    Mixed,
    /// In bursts, none announced; refreshed.
    Silent,
}

/// The numbers of keys of each kind.
const KINDS: [(Kind, u64); 4] = [(Kind::Single, 14), (Kind::Burst, 20), (Kind::Mixed, 8), (Kind::Silent, 8)];

/// An edit of a key.
#[derive(Clone, Copy, Debug)]
struct Edit {
    shown: Shown,
    /// Its message says the version.
    announced: bool,
    /// When the message was published.
    published: Option<Instant>,
}

/// A key, and what is known of it.
#[derive(Debug)]
struct Document {
    key: String,
    kind: Kind,
    edits: Vec<Edit>,
    /// The newest content that a reader saw.
    newest: u64,
    /// The last content that a reader saw.
    last: Option<u64>,
    /// The worker that was killed may have been warming it.
    orphan: bool,
}

impl Document {
    /// Returns the content of the last edit.
    fn content(&self) -> u64 {
        self.edits.last().map_or(1, |edit| edit.shown.content)
    }
}

/// The state that all tasks of a run share.
struct World {
    seed: u64,
    setting: Setting,
    begun: Instant,
    redis: TestRedis,
    upstream: Replicas,
    parts: Parts,
    documents: RefCell<Vec<Document>>,
    faults: RefCell<Vec<(Fault, String)>>,
    counts: RefCell<BTreeMap<&'static str, u64>>,
    killed: Cell<Option<Instant>>,
    /// The longest time for which an older value was readable after all replicas showed what was announced.
    latest: Cell<Duration>,
    /// The longest time by which this test was late.
    stalled: Cell<Duration>,
    /// Fetches since the first edit.
    fetches: Cell<u64>,
    stop: CancellationToken,
}

impl World {
    async fn start(setting: Setting, seed: u64) -> (Rc<Self>, JobsFolder) {
        let redis = TestRedis::start().await;
        let upstream = Replicas::start(seed, REPLICAS, setting.lag).await;
        let parts = Parts::of(&redis).await;
        let mut documents = Vec::new();
        for (kind, count) in KINDS {
            for _ in 0..count {
                let key = format!("art:{}", documents.len());
                documents.push(Document { key, kind, edits: Vec::new(), newest: 1, last: None, orphan: false });
            }
        }
        let jobs = JobsFolder::new()
            .upstreams(&format!("[museum]\nurl = \"{}\"\ntimeout = \"1s\"\nconcurrency = 48\n", upstream.url()))
            .job(
                "art",
                &format!(
                    "key = \"art:{{name}}\"\nttl = \"1h\"\n{}\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                     path = \"/art/{{{{ name }}}}\"\n[warm]\nrecheck = {}\n",
                    if setting.told { "version = \"{{ value.v }}\"" } else { "" },
                    setting.recheck,
                ),
            );
        let world = Self {
            seed,
            setting,
            begun: Instant::now(),
            redis,
            upstream,
            parts,
            documents: RefCell::new(documents),
            faults: RefCell::default(),
            counts: RefCell::default(),
            killed: Cell::default(),
            latest: Cell::default(),
            stalled: Cell::default(),
            fetches: Cell::default(),
            stop: CancellationToken::new(),
        };
        (Rc::new(world), jobs)
    }

    fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    /// Returns the count of something.
    fn counted(&self, what: &'static str) -> u64 {
        self.counts.borrow().get(what).copied().unwrap_or_default()
    }

    fn keys(&self) -> Vec<String> {
        self.documents.borrow().iter().map(|document| document.key.clone()).collect()
    }

    /// Returns the document numbers of a kind.
    fn of_kind(&self, kinds: &[Kind]) -> Vec<usize> {
        let documents = self.documents.borrow();
        (0..documents.len()).filter(|n| kinds.contains(&documents[*n].kind)).collect()
    }

    fn fault(&self, fault: Fault, key: &str, what: &str) {
        let at = self.begun.elapsed().as_secs_f32();
        self.upstream.note(key, &format!("FAULT: {fault:?}: {what}"));
        if self.faults.borrow().len() < 5 && self.setting.sought.is_none() {
            eprintln!("{fault:?} at {at:.3} s: {key}: {what}\n{}", self.upstream.history(key));
        }
        self.faults.borrow_mut().push((fault, format!("at {at:.3} s: {key}: {what}")));
    }

    /// Tells that the run is to end: it has found what it was for.
    fn is_decided(&self) -> bool {
        self.faults.borrow().iter().any(|(fault, _)| self.setting.sought.is_none_or(|sought| sought == *fault))
    }

    /// Waits for a moment, and notes by how much it was longer.
    async fn pause(&self, time: Duration) {
        let begun = Instant::now();
        tokio::time::sleep(time).await;
        self.stalled.set(self.stalled.get().max(begun.elapsed().saturating_sub(time)));
    }

    /// Returns when what takes `time` from `published` on is done. The death of a worker makes it begin again.
    fn done_at(&self, document: &Document, published: Instant, time: Duration) -> Instant {
        // A fault that is sought is found on a busy machine all the more.
        let busy = if self.setting.sought.is_none() { BUSY * self.stalled.get() } else { Duration::ZERO };
        let time = time + MARGIN + busy;
        let Some(killed) = self.killed.get() else { return published + time };
        let again = killed + if document.orphan { WARMED } else { READ };
        if published < again && published + time >= killed { again + time } else { published + time }
    }

    /// Returns when the rechecks of the last edit have ended; `None` while it is being published.
    fn settled_at(&self, document: &Document) -> Option<Instant> {
        let Some(edit) = document.edits.last() else { return Some(self.begun) };
        Some(self.done_at(document, edit.published?, self.setting.last_recheck + Duration::from_secs(1)))
    }

    /// Returns the version that must be readable at `at`, since it was announced.
    fn due(&self, document: &Document, at: Instant) -> u64 {
        let due = document.edits.iter().rev().find(|edit| {
            edit.published.is_some_and(|published| {
                let time = edit.shown.everywhere.saturating_duration_since(published);
                edit.announced && self.done_at(document, published, time + Duration::from_secs(1)) < at
            })
        });
        due.map_or(0, |edit| edit.shown.content)
    }

    // Readers

    /// Reads all keys, and asks for some that it misses.
    async fn read(&self, random: &mut StdRng) {
        let before: Vec<(u64, usize)> =
            self.documents.borrow().iter().map(|document| (document.newest, document.edits.len())).collect();
        let keys = self.keys();
        let asked = Instant::now();
        let values = self.parts.redis.clone().mget(&keys).await.unwrap();
        let mut missed = Vec::new();
        for (n, value) in values.into_iter().enumerate() {
            match value {
                Some(text) => {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    self.check(n, value["v"].as_u64().unwrap(), before[n], asked);
                }
                None => missed.push(n),
            }
        }
        for n in missed {
            if self.documents.borrow_mut()[n].last.take().is_some() {
                self.upstream.note(&keys[n], "read: nothing");
            }
            self.count("misses");
            if random.random_bool(0.2) {
                self.publish(random, &json!({ "keys": [keys[n]], "action": "warm" })).await;
            }
        }
    }

    /// Checks a value that was asked for at `asked`, with the newest content seen and the number of edits by then.
    fn check(&self, n: usize, seen: u64, (newest, edits): (u64, usize), asked: Instant) {
        self.count("hits");
        let mut faults = Vec::new();
        {
            let document = &mut self.documents.borrow_mut()[n];
            if document.last != Some(seen) {
                self.upstream.note(&document.key, &format!("read: {seen}"));
            }
            document.last = Some(seen);
            document.newest = document.newest.max(seen);
        }
        let documents = self.documents.borrow();
        let document = &documents[n];
        if (self.setting.versions || document.kind == Kind::Single) && seen < newest {
            faults.push((Fault::WentBack, format!("{seen} was read after {newest}")));
        }
        if self.setting.versions {
            let due = self.due(document, asked);
            if seen < due {
                faults.push((Fault::Behind, format!("{seen} was read where {due} was announced and is shown")));
            }
            for edit in document.edits.iter().filter(|edit| edit.announced && edit.shown.content > seen) {
                let Some(published) = edit.published else { continue };
                let late = asked.saturating_duration_since(published.max(edit.shown.everywhere));
                if self.killed.get().is_none() {
                    self.latest.set(self.latest.get().max(late));
                }
            }
        }
        let is_settled = document.edits.len() == edits && self.settled_at(document).is_some_and(|at| at < asked);
        if is_settled && seen != document.content() {
            faults.push((Fault::Old, format!("{seen} was read where the last edit made it {}", document.content())));
        }
        for (fault, what) in faults {
            self.fault(fault, &document.key, &what);
        }
    }

    // Editors

    /// Edits a document once, and publishes that.
    async fn edit(&self, random: &mut StdRng, n: usize) {
        let (key, kind) = {
            let documents = self.documents.borrow();
            (documents[n].key.clone(), documents[n].kind)
        };
        let restores = !self.setting.versions && kind != Kind::Single && random.random_bool(0.25);
        let shown = if restores { self.upstream.restore(&key) } else { self.upstream.edit(&key) };
        let announced = self.setting.versions
            && match kind {
                Kind::Single | Kind::Burst => true,
                Kind::Mixed => random.random_bool(0.5),
                Kind::Silent => false,
            };
        let number = {
            let edits = &mut self.documents.borrow_mut()[n].edits;
            edits.push(Edit { shown, announced, published: None });
            edits.len() - 1
        };
        let evicts = kind == Kind::Burst && random.random_bool(0.3);
        let mut message = json!({ "keys": [key], "action": if evicts { "evict" } else { "refresh" } });
        if announced && self.setting.announced {
            message["version"] = shown.content.into();
        }
        self.publish(random, &message).await;
        // A message that comes twice is another invalidation.
        if kind != Kind::Single && random.random_bool(0.2) {
            self.publish(random, &message).await;
        }
        self.count("edits");
        self.count(if evicts { "evictions" } else { "refreshes" });
        self.documents.borrow_mut()[n].edits[number].published = Some(Instant::now());
    }

    /// Edits a document a few times.
    async fn burst(&self, random: &mut StdRng, n: usize) {
        for _ in 0..random.random_range(1..=5) {
            self.edit(random, n).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        }
    }

    /// Publishes a message in one of the two ways.
    async fn publish(&self, random: &mut StdRng, message: &Value) {
        let key = message["keys"][0].as_str().unwrap();
        let mut redis = self.parts.redis.clone();
        if random.random_bool(0.5) {
            let heard = redis.publish(CHANNEL, message.to_string()).await.unwrap();
            assert!(heard > 0, "no worker hears the channel");
            self.upstream.note(key, &format!("publish: {message}, heard by {heard}"));
        } else {
            let message = Message::parse(&message.to_string()).unwrap();
            let id = inbox::publish(&mut redis, &self.parts.keys, &message).await.unwrap();
            self.upstream.note(key, &format!("inbox: {}, {id}", message.text().unwrap()));
        }
    }

    // The course of a run

    /// Fetches all keys for the first time.
    async fn fill(&self) {
        let message = Message { keys: self.keys(), action: samovar::protocol::Action::Warm, ..Message::default() };
        self.parts.publish(&message.text().unwrap()).await;
        eventually("all keys are readable", async || {
            let values = self.parts.redis.clone().mget(self.keys()).await.unwrap();
            let missing = values.iter().filter(|value| value.is_none()).count();
            if missing == 0 { Ok(()) } else { Err(missing) }
        })
        .await;
    }

    /// Kills a worker, notes the entries that it may have been warming, and starts another worker.
    async fn kill(&self, random: &mut StdRng, workers: &mut [WorkerProcess], jobs: &JobsFolder) {
        let victim = random.random_range(0..workers.len());
        self.killed.set(Some(Instant::now()));
        workers[victim].kill9();
        let agenda = self.parts.keys.agenda(&JobName::new("art"));
        let scores: Vec<(String, f64)> = self.redis.ask(&["ZRANGE", &agenda, "0", "-1", "WITHSCORES"]).await;
        let warmed = scores
            .into_iter()
            .filter(|(_, score)| matches!(Due::from_score(*score).state, State::Claimed | State::Running));
        let warmed: BTreeSet<String> = warmed.map(|(key, _)| key).collect();
        for document in self.documents.borrow_mut().iter_mut() {
            document.orphan = warmed.contains(&document.key);
            self.upstream.note(&document.key, if document.orphan { "killed its worker" } else { "killed a worker" });
        }
        workers[victim] = worker(&self.redis, jobs);
        self.count("kills");
    }

    /// Waits until the rechecks of all keys have ended, and readers have looked at them since.
    async fn settle(&self) {
        let longest = WARMED + 3 * (self.setting.last_recheck + MARGIN) + Duration::from_secs(20);
        eventually_within(longest, "all keys are settled", async || {
            let settled = self.documents.borrow().iter().filter_map(|document| self.settled_at(document)).max();
            let left = settled.map(|at| (at + Duration::from_secs(1)).saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) || self.is_decided() { Ok(()) } else { Err(left) }
        })
        .await;
    }

    /// Checks that all keys are there at last. Readers have asked for those that were evicted.
    async fn all_there(&self) {
        eventually("all keys are there at last", async || {
            let absent: Vec<String> = {
                let documents = self.documents.borrow();
                let absent = documents.iter().filter(|document| document.last.is_none());
                absent.map(|document| document.key.clone()).collect()
            };
            match absent.first() {
                None => Ok(()),
                Some(key) => {
                    let meta = self.redis.get(&self.parts.keys.meta(&EntryKey::new(key.as_str()))).await;
                    Err(format!("{absent:?}; {meta:?}; {}", self.upstream.history(key)))
                }
            }
        })
        .await;
    }
}

fn worker(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    samovar(["worker"]).redis(redis).jobs(jobs).env("SAMOVAR_CLAIM", "1s").env("SAMOVAR_CONCURRENCY", "24").spawn()
}

/// Runs a world of this setting, and returns it with the faults found.
async fn run(setting: Setting) -> Rc<World> {
    tokio::task::LocalSet::new().run_until(live(setting)).await
}

async fn live(setting: Setting) -> Rc<World> {
    let seed = number_from_environment("SAMOVAR_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let seconds = if setting.sought.is_none() { 12 } else { 60 };
    let time = Duration::from_secs(number_from_environment("SAMOVAR_TEST_SECONDS").unwrap_or(seconds));
    eprintln!("SAMOVAR_TEST_SEED={seed} for {time:?}");
    let (world, jobs) = World::start(setting, seed).await;
    let mut workers: Vec<WorkerProcess> = (0..WORKERS).map(|_| worker(&world.redis, &jobs)).collect();
    listening(&world.redis, WORKERS).await;
    world.fill().await;

    let (first, begun, end) = (world.upstream.fetches(), Instant::now(), CancellationToken::new());
    let (mut editors, mut readers) = (JoinSet::new(), JoinSet::new());
    for n in 0..READERS {
        let (world, end, mut random) = (Rc::clone(&world), end.clone(), StdRng::seed_from_u64(seed ^ (100 + n)));
        readers.spawn_local(async move {
            while !end.is_cancelled() {
                world.read(&mut random).await;
                world.pause(Duration::from_millis(8)).await;
            }
        });
    }
    for n in 0..EDITORS {
        let (world, mut random) = (Rc::clone(&world), StdRng::seed_from_u64(seed ^ (200 + n)));
        editors.spawn_local(async move {
            let edited = world.of_kind(&[Kind::Burst, Kind::Mixed, Kind::Silent]);
            while !world.stop.is_cancelled() {
                let n = *edited.choose(&mut random).unwrap();
                world.burst(&mut random, n).await;
                tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
            }
        });
    }
    let (singles, mut random) = (world.of_kind(&[Kind::Single]), StdRng::seed_from_u64(seed ^ 300));
    {
        let (world, mut random, pause) =
            (Rc::clone(&world), StdRng::seed_from_u64(seed ^ 400), time / (singles.len() as u32 + 1));
        editors.spawn_local(async move {
            for n in singles {
                if world.stop.is_cancelled() {
                    return;
                }
                world.edit(&mut random, n).await;
                tokio::time::sleep(pause).await;
            }
        });
    }
    while begun.elapsed() < time && !world.is_decided() {
        if setting.kills && world.killed.get().is_none() && begun.elapsed() > time / 3 {
            world.kill(&mut random, &mut workers, &jobs).await;
        }
        world.pause(Duration::from_millis(20)).await;
    }
    world.stop.cancel();
    while let Some(ended) = editors.join_next().await {
        ended.unwrap();
    }
    world.settle().await;
    if !world.is_decided() {
        world.all_there().await;
    }
    end.cancel();
    while let Some(ended) = readers.join_next().await {
        ended.unwrap();
    }
    let (edits, fetches) = (world.counted("edits"), world.upstream.fetches() - first);
    world.fetches.set(fetches);
    eprintln!(
        "seed {seed}: {:?}, {fetches} fetches, {:.2} per edit; old for {:.3?} after the lag at most; \
         stalled for {:.3?}; {:.1} s in all",
        world.counts.borrow(),
        fetches as f64 / edits as f64,
        world.latest.get(),
        world.stalled.get(),
        world.begun.elapsed().as_secs_f32(),
    );
    world
}

impl World {
    /// Asserts that there was no fault, and that edits did not cost too many fetches.
    fn assert_faultless(&self) {
        let faults = self.faults.borrow();
        let told: Vec<String> = faults.iter().take(20).map(|(fault, what)| format!("{fault:?} {what}")).collect();
        assert!(faults.is_empty(), "seed {}: {} faults:\n{}", self.seed, faults.len(), told.join("\n"));
        let (edits, fetches) = (self.counted("edits"), self.fetches.get());
        assert!(fetches <= edits * self.setting.most_fetches, "seed {}: {fetches} fetches, {edits} edits", self.seed);
        for what in ["hits", "misses", "evictions", "refreshes", "kills"] {
            assert!(self.counted(what) > 0, "seed {}: nothing was tried: {:?}", self.seed, self.counts.borrow());
        }
    }

    /// Asserts that the fault was found that this run sought.
    fn assert_found(&self) {
        let found = self.faults.borrow();
        assert!(self.is_decided(), "seed {}: {:?} was not found: {found:?}", self.seed, self.setting.sought);
    }
}

#[tokio::test]
async fn without_versions_no_value_stays_old() {
    run(WITHOUT_VERSIONS).await.assert_faultless();
}

#[tokio::test]
async fn with_versions_no_reader_goes_back_or_waits_long() {
    run(WITH_VERSIONS).await.assert_faultless();
}

#[tokio::test]
async fn without_rechecks_values_stay_old() {
    let short = Setting { lag: Duration::from_secs(1), last_recheck: Duration::from_secs(2), ..WITHOUT_VERSIONS };
    run(Setting { recheck: "[]", kills: false, sought: Some(Fault::Old), ..short }).await.assert_found();
}

#[tokio::test]
async fn readers_go_back_where_the_job_tells_no_version() {
    run(Setting { told: false, kills: false, sought: Some(Fault::WentBack), ..WITH_VERSIONS }).await.assert_found();
}

#[tokio::test]
async fn versions_that_nobody_announces_come_late() {
    let list = Setting { recheck: r#"["100ms", "90s"]"#, last_recheck: Duration::from_secs(90), ..WITH_VERSIONS };
    let short = Setting { lag: Duration::from_secs(1), kills: false, sought: Some(Fault::Behind), ..list };
    run(Setting { announced: false, ..short }).await.assert_found();
}
