//! Faults that were found by reading the code, or by attacking real processes, and mended. Without its mend, a search
//! must find each of them again. docs/verification.md tells more of them, and those that other searches find.

use crate::engine::Engine;
use crate::explorer::{Bounds, Failure, search};
use crate::limits;
use crate::properties::{BOUNDED, BUDGET, CONTRACT, COUNTED, STARVED, STAYS, WANTED};
use crate::scenarios::{ALL, Scenario};
use crate::scripts::Mutant;
use crate::storms::Storm;
use crate::world::{Job, Rule};

/// The change that takes a mend out.
#[derive(Clone, Copy, Debug)]
pub enum Revert {
    /// Of a script.
    Script(Mutant),
    /// Of a script's caller, as the model has it.
    Caller(Rule),
}

/// The search that finds a fault.
#[derive(Clone, Copy, Debug)]
pub enum Search {
    /// Of the scenario with this name.
    Scenario(&'static str),
    /// Storms.
    Storms,
    /// Random requests to an upstream.
    Limits,
}

/// A mend.
#[derive(Clone, Copy, Debug)]
pub struct Mend {
    /// The fault.
    pub what: &'static str,
    /// The change that brings the fault back.
    pub revert: Revert,
    /// The search that finds it.
    pub search: Search,
    /// The property that does not hold then.
    pub property: &'static str,
}

const fn script(file: &'static str, from: &'static str, to: &'static str) -> Revert {
    Revert::Script(Mutant::new(file, from, to))
}

/// The mends.
pub const MENDS: &[Mend] = &[
    Mend {
        what: "A tag that is invalidated again and again keeps an entry from being fetched for the first time.",
        revert: Revert::Caller(Rule::IndexedRounds),
        search: Search::Storms,
        property: STARVED,
    },
    Mend {
        what: "After Redis's clock was set back, an invalidation passes over a fetch that seems to begin later.",
        revert: script("store/lua/invalidate.lua", "return at <= S or at > now end", "return at <= S end"),
        search: Search::Scenario("clock back far"),
        property: CONTRACT,
    },
    Mend {
        what: "After Redis's clock was set back, a rate limit waits until the clock has caught up.",
        revert: script("source/limits/lua/take_permit.lua", "if tat > latest then", "if false then"),
        search: Search::Limits,
        property: BOUNDED,
    },
    Mend {
        what: "A service's write during a refresh takes the entry off the agenda.",
        revert: Revert::Caller(Rule::AfterForeign),
        search: Search::Scenario("other writers"),
        property: STAYS,
    },
    Mend {
        what: "An invalidation by a tag passes over what a service loaded.",
        revert: Revert::Caller(Rule::Loaded),
        search: Search::Scenario("loads under a tag"),
        property: WANTED,
    },
    Mend {
        what: "A load that began before workers asked for loads is not tracked, and no search finds it.",
        revert: script(
            "store/lua/tag.lua",
            "redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])",
            "",
        ),
        search: Search::Scenario("loads under a tag"),
        property: WANTED,
    },
    Mend {
        what: "A fetch writes over a hash or list that another program wrote meanwhile.",
        revert: script(
            "store/lua/commit.lua",
            "if not before and redis.call('TYPE', KEYS[1]).ok ~= 'none' then",
            "if false then",
        ),
        search: Search::Scenario("other writers"),
        property: CONTRACT,
    },
    Mend {
        what: "An upstream's 404 deletes a hash or list that another program wrote meanwhile.",
        revert: script("store/lua/gone.lua", "if kind ~= 'string' and kind ~= 'none' then", "if false then"),
        search: Search::Scenario("other writers"),
        property: CONTRACT,
    },
    Mend {
        what: "Requests under way pass the budget together.",
        revert: script(
            "source/limits/lua/take_permit.lua",
            "if window() + held + kept + tokens > budget and (held > 0 or kept > 0) then",
            "if false then",
        ),
        search: Search::Limits,
        property: BUDGET,
    },
    Mend {
        what: "Tokens are lost if Redis is away when a request ends.",
        revert: Revert::Caller(Rule::Owed),
        search: Search::Limits,
        property: COUNTED,
    },
    Mend {
        what: "Tokens count twice if the command that tells them is answered too late, and is sent again.",
        revert: script(
            "source/limits/lua/state.lua",
            "local tokens = spent_in_all - math.max(counted, heard)",
            "local tokens = spent_in_all - heard",
        ),
        search: Search::Limits,
        property: COUNTED,
    },
    Mend {
        what: "A permit goes back before its request's tokens are counted: others spend them once more.",
        revert: Revert::Caller(Rule::OwedFirst),
        search: Search::Limits,
        property: BUDGET,
    },
    Mend {
        what: "Another program's text in the place of the dead letters keeps entries in hand.",
        revert: script("agenda/lua/finish.lua", "local reply = redis.pcall(...)", "local reply = redis.call(...)"),
        search: Search::Scenario("strangers' keys"),
        property: CONTRACT,
    },
];

impl Mend {
    /// Returns true if the text to change is in its script once.
    pub fn is_there(&self) -> bool {
        match self.revert {
            Revert::Script(mutant) => mutant.places() == Some(1),
            Revert::Caller(_) => true,
        }
    }

    /// Searches without the mend; returns the failure and what was searched until then.
    pub fn missed(&self) -> Option<(Failure, String)> {
        let (mutant, without) = match &self.revert {
            Revert::Script(mutant) => (Some(mutant), None),
            Revert::Caller(rule) => (None, Some(*rule)),
        };
        let engine = Engine::new(mutant);
        let of_seed =
            |violation, seed| (Failure { actions: Vec::new(), violation, seed: Some(seed) }, format!("seed {seed}"));
        match self.search {
            Search::Scenario(name) => {
                let scenario = ALL.iter().find(|scenario| scenario.name == name)?;
                let scenario = Scenario { job: Job { without, ..scenario.job }, ..*scenario };
                let bounds =
                    Bounds { depth: 100, states: 8_000, walks: 2_000, steps: 60, settled: 8, seed: 1, until: None };
                let found = search(&engine, &scenario, bounds);
                let failure = found.failure?;
                let how = match failure.seed {
                    Some(seed) => format!("seed {seed}, {} steps", failure.actions.len()),
                    None => format!("depth {}", failure.actions.len()),
                };
                Some((failure, how))
            }
            Search::Storms => (0..200).find_map(|seed| {
                let storm = Storm::of(seed);
                let storm = Storm { job: Job { without, ..storm.job }, ..storm };
                Some(of_seed(storm.rage(&engine).err()?, seed))
            }),
            Search::Limits => {
                (0..6_000).find_map(|seed| Some(of_seed(limits::walk(&engine, seed, 150, without).err()?, seed)))
            }
        }
    }
}
