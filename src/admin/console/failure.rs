//! Pages without a frame: to log in, and what cannot be shown.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use redis::RedisError;

use super::assets;
use crate::entry::escape::escaped;
use crate::redis::requirements::explain;

/// Returns a page without links to screens.
pub(super) fn bare(title: &str, env: Option<&str>, content: &Markup) -> Markup {
    document(
        title,
        env,
        &html! {
            header { a.brand href="/" { "Samovar" } @if let Some(env) = env { span.env { (env) } } }
            main #main.bare { h1 { (title) } (content) }
        },
    )
}

pub(super) fn document(title: &str, env: Option<&str>, body: &Markup) -> Markup {
    let [style, script, icon] = assets::urls();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) @if let Some(env) = env { " · " (env) } " · Samovar" }
                link rel="stylesheet" href=(style);
                link rel="icon" href=(icon);
                script src=(script) defer {}
            }
            body { (body) }
        }
    }
}

/// A page that cannot be shown.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    title: String,
    detail: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, title: &str, detail: impl Into<String>) -> Self {
        Self { status, title: title.to_owned(), detail: detail.into() }
    }

    /// Creates the failure of a worker that cannot use Redis now.
    pub(super) fn waits(detail: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Redis does not answer", detail)
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::waits(format!("Redis: {}", explain(&error)))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let waits = (self.status == StatusCode::SERVICE_UNAVAILABLE).then_some("");
        let page = bare(
            &self.title,
            None,
            &html! {
                p.bad role="alert" data-waits=[waits] { (text(&self.detail)) }
                p { a href="/" { "To the overview" } }
            },
        );
        (self.status, page).into_response()
    }
}

/// Returns untrusted text in one line, without characters that change the direction or look like others' output.
pub(super) fn text(text: &str) -> String {
    escaped(text).into_owned()
}
