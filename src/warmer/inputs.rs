//! Entries made from other entries: reads their inputs, and wakes the dependants of an entry that has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;
use serde_json::{Map, Value};

use super::{INPUT_WAIT, Running, Warmer};
use crate::agenda::When;
use crate::entry::Outcome;
use crate::entry::{EntryKey, JobName};
use crate::entry::{Priority, Trigger};
use crate::job::{Input, Job, Params};
use crate::redis::RedisTime;
use crate::store::{LastAttempt, Meta, Snapshot};

/// The longest wait for an invalidated input whose old value is readable, from the invalidation on. Also the longest
/// time from the first answer that an input is gone until it is asked for a second one.
pub const FRESH_INPUT_WAIT: Duration = Duration::from_secs(300);

/// The texts before and after the key of an input that was given up, in the reason of an entry that waits for it.
const INPUT: &str = "its input ";
const MISSING: &str = " is missing: ";

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
    /// The entry is found to be readable, unchanged, or gone: dependants that wait for it are due. Their values, where
    /// they have one, are refreshed meanwhile.
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

/// Why an input has no readable value, the least important first. Of several inputs without one, the most important
/// decides what becomes of the entry and is the one that is reported: an entry goes with an input that is gone, though
/// the fetches of another one fail.
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
    Gone(GoneInput),
}

/// An input that is gone.
struct GoneInput {
    since: RedisTime,
    /// Until when rechecks may find it again; `None` if none is to come.
    rechecked: Option<RedisTime>,
    /// When it is asked for a second answer, unless rechecks come first; `None` if there was one.
    second: Option<RedisTime>,
    /// It was asked long ago, and was made due again.
    is_asked: bool,
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
                Wanted::Gone(gone) => match self.lack_of_gone(job, input, &key, gone, entry, now).await? {
                    Some(lack) => lack,
                    None => {
                        inputs.insert(name.clone(), Value::Null);
                        continue;
                    }
                },
            };
            if missing.as_ref().is_none_or(|missing| missing.lack <= lack) {
                missing = Some(Missing { key, lack });
            }
        }
        Ok(missing.map_or(Ok(inputs), Err))
    }

    /// Returns what an input that is gone means for an entry at `now`; `None` if the entry is made without it. A value
    /// that would be paid for again waits for the input's rechecks, and then for a second answer. Without a value,
    /// waiting costs no reader anything.
    async fn lack_of_gone(
        &self,
        job: &Job,
        input: &Input,
        key: &EntryKey,
        gone: GoneInput,
        entry: &Running,
        now: RedisTime,
    ) -> RedisResult<Option<Lack>> {
        let present = self.store.snapshot(&entry.key).await?;
        // The present value was made without the input. If the input returns, its commit wakes the entry.
        if input.is_optional && present.ours().is_some_and(|made| made.validated_at > gone.since) {
            return Ok(None);
        }
        if gone.is_asked {
            return Ok(Some(Lack::Unfetched));
        }
        let there = present.has_value();
        let is_paid_for = self.is_paid_for_again(job);
        let waits_for_rechecks = is_paid_for || !there && !input.is_optional;
        let second = gone.second.filter(|_| is_paid_for && there);
        let until = gone.rechecked.filter(|_| waits_for_rechecks).or(second);
        if let Some(until) = until.filter(|until| now < *until) {
            return Ok(Some(Lack::Uncertain(until)));
        }
        let may_be_found = gone.rechecked.is_some() && now < gone.since + FRESH_INPUT_WAIT;
        if second.is_some() || is_paid_for && there && may_be_found {
            // The entry is late, or the recheck is: it may be due just now, as the entry is, and not answered yet.
            self.demand(key, entry.priority).await?;
            return Ok(Some(Lack::Unfetched));
        }
        Ok((!input.is_optional).then_some(Lack::Gone))
    }

    async fn demand(&self, input: &EntryKey, priority: Priority) -> RedisResult<()> {
        let Some((owner, _)) = self.jobs.owner(input.as_str()) else { return Ok(()) };
        self.agenda.put(&owner.name, [input], when(priority), Trigger::Demand).await.map(|_| ())
    }

    /// Tells whether a demand asks for an entry a second time, whatever `absent_for` says: by its metadata its upstream
    /// answered once that it does not have it, and something that was paid for waits until this is certain.
    pub(super) fn is_to_be_confirmed(&self, job: &Job, meta: &Meta, now: RedisTime) -> bool {
        gone_input(job, meta).second.is_some_and(|second| second <= now) && self.is_paid_for_again(job)
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
        let awaited = keys.into_iter().zip(snapshots).find(|(_, input)| input.is_awaited(FRESH_INPUT_WAIT, now));
        Ok(awaited.map(|(key, _)| key))
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
        // Since the entry became due, however late it is. Otherwise an entry of a job with a backlog asks again
        // whenever its turn comes.
        let tried_lately = |meta: &Meta| meta.last_attempt.attempted + 2 * INPUT_WAIT >= since;
        if let Some(meta) = snapshot.gone(&owner.requests)
            && meta.invalidated.is_none()
        {
            let is_known = tried_lately(meta) || meta.is_gone(&owner.requests, owner.warm.absent_for, since);
            if !is_known {
                self.demand(key, priority).await?;
            }
            return Ok(Wanted::Gone(GoneInput { is_asked: !is_known, ..gone_input(owner, meta) }));
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

    /// Makes these dependants due. An entry that runs may be about to leave the agenda, since it did not find the
    /// input.
    /// So each is made due where it is on the agenda, and then looked at: what has left by then says why.
    async fn wake_all(&self, job: &Job, input: &EntryKey, dependants: Vec<EntryKey>, why: Wake) -> RedisResult<()> {
        if let Wake::Changed(_) | Wake::Gone(_) = why {
            self.agenda.put(&job.name, &dependants, When::IfThere, Trigger::Invalidation).await?;
        }
        let snapshots = self.store.snapshots(&dependants).await?;
        let (mut due, mut unserved, mut waiting, mut refreshed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
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
            match why {
                Wake::Outdated(_) if is_due => waiting.push(key.clone()),
                Wake::Waiting if may_wait => waiting.push(key.clone()),
                Wake::Waiting => refreshed.push(key.clone()),
                Wake::Changed(_) | Wake::Gone(_) | Wake::Outdated(_) => {}
            }
            if is_due && (there || made.is_some_and(|meta| meta.last_attempt.had_value)) {
                due.push(key);
            } else if is_due {
                unserved.push(key);
            } else if !matches!(why, Wake::Outdated(_)) {
                others.push(key);
            }
        }
        let when = if let Wake::Changed(when) | Wake::Gone(when) = why { when } else { When::NOW };
        self.agenda.put(&job.name, &waiting, When::IfThere, Trigger::Invalidation).await?;
        // Some of these wait for the input, others are due soon for another reason; the metadata do not tell which.
        // All are made due now. The trigger of a recheck is the weakest, so each keeps the trigger that it has.
        self.agenda.put(&job.name, &refreshed, When::IfSoon(INPUT_WAIT), Trigger::Recheck).await?;
        self.agenda.put(&job.name, &due, when, Trigger::Invalidation).await?;
        // Those that were given up because the input was missing.
        unserved.extend(self.agenda.died_of(&job.name, others, &missing(input)).await?);
        // Those that had no value are fetched only if they are kept warm or read, as at a refresh.
        self.agenda.put(&job.name, &unserved, When::NOW, Trigger::Expiry).await.map(|_| ())
    }
}

/// Returns an input that is gone, by its metadata. Its rechecks are waited for, and it is asked for a second answer,
/// within [`FRESH_INPUT_WAIT`].
fn gone_input(owner: &Job, meta: &Meta) -> GoneInput {
    let LastAttempt { rechecks, attempted, gone_with, .. } = &meta.last_attempt;
    let since = meta.gone_since().unwrap_or(meta.validated_at);
    let rechecks = rechecks.as_ref().filter(|_| owner.may_lag());
    let last = rechecks.and_then(|rechecks| rechecks.after(&owner.warm.recheck, meta.answered_at()).last());
    let is_confirmed = gone_with.is_some() || *attempted >= since;
    let second = since + owner.warm.absent_for.clamp(2 * INPUT_WAIT, FRESH_INPUT_WAIT);
    GoneInput {
        since,
        rechecked: last.map(|last| last.min(since + FRESH_INPUT_WAIT)),
        second: (!is_confirmed).then_some(second),
        is_asked: false,
    }
}

/// Returns the beginning of the reason of an entry whose input was given up. Dead letters are found by it, see
/// [`Agenda::died_of`](crate::agenda::Agenda::died_of).
pub(super) fn missing(input: &EntryKey) -> String {
    format!("{INPUT}{input}{MISSING}")
}

/// Returns the length of what [`missing`] writes at the beginning of a reason; 0 if the reason begins with other text.
pub(super) fn input_named_in(reason: &str) -> usize {
    let named = reason.starts_with(INPUT).then(|| reason.find(MISSING)).flatten();
    named.map_or(0, |at| at + MISSING.len())
}

/// Tells whether this is the reason of an entry whose input was given up.
pub(crate) fn is_of_input(reason: &str) -> bool {
    input_named_in(reason) > 0
}

/// Tells whether an entry without a value is gone because an input is.
fn went_with(entry: &Meta, input: &EntryKey) -> bool {
    let LastAttempt { outcome, gone_with, .. } = &entry.last_attempt;
    *outcome == Some(Outcome::Gone) && gone_with.as_deref() == Some(input.as_str())
}
