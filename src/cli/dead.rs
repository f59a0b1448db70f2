//! `samovar dead`: entries whose warming was given up, and why.

use clap::Args;

use super::exit;
use super::session::{Failed, Session, jobs, print_json, relative, table};
use crate::config::{Environment, Settings};

/// Arguments of `samovar dead`.
#[derive(Args)]
pub(super) struct DeadArgs {
    /// Only these entries or jobs
    #[arg(value_name = "JOB|KEY")]
    only: Vec<String>,
    /// Put them back on the agenda, with all their attempts before them
    #[arg(long)]
    retry: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &DeadArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    let session = Session::open(settings).await?;
    let ops = session.ops(&jobs);
    if let Some(unknown) = ops.unknown(&args.only) {
        eprintln!("samovar: `{unknown}` is no job, and no job's key");
        return Ok(exit::USAGE);
    }
    let dead = ops.dead(&args.only).await?;
    if args.retry {
        ops.retry(&dead).await?;
    }
    if args.json {
        print_json(&serde_json::json!({ "dead": dead, "retried": args.retry }));
        return Ok(exit::OK);
    }
    if dead.is_empty() {
        println!("No dead letters.");
        return Ok(exit::OK);
    }
    let now = session.store.now().await?;
    let mut rows = table(&["JOB", "KEY", "GIVEN UP", "REASON"]);
    for dead in &dead {
        rows.add_row([dead.job.clone(), dead.key.clone(), relative(dead.at_ms, now), dead.reason.clone()]);
    }
    println!("{rows}");
    if args.retry {
        println!("\n{} put back on the agenda.", dead.len());
    } else {
        println!("\nPut them back with `samovar dead --retry`.");
    }
    Ok(exit::OK)
}
