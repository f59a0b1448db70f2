//! Old values: how long one stays readable while its source fails, and the tags of a new or kept one.

use redis::RedisResult;
use serde_json::{Map, Value};
use tracing::debug;

use super::attempt::Ending;
use super::freshness::retry_after;
use super::{Running, Warmer};
use crate::agenda::Next;
use crate::entry::EntryKey;
use crate::entry::Outcome;
use crate::entry::duration;
use crate::job::{Job, Params};
use crate::protocol::inbox::LONGEST_TAG;
use crate::source::context;
use crate::store::LastAttempt;

impl Warmer {
    /// Keeps the old value of an entry that could not be fetched until the next try, as long as its job allows.
    pub(super) async fn keep_stale(&self, job: &Job, entry: &Running, mut ending: Ending) -> Ending {
        if job.warm.stale_if_error.is_zero() || !matches!(ending.outcome, Outcome::Failed | Outcome::Deferred) {
            return ending;
        }
        let wait = match &ending.next {
            Next::In(wait) => *wait,
            Next::Dead(_) => retry_after(ending.failures),
            _ => return ending,
        };
        // By then the next try has an answer, or has come here again.
        let time = wait + self.admission_wait + self.lease_time(job);
        match self.store.extend_stale(&entry.key, time, job.warm.stale_if_error).await {
            Ok(Some(extended)) if extended.expires > extended.ends => {
                let longer = extended.expires.saturating_since(extended.ends);
                let reason = ending.reason.take().unwrap_or_default();
                let longer = duration::seconds(longer);
                ending.reason = Some(format!("{reason}; the old value outlives its TTL, by {longer} so far"));
                let may_go_on = extended.ends + job.warm.stale_if_error > extended.expires;
                if matches!(ending.next, Next::Dead(_)) && may_go_on {
                    // An entry is given up only when its old value is no longer served.
                    ending.next = Next::In(wait);
                }
            }
            Ok(_) => {}
            Err(e) => debug!(key = %entry.key, "the old value could not be kept beyond its TTL: {e}"),
        }
        ending
    }

    /// Returns the tags of a value that is kept, or the reason why they cannot be rendered; `before` is what the
    /// metadata noted of it. A value that AI made is kept although the job's tags or the inputs in them may have
    /// changed, so its tags are rendered again. A 304 counts only for the same job file and the same inputs.
    pub(super) async fn tags_kept(
        &self,
        job: &Job,
        key: &EntryKey,
        params: &Params,
        inputs: &Map<String, Value>,
        before: Option<&LastAttempt>,
    ) -> RedisResult<Result<Vec<String>, String>> {
        if job.may_hold_unasked() {
            if job.tags.is_empty() {
                return Ok(Ok(Vec::new()));
            }
            let text = self.store.values(std::slice::from_ref(key)).await?.pop().flatten();
            if let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
                return Ok(tags(job, params, inputs, || value));
            }
            // The value has gone meanwhile, so the commit will not keep it.
        }
        Ok(Ok(before.map(|last_attempt| last_attempt.tags.clone()).unwrap_or_default()))
    }
}

/// Returns the tags of a value, each once, or the reason why they cannot be rendered.
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
