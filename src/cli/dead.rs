//! `samovar dead`: entries whose warming was given up, and why.

use clap::Args;
use redis::RedisResult;
use serde::Serialize;

use super::exit;
use super::session::{Failed, Session, jobs, print_json, relative, table};
use crate::agenda::{Trigger, When};
use crate::config::{Environment, Settings};
use crate::job::{EntryKey, Job};

/// Entries read in one round trip.
const PAGE: usize = 500;

/// Arguments of `samovar dead`.
#[derive(Args)]
pub(super) struct DeadArgs {
    /// Only these entries or jobs
    #[arg(value_name = "JOB|KEY")]
    only: Vec<String>,
    /// Put them back on the agenda, with all their attempts before them
    #[arg(long)]
    retry: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Dead {
    job: String,
    key: String,
    /// When it was given up (Redis time, ms since the epoch).
    at_ms: i64,
    reason: String,
}

pub(super) async fn run(args: &DeadArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    if let Some(unknown) =
        args.only.iter().find(|only| !jobs.jobs.contains_key(only.as_str()) && jobs.owner(only).is_none())
    {
        eprintln!("samovar: `{unknown}` is no job, and no job's key");
        return Ok(exit::USAGE);
    }
    let session = Session::open(settings).await?;
    let mut dead = Vec::new();
    for job in jobs.jobs.values() {
        for entry in of_job(&session, job).await? {
            if args.only.is_empty() || args.only.contains(&entry.job) || args.only.contains(&entry.key) {
                dead.push(entry);
            }
        }
    }
    if args.retry {
        for job in jobs.jobs.values() {
            let keys: Vec<EntryKey> = dead
                .iter()
                .filter(|dead| dead.job == job.name.as_str())
                .map(|dead| EntryKey::new(&*dead.key))
                .collect();
            // First due again, then no longer dead: a crash in between only leaves a letter too many.
            session.agenda.put(&job.name, &keys, When::Due(0), Trigger::Manual).await?;
            for page in keys.chunks(PAGE) {
                let keys: Vec<&str> = page.iter().map(EntryKey::as_str).collect();
                let () = redis::pipe()
                    .cmd("ZREM")
                    .arg(session.keys.dead(&job.name))
                    .arg(&keys)
                    .ignore()
                    .cmd("HDEL")
                    .arg(session.keys.dead_reasons(&job.name))
                    .arg(&keys)
                    .ignore()
                    .query_async(&mut session.redis.clone())
                    .await?;
            }
        }
    }
    if args.json {
        print_json(&serde_json::json!({ "dead": dead, "retried": args.retry }));
        return Ok(exit::OK);
    }
    if dead.is_empty() {
        println!("No dead letters.");
        return Ok(exit::OK);
    }
    let now = session.store.now().await?;
    let mut rows = table(&["JOB", "KEY", "GIVEN UP", "REASON"]);
    for dead in &dead {
        rows.add_row([dead.job.clone(), dead.key.clone(), relative(dead.at_ms, now), dead.reason.clone()]);
    }
    println!("{rows}");
    if args.retry {
        println!("\n{} put back on the agenda.", dead.len());
    } else {
        println!("\nPut them back with `samovar dead --retry`.");
    }
    Ok(exit::OK)
}

async fn of_job(session: &Session, job: &Job) -> RedisResult<Vec<Dead>> {
    let mut dead = Vec::new();
    let mut redis = session.redis.clone();
    loop {
        let page: Vec<(String, f64)> = redis::cmd("ZRANGE")
            .arg(session.keys.dead(&job.name))
            .arg(dead.len())
            .arg(dead.len() + PAGE - 1)
            .arg("WITHSCORES")
            .query_async(&mut redis)
            .await?;
        if page.is_empty() {
            return Ok(dead);
        }
        let keys: Vec<&str> = page.iter().map(|(key, _)| key.as_str()).collect();
        let reasons: Vec<Option<String>> =
            redis::cmd("HMGET").arg(session.keys.dead_reasons(&job.name)).arg(&keys).query_async(&mut redis).await?;
        dead.extend(page.into_iter().zip(reasons).map(|((key, at), reason)| {
            #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
            let at_ms = at as i64;
            Dead { job: job.name.to_string(), key, at_ms, reason: reason.unwrap_or_default() }
        }));
    }
}
