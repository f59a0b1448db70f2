//! `samovar watch`: shows the fleet's events as they happen.
//!
//! In a terminal it draws a screen. Otherwise it prints a line for each event, and a summary every few seconds. If
//! Redis is unreachable, it says so, and continues when Redis is back.

mod filter;
mod lines;
mod news;
mod screen;
mod view;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use crossterm::event::{Event as Pressed, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use self::filter::Filter;
use self::lines::Lines;
use self::news::News;
use self::screen::Screen;
use self::view::View;
use super::session::{Failed, fleet, refuse};
use super::{asked_to_stop, exit};
use crate::config::{Environment, Settings};

/// The shortest interval between two drawings of the screen.
const DRAW: Duration = Duration::from_millis(100);
/// The interval between summaries.
const SUM_UP: Duration = Duration::from_secs(5);
/// The most messages that wait to be shown. Beyond that, Redis buffers them, and finally closes the connection.
const WAITING: usize = 1_000;

/// Arguments of `samovar watch`.
#[derive(Args)]
#[command(after_help = "Examples:\n\
\x20 samovar watch --job product --key 'product:4*'\n\
\x20 samovar watch --json | jq 'select(.outcome == \"failed\")'")]
pub(super) struct WatchArgs {
    /// Only these jobs
    #[arg(long, value_name = "JOB")]
    job: Vec<String>,
    /// Only keys that match one of these globs (`*`, `?`, `[a-z]`, `\` before a literal character)
    #[arg(long, value_name = "GLOB")]
    key: Vec<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &WatchArgs, settings: &Settings, env: &Environment) -> Result<u8, Failed> {
    let (session, ops) = fleet(settings, env).await?;
    let jobs = &ops.jobs;
    if let Some(unknown) = args.job.iter().find(|name| !jobs.jobs.contains_key(name.as_str())) {
        let what = format!("there is no job `{unknown}`; `samovar jobs` lists the jobs");
        return Err(refuse(exit::FAILED, args.json, what));
    }
    let filter = Filter::new(args.job.clone(), args.key.clone(), jobs);
    let (sender, mut news) = mpsc::channel(WAITING);
    let receiving = news::receive(session.redis.clone(), session.keys.watched_channel(), sender.clone());
    let polling = news::poll(&session, jobs, &filter, sender);
    let mut view = View::new(settings.redis.to_string(), filter.to_string());
    let mut shown = if args.json || !std::io::stdout().is_terminal() {
        Shown::Lines(Lines::new(args.json))
    } else {
        let screen = Screen::open().map_err(|e| {
            eprintln!("samovar: cannot draw in this terminal: {e}; `samovar watch | cat` prints lines");
            Failed(exit::FAILED)
        })?;
        Shown::Screen(Box::new(screen), EventStream::new())
    };
    let (mut draw, mut sum_up) = (interval(DRAW), interval(SUM_UP));
    for ticks in [&mut draw, &mut sum_up] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    sum_up.tick().await;
    let (mut changed, mut summed_up) = (true, false);
    let stop = asked_to_stop();
    tokio::pin!(receiving, polling, stop);
    loop {
        tokio::select! {
            () = &mut receiving => return Ok(exit::FAILED),
            () = &mut polling => return Ok(exit::FAILED),
            () = &mut stop => return Ok(exit::OK),
            Some(mut news) = news.recv() => {
                if let News::Report(report) = &mut news {
                    filter.retain(report);
                    view.drop_repeats(report);
                }
                if let Shown::Lines(lines) = &shown
                    && !view.knows(&news)
                {
                    lines.show(&news);
                }
                view.take(news);
                changed = true;
                // Line output starts without waiting for the first summary.
                if let (Shown::Lines(lines), false, true) = (&shown, summed_up, view.is_complete()) {
                    lines.sum_up(&mut view);
                    summed_up = true;
                }
            }
            _ = sum_up.tick() => if let Shown::Lines(lines) = &shown {
                lines.sum_up(&mut view);
            },
            _ = draw.tick() => if let (Shown::Screen(screen, _), true) = (&mut shown, changed) {
                changed = false;
                if let Err(e) = screen.draw(&view) {
                    drop(shown);
                    eprintln!("samovar: cannot draw on this terminal any more: {e}");
                    return Ok(exit::FAILED);
                }
            },
            pressed = shown.pressed() => match pressed {
                Pressing::Quit => return Ok(exit::OK),
                Pressing::Other => changed = true,
            },
        }
    }
}

/// The output.
enum Shown {
    Screen(Box<Screen>, EventStream),
    Lines(Lines),
}

/// An input at the terminal.
enum Pressing {
    Quit,
    Other,
}

impl Shown {
    async fn pressed(&mut self) -> Pressing {
        let Self::Screen(_, keys) = self else { return std::future::pending().await };
        match keys.next().await {
            Some(Ok(Pressed::Key(key))) if key.kind == KeyEventKind::Press => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => Pressing::Quit,
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Pressing::Quit,
                _ => Pressing::Other,
            },
            Some(Ok(_)) => Pressing::Other,
            // The terminal is gone.
            Some(Err(_)) | None => Pressing::Quit,
        }
    }
}
