//! The current state of a fleet's jobs and upstreams.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;
use serde::Serialize;

use crate::agenda::Agenda;
use crate::entry::LastOutcome;
use crate::entry::duration;
use crate::entry::{Outcome, Usage};
use crate::job::{KnownJob, KnownJobs, KnownUpstream};
use crate::ops::audit::{self, Audits};
use crate::ops::pause::NOTE;
use crate::ops::reads::{self, ReportedReads};
use crate::ops::{Census, FleetStatus, RefusedReload};
use crate::popularity::FeedState;
use crate::protocol::Keys;
use crate::redis::requirements::explain;
use crate::redis::{Connection, RedisTime, WrongType, is_of_keys, wrong_types};
use crate::store::GoneGuard;
use crate::trigger::cron::WARMED_UP;

/// The time before the next probe of a closed upstream from which on it counts as sent.
const PROBES: Duration = Duration::from_secs(1);

/// One job.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct JobStatus {
    /// Its name.
    pub job: String,
    /// The description in its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its key pattern.
    pub key: String,
    /// The TTL, in seconds.
    pub ttl_seconds: u64,
    /// The schedules, joined by `; `, each with its time zone unless that is UTC,
    /// and with `(refetch)` if its warmups fetch everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The next warmup (Redis time, ms since the epoch).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub next_warmup_ms: Option<RedisTime>,
    /// When the last complete warmup ended (Redis time, ms since the epoch); absent before the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub warmed_up_ms: Option<RedisTime>,
    /// The state of its feed; absent without one, and before it is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed: Option<FeedState>,
    /// When it was paused (Redis time, ms since the epoch).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub paused_ms: Option<RedisTime>,
    /// Why it is paused, in the words of the person who paused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_note: Option<String>,
    /// Its guard while it holds removals back, or lets them through as a person decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone_guard: Option<GoneGuard>,
    /// Keys of this job at the last count; absent before the first one.
    pub warm: Option<u64>,
    /// Entries that are to be warm, as of that count: listed, named by its feed, or among the most read.
    pub wanted: Option<u64>,
    /// When that count was made (Redis time, ms since the epoch).
    #[schema(value_type = Option<i64>)]
    pub warm_counted_ms: Option<RedisTime>,
    /// When the oldest of its values was fetched, as of that count (Redis time, ms since the epoch).
    #[schema(value_type = Option<i64>)]
    pub oldest_ms: Option<RedisTime>,
    /// Values kept beyond their TTL because their source fails (`stale_if_error`), as of that count.
    pub old: Option<u64>,
    /// Values that were invalidated and not fetched since, as of that count.
    pub invalidated: Option<u64>,
    /// Its values that are made from an earlier job file, as of that count; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outdated: Option<Outdated>,
    /// Entries that are due and not yet claimed.
    pub due: u64,
    /// Entries in flight: those that workers have claimed.
    #[serde(rename = "in_hand")]
    pub in_flight: u64,
    /// Dead letters.
    pub dead: u64,
    /// Outcomes since the counters started.
    pub outcomes: BTreeMap<String, u64>,
    /// Tokens and requests spent and saved since then.
    #[serde(rename = "spending")]
    pub usage: Usage,
    /// Reads of its keys that services report; null if none are reported.
    pub reads: Option<ReportedReads>,
    /// Its freshness audits; null if there were none.
    pub audits: Option<Audits>,
    /// Its upstreams, the first choice first.
    pub upstreams: Vec<UpstreamStatus>,
    /// The last outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<LastOutcome>,
    /// Faults of single parts: its keys of the wrong type, whose contents count as empty, and those that all jobs
    /// share; a change of its file that waits for workers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// Live workers of the fleet; 0 means that nothing is fetched. Absent if it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Workers that refused their last reload and go on with their earlier job files, the latest first; ten at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused_reloads: Vec<RefusedReload>,
}

/// Values of a job that are made from an earlier job file and are still to be made anew.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Outdated {
    /// Their number.
    pub values: u64,
    /// The reason of the wait.
    pub waits_for: String,
    /// The reason of the last attempt at one of them, if it waits for its next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of an upstream in the fleet.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct UpstreamStatus {
    /// Its name.
    pub upstream: String,
    /// Why no requests are sent now: `breaker`, `refused` (the account is), `retry-after`, `tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<&'static str>,
    /// Until when (Redis time, ms since the epoch); for the breaker, when the next probe is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub closed_until_ms: Option<RedisTime>,
    /// AI tokens spent in the current window; absent without a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_spent: Option<u64>,
    /// AI tokens that may be spent in a window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_budget: Option<u64>,
    /// When the window ends (Redis time, ms since the epoch); absent while nothing is spent in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub tokens_window_ends_ms: Option<RedisTime>,
    /// Its keys of the wrong type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

impl UpstreamStatus {
    /// Returns as text that no requests are sent now, and why; `None` while requests are sent.
    pub fn closed_text(&self, now: RedisTime) -> Option<String> {
        let left = self.closed_until_ms.unwrap_or(now).saturating_since(now);
        self.closed.map(|why| match why {
            "breaker" | "refused" if left < PROBES => format!("only probes are sent ({why})"),
            _ => format!("no requests for {} ({why})", duration::rough(left)),
        })
    }
}

/// Reads all upstreams, in the order of their names.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn upstreams(redis: &Connection, keys: &Keys, jobs: &KnownJobs) -> RedisResult<Vec<UpstreamStatus>> {
    let mut all = Vec::new();
    for known in jobs.upstreams.values() {
        all.push(upstream(redis, keys, known).await?);
    }
    Ok(all)
}

/// Reads the upstreams of a job to which no requests are sent now.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn closed(redis: &Connection, keys: &Keys, job: &KnownJob) -> RedisResult<Vec<UpstreamStatus>> {
    let mut closed = upstreams_of(redis, keys, job).await?;
    closed.retain(|upstream| upstream.closed.is_some());
    Ok(closed)
}

/// Reads all upstreams of a job.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn upstreams_of(redis: &Connection, keys: &Keys, job: &KnownJob) -> RedisResult<Vec<UpstreamStatus>> {
    let mut all = Vec::new();
    for known in &job.upstreams {
        all.push(upstream(redis, keys, known).await?);
    }
    Ok(all)
}

/// Reads one upstream.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn upstream(redis: &Connection, keys: &Keys, known: &KnownUpstream) -> RedisResult<UpstreamStatus> {
    let [limit, _, window, _] = keys.upstream(&known.name);
    let mut ask = redis::pipe();
    ask.cmd("TIME").cmd("HMGET").arg(&limit).arg("blocked").arg("open").arg("said");
    ask.cmd("HMGET").arg(&window).arg("tokens").arg("ends");
    type Limits = (Option<RedisTime>, Option<RedisTime>, Option<String>);
    type Spent = (Option<u64>, Option<RedisTime>);
    type Reply = (RedisResult<RedisTime>, RedisResult<Limits>, RedisResult<Spent>);
    let (now, limits, spent): Reply = ask.ignore_errors().query_async(&mut redis.clone()).await?;
    let (now, (blocked, open, said), (spent, ends)) = (now?, there(limits)?, there(spent)?);
    let budget = known.budget;
    let ends = ends.filter(|ends| spent.is_some() && *ends > now);
    let spent = ends.and(spent).unwrap_or_default();
    let mut status = UpstreamStatus {
        upstream: known.name.to_string(),
        tokens_spent: budget.map(|_| spent),
        tokens_budget: budget,
        tokens_window_ends_ms: budget.and(ends),
        faults: faults(redis, keys, &keys.upstream(&known.name)).await?,
        ..UpstreamStatus::default()
    };
    let out_of_tokens = budget.filter(|budget| spent >= *budget).and(ends);
    // A breaker stays open until a probe succeeds.
    let open = open.filter(|open| *open > RedisTime::ZERO).map(|open| open.max(now + Duration::from_millis(1)));
    let breaker = if said.is_some() { "refused" } else { "breaker" };
    let closed = [("tokens", out_of_tokens), (breaker, open), ("retry-after", blocked)];
    let closed = closed.into_iter().filter_map(|(why, until)| Some((why, until.filter(|until| *until > now)?)));
    if let Some((why, until)) = closed.max_by_key(|(_, until)| *until) {
        status.closed = Some(why);
        status.closed_until_ms = Some(until);
    }
    Ok(status)
}

/// Reads one reply; a key of the wrong type counts as empty.
fn there<T: Default>(reply: RedisResult<T>) -> RedisResult<T> {
    reply.or_else(|e| if is_of_keys(&e) { Ok(T::default()) } else { Err(e) })
}

async fn faults(redis: &Connection, keys: &Keys, names: &[String]) -> RedisResult<Vec<String>> {
    Ok(wrong_types(&mut redis.clone(), keys, names).await?.iter().map(WrongType::to_string).collect())
}

/// Adds its upstreams to each job.
pub fn assign(statuses: &mut [JobStatus], jobs: &KnownJobs, upstreams: &[UpstreamStatus]) {
    for status in statuses {
        let Some(job) = jobs.jobs.get(status.job.as_str()) else { continue };
        for known in &job.upstreams {
            let name = known.name.as_str();
            status.upstreams.extend(upstreams.iter().find(|upstream| upstream.upstream == name).cloned());
        }
    }
}

/// Adds the state that all jobs share to each job.
pub fn add_fleet(statuses: &mut [JobStatus], fleet: &FleetStatus) {
    for status in statuses {
        status.workers = fleet.workers;
        status.refused_reloads.clone_from(&fleet.refused_reloads);
        status.faults.extend(fleet.faults.iter().chain(&fleet.refused_writes).cloned());
    }
}

/// Reads one job, with the keys of the last count. [`assign`] adds its upstreams, [`add_fleet`] the state that all jobs
/// share.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn of_job(
    redis: &Connection,
    keys: &Keys,
    job: &KnownJob,
    census: Option<&Census>,
) -> RedisResult<JobStatus> {
    let faults = faults(redis, keys, &keys.all_of(&job.name)).await?;
    let agenda = Agenda::new(redis.clone(), keys.clone());
    let mut redis = redis.clone();
    let now: RedisTime = redis::cmd("TIME").query_async(&mut redis).await?;
    type Count = RedisResult<u64>;
    type Stats = RedisResult<BTreeMap<String, String>>;
    type Reply = (Count, Count, Count, Count, Count, RedisResult<Option<f64>>, RedisResult<Option<RedisTime>>, Stats);
    let mut ask = redis::pipe();
    for count in agenda.ask_counts(&job.name, now) {
        ask.add_command(count);
    }
    let (scheduled, high, bulk, in_flight, dead, next, paused_ms, stats): Reply = ask
        .cmd("ZCARD")
        .arg(keys.dead(&job.name))
        .cmd("ZSCORE")
        .arg(keys.schedules())
        .arg(job.name.as_str())
        .cmd("GET")
        .arg(keys.paused(&job.name))
        .cmd("HGETALL")
        .arg(keys.stats(&job.name))
        .ignore_errors()
        .query_async(&mut redis)
        .await?;
    let mut of_guard = redis.clone();
    let (gone_guard, reads, audits) = tokio::join!(
        GoneGuard::read(&mut of_guard, keys, &job.name, now),
        reads::reported(&redis, keys, &job.name),
        audit::audits(&redis, keys, &job.name),
    );
    let gone_guard = there(gone_guard)?;
    let reads = match reads {
        // They cannot be read; that is not the same as none.
        Err(e) if is_of_keys(&e) => Some(ReportedReads::unknown(now)),
        reads => reads?,
    };
    let audits = there(audits)?;
    let due: u64 = [there(scheduled)?, there(high)?, there(bulk)?].into_iter().sum();
    let (in_flight, dead) = (there(in_flight)?, there(dead)?);
    let mut faults = faults;
    let next = there(next).unwrap_or_else(|e| {
        // The schedules may be on another master of a Cluster.
        faults.push(format!("the next warmup is not known: {}", explain(&e)));
        None
    });
    let (paused_ms, stats) = (there(paused_ms)?, there(stats)?);
    let counted = census.and_then(|census| census.jobs.get(job.name.as_str()));
    let last = stats.get("last").and_then(|last| serde_json::from_str(last).ok());
    let usage = Usage::of(&stats);
    let warmed_up_ms = stats.get(WARMED_UP).and_then(|at| at.parse().ok());
    let pause_note = stats.get(NOTE).filter(|_| paused_ms.is_some()).cloned();
    let feed = job.feed.then(|| FeedState::of(&stats)).flatten();
    let is_outcome = |name: &str| Outcome::ALL.iter().any(|outcome| outcome.as_str() == name);
    let outcomes = stats.into_iter().filter(|(name, _)| is_outcome(name));
    let outcomes = outcomes.filter_map(|(name, count)| Some((name, count.parse().ok()?))).collect();
    #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
    let next_warmup_ms = next.map(|next| RedisTime::from_millis(next as i64));
    Ok(JobStatus {
        job: job.name.to_string(),
        description: job.description.clone(),
        key: job.key.to_string(),
        ttl_seconds: job.ttl.as_secs(),
        schedule: job.schedule.clone(),
        next_warmup_ms,
        warmed_up_ms,
        feed,
        paused_ms,
        pause_note,
        gone_guard,
        warm: counted.map(|counted| counted.warm),
        wanted: counted.and_then(|counted| counted.wanted),
        warm_counted_ms: census.map(|census| census.at_ms),
        oldest_ms: counted.and_then(|counted| counted.oldest_ms),
        old: counted.map(|counted| counted.old),
        invalidated: counted.and_then(|counted| counted.invalidated),
        outdated: None,
        due,
        in_flight,
        dead,
        outcomes,
        usage,
        reads,
        audits,
        upstreams: Vec::new(),
        last,
        faults,
        workers: None,
        refused_reloads: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_whose_probe_is_due_sends_probes_only() {
        let now = RedisTime::from_millis(1_000);
        let text = |closed, left_ms| {
            let closed_until_ms = Some(now + Duration::from_millis(left_ms));
            UpstreamStatus { closed: Some(closed), closed_until_ms, ..UpstreamStatus::default() }
                .closed_text(now)
                .unwrap()
        };
        assert_eq!(text("breaker", 17), "only probes are sent (breaker)");
        assert_eq!(text("breaker", 9_000), "no requests for 9s (breaker)");
        assert_eq!(text("tokens", 17), "no requests for 17ms (tokens)");
    }
}
