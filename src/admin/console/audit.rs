//! The audit log: who changed what.

use axum::extract::Query;
use axum::response::IntoResponse;
use maud::{Markup, html};
use serde::Deserialize;

use super::page::{Failure, Page, Screen, Tab, next_page, query, text};
use crate::ops::audit_log::{KEPT, Record};
use crate::ops::words::grouped;

/// The records on one page.
const SHOWN: usize = 100;

/// The page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct From {
    /// The id before which the page ends.
    before: String,
}

pub(super) async fn audit(screen: Screen, Query(From { before }): Query<From>) -> Result<impl IntoResponse, Failure> {
    let ops = &screen.parts.ops;
    let is_id = !before.is_empty() && before.chars().all(|c| c.is_ascii_digit() || c == '-');
    let records = ops.audit(is_id.then_some(before.as_str()), SHOWN).await?;
    let now = ops.store.now().await?;
    let page = Page { tab: Tab::Audit, title: "Audit".to_owned(), as_of: Some(now), is_live: true };
    Ok(screen.page(&page, &view(&records)))
}

fn view(records: &[Record]) -> Markup {
    let next = records.last().filter(|_| records.len() == SHOWN);
    html! {
        p.note {
            "Changes that were asked for in the console, and over HTTP but for invalidations and warming, which "
            "programs ask for all the time. The last " (grouped(KEPT as u64)) " are kept."
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
