//! Names that people give to commands: which of them no job knows, and which keys look like patterns.

use redis::RedisResult;

use super::{Ops, Pattern};
use crate::entry::EntryKey;
use crate::job::{Job, Jobs, Params};
use crate::protocol::Message;

/// Returns the names in a message that match no job, each with its kind. A tag counts as known if any job has tags.
pub fn unknown_names(jobs: &Jobs, message: &Message) -> Vec<String> {
    let Message { keys, patterns, tags, jobs: names, .. } = message;
    let is_owned = |key: &&String| jobs.owner(key).is_some();
    let may_match = |glob: &&String| {
        let literal = Pattern::literal_of(glob);
        let prefixes = jobs.jobs.values().map(|job| job.key.literal_prefix());
        prefixes.into_iter().any(|prefix| prefix.starts_with(literal) || literal.starts_with(prefix))
    };
    let has_tags = jobs.jobs.values().any(|job| !job.tags.is_empty());
    let named = |kind: &'static str| move |name: &String| format!("{kind} `{name}`");
    let keys = keys.iter().filter(|key| !is_owned(key)).map(named("the key"));
    let patterns = patterns.iter().filter(|glob| !may_match(glob)).map(named("the pattern"));
    let tags = tags.iter().filter(|_| !has_tags).map(named("the tag"));
    let names = names.iter().filter(|name| !jobs.jobs.contains_key(name.as_str())).map(named("the job"));
    keys.chain(patterns).chain(tags).chain(names).collect()
}

/// Returns `true` if a key contains `*`, `?` or `[…]`, which mean something in a pattern and nothing in a key.
fn looks_like_a_pattern(key: &str) -> bool {
    key.contains(['*', '?']) || key.split_once('[').is_some_and(|(_, after)| after.contains(']'))
}

impl Ops {
    /// Returns `true` if a key looks like a pattern and no entry has it: none is listed, on the agenda or in Redis.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn is_mistaken_pattern(&self, job: &Job, key: &EntryKey, params: &Params) -> RedisResult<bool> {
        if !looks_like_a_pattern(key.as_str()) || job.entries.lists(params) {
            return Ok(false);
        }
        let on_agenda = self.agenda.dues(&job.name, std::slice::from_ref(key)).await?.iter().any(Option::is_some);
        Ok(!on_agenda && !self.store.snapshot(key).await?.has_value())
    }
}
