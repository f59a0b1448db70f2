//! The command line: one file a subcommand.
#![expect(clippy::print_stdout, reason = "commands print what was asked for")]

pub mod check;
pub mod exit;

mod dead;
mod demo;
mod get;
mod health;
mod invalidate;
mod jobs;
pub mod museum;
mod pause;
mod probe;
mod resume;
mod session;
mod warm;
mod watch;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{CommonArgs, Environment, Settings, WorkerArgs};
use crate::entry::escape::escaped_lines;
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
    after_help = "Exit codes: 0 done; 1 some of it failed; 2 the command line makes no sense; 69 Redis cannot be reached, or is none \
                  that Samovar can work with; \
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
    /// Read the job files and say what they come to, or all that is wrong with them
    Check(CheckArgs),
    /// Show what is kept warm and how it goes
    Jobs(jobs::JobsArgs),
    /// Fetch all entries of a job, or one entry, now
    Warm(warm::WarmArgs),
    /// Say that values are no longer true
    Invalidate(invalidate::InvalidateArgs),
    /// Fetch nothing of a job any more, in the whole fleet, until it is resumed; what is there stays until its TTL ends
    Pause(pause::PauseArgs),
    /// Let a paused job go on
    Resume(pause::PauseArgs),
    /// Watch what is being warmed, why, and how it ends, as it happens
    Watch(watch::WatchArgs),
    /// Show one entry's value and what is known of it
    Get(get::GetArgs),
    /// List entries whose warming was given up, or put them back
    Dead(dead::DeadArgs),
    /// Ask the worker of this machine how it is, with one request: exit 0 if it is healthy, 1 if not
    Health(health::HealthArgs),
    /// Watch Samovar at work for a minute, on a Redis of its own, against two ways of doing without it
    Demo(demo::DemoArgs),
    /// End what a demo has started, if it is killed
    #[command(hide = true)]
    DemoMinder(demo::minder::MinderArgs),
    /// Open the bundled museum, an upstream to try things on
    Museum(museum::command::MuseumArgs),
}

/// Arguments of `samovar check`.
#[derive(Args)]
struct CheckArgs {
    /// The folder of job files, instead of the one in the settings
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Also fetch one entry of each job and its inputs, without storing it; what AI makes is paid for, and counts in no budget
    #[arg(long)]
    fetch: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// A reader that has seen enough (`samovar jobs | head`) is no fault: what cannot be printed any more ends the command.
fn end_quietly_when_nobody_reads() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|text| text.starts_with("failed printing to stdout")) {
            std::process::exit(exit::OK.into());
        }
        tell(panic);
    }));
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    end_quietly_when_nobody_reads();
    let cli = Cli::parse();
    match prepare(&cli) {
        Ok((settings, env)) => start(cli.command, &settings, &env),
        Err(faults) => {
            eprintln!("samovar: {}", escaped_lines(&faults.to_string()));
            ExitCode::from(exit::CONFIG)
        }
    }
}

fn prepare(cli: &Cli) -> Result<(Settings, Environment), crate::config::ConfigError> {
    let env = Environment::read()?;
    let worker = match &cli.command {
        Command::Worker(args) => args.clone(),
        Command::Health(args) => WorkerArgs { listen: args.listen.clone(), ..WorkerArgs::default() },
        _ => WorkerArgs::default(),
    };
    let settings = Settings::resolve(&cli.common, &worker, &env)?;
    Ok((settings, env))
}

fn start(command: Command, settings: &Settings, env: &Environment) -> ExitCode {
    telemetry::init(&settings.log, settings.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("samovar: cannot start threads: {e}");
            return ExitCode::from(exit::FAILED);
        }
    };
    let code = runtime.block_on(async {
        let ended = match command {
            Command::Worker(_) => worker::run(settings, env).await,
            Command::Check(args) => Ok(probe::run(&args, settings, env).await),
            Command::Jobs(args) => jobs::run(&args, settings, env).await,
            Command::Warm(args) => warm::run(&args, settings, env).await,
            Command::Invalidate(args) => invalidate::run(&args, settings).await,
            Command::Pause(args) => pause::run(&args, settings, env).await,
            Command::Resume(args) => resume::run(&args, settings, env).await,
            Command::Watch(args) => watch::run(&args, settings, env).await,
            Command::Get(args) => get::run(&args, settings, env).await,
            Command::Dead(args) => dead::run(&args, settings, env).await,
            Command::Health(args) => Ok(health::run(&args, settings).await),
            Command::Demo(args) => Ok(demo::run(&args).await),
            Command::DemoMinder(args) => Ok(demo::minder::run(&args)),
            Command::Museum(args) => Ok(museum::command::run(&args).await),
        };
        ended.unwrap_or_else(|session::Failed(code)| code)
    });
    // What still blocks a thread, such as a name look-up, does not hold the end up.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Ends with the first SIGTERM or SIGINT.
async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        (Err(e), _) | (_, Err(e)) => {
            tracing::error!("cannot listen to signals, only SIGKILL ends this: {e}");
            std::future::pending::<()>().await;
        }
    }
}
