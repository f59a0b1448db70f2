//! Dead letters, grouped by their cause.

use std::collections::BTreeMap;

use axum::response::IntoResponse;
use maud::{Markup, html};
use redis::RedisResult;
use serde::Deserialize;

use super::fields::Asked;
use super::page::{
    Failure, Page, Screen, Tab, distance, entry_link, job_link, next_page, past, query, retry_link, text, unknown,
};
use crate::admin::Rights;
use crate::entry::JobName;
use crate::ops::words::grouped;
use crate::ops::{Dead, Letters, Ops};
use crate::redis::RedisTime;
use crate::redis::requirements::explain;

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
    from: u32,
}

pub(super) async fn dead(screen: Screen, Asked(filter): Asked<Filter>) -> Result<impl IntoResponse, Failure> {
    let ops = &screen.parts.ops;
    if !filter.job.is_empty() && !ops.jobs.jobs.contains_key(filter.job.as_str()) {
        return Err(unknown(&filter.job));
    }
    let now = ops.store.now().await?;
    let Counted { only, unread } = count(ops, &filter.job).await?;
    let _turn = screen.console.admin.turn().await;
    let from = usize::try_from(filter.from).unwrap_or(usize::MAX);
    let letters = match only.is_empty() {
        true => Letters { total: 0, dead: Vec::new(), next: None },
        false => ops.dead(&only, from, SHOWN).await?,
    };
    let page = Page { tab: Tab::Dead, title: "Dead letters".to_owned(), as_of: Some(now), is_live: true };
    let content = html! {
        @for (job, why) in &unread { p.bad { "The dead letters of " (job_link(job)) " cannot be read: " (text(why)) } }
        (view(&letters, &filter, now, screen.visitor.rights, ops))
    };
    Ok(screen.page(&page, &content))
}

/// The jobs by their dead letters.
struct Counted {
    /// Those that have some.
    only: Vec<String>,
    /// Those that cannot be read, each with the reason.
    unread: Vec<(String, String)>,
}

/// Counts the dead letters of a job, or of all jobs if the name is empty.
async fn count(ops: &Ops, only: &str) -> Result<Counted, Failure> {
    let jobs = ops.jobs.jobs.keys().filter(|job| only.is_empty() || job.as_str() == only);
    let jobs: Vec<&JobName> = jobs.collect();
    let mut ask = redis::pipe();
    for job in &jobs {
        ask.zcard(ops.keys.dead(job));
    }
    if jobs.is_empty() {
        return Ok(Counted { only: Vec::new(), unread: Vec::new() });
    }
    let counts: Vec<RedisResult<u64>> = ask.ignore_errors().query_async(&mut ops.redis.clone()).await?;
    let (mut only, mut unread) = (Vec::new(), Vec::new());
    for (job, count) in jobs.into_iter().zip(counts) {
        match count {
            Ok(0) => {}
            Ok(_) => only.push(job.to_string()),
            Err(e) => unread.push((job.to_string(), format!("Redis: {}", explain(&e)))),
        }
    }
    Ok(Counted { only, unread })
}

fn view(letters: &Letters, filter: &Filter, now: RedisTime, rights: Rights, ops: &Ops) -> Markup {
    let mut groups: BTreeMap<(&str, String), Vec<&Dead>> = BTreeMap::new();
    for letter in &letters.dead {
        let cause = if rights.reasons { letter.cause() } else { "(the reason is not shown to everybody)".to_owned() };
        groups.entry((&letter.job, cause)).or_default().push(letter);
    }
    let mut jobs: Vec<&str> = ops.jobs.jobs.keys().map(JobName::as_str).collect();
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
