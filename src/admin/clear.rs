//! Clearing: removes entries at once.

use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::extract::{Asked, Fleet, Force, Named};
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
    /// Go on even if no key of a job or of the library's caches can match.
    #[serde(default)]
    force: bool,
}

/// Evict all entries of jobs and all keys of the library's caches, or those that match
#[utoipa::path(delete, path = "/redis/clear", tag = "changes", params(Which), responses((status = 200, body = Cleared)))]
pub(super) async fn clear(fleet: Fleet, Asked(which): Asked<Which>) -> Result<Json<Cleared>, Problem> {
    let pattern = which.pattern.map_or_else(|| Ok(Pattern::all()), |pattern| parse(&pattern))?;
    evict(&fleet, &pattern, which.force).await
}

/// Evict entries and keys that match a glob
#[utoipa::path(
    delete,
    path = "/redis/clear/{pattern}",
    tag = "changes",
    params(
        ("pattern" = String, Path, description = "A glob as in Redis's `KEYS`, percent-encoded", max_length = 256),
        Force
    ),
    responses((status = 200, body = Cleared))
)]
pub(super) async fn clear_matching(
    fleet: Fleet,
    Named(pattern): Named,
    Asked(Force { force }): Asked<Force>,
) -> Result<Json<Cleared>, Problem> {
    evict(&fleet, &parse(&pattern)?, force).await
}

fn parse(pattern: &str) -> Result<Pattern, Problem> {
    Pattern::parse(pattern).map_err(|e| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, e))
}

async fn evict(fleet: &Fleet, pattern: &Pattern, force: bool) -> Result<Json<Cleared>, Problem> {
    let parts = &fleet.parts;
    if !force && !parts.ops.may_clear(pattern) && !parts.ops.of_fleet().await?.may_clear(pattern) {
        let detail = format!(
            "the pattern `{pattern}` matches no key of a job that the fleet knows, and none of the library's caches; \
             nothing was removed; `?force=true` clears all the same"
        );
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let deleted = parts.ops.clear(&parts.invalidator, pattern).await?;
    Ok(Json(Cleared { deleted }))
}
