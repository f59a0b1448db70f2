//! `samovar audit`: has workers compare warm values with what their upstreams answer now.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::exit;
use super::pause;
use super::session::{Failed, PAUSE, complain, fleet, print_json, refuse};
use crate::config::{Environment, Settings};
use crate::entry::duration;
use crate::entry::escape::escaped;
use crate::job::KnownJob;
use crate::ops::Ops;
use crate::ops::audit::{Audits, unaudited};

/// Arguments of `samovar audit`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar audit                                   # 20 values of each job\n\
\x20 samovar audit product --sample 200              # of one job\n\n\
Exit codes: 1 if a value was out of date without an invalidation, or if not all were audited in time.")]
pub(super) struct AuditArgs {
    /// The job's name; without it, all jobs whose requests cost nothing are audited
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// The number of values of each job, picked at random
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    sample: u64,
    /// The longest time until all are audited; upstreams' limits and all other work come first
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration::parse)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The audits of a job, as JSON.
#[derive(Serialize)]
struct Audited<'a> {
    job: &'a str,
    /// The number that was asked for.
    asked: u64,
    #[serde(flatten)]
    audits: Audits,
}

pub(super) async fn run(args: &AuditArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (session, ops) = fleet(settings, env).await?;
    let of = args.job.as_deref().map(|name| pause::find(name, &ops.jobs, args.json)).transpose()?;
    if let Some((job, why)) = of.and_then(|job| Some((job, unaudited(job)?))) {
        return Err(refuse(exit::FAILED, args.json, format_args!("{} is not audited: {why}", job.name)));
    }
    let jobs = ops.jobs.jobs.values().filter(|job| of.map_or(unaudited(job).is_none(), |of| of.name == job.name));
    let jobs: Vec<&KnownJob> = jobs.map(|job| &**job).collect();
    if jobs.is_empty() {
        let what = "there is no job to audit: each has AI sources, whose requests would cost money";
        return Err(refuse(exit::FAILED, args.json, what));
    }
    if session.workers().await? == 0 {
        let what = "no worker is running, so nothing is audited: start one with `samovar worker`";
        return Err(refuse(exit::FAILED, args.json, what));
    }
    let mut before = BTreeMap::new();
    for job in &jobs {
        before.insert(&job.name, ops.audits(&job.name).await?);
        ops.ask_audits(&job.name, args.sample).await?;
    }
    let until = Instant::now() + args.timeout;
    let mut done = read(&ops, &jobs, &before).await?;
    while done.iter().any(|audits| audits.all() < args.sample) && Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = super::asked_to_stop() => break,
        }
        done = read(&ops, &jobs, &before).await?;
    }
    let mut code = exit::OK;
    for (job, audits) in jobs.iter().zip(&done) {
        if audits.all() < args.sample {
            ops.withdraw_audits(&job.name, args.sample - audits.all()).await?;
            let (name, all) = (&job.name, audits.all());
            complain(format_args!(
                "{all} of {} audits of {name} ended within {}; the others are withdrawn. They wait while the job is \
                 paused, entries are due, or its upstream is closed: see `samovar jobs {name}`",
                args.sample,
                duration::text(args.timeout)
            ));
            code = exit::FAILED;
        }
        if audits.different + audits.gone > 0 {
            code = exit::FAILED;
        }
    }
    if args.json {
        let all =
            jobs.iter().zip(done).map(|(job, audits)| Audited { job: job.name.as_str(), asked: args.sample, audits });
        print_json(&all.collect::<Vec<_>>());
        return Ok(code);
    }
    for (job, audits) in jobs.iter().zip(&done) {
        println!("{}", escaped(&audits.sentence(job.name.as_str())));
        if let Some(last) = audits.last_different.as_ref().filter(|_| audits.different + audits.gone > 0) {
            println!("  the last one: {}", escaped(&last.key));
        }
    }
    Ok(code)
}

/// Returns the audits of each job since the command began.
async fn read<'a>(
    ops: &Ops,
    jobs: &[&'a KnownJob],
    before: &BTreeMap<&'a crate::entry::JobName, Audits>,
) -> Result<Vec<Audits>, Failed> {
    let mut all = Vec::new();
    for job in jobs {
        all.push(ops.audits(&job.name).await?.since(&before[&job.name]));
    }
    Ok(all)
}
