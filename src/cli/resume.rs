//! `samovar resume`: resumes a paused job.

use clap::Args;

use super::exit;
use super::pause::find;
use super::session::{Failed, fleet};
use crate::config::{Environment, Settings};

/// Arguments of `samovar resume`.
#[derive(Args)]
pub(super) struct ResumeArgs {
    /// The job's name
    #[arg(value_name = "JOB")]
    job: String,
}

pub(super) async fn run(args: &ResumeArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (_, ops) = fleet(settings, env).await?;
    let job = find(&args.job, &ops.jobs, false)?;
    if ops.resume(job).await? {
        println!("{} is resumed", job.name);
    } else {
        println!("{} was not paused", job.name);
    }
    Ok(exit::OK)
}
