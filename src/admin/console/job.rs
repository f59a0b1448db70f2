//! One job: how it is, what it did, and what can be done about it.

use std::time::Duration;

use axum::extract::Path;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::Asked;
use super::history;
use super::jobs::state;
use super::page::{
    Failure, Page, Screen, Tab, action_link as act, distance, entry_link, figure, next_page, number, past, query, text,
    unknown,
};
use crate::admin::{Of, Rights};
use crate::agenda::{Due, State};
use crate::entry::EntryKey;
use crate::entry::duration;
use crate::job::KnownJob;
use crate::ops::status::JobStatus;
use crate::ops::words;
use crate::ops::words::grouped;
use crate::redis::RedisTime;

/// The entries of its agenda on one page.
const ENTRIES: usize = 50;

/// The part of the agenda that is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct From {
    /// The offset.
    from: u32,
    /// The time of the history: `6h`, or else 72 hours.
    span: String,
}

/// Some entries of a job's agenda.
struct Entries {
    found: Vec<(EntryKey, Due)>,
    from: usize,
}

pub(super) async fn job(
    screen: Screen,
    Path(name): Path<String>,
    Asked(From { from, span }): Asked<From>,
) -> Result<impl IntoResponse, Failure> {
    let known = screen.parts.ops.jobs.jobs.get(name.as_str());
    let known = known.ok_or_else(|| unknown(&name))?;
    let snapshot = screen.snapshot_of(Of::Job(&name)).await?;
    if let Some(why) = snapshot.unread_jobs.get(&name) {
        return Err(Failure::waits(format!("The state of this job cannot be read: {why}.")));
    }
    let status = snapshot.jobs.iter().find(|status| status.job == name).ok_or_else(|| unknown(&name))?;
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let entries = Entries { found: screen.parts.ops.agenda.page(&known.name, from, ENTRIES).await?, from };
    let history = history::or_told(history::of_job(&screen, &known.name, history::span(&span)).await);
    let page = Page { tab: Tab::Jobs, title: format!("Job {name}"), as_of: Some(snapshot.at), is_live: true };
    Ok(screen.page(&page, &view(known, status, snapshot.at, screen.visitor.rights, &history, &entries)))
}

fn view(
    known: &KnownJob,
    status: &JobStatus,
    now: RedisTime,
    rights: Rights,
    history: &Markup,
    entries: &Entries,
) -> Markup {
    html! {
        @if let Some(description) = &status.description { p { (text(description)) } }
        p { (state(status)) " " @for said in sentences(status, now) { (text(&said)) " " } }
        @if !status.faults.is_empty() { ul.faults { @for fault in &status.faults { li { (text(fault)) } } } }
        @if rights.act { (actions(status)) }
        (figures(status))
        section aria-labelledby="outcomes" { h2 #outcomes { "Outcomes" } (outcomes(status, now)) }
        (history)
        section aria-labelledby="rule" {
            h2 #rule { "As its file says" }
            dl.facts {
                dt { "Key" } dd.key { (text(&status.key)) }
                dt { "TTL" } dd { (duration::rough(Duration::from_secs(status.ttl_seconds))) }
                dt { "Schedule" } dd { (status.schedule.as_deref().unwrap_or("none")) }
                dt { "Entries" } dd {
                    (grouped(known.listed as u64)) " listed"
                    @if known.feed { ", those of a feed" }
                    @if known.popular > 0 { ", the " (grouped(known.popular as u64)) " most read" }
                }
                dt { "Upstreams" } dd {
                    @for (n, upstream) in status.upstreams.iter().enumerate() {
                        @if n > 0 { ", then " } a href="/console/upstreams" { (text(&upstream.upstream)) }
                    }
                    @if status.upstreams.is_empty() { "none" }
                }
                @if let Some(at) = status.next_warmup_ms { dt { "Next warmup" } dd { (distance(at, now)) } }
                @if let Some(at) = status.warmed_up_ms { dt { "Last warmup" } dd { (past(at, now)) } }
            }
        }
        (of_agenda(status, entries, now))
    }
}

/// Returns what `samovar jobs` says of a job.
fn sentences(status: &JobStatus, now: RedisTime) -> Vec<String> {
    let paused = status.paused_ms.map(|since| {
        let note = status.pause_note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        format!("Paused {}{note}. Nothing is fetched until it is resumed.", words::ago(since, now))
    });
    let guard =
        status.gone_guard.map(|guard| words::guard(&status.job, Some(&guard), now) + words::lost(status).as_str());
    [paused, words::feed(status, now), words::outdated(status), words::old(status), guard]
        .into_iter()
        .flatten()
        .collect()
}

fn actions(status: &JobStatus) -> Markup {
    let job = status.job.as_str();
    html! {
        div.actions role="group" aria-label="Actions" {
            (act("warm", "job", job, "Warm what is missing…"))
            @match status.paused_ms {
                Some(_) => (act("resume", "job", job, "Resume…")),
                None => (act("pause", "job", job, "Pause…")),
            }
            (act("invalidate", "job", job, "Refresh all…"))
            (act("evict", "job", job, "Remove all values…"))
        }
    }
}

fn figures(status: &JobStatus) -> Markup {
    html! {
        p.note {
            @match status.warm_counted_ms {
                Some(at) => { "Warm, wanted, invalidated and beyond their TTL: as of the count of " (at.utc()) "." }
                None => { "The entries are not counted yet." }
            }
        }
        dl.figures {
            (figure("Warm", &number(status.warm), None))
            (figure("Wanted", &number(status.wanted), None))
            (figure("Invalidated, not fetched yet", &number(status.invalidated), None))
            (figure("Beyond their TTL", &number(status.old), None))
            (figure("Due", &number(Some(status.due)), None))
            (figure("In flight", &number(Some(status.in_flight)), None))
            (figure("Dead letters", &html! {
                @if status.dead > 0 {
                    a href=(format!("/console/dead?job={}", query(&status.job))) { (grouped(status.dead)) }
                } @else { "0" }
            }, None))
            (figure("AI tokens spent", &number(Some(status.usage.tokens_spent)), None))
            (figure("AI tokens saved", &number(Some(status.usage.tokens_saved)), None))
        }
        (coverage(status))
    }
}

/// Returns a share in percent; a small one is not drawn as none, nor a large one as all.
fn share(count: u64, total: u64) -> String {
    let percent = (u128::from(count) * 200 / u128::from(total.max(1))).div_ceil(2);
    match percent {
        0 | 1 if count > 0 && u128::from(count) * 100 < u128::from(total) => "< 1".to_owned(),
        100 if count < total => "> 99".to_owned(),
        percent => percent.to_string(),
    }
}

/// Returns a bar of the share of wanted entries that are warm.
fn coverage(status: &JobStatus) -> Markup {
    let share = status.warm.zip(status.wanted).filter(|(_, wanted)| *wanted > 0);
    html! {
        @if let Some((warm, wanted)) = share {
            @let percent = u128::from(warm.min(wanted)) * 100 / u128::from(wanted);
            p.note { label for="coverage" { "Coverage" } " "
                meter #coverage min="0" max="100" low="90" high="99" optimum="100" value=(percent) { (percent) " %" }
                " at most " (percent) " % of the wanted entries have a value" }
        }
    }
}

fn outcomes(status: &JobStatus, now: RedisTime) -> Markup {
    let total: u64 = status.outcomes.values().sum();
    html! {
        @if let Some(last) = &status.last {
            p { "Last: " (last.outcome.to_string()) " " (entry_link(&last.key)) ", for " (last.trigger.to_string())
                @if let Some(reason) = &last.reason { ": " (text(reason)) } "." }
        }
        @if total == 0 { p { "None yet." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Outcomes" {
                table {
                    caption {
                        "Since the counters began"
                        @if let Some(since) = status.usage.since_ms { ", " (past(RedisTime::from_millis(since), now)) }
                    }
                    thead { tr {
                        th scope="col" { "Outcome" } th.num scope="col" { "Entries" } th.num scope="col" { "Share, %" }
                    } }
                    tbody {
                        @for (outcome, count) in &status.outcomes {
                            tr { th scope="row" { (outcome) } td.num { (grouped(*count)) }
                                td.num { (share(*count, total)) } }
                        }
                    }
                }
            }
        }
    }
}

fn of_agenda(status: &JobStatus, Entries { found, from }: &Entries, now: RedisTime) -> Markup {
    html! {
        section aria-labelledby="agenda" {
            h2 #agenda { "Entries on its agenda" }
            @if found.is_empty() { p { "None" @if *from > 0 { " on this page" } "." } } @else {
                div.scroll tabindex="0" role="region" aria-label="Entries on its agenda" {
                    table {
                        caption { "In the order in which they are due, from number " (grouped(*from as u64 + 1)) " on" }
                        thead { tr { th scope="col" { "Key" } th scope="col" { "Due" } th scope="col" { "For" } } }
                        tbody {
                            @for (key, due) in found {
                                tr {
                                    td { (entry_link(key.as_str())) }
                                    td { (due_text(*due, now)) }
                                    td { (due.trigger.to_string()) }
                                }
                            }
                        }
                    }
                }
            }
            @if found.len() == ENTRIES {
                (next_page(&format!("/console/jobs/{}?from={}", status.job, from + ENTRIES), "Next page"))
            }
        }
    }
}

fn due_text(due: Due, now: RedisTime) -> Markup {
    html! {
        @match due.state {
            State::Claimed => { "claimed" }
            State::Running => { "in flight" }
            State::Urgent => { "urgent" }
            State::Scheduled => { (distance(due.at, now)) }
        }
    }
}

/// The key that somebody looks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    key: String,
}

/// Sends to the screen of the entry or the job of this name.
pub(super) async fn find(screen: Screen, Asked(Wanted { key }): Asked<Wanted>) -> Response {
    let key = key.trim();
    if screen.parts.ops.jobs.jobs.contains_key(key) {
        return Redirect::to(&format!("/console/jobs/{key}")).into_response();
    }
    Redirect::to(&format!("/console/entry?key={}", query(key))).into_response()
}
