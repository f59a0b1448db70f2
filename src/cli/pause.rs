//! `samovar pause`: pauses a job in the whole fleet until it is resumed.

use std::sync::Arc;

use clap::Args;

use super::exit;
use super::session::{Failed, fleet, refuse};
use crate::config::{Environment, Settings};
use crate::job::{KnownJob, KnownJobs};

/// Arguments of `samovar pause`.
#[derive(Args)]
pub(super) struct PauseArgs {
    /// The job's name
    #[arg(value_name = "JOB")]
    job: String,
    /// Why, for those who wonder
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// Returns the job of this name, or reports that there is none, as an object if `json` is set.
pub(super) fn find<'a>(name: &str, jobs: &'a KnownJobs, json: bool) -> Result<&'a Arc<KnownJob>, Failed> {
    jobs.jobs.get(name).ok_or_else(|| {
        let known: Vec<&str> = jobs.jobs.keys().map(crate::entry::JobName::as_str).collect();
        refuse(exit::FAILED, json, format_args!("there is no job `{name}`; the jobs are {}", known.join(", ")))
    })
}

/// Returns that no running worker knows a job, as a sentence.
pub(super) fn unknown_to_workers(job: &KnownJob) -> String {
    let name = &job.name;
    format!("No running worker knows {name}: `samovar jobs` says more. Nothing of it is fetched.")
}

pub(super) async fn run(args: &PauseArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (_, ops) = fleet(settings, env).await?;
    let job = find(&args.job, &ops.jobs, false)?;
    if ops.pause(job, args.note.as_deref()).await? {
        println!("{0} is paused in the whole fleet; `samovar resume {0}` resumes it", job.name);
    } else {
        println!("{} was already paused", job.name);
    }
    if ops.left_jobs().await?.contains(&job.name) {
        eprintln!("{}", unknown_to_workers(job));
    }
    Ok(exit::OK)
}
