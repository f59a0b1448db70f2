//! The remaker: after a change of what a job's values are made from, it makes those of the earlier file due.
//!
//! Redis notes what the values of each job are made from, and each worker announces its files ([`crate::ops`]). One
//! worker at a time makes outdated values due, the most read first, at a bounded rate, like a warmup. It begins when
//! no live worker has another file of the job: such a worker would make values from its own file again. So a rolling
//! deploy makes each value anew once. Values are served until the new ones land. The note is written last: after a
//! crash another worker begins again, and leaves alone what is made anew by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::revalidator::Pace;
use crate::agenda::When;
use crate::entry::{EntryKey, JobName, Trigger};
use crate::job::{Job, Jobs, Params};
use crate::ops::{Noted, Ops, Plan};
use crate::popularity::Popularity;
use crate::queue::Queue;
use crate::redis::{Backoff, Scan, Troubles, lead};
use crate::source::Sources;

/// Entries of a job that become due in the order of their reads.
const MOST_READ: usize = 10_000;
/// Entries that become due in one step.
const PAGE: usize = 250;
/// The interval at which changes are looked for.
const IDLE: Duration = Duration::from_secs(5);
/// The interval while a change waits for other workers.
const WAITING: Duration = Duration::from_secs(1);
/// The wait for other workers after which the log tells of it: a reload takes less.
const LONG_WAIT: Duration = Duration::from_secs(30);
/// The interval between two passes over the entries of a job.
const PASSES: Duration = Duration::from_secs(2);
/// The time for which entries wait for their inputs to be made anew.
const INPUTS_WAIT: Duration = Duration::from_secs(300);

/// Makes values due that were made from an earlier job file.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Remaker {
    /// The records of files and values, and the agenda.
    pub(in crate::worker) ops: Ops,
    /// The jobs.
    pub(in crate::worker) jobs: Arc<Jobs>,
    /// Tell which AI values would stay the same.
    pub(in crate::worker) sources: Sources,
    /// Tells which entries are read most.
    pub(in crate::worker) popularity: Popularity,
    /// Tells which workers live.
    pub(in crate::worker) queue: Queue,
    /// This worker's name.
    pub(in crate::worker) worker: Arc<str>,
    /// The time after which another worker takes over.
    pub(in crate::worker) claim: Duration,
    /// The time without a heartbeat after which a worker is dead.
    pub(in crate::worker) dead_after: Duration,
    /// The failures of single jobs.
    pub(in crate::worker) troubles: Troubles,
}

/// The changes that wait to be carried out, by job.
type Changes = BTreeMap<JobName, Noted>;

impl Remaker {
    /// Runs until `stop`.
    pub(in crate::worker) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the remaker");
        let (mut has_begun, mut waits) = (false, BTreeMap::new());
        while !stop.is_cancelled() {
            let round = async {
                self.ops.announce_files(&self.worker, &self.jobs).await?;
                if !has_begun {
                    self.ops.begin_files(self.jobs.jobs.values().map(|job| &**job)).await?;
                    has_begun = true;
                    // Drops the announcements of workers that were killed.
                    drop(self.jobs_of_others().await?);
                }
                self.round(&mut waits).await
            };
            // What a walk leaves undone at its end is begun again by the next worker.
            let done = tokio::select! {
                done = round => done,
                () = stop.cancelled() => break,
            };
            let wait = match done {
                Ok(wait) => {
                    backoff.well();
                    wait
                }
                Err(e) => {
                    backoff.ill(&e, &stop).await;
                    continue;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        // Another worker need not wait for the lock. A worker that announces nothing may still fetch while it drains.
        let _ = self.ops.forget_files(&[self.worker.to_string()]).await;
        let _ = lead(&self.ops.redis, &self.ops.keys.remaker(), &self.worker, Duration::from_millis(1)).await;
    }

    /// Carries out the changes that wait for no other worker; returns the time until the next round. `waits` holds
    /// the jobs that wait, since when, and `None` once that was logged.
    async fn round(&self, waits: &mut BTreeMap<JobName, Option<Instant>>) -> RedisResult<Duration> {
        let jobs = &self.jobs.jobs;
        let noted = self.ops.noted().await?;
        // After a flush there are no values to make anew.
        let new = jobs.values().filter(|job| !noted.contains_key(&job.name));
        self.ops.begin_files(new.map(|job| &**job)).await?;
        let is_open = |(name, noted): &(JobName, Noted)| jobs.get(name).is_some_and(|job| !noted.is_settled(&job.made));
        let changes: Changes = noted.into_iter().filter(is_open).collect();
        waits.retain(|job, _| changes.contains_key(job));
        if changes.is_empty() {
            return Ok(IDLE);
        }
        let others = self.jobs_of_others().await?;
        let (waiting, ready): (Vec<&JobName>, Vec<&JobName>) = changes.keys().partition(|job| others(job));
        for job in waiting {
            let since = waits.entry(job.clone()).or_insert_with(|| Some(Instant::now()));
            if since.take_if(|since| since.elapsed() > LONG_WAIT).is_some() {
                info!(%job, "the job's file has changed; its values stay until all live workers have read it");
            }
        }
        if ready.is_empty() || !self.leads().await? {
            return Ok(WAITING);
        }
        let mut ready: Vec<&Arc<Job>> = ready.into_iter().filter_map(|name| jobs.get(name)).collect();
        ready.sort_by_key(|job| self.depth(job));
        let mut pace = Pace::begin();
        for job in ready {
            let made = self.remake(job, &changes, &mut pace).await;
            if self.troubles.alone(job.name.as_str(), made)? == Some(false) {
                debug!(job = %job.name, "the lock of the remaker has expired; another worker continues");
                return Ok(WAITING);
            }
        }
        Ok(WAITING)
    }

    /// Returns a function that tells whether a live worker may have another file of a job. A worker that announces
    /// nothing is of an earlier build, or is about to announce its files.
    async fn jobs_of_others(&self) -> RedisResult<impl Fn(&JobName) -> bool + use<'_>> {
        let living: BTreeSet<String> = self.queue.living(self.dead_after).await?.into_iter().collect();
        let mut announced = self.ops.announced_files().await?;
        let gone: Vec<String> = announced.keys().filter(|worker| !living.contains(*worker)).cloned().collect();
        self.ops.forget_files(&gone).await?;
        announced.retain(|worker, _| living.contains(worker));
        let is_silent = living.iter().any(|worker| !announced.contains_key(worker));
        Ok(move |name: &JobName| {
            let made = self.jobs.jobs.get(name).map(|job| &job.made);
            let differs = |files: &BTreeMap<String, crate::ops::Digests>| {
                files.get(name.as_str()).is_some_and(|file| file.get("values") != made)
            };
            is_silent || announced.values().any(differs)
        })
    }

    /// Acquires or renews the lock.
    async fn leads(&self) -> RedisResult<bool> {
        lead(&self.ops.redis, &self.ops.keys.remaker(), &self.worker, self.claim).await
    }

    /// Returns how many jobs in a row a job's entries are made from.
    fn depth(&self, job: &Job) -> usize {
        let owners = job.inputs.values().filter_map(|input| {
            self.jobs.jobs.values().find(|owner| owner.name != job.name && owner.key.overlaps(&input.key))
        });
        owners.map(|owner| 1 + self.depth(owner)).max().unwrap_or_default()
    }

    /// Makes all outdated values of a job due, in passes until none is left. Returns `false` if another worker has the
    /// lock.
    async fn remake(&self, job: &Job, changes: &Changes, pace: &mut Pace) -> RedisResult<bool> {
        let Some(noted) = changes.get(&job.name) else { return Ok(true) };
        let plan = self.ops.plan_outdated(job, noted.base(), &self.sources).await?;
        self.announce(job, plan);
        if plan.entries > 0 && !self.passes(job, changes, pace).await? {
            return Ok(false);
        }
        if !self.ops.end_change(job, noted).await? {
            debug!(job = %job.name, "a worker with another file of the job began meanwhile");
        }
        Ok(true)
    }

    /// Examines the entries of a job until none is left that must be made due, or the time for inputs is over. Returns
    /// `false` if another worker has the lock.
    async fn passes(&self, job: &Job, changes: &Changes, pace: &mut Pace) -> RedisResult<bool> {
        let until = Instant::now() + INPUTS_WAIT;
        loop {
            let is_last = Instant::now() >= until;
            let Some(left) = self.pass(job, changes, is_last, pace).await? else { return Ok(false) };
            if left == 0 || is_last {
                return Ok(true);
            }
            if !self.pause(PASSES).await? {
                return Ok(false);
            }
        }
    }

    /// Logs what a change causes, before it does.
    fn announce(&self, job: &Job, plan: Plan) {
        let Plan { entries, fetches, ai_calls, .. } = plan;
        let job_name = &job.name;
        if entries == 0 {
            debug!(job = %job_name, "the job's file has changed, and no value was made from the earlier one");
            return;
        }
        let upstream = job.sources[0].upstream().and_then(|upstream| self.jobs.upstreams.get(upstream));
        match upstream.filter(|_| job.may_hold_unasked()) {
            Some(upstream) => {
                let budget = upstream.tokens.map_or_else(|| "none".to_owned(), |budget| budget.to_string());
                info!(
                    job = %job_name, entries, ai_calls, budget,
                    "what values are made from has changed: they become due, {ai_calls} AI calls to come"
                );
            }
            None => info!(
                job = %job_name, entries, fetches,
                "what values are made from has changed: they become due, {fetches} requests to come"
            ),
        }
    }

    /// Makes outdated values due that are not; returns how many are left for a later pass, or `None` if another worker
    /// has the lock.
    async fn pass(&self, job: &Job, changes: &Changes, is_last: bool, pace: &mut Pace) -> RedisResult<Option<usize>> {
        let mut left = 0;
        let top = self.popularity.top(job, MOST_READ).await?;
        for page in top.chunks(PAGE) {
            let keys = page.iter().map(|(key, _)| key.clone()).collect();
            left += self.make_due(job, changes, keys, is_last, pace).await?;
            if !self.pause(pace.rest()).await? {
                return Ok(None);
            }
        }
        let mut scan = Scan::new(job.key.glob());
        while let Some(found) = scan.next(&mut self.ops.redis.clone()).await? {
            let keys = found.into_iter().map(EntryKey::new).collect();
            left += self.make_due(job, changes, keys, is_last, pace).await?;
            if !self.pause(pace.rest()).await? {
                return Ok(None);
            }
        }
        Ok(Some(left))
    }

    /// Makes those of these entries due that are outdated, as a warmup does; returns how many must be looked at again:
    /// they wait for their inputs, or are in the course of something that may leave the value as it is.
    async fn make_due(
        &self,
        job: &Job,
        changes: &Changes,
        keys: Vec<EntryKey>,
        is_last: bool,
        pace: &mut Pace,
    ) -> RedisResult<usize> {
        let Some(noted) = changes.get(&job.name) else { return Ok(0) };
        let outdated = self.ops.outdated(job, noted.base(), keys).await?;
        let all = outdated.len();
        let mut ready = Vec::with_capacity(all);
        for (key, params) in outdated {
            if is_last || !job.waits_for_inputs() || !self.has_outdated_input(job, &params, changes).await? {
                ready.push(key);
            }
        }
        let agenda = &self.ops.agenda;
        let mut sure = self.surely_due(job, &ready).await?;
        let due = ready.iter().zip(&sure).filter(|(_, sure)| !**sure);
        let due: Vec<&EntryKey> = due.map(|(key, _)| key).collect();
        if !due.is_empty() {
            pace.values += due.len();
            agenda.put(&job.name, due, When::NOW, Trigger::Cron).await?;
            sure = self.surely_due(job, &ready).await?;
        }
        Ok(all - sure.into_iter().filter(|sure| *sure).count())
    }

    /// Returns for each entry whether it is on the agenda for a trigger that fetches whatever value there is.
    async fn surely_due(&self, job: &Job, entries: &[EntryKey]) -> RedisResult<Vec<bool>> {
        let dues = self.ops.agenda.dues(&job.name, entries).await?;
        let fetches = |due: crate::agenda::Due| matches!(due.trigger, Trigger::Cron | Trigger::Manual);
        Ok(dues.into_iter().map(|due| due.is_some_and(fetches)).collect())
    }

    /// Returns `true` if an input of an entry is still to be made anew: an AI value made from the old one would be paid
    /// for twice.
    async fn has_outdated_input(&self, job: &Job, params: &Params, changes: &Changes) -> RedisResult<bool> {
        for key in job.inputs.values().filter_map(|input| input.key.write(params)) {
            let Some((owner, _)) = self.jobs.owner(key.as_str()) else { continue };
            let Some(noted) = changes.get(&owner.name) else { continue };
            if !self.ops.outdated(owner, noted.base(), [key]).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits, and renews the lock meanwhile; returns `false` if another worker has it.
    async fn pause(&self, time: Duration) -> RedisResult<bool> {
        let until = Instant::now() + time;
        loop {
            if !self.leads().await? {
                return Ok(false);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(true);
            }
            tokio::time::sleep(left.min(self.claim / 4)).await;
        }
    }
}
