//! The census: the number of entries of each job, which needs a scan of all keys.

use std::collections::BTreeMap;

use redis::RedisResult;
use serde::{Deserialize, Serialize};

use super::Ops;
use crate::entry::EntryKey;
use crate::entry::duration::millis;
use crate::redis::{RedisTime, Scan, is_of_keys};

/// A count of the entries of all jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// When the count started.
    pub at_ms: RedisTime,
    /// The duration of the count, ms.
    pub took_ms: i64,
    /// The counts by job.
    pub jobs: BTreeMap<String, Counted>,
}

/// The count of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Values that exist. A key of another type than a string is no value.
    pub warm: u64,
    /// When the oldest of Samovar's values was fetched, or last found unchanged.
    pub oldest_ms: Option<RedisTime>,
    /// Values kept beyond their TTL because their source fails.
    #[serde(default)]
    pub old: u64,
    /// Values that were invalidated and not fetched since. Absent if an earlier build counted.
    #[serde(default)]
    pub invalidated: Option<u64>,
    /// Values that are made from an earlier job file. Earlier builds do not count them, and ignore both fields.
    #[serde(default)]
    pub outdated: u64,
    /// One of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_outdated: Option<String>,
    /// Entries that the job keeps warm: listed, named by its feed, or among the most read. Absent if an earlier build
    /// counted, or if a key of the wrong type is in the way.
    #[serde(default)]
    pub wanted: Option<u64>,
}

impl Counted {
    /// Returns the count of a job without values.
    fn none() -> Self {
        Self { invalidated: Some(0), ..Self::default() }
    }
}

/// The TTL of a stored count, in seconds.
const KEPT_S: u64 = 3_600;

impl Ops {
    /// Counts the entries of all jobs with one scan of all strings of the database, in steps.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn count(&self) -> RedisResult<Census> {
        let at_ms = self.store.now().await?;
        let noted = match self.noted().await {
            Err(e) if is_of_keys(&e) => BTreeMap::new(),
            noted => noted?,
        };
        let mut jobs: BTreeMap<String, Counted> =
            self.jobs.jobs.keys().map(|job| (job.to_string(), Counted::none())).collect();
        let mut scan = Scan::new("*").of_type("string");
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let owned: Vec<(&str, EntryKey)> = found
                .iter()
                .filter(|key| !self.keys.is_own(key))
                .filter_map(|key| Some((self.jobs.owner(key)?.0.name.as_str(), EntryKey::new(key.as_str()))))
                .collect();
            let keys: Vec<EntryKey> = owned.iter().map(|(_, key)| key.clone()).collect();
            for ((job, key), snapshot) in owned.iter().zip(self.store.snapshots(&keys).await?) {
                let Some(counted) = jobs.get_mut(*job).filter(|_| snapshot.has_value()) else { continue };
                counted.warm += 1;
                let Some(meta) = snapshot.into_ours() else { continue };
                counted.oldest_ms = counted.oldest_ms.into_iter().chain([meta.validated_at]).min();
                counted.old += u64::from(!meta.stale_for.is_zero() && meta.own_expiry - meta.stale_for <= at_ms);
                if let Some(invalidated) = counted.invalidated.as_mut().filter(|_| meta.invalidated.is_some()) {
                    *invalidated += 1;
                }
                if noted.get(*job).is_some_and(|noted| meta.is_outdated(noted.newest(), noted.base())) {
                    counted.outdated += 1;
                    counted.first_outdated.get_or_insert_with(|| key.to_string());
                }
            }
        }
        for job in self.jobs.jobs.values() {
            let wanted = match self.wanted(job, None).await {
                Err(e) if is_of_keys(&e) => None,
                wanted => Some(wanted?.len() as u64),
            };
            if let Some(counted) = jobs.get_mut(job.name.as_str()) {
                counted.wanted = wanted;
            }
        }
        let took_ms = millis(self.store.now().await?.saturating_since(at_ms));
        Ok(Census { at_ms, took_ms, jobs })
    }

    /// Returns the last count of any worker; `None` if there is none, or its key is of the wrong type.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn last_count(&self) -> RedisResult<Option<Census>> {
        let text: RedisResult<Option<String>> =
            redis::cmd("GET").arg(self.keys.census()).query_async(&mut self.redis.clone()).await;
        let text = match text {
            Err(e) if is_of_keys(&e) => None,
            text => text?,
        };
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Stores a count for the fleet.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn tell_count(&self, census: &Census) -> RedisResult<()> {
        let text = serde_json::to_string(census).map_err(std::io::Error::other)?;
        redis::cmd("SET")
            .arg(self.keys.census())
            .arg(text)
            .arg("EX")
            .arg(KEPT_S)
            .query_async(&mut self.redis.clone())
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::job::{Jobs, KnownJobs};
    use crate::protocol::Keys;
    use crate::redis::server::Server;

    #[tokio::test]
    async fn a_key_of_another_type_is_no_value() {
        let server = Server::start().await;
        let redis = server.connect().await;
        let text = "key = \"art:{name}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1/{{ name }}\"\n";
        let jobs = [("art.toml".to_owned(), text.to_owned())];
        let jobs = Jobs::parse(&jobs, Duration::from_secs(60), &|_| None).unwrap();
        let ops = Ops::new(redis.clone(), Keys::new("test", "test:invalidate"), Arc::new(KnownJobs::from(&jobs)));
        let mut pipe = redis::pipe();
        pipe.set("art:a", 1).lpush("art:b", 1).hset("art:c", "f", 1);
        pipe.exec_async(&mut redis.clone()).await.unwrap();
        assert_eq!(ops.count().await.unwrap().jobs["art"].warm, 1);
    }
}
