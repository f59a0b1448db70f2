//! The command line: one file a subcommand.
#![expect(clippy::print_stdout, reason = "commands print to standard output")]

/// Prints a line to standard error. If nobody reads it, the command goes on, where the standard library's would panic.
macro_rules! eprintln {
    ($($what:tt)*) => {
        _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($what)*)))
    };
}

mod audit;
mod budgets;
pub mod check;
pub mod exit;

mod completions;
mod dead;
mod demo;
mod diff;
mod get;
mod gone;
mod health;
mod invalidate;
mod jobs;
mod listed;
mod man;
pub mod museum;
mod pause;
mod probe;
mod resume;
mod schema;
mod session;
mod warm;
mod watch;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{CommonArgs, Environment, Settings, WorkerArgs};
use crate::entry::escape::escaped_lines;
use crate::telemetry;

/// Keeps Redis caches warm, so that an API's GET always hits.
///
/// Job files define the entries to keep warm and their sources (see `samovar check`). `samovar worker` keeps the
/// entries warm; the other commands show or control their state. Every setting can be a flag, an environment variable,
/// or a line in a file `.env`.
#[derive(Parser)]
#[command(
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "Exit codes: 0 success; 1 partial failure, or a name that the fleet does not know; 2 the command \
                  line is invalid; 69 Redis is unreachable or unsupported; 78 the settings or the job files have \
                  faults."
)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: AnyCommand,
}

#[derive(Subcommand)]
enum AnyCommand {
    #[command(flatten)]
    Settled(Command),
    #[command(flatten)]
    Printing(Printing),
}

/// Commands that need settings.
#[derive(Subcommand)]
enum Command {
    /// Keep caches warm until stopped
    Worker(WorkerArgs),
    /// Read the job files and report their content or all their faults
    Check(CheckArgs),
    /// Show the state of all jobs
    Jobs(jobs::JobsArgs),
    /// Fetch all entries of a job, or one entry, now
    Warm(warm::WarmArgs),
    /// Invalidate values
    Invalidate(invalidate::InvalidateArgs),
    /// Pause a job in the whole fleet: nothing is fetched until it is resumed; values stay until their TTL ends
    Pause(pause::PauseArgs),
    /// Resume a paused job
    Resume(resume::ResumeArgs),
    /// Show the removals that a job holds back since its upstream says that many entries are gone, or decide on them
    Gone(gone::GoneArgs),
    /// Watch warming live, with triggers and outcomes
    Watch(watch::WatchArgs),
    /// Compare warm values with what their upstreams answer now; nothing is stored
    Audit(audit::AuditArgs),
    /// Show one entry's value and metadata
    Get(get::GetArgs),
    /// List dead letters, or put them back on the agenda
    Dead(dead::DeadArgs),
    /// Check the worker of this machine with one request: exit 0 if it is healthy or degraded, 1 if not
    Health(health::HealthArgs),
    /// Run a one-minute demo on its own Redis, against two alternatives
    Demo(demo::DemoArgs),
    /// Stop the processes of a demo that was killed
    #[command(hide = true)]
    DemoMinder(demo::minder::MinderArgs),
    /// Run the bundled museum, an upstream for trials
    Museum(museum::command::MuseumArgs),
}

/// Commands that print something about Samovar itself. They read no settings, so faults in these do not stop them.
#[derive(Subcommand)]
enum Printing {
    /// Print the JSON Schema of job files or of upstreams.toml, with which editors complete and check them
    Schema(schema::SchemaArgs),
    /// Print the completions of a shell
    Completions(completions::CompletionsArgs),
    /// Print the man page, or write one page for each command
    Man(man::ManArgs),
}

impl Printing {
    fn run(&self) -> u8 {
        match self {
            Self::Schema(args) => schema::run(args),
            Self::Completions(args) => completions::run(args, &Cli::command()),
            Self::Man(args) => man::run(args, Cli::command()),
        }
    }
}

/// Arguments of `samovar check`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar check                                   # all faults, with line, column and remedy\n\
\x20 samovar check --fetch new-jobs                  # also whether each upstream answers as the files say\n\
\x20 samovar check --diff                            # what a reload would cause\n\n\
Exit codes: 78 if the files have faults; 1 if a job has no value with --fetch.")]
struct CheckArgs {
    /// The folder of job files, instead of the configured one
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Also fetch one entry of each job and its inputs, without storing it, or further entries if that one is gone;
    /// AI answers cost money and count against no budget
    #[arg(long)]
    fetch: bool,
    /// Compare with the files that the fleet works with: the jobs that change, and the values, requests and AI calls
    /// that a reload would cause. Reads Redis, changes nothing and needs no secrets
    #[arg(long, conflicts_with = "fetch")]
    diff: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes the command end quietly if the reader of its output closes the pipe, as in `samovar jobs | head`.
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
    let Cli { common, command } = Cli::parse();
    let command = match command {
        AnyCommand::Settled(command) => command,
        AnyCommand::Printing(command) => return ExitCode::from(command.run()),
    };
    match prepare(&common, &command) {
        Ok((settings, env)) => start(command, common.env_file, &settings, &env),
        Err(faults) => {
            eprintln!("samovar: {}", escaped_lines(&faults.to_string()));
            ExitCode::from(exit::CONFIG)
        }
    }
}

fn prepare(common: &CommonArgs, command: &Command) -> Result<(Settings, Environment), crate::config::ConfigError> {
    let env = Environment::read(&common.env_file)?;
    let worker = match command {
        Command::Worker(args) => args.clone(),
        Command::Health(args) => WorkerArgs { listen: args.listen.clone(), ..WorkerArgs::default() },
        _ => WorkerArgs::default(),
    };
    let mut common = common.clone();
    if matches!(command, Command::Demo(_)) && env.get("SAMOVAR_LOG").is_none() {
        // It has a screen of its own.
        common.log.get_or_insert_with(|| "warn".to_owned());
    }
    let settings = Settings::resolve(&common, &worker, &env)?;
    Ok((settings, env))
}

fn start(command: Command, env_files: Vec<PathBuf>, settings: &Settings, env: &Environment) -> ExitCode {
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
            Command::Worker(_) => worker::run(settings, env, env_files).await,
            Command::Check(args) if args.diff => diff::run(&args, settings, env).await,
            Command::Check(args) => Ok(probe::run(&args, settings, env).await),
            Command::Jobs(args) => jobs::run(&args, settings, env).await,
            Command::Warm(args) => warm::run(&args, settings, env).await,
            Command::Invalidate(args) => invalidate::run(&args, settings, env).await,
            Command::Pause(args) => pause::run(&args, settings, env).await,
            Command::Resume(args) => resume::run(&args, settings, env).await,
            Command::Gone(args) => gone::run(&args, settings, env).await,
            Command::Watch(args) => watch::run(&args, settings, env).await,
            Command::Audit(args) => audit::run(&args, settings, env).await,
            Command::Get(args) => get::run(&args, settings, env).await,
            Command::Dead(args) => dead::run(&args, settings, env).await,
            Command::Health(args) => Ok(health::run(&args, settings).await),
            Command::Demo(args) => Ok(demo::run(&args).await),
            Command::DemoMinder(args) => Ok(demo::minder::run(&args)),
            Command::Museum(args) => Ok(museum::command::run(&args).await),
        };
        ended.unwrap_or_else(|session::Failed(code)| code)
    });
    // A blocked thread, such as a name lookup, does not delay the end.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Completes at the first SIGTERM or SIGINT.
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
            tracing::error!("cannot handle signals; only SIGKILL ends this process: {e}");
            std::future::pending::<()>().await;
        }
    }
}
