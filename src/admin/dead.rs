//! Dead letters.

use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::extract::{Asked, Body, Fleet, Nothing};
use super::problem::Problem;
use crate::ops::Letters;

/// The default number of dead letters in one answer.
const SHOWN: usize = 100;
/// The largest number of dead letters in one answer.
const MOST: usize = 1_000;

/// The filter and the page.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only of this job.
    job: Option<String>,
    /// The most letters to return; 100 if absent.
    #[param(minimum = 0, maximum = 1000)]
    limit: Option<usize>,
    /// The offset: `next` of the previous page.
    from: Option<usize>,
}

/// The dead letters to retry.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    /// Only these jobs and keys; all if absent or empty.
    #[schema(required = false)]
    only: Vec<String>,
}

/// The result of a retry.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Retried {
    /// Entries that are on the agenda again.
    retried: usize,
}

/// List dead letters, with their reasons
#[utoipa::path(get, path = "/dead", tag = "jobs", params(Which), responses((status = 200, body = Letters)))]
pub(super) async fn dead(fleet: Fleet, Asked(which): Asked<Which>) -> Result<Json<Letters>, Problem> {
    let parts = &fleet.parts;
    if let Some(job) = which.job.as_ref().filter(|job| !parts.ops.jobs.jobs.contains_key(job.as_str())) {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no job `{job}`; GET /jobs lists the jobs")));
    }
    let limit = which.limit.unwrap_or(SHOWN);
    if limit > MOST {
        let detail =
            format!("`limit`: `{limit}` must be at most {MOST}; `next` of an answer is the `from` of the next page");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
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
pub(super) async fn retry(
    fleet: Fleet,
    Asked(Nothing {}): Asked<Nothing>,
    Body(Retry { only }): Body<Retry>,
) -> Result<Json<Retried>, Problem> {
    let parts = &fleet.parts;
    if let Some(unknown) = parts.ops.unknown(&only) {
        let detail =
            format!("`{unknown}` is neither a job nor a key of a job; GET /jobs lists the jobs of this worker");
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
