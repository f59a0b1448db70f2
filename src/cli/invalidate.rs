//! `samovar invalidate`: invalidates values through the inbox, where the message is stored until a worker handles it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::budgets;
use super::exit;
use super::session::{Failed, NoJobs, PAUSE, Session, ago, complain, fleet, passes, print_json, refuse};
use super::warm;
use crate::config::{Environment, Settings};
use crate::entry::escape::escaped;
use crate::entry::{Announced, EntryKey, JobName, Version};
use crate::ops::{DryRun, Effect, Mistake, Ops};
use crate::protocol::{Action, Message};
use crate::redis::requirements;
use crate::store::GoneGuard;
use crate::trigger::invalidation::inbox;

/// Keys in one round trip.
const PAGE: usize = 500;
/// The time for which sending is repeated. A failover takes a few seconds, and half a minute with the defaults of
/// Sentinels.
const FAILOVER: Duration = Duration::from_secs(40);

/// Arguments of `samovar invalidate`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar invalidate product:42                   # serves the old value until the new one lands\n\
\x20 samovar invalidate --pattern 'product:4*' --tag brand:acme\n\
\x20 samovar invalidate --tag brand:acme --dry-run   # how many entries, fetches and AI calls that is\n\
\x20 samovar invalidate --job product --evict        # removes all values at once\n\
\x20 samovar invalidate product:42 --version 7       # waits for this version")]
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
    #[arg(long, value_name = "VERSION", value_parser = announced, allow_hyphen_values = true)]
    version: Option<Announced>,
    /// Publish even if a name matches no job, or if a key looks like a pattern and no entry has it
    #[arg(long)]
    force: bool,
    /// Only count the entries, and what fetching them anew would take; publish nothing
    #[arg(long)]
    dry_run: bool,
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
        is_plain: false,
    };
    let checked = message.checked().and_then(|message| message.text().map(|_| message));
    let message = checked.map_err(|e| refuse(exit::USAGE, args.json, e))?;
    if args.dry_run {
        return dry_run(args, &message, settings, env).await;
    }
    let mut session = Session::open_within(settings, FAILOVER).await?;
    let (mut names_checked, mut held_back, mut left) = (false, Vec::new(), BTreeSet::new());
    if !args.force {
        match session.known_jobs(settings, env).await? {
            Ok(jobs) => {
                let ops = session.ops(jobs);
                check_names(args.json, &ops, &message).await?;
                names_checked = true;
                // The message is sent, whether or not this can be read.
                held_back = self::held_back(&ops, &message).await.unwrap_or_default();
                left = ops.left_by(&message).await.unwrap_or_default();
            }
            Err(unknown) => tell_unchecked(&unknown),
        }
    }
    // A user who may not read the keys publishes all the same.
    let absent = if action == Action::Refresh { absent(&session, &message.keys).await.ok() } else { Some(Vec::new()) };
    left.iter().for_each(|job| complain(not_fetched(job.as_str())));
    let id = publish(&mut session, &message).await?;
    // The message is sent, whether or not this can be read.
    let workers = session.count_workers().await.ok();
    if args.json {
        print_json(&json!({
            "id": id, "message": message, "names_checked": names_checked, "absent": absent, "workers": workers,
            "jobs_left": left.iter().map(JobName::as_str).collect::<Vec<_>>(),
            "removals_held_back": held_back.iter().map(|(job, _)| job.as_str()).collect::<Vec<_>>(),
        }));
    } else {
        println!("published as {id}");
        tell_absent(absent.as_deref().unwrap_or_default(), message.keys.len());
        for (job, since) in held_back {
            eprintln!(
                "Removals of {job} are held back, {since}: a value that is gone upstream stays until its TTL ends. \
                 `samovar gone {job}` shows it, and `--accept` lets removals through."
            );
        }
        if workers == Some(0) {
            eprintln!("No worker is running: the message waits in the inbox until one starts.");
        }
    }
    Ok(exit::OK)
}

/// Sends the message. Sends it again while Redis is away or another server becomes the master: a second message does no
/// harm.
async fn publish(session: &mut Session, message: &Message) -> Result<String, Failed> {
    let began = Instant::now();
    loop {
        let error = match inbox::publish(&mut session.redis, &session.keys, message).await {
            Ok(id) => return Ok(id),
            Err(error) if passes(&error) => error,
            Err(error) => return Err(error.into()),
        };
        if began.elapsed() >= FAILOVER {
            complain(format_args!(
                "Redis: {}; the message may not have been sent: repeat the command once Redis answers, since a second \
                 message does no harm",
                requirements::explain(&error)
            ));
            return Err(Failed(exit::UNAVAILABLE));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns those of these keys that have no value.
async fn absent(session: &Session, keys: &[String]) -> Result<Vec<String>, Failed> {
    let mut absent = Vec::new();
    for page in keys.chunks(PAGE) {
        let keys: Vec<EntryKey> = page.iter().map(|key| EntryKey::new(key.as_str())).collect();
        let found = page.iter().zip(session.store.snapshots(&keys).await?);
        absent.extend(found.filter(|(_, snapshot)| !snapshot.has_value()).map(|(key, _)| key.clone()));
    }
    Ok(absent)
}

/// Returns the jobs that a message names, or whose keys it names, while their guards hold removals back, each with the
/// time since then. An eviction is held back by no guard.
async fn held_back(ops: &Ops, message: &Message) -> redis::RedisResult<Vec<(JobName, String)>> {
    let owners = message.keys.iter().filter_map(|key| Some(ops.jobs.owner(key)?.0.name.clone()));
    let named = message.jobs.iter().map(|job| JobName::new(job.as_str()));
    let jobs: BTreeSet<JobName> = owners.chain(named).filter(|_| message.action != Action::Evict).collect();
    let now = ops.store.now().await?;
    let mut held = Vec::new();
    for job in jobs {
        if let Some(guard) = ops.gone_guard(&job).await?.filter(GoneGuard::is_holding) {
            held.push((job, format!("since {}", ago(guard.since_ms, now))));
        }
    }
    Ok(held)
}

/// Returns the warning that the values of a job are lost with an invalidation.
fn not_fetched(job: &str) -> String {
    format!(
        "no running worker knows {job}: the values that the message concerns are removed, and fetched again only once \
         a worker with its file runs"
    )
}

/// Says that keys have no value, and what a refresh then does.
fn tell_absent(absent: &[String], all: usize) {
    let Some(first) = absent.first() else { return };
    let which = match absent.len() {
        1 => format!("{first} has no value"),
        n => format!("{n} of {all} keys have no value, such as {first}"),
    };
    let rule = "a refresh fetches an absent entry only if its job keeps it warm, or if it was attempted within the \
                last hour";
    eprintln!("{}", escaped(&format!("{which}: {rule}. `samovar warm KEY` fetches it.")));
}

/// Prints what a message would do.
async fn dry_run(
    args: &InvalidateArgs,
    message: &Message,
    settings: &Settings,
    env: &Environment,
) -> Result<u8, Failed> {
    let (_, ops) = fleet(settings, env).await?;
    if !args.force {
        check_names(args.json, &ops, message).await?;
    }
    let shown = ops.dry_run(message).await?;
    shown.effect.removed.keys().for_each(|job| complain(not_fetched(job)));
    if args.json {
        print_json(&shown);
        return Ok(exit::OK);
    }
    let DryRun { effect: Effect { jobs, removed, dependants }, at_most, budgets, .. } = shown;
    if jobs.is_empty() {
        println!("It concerns no entry.");
    } else if message.action == Action::Evict {
        println!("These values would be removed at once. What warmups and demands would fetch anew, at most:");
    } else if at_most {
        println!("At most, since entries that have this version already are left as they are:");
    }
    for (job, plan) in jobs {
        match removed.get(&job) {
            Some(values) => println!("{}", warm::removed(*values, &job)),
            None => warm::tell(plan, &job, at_most),
        }
    }
    if !dependants.is_empty() {
        let names = Vec::from_iter(dependants);
        println!("Entries made from these come in addition, as far as their inputs change: {}", names.join(", "));
    }
    budgets::tell(&budgets, ops.store.now().await?);
    Ok(exit::OK)
}

/// Says that no jobs are known to check names against. The command goes on, because workers have job files of their
/// own.
fn tell_unchecked(NoJobs { why, faults }: &NoJobs) {
    let more = if faults.0.len() > 1 { "; `samovar check` shows all faults" } else { "" };
    let first = faults.0.first().map(ToString::to_string).unwrap_or_default();
    complain(format_args!("the names are not checked: {why}, and no job files could be read: {first}{more}"));
}

/// Ends the command if names match no job, most likely because they are misspelt, or if a key looks like a pattern and
/// no entry has it.
async fn check_names(json: bool, ops: &Ops, message: &Message) -> Result<(), Failed> {
    let Some(mistake) = ops.mistake_in(message).await? else { return Ok(()) };
    let remedy = match &mistake {
        Mistake::Unknown(_) | Mistake::Renamed(_) => "nothing was published; --force publishes all the same".to_owned(),
        Mistake::Pattern(key) => format!(
            "nothing was published. --pattern '{key}' invalidates the keys that match; --force publishes all the same"
        ),
    };
    Err(refuse(exit::FAILED, json, format_args!("{mistake}; {remedy}")))
}

fn announced(text: &str) -> Result<Announced, String> {
    match text {
        "any" => Ok(Announced::Any),
        version => Version::parse(version).map(Announced::AtLeast),
    }
}
