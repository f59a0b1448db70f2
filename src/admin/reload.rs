//! Reloading the job files.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::Admin;
use super::extract::{Asked, Nothing};
use super::problem::Problem;

/// The reloaded jobs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Taken {
    /// The jobs, in the order of their names.
    jobs: Vec<String>,
}

/// Reload this worker's job files; refused as a whole if any has a fault
#[utoipa::path(
    post,
    path = "/reload",
    tag = "changes",
    responses((status = 202, body = Taken, description = "The files are valid, and will be in use within seconds"))
)]
pub(super) async fn reload(
    State(admin): State<Arc<Admin>>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<(StatusCode, Json<Taken>), Problem> {
    let jobs = admin.reload.read().map_err(|faults| {
        let faults: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
        let detail = "the job files have faults, so nothing was changed; `samovar check` shows the remedies";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("faults", faults)
    })?;
    admin.reload.ask();
    Ok((StatusCode::ACCEPTED, Json(Taken { jobs: jobs.jobs.keys().map(ToString::to_string).collect() })))
}
