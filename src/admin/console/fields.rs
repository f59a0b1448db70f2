//! The fields of a query, and those of a form, which is read within the time that the JSON API has for a body.

use axum::Form;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::admin::extract::BODY_TIME;
use crate::entry::duration;

/// The longest form, in bytes.
const LONGEST: usize = 16 << 10;

/// The fields of a query.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        let refuse = |why: String| Failure::new(StatusCode::BAD_REQUEST, "The address cannot be read", why);
        query.map(|Query(fields)| Self(fields)).map_err(|e| refuse(e.body_text()))
    }
}

/// The fields of a form.
pub(super) struct Fields<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Fields<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let refuse = |status, why: String| Failure::new(status, "The form cannot be read", why);
        let too_long = || refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("It is longer than {LONGEST} bytes."));
        let told = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if told.is_some_and(|length: usize| length > LONGEST) {
            return Err(too_long());
        }
        let late = |_| {
            let why = format!("It did not arrive within {}.", duration::text(BODY_TIME));
            refuse(StatusCode::REQUEST_TIMEOUT, why)
        };
        let read = tokio::time::timeout(BODY_TIME, to_bytes(body, LONGEST)).await.map_err(late)?;
        let bytes = read.map_err(|_| too_long())?;
        let form = Form::<T>::from_request(Request::from_parts(parts, Body::from(bytes)), state).await;
        form.map(|Form(fields)| Self(fields)).map_err(|e| refuse(e.status(), e.body_text()))
    }
}
