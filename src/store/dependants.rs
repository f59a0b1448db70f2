//! Dependants: entries that are made from an input, and whose keys cannot be derived from the input's key.
//!
//! A sorted set beside the input holds them. It is maintained like the index of a tag: an entry is added before its
//! inputs are read, and dropped when it is dead.

use std::time::Duration;

use redis::RedisResult;

use super::Store;
use crate::entry::EntryKey;

impl Store {
    /// Adds an entry to the dependants of these inputs, for `life`.
    ///
    /// # Errors
    /// Redis's.
    pub async fn add_dependant(&self, key: &EntryKey, inputs: &[EntryKey], life: Duration) -> RedisResult<()> {
        let sets: Vec<String> = inputs.iter().map(|input| self.keys.made_from(input)).collect();
        self.put_into(&sets, key, life).await.map(|_| ())
    }

    /// Returns the next cursor and some of the dependants of an input; the cursor begins and ends with 0.
    ///
    /// # Errors
    /// Redis's.
    pub async fn dependants(&self, input: &EntryKey, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        self.members(&self.keys.made_from(input), cursor).await
    }
}
