//! Clearing keys by pattern.

use redis::RedisResult;

use super::cache::DELETE;
use super::{Cache, Error};
use crate::protocol::inbox;
use crate::redis::Scan;

impl Cache {
    /// Removes the values of keys that match a glob (`*`, `?`, `[ab]`, `\` before a literal character), and returns
    /// their number. The glob applies to the part after the prefix, and nothing outside the prefix is touched.
    ///
    /// All keys that exist throughout the call are found. Loads in flight are not written afterwards.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the glob has more than 256 bytes; [`Error::Unavailable`]; [`Error::Redis`]. Some values
    /// may have been removed.
    pub async fn clear_pattern(&self, pattern: &str) -> Result<u64, Error> {
        inbox::check_pattern(pattern).map_err(Error::Invalid)?;
        let prefix = &self.inner().prefix;
        let glob = format!("{}{pattern}", literally(prefix));
        let cleared = self.clear_glob(&glob).await;
        if let Some(near) = &self.inner().near {
            near.drop_all();
        }
        self.inner().shared.flights.forget_all(prefix);
        cleared
    }

    async fn clear_glob(&self, glob: &str) -> Result<u64, Error> {
        let mut removed = 0;
        let names = &self.link().names;
        // Leases to the end first, then values: a key that is being loaded has a lease before it has a value.
        for leases in [true, false] {
            let matching = if leases { names.lease_glob(glob) } else { glob.to_owned() };
            let mut scan = Scan::new(matching);
            while let Some(found) = self.link().anywhere().ask(async |mut redis| scan.next(&mut redis).await).await? {
                let keys: Vec<String> = match leases {
                    true => found.iter().filter_map(|lease| names.entry_of_lease(lease).map(str::to_owned)).collect(),
                    false => found,
                };
                if !keys.is_empty() {
                    removed += self.delete_all(&keys).await?;
                }
            }
        }
        Ok(removed)
    }

    async fn delete_all(&self, keys: &[String]) -> Result<u64, Error> {
        let mut pipe = redis::pipe();
        pipe.load_script(&DELETE).ignore();
        for key in keys.iter().filter(|key| key.starts_with(&self.inner().prefix)) {
            pipe.invoke_script(&self.deleting(key));
        }
        let removed: Vec<u64> = self
            .link()
            .anywhere()
            .ask(async |mut redis| -> RedisResult<_> { pipe.query_async(&mut redis).await })
            .await?;
        Ok(removed.iter().sum())
    }
}

/// Returns a glob that matches exactly this text.
fn literally(text: &str) -> String {
    let mut glob = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            glob.push('\\');
        }
        glob.push(c);
    }
    glob
}
