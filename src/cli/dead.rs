//! `samovar dead`: lists the dead letters with their reasons, or retries them.

use std::collections::BTreeMap;

use clap::Args;

use super::exit;
use super::session::{Failed, ago, fleet, refuse, relative, table, wrapped};
use crate::config::{Environment, Settings};
use crate::entry::escape::{escaped, json_line};
use crate::ops::{Dead, Ops};
use crate::redis::RedisTime;

/// Dead letters in one page.
const PAGE: usize = 500;

/// Arguments of `samovar dead`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar dead product                            # the job's dead letters, with reasons\n\
\x20 samovar dead product:42 --retry                 # tries one again; without names, all")]
pub(super) struct DeadArgs {
    /// Only these entries or jobs
    #[arg(value_name = "JOB|KEY")]
    only: Vec<String>,
    /// Put the entries back on the agenda and reset their attempts
    #[arg(long)]
    retry: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &DeadArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (session, ops) = fleet(settings, env).await?;
    if let Some(unknown) = ops.unknown(&args.only) {
        let what = format!("`{unknown}` is neither a job nor a key of a job; `samovar jobs` lists the jobs");
        return Err(refuse(exit::FAILED, args.json, what));
    }
    let now = session.store.now().await?;
    let mut list = List::begin(args.json);
    let mut from = 0;
    loop {
        // A page at a time: there may be 10,000 of each job, with long keys and reasons.
        let page = if args.retry {
            ops.retry(&args.only, now).await?
        } else {
            let letters = ops.dead(&args.only, from, PAGE).await?;
            from = letters.next.unwrap_or(usize::MAX);
            letters.dead
        };
        if page.is_empty() {
            break;
        }
        list.show(&page, now, &ops);
        if from == usize::MAX {
            break;
        }
    }
    list.end(args.retry);
    Ok(exit::OK)
}

fn reason_of(letter: &Dead) -> &str {
    letter.reason.as_deref().unwrap_or_default()
}

/// A printer of dead letters, page by page.
struct List {
    json: bool,
    shown: usize,
}

impl List {
    fn begin(json: bool) -> Self {
        if json {
            print!("{{\"dead\": [");
        }
        Self { json, shown: 0 }
    }

    /// Prints a page. For people, the letters of a job with the same reason follow it, so that an outage is one group.
    /// Reasons are the same if they differ only in what names entries.
    fn show(&mut self, page: &[Dead], now: RedisTime, ops: &Ops) {
        if self.json {
            for letter in page {
                let comma = if self.shown > 0 { "," } else { "" };
                print!("{comma}\n  {}", json_line(letter));
                self.shown += 1;
            }
            return;
        }
        let mut groups: BTreeMap<(&str, String), Vec<&Dead>> = BTreeMap::new();
        for letter in page {
            groups.entry((&letter.job, letter.cause())).or_default().push(letter);
        }
        for ((job, reason), letters) in groups {
            if self.shown > 0 {
                println!();
            }
            let reason = match letters.as_slice() {
                [first, others @ ..] if others.iter().all(|other| other.reason == first.reason) => reason_of(first),
                _ => &reason,
            };
            println!("{}", wrapped(&escaped(&format!("{job}: {reason}")), "  "));
            if letters.iter().any(|letter| ops.may_pass(letter)) {
                println!("  One of these is tried again every minute, and more of them once one lands.");
            }
            let is_due = letters.iter().any(|letter| letter.due_ms.is_some());
            let mut rows = table(&["KEY", "GIVEN UP", "TRIED AGAIN"][..if is_due { 3 } else { 2 }]);
            for Dead { key, at_ms, due_ms, .. } in &letters {
                let due = due_ms.map(|at| relative(at.max(now), now));
                rows.add_row([Some(key.clone()), Some(ago(*at_ms, now)), due].into_iter().flatten());
            }
            println!("{rows}");
            self.shown += letters.len();
        }
    }

    fn end(self, retried: bool) {
        match self.shown {
            shown if self.json => {
                let last = if shown > 0 { "\n" } else { "" };
                println!("{last}], \"retried\": {retried}}}");
            }
            0 => println!("No dead letters."),
            shown if retried => println!("\n{shown} put back on the agenda."),
            _ => println!("\nPut them back with `samovar dead --retry`."),
        }
    }
}
