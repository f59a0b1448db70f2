//! `samovar dead`: lists the dead letters with their reasons, or retries them.

use clap::Args;

use super::exit;
use super::session::{Failed, complain, fleet, relative, table};
use crate::config::{Environment, Settings};
use crate::entry::escape::json_line;
use crate::ops::Dead;
use crate::redis::RedisTime;

/// Dead letters in one page.
const PAGE: usize = 500;

/// Arguments of `samovar dead`.
#[derive(Args)]
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
        complain(format_args!("`{unknown}` is neither a job nor a key of a job"));
        return Ok(exit::FAILED);
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
        list.show(&page, now);
        if from == usize::MAX {
            break;
        }
    }
    list.end(args.retry);
    Ok(exit::OK)
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

    fn show(&mut self, page: &[Dead], now: RedisTime) {
        if self.json {
            for letter in page {
                let comma = if self.shown > 0 { "," } else { "" };
                print!("{comma}\n  {}", json_line(letter));
                self.shown += 1;
            }
            return;
        }
        let mut rows = if self.shown == 0 { table(&["JOB", "KEY", "GIVEN UP", "REASON"]) } else { table(&[]) };
        for Dead { job, key, at_ms, reason } in page {
            rows.add_row([job.clone(), key.clone(), relative(*at_ms, now), reason.clone().unwrap_or_default()]);
        }
        println!("{rows}");
        self.shown += page.len();
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
