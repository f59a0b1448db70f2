//! Saying that values are no longer true.

use std::sync::Arc;

use serde::Serialize;

use super::link::Link;
use super::{Cache, Error};
use crate::redis::inbox;

/// What is no longer true, and what is to be done about it: the message of `docs/protocol.md`.
///
/// ```
/// use samovar::cache::Invalidation;
///
/// let message = Invalidation::keys(["artwork_info:Mona Lisa"]).and_pattern("ai_content:*:Mona Lisa").evict();
/// # assert_eq!(serde_json::to_value(message).unwrap(), serde_json::json!({
/// #     "keys": ["artwork_info:Mona Lisa"], "patterns": ["ai_content:*:Mona Lisa"], "action": "evict" }));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[must_use = "it does nothing until it is published"]
pub struct Invalidation {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    patterns: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jobs: Vec<String>,
    action: Action,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[default]
    Refresh,
    Evict,
    Warm,
}

impl Invalidation {
    /// These literal keys are to be fetched anew; until then their old values are served.
    pub fn keys<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self { keys: keys.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The same for keys of jobs that match a glob.
    pub fn pattern(glob: impl Into<String>) -> Self {
        Self::default().and_pattern(glob)
    }

    /// The same for entries with a tag.
    pub fn tag(tag: impl Into<String>) -> Self {
        Self::default().and_tag(tag)
    }

    /// The same for all entries of a job.
    pub fn job(name: impl Into<String>) -> Self {
        Self::default().and_job(name)
    }

    /// These keys are to be fetched if they are absent.
    pub fn warm<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self { action: Action::Warm, ..Self::keys(keys) }
    }

    /// And keys of jobs that match a glob.
    pub fn and_pattern(mut self, glob: impl Into<String>) -> Self {
        self.patterns.push(glob.into());
        self
    }

    /// And entries with a tag.
    pub fn and_tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// And all entries of a job.
    pub fn and_job(mut self, name: impl Into<String>) -> Self {
        self.jobs.push(name.into());
        self
    }

    /// The old values are to go at once; they come back with the next warmup or demand.
    pub fn evict(mut self) -> Self {
        self.action = Action::Evict;
        self
    }

    fn checked(&self) -> Result<String, Error> {
        let invalid = |why: &str| Err(Error::Invalid(why.to_owned()));
        let only_keys = self.patterns.is_empty() && self.tags.is_empty() && self.jobs.is_empty();
        if self.keys.is_empty() && only_keys {
            return invalid("the invalidation names nothing: give keys, patterns, tags or jobs");
        }
        if self.tags.iter().any(String::is_empty) {
            return invalid("a tag is empty");
        }
        if self.action == Action::Warm && !only_keys {
            return invalid("`warm` takes keys only: what is absent matches no pattern");
        }
        inbox::check_patterns(&self.patterns).map_err(Error::Invalid)?;
        serde_json::to_string(self).map_err(|source| Error::Encode { key: String::new(), source })
    }
}

/// Puts invalidations into the inbox, where they wait for a worker and cannot be lost.
///
/// ```no_run
/// # async fn example(cache: samovar::cache::Cache) -> Result<(), samovar::cache::Error> {
/// use samovar::cache::{Invalidation, InvalidationPublisher};
///
/// let publisher = InvalidationPublisher::new(&cache);
/// publisher.publish(&Invalidation::keys(["artwork_info:Mona Lisa"])).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct InvalidationPublisher {
    link: Arc<Link>,
}

impl InvalidationPublisher {
    /// Over the cache's connection; the cache's prefix plays no part.
    pub fn new(cache: &Cache) -> Self {
        Self { link: Arc::clone(cache.link()) }
    }

    /// Publishes; returns the message's id in the inbox. From then on it is handled, whatever dies.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it names nothing, or has patterns of more than 256 bytes or more than 64 of them;
    /// [`Error::Unavailable`] and Redis's own: then it is unknown whether the
    /// message is there, and publishing it again does no harm.
    pub async fn publish(&self, invalidation: &Invalidation) -> Result<String, Error> {
        let message = invalidation.checked()?;
        self.link.ask(async |mut redis| inbox::publish(&mut redis, &self.link.names, &message).await).await
    }
}
