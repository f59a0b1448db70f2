//! What a job's feed named last: kept for when it does not answer, and to know an entry that is about to expire.
//!
//! A hash of buckets, each a JSON array of entry keys: a name costs hardly more than its letters, and one bucket tells whether
//! an entry is named.

use std::collections::{BTreeMap, HashSet};

use redis::RedisResult;
use twox_hash::XxHash3_64;

use crate::job::{EntryKey, Job, Params};
use crate::redis::{Connection, Keys};
use crate::store::compact;

/// Buckets of a job; of a million entries each holds 500.
const BUCKETS: u64 = 2_048;
/// Buckets written or read by one command.
const BATCH: usize = 32;

/// The bucket that an entry is in, if it is named: a field of [`Keys::feed`].
pub(crate) fn bucket(key: &EntryKey) -> String {
    compact(XxHash3_64::oneshot(key.as_str().as_bytes()) % BUCKETS)
}

/// Whether a bucket names an entry.
pub(crate) fn names(bucket: &str, key: &EntryKey) -> bool {
    read(bucket).iter().any(|name| name == key.as_str())
}

fn read(bucket: &str) -> Vec<String> {
    serde_json::from_str(bucket).unwrap_or_default()
}

/// Remembers what a feed named, in the place of what it named before; in steps, each of which holds by itself.
///
/// # Errors
/// Redis's; what was written before is remembered.
pub(crate) async fn remember(redis: &mut Connection, keys: &Keys, job: &Job, named: &[Params]) -> RedisResult<()> {
    let mut buckets: BTreeMap<String, Vec<EntryKey>> = BTreeMap::new();
    for key in named.iter().filter_map(|params| job.key.write(params)) {
        buckets.entry(bucket(&key)).or_default().push(key);
    }
    let feed = keys.feed(&job.name);
    let before: HashSet<String> = redis::cmd("HKEYS").arg(&feed).query_async(redis).await?;
    let gone: Vec<&String> = before.iter().filter(|bucket| !buckets.contains_key(*bucket)).collect();
    if !gone.is_empty() {
        redis::cmd("HDEL").arg(&feed).arg(gone).exec_async(redis).await?;
    }
    let buckets: Vec<_> = buckets.into_iter().collect();
    for batch in buckets.chunks(BATCH) {
        let mut set = redis::cmd("HSET");
        set.arg(&feed);
        for (bucket, keys) in batch {
            let names: HashSet<&str> = keys.iter().map(EntryKey::as_str).collect();
            set.arg(bucket).arg(serde_json::to_string(&names).unwrap_or_default());
        }
        set.exec_async(redis).await?;
    }
    Ok(())
}

/// The entries that a job's feed named last, read in steps.
///
/// # Errors
/// Redis's.
pub(crate) async fn named_last(redis: &mut Connection, keys: &Keys, job: &Job) -> RedisResult<Vec<Params>> {
    let feed = keys.feed(&job.name);
    let buckets: Vec<String> = redis::cmd("HKEYS").arg(&feed).query_async(redis).await?;
    let mut named = Vec::new();
    for batch in buckets.chunks(BATCH) {
        let read_now: Vec<Option<String>> = redis::cmd("HMGET").arg(&feed).arg(batch).query_async(redis).await?;
        let names = read_now.iter().flatten().flat_map(|bucket| read(bucket));
        named.extend(names.filter_map(|name| job.key.read(&name)));
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_names_what_is_in_it_and_nothing_else() {
        let bucket = r#"["art:\"Göl\"","art:Kuğu"]"#;
        for (key, named) in [("art:Kuğu", true), ("art:\"Göl\"", true), ("Göl", false), ("art:Kuğ", false), ("", false)]
        {
            assert_eq!(names(bucket, &EntryKey::new(key)), named, "{key}");
        }
        assert!(!names("garbage", &EntryKey::new("art:Kuğu")));
    }
}
