//! Tells which property kills each mutant.
use std::time::Instant;
use samovar_model::engine::Engine;
use samovar_model::explorer::hunt;
use samovar_model::mutants::KILLED;

fn main() {
    let only = std::env::args().nth(1);
    if only.as_deref() == Some("baseline") {
        let engine = Engine::new(None);
        for file in ["store/"] {
            if let Some((name, failure)) = hunt(&engine, file) {
                let scenario = samovar_model::scenarios::ALL.iter().find(|of| of.name == name).unwrap();
                println!("{}", samovar_model::explorer::tell(&engine, scenario, &failure));
                return;
            }
        }
        println!("clean");
        return;
    }
    for mutant in KILLED.iter().filter(|of| only.as_ref().is_none_or(|only| of.file.contains(only.as_str()))) {
        if mutant.places() != Some(1) {
            println!("STALE {} {:?} {:?}", mutant.file, mutant.from, mutant.places());
            continue;
        }
        let began = Instant::now();
        let engine = Engine::new(Some(mutant));
        match hunt(&engine, mutant.file) {
            Some((scenario, failure)) => println!("killed {:.1}s {} {:?} => {:?}: {} [{} steps, {scenario}]", began.elapsed().as_secs_f32(), mutant.file, mutant.from, mutant.to, failure.violation.property, failure.actions.len()),
            None => println!("SURVIVES {:.1}s {} {:?} => {:?}", began.elapsed().as_secs_f32(), mutant.file, mutant.from, mutant.to),
        }
    }
}
