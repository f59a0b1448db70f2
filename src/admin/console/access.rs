//! The checks of every request to the console, and the headers of every answer.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts as RequestParts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tracing::info;

use super::failure::Failure;
use super::state::Console;
use crate::admin::{Proof, READ_ONLY, Rights, Role};

/// Tells a page apart that runs on another site. Browsers send it over HTTPS, and over HTTP to this machine.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The right that a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// None: the page to log in, and what it looks like.
    Nothing,
    /// The right to look.
    Look,
    /// The right to change things.
    Act,
}

/// The check of one route.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) console: Arc<Console>,
    pub(super) needs: Needs,
}

/// The client of a request, as [`check`] found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Visitor {
    /// Its role; `None` for those who see what anybody may see.
    pub(super) role: Option<Role>,
    pub(super) rights: Rights,
    /// It has a session, which it may end.
    pub(super) has_session: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut RequestParts, _: &S) -> Result<Self, Infallible> {
        let nobody = Rights { reasons: false, values: false, act: false };
        let found = parts.extensions.get::<Self>().copied();
        Ok(found.unwrap_or(Self { role: None, rights: nobody, has_session: false }))
    }
}

/// Checks that the client has the right that a route needs.
pub(super) async fn check(State(check): State<Check>, mut request: Request, next: Next) -> Response {
    let access = &check.console.admin.access;
    let client = access.client(request.headers());
    let rights = access.rights(client.role);
    let changes = request.method() != Method::GET && request.method() != Method::HEAD;
    if changes && client.proof != Proof::Token && is_from_elsewhere(request.headers(), check.needs) {
        return Failure::new(StatusCode::FORBIDDEN, "Not from this page", ELSEWHERE).into_response();
    }
    let is_unknown = access.has_roles() && client.role.is_none();
    match check.needs {
        Needs::Nothing => {}
        Needs::Look | Needs::Act if is_unknown => return ask_to_log_in(&request, changes),
        Needs::Look => {}
        Needs::Act if rights.act => {}
        Needs::Act => {
            let why = match client.role {
                Some(Role::Act) => READ_ONLY,
                Some(Role::Look) => "You are logged in as a viewer, who may only look. Log in with SAMOVAR_TOKEN.",
                None => "Other machines can connect and SAMOVAR_TOKEN is not set, so nothing is changed over HTTP.",
            };
            return Failure::new(StatusCode::FORBIDDEN, "Not allowed", why).into_response();
        }
    }
    let has_session = client.proof == Proof::Session;
    request.extensions_mut().insert(Visitor { role: client.role, rights, has_session });
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    if changes {
        info!(method = "POST", path, status = response.status().as_u16(), "HTTP request");
        // An answer of 5xx may have changed something.
        if check.needs == Needs::Act && !response.status().is_client_error() {
            check.console.live.disturb();
        }
    }
    response
}

const ELSEWHERE: &str = "A request that changes something must come from a page of the console itself. Browsers say \
                         so (Sec-Fetch-Site) over HTTPS, and to localhost; over plain HTTP to another machine they \
                         do not.";

/// Returns `true` unless the browser says that a request comes from a page of this origin. A login changes nothing
/// yet, so it is refused only if it is known to come from elsewhere.
fn is_from_elsewhere(headers: &HeaderMap, needs: Needs) -> bool {
    match headers.get(FETCH_SITE) {
        Some(site) => site != "same-origin",
        None => needs != Needs::Nothing,
    }
}

/// Sends a browser to the page to log in, and back afterwards.
fn ask_to_log_in(request: &Request, changes: bool) -> Response {
    let is_page = request.headers().get(header::ACCEPT).is_none_or(|kinds| kinds != "text/event-stream");
    if changes || !is_page {
        let why = "Log in first: the session has ended, or there was none.";
        return Failure::new(StatusCode::UNAUTHORIZED, "Logged out", why).into_response();
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let to = utf8_percent_encode(path, NON_ALPHANUMERIC);
    Redirect::to(&format!("/console/login?to={to}")).into_response()
}
