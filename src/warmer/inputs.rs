//! Entries made from other entries: reads their inputs, and wakes the dependants of an entry that has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;
use serde_json::{Map, Value};

use super::{INPUT_WAIT, Warmer};
use crate::agenda::When;
use crate::entry::Outcome;
use crate::entry::{EntryKey, JobName};
use crate::entry::{Priority, Trigger};
use crate::job::{Job, Params};
use crate::redis::RedisTime;
use crate::store::{Meta, Snapshot};

/// The longest wait for an invalidated input whose old value is readable, from the invalidation on.
const FRESH_INPUT_WAIT: Duration = Duration::from_secs(300);

/// Why an entry's dependants become due.
#[derive(Clone, Copy)]
enum Wake {
    /// The entry has changed: all dependants with a value are due then, and all that wait for it.
    Changed(When),
    /// The entry's content is readable since then: dependants made before are due.
    Outdated(RedisTime),
    /// The entry is found to be readable, unchanged, or gone for good: dependants that wait for it are due.
    Waiting,
}

/// Returns how an input is put on the agenda for an entry of this priority.
fn when(priority: Priority) -> When {
    match priority {
        Priority::Normal => When::NOW,
        Priority::Bulk => When::BULK_NOW,
        Priority::High => When::Urgent,
    }
}

/// An input without a readable value.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) key: EntryKey,
    /// Why it will not be readable soon: its own warming was just given up, or its upstream does not have it.
    pub(super) hopeless: Option<String>,
}

impl Warmer {
    /// Returns the inputs by name of an entry that is due since `since`, or one that is missing and was made due.
    pub(super) async fn inputs(
        &self,
        job: &Job,
        params: &Params,
        priority: Priority,
        since: RedisTime,
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

    /// Returns an input that an entry made by AI must wait for: it was invalidated and is not fetched yet. Made from
    /// the old value, the entry would be paid for twice. It waits for [`FRESH_INPUT_WAIT`] at most, and not for an
    /// input whose fetch has failed since.
    pub(super) async fn awaited_input(
        &self,
        job: &Job,
        params: &Params,
        now: RedisTime,
    ) -> RedisResult<Option<EntryKey>> {
        if !job.waits_for_inputs() {
            return Ok(None);
        }
        let keys: Vec<EntryKey> = job.inputs.values().filter_map(|pattern| pattern.write(params)).collect();
        let snapshots = self.store.snapshots(&keys).await?;
        let awaited = |snapshot: Snapshot| {
            let there = snapshot.has_value();
            snapshot.meta.filter(|_| there).is_some_and(|Meta { invalidated, last_attempt, .. }| {
                invalidated.is_some_and(|invalidated| {
                    let failed = last_attempt.outcome == Some(Outcome::Failed) && last_attempt.attempted >= invalidated;
                    !failed && now.abs_diff(invalidated) < FRESH_INPUT_WAIT
                })
            })
        };
        Ok(keys.into_iter().zip(snapshots).find_map(|(key, snapshot)| awaited(snapshot).then_some(key)))
    }

    /// Makes an input due; returns why not where its fetch was given up just now.
    async fn want(
        &self,
        key: &EntryKey,
        unreadable: bool,
        priority: Priority,
        since: RedisTime,
    ) -> RedisResult<Option<String>> {
        let Some((owner, _)) = self.jobs.owner(key.as_str()) else { return Ok(None) };
        let when = when(priority);
        if unreadable {
            // A demand would leave the unreadable value as it is.
            self.agenda.put(&owner.name, [key], when, Trigger::Invalidation).await?;
            return Ok(None);
        }
        let meta = self.store.snapshot(key).await?.meta;
        let is_absent = meta.as_ref().is_some_and(|meta| meta.is_gone(&owner.requests, owner.warm.absent_for, since));
        let when = match meta.map(|meta| meta.last_attempt) {
            Some(last_attempt)
                if last_attempt.is_gone(&owner.requests) || last_attempt.failures >= owner.warm.attempts =>
            {
                if is_absent || last_attempt.attempted + 2 * INPUT_WAIT >= since {
                    return Ok(Some(last_attempt.reason.unwrap_or_else(|| "its upstream does not have it".to_owned())));
                }
                when
            }
            // Its own retry makes it due, however many entries wait for it.
            Some(last_attempt) if last_attempt.failures > 0 => When::Keep(RedisTime::ZERO),
            _ => when,
        };
        self.agenda.put(&owner.name, [key], when, Trigger::Demand).await?;
        Ok(None)
    }

    /// Makes the dependants of a changed entry due: those with a value, and those that wait on the agenda.
    pub(super) async fn wake_dependants(&self, changed: &EntryKey, priority: Priority) -> RedisResult<()> {
        self.wake(changed, Wake::Changed(when(priority))).await
    }

    /// Tells whether an entry was made before the present content of one of its inputs became readable. Its trigger
    /// need not tell: the entry may have been due already when the input's commit woke it.
    pub(super) async fn is_outdated(&self, job: &Job, key: &EntryKey, params: &Params) -> RedisResult<bool> {
        let mut keys: Vec<EntryKey> = job.inputs.values().filter_map(|pattern| pattern.write(params)).collect();
        if keys.is_empty() {
            return Ok(false);
        }
        keys.push(key.clone());
        let mut found = self.store.snapshots(&keys).await?;
        let Some(made) = found.pop().and_then(Snapshot::into_ours) else { return Ok(false) };
        Ok(found.iter().filter_map(Snapshot::ours).any(|input| made.validated_at <= input.content_since))
    }

    /// Makes the dependants due that were made before an entry's content became readable at `content_since`. The
    /// worker that wrote it may have crashed before it woke them.
    pub(super) async fn wake_outdated(&self, found: &EntryKey, content_since: RedisTime) -> RedisResult<()> {
        self.wake(found, Wake::Outdated(content_since)).await
    }

    /// Makes the dependants due that wait for an entry which is found to be readable, or gone for good.
    pub(super) async fn wake_waiting(&self, found: &EntryKey) -> RedisResult<()> {
        self.wake(found, Wake::Waiting).await
    }

    /// Registers an entry as a dependant of those inputs whose keys do not tell its own. It does so before they are
    /// read, so that a later change of an input finds it.
    pub(super) async fn remember(&self, job: &Job, key: &EntryKey, params: &Params) -> RedisResult<()> {
        let inputs = job.inputs_of_many(params);
        if inputs.is_empty() {
            return Ok(());
        }
        // Its value is written before the lease ends.
        let life = self.admission_wait + self.lease_time(job) * 2 + job.ttl + job.warm.stale_if_error;
        self.store.add_dependant(key, &inputs, life).await
    }

    /// Makes an entry's dependants due, a page at a time where they are registered.
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
            let (next, found) = self.store.dependants(input, cursor).await?;
            let mut by_job: BTreeMap<&JobName, (&Job, Vec<EntryKey>)> = BTreeMap::new();
            for key in found {
                // The job's file may have changed since it was registered.
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
        let snapshots = self.store.snapshots(&dependants).await?;
        let (mut due, mut waiting) = (Vec::new(), Vec::new());
        for (key, snapshot) in dependants.into_iter().zip(snapshots) {
            let there = snapshot.has_value();
            // It may wait for its input to be fetched anew.
            if job.waits_for_inputs() && there && snapshot.meta.as_ref().is_some_and(|meta| meta.invalidated.is_some())
            {
                waiting.push(key.clone());
            }
            let made = snapshot.ours().map(|meta| meta.validated_at);
            match why {
                _ if !there => waiting.push(key),
                Wake::Changed(_) => due.push(key),
                Wake::Outdated(content_since) if made.is_some_and(|made| made <= content_since) => due.push(key),
                Wake::Outdated(_) | Wake::Waiting => {}
            }
        }
        let when = if let Wake::Changed(when) = why { when } else { When::NOW };
        self.agenda.put(&job.name, &due, when, Trigger::Invalidation).await?;
        if let Wake::Outdated(_) = why {
            return Ok(());
        }
        self.agenda.put(&job.name, &waiting, When::IfThere, Trigger::Invalidation).await.map(|_| ())
    }
}
