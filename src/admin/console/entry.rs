//! One entry: its value, and why it is what it is.

use axum::http::StatusCode;
use axum::response::IntoResponse;
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::Asked;
use super::neighbours;
use super::page::{Failure, Page, Screen, Tab, action_link as act, job_link, text};
use crate::admin::Rights;
use crate::entry::escape;
use crate::ops::Entry;
use crate::ops::explain::{Fact, facts};
use crate::ops::words::grouped;
use crate::redis::requirements::explain;

/// The longest value that is read, in bytes.
const MOST: u64 = 8 << 20;
/// The longest part of a value that is shown, in characters.
const SHOWN: usize = 20_000;

/// The facts that everybody may see.
const OPEN: [&str; 9] =
    ["job", "left", "paused", "expires", "fetched", "written by", "invalidated", "last attempt", "failures"];

/// The entry.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    key: String,
}

/// The value of an entry, as far as it may be shown.
enum Shown {
    /// It has none.
    None,
    /// The visitor may not see it.
    Withheld,
    /// It has so many bytes.
    TooLong(u64),
    /// The beginning of its text, and the length of the whole in bytes if that is longer.
    Text(String, Option<u64>),
}

pub(super) async fn entry(screen: Screen, Asked(Which { key }): Asked<Which>) -> Result<impl IntoResponse, Failure> {
    let ops = &screen.parts.ops;
    if ops.keys.is_own(&key) || ops.jobs.owner(&key).is_none() {
        let detail = format!("No job of this worker has the key `{key}`. The list of jobs shows their key patterns.");
        return Err(Failure::new(StatusCode::NOT_FOUND, "No such entry", detail));
    }
    let rights = screen.visitor.rights;
    let _turn = screen.console.admin.turn().await;
    // A key of the wrong type has no length; its metadata is still shown.
    let bytes: u64 = redis::cmd("STRLEN").arg(&key).query_async(&mut ops.redis.clone()).await.unwrap_or_default();
    if bytes > MOST {
        let page = Page { tab: Tab::Jobs, title: format!("Entry {}", text(&key)), as_of: None, is_live: false };
        return Ok(screen.page(&page, &value(&Shown::TooLong(bytes))));
    }
    let mut entry = ops.entry(&key).await?;
    if entry.is_outdated {
        ops.add_wait(&mut entry, &screen.parts.queue.living(screen.parts.dead_after).await).await?;
    }
    let has_inputs = ops.jobs.owner(&key).is_some_and(|(job, _)| job.inputs);
    let facts = facts(&entry, has_inputs);
    // They may be on another master of a Cluster, and the rest of the page does without them.
    let graph = match ops.neighbours(&key).await {
        Ok(found) => neighbours::view(&key, &found),
        Err(e) => {
            let why = explain(&e);
            html! { p.bad { "What it is made from, and what is made from it, cannot be read: " (text(&why)) "." } }
        }
    };
    let page =
        Page { tab: Tab::Jobs, title: format!("Entry {}", text(&key)), as_of: Some(entry.now_ms), is_live: true };
    Ok(screen.page(&page, &html! { (view(&entry, &facts, rights, bytes)) (graph) }))
}

fn view(entry: &Entry, facts: &[Fact], rights: Rights, bytes: u64) -> Markup {
    let shown = match &entry.value {
        None => Shown::None,
        Some(_) if !rights.values => Shown::Withheld,
        Some(value) => {
            let whole = escape::json(&serde_json::to_string_pretty(value).unwrap_or_default()).into_owned();
            match whole.char_indices().nth(SHOWN) {
                Some((end, _)) => Shown::Text(whole[..end].to_owned(), Some(bytes)),
                None => Shown::Text(whole, None),
            }
        }
    };
    html! {
        @if let Some(job) = &entry.job { p { "An entry of " (job_link(job)) "." } }
        @if rights.act {
            div.actions role="group" aria-label="Actions" {
                (act("invalidate", "key", &entry.key, "Refresh…"))
                (act("evict", "key", &entry.key, "Remove the value…"))
                @if entry.value.is_none() { (act("warm", "key", &entry.key, "Fetch now…")) }
            }
        }
        section aria-labelledby="why" {
            h2 #why { "Why it is what it is" }
            (timeline(entry))
            dl.facts {
                @for fact in facts.iter().filter(|fact| is_shown(fact, rights)) {
                    dt { (fact.what) } dd { (text(&fact.text)) }
                }
            }
        }
        section aria-labelledby="value" { h2 #value { "Value" } (value(&shown)) }
    }
}

/// Returns `true` if a visitor may see a fact. Without the right to see reasons, only facts are shown that quote
/// neither an answer nor a person.
fn is_shown(fact: &Fact, rights: Rights) -> bool {
    rights.reasons || OPEN.contains(&fact.what)
}

/// Returns what happened to an entry and what is to come, in order.
fn timeline(entry: &Entry) -> Markup {
    let attempt = entry.last_attempt_ms.zip(entry.last_outcome).map(|(at, outcome)| {
        let trigger = entry.last_trigger.map(|trigger| format!(" (trigger {trigger})")).unwrap_or_default();
        (at, format!("last attempt{trigger}: {outcome}"))
    });
    let mut events: Vec<_> = [
        entry.fetched_ms.map(|at| (at, "content fetched, or confirmed by its source".to_owned())),
        entry.invalidated_ms.map(|at| (at, "invalidated".to_owned())),
        entry.under_way.lease.as_ref().map(|lease| {
            let what = if lease.is_load { "load by a service" } else { "fetch" };
            (lease.since_ms, format!("{what} began, which is under way"))
        }),
        attempt,
        entry.due_ms.map(|at| (at, "due, or its claim ends".to_owned())),
        entry.expiry.at().map(|at| (at, "expires".to_owned())),
    ]
    .into_iter()
    .flatten()
    .chain(entry.rechecks_ms.iter().map(|at| (*at, "rechecked".to_owned())))
    .chain([(entry.now_ms, "now".to_owned())])
    .collect();
    events.sort_by_key(|(at, _)| *at);
    html! {
        ol.timeline {
            @for (at, what) in events {
                li.now[what == "now"] {
                    time datetime=(super::page::iso(at)) { (at.utc()) } " "
                    span { (what) }
                    @if what != "now" { small { " " (crate::ops::words::relative(at, entry.now_ms)) } }
                }
            }
        }
    }
}

fn value(shown: &Shown) -> Markup {
    html! {
        @match shown {
            Shown::None => { p { "It has no value." } }
            Shown::Withheld => {
                p { "Values are shown to those who may act, and to viewers if SAMOVAR_VIEWER_VALUES is on." }
            }
            Shown::TooLong(bytes) => {
                p { "The value has " (grouped(*bytes)) " bytes, too many to be shown: read it with `redis-cli GET`." }
            }
            Shown::Text(text, whole) => {
                @if let Some(bytes) = whole { p.note { "The beginning; the whole has " (grouped(*bytes)) " bytes." } }
                pre tabindex="0" aria-label="Value" dir="ltr" { (text) }
            }
        }
    }
}
