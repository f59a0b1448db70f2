//! The auditor: asks upstreams for warm entries, compares, and stores nothing.
//!
//! It carries out audits that somebody asked for, and those of jobs with an interval (`claim_audits.lua`), behind
//! everything else: none while an entry of a job that shares an upstream is due, and each under a permit that it waits
//! a second for. A job whose fetches cost money is not audited.
//!
//! A value that differs is looked at again after a few seconds, and so is the answer: the change may be announced just
//! then, and some upstreams answer otherwise each time.
//!
//! On failure: an audit holds no lease and writes no entry, so the audits of a worker that dies are lost, and nothing
//! else. A permit then expires.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::RedisResult;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::agenda::{Due, State};
use crate::entry::{EntryKey, Priority, Trigger, UpstreamName, Version};
use crate::job::{Job, Jobs, Params};
use crate::ops::Ops;
use crate::ops::audit::{self, AuditOutcome, ClaimedAudits};
use crate::redis::{Backoff, RedisTime, Troubles};
use crate::source::{Answer, Ask, Gate, Sources};
use crate::store::{Meta, Snapshot};
use crate::warmer::check_storable;

/// The interval between two rounds.
pub(in crate::worker) const ROUND: Duration = Duration::from_secs(1);
/// The audits of a job that a worker carries out at once.
const AT_ONCE: usize = 4;
/// The entries that are tried before an audit is skipped.
const TRIED: usize = 8;
/// The longest wait for a permit: so much an entry that becomes due meanwhile may have to wait.
const ADMISSION: Duration = Duration::from_secs(1);
/// The time after which a difference is looked at again. An editor saves before it publishes.
const SETTLED: Duration = Duration::from_secs(3);
/// The time beyond an upstream's timeout after which an answer is of no use.
const GRACE: Duration = Duration::from_secs(1);

/// Audits values.
#[derive(Debug)]
pub(in crate::worker) struct Auditor {
    /// Entries and the agenda.
    pub(in crate::worker) ops: Ops,
    /// The jobs.
    pub(in crate::worker) jobs: Arc<Jobs>,
    pub(in crate::worker) sources: Sources,
    pub(in crate::worker) gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// The failures of single jobs.
    pub(in crate::worker) troubles: Troubles,
}

/// An entry that is audited.
struct Audited<'a> {
    job: &'a Job,
    key: EntryKey,
    params: Params,
    inputs: Map<String, Value>,
    meta: Meta,
    value: Value,
}

/// An entry at one moment.
struct Seen {
    snapshot: Snapshot,
    value: Option<Value>,
    /// A refresh is due or under way, or rechecks are to come.
    is_unsettled: bool,
}

/// The answer of an upstream.
enum Answered {
    Value(Value, Option<Version>),
    Gone,
    Failed(String),
    /// The limits did not admit the request.
    Later,
}

impl Auditor {
    /// Runs until `stop`. An audit under way is then dropped.
    pub(in crate::worker) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the auditor");
        while !stop.is_cancelled() {
            let done = tokio::select! {
                done = self.round() => done,
                () = stop.cancelled() => return,
            };
            match done {
                Ok(true) => backoff.well(),
                Ok(false) => {
                    backoff.well();
                    tokio::select! {
                        () = tokio::time::sleep(ROUND.mul_f64(rand::random_range(0.75..=1.25))) => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(e) => backoff.ill(&e, &stop).await,
            }
        }
    }

    /// Carries out what is due. Returns `true` if there may be more.
    async fn round(&self) -> RedisResult<bool> {
        let idle = self.idle().await?;
        if idle.is_empty() {
            return Ok(false);
        }
        let Ops { redis, keys, .. } = &self.ops;
        let claimed = self.troubles.alone("audits", audit::claim(redis, keys, &idle, AT_ONCE).await)?;
        let claimed = claimed.unwrap_or_default();
        let mut audits = FuturesUnordered::new();
        for ClaimedAudits { job, asked } in claimed {
            let Some(job) = self.jobs.jobs.get(job.as_str()) else { continue };
            for _ in 0..asked.max(1) {
                audits.push(self.audit(job, asked > 0));
            }
        }
        let mut all_done = !audits.is_empty();
        while let Some(done) = audits.next().await {
            all_done &= done?;
        }
        Ok(all_done)
    }

    /// Returns the jobs that may be audited now: nothing is due of any job that shares an upstream with them.
    async fn idle(&self) -> RedisResult<Vec<&Job>> {
        let Ops { redis, keys, agenda, .. } = &self.ops;
        let audited: Vec<&Job> = self.jobs.jobs.values().map(|job| &**job).filter(|job| !job.is_paid_for()).collect();
        if audited.is_empty() {
            return Ok(Vec::new());
        }
        if audited.iter().all(|job| job.warm.audit.is_none()) {
            let mut ask = redis::cmd("EXISTS");
            if !ask.arg(keys.audits()).query_async::<bool>(&mut redis.clone()).await? {
                return Ok(Vec::new());
            }
        }
        let now = self.ops.store.now().await?;
        let mut ask = redis::pipe();
        for job in self.jobs.jobs.keys() {
            ask.exists(keys.paused(job));
            for count in agenda.ask_counts(job, now).into_iter().take(3) {
                ask.add_command(count);
            }
        }
        let counts: Vec<RedisResult<u64>> = ask.ignore_errors().query_async(&mut redis.clone()).await?;
        let (mut paused, mut busy) = (BTreeSet::new(), BTreeSet::new());
        for (job, counts) in self.jobs.jobs.values().zip(counts.chunks(4)) {
            let some = |count: &RedisResult<u64>| count.as_ref().is_ok_and(|count| *count > 0);
            let is_paused = some(&counts[0]);
            if is_paused {
                paused.insert(&job.name);
            } else if counts[1..].iter().any(some) {
                busy.extend(job.sources.iter().filter_map(|source| source.upstream()));
            }
        }
        let is_idle = |job: &&Job| {
            let upstream = job.sources[0].upstream();
            let gate = upstream.and_then(|upstream| self.gates.get(upstream));
            let is_open = gate.is_none_or(|gate| gate.closed_for().is_none());
            !paused.contains(&job.name) && is_open && upstream.is_none_or(|upstream| !busy.contains(upstream))
        };
        Ok(audited.into_iter().filter(is_idle).collect())
    }

    /// Carries out one audit of a job. Returns `false` if the upstream's limits did not admit it; one that somebody
    /// asked for is put back then.
    async fn audit(&self, job: &Job, is_asked: bool) -> RedisResult<bool> {
        let Ops { redis, keys, .. } = &self.ops;
        let audited = self.troubles.alone(job.name.as_str(), self.pick(job).await)?.flatten();
        let Some(audited) = audited else {
            let done = audit::record(
                redis,
                keys,
                &job.name,
                AuditOutcome::Skipped,
                (None, RedisTime::ZERO, self.now().await?),
            );
            self.troubles.alone(job.name.as_str(), done.await)?;
            return Ok(true);
        };
        let Some(outcome) = self.judge(&audited).await? else {
            if is_asked {
                audit::put_back(redis, keys, &job.name, 1).await?;
            }
            return Ok(false);
        };
        let (key, at) = (&audited.key, self.now().await?);
        debug!(job = %job.name, %key, outcome = outcome.as_str(), "audited");
        if outcome.is_unannounced() {
            warn!(
                job = %job.name, %key, outcome = outcome.as_str(),
                "an audited value is out of date, and no invalidation was heard since it was fetched"
            );
        }
        let done = audit::record(redis, keys, &job.name, outcome, (Some(key), audited.meta.fetched_at, at)).await;
        self.troubles.alone(job.name.as_str(), done)?;
        Ok(true)
    }

    async fn now(&self) -> RedisResult<RedisTime> {
        self.ops.store.now().await
    }

    /// Picks a warm entry at random, of which no refresh is under way, and reads what it is made from.
    async fn pick<'a>(&self, job: &'a Job) -> RedisResult<Option<Audited<'a>>> {
        for _ in 0..TRIED {
            let Some(key) = self.ops.agenda.at_random(&job.name).await? else { return Ok(None) };
            let Some(params) = job.key.read(key.as_str()) else { continue };
            let seen = self.look(job, &key).await?;
            let Seen { snapshot, value: Some(value), is_unsettled: false } = seen else { continue };
            let Some(meta) = snapshot.into_ours() else { continue };
            // A value that outlives its TTL, or of an earlier job file, is known to be old.
            if !meta.stale_for.is_zero() || meta.is_outdated(&job.made, &job.made) {
                continue;
            }
            let Some(inputs) = self.inputs(job, &params, meta.validated_at).await? else { continue };
            return Ok(Some(Audited { job, key, params, inputs, meta, value }));
        }
        Ok(None)
    }

    /// Looks at an entry.
    async fn look(&self, job: &Job, key: &EntryKey) -> RedisResult<Seen> {
        let Ops { store, agenda, .. } = &self.ops;
        let one = std::slice::from_ref(key);
        // The value first: one that is stored between the two has other metadata.
        let value = store.values(one).await?.pop().flatten();
        let value = value.and_then(|value| serde_json::from_str(&value).ok());
        let is_leased = store.leased(one).await? == [true];
        let due = agenda.dues(&job.name, one).await?.pop().flatten();
        let (snapshot, now) = (store.snapshot(key).await?, self.now().await?);
        let is_due = due.is_some_and(|due: Due| {
            due.state != State::Scheduled
                || due.at <= now
                || matches!(due.trigger, Trigger::Invalidation | Trigger::Recheck)
        });
        let is_invalidated = snapshot.meta.as_ref().is_none_or(|meta| meta.invalidated.is_some() || meta.is_behind());
        Ok(Seen { snapshot, value, is_unsettled: is_leased || is_due || is_invalidated })
    }

    /// Reads the inputs of an entry that was found to be valid at that time; `None` if one is missing, or has changed
    /// since: the entry is to be made anew then.
    async fn inputs(&self, job: &Job, params: &Params, made: RedisTime) -> RedisResult<Option<Map<String, Value>>> {
        let mut inputs = Map::new();
        for (name, input) in &job.inputs {
            let Some(key) = input.key.write(params) else { return Ok(None) };
            let value = self.ops.store.values(std::slice::from_ref(&key)).await?.pop().flatten();
            let since = self.ops.store.snapshot(&key).await?.content_since();
            let value = match value.map(|value| serde_json::from_str(&value)) {
                Some(Ok(value)) => value,
                None if input.is_optional => Value::Null,
                _ => return Ok(None),
            };
            if since.is_some_and(|since| since >= made) {
                return Ok(None);
            }
            inputs.insert(name.clone(), value);
        }
        Ok(Some(inputs))
    }

    /// Compares a value with what its upstream answers; `None` if the limits did not admit the request.
    async fn judge(&self, audited: &Audited<'_>) -> RedisResult<Option<AuditOutcome>> {
        let first = match self.ask(audited).await {
            Answered::Later => return Ok(None),
            Answered::Failed(reason) => {
                debug!(key = %audited.key, reason, "an audit got no usable answer");
                return Ok(Some(AuditOutcome::Failed));
            }
            Answered::Value(value, _) if value == audited.value => return Ok(Some(AuditOutcome::Current)),
            other => other,
        };
        tokio::time::sleep(SETTLED).await;
        let seen = self.look(audited.job, &audited.key).await?;
        if !audited.is_same(&seen) {
            return Ok(Some(AuditOutcome::Announced));
        }
        if self.may_be_announced().await? {
            return Ok(Some(AuditOutcome::Unsettled));
        }
        let outcome = match (first, self.ask(audited).await) {
            (Answered::Gone, Answered::Gone) => AuditOutcome::Gone,
            (Answered::Value(first, version), Answered::Value(second, _)) if first == second => {
                match version < audited.meta.last_attempt.version {
                    true => AuditOutcome::Unsettled,
                    false => AuditOutcome::Different,
                }
            }
            (_, Answered::Failed(_)) => AuditOutcome::Failed,
            (_, Answered::Later) => return Ok(None),
            _ => AuditOutcome::Unsettled,
        };
        let seen = self.look(audited.job, &audited.key).await?;
        Ok(Some(if audited.is_same(&seen) { outcome } else { AuditOutcome::Announced }))
    }

    /// Returns `true` if invalidations wait in the inbox, or all values are in doubt after a gap.
    async fn may_be_announced(&self) -> RedisResult<bool> {
        let Ops { redis, keys, .. } = &self.ops;
        let [suspect, ..] = keys.revalidation();
        let mut ask = redis::pipe();
        ask.exists(suspect).cmd("XLEN").arg(keys.inbox());
        let (is_suspect, waiting): (bool, u64) = ask.query_async(&mut redis.clone()).await?;
        Ok(is_suspect || waiting > 0)
    }

    /// Asks the first source, without validators.
    async fn ask(&self, audited: &Audited<'_>) -> Answered {
        let Audited { job, key, params, inputs, .. } = audited;
        let gate = job.sources[0].upstream().and_then(|upstream| self.gates.get(upstream));
        let permit = match gate {
            None => None,
            Some(gate) => match gate.admit(Priority::Normal, Instant::now() + ADMISSION).await {
                Ok(permit) => Some(permit),
                Err(_) => return Answered::Later,
            },
        };
        let deadline = Instant::now() + self.jobs.timeout(&job.sources[0]) + GRACE;
        let ask = Ask { job, source: 0, key, params, inputs, known: None, deadline };
        match self.sources.fetch_with(&ask, permit).await.0 {
            Ok(Answer::Value(fetched)) => {
                let value = fetched.value();
                match check_storable(job, params, inputs, &value) {
                    Ok((_, version)) => Answered::Value(value, version),
                    Err(reason) => Answered::Failed(reason),
                }
            }
            Ok(Answer::Gone) => Answered::Gone,
            Ok(Answer::Unchanged) => Answered::Failed("304 to a request without validators".to_owned()),
            Err(e) => Answered::Failed(e.to_string()),
        }
    }
}

impl Audited<'_> {
    /// Returns `true` if the entry still has the value that is audited, and nothing is under way.
    fn is_same(&self, seen: &Seen) -> bool {
        let is_kept = seen.snapshot.ours().is_some_and(|meta| meta.validated_at == self.meta.validated_at);
        is_kept && !seen.is_unsettled && seen.value.as_ref() == Some(&self.value)
    }
}
