//! `samovar resume`: resumes a paused job.

use super::exit;
use super::pause::PauseArgs;
use super::session::{Failed, Session, jobs};
use crate::config::{Environment, Settings};

pub(super) async fn run(args: &PauseArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    let job = args.job(&jobs)?;
    let session = Session::open(settings).await?;
    if session.ops(&jobs).resume(job).await? {
        println!("{} is resumed", job.name);
    } else {
        println!("{} was not paused", job.name);
    }
    Ok(exit::OK)
}
