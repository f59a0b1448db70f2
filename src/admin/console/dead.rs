//! Dead letters, grouped by their cause.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::response::IntoResponse;
use maud::{Markup, html};
use serde::Deserialize;

use super::page::{
    Failure, Page, Screen, Tab, distance, entry_link, job_link, next_page, past, query, retry_link, text, unknown,
};
use crate::admin::Rights;
use crate::ops::words::grouped;
use crate::ops::{Dead, Letters, Ops};
use crate::redis::RedisTime;

/// The letters on one page.
const SHOWN: usize = 200;
/// The entries of a group that are named.
const NAMED: usize = 20;

/// The filter and the page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    /// Only of this job; empty for all.
    job: String,
    /// The offset.
    from: usize,
}

pub(super) async fn dead(screen: Screen, Query(filter): Query<Filter>) -> Result<impl IntoResponse, Failure> {
    let ops = &screen.parts.ops;
    if !filter.job.is_empty() && !ops.jobs.jobs.contains_key(filter.job.as_str()) {
        return Err(unknown(&filter.job));
    }
    let only: Vec<String> = [filter.job.clone()].into_iter().filter(|job| !job.is_empty()).collect();
    let _turn = screen.console.admin.turn().await;
    let letters = ops.dead(&only, filter.from, SHOWN).await?;
    let now = ops.store.now().await?;
    let page = Page { tab: Tab::Dead, title: "Dead letters".to_owned(), as_of: Some(now), is_live: true };
    Ok(screen.page(&page, &view(&letters, &filter, now, screen.visitor.rights, ops)))
}

fn view(letters: &Letters, filter: &Filter, now: RedisTime, rights: Rights, ops: &Ops) -> Markup {
    let mut groups: BTreeMap<(&str, String), Vec<&Dead>> = BTreeMap::new();
    for letter in &letters.dead {
        let cause = if rights.reasons { letter.cause() } else { "(the reason is not shown to everybody)".to_owned() };
        groups.entry((&letter.job, cause)).or_default().push(letter);
    }
    let mut jobs: Vec<&str> = ops.jobs.jobs.keys().map(crate::entry::JobName::as_str).collect();
    jobs.sort_unstable();
    html! {
        form.filter method="get" action="/console/dead" {
            label for="job" { "Job" }
            select #job name="job" {
                option value="" { "all jobs" }
                @for job in jobs { option value=(job) selected[filter.job == job] { (job) } }
            }
            button type="submit" { "Filter" }
        }
        p {
            @if letters.total == 0 { "No entry is given up." } @else {
                (grouped(letters.total as u64)) " given up; this page has " (grouped(letters.dead.len() as u64))
                ", grouped by their cause."
            }
        }
        @for ((job, cause), letters) in &groups { (group(job, cause, letters, now, rights, ops)) }
        @if let Some(next) = letters.next {
            (next_page(&format!("/console/dead?job={}&from={next}", query(&filter.job)), "Next page"))
        }
    }
}

fn group(job: &str, cause: &str, letters: &[&Dead], now: RedisTime, rights: Rights, ops: &Ops) -> Markup {
    html! {
        section.group {
            h2 { (job_link(job)) ": " (grouped(letters.len() as u64)) " on this page" }
            p.key { (text(cause)) }
            @if letters.iter().any(|letter| ops.may_pass(letter)) {
                p.note { "One of these is tried again every minute, and more of them once one lands." }
            }
            @if rights.act { div.actions { (retry_link(job, cause)) } }
            div.scroll tabindex="0" role="region" aria-label=(format!("Dead letters of {job}")) {
                table {
                    thead { tr {
                        th scope="col" { "Key" } th scope="col" { "Given up" } th scope="col" { "Tried again" }
                    } }
                    tbody {
                        @for letter in letters.iter().take(NAMED) {
                            tr {
                                td { (entry_link(&letter.key)) }
                                td { (past(letter.at_ms, now)) }
                                td { @if let Some(due) = letter.due_ms { (distance(due.max(now), now)) } @else { "–" } }
                            }
                        }
                    }
                }
            }
            @if letters.len() > NAMED { p.note { "and " (letters.len() - NAMED) " more of this group on this page" } }
        }
    }
}
