//! Extractors of requests, which report every fault as a [`Problem`].

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::problem::Problem;
use super::{Admin, Parts, guard};

use crate::entry::duration;

/// The longest body, in bytes.
pub(super) const BODY: usize = 1 << 20;
/// The timeout for receiving a body.
pub(super) const BODY_TIME: Duration = Duration::from_secs(10);

/// The worker's parts; an error until Redis was reached. A request keeps the same parts to its end.
pub(super) struct Fleet {
    pub(super) admin: Arc<Admin>,
    pub(super) parts: Arc<Parts>,
    /// `true` if the client may see what only the owner may: reasons, which quote upstreams' answers.
    pub(super) trusted: bool,
}

impl FromRequestParts<Arc<Admin>> for Fleet {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, admin: &Arc<Admin>) -> Result<Self, Problem> {
        let reason = || format!("the worker waits for Redis at {}", admin.redis);
        let parts = admin.parts().ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason()))?;
        let trusted = guard::sees_reasons(admin, &request.headers);
        Ok(Self { admin: Arc::clone(admin), parts, trusted })
    }
}

/// The query of a request.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(query)| Self(query))
            .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, of_query(&e.body_text())))
    }
}

/// Returns why a query cannot be read, from its deserializer's words.
fn of_query(words: &str) -> String {
    let why = words.strip_prefix("Failed to deserialize query string: ").unwrap_or(words);
    let why = why
        .replace("provided string was not `true` or `false`", "write `true` or `false`")
        .replace("invalid digit found in string", "write a whole number")
        .replace("there are no fields", "this request has no parameters");
    format!("the query cannot be read: {why}")
}

/// Rejects a query.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// The switch for names that match nothing.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Force {
    /// Go on even if a name matches no job that the fleet knows, or if a key looks like a pattern and no entry has it.
    pub(super) force: bool,
}

/// A name in the path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name)).map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))
    }
}

/// A JSON body, as text.
pub(super) struct Text(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let json = is_json(request.headers());
        let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY} bytes"));
        let told = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if told.is_some_and(|length: usize| length > BODY) {
            return Err(too_large());
        }
        let late = |_| {
            let detail = format!("the body did not arrive within {}", duration::text(BODY_TIME));
            Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
        };
        let read = tokio::time::timeout(BODY_TIME, to_bytes(request.into_body(), BODY)).await.map_err(late)?;
        let bytes = read.map_err(|_| too_large())?;
        if !json && !bytes.is_empty() {
            let remedy = "send the body as JSON, with the header `Content-Type: application/json`";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, remedy));
        }
        String::from_utf8(bytes.into())
            .map(Self)
            .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the body is not UTF-8"))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// A JSON body; an empty or null one is the default.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Text(text) = Text::from_request(request, state).await?;
        if text.is_empty() {
            return Ok(Self(T::default()));
        }
        read_object::<Option<Map<String, Value>>>(&text)?
            .map_or_else(|| Ok(T::default()), |_| read_fields(&text))
            .map(Self)
    }
}

/// Reads a body as far as it is a JSON object.
pub(super) fn read_object<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let refuse = |e| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not the expected JSON object: {e}"));
    serde_json::from_str(text).map_err(refuse)
}

/// Reads the fields of a JSON object. The error tells where the fault is.
pub(super) fn read_fields<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let refuse = |e| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("the body cannot be followed: {e}"));
    serde_json::from_str(text).map_err(refuse)
}
