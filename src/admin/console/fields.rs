//! The fields of a form, read within the time and the length that the JSON API has for a body.

use axum::Form;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::admin::extract::BODY_TIME;
use crate::entry::duration;

/// The longest form, in bytes.
const LONGEST: usize = 16 << 10;

/// The fields of a form.
pub(super) struct Fields<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Fields<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let refuse = |status, why: String| Failure::new(status, "The form cannot be read", why);
        let late = |_| {
            let why = format!("It did not arrive within {}.", duration::text(BODY_TIME));
            refuse(StatusCode::REQUEST_TIMEOUT, why)
        };
        let read = tokio::time::timeout(BODY_TIME, to_bytes(body, LONGEST)).await.map_err(late)?;
        let bytes =
            read.map_err(|_| refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("It is longer than {LONGEST} bytes.")))?;
        let form = Form::<T>::from_request(Request::from_parts(parts, Body::from(bytes)), state).await;
        form.map(|Form(fields)| Self(fields)).map_err(|e| refuse(e.status(), e.body_text()))
    }
}
