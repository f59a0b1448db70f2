//! The audit log: who changed what.

use axum::http::StatusCode;
use axum::response::IntoResponse;
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::Asked;
use super::page::{Failure, Page, Screen, Tab, next_page, query, text};
use crate::ops::audit_log::{KEPT, Record};
use crate::ops::words::grouped;
use crate::redis::requirements::explain;

/// The records on one page.
const SHOWN: usize = 100;

/// The page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct From {
    /// The id before which the page ends.
    before: String,
}

pub(super) async fn audit(screen: Screen, Asked(From { before }): Asked<From>) -> Result<impl IntoResponse, Failure> {
    let ops = &screen.parts.ops;
    let page = |as_of| Page { tab: Tab::Audit, title: "Audit".to_owned(), as_of, is_live: true };
    if !screen.visitor.rights.reasons {
        let hidden = "The audit log names keys and quotes notes and reasons, so it is not shown to everybody: set \
                      SAMOVAR_TOKEN, and log in.";
        return Ok(screen.page(&page(None), &html! { p { (hidden) } }));
    }
    if !(before.is_empty() || is_id(&before)) {
        let detail = "`before` must be the id of a record.";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "The address cannot be read", detail));
    }
    let now = ops.store.now().await?;
    let content = match ops.audit(Some(before.as_str()).filter(|id| !id.is_empty()), SHOWN).await {
        Ok(records) => view(&records),
        Err(e) => html! {
            p.bad { "The audit log cannot be read. Redis: " (text(&explain(&e))) }
            p { "While it cannot be written, changes are refused here." }
        },
    };
    Ok(screen.page(&page(Some(now)), &content))
}

/// Returns `true` for an id of a stream.
fn is_id(text: &str) -> bool {
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    text.split_once('-').map_or_else(|| is_number(text), |(ms, seq)| is_number(ms) && is_number(seq))
}

fn view(records: &[Record]) -> Markup {
    let next = records.last().filter(|_| records.len() == SHOWN);
    html! {
        p.note {
            "Changes that were asked for in the console, and over HTTP but for invalidations and warming, which "
            "programs ask for all the time. An action of the console is noted before it is carried out. The last "
            (grouped(KEPT as u64)) " are kept."
        }
        @if records.is_empty() { p { "Nothing was changed yet." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Changes" {
                table {
                    thead { tr {
                        th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "Change" }
                        th scope="col" { "Of what" } th scope="col" { "Note" } th scope="col" { "Worker" }
                    } }
                    tbody {
                        @for Record { at, change, .. } in records {
                            tr {
                                td { time datetime=(super::page::iso(*at)) { (at.utc()) } }
                                td { (text(&change.who)) ", " (text(&change.way)) }
                                td { (text(&change.action)) }
                                td.key { (text(&change.target)) }
                                td { (text(&change.note)) }
                                td.key { (text(&change.worker)) }
                            }
                        }
                    }
                }
            }
        }
        @if let Some(last) = next { (next_page(&format!("/console/audit?before={}", query(&last.id)), "Earlier")) }
    }
}
