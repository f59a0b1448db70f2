//! `samovar gone`: shows the removals that a job's guard holds back, lets them through, or has them held longer.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::exit;
use super::pause;
use super::session::{Failed, Session, complain, fleet, print_json, refuse, wrapped};
use crate::config::{Environment, Settings};
use crate::entry::JobName;
use crate::entry::escape::escaped;
use crate::ops::{Ops, unguarded, words};
use crate::redis::is_of_keys;
use crate::store::GoneGuard;

/// Arguments of `samovar gone`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar gone                                    # the jobs whose removals are held back\n\
\x20 samovar gone product --accept                   # the upstream is right")]
pub(super) struct GoneArgs {
    /// The job's name; without it, all jobs are shown whose removals are held back or let through
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Let removals through for an hour: values that are held back are removed if the upstream still says so
    #[arg(long, conflicts_with = "hold", requires = "job")]
    accept: bool,
    /// Hold removals back for another hour
    #[arg(long, requires = "job")]
    hold: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A guard, as JSON shows it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    guard: GoneGuard,
    /// The entries that are asked for again at once, after `--accept`.
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<usize>,
}

pub(super) async fn run(args: &GoneArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (session, ops) = fleet(settings, env).await?;
    let Some(name) = &args.job else { return all(args.json, &session, &ops).await };
    let job = pause::find(name, &ops.jobs, args.json)?;
    if (args.accept || args.hold) && job.unguarded {
        return Err(refuse(exit::FAILED, args.json, unguarded(job)));
    }
    let failed = |e: redis::RedisError| match is_of_keys(&e) {
        true => refuse(exit::FAILED, args.json, unreadable(&session, &job.name, &e)),
        false => e.into(),
    };
    let due = if args.accept { Some(ops.accept_gone(job).await.map_err(failed)?) } else { None };
    if args.hold && !ops.hold_gone(job).await.map_err(failed)? {
        let what = format!("no removals of {} are held back, so none can be held longer", job.name);
        return Err(refuse(exit::FAILED, args.json, what));
    }
    let guard = ops.gone_guard(&job.name).await.map_err(failed)?;
    if args.json {
        print_json(&guard.map(|guard| Shown { guard, due }));
        return Ok(exit::OK);
    }
    let now = session.store.now().await?;
    let counts = if args.hold && guard.is_none() { " The guard counts again." } else { "" };
    println!("{}", wrapped(&escaped(&(words::guard(job.name.as_str(), guard.as_ref(), now) + counts)), ""));
    if let Some(due) = due {
        let are = if due == 1 { "entry is" } else { "entries are" };
        println!("{due} {are} asked for again at once.");
    }
    Ok(exit::OK)
}

/// Shows the guards of all jobs that hold removals back or let them through.
async fn all(json: bool, session: &Session, ops: &Ops) -> Result<u8, Failed> {
    let now = session.store.now().await?;
    let jobs: Vec<&JobName> = ops.jobs.jobs.keys().collect();
    let all = GoneGuard::read_all(&mut session.redis.clone(), &session.keys, &jobs, now).await?;
    let (mut guards, mut faults) = (BTreeMap::new(), 0);
    for (job, guard) in jobs.into_iter().zip(all) {
        match guard {
            Ok(guard) => guards.extend(guard.map(|guard| (job.as_str(), guard))),
            Err(e) if is_of_keys(&e) => {
                faults += 1;
                complain(unreadable(session, job, &e));
            }
            Err(e) => return Err(e.into()),
        }
    }
    let code = if faults == 0 { exit::OK } else { exit::FAILED };
    if json {
        print_json(&guards);
        return Ok(code);
    }
    for (n, (job, guard)) in guards.iter().enumerate() {
        if n > 0 {
            println!();
        }
        println!("{}", wrapped(&escaped(&words::guard(job, Some(guard), now)), ""));
    }
    if guards.is_empty() && faults == 0 {
        println!("No removals are held back.");
    }
    Ok(code)
}

fn unreadable(session: &Session, job: &JobName, error: &redis::RedisError) -> String {
    format!("the guard of {job}, {}, cannot be read: {error}", session.keys.gone(job))
}
