//! `samovar pause`: nothing of a job is fetched any more, by any worker, until it is resumed.

use std::sync::Arc;

use clap::Args;

use super::exit;
use super::session::{Failed, Session, complain, jobs};
use crate::config::{Environment, Settings};
use crate::job::{Job, Jobs};

/// Arguments of `samovar pause` and `samovar resume`.
#[derive(Args)]
pub(super) struct PauseArgs {
    /// The job's name
    #[arg(value_name = "JOB")]
    job: String,
}

impl PauseArgs {
    /// The job, or its absence told.
    pub(super) fn job<'a>(&self, jobs: &'a Jobs) -> Result<&'a Arc<Job>, Failed> {
        jobs.jobs.get(self.job.as_str()).ok_or_else(|| {
            let known: Vec<&str> = jobs.jobs.keys().map(crate::entry::JobName::as_str).collect();
            complain(format_args!("`{}` is no job; the jobs are {}", self.job, known.join(", ")));
            Failed(exit::USAGE)
        })
    }
}

pub(super) async fn run(args: &PauseArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    let job = args.job(&jobs)?;
    let session = Session::open(settings).await?;
    if session.ops(&jobs).pause(job).await? {
        println!("{0} is paused in the whole fleet; `samovar resume {0}` lets it go on", job.name);
    } else {
        println!("{} was paused already", job.name);
    }
    Ok(exit::OK)
}
