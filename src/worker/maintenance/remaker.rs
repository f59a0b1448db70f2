//! The remaker: after a change of what a job's values are made from, it makes those of the earlier file due.
//!
//! Redis notes what the values of each job are made from, and each worker announces its files ([`crate::ops`]). One
//! worker at a time makes outdated values due, the most read first, at a bounded rate, like a warmup. It begins when
//! no live worker has another file of the job: such a worker would make values from its own file again. So a rolling
//! deploy makes each value anew once. Values are served until the new ones land. The note is written last: after a
//! crash another worker begins again, and leaves alone what is made anew by then.
//!
//! Entries of an earlier key pattern leave the agenda at the same time.

mod inputs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::walk::{Pace, Walk};
use crate::agenda::{Due, State, When};
use crate::entry::{EntryKey, JobName, Trigger};
use crate::job::{Job, Jobs, Params};
use crate::ops::{Noted, Ops, Plan, has_old_file, still_waits, with_another_file};
use crate::popularity::Popularity;
use crate::queue::Queue;
use crate::redis::{Backoff, Scan, Troubles, lead, resign};
use crate::source::Sources;
use crate::store::Snapshot;

/// Entries that become due in one step.
const PAGE: usize = 250;
/// The interval at which changes are looked for, also while one waits for other workers.
const IDLE: Duration = Duration::from_secs(5);
/// The wait for other workers after which the log and the health tell of it: a reload takes less.
const LONG_WAIT: Duration = Duration::from_secs(30);
/// The shortest and the longest interval between two passes over the entries of a job. A pass that takes long is not
/// repeated soon.
const PASSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Entries that are remembered for the next pass. If more are left, all entries are examined again after these.
const LEFT: usize = 10_000;
/// The time for which entries wait for their inputs while none of these is made anew.
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

/// The state of a worker between its rounds.
#[derive(Debug)]
struct Progress {
    has_begun: bool,
    /// The jobs whose changes wait for other workers, since when, and whether that was logged.
    waits: BTreeMap<JobName, (Instant, bool)>,
    /// The changes that this worker carries out.
    remakes: BTreeMap<JobName, Remake>,
    pace: Pace,
}

/// A change that a worker carries out, in passes until no entry is left.
#[derive(Debug)]
struct Remake {
    /// The note of the change, as it was planned and announced.
    noted: Noted,
    /// All changes at that time: those of inputs may end sooner.
    changes: Changes,
    /// The entries to examine in the next pass; `None` for all.
    keys: Option<Vec<EntryKey>>,
    /// All are examined again after these.
    has_more: bool,
    /// The waits between passes since the number of entries that are left last fell.
    stalled: Duration,
    /// When the next pass begins.
    next: Instant,
}

/// The outcome of a pass over the entries of a job.
#[derive(Debug, Default)]
struct Pass {
    /// Entries that must be looked at again, at most [`LEFT`]: they wait for their inputs, or are in the course of
    /// something that may leave the value as it is.
    left: Vec<EntryKey>,
    /// There are more of them.
    has_more: bool,
    /// Entries that became due before their inputs were made anew.
    early: usize,
}

impl Remaker {
    /// Runs until `stop`.
    pub(in crate::worker) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the remaker");
        let (waits, remakes) = (BTreeMap::new(), BTreeMap::new());
        let mut progress = Progress { has_begun: false, waits, remakes, pace: Pace::begin() };
        while !stop.is_cancelled() {
            // What a walk leaves undone at its end is begun again by the next worker.
            let done = tokio::select! {
                done = self.round(&mut progress) => done,
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
        let _ = resign(&self.ops.redis, &self.ops.keys.remaker(), &self.worker).await;
    }

    /// Carries out the changes that wait for no other worker; returns the time until the next round.
    async fn round(&self, progress: &mut Progress) -> RedisResult<Duration> {
        let jobs = &self.jobs.jobs;
        let noted = self.begin(progress).await?;
        let is_open = |(name, noted): &(JobName, Noted)| jobs.get(name).is_some_and(|job| !noted.is_settled(&job.made));
        let changes: Changes = noted.into_iter().filter(is_open).collect();
        progress.remakes.retain(|job, remake| changes.get(job) == Some(&remake.noted));
        let waiting = if changes.is_empty() { BTreeMap::new() } else { self.waiting(&changes).await? };
        self.tell(&waiting, &mut progress.waits).await?;
        progress.remakes.retain(|job, _| !waiting.contains_key(job));
        let ready = changes.keys().filter(|name| !waiting.contains_key(*name));
        let mut ready: Vec<&Arc<Job>> = ready.filter_map(|name| jobs.get(name)).collect();
        if ready.is_empty() {
            return Ok(IDLE);
        }
        ready.sort_by_key(|job| self.depth(job));
        let mut leads = self.leads().await?;
        for job in ready {
            if !leads {
                break;
            }
            let made = self.remake(job, &changes, progress).await;
            leads = self.troubles.alone(job.name.as_str(), made)? != Some(false);
        }
        let next = progress.remakes.values().map(|remake| remake.next.saturating_duration_since(Instant::now())).min();
        if let Some(next) = next
            && leads
        {
            leads = self.pause(next.min(IDLE)).await?;
            if leads {
                return Ok(Duration::ZERO);
            }
        }
        if !leads {
            debug!("another worker has the lock of the remaker");
            progress.remakes.clear();
        }
        Ok(IDLE)
    }

    /// Announces this worker's files, and notes that it works with them, unless that is known; returns all notes.
    ///
    /// Other workers may take this one for dead while it is stopped, and settle a change without it. What it fetches
    /// afterwards is made from its own file, so it begins again.
    async fn begin(&self, progress: &mut Progress) -> RedisResult<Changes> {
        let jobs = &self.jobs.jobs;
        if self.ops.announce_files(&self.worker, &self.jobs).await? || !progress.has_begun {
            self.ops.begin_files(jobs.values().map(|job| &**job)).await?;
        }
        if !progress.has_begun {
            // Drops the announcements of workers that were killed.
            self.waiting(&Changes::new()).await?;
            progress.has_begun = true;
        }
        let noted = self.ops.noted().await?;
        let is_unknown =
            |job: &&Arc<Job>| noted.get(&job.name).is_none_or(|noted| noted.is_settled_otherwise(&job.made));
        let unknown: Vec<&Job> = jobs.values().filter(is_unknown).map(|job| &**job).collect();
        if unknown.is_empty() {
            return Ok(noted);
        }
        self.ops.begin_files(unknown).await?;
        self.ops.noted().await
    }

    /// Returns the changes that wait for live workers, with these workers.
    async fn waiting(&self, changes: &Changes) -> RedisResult<BTreeMap<JobName, Vec<String>>> {
        let mut living: BTreeSet<String> = self.queue.living(self.dead_after).await?.into_iter().collect();
        living.insert(self.worker.to_string());
        let announced = self.ops.announced_files().await?;
        let gone: Vec<String> = announced.keys().filter(|worker| !living.contains(*worker)).cloned().collect();
        self.ops.forget_files(&gone).await?;
        let waiting = |name: &JobName| {
            let made = &self.jobs.jobs.get(name)?.made;
            let workers = with_another_file(&living, &announced, name.as_str(), made);
            (!workers.is_empty()).then(|| (name.clone(), workers))
        };
        Ok(changes.keys().filter_map(waiting).collect())
    }

    /// Tells people of changes that wait long.
    async fn tell(
        &self,
        waiting: &BTreeMap<JobName, Vec<String>>,
        waits: &mut BTreeMap<JobName, (Instant, bool)>,
    ) -> RedisResult<()> {
        waits.retain(|job, _| {
            let waits = waiting.contains_key(job);
            if !waits {
                self.troubles.notice(job.as_str(), None);
            }
            waits
        });
        for job in waiting.keys() {
            waits.entry(job.clone()).or_insert_with(|| (Instant::now(), false));
        }
        if !waits.values().any(|(since, _)| since.elapsed() > LONG_WAIT) {
            return Ok(());
        }
        let outdated = self.ops.outdated_files().await?;
        for (job, (since, is_told)) in waits {
            let Some(workers) = waiting.get(job).filter(|_| since.elapsed() > LONG_WAIT) else { continue };
            let is_own = outdated.contains(job);
            let why = if is_own { has_old_file(job.as_str()) } else { still_waits(job.as_str(), workers) };
            if !std::mem::replace(is_told, true) {
                warn!(%job, "{why}");
            }
            self.troubles.notice(job.as_str(), Some(why));
        }
        Ok(())
    }

    /// Acquires or renews the lock.
    async fn leads(&self) -> RedisResult<bool> {
        lead(&self.ops.redis, &self.ops.keys.remaker(), &self.worker, self.claim).await
    }

    /// Makes outdated values of a job due, in one pass if it is time for one. Returns `false` if another worker has the
    /// lock.
    async fn remake(&self, job: &Job, changes: &Changes, progress: &mut Progress) -> RedisResult<bool> {
        let Some(noted) = changes.get(&job.name) else { return Ok(true) };
        if !progress.remakes.contains_key(&job.name) {
            let Some(plan) = self.plan(job, noted).await? else { return Ok(false) };
            // The change may be another one by now.
            if self.ops.noted().await?.get(&job.name) != Some(noted) {
                return Ok(true);
            }
            if !self.cancel_unowned(job, noted).await? {
                return Ok(true);
            }
            self.announce(job, plan);
            if plan.entries == 0 {
                return self.end(job, noted).await.map(|()| true);
            }
            let (noted, changes, next) = (noted.clone(), changes.clone(), Instant::now());
            let remake = Remake { noted, changes, keys: None, has_more: false, stalled: Duration::ZERO, next };
            progress.remakes.insert(job.name.clone(), remake);
        }
        let Some(remake) = progress.remakes.get_mut(&job.name) else { return Ok(true) };
        let begun = Instant::now();
        if begun < remake.next {
            return Ok(true);
        }
        // If this pass fails.
        remake.next = begun + IDLE;
        let is_last = remake.stalled >= INPUTS_WAIT;
        let Some(pass) = self.pass(job, remake, is_last, &mut progress.pace).await? else { return Ok(false) };
        if pass.early > 0 {
            let entries = pass.early;
            info!(job = %job.name, entries, "inputs are not made anew for long; entries become due without waiting");
        }
        // A pass over some of the entries says nothing of the others.
        let has_more = pass.has_more || (remake.has_more && remake.keys.is_some());
        if is_last || (pass.left.is_empty() && !has_more) {
            progress.remakes.remove(&job.name);
            return self.end(job, noted).await.map(|()| true);
        }
        let pause = (begun.elapsed() * 4).clamp(PASSES.0, PASSES.1);
        let falls = remake.keys.as_ref().is_none_or(|before| pass.left.len() < before.len());
        remake.stalled = if falls { Duration::ZERO } else { remake.stalled + pause };
        remake.has_more = has_more;
        remake.keys = (!pass.left.is_empty()).then_some(pass.left);
        remake.next = Instant::now() + pause;
        Ok(true)
    }

    /// Takes the entries of an earlier key pattern off the agenda: nothing makes them anew, and they are no part of the
    /// job. One that may be invalidated is rechecked, which removes its value. Returns `false` if the change became
    /// another one meanwhile, or another worker has the lock: the pattern of a newer file may be the earlier one.
    async fn cancel_unowned(&self, job: &Job, noted: &Noted) -> RedisResult<bool> {
        let Self { ops, .. } = self;
        let now = ops.store.now().await?;
        let (mut cursor, mut entries) = (0, 0);
        loop {
            let (next, mut found) = ops.agenda.scan(&job.name, "*", cursor).await?;
            found.retain(|key| job.key.read(key.as_str()).is_none());
            if !found.is_empty() {
                // A worker with a newer file announces it before it makes an entry due.
                let is_present = self.leads().await?
                    && ops.store.newer_file(job).await?.is_none()
                    && ops.noted().await?.get(&job.name) == Some(noted);
                if !is_present {
                    return Ok(false);
                }
                entries += ops.agenda.cancel(&job.name, &found, now).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        if entries > 0 {
            let job = &job.name;
            info!(%job, entries, "the key pattern has changed: entries of the earlier one are left to expire");
        }
        Ok(true)
    }

    /// Counts what a change causes; `None` if another worker has the lock.
    async fn plan(&self, job: &Job, noted: &Noted) -> RedisResult<Option<Plan>> {
        let mut plan = Plan::default();
        let mut scan = Scan::new(job.key.glob());
        while let Some(found) = scan.next(&mut self.ops.redis.clone()).await? {
            let keys = found.into_iter().map(EntryKey::new);
            plan += self.ops.plan_outdated(job, noted.base(), &self.sources, keys).await?;
            if !self.leads().await? {
                return Ok(None);
            }
        }
        Ok(Some(plan))
    }

    /// Notes that the values of a job are made from its file.
    async fn end(&self, job: &Job, noted: &Noted) -> RedisResult<()> {
        if !self.ops.end_change(job, noted).await? {
            debug!(job = %job.name, "a worker with another file of the job began meanwhile");
        }
        Ok(())
    }

    /// Logs what a change causes, before it does.
    fn announce(&self, job: &Job, plan: Plan) {
        let Plan { entries, fetches, ai_calls, fallback_ai_calls, .. } = plan;
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
                    job = %job_name, entries, ai_calls, fallback_ai_calls, budget,
                    "what values are made from has changed: they become due, {ai_calls} AI calls to come"
                );
            }
            None => info!(
                job = %job_name, entries, fetches, fallback_ai_calls,
                "what values are made from has changed: they become due, {fetches} requests to come"
            ),
        }
    }

    /// Makes outdated values due that are not; returns `None` if another worker has the lock. The last pass makes all
    /// due.
    async fn pass(&self, job: &Job, remake: &Remake, is_last: bool, pace: &mut Pace) -> RedisResult<Option<Pass>> {
        let mut pass = Pass::default();
        // The lock may have expired since the last step.
        if !self.leads().await? {
            return Ok(None);
        }
        if let Some(keys) = remake.keys.as_ref().filter(|_| !is_last) {
            for page in keys.chunks(PAGE) {
                let due = self.make_due(job, remake, page.to_vec(), is_last, &mut pass).await?;
                if !self.pause(pace.add(due)).await? {
                    return Ok(None);
                }
            }
            return Ok(Some(pass));
        }
        let mut walk = Walk::begin(job, &self.popularity, PAGE).await?;
        while let Some(keys) = walk.next(&self.ops.redis).await? {
            let due = self.make_due(job, remake, keys, is_last, &mut pass).await?;
            if !self.pause(pace.add(due)).await? {
                return Ok(None);
            }
        }
        Ok(Some(pass))
    }

    /// Makes those of these entries due that are outdated, as a warmup does, and adds those to `pass` that must be
    /// looked at again; returns how many have become due.
    async fn make_due(
        &self,
        job: &Job,
        remake: &Remake,
        keys: Vec<EntryKey>,
        is_last: bool,
        pass: &mut Pass,
    ) -> RedisResult<usize> {
        let outdated = self.ops.outdated(job, remake.noted.base(), keys).await?;
        let inputs = self.pending_inputs(job, &outdated, &remake.changes).await?;
        let waits = |params: &Params| {
            job.inputs.values().any(|input| input.key.write(params).is_some_and(|key| inputs.contains(&key)))
        };
        let (early, ready): (Vec<_>, Vec<_>) = outdated.into_iter().partition(|(_, params)| waits(params));
        let keys = |entries: Vec<(EntryKey, Params)>| entries.into_iter().map(|(key, _)| key);
        let (mut left, mut ready) = (Vec::from_iter(keys(early)), Vec::from_iter(keys(ready)));
        if is_last {
            pass.early += left.len();
            ready.append(&mut left);
        }
        let agenda = &self.ops.agenda;
        let mut sure = self.surely_due(job, &ready).await?;
        let due = ready.iter().zip(&sure).filter(|(_, sure)| !**sure);
        let due: Vec<&EntryKey> = due.map(|(key, _)| key).collect();
        let count = due.len();
        if count > 0 {
            agenda.put(&job.name, due, When::NOW, Trigger::Cron).await?;
            sure = self.surely_due(job, &ready).await?;
        }
        left.extend(ready.into_iter().zip(sure).filter(|(_, sure)| !sure).map(|(key, _)| key));
        pass.has_more |= pass.left.len() + left.len() > LEFT;
        pass.left.extend(left);
        pass.left.truncate(LEFT);
        Ok(count)
    }

    /// Returns for each entry whether it is on the agenda and will be fetched, whatever value there is. It may wait for
    /// its retry, for a limit, or because its removal is held back: it must not come forward in each pass.
    async fn surely_due(&self, job: &Job, entries: &[EntryKey]) -> RedisResult<Vec<bool>> {
        let dues = self.ops.agenda.dues(&job.name, entries).await?;
        let invalidated = entries.iter().zip(&dues).filter(|(_, due)| due.is_some_and(is_for_invalidation));
        let invalidated: Vec<EntryKey> = invalidated.map(|(key, _)| key.clone()).collect();
        let mut snapshots = self.ops.store.snapshots(&invalidated).await?.into_iter();
        let is_sure = |due: Option<Due>| match due {
            Some(due) if is_for_invalidation(due) => {
                snapshots.next().is_some_and(|snapshot| is_not_fresh(job, due, &snapshot))
            }
            due => due.is_some_and(|due| matches!(due.trigger, Trigger::Cron | Trigger::Manual)),
        };
        Ok(dues.into_iter().map(is_sure).collect())
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

fn is_for_invalidation(due: Due) -> bool {
    due.trigger == Trigger::Invalidation
}

/// Returns `true` if an entry that is due for an invalidation finds its present value not fresh: an invalidation is
/// open, or the value is older than the change of an input. While such an entry is in flight, its time tells nothing.
fn is_not_fresh(job: &Job, due: Due, found: &Snapshot) -> bool {
    let Some(meta) = found.ours() else { return false };
    let waits = matches!(due.state, State::Urgent | State::Scheduled);
    meta.invalidated.is_some() || waits && !job.inputs.is_empty() && meta.validated_at < due.at
}
