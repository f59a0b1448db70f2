//! The agenda: which entries are due in each minute of the next hour, and what their upstreams allow.

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use futures_util::future::join_all;
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::Asked;
use super::page::{Failure, Page, Screen, Tab, job_link, next_page, number, query, text};
use crate::admin::in_time;
use crate::entry::UpstreamName;
use crate::job::{KnownJob, Rate};
use crate::ops::Ops;
use crate::ops::words::grouped;
use crate::redis::RedisTime;

/// The minutes that are shown.
const MINUTES: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);
/// The time that each job has to be read.
const PATIENCE: Duration = Duration::from_secs(2);
/// The jobs on one page, so that a page takes a bounded number of counts.
const JOBS: usize = 40;
/// The size of a cell of the heat map, and of a chart.
const CELL: usize = 12;
const CHART: usize = 90;
/// The shades of the heat map, besides none.
const SHADES: u64 = 5;

/// The page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct From {
    /// The name of the job after which the page begins.
    after: String,
}

/// The entries of a job that are due, by minute.
struct Row {
    job: String,
    /// The reason if they cannot be read.
    counts: Result<Vec<u64>, String>,
    /// The minute of its next warmup, if it is within the hour.
    warmup: Option<u64>,
}

/// The requests to an upstream, by minute, at most.
struct Load {
    upstream: String,
    counts: Vec<u64>,
    /// The requests that its rate allows in a minute.
    limit: Option<u64>,
    rate: Option<Rate>,
}

pub(super) async fn agenda(screen: Screen, Asked(From { after }): Asked<From>) -> Result<impl IntoResponse, Failure> {
    let ops = &screen.parts.ops;
    let now = ops.store.now().await?;
    let mut jobs = ops.jobs.jobs.values().filter(|job| job.name.as_str() > after.as_str());
    let (mut rows, mut loads) = (Vec::new(), BTreeMap::<UpstreamName, Vec<u64>>::new());
    let shown: Vec<&Arc<KnownJob>> = jobs.by_ref().take(JOBS).collect();
    let counts = shown.iter().map(|job| in_time(PATIENCE, ops.agenda.forecast(&job.name, now, MINUTE, MINUTES)));
    let (counts, warmups) = tokio::join!(join_all(counts), next_warmups(ops, &shown));
    for ((job, counts), warmup) in shown.into_iter().zip(counts).zip(warmups) {
        if let (Some(upstream), Ok(counts)) = (job.upstreams.first(), &counts) {
            let load = loads.entry(upstream.name.clone()).or_insert_with(|| vec![0; counts.len()]);
            let requests = |count: u64| job.fetches(usize::try_from(count).unwrap_or(usize::MAX)) as u64;
            load.iter_mut().zip(counts).for_each(|(load, count)| *load += requests(*count));
        }
        let warmup = warmup.filter(|next| *next >= now).map(|next| next.saturating_since(now).as_secs() / 60);
        let warmup = warmup.filter(|at| *at < u64::from(MINUTES));
        rows.push(Row { job: job.name.to_string(), counts, warmup });
    }
    let next = jobs.next().and(rows.last()).map(|row| row.job.clone());
    let loads = loads.into_iter().map(|(name, counts)| {
        let rate = screen.parts.gates.get(&name).and_then(|gate| gate.upstream().rate);
        Load { upstream: name.to_string(), counts, limit: rate.map(per_minute), rate }
    });
    let loads: Vec<Load> = loads.collect();
    let page = Page { tab: Tab::Agenda, title: "Agenda".to_owned(), as_of: Some(now), is_live: true };
    Ok(screen.page(&page, &view(&rows, &loads, now, next.as_deref())))
}

/// Returns the next warmup of each job, as far as it is known.
async fn next_warmups(ops: &Ops, jobs: &[&Arc<KnownJob>]) -> Vec<Option<RedisTime>> {
    let mut ask = redis::pipe();
    for job in jobs {
        ask.cmd("ZSCORE").arg(ops.keys.schedules()).arg(job.name.as_str());
    }
    let asked = in_time(PATIENCE, ask.query_async::<Vec<Option<f64>>>(&mut ops.redis.clone())).await;
    #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
    let time = |score: f64| RedisTime::from_millis(score as i64);
    let times = asked.unwrap_or_default().into_iter().map(|score| score.map(time));
    times.chain(iter::repeat(None)).take(jobs.len()).collect()
}

/// Returns the requests that a rate allows in a minute.
fn per_minute(rate: Rate) -> u64 {
    let per = rate.per.as_millis().max(1);
    u64::try_from(u128::from(rate.count) * MINUTE.as_millis() / per).unwrap_or(u64::MAX)
}

fn view(rows: &[Row], loads: &[Load], now: RedisTime, next: Option<&str>) -> Markup {
    html! {
        p.note {
            "Entries that are due in each minute of the next hour. The first minute has all that is due already. "
            "A triangle marks the next warmup, which may add entries that are missing."
        }
        (heat_map(rows, now))
        @if let Some(next) = next { (next_page(&format!("/console/agenda?after={}", query(next)), "Next jobs")) }
        section aria-labelledby="loads" {
            h2 #loads { "Requests to each upstream" }
            p.note {
                "One request for each entry, or for as many as the job's `bulk` says, of the jobs on this page. "
                "The line is what the upstream's rate allows; what is above it waits, and is drawn in red."
            }
            @if rows.iter().any(|row| row.counts.is_err()) {
                p.bad { "The jobs that cannot be read are missing here." }
            }
            @for load in loads { (chart(load)) }
            @if loads.is_empty() { p { "No job asks an upstream." } }
        }
    }
}

fn heat_map(rows: &[Row], now: RedisTime) -> Markup {
    let most = rows.iter().filter_map(|row| row.counts.as_ref().ok()).flatten().copied().max().unwrap_or(0);
    html! {
        div.scroll tabindex="0" role="region" aria-label="Heat map" {
            table.heat {
                caption { "From " (now.utc()) ", a cell a minute; the darkest has " (grouped(most)) " entries" }
                thead { tr {
                    th scope="col" { "Job" } th.num scope="col" { "Next hour" }
                    th scope="col" {
                        (axis())
                    }
                } }
                tbody {
                    @for row in rows {
                        tr {
                            th scope="row" { (job_link(&row.job)) }
                            td.num { (number(row.counts.as_ref().ok().map(|counts| counts.iter().sum()))) }
                            td {
                                @match &row.counts {
                                    Ok(counts) => (cells(row, counts, most)),
                                    Err(why) => { (text(why)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the minutes of a job.
fn cells(row: &Row, counts: &[u64], most: u64) -> Markup {
    let (width, height) = (CELL * MINUTES as usize, CELL + 6);
    html! {
        svg role="img" aria-label=(told(&row.job, counts)) width=(width) height=(height)
            viewBox=(format!("0 0 {width} {height}")) {
            @for (minute, count) in counts.iter().enumerate() {
                rect class=(format!("h{}", shade(*count, most))) x=(minute * CELL) y="6"
                    width=(CELL - 1) height=(CELL) {
                    title { "in " (minute) " min: " (grouped(*count)) }
                }
            }
            @if let Some(at) = row.warmup {
                @let x = usize::try_from(at).unwrap_or(0) * CELL;
                path.warmup d=(format!("M{} 0h8l-4 5z", x + 1)) { title { "next warmup" } }
            }
        }
    }
}

/// Returns a row in words.
fn told(job: &str, counts: &[u64]) -> String {
    let busiest = counts.iter().enumerate().max_by_key(|(minute, count)| (**count, usize::MAX - minute));
    match busiest {
        Some((minute, count)) if *count > 0 => {
            format!("{job}: most in minute {minute}, {} entries", grouped(*count))
        }
        _ => format!("{job}: nothing is due"),
    }
}

/// Returns the shade of a count: 0 for none, up to [`SHADES`].
fn shade(count: u64, most: u64) -> u64 {
    if count == 0 { 0 } else { count.min(most).saturating_mul(SHADES).div_ceil(most.max(1)) }
}

/// Returns the minutes below or above what is drawn by the minute.
fn axis() -> Markup {
    html! { span.axis { @for at in ["now", "15 min", "30 min", "45 min", "60"] { span { (at) } } } }
}

/// Returns a chart in words.
fn told_of(most: u64) -> String {
    format!("Requests by minute; the tallest bar or the line is {}", grouped(most))
}

fn chart(load: &Load) -> Markup {
    let most = load.counts.iter().copied().chain(load.limit).max().unwrap_or(0).max(1);
    let height = |count: u64| usize::try_from(u128::from(count) * CHART as u128 / u128::from(most)).unwrap_or(CHART);
    let width = CELL * MINUTES as usize;
    let over = load.counts.iter().filter(|count| load.limit.is_some_and(|limit| **count > limit)).count();
    html! {
        figure {
            figcaption {
                strong { (text(&load.upstream)) } ": "
                @match (load.rate, load.limit) {
                    (Some(rate), Some(limit)) => { (rate) ", " (grouped(limit)) " in a minute; " }
                    _ => { "no rate is set; " }
                }
                @if over > 0 {
                    span.bad { "overload in " (over) @if over == 1 { " minute" } @else { " minutes" } }
                } @else if load.limit.is_some() { "no overload" } @else { "most " (grouped(most)) " in a minute" }
            }
            div.scroll tabindex="0" role="region" aria-label=(format!("Requests to {}", text(&load.upstream))) {
                svg.chart role="img" aria-label=(told_of(most))
                    width=(width) height=(CHART + 4) viewBox=(format!("0 0 {width} {}", CHART + 4)) {
                    @for (minute, count) in load.counts.iter().enumerate() {
                        @let allowed = load.limit.map_or(*count, |limit| (*count).min(limit));
                        @let (whole, part) = (height(*count), height(allowed));
                        @if *count > 0 {
                            rect.load x=(minute * CELL) y=(CHART + 2 - part) width=(CELL - 1) height=(part.max(1)) {
                                title { "in " (minute) " min: " (grouped(*count)) }
                            }
                            @if whole > part {
                                rect.over x=(minute * CELL) y=(CHART + 2 - whole) width=(CELL - 1)
                                    height=(whole - part) {
                                    title { "in " (minute) " min: " (grouped(*count - allowed)) " too many" }
                                }
                            }
                        }
                    }
                    @if let Some(limit) = load.limit {
                        @let y = CHART + 2 - height(limit);
                        line.limit x1="0" x2=(width) y1=(y) y2=(y) {}
                    }
                }
                (axis())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_by_the_minute() {
        let rate = |text| per_minute(Rate::parse(text).unwrap());
        assert_eq!([rate("20/second"), rate("5 per 2 hours"), rate("10 per minute")], [1_200, 0, 10]);
    }

    #[test]
    fn any_entry_has_a_shade_and_the_most_the_darkest() {
        assert_eq!([shade(0, 0), shade(0, 9), shade(1, 1_000_000), shade(9, 9)], [0, 0, 1, SHADES]);
    }

    #[test]
    fn what_the_limit_does_not_allow_is_drawn_apart() {
        let load = |counts: Vec<u64>| {
            let rate = Rate::parse("10 per minute").unwrap();
            chart(&Load { upstream: "u".to_owned(), counts, limit: Some(10), rate: Some(rate) }).into_string()
        };
        let calm = load(vec![10, 0, 3]);
        assert!(!calm.contains("class=\"over\"") && calm.contains("class=\"limit\"") && calm.contains("no overload"));
        let loaded = load(vec![40, 0, 3]);
        assert_eq!(loaded.matches("class=\"over\"").count(), 1, "{loaded}");
        assert!(loaded.contains("30 too many") && loaded.contains("overload in 1 minute"), "{loaded}");
    }
}
