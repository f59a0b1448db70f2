//! The page to log in: it exchanges a token for a session.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;
use tracing::{info, warn};

use super::failure::{Failure, bare};
use super::fields::{Asked, Fields};
use super::state::Console;
use crate::admin::{Peer, SESSION};

/// The page that was asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Target {
    to: String,
}

/// The login.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(super) struct Login {
    token: String,
    to: String,
}

/// Returns the path if it leads to a page of this console.
fn own_path(to: &str) -> &str {
    // Browsers drop tabs and line ends from a URL, and take `\` for `/`.
    let is_plain = to.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let is_own = to.starts_with('/') && !to.starts_with("//") && is_plain;
    if is_own && !to.starts_with("/console/login") { to } else { "/" }
}

pub(super) async fn form(State(console): State<Arc<Console>>, Asked(Target { to }): Asked<Target>) -> Response {
    if !console.admin.access.has_roles() {
        return Redirect::to(own_path(&to)).into_response();
    }
    bare("Log in", console.title.as_deref(), &view(own_path(&to), false)).into_response()
}

fn view(to: &str, is_refused: bool) -> Markup {
    html! {
        form.login method="post" action="/console/login" {
            @if is_refused {
                p.bad role="alert" { "This is neither SAMOVAR_TOKEN nor SAMOVAR_VIEWER_TOKEN of this worker." }
            }
            label for="token" { "Token" }
            input #token type="password" name="token" required autofocus autocomplete="current-password";
            input type="hidden" name="to" value=(to);
            button.primary type="submit" { "Log in" }
            p.hint { "SAMOVAR_TOKEN may act, SAMOVAR_VIEWER_TOKEN may look. A session ends after 12 hours." }
        }
    }
}

pub(super) async fn log_in(
    State(console): State<Arc<Console>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Fields(Login { token, to }): Fields<Login>,
) -> Response {
    let access = &console.admin.access;
    let address = peer.map(|Extension(Peer(address))| address);
    if address.is_some_and(|address| !console.logins.may_try(address, Instant::now())) {
        let detail = "Too many logins from this address were refused. Try again in a minute.";
        return Failure::new(StatusCode::TOO_MANY_REQUESTS, "Wait a minute", detail).into_response();
    }
    let role = access.role_of(token.trim().as_bytes());
    let Some((role, session)) = role.and_then(|role| Some((role, access.open_session(role)?))) else {
        let address = address.inspect(|address| console.logins.was_refused(*address, Instant::now()));
        let address = address.map(|address| address.to_string());
        warn!(address, "a login to the console was refused: the token is none of this worker's");
        let page = bare("Log in", console.title.as_deref(), &view(own_path(&to), true));
        return (StatusCode::UNAUTHORIZED, page).into_response();
    };
    info!(role = role.as_str(), "login to the console");
    let (age, secure) = (SESSION.as_secs(), if is_over_tls(&headers) { "; Secure" } else { "" });
    let cookie = format!("{}={session}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}", access.cookie());
    with_cookie(Redirect::to(own_path(&to)), &cookie)
}

pub(super) async fn log_out(State(console): State<Arc<Console>>) -> Response {
    let cookie = format!("{}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict", console.admin.access.cookie());
    with_cookie(Redirect::to("/console/login"), &cookie)
}

/// Returns `true` if the browser speaks TLS with the proxy in front: the browser names the page's origin, and a proxy
/// may add a header.
fn is_over_tls(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_lowercase();
    text("origin").starts_with("https://") || text("x-forwarded-proto").starts_with("https")
}

fn with_cookie(redirect: Redirect, cookie: &str) -> Response {
    let Ok(cookie) = HeaderValue::from_str(cookie) else {
        return Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "No session", "The cookie cannot be set.")
            .into_response();
    };
    let mut response = redirect.into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_a_page_of_the_console_only() {
        assert_eq!(own_path("/console/jobs?due=yes"), "/console/jobs?due=yes");
        for elsewhere in [
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "",
            "/console/login",
            "/\r\nx",
            "/\t/evil.example",
        ] {
            assert_eq!(own_path(elsewhere), "/", "{elsewhere}");
        }
    }
}
