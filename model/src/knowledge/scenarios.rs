//! The scenarios: which workers there are, and what may happen to them.

use super::{Jobs, Kind, Restart};

/// A fleet, and what may happen.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The jobs that each worker knows.
    pub workers: &'static [Jobs],
    /// So many of them run at first.
    pub running: usize,
    /// The jobs whose content is edited.
    pub edited: Jobs,
    /// Jobs whose values are kept without a request, unless messages were lost.
    pub paid: Jobs,
    /// The number of times that each kind of action may happen.
    pub budget: &'static [(Kind, u8)],
    /// By how many ticks the clock may be set back.
    pub back: &'static [u8],
    /// The ways in which Redis may restart.
    pub restarts: &'static [Restart],
    /// One worker hears everything: no gap may be noted.
    pub is_calm: bool,
}

impl Scenario {
    /// Returns all jobs that a worker knows.
    pub fn all_jobs(&self) -> Jobs {
        self.workers.iter().fold(0, |all, jobs| all | jobs)
    }
}

const PLAIN: Scenario = Scenario {
    name: "",
    workers: &[1, 1],
    running: 2,
    edited: 1,
    paid: 0,
    budget: &[],
    back: &[],
    restarts: &[],
    is_calm: false,
};

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "flapping",
        budget: &[
            (Kind::Tick, 8),
            (Kind::Publish, 1),
            (Kind::Cut, 3),
            (Kind::Kill, 1),
            (Kind::Start, 1),
            (Kind::Stick, 1),
        ],
        workers: &[1, 1, 1],
        ..PLAIN
    },
    Scenario {
        name: "a first fleet",
        workers: &[1, 1, 1],
        running: 0,
        budget: &[(Kind::Tick, 8), (Kind::Publish, 1), (Kind::Cut, 2), (Kind::Kill, 1), (Kind::Start, 2)],
        ..PLAIN
    },
    Scenario {
        name: "heard, not handled",
        budget: &[(Kind::Tick, 9), (Kind::Publish, 1), (Kind::Cut, 1), (Kind::Kill, 1), (Kind::Stick, 1)],
        ..PLAIN
    },
    Scenario {
        name: "a newcomer",
        budget: &[
            (Kind::Tick, 8),
            (Kind::Publish, 1),
            (Kind::Cut, 2),
            (Kind::Kill, 1),
            (Kind::Start, 2),
            (Kind::Skip, 1),
        ],
        workers: &[1, 1, 1],
        running: 1,
        ..PLAIN
    },
    Scenario {
        name: "after a weekend",
        workers: &[1, 1, 1],
        running: 1,
        budget: &[(Kind::Tick, 16), (Kind::Publish, 1), (Kind::Kill, 1), (Kind::Start, 2), (Kind::Skip, 2)],
        ..PLAIN
    },
    Scenario {
        name: "different jobs",
        workers: &[1, 2, 3],
        budget: &[(Kind::Tick, 8), (Kind::Publish, 1), (Kind::Cut, 2), (Kind::Kill, 1), (Kind::Start, 1)],
        ..PLAIN
    },
    Scenario {
        name: "a job that comes to be known",
        workers: &[2, 1, 3],
        running: 1,
        budget: &[
            (Kind::Tick, 9),
            (Kind::Publish, 1),
            (Kind::Cut, 1),
            (Kind::Kill, 1),
            (Kind::Start, 2),
            (Kind::Retire, 1),
        ],
        ..PLAIN
    },
    Scenario {
        name: "strangers",
        budget: &[
            (Kind::Tick, 7),
            (Kind::Publish, 1),
            (Kind::Cut, 1),
            (Kind::Kill, 1),
            (Kind::Start, 1),
            (Kind::Forge, 1),
            (Kind::Refetch, 1),
        ],
        running: 1,
        ..PLAIN
    },
    Scenario {
        name: "long absence",
        workers: &[1, 2, 1],
        budget: &[(Kind::Tick, 16), (Kind::Publish, 1), (Kind::Freeze, 1), (Kind::Cut, 1), (Kind::Start, 1)],
        ..PLAIN
    },
    Scenario {
        name: "stalled",
        budget: &[(Kind::Tick, 10), (Kind::Publish, 1), (Kind::Stall, 2), (Kind::Kill, 1)],
        ..PLAIN
    },
    Scenario {
        name: "clock back",
        budget: &[
            (Kind::Tick, 8),
            (Kind::Publish, 1),
            (Kind::Cut, 2),
            (Kind::Kill, 1),
            (Kind::Back, 1),
            (Kind::Stick, 1),
        ],
        back: &[1, 2, 4],
        ..PLAIN
    },
    Scenario {
        name: "clock back, one worker",
        workers: &[1, 1],
        running: 1,
        budget: &[
            (Kind::Tick, 8),
            (Kind::Publish, 1),
            (Kind::Cut, 1),
            (Kind::Kill, 1),
            (Kind::Start, 1),
            (Kind::Back, 1),
        ],
        back: &[1, 3, 5],
        ..PLAIN
    },
    Scenario {
        name: "clock back, an open gap",
        workers: &[1, 2],
        running: 1,
        budget: &[(Kind::Tick, 9), (Kind::Publish, 1), (Kind::Cut, 1), (Kind::Back, 1), (Kind::Refetch, 1)],
        back: &[2, 4],
        ..PLAIN
    },
    Scenario {
        name: "clock back twice, an open gap",
        workers: &[1, 2],
        running: 1,
        budget: &[(Kind::Tick, 11), (Kind::Publish, 1), (Kind::Cut, 1), (Kind::Back, 2), (Kind::Refetch, 1)],
        back: &[2, 4],
        ..PLAIN
    },
    Scenario {
        name: "restarts",
        budget: &[(Kind::Tick, 7), (Kind::Publish, 1), (Kind::Kill, 1), (Kind::Restart, 2), (Kind::Start, 1)],
        workers: &[1, 1],
        running: 1,
        restarts: &[Restart::Kept, Restart::Empty, Restart::Older],
        ..PLAIN
    },
    Scenario {
        name: "revalidation",
        workers: &[3, 1, 2],
        running: 2,
        edited: 3,
        budget: &[
            (Kind::Tick, 8),
            (Kind::Publish, 2),
            (Kind::Cut, 2),
            (Kind::Kill, 1),
            (Kind::Start, 1),
            (Kind::Unlock, 1),
        ],
        ..PLAIN
    },
    Scenario {
        name: "a revalidator dies",
        budget: &[(Kind::Tick, 9), (Kind::Publish, 1), (Kind::Cut, 2), (Kind::Kill, 1)],
        ..PLAIN
    },
    Scenario {
        name: "a job that vanishes",
        workers: &[1, 2],
        budget: &[(Kind::Tick, 9), (Kind::Publish, 1), (Kind::Restart, 1), (Kind::Kill, 1), (Kind::Vanish, 1)],
        restarts: &[Restart::Kept],
        ..PLAIN
    },
    Scenario {
        name: "a gap during another",
        budget: &[(Kind::Tick, 9), (Kind::Publish, 1), (Kind::Restart, 1), (Kind::Skip, 3)],
        running: 1,
        restarts: &[Restart::Kept],
        ..PLAIN
    },
    Scenario {
        name: "the inbox",
        workers: &[1, 2, 3],
        budget: &[
            (Kind::Tick, 6),
            (Kind::Letter, 2),
            (Kind::Kill, 1),
            (Kind::Start, 1),
            (Kind::Trim, 1),
            (Kind::Evict, 1),
        ],
        ..PLAIN
    },
    Scenario {
        name: "a lost inbox, paid for",
        workers: &[3],
        running: 1,
        edited: 3,
        paid: 3,
        budget: &[(Kind::Tick, 9), (Kind::Letter, 2), (Kind::Restart, 1)],
        restarts: &[Restart::Kept, Restart::Empty, Restart::Older],
        ..PLAIN
    },
    Scenario {
        name: "calm",
        workers: &[1, 3, 1],
        running: 2,
        budget: &[(Kind::Tick, 9), (Kind::Publish, 1), (Kind::Start, 1), (Kind::Skip, 1)],
        is_calm: true,
        ..PLAIN
    },
];
