//! Clearing: removes entries at once.

use axum::Json;
use serde::{Deserialize, Serialize};

use super::extract::{Asked, Fleet, Named, Nothing};
use super::problem::Problem;
use crate::ops::Pattern;

/// The result of clearing.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Cleared {
    /// Keys removed.
    deleted: u64,
}

/// The filter.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// A glob in the syntax of Redis's `KEYS`; everything if absent.
    #[param(min_length = 1, max_length = 256)]
    pattern: Option<String>,
}

/// Evict all entries of jobs and all keys of the library's caches, or those that match
#[utoipa::path(delete, path = "/redis/clear", tag = "changes", params(Which), responses((status = 200, body = Cleared)))]
pub(super) async fn clear(fleet: Fleet, Asked(which): Asked<Which>) -> Result<Json<Cleared>, Problem> {
    let pattern = which.pattern.map_or_else(|| Ok(Pattern::all()), |pattern| parse(&pattern))?;
    evict(&fleet, &pattern).await
}

/// Evict entries and keys that match a glob
#[utoipa::path(
    delete,
    path = "/redis/clear/{pattern}",
    tag = "changes",
    params(("pattern" = String, Path, description = "A glob in the syntax of Redis's `KEYS`, percent-encoded", max_length = 256)),
    responses((status = 200, body = Cleared))
)]
pub(super) async fn clear_matching(
    fleet: Fleet,
    Named(pattern): Named,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Cleared>, Problem> {
    evict(&fleet, &parse(&pattern)?).await
}

fn parse(pattern: &str) -> Result<Pattern, Problem> {
    Pattern::parse(pattern).map_err(|e| Problem::new(axum::http::StatusCode::UNPROCESSABLE_ENTITY, e))
}

async fn evict(fleet: &Fleet, pattern: &Pattern) -> Result<Json<Cleared>, Problem> {
    let parts = &fleet.parts;
    let deleted = parts.ops.clear(&parts.invalidator, pattern).await?;
    Ok(Json(Cleared { deleted }))
}
