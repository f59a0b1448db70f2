//! Dependants: entries that are made from an input whose key does not tell them.
//!
//! An input whose key says less than its dependants' keys is an input of many. A sorted set beside the input remembers
//! them. It is kept as tags are: an entry is put there before its inputs are read, and dropped when it is dead.

use std::time::Duration;

use redis::RedisResult;

use super::Store;
use crate::entry::EntryKey;

impl Store {
    /// Remembers for `life` that an entry is made from these inputs.
    ///
    /// # Errors
    /// Redis's.
    pub async fn make_from(&self, key: &EntryKey, inputs: &[EntryKey], life: Duration) -> RedisResult<()> {
        let sets: Vec<String> = inputs.iter().map(|input| self.keys.made_from(input)).collect();
        self.put_into(&sets, key, life).await.map(|_| ())
    }

    /// Returns the next cursor and some of the entries that are made from an input; the cursor begins and ends with 0.
    ///
    /// # Errors
    /// Redis's.
    pub async fn made_from(&self, input: &EntryKey, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        self.members(&self.keys.made_from(input), cursor).await
    }
}
