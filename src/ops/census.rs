//! How many entries of each job are there: the one question that needs a look at every key.

use std::collections::BTreeMap;

use redis::RedisResult;
use serde::{Deserialize, Serialize};

use super::Ops;
use crate::entry::EntryKey;
use crate::redis::{Scan, is_of_keys};

/// What was counted, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// When the count began (Redis time, ms).
    pub at_ms: i64,
    /// How long it took, ms.
    pub took_ms: i64,
    /// By job.
    pub jobs: BTreeMap<String, Counted>,
}

/// What was counted of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Keys that are there.
    pub warm: u64,
    /// When the oldest of Samovar's values among them was fetched, or last found to be made from the same (Redis time, ms).
    pub oldest_ms: Option<i64>,
    /// Those whose TTL was over, and which live on because their source fails.
    #[serde(default)]
    pub old: u64,
}

/// A count is kept for this long; whoever wants a younger one counts anew.
const KEPT_S: u64 = 3_600;

impl Ops {
    /// Counts the entries of all jobs, which scans the whole of Redis once, in steps.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn count(&self) -> RedisResult<Census> {
        let at_ms = self.store.now().await?;
        let mut jobs: BTreeMap<String, Counted> =
            self.jobs.jobs.keys().map(|job| (job.to_string(), Counted::default())).collect();
        let mut scan = Scan::new("*");
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let owned: Vec<(&str, EntryKey)> = found
                .iter()
                .filter(|key| !self.keys.is_own(key))
                .filter_map(|key| Some((self.jobs.owner(key)?.0.name.as_str(), EntryKey::new(key.as_str()))))
                .collect();
            let keys: Vec<EntryKey> = owned.iter().map(|(_, key)| key.clone()).collect();
            for ((job, _), snapshot) in owned.iter().zip(self.store.snapshots(&keys).await?) {
                let Some(counted) = jobs.get_mut(*job).filter(|_| snapshot.has_value()) else { continue };
                counted.warm += 1;
                let Some(meta) = snapshot.into_ours() else { continue };
                counted.oldest_ms = counted.oldest_ms.into_iter().chain([meta.validated_at]).min();
                counted.old += u64::from(meta.stale_for > 0 && meta.own_expiry - meta.stale_for <= at_ms);
            }
        }
        let took_ms = self.store.now().await? - at_ms;
        Ok(Census { at_ms, took_ms, jobs })
    }

    /// What was counted last, by whomever; `None` also where somebody else's key stands in its place.
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

    /// Lets the fleet know what was counted.
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
