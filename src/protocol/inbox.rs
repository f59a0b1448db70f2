//! Putting messages into the inbox, which is bounded and says what was lost.

use std::collections::HashSet;
use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{RedisResult, Script};

use super::Keys;

/// Messages kept that nobody has handled: only a fleet that is away for long loses any, the oldest first.
pub const LONGEST: usize = 1_000_000;
/// The longest message that workers read, in bytes.
pub const LARGEST: usize = 1 << 20;
/// The longest key of an entry, in bytes: a key names one page or one query, and URLs are not longer. A longer one is
/// no job's.
pub use crate::entry::LONGEST_KEY;
/// Keys in one message at most: each is a script or two.
pub const MOST_KEYS: usize = 10_000;
/// The longest pattern that is followed, in bytes: while Redis matches it with some hundred keys, which takes longer the longer it
/// is, nobody else is served.
pub const LONGEST_PATTERN: usize = 256;
/// Patterns in one message at most: for each, all keys are scanned twice.
pub const MOST_PATTERNS: usize = 64;
/// The longest tag, in bytes.
pub const LONGEST_TAG: usize = 512;
/// Tags in one message at most: each is stamped and looked up by itself.
pub const MOST_TAGS: usize = 1_000;
/// The longest name of a job, in bytes: the longest name of a file.
pub const LONGEST_JOB: usize = 255;
/// Jobs in one message at most: for each, all keys are scanned twice.
pub const MOST_JOBS: usize = 64;
/// Messages lost at once, where there are too many.
const TRIMMED: usize = 1_000;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/publish.lua")));

/// Whether a pattern is short enough to be followed.
///
/// # Errors
/// It is longer than [`LONGEST_PATTERN`]; the text says what to do.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    match pattern.len() {
        ..=LONGEST_PATTERN => Ok(()),
        long => Err(format!(
            "a pattern of {long} bytes is longer than {LONGEST_PATTERN}, and would hold up Redis: shorten it (`*` stands for any text), \
             or name keys, a tag or a job"
        )),
    }
}

/// Whether a message is short enough to be read.
///
/// # Errors
/// It is longer than [`LARGEST`]; the text says what to do.
pub fn check_size(bytes: usize) -> Result<(), String> {
    match bytes {
        ..=LARGEST => Ok(()),
        long => Err(format!("a message of {long} bytes is longer than {LARGEST}: name a pattern, or publish several")),
    }
}

/// The lists of a message, which whoever publishes it and whoever reads it judge alike.
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
    /// Drops what is named twice, and sees that the rest can be followed; `only_keys` where nothing else may be named.
    ///
    /// # Errors
    /// It names nothing, too much, or what cannot be; the text says what to do.
    pub fn check(self, only_keys: bool) -> Result<(), String> {
        let Self { keys, patterns, tags, jobs } = self;
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
        if only_keys && !no_more {
            return Err("`warm` takes keys only: what is absent matches no pattern".to_owned());
        }
        if tags.iter().any(String::is_empty) {
            return Err("a tag is empty".to_owned());
        }
        Ok(())
    }
}

/// Puts a message (JSON, docs/protocol.md) into the inbox; returns its id.
///
/// # Errors
/// The message is longer than [`LARGEST`]; or Redis's: then it is unknown whether the message is there. Publishing it again does
/// no harm.
pub async fn publish(redis: &mut impl ConnectionLike, keys: &Keys, message: &str) -> RedisResult<String> {
    check_size(message.len()).map_err(|text| std::io::Error::new(std::io::ErrorKind::InvalidInput, text))?;
    bounded(redis, keys, message, LONGEST).await
}

/// Sees that the inbox is no longer than `longest`; what it loses it leaves a note of in the stream.
///
/// # Errors
/// Redis's.
pub async fn bound(redis: &mut impl ConnectionLike, keys: &Keys, longest: usize) -> RedisResult<()> {
    bounded(redis, keys, "", longest).await.map(|_| ())
}

async fn bounded(redis: &mut impl ConnectionLike, keys: &Keys, text: &str, longest: usize) -> RedisResult<String> {
    let mut call = PUBLISH.key(keys.inbox());
    call.arg(text).arg(longest).arg(TRIMMED);
    call.invoke_async(redis).await
}
