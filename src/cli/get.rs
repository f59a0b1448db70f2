//! `samovar get`: one entry's value, and what is known of it.

use clap::Args;
use serde_json::{Value, json};

use super::exit;
use super::session::{Failed, Session, jobs, print_json, relative, span};
use crate::agenda::{Due, State};
use crate::config::{Environment, Settings};
use crate::job::EntryKey;

/// Arguments of `samovar get`.
#[derive(Args)]
pub(super) struct GetArgs {
    /// The entry's key
    key: String,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &GetArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let jobs = jobs(settings, env)?;
    let session = Session::open(settings).await?;
    let key = EntryKey::new(args.key.as_str());
    let owner = jobs.owner(&args.key);
    let now = session.store.now().await?;
    let text = session.store.values(std::slice::from_ref(&key)).await?.pop().flatten();
    let (expires, meta) = session.store.look(std::slice::from_ref(&key)).await?.pop().unwrap_or((-2, None));
    let due = match &owner {
        Some((job, _)) => {
            let score: Option<f64> = redis::cmd("ZSCORE")
                .arg(session.keys.agenda(&job.name))
                .arg(&args.key)
                .query_async(&mut session.redis.clone())
                .await?;
            score.map(Due::from_score)
        }
        None => None,
    };
    let ours = meta.as_ref().is_some_and(|meta| meta.is_of(expires));
    let value: Option<Value> = text.as_deref().map(|text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)));
    if args.json {
        print_json(&json!({
            "key": args.key,
            "job": owner.as_ref().map(|(job, _)| job.name.as_str()),
            "value": value,
            "ttl_ms": (expires > 0).then_some(expires - now),
            "written_by_samovar": ours,
            "fetched_ms": meta.as_ref().filter(|_| ours).map(|meta| meta.start),
            "invalidated_ms": meta.as_ref().map(|meta| meta.invalidated).filter(|at| *at > 0),
            "etag": meta.as_ref().and_then(|meta| meta.note.validators.etag.as_deref()),
            "last_modified": meta.as_ref().and_then(|meta| meta.note.validators.last_modified.as_deref()),
            "last_outcome": meta.as_ref().and_then(|meta| meta.note.outcome),
            "last_trigger": meta.as_ref().and_then(|meta| meta.note.trigger),
            "last_attempt_ms": meta.as_ref().map(|meta| meta.note.attempted),
            "failures": meta.as_ref().map(|meta| meta.note.failures),
            "reason": meta.as_ref().and_then(|meta| meta.note.reason.as_deref()),
            "due_ms": due.map(|due| due.at),
            "due_for": due.map(|due| due.trigger),
        }));
    } else {
        match &value {
            Some(value) => println!("{}", serde_json::to_string_pretty(value).unwrap_or_default()),
            None => println!("(no value)"),
        }
        println!();
        let say = |what: &str, text: String| println!("{what:<14}{text}");
        say(
            "job",
            owner.as_ref().map_or("none: no job's key pattern fits".to_owned(), |(job, _)| job.name.to_string()),
        );
        match expires {
            -2 => {}
            -1 => say("expires", "never: it has no TTL, so somebody else wrote it".to_owned()),
            at => say("expires", relative(at, now)),
        }
        if let Some(meta) = &meta {
            if ours {
                say("fetched", format!("{}, age {}", relative(meta.start, now), span(age(now, meta.start))));
            } else if expires != -2 {
                say("written by", "somebody else".to_owned());
            }
            if meta.invalidated > 0 {
                say("invalidated", format!("{}, not yet answered", relative(meta.invalidated, now)));
            }
            let note = &meta.note;
            if let (Some(outcome), Some(trigger)) = (note.outcome, note.trigger) {
                say("last attempt", format!("{outcome}, {}, for {trigger}", relative(note.attempted, now)));
            }
            if let Some(reason) = &note.reason {
                say("reason", reason.clone());
            }
            if note.failures > 0 {
                say("failures", format!("{} in a row", note.failures));
            }
            for (what, validator) in
                [("etag", &note.validators.etag), ("last modified", &note.validators.last_modified)]
            {
                if let Some(validator) = validator {
                    say(what, validator.clone());
                }
            }
        } else if expires != -2 {
            say("written by", "somebody else".to_owned());
        }
        if due.is_none()
            && let Some((job, _)) = &owner
        {
            let reason: Option<String> = redis::cmd("HGET")
                .arg(session.keys.dead_reasons(&job.name))
                .arg(&args.key)
                .query_async(&mut session.redis.clone())
                .await?;
            if let Some(reason) = reason {
                say("agenda", format!("given up ({reason}); `samovar dead --retry` puts it back"));
            }
        }
        if let Some(due) = due {
            let state = match due.state {
                State::Claimed => "on the queue",
                State::Taken => "being warmed",
                State::Urgent => "due before all else",
                State::Scheduled => "due",
            };
            let when = match due.state {
                State::Scheduled | State::Urgent => format!("{state} {}, for {}", relative(due.at, now), due.trigger),
                State::Claimed | State::Taken => format!("{state}, for {}", due.trigger),
            };
            say("agenda", when);
        }
    }
    Ok(if value.is_some() { exit::OK } else { exit::FAILED })
}

fn age(now: i64, start: i64) -> std::time::Duration {
    std::time::Duration::from_millis(now.abs_diff(start))
}
