//! `samovar jobs`: shows the state of all jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::exit;
use super::pause;
use super::session::{
    Failed, Rows, Session, ago, bar, fleet, print_json, relative, table, tell_redis, wrapped, wrapped_after,
};
use crate::config::{Environment, Settings};
use crate::entry::JobName;
use crate::entry::duration;
use crate::entry::escape::escaped;
use crate::entry::excerpt;
use crate::job::{KnownJob, KnownJobs};
use crate::ops::audit::LastDifferent;
use crate::ops::reads::{Reads, ReportedReads};
use crate::ops::status::{self, JobStatus, UpstreamStatus};
use crate::ops::words::{self, grouped};
use crate::ops::{Absent, AbsentPage, FleetStatus, Ops, still_waits};
use crate::redis::{RedisTime, is_of_keys, wrong_types};

/// The longest last outcome in the table, in characters.
const LAST: usize = 80;

/// The absent entries in one page.
const MOST_ABSENT: usize = 100;

/// The time in which a fleet reloads its job files. A change that waits for other workers for longer is a fault, as in
/// a worker's log.
const RELOADS: Duration = Duration::from_secs(30);

/// The consequence for a job that no running worker knows.
const LEFT: &str = "its file was removed, its key was changed, or the workers that had it have ended; nothing is \
                    fetched, its values expire, and what else Redis keeps of it is dropped after a day";

/// Arguments of `samovar jobs`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar jobs                                    # all jobs\n\
\x20 samovar jobs product                            # one job, with the whole text of LAST\n\
\x20 samovar jobs product --absent                   # which entries have no value, and why")]
pub(super) struct JobsArgs {
    /// The job's name; without it, all jobs are shown
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Show the entries of JOB that are to be warm and have no value, each with the reason
    #[arg(long, requires = "job")]
    absent: bool,
    /// With --absent: the entries after this key
    #[arg(long, value_name = "KEY", requires = "absent")]
    from: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &JobsArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (session, ops) = fleet(settings, env).await?;
    let of = args.job.as_deref().map(|name| pause::find(name, &ops.jobs, args.json)).transpose()?;
    if let Some(job) = of.filter(|_| args.absent) {
        return absent(job, args, &ops).await;
    }
    let jobs = Arc::clone(&ops.jobs);
    let now = session.store.now().await?;
    let census = ops.count().await?;
    let left = ops.left_jobs().await?;
    let living = session.living().await;
    let held_back = async { ops.held_back(&living.clone()?).await };
    let held_back = match held_back.await {
        Err(e) if is_of_keys(&e) => BTreeMap::new(),
        held_back => held_back?,
    };
    let mut all = Vec::new();
    for job in jobs.jobs.values().filter(|job| of.is_none_or(|of| of.name == job.name)) {
        let mut status = status::of_job(&session.redis, &session.keys, job, Some(&census)).await?;
        if left.contains(&job.name) {
            if jobs.heir(job, &left).is_none() {
                status.faults.push(format!("no running worker knows the job {}: {LEFT}", job.name));
            }
            // Nobody warms it up.
            status.next_warmup_ms = None;
        }
        if let Some(workers) = held_back.get(&job.name).filter(|_| job.since + RELOADS < now) {
            status.faults.push(still_waits(job.name.as_str(), workers));
        }
        all.push(status);
    }
    let mut upstreams = status::upstreams(&session.redis, &session.keys, &jobs).await?;
    status::assign(&mut all, &jobs, &upstreams);
    if let Some(job) = of {
        upstreams.retain(|upstream| job.upstreams.iter().any(|own| own.name.as_str() == upstream.upstream));
    }
    ops.add_outdated(&mut all, &census, &living).await?;
    let failing = ops.add_failing(&mut all).await?;
    let fleet = ops.fleet(living).await?;
    status::add_fleet(&mut all, &fleet);
    if args.json {
        print_json(&all);
        return Ok(exit::OK);
    }
    let last = all.first().and_then(words::last).filter(|last| of.is_some() && last.chars().count() > LAST);
    let told = tell_jobs(all, now);
    if let Some(job) = of {
        tell_job(job, last, &ops).await?;
    }
    if let Some(budgets) = budgets(&upstreams, now) {
        println!("\n{budgets}");
    }
    for upstream in &upstreams {
        if let Some(closed) = upstream.closed_text(now) {
            println!("\n{}", wrapped(&escaped(&format!("Upstream {}: {closed}.", upstream.upstream)), ""));
        }
    }
    for said in told.states.into_iter().chain(failing.iter().map(|said| format!("Fault: {said}."))) {
        println!("\n{}", wrapped(&escaped(&said), ""));
    }
    tell_left(&left, &jobs);
    for (job, workers) in &held_back {
        let is_long = jobs.jobs.get(job).is_none_or(|job| job.since + RELOADS < now);
        let said = match is_long {
            true => format!("Fault: {}.", still_waits(job.as_str(), workers)),
            false => format!("The change of {job} waits for workers with the old file: {}.", workers.join(", ")),
        };
        println!("\n{}", wrapped(&escaped(&said), ""));
    }
    for refused in &fleet.refused_reloads {
        println!("\n{}", wrapped(&format!("Fault: {}.", escaped(&words::refusal(refused, now))), ""));
    }
    if !told.paused.is_empty() {
        let paused = escaped(&told.paused.join(", ")).into_owned();
        println!("\nPaused, nothing is fetched: {paused}. Resume with `samovar resume JOB`.");
    }
    tell_fleet(&session, &jobs, &fleet).await?;
    Ok(exit::OK)
}

/// Prints the jobs that no running worker knows.
fn tell_left(left: &BTreeSet<JobName>, jobs: &KnownJobs) {
    for job in left.iter().filter_map(|name| jobs.jobs.get(name)) {
        let said = match jobs.heir(job, left) {
            Some(heir) => format!("{} was renamed: {heir} has its values.", job.name),
            None => format!("No running worker knows {}: {LEFT}.", job.name),
        };
        println!("\n{}", wrapped(&escaped(&said), ""));
    }
}

/// Prints keys of the wrong type, why Redis refuses to write, the number of workers, and Redis's masters.
async fn tell_fleet(session: &Session, jobs: &KnownJobs, fleet: &FleetStatus) -> Result<(), Failed> {
    let names = session.keys.all_fixed(jobs.jobs.keys(), jobs.upstreams.keys());
    for wrong in wrong_types(&mut session.redis.clone(), &session.keys, &names).await? {
        println!("\n{}", wrapped(&format!("Fault: {wrong}."), ""));
    }
    if let Some(refused) = &fleet.refused_writes {
        println!("\n{}", wrapped(&format!("Fault: {}.", escaped(refused)), ""));
    }
    match session.count_workers().await {
        Err(e) if is_of_keys(&e) => println!("\nThe number of running workers is unknown: {e}."),
        Err(e) => return Err(e.into()),
        Ok(workers) => tell_workers(workers),
    }
    tell_redis(&session.redis).await;
    Ok(())
}

/// Shows the entries of a job that are to be warm and have no value.
async fn absent(job: &KnownJob, args: &JobsArgs, ops: &Ops) -> Result<u8, Failed> {
    let name = &job.name;
    let page = absent_page(job, MOST_ABSENT, args.from.as_deref(), ops).await?;
    if args.json {
        print_json(&page);
        return Ok(exit::OK);
    }
    println!("{}", absent_of(name.as_str(), &page));
    let AbsentPage { absent, next, .. } = page;
    for Absent { key, reason } in &absent {
        println!("{}", wrapped_after(&escaped(&format!("{key}  ")), &escaped(reason), "    "));
    }
    if let Some(next) = next {
        println!("\nThere are more: `samovar jobs {name} --absent --from '{}'`.", escaped(&next));
    }
    Ok(exit::OK)
}

/// Looks at all entries that a job keeps warm, and shows how far it is.
async fn absent_page(job: &KnownJob, most: usize, from: Option<&str>, ops: &Ops) -> Result<AbsentPage, Failed> {
    let bar = bar(&job.name, 0);
    let page = ops
        .absent(job, most, from, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })
        .await;
    bar.finish_and_clear();
    Ok(page?)
}

/// Returns how many of the entries that a job keeps warm have no value.
fn absent_of(name: &str, AbsentPage { wanted, total, .. }: &AbsentPage) -> String {
    let have = if *total == 1 { "has" } else { "have" };
    match (total, wanted) {
        (0, 1) => format!("The only entry that {name} keeps warm has a value."),
        (_, 1) => format!("The only entry that {name} keeps warm has no value."),
        (total, wanted) => {
            let [total, wanted] = [total, wanted].map(|count| grouped(*count as u64));
            format!("{total} of {wanted} entries that {name} keeps warm {have} no value.")
        }
    }
}

/// Prints what the table has no room for: the whole last outcome of a job, and how many of its entries have no value.
async fn tell_job(job: &KnownJob, last: Option<String>, ops: &Ops) -> Result<(), Failed> {
    if let Some(last) = last {
        println!("\n{}", wrapped(&escaped(&format!("Last: {last}.")), ""));
    }
    let page = absent_page(job, 0, None, ops).await?;
    if page.total > 0 {
        let told = absent_of(job.name.as_str(), &page);
        println!("\n{told} `samovar jobs {} --absent` lists them, each with the reason.", job.name);
    }
    Ok(())
}

/// The sentences on jobs that follow the table.
struct Told {
    /// Paused jobs, each with the time since then.
    paused: Vec<String>,
    /// Feeds that fail, and guards that hold removals back.
    states: Vec<String>,
}

/// Prints the table of jobs and what they used; returns the sentences that follow.
fn tell_jobs(all: Vec<JobStatus>, now: RedisTime) -> Told {
    let mut rows =
        table(&["JOB", "KEY", "TTL", "SCHEDULE", "NEXT WARMUP", "WARM", "WANTED", "DUE", "IN HAND", "DEAD", "LAST"]);
    let (usage, hit_rates) = (usage(&all, now), hit_rates(&all, now));
    let mut told = Told { paused: Vec::new(), states: Vec::new() };
    for status in all {
        told.states.extend(words::feed(&status, now));
        told.states.extend(words::outdated(&status));
        told.states.extend(words::old(&status));
        told.states.extend(audits(&status, now));
        told.states.extend(
            status.gone_guard.map(|guard| words::guard(&status.job, Some(&guard), now) + words::lost(&status).as_str()),
        );
        if let Some(since) = status.paused_ms {
            let note = status.pause_note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            told.paused.push(format!("{} ({}{note})", status.job, ago(since, now)));
        }
        let last = words::last(&status);
        rows.add_row([
            status.job,
            status.key,
            duration::rough(Duration::from_secs(status.ttl_seconds)),
            status.schedule.unwrap_or_else(|| "–".to_owned()),
            status.next_warmup_ms.map_or_else(|| "–".to_owned(), |next| relative(next, now)),
            status.warm.unwrap_or_default().to_string(),
            status.wanted.map_or_else(|| "–".to_owned(), |wanted| wanted.to_string()),
            status.due.to_string(),
            status.in_flight.to_string(),
            status.dead.to_string(),
            // `samovar jobs JOB`, `get` and `dead` show the whole.
            last.map_or_else(|| "–".to_owned(), |last| excerpt(&last, LAST)),
        ]);
    }
    println!("{rows}");
    if let Some(usage) = usage {
        println!("\n{usage}");
    }
    if let Some(hit_rates) = hit_rates {
        println!("\n{hit_rates}");
    }
    told
}

fn tell_workers(workers: usize) {
    match workers {
        0 => println!("\nNo worker is running: start one with `samovar worker`."),
        1 => println!("\n1 worker is running."),
        n => println!("\n{n} workers are running."),
    }
}

/// Returns a table of the jobs' usage, without unused jobs.
fn usage(all: &[JobStatus], now: RedisTime) -> Option<Rows> {
    let mut rows =
        table(&["JOB", "TOKENS SPENT", "TOKENS SAVED", "AI CALLS SAVED", "NOT MODIFIED (304)", "COUNTED SINCE"]);
    let mut some = false;
    for JobStatus { job, usage, .. } in all {
        let counts = [usage.tokens_spent, usage.tokens_saved, usage.calls_saved, usage.not_modified];
        if counts.iter().any(|count| *count > 0) {
            some = true;
            let since = usage.since_ms.map(|since| ago(RedisTime::from_millis(since), now));
            let since = since.unwrap_or_else(|| "–".to_owned());
            rows.add_row([job.clone()].into_iter().chain(counts.map(grouped)).chain([since]));
        }
    }
    some.then_some(rows)
}

/// Returns what the freshness audits of a job found, if there were any.
fn audits(status: &JobStatus, now: RedisTime) -> Option<String> {
    let audits = status.audits.as_ref()?;
    let mut text = audits.sentence(&status.job);
    if let (Some(since), Some(last)) = (audits.since_ms, audits.last_ms) {
        text.push_str(&format!(" Audited since {}, last {}.", ago(since, now), ago(last, now)));
    }
    if let Some(LastDifferent { key, outcome, at_ms, fetched_ms }) = &audits.last_different {
        let (at, fetched) = (ago(*at_ms, now), ago(*fetched_ms, now));
        text.push_str(&format!(" The last one out of date: {key} ({}, {at}, fetched {fetched}).", outcome.as_str()));
    }
    Some(text)
}

/// Returns a table of the jobs' hit rates, if services report the reads of any.
fn hit_rates(all: &[JobStatus], now: RedisTime) -> Option<Rows> {
    let names = ["JOB", "HIT RATE (1 h)", "READS", "HIT RATE (24 h)", "READS", "OF THEM STALE", "REPORTED SINCE"];
    let mut rows = table(&names);
    let number =
        |reads: Option<Reads>, what: fn(Reads) -> u64| reads.map_or_else(unknown, |reads| grouped(what(reads)));
    for JobStatus { job, reads, .. } in all {
        let Some(known @ ReportedReads { hour, day, all, .. }) = reads else {
            rows.add_row([job.clone(), "not reported".to_owned()]);
            continue;
        };
        rows.add_row([
            job.clone(),
            known.hour_text(),
            number(*hour, |reads| reads.hits.saturating_add(reads.misses)),
            known.day_text(),
            number(*day, |reads| reads.hits.saturating_add(reads.misses)),
            number(*day, |reads| reads.stale),
            all.map_or_else(unknown, |all| ago(all.since_ms, now)),
        ]);
    }
    all.iter().any(|status| status.reads.is_some()).then_some(rows)
}

/// Returns the text for a number that is not known.
fn unknown() -> String {
    "–".to_owned()
}

/// Returns a table of the upstreams that have a budget.
fn budgets(upstreams: &[UpstreamStatus], now: RedisTime) -> Option<Rows> {
    let mut rows = table(&["UPSTREAM", "TOKENS SPENT IN THIS WINDOW", "BUDGET", "WINDOW ENDS"]);
    let mut some = false;
    for upstream in upstreams {
        let (Some(spent), Some(budget)) = (upstream.tokens_spent, upstream.tokens_budget) else { continue };
        some = true;
        let ends = upstream.tokens_window_ends_ms.map_or_else(|| "–".to_owned(), |ends| relative(ends, now));
        let share = u128::from(spent) * 100 / u128::from(budget.max(1));
        rows.add_row([upstream.upstream.clone(), format!("{} ({share} %)", grouped(spent)), grouped(budget), ends]);
    }
    some.then_some(rows)
}
