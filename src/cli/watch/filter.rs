//! The filter of events.

use std::fmt;
use std::sync::Arc;

use crate::job::KnownJobs;
use crate::protocol::glob;
use crate::telemetry::{Event, Invalidation, WorkerReport};

/// The jobs and keys to show; empty for all.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    only: Vec<String>,
    globs: Vec<String>,
    jobs: Arc<KnownJobs>,
}

impl Filter {
    pub(super) fn new(only: Vec<String>, globs: Vec<String>, jobs: &Arc<KnownJobs>) -> Self {
        Self { only, globs, jobs: Arc::clone(jobs) }
    }

    /// Returns `true` if a job is shown.
    pub(super) fn job(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Drops the events that do not match.
    pub(super) fn retain(&self, report: &mut WorkerReport) {
        report.events.retain(|event| match event {
            Event::Ended(ended) => self.job(&ended.job) && self.key(&ended.key),
            Event::Invalidation(invalidation) => self.invalidation(invalidation),
        });
    }

    fn key(&self, key: &str) -> bool {
        self.globs.is_empty() || self.globs.iter().any(|glob| glob::matches(glob, key))
    }

    /// Tags may name any key, and a long message shows only some of its keys.
    fn invalidation(&self, invalidation: &Invalidation) -> bool {
        let Invalidation { keys, patterns, tags, jobs, .. } = invalidation;
        let owned = |key: &String| self.jobs.owner(key).is_some_and(|(job, _)| self.job(job.name.as_str()));
        let shown = |key: &String| self.key(key) && (self.only.is_empty() || owned(key));
        let all = self.only.is_empty() && self.globs.is_empty();
        let meets = |pattern: &String| self.globs.is_empty() || self.globs.iter().any(|glob| may_meet(glob, pattern));
        all || patterns.iter().any(meets)
            || !tags.is_empty()
            || keys.iter().any(shown)
            || jobs.iter().any(|name| self.job(name))
            || invalidation.entries > keys.len() as u64
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.only.iter().chain(&self.globs).map(String::as_str).collect();
        f.write_str(&words.join(", "))
    }
}

/// Returns `false` if no key matches both globs, by the literal beginnings of these keys.
fn may_meet(one: &str, other: &str) -> bool {
    let (one, other) = (glob::literal(one), glob::literal(other));
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_with_other_beginnings_never_meet() {
        for (one, other, may) in [("art:*", "art:M*", true), ("art:*", "story:*", false), ("art:*", "*", true)] {
            assert_eq!((may_meet(one, other), may_meet(other, one)), (may, may), "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn globs_that_one_key_matches_may_meet(
            one in "[*?\\[\\]\\\\^a-b]{0,6}", other in "[*?a-b]{0,4}", key in "[a-b]{0,5}"
        ) {
            prop_assert!(may_meet(&one, &other) || !glob::matches(&one, &key) || !glob::matches(&other, &key));
        }
    }
}
