//! `samovar check --diff`: compares the job files with those that the fleet works with, and counts what taking them up
//! would cause. It changes nothing, and needs no secrets: variables that are not set count as set to [`UNSET`].

mod handover;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::budgets;
use super::check::{FaultReport, check};
use super::session::{
    Failed, Session, complain, print_json, table, tell_all_redis, tell_faults, warn_of_unknown_settings, wrapped,
};
use super::{CheckArgs, exit};
use crate::config::{Environment, Settings};
use crate::entry::{EntryKey, JobName, KeySet};
use crate::job::{EnvUse, Job, Jobs, KnownJobs};
use crate::ops::{BudgetLeft, Digests, Noted, Ops, Plan, descriptions, differences, digests, still_waits};
use crate::redis::{RedisTime, Scan};
use crate::source::Sources;

/// The value of a variable that is not set; it is valid in a URL and in a header.
const UNSET: &str = "http://unset.invalid";
/// Entries in one round trip.
const PAGE: usize = 500;

/// The comparison of a folder with a fleet.
#[derive(Debug, Serialize)]
struct Report {
    jobs: Vec<JobDiff>,
    /// The variables that are not set here.
    unset: Vec<String>,
    /// The token budgets of the upstreams that AI calls to come may ask, and those that these files change and that are
    /// spent by then.
    budgets: Vec<BudgetLeft>,
    /// The numbers of requests and AI calls are the most that are made, if none fails.
    at_most: bool,
}

/// One job.
#[derive(Debug, Serialize)]
struct JobDiff {
    job: String,
    state: State,
    /// The parts of the file that differ: `values` (what they are made from), `ttl`, `entries`, `warm`; `text` for
    /// comments and descriptions; `file` where the fleet does not tell which.
    changed: Vec<String>,
    /// Values in Redis that are made anew, also those that wait since an earlier change.
    values: usize,
    /// Entries to keep warm that have no value.
    missing: usize,
    /// Requests to HTTP upstreams for both.
    fetches: usize,
    /// Requests to AI upstreams for both, at most, unless requests fail.
    ai_calls: usize,
    /// Requests to AI upstreams that fallbacks make in addition, if the sources before them fail for all entries.
    fallback_ai_calls: usize,
    notes: Vec<String>,
}

/// The state of a job in the new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    New,
    Changed,
    Unchanged,
    /// The file is as it was, but no running worker has it: its entries were not fetched meanwhile.
    Returned,
    Removed,
}

/// The records of the fleet's jobs in Redis.
struct Fleet {
    /// The digests that each job's values are made from.
    noted: BTreeMap<JobName, Noted>,
    /// The files of live workers.
    files: Vec<BTreeMap<String, Digests>>,
    /// The live workers that hold the change of a job back, by job.
    held_back: BTreeMap<JobName, Vec<String>>,
    /// The digest of each job's file when it was last scheduled.
    scheduled: BTreeMap<String, String>,
    /// The names of all jobs that are not forgotten.
    names: BTreeSet<JobName>,
    /// The jobs as workers described them.
    described: KnownJobs,
    /// Those of them that no running worker knows.
    left: BTreeSet<JobName>,
}

/// Compares the folder with the fleet, and prints the result.
pub(super) async fn run(args: &CheckArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let folder = args.folder.as_deref().unwrap_or(&settings.jobs);
    let lookup = |name: &str| env.get(name).or_else(|| Some(UNSET.to_owned()));
    let read = Jobs::read(folder, settings.default_ttl, &lookup);
    warn_of_unknown_settings(env, |name| read.env.iter().any(|used| used.name == name));
    let unset: Vec<EnvUse> = read.env.into_iter().filter(|used| env.get(&used.name).is_none()).collect();
    let names: BTreeSet<String> = unset.iter().map(|used| used.name.clone()).collect();
    let jobs = match read.jobs {
        Ok(jobs) => Arc::new(jobs),
        Err(faults) => {
            if args.json {
                let faults: Vec<FaultReport> = check(folder, settings.default_ttl, &lookup).faults;
                print_json(&serde_json::json!({ "faults": faults, "unset": names }));
            } else {
                tell_faults(&faults);
                if !names.is_empty() {
                    let names = names.into_iter().collect::<Vec<_>>().join(", ");
                    complain(format_args!("not set here: {names}; a fault may be gone once they are"));
                }
            }
            return Ok(exit::CONFIG);
        }
    };
    let sources = Sources::new(&jobs).map_err(|e| {
        complain(format_args!("{e:#}"));
        Failed(exit::CONFIG)
    })?;
    let session = Session::open(settings).await?;
    let ops = session.ops(Arc::new(KnownJobs::from(&*jobs)));
    let fleet = Fleet::read(&session, &ops).await?;
    let outdated = fleet.outdated(&ops, &sources, &jobs).await?;
    let mut diffs = Vec::new();
    for job in jobs.jobs.values() {
        let of_file = |used: &&EnvUse| Path::new(&used.file).file_stem().is_some_and(|stem| stem == job.name.as_str());
        let unset: BTreeSet<&str> = unset.iter().filter(of_file).map(|used| used.name.as_str()).collect();
        let outdated = outdated.get(&job.name).copied().unwrap_or_default();
        let mut diff = fleet.compare(&ops, &sources, job, outdated, &unset).await?;
        fleet.note_handover(&ops, &sources, &jobs, job, &mut diff).await?;
        diffs.push(diff);
    }
    note_inputs(&jobs, &mut diffs);
    for name in fleet.names.iter().filter(|name| !jobs.jobs.contains_key(*name)) {
        diffs.push(fleet.removed(&ops, name, &jobs).await?);
    }
    let plan =
        |diff: &JobDiff| Plan { ai_calls: diff.ai_calls, fallback_ai_calls: diff.fallback_ai_calls, ..Plan::default() };
    let plans: Vec<(&str, Plan)> = diffs.iter().map(|diff| (diff.job.as_str(), plan(diff))).collect();
    let budgets = ops.budgets(&plans, &fleet.changed_budgets(&ops)).await?;
    let report = Report { jobs: diffs, unset: names.into_iter().collect(), budgets, at_most: true };
    if args.json {
        print_json(&report);
    } else {
        report.print(session.store.now().await?);
        tell_all_redis(&session.redis).await;
    }
    Ok(exit::OK)
}

impl Fleet {
    async fn read(session: &Session, ops: &Ops) -> Result<Self, Failed> {
        let living = session.living().await?;
        let held_back = ops.held_back(&living).await?;
        let announced = ops.announced_files().await?;
        let files = announced.into_iter().filter(|(worker, _)| living.contains(worker)).filter_map(|(_, files)| files);
        let noted = ops.noted().await?;
        let mut redis = session.redis.clone();
        let scheduled: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(session.keys.digests()).query_async(&mut redis).await?;
        let mut names: BTreeSet<JobName> = noted.keys().cloned().collect();
        names.extend(scheduled.keys().map(|name| JobName::new(name.as_str())));
        let mut scan = Scan::new(session.keys.unknown_glob());
        while let Some(found) = scan.next(&mut redis).await? {
            names.extend(found.iter().filter_map(|key| session.keys.job_of_unknown(key)).map(JobName::new));
        }
        let described = descriptions::read(&redis, &session.keys, session.store.now().await?).await?.jobs;
        let left = session.ops(Arc::new(described.clone())).left_jobs().await?;
        Ok(Self { noted, files: files.collect(), held_back, scheduled, names, described, left })
    }

    /// Compares one job's file with the fleet's, and counts what taking it up causes.
    async fn compare(
        &self,
        ops: &Ops,
        sources: &Sources,
        job: &Arc<Job>,
        outdated: Plan,
        unset: &BTreeSet<&str>,
    ) -> Result<JobDiff, Failed> {
        let name = job.name.as_str();
        let noted = self.noted.get(&job.name);
        let mut notes = Vec::new();
        let mut changed = self.changed(job, noted);
        let state = match (self.names.contains(&job.name), changed.is_empty()) {
            (false, _) => State::New,
            (true, true) if self.is_away(&job.name) => State::Returned,
            (true, true) => State::Unchanged,
            (true, false) => State::Changed,
        };
        if noted.is_none() && state != State::New {
            notes.push(
                "no worker of this version has run with this job: its values count as made from the new file"
                    .to_owned(),
            );
        }
        let (mut plan, values) = (outdated, outdated.entries);
        if values > 0 && noted.is_some_and(|noted| noted.is_settled(&job.made)) {
            notes.push("its values wait since an earlier change; `samovar jobs` shows what for".to_owned());
        }
        let fed = self.fed(ops, job).await?;
        if state != State::Unchanged {
            plan += self.missing(ops, sources, job, &fed).await?;
        }
        let names_others = changed.iter().any(|part| matches!(part.as_str(), "entries" | "values" | "file"));
        if job.entries.feed.is_some() && (matches!(state, State::New | State::Returned) || names_others) {
            let counted = if fed.is_empty() { "" } else { "; counted is what its last answer names by the new file" };
            notes.push(format!("its feed is not asked: the entries that it names come in addition{counted}"));
        }
        if state == State::New {
            changed.clear();
        }
        if plan.ai_calls > 0 && !unset.is_empty() {
            let unset = Vec::from_iter(unset.iter().copied()).join(", ");
            notes.push(format!("not set here: {unset}; if a prompt contains it, fewer AI calls may be made"));
        }
        let Plan { entries, fetches, ai_calls, fallback_ai_calls, .. } = plan;
        if fallback_ai_calls > 0 {
            notes.push(format!(
                "if the sources before its AI fallback fail, {fallback_ai_calls} AI calls come in addition"
            ));
        }
        if let Some(workers) = self.held_back.get(&job.name) {
            notes.push(still_waits(name, workers));
        }
        Ok(JobDiff {
            job: name.to_owned(),
            state,
            changed,
            values,
            missing: entries - values,
            fetches,
            ai_calls,
            fallback_ai_calls,
            notes,
        })
    }

    /// Counts what values take that are not made from the new files, by job, with one scan of the whole database.
    async fn outdated(&self, ops: &Ops, sources: &Sources, jobs: &Jobs) -> Result<BTreeMap<JobName, Plan>, Failed> {
        let mut plans: BTreeMap<JobName, Plan> = BTreeMap::new();
        if self.noted.is_empty() {
            return Ok(plans);
        }
        let mut scan = Scan::new("*");
        while let Some(found) = scan.next(&mut ops.redis.clone()).await? {
            let mut by_job: BTreeMap<&JobName, (&Job, Vec<EntryKey>)> = BTreeMap::new();
            for key in found {
                if let Some((job, _)) = jobs.owner(&key) {
                    by_job.entry(&job.name).or_insert_with(|| (&**job, Vec::new())).1.push(EntryKey::new(key));
                }
            }
            for (name, (job, keys)) in by_job {
                let Some(noted) = self.noted.get(name) else { continue };
                *plans.entry(name.clone()).or_default() += ops.plan_outdated(job, noted.base(), sources, keys).await?;
            }
        }
        Ok(plans)
    }

    /// Returns the upstreams whose budget is another one in the new files.
    fn changed_budgets<'o>(&self, ops: &'o Ops) -> BTreeSet<&'o str> {
        let known = |name| self.described.upstreams.get(name).map(|upstream| upstream.budget);
        let all = ops.jobs.upstreams.values();
        all.filter(|new| known(&new.name).is_some_and(|budget| budget != new.budget))
            .map(|new| new.name.as_str())
            .collect()
    }

    /// Returns `true` if no running worker knows a job, or if none knew it for a while: see the describer.
    fn is_away(&self, job: &JobName) -> bool {
        self.left.contains(job) || !self.scheduled.contains_key(job.as_str())
    }

    /// Returns the parts of a job's file that differ from the fleet's.
    fn changed(&self, job: &Job, noted: Option<&Noted>) -> Vec<String> {
        let new = digests(job);
        let known: Vec<&Digests> = self.files.iter().filter_map(|files| files.get(job.name.as_str())).collect();
        let mut changed: BTreeSet<String> = known.iter().flat_map(|file| differences(file, &new)).collect();
        if noted.is_some_and(|noted| !noted.is_settled(&job.made)) {
            changed.insert("values".to_owned());
        }
        let scheduled = self.scheduled.get(job.name.as_str()).and_then(|text| text.split(' ').next());
        if known.is_empty() && changed.is_empty() && scheduled.is_some_and(|digest| digest != job.digest) {
            changed.insert("file".to_owned());
        }
        changed.into_iter().collect()
    }

    /// Counts the requests for entries to keep warm that have no value.
    async fn missing(&self, ops: &Ops, sources: &Sources, job: &Arc<Job>, fed: &KeySet) -> Result<Plan, Failed> {
        let mut plan = Plan::default();
        let Some(known) = ops.jobs.jobs.get(&job.name) else { return Ok(plan) };
        for page in ops.entries(known, Some(fed.clone())).await?.chunks(PAGE) {
            let keys: Vec<_> = page.iter().map(|(key, _)| key.clone()).collect();
            let snapshots = ops.store.snapshots(&keys).await?;
            let absent = page.iter().zip(snapshots).filter(|(_, snapshot)| !snapshot.has_value());
            let absent: Vec<_> = absent.map(|(entry, _)| entry.clone()).collect();
            plan += ops.plan(job, sources, &absent).await?;
        }
        Ok(plan)
    }
}

/// Notes where inputs are made anew, direct or not: what is made from them follows if their content changes.
fn note_inputs(jobs: &Jobs, diffs: &mut [JobDiff]) {
    let mut renewed: BTreeSet<String> =
        diffs.iter().filter(|diff| diff.values > 0).map(|diff| diff.job.clone()).collect();
    let is_made_from = |job: &Job, owner: &Job| job.inputs.values().any(|input| owner.key.overlaps(&input.key));
    // Each round goes one job further.
    loop {
        let owners: Vec<&Arc<Job>> = renewed.iter().filter_map(|name| jobs.jobs.get(name.as_str())).collect();
        let follows = |job: &&Arc<Job>| owners.iter().any(|owner| is_made_from(job, owner));
        let before = renewed.len();
        renewed.extend(jobs.jobs.values().filter(follows).map(|job| job.name.to_string()));
        if renewed.len() == before {
            break;
        }
    }
    for diff in diffs {
        let Some(job) = jobs.jobs.get(diff.job.as_str()) else { continue };
        let owners = jobs.jobs.values().filter(|owner| renewed.contains(owner.name.as_str()));
        for owner in owners.filter(|owner| is_made_from(job, owner)) {
            let name = &owner.name;
            diff.notes.push(format!("entries whose input of {name} changes are made anew as well; not counted here"));
        }
    }
}

impl Report {
    fn print(&self, now: RedisTime) {
        let mut rows = table(&["JOB", "STATE", "CHANGED", "VALUES", "MISSING", "REQUESTS", "AI CALLS"]);
        for diff in &self.jobs {
            let state = serde_json::to_value(diff.state).ok().and_then(|state| Some(state.as_str()?.to_owned()));
            let counts = [diff.values, diff.missing, diff.fetches, diff.ai_calls].map(|count| count.to_string());
            let words = [diff.job.clone(), state.unwrap_or_default(), diff.changed.join(", ")];
            rows.add_row(words.into_iter().chain(counts));
        }
        println!("{rows}");
        for diff in &self.jobs {
            for note in &diff.notes {
                println!("{}", wrapped(&format!("{}: {note}", diff.job), "  "));
            }
        }
        budgets::tell(&self.budgets, now);
        let legend = "VALUES in Redis are made anew, MISSING ones fetched. REQUESTS and AI CALLS are the most that are \
                      made, if none fails.";
        println!("{}", wrapped(legend, ""));
    }
}
