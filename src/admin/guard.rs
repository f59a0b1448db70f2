//! Access control of HTTP requests.
//!
//! Three kinds of requests are refused: from other machines without the token; from web pages of other origins (by
//! `Origin`, and by `Host` against DNS rebinding); and more at once than can be answered.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::{Authority, PathAndQuery};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{info, warn};

use super::problem::Problem;
use super::{Admin, Role, console};
use crate::entry::duration;
use crate::ops::audit_log::Change;

/// The timeout of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The timeout of an answer that needs work: clearing, and waiting for entries.
const WORK: Duration = Duration::from_secs(660);

/// The checks of every request.
pub(super) async fn everybody(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let is_page = is_of_console(request.uri().path());
    if let Err(problem) = own_page(&admin, &request) {
        return refused(problem, is_page).await;
    }
    let path = request.uri().path();
    let probe = is_probe(path);
    let is_work = path == "/warm" || path.starts_with("/redis/clear") || path.starts_with("/console/do/");
    let time = if is_work { WORK } else { ANSWER };
    let room = admin.room.try_acquire();
    if room.is_err() && !probe {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once; try again");
        return refused(problem, is_page).await;
    }
    match tokio::time::timeout(time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("no answer within {}", duration::text(time));
            refused(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail), is_page).await
        }
    }
}

fn is_of_console(path: &str) -> bool {
    path == "/" || path.starts_with("/console/")
}

/// Returns a refusal, as a page for the console's visitors.
async fn refused(problem: Problem, is_page: bool) -> Response {
    if is_page { console::refusal(problem.code(), problem.detail()).await } else { problem.into_response() }
}

/// The checks of requests that change or fetch something, or show values.
pub(super) async fn owner(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let changes = method != Method::GET && method != Method::HEAD;
    if let Err(problem) = entitled(&admin, request.headers(), changes) {
        return problem.into_response();
    }
    let noted = (changes && !is_of_programs(&path)).then(|| {
        let target = request.uri().path_and_query().map_or(path.as_str(), PathAndQuery::as_str).to_owned();
        let who = role(&admin, request.headers()).map_or("anybody", Role::as_str).to_owned();
        Change { who, way: "http".to_owned(), action: method.to_string(), target, ..Change::default() }
    });
    if let Some(change) = &noted {
        record(&admin, change.clone()).await;
    }
    let response = next.run(request).await;
    let failed = Some(response.status()).filter(|status| status.is_client_error() || status.is_server_error());
    if let (Some(change), Some(status)) = (noted, failed) {
        let note = match status.is_client_error() {
            true => format!("refused: {status}"),
            false => format!("answered {status}; it may have been carried out in part"),
        };
        record(&admin, Change { note, ..change }).await;
    }
    if changes {
        info!(%method, path, status = response.status().as_u16(), "HTTP request");
    }
    response
}

/// Returns `true` for changes that programs ask for all the time.
fn is_of_programs(path: &str) -> bool {
    path == "/warm" || path == "/invalidate"
}

/// Notes a change in the audit log, before it is made and again if it fails. A program's change does not wait for the
/// log: if Redis does not take the note, the change goes on, and the log of this worker says so.
async fn record(admin: &Admin, change: Change) {
    let Some(parts) = admin.parts() else { return };
    let change = Change { worker: parts.worker.to_string(), ..change };
    if let Err(e) = parts.ops.record(&change).await {
        let Change { action, target, .. } = change;
        warn!(method = action, target, "this change is not in the audit log: {e}");
    }
}

/// The reason of a refusal while nobody changes anything.
pub(crate) const READ_ONLY: &str = "nothing is changed over HTTP: this worker runs with --read-only";

/// Returns `true` if the client may see reasons.
pub(super) fn sees_reasons(admin: &Admin, headers: &HeaderMap) -> bool {
    admin.access.rights(role(admin, headers)).reasons
}

/// Returns the role that a client proved with a token. The sessions of the console are not for the API.
fn role(admin: &Admin, headers: &HeaderMap) -> Option<Role> {
    if admin.access.has_roles() { admin.access.bearer(headers) } else { admin.access.client(headers).role }
}

/// Checks that the client may see values or, if it `changes` something, that it may.
fn entitled(admin: &Admin, headers: &HeaderMap, changes: bool) -> Result<(), Problem> {
    let (role, access) = (role(admin, headers), &admin.access);
    let rights = access.rights(role);
    let forbidden = |detail| Err(Problem::new(StatusCode::FORBIDDEN, detail));
    let unknown = |detail| Err(Problem::new(StatusCode::UNAUTHORIZED, detail));
    match role {
        _ if if changes { rights.act } else { rights.values } => Ok(()),
        Some(Role::Act) => forbidden(READ_ONLY),
        Some(Role::Look) if changes => forbidden("SAMOVAR_VIEWER_TOKEN may only look; send SAMOVAR_TOKEN"),
        Some(Role::Look) => forbidden("values are shown with SAMOVAR_TOKEN only, as SAMOVAR_VIEWER_VALUES is off"),
        None if !access.has_roles() => forbidden(
            "this request changes or fetches something, or shows values, and other machines can connect: set \
             SAMOVAR_TOKEN for the worker, or let it listen on 127.0.0.1",
        ),
        None if headers.contains_key(header::AUTHORIZATION) => unknown("the token is not the worker's SAMOVAR_TOKEN"),
        None => unknown("send the worker's SAMOVAR_TOKEN in a header `Authorization: Bearer …`"),
    }
}

fn is_probe(path: &str) -> bool {
    path == "/health" || path.starts_with("/health/") || path == "/redis/health"
}

/// Refuses requests of web pages of other origins.
fn own_page(admin: &Admin, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let text = |value: &header::HeaderValue| value.to_str().unwrap_or("\u{fffd}").to_owned();
    let hosts: Vec<String> = headers.get_all(header::HOST).iter().map(text).collect();
    // A client with a token or a session is not a page that uses DNS rebinding.
    let shown = admin.access.has_roles() && admin.access.client(headers).role.is_some();
    // Scrapers and probes may use any name, and only receive counts.
    let anybody = !admin.access.local && (is_probe(request.uri().path()) || request.uri().path() == "/metrics");
    if !shown && !anybody {
        for named in hosts.iter().map(String::as_str).chain(request.uri().authority().map(Authority::as_str)) {
            if !may_be_called(admin, named) {
                return Err(Problem::new(StatusCode::FORBIDDEN, other_host(admin)));
            }
        }
    }
    if let Some(origin) = headers.get(header::ORIGIN).map(text) {
        let page = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if page.is_none() || page != hosts.first().map(String::as_str) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "requests from web pages of other origins are refused"));
        }
    }
    Ok(())
}

fn other_host(admin: &Admin) -> &'static str {
    if admin.access.local {
        "without a token, only requests to a loopback name (127.0.0.1, ::1, localhost) or a name in SAMOVAR_HOSTS are \
         answered; add the name there, set and send SAMOVAR_TOKEN, or have the proxy send `Host: localhost`"
    } else {
        "without the token, only requests to an IP address, a loopback name or a name in SAMOVAR_HOSTS are answered; \
         add the name there, or send SAMOVAR_TOKEN"
    }
}

/// Returns `true` if requests to this `Host` need no token. DNS rebinding needs a name, so an IP address is safe. If
/// only this machine can connect, other addresses are refused.
fn may_be_called(admin: &Admin, authority: &str) -> bool {
    if is_loopback(authority) {
        return true;
    }
    let Some(host) = host(authority) else { return false };
    let is_address = host.parse::<IpAddr>().is_ok();
    (is_address && !admin.access.local) || admin.access.hosts.iter().any(|known| known.eq_ignore_ascii_case(&host))
}

/// Returns the host of `host:port`, without the brackets of IPv6 and the dot of the root.
fn host(authority: &str) -> Option<String> {
    let authority = authority.parse::<Authority>().ok()?;
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some(host.strip_suffix('.').unwrap_or(host).to_owned())
}

/// Returns `true` if a `Host` names this machine.
fn is_loopback(authority: &str) -> bool {
    let Some(host) = host(authority) else { return false };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback_names() {
        for name in ["localhost", "LOCALHOST:7070", "127.0.0.1:7070", "127.8.8.8", "[::1]:7070"] {
            assert!(is_loopback(name), "{name}");
        }
        for name in
            ["evil.example", "localhost.evil.example:7070", "10.0.0.1", "127.0.0.1.evil.example", "", "\u{fffd}"]
        {
            assert!(!is_loopback(name), "{name}");
        }
    }
}
