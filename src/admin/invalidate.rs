//! Invalidations, through the inbox, where they cannot be lost.

use axum::Json;
use axum::http::StatusCode;
use serde::Serialize;

use super::extract::{Fleet, Text};
use super::problem::Problem;
use crate::protocol::Message;
use crate::trigger::invalidation::inbox;

/// An invalidation, as docs/protocol.md has it. At least one of the first four names something.
#[derive(utoipa::ToSchema)]
#[schema(as = Invalidation)]
#[expect(dead_code, reason = "it documents what `Message` reads")]
pub(super) struct Invalidation {
    /// Literal keys, of 2048 bytes at most.
    #[schema(required = false, max_items = 10_000)]
    keys: Vec<String>,
    /// Globs as Redis's `KEYS` has them, of 256 bytes at most; they touch only keys of jobs.
    #[schema(required = false, max_items = 64)]
    patterns: Vec<String>,
    /// Tags, as the jobs' files give them, of 512 bytes at most.
    #[schema(required = false, max_items = 1_000)]
    tags: Vec<String>,
    /// Jobs by name, with all their entries.
    #[schema(required = false, max_items = 64)]
    jobs: Vec<String>,
    /// `refresh` where absent; `evict`, `warm`.
    #[schema(required = false, pattern = "^(refresh|evict|warm)$")]
    action: String,
}

/// Where it was put.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Published {
    /// The message's id in the inbox; its time is the invalidation's.
    id: String,
    /// Workers that live; with none, it waits until there is one.
    workers: usize,
}

/// Say that values are no longer true
#[utoipa::path(
    post,
    path = "/invalidate",
    tag = "changes",
    request_body = Invalidation,
    responses((status = 202, body = Published))
)]
pub(super) async fn invalidate(fleet: Fleet, Text(text): Text) -> Result<(StatusCode, Json<Published>), Problem> {
    let parts = &fleet.parts;
    let message = read(&text)?;
    message.text().map_err(|e| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, e))?;
    let id = inbox::publish(&mut parts.ops.redis.clone(), &parts.ops.keys, &message).await?;
    let workers = parts.workers.load(std::sync::atomic::Ordering::Relaxed);
    Ok((StatusCode::ACCEPTED, Json(Published { id, workers })))
}

fn read(text: &str) -> Result<Message, Problem> {
    // On a channel, text is a key; here it is a mistake.
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("no JSON object: {e}")))?;
    serde_json::from_value::<Message>(object.into())
        .map_err(|e| e.to_string())
        .and_then(|message| message.checked().map_err(|e| e.to_string()))
        .map_err(|e| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, e))
}
