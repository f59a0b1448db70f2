//! The filter of events.

use std::fmt;
use std::sync::Arc;

use crate::job::KnownJobs;
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
        self.globs.is_empty() || self.globs.iter().any(|glob| matches(glob, key))
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

/// Returns `false` if no key matches both globs, by the characters before their first special ones.
fn may_meet(one: &str, other: &str) -> bool {
    let literal = |glob: &str| glob.split(['*', '?', '[', '\\']).next().unwrap_or_default().to_owned();
    let (one, other) = (literal(one), literal(other));
    one.starts_with(&other) || other.starts_with(&one)
}

/// Returns `true` if a glob in Redis's syntax matches a text: `*`, `?`, `[ab]`, `[a-z]`, `[^a]`, and `\` before a
/// literal character.
fn matches(glob: &str, text: &str) -> bool {
    let glob: Vec<char> = glob.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut g, mut t) = (0, 0);
    // The position of the last star, and the end of the text that it matches.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if glob.get(g) == Some(&'*') {
            star = Some((g, t));
            g += 1;
            continue;
        }
        if let Some(width) = one(&glob[g.min(glob.len())..], text[t]) {
            g += width;
            t += 1;
            continue;
        }
        let Some((at, eaten)) = star else { return false };
        star = Some((at, eaten + 1));
        (g, t) = (at + 1, eaten + 1);
    }
    glob[g.min(glob.len())..].iter().all(|&c| c == '*')
}

/// Returns the length of the first element of a glob, if it matches the character.
fn one(glob: &[char], c: char) -> Option<usize> {
    match *glob.first()? {
        '?' => Some(1),
        '\\' if glob.len() > 1 => (glob[1] == c).then_some(2),
        '[' => {
            let negated = glob.get(1) == Some(&'^');
            let mut at = if negated { 2 } else { 1 };
            let mut found = false;
            while at < glob.len() && glob[at] != ']' {
                if glob[at] == '\\' && at + 1 < glob.len() {
                    found |= glob[at + 1] == c;
                    at += 2;
                } else if at + 2 < glob.len() && glob[at + 1] == '-' {
                    let (low, high) = (glob[at].min(glob[at + 2]), glob[at].max(glob[at + 2]));
                    found |= (low..=high).contains(&c);
                    at += 3;
                } else {
                    found |= glob[at] == c;
                    at += 1;
                }
            }
            (found != negated).then_some((at + 1).min(glob.len()))
        }
        literal => (literal == c).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_match_as_redis_has_them() {
        for (glob, text, is) in [
            ("*", "", true),
            ("art:*", "art:Mona Lisa", true),
            ("art:*", "story:Mona Lisa", false),
            ("*Lisa", "art:Mona Lisa", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2b3", false),
            ("art:?", "art:ş", true),
            ("art:?", "art:", false),
            ("art:[ab]", "art:b", true),
            ("art:[^ab]", "art:b", false),
            ("art:[a-f]x", "art:cx", true),
            ("art:[a-f]x", "art:gx", false),
            ("art:\\*", "art:*", true),
            ("art:\\*", "art:x", false),
            ("art:[\\]]", "art:]", true),
            ("", "", true),
            ("", "a", false),
            ("[", "a", false),
            ("art", "art:1", false),
        ] {
            assert_eq!(matches(glob, text), is, "{glob} {text}");
        }
    }

    #[test]
    fn globs_with_other_beginnings_never_meet() {
        for (one, other, may) in [("art:*", "art:M*", true), ("art:*", "story:*", false), ("art:*", "*", true)] {
            assert_eq!((may_meet(one, other), may_meet(other, one)), (may, may), "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn globs_that_one_key_matches_may_meet(one in "[*?\\[\\]\\\\^a-b]{0,6}", other in "[*?a-b]{0,4}", key in "[a-b]{0,5}") {
            prop_assert!(may_meet(&one, &other) || !matches(&one, &key) || !matches(&other, &key));
        }

        #[test]
        fn any_glob_ends(glob in "[*?\\[\\]\\\\^a-c-]{0,12}", text in "[a-c]{0,30}") {
            let _ = matches(&glob, &text);
        }

        #[test]
        fn a_text_matches_itself_between_stars(text in "[a-z:]{0,20}") {
            let (glob, around) = (format!("*{text}*"), format!("xx{text}yy"));
            prop_assert!(matches(&glob, &around));
            prop_assert!(matches(&text, &text));
        }
    }
}
