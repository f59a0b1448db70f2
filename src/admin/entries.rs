//! One entry: its value, metadata and place on the agenda.

use axum::Json;
use axum::http::StatusCode;
use serde::Deserialize;

use super::extract::{Asked, Fleet};
use super::problem::Problem;
use crate::ops::Entry;

/// The longest value that is shown, in bytes. Redis allows 512 MiB.
const MOST: u64 = 8 << 20;

/// The entry.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The entry's key, which must be a key of a job.
    key: String,
}

/// Show one entry's value and metadata; keys of no job are not shown
#[utoipa::path(get, path = "/entries", tag = "entries", params(Which), responses((status = 200, body = Entry)))]
pub(super) async fn entry(fleet: Fleet, Asked(Which { key }): Asked<Which>) -> Result<Json<Entry>, Problem> {
    let parts = &fleet.parts;
    if parts.ops.keys.is_own(&key) || parts.ops.jobs.owner(&key).is_none() {
        let detail =
            format!("no job has the key `{key}`; GET /jobs lists the jobs of this worker with their key patterns");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let _turn = fleet.admin.turn().await;
    let mut redis = parts.ops.redis.clone();
    // A key of the wrong type has no length; its metadata is still shown.
    let bytes: u64 = redis::cmd("STRLEN").arg(&key).query_async(&mut redis).await.unwrap_or_default();
    if bytes > MOST {
        let detail = format!("the value has {bytes} bytes, and at most {MOST} are shown; read it with `redis-cli GET`");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let mut entry = parts.ops.entry(&key).await?;
    if entry.is_outdated {
        parts.ops.add_wait(&mut entry, &parts.queue.living(parts.dead_after).await).await?;
    }
    Ok(Json(entry))
}
