//! `samovar get`: shows one entry's value and metadata.

use clap::Args;

use super::exit;
use super::session::{Failed, fleet, print_json};
use crate::config::{Environment, Settings};
use crate::entry::escape::escaped;
use crate::ops::explain::{Fact, facts};

/// Arguments of `samovar get`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar get 'product:42'\n\nExit codes: 1 if the key has no value.")]
pub(super) struct GetArgs {
    /// The entry's key
    key: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &GetArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (session, ops) = fleet(settings, env).await?;
    let mut entry = ops.entry(&args.key).await?;
    if entry.is_outdated {
        ops.add_wait(&mut entry, &session.living().await).await?;
    }
    let owner = entry.job.as_ref().and_then(|name| ops.jobs.jobs.get(name.as_str()));
    let has_inputs = owner.is_some_and(|job| job.inputs);
    if args.json {
        print_json(&entry);
    } else {
        match &entry.value {
            Some(value) => print_json(value),
            None => println!("(no value)"),
        }
        println!();
        for Fact { what, text } in facts(&entry, has_inputs) {
            println!("{what:<14}{}", escaped(&text));
        }
    }
    Ok(if entry.value.is_some() { exit::OK } else { exit::FAILED })
}
