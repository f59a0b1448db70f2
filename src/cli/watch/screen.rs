//! The screen: the state of jobs and upstreams, and the last events.
//!
//! The terminal is restored however the command ends, also after a panic.

use std::io;

use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};

use super::lines::{clock, subject, what, why};
use super::view::{Tally, View, hit_rate, ms, unanswered};
use crate::entry::Outcome;
use crate::entry::escape::escaped;
use crate::ops::status::JobStatus;
use crate::telemetry::Event;

/// A terminal in raw mode, restored on drop.
pub(super) struct Screen(DefaultTerminal);

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }

    pub(super) fn draw(&mut self, view: &View) -> io::Result<()> {
        self.0.draw(|frame| draw(frame, view)).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws the screen in the available space.
fn draw(frame: &mut Frame<'_>, view: &View) {
    let jobs = view.poll.as_ref().map(|poll| poll.jobs.as_slice()).unwrap_or_default();
    let upstreams = view.upstreams();
    let height = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX);
    let half = frame.area().height / 2;
    let rows = [
        Constraint::Length(2),
        Constraint::Length(height(jobs.len() + 2).min(half)),
        Constraint::Length(height(upstreams.len() + usize::from(!upstreams.is_empty())).min(6)),
        Constraint::Min(2),
    ];
    let [head, jobs_area, upstreams_area, events] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(header(view)), head);
    frame.render_widget(of_jobs(jobs, view), jobs_area);
    let said = upstreams.into_iter().map(|(closed, text)| if closed { Line::from(text).red() } else { text.into() });
    frame.render_widget(Paragraph::new(said.collect::<Vec<_>>()), upstreams_area);
    frame.render_widget(of_events(view, events), events);
}

fn header(view: &View) -> Vec<Line<'_>> {
    let only = if view.only.is_empty() { String::new() } else { format!("  only {}", escaped(&view.only)) };
    let title = Line::from(vec![
        Span::from("samovar watch").bold(),
        Span::from(format!("  {}{only}", view.server)),
        Span::from("  q ends").dim(),
    ]);
    let stands = match (&view.unreachable, &view.disconnected, &view.poll) {
        (Some(why), _, _) => Line::from(match view.unanswered_since() {
            Some(since) => format!("{}, and the figures are of then: {}", unanswered(since), escaped(why)),
            None => format!("Redis does not answer: {}", escaped(why)),
        })
        .red(),
        (None, Some(why), _) => Line::from(format!("no events are received: {}", escaped(why))).red(),
        (None, None, None) => Line::from("…"),
        (None, None, Some(poll)) => {
            let workers = match poll.workers {
                0 => Span::from("no worker is running: start one with `samovar worker`").red(),
                1 => Span::from("1 worker"),
                n => Span::from(format!("{n} workers")),
            };
            let mut spans = vec![workers];
            spans.extend(view.reads().map(|reads| Span::from(format!("  {}", hit_rate(reads)))));
            spans.push(Span::from(format!("  {} invalidations", view.invalidations)));
            if view.dropped > 0 {
                spans.push(Span::from(format!("  {} events dropped", view.dropped)).yellow());
            }
            Line::from(spans)
        }
    };
    vec![title, stands]
}

fn of_jobs<'a>(jobs: &'a [JobStatus], view: &View) -> Table<'a> {
    let names = [
        "JOB",
        "DUE",
        "IN HAND",
        "DEAD",
        "HIT RATE (1 h)",
        "WARMED",
        "UNCHANGED",
        "FAILED",
        "OTHER",
        "LAG p50/p99",
        "TOOK p50/p99",
    ];
    let none = Tally::default();
    let hits = |status: &JobStatus| match &status.reads {
        Some(reads) => reads.hour_text(),
        None => "not reported".to_owned(),
    };
    let rows = jobs.iter().map(|status| {
        let tally = view.tallies.get(&status.job).unwrap_or(&none);
        let [warmed, unchanged, failed] =
            [Outcome::Warmed, Outcome::Unchanged, Outcome::Failed].map(|o| tally.count(o));
        let all: u64 = Outcome::ALL.into_iter().map(|outcome| tally.count(outcome)).sum();
        let name = if status.paused_ms.is_some() { format!("{} (paused)", status.job) } else { status.job.clone() };
        let row = Row::new([
            name,
            status.due.to_string(),
            status.in_flight.to_string(),
            status.dead.to_string(),
            hits(status),
            warmed.to_string(),
            unchanged.to_string(),
            failed.to_string(),
            (all - warmed - unchanged - failed).to_string(),
            both(tally.lag()),
            both(tally.took()),
        ]);
        if status.paused_ms.is_some() { row.yellow() } else { row }
    });
    let widths = [
        Constraint::Min(16),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(16),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(14),
        Constraint::Length(14),
    ];
    Table::new(rows, widths).header(Row::new(names).style(heading()))
}

/// The events, the newest first.
fn of_events<'a>(view: &View, area: Rect) -> Table<'a> {
    let room = usize::from(area.height.saturating_sub(1));
    let rows = view.recent.iter().rev().take(room).map(|(_, event)| {
        let (took, lag) = match event {
            Event::Ended(ended) => (ms(ended.took_ms), ms(ended.lag_ms)),
            Event::Invalidation(_) => (String::new(), String::new()),
        };
        Row::new([clock(event), what(event).to_owned(), why(event), took, lag, subject(event)]).style(style(event))
    });
    let widths = [
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let names = ["AT", "WHAT", "WHY", "TOOK", "LAG", "KEY"];
    Table::new(rows, widths).header(Row::new(names).style(heading()))
}

fn both(times: Option<(u64, u64)>) -> String {
    times.map_or_else(|| "–".to_owned(), |(half, most)| format!("{}/{}", ms(half), ms(most)))
}

fn heading() -> Style {
    Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
}

fn style(event: &Event) -> Style {
    let colour = match event {
        Event::Invalidation(_) => Color::Magenta,
        Event::Ended(ended) => match ended.outcome {
            Outcome::Warmed => Color::Green,
            Outcome::Unchanged => Color::Cyan,
            Outcome::Failed => Color::Red,
            Outcome::Busy | Outcome::Fenced | Outcome::Deferred => Color::Yellow,
            Outcome::Gone | Outcome::Unread | Outcome::Unowned => Color::DarkGray,
        },
    };
    Style::new().fg(colour)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::watch::news::{News, Poll, Reads};
    use crate::entry::Trigger;
    use crate::ops::status::UpstreamStatus;
    use crate::redis::RedisTime;
    use crate::telemetry::{Ended, WorkerReport};

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    fn ended(n: u64, outcome: Outcome, reason: Option<&str>) -> Event {
        Event::Ended(Ended {
            at_ms: RedisTime::from_millis(1_732_270_000_123),
            job: "art".into(),
            key: format!("art:Kaplumbağa {n}"),
            trigger: Trigger::Cron,
            outcome,
            reason: reason.map(str::to_owned),
            took_ms: 35,
            lag_ms: 120,
        })
    }

    fn view() -> View {
        let mut view = View::new("redis://cache:6379/0".into(), String::new());
        let job = JobStatus {
            job: "art".into(),
            description: None,
            key: "art:{name}".into(),
            ttl_seconds: 60,
            schedule: None,
            next_warmup_ms: None,
            warmed_up_ms: None,
            feed: None,
            paused_ms: None,
            pause_note: None,
            gone_guard: None,
            warm: None,
            wanted: None,
            warm_counted_ms: None,
            oldest_ms: None,
            old: None,
            invalidated: None,
            outdated: None,
            due: 4_321,
            in_flight: 17,
            dead: 2,
            outcomes: std::collections::BTreeMap::default(),
            usage: crate::entry::Usage::default(),
            reads: None,
            audits: None,
            upstreams: Vec::new(),
            last: None,
            faults: Vec::new(),
            workers: None,
            refused_reloads: Vec::new(),
        };
        let closed = UpstreamStatus {
            upstream: "openai".into(),
            closed: Some("tokens"),
            closed_until_ms: Some(RedisTime::from_millis(61_000)),
            tokens_spent: Some(30),
            tokens_budget: Some(18),
            tokens_window_ends_ms: Some(RedisTime::from_millis(61_000)),
            faults: Vec::new(),
        };
        let poll = |before, after| {
            let (jobs, upstreams) = (vec![job.clone()], vec![closed.clone()]);
            let now = RedisTime::from_millis(1_000);
            News::Polled(Box::new(Poll { now, workers: 2, jobs, upstreams, before, after }))
        };
        view.take(News::Connected);
        view.take(poll(Some(Reads::default()), Some(Reads::default())));
        let read = Some(Reads { hits: 999, misses: 1 });
        view.take(poll(read, read));
        let events = vec![ended(1, Outcome::Warmed, None), ended(2, Outcome::Failed, Some("503"))];
        view.take(News::Report(WorkerReport { worker: "w".into(), dropped: 9, events }));
        view
    }

    #[test]
    fn the_screen_shows_jobs_upstreams_hits_and_the_last_events() {
        let shown = drawn(&view(), 140, 20);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for text in [
            "redis://cache:6379/0",
            "2 workers",
            "Redis hits 99.9 % of 1000 reads",
            "9 events dropped",
            "art 4321 17 2 not reported 1 0 1 0 120ms/120ms 35ms/35ms",
            "openai: no requests for 1m (tokens), 30 of 18 tokens spent",
            "failed cron 35ms 120ms art:Kaplumbağa 2: 503",
        ] {
            assert!(words(&shown).contains(text), "`{text}` in\n{shown}");
        }
        let place = |text: &str| shown.find(text).unwrap();
        assert!(place("art:Kaplumbağa 2") < place("art:Kaplumbağa 1"), "the newest on top\n{shown}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut view = view();
        view.take(News::Disconnected("gone".into()));
        assert!(drawn(&view, 100, 20).contains("no events are received: gone"));
        view.take(News::Unreachable("refused".into()));
        assert!(drawn(&view, 100, 20).contains(", and the figures are of then: refused"));
        view.poll = None;
        assert!(drawn(&view, 100, 20).contains("Redis does not answer: refused"));
    }

    #[test]
    fn no_room_is_no_reason_to_fail() {
        for (width, height) in [(1, 1), (5, 3), (20, 4), (80, 6), (300, 100)] {
            drawn(&view(), width, height);
        }
    }
}
