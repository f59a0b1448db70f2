//! Invalidations through the inbox, where they are stored until a worker handles them.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use redis::RedisResult;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::extract::{Asked, Fleet, Text, read_fields, read_object};
use super::problem::Problem;
use crate::ops::{DryRun, Mistake, Ops};
use crate::protocol::Message;
use crate::trigger::invalidation::inbox;

/// An invalidation, as in docs/protocol.md. At least one of the first four lists must not be empty.
#[derive(utoipa::ToSchema)]
#[schema(as = Invalidation)]
#[expect(dead_code, reason = "it documents what `Message` reads")]
pub(super) struct Invalidation {
    /// Literal keys, of at most 2048 bytes.
    #[schema(required = false, max_items = 10_000)]
    keys: Vec<String>,
    /// Globs in the syntax of Redis's `KEYS`, of at most 256 bytes; they match only keys of jobs.
    #[schema(required = false, max_items = 64)]
    patterns: Vec<String>,
    /// Tags, as the job files define them, of at most 512 bytes.
    #[schema(required = false, max_items = 1_000)]
    tags: Vec<String>,
    /// Jobs by name, with all their entries.
    #[schema(required = false, max_items = 64)]
    jobs: Vec<String>,
    /// `refresh` (default), `evict` or `warm`.
    #[schema(required = false, pattern = "^(refresh|evict|warm)$")]
    action: String,
    /// The version that the keys have now: an integer, or an RFC 3339 time; `null` lets a lower one replace it.
    #[schema(required = false, value_type = Option<u64>)]
    version: Option<u64>,
}

/// The switches of an invalidation.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct InvalidateQuery {
    /// Go on even if a name matches no job that the fleet knows, or if a key looks like a pattern and no entry has it.
    force: bool,
    /// Only count the entries, and what fetching them anew would take; publish nothing.
    dry_run: bool,
}

/// The published message.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Published {
    /// The message's id in the inbox; its time is the invalidation's.
    id: String,
    /// Live workers; without one, the message waits.
    workers: usize,
    /// The number of values under the named keys that are removed and that nothing makes anew: no job has such a key
    /// any more. Absent if there are none; patterns and tags are counted by a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    unowned: Option<usize>,
}

/// Invalidate values
#[utoipa::path(
    post,
    path = "/invalidate",
    tag = "changes",
    params(InvalidateQuery),
    request_body = Invalidation,
    responses(
        (status = 200, body = DryRun, description = "The effect; nothing is published"),
        (status = 202, body = Published)
    )
)]
pub(super) async fn invalidate(
    fleet: Fleet,
    Asked(InvalidateQuery { force, dry_run }): Asked<InvalidateQuery>,
    Text(text): Text,
) -> Result<Response, Problem> {
    let parts = &fleet.parts;
    let message = read(&text)?;
    message.text().map_err(|e| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, e))?;
    if !force {
        check_names(&parts.ops, &message).await?;
    }
    if dry_run {
        // It holds the keys in memory that the message names.
        let _turn = fleet.admin.turn().await;
        return Ok(Json(parts.ops.of_fleet().await?.dry_run(&message).await?).into_response());
    }
    // The message is sent, whether or not this can be read.
    let unowned = unowned(&parts.ops, &message).await.ok().filter(|values| *values > 0);
    let id = inbox::publish(&mut parts.ops.redis.clone(), &parts.ops.keys, &message).await?;
    let workers = parts.workers.load(std::sync::atomic::Ordering::Relaxed);
    Ok((StatusCode::ACCEPTED, Json(Published { id, workers, unowned })).into_response())
}

/// Counts the values of no job that the fleet knows, as [`Ops::unowned`] does.
async fn unowned(ops: &Ops, message: &Message) -> RedisResult<usize> {
    match ops.unowned(message).await? {
        0 => Ok(0),
        // Other workers may have other files.
        _ => ops.of_fleet().await?.unowned(message).await,
    }
}

/// Refuses names that match no job that the fleet knows, most likely because they are misspelt, and a key that looks
/// like a pattern if no entry has it.
async fn check_names(ops: &Ops, message: &Message) -> Result<(), Problem> {
    if ops.mistake_in(message).await?.is_none() {
        return Ok(());
    }
    // Other workers may have other files.
    let Some(mistake) = ops.of_fleet().await?.mistake_in(message).await? else { return Ok(()) };
    let remedy = "nothing was published; `?force=true` publishes it anyway";
    Err(match &mistake {
        Mistake::Unknown(names) => {
            let detail = format!("{mistake} that the fleet knows; {remedy}");
            Problem::new(StatusCode::NOT_FOUND, detail).with("unknown", names)
        }
        Mistake::Renamed(names) => {
            Problem::new(StatusCode::NOT_FOUND, format!("{mistake}; {remedy}")).with("unknown", names)
        }
        Mistake::Pattern(_) => {
            let detail = format!("{mistake}; name it in `patterns` to invalidate the keys that match; {remedy}");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        }
    })
}

fn read(text: &str) -> Result<Message, Problem> {
    // On the channel plain text is a key; here it is an error.
    read_object::<Map<String, Value>>(text)?;
    read_fields::<Message>(text)?.checked().map_err(|e| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, e))
}
