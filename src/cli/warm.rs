//! `samovar warm`: fetches a job's entries, or one entry, now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::budgets;
use super::exit;
use super::pause::unknown_to_workers;
use super::session::{Failed, ago, bar, complain, fleet, print_json, refuse};
use crate::agenda::When;
use crate::config::{Environment, Settings};
use crate::entry::Trigger;
use crate::entry::duration;
use crate::entry::escape::escaped;
use crate::entry::{EntryKey, JobName};
use crate::job::{Job, Jobs, KnownJob, KnownJobs, Params};
use crate::ops::{Asked, BudgetLeft, Done, Failure, Ops, Plan, Progress};
use crate::redis::{RedisTime, passes};
use crate::source::Sources;
use crate::trigger::warm_up_now;

/// Entries in one round trip.
const PAGE: usize = 500;
/// The most failures that are shown.
const SHOWN: usize = 20;

/// Arguments of `samovar warm`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar warm product                            # all entries that the job keeps warm\n\
\x20 samovar warm product:42 --wait --timeout 30s    # one entry; exit 1 if it was not fetched\n\
\x20 samovar warm product --dry-run                  # how many fetches and AI calls that is")]
pub(super) struct WarmArgs {
    /// A job's name, for all entries that it keeps warm, or an entry's key. Of a job with a feed, those of the feed's
    /// last answer; a worker then asks the feed and fetches what is new, for which --wait does not wait
    #[arg(value_name = "JOB|KEY")]
    what: String,
    /// Wait until all entries are fetched; exit 1 if any failed
    #[arg(long)]
    wait: bool,
    /// With --wait: the longest wait, such as 30s or 1h30m; entries that are not fetched by then count as failed
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    #[arg(requires = "wait", allow_hyphen_values = true)]
    timeout: Duration,
    /// Fetch a key that looks like a pattern even if no entry has it
    #[arg(long)]
    force: bool,
    /// Only count what would be fetched. For a job with an AI source this reads the job files; without them it gives
    /// the most AI calls that there can be
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &WarmArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (session, ops) = fleet(settings, env).await?;
    let (job, entries, when) = wanted(args, &ops).await?;
    let asks_feed = job.feed && when == When::NOW;
    if args.dry_run {
        let prompts = if job.may_hold_unasked { Some(Prompts::read(job, settings, env)) } else { None };
        return dry_run(args, &ops, job, prompts, asks_feed, &entries).await;
    }
    let keys: Vec<EntryKey> = entries.into_iter().map(|(key, _)| key).collect();
    let asked = session.store.now().await?;
    if args.wait
        && let Some(since) = ops.paused(&job.name).await?
    {
        let since = ago(since, asked);
        let what = format!(
            "{0} was paused {since}, so its entries would not be fetched: resume it with `samovar resume {0}`; without \
             --wait they become due for then",
            job.name
        );
        return Err(refuse(exit::FAILED, args.json, what));
    }
    if ops.left_jobs().await?.contains(&job.name) {
        return Err(refuse(exit::FAILED, args.json, unknown_to_workers(job)));
    }
    let asking = async {
        session.agenda.put(&job.name, &keys, when, Trigger::Manual).await?;
        if asks_feed {
            warm_up_now(&mut session.redis.clone(), &session.keys, &job.name).await?;
        }
        Ok(())
    };
    let workers = match asking.await {
        // The wait asks for what is not on the agenda.
        Err(e) if args.wait && passes(&e) => None,
        asked => {
            asked?;
            Some(session.workers().await?)
        }
    };
    if let Some(workers) = workers {
        let notes = hindrances(&ops, job, workers, asked).await?;
        notes.iter().for_each(|note| eprintln!("{note}"));
        if !args.wait {
            print_due(args, job, keys.len(), asks_feed, workers, &notes);
            return Ok(exit::OK);
        }
    }
    let (bar, all) = (bar(&job.name, keys.len()), keys.len());
    let progress = |progress: Progress<'_>| match progress {
        Progress::Left(still) => bar.set_position((all - still) as u64),
        Progress::Hindered(key, reason) => {
            bar.suspend(|| eprintln!("{} is not fetched yet: {}", escaped(key.as_str()), escaped(reason)));
        }
        Progress::Unanswered(why) => {
            let within = duration::text(args.timeout);
            bar.suspend(|| complain(format_args!("Redis: {why}; the wait goes on until it answers, {within} at most")));
        }
    };
    let request = Asked { trigger: Trigger::Manual, at: asked, may_be_lost: workers.is_none() };
    let done = ops.wait(job, keys, request, args.timeout, progress).await?;
    bar.finish_and_clear();
    if args.json {
        print_json(&done);
    } else {
        print(&done);
    }
    Ok(if done.failed.is_empty() { exit::OK } else { exit::FAILED })
}

/// Prints that so many entries of a job are due.
fn print_due(args: &WarmArgs, job: &KnownJob, due: usize, asks_feed: bool, workers: usize, notes: &[String]) {
    let job = job.name.as_str();
    if args.json {
        print_json(&json!({ "job": job, "due": due, "asks_feed": asks_feed, "workers": workers, "notes": notes }));
    } else {
        let feed = if asks_feed { "; a worker asks its feed, and fetches what is new" } else { "" };
        println!("{} of {job} due now{feed}", count(due));
    }
}

/// Returns what keeps due entries of a job from being fetched, each as a sentence.
async fn hindrances(ops: &Ops, job: &KnownJob, workers: usize, now: RedisTime) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    if let Some(since) = ops.paused(&job.name).await? {
        let since = ago(since, now);
        found.push(format!("{0} was paused {since}: resume it with `samovar resume {0}`.", job.name));
    }
    if workers == 0 {
        let remedy = "due entries are fetched once you start one with `samovar worker`";
        found.push(format!("No worker is running: {remedy}."));
    }
    Ok(found)
}

/// An entry with the values of its key's placeholders.
type Named = (EntryKey, Params);

/// Returns the job and the entries that the command names, and when they are due.
async fn wanted<'a>(args: &WarmArgs, ops: &'a Ops) -> Result<(&'a Arc<KnownJob>, Vec<Named>, When), Failed> {
    let what = args.what.as_str();
    if let Some(job) = ops.jobs.jobs.get(what) {
        return Ok((job, ops.entries(job, None).await?, When::NOW));
    }
    let Some((job, params)) = ops.jobs.owner(what) else {
        let known: Vec<&str> = ops.jobs.jobs.keys().map(JobName::as_str).collect();
        let known = known.join(", ");
        let what = format!("`{what}` is neither a job nor a key of a job; the jobs are {known}");
        return Err(refuse(exit::FAILED, args.json, what));
    };
    let key = EntryKey::new(what);
    if !args.force && ops.is_mistaken_pattern(job, &key, &params).await? {
        let what = format!(
            "`{key}` is a literal key, and no entry has it. `samovar warm {}` fetches all entries of the job, `samovar \
             invalidate --pattern '{key}'` those that match; --force fetches this key",
            job.name
        );
        return Err(refuse(exit::FAILED, args.json, what));
    }
    Ok((job, vec![(key, params)], When::Urgent))
}

/// A job's prompts, to tell which values an AI source would keep.
struct Prompts {
    job: Arc<Job>,
    /// All jobs of the folder.
    jobs: Arc<KnownJobs>,
    sources: Sources,
}

impl Prompts {
    /// Reads a job's file.
    ///
    /// # Errors
    /// It cannot be read, or is not the one that the workers use; the text says what follows from that.
    fn read(known: &KnownJob, settings: &Settings, env: &Environment) -> Result<Self, String> {
        let read = Jobs::read(&settings.jobs, settings.default_ttl, &|name| env.get(name)).jobs;
        let why = match read {
            Ok(jobs) => match jobs.jobs.get(&known.name).filter(|job| job.digest == known.digest) {
                Some(job) => match Sources::new(&jobs) {
                    Ok(sources) => {
                        let jobs_of_files = Arc::new(KnownJobs::from(&jobs));
                        return Ok(Self { job: Arc::clone(job), jobs: jobs_of_files, sources });
                    }
                    Err(e) => format!("{e:#}"),
                },
                None => format!("{} has no file for it, or another than the workers", settings.jobs.display()),
            },
            Err(faults) => faults.0.first().map(ToString::to_string).unwrap_or_default(),
        };
        Err(format!(
            "every entry of {} counts as an AI call: the prompts of its job file are needed to tell which values would \
             be kept, and they cannot be read: {why}",
            known.name
        ))
    }

    /// Counts the requests that warming these entries would make; at most a page of entries.
    async fn plan(&self, ops: &Ops, page: &[Named]) -> Result<Plan, Failed> {
        let ops = Ops { jobs: Arc::clone(&self.jobs), ..ops.clone() };
        Ok(ops.plan(&self.job, &self.sources, page).await?)
    }
}

/// The output of a dry run.
#[derive(Serialize)]
struct Shown {
    job: String,
    #[serde(flatten)]
    plan: Plan,
    /// `true` if fewer AI calls may be made.
    at_most: bool,
    /// `true` if a worker asks the job's feed, whose new entries come in addition.
    asks_feed: bool,
    /// The rest of the budgets of upstreams that the AI calls may ask.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    budgets: Vec<BudgetLeft>,
    notes: Vec<String>,
}

async fn dry_run(
    args: &WarmArgs,
    ops: &Ops,
    job: &KnownJob,
    prompts: Option<Result<Prompts, String>>,
    asks_feed: bool,
    entries: &[Named],
) -> Result<u8, Failed> {
    let mut plan = Plan { entries: entries.len(), ..Plan::default() };
    let mut notes = Vec::new();
    let is_bound = matches!(prompts, Some(Err(_)));
    match prompts {
        Some(Ok(prompts)) => {
            plan = Plan::default();
            for page in entries.chunks(PAGE) {
                plan += prompts.plan(ops, page).await?;
            }
        }
        Some(Err(why)) => {
            complain(&why);
            notes.push(why);
            plan.ai_calls = entries.len();
            plan.fallback_ai_calls = entries.len() * job.paid_fallbacks;
        }
        None => {
            plan.fetches = job.fetches(entries.len());
            plan.fallback_ai_calls = entries.len() * job.paid_fallbacks;
        }
    }
    let at_most = is_bound || plan.inputs_missing > 0;
    let budgets = ops.budgets(&[(job.name.as_str(), plan)], &BTreeSet::new()).await?;
    if args.json {
        print_json(&Shown { job: job.name.to_string(), plan, at_most, asks_feed, budgets, notes });
        return Ok(exit::OK);
    }
    tell(plan, job.name.as_str(), at_most);
    budgets::tell(&budgets, ops.store.now().await?);
    if asks_feed {
        println!("A worker would also ask its feed: entries that it names for the first time come in addition");
    }
    Ok(exit::OK)
}

/// Prints the requests for some entries of a job.
pub(super) fn tell(plan: Plan, job: &str, at_most: bool) {
    let Plan { entries, fetches, ai_calls, fallback_ai_calls, inputs_missing } = plan;
    let bound = if at_most { "at most " } else { "" };
    let fetches = many(fetches, "fetch", "fetches");
    println!("{} of {job}: {fetches}, {bound}{}", count(entries), many(ai_calls, "AI call", "AI calls"));
    if fallback_ai_calls > 0 {
        let calls = many(fallback_ai_calls, "AI call comes", "AI calls come");
        println!("If the sources before its AI fallback fail, {calls} in addition");
    }
    if inputs_missing > 0 {
        println!("{} for inputs that are missing", many(inputs_missing, "of them waits", "of them wait"));
    }
}

/// Returns the line for values of a job that are removed and not fetched.
pub(super) fn removed(values: usize, job: &str) -> String {
    let removed = many(values, "value removed", "values removed");
    format!("{} of {job}: 0 fetches, {removed}", count(values))
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

fn count(entries: usize) -> String {
    many(entries, "entry", "entries")
}

/// Returns a number with the words for one or for many.
fn many(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
