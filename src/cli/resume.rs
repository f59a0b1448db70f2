//! `samovar resume`: resumes a paused job.

use super::exit;
use super::pause::PauseArgs;
use super::session::{Failed, fleet};
use crate::config::{Environment, Settings};

pub(super) async fn run(args: &PauseArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (_, ops) = fleet(settings, env).await?;
    let job = args.job(&ops.jobs)?;
    if ops.resume(job).await? {
        println!("{} is resumed", job.name);
    } else {
        println!("{} was not paused", job.name);
    }
    Ok(exit::OK)
}
