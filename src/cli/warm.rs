//! `samovar warm`: fetches a job's entries, or one entry, now.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::exit;
use super::session::{Failed, Session, complain, jobs, print_json, relative};
use crate::agenda::When;
use crate::config::{Environment, Settings};
use crate::entry::Trigger;
use crate::entry::escape::escaped;
use crate::entry::{EntryKey, Priority};
use crate::job::{Feed, Job, Params};
use crate::ops::{Done, Failure, Ops, Plan};
use crate::source::{Fed, Gate, Refusal, Sources};

/// Entries in one round trip.
const PAGE: usize = 500;
/// The longest wait until the upstream admits a request for a page of the feed.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The most failures that are shown.
const SHOWN: usize = 20;

/// Arguments of `samovar warm`.
#[derive(Args)]
pub(super) struct WarmArgs {
    /// A job's name, for all its entries, or an entry's key
    #[arg(value_name = "JOB|KEY")]
    what: String,
    /// Wait until all entries are fetched; exit 1 if any failed
    #[arg(long)]
    wait: bool,
    /// With --wait: the longest wait; entries that are not fetched by then count as failed
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Fetch a key that looks like a pattern even if no entry has it
    #[arg(long)]
    force: bool,
    /// Only count what would be fetched
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &WarmArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    let session = Session::open(settings).await?;
    let ops = session.ops(&jobs);
    let (job, entries, when) = match (jobs.jobs.get(args.what.as_str()), jobs.owner(&args.what)) {
        (Some(job), _) => (job, entries(&session, &ops, job).await?, When::NOW),
        (None, Some((job, params))) => {
            let key = EntryKey::new(args.what.as_str());
            if !args.force && ops.is_mistaken_pattern(job, &key, &params).await? {
                complain(format_args!(
                    "`{key}` is a literal key, and no entry has it. `samovar warm {}` fetches all entries of the job, \
                     `samovar invalidate --pattern '{key}'` those that match; --force fetches this key",
                    job.name
                ));
                return Ok(exit::USAGE);
            }
            (job, vec![(key, params)], When::Urgent)
        }
        (None, None) => {
            let known: Vec<&str> = jobs.jobs.keys().map(crate::entry::JobName::as_str).collect();
            let (what, known) = (&args.what, known.join(", "));
            complain(format_args!("`{what}` is neither a job nor a key of a job; the jobs are {known}"));
            return Ok(exit::USAGE);
        }
    };
    if args.dry_run {
        return dry_run(args, &ops, job, &entries).await;
    }
    let keys: Vec<EntryKey> = entries.into_iter().map(|(key, _)| key).collect();
    let asked = session.store.now().await?;
    session.agenda.put(&job.name, &keys, when, Trigger::Manual).await?;
    let workers = session.workers().await?;
    if let Some(since) = ops.paused(&job.name).await? {
        eprintln!("{} was paused {}: resume it with `samovar resume {}`.", job.name, relative(since, asked), job.name);
    }
    if workers == 0 {
        eprintln!("No worker is running: due entries are fetched once you start one with `samovar worker`.");
    }
    if !args.wait {
        if args.json {
            print_json(&serde_json::json!({ "job": job.name.as_str(), "due": keys.len(), "workers": workers }));
        } else {
            println!("{} of {} due now", count(keys.len()), job.name);
        }
        return Ok(exit::OK);
    }
    let (bar, all) = (bar(job, keys.len()), keys.len());
    let progress = |still| bar.set_position((all - still) as u64);
    let done = ops.wait(job, keys, Trigger::Manual, asked, args.timeout, progress).await?;
    bar.finish_and_clear();
    if args.json {
        print_json(&done);
    } else {
        print(&done);
    }
    Ok(if done.failed.is_empty() { exit::OK } else { exit::FAILED })
}

/// Returns the entries that a job keeps warm: those its file lists, and those its feed names now.
async fn entries(session: &Session, ops: &Ops, job: &Arc<Job>) -> Result<Vec<(EntryKey, Params)>, Failed> {
    let mut named = None;
    if let Some(feed) = &job.entries.feed {
        match ask(session, ops, job, feed).await {
            Ok(fed) => named = Some(fed.entries),
            Err(e) => {
                let name = &job.name;
                complain(format_args!("the feed of {name} {e}; the entries of its last usable answer are taken"));
            }
        }
    }
    Ok(ops.entries(job, named).await?)
}

/// Asks a job's feed within its upstream's limits.
async fn ask(session: &Session, ops: &Ops, job: &Job, feed: &Feed) -> Result<Fed, String> {
    let sources = Sources::new(&ops.jobs).map_err(|e| format!("cannot be asked: {e}"))?;
    let mut reading = sources.read_feed(job, feed).map_err(|e| e.of_feed())?;
    let upstream = ops.jobs.upstreams.get(&feed.upstream);
    let gate =
        upstream.map(|upstream| Arc::new(Gate::new(Arc::clone(upstream), session.redis.clone(), &session.keys, 1)));
    while !reading.is_over() {
        let permit = match &gate {
            Some(gate) => {
                // No signal tells this gate of a pause.
                gate.refresh().await;
                let refused =
                    |refusal: Refusal| format!("cannot be asked: {} admits nothing: {}", feed.upstream, refusal.reason);
                Some(gate.admit(Priority::High, Instant::now() + LONGEST_WAIT).await.map_err(refused)?)
            }
            None => None,
        };
        let page = reading.read_page().await;
        if let Some(permit) = permit {
            permit.end(&page).await;
        }
        page.map_err(|e| e.of_feed())?;
    }
    reading.finish().map_err(|e| e.of_feed())
}

/// What a dry run shows.
#[derive(Serialize)]
struct Shown {
    job: String,
    #[serde(flatten)]
    plan: Plan,
}

async fn dry_run(args: &WarmArgs, ops: &Ops, job: &Arc<Job>, entries: &[(EntryKey, Params)]) -> Result<u8, Failed> {
    let sources = Sources::new(&ops.jobs).map_err(|e| {
        complain(format_args!("{e:#}"));
        Failed(exit::CONFIG)
    })?;
    let mut plan = Plan::default();
    for page in entries.chunks(PAGE) {
        plan += ops.plan(job, &sources, page).await?;
    }
    if args.json {
        print_json(&Shown { job: job.name.to_string(), plan });
    } else {
        let Plan { entries, fetches, ai_calls, inputs_missing } = plan;
        println!("{} of {}: {fetches} fetches, {ai_calls} AI calls", count(entries), job.name);
        if inputs_missing > 0 {
            println!("{inputs_missing} of them wait for inputs that are missing");
        }
    }
    Ok(exit::OK)
}

fn print(done: &Done) {
    let Done { warmed, unchanged, gone, failed, seconds } = done;
    println!("{warmed} warmed, {unchanged} unchanged, {gone} gone, {} failed in {seconds:.1}s", failed.len());
    for Failure { key, reason } in failed.iter().take(SHOWN) {
        eprintln!("  {}: {}", escaped(key), escaped(reason));
    }
    if failed.len() > SHOWN {
        eprintln!("  … and {} more", failed.len() - SHOWN);
    }
    if !failed.is_empty() {
        eprintln!("Workers retry failed entries; `samovar dead` lists those given up.");
    }
}

fn bar(job: &Job, entries: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{job} [{bar:40}] {pos}/{len}  {per_sec}  {eta} left".replace("{job}", job.name.as_str());
    let style = ProgressStyle::with_template(&style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(entries as u64).with_style(style)
}

fn count(entries: usize) -> String {
    if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") }
}
