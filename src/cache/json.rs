//! Values in Redis: plain JSON.

use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// The result of a read.
pub(super) enum Read {
    /// A value.
    There(Json),
    /// There is no value.
    Missing,
    /// Redis does not answer.
    Away,
}

/// A value's text.
pub(super) enum Json {
    Owned(Vec<u8>),
    Shared(Arc<[u8]>),
}

impl Deref for Json {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(json) => json,
            Self::Shared(json) => json,
        }
    }
}

pub(super) fn encode<T: Serialize + ?Sized>(key: &str, value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|source| Error::Encode { key: key.to_owned(), source })
}

pub(super) fn decode<T: DeserializeOwned>(key: &str, json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|source| Error::Decode { key: key.to_owned(), source })
}
