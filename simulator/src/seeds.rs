//! Runs many seeds, each in a process of its own.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Failing seeds after which no more are run.
const MOST_FAILURES: usize = 5;

/// The figures of a seed that has no violation, as its process prints them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// The simulated time (ms).
    pub(crate) time: u64,
    pub(crate) commands: u64,
    pub(crate) requests: u64,
    pub(crate) values: u64,
    pub(crate) edits: u64,
    pub(crate) deaths: u64,
    pub(crate) hash: u64,
}

impl Figures {
    /// Returns the line that [`Self::read`] reads.
    pub(crate) fn line(&self) -> String {
        let Self { time, commands, requests, values, edits, deaths, hash } = self;
        format!("ok {time} {commands} {requests} {values} {edits} {deaths} {hash}")
    }

    fn read(line: &str) -> Option<Self> {
        let mut numbers = line.strip_prefix("ok ")?.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            time: next()?,
            commands: next()?,
            requests: next()?,
            values: next()?,
            edits: next()?,
            deaths: next()?,
            hash: next()?,
        })
    }

    fn add(&mut self, other: Self) {
        self.time += other.time;
        self.commands += other.commands;
        self.requests += other.requests;
        self.values += other.values;
        self.edits += other.edits;
        self.deaths += other.deaths;
    }
}

/// Runs so many seeds, from the first one on, on all cores.
pub(crate) fn run(count: u64, first: u64) -> ExitCode {
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let sum = Mutex::new((Figures::default(), 0_u64));
    let failures = Mutex::new(BTreeMap::new());
    let program = std::env::current_exe().expect("the path of this program");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while failures.lock().expect("no panic").len() < MOST_FAILURES {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - first >= count {
                        return;
                    }
                    let mut command = Command::new(&program);
                    let output = command.args(["seed", &seed.to_string()]).stdin(Stdio::null()).output();
                    let output = output.expect("this program runs");
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    match text.lines().last().and_then(Figures::read) {
                        Some(figures) if output.status.success() => {
                            let mut sum = sum.lock().expect("no panic");
                            sum.0.add(figures);
                            sum.1 += 1;
                        }
                        _ => {
                            let text = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
                            println!("{text}");
                            failures.lock().expect("no panic").insert(seed, text);
                        }
                    }
                }
            });
        }
    });
    let (sum, done) = sum.into_inner().expect("no panic");
    let failures = failures.into_inner().expect("no panic");
    print_sum(&sum, done, began.elapsed());
    for (seed, text) in &failures {
        let reason = text.lines().find(|line| line.starts_with("seed ")).unwrap_or("it ended without a result");
        println!("FAILED: {reason}\n        again: cargo run --package samovar-simulator -- seed {seed}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print_sum(sum: &Figures, done: u64, took: Duration) {
    let Figures { time, commands, requests, values, edits, deaths, .. } = sum;
    let hours = *time as f64 / 3_600_000.0;
    println!(
        "{done} seeds hold: {hours:.1} simulated hours, {commands} commands, {requests} requests, {values} values, \
         {edits} edits, {deaths} dead workers\n{:.0} s: {:.1} simulated hours a minute",
        took.as_secs_f64(),
        hours * 60.0 / took.as_secs_f64()
    );
}
