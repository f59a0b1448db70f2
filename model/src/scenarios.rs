//! The scenarios: which job, what is there at first, and what may happen how often.

use crate::engine::Engine;
use crate::world::{Action, Job, Kind, Violation, World};

/// A part of the world that is searched by itself.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The name.
    pub name: &'static str,
    /// The job.
    pub job: Job,
    /// The number of entries.
    pub entries: usize,
    /// The most actions of each kind; four times as many in random walks.
    pub budget: &'static [(Kind, u8)],
    /// The actions before the search.
    pub setup: &'static [Action],
}

pub(crate) const PLAIN: Job = Job {
    tagged: false,
    versions: false,
    paid: false,
    stale: false,
    recheck: false,
    etags: false,
    attempts: 0,
    held: false,
    channel: false,
    loads: false,
    doubts: false,
    strict: false,
    without: None,
};

/// A value that a worker warmed, seconds ago.
pub(crate) const WARM: &[Action] = &[
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
];
/// Two such values.
const WARM_BOTH: &[Action] = &[
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Manual(1),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
];
/// An entry under the tag, and an answer for another one.
const FETCHED_TAGGED: &[Action] = &[
    Action::Manual(1),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
];
/// A value whose version was announced.
const VERSION_1: &[Action] = &[
    Action::Announce(0),
    Action::Message(0),
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
];
/// A fetch that is under way.
pub(crate) const LEASED: &[Action] = &[Action::Manual(0), Action::Work(0), Action::Work(0), Action::Work(0)];
/// A value that outlives its TTL, whose upstream has failed four times.
const OUTLIVES: &[Action] = &[
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Late,
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Fail(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Jump,
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Fail(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Jump,
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Fail(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Jump,
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Fail(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
];
/// A value that a worker warmed, with the steps that a tag takes.
const WARM_TAGGED: &[Action] = &[
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
];
/// As above; other tags, which no entry has, were invalidated.
const WARM_STAMPED: &[Action] = &[
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
    Action::OtherTag,
    Action::OtherTag,
    Action::OtherTag,
];

/// A value whose removal is held back.
const HELD: &[Action] = &[
    Action::Manual(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
    Action::Lose(0),
    Action::Doubt(0),
    Action::Message(0),
    Action::Message(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Work(0),
    Action::Tick,
];

use Kind::{
    Accept, Announce, AnyVersion, Back, Crash, Cron, Delete, Demand, Doubt, Evict, EvictAll, EvictTag, Fail, FarBack,
    Foreign, ForeignForever, ForeignHash, HandBack, Increment, Jump, Lag, Late, Load, Lose, LoseGuard, Lost, Manual,
    OtherTag, Pause, Refresh, RefreshAll, RefreshTag, Repeat, Set, Stranger, Sweep, Tick, Uphold, Vanish, Wake,
};

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "edits",
        job: PLAIN,
        entries: 1,
        budget: &[(Refresh, 2), (Evict, 1), (Tick, 2), (Jump, 2), (Crash, 1), (Demand, 1)],
        setup: WARM,
    },
    Scenario {
        name: "patterns",
        job: Job { recheck: true, ..PLAIN },
        entries: 1,
        budget: &[(RefreshAll, 2), (EvictAll, 1), (Demand, 1), (Load, 1), (Crash, 1), (Tick, 2), (Jump, 2)],
        setup: WARM,
    },
    Scenario {
        name: "lost replies",
        job: Job { channel: true, ..PLAIN },
        entries: 1,
        budget: &[(Refresh, 1), (Evict, 1), (Lost, 2), (Crash, 1), (Tick, 1), (Jump, 2), (HandBack, 1), (Manual, 1)],
        setup: WARM,
    },
    Scenario {
        name: "a lost commit",
        job: PLAIN,
        entries: 1,
        budget: &[(Refresh, 1), (Lost, 1), (Tick, 2), (Vanish, 1)],
        setup: LEASED,
    },
    Scenario {
        name: "outlives its TTL",
        job: Job { stale: true, etags: true, ..PLAIN },
        entries: 1,
        budget: &[(Refresh, 1), (Repeat, 1), (Evict, 1), (Fail, 2), (Wake, 1), (Foreign, 1), (Tick, 1), (Jump, 4)],
        setup: OUTLIVES,
    },
    Scenario {
        name: "other writers",
        job: Job { recheck: true, etags: true, ..PLAIN },
        entries: 1,
        budget: &[
            (Refresh, 1),
            (Evict, 1),
            (Foreign, 1),
            (ForeignForever, 1),
            (ForeignHash, 1),
            (Set, 2),
            (Delete, 1),
            (Vanish, 1),
            (Demand, 1),
            (Tick, 1),
            (Jump, 2),
        ],
        setup: WARM,
    },
    Scenario {
        name: "loads",
        job: Job { recheck: true, ..PLAIN },
        entries: 1,
        budget: &[
            (Load, 2),
            (Refresh, 2),
            (Evict, 1),
            (Demand, 1),
            (Set, 1),
            (Delete, 1),
            (Lost, 1),
            (Crash, 1),
            (Fail, 1),
            (Foreign, 1),
            (Tick, 1),
            (Jump, 2),
        ],
        setup: &[],
    },
    Scenario {
        name: "failures",
        job: Job { stale: true, attempts: 3, ..PLAIN },
        entries: 1,
        budget: &[
            (Refresh, 2),
            (Evict, 1),
            (Fail, 3),
            (Crash, 3),
            (Vanish, 1),
            (Manual, 1),
            (Cron, 1),
            (Tick, 1),
            (Jump, 4),
        ],
        setup: WARM,
    },
    Scenario {
        name: "unchanged",
        job: Job { etags: true, stale: true, ..PLAIN },
        entries: 1,
        budget: &[(Refresh, 1), (Repeat, 2), (Evict, 1), (Manual, 2), (Foreign, 1), (Fail, 1), (Tick, 1), (Jump, 3)],
        setup: WARM,
    },
    Scenario {
        name: "held back",
        job: Job { held: true, stale: true, ..PLAIN },
        entries: 1,
        budget: &[
            (Repeat, 2),
            (Doubt, 2),
            (Evict, 1),
            (Fail, 1),
            (Lose, 1),
            (Refresh, 1),
            (Manual, 2),
            (Crash, 1),
            (Lost, 1),
            (LoseGuard, 1),
            (Late, 1),
            (Tick, 2),
            (Jump, 6),
        ],
        setup: HELD,
    },
    Scenario {
        name: "a guard",
        job: Job { held: true, stale: true, ..PLAIN },
        entries: 2,
        budget: &[
            (Lose, 2),
            (Refresh, 2),
            (Evict, 1),
            (Crash, 1),
            (Lost, 1),
            (Fail, 1),
            (Accept, 1),
            (Uphold, 1),
            (Sweep, 2),
            (Late, 1),
            (Manual, 2),
            (Tick, 1),
            (Jump, 6),
        ],
        setup: WARM_BOTH,
    },
    Scenario {
        name: "paid for",
        job: Job { paid: true, ..PLAIN },
        entries: 1,
        budget: &[(Refresh, 2), (Repeat, 1), (Manual, 2), (Cron, 1), (Crash, 1), (Tick, 1), (Jump, 3)],
        setup: WARM,
    },
    Scenario {
        name: "paid for, in doubt",
        job: Job { paid: true, doubts: true, ..PLAIN },
        entries: 1,
        budget: &[(Doubt, 2), (Manual, 1), (Cron, 1), (Crash, 1), (HandBack, 1), (Tick, 2), (Jump, 2)],
        setup: WARM,
    },
    Scenario {
        name: "tags",
        job: Job { tagged: true, ..PLAIN },
        entries: 1,
        budget: &[
            (RefreshTag, 2),
            (EvictTag, 1),
            (Refresh, 1),
            (OtherTag, 2),
            (Manual, 1),
            (Crash, 1),
            (Sweep, 1),
            (Tick, 2),
            (Jump, 2),
        ],
        setup: WARM_TAGGED,
    },
    Scenario {
        name: "tags of a new entry",
        job: Job { tagged: true, stale: true, recheck: true, ..PLAIN },
        entries: 1,
        budget: &[
            (RefreshTag, 2),
            (EvictTag, 2),
            (OtherTag, 2),
            (Demand, 1),
            (Lost, 1),
            (Fail, 1),
            (Sweep, 1),
            (Tick, 2),
            (Jump, 2),
        ],
        setup: &[],
    },
    Scenario {
        name: "a tag that others have",
        job: Job { tagged: true, ..PLAIN },
        entries: 1,
        budget: &[(RefreshTag, 1), (EvictTag, 1), (OtherTag, 2), (Sweep, 1), (Tick, 2), (Jump, 1)],
        setup: FETCHED_TAGGED,
    },
    Scenario {
        name: "loads under a tag",
        job: Job { tagged: true, loads: true, recheck: true, ..PLAIN },
        entries: 1,
        budget: &[(Load, 2), (RefreshTag, 2), (EvictTag, 1), (Demand, 1), (Lost, 1), (Crash, 1), (Tick, 2), (Jump, 2)],
        setup: &[],
    },
    Scenario {
        name: "a slow load",
        job: PLAIN,
        entries: 1,
        budget: &[(Load, 1), (Refresh, 1), (Evict, 1), (Fail, 1), (Lost, 1), (Tick, 1), (Jump, 2)],
        setup: &[Action::Load(0), Action::Demand(0), Action::Work(0), Action::Work(0)],
    },
    Scenario {
        name: "versions",
        job: Job { versions: true, etags: true, recheck: true, ..PLAIN },
        entries: 1,
        budget: &[(Announce, 2), (AnyVersion, 1), (Lag, 3), (Vanish, 1), (Crash, 1), (Manual, 1), (Tick, 1), (Jump, 4)],
        setup: VERSION_1,
    },
    Scenario {
        name: "dead letters",
        job: Job { attempts: 1, ..PLAIN },
        entries: 2,
        budget: &[(Fail, 2), (Cron, 2), (Manual, 1), (Demand, 1), (Tick, 1)],
        setup: &[],
    },
    Scenario {
        name: "strangers' keys",
        job: Job { attempts: 2, ..PLAIN },
        entries: 1,
        budget: &[(Stranger, 1), (Refresh, 1), (Fail, 3), (Manual, 1), (Demand, 1), (Tick, 1), (Jump, 2)],
        setup: WARM,
    },
    Scenario {
        name: "two entries",
        job: Job { recheck: true, attempts: 1, ..PLAIN },
        entries: 2,
        budget: &[
            (Refresh, 2),
            (Evict, 2),
            (Demand, 2),
            (Manual, 1),
            (Cron, 2),
            (Fail, 2),
            (Pause, 2),
            (Tick, 2),
            (Jump, 3),
            (Crash, 1),
            (HandBack, 1),
            (Increment, 3),
            (Wake, 2),
        ],
        setup: &[],
    },
    Scenario {
        name: "clock back a little",
        job: PLAIN,
        entries: 1,
        budget: &[(Refresh, 2), (Evict, 1), (Back, 2), (Tick, 2), (Jump, 1), (Demand, 1)],
        setup: WARM,
    },
    Scenario {
        name: "clock back far",
        job: Job { tagged: true, ..PLAIN },
        entries: 1,
        budget: &[
            (Refresh, 1),
            (RefreshTag, 1),
            (Evict, 1),
            (FarBack, 1),
            (Load, 1),
            (Demand, 1),
            (Crash, 1),
            (Tick, 1),
            (Jump, 2),
            (Sweep, 1),
            (OtherTag, 3),
        ],
        setup: WARM_STAMPED,
    },
];

impl Scenario {
    /// Returns the world at the scenario's beginning; each kind of action may happen so many times as often.
    ///
    /// # Errors
    /// A property that does not hold even then.
    pub fn begin(&self, engine: &Engine, times: u8) -> Result<World, Violation> {
        let mut world = World::new(self.job, self.budget);
        engine.set_clock(&mut world.db, crate::world::EPOCH);
        for action in self.setup {
            if world.can(engine, *action) || action.kind().is_some() {
                world.apply(engine, *action)?;
            }
        }
        world.left = World::new(self.job, self.budget).left.map(|left| left * times);
        (world.fetches, world.landed) = (0, 0);
        Ok(world)
    }
}
