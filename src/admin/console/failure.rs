//! Pages without a frame: to log in, and what cannot be shown.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use redis::RedisError;

use super::assets;
use super::seal::seal;
use crate::entry::escape::escaped;
use crate::redis::is_of_keys;
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
    /// Further sentences.
    more: Vec<String>,
    /// It may be asked for again soon.
    waits: bool,
}

impl Failure {
    pub(super) fn new(status: StatusCode, title: &str, detail: impl Into<String>) -> Self {
        Self { status, title: title.to_owned(), detail: detail.into(), more: Vec::new(), waits: false }
    }

    /// Creates the failure of a worker that cannot use Redis now.
    pub(super) fn waits(detail: String) -> Self {
        Self { waits: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "Redis does not answer", detail) }
    }

    /// Adds sentences.
    pub(super) fn with(mut self, more: Vec<String>) -> Self {
        self.more.extend(more);
        self
    }

    /// Returns the failure of an action that failed in this way. It may have been carried out, so nothing sends it
    /// again.
    pub(super) fn of_action(self) -> Self {
        if !self.waits {
            return self;
        }
        let look = "It may have been carried out. Look at its job or entry before you ask for it again.".to_owned();
        Self { waits: false, ..self }.with(vec![look])
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let detail = format!("Redis: {}", explain(&error));
        if is_refusal(&error) {
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Redis refuses it", detail)
        } else {
            Self::waits(detail)
        }
    }
}

/// Returns `true` if a server refused a command for a reason that waiting does not change: a missing right, a key of
/// another type, no memory.
fn is_refusal(error: &RedisError) -> bool {
    is_of_keys(error) || error.code() == Some("OOM")
}

/// Returns a page that tells of a request that was refused before it reached a route.
pub(crate) async fn refusal(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    seal(Failure::new(status, title, detail).into_response()).await
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let page = bare(
            &self.title,
            None,
            &html! {
                p.bad role="alert" data-waits=[self.waits.then_some("")] { (text(&self.detail)) }
                @if !self.more.is_empty() { ul { @for said in &self.more { li { (text(said)) } } } }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_redis_is_no_reason_to_wait() {
        let of = |code: &str| match redis::parse_redis_value(format!("-{code} no\r\n").as_bytes()).unwrap() {
            redis::Value::ServerError(error) => Failure::from(RedisError::from(error)),
            other => panic!("{other:?}"),
        };
        for code in ["NOPERM", "WRONGTYPE", "OOM", "ERR"] {
            let failure = of(code);
            assert_eq!((failure.status.as_u16(), failure.waits), (500, false), "{code}");
        }
        for code in ["LOADING", "CLUSTERDOWN", "MASTERDOWN"] {
            let failure = of(code);
            assert_eq!((failure.status.as_u16(), failure.waits), (503, true), "{code}");
            assert!(!failure.of_action().waits, "{code}");
        }
    }
}
