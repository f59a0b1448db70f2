//! Old values: how long one lives on while its source fails, and which tags one has that is new or kept.

use std::time::Duration;

use redis::RedisResult;
use serde_json::{Map, Value};
use tracing::debug;

use super::freshness::{millis, retry_after};
use super::{Ending, Taken, Warmer};
use crate::agenda::Next;
use crate::entry::EntryKey;
use crate::entry::Outcome;
use crate::job::{Job, Params, Source};
use crate::protocol::inbox::LONGEST_TAG;
use crate::source::context;
use crate::store::Note;

impl Warmer {
    /// Lets the old value of an entry that could not be fetched live on until it is tried again, as long as its job allows.
    pub(super) async fn keep_old(&self, job: &Job, taken: &Taken, mut ending: Ending) -> Ending {
        if job.warm.stale_if_error.is_zero() || !matches!(ending.outcome, Outcome::Failed | Outcome::Deferred) {
            return ending;
        }
        let wait = match &ending.next {
            Next::In(wait) => *wait,
            Next::Dead(_) => retry_after(ending.failures),
            _ => return ending,
        };
        // Until then it has waited for its upstream and got an answer, or has come here again.
        let time = wait + self.patience + self.lease_time(job);
        match self.store.extend_stale(&taken.key, time, job.warm.stale_if_error).await {
            Ok(Some(lives)) if lives.expires > lives.ends => {
                let longer = Duration::from_millis(u64::try_from(lives.expires - lives.ends).unwrap_or(0));
                let reason = ending.reason.take().unwrap_or_default();
                let longer = humantime::format_duration(Duration::from_secs(longer.as_secs()));
                ending.reason = Some(format!("{reason}; the old value outlives its TTL, by {longer} so far"));
                if matches!(ending.next, Next::Dead(_)) && lives.ends + millis(job.warm.stale_if_error) > lives.expires
                {
                    // Given up is what nobody is served any more.
                    ending.next = Next::In(wait);
                }
            }
            Ok(_) => {}
            Err(e) => debug!(key = %taken.key, "could not let the old value live on: {e}"),
        }
        ending
    }

    /// The tags of a value that is kept as it is, of which `before` is known. What AI made is kept although its job's tags, or
    /// what they say of its inputs, may be others by now; a 304 counts only for the same file and the same inputs.
    pub(super) async fn tags_kept(
        &self,
        job: &Job,
        key: &EntryKey,
        params: &Params,
        inputs: &Map<String, Value>,
        before: Option<&Note>,
    ) -> RedisResult<Result<Vec<String>, String>> {
        if matches!(job.sources[0], Source::Ai(_)) {
            if job.tags.is_empty() {
                return Ok(Ok(Vec::new()));
            }
            let text = self.store.values(std::slice::from_ref(key)).await?.pop().flatten();
            if let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
                return Ok(tags(job, params, inputs, || value));
            }
            // It went meanwhile, so it is not kept, either.
        }
        Ok(Ok(before.map(|note| note.tags.clone()).unwrap_or_default()))
    }
}

/// The tags of a value, each once.
pub(super) fn tags(
    job: &Job,
    params: &Params,
    inputs: &Map<String, Value>,
    value: impl FnOnce() -> Value,
) -> Result<Vec<String>, String> {
    if job.tags.is_empty() {
        return Ok(Vec::new());
    }
    let context = context(params, inputs, Some(value()));
    let mut tags = Vec::new();
    for template in &job.tags {
        let tag = template.render(&context).map_err(|e| format!("the tag `{}`: {e}", template.source()))?;
        let tag = tag.trim();
        if tag.len() > LONGEST_TAG {
            return Err(format!("the tag `{}` is longer than {LONGEST_TAG} bytes", template.source()));
        }
        if !tag.is_empty() && !tags.iter().any(|known| known == tag) {
            tags.push(tag.to_owned());
        }
    }
    Ok(tags)
}
