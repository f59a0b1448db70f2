//! The minute figures of a job or an upstream, as lines.

use maud::{Markup, html};
use redis::RedisResult;

use super::chart::{Chart, Line, Unit};
use super::live::Snapshot;
use super::page::{Screen, figure, number, text};
use crate::entry::{JobName, UpstreamName, duration};
use crate::ops::Revalidation;
use crate::ops::history::{self, History, Span, Step};
use crate::ops::reads;
use crate::ops::words::grouped;
use crate::redis::requirements::explain;
use crate::telemetry::history::Counted;

/// Reads the time that is shown from a query: `6h`, or else 72 hours.
pub(super) fn span(text: &str) -> Span {
    if text == "6h" { Span::Hours } else { Span::Days }
}

/// Returns the section, or that it cannot be read: the rest of the page does without it.
pub(super) fn or_told(section: RedisResult<Markup>) -> Markup {
    section.unwrap_or_else(|e| html! { p.bad { "The history cannot be read: " (text(&explain(&e))) "." } })
}

/// Returns the section of a job.
pub(super) async fn of_job(screen: &Screen, job: &JobName, span: Span) -> RedisResult<Markup> {
    let ops = &screen.parts.ops;
    let history = history::of_job(&ops.redis, &ops.keys, job, span).await?;
    let outcomes = [
        ("warmed", Counted::Warmed),
        ("unchanged", Counted::Unchanged),
        ("failed", Counted::Failed),
        ("gone", Counted::Gone),
    ];
    let outcomes = outcomes.map(|(name, counted)| line(&history, name, |step| step.by_minute(counted)));
    let mut charts = vec![
        chart(&history, "Outcomes", "entries a minute", Unit::PerMinute, outcomes.into()),
        chart(&history, "Freshness lag", "from due until answered, of invalidated entries", Unit::Time, {
            vec![percentile(&history, "p50", 0.5), percentile(&history, "p99", 0.99)]
        }),
    ];
    if history.total().hit_rate().is_some() {
        let rate = line(&history, "hits", Step::hit_rate);
        charts.push(chart(&history, "Hit rate", "of the reads that services report", Unit::Share, vec![rate]));
    }
    if history.total().counts.contains_key(&Counted::Tokens) {
        let tokens = line(&history, "tokens", |step| step.by_minute(Counted::Tokens));
        charts.push(chart(&history, "AI tokens", "spent a minute", Unit::PerMinute, vec![tokens]));
    }
    Ok(section(&format!("/console/jobs/{job}"), span, &charts))
}

/// Returns the charts of an upstream.
pub(super) async fn of_upstream(screen: &Screen, upstream: &UpstreamName, span: Span) -> RedisResult<Markup> {
    let ops = &screen.parts.ops;
    let history = history::of_upstream(&ops.redis, &ops.keys, upstream, span).await?;
    let requests = [("requests", Counted::Requests), ("failures", Counted::Failed)];
    let requests = requests.map(|(name, counted)| line(&history, name, |step| step.by_minute(counted)));
    let times = vec![percentile(&history, "p50", 0.5), percentile(&history, "p99", 0.99)];
    Ok(html! {
        (chart(&history, "Requests", "a minute", Unit::PerMinute, requests.into()).view())
        (chart(&history, "Duration of requests", "from sent until ended", Unit::Time, times).view())
    })
}

/// Freshness of all jobs in the last hour.
struct Freshness {
    hour: Step,
    /// Hits and misses that services report, in the last hour.
    reads: Option<[u64; 2]>,
    revalidation: Option<Revalidation>,
}

/// Returns the section of the overview.
pub(super) async fn of_fleet(screen: &Screen, snapshot: &Snapshot) -> RedisResult<Markup> {
    let ops = &screen.parts.ops;
    let jobs: Vec<&JobName> = ops.jobs.jobs.keys().collect();
    let hour = history::last_hour(&ops.redis, &ops.keys, &jobs).await?;
    let reported = snapshot.jobs.iter().filter_map(|job| job.reads.as_ref());
    // The sum is unknown if a part of it is.
    let hours: Option<Vec<_>> = reported.map(|reads| reads.hour).collect();
    let reads = hours
        .filter(|hours| !hours.is_empty())
        .map(|hours| [hours.iter().map(|reads| reads.hits).sum(), hours.iter().map(|reads| reads.misses).sum()]);
    Ok(freshness(&Freshness { hour, reads, revalidation: ops.revalidation().await? }))
}

impl Freshness {
    /// Returns the freshness in one sentence.
    fn sentence(&self) -> String {
        match (self.hour.percentile(0.5), self.hour.percentile(0.99)) {
            (Some(half), Some(most)) => format!(
                "In the last hour, half of the invalidated entries were fresh again within {}, and 99 % within {}.",
                duration::rough(half),
                duration::rough(most)
            ),
            _ if self.hour.minutes == 0 => "Nothing is known of the last hour yet.".to_owned(),
            _ => "No invalidated entry was made anew in the last hour.".to_owned(),
        }
    }
}

fn freshness(all: &Freshness) -> Markup {
    let time = |share| {
        html! {
            @match all.hour.percentile(share) {
                Some(time) => { (duration::rough(time)) }
                None => { (number(None)) }
            }
        }
    };
    let rate = all.reads.and_then(|[hits, misses]| reads::rate(hits, misses));
    html! {
        section aria-labelledby="freshness" {
            h2 #freshness { "Freshness" }
            p { (all.sentence()) }
            @if let Some(Revalidation { fetched_until, is_loss, left, jobs }) = &all.revalidation {
                p.bad role="status" {
                    "Revalidation is under way: what was fetched up to " (fetched_until.utc()) " is looked at, since "
                    @if *is_loss { "invalidations were lost" } @else { "invalidations may have been missed" }
                    ". Jobs that are left: " (left.len()) " of " (jobs) "."
                }
            }
            dl.figures {
                (figure("Freshness lag, p50", &time(0.5), Some("at most, last hour")))
                (figure("Freshness lag, p99", &time(0.99), Some("at most, last hour")))
                (figure("Entries answered", &number(all.hour.count(Counted::Answered)), Some("invalidated, last hour")))
                (figure("Hit rate", &html! {
                    @match rate { Some(rate) => { (format!("{:.1} %", rate * 100.0)) } None => { (number(None)) } }
                }, Some("as services report, last hour")))
            }
            p.note {
                "The lag is the time from when an invalidated entry is due until it is made anew or confirmed, up to "
                "√2 times too long. Known of " (grouped(u64::from(all.hour.minutes.min(60)))) " of the last 60 minutes."
            }
        }
    }
}

fn line(history: &History, name: &'static str, value: impl Fn(&Step) -> Option<f64>) -> Line {
    Line { name, values: history.steps.iter().map(value).collect() }
}

fn percentile(history: &History, name: &'static str, share: f64) -> Line {
    line(history, name, |step| step.percentile(share).map(|time| time.as_secs_f64()))
}

fn chart(history: &History, title: &'static str, what: &'static str, unit: Unit, lines: Vec<Line>) -> Chart {
    Chart { title, what, unit, from: history.from, step: history.step, lines }
}

/// Returns links to the other time that can be shown.
pub(super) fn spans(url: &str, span: Span) -> Markup {
    html! {
        p.note {
            @for (of, name, query) in [(Span::Days, "72 hours", "72h"), (Span::Hours, "6 hours", "6h")] {
                a href=(format!("{url}?span={query}")) aria-current=[(of == span).then_some("true")] { (name) } " · "
            }
            "times in UTC; counted by minute, about a minute late; a gap is where nothing is known"
        }
    }
}

fn section(url: &str, span: Span, charts: &[Chart]) -> Markup {
    html! {
        section aria-labelledby="history" {
            h2 #history { "History" }
            (spans(url, span))
            @for chart in charts { (chart.view()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::history::Counts;

    #[test]
    fn a_lag_that_nobody_measured_is_unknown() {
        let unknown = Freshness { hour: Step::default(), reads: None, revalidation: None };
        assert_eq!(unknown.sentence(), "Nothing is known of the last hour yet.");
        assert_eq!(freshness(&unknown).into_string().matches("title=\"unknown\"").count(), 4);
        let idle = Freshness { hour: Step { minutes: 60, ..Step::default() }, reads: Some([0, 0]), ..unknown };
        assert_eq!(idle.sentence(), "No invalidated entry was made anew in the last hour.");
        assert_eq!(freshness(&idle).into_string().matches("title=\"unknown\"").count(), 3, "none is a count");
    }

    #[test]
    fn the_freshness_tells_the_lag_and_what_is_left_of_a_revalidation() {
        let counts = Counts::from([(Counted::Took(4), 99), (Counted::Took(20), 1), (Counted::Answered, 100)]);
        let hour = Step { minutes: 60, counts, ..Step::default() };
        let left = vec!["art".to_owned()];
        let revalidation =
            Some(Revalidation { fetched_until: crate::redis::RedisTime::ZERO, is_loss: false, left, jobs: 3 });
        let all = Freshness { hour, reads: Some([3, 1]), revalidation };
        let told = "half of the invalidated entries were fresh again within 4ms, and 99 % within 4ms.";
        assert!(all.sentence().ends_with(told), "{}", all.sentence());
        let shown = freshness(&all).into_string();
        assert!(shown.contains("75.0 %") && shown.contains("Jobs that are left: 1 of 3"), "{shown}");
    }
}
