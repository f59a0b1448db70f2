//! The long form of the proof: searches all scenarios, storms and schedules for so many seconds each, and prints what
//! was searched. `prove [SECONDS] [SEED] [SCENARIO]`.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use samovar_model::engine::Engine;
use samovar_model::explorer::{Bounds, search, tell};
use samovar_model::guards;
use samovar_model::rate_limits;
use samovar_model::reports;
use samovar_model::scenarios::ALL;
use samovar_model::schedules;
use samovar_model::storms::Storm;

fn main() -> ExitCode {
    let argument = |n| std::env::args().nth(n).map_or(Ok(None), |text| text.parse::<u64>().map(Some).map_err(|_| text));
    let only = std::env::args().nth(3);
    let (time, seed) = match (argument(1), argument(2)) {
        (Ok(seconds), Ok(seed)) => (Duration::from_secs(seconds.unwrap_or(60)), seed),
        (Err(text), _) | (_, Err(text)) => {
            eprintln!("`{text}` is no number; write prove [SECONDS] [SEED] [SCENARIO]");
            return ExitCode::from(2);
        }
    };
    if only.as_ref().is_some_and(|only| ALL.iter().all(|scenario| scenario.name != only)) {
        let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        eprintln!("there is no such scenario; the scenarios are: {}", names.join(", "));
        return ExitCode::from(2);
    }
    let seed = seed.unwrap_or_else(|| SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_secs() << 20));
    let mut code = ExitCode::SUCCESS;
    for scenario in ALL.iter().filter(|of| only.as_ref().is_none_or(|only| of.name == only)) {
        let engine = Engine::new(None);
        let began = Instant::now();
        let bounds = Bounds { depth: 100, states: 300_000, walks: 0, steps: 80, settled: 32, seed, until: None };
        let mut found = search(&engine, scenario, bounds.within(time / 2));
        if found.failure.is_none() {
            let walks = search(&engine, scenario, Bounds { states: 1, walks: usize::MAX, ..bounds }.within(time / 2));
            (found.steps, found.failure) = (walks.steps, walks.failure);
        }
        let all = if found.is_complete { "all" } else { "in part" };
        println!(
            "{:20} {:>7} states, depth {:>2} ({all}), {:>7} random steps, {:.0} s",
            scenario.name,
            found.states,
            found.depth,
            found.steps,
            began.elapsed().as_secs_f32()
        );
        if let Some(failure) = &found.failure {
            println!("{}", tell(&engine, scenario, failure));
            code = ExitCode::FAILURE;
        }
    }
    let engine = Engine::new(None);
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < time && only.is_none() {
        let seed = seed.wrapping_add(count);
        let walks = schedules::walk(&engine, seed, 200)
            .and_then(|()| guards::walk(&engine, seed, 200))
            .and_then(|()| rate_limits::walk(&engine, seed, 200))
            .and_then(|()| reports::walk(&engine, seed, 200));
        let done = walks.and_then(|()| Storm::of(seed).rage(&engine).map(|_| ()));
        if let Err(violation) = done {
            println!("schedules, guards, limits, reports or storms, seed {seed}: {violation}");
            return ExitCode::FAILURE;
        }
        count += 1;
    }
    println!("{count} storms, and as many random walks over schedules and locks, guards, limits and reports");
    code
}
