//! The inputs that keep an entry from being made. An attempt that waits for one notes nothing, so they are found when
//! someone looks.

use redis::RedisResult;
use serde::Serialize;

use super::Ops;
use crate::entry::{EntryKey, Outcome};
use crate::job::{KnownInput, KnownJob, Params};
use crate::redis::RedisTime;
use crate::store::Snapshot;
use crate::warmer::FRESH_INPUT_WAIT;

/// An input without which an entry is not made now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct MissingInput {
    /// Its key.
    pub key: String,
    /// The reason, as the rest of a sentence that begins with the input.
    pub reason: String,
}

impl Ops {
    /// Returns the inputs that keep an entry of a job from being made at `now`.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(super) async fn missing_inputs(
        &self,
        job: &KnownJob,
        params: &Params,
        now: RedisTime,
    ) -> RedisResult<Vec<MissingInput>> {
        let inputs = job.made_from.iter().filter_map(|input| Some((input, input.key.write(params)?)));
        let (inputs, keys): (Vec<&KnownInput>, Vec<EntryKey>) = inputs.unzip();
        let snapshots = self.store.snapshots(&keys).await?;
        let missing = inputs.into_iter().zip(keys).zip(snapshots).filter_map(|((input, key), snapshot)| {
            let reason = lack(job, input, &snapshot, now)?;
            Some(MissingInput { key: key.to_string(), reason })
        });
        Ok(missing.collect())
    }
}

/// Returns why an entry is not made with an input as it is at `now`.
fn lack(job: &KnownJob, input: &KnownInput, snapshot: &Snapshot, now: RedisTime) -> Option<String> {
    if snapshot.has_value() {
        let is_awaited = job.waits_for_inputs && snapshot.is_awaited(FRESH_INPUT_WAIT, now);
        return is_awaited.then(|| "was invalidated, and is not fetched again yet".to_owned());
    }
    let attempt = snapshot.meta.as_ref().map(|meta| &meta.last_attempt);
    match attempt.and_then(|attempt| attempt.outcome) {
        Some(Outcome::Gone) => (!input.is_optional).then(|| "is gone".to_owned()),
        Some(Outcome::Failed) => {
            let reason = attempt.and_then(|attempt| attempt.reason.as_deref()).unwrap_or("its fetch fails");
            Some(format!("has no value: {reason}"))
        }
        _ => Some(past(snapshot, now).to_owned()),
    }
}

/// Returns what became of the value of an input that has none at `now`.
fn past(snapshot: &Snapshot, now: RedisTime) -> &'static str {
    match snapshot.meta.as_ref().filter(|meta| meta.validated_at > RedisTime::ZERO) {
        Some(meta) if meta.own_expiry <= now => "has expired, and is not fetched again yet",
        Some(_) => "was removed, and is not fetched again yet",
        None => "has no value yet",
    }
}
