//! Searches all scenarios for long, and prints what was searched.
use std::time::{Duration, Instant};
use samovar_model::engine::Engine;
use samovar_model::explorer::{Bounds, search, tell};
use samovar_model::scenarios::ALL;

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let only = std::env::args().nth(2);
    let states = std::env::args().nth(3).and_then(|text| text.parse().ok()).unwrap_or(400_000);
    for scenario in ALL.iter().filter(|of| only.as_ref().is_none_or(|only| of.name == only)) {
        let engine = Engine::new(None);
        let began = Instant::now();
        let bounds =
            Bounds { depth: 100, states, walks: 20_000, steps: 60, settled: 32, seed: 1, until: None }
                .within(Duration::from_secs(seconds));
        let found = search(&engine, scenario, bounds);
        println!("{:22} {:>8} states, depth {:>3}{}, {:>8} random steps, {:.1} s", scenario.name, found.states, found.depth,
            if found.is_complete { " (complete)" } else { "" }, found.steps, began.elapsed().as_secs_f32());
        if let Some(failure) = &found.failure {
            println!("{}", tell(&engine, scenario, failure));
        }
    }
}
