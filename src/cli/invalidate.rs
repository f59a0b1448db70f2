//! `samovar invalidate`: invalidates values through the inbox, where the message is stored until a worker handles it.

use clap::Args;

use super::exit;
use super::session::{Failed, Session, complain, print_json};
use crate::config::Settings;
use crate::entry::{Announced, Version};
use crate::protocol::{Action, Message};
use crate::trigger::invalidation::inbox;

/// Arguments of `samovar invalidate`.
#[derive(Args)]
#[command(disable_version_flag = true)]
pub(super) struct InvalidateArgs {
    /// Literal keys, without wildcards; at most 10,000 keys of 2048 bytes
    #[arg(value_name = "KEY", required_unless_present_any = ["patterns", "tags", "jobs"])]
    keys: Vec<String>,
    /// Keys that match a glob, such as 'ai_content:*'; only keys of jobs match; at most 64 globs of 256 bytes
    #[arg(long = "pattern", value_name = "GLOB")]
    patterns: Vec<String>,
    /// Entries with a tag, such as 'artist:Frida Kahlo'; at most 1,000 tags of 512 bytes
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// All entries of a job; at most 64 jobs
    #[arg(long = "job", value_name = "JOB")]
    jobs: Vec<String>,
    /// Remove the values at once; the next warmup or demand fetches them again
    #[arg(long, conflicts_with = "warm")]
    evict: bool,
    /// Fetch only the keys that are missing
    #[arg(long)]
    warm: bool,
    /// The version that the keys have now: an integer, an RFC 3339 time, or `any` after a restored backup; keys only
    #[arg(long, value_name = "VERSION", value_parser = announced)]
    version: Option<Announced>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &InvalidateArgs, settings: &Settings) -> Result<u8, Failed> {
    let action = match (args.evict, args.warm) {
        (true, _) => Action::Evict,
        (_, true) => Action::Warm,
        _ => Action::Refresh,
    };
    let message = Message {
        keys: args.keys.clone(),
        patterns: args.patterns.clone(),
        tags: args.tags.clone(),
        jobs: args.jobs.clone(),
        action,
        version: args.version.unwrap_or_default(),
    };
    let checked = message.checked().and_then(|message| message.text().map(|_| message));
    let message = checked.map_err(|e| {
        complain(e);
        Failed(exit::USAGE)
    })?;
    let mut session = Session::open(settings).await?;
    let id = inbox::publish(&mut session.redis, &session.keys, &message).await?;
    let workers = session.workers().await?;
    if args.json {
        print_json(&serde_json::json!({ "id": id, "message": message, "workers": workers }));
    } else {
        println!("published as {id}");
        if workers == 0 {
            eprintln!("No worker is running: the message waits in the inbox until one starts.");
        }
    }
    Ok(exit::OK)
}

fn announced(text: &str) -> Result<Announced, String> {
    match text {
        "any" => Ok(Announced::Any),
        version => Version::parse(version).map(Announced::AtLeast),
    }
}
