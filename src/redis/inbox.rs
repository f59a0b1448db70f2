//! Putting messages into the inbox, which is bounded and says what was lost.

use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{RedisResult, Script};

use super::Keys;

/// Messages kept that nobody has handled: only a fleet that is away for long loses any, the oldest first.
pub const LONGEST: usize = 1_000_000;
/// The longest message that workers read, in bytes.
pub const LARGEST: usize = 1 << 20;
/// The longest pattern that is followed, in bytes: while Redis matches it with some hundred keys, which takes longer the longer it
/// is, nobody else is served.
pub const LONGEST_PATTERN: usize = 256;
/// Patterns in one message at most: for each, all keys are scanned twice.
pub const MOST_PATTERNS: usize = 64;
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

/// The same for the patterns of a message, of which there may be [`MOST_PATTERNS`].
///
/// # Errors
/// One is too long, or there are too many.
pub fn check_patterns(patterns: &[String]) -> Result<(), String> {
    if patterns.len() > MOST_PATTERNS {
        return Err(format!(
            "{} patterns are more than {MOST_PATTERNS}: name keys, a tag or a job, or publish several messages",
            patterns.len()
        ));
    }
    patterns.iter().try_for_each(|pattern| check_pattern(pattern))
}

/// Puts a message (JSON, docs/protocol.md) into the inbox; returns its id.
///
/// # Errors
/// The message is longer than [`LARGEST`]; or Redis's: then it is unknown whether the message is there. Publishing it again does
/// no harm.
pub async fn publish(redis: &mut impl ConnectionLike, keys: &Keys, message: &str) -> RedisResult<String> {
    if message.len() > LARGEST {
        let text = format!(
            "a message of {} bytes is longer than {LARGEST}: name a pattern, or publish several",
            message.len()
        );
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text).into());
    }
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
