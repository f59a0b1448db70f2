//! The long form of the proof: searches all scenarios, storms and schedules for so many seconds each, and prints what
//! was searched. `prove [SECONDS] [SEED] [SCENARIO]`.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use samovar_model::engine::Engine;
use samovar_model::explorer::{Bounds, search, tell};
use samovar_model::scenarios::ALL;
use samovar_model::schedules;
use samovar_model::storms::Storm;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(60);
    let time = Duration::from_secs(seconds);
    let seed = std::env::args().nth(2).and_then(|text| text.parse().ok());
    let only = std::env::args().nth(3);
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
        let done = schedules::walk(&engine, seed, 200).and_then(|()| Storm::of(seed).rage(&engine).map(|_| ()));
        if let Err(violation) = done {
            println!("schedules or storms, seed {seed}: {violation}");
            return ExitCode::FAILURE;
        }
        count += 1;
    }
    println!("{count} storms, and as many random walks over schedules and locks");
    code
}
