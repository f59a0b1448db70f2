//! Runs fleets of Samovar's real workers in simulated worlds: `simulate COUNT [FIRST]`, or one seed: `simulate seed N`.
//!
//! Each seed is a process of its own, with one thread, and the same trace each time. docs/verification.md says what
//! this shows.
#![expect(clippy::disallowed_methods, reason = "its tasks end with the runtime")]

mod actors;
mod check;
mod completions;
mod files;
mod fleet;
mod machine;
mod network;
mod plan;
mod random;
mod redis;
mod resp;
mod seeds;
mod trace;
mod upstream;
mod world;

use std::process::ExitCode;

use tokio::runtime::Builder;
use tokio::sync::mpsc;

use fleet::Fleet;
use network::Network;
use world::Shared;

/// The stack of the simulation's thread, in bytes.
const STACK: usize = 64 << 20;

const USAGE: &str = "usage: simulate COUNT [FIRST]   or   simulate seed N [trace | log]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    match words[..] {
        ["seed", seed] | ["seed", seed, "trace" | "log"] if number(seed).is_some() => {
            one(number(seed).unwrap_or_default(), words.get(2).copied())
        }
        [count] if number(count).is_some() => seeds::run(number(count).unwrap_or_default(), 1),
        [count, first] => match (number(count), number(first)) {
            (Some(count), Some(first)) => seeds::run(count, first),
            _ => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Runs a seed in this process.
fn one(seed: u64, shows: Option<&str>) -> ExitCode {
    let (prints, logs) = (shows == Some("trace"), shows == Some("log"));
    machine::seed(seed);
    if logs {
        let filter = tracing_subscriber::EnvFilter::new("samovar=debug");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stdout).init();
    }
    // The keys of hash maps are drawn once for each thread.
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || simulate(seed, prints || logs));
    match thread.expect("a thread").join() {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Runs a seed on this thread; returns true if no property was violated.
fn simulate(seed: u64, prints: bool) -> bool {
    // It calibrates a clock, which must go on for that.
    samovar::telemetry::metrics::install();
    machine::freeze();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let shared = Shared::new(seed, prints);
    runtime.block_on(world(&shared, seed));
    let mut world = shared.lock();
    let hash = world.trace.hash();
    let figures = seeds::Figures {
        time: u64::try_from(machine::elapsed().as_millis()).unwrap_or(u64::MAX),
        commands: world.counts.commands,
        requests: world.requests.len() as u64,
        values: world.counts.values,
        edits: world.counts.edits,
        deaths: world.counts.deaths,
        hash,
    };
    match world.violation.take() {
        None => println!("{}", figures.line()),
        Some(violation) => {
            println!("{}\n{:#?}\nseed {seed}: {violation}", world.trace.tail(&violation.subject), world.plan);
            return false;
        }
    }
    true
}

/// Runs the world of a seed to its end.
async fn world(shared: &Shared, seed: u64) {
    machine::begin();
    let (network, words) = Network::new(shared.clone(), seed);
    let (sent, to_redis) = mpsc::unbounded_channel();
    samovar::redis::simulated::install(sent);
    let (exchanges, to_upstream) = mpsc::unbounded_channel();
    samovar::source::simulated::install(exchanges);
    tokio::spawn(upstream::run(shared.clone(), to_upstream));
    for _ in 0..2 {
        tokio::spawn(actors::edit(shared.clone()));
    }
    tokio::spawn(actors::load(shared.clone()));
    let fleet = Fleet::new(shared.clone(), &network);
    tokio::select! {
        biased;
        () = network::run(&network, to_redis, words) => {}
        () = fleet.run() => {}
    }
}
