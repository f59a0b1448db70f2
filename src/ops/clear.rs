//! Clearing: evicts all entries that match.

use std::fmt;

use redis::RedisResult;

use super::Ops;
use crate::cache::KNOWN_PREFIXES;
use crate::job::KnownJobs;
use crate::protocol::{Action, Message};
use crate::protocol::{glob, inbox};
use crate::redis::Scan;
use crate::trigger::Invalidator;

/// A pattern of keys to clear: a glob as Redis matches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Returns the pattern that matches every key.
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// Reads a glob.
    ///
    /// # Errors
    /// The glob is empty or too long.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the pattern is empty; `*` matches everything".to_owned());
        }
        inbox::check_pattern(text)?;
        Ok(Self(text.to_owned()))
    }

    /// Returns the literal beginning of every matching key.
    fn literal(&self) -> &str {
        glob::literal(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns `true` if a key of one of these jobs may match a glob.
pub(super) fn may_match(jobs: &KnownJobs, glob: &str) -> bool {
    jobs.jobs.values().any(|job| job.key.may_match(glob))
}

/// Returns `true` if a key of the library's caches may match a glob that begins so.
fn may_match_library(literal: &str) -> bool {
    KNOWN_PREFIXES
        .iter()
        .map(|prefix| format!("{prefix}:"))
        .any(|prefix| prefix.starts_with(literal) || literal.starts_with(&prefix))
}

impl Ops {
    /// Returns `true` if a key of a job or of the library's caches may match.
    pub fn may_clear(&self, pattern: &Pattern) -> bool {
        may_match(&self.jobs, &pattern.0) || may_match_library(pattern.literal())
    }

    /// Evicts what matches: entries of jobs, and keys of the library's caches; never Samovar's own or foreign keys.
    /// Fetches in flight are dropped, and due entries leave the agenda until the next warmup or demand. Returns the
    /// number of removed keys.
    ///
    /// # Errors
    /// Fails if Redis returns an error; some keys may be removed, and clearing again does no harm.
    pub async fn clear(&self, invalidator: &Invalidator, pattern: &Pattern) -> RedisResult<u64> {
        // First removes entries from the agenda, so that no fetch starts. Then evicts, with a later time, all values
        // and fetches in flight. Then removes what fetches in flight put on the agenda in between.
        self.forget(pattern).await?;
        let at = self.store.now().await?;
        let patterns = vec![pattern.0.clone()];
        let message = Message { patterns, action: Action::Evict, ..Message::default() };
        let evicted = invalidator.handle(&message, at).await?.removed;
        self.forget(pattern).await?;
        Ok(evicted + self.clear_library(pattern).await?)
    }

    /// Removes what matches from all agendas.
    async fn forget(&self, pattern: &Pattern) -> RedisResult<()> {
        for job in self.jobs.jobs.keys() {
            self.agenda.remove_matching(job, &pattern.0).await?;
        }
        Ok(())
    }

    async fn clear_library(&self, pattern: &Pattern) -> RedisResult<u64> {
        let mut deleted = 0;
        if !may_match_library(pattern.literal()) {
            return Ok(deleted);
        }
        // Besides the jobs' entries, the keys of the library's caches.
        let prefixes = KNOWN_PREFIXES.map(|prefix| format!("{prefix}:"));
        let mut redis = self.redis.clone();
        let ours = |key: &str| {
            prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
                && !self.keys.is_own(key)
                && self.jobs.owner(key).is_none()
        };
        let mut scan = Scan::new(pattern.0.as_str());
        while let Some(found) = scan.next(&mut redis).await? {
            // One command for each key, so that each stays in one slot.
            let mut pipe = redis::pipe();
            for key in found.iter().filter(|key| ours(key)) {
                pipe.cmd("UNLINK").arg(key);
            }
            if !pipe.is_empty() {
                let went: Vec<u64> = pipe.query_async(&mut redis).await?;
                deleted += went.iter().sum::<u64>();
            }
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_neither_empty_nor_endless() {
        assert!(Pattern::parse("").is_err());
        assert!(Pattern::parse(&"*".repeat(inbox::LONGEST_PATTERN + 1)).is_err());
        assert!(Pattern::parse(&"*".repeat(inbox::LONGEST_PATTERN)).is_ok());
        assert_eq!(Pattern::parse("*").unwrap(), Pattern::all());
        assert_eq!(Pattern::parse("art:[a-z]*").unwrap().literal(), "art:");
    }
}
