//! One entry: its value, metadata and place on the agenda.

use redis::RedisResult;
use serde::Serialize;
use serde_json::{Value, json};

use super::Ops;
use super::missing_input::MissingInput;
use super::status::{self, UpstreamStatus};
use super::under_way::UnderWay;
use crate::agenda::{Due, State};
use crate::entry::Outcome;
use crate::entry::Priority;
use crate::entry::Trigger;
use crate::entry::Version;
use crate::entry::duration::millis;
use crate::entry::{EntryKey, JobName};
use crate::job::{KnownJob, Params};
use crate::redis::RedisTime;
use crate::store::{Expiry, GoneGuard, Meta, Rechecks, Snapshot};

/// One entry. Times are Redis's, in ms since the epoch.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The job that owns it; absent if no job's key pattern matches.
    pub job: Option<String>,
    /// The value that the API reads; a value that is not JSON is shown as a string.
    pub value: Option<Value>,
    /// The type of what another program keeps under the key, if it is no string; nothing is fetched then.
    pub other_type: Option<String>,
    /// The remaining TTL, ms; absent without a value or a TTL.
    pub ttl_ms: Option<i64>,
    /// `true` if Samovar wrote the value.
    pub written_by_samovar: bool,
    /// When its content was last fetched, or confirmed by its source.
    #[schema(value_type = Option<i64>)]
    pub fetched_ms: Option<RedisTime>,
    /// When it was invalidated, if it was not fetched again since.
    #[schema(value_type = Option<i64>)]
    pub invalidated_ms: Option<RedisTime>,
    /// The validator of its HTTP answer.
    pub etag: Option<String>,
    /// The validator of its HTTP answer.
    pub last_modified: Option<String>,
    /// The value's version, if the job tells it.
    #[schema(value_type = Option<u64>)]
    pub version: Option<Version>,
    /// A higher version that an invalidation announced, which the upstream does not have yet.
    #[schema(value_type = Option<u64>)]
    pub announced_version: Option<Version>,
    /// When it is rechecked after its last invalidation, because the upstream may have lagged; empty if it is not.
    #[schema(value_type = Vec<i64>)]
    pub rechecks_ms: Vec<RedisTime>,
    /// The outcome of the last attempt.
    #[schema(value_type = Option<String>)]
    pub last_outcome: Option<Outcome>,
    /// The trigger of the last attempt.
    #[schema(value_type = Option<String>)]
    pub last_trigger: Option<Trigger>,
    /// When the last attempt started.
    #[schema(value_type = Option<i64>)]
    pub last_attempt_ms: Option<RedisTime>,
    /// Failed attempts in a row.
    pub failures: Option<u32>,
    /// The reason of the last failure, or why the last answer was not stored.
    pub reason: Option<String>,
    /// When its TTL ends or ended, if the value is kept beyond it because its source fails.
    #[schema(value_type = Option<i64>)]
    pub outlives_ms: Option<RedisTime>,
    /// Its tags.
    pub tags: Vec<String>,
    /// When it is due; while a worker has claimed it, when the claim expires.
    #[schema(value_type = Option<i64>)]
    pub due_ms: Option<RedisTime>,
    /// The trigger.
    #[schema(value_type = Option<String>)]
    pub due_for: Option<Trigger>,
    /// `true` if it is due since an input changed. Its trigger is `invalidation` then.
    pub due_for_input: bool,
    /// Its state on the agenda: `scheduled`, `urgent`, `claimed` or `running`.
    pub due_state: Option<&'static str>,
    /// The priority with which it is due: `high`, `bulk` or `normal`.
    pub due_priority: Option<&'static str>,
    /// Upstreams of its job to which no requests are sent now.
    pub closed_upstreams: Vec<UpstreamStatus>,
    /// `true` if its value is made from an earlier job file, and is to be made anew.
    pub is_outdated: bool,
    /// Its wait until then, such as for a budget; absent if it is made from the present file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outdated_waits_for: Option<String>,
    /// `true` if no running worker knows its job: nothing of it is fetched.
    pub job_is_left: bool,
    /// Since when its job is paused: nothing of it is fetched.
    #[schema(value_type = Option<i64>)]
    pub job_paused_ms: Option<RedisTime>,
    /// Until when the removal of its value is held back, since it is gone at its upstream or with an input.
    #[schema(value_type = Option<i64>)]
    pub removal_held_until_ms: Option<RedisTime>,
    /// Its inputs whose removal is held back: it is made from their old values.
    pub held_inputs: Vec<HeldInput>,
    /// Its inputs that keep it from being made now.
    pub missing_inputs: Vec<MissingInput>,
    /// The reason of its dead letter, if there is one.
    pub given_up: Option<String>,
    /// The work under way for it.
    pub under_way: UnderWay,
    /// Redis's clock at the time of reading.
    #[schema(value_type = i64)]
    pub now_ms: RedisTime,
    /// When its value expires.
    #[serde(skip)]
    pub expiry: Expiry,
    /// Its place on the agenda.
    #[serde(skip)]
    pub due: Option<Due>,
    /// Its rechecks follow no invalidation, but a start without data, a flush or a gap.
    #[serde(skip)]
    pub rechecked_in_doubt: bool,
    /// It was found to be gone, whether or not a later answer was refused: its rechecks fetch it.
    #[serde(skip)]
    pub is_gone: bool,
}

/// An input whose removal is held back, since it is gone at its upstream or with an input of its own.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct HeldInput {
    /// Its key.
    pub key: String,
    /// The job that owns it.
    pub job: String,
    /// Until when its removal is held back.
    #[schema(value_type = i64)]
    pub until_ms: RedisTime,
}

impl Ops {
    /// Reads one entry.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn entry(&self, name: &str) -> RedisResult<Entry> {
        let key = EntryKey::new(name);
        let (owner, params) = self.jobs.owner(name).unzip();
        let text = self.store.values(std::slice::from_ref(&key)).await?.pop().flatten();
        let snapshot = self.store.snapshot(&key).await?;
        // The clock is read last: no time in the metadata is later.
        let now = self.store.now().await?;
        let other_type = match text.is_none() && snapshot.has_value() {
            true => self.store.other_types(std::slice::from_ref(&key)).await?.pop().flatten(),
            false => None,
        };
        let ((score, given_up), job_paused_ms, removal_held_until_ms) = match owner {
            Some(job) => (
                self.score_and_letter(&job.name, &key).await?,
                self.paused(&job.name).await?,
                self.held_until(&job.name, &snapshot).await?,
            ),
            None => ((None, None), None, None),
        };
        let (closed_upstreams, held_inputs, missing_inputs) = match owner.zip(params) {
            Some((job, params)) => (
                status::closed(&self.redis, &self.keys, job).await?,
                self.held_inputs(job, &params).await?,
                self.missing_inputs(job, &params, now).await?,
            ),
            None => (Vec::new(), Vec::new(), Vec::new()),
        };
        let (job_is_left, is_outdated) = match owner {
            Some(job) => {
                (self.left_jobs().await?.contains(&job.name), self.is_of_earlier_file(&job.name, &snapshot).await?)
            }
            None => (false, false),
        };
        let (expiry, ours, meta) = (snapshot.expiry, snapshot.ours(), snapshot.meta.as_ref());
        let (attempt, due) = (meta.map(|meta| meta.last_attempt.clone()), score.map(Due::from_score));
        Ok(Entry {
            key: name.to_owned(),
            job: owner.map(|job| job.name.to_string()),
            value: text.map(|text| serde_json::from_str(&text).unwrap_or_else(|_| json!(text))),
            other_type,
            ttl_ms: expiry.at().map(|at| millis(at.saturating_since(now))),
            written_by_samovar: ours.is_some(),
            fetched_ms: ours.map(|meta| meta.fetched_at),
            invalidated_ms: meta.and_then(|meta| meta.invalidated),
            version: ours.and_then(|meta| meta.last_attempt.version),
            announced_version: meta.filter(|meta| meta.is_behind()).and_then(|meta| meta.announced),
            rechecks_ms: owner.zip(meta).map_or_else(Vec::new, |(job, meta)| rechecks(job, meta, now)),
            rechecked_in_doubt: meta.is_some_and(is_rechecked_in_doubt),
            etag: attempt.as_ref().and_then(|attempt| attempt.validators.etag.clone()),
            last_modified: attempt.as_ref().and_then(|attempt| attempt.validators.last_modified.clone()),
            last_outcome: last_outcome(&snapshot),
            is_gone: attempt.as_ref().is_some_and(|attempt| attempt.outcome == Some(Outcome::Gone)),
            last_trigger: attempt.as_ref().and_then(|attempt| attempt.trigger),
            last_attempt_ms: attempt.as_ref().map(|attempt| attempt.attempted),
            failures: attempt.as_ref().map(|attempt| attempt.failures),
            reason: attempt.as_ref().and_then(|attempt| attempt.reason.clone()),
            outlives_ms: ours.filter(|meta| !meta.stale_for.is_zero()).map(|meta| meta.own_expiry - meta.stale_for),
            tags: attempt.filter(|_| ours.is_some()).map(|attempt| attempt.tags).unwrap_or_default(),
            due_ms: due.map(|due| due.at),
            due_for: due.map(|due| due.trigger),
            due_for_input: owner.is_some_and(|job| job.inputs)
                && due.is_some_and(|due| due.trigger == Trigger::Invalidation)
                && meta.is_some_and(|meta| meta.invalidated.is_none()),
            due_state: due.map(|due| state(due.state)),
            due_priority: due.map(|due| priority(due.priority)),
            closed_upstreams,
            is_outdated,
            outdated_waits_for: None,
            job_is_left,
            job_paused_ms,
            removal_held_until_ms,
            held_inputs,
            missing_inputs,
            given_up: given_up.filter(|_| due.is_none()),
            under_way: self.under_way(&key, owner.map(|job| &**job), meta).await?,
            now_ms: now,
            expiry,
            due,
        })
    }
}

impl Ops {
    /// Returns the score of an entry on the agenda, and the reason of its dead letter.
    async fn score_and_letter(&self, job: &JobName, key: &EntryKey) -> RedisResult<(Option<f64>, Option<String>)> {
        redis::pipe()
            .add_command(self.agenda.ask_score(job, key))
            .cmd("HGET")
            .arg(self.keys.dead_reasons(job))
            .arg(key.as_str())
            .query_async(&mut self.redis.clone())
            .await
    }

    /// Returns until when the removal of a value is held back; `None` if it is not.
    async fn held_until(&self, job: &JobName, snapshot: &Snapshot) -> RedisResult<Option<RedisTime>> {
        let is_noted = snapshot.meta.as_ref().is_some_and(|meta| meta.last_attempt.held_until > RedisTime::ZERO);
        if !is_noted || !snapshot.has_value() {
            return Ok(None);
        }
        let guard = self.gone_guard(job).await?.filter(GoneGuard::is_holding);
        Ok(guard.map(|guard| guard.until_ms))
    }

    /// Returns the inputs of an entry of a job whose removal is held back.
    async fn held_inputs(&self, job: &KnownJob, params: &Params) -> RedisResult<Vec<HeldInput>> {
        let keys: Vec<EntryKey> = job.made_from.iter().filter_map(|input| input.key.write(params)).collect();
        let mut held = Vec::new();
        for (key, snapshot) in keys.iter().zip(self.store.snapshots(&keys).await?) {
            let Some((owner, _)) = self.jobs.owner(key.as_str()) else { continue };
            if let Some(until_ms) = self.held_until(&owner.name, &snapshot).await? {
                held.push(HeldInput { key: key.to_string(), job: owner.name.to_string(), until_ms });
            }
        }
        Ok(held)
    }
}

/// Returns the outcome of the last attempt. One whose answer was refused is noted as gone, since the next answer is
/// judged by that.
fn last_outcome(snapshot: &Snapshot) -> Option<Outcome> {
    match snapshot.refusal() {
        Some(_) => Some(Outcome::Deferred),
        None => snapshot.meta.as_ref()?.last_attempt.outcome,
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Urgent => "urgent",
        State::Scheduled => "scheduled",
        State::Claimed => "claimed",
        State::Running => "running",
    }
}

fn priority(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Bulk => "bulk",
        Priority::Normal => "normal",
    }
}

impl Entry {
    /// Tells that the entry has no value and is not due to be fetched. A recheck fetches an absent entry only if the
    /// upstream did not have it.
    pub(crate) fn stays_absent(&self) -> bool {
        let is_due = self.due.is_some_and(|due| due.trigger != Trigger::Recheck);
        self.value.is_none() && self.other_type.is_none() && !is_due && !self.is_gone
    }
}

/// Returns `true` if the rechecks follow no invalidation.
fn is_rechecked_in_doubt(meta: &Meta) -> bool {
    meta.last_attempt.rechecks.as_ref().is_some_and(Rechecks::is_of_doubt)
}

/// Returns the times of the rechecks that are to come.
fn rechecks(job: &KnownJob, meta: &Meta, now: RedisTime) -> Vec<RedisTime> {
    let Some(rechecks) = &meta.last_attempt.rechecks else { return Vec::new() };
    let after = if job.may_lag { meta.answered_at() } else { now };
    rechecks.after(&job.recheck, after).collect()
}
