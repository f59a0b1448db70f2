//! Line output: one line for each event, as text or JSON.

use serde::Serialize;
use serde_json::json;

use super::super::session::complain;
use super::news::News;
use super::view::{View, ms, time_of_day};
use crate::entry::escape::{escaped, json_line};
use crate::protocol::Action;
use crate::telemetry::{Ended, Event, Invalidation};

/// Writes lines to standard output, and failures to standard error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines {
    json: bool,
}

/// An event and its worker.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event,
    worker: &'a str,
}

impl Lines {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints an event.
    pub(super) fn show(self, news: &News) {
        match news {
            News::Report(report) => {
                for event in &report.events {
                    if self.json {
                        println!("{}", json_line(&Line { event, worker: &report.worker }));
                    } else {
                        println!("{}", line(event));
                    }
                }
                if self.json && report.dropped > 0 {
                    let dropped = json!({ "event": "dropped", "count": report.dropped, "worker": report.worker });
                    println!("{}", json_line(&dropped));
                }
            }
            News::Disconnected(why) => self.fails("disconnected", "no events are received for now", why),
            News::Unreachable(why) => self.fails("unreachable", "Redis does not answer for now", why),
            News::Connected if self.json => println!("{}", json_line(&json!({ "event": "watching" }))),
            News::Connected | News::Polled(_) => {}
        }
    }

    /// Prints a failure on standard error and, for programs, as an event.
    fn fails(self, event: &str, what: &str, why: &str) {
        if self.json {
            println!("{}", json_line(&json!({ "event": event, "reason": why })));
        }
        complain(format_args!("{what}: {why}"));
    }

    /// Prints a summary. Before the first answer of Redis there is nothing to sum up.
    pub(super) fn sum_up(self, view: &mut View) {
        if view.poll.is_none() {
            return;
        }
        let summary = view.sum_up();
        if self.json {
            println!("{}", json_line(&summary));
        } else {
            println!("{}", escaped(&summary.line()));
        }
    }
}

/// Returns an event as one line of text.
fn line(event: &Event) -> String {
    let (what, why) = (what(event), why(event));
    let times = match event {
        Event::Ended(ended) => format!("took {:>8}  lag {:>8}", ms(ended.took_ms), ms(ended.lag_ms)),
        Event::Invalidation(_) => String::new(),
    };
    format!("{} {what:<12} {why:<12} {times:<28} {}", clock(event), subject(event))
}

/// Returns the time of day of an event.
pub(super) fn clock(event: &Event) -> String {
    let at = match event {
        Event::Ended(ended) => ended.at_ms,
        Event::Invalidation(invalidation) => invalidation.at_ms,
    };
    time_of_day(at, "%H:%M:%S%.3f")
}

/// Returns the outcome or the kind of an event.
pub(super) fn what(event: &Event) -> &'static str {
    match event {
        Event::Ended(ended) => ended.outcome.as_str(),
        Event::Invalidation(_) => "invalidation",
    }
}

/// Returns the trigger, or the way of an invalidation.
pub(super) fn why(event: &Event) -> String {
    match event {
        Event::Ended(ended) => ended.trigger.to_string(),
        Event::Invalidation(invalidation) => escaped(&invalidation.way).into_owned(),
    }
}

/// Returns the subject of an event, with its reason or effect.
pub(super) fn subject(event: &Event) -> String {
    let text = match event {
        Event::Ended(Ended { key, reason: Some(reason), .. }) => format!("{key}: {reason}"),
        Event::Ended(Ended { key, reason: None, .. }) => key.clone(),
        Event::Invalidation(invalidation) => named(invalidation),
    };
    escaped(&text).into_owned()
}

fn named(invalidation: &Invalidation) -> String {
    let Invalidation { action, keys, patterns, tags, jobs, entries, due, removed, fenced, foreign, .. } = invalidation;
    let action = match action {
        Action::Refresh => "refresh",
        Action::Evict => "evict",
        Action::Warm => "warm",
    };
    let mut names: Vec<String> = keys.clone();
    for (kind, list) in [("pattern", patterns), ("tag", tags), ("job", jobs)] {
        names.extend(list.iter().map(|name| format!("{kind} {name}")));
    }
    let counts = [("entries", entries), ("due", due), ("removed", removed), ("fenced", fenced), ("foreign", foreign)];
    let counts: Vec<String> =
        counts.into_iter().filter(|(_, count)| **count > 0).map(|(what, count)| format!("{count} {what}")).collect();
    let counts = if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) };
    format!("{action} {}{counts}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Outcome;
    use crate::entry::Trigger;
    use crate::redis::RedisTime;

    #[test]
    fn a_line_is_one_line_and_commands_no_terminal() {
        let event = Event::Ended(Ended {
            at_ms: RedisTime::from_millis(1_732_270_000_123),
            job: "art".into(),
            key: "art:\u{1b}[2Ja".into(),
            trigger: Trigger::Invalidation,
            outcome: Outcome::Failed,
            reason: Some("503\nService".into()),
            took_ms: 35,
            lag_ms: 12_000,
        });
        let line = line(&event);
        assert!(line.contains("failed       invalidation took     35ms  lag      12s"), "{line}");
        assert!(line.ends_with("art:\\u{1b}[2Ja: 503\\nService"), "{line}");
    }

    #[test]
    fn an_invalidation_says_what_it_named_and_touched() {
        let event = Event::Invalidation(Invalidation {
            at_ms: RedisTime::ZERO,
            way: "inbox".into(),
            action: Action::Evict,
            keys: vec!["art:a".into()],
            patterns: vec!["story:*".into()],
            tags: vec![],
            jobs: vec![],
            entries: 3,
            due: 0,
            removed: 2,
            fenced: 0,
            foreign: 0,
        });
        assert_eq!(subject(&event), "evict art:a, pattern story:* (3 entries, 2 removed)");
    }
}
