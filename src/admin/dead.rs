//! Dead letters.

use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::extract::{Asked, Body, Fleet};
use super::problem::Problem;
use crate::ops::Letters;

/// Dead letters told in one answer, if nobody says.
const SHOWN: usize = 100;
/// And at most.
const MOST: usize = 1_000;

/// Which, and how many.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only of this job.
    job: Option<String>,
    /// So many at most, 100 where absent.
    #[param(minimum = 0, maximum = 1000)]
    limit: Option<usize>,
    /// Without so many before them: `next` of the page before.
    from: Option<usize>,
}

/// Which are put back.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    /// Only these jobs and keys; all where absent or empty.
    #[schema(required = false)]
    only: Vec<String>,
}

/// How many were put back.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Retried {
    /// Entries that are on the agenda again.
    retried: usize,
}

/// Entries whose warming was given up, and why
#[utoipa::path(get, path = "/dead", tag = "jobs", params(Which), responses((status = 200, body = Letters)))]
pub(super) async fn dead(fleet: Fleet, Asked(which): Asked<Which>) -> Result<Json<Letters>, Problem> {
    let parts = &fleet.parts;
    if let Some(job) = which.job.as_ref().filter(|job| !parts.ops.jobs.jobs.contains_key(job.as_str())) {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("`{job}` is no job; GET /jobs lists them")));
    }
    let limit = which.limit.unwrap_or(SHOWN);
    if limit > MOST {
        return Err(Problem::new(StatusCode::BAD_REQUEST, format!("`limit` may be {MOST} at most")));
    }
    let only: Vec<String> = which.job.into_iter().collect();
    let _turn = fleet.admin.turn().await;
    let mut letters = parts.ops.dead(&only, which.from.unwrap_or(0), limit).await?;
    if !fleet.trusted {
        letters.dead.iter_mut().for_each(|dead| dead.reason = None);
    }
    Ok(Json(letters))
}

/// Put dead letters back on the agenda
#[utoipa::path(
    post,
    path = "/dead/retry",
    tag = "changes",
    request_body = inline(Option<Retry>),
    responses((status = 200, body = Retried))
)]
pub(super) async fn retry(fleet: Fleet, Body(Retry { only }): Body<Retry>) -> Result<Json<Retried>, Problem> {
    let parts = &fleet.parts;
    if let Some(unknown) = parts.ops.unknown(&only) {
        let detail = format!("`{unknown}` is no job, and no job's key");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let _turn = fleet.admin.turn().await;
    let until = parts.ops.store.now().await?;
    let mut retried = 0;
    loop {
        match parts.ops.retry(&only, until).await?.len() {
            0 => return Ok(Json(Retried { retried })),
            some => retried += some,
        }
    }
}
