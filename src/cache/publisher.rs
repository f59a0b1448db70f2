//! Publishing invalidations.

use std::sync::Arc;

use serde::Serialize;

use super::link::Link;
use super::{Cache, Error};
use crate::protocol::inbox;

/// An invalidation: the names of stale values, and the action. Its format is in `docs/protocol.md`.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Option<u64>>,
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
    /// Refreshes these literal keys; their old values are served until then.
    pub fn keys<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self { keys: keys.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Refreshes keys of jobs that match a glob.
    pub fn pattern(glob: impl Into<String>) -> Self {
        Self::default().and_pattern(glob)
    }

    /// Refreshes entries with a tag.
    pub fn tag(tag: impl Into<String>) -> Self {
        Self::default().and_tag(tag)
    }

    /// Refreshes all entries of a job.
    pub fn job(name: impl Into<String>) -> Self {
        Self::default().and_job(name)
    }

    /// Fetches these keys if they are missing.
    pub fn warm<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self { action: Action::Warm, ..Self::keys(keys) }
    }

    /// Adds keys of jobs that match a glob.
    pub fn and_pattern(mut self, glob: impl Into<String>) -> Self {
        self.patterns.push(glob.into());
        self
    }

    /// Adds entries with a tag.
    pub fn and_tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Adds all entries of a job.
    pub fn and_job(mut self, name: impl Into<String>) -> Self {
        self.jobs.push(name.into());
        self
    }

    /// Removes the old values at once; they return with the next warmup or demand.
    pub fn evict(mut self) -> Self {
        self.action = Action::Evict;
        self
    }

    /// Announces the version that the keys have now. A value of this version or a higher one is left alone, and a lower
    /// one is not taken for the answer. The keys' jobs must have a `version`. A time counts as nanoseconds since the
    /// epoch.
    pub fn version(mut self, version: u64) -> Self {
        self.version = Some(Some(version));
        self
    }

    /// Lets a lower version replace the present one, as after a backup was restored.
    pub fn any_version(mut self) -> Self {
        self.version = Some(None);
        self
    }

    fn checked(&self) -> Result<String, Error> {
        let mut message = self.clone();
        let Self { keys, patterns, tags, jobs, action, version } = &mut message;
        let only_keys = inbox::only_keys(*action == Action::Warm, version.is_some()).map_err(Error::Invalid)?;
        inbox::Lists { keys, patterns, tags, jobs }.check(only_keys).map_err(Error::Invalid)?;
        let text = serde_json::to_string(&message).map_err(|source| Error::Encode { key: String::new(), source })?;
        inbox::check_size(text.len()).map_err(Error::Invalid).map(|()| text)
    }
}

/// Publishes invalidations to the inbox, where they are stored until a worker handles them.
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
    /// Creates a publisher over the cache's connection. The cache's prefix does not apply.
    pub fn new(cache: &Cache) -> Self {
        Self { link: Arc::clone(cache.link()) }
    }

    /// Publishes an invalidation and returns its id in the inbox. From then on it survives the death of any worker.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it names nothing, or more or longer names than `docs/protocol.md` allows.
    /// [`Error::Unavailable`] or [`Error::Redis`]: the message may be in the inbox, and publishing it again does no
    /// harm.
    pub async fn publish(&self, invalidation: &Invalidation) -> Result<String, Error> {
        let message = invalidation.checked()?;
        self.link
            .at(&self.link.names.inbox())
            .ask(async |mut redis| inbox::publish(&mut redis, &self.link.names, &message).await)
            .await
    }
}

#[cfg(all(test, feature = "worker"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Message;

    /// Names around a bound, some of them twice; how many are around another.
    fn names(longest: usize, most: usize) -> impl Strategy<Value = Vec<String>> {
        let length = prop_oneof![4 => 0..9_usize, 1 => longest - 1..longest + 2];
        let count = prop_oneof![6 => 0..3_usize, 1 => most - 1..most + 2];
        (length, count, 1..3_usize).prop_map(|(length, count, times)| {
            let one = move |n: usize| if length == 0 { String::new() } else { format!("{n:x<length$}") };
            (0..count * times).map(|n| one(n % count)).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn who_publishes_and_who_reads_judge_a_message_alike(
            keys in names(inbox::LONGEST_KEY, inbox::MOST_KEYS),
            patterns in names(inbox::LONGEST_PATTERN, inbox::MOST_PATTERNS),
            tags in names(inbox::LONGEST_TAG, inbox::MOST_TAGS),
            jobs in names(inbox::LONGEST_JOB, inbox::MOST_JOBS),
            warm in any::<bool>(),
            version in any::<Option<Option<u64>>>(),
        ) {
            let action = if warm { Action::Warm } else { Action::Refresh };
            let ours = Invalidation { keys, patterns, tags, jobs, action, version };
            let published = ours.checked().map_err(|e| e.to_string());
            let text = serde_json::to_string(&ours).unwrap();
            let read = Message::parse(&text);
            if text.len() <= inbox::LARGEST {
                prop_assert_eq!(published.is_ok(), read.is_ok(), "{:?} {:?}", &published, &read);
            }
            if let Ok(text) = published {
                let read = Message::parse(&text);
                prop_assert!(read.is_ok(), "{:?}", read);
                let read = read.unwrap();
                prop_assert_eq!(read.text().unwrap(), text, "nothing in it is dropped any more");
                prop_assert!(read.keys.len() <= inbox::MOST_KEYS && read.patterns.len() <= inbox::MOST_PATTERNS);
                prop_assert!(read.tags.len() <= inbox::MOST_TAGS && read.jobs.len() <= inbox::MOST_JOBS);
                prop_assert!(read.keys.iter().all(|key| key.len() <= inbox::LONGEST_KEY));
            }
        }
    }
}
