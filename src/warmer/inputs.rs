//! Entries made from other entries: reading inputs, and waking those that are made from what has changed.

use redis::RedisResult;
use serde_json::{Map, Value};

use super::timing::millis;
use super::{INPUT_WAIT, Outcome, Warmer};
use crate::agenda::{Trigger, Urgency, When};
use crate::job::{EntryKey, Job, Params};
use crate::store::Meta;

/// An entry, and when the fetch of its value began (Redis time, ms) where that is ours.
type Made = (EntryKey, Option<i64>);

/// As urgent as what it is for.
fn when(urgency: Urgency) -> When {
    match urgency {
        Urgency::Usual => When::Due(0),
        Urgency::Mass => When::Mass(0),
        Urgency::Single => When::Urgent,
    }
}

/// An input that is not there.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) key: EntryKey,
    /// Why it will not be there soon either: its own warming was just given up, or its upstream has no such thing.
    pub(super) hopeless: Option<String>,
}

impl Warmer {
    /// The inputs of an entry that is due since `since` (Redis time, ms) by name; or one that is missing, which is then due.
    pub(super) async fn inputs(
        &self,
        job: &Job,
        params: &Params,
        urgency: Urgency,
        since: i64,
    ) -> RedisResult<Result<Map<String, Value>, Missing>> {
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
                unreadable => {
                    let hopeless = self.want(&key, unreadable.is_some(), urgency, since).await?;
                    missing = Some(Missing { key, hopeless });
                }
            }
        }
        Ok(missing.map_or(Ok(inputs), Err))
    }

    /// Makes an input due; says why not, where that was of no use just now.
    async fn want(
        &self,
        key: &EntryKey,
        unreadable: bool,
        urgency: Urgency,
        since: i64,
    ) -> RedisResult<Option<String>> {
        let Some((owner, _)) = self.jobs.owner(key.as_str()) else { return Ok(None) };
        let when = when(urgency);
        if unreadable {
            // Who wrote that has no claim to be left alone, as a demand would.
            self.agenda.put(&owner.name, [key], when, Trigger::Invalidation).await?;
            return Ok(None);
        }
        let note = self.store.look(std::slice::from_ref(key)).await?.pop().and_then(|(_, meta)| Some(meta?.note));
        let when = match note {
            Some(note) if note.outcome == Some(Outcome::Gone) || note.failures >= owner.warm.attempts => {
                if note.attempted + 2 * millis(INPUT_WAIT) >= since {
                    return Ok(Some(note.reason.unwrap_or_else(|| "its upstream does not have it".to_owned())));
                }
                when
            }
            // It comes when its retry comes, however many wait for it.
            Some(note) if note.failures > 0 => When::Keep(0),
            _ => when,
        };
        self.agenda.put(&owner.name, [key], when, Trigger::Demand).await?;
        Ok(None)
    }

    /// Makes due what is made from an entry that has changed: what has a value, and what waits on the agenda.
    pub(super) async fn wake_dependants(&self, changed: &EntryKey, urgency: Urgency) -> RedisResult<()> {
        let when = when(urgency);
        for (job, there, absent) in self.dependants(changed).await? {
            let there: Vec<EntryKey> = there.into_iter().map(|(key, _)| key).collect();
            self.agenda.put(&job.name, &there, when, Trigger::Invalidation).await?;
            self.agenda.put(&job.name, &absent, When::IfThere, Trigger::Invalidation).await?;
        }
        Ok(())
    }

    /// Whether an entry was made before the present content of one of its inputs was born. Whoever said so may have found it
    /// due already, since before it was made: then no trigger tells.
    pub(super) async fn is_outdated(&self, job: &Job, key: &EntryKey, params: &Params) -> RedisResult<bool> {
        let mut looked: Vec<EntryKey> = job.inputs.values().filter_map(|pattern| pattern.write(params)).collect();
        if looked.is_empty() {
            return Ok(false);
        }
        looked.push(key.clone());
        let mut found = self.store.look(&looked).await?;
        let known = |(expires, meta): (i64, Option<Meta>)| meta.filter(|meta| meta.is_of(expires));
        let Some(made) = found.pop().and_then(known) else { return Ok(false) };
        Ok(found.into_iter().filter_map(known).any(|input| made.start <= input.born))
    }

    /// Makes due what was made from an entry before its present content was `born` (Redis time, ms): whoever wrote that may
    /// have died before it said so.
    pub(super) async fn wake_outdated(&self, found: &EntryKey, born: i64) -> RedisResult<()> {
        for (job, there, _) in self.dependants(found).await? {
            let outdated = there.into_iter().filter(|(_, made)| made.is_some_and(|made| made <= born));
            let outdated: Vec<EntryKey> = outdated.map(|(key, _)| key).collect();
            self.agenda.put(&job.name, &outdated, When::Due(0), Trigger::Invalidation).await?;
        }
        Ok(())
    }

    /// Makes due what waits for an entry that turned out to be there, or never to come.
    pub(super) async fn wake_waiting(&self, found: &EntryKey) -> RedisResult<()> {
        for (job, _, absent) in self.dependants(found).await? {
            self.agenda.put(&job.name, &absent, When::IfThere, Trigger::Invalidation).await?;
        }
        Ok(())
    }

    /// What is made from an entry, by job: what has a value, with the time its fetch began where we wrote it, and what has
    /// none.
    async fn dependants(&self, input: &EntryKey) -> RedisResult<Vec<(&Job, Vec<Made>, Vec<EntryKey>)>> {
        let mut found = Vec::new();
        for job in self.jobs.jobs.values() {
            let mut dependants = Vec::new();
            for params in job.inputs.values().filter_map(|pattern| pattern.read(input.as_str())) {
                if job.key.names().iter().all(|name| params.contains_key(name)) {
                    dependants.extend(job.key.write(&params));
                } else {
                    // The input says less than the key: it is an input of many.
                    dependants.extend(self.agenda.matching(&job.name, &job.key.glob_with(&params)).await?);
                }
            }
            if dependants.is_empty() {
                continue;
            }
            let looked = self.store.look(&dependants).await?;
            let (mut there, mut absent) = (Vec::new(), Vec::new());
            for (key, (expires, meta)) in dependants.into_iter().zip(looked) {
                if expires == -2 {
                    absent.push(key);
                } else {
                    there.push((key, meta.filter(|meta| meta.is_of(expires)).map(|meta| meta.start)));
                }
            }
            found.push((&**job, there, absent));
        }
        Ok(found)
    }
}
