//! Entries made from other entries: reads their inputs, and wakes the dependants of an entry that has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;
use serde_json::{Map, Value};

use super::failure::missing;
use super::{INPUT_WAIT, Running, Warmer};
use crate::agenda::When;
use crate::entry::Outcome;
use crate::entry::{EntryKey, JobName};
use crate::entry::{Priority, Trigger};
use crate::job::{Input, Job, Params};
use crate::redis::RedisTime;
use crate::store::{LastAttempt, Meta, Snapshot};

/// The longest wait for an invalidated input whose old value is readable, from the invalidation on. Also the longest
/// wait until it is certain that an input is gone, from its first such answer on.
const FRESH_INPUT_WAIT: Duration = Duration::from_secs(300);

/// Why an entry's dependants become due.
#[derive(Clone, Copy)]
enum Wake {
    /// The entry has changed: all dependants with a value are due then, those that went with it, and all that wait for
    /// it.
    Changed(When),
    /// The entry is gone: all dependants with a value are due then, and all that wait for it.
    Gone(When),
    /// The entry's content is readable since then, or it is gone since then: dependants made before are due.
    Outdated(RedisTime),
    /// The entry is found to be readable, unchanged, or gone: dependants that wait for it are due.
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
    pub(super) lack: Lack,
}

/// Why an input has no readable value, the least important first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lack {
    /// It is to be fetched.
    Unfetched,
    /// It is gone. The entry waits until this is certain, or until then.
    Uncertain(RedisTime),
    /// Its own warming was given up just now, for this reason.
    GivenUp(String),
    /// It is gone, and so is the entry.
    Gone,
}

/// An input without a value, as its metadata tell.
enum Wanted {
    /// It is to be fetched, and was made due.
    Due,
    /// Its own warming was given up just now, for this reason.
    GivenUp(String),
    /// It is gone.
    Gone {
        /// Until when rechecks may find it again; `None` if none is to come.
        rechecked: Option<RedisTime>,
        /// Until when a second answer is waited for, after `rechecked`; `None` if there was one.
        confirmed: Option<RedisTime>,
    },
}

impl Warmer {
    /// Returns the inputs of an entry by name, or one that is missing; those that are to be fetched were made due. An
    /// optional input that is gone is null.
    pub(super) async fn inputs(
        &self,
        job: &Job,
        params: &Params,
        entry: &Running,
        now: RedisTime,
    ) -> RedisResult<Result<Map<String, Value>, Missing>> {
        let mut inputs = Map::new();
        let wanted = job.inputs.iter().filter_map(|(name, input)| Some((name, input, input.key.write(params)?)));
        let wanted: Vec<(&String, &Input, EntryKey)> = wanted.collect();
        let keys: Vec<EntryKey> = wanted.iter().map(|(_, _, key)| key.clone()).collect();
        let values = self.store.values(&keys).await?;
        let mut missing: Option<Missing> = None;
        for ((name, input, key), value) in wanted.into_iter().zip(values) {
            let unreadable = match value.as_deref().map(serde_json::from_str) {
                Some(Ok(value)) => {
                    inputs.insert(name.clone(), value);
                    continue;
                }
                unreadable => unreadable.is_some(),
            };
            let lack = match self.want(&key, unreadable, entry.priority, entry.since).await? {
                Wanted::Due => Lack::Unfetched,
                Wanted::GivenUp(why) => Lack::GivenUp(why),
                Wanted::Gone { rechecked, confirmed } => {
                    let (waits_for_rechecks, waits_for_second) = self.waits(job, input, &entry.key).await?;
                    let until = [rechecked.filter(|_| waits_for_rechecks), confirmed.filter(|_| waits_for_second)];
                    match until.into_iter().flatten().max().filter(|until| now < *until) {
                        Some(until) => Lack::Uncertain(until),
                        None if input.is_optional => {
                            inputs.insert(name.clone(), Value::Null);
                            continue;
                        }
                        None => Lack::Gone,
                    }
                }
            };
            if missing.as_ref().is_none_or(|missing| missing.lack <= lack) {
                missing = Some(Missing { key, lack });
            }
        }
        Ok(missing.map_or(Ok(inputs), Err))
    }

    /// Tells whether an entry with an input that is gone waits for the input's rechecks, and for a second answer. A
    /// value that would be paid for again waits for both. Without a value, waiting costs no reader anything.
    async fn waits(&self, job: &Job, input: &Input, key: &EntryKey) -> RedisResult<(bool, bool)> {
        let is_paid_for = self.is_paid_for_again(job);
        if input.is_optional && !is_paid_for {
            return Ok((false, false));
        }
        let there = self.store.snapshot(key).await?.has_value();
        Ok((is_paid_for || !there, is_paid_for && there))
    }

    /// Tells whether money is paid if a job's entry is made again: for itself, or for an entry that is made from it.
    fn is_paid_for_again(&self, job: &Job) -> bool {
        let (mut reached, mut at) = (vec![job], 0);
        while let Some(job) = reached.get(at).copied() {
            if job.is_paid_for() {
                return true;
            }
            at += 1;
            for other in self.jobs.jobs.values() {
                let is_made_from = other.inputs.values().any(|input| input.key.overlaps(&job.key));
                if is_made_from && !reached.iter().any(|job| job.name == other.name) {
                    reached.push(other);
                }
            }
        }
        false
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
        let keys: Vec<EntryKey> = job.inputs.values().filter_map(|input| input.key.write(params)).collect();
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

    /// Makes an input due that has no readable value, unless it is gone or its fetch was given up just now.
    async fn want(
        &self,
        key: &EntryKey,
        unreadable: bool,
        priority: Priority,
        since: RedisTime,
    ) -> RedisResult<Wanted> {
        let Some((owner, _)) = self.jobs.owner(key.as_str()) else { return Ok(Wanted::Due) };
        let when = when(priority);
        if unreadable {
            // A demand would leave the unreadable value as it is.
            self.agenda.put(&owner.name, [key], when, Trigger::Invalidation).await?;
            return Ok(Wanted::Due);
        }
        let snapshot = self.store.snapshot(key).await?;
        let tried_lately = |meta: &Meta| meta.last_attempt.attempted + 2 * INPUT_WAIT >= since;
        if let Some(meta) = snapshot.gone(&owner.requests)
            && meta.invalidated.is_none()
            && (tried_lately(meta) || meta.is_gone(&owner.requests, owner.warm.absent_for, since))
        {
            return Ok(gone_input(owner, meta));
        }
        let when = match snapshot.meta {
            Some(meta) if meta.last_attempt.failures >= owner.warm.attempts => {
                if tried_lately(&meta) {
                    let reason = meta.last_attempt.reason;
                    return Ok(Wanted::GivenUp(reason.unwrap_or_else(|| "its fetches failed".to_owned())));
                }
                when
            }
            // Its own retry makes it due, however many entries wait for it.
            Some(meta) if meta.last_attempt.failures > 0 => When::Keep(RedisTime::ZERO),
            _ => when,
        };
        self.agenda.put(&owner.name, [key], when, Trigger::Demand).await?;
        Ok(Wanted::Due)
    }

    /// Makes the dependants of a changed entry due: those with a value, and those that wait on the agenda.
    pub(super) async fn wake_dependants(&self, changed: &EntryKey, priority: Priority) -> RedisResult<()> {
        self.wake(changed, Wake::Changed(when(priority))).await
    }

    /// Makes the dependants of an entry due that is gone: those with a value, and those that wait on the agenda.
    pub(super) async fn wake_dependants_of_gone(&self, gone: &EntryKey, priority: Priority) -> RedisResult<()> {
        self.wake(gone, Wake::Gone(when(priority))).await
    }

    /// Tells whether an entry was made before the present content of one of its inputs became readable, or before one
    /// was gone. Its trigger need not tell: the entry may have been due already when the input's commit woke it.
    pub(super) async fn is_outdated(&self, job: &Job, key: &EntryKey, params: &Params) -> RedisResult<bool> {
        let mut keys: Vec<EntryKey> = job.inputs.values().filter_map(|input| input.key.write(params)).collect();
        if keys.is_empty() {
            return Ok(false);
        }
        keys.push(key.clone());
        let mut found = self.store.snapshots(&keys).await?;
        let Some(made) = found.pop().and_then(Snapshot::into_ours) else { return Ok(false) };
        Ok(found.iter().filter_map(Snapshot::content_since).any(|since| made.validated_at <= since))
    }

    /// Makes the dependants due that were made before an entry's content became readable at `content_since`, or before
    /// it was gone since then. The worker that wrote that may have crashed before it woke them.
    pub(super) async fn wake_outdated(&self, found: &EntryKey, content_since: RedisTime) -> RedisResult<()> {
        self.wake(found, Wake::Outdated(content_since)).await
    }

    /// Makes the dependants due that wait for an entry which is found to be readable or gone.
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
            for of in job.inputs.values() {
                let Some(params) = of.key.read(input.as_str()) else { continue };
                if job.is_told_by(of) {
                    dependants.extend(job.key.write(&params));
                } else {
                    of_many = true;
                }
            }
            self.wake_all(job, input, dependants, why).await?;
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
                self.wake_all(job, input, dependants, why).await?;
            }
            cursor = next;
            of_many = cursor != 0;
        }
        Ok(())
    }

    async fn wake_all(&self, job: &Job, input: &EntryKey, dependants: Vec<EntryKey>, why: Wake) -> RedisResult<()> {
        let snapshots = self.store.snapshots(&dependants).await?;
        let (mut due, mut unserved, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        let mut others = Vec::new();
        for (key, snapshot) in dependants.into_iter().zip(snapshots) {
            let there = snapshot.has_value();
            let meta = snapshot.meta.as_ref();
            let made = if there { snapshot.ours() } else { meta.filter(|meta| went_with(meta, input)) };
            let is_due = match why {
                Wake::Changed(_) => there || made.is_some(),
                Wake::Gone(_) => there,
                Wake::Outdated(content_since) => made.is_some_and(|meta| meta.validated_at <= content_since),
                Wake::Waiting => false,
            };
            // It may wait for its input to be fetched anew.
            let is_invalidated = meta.is_some_and(|meta| meta.invalidated.is_some());
            let may_wait = !there || job.waits_for_inputs() && is_invalidated;
            if is_due || may_wait && !matches!(why, Wake::Outdated(_)) {
                waiting.push(key.clone());
            }
            if is_due && (there || made.is_some_and(|meta| meta.last_attempt.had_value)) {
                due.push(key);
            } else if is_due {
                unserved.push(key);
            } else if !matches!(why, Wake::Outdated(_)) {
                others.push(key);
            }
        }
        // Those that were given up because the input was missing.
        unserved.extend(self.agenda.died_of(&job.name, others, &missing(input)).await?);
        let when = if let Wake::Changed(when) | Wake::Gone(when) = why { when } else { When::NOW };
        self.agenda.put(&job.name, &waiting, When::IfThere, Trigger::Invalidation).await?;
        self.agenda.put(&job.name, &due, when, Trigger::Invalidation).await?;
        // Those that had no value are fetched only if they are kept warm or read, as at a refresh.
        self.agenda.put(&job.name, &unserved, When::NOW, Trigger::Expiry).await.map(|_| ())
    }
}

/// Returns an input that is gone, by its metadata. No wait is longer than [`FRESH_INPUT_WAIT`]. If no recheck follows,
/// the second answer is asked for by an entry that waits for it, as soon as [`Warmer::want`] asks again.
fn gone_input(owner: &Job, meta: &Meta) -> Wanted {
    let LastAttempt { rechecks, attempted, gone_with, .. } = &meta.last_attempt;
    let since = meta.gone_since().unwrap_or(meta.validated_at);
    let longest = since + FRESH_INPUT_WAIT;
    let rechecks = rechecks.as_ref().filter(|_| owner.may_lag());
    let rechecked = rechecks.and_then(|rechecks| rechecks.after(&owner.warm.recheck, meta.answered_at()).last());
    let is_confirmed = gone_with.is_some() || *attempted >= since;
    let second = since + owner.warm.absent_for.max(2 * INPUT_WAIT);
    let confirmed = Some(second).filter(|_| !is_confirmed && rechecked.is_none());
    Wanted::Gone { rechecked: rechecked.map(|at| at.min(longest)), confirmed: confirmed.map(|at| at.min(longest)) }
}

/// Tells whether an entry without a value is gone because an input is.
fn went_with(entry: &Meta, input: &EntryKey) -> bool {
    let LastAttempt { outcome, gone_with, .. } = &entry.last_attempt;
    *outcome == Some(Outcome::Gone) && gone_with.as_deref() == Some(input.as_str())
}
