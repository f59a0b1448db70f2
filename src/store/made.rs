//! What is made from an entry, where keys do not tell.
//!
//! An input whose key says less than that of what is made from it is an input of many. Which, is remembered beside the input, in
//! a sorted set that is kept as tags are: put there before the inputs are read, dropped when what was made is dead.

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

    /// Some of what is remembered to be made from an entry, and the cursor for more; it begins and ends with 0.
    ///
    /// # Errors
    /// Redis's.
    pub async fn made_from(&self, input: &EntryKey, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        self.members(&self.keys.made_from(input), cursor).await
    }
}
