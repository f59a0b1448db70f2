//! The last answer of a job's feed: used when the feed does not answer, and to decide on an entry that is about to
//! expire.
//!
//! A hash of buckets, each a JSON array of entry keys: compact, and one bucket shows whether the feed named an entry.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use redis::RedisResult;
use tracing::warn;
use twox_hash::XxHash3_64;

use crate::entry::EntryKey;
use crate::entry::compact;
use crate::job::{Job, Params};
use crate::protocol::Keys;
use crate::redis::Connection;

/// Buckets of a job; with a million entries each holds 500.
const BUCKETS: u64 = 2_048;
/// Buckets written or read by one command.
const BATCH: usize = 32;
/// The TTL of an unfinished list.
const UNFINISHED: Duration = Duration::from_secs(600);

/// Returns the bucket of an entry: a field of [`Keys::feed`].
pub(super) fn bucket(key: &EntryKey) -> String {
    compact(XxHash3_64::oneshot(key.as_str().as_bytes()) % BUCKETS)
}

/// Returns `true` if a bucket names an entry.
pub(super) fn names(bucket: &[u8], key: &EntryKey) -> bool {
    serde_json::from_slice::<Vec<Cow<'_, str>>>(bucket).is_ok_and(|names| names.iter().any(|name| name == key.as_str()))
}

/// Replaces the stored answer of a feed atomically.
///
/// # Errors
/// Fails if Redis returns an error; the previous answer then stays.
pub(crate) async fn remember(redis: &mut Connection, keys: &Keys, job: &Job, named: &[Params]) -> RedisResult<()> {
    let mut buckets: BTreeMap<String, HashSet<EntryKey>> = BTreeMap::new();
    for key in named.iter().filter_map(|params| job.key.write(params)) {
        buckets.entry(bucket(&key)).or_default().insert(key);
    }
    let feed = keys.feed(&job.name);
    if buckets.is_empty() {
        return forget(redis, keys, job).await;
    }
    let unfinished = format!("{feed}:{}", ulid::Ulid::generate());
    let buckets: Vec<_> = buckets.into_iter().collect();
    for batch in buckets.chunks(BATCH) {
        // In one step, so that an interrupted write expires.
        let mut pipe = redis::pipe();
        let set = pipe.atomic().cmd("HSET").arg(&unfinished);
        for (bucket, keys) in batch {
            let names: Vec<&str> = keys.iter().map(EntryKey::as_str).collect();
            set.arg(bucket).arg(serde_json::to_string(&names).unwrap_or_default());
        }
        pipe.cmd("EXPIRE").arg(&unfinished).arg(UNFINISHED.as_secs());
        pipe.exec_async(redis).await?;
    }
    let mut finish = redis::pipe();
    finish.atomic().cmd("RENAME").arg(&unfinished).arg(&feed).cmd("PERSIST").arg(&feed);
    finish.exec_async(redis).await
}

/// Removes the stored answer: the feed is empty, or the job no longer has one.
///
/// # Errors
/// Fails if Redis returns an error.
pub(crate) async fn forget(redis: &mut Connection, keys: &Keys, job: &Job) -> RedisResult<()> {
    redis::cmd("UNLINK").arg(keys.feed(&job.name)).exec_async(redis).await
}

/// Returns the entries of a feed's last answer, read in steps.
///
/// # Errors
/// Fails if Redis returns an error.
pub(crate) async fn named_last(redis: &mut Connection, keys: &Keys, job: &Job) -> RedisResult<Vec<Params>> {
    let feed = keys.feed(&job.name);
    let buckets: Vec<Vec<u8>> = redis::cmd("HKEYS").arg(&feed).query_async(redis).await?;
    let mut named = Vec::new();
    for batch in buckets.chunks(BATCH) {
        let texts: Vec<Option<Vec<u8>>> = redis::cmd("HMGET").arg(&feed).arg(batch).query_async(redis).await?;
        for text in texts.into_iter().flatten() {
            match serde_json::from_slice::<Vec<Cow<'_, str>>>(&text) {
                Ok(names) => named.extend(names.iter().filter_map(|name| job.key.read(name))),
                Err(e) => {
                    warn!(key = feed, "a part of the feed's stored answer is not a list of names; ignoring it: {e}")
                }
            }
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_names_what_is_in_it_and_nothing_else() {
        let bucket = r#"["art:\"Göl\"","art:Kuğu"]"#.as_bytes();
        for (key, named) in [("art:Kuğu", true), ("art:\"Göl\"", true), ("Göl", false), ("art:Kuğ", false), ("", false)]
        {
            assert_eq!(names(bucket, &EntryKey::new(key)), named, "{key}");
        }
        for garbage in [&b"garbage"[..], b"[\"\xff\"]", b""] {
            assert!(!names(garbage, &EntryKey::new("art:Kuğu")));
        }
    }
}
