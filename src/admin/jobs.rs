//! The state of jobs, and pausing them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use serde::Serialize;

use super::Parts;
use super::extract::{Asked, Fleet, Named, Nothing};
use super::problem::Problem;
use super::state::{Of, State};
use crate::job::KnownJob;
use crate::ops::status::JobStatus;
use crate::ops::{Census, unguarded};
use crate::store::GoneGuard;

/// The timeout of waiting for a first count of entries.
const CENSUS: Duration = Duration::from_secs(2);
/// The time that each part of the state has; the request ends before.
const ANSWER: Duration = Duration::from_secs(30);

/// The result of pausing or resuming a job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Pause {
    /// The job.
    job: String,
    /// `true` if it is paused now.
    paused: bool,
    /// `true` if this changed its state.
    changed: bool,
}

/// The state of a job's guard after a decision.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Gone {
    /// The job.
    job: String,
    /// Its guard, while it holds removals back or lets them through.
    gone_guard: Option<GoneGuard>,
    /// Entries that were made due, since their removal was held back.
    due: usize,
}

fn find<'a>(parts: &'a Parts, name: &str) -> Result<&'a Arc<KnownJob>, Problem> {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, format!("there is no job `{name}`; GET /jobs lists the jobs"));
    parts.ops.jobs.jobs.get(name).ok_or_else(unknown)
}

/// Returns the last count of entries; waits for the first one unless Redis does not answer.
async fn census(fleet: &Fleet) -> Result<Option<Arc<Census>>, Problem> {
    let (census, there) = tokio::join!(fleet.admin.census(CENSUS), fleet.parts.ops.store.now());
    there?;
    Ok(census)
}

/// Removes what not everybody may see: a reason may quote an upstream's answer.
pub(crate) fn withhold_reasons(status: &mut JobStatus) {
    if let Some(last) = status.last.as_mut() {
        last.reason = None;
    }
    if let Some(feed) = status.feed.as_mut() {
        (feed.reason, feed.first_skipped) = (None, None);
    }
    if let Some(outdated) = status.outdated.as_mut() {
        outdated.reason = None;
    }
}

/// Reads all jobs, or one job; fails if a part cannot be read.
async fn read(fleet: &Fleet, of: Of<'_>) -> Result<Vec<JobStatus>, Problem> {
    let census = census(fleet).await?;
    let state = State::read(&fleet.parts, of, census.as_deref(), ANSWER).await;
    if let Some(fault) = state.fault() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, fault));
    }
    let mut jobs = state.jobs;
    if !fleet.trusted {
        jobs.iter_mut().for_each(withhold_reasons);
    }
    Ok(jobs)
}

/// Returns the state of all jobs, as far as the client may see it.
pub(super) async fn statuses(fleet: &Fleet) -> Result<Vec<JobStatus>, Problem> {
    read(fleet, Of::All).await
}

/// Show the state of all jobs
#[utoipa::path(get, path = "/jobs", tag = "jobs", responses((status = 200, body = Vec<JobStatus>)))]
pub(super) async fn jobs(fleet: Fleet, Asked(Nothing {}): Asked<Nothing>) -> Result<Json<Vec<JobStatus>>, Problem> {
    statuses(&fleet).await.map(Json)
}

/// Show the state of one job
#[utoipa::path(
    get,
    path = "/jobs/{job}",
    tag = "jobs",
    params(("job" = String, Path, description = "The job's name")),
    responses((status = 200, body = JobStatus))
)]
pub(super) async fn job(
    fleet: Fleet,
    Named(name): Named,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<JobStatus>, Problem> {
    find(&fleet.parts, &name)?;
    let status = read(&fleet, Of::Job(&name)).await?.pop();
    let gone = || Problem::new(StatusCode::NOT_FOUND, format!("there is no job `{name}` any more"));
    status.map(Json).ok_or_else(gone)
}

/// Pause a job in the whole fleet: nothing is fetched until it is resumed
#[utoipa::path(
    post,
    path = "/jobs/{job}/pause",
    tag = "changes",
    params(("job" = String, Path, description = "The job's name")),
    responses((status = 200, body = Pause))
)]
pub(super) async fn pause(
    fleet: Fleet,
    Named(name): Named,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Pause>, Problem> {
    let parts = &fleet.parts;
    let changed = parts.ops.pause(find(parts, &name)?, None).await?;
    Ok(Json(Pause { job: name, paused: true, changed }))
}

/// Resume a paused job
#[utoipa::path(
    post,
    path = "/jobs/{job}/resume",
    tag = "changes",
    params(("job" = String, Path, description = "The job's name")),
    responses((status = 200, body = Pause))
)]
pub(super) async fn resume(
    fleet: Fleet,
    Named(name): Named,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Pause>, Problem> {
    let parts = &fleet.parts;
    let changed = parts.ops.resume(find(parts, &name)?).await?;
    Ok(Json(Pause { job: name, paused: false, changed }))
}

/// Returns a job that has a guard.
fn guarded<'a>(parts: &'a Parts, name: &str) -> Result<&'a Arc<KnownJob>, Problem> {
    let job = find(parts, name)?;
    if job.unguarded { Err(Problem::new(StatusCode::CONFLICT, unguarded(job))) } else { Ok(job) }
}

/// Let the removals through that a job's guard holds back, and all others for an hour
#[utoipa::path(
    post,
    path = "/jobs/{job}/gone/accept",
    tag = "changes",
    params(("job" = String, Path, description = "The job's name")),
    responses((status = 200, body = Gone))
)]
pub(super) async fn accept_gone(
    fleet: Fleet,
    Named(name): Named,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Gone>, Problem> {
    let parts = &fleet.parts;
    let job = guarded(parts, &name)?;
    let due = parts.ops.accept_gone(job).await?;
    Ok(Json(Gone { gone_guard: parts.ops.gone_guard(&job.name).await?, job: name, due }))
}

/// Hold back a job's removals for another hour
#[utoipa::path(
    post,
    path = "/jobs/{job}/gone/hold",
    tag = "changes",
    params(("job" = String, Path, description = "The job's name")),
    responses((status = 200, body = Gone))
)]
pub(super) async fn hold_gone(
    fleet: Fleet,
    Named(name): Named,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Gone>, Problem> {
    let parts = &fleet.parts;
    let job = guarded(parts, &name)?;
    if !parts.ops.hold_gone(job).await? {
        return Err(Problem::new(StatusCode::CONFLICT, format!("no removals of the job `{name}` are held back")));
    }
    Ok(Json(Gone { gone_guard: parts.ops.gone_guard(&job.name).await?, job: name, due: 0 }))
}
