//! Sets of entries in Redis: a hash of buckets, each a JSON array of entry keys.
//!
//! This is compact, and one bucket shows whether the set has an entry. A set is written in steps under another name and
//! then takes its place at once, so readers see all of the previous set or all of the new one.

use std::borrow::Cow;
use std::time::Duration;

use redis::RedisResult;
use tracing::warn;
use twox_hash::XxHash3_64;

use crate::entry::{EntryKey, KeySet, compact};
use crate::redis::Connection;

/// Buckets of a set; with a million entries each holds 500.
const BUCKETS: u64 = 2_048;
/// Buckets written or read by one command.
const BATCH: usize = 32;
/// The TTL of an unfinished set.
const UNFINISHED: Duration = Duration::from_secs(600);
/// The field that tells what the set was made from. Names of buckets are shorter.
const MADE_FROM: &str = "digest";

/// Returns the bucket of an entry: a field of the hash.
pub(crate) fn bucket(key: &EntryKey) -> String {
    compact(number(key.as_str()).into())
}

fn number(key: &str) -> u16 {
    (XxHash3_64::oneshot(key.as_bytes()) % BUCKETS) as u16
}

/// Returns `true` if a bucket names an entry.
pub(crate) fn names(bucket: &[u8], key: &EntryKey) -> bool {
    serde_json::from_slice::<Vec<Cow<'_, str>>>(bucket).is_ok_and(|names| names.iter().any(|name| name == key.as_str()))
}

/// Replaces a set atomically, and notes what it was made from.
///
/// # Errors
/// Fails if Redis returns an error; the previous set then stays.
pub(crate) async fn write(
    redis: &mut Connection,
    set: &str,
    entries: &KeySet,
    made_from: Option<&str>,
) -> RedisResult<()> {
    if entries.is_empty() {
        return redis::cmd("UNLINK").arg(set).exec_async(redis).await;
    }
    let unfinished = format!("{set}:{}", ulid::Ulid::generate());
    // The numbers of buckets and entries, instead of their texts: a million of them take 8 MB.
    let mut order: Vec<(u16, u32)> = (0..).zip(entries.iter()).map(|(entry, key)| (number(key), entry)).collect();
    order.sort_unstable();
    let buckets: Vec<&[(u16, u32)]> = order.chunk_by(|(one, _), (other, _)| one == other).collect();
    for batch in buckets.chunks(BATCH) {
        // In one step, so that an interrupted write expires.
        let mut pipe = redis::pipe();
        let fields = pipe.atomic().cmd("HSET").arg(&unfinished);
        for bucket in batch {
            let names: Vec<&str> = bucket.iter().filter_map(|(_, entry)| entries.get(*entry as usize)).collect();
            fields.arg(compact(bucket[0].0.into())).arg(serde_json::to_string(&names).unwrap_or_default());
        }
        pipe.cmd("EXPIRE").arg(&unfinished).arg(UNFINISHED.as_secs());
        pipe.exec_async(redis).await?;
    }
    let mut finish = redis::pipe();
    finish.atomic();
    if let Some(made_from) = made_from {
        finish.cmd("HSET").arg(&unfinished).arg(MADE_FROM).arg(made_from);
    }
    finish.cmd("RENAME").arg(&unfinished).arg(set).cmd("PERSIST").arg(set);
    finish.exec_async(redis).await
}

/// Returns what each of these sets was made from; `None` for one that there is not.
///
/// # Errors
/// Fails if Redis cannot be asked; a set of a wrong type has an error of its own.
pub(crate) async fn made_from(
    redis: &mut Connection,
    sets: &[String],
) -> RedisResult<Vec<RedisResult<Option<Vec<u8>>>>> {
    let mut ask = redis::pipe();
    for set in sets {
        ask.cmd("HGET").arg(set).arg(MADE_FROM);
    }
    ask.ignore_errors().query_async(redis).await
}

/// A set that is read in steps. Parts that are no lists of names are left out, with a warning.
#[derive(Debug)]
pub(crate) struct Reader {
    set: String,
    /// Its buckets that are not read yet.
    buckets: Vec<Vec<u8>>,
}

impl Reader {
    /// Begins to read a set.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn begin(redis: &mut Connection, set: impl Into<String>) -> RedisResult<Self> {
        let set = set.into();
        let mut buckets: Vec<Vec<u8>> = redis::cmd("HKEYS").arg(&set).query_async(redis).await?;
        buckets.retain(|bucket| bucket != MADE_FROM.as_bytes());
        Ok(Self { set, buckets })
    }

    /// Returns the entries of the next buckets; `None` at the end.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn next(&mut self, redis: &mut Connection) -> RedisResult<Option<Vec<String>>> {
        if self.buckets.is_empty() {
            return Ok(None);
        }
        let Self { set, buckets } = self;
        let batch = buckets.split_off(buckets.len().saturating_sub(BATCH));
        let texts: Vec<Option<Vec<u8>>> = redis::cmd("HMGET").arg(&*set).arg(batch).query_async(redis).await?;
        let mut entries = Vec::new();
        for text in texts.into_iter().flatten() {
            match serde_json::from_slice::<Vec<String>>(&text) {
                Ok(names) => entries.extend(names),
                Err(e) => warn!(key = set, "a part of a stored list of entries is no list of names; ignoring it: {e}"),
            }
        }
        Ok(Some(entries))
    }
}

/// Returns the entries of a set for which `is_entry` is true, as a [`Reader`] reads them.
///
/// # Errors
/// Fails if Redis returns an error.
pub(crate) async fn read(redis: &mut Connection, set: &str, is_entry: impl Fn(&str) -> bool) -> RedisResult<KeySet> {
    let (mut reader, mut entries) = (Reader::begin(redis, set).await?, KeySet::default());
    while let Some(names) = reader.next(redis).await? {
        entries.extend(names.into_iter().filter(|name| is_entry(name)));
    }
    Ok(entries)
}

/// Returns the command that asks for the bucket of an entry, for a pipeline of the caller; [`names`] reads the reply.
pub(crate) fn ask(set: &str, key: &EntryKey) -> redis::Cmd {
    let mut ask = redis::cmd("HGET");
    ask.arg(set).arg(bucket(key));
    ask
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
