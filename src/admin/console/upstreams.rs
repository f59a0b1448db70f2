//! Upstreams: breakers, limits and budgets.

use std::sync::Arc;

use axum::response::IntoResponse;
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::Asked;
use super::history;
use super::live::Snapshot;
use super::page::{Failure, Page, Screen, Tab, distance, job_link, next_page, query, text};
use crate::admin::{Of, Parts};
use crate::entry::UpstreamName;
use crate::job::KnownJob;
use crate::ops::status::UpstreamStatus;
use crate::ops::words::grouped;

/// The upstreams whose history is on one page.
const CHARTS: usize = 10;

/// The history that is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Shown {
    /// Its time: `6h`, or else 72 hours.
    span: String,
    /// The upstream after which it begins.
    after: String,
}

pub(super) async fn upstreams(
    screen: Screen,
    Asked(Shown { span, after }): Asked<Shown>,
) -> Result<impl IntoResponse, Failure> {
    let snapshot = screen.snapshot_of(Of::Upstreams).await?;
    let span = history::span(&span);
    let mut names = snapshot.upstreams.iter().map(|upstream| &upstream.upstream).filter(|name| **name > after);
    let mut charts = Vec::new();
    for name in names.by_ref().take(CHARTS) {
        let history = history::of_upstream(&screen, &UpstreamName::new(name.as_str()), span).await;
        charts.push((name, history::or_told(history)));
    }
    let next = names.next().and(charts.last()).map(|(name, _)| *name);
    let past = html! {
        section aria-labelledby="history" {
            h2 #history { "History" }
            (history::spans("/console/upstreams", span))
            @for (name, charts) in &charts { h3 { (text(name)) } (charts) }
            @if let Some(name) = next {
                (next_page(&format!("/console/upstreams?after={}", query(name)), "Next upstreams"))
            }
        }
    };
    let page = Page { tab: Tab::Upstreams, title: "Upstreams".to_owned(), as_of: Some(snapshot.at), is_live: true };
    Ok(screen.page(&page, &html! { (view(&snapshot, &screen.parts)) (past) }))
}

fn view(snapshot: &Snapshot, parts: &Parts) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-labelledby="caption" {
            table {
                caption #caption {
                    "Upstreams: " (snapshot.upstreams.len() + snapshot.unread_upstreams.len())
                    "; the requests in flight are this worker's"
                }
                thead { tr {
                    th scope="col" { "Upstream" } th scope="col" { "State" } th.num scope="col" { "In flight" }
                    th.num scope="col" { "At once" } th scope="col" { "Rate" } th scope="col" { "Token budget" }
                    th scope="col" { "Window ends" } th scope="col" { "Jobs" }
                } }
                tbody {
                    @for upstream in &snapshot.upstreams { (row(upstream, snapshot, parts)) }
                    @for (name, why) in &snapshot.unread_upstreams {
                        tr {
                            th.key scope="row" { (text(name)) }
                            td colspan="7" { span.badge.bad { "unknown" } " " (text(why)) }
                        }
                    }
                }
            }
        }
    }
}

fn row(status: &UpstreamStatus, snapshot: &Snapshot, parts: &Parts) -> Markup {
    let gate = parts.gates.get(&UpstreamName::new(status.upstream.as_str()));
    let file = gate.map(|gate| gate.upstream());
    let asks = |job: &&Arc<KnownJob>| job.upstreams.iter().any(|own| own.name.as_str() == status.upstream);
    let jobs = parts.ops.jobs.jobs.values().filter(asks);
    html! {
        tr {
            th.key scope="row" { (text(&status.upstream)) }
            td {
                @match status.closed_text(snapshot.at) {
                    Some(why) => { span.badge.bad { "closed" } " " (why) }
                    None => { span.badge.good { "takes requests" } }
                }
                @for fault in &status.faults { br; (text(fault)) }
            }
            td.num { @if let Some(gate) = gate { (gate.in_flight()) } @else { "–" } }
            td.num { @match file.and_then(|file| file.concurrency) { Some(most) => { (most) } None => { "no limit" } } }
            td { @match file.and_then(|file| file.rate) { Some(rate) => { (rate) } None => { "no limit" } } }
            td { (budget(status)) }
            td { @if let Some(ends) = status.tokens_window_ends_ms { (distance(ends, snapshot.at)) } @else { "–" } }
            td { @for (n, job) in jobs.enumerate() { @if n > 0 { ", " } (job_link(job.name.as_str())) } }
        }
    }
}

fn budget(status: &UpstreamStatus) -> Markup {
    html! {
        @match (status.tokens_spent, status.tokens_budget) {
            (Some(spent), Some(budget)) => {
                @let share = u128::from(spent) * 100 / u128::from(budget.max(1));
                meter min="0" max="100" high="90" optimum="0" value=(share.min(100)) aria-label="Share that is spent" {}
                " " (grouped(spent)) " of " (grouped(budget)) " tokens (" (share) " %)"
            }
            _ => { "none" }
        }
    }
}
