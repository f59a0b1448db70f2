//! Names that people and programs give: which of them no job knows, and which keys look like patterns.

use std::fmt;

use redis::RedisResult;

use super::clear::may_match;
use super::{Ops, PAGE};
use crate::entry::EntryKey;
use crate::job::{KnownJob, KnownJobs, Params};
use crate::popularity::buckets;
use crate::protocol::Message;

/// The most names that an error shows.
const SHOWN: usize = 5;

/// A key with its job and the values of its placeholders.
type Named<'a> = (&'a KnownJob, EntryKey, Params);

/// A mistake in the names of a message. Most likely they are misspelt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Names that match no job, each with its kind.
    Unknown(Vec<String>),
    /// Names of renamed jobs, each with its kind: no running worker knows them, and other jobs have their keys.
    Renamed(Vec<String>),
    /// A key that looks like a pattern, and that no entry has.
    Pattern(String),
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(names) => {
                let verb = if names.len() == 1 { "matches" } else { "match" };
                write!(f, "{} {verb} no job", some(names))
            }
            Self::Renamed(names) => write!(f, "no running worker knows {}", some(names)),
            Self::Pattern(key) => write!(f, "`{key}` is a literal key, and no entry has it"),
        }
    }
}

/// Returns the first of these names, and the number of the others.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Returns the patterns, tags and jobs in a message that match no job, each with its kind. A tag counts as known if any
/// job has tags.
fn unknown_names(jobs: &KnownJobs, message: &Message) -> Vec<String> {
    let Message { patterns, tags, jobs: names, .. } = message;
    let has_tags = jobs.jobs.values().any(|job| job.tags);
    let named = |kind: &'static str| move |name: &String| format!("{kind} `{name}`");
    let patterns = patterns.iter().filter(|glob| !may_match(jobs, glob)).map(named("the pattern"));
    let tags = tags.iter().filter(|_| !has_tags).map(named("the tag"));
    let names = names.iter().filter(|name| !jobs.jobs.contains_key(name.as_str())).map(named("the job"));
    patterns.chain(tags).chain(names).collect()
}

/// Returns `true` if a key contains `*` or `[…]`, which mean something in a pattern and nothing in a key. A `?` alone
/// is no sign of a pattern: titles end with it.
fn looks_like_a_pattern(key: &str) -> bool {
    key.contains('*') || key.split_once('[').is_some_and(|(_, after)| after.contains(']'))
}

impl Ops {
    /// Returns the mistake in the names of a message, if there is one.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn mistake_in(&self, message: &Message) -> RedisResult<Option<Mistake>> {
        let unknown = self.unknown_names(message).await?;
        if !unknown.is_empty() {
            return Ok(Some(Mistake::Unknown(unknown)));
        }
        if !message.jobs.is_empty() {
            // One without an heir was removed, or its workers are only restarting: they handle the message then.
            let left = self.left_jobs().await?;
            let renamed = |name: &String| {
                let job = self.jobs.jobs.get(name.as_str()).filter(|job| left.contains(&job.name))?;
                Some(format!("the job `{name}`, which was renamed to `{}`", self.jobs.heir(job, &left)?))
            };
            let renamed: Vec<String> = message.jobs.iter().filter_map(renamed).collect();
            if !renamed.is_empty() {
                return Ok(Some(Mistake::Renamed(renamed)));
            }
        }
        let named = |key: &String| self.jobs.owner(key).map(|(job, params)| (&**job, EntryKey::new(&**key), params));
        let named: Vec<Named<'_>> =
            message.keys.iter().filter(|key| looks_like_a_pattern(key)).filter_map(named).collect();
        for page in named.chunks(PAGE) {
            if let Some(key) = self.first_without_entry(page).await? {
                return Ok(Some(Mistake::Pattern(key.to_string())));
            }
        }
        Ok(None)
    }

    /// Returns the names in a message that match no job, each with its kind. A key of no job is known if it has
    /// Samovar's metadata or a lease: a service loads it with the library, or an earlier job owned it.
    async fn unknown_names(&self, message: &Message) -> RedisResult<Vec<String>> {
        let foreign = message.keys.iter().filter(|key| self.jobs.owner(key).is_none());
        let foreign: Vec<EntryKey> = foreign.map(|key| EntryKey::new(key.as_str())).collect();
        let mut unknown = Vec::new();
        for page in foreign.chunks(PAGE) {
            let snapshots = self.store.snapshots(page).await?;
            let leased = self.store.leased(page).await?;
            let found = page.iter().zip(snapshots).zip(leased);
            let absent = found.filter(|((_, snapshot), leased)| snapshot.meta.is_none() && !leased);
            unknown.extend(absent.map(|((key, _), _)| format!("the key `{key}`")));
        }
        unknown.extend(unknown_names(&self.jobs, message));
        Ok(unknown)
    }

    /// Returns `true` if a key looks like a pattern and no entry has it: none is listed, on the agenda or in Redis.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn is_mistaken_pattern(&self, job: &KnownJob, key: &EntryKey, params: &Params) -> RedisResult<bool> {
        if !looks_like_a_pattern(key.as_str()) {
            return Ok(false);
        }
        Ok(self.first_without_entry(&[(job, key.clone(), params.clone())]).await?.is_some())
    }

    /// Returns the first of these keys that no entry has: none is listed, on the agenda or in Redis. It takes two round
    /// trips.
    async fn first_without_entry(&self, named: &[Named<'_>]) -> RedisResult<Option<EntryKey>> {
        let keys: Vec<EntryKey> = named.iter().map(|(_, key, _)| key.clone()).collect();
        let snapshots = self.store.snapshots(&keys).await?;
        let absent = named.iter().zip(snapshots).filter(|(_, snapshot)| !snapshot.has_value());
        let absent: Vec<&Named<'_>> = absent.map(|(named, _)| named).collect();
        if absent.is_empty() {
            return Ok(None);
        }
        let mut ask = redis::pipe();
        for (job, key, _) in &absent {
            ask.add_command(self.agenda.ask_score(&job.name, key));
            ask.add_command(buckets::ask(&self.keys.list(&job.name), key));
        }
        let replies: Vec<redis::Value> = ask.query_async(&mut self.redis.clone()).await?;
        for ((job, key, params), replies) in absent.into_iter().zip(replies.chunks_exact(2)) {
            let score: Option<f64> = redis::from_redis_value_ref(&replies[0])?;
            let listed: Option<Vec<u8>> = redis::from_redis_value_ref(&replies[1])?;
            let is_listed = match &job.file {
                Some(file) => file.entries.lists(params),
                None => listed.is_some_and(|listed| buckets::names(&listed, key)),
            };
            if score.is_none() && !is_listed {
                return Ok(Some(key.clone()));
            }
        }
        Ok(None)
    }
}
