//! The state that the parts of a simulation share: randomness, the trace, the plan, and an observer's knowledge.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Response;
use tokio::sync::{Notify, oneshot};

use crate::files::{Files, Job};
use crate::machine;
use crate::plan::Plan;
use crate::random::Random;
use crate::trace::Trace;

/// Tells the sequence of the plan's requests for many from the others of a seed.
const OF_BULK: u64 = 0xB0_1C;

/// A property that does not hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    /// The property.
    pub(crate) property: &'static str,
    /// The finding.
    pub(crate) found: String,
    /// The text that lines about it contain.
    pub(crate) subject: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.found)
    }
}

/// A request to the upstream: of a worker, or of the service that loads.
#[derive(Debug)]
pub(crate) struct Request {
    /// The item.
    pub(crate) name: String,
    /// When the upstream received it.
    pub(crate) arrived: Duration,
}

/// Where the answer to a request goes.
pub(crate) type Flight = Arc<Mutex<Option<oneshot::Sender<Response<Vec<u8>>>>>>;

/// An item at the upstream, and what is known of its entry.
#[derive(Debug, Default)]
pub(crate) struct Item {
    /// The revisions, and since when; `None` where there was no such item.
    pub(crate) revisions: Vec<(Duration, Option<u32>)>,
    /// The last revision.
    pub(crate) last: u32,
    /// When the last message was published that is handled by now; nothing requested before may be written.
    pub(crate) handled: Option<Duration>,
    /// When the last request arrived that was answered with 304: the value counts as fetched then.
    pub(crate) confirmed: Option<Duration>,
    /// The last value that was seen, its revision and its expiry (ms of Redis's clock).
    pub(crate) seen: Option<(String, u64, i64)>,
    /// The time of the last eviction that removed the value or fenced a fetch (ms of Redis's clock).
    pub(crate) evicted: Option<i64>,
    /// When a service or a message last made the entry due.
    pub(crate) wanted: Duration,
    /// Until when a fetch that an eviction has fenced may still send its request.
    pub(crate) fenced_until: Duration,
    /// Until when a fetch that was evicted may send its request beside others, since a service's load has its lease.
    pub(crate) taken_over_until: Duration,
    /// Since when nobody wants the entry, which was evicted.
    pub(crate) unwanted: Option<Duration>,
}

/// A value that is made from an artwork.
#[derive(Debug)]
pub(crate) struct Made {
    /// The value.
    pub(crate) text: String,
    /// When it was written.
    pub(crate) since: Duration,
}

/// The messages that name an entry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Named {
    /// Those that are being published.
    pub(crate) pending: usize,
    /// When the last one was published.
    pub(crate) last: Duration,
}

/// A request to the model.
#[derive(Debug)]
pub(crate) struct Call {
    /// When it arrived.
    pub(crate) arrived: Duration,
}

impl Item {
    /// Returns the revision at this time; `None` for none.
    pub(crate) fn at(&self, time: Duration) -> Option<u32> {
        self.revisions.iter().rev().find(|(since, _)| *since <= time).and_then(|(_, revision)| *revision)
    }
}

/// A message in the inbox.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// When it was added.
    pub(crate) at: Duration,
    /// Its time by Redis's clock (ms). Its ID tells another time if the clock was set back before.
    pub(crate) clock: i64,
    /// The keys that it concerns.
    pub(crate) keys: Vec<String>,
    /// It evicts.
    pub(crate) evicts: bool,
    /// The version that it announces.
    pub(crate) version: Option<u64>,
}

/// The numbers of what happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) commands: u64,
    pub(crate) edits: u64,
    pub(crate) deaths: u64,
    pub(crate) values: u64,
}

/// The shared state.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    pub(crate) plan: Plan,
    pub(crate) items: BTreeMap<String, Item>,
    pub(crate) requests: Vec<Request>,
    /// The values that are made from artworks, by key.
    pub(crate) made: BTreeMap<String, Made>,
    /// The requests of workers that are under way, by key: each is taken when it is answered.
    pub(crate) flights: BTreeMap<String, Vec<Flight>>,
    pub(crate) calls: Vec<Call>,
    /// The tokens that the model has counted since Redis last lost data.
    pub(crate) spent: u64,
    /// Entries that messages name, by key.
    pub(crate) named: BTreeMap<String, Named>,
    /// The names that the feed has.
    pub(crate) feed: BTreeSet<String>,
    /// The present job files.
    pub(crate) files: Files,
    /// A job that is paused, since when.
    pub(crate) paused: Option<(Job, Duration)>,
    pub(crate) published: BTreeMap<String, Published>,
    /// The last time at which Redis's data or clock went back: what was before cannot be compared with what came after.
    pub(crate) broke: Duration,
    /// The last time at which Redis stopped, lost data, or set its clock.
    pub(crate) disturbed: Option<Duration>,
    /// The last time at which messages may have been lost.
    pub(crate) lost: Option<Duration>,
    /// Hosts that died. Nothing that they send arrives.
    pub(crate) dead: BTreeSet<String>,
    /// Workers that have beaten: their start is over.
    pub(crate) started: BTreeSet<String>,
    /// The upstream fails for everything until then.
    pub(crate) outage: Duration,
    /// The upstream has no artwork until then.
    pub(crate) vanished: Duration,
    /// Hosts that are told to stop.
    pub(crate) stopping: BTreeSet<String>,
    /// Faults and edits have ended.
    pub(crate) is_quiet: bool,
    /// Editors that have not published all.
    pub(crate) busy_editors: usize,
    pub(crate) violation: Option<Violation>,
    pub(crate) counts: Counts,
}

/// A handle on the shared state.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    world: Arc<Mutex<World>>,
    /// Told of a violation, and of events that the network does not expect.
    pub(crate) changed: Arc<Notify>,
}

impl Shared {
    /// Returns the world of a seed.
    pub(crate) fn new(seed: u64, prints: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::of(&mut random).with_bulk(&mut Random::new(seed ^ OF_BULK));
        let items = plan.names().map(|name| {
            let item = Item { revisions: vec![(Duration::ZERO, Some(1))], last: 1, ..Item::default() };
            (name.clone(), item)
        });
        let items = items.collect();
        let feed = plan.fed.iter().take(1).cloned().collect();
        let world = World {
            random,
            trace: Trace::new(prints),
            plan,
            items,
            requests: Vec::new(),
            made: BTreeMap::new(),
            flights: BTreeMap::new(),
            calls: Vec::new(),
            spent: 0,
            named: BTreeMap::new(),
            feed,
            files: Files::FIRST,
            paused: None,
            published: BTreeMap::new(),
            broke: Duration::ZERO,
            disturbed: None,
            lost: None,
            dead: BTreeSet::new(),
            started: BTreeSet::new(),
            outage: Duration::ZERO,
            vanished: Duration::ZERO,
            stopping: BTreeSet::new(),
            is_quiet: false,
            busy_editors: 0,
            violation: None,
            counts: Counts::default(),
        };
        Self { world: Arc::new(Mutex::new(world)), changed: Arc::default() }
    }

    /// Returns the state. Never hold it over a wait.
    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a step to the trace.
    pub(crate) fn tell(&self, text: impl AsRef<str>) {
        self.lock().tell(text);
    }
}

impl World {
    /// Adds a step to the trace.
    pub(crate) fn tell(&mut self, text: impl AsRef<str>) {
        self.trace.add(machine::elapsed(), text.as_ref());
    }

    /// Notes a property that does not hold; the first one counts.
    pub(crate) fn violated(&mut self, property: &'static str, found: String, subject: &str) {
        if self.violation.is_none() {
            self.tell(format!("VIOLATION {property}: {found}"));
            self.violation = Some(Violation { property, found, subject: subject.to_owned() });
        }
    }

    /// Returns a waiting time around a mean.
    pub(crate) fn around(&mut self, mean: Duration) -> Duration {
        let mean = u64::try_from(mean.as_millis()).unwrap_or(u64::MAX / 2);
        // Short ones are frequent, long ones are possible.
        let spread = self.random.within(0..=mean) + self.random.within(0..=mean) * self.random.within(0..=2) / 2;
        Duration::from_millis(spread)
    }
}
