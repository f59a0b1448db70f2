//! The list of jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::response::IntoResponse;
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::Asked;
use super::live::Snapshot;
use super::page::{Failure, Page, Screen, Tab, distance, job_link, next_page, number, query, text};
use crate::entry::duration;
use crate::ops::status::JobStatus;

/// The jobs on one page.
const SHOWN: usize = 100;

/// The filter and the page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    /// A part of the name.
    name: String,
    /// `look`: only jobs that need a look.
    state: String,
    /// The name after which the page begins.
    after: String,
}

impl Filter {
    fn takes(&self, job: &JobStatus) -> bool {
        let needs_look = job.dead > 0
            || job.paused_ms.is_some()
            || !job.faults.is_empty()
            || job.gone_guard.is_some()
            || is_incomplete(job)
            || waits(job);
        job.job.contains(&self.name) && (self.state != "look" || needs_look)
    }
}

pub(super) async fn jobs(screen: Screen, Asked(filter): Asked<Filter>) -> Result<impl IntoResponse, Failure> {
    let snapshot = screen.snapshot().await?;
    let page = Page { tab: Tab::Jobs, title: "Jobs".to_owned(), as_of: Some(snapshot.at), is_live: true };
    Ok(screen.page(&page, &view(&snapshot, &filter)))
}

fn view(snapshot: &Snapshot, filter: &Filter) -> Markup {
    let jobs = snapshot.jobs.iter().filter(|job| filter.takes(job)).map(|job| (job.job.as_str(), Ok(job)));
    // A job that cannot be read needs a look.
    let unread = snapshot.unread_jobs.iter().filter(|(name, _)| name.contains(&filter.name));
    let taken: BTreeMap<&str, Result<&JobStatus, &str>> =
        jobs.chain(unread.map(|(name, why)| (name.as_str(), Err(why.as_str())))).collect();
    let mut rest = taken.iter().filter(|(name, _)| **name > filter.after.as_str()).peekable();
    let shown: Vec<_> = rest.by_ref().take(SHOWN).collect();
    let next = shown.last().filter(|_| rest.peek().is_some()).map(|(name, _)| (**name).to_owned());
    html! {
        form.filter method="get" action="/console/jobs" {
            label for="name" { "Name contains" }
            input #name type="search" name="name" value=(text(&filter.name));
            label for="state" { "Show" }
            select #state name="state" {
                option value="" { "all jobs" }
                option value="look" selected[filter.state == "look"] { "jobs that need a look" }
            }
            button type="submit" { "Filter" }
        }
        div.scroll tabindex="0" role="region" aria-labelledby="caption" {
            table {
                caption #caption { (taken.len()) " of " (snapshot.jobs.len() + snapshot.unread_jobs.len()) " jobs" }
                thead { tr {
                    th scope="col" { "Job" } th scope="col" { "State" } th.num scope="col" { "Warm" }
                    th.num scope="col" { "Wanted" } th.num scope="col" { "Due" } th.num scope="col" { "In flight" }
                    th.num scope="col" { "Dead" } th.num scope="col" { "TTL" } th scope="col" { "Next warmup" }
                    th scope="col" { "Last outcome" }
                } }
                tbody {
                    @for (name, job) in shown {
                        @match job {
                            Ok(job) => (row(job, snapshot)),
                            Err(why) => (unknown(name, why)),
                        }
                    }
                }
            }
        }
        @if let Some(next) = next {
            @let [name, state, after] = [&filter.name, &filter.state, &next].map(|text| query(text));
            (next_page(&format!("/console/jobs?name={name}&state={state}&after={after}"), "Next page"))
        }
    }
}

fn row(job: &JobStatus, snapshot: &Snapshot) -> Markup {
    html! {
        tr {
            th scope="row" { (job_link(&job.job)) }
            td { (state(job)) }
            td.num { (number(job.warm)) }
            td.num { (number(job.wanted)) }
            td.num { (number(Some(job.due))) }
            td.num { (number(Some(job.in_flight))) }
            td.num { (number(Some(job.dead))) }
            td.num { (duration::rough(Duration::from_secs(job.ttl_seconds))) }
            td { @if let Some(next) = job.next_warmup_ms { (distance(next, snapshot.at)) } @else { "–" } }
            td.key {
                @if let Some(last) = &job.last { (last.outcome.to_string()) " " (text(&last.key)) } @else { "–" }
            }
        }
    }
}

/// Returns the row of a job that cannot be read.
fn unknown(name: &str, why: &str) -> Markup {
    html! {
        tr {
            th scope="row" { (job_link(name)) }
            td { span.badge.bad { "unknown" } }
            @for _ in 0..5 { td.num { (number(None)) } }
            td.num { "–" }
            td { "–" }
            td { (text(why)) }
        }
    }
}

/// Returns `true` if entries that are to be warm had no value at the last count.
fn is_incomplete(job: &JobStatus) -> bool {
    job.warm.zip(job.wanted).is_some_and(|(warm, wanted)| warm < wanted)
}

/// Returns `true` if values had been invalidated and not fetched since at the last count.
fn waits(job: &JobStatus) -> bool {
    job.invalidated.is_some_and(|invalidated| invalidated > 0)
}

/// Returns the state of a job in a word or two.
pub(super) fn state(job: &JobStatus) -> Markup {
    let (class, word) = if job.paused_ms.is_some() {
        ("fair", "paused")
    } else if !job.faults.is_empty() {
        ("bad", "faulty")
    } else if job.gone_guard.is_some_and(|guard| guard.is_holding()) {
        ("fair", "holds removals")
    } else if job.dead > 0 {
        ("fair", "given up in part")
    } else if is_incomplete(job) {
        ("fair", "incomplete")
    } else if waits(job) {
        ("fair", "invalidated in part")
    } else {
        ("good", "well")
    };
    html! { span.badge.(class) { (word) } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::RedisTime;

    #[test]
    fn jobs_come_in_pages_that_keep_the_filter() {
        let job = |n: usize| JobStatus { job: format!("art{n:03}"), dead: (n % 2) as u64, ..JobStatus::default() };
        let snapshot =
            Snapshot { at: RedisTime::from_millis(1_000), jobs: (0..300).map(job).collect(), ..Snapshot::default() };
        let page = |after: &str| {
            let filter = Filter { name: "art".to_owned(), state: "look".to_owned(), after: after.to_owned() };
            view(&snapshot, &filter).into_string()
        };
        let first = page("");
        assert_eq!(first.matches("<th scope=\"row\">").count(), SHOWN);
        assert!(
            first.contains("150 of 300 jobs") && first.contains("name=art&amp;state=look&amp;after=art199"),
            "{first}"
        );
        let mut snapshot = snapshot.clone();
        snapshot.unread_jobs.insert("art000".to_owned(), "no answer".to_owned());
        let filter = Filter { state: "look".to_owned(), ..Filter::default() };
        let unread = view(&snapshot, &filter).into_string();
        assert!(unread.contains("unknown</span>") && unread.contains("no answer"), "{unread}");
        let last = page("art199");
        assert_eq!((last.matches("<th scope=\"row\">").count(), last.contains("Next page")), (50, false));
    }
}
