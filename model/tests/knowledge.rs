//! The short form of the search of gap detection: what holds, and that each protection is needed.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "tests read how long they are to take")]

use std::fmt::Write as _;

use samovar_model::knowledge::rules::{KEPT, NEEDED, Rules};
use samovar_model::knowledge::scenarios::{ALL, Scenario};
use samovar_model::knowledge::search::{Bounds, Found, search, tell};

/// States of each scenario; the long form has its own bounds.
const STATES: usize = 20_000;
/// States within which a protection that is taken out must be missed.
const MISSED_WITHIN: usize = 80_000;

fn scenario(name: &str) -> &'static Scenario {
    ALL.iter().find(|scenario| scenario.name == name).unwrap()
}

fn bounds(states: usize) -> Bounds {
    let times: usize = std::env::var("SAMOVAR_MODEL_KNOWLEDGE").map_or(1, |times| times.parse().unwrap());
    Bounds { states: states * times, rested: 16, until: None }
}

#[test]
fn no_message_is_missed_for_good_in_any_scenario() {
    for scenario in ALL {
        let Found { states, depth, is_complete, failure } = search(scenario, Rules::ALL, bounds(STATES));
        println!("{}: {states} states, depth {depth}{}", scenario.name, if is_complete { ", all" } else { "" });
        if let Some((violation, actions)) = failure {
            panic!("{violation}\n{}", tell(scenario, Rules::ALL, &actions));
        }
    }
}

#[test]
fn each_protection_that_is_taken_out_is_missed() {
    let mut unneeded = String::new();
    for (rule, name) in NEEDED {
        let found = search(scenario(name), Rules::ALL.without(*rule), bounds(MISSED_WITHIN));
        match found.failure {
            Some((violation, way)) => println!("{rule:?}, {name}: {} states: {violation}: {way:?}", found.states),
            None => _ = writeln!(unneeded, "{rule:?} is not needed in `{name}`"),
        }
    }
    assert!(unneeded.is_empty(), "{unneeded}");
}

#[test]
fn protections_that_are_kept_for_other_reasons_are_not_needed() {
    for (rule, _) in KEPT {
        for name in ["restarts", "strangers", "clock back", "clock back, an open gap"] {
            let found = search(scenario(name), Rules::ALL.without(*rule), bounds(STATES / 4));
            assert!(found.failure.is_none(), "{rule:?} is needed in `{name}`: it belongs to NEEDED");
        }
    }
}
