//! The search: breadth first, so that the first failure is a shortest one.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::time::Instant;

use super::rules::Rules;
use super::scenarios::Scenario;
use super::{Action, Violation, World};

/// The bounds of a search.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most states.
    pub states: usize,
    /// One in so many states is let come to rest, although no value is stale in it.
    pub rested: u64,
    /// When the search ends at the latest.
    pub until: Option<Instant>,
}

/// The result of a search.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps from the beginning to the farthest state.
    pub depth: usize,
    /// All states that the scenario's bounds allow were seen.
    pub is_complete: bool,
    /// The first failure, and the shortest way to it.
    pub failure: Option<(Violation, Vec<Action>)>,
}

/// A hasher that is faster than the standard one.
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(29) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 31)
    }
}

fn hash(world: &World) -> u64 {
    let mut hasher = Mix(1);
    world.hash(&mut hasher);
    hasher.finish()
}

/// Checks a state: a stale value that nothing in Redis marks must not stay.
fn check(world: &World, rules: Rules, scenario: &Scenario, is_rested: bool) -> Result<(), Violation> {
    if scenario.is_calm && world.noted.0 > 0 {
        return Err(Violation("a gap is noted although a worker heard everything".to_owned()));
    }
    if world.is_in_danger() || is_rested { world.rest(rules, !is_rested, |_| ()) } else { Ok(()) }
}

/// Searches a scenario under these rules.
pub fn search(scenario: &Scenario, rules: Rules, bounds: Bounds) -> Found {
    let first = World::begin(scenario);
    let mut found = Found::default();
    let mut seen = HashSet::from([hash(&first)]);
    // For the way back: the state before, and the action.
    let mut ways: Vec<(u32, Action)> = vec![(0, Action::Go)];
    let mut frontier = vec![(0_u32, first)];
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for (at, world) in &frontier {
            for action in world.actions(scenario) {
                let mut after = world.clone();
                after.apply(rules, scenario, action);
                let id = hash(&after);
                if !seen.insert(id) {
                    continue;
                }
                let here = u32::try_from(ways.len()).unwrap_or(u32::MAX);
                ways.push((*at, action));
                // Left alone, the fleet goes on. So a fault shows after the last step that is no part of that.
                let is_rested = id.is_multiple_of(bounds.rested);
                if action == Action::Go && !is_rested && !scenario.is_calm && !after.is_over() {
                    next.push((here, after));
                    continue;
                }
                if let Err(violation) = check(&after, rules, scenario, is_rested) {
                    (found.states, found.depth) = (seen.len(), found.depth + 1);
                    found.failure = Some((violation, way(&ways, here)));
                    return found;
                }
                next.push((here, after));
            }
            if seen.len() >= bounds.states || bounds.until.is_some_and(|until| Instant::now() >= until) {
                found.states = seen.len();
                return found;
            }
        }
        found.depth += usize::from(!next.is_empty());
        frontier = next;
    }
    (found.states, found.is_complete) = (seen.len(), true);
    found
}

fn way(ways: &[(u32, Action)], at: u32) -> Vec<Action> {
    let back = std::iter::successors(Some(at), |at| Some(ways[*at as usize].0)).take_while(|at| *at != 0);
    let mut actions: Vec<Action> = back.map(|at| ways[at as usize].1).collect();
    actions.reverse();
    actions
}

/// Tells a way step by step.
pub fn tell(scenario: &Scenario, rules: Rules, actions: &[Action]) -> String {
    let mut world = World::begin(scenario);
    let mut text = format!("scenario {}\n    at first\n{world}", scenario.name);
    for action in actions {
        world.apply(rules, scenario, *action);
        let _ = write!(text, "    {action:?}\n{world}");
    }
    text.push_str("    left alone\n");
    let mut rounds = Vec::new();
    let rest = world.rest(rules, false, |world| rounds.push(world.to_string()));
    for round in rounds {
        let _ = writeln!(text, "{round}");
    }
    let _ = writeln!(text, "    at rest: {rest:?}");
    text
}
