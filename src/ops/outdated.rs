//! Values of earlier job files: how many of a job are still to be made anew, and what they wait for.
//!
//! The last count of all entries tells their number, by the file that each value notes. The state of the job tells what
//! they wait for; if nothing holds the whole job, one of the entries does, as long as it is of an earlier file. Of one
//! entry the same is told by the same rules.

use std::collections::{BTreeMap, BTreeSet};

use redis::RedisResult;

use super::status::{self, JobStatus, Outdated, UpstreamStatus};
use super::{Census, Entry, Noted, Ops};
use crate::agenda::{Due, State};
use crate::entry::{EntryKey, JobName, Trigger, duration};
use crate::redis::{RedisTime, is_of_keys};
use crate::store::Snapshot;

/// The wait of entries that are due.
const TURN: &str = "a turn";
/// The most inputs of an entry that are examined.
const MOST_INPUTS: usize = 100;

/// The wait of a value of an earlier file, and the reason of its last attempt, if it waits for its next one.
type Wait = (String, Option<String>);

/// The state of a job that may keep all its entries from a request.
struct OfJob<'a> {
    job: &'a JobName,
    is_paused: bool,
    /// Live workers have the earlier file.
    is_held_back: bool,
    /// All its upstreams.
    upstreams: &'a [UpstreamStatus],
}

impl Ops {
    /// Adds to each job its values of an earlier file at the last count. Call it when the upstreams are added. `living`
    /// are the live workers.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn add_outdated(
        &self,
        statuses: &mut [JobStatus],
        census: &Census,
        living: &RedisResult<Vec<String>>,
    ) -> RedisResult<()> {
        let of = |status: &JobStatus| census.jobs.get(&status.job).filter(|counted| counted.outdated > 0);
        if !statuses.iter().any(|status| of(status).is_some()) {
            return Ok(());
        }
        let held_back = self.held_back_by(living).await?;
        let noted = match self.noted().await {
            Err(e) if is_of_keys(&e) => BTreeMap::new(),
            noted => noted?,
        };
        let now = self.store.now().await?;
        for status in statuses {
            let Some(counted) = of(status) else { continue };
            let job = JobName::new(status.job.as_str());
            let (is_paused, is_held_back) = (status.paused_ms.is_some(), held_back.contains_key(&job));
            let of = OfJob { job: &job, is_paused, is_held_back, upstreams: &status.upstreams };
            let first = counted.first_outdated.as_deref().map(EntryKey::new);
            let (waits_for, reason) = self.wait_of(&of, &noted, first.as_ref(), now).await?;
            status.outdated = Some(Outdated { values: counted.outdated, waits_for, reason });
        }
        Ok(())
    }

    /// Adds to an entry what it waits for, if its value is of an earlier file. `living` are the live workers.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn add_wait(&self, entry: &mut Entry, living: &RedisResult<Vec<String>>) -> RedisResult<()> {
        let job = entry.job.as_ref().filter(|_| entry.is_outdated).and_then(|job| self.jobs.jobs.get(job.as_str()));
        let Some(job) = job else { return Ok(()) };
        let upstreams = status::upstreams_of(&self.redis, &self.keys, job).await?;
        let (is_paused, held_back) = (entry.job_paused_ms.is_some(), self.held_back_by(living).await?);
        let is_held_back = held_back.contains_key(&job.name);
        let of = OfJob { job: &job.name, is_paused, is_held_back, upstreams: &upstreams };
        let key = EntryKey::new(entry.key.as_str());
        let noted = match self.noted().await {
            // A key of another type is told elsewhere.
            Err(e) if is_of_keys(&e) => return Ok(()),
            noted => noted?,
        };
        let (waits_for, _) = self.wait_of(&of, &noted, Some(&key), entry.now_ms).await?;
        entry.outdated_waits_for = Some(waits_for);
        Ok(())
    }

    /// Returns the jobs whose change live workers with the earlier file hold back.
    async fn held_back_by(&self, living: &RedisResult<Vec<String>>) -> RedisResult<BTreeMap<JobName, Vec<String>>> {
        let Ok(living) = living else { return Ok(BTreeMap::new()) };
        match self.held_back(living).await {
            Err(e) if is_of_keys(&e) => Ok(BTreeMap::new()),
            held_back => held_back,
        }
    }

    /// Returns what values of an earlier file wait for: what keeps the whole job from requests, else what `key` waits
    /// for, which is one of them.
    async fn wait_of(
        &self,
        of: &OfJob<'_>,
        noted: &BTreeMap<JobName, Noted>,
        key: Option<&EntryKey>,
        now: RedisTime,
    ) -> RedisResult<Wait> {
        if let Some(wait) = wait_of_job(of, now) {
            return Ok((wait, None));
        }
        let Some(key) = key else { return Ok((TURN.to_owned(), None)) };
        match self.wait_of_entry(of, noted, key, now).await {
            Err(e) if is_of_keys(&e) => Ok((TURN.to_owned(), None)),
            wait => wait,
        }
    }

    /// Returns what an entry waits for, and the reason of its last attempt. One that was made anew since the count
    /// waits for nothing, and the others come in their turn.
    async fn wait_of_entry(
        &self,
        of: &OfJob<'_>,
        noted: &BTreeMap<JobName, Noted>,
        key: &EntryKey,
        now: RedisTime,
    ) -> RedisResult<Wait> {
        let job = of.job;
        let snapshot = self.store.snapshot(key).await?;
        let noted_of_job = noted.get(job).filter(|noted| is_outdated(noted, &snapshot));
        let Some(noted_of_job) = noted_of_job else { return Ok((TURN.to_owned(), None)) };
        let due = self.agenda.dues(job, std::slice::from_ref(key)).await?.into_iter().next().flatten();
        let waits = |due: &Due| matches!(due.state, State::Urgent | State::Scheduled) && due.at > now;
        match due {
            Some(due) if !waits(&due) => Ok((TURN.to_owned(), None)),
            // A retry, or a request that was deferred.
            Some(due) if matches!(due.trigger, Trigger::Cron | Trigger::Manual) || !noted_of_job.is_open() => {
                let reason =
                    self.last_reasons(job, std::slice::from_ref(key), None).await?.into_iter().next().flatten();
                if let Some((input, paused)) = self.paused_input(key).await? {
                    let input =
                        format!("the end of the pause of {paused} (`samovar resume {paused}`): {input} is an input");
                    return Ok((format!("{input} of {key}"), reason));
                }
                let left = duration::rough(due.at.saturating_since(now));
                // Another source was asked in place of one that takes no requests.
                let closed = closed(of, now).into_iter().map(|closed| format!(", or for {closed}"));
                let closed = closed.collect::<String>();
                Ok((format!("the next attempt; that at {key} comes in {left}{closed}"), reason))
            }
            None if !noted_of_job.is_open() => {
                Ok((format!("an attempt; {key} is not on the agenda, and `samovar get` shows why"), None))
            }
            // Its refresh is later, and the remaker brings it forward.
            Some(_) | None => Ok(match self.outdated_input(key, noted).await? {
                Some(input) => (format!("inputs that are made anew first, such as {input} for {key}"), None),
                None => (TURN.to_owned(), None),
            }),
        }
    }

    /// Returns an input of an entry that has no value, or an invalidated one, and whose job is paused.
    async fn paused_input(&self, key: &EntryKey) -> RedisResult<Option<(EntryKey, JobName)>> {
        let Some((job, params)) = self.jobs.owner(key.as_str()) else { return Ok(None) };
        for input in job.made_from.iter().filter_map(|input| input.key.write(&params)).take(MOST_INPUTS) {
            let Some((owner, _)) = self.jobs.owner(input.as_str()) else { continue };
            let snapshot = self.store.snapshot(&input).await?;
            let is_awaited = !snapshot.has_value() || snapshot.ours().is_some_and(|meta| meta.invalidated.is_some());
            if is_awaited && self.paused(&owner.name).await?.is_some() {
                return Ok(Some((input, owner.name.clone())));
            }
        }
        Ok(None)
    }

    /// Returns `true` if a job's value is made from an earlier file, and is to be made anew.
    pub(super) async fn is_of_earlier_file(&self, job: &JobName, snapshot: &Snapshot) -> RedisResult<bool> {
        match self.noted().await {
            // A key of another type is told elsewhere.
            Err(e) if is_of_keys(&e) => Ok(false),
            noted => Ok(noted?.get(job).is_some_and(|noted| is_outdated(noted, snapshot))),
        }
    }

    /// Returns an input of an entry, direct or not, that is to be made anew before it: its value is of an earlier file,
    /// or older than the content of an input of its own.
    async fn outdated_input(&self, key: &EntryKey, noted: &BTreeMap<JobName, Noted>) -> RedisResult<Option<EntryKey>> {
        let inputs = |key: &EntryKey| -> Option<(JobName, Vec<EntryKey>)> {
            let (job, params) = self.jobs.owner(key.as_str())?;
            Some((job.name.clone(), job.made_from.iter().filter_map(|input| input.key.write(&params)).collect()))
        };
        let Some((_, mut next)) = inputs(key) else { return Ok(None) };
        let mut seen = BTreeSet::new();
        while let Some(input) = next.pop().filter(|_| seen.len() < MOST_INPUTS) {
            let Some((owner, its_inputs)) = inputs(&input).filter(|_| seen.insert(input.clone())) else { continue };
            let snapshot = self.store.snapshot(&input).await?;
            let since = self.store.snapshots(&its_inputs).await?.iter().filter_map(Snapshot::content_since).max();
            let is_older = snapshot.ours().is_some_and(|meta| since.is_some_and(|since| meta.validated_at <= since));
            if is_older || noted.get(&owner).is_some_and(|noted| is_outdated(noted, &snapshot)) {
                return Ok(Some(input));
            }
            next.extend(its_inputs);
        }
        Ok(None)
    }
}

/// Returns `true` if a value of Samovar's is made from another file than the one that a worker began with last.
fn is_outdated(noted: &Noted, snapshot: &Snapshot) -> bool {
    snapshot.ours().is_some_and(|meta| meta.is_outdated(noted.newest(), noted.base()))
}

/// Returns what keeps all entries of a job from a request.
fn wait_of_job(of: &OfJob<'_>, now: RedisTime) -> Option<String> {
    if of.is_held_back {
        return Some("workers that have the earlier file".to_owned());
    }
    if of.is_paused {
        return Some(format!("the end of the pause (`samovar resume {}`)", of.job));
    }
    let closed = closed(of, now);
    (!closed.is_empty() && closed.len() == of.upstreams.len()).then(|| closed.join("; "))
}

/// Returns the upstreams of a job that take no requests now, each with the reason.
fn closed(of: &OfJob<'_>, now: RedisTime) -> Vec<String> {
    let told = |upstream: &UpstreamStatus| {
        let (name, why) = (&upstream.upstream, upstream.closed_text(now)?);
        let what = if upstream.closed == Some("tokens") { "the budget of" } else { "the upstream" };
        Some(format!("{what} {name}: {why}"))
    };
    of.upstreams.iter().filter_map(told).collect()
}
