//! The short form of the proof: all scenarios, storms and schedules; the coverage of the scripts; and their mutants.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "tests read how long they are to take")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use samovar_model::claims;
use samovar_model::engine::Engine;
use samovar_model::explorer::{Bounds, hunt, replay, search, tell, walk_once};
use samovar_model::faults::{KNOWN, MENDED};
use samovar_model::guards;
use samovar_model::limits;
use samovar_model::mends::MENDS;
use samovar_model::mutants::{EQUIVALENT, KILLED};
use samovar_model::rate_limits;
use samovar_model::reports;
use samovar_model::scenarios::ALL;
use samovar_model::schedules;
use samovar_model::storms::Storm;

/// Lines that no scenario runs, and why.
const NEVER_RUN: &[(&str, &str, &str)] = &[
    ("agenda/lua/cancel.lua", "end", LOOP),
    ("agenda/lua/due.lua", "end", LOOP),
    ("agenda/lua/finish.lua", "end", LOOP),
    ("agenda/lua/take.lua", "end", LOOP),
    ("store/lua/read_unknown.lua", "end", LOOP),
    ("source/limits/lua/state.lua", "local noted", LOWERED),
    ("source/limits/lua/state.lua", "return type(noted)", LOWERED),
    ("agenda/lua/finish.lua", "local oldest", "Ten thousand dead letters: see tests/agenda.rs."),
    ("agenda/lua/due.lua", "how, latest, at = 'there'", SOON),
    ("agenda/lua/due.lua", "move = false", SOON),
    ("trigger/lua/end_tick.lua", "local time", AGAIN),
    ("trigger/lua/end_tick.lua", "local now", AGAIN),
    ("trigger/lua/end_tick.lua", "next = math.min", AGAIN),
    ("cache/lua/commit_load.lua", "ARGV[2], 'NX')", "A load without a TTL: see tests/cache.rs."),
    (
        "store/lua/meta.lua",
        "match(note, ",
        "Metadata of the previous version, which nothing here writes: see tests/codecs.rs.",
    ),
];

const LOWERED: &str = "A budget that a reload lowers below what is spent: see tests/spending.rs.";
const SOON: &str = "Waits for inputs, which no entry has here: see tests/agenda.rs.";
const AGAIN: &str = "A warmup that a person asks for while another runs: see tests/feeds.rs.";
const LOOP: &str = "Lua's `for … in` carries out the jump at its end itself, so no hook sees it.";

#[test]
fn all_properties_hold_in_every_scenario() {
    let engine = Engine::new(None);
    for scenario in ALL {
        let began = Instant::now();
        let bounds = Bounds { depth: 100, states: 4_000, walks: 60, steps: 60, settled: 16, seed: 1, until: None };
        let found = search(&engine, scenario, bounds);
        println!(
            "{}: {} states, depth {}, {} random steps, {:.1?}",
            scenario.name,
            found.states,
            found.depth,
            found.steps,
            began.elapsed()
        );
        if let Some(failure) = &found.failure {
            panic!("{}", tell(&engine, scenario, failure));
        }
    }
}

#[test]
fn in_storms_fetches_land_and_are_few() {
    let engine = Engine::new(None);
    for seed in 0..60 {
        if let Err(violation) = Storm::of(seed).rage(&engine) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn ticks_and_locks_have_one_holder() {
    let engine = Engine::new(None);
    for seed in 0..500 {
        if let Err(violation) = schedules::walk(&engine, seed, 120) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn guards_hold_what_they_must_and_nothing_else() {
    let engine = Engine::new(None);
    for seed in 0..500 {
        if let Err(violation) = guards::walk(&engine, seed, 200) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn reads_and_audits_are_counted_as_their_headers_state() {
    let engine = Engine::new(None);
    for seed in 0..500 {
        if let Err(violation) = reports::walk(&engine, seed, 200) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn claims_and_takes_do_what_their_headers_state() {
    let engine = Engine::new(None);
    for seed in 0..500 {
        if let Err(violation) = claims::walk(&engine, seed, 200) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn budgets_hold_and_refusals_end() {
    let engine = Engine::new(None);
    for seed in 0..1_500 {
        if let Err(violation) = limits::walk(&engine, seed, 150, None) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn a_limit_is_never_exceeded_and_always_used() {
    let engine = Engine::new(None);
    for seed in 0..500 {
        if let Err(violation) = rate_limits::walk(&engine, seed, 200) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn each_mend_that_is_taken_out_is_missed() {
    let mut unmissed = String::new();
    for mend in MENDS {
        assert!(mend.is_there(), "{:?} is not there once", mend.revert);
        let began = Instant::now();
        match mend.missed() {
            Some((failure, how)) => {
                println!("{:.1?} {how}: {}: {}", began.elapsed(), mend.what, failure.violation);
                if failure.violation.property != mend.property {
                    let _ = writeln!(unmissed, "{}: another property fails: {}", mend.what, failure.violation);
                }
            }
            None => _ = writeln!(unmissed, "{}: nothing finds it", mend.what),
        }
    }
    assert!(unmissed.is_empty(), "{unmissed}");
}

#[test]
fn known_faults_are_still_there() {
    let engine = Engine::new(None);
    for fault in KNOWN {
        let found = replay(&engine, &fault.scenario, fault.actions).err();
        assert_eq!(found.map(|found| found.property), Some(fault.property), "mended? {}", fault.what);
    }
}

#[test]
fn mended_faults_stay_mended() {
    let engine = Engine::new(None);
    for fault in MENDED {
        assert_eq!(replay(&engine, &fault.scenario, fault.actions), Ok(()), "{}", fault.what);
    }
}

/// The search that hunts mutants finds nothing in the scripts as they are.
#[test]
fn the_hunt_for_mutants_finds_no_fault_in_the_scripts() {
    let engine = Engine::new(None);
    // For each file it searches all scenarios, in another order; for this one, it looks at guards as well.
    if let Some((name, failure)) = hunt(&engine, "store/lua/guard.lua", None) {
        match ALL.iter().find(|scenario| scenario.name == name) {
            Some(scenario) => panic!("{}", tell(&engine, scenario, &failure)),
            None => panic!("{name}: {failure:?}"),
        }
    }
}

#[test]
fn each_mutant_is_killed() {
    let next = AtomicUsize::new(0);
    let (survivors, killers) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::<String, usize>::new()));
    for mutant in KILLED.iter().chain(EQUIVALENT.iter().map(|(mutant, _)| mutant)) {
        assert_eq!(mutant.places(), Some(1), "{}: {:?} is not there once", mutant.file, mutant.from);
    }
    // Of one file only, while one works on it.
    let only = std::env::var("SAMOVAR_MODEL_MUTANTS").unwrap_or_default();
    let mutants: Vec<_> = KILLED.iter().filter(|mutant| mutant.file.contains(&only)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    let engine = Engine::new(Some(mutant));
                    if MENDED.iter().any(|fault| replay(&engine, &fault.scenario, fault.actions).is_err()) {
                        *killers.lock().unwrap().entry("a mended fault is back".to_owned()).or_default() += 1;
                        continue;
                    }
                    let found = hunt(&engine, mutant.file, mutant.first);
                    let property = found.as_ref().map_or("SURVIVES", |(_, failure)| failure.violation.property);
                    let scenario = found.as_ref().map_or("", |(scenario, _)| scenario);
                    println!(
                        "{:.1?} {} {:?} => {:?}: {property} [{scenario}]",
                        began.elapsed(),
                        mutant.file,
                        mutant.from,
                        mutant.to
                    );
                    *killers.lock().unwrap().entry(property.to_owned()).or_default() += 1;
                    if found.is_none() {
                        survivors.lock().unwrap().push(mutant);
                    }
                }
            });
        }
    });
    let survivors = survivors.into_inner().unwrap();
    println!("{} of {} killed: {:#?}", mutants.len() - survivors.len(), mutants.len(), killers.into_inner().unwrap());
    assert!(survivors.is_empty(), "no property notices these: {survivors:#?}");
}

#[test]
fn each_line_of_the_scripts_runs() {
    let engine = Engine::new(None);
    engine.watch_lines();
    for scenario in ALL {
        for seed in 0..100 {
            let (_, result) = walk_once(&engine, scenario, seed, 60);
            assert_eq!(result, Ok(()), "{} {seed}", scenario.name);
        }
    }
    for seed in 0..60 {
        assert_eq!(schedules::walk(&engine, seed, 120), Ok(()), "{seed}");
        assert_eq!(guards::walk(&engine, seed, 200), Ok(()), "{seed}");
        assert_eq!(rate_limits::walk(&engine, seed, 200), Ok(()), "{seed}");
        assert_eq!(claims::walk(&engine, seed, 200), Ok(()), "{seed}");
        assert_eq!(reports::walk(&engine, seed, 200), Ok(()), "{seed}");
    }
    for seed in 0..300 {
        assert_eq!(limits::walk(&engine, seed, 150, None), Ok(()), "{seed}");
    }
    let (never, lines) = engine.never_ran();
    let (mut unexplained, mut count) = (String::new(), 0);
    for (file, numbers) in &never {
        let path = format!("{}/../src/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        for number in numbers {
            let line = text.lines().nth(number - 1).unwrap_or_default();
            count += 1;
            if !NEVER_RUN.iter().any(|(of, part, _)| of == file && line.contains(part)) {
                let _ = writeln!(unexplained, "{file}:{number}: {line}");
            }
        }
    }
    println!("{} of {lines} lines of code ran", lines - count);
    assert!(unexplained.is_empty(), "these lines never ran:\n{unexplained}");
}
