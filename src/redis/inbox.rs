//! Putting messages into the inbox, which is bounded and says what was lost.

use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{RedisResult, Script};

use super::Keys;

/// Messages kept that nobody has handled: only a fleet that is away for long loses any, the oldest first.
pub const LONGEST: usize = 1_000_000;
/// The longest message that workers read, in bytes.
pub const LARGEST: usize = 1 << 20;
/// Messages lost at once, where there are too many.
const TRIMMED: usize = 1_000;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/publish.lua")));

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
