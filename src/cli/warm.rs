//! `samovar warm`: fetch a job's entries, or one entry, now.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value};

use super::exit;
use super::session::{Failed, Session, jobs, print_json, span};
use crate::agenda::{Due, State, Trigger, When};
use crate::config::{Environment, Settings};
use crate::job::{EntryKey, Job, Jobs, Params, Source};
use crate::popularity::Popularity;
use crate::source::{Ask, Sources};
use crate::warmer::Outcome;

/// Entries looked at in one round trip.
const PAGE: usize = 500;
/// How often `--wait` looks.
const LOOK: Duration = Duration::from_millis(100);
/// Failures shown.
const SHOWN: usize = 20;

/// Arguments of `samovar warm`.
#[derive(Args)]
pub(super) struct WarmArgs {
    /// A job's name, for all its entries, or an entry's key
    #[arg(value_name = "JOB|KEY")]
    what: String,
    /// Wait until each has been fetched; the exit code is 1 if any failed
    #[arg(long)]
    wait: bool,
    /// With --wait: for how long at most; what is not fetched by then has failed
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Only count what would be fetched
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &WarmArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    let session = Session::open(settings).await?;
    let (job, entries, when) = match (jobs.jobs.get(args.what.as_str()), jobs.owner(&args.what)) {
        (Some(job), _) => (job, entries(&session, &jobs, job).await?, When::Due(0)),
        (None, Some((job, params))) => (job, vec![(EntryKey::new(args.what.as_str()), params)], When::Urgent),
        (None, None) => {
            let known: Vec<&str> = jobs.jobs.keys().map(crate::job::JobName::as_str).collect();
            eprintln!("samovar: `{}` is no job, and no job's key; the jobs are {}", args.what, known.join(", "));
            return Ok(exit::USAGE);
        }
    };
    if args.dry_run {
        return dry_run(args, &session, &jobs, job, &entries).await;
    }
    let keys: Vec<EntryKey> = entries.into_iter().map(|(key, _)| key).collect();
    let asked = session.store.now().await?;
    session.agenda.put(&job.name, &keys, when, Trigger::Manual).await?;
    let workers = session.workers().await?;
    if workers == 0 {
        eprintln!("No worker is running: what is due is fetched when one is started with `samovar worker`.");
    }
    if !args.wait {
        if args.json {
            print_json(&serde_json::json!({ "job": job.name.as_str(), "due": keys.len(), "workers": workers }));
        } else {
            println!("{} of {} due now", count(keys.len()), job.name);
        }
        return Ok(exit::OK);
    }
    let done = wait(&session, job, keys, asked, args.timeout).await?;
    if args.json {
        print_json(&done);
    } else {
        done.print();
    }
    Ok(if done.failed.is_empty() { exit::OK } else { exit::FAILED })
}

/// What a job keeps warm: what its file lists, what its feed names now, and what is most read.
async fn entries(session: &Session, jobs: &Jobs, job: &Arc<Job>) -> Result<Vec<(EntryKey, Params)>, Failed> {
    let mut all = job.entries.list.clone();
    if job.entries.feed.is_some() {
        let fed = match Sources::new(jobs) {
            Ok(sources) => sources.feed(jobs, job).await.map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        match fed {
            Ok(fed) => all.extend(fed),
            Err(e) => {
                eprintln!("samovar: the feed of {} does not answer, taking what it named last: {e}", job.name);
                let named: Vec<String> = redis::cmd("ZRANGE")
                    .arg(session.keys.fed(&job.name))
                    .arg(0)
                    .arg(-1)
                    .query_async(&mut session.redis.clone())
                    .await?;
                all.extend(named.iter().filter_map(|key| job.key.read(key)));
            }
        }
    }
    let popular = Popularity::new(session.redis.clone(), session.keys.clone()).top(job, job.entries.popular).await?;
    all.extend(popular.iter().filter_map(|(key, _)| job.key.read(key.as_str())));
    all.sort_unstable();
    all.dedup();
    Ok(all.into_iter().filter_map(|params| Some((job.key.write(&params)?, params))).collect())
}

/// How many requests a warming would make at most.
#[derive(Serialize)]
struct Plan {
    job: String,
    entries: usize,
    /// Requests to HTTP upstreams; with validators, some are answered 304.
    fetches: usize,
    /// Requests to AI upstreams: entries whose prompt has changed, or that have no value.
    ai_calls: usize,
    /// Entries whose inputs are missing: what they will ask is not known yet. Counted as AI calls or fetches.
    inputs_missing: usize,
}

async fn dry_run(
    args: &WarmArgs,
    session: &Session,
    jobs: &Jobs,
    job: &Arc<Job>,
    entries: &[(EntryKey, Params)],
) -> Result<u8, Failed> {
    let mut plan =
        Plan { job: job.name.to_string(), entries: entries.len(), fetches: 0, ai_calls: 0, inputs_missing: 0 };
    match &job.sources[0] {
        Source::Http(_) => plan.fetches = entries.len(),
        Source::Ai(_) => {
            let sources = Sources::new(jobs).map_err(|e| {
                eprintln!("samovar: {e:#}");
                Failed(exit::CONFIG)
            })?;
            for page in entries.chunks(PAGE) {
                let keys: Vec<EntryKey> = page.iter().map(|(key, _)| key.clone()).collect();
                let looked = session.store.look(&keys).await?;
                for ((key, params), (expires, meta)) in page.iter().zip(looked) {
                    let mut inputs = Map::new();
                    for (name, pattern) in &job.inputs {
                        let Some(input) = pattern.write(params) else { continue };
                        if let Some(Some(text)) = session.store.values(&[input]).await?.pop()
                            && let Ok(value) = serde_json::from_str::<Value>(&text)
                        {
                            inputs.insert(name.clone(), value);
                        }
                    }
                    if inputs.len() < job.inputs.len() {
                        plan.inputs_missing += 1;
                        plan.ai_calls += 1;
                        continue;
                    }
                    let known = meta.filter(|meta| meta.is_of(expires) && meta.invalidated == 0);
                    let known = known.map(|meta| meta.note.validators);
                    let ask = Ask {
                        job,
                        source: 0,
                        key,
                        params,
                        inputs: &inputs,
                        known: known.as_ref(),
                        deadline: Instant::now(),
                    };
                    if !sources.unchanged_without_asking(jobs, &ask) {
                        plan.ai_calls += 1;
                    }
                }
            }
        }
    }
    if args.json {
        print_json(&plan);
    } else {
        let Plan { job, entries, fetches, ai_calls, inputs_missing } = &plan;
        println!("{} of {job}: {fetches} fetches, {ai_calls} AI calls", count(*entries));
        if *inputs_missing > 0 {
            println!("{inputs_missing} of them wait for inputs that are not there yet");
        }
    }
    Ok(exit::OK)
}

/// How a warming went.
#[derive(Debug, Default, Serialize)]
struct Done {
    warmed: usize,
    unchanged: usize,
    gone: usize,
    failed: Vec<Failure>,
    seconds: f32,
}

#[derive(Debug, Serialize)]
struct Failure {
    key: String,
    reason: String,
}

impl Done {
    fn print(&self) {
        let Self { warmed, unchanged, gone, failed, seconds } = self;
        println!("{warmed} warmed, {unchanged} unchanged, {gone} gone, {} failed in {seconds:.1} s", failed.len());
        for Failure { key, reason } in failed.iter().take(SHOWN) {
            eprintln!("  {key}: {reason}");
        }
        if failed.len() > SHOWN {
            eprintln!("  … and {} more", failed.len() - SHOWN);
        }
        if !failed.is_empty() {
            eprintln!("What failed is tried again by the workers; `samovar dead` lists what was given up.");
        }
    }
}

/// Waits until each entry has been attempted since `asked`.
async fn wait(
    session: &Session,
    job: &Job,
    keys: Vec<EntryKey>,
    asked: i64,
    timeout: Duration,
) -> Result<Done, Failed> {
    let begun = Instant::now();
    let bar = if std::io::stderr().is_terminal() {
        let style = "{job} [{bar:40}] {pos}/{len}  {per_sec}  {eta} left".replace("{job}", job.name.as_str());
        let style = ProgressStyle::with_template(&style).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(keys.len() as u64).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let mut done = Done::default();
    let mut waiting = keys;
    while !waiting.is_empty() {
        let mut still = Vec::with_capacity(waiting.len());
        for page in waiting.chunks(PAGE) {
            let looked = session.store.look(page).await?;
            let names: Vec<&str> = page.iter().map(EntryKey::as_str).collect();
            let scores: Vec<Option<f64>> = redis::cmd("ZMSCORE")
                .arg(session.keys.agenda(&job.name))
                .arg(&names)
                .query_async(&mut session.redis.clone())
                .await?;
            for ((key, (_, meta)), score) in page.iter().zip(looked).zip(scores) {
                let note = meta.map(|meta| meta.note).unwrap_or_default();
                let attempted = note.attempted >= asked;
                let pending = score.map(Due::from_score).is_some_and(|due| match due.state {
                    State::Claimed | State::Taken | State::Urgent => true,
                    State::Scheduled => due.at <= asked,
                });
                match note.outcome {
                    Some(Outcome::Failed) if attempted => {
                        let reason = note.reason.unwrap_or_default();
                        done.failed.push(Failure { key: key.to_string(), reason });
                    }
                    Some(Outcome::Warmed) if attempted && !pending => done.warmed += 1,
                    Some(Outcome::Gone) if attempted && !pending => done.gone += 1,
                    _ if pending || score.is_some_and(|score| Due::from_score(score).trigger == Trigger::Manual) => {
                        still.push(key.clone());
                    }
                    _ => done.unchanged += 1,
                }
            }
        }
        bar.set_position(bar.length().unwrap_or(0).saturating_sub(still.len() as u64));
        waiting = still;
        if begun.elapsed() >= timeout {
            let reason = format!("not fetched within {}; `samovar jobs` says what holds it up", span(timeout));
            let late = waiting.drain(..).map(|key| Failure { key: key.to_string(), reason: reason.clone() });
            done.failed.extend(late);
        }
        if !waiting.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    }
    bar.finish_and_clear();
    done.seconds = begun.elapsed().as_secs_f32();
    Ok(done)
}

fn count(entries: usize) -> String {
    if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") }
}
