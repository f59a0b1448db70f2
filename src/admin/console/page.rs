//! The frame of all pages, and the small parts that they share: numbers, times, keys, failures.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts as RequestParts;
use maud::{Markup, html};

use super::access::Visitor;
use super::failure::document;
pub(super) use super::failure::{Failure, text};
use super::live::Snapshot;
use super::state::Console;
use crate::admin::{Of, Parts, Role};
use crate::ops::words::{ago, grouped, relative};
use crate::redis::RedisTime;

/// The screens that every page links to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Jobs,
    Agenda,
    Invalidations,
    Upstreams,
    Dead,
    Fleet,
    Audit,
}

impl Tab {
    const ALL: [(Self, &'static str, &'static str); 8] = [
        (Self::Overview, "/", "Overview"),
        (Self::Jobs, "/console/jobs", "Jobs"),
        (Self::Agenda, "/console/agenda", "Agenda"),
        (Self::Invalidations, "/console/invalidations", "Invalidations"),
        (Self::Upstreams, "/console/upstreams", "Upstreams"),
        (Self::Dead, "/console/dead", "Dead letters"),
        (Self::Fleet, "/console/fleet", "Fleet"),
        (Self::Audit, "/console/audit", "Audit"),
    ];
}

/// A request for a screen: the worker's parts, and what the visitor may see. An error until Redis was reached.
pub(super) struct Screen {
    pub(super) console: Arc<Console>,
    pub(super) parts: Arc<Parts>,
    pub(super) visitor: Visitor,
}

impl FromRequestParts<Arc<Console>> for Screen {
    type Rejection = Failure;

    async fn from_request_parts(request: &mut RequestParts, console: &Arc<Console>) -> Result<Self, Failure> {
        let Ok(visitor) = Visitor::from_request_parts(request, console).await;
        let waits = || Failure::waits(format!("The worker waits for Redis at {}.", console.admin.redis));
        let parts = console.admin.parts().ok_or_else(waits)?;
        Ok(Self { console: Arc::clone(console), parts, visitor })
    }
}

/// The frame of a page.
pub(super) struct Page {
    pub(super) tab: Tab,
    pub(super) title: String,
    /// When what it shows was read.
    pub(super) as_of: Option<RedisTime>,
    /// It is replaced when something changes.
    pub(super) is_live: bool,
}

impl Screen {
    /// Returns the state of the fleet: the one that the tabs share, or else a new one.
    pub(super) async fn snapshot(&self) -> Result<Arc<Snapshot>, Failure> {
        self.snapshot_of(Of::All).await
    }

    /// Returns the state of the fleet that the tabs share, or else a new one of this part.
    pub(super) async fn snapshot_of(&self, of: Of<'_>) -> Result<Arc<Snapshot>, Failure> {
        let snapshot = match self.console.live.shared() {
            Some(snapshot) => snapshot,
            None => Arc::new(Snapshot::read(&self.console.admin, &self.parts, of).await?),
        };
        Ok(snapshot.for_visitor(self.visitor.rights))
    }

    /// Returns a page with this content.
    pub(super) fn page(&self, page: &Page, content: &Markup) -> Markup {
        let env = self.console.title.as_deref();
        let revision = page.is_live.then(|| self.console.live.revision().to_string());
        document(
            &page.title,
            env,
            &html! {
                (header(env, page.tab, self.visitor, self.console.admin.access.read_only))
                main #main tabindex="-1" data-revision=[revision] {
                    div.head {
                        h1 { (page.title) }
                        @if let Some(at) = page.as_of {
                            p.asof {
                                "As of " time datetime=(iso(at)) { (at.utc()) }
                                @if page.is_live { span #live {} }
                            }
                        }
                    }
                    (content)
                }
                footer { "Samovar " (env!("CARGO_PKG_VERSION")) ", worker " (text(&self.parts.worker)) }
            },
        )
    }
}

fn header(env: Option<&str>, current: Tab, visitor: Visitor, read_only: bool) -> Markup {
    let who = match visitor.role {
        _ if read_only => "read-only",
        Some(Role::Act) => "may act",
        Some(Role::Look) => "may look",
        None => "may look, without reasons",
    };
    html! {
        a.skip href="#main" { "Skip to the content" }
        header {
            a.brand href="/" { "Samovar" }
            @if let Some(env) = env { span.env { (env) } }
            nav aria-label="Screens" {
                ul {
                    @for (tab, url, name) in Tab::ALL {
                        li { a href=(url) aria-current=[(tab == current).then_some("page")] { (name) } }
                    }
                }
            }
            form.find role="search" method="get" action="/console/find" {
                label.hidden for="key" { "Key or job" }
                input #key type="search" name="key" placeholder="key or job" required;
                button type="submit" { "Go" }
            }
            div.who {
                span { (who) }
                @if visitor.has_session {
                    form method="post" action="/console/logout" { button type="submit" { "Log out" } }
                }
            }
        }
    }
}

/// Returns a time of the past, relative to `now`.
pub(super) fn past(at: RedisTime, now: RedisTime) -> Markup {
    html! { time datetime=(iso(at)) title=(at.utc()) { (ago(at, now)) } }
}

/// Returns a time, relative to `now`.
pub(super) fn distance(at: RedisTime, now: RedisTime) -> Markup {
    html! { time datetime=(iso(at)) title=(at.utc()) { (relative(at, now)) } }
}

pub(super) fn iso(at: RedisTime) -> String {
    at.utc().replacen(' ', "T", 1).replace(" UTC", "Z")
}

/// Returns a number; one that is unknown is a dash, never zero.
pub(super) fn number(number: Option<u64>) -> Markup {
    match number {
        Some(number) => html! { (grouped(number)) },
        None => html! { span.unknown title="unknown" { "–" } },
    }
}

/// Returns a figure with its name.
pub(super) fn figure(name: &str, value: &Markup, note: Option<&str>) -> Markup {
    html! { div.figure { dt { (name) } dd { (value) @if let Some(note) = note { small { (note) } } } } }
}

/// Returns a link to the next page of a list.
pub(super) fn next_page(url: &str, words: &str) -> Markup {
    html! { p { a rel="next" href=(url) { (words) } } }
}

/// Returns a link to the screen of a job.
pub(super) fn job_link(job: &str) -> Markup {
    html! { a href=(format!("/console/jobs/{job}")) { (job) } }
}

/// Returns a part of a URL's query, encoded.
pub(super) fn query(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Returns a link to the screen of an entry.
pub(super) fn entry_link(key: &str) -> Markup {
    html! { a.key href=(format!("/console/entry?key={}", query(key))) { (text(key)) } }
}

/// Returns the failure of a job that this worker does not know.
pub(super) fn unknown(name: &str) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "No such job", format!("This worker has no job `{name}`."))
}

/// Returns a link to the question of an action.
pub(super) fn action_link(action: &str, what: &str, name: &str, words: &str) -> Markup {
    html! { a.button href=(format!("/console/ask/{action}?{what}={}", query(name))) { (words) } }
}

/// Returns a link to the question of whether a group of dead letters is tried again.
pub(super) fn retry_link(job: &str, cause: &str) -> Markup {
    let url = format!("/console/ask/retry?job={}&cause={}", query(job), query(cause));
    html! { a.button href=(url) { "Try this group again…" } }
}
