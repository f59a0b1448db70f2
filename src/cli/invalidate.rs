//! `samovar invalidate`: invalidates values through the inbox, where the message is stored until a worker handles it.

use std::sync::Arc;

use clap::Args;

use super::exit;
use super::session::{Failed, Session, complain, print_json};
use crate::config::{Environment, Settings};
use crate::entry::{Announced, EntryKey, Version};
use crate::job::Jobs;
use crate::protocol::{Action, Message};
use crate::trigger::invalidation::inbox;

/// The most names that an error shows.
const SHOWN: usize = 5;

/// Arguments of `samovar invalidate`.
#[derive(Args)]
#[command(disable_version_flag = true)]
pub(super) struct InvalidateArgs {
    /// Literal keys, without wildcards; at most 10,000 keys of 2048 bytes
    #[arg(value_name = "KEY", required_unless_present_any = ["patterns", "tags", "job"])]
    keys: Vec<String>,
    /// Keys that match a glob, such as 'ai_content:*'; only keys of jobs match; at most 64 globs of 256 bytes
    #[arg(long = "pattern", value_name = "GLOB")]
    patterns: Vec<String>,
    /// Entries with a tag, such as 'artist:Frida Kahlo'; at most 1,000 tags of 512 bytes
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// All entries of a job; at most 64 jobs
    #[arg(long, value_name = "JOB")]
    job: Vec<String>,
    /// Remove the values at once; the next warmup or demand fetches them again
    #[arg(long, conflicts_with = "warm")]
    evict: bool,
    /// Fetch only the keys that are missing
    #[arg(long)]
    warm: bool,
    /// The version that the keys have now: an integer, an RFC 3339 time, or `any` after a restored backup; keys only
    #[arg(long, value_name = "VERSION", value_parser = announced)]
    version: Option<Announced>,
    /// Publish even if a name matches no job of the local job files, or if a key looks like a pattern
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &InvalidateArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let action = match (args.evict, args.warm) {
        (true, _) => Action::Evict,
        (_, true) => Action::Warm,
        _ => Action::Refresh,
    };
    let message = Message {
        keys: args.keys.clone(),
        patterns: args.patterns.clone(),
        tags: args.tags.clone(),
        jobs: args.job.clone(),
        action,
        version: args.version.unwrap_or_default(),
    };
    let checked = message.checked().and_then(|message| message.text().map(|_| message));
    let message = checked.map_err(|e| {
        complain(e);
        Failed(exit::USAGE)
    })?;
    let jobs = if args.force { None } else { known_jobs(settings, env) };
    let mut session = Session::open(settings).await?;
    if let Some(jobs) = &jobs {
        refuse_unknown(&session.ops(jobs).unknown_names(&message).await?)?;
        refuse_patterns(&session, jobs, &message.keys).await?;
    }
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

/// Returns the jobs to check names against; `None` if the job files cannot be read, which it says. The command goes on,
/// because workers have job files of their own.
fn known_jobs(settings: &Settings, env: &Environment) -> Option<Arc<Jobs>> {
    let loaded = Jobs::load(&settings.jobs, settings.default_ttl, &|name| env.get(name));
    let told = loaded.map_err(|faults| {
        let more = if faults.0.len() > 1 { "; `samovar check` shows all faults" } else { "" };
        let first = faults.0.first().map(ToString::to_string).unwrap_or_default();
        complain(format_args!("the names are not checked, because no job files could be read: {first}{more}"));
    });
    told.ok().map(Arc::new)
}

/// Ends the command if names match no job: most likely they are misspelt.
fn refuse_unknown(unknown: &[String]) -> Result<(), Failed> {
    if unknown.is_empty() {
        return Ok(());
    }
    let shown = unknown.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = unknown.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let verb = if unknown.len() == 1 { "matches" } else { "match" };
    complain(format_args!("{shown}{more} {verb} no job; nothing was published; --force publishes all the same"));
    Err(Failed(exit::FAILED))
}

/// Ends the command if a key looks like a pattern and no entry has it.
async fn refuse_patterns(session: &Session, jobs: &Arc<Jobs>, keys: &[String]) -> Result<(), Failed> {
    let ops = session.ops(jobs);
    for key in keys {
        let Some((job, params)) = jobs.owner(key) else { continue };
        if ops.is_mistaken_pattern(job, &EntryKey::new(key.as_str()), &params).await? {
            complain(format_args!(
                "`{key}` is a literal key, and no entry has it; nothing was published. --pattern '{key}' invalidates \
                 the keys that match; --force publishes all the same"
            ));
            return Err(Failed(exit::FAILED));
        }
    }
    Ok(())
}

fn announced(text: &str) -> Result<Announced, String> {
    match text {
        "any" => Ok(Announced::Any),
        version => Version::parse(version).map(Announced::AtLeast),
    }
}
