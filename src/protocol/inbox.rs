//! Publishing to the inbox: a bounded stream that records what it dropped.

use std::collections::HashSet;
use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{RedisResult, Script};

use super::Keys;

/// The most unhandled messages that are kept. Beyond that the oldest are dropped.
pub const LONGEST: usize = 1_000_000;
/// The longest message that workers accept, in bytes.
pub const LARGEST: usize = 1 << 20;
/// The longest key of an entry, in bytes. A longer key belongs to no job.
pub use crate::entry::LONGEST_KEY;
/// The most keys in one message: each costs one or two script calls.
pub const MOST_KEYS: usize = 10_000;
/// The longest pattern, in bytes: matching blocks Redis for longer the longer the pattern is.
pub const LONGEST_PATTERN: usize = 256;
/// The most patterns in one message: each costs two scans of all keys.
pub const MOST_PATTERNS: usize = 64;
/// The longest tag, in bytes.
pub const LONGEST_TAG: usize = 512;
/// The most tags in one message: each is stamped and looked up separately.
pub const MOST_TAGS: usize = 1_000;
/// The longest name of a job, in bytes: the limit of file names.
pub const LONGEST_JOB: usize = 255;
/// The most jobs in one message: each costs two scans of all keys.
pub const MOST_JOBS: usize = 64;
/// Messages that are dropped at once when the inbox is full.
const TRIMMED: usize = 1_000;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/publish.lua")));

/// Checks the length of a pattern.
///
/// # Errors
/// The pattern is longer than [`LONGEST_PATTERN`]; the text tells the remedy.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    match pattern.len() {
        ..=LONGEST_PATTERN => Ok(()),
        long => Err(format!(
            "a pattern of {long} bytes is longer than {LONGEST_PATTERN}, and would hold up Redis: shorten it (`*` stands for \
             any text), or name keys, a tag or a job"
        )),
    }
}

/// Checks the length of a message.
///
/// # Errors
/// The message is longer than [`LARGEST`]; the text tells the remedy.
pub fn check_size(bytes: usize) -> Result<(), String> {
    match bytes {
        ..=LARGEST => Ok(()),
        long => Err(format!("a message of {long} bytes is longer than {LARGEST}: name a pattern, or publish several")),
    }
}

/// The lists of a message. Publishers and workers apply the same checks.
#[derive(Debug)]
pub struct Lists<'a> {
    /// Literal keys.
    pub keys: &'a mut Vec<String>,
    /// Globs.
    pub patterns: &'a mut Vec<String>,
    /// Tags.
    pub tags: &'a mut Vec<String>,
    /// Jobs by name.
    pub jobs: &'a mut Vec<String>,
}

impl Lists<'_> {
    /// Removes duplicates, and spaces around tags, and checks the lists. `only_keys` is the reason why the message may
    /// name only keys, if it may.
    ///
    /// # Errors
    /// The message names nothing, too much, or something invalid; the text tells the remedy.
    pub fn check(self, only_keys: Option<&str>) -> Result<(), String> {
        let Self { keys, patterns, tags, jobs } = self;
        // Those of a value are kept without them, since a template may leave some.
        for tag in tags.iter_mut().filter(|tag| tag.trim().len() < tag.len()) {
            *tag = tag.trim().to_owned();
        }
        let bounds = [
            (&mut *keys, "key", MOST_KEYS, LONGEST_KEY, "name a pattern, a tag or a job, or publish several messages"),
            (
                &mut *patterns,
                "pattern",
                MOST_PATTERNS,
                usize::MAX,
                "name keys, a tag or a job, or publish several messages",
            ),
            (&mut *tags, "tag", MOST_TAGS, LONGEST_TAG, "name a job, or publish several messages"),
            (&mut *jobs, "job", MOST_JOBS, LONGEST_JOB, "publish several messages"),
        ];
        for (list, what, most, longest, remedy) in bounds {
            let mut seen = HashSet::new();
            list.retain(|name| seen.insert(name.clone()));
            if list.len() > most {
                return Err(format!("{} {what}s are more than {most}: {remedy}", list.len()));
            }
            if let Some(long) = list.iter().map(String::len).find(|length| *length > longest) {
                return Err(format!("a {what} of {long} bytes is longer than {longest}: no entry has such a {what}"));
            }
        }
        patterns.iter().try_for_each(|pattern| check_pattern(pattern))?;
        let no_more = patterns.is_empty() && tags.is_empty() && jobs.is_empty();
        if keys.is_empty() && no_more {
            return Err("it names nothing: give keys, patterns, tags or jobs".to_owned());
        }
        if let Some(reason) = only_keys.filter(|_| !no_more) {
            return Err(reason.to_owned());
        }
        if tags.iter().any(String::is_empty) {
            return Err("a tag is empty".to_owned());
        }
        Ok(())
    }
}

/// Returns why a message may name only keys, by whether it is a `warm` and has a version.
///
/// # Errors
/// It is both; the text tells the remedy.
pub fn only_keys(warm: bool, version: bool) -> Result<Option<&'static str>, String> {
    match (warm, version) {
        (true, true) => Err("`warm` takes no version: it fetches only what is absent".to_owned()),
        (true, false) => Ok(Some("`warm` takes keys only: what is absent matches no pattern")),
        (false, true) => {
            Ok(Some("`version` takes keys only: entries of a pattern, tag or job have versions of their own"))
        }
        (false, false) => Ok(None),
    }
}

/// Adds a message (JSON, docs/protocol.md) to the inbox and returns its id.
///
/// # Errors
/// Fails if the message is longer than [`LARGEST`] or Redis returns an error. In the second case the message may be in
/// the inbox; publishing it again does no harm.
pub async fn publish(redis: &mut impl ConnectionLike, keys: &Keys, message: &str) -> RedisResult<String> {
    check_size(message.len()).map_err(|text| std::io::Error::new(std::io::ErrorKind::InvalidInput, text))?;
    bounded(redis, keys, message, LONGEST).await
}

/// Trims the inbox to `longest` messages. A gap record in the stream tells how many were dropped.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn bound(redis: &mut impl ConnectionLike, keys: &Keys, longest: usize) -> RedisResult<()> {
    bounded(redis, keys, "", longest).await.map(|_| ())
}

async fn bounded(redis: &mut impl ConnectionLike, keys: &Keys, text: &str, longest: usize) -> RedisResult<String> {
    let mut call = PUBLISH.key(keys.inbox());
    call.arg(text).arg(longest).arg(TRIMMED);
    call.invoke_async(redis).await
}
