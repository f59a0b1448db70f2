//! The answers to tabs: the numbers of states, and pages that are made once for each state.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::access::Visitor;
use super::failure::Failure;
use super::state::Console;

/// The path of the events.
pub(super) const PATH: &str = "/console/events";
/// The pause between signs of life, which proxies expect.
const ALIVE: Duration = Duration::from_secs(15);
/// The most tabs.
const TABS: usize = 100;
/// The longest page that is kept, in bytes.
const PAGE_BYTES: usize = 1 << 20;

/// Answers with a page that was made for the present state, if tabs are open, or else makes it. Of several requests at
/// once, one makes it. Errors, other kinds of answers and very long pages are not kept.
pub(super) async fn once_for_all(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let visitor = request.extensions().get::<Visitor>().copied();
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let key = visitor.map(|visitor| format!("{visitor:?} {path}")).unwrap_or_default();
    let Some(made) = visitor.and_then(|_| console.live.place(&key)) else {
        return next.run(request).await;
    };
    let page = made.get_or_init(async || {
        let (parts, body) = next.run(request).await.into_parts();
        // The page is in memory, so this neither waits nor fails.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        (parts.status, parts.headers, body)
    });
    let (status, headers, body) = page.await.clone();
    let is_html = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if status != StatusCode::OK || !is_html || body.len() > PAGE_BYTES {
        console.live.forget(&key, &made);
    }
    (status, headers, Body::from(body)).into_response()
}

/// Tells a tab the number of the state, and of each later one.
pub(super) async fn events(State(console): State<Arc<Console>>) -> Response {
    if console.admin.stop.is_cancelled() {
        let detail = "This worker is about to end. The page asks again by itself.";
        return Failure::new(StatusCode::SERVICE_UNAVAILABLE, "The worker ends", detail).into_response();
    }
    if console.live.tabs() >= TABS {
        let reload = "Reload the page instead.";
        return Failure::new(StatusCode::SERVICE_UNAVAILABLE, "Too many tabs", reload).into_response();
    }
    let receiver = console.live.follow();
    let stop = console.admin.stop.clone();
    let revisions = stream::unfold((receiver, true), move |(mut receiver, is_first)| {
        let stop = stop.clone();
        async move {
            if !is_first {
                tokio::select! {
                    changed = receiver.changed() => changed.ok()?,
                    () = stop.cancelled() => return None,
                }
            }
            let revision = *receiver.borrow_and_update();
            Some((Ok::<_, Infallible>(Event::default().data(revision.to_string())), (receiver, false)))
        }
    });
    let buffering = (HeaderName::from_static("x-accel-buffering"), "no");
    ([buffering], Sse::new(revisions).keep_alive(KeepAlive::new().interval(ALIVE))).into_response()
}
