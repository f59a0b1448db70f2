//! Entries made from other entries: reading inputs, and waking those that are made from what has changed.

use redis::RedisResult;
use serde_json::{Map, Value};

use super::Warmer;
use crate::agenda::{Trigger, When};
use crate::job::{EntryKey, Job, Params};

impl Warmer {
    /// The inputs of an entry by name; or the key of one that is missing, which is then due.
    pub(super) async fn inputs(
        &self,
        job: &Job,
        params: &Params,
        urgent: bool,
    ) -> RedisResult<Result<Map<String, Value>, EntryKey>> {
        let mut inputs = Map::new();
        let wanted: Vec<(&String, EntryKey)> =
            job.inputs.iter().filter_map(|(name, pattern)| Some((name, pattern.write(params)?))).collect();
        let keys: Vec<EntryKey> = wanted.iter().map(|(_, key)| key.clone()).collect();
        let values = self.store.values(&keys).await?;
        let mut missing = None;
        for ((name, key), value) in wanted.into_iter().zip(values) {
            match value.as_deref().map(serde_json::from_str) {
                Some(Ok(value)) => {
                    inputs.insert(name.clone(), value);
                }
                Some(Err(_)) | None => {
                    if let Some((owner, _)) = self.jobs.owner(key.as_str()) {
                        let when = if urgent { When::Urgent } else { When::Due(0) };
                        self.agenda.put(&owner.name, [&key], when, Trigger::Demand).await?;
                    }
                    missing = Some(key);
                }
            }
        }
        Ok(missing.map_or(Ok(inputs), Err))
    }

    /// Makes due what is made from an entry that has changed: what has a value, and what waits on the agenda.
    pub(super) async fn wake_dependants(&self, changed: &EntryKey, urgent: bool) -> RedisResult<()> {
        let when = if urgent { When::Urgent } else { When::Due(0) };
        for (job, there, absent) in self.dependants(changed).await? {
            self.agenda.put(&job.name, &there, when, Trigger::Invalidation).await?;
            self.agenda.put(&job.name, &absent, When::IfThere, Trigger::Invalidation).await?;
        }
        Ok(())
    }

    /// Makes due what waits for an entry that turned out to be there.
    pub(super) async fn wake_waiting(&self, found: &EntryKey) -> RedisResult<()> {
        for (job, _, absent) in self.dependants(found).await? {
            self.agenda.put(&job.name, &absent, When::IfThere, Trigger::Invalidation).await?;
        }
        Ok(())
    }

    /// What is made from an entry, by job: what has a value, and what has none.
    async fn dependants(&self, input: &EntryKey) -> RedisResult<Vec<(&Job, Vec<EntryKey>, Vec<EntryKey>)>> {
        let mut found = Vec::new();
        for job in self.jobs.jobs.values() {
            let dependants: Vec<EntryKey> =
                job.inputs.values().filter_map(|pattern| job.key.write(&pattern.read(input.as_str())?)).collect();
            if dependants.is_empty() {
                continue;
            }
            let looked = self.store.look(&dependants).await?;
            let (there, absent): (Vec<_>, Vec<_>) =
                dependants.into_iter().zip(looked).partition(|(_, (expires, _))| *expires != -2);
            let keys = |found: Vec<(EntryKey, _)>| found.into_iter().map(|(key, _)| key).collect();
            found.push((&**job, keys(there), keys(absent)));
        }
        Ok(found)
    }
}
