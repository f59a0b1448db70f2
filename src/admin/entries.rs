//! One entry: its value and what is known of it.

use axum::Json;
use axum::http::StatusCode;
use serde::Deserialize;

use super::extract::{Asked, Fleet};
use super::problem::Problem;
use crate::ops::Entry;

/// Longest value that is shown, in bytes: Redis holds up to 512 MiB in one.
const MOST: u64 = 8 << 20;

/// Which.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The entry's key; it is a job's.
    key: String,
}

/// One entry's value and what is known of it; keys that are no job's are not shown
#[utoipa::path(get, path = "/entries", tag = "entries", params(Which), responses((status = 200, body = Entry)))]
pub(super) async fn entry(fleet: Fleet, Asked(Which { key }): Asked<Which>) -> Result<Json<Entry>, Problem> {
    let parts = &fleet.parts;
    if parts.ops.keys.is_own(&key) || parts.ops.jobs.owner(&key).is_none() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "no job's key pattern fits this key"));
    }
    let _turn = fleet.admin.turn().await;
    let mut redis = parts.ops.redis.clone();
    // A key of another type has no length; what is known of it is told below.
    let bytes: u64 = redis::cmd("STRLEN").arg(&key).query_async(&mut redis).await.unwrap_or_default();
    if bytes > MOST {
        let detail = format!("its value has {bytes} bytes, and {MOST} at most are shown; read it with `redis-cli GET`");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    Ok(Json(parts.ops.entry(&key).await?))
}
