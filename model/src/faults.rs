//! Faults of the scripts that are known, and the shortest way to each.
//!
//! The search passes them over, and a test walks these ways. Where it no longer finds a fault, the fault is mended:
//! move it to [`MENDED`], and take away what passes it over (`strict` in [`Job`]).

use crate::properties::{FRESH_AT_LAST, NOT_WRITTEN, RECHECKED, WANTED};
use crate::scenarios::{LEASED, PLAIN, Scenario, WARM};
use crate::world::{Action, Job, Kind};

/// A way to a fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The consequence.
    pub what: &'static str,
    /// Where it begins.
    pub scenario: Scenario,
    /// The way.
    pub actions: &'static [Action],
    /// The property that does not hold then.
    pub property: &'static str,
}

const BUDGET: &[(Kind, u8)] = &[
    (Kind::Refresh, 2),
    (Kind::Evict, 2),
    (Kind::Load, 2),
    (Kind::Demand, 2),
    (Kind::Cron, 1),
    (Kind::Manual, 1),
    (Kind::Wake, 1),
    (Kind::Fail, 1),
    (Kind::Lost, 2),
    (Kind::Tick, 2),
    (Kind::Jump, 2),
];

const fn from(setup: &'static [Action]) -> Scenario {
    Scenario { name: "fault", job: Job { strict: true, ..PLAIN }, entries: 1, budget: BUDGET, setup }
}

/// The faults.
pub const KNOWN: &[Fault] = &[Fault {
    what: "An eviction takes an entry off the agenda that waits for the end of a TTL or a recheck. Its worker did not \
               hear that it has the lease; a refresh between the eviction's two scripts has marked that. A loaded \
               value then stays old until its TTL ends.",
    scenario: from(WARM),
    actions: &[
        Action::Evict(0),
        Action::Message(0),
        Action::Load(0),
        Action::Load(0),
        Action::Load(0),
        Action::Jump,
        Action::Jump,
        Action::Work(0),
        Action::Work(0),
        Action::WorkLost(0),
        Action::Refresh(0),
        Action::Message(1),
        Action::Work(0),
        Action::Message(0),
    ],
    property: WANTED,
}];

/// Faults that were found and mended: the ways to them, which no property may object to any more.
pub const MENDED: &[Fault] = &[
    Fault {
        what: "An eviction is handled when the next fetch has begun. A refresh that follows counts as known, and the \
               fetch answers it without rechecks: what the upstream answers late stays old.",
        scenario: Scenario {
            name: "fault",
            job: Job { recheck: true, ..PLAIN },
            entries: 1,
            budget: &[(Kind::RefreshAll, 1), (Kind::EvictAll, 1), (Kind::Demand, 1), (Kind::Tick, 2), (Kind::Jump, 1)],
            setup: WARM,
        },
        actions: &[
            Action::Jump,
            Action::Tick,
            Action::Demand(0),
            Action::RefreshAll,
            Action::EvictAll,
            Action::Work(0),
            Action::Tick,
        ],
        property: RECHECKED,
    },
    Fault {
        what: "Two workers that take an entry in one millisecond, for the same reason, have the same score: the first \
               ends the second's work. A retry is lost if that one fails; the value stays old until its refresh.",
        scenario: from(LEASED),
        actions: &[
            Action::Work(0),
            Action::Work(0),
            Action::Wake(0),
            Action::Work(0),
            Action::Work(1),
            Action::Work(1),
            Action::Work(1),
            Action::Refresh(0),
            Action::Message(0),
            Action::Message(0),
            Action::Work(0),
            Action::Work(0),
            Action::Work(0),
            Action::Work(0),
            Action::Fail(0),
            Action::Work(0),
            Action::Work(0),
            Action::Work(1),
            Action::Work(0),
        ],
        property: FRESH_AT_LAST,
    },
    Fault {
        what: "An eviction takes a later refresh off the agenda, if that is claimed between the eviction's two \
               scripts: cancel.lua cannot tell since when a claimed entry is due. A loaded value then stays old until \
               its TTL ends.",
        scenario: from(WARM),
        actions: &[
            Action::Evict(0),
            Action::Message(0),
            Action::Load(0),
            Action::Load(0),
            Action::Load(0),
            Action::Tick,
            Action::Refresh(0),
            Action::Message(1),
            Action::Message(1),
            Action::Work(0),
            Action::Message(0),
        ],
        property: WANTED,
    },
    Fault {
        what: "An eviction takes an entry off the agenda that a warmup has scheduled since, if it is not claimed yet; \
               a claimed one stays. The key is absent until a demand or the next warmup.",
        scenario: from(&[]),
        actions: &[
            Action::Load(0),
            Action::Load(0),
            Action::Load(0),
            Action::Evict(0),
            Action::Message(0),
            Action::Tick,
            Action::Cron(0),
            Action::Message(0),
        ],
        property: WANTED,
    },
    Fault {
        what: "An eviction takes an urgent refresh off the agenda, under which a later one hides: both came while no \
               worker claimed.",
        scenario: from(WARM),
        actions: &[
            Action::Refresh(0),
            Action::Message(0),
            Action::Message(0),
            Action::Tick,
            Action::Evict(0),
            Action::Message(0),
            Action::Tick,
            Action::Load(0),
            Action::Load(0),
            Action::Load(0),
            Action::Tick,
            Action::Refresh(0),
            Action::Message(1),
            Action::Message(1),
            Action::Message(0),
        ],
        property: WANTED,
    },
    Fault {
        what: "As above, under an urgent manual request.",
        scenario: from(WARM),
        actions: &[
            Action::Manual(0),
            Action::Tick,
            Action::Evict(0),
            Action::Message(0),
            Action::Tick,
            Action::Load(0),
            Action::Load(0),
            Action::Load(0),
            Action::Tick,
            Action::Refresh(0),
            Action::Message(1),
            Action::Message(1),
            Action::Message(0),
        ],
        property: WANTED,
    },
    Fault {
        what: "An eviction takes a later refresh off the agenda that a worker has taken, and that has no lease yet.",
        scenario: from(WARM),
        actions: &[
            Action::Evict(0),
            Action::Message(0),
            Action::Load(0),
            Action::Load(0),
            Action::Load(0),
            Action::Tick,
            Action::Refresh(0),
            Action::Message(1),
            Action::Message(1),
            Action::Work(0),
            Action::Work(0),
            Action::Message(0),
        ],
        property: WANTED,
    },
    Fault {
        what: "An eviction takes a running entry off the agenda whose worker did not hear that it has the lease, and a \
               later refresh has marked that.",
        scenario: from(WARM),
        actions: &[
            Action::Evict(0),
            Action::Message(0),
            Action::Load(0),
            Action::Load(0),
            Action::Load(0),
            Action::Demand(0),
            Action::Work(0),
            Action::Work(0),
            Action::WorkLost(0),
            Action::Refresh(0),
            Action::Message(1),
            Action::Message(0),
            Action::Work(0),
        ],
        property: WANTED,
    },
    Fault {
        what: "A commit, sent again after its reply was lost, writes an answer from before a refresh, if the lease \
               began, was marked and was renewed in one millisecond: the fence cannot tell the two starts apart.",
        scenario: from(LEASED),
        actions: &[
            Action::Work(0),
            Action::Work(0),
            Action::Refresh(0),
            Action::Message(0),
            Action::WorkLost(0),
            Action::Work(0),
        ],
        property: NOT_WRITTEN,
    },
    Fault {
        what: "A value that a service loads after an eviction outlives the metadata that remember the eviction \
               (KEEPTTL in invalidate.lua). A refresh that these note is forgotten with them, and a demand takes the \
               value for fresh.",
        scenario: from(&[]),
        actions: &[
            Action::Evict(0),
            Action::Message(0),
            Action::Load(0),
            Action::Load(0),
            Action::Load(0),
            Action::Refresh(0),
            Action::Message(0),
            Action::Demand(0),
            Action::Jump,
            Action::Work(0),
        ],
        property: FRESH_AT_LAST,
    },
];
