//! Freshness audits: who asks for them, and what they found.
//!
//! An audit asks the upstream for a warm entry and compares; workers carry it out. Somebody asks for a number of audits
//! of a job, or its file has an interval. Each ends with an [`AuditOutcome`], which counts in `samovar:audit:{JOB}`.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};
use serde::{Deserialize, Serialize};

use super::Ops;
use crate::entry::duration::millis;
use crate::entry::{EntryKey, JobName, excerpt};
use crate::job::{Job, KnownJob};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};

/// The life of requests that no worker carries out.
const LIFE: Duration = Duration::from_secs(24 * 3_600);
/// The field of the last difference, as JSON.
const LAST: &str = "last";
/// The longest key that is kept of the last difference, in characters.
const LONGEST_KEY: usize = 500;

static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/claim_audits.lua")));
static WITHDRAW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/withdraw_audits.lua")));

/// The result of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuditOutcome {
    /// The value is what the upstream answers.
    Current,
    /// The upstream answers otherwise, and no invalidation was heard.
    Different,
    /// The upstream answers otherwise, and an invalidation or a refresh is under way.
    Announced,
    /// The upstream does not have the entry, and no invalidation was heard.
    Gone,
    /// The upstream answers otherwise each time, or with an earlier version: nothing is known.
    Unsettled,
    /// The upstream gave no usable answer.
    Failed,
    /// No warm entry was found that could be audited.
    Skipped,
}

impl AuditOutcome {
    /// All outcomes.
    pub const ALL: [Self; 7] =
        [Self::Current, Self::Different, Self::Announced, Self::Gone, Self::Unsettled, Self::Failed, Self::Skipped];

    /// Returns the name used in Redis and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Different => "different",
            Self::Announced => "announced",
            Self::Gone => "gone",
            Self::Unsettled => "unsettled",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    /// Returns `true` if nobody announced that the value is out of date.
    pub fn is_unannounced(self) -> bool {
        matches!(self, Self::Different | Self::Gone)
    }
}

/// The audits of a job since its counts began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Audits {
    /// Values that were what the upstream answered.
    pub current: u64,
    /// Values that the upstream answered otherwise for, and no invalidation was heard.
    pub different: u64,
    /// Values that the upstream answered otherwise for, with an invalidation or a refresh under way.
    pub announced: u64,
    /// Values of entries that the upstream does not have, and no invalidation was heard.
    pub gone: u64,
    /// Values of which nothing is known: the upstream answered otherwise each time, or with an earlier version.
    pub unsettled: u64,
    /// Audits without a usable answer.
    pub failed: u64,
    /// Audits that found no warm entry that could be audited.
    pub skipped: u64,
    /// When the counts began (Redis time, ms since the epoch).
    #[schema(value_type = Option<i64>)]
    pub since_ms: Option<RedisTime>,
    /// When the last audit ended (Redis time, ms since the epoch).
    #[schema(value_type = Option<i64>)]
    pub last_ms: Option<RedisTime>,
    /// The last value that was different or gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_different: Option<LastDifferent>,
}

/// The last value that was out of date though nobody announced it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastDifferent {
    /// Its key.
    pub key: String,
    /// `different` or `gone`.
    pub outcome: AuditOutcome,
    /// When it was audited (Redis time, ms since the epoch).
    #[schema(value_type = i64)]
    pub at_ms: RedisTime,
    /// When its content was last asked for before that (Redis time, ms since the epoch).
    #[schema(value_type = i64)]
    pub fetched_ms: RedisTime,
}

impl Audits {
    fn of(fields: &BTreeMap<String, String>) -> Self {
        let count = |outcome: AuditOutcome| fields.get(outcome.as_str()).and_then(|n| n.parse().ok()).unwrap_or(0);
        let time = |name: &str| fields.get(name).and_then(|at| at.parse().ok());
        Self {
            current: count(AuditOutcome::Current),
            different: count(AuditOutcome::Different),
            announced: count(AuditOutcome::Announced),
            gone: count(AuditOutcome::Gone),
            unsettled: count(AuditOutcome::Unsettled),
            failed: count(AuditOutcome::Failed),
            skipped: count(AuditOutcome::Skipped),
            since_ms: time("since_ms"),
            last_ms: time("last_ms"),
            last_different: fields.get(LAST).and_then(|text| serde_json::from_str(text).ok()),
        }
    }

    /// Returns the number of audits with this outcome.
    pub fn count(&self, outcome: AuditOutcome) -> u64 {
        match outcome {
            AuditOutcome::Current => self.current,
            AuditOutcome::Different => self.different,
            AuditOutcome::Announced => self.announced,
            AuditOutcome::Gone => self.gone,
            AuditOutcome::Unsettled => self.unsettled,
            AuditOutcome::Failed => self.failed,
            AuditOutcome::Skipped => self.skipped,
        }
    }

    /// Returns the number of all audits.
    pub fn all(&self) -> u64 {
        AuditOutcome::ALL.into_iter().map(|outcome| self.count(outcome)).sum()
    }

    /// Returns the number of values that were compared with an answer.
    pub fn judged(&self) -> u64 {
        self.current + self.different + self.announced + self.gone
    }

    /// Returns the audits since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: u64, before: u64| now.saturating_sub(before);
        Self {
            current: less(self.current, earlier.current),
            different: less(self.different, earlier.different),
            announced: less(self.announced, earlier.announced),
            gone: less(self.gone, earlier.gone),
            unsettled: less(self.unsettled, earlier.unsettled),
            failed: less(self.failed, earlier.failed),
            skipped: less(self.skipped, earlier.skipped),
            ..self.clone()
        }
    }

    /// Returns the counts as a sentence about a job.
    pub fn sentence(&self, job: &str) -> String {
        let judged = self.judged();
        let mut text = match judged {
            0 => format!("No value of {job} could be audited"),
            1 => format!("{} of 1 audited value of {job} was current", self.current),
            _ => format!("{} of {judged} audited values of {job} were current", self.current),
        };
        let others = [
            (self.different, "different without an invalidation"),
            (self.gone, "gone without an invalidation"),
            (self.announced, "out of date with an invalidation under way"),
            (self.unsettled, "not comparable, since the upstream's answers differ each time or are older"),
            (self.failed, "without a usable answer"),
            (self.skipped, "skipped, since no warm entry could be audited"),
        ];
        for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!("; {count} {what}"));
        }
        text.push('.');
        text
    }
}

/// Audits that a worker took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedAudits {
    /// The job.
    pub job: String,
    /// The number that somebody asked for; 0 for one of the job's interval.
    pub asked: u64,
}

/// Takes the audits that are due of these jobs, at most `most` of a job.
///
/// # Errors
/// Fails if Redis returns an error; what it gave then is lost.
pub async fn claim(redis: &Connection, keys: &Keys, jobs: &[&Job], most: usize) -> RedisResult<Vec<ClaimedAudits>> {
    let mut call = CLAIM.key(keys.audits());
    call.arg(most).arg(millis(LIFE));
    for job in jobs {
        call.arg(job.name.as_str()).arg(job.warm.audit.map_or(0, millis));
    }
    let taken: Vec<(String, u64)> = call.invoke_async(&mut redis.clone()).await?;
    Ok(taken.into_iter().map(|(job, asked)| ClaimedAudits { job, asked }).collect())
}

/// Puts audits back that could not be carried out yet.
///
/// # Errors
/// Fails if Redis returns an error; they are then lost.
pub async fn put_back(redis: &Connection, keys: &Keys, job: &JobName, asked: u64) -> RedisResult<()> {
    let mut back = redis::pipe();
    back.hincr(keys.audits(), job.as_str(), asked).ignore().pexpire(keys.audits(), millis(LIFE)).ignore();
    back.exec_async(&mut redis.clone()).await
}

/// Counts an audit of an entry whose content was last asked for at `fetched`.
///
/// # Errors
/// Fails if Redis returns an error; it is then not counted.
pub async fn record(
    redis: &Connection,
    keys: &Keys,
    job: &JobName,
    outcome: AuditOutcome,
    (key, fetched_ms, at_ms): (Option<&EntryKey>, RedisTime, RedisTime),
) -> RedisResult<()> {
    let audit = keys.audit(job);
    let mut count = redis::pipe();
    count.cmd("HSETNX").arg(&audit).arg("since_ms").arg(at_ms).ignore();
    count.hincr(&audit, outcome.as_str(), 1).ignore().hset(&audit, "last_ms", at_ms).ignore();
    if let Some(key) = key.filter(|_| outcome.is_unannounced()) {
        let last = LastDifferent { key: excerpt(key.as_str(), LONGEST_KEY), outcome, at_ms, fetched_ms };
        count.hset(&audit, LAST, serde_json::to_string(&last).unwrap_or_default()).ignore();
    }
    count.exec_async(&mut redis.clone()).await
}

/// Returns the audits of a job; `None` if there were none.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn audits(redis: &Connection, keys: &Keys, job: &JobName) -> RedisResult<Option<Audits>> {
    let fields: BTreeMap<String, String> =
        redis::cmd("HGETALL").arg(keys.audit(job)).query_async(&mut redis.clone()).await?;
    Ok((!fields.is_empty()).then(|| Audits::of(&fields)))
}

/// Returns the reason why a job is not audited, if there is one.
pub fn unaudited(job: &KnownJob) -> Option<&'static str> {
    let may_cost = job.may_hold_unasked || job.paid_fallbacks > 0;
    may_cost.then_some("its values come from AI, and each request would cost money")
}

impl Ops {
    /// Asks for audits of a job.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn ask_audits(&self, job: &JobName, number: u64) -> RedisResult<()> {
        put_back(&self.redis, &self.keys, job, number).await
    }

    /// Withdraws as many audits of a job, if no worker has taken them.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn withdraw_audits(&self, job: &JobName, number: u64) -> RedisResult<()> {
        let mut call = WITHDRAW.key(self.keys.audits());
        call.arg(job.as_str()).arg(number).invoke_async(&mut self.redis.clone()).await
    }

    /// Returns the audits of a job.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn audits(&self, job: &JobName) -> RedisResult<Audits> {
        Ok(audits(&self.redis, &self.keys, job).await?.unwrap_or_default())
    }
}
