//! `samovar jobs`: what is kept warm, and how it goes.

use clap::Args;

use super::exit;
use super::session::{Failed, Session, jobs, print_json, relative, span, table};
use crate::config::{Environment, Settings};
use crate::status;

/// Longest last outcome in the table, in characters.
const LAST: usize = 80;

/// Arguments of `samovar jobs`.
#[derive(Args)]
pub(super) struct JobsArgs {
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &JobsArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    let session = Session::open(settings).await?;
    let now = session.store.now().await?;
    let census = session.ops(&jobs).count().await?;
    let mut all = Vec::new();
    for job in jobs.jobs.values() {
        all.push(status::of_job(&session.redis, &session.keys, job, Some(&census)).await?);
    }
    if args.json {
        print_json(&all);
        return Ok(exit::OK);
    }
    let mut rows = table(&["JOB", "KEY", "TTL", "SCHEDULE", "NEXT WARMUP", "WARM", "DUE", "IN HAND", "DEAD", "LAST"]);
    let mut paused = Vec::new();
    for status in all {
        if let Some(since) = status.paused_ms {
            paused.push(format!("{} ({})", status.job, relative(since, now)));
        }
        let last = status.last.map(|last| match last.reason {
            Some(reason) => format!("{} {} ({}): {reason}", last.outcome, last.key, last.trigger),
            None => format!("{} {} ({})", last.outcome, last.key, last.trigger),
        });
        rows.add_row([
            status.job,
            status.key,
            span(std::time::Duration::from_secs(status.ttl_seconds)),
            status.schedule.unwrap_or_else(|| "–".to_owned()),
            status.next_warmup_ms.map_or_else(|| "–".to_owned(), |next| relative(next, now)),
            status.warm.unwrap_or_default().to_string(),
            status.due.to_string(),
            status.in_hand.to_string(),
            status.dead.to_string(),
            last.map_or_else(|| "–".to_owned(), |last| shortened(&last)),
        ]);
    }
    println!("{rows}");
    if !paused.is_empty() {
        println!(
            "\nPaused, so that nothing of it is fetched: {}. `samovar resume JOB` lets it go on.",
            paused.join(", ")
        );
    }
    match session.workers().await? {
        0 => println!("\nNo worker is running: start one with `samovar worker`."),
        1 => println!("\n1 worker is running."),
        n => println!("\n{n} workers are running."),
    }
    Ok(exit::OK)
}

/// `get` and `dead` tell it whole.
fn shortened(text: &str) -> String {
    if text.chars().count() <= LAST {
        return text.to_owned();
    }
    text.chars().take(LAST).chain(['…']).collect()
}
