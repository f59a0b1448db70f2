//! Invalidations: what the fleet heard lately, and a form to send one.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::Asked;
use super::page::{Failure, Page, Screen, Tab, iso, next_page, query, text};
use crate::admin::Rights;
use crate::entry::duration;
use crate::ops::journal::{Noted, Wanted, told};
use crate::ops::words::grouped;
use crate::protocol::Action;
use crate::telemetry::journal::KEPT;

/// The invalidations on one page.
const SHOWN: usize = 50;
/// The kinds of names, and the words for them.
const KINDS: [(&str, &str); 4] = [("key", "key"), ("pattern", "pattern of keys"), ("tag", "tag"), ("job", "job")];

/// The page, and the filters.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    before: String,
    way: String,
    find: String,
    only: String,
}

/// An invalidation that somebody composes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Composed {
    kind: String,
    name: String,
    action: String,
}

pub(super) async fn invalidations(screen: Screen, Asked(filter): Asked<Filter>) -> Result<impl IntoResponse, Failure> {
    let ops = &screen.parts.ops;
    let is_id = !filter.before.is_empty() && filter.before.chars().all(|c| c.is_ascii_digit() || c == '-');
    let wanted = Wanted {
        before: is_id.then(|| filter.before.clone()),
        way: filter.way.clone(),
        find: filter.find.clone(),
        only: filter.only.clone(),
        tells_all: screen.visitor.rights.reasons,
    };
    let (found, left_out) = ops.heard(&wanted, SHOWN).await?;
    let now = ops.store.now().await?;
    let page = Page { tab: Tab::Invalidations, title: "Invalidations".to_owned(), as_of: Some(now), is_live: true };
    Ok(screen.page(&page, &view(&found, left_out, &filter, screen.visitor.rights)))
}

/// Leads to the question of whether a composed invalidation is sent, which tells how much it concerns.
pub(super) async fn compose(Asked(composed): Asked<Composed>) -> Result<Redirect, Failure> {
    let Composed { kind, name, action } = composed;
    let is_known = KINDS.iter().any(|(known, _)| *known == kind) && ["invalidate", "evict"].contains(&action.as_str());
    if !is_known || name.trim().is_empty() {
        let detail = "Choose a kind and an action, and name a key, a pattern, a tag or a job.";
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Something is missing", detail));
    }
    Ok(Redirect::to(&format!("/console/ask/{action}?{kind}={}", query(name.trim()))))
}

fn view(found: &[Noted], left_out: u64, filter: &Filter, rights: Rights) -> Markup {
    html! {
        @if rights.act { (composer()) }
        (filters(filter))
        p.note {
            "The last " (grouped(KEPT as u64)) " records are kept. Each worker notes what it heard, so a message that "
            "was published on the channel has a record of each."
            @if left_out > 0 {
                " " strong { (grouped(left_out)) " messages were left out, since too many came at once." }
            }
        }
        @if found.is_empty() { p { "None, or none of this kind." } } @else { (table(found, rights)) }
        @if let Some(last) = found.last().filter(|_| found.len() == SHOWN) {
            @let Filter { way, find, only, .. } = filter;
            (next_page(&format!("/console/invalidations?before={}&way={}&find={}&only={}",
                query(&last.id), query(way), query(find), query(only)), "Earlier"))
        }
    }
}

fn composer() -> Markup {
    html! {
        section aria-labelledby="compose" {
            h2 #compose { "Send one" }
            form.filter method="get" action="/console/compose" {
                label for="kind" { "What" }
                select #kind name="kind" { @for (kind, words) in KINDS { option value=(kind) { (words) } } }
                label for="name" { "Name" }
                input #name type="text" name="name" maxlength="1000" required;
                label for="action" { "Action" }
                select #action name="action" {
                    option value="invalidate" { "refresh: the old values are served until the new ones land" }
                    option value="evict" { "evict: the values are removed at once" }
                }
                button.primary type="submit" { "Preview…" }
            }
        }
    }
}

fn filters(filter: &Filter) -> Markup {
    let ways = [("", "any way"), ("channel", "PUBLISH"), ("inbox", "inbox")];
    let kinds =
        [("", "all"), ("foreign", "with foreign names"), ("malformed", "malformed"), ("debounced", "debounced")];
    html! {
        form.filter method="get" action="/console/invalidations" {
            label for="find" { "Names" }
            input #find type="search" name="find" value=(filter.find);
            label for="way" { "By" }
            select #way name="way" {
                @for (way, words) in ways { option value=(way) selected[way == filter.way] { (words) } }
            }
            label for="only" { "Only" }
            select #only name="only" {
                @for (only, words) in kinds { option value=(only) selected[only == filter.only] { (words) } }
            }
            button type="submit" { "Filter" }
        }
    }
}

fn table(found: &[Noted], rights: Rights) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Invalidations" {
            table {
                caption { "The newest first; handled in: from when it was published until entries were marked" }
                thead { tr {
                    th scope="col" { "Published" } th scope="col" { "By" } th scope="col" { "Action" }
                    th scope="col" { "What" } th.num scope="col" { "Entries" } th.num scope="col" { "Due" }
                    th.num scope="col" { "Removed" } th.num scope="col" { "Debounced" } th.num scope="col" { "Foreign" }
                    th.num scope="col" { "Handled in" } th.num scope="col" { "Workers" }
                } }
                tbody { @for noted in found { (row(noted, rights)) } }
            }
        }
    }
}

fn row(Noted { heard, workers, .. }: &Noted, rights: Rights) -> Markup {
    let took = heard.handled_ms.saturating_since(heard.at_ms);
    html! {
        tr {
            td { time datetime=(iso(heard.at_ms)) { (heard.at_ms.utc()) } }
            td { @if heard.way == "channel" { "PUBLISH" } @else { (text(&heard.way)) } }
            @match &heard.malformed {
                Some(why) => {
                    td { span.badge.bad { "malformed" } }
                    td.key colspan="8" { @if rights.reasons { (text(&heard.what)) ": " (text(why)) } }
                }
                None => {
                    td { @match heard.action {
                        Action::Refresh => { "refresh" }
                        Action::Evict => { "evict" }
                        Action::Warm => { "warm" }
                    } }
                    td.key { (text(&told(heard, rights.reasons))) }
                    @for count in [heard.entries, heard.due, heard.removed, heard.debounced, heard.foreign] {
                        td.num { (grouped(count)) }
                    }
                    td.num { (duration::rough(took)) }
                    td.num { (workers.len()) }
                }
            }
        }
    }
}
