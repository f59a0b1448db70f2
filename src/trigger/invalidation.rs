//! Invalidations: what a message says, and what is done for it.
//!
//! Every invalidation has a time S, and touches only what was fetched at or before it; so handling one twice, late, or by
//! every worker does no harm. The order is entry first, then agenda, then acknowledge: a crash in between only repeats.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::RedisResult;
use serde::{Deserialize, Serialize};

use crate::agenda::{Agenda, Trigger, When};
use crate::job::{EntryKey, Job, JobName, Jobs};
use crate::redis::{Connection, Keys};
use crate::store::{Removal, Store};

/// Longest message read, in bytes.
const LONGEST: usize = 1 << 20;
/// Keys that Redis looks at in one step of a scan.
const STEP: usize = 500;
/// Entries whose scripts are under way at once.
const ABREAST: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Fetch anew; the old value is served until the new one lands.
    #[default]
    Refresh,
    /// Remove at once; the entry comes back with the next warmup or demand.
    Evict,
    /// Fetch if absent.
    Warm,
}

/// An invalidation, as in docs/protocol.md.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Literal keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Globs, as Redis matches them; they touch only keys of jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
    /// Tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Whole jobs, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<String>,
    /// What is asked for.
    #[serde(default)]
    pub action: Action,
}

/// Why a message cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Message {
    /// Reads a message: a JSON object, or else one literal key.
    ///
    /// # Errors
    /// It is empty, too long, or an object that says nothing we know.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > LONGEST {
            return Err(Malformed(format!(
                "{} bytes are more than {LONGEST}: name a pattern or send several",
                text.len()
            )));
        }
        if text.trim().is_empty() {
            return Err(Malformed("it is empty: name a key".to_owned()));
        }
        // A key may begin with a brace; what does not read as JSON is one.
        if text.trim_start().starts_with('{')
            && let Ok(object) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
        {
            let message: Self = serde_json::from_value(object.into()).map_err(|e| Malformed(e.to_string()))?;
            return message.checked();
        }
        Ok(Self { keys: vec![text.to_owned()], ..Self::default() })
    }

    /// The message, if it asks for something that can be done.
    ///
    /// # Errors
    /// It does not.
    pub fn checked(self) -> Result<Self, Malformed> {
        if self.keys.is_empty() && self.patterns.is_empty() && self.tags.is_empty() && self.jobs.is_empty() {
            return Err(Malformed("it names nothing: give keys, patterns, tags or jobs".to_owned()));
        }
        if self.action == Action::Warm && !(self.patterns.is_empty() && self.tags.is_empty() && self.jobs.is_empty()) {
            return Err(Malformed("`warm` takes keys only: what is absent matches no pattern".to_owned()));
        }
        if !self.tags.is_empty() {
            return Err(Malformed("tags cannot be invalidated yet: name keys, patterns or jobs".to_owned()));
        }
        Ok(self)
    }
}

/// What an invalidation touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Entries of jobs that were looked at.
    pub entries: u64,
    /// Of these, to be fetched anew.
    pub due: u64,
    /// Values removed.
    pub removed: u64,
    /// Fetches in flight that were fenced.
    pub fenced: u64,
    /// Keys that belong to no job.
    pub foreign: u64,
}

/// Does what invalidations ask for.
#[derive(Clone, Debug)]
pub struct Invalidator {
    redis: Connection,
    keys: Keys,
    jobs: Arc<Jobs>,
    store: Store,
    agenda: Agenda,
}

impl Invalidator {
    /// Over these jobs.
    pub fn new(redis: Connection, keys: Keys, jobs: Arc<Jobs>, store: Store, agenda: Agenda) -> Self {
        Self { redis, keys, jobs, store, agenda }
    }

    /// Redis's clock, ms: the time of a message that brings none.
    ///
    /// # Errors
    /// Redis's.
    pub async fn now(&self) -> RedisResult<i64> {
        self.store.now().await
    }

    /// Handles a message whose time is `at` (Redis time, ms).
    ///
    /// # Errors
    /// Redis's; handle it again.
    pub async fn handle(&self, message: &Message, at: i64) -> RedisResult<Handled> {
        let mut handled = Handled::default();
        let mut named = Vec::new();
        for key in &message.keys {
            match self.jobs.owner(key) {
                Some((job, _)) => named.push((Arc::clone(job), EntryKey::new(key.as_str()))),
                None => handled.foreign += 1,
            }
        }
        self.entries(&named, message.action, at, &mut handled).await?;
        for pattern in &message.patterns {
            self.matching(pattern, None, message.action, at, &mut handled).await?;
        }
        for name in &message.jobs {
            match self.jobs.jobs.get(name.as_str()) {
                Some(job) => self.matching(&job.key.glob(), Some(job), message.action, at, &mut handled).await?,
                None => handled.foreign += 1,
            }
        }
        Ok(handled)
    }

    /// Handles entries whose keys match a glob. Leases are scanned to the end first, then values: a key that is being
    /// born has a lease before it has a value, so the other way round could miss it.
    async fn matching(
        &self,
        glob: &str,
        only: Option<&Arc<Job>>,
        action: Action,
        at: i64,
        handled: &mut Handled,
    ) -> RedisResult<()> {
        for leases in [true, false] {
            let match_glob = if leases { self.keys.lease_glob(glob) } else { glob.to_owned() };
            let mut cursor = 0_u64;
            loop {
                let (next, found): (u64, Vec<redis::Value>) = redis::cmd("SCAN")
                    .arg(cursor)
                    .arg("MATCH")
                    .arg(&match_glob)
                    .arg("COUNT")
                    .arg(STEP)
                    .query_async(&mut self.redis.clone())
                    .await?;
                let mut named = Vec::new();
                for found in found {
                    // A key that is not text is nobody's entry.
                    let Ok(found) = redis::from_redis_value::<String>(found) else { continue };
                    let key = if leases { self.keys.entry_of_lease(&found) } else { Some(found.as_str()) };
                    let Some(key) = key.filter(|key| !self.keys.is_own(key)) else { continue };
                    let owner = match only {
                        Some(job) => job.key.read(key).map(|_| job),
                        None => self.jobs.owner(key).map(|(job, _)| job),
                    };
                    if let Some(job) = owner {
                        named.push((Arc::clone(job), EntryKey::new(key)));
                    }
                }
                self.entries(&named, action, at, handled).await?;
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Entry scripts first, then the agenda.
    async fn entries(
        &self,
        named: &[(Arc<Job>, EntryKey)],
        action: Action,
        at: i64,
        handled: &mut Handled,
    ) -> RedisResult<()> {
        let mut due: BTreeMap<&JobName, Vec<EntryKey>> = BTreeMap::new();
        let mut out: BTreeMap<&JobName, Vec<EntryKey>> = BTreeMap::new();
        for batch in named.chunks(ABREAST) {
            handled.entries += batch.len() as u64;
            let removal = match action {
                Action::Refresh => Removal::Refresh,
                Action::Evict => Removal::Evict,
                Action::Warm => {
                    for (job, key) in batch {
                        due.entry(&job.name).or_default().push(key.clone());
                    }
                    continue;
                }
            };
            let scripts = batch.iter().map(|(_, key)| self.store.invalidate(key, at, removal));
            let results = futures_util::future::try_join_all(scripts).await?;
            for ((job, key), result) in batch.iter().zip(results) {
                handled.fenced += u64::from(result.fenced);
                handled.removed += u64::from(result.removed);
                let lists = || job.key.read(key.as_str()).is_some_and(|params| job.entries.lists(&params));
                let onto = match removal {
                    // A fenced fetch is begun anew by its own worker.
                    Removal::Refresh if result.fenced => continue,
                    Removal::Refresh if result.due || (result.unknown && lists()) => &mut due,
                    Removal::Evict if result.removed || result.fenced => &mut out,
                    Removal::Refresh | Removal::Evict => continue,
                };
                onto.entry(&job.name).or_default().push(key.clone());
            }
        }
        let trigger = if action == Action::Warm { Trigger::Demand } else { Trigger::Invalidation };
        for (job, entries) in due {
            handled.due += entries.len() as u64;
            self.agenda.put(job, &entries, When::Urgent, trigger).await?;
        }
        for (job, entries) in out {
            self.agenda.cancel(job, &entries, at).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_one_literal_key() {
        for key in ["artwork_info:Mona Lisa", "a:[x]?*", "{not json", "{\"keys\": broken", "\"quoted\"", "[1]"] {
            let message = Message::parse(key).unwrap();
            assert_eq!(message, Message { keys: vec![key.to_owned()], ..Message::default() });
        }
    }

    #[test]
    fn an_object_says_more() {
        let message = Message::parse(r#" {"keys": ["a:1"], "patterns": ["a:*"], "action": "evict"}"#).unwrap();
        assert_eq!(message.action, Action::Evict);
        assert_eq!(message.patterns, ["a:*"]);
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("  ", "empty"),
            ("{}", "names nothing"),
            (r#"{"keys": "a:1"}"#, "sequence"),
            (r#"{"keys": ["a:1"], "action": "explode"}"#, "explode"),
            (r#"{"key": ["a:1"]}"#, "unknown field"),
            (r#"{"patterns": ["a:*"], "action": "warm"}"#, "keys only"),
        ] {
            let Malformed(said) = Message::parse(text).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
