//! The command line: one file a subcommand.

pub mod exit;
mod session;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{CommonArgs, Environment, Settings, WorkerArgs};
use crate::telemetry;

/// Keeps Redis caches warm, so that an API's GET always hits.
///
/// Job files say what is kept warm and from where (see `samovar check`); `samovar worker` does it; the other commands look
/// at it or tell it what to do. Every setting can be given as a flag, in the environment, or in a file `.env`.
#[derive(Parser)]
#[command(
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "Exit codes: 0 done; 1 some of it failed; 2 the command line makes no sense; 69 Redis cannot be reached; \
                  78 the settings or the job files have faults."
)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep caches warm, until told to stop
    Worker(WorkerArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let failed = |faults: &dyn std::fmt::Display, code: u8| {
        eprintln!("samovar: {faults}");
        ExitCode::from(code)
    };
    let env = match Environment::read() {
        Ok(env) => env,
        Err(e) => return failed(&e, exit::CONFIG),
    };
    let defaults = WorkerArgs::default();
    let worker = match &cli.command {
        Command::Worker(args) => args,
        #[expect(unreachable_patterns, reason = "to be")]
        _ => &defaults,
    };
    let settings = match Settings::resolve(&cli.common, worker, &env) {
        Ok(settings) => settings,
        Err(e) => return failed(&e, exit::CONFIG),
    };
    let logs = match &cli.command {
        Command::Worker(_) => settings.log.clone(),
    };
    telemetry::init(&logs, settings.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&e, exit::FAILED),
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Worker(_) => worker::run(&settings, &env).await,
        }
    });
    // What still blocks a thread, such as a name look-up, does not hold the end up.
    runtime.shutdown_background();
    ExitCode::from(code)
}
