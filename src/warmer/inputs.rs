//! Entries made from other entries: reading inputs, and waking those that are made from what has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;
use serde_json::{Map, Value};

use super::freshness::millis;
use super::{INPUT_WAIT, Warmer};
use crate::agenda::When;
use crate::entry::Outcome;
use crate::entry::{EntryKey, JobName};
use crate::entry::{Priority, Trigger};
use crate::job::{Job, Params};
use crate::store::Meta;

/// How long after its invalidation an input is waited for whose old value is there.
const FRESH_INPUT_WAIT: Duration = Duration::from_secs(300);

/// Why what is made from an entry becomes due.
#[derive(Clone, Copy)]
enum Wake {
    /// The entry has changed: all with a value are due then, and what waits for it.
    Changed(When),
    /// Its content was content_since then (Redis time, ms): what was made before.
    Outdated(i64),
    /// It turned out to be there, still to be true, or never to come: what waits for it.
    Waiting,
}

/// As urgent as what it is for.
fn when(priority: Priority) -> When {
    match priority {
        Priority::Normal => When::Due(0),
        Priority::Bulk => When::Bulk(0),
        Priority::High => When::Urgent,
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
        priority: Priority,
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
                    let hopeless = self.want(&key, unreadable.is_some(), priority, since).await?;
                    missing = Some(Missing { key, hopeless });
                }
            }
        }
        Ok(missing.map_or(Ok(inputs), Err))
    }

    /// Of an entry that AI makes, an input that was invalidated and is still to be fetched: made from its old value, the entry
    /// would have to be made, and paid for, once more. It is not waited for where its fetch has failed since, nor for ever.
    /// `now` is Redis's, ms.
    pub(super) async fn awaited_input(&self, job: &Job, params: &Params, now: i64) -> RedisResult<Option<EntryKey>> {
        if !job.waits_for_inputs() {
            return Ok(None);
        }
        let keys: Vec<EntryKey> = job.inputs.values().filter_map(|pattern| pattern.write(params)).collect();
        let looked = self.store.look(&keys).await?;
        let awaited = |(expires, meta): (i64, Option<Meta>)| {
            meta.filter(|meta| expires != -2 && meta.invalidated > 0).is_some_and(
                |Meta { invalidated, note, .. }| {
                    let failed = note.outcome == Some(Outcome::Failed) && note.attempted >= invalidated;
                    !failed && (now - invalidated).abs() < millis(FRESH_INPUT_WAIT)
                },
            )
        };
        Ok(keys.into_iter().zip(looked).find_map(|(key, looked)| awaited(looked).then_some(key)))
    }

    /// Makes an input due; says why not, where that was of no use just now.
    async fn want(
        &self,
        key: &EntryKey,
        unreadable: bool,
        priority: Priority,
        since: i64,
    ) -> RedisResult<Option<String>> {
        let Some((owner, _)) = self.jobs.owner(key.as_str()) else { return Ok(None) };
        let when = when(priority);
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
    pub(super) async fn wake_dependants(&self, changed: &EntryKey, priority: Priority) -> RedisResult<()> {
        self.wake(changed, Wake::Changed(when(priority))).await
    }

    /// Whether an entry was made before the present content of one of its inputs was content_since. Whoever said so may have found it
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
        Ok(found.into_iter().filter_map(known).any(|input| made.start <= input.content_since))
    }

    /// Makes due what was made from an entry before its present content was `content_since` (Redis time, ms): whoever wrote that may
    /// have died before it said so.
    pub(super) async fn wake_outdated(&self, found: &EntryKey, content_since: i64) -> RedisResult<()> {
        self.wake(found, Wake::Outdated(content_since)).await
    }

    /// Makes due what waits for an entry that turned out to be there, or never to come.
    pub(super) async fn wake_waiting(&self, found: &EntryKey) -> RedisResult<()> {
        self.wake(found, Wake::Waiting).await
    }

    /// Remembers an entry beside those of its inputs from whose keys its own cannot be told, before they are read: whoever
    /// changes one from now on finds it.
    pub(super) async fn remember(&self, job: &Job, key: &EntryKey, params: &Params) -> RedisResult<()> {
        let inputs = job.inputs_of_many(params);
        if inputs.is_empty() {
            return Ok(());
        }
        // Its value is written before the lease ends.
        let life = self.patience + self.lease_time(job) * 2 + job.ttl + job.warm.stale_if_error;
        self.store.make_from(key, &inputs, life).await
    }

    /// Makes due what is made from an entry, a page at a time where that is many.
    async fn wake(&self, input: &EntryKey, why: Wake) -> RedisResult<()> {
        let mut of_many = false;
        for job in self.jobs.jobs.values() {
            let mut dependants = Vec::new();
            for pattern in job.inputs.values() {
                let Some(params) = pattern.read(input.as_str()) else { continue };
                if job.is_told_by(pattern) {
                    dependants.extend(job.key.write(&params));
                } else {
                    of_many = true;
                }
            }
            self.wake_all(job, dependants, why).await?;
        }
        let mut cursor = 0;
        while of_many {
            let (next, found) = self.store.made_from(input, cursor).await?;
            let mut by_job: BTreeMap<&JobName, (&Job, Vec<EntryKey>)> = BTreeMap::new();
            for key in found {
                // It was remembered by the job's file of then.
                if let Some((job, params)) = self.jobs.owner(key.as_str())
                    && job.inputs_of_many(&params).contains(input)
                {
                    by_job.entry(&job.name).or_insert_with(|| (&**job, Vec::new())).1.push(key);
                }
            }
            for (job, dependants) in by_job.into_values() {
                self.wake_all(job, dependants, why).await?;
            }
            cursor = next;
            of_many = cursor != 0;
        }
        Ok(())
    }

    async fn wake_all(&self, job: &Job, dependants: Vec<EntryKey>, why: Wake) -> RedisResult<()> {
        let looked = self.store.look(&dependants).await?;
        let (mut due, mut waiting) = (Vec::new(), Vec::new());
        for (key, (expires, meta)) in dependants.into_iter().zip(looked) {
            // It may wait for its input to be fetched anew.
            if job.waits_for_inputs() && expires != -2 && meta.as_ref().is_some_and(|meta| meta.invalidated > 0) {
                waiting.push(key.clone());
            }
            let made = meta.filter(|meta| meta.is_of(expires)).map(|meta| meta.start);
            match why {
                _ if expires == -2 => waiting.push(key),
                Wake::Changed(_) => due.push(key),
                Wake::Outdated(content_since) if made.is_some_and(|made| made <= content_since) => due.push(key),
                Wake::Outdated(_) | Wake::Waiting => {}
            }
        }
        let when = if let Wake::Changed(when) = why { when } else { When::Due(0) };
        self.agenda.put(&job.name, &due, when, Trigger::Invalidation).await?;
        if let Wake::Outdated(_) = why {
            return Ok(());
        }
        self.agenda.put(&job.name, &waiting, When::IfThere, Trigger::Invalidation).await.map(|_| ())
    }
}
