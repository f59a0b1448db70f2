//! The search: breadth first, so that the first failure is the shortest, then random walks.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::properties::settle;
use crate::scenarios::Scenario;
use crate::storms::Storm;
use crate::world::{Action, Load, Violation, World};

/// A failure, and how to come to it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The actions from the scenario's beginning.
    pub actions: Vec<Action>,
    /// The property that does not hold afterwards.
    pub violation: Violation,
    /// The seed of the random walk that found it.
    pub seed: Option<u64>,
}

/// The result of a search.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Steps from the beginning to the farthest state.
    pub depth: usize,
    /// All states to that depth were seen.
    pub is_complete: bool,
    /// Random steps.
    pub steps: usize,
    /// The first failure.
    pub failure: Option<Failure>,
}

/// The bounds of a search.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most steps from the beginning.
    pub depth: usize,
    /// The most states.
    pub states: usize,
    /// Random walks after that.
    pub walks: usize,
    /// Steps of a walk.
    pub steps: usize,
    /// One in so many states is let come to rest.
    pub settled: u64,
    /// The seed of the first walk.
    pub seed: u64,
    /// When the search ends at the latest.
    pub until: Option<Instant>,
}

impl Bounds {
    /// Returns bounds that end after this time.
    #[must_use]
    pub fn within(self, time: Duration) -> Self {
        Self { until: Some(Instant::now() + time), ..self }
    }

    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

fn hash(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// A small generator of random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns the next number below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap_or(0)
    }
}

impl World {
    /// Returns true if an action can happen now.
    pub fn can(&self, engine: &Engine, action: Action) -> bool {
        match action {
            Action::Message(n) | Action::MessageLost(n) | Action::MessageCrash(n) => {
                self.messages.get(n).is_some_and(|message| message.retry_at <= self.now())
            }
            Action::Work(n) => self.has_work(engine, n),
            Action::WorkLost(_) | Action::WorkLate(_) => self.actions(engine, 1).contains(&action),
            Action::Crash(n) => self.workers[n].task.is_some(),
            Action::Fail(n) | Action::Lag(n) | Action::HandBack(n) => {
                self.workers[n].task.as_ref().is_some_and(|task| task.stage == crate::world::Stage::Leased)
            }
            Action::Arrive => !self.late.is_empty(),
            Action::Forget => !self.swept.is_empty(),
            Action::LoadLost | Action::LoadCrash | Action::LoadFails => self.load != Load::None,
            Action::Load(entry) => self.load != Load::None || self.actions(engine, entry + 1).contains(&action),
            _ => action.kind().is_none_or(|kind| self.left[kind as usize] > 0),
        }
    }

    /// Returns the actions that a fair scheduler takes next.
    pub fn fair(&self, engine: &Engine) -> Vec<Action> {
        let mut next: Vec<Action> = Vec::new();
        next.extend((0..self.messages.len()).rev().map(Action::Message));
        next.extend((0..self.workers.len()).map(Action::Work));
        next.extend((self.load != Load::None).then_some(Action::Load(0)));
        next.extend((!self.swept.is_empty()).then_some(Action::Forget));
        next.retain(|action| self.can(engine, *action));
        next
    }
}

/// Searches a scenario.
pub fn search(engine: &Engine, scenario: &Scenario, bounds: Bounds) -> Found {
    let mut found = breadth_first(engine, scenario, bounds);
    if found.failure.is_none() {
        random_walks(engine, scenario, bounds, &mut found);
    }
    found
}

fn breadth_first(engine: &Engine, scenario: &Scenario, bounds: Bounds) -> Found {
    let mut found = Found { is_complete: true, ..Found::default() };
    let first = match scenario.begin(engine, 1) {
        Ok(world) => world,
        Err(violation) => return failed(found, Vec::new(), violation),
    };
    let mut seen = HashSet::from([hash(&first)]);
    // For the way back: the state before, and the action.
    let mut ways: Vec<(u32, Action)> = vec![(0, Action::Tick)];
    let mut frontier = vec![(0_u32, first)];
    let way = |ways: &[(u32, Action)], mut at: u32| {
        let mut actions = Vec::new();
        while at != 0 {
            actions.push(ways[at as usize].1);
            at = ways[at as usize].0;
        }
        actions.reverse();
        actions
    };
    while !frontier.is_empty() && found.depth < bounds.depth {
        let mut next = Vec::new();
        for (at, world) in &frontier {
            for action in world.actions(engine, scenario.entries) {
                let mut after = world.clone();
                let step = after.apply(engine, action);
                if let Err(violation) = step {
                    let mut actions = way(&ways, *at);
                    actions.push(action);
                    return failed(found, actions, violation);
                }
                let id = hash(&after);
                if !seen.insert(id) {
                    continue;
                }
                ways.push((*at, action));
                let here = u32::try_from(ways.len() - 1).unwrap_or(u32::MAX);
                if id.is_multiple_of(bounds.settled)
                    && let Err(violation) = settle(engine, &after)
                {
                    return failed(found, way(&ways, here), violation);
                }
                next.push((here, after));
            }
            if seen.len() >= bounds.states || bounds.is_over() {
                found.is_complete = false;
                break;
            }
        }
        found.states = seen.len();
        if !found.is_complete {
            return found;
        }
        if next.is_empty() {
            break;
        }
        found.depth += 1;
        frontier = next;
    }
    found.states = seen.len();
    found
}

fn failed(found: Found, actions: Vec<Action>, violation: Violation) -> Found {
    Found { failure: Some(Failure { actions, violation, seed: None }), ..found }
}

fn random_walks(engine: &Engine, scenario: &Scenario, bounds: Bounds, found: &mut Found) {
    for walk in 0..bounds.walks {
        if bounds.is_over() {
            return;
        }
        let seed = bounds.seed.wrapping_add(walk as u64);
        let (actions, result) = walk_once(engine, scenario, seed, bounds.steps);
        found.steps += actions.len();
        if let Err(violation) = result {
            let actions = shrink(engine, scenario, actions, &violation);
            let violation = replay(engine, scenario, &actions).err().unwrap_or(violation);
            found.failure = Some(Failure { actions, violation, seed: Some(seed) });
            return;
        }
    }
}

/// Walks at random, and lets the world come to rest; returns the actions.
pub fn walk_once(
    engine: &Engine,
    scenario: &Scenario,
    seed: u64,
    steps: usize,
) -> (Vec<Action>, Result<(), Violation>) {
    let mut random = Random(seed);
    let mut actions = Vec::new();
    let mut world = match scenario.begin(engine, 4) {
        Ok(world) => world,
        Err(violation) => return (actions, Err(violation)),
    };
    for _ in 0..steps {
        let all = world.actions(engine, scenario.entries);
        // Work goes on more often than the world changes.
        let (work, change): (Vec<_>, Vec<_>) = all.into_iter().partition(|action| action.kind().is_none());
        let some = if change.is_empty() || !work.is_empty() && random.below(3) > 0 { &work } else { &change };
        if some.is_empty() {
            break;
        }
        let action = some[random.below(some.len())];
        actions.push(action);
        if let Err(violation) = world.apply(engine, action) {
            return (actions, Err(violation));
        }
    }
    let rest = settle(engine, &world);
    (actions, rest)
}

/// Repeats actions, leaving out those that cannot happen, and lets the world come to rest.
///
/// # Errors
/// The property that does not hold.
pub fn replay(engine: &Engine, scenario: &Scenario, actions: &[Action]) -> Result<(), Violation> {
    let mut world = scenario.begin(engine, 4)?;
    for action in actions {
        if world.can(engine, *action) {
            world.apply(engine, *action)?;
        }
    }
    settle(engine, &world)
}

/// Leaves out actions as long as the same property fails.
fn shrink(engine: &Engine, scenario: &Scenario, mut actions: Vec<Action>, violation: &Violation) -> Vec<Action> {
    let fails =
        |actions: &[Action]| replay(engine, scenario, actions).is_err_and(|found| found.property == violation.property);
    if !fails(&actions) {
        return actions;
    }
    let mut size = actions.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < actions.len() {
            let mut fewer = actions.clone();
            fewer.drain(at..(at + size).min(fewer.len()));
            if fails(&fewer) {
                actions = fewer;
            } else {
                at += size;
            }
        }
        size = if size == 1 && fails_without_one(&actions, &fails) { 1 } else { size / 2 };
    }
    actions
}

fn fails_without_one(actions: &[Action], fails: &dyn Fn(&[Action]) -> bool) -> bool {
    (0..actions.len()).any(|at| {
        let mut fewer = actions.to_vec();
        fewer.remove(at);
        fails(&fewer)
    })
}

/// Tells a failure step by step, with the state of each key.
pub fn tell(engine: &Engine, scenario: &Scenario, failure: &Failure) -> String {
    let mut text = format!("scenario {}: {}\n", scenario.name, failure.violation);
    if let Some(seed) = failure.seed {
        let _ = writeln!(text, "  seed {seed}");
    }
    let Ok(mut world) = scenario.begin(engine, 4) else { return text };
    let _ = writeln!(text, "    at first\n{world}");
    engine.record();
    for action in &failure.actions {
        if !world.can(engine, *action) {
            continue;
        }
        let _ = engine.recorded();
        let step = world.apply(engine, *action);
        let _ = writeln!(text, "    {action:?}");
        for asked in engine.recorded() {
            let _ = match asked {
                crate::engine::Asked::Clock(at) => writeln!(text, "      clock {}", at / 1_000),
                crate::engine::Asked::Script(call, reply) => {
                    writeln!(text, "      {} {:?} -> {reply:?}", call.script.path(), call.args)
                }
                crate::engine::Asked::Command(words, reply) => writeln!(text, "      {words:?} -> {reply:?}"),
            };
        }
        let _ = writeln!(text, "{world}");
        if let Err(violation) = step {
            let _ = writeln!(text, "    {violation}");
            return text;
        }
    }
    let _ = writeln!(text, "    at rest: {:?}", settle(engine, &world).err().map(|violation| violation.to_string()));
    text
}

/// The effort of a hunt in one scenario.
#[derive(Clone, Copy)]
struct Effort {
    seed: u64,
    states: usize,
    walks: usize,
}

/// Little of each scenario, then more of each.
const EFFORTS: [Effort; 3] = [
    Effort { seed: 1_000, states: 150, walks: 12 },
    Effort { seed: 2_000, states: 600, walks: 60 },
    Effort { seed: 3_000, states: 0, walks: 400 },
];

impl Effort {
    fn search(self, engine: &Engine, scenario: &Scenario) -> Option<Failure> {
        let Self { seed, states, walks } = self;
        search(engine, scenario, Bounds { depth: 100, states, walks, steps: 60, settled: 8, seed, until: None }).failure
    }
}

/// Searches all scenarios briefly for a failure of a script of this file: `first`, then those that use the file.
pub fn hunt(engine: &Engine, file: &str, first: Option<&str>) -> Option<(&'static str, Failure)> {
    if let Some(name) = first {
        let scenario = crate::scenarios::ALL.iter().find(|scenario| scenario.name == name).expect("a scenario's name");
        if let Some(failure) = EFFORTS.iter().find_map(|effort| effort.search(engine, scenario)) {
            return Some((scenario.name, failure));
        }
    }
    if file.starts_with("source/") {
        let fails = |seed| Some((seed, crate::limits::walk(engine, seed, 150, None).err()?));
        let (seed, violation) = (1..2_000).find_map(fails)?;
        return Some(("limits", Failure { actions: Vec::new(), violation, seed: Some(seed) }));
    }
    let uses = |scenario: &&Scenario| match file.split('/').next() {
        Some("agenda") => scenario.entries == 2,
        _ if file.contains("guard") => scenario.job.held,
        Some("cache") => scenario.budget.iter().any(|(kind, _)| {
            matches!(kind, crate::world::Kind::Load | crate::world::Kind::Set | crate::world::Kind::Increment)
        }),
        _ if file.contains("tag") || file.contains("stamp") || file.contains("unknown") => scenario.job.tagged,
        _ => true,
    };
    let (users, rest): (Vec<_>, Vec<_>) = crate::scenarios::ALL.iter().partition(uses);
    if file.starts_with("ops/") || file.starts_with("telemetry/") {
        // No scenario runs them.
        let failed = |seed| crate::reports::walk(engine, seed, 200).err().map(|violation| (seed, violation));
        let (seed, violation) = (0..400).find_map(failed)?;
        return Some(("reports", Failure { actions: Vec::new(), violation, seed: Some(seed) }));
    }
    if (file.contains("guard") || file.contains("admit") || file.contains("claim") || file.contains("take.lua"))
        && let Some(failure) = by_themselves(engine, 0..24)
    {
        return Some(failure);
    }
    if file.starts_with("trigger/") {
        for seed in 1..400 {
            if let Err(violation) = crate::schedules::walk(engine, seed, 120) {
                return Some(("schedules", Failure { actions: Vec::new(), violation, seed: Some(seed) }));
            }
        }
    }
    for effort @ Effort { seed, walks, .. } in EFFORTS {
        for scenario in users.iter().chain(&rest) {
            if let Some(failure) = effort.search(engine, scenario) {
                return Some((scenario.name, failure));
            }
        }
        for walk in 0..walks as u64 {
            if let Err(violation) = crate::schedules::walk(engine, seed + walk, 120) {
                return Some(("schedules", Failure { actions: Vec::new(), violation, seed: Some(seed + walk) }));
            }
        }
        if let Some(failure) = by_themselves(engine, seed..seed + walks as u64) {
            return Some(failure);
        }
        for walk in 0..walks as u64 / 10 {
            if let Err(violation) = Storm::of(seed + walk).rage(engine) {
                return Some(("storms", Failure { actions: Vec::new(), violation, seed: Some(seed + walk) }));
            }
        }
    }
    None
}

/// Calls the scripts of guards, of rate limits and of claims at random, with these seeds.
fn by_themselves(engine: &Engine, seeds: std::ops::Range<u64>) -> Option<(&'static str, Failure)> {
    for seed in seeds {
        let guards = crate::guards::walk(engine, seed, 200).map_err(|violation| ("guards", violation));
        let walks = guards
            .and_then(|()| crate::rate_limits::walk(engine, seed, 200).map_err(|found| ("rate limits", found)))
            .and_then(|()| crate::claims::walk(engine, seed, 200).map_err(|found| ("claims", found)));
        if let Err((name, violation)) = walks {
            return Some((name, Failure { actions: Vec::new(), violation, seed: Some(seed) }));
        }
    }
    None
}
