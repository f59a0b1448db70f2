//! `samovar invalidate`: invalidates values through the inbox, where the message is stored until a worker handles it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use serde_json::json;

use super::budgets;
use super::exit;
use super::session::{Failed, NoJobs, PAUSE, Session, ago, complain, fleet, print_json, refuse};
use super::warm;
use crate::config::{Environment, Settings};
use crate::entry::escape::escaped;
use crate::entry::{Announced, EntryKey, JobName, Version};
use crate::job::KnownJob;
use crate::ops::{DryRun, Effect, Mistake, Ops};
use crate::protocol::{Action, Message};
use crate::redis::{passes, requirements};
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
#[command(group = ArgGroup::new("names").args(["keys", "patterns", "tags", "job"]).required(true).multiple(true))]
pub(super) struct InvalidateArgs {
    /// Literal keys, without wildcards; at most 10,000 keys of 2048 bytes
    #[arg(value_name = "KEY")]
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
    let mut known = Known::default();
    if !args.force {
        match session.known_jobs(settings, env).await? {
            Ok(jobs) => {
                let ops = session.ops(jobs);
                check_names(args.json, &ops, &message).await?;
                known = Known::read(ops, &message).await;
            }
            Err(unknown) => tell_unchecked(&unknown),
        }
    }
    // A user who may not read the keys publishes all the same.
    let absent = match action {
        Action::Refresh => Absent::read(&session, &known, &message.keys).await.ok(),
        Action::Evict | Action::Warm => Some(Absent::default()),
    };
    known.left.iter().for_each(|job| complain(not_fetched(job.as_str())));
    if known.unowned > 0 {
        complain(unowned(known.unowned));
    }
    let id = publish(&mut session, &message).await?;
    // The message is sent, whether or not this can be read.
    let workers = session.count_workers().await.ok();
    if args.json {
        let names = |jobs: &[(JobName, String)]| Vec::from_iter(jobs.iter().map(|(job, _)| job.to_string()));
        print_json(&json!({
            "id": id, "message": message, "names_checked": known.ops.is_some(), "workers": workers,
            "absent": absent.as_ref().map(|absent| &absent.keys),
            "absent_fetched": absent.as_ref().and_then(|absent| absent.fetched.as_ref()),
            "unowned": known.unowned,
            "jobs_left": known.left.iter().map(JobName::as_str).collect::<Vec<_>>(),
            "jobs_paused": names(&known.paused),
            "removals_held_back": names(&known.held_back),
        }));
    } else {
        println!("published as {id}");
        absent.unwrap_or_default().tell(message.keys.len());
        for (job, since) in known.paused {
            eprintln!("{job} was paused {since}: nothing of it is fetched until `samovar resume {job}`.");
        }
        for (job, since) in known.held_back {
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

/// The fleet's knowledge of the jobs that a message concerns. The message is sent, whether or not this can be read.
#[derive(Default)]
struct Known {
    /// The operations on the fleet; `None` if the names are not checked.
    ops: Option<Ops>,
    /// The jobs whose guards hold removals back, each with the time since then.
    held_back: Vec<(JobName, String)>,
    /// The jobs that no running worker knows.
    left: BTreeSet<JobName>,
    /// The values of no job that are removed.
    unowned: usize,
    /// The paused jobs of which entries would be fetched, each with the time since then.
    paused: Vec<(JobName, String)>,
}

impl Known {
    async fn read(ops: Ops, message: &Message) -> Self {
        let held_back = held_back(&ops, message).await.unwrap_or_default();
        let left = ops.left_by(message).await.unwrap_or_default();
        let unowned = ops.unowned(message).await.unwrap_or_default();
        let paused = paused(&ops, message).await.unwrap_or_default();
        Self { ops: Some(ops), held_back, left, unowned, paused }
    }
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

/// The keys of a refresh that have no value.
#[derive(Default)]
struct Absent {
    keys: Vec<String>,
    /// Those that the refresh fetches; `None` if no jobs are known.
    fetched: Option<BTreeSet<String>>,
}

impl Absent {
    /// Returns those of these keys that have no value.
    async fn read(session: &Session, known: &Known, keys: &[String]) -> redis::RedisResult<Self> {
        let mut absent = Self { keys: Vec::new(), fetched: known.ops.as_ref().map(|_| BTreeSet::new()) };
        for page in keys.chunks(PAGE) {
            let page: Vec<EntryKey> = page.iter().map(|key| EntryKey::new(key.as_str())).collect();
            let found = session.store.snapshots(&page).await?;
            let found = page.into_iter().zip(found).filter(|(_, snapshot)| !snapshot.has_value());
            let (blank, tried): (Vec<_>, Vec<_>) = found.partition(|(_, snapshot)| snapshot.is_blank());
            let keys = blank.iter().chain(&tried).map(|(key, _)| key.to_string());
            absent.keys.extend(keys);
            if let Some((ops, fetched)) = known.ops.as_ref().zip(absent.fetched.as_mut()) {
                let blank: Vec<EntryKey> = blank.into_iter().map(|(key, _)| key).collect();
                let kept = ops.kept_of(&blank).await?;
                let is_known = |key: &EntryKey| {
                    ops.jobs.owner(key.as_str()).is_some_and(|(job, _)| !known.left.contains(&job.name))
                };
                let keys = tried.into_iter().map(|(key, _)| key).chain(kept).filter(is_known);
                fetched.extend(keys.map(|key| key.to_string()));
            }
        }
        Ok(absent)
    }

    /// Says that keys have no value, and what the refresh then does; `all` is the number of keys in the message.
    fn tell(&self, all: usize) {
        let Some(fetched) = &self.fetched else {
            let rule = "a refresh fetches an absent entry only if its job keeps it warm, or if it was attempted within \
                        the last hour. `samovar warm KEY` fetches it.";
            return tell_absent(&Vec::from_iter(&self.keys), all, [rule, rule]);
        };
        let (fetched, others): (Vec<&String>, Vec<&String>) = self.keys.iter().partition(|key| fetched.contains(*key));
        tell_absent(&fetched, all, ["the refresh fetches it.", "the refresh fetches them."]);
        let one = "the refresh does not fetch it, since no job of a running worker keeps it warm, and it was not \
                   attempted within the last hour or was evicted since.";
        let many = "the refresh does not fetch them, since no job of a running worker keeps them warm, and they were \
                    not attempted within the last hour or were evicted since.";
        tell_absent(&others, all, [one, many]);
    }
}

/// Says that some of `all` keys have no value, and what follows for one or for many.
fn tell_absent(absent: &[&String], all: usize, [one, many]: [&str; 2]) {
    let Some(first) = absent.first() else { return };
    let text = match absent.len() {
        1 => format!("{first} has no value: {one}"),
        n => format!("{n} of {all} keys have no value, such as {first}: {many}"),
    };
    eprintln!("{}", escaped(&text));
}

/// Returns the jobs that a message names, or whose keys it names, while their guards hold removals back, each with the
/// time since then. An eviction is held back by no guard.
async fn held_back(ops: &Ops, message: &Message) -> redis::RedisResult<Vec<(JobName, String)>> {
    let jobs = if message.action == Action::Evict { BTreeSet::new() } else { named_jobs(ops, message) };
    let now = ops.store.now().await?;
    let mut held = Vec::new();
    for job in jobs {
        if let Some(guard) = ops.gone_guard(&job).await?.filter(GoneGuard::is_holding) {
            held.push((job, format!("since {}", ago(guard.since_ms, now))));
        }
    }
    Ok(held)
}

/// Returns the paused jobs that a message names, or whose keys it names or may match, each with the time since then. An
/// eviction fetches nothing.
async fn paused(ops: &Ops, message: &Message) -> redis::RedisResult<Vec<(JobName, String)>> {
    if message.action == Action::Evict {
        return Ok(Vec::new());
    }
    let mut jobs = named_jobs(ops, message);
    let may_match = |job: &KnownJob| message.patterns.iter().any(|glob| job.key.may_match(glob));
    jobs.extend(ops.jobs.jobs.values().filter(|job| may_match(job)).map(|job| job.name.clone()));
    let now = ops.store.now().await?;
    let mut paused = Vec::new();
    for job in jobs {
        if let Some(since) = ops.paused(&job).await? {
            paused.push((job, ago(since, now)));
        }
    }
    Ok(paused)
}

/// Returns the jobs that a message names, or whose keys it names.
fn named_jobs(ops: &Ops, message: &Message) -> BTreeSet<JobName> {
    let owners = message.keys.iter().filter_map(|key| Some(ops.jobs.owner(key)?.0.name.clone()));
    owners.chain(message.jobs.iter().map(|job| JobName::new(job.as_str()))).collect()
}

/// Returns the warning that the values of a job are lost with an invalidation.
fn not_fetched(job: &str) -> String {
    format!(
        "no running worker knows {job}: the values that the message concerns are removed, and fetched again only once \
         a worker with its file runs"
    )
}

/// Returns the warning that values of no job are lost with an invalidation.
fn unowned(values: usize) -> String {
    let (are, them) = if values == 1 { ("value of no job is", "it") } else { ("values of no job are", "them") };
    format!(
        "{values} {are} removed, and nothing makes {them} anew: an earlier job file made {them}, or a service loaded \
         {them}"
    )
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
    let DryRun { effect: Effect { jobs, removed, unowned: lost, dependants }, at_most, budgets, .. } = shown;
    if jobs.is_empty() {
        println!("It concerns no entry{}", if lost > 0 { " of a job." } else { "." });
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
    if lost > 0 {
        println!("{}.", unowned(lost));
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
