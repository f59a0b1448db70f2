//! The long form of the search of gap detection: each scenario for so many seconds. `knowledge [SECONDS] [SCENARIO]`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use samovar_model::knowledge::rules::Rules;
use samovar_model::knowledge::scenarios::ALL;
use samovar_model::knowledge::search::{Bounds, search, tell};

/// The most states of a scenario: they are kept in memory.
const STATES: usize = 8_000_000;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).map_or(Ok(60), |text| text.parse());
    let only = std::env::args().nth(2);
    let Ok(seconds) = seconds else {
        eprintln!("that is no number; write knowledge [SECONDS] [SCENARIO]");
        return ExitCode::from(2);
    };
    if only.as_ref().is_some_and(|only| ALL.iter().all(|scenario| scenario.name != only)) {
        let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        eprintln!("there is no such scenario; the scenarios are: {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut code = ExitCode::SUCCESS;
    for scenario in ALL.iter().filter(|of| only.as_ref().is_none_or(|only| of.name == only)) {
        let began = Instant::now();
        let until = Some(began + Duration::from_secs(seconds));
        let found = search(scenario, Rules::ALL, Bounds { states: STATES, rested: 64, until });
        let all = if found.is_complete { "all" } else { "in part" };
        let seconds = began.elapsed().as_secs_f32();
        println!("{:30} {:>9} states, depth {:>2} ({all}), {seconds:.0} s", scenario.name, found.states, found.depth);
        if let Some((violation, actions)) = found.failure {
            println!("{violation}\n{}", tell(scenario, Rules::ALL, &actions));
            code = ExitCode::FAILURE;
        }
    }
    code
}
