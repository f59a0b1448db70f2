//! The tags of a value: rendered for a new one, taken over or rendered again for a kept one.

use redis::RedisResult;
use serde_json::{Map, Value};

use super::Warmer;
use crate::entry::EntryKey;
use crate::job::{Job, Params};
use crate::protocol::inbox::LONGEST_TAG;
use crate::source::context;
use crate::store::Note;

impl Warmer {
    /// Returns the tags of a value that is kept, or the reason why they cannot be rendered; `before` is what the
    /// metadata noted of it. A value that AI made is kept although the job's tags or the inputs in them may have
    /// changed, so its tags are rendered again. A 304 counts only for the same job file and the same inputs.
    pub(super) async fn tags_kept(
        &self,
        job: &Job,
        key: &EntryKey,
        params: &Params,
        inputs: &Map<String, Value>,
        before: Option<&Note>,
    ) -> RedisResult<Result<Vec<String>, String>> {
        if job.may_hold_unasked() {
            if job.tags.is_empty() {
                return Ok(Ok(Vec::new()));
            }
            let text = self.store.values(std::slice::from_ref(key)).await?.pop().flatten();
            if let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
                return Ok(render_tags(job, params, inputs, || value));
            }
            // The value has gone meanwhile, so the commit will not keep it.
        }
        Ok(Ok(before.map(|note| note.tags.clone()).unwrap_or_default()))
    }
}

/// Returns the tags of a value, each once, or the reason why they cannot be rendered.
pub(super) fn render_tags(
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
