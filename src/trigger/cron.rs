//! Warmups: each tick runs once in the whole fleet, and after an outage one tick catches up.
//!
//! The schedules are a sorted set with the next tick as score. The worker that claims a tick expands it into agenda
//! entries and then sets the job's next tick. If the worker dies in between, the claim expires and another worker
//! expands the tick again. That is safe, because an entry that is fresh enough for the tick is left alone. `tick` tells
//! what a warmup fetches, and which tick follows.
//!
//! A warmup whose feed fails stays open in the same way, and is claimed again after a backoff (`feeds`). A job with a
//! feed is warmed up in a task of its own, so that a slow feed does not delay other jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::{RedisResult, Script};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::invalidation::WARMUP_SIGNAL;
use super::tick::{Claim, last_refetch, next_after, next_tick};
use crate::agenda::keep;
use crate::agenda::{Agenda, Next, When};
use crate::entry::Trigger;
use crate::entry::duration;
use crate::entry::{EntryKey, JobName, UpstreamName};
use crate::job::{Job, Jobs};
use crate::popularity::{FeedState, Popularity};
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Backoff, Connection, RedisTime};
use crate::source::{Gate, Sources};
use crate::store::{Fresh, GoneGuard, Snapshot, Store};
use crate::telemetry::metrics;

/// Entries examined in one round trip.
const BATCH: usize = 500;
/// Scripts that run at once.
const ABREAST: usize = 64;
/// The longest wait when nothing is due. A change of the schedules wakes the loop.
const IDLE: Duration = Duration::from_secs(15);
/// The time for which a worker leaves the warmups of a job to those with a newer file, before it looks again.
const LEFT: Duration = Duration::from_secs(5);
/// Guards are read once in this time at most.
const GUARDS_TOLD: Duration = Duration::from_secs(3);

/// The field of a job's counters that holds when its last complete warmup ended.
pub(crate) const WARMED_UP: &str = "warmed_up";

static TICK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/tick.lua")));
static END_TICK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/end_tick.lua")));
static HOLD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/hold_tick.lua")));
static RETRY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/retry_tick.lua")));
static ENSURE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/ensure.lua")));

/// The knowledge that a worker has of the guards of jobs.
#[derive(Debug, Default)]
struct Guards {
    /// When they were read last.
    read: Option<Instant>,
    /// The jobs whose guards held removals back then.
    holding: BTreeSet<JobName>,
}

/// The result of a warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Expanded {
    /// The number of entries that the job keeps warm.
    entries: usize,
    /// The number of these to fetch.
    due: usize,
    /// Those of them without a value, less those that were found to be gone.
    missing: usize,
    /// When to ask the job's feed again, if it failed.
    ask_again: Option<Duration>,
}

/// The next step.
enum Todo {
    /// A warmup whose tick is claimed.
    Warmup(Arc<Job>, Claim),
    /// Nothing for this long.
    Wait(Duration),
}

/// The warmups of jobs with feeds that run in this worker, at most one for each job.
#[derive(Debug, Default)]
struct Warmups {
    jobs: BTreeSet<JobName>,
    /// The jobs whose warmups are left to workers with newer files, and since when.
    left: BTreeMap<JobName, Instant>,
    tasks: JoinSet<(JobName, RedisResult<()>)>,
}

impl Warmups {
    fn start(&mut self, cron: Cron, job: Arc<Job>, claim: Claim) {
        self.jobs.insert(job.name.clone());
        self.tasks.spawn(async move { (job.name.clone(), cron.warm_up(&job, claim).await) });
    }

    /// Waits until one of them ends, and returns its result; `None` if none runs.
    async fn next(&mut self) -> Option<RedisResult<()>> {
        match self.tasks.join_next().await? {
            Ok((job, done)) => {
                self.jobs.remove(&job);
                Some(done)
            }
            // Nothing aborts a task while this runs.
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }
}

/// Runs warmups.
#[derive(Clone, Debug)]
pub struct Cron {
    /// The connection.
    pub redis: Connection,
    /// The key names.
    pub keys: Keys,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Where entries become due.
    pub agenda: Agenda,
    /// Tells which values are fresh.
    pub store: Store,
    /// Fetch the feeds.
    pub sources: Sources,
    /// The gates to upstreams, whose limits hold for feeds, too.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// Tells which entries are read most.
    pub popularity: Popularity,
    /// The time after which another worker takes over a claimed tick.
    pub claim: Duration,
    /// Notified when schedules change.
    pub wakeup: Arc<Notify>,
    /// The failures of single jobs.
    pub troubles: Troubles,
    /// Ends the loop, and at once each request to a feed.
    pub stop: CancellationToken,
}

impl Cron {
    /// Runs until `stop`.
    pub async fn run(self) {
        let mut backoff = Backoff::new("cron");
        let mut warmups = Warmups::default();
        let mut guards = Guards::default();
        while !self.stop.is_cancelled() {
            let wait = match self.round(&mut warmups, &mut guards).await {
                Ok(wait) => {
                    backoff.well();
                    wait
                }
                Err(e) => {
                    backoff.ill(&e, &self.stop).await;
                    continue;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait.min(IDLE)) => {}
                () = self.wakeup.notified() => {}
                Some(done) = warmups.next() => if let Err(e) = done {
                    backoff.ill(&e, &self.stop).await;
                },
                () = self.stop.cancelled() => {}
            }
        }
        while warmups.next().await.is_some() {}
    }

    /// Runs a warmup if one is due, or starts it if the job has a feed; otherwise reports the state of feeds and
    /// guards. Returns the time until the next call.
    async fn round(&self, warmups: &mut Warmups, guards: &mut Guards) -> RedisResult<Duration> {
        match self.claim_tick(warmups).await? {
            Todo::Warmup(job, claim) if self.store.newer_file(&job).await?.is_some() => {
                warmups.left.insert(job.name.clone(), Instant::now());
                self.leave_to_newer_file(&job, claim).await?;
            }
            Todo::Warmup(job, claim) if job.entries.feed.is_some() => warmups.start(self.clone(), job, claim),
            Todo::Warmup(job, claim) => self.warm_up(&job, claim).await?,
            Todo::Wait(wait) => {
                self.tell_feeds().await?;
                if guards.read.is_none_or(|read| read.elapsed() >= GUARDS_TOLD) {
                    self.tell_guards(&mut guards.holding).await?;
                    guards.read = Some(Instant::now());
                }
                return Ok(wait);
            }
        }
        Ok(Duration::ZERO)
    }

    /// Schedules every job; at once if its file has changed or Redis has restarted, which `run_id` tells. The fleet
    /// warms each job up once, however many workers call this.
    ///
    /// # Errors
    /// Redis's.
    pub async fn ensure(&self, run_id: &str) -> RedisResult<()> {
        let now = self.store.now().await?;
        let restoring = self.troubles.of("restoring what is read").every(self.retried());
        for job in self.jobs.jobs.values() {
            if job.entries.feed.is_some() {
                metrics::count_feed_failures(&job.name);
            }
            match job.warm.gone_guard {
                Some(_) => metrics::count_removals_held(&job.name),
                // It may hold removals back since the time when the job had one.
                None => self.store.forget_guard(&job.name).await?,
            }
            // The warmup uses the read counts. If they cannot be restored, it runs without.
            restoring.alone(job.name.as_str(), self.popularity.restore(job).await)?;
            let missed = self.missed_refetch(job, now).await?;
            let at_once: bool = ENSURE
                .key(self.keys.schedules())
                .key(self.keys.ticks())
                .key(self.keys.digests())
                .arg(job.name.as_str())
                .arg(format!("{} {run_id}", job.digest))
                .arg(next_tick(job, now).map(|next| next.to_string()).unwrap_or_default())
                .arg(duration::millis(self.claim))
                .arg(missed.map(|missed| missed.to_string()).unwrap_or_default())
                .invoke_async(&mut self.redis.clone())
                .await?;
            if at_once && job.entries.feed.is_some() {
                self.renew_feed(job, missed.is_some()).await?;
            }
        }
        self.wakeup.notify_one();
        Ok(())
    }

    /// Logs that guards hold removals back, and that they do not any more, whichever worker asked the upstream.
    /// `holding` has the jobs whose guards did when they were read last.
    async fn tell_guards(&self, holding: &mut BTreeSet<JobName>) -> RedisResult<()> {
        let now = self.store.now().await?;
        let jobs = self.jobs.jobs.values().filter(|job| job.warm.gone_guard.is_some());
        let guarded: Vec<&JobName> = jobs.map(|job| &job.name).collect();
        let guards = GoneGuard::read_all(&mut self.redis.clone(), &self.keys, &guarded, now).await?;
        let troubles = self.troubles.of("reading a job's guard");
        for (job, guard) in guarded.into_iter().zip(guards) {
            let Some(guard) = troubles.alone(job.as_str(), guard)? else { continue };
            let is_holding = guard.as_ref().is_some_and(GoneGuard::is_holding);
            if is_holding && holding.insert(job.clone()) {
                info!(job = job.as_str(), "a guard holds removals back: `samovar gone {job}` shows it");
            } else if !is_holding && holding.remove(job) {
                let why = if guard.is_some() { "a person let them through" } else { "the guard has ended" };
                info!(job = job.as_str(), "removals are not held back any more: {why}");
            }
        }
        Ok(())
    }

    /// Returns the last refetch until `now` that is not complete, of a job that also has warmups that fill. A warmup
    /// that starts anew must catch up with it.
    async fn missed_refetch(&self, job: &Job, now: RedisTime) -> RedisResult<Option<RedisTime>> {
        if !job.warm.schedules.refetch_sometimes() {
            return Ok(None);
        }
        let (claimed, next): (Option<String>, Option<f64>) = redis::pipe()
            .hget(self.keys.ticks(), job.name.as_str())
            .zscore(self.keys.schedules(), job.name.as_str())
            .query_async(&mut self.redis.clone())
            .await?;
        #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
        let next = next.map(|next| RedisTime::from_millis(next as i64));
        let open = claimed.and_then(|claimed| claimed.parse().ok()).or(next);
        Ok(open.and_then(|open| last_refetch(&job.warm.schedules, open, now)))
    }

    /// Forgets the failures of a job's feed, since the job's file may have changed: a corrected feed that fails once
    /// more is asked again soon. If the warmup is a refetch, forgets as well that its entries are on the agenda
    /// meanwhile.
    async fn renew_feed(&self, job: &Job, is_refetch: bool) -> RedisResult<()> {
        let read = FeedState::read(&mut self.redis.clone(), &self.keys, &job.name).await;
        let state = self.troubles.of("reading the state of a feed").alone(job.name.as_str(), read)?;
        let Some(state) = state else { return Ok(()) };
        let tick_ms = state.tick_ms.filter(|_| !is_refetch);
        let renewed = FeedState { failures: 0, failed_ms: None, reason: None, tick_ms, ..state.clone() };
        if renewed == state { Ok(()) } else { self.keep_state(job, &renewed).await }
    }

    /// Claims a warmup if one is due of a job that neither is being warmed up nor is left to others.
    async fn claim_tick(&self, warmups: &mut Warmups) -> RedisResult<Todo> {
        warmups.left.retain(|_, since| since.elapsed() < LEFT);
        let Warmups { jobs: running, left, .. } = &*warmups;
        let names = self.jobs.jobs.keys().filter(|name| !running.contains(*name) && !left.contains_key(*name));
        let (now, name, tick, till): (RedisTime, String, RedisTime, RedisTime) = TICK
            .key(self.keys.schedules())
            .key(self.keys.ticks())
            .arg(duration::millis(self.claim))
            .arg(names.map(JobName::as_str).collect::<Vec<_>>())
            .invoke_async(&mut self.redis.clone())
            .await?;
        if name.is_empty() {
            return Ok(Todo::Wait(if tick < RedisTime::ZERO { IDLE } else { tick.saturating_since(now) }));
        }
        let Some(job) = self.jobs.jobs.get(name.as_str()) else { return Ok(Todo::Wait(IDLE)) };
        Ok(Todo::Warmup(Arc::clone(job), Claim { tick, till, at: now }))
    }

    /// Returns the time within which a warmup that failed is tried again: once its claim has expired.
    fn retried(&self) -> Duration {
        self.claim + IDLE
    }

    /// Expands a claimed tick and sets the next one. Does neither if another worker takes the tick over.
    ///
    /// # Errors
    /// Redis's; the tick is tried again when its claim expires.
    async fn warm_up(&self, job: &Arc<Job>, mut claim: Claim) -> RedisResult<()> {
        let begun = Instant::now();
        let name = job.name.as_str();
        let troubles = self.troubles.every(self.retried());
        let Some(expanded) = troubles.alone(name, self.expand(job, &mut claim).await)?.flatten() else {
            // The tick is tried again when its claim expires; other jobs do not wait for that.
            return Ok(());
        };
        let Expanded { entries, due, missing, ask_again } = expanded;
        let now = self.store.now().await?;
        let next = claim.next(job, now);
        let to_next = next.map(|next| next.saturating_since(now));
        // A refetch stays open beyond the next tick, which its next claim stands for, too.
        let stays_open = job.warm.schedules.refetch_sometimes() && claim.refetch_since(job).is_some();
        let wait = ask_again.and_then(|wait| match to_next {
            Some(to_next) if to_next <= wait => stays_open.then_some(to_next),
            _ => Some(wait),
        });
        if let Some(wait) = wait {
            if self.leave_open(job, claim, wait).await? && entries > 0 {
                let again = duration::logged(wait);
                info!(job = name, entries, due, again, "warmup without the job's feed, which is asked again");
            }
            return Ok(());
        }
        let ended: bool = END_TICK
            .key(self.keys.schedules())
            .key(self.keys.ticks())
            .arg(name)
            .arg(claim.tick)
            .arg(claim.till)
            .arg(next.map(|next| next.to_string()).unwrap_or_default())
            .invoke_async(&mut self.redis.clone())
            .await?;
        if !ended {
            return Ok(());
        }
        if ask_again.is_some() {
            info!(job = name, entries, due, "warmup without the job's feed, which is asked again at the next one");
            return Ok(());
        }
        self.note_success(job, now).await?;
        let seconds = duration::logged(begun.elapsed());
        if job.may_hold_unasked() && missing > 0 {
            let calls = format!("up to {missing} AI calls to come for entries without a value");
            info!(job = name, entries, due, seconds, "warmup: {calls}");
        } else {
            info!(job = name, entries, due, seconds, "warmup");
        }
        Ok(())
    }

    /// Leaves a tick open, to be claimed again after `wait`. Returns `false` if another worker has taken it over.
    pub(super) async fn leave_open(&self, job: &Job, claim: Claim, wait: Duration) -> RedisResult<bool> {
        RETRY
            .key(self.keys.schedules())
            .key(self.keys.ticks())
            .arg(job.name.as_str())
            .arg(claim.tick)
            .arg(claim.till)
            .arg(duration::millis(wait))
            .invoke_async(&mut self.redis.clone())
            .await
    }

    /// Leaves a claimed tick to a worker with a newer file of the job, whose keys and lists may be others.
    async fn leave_to_newer_file(&self, job: &Job, claim: Claim) -> RedisResult<()> {
        debug!(job = %job.name, "a worker with a newer file of the job runs the warmup");
        if self.leave_open(job, claim, Duration::ZERO).await? {
            let signal = format!("{WARMUP_SIGNAL} {}", job.name);
            let mut wake = redis::cmd("PUBLISH");
            wake.arg(self.keys.signal_channel()).arg(signal).exec_async(&mut self.redis.clone()).await?;
        }
        Ok(())
    }

    /// Notes the time of the job's last complete warmup, for people and metrics.
    async fn note_success(&self, job: &Job, now: RedisTime) -> RedisResult<()> {
        let mut note = redis::cmd("HSET");
        note.arg(self.keys.stats(&job.name)).arg(WARMED_UP).arg(now);
        let noted = note.exec_async(&mut self.redis.clone()).await;
        self.troubles.of("noting a warmup").every(self.retried()).alone(job.name.as_str(), noted).map(|_| ())
    }

    /// Puts the entries on the agenda that the warmup at a claimed tick must fetch. Returns `None` if another worker
    /// takes the tick over.
    ///
    /// # Errors
    /// Redis's.
    async fn expand(&self, job: &Arc<Job>, claim: &mut Claim) -> RedisResult<Option<Expanded>> {
        let Some(mut fed) = self.fed(job, claim).await? else { return Ok(None) };
        let (refetch, time) = (claim.refetch_since(job), claim.last_time(job));
        let mut total = Expanded { ask_again: fed.ask_again, ..Expanded::default() };
        if fed.ask_again.is_some() && fed.state.tick_ms == Some(time) {
            // Everything else of this warmup is on the agenda since the feed failed first.
            return Ok(Some(total));
        }
        let mut all = std::mem::take(&mut fed.entries);
        all.extend(job.entries.list.iter().filter_map(|params| job.key.write(params)));
        let popular = self.popularity.top(job, job.entries.popular).await?;
        all.extend(popular.into_iter().map(|(key, _)| key).filter(|key| job.key.read(key.as_str()).is_some()));
        let mut ranked = self.popularity.ranked(job, &all).await?.filter_map(|number| all.get(number));
        // The most read entries are due a millisecond sooner.
        for moment in 0.. {
            let keys: Vec<EntryKey> = ranked.by_ref().take(BATCH).map(EntryKey::new).collect();
            if keys.is_empty() {
                break;
            }
            let keys = keys.as_slice();
            let snapshots = self.store.snapshots(keys).await?;
            let now = self.store.now().await?;
            // For a tick that is late, a value must live until the next tick from now on.
            let filled = filled(job, now);
            let (mut old, mut due, mut kept) = (Vec::new(), Vec::new(), Vec::new());
            for (key, snapshot) in keys.iter().zip(snapshots) {
                total.missing += usize::from(!snapshot.has_value() && snapshot.gone(&job.requests).is_none());
                let ahead = match keep(job, key, snapshot.expiry) {
                    Next::At(at) => Some(at),
                    _ => None,
                };
                // An entry that is refreshed before it expires is not fetched now, with all others and before its time.
                let in_time = ahead > Some(now) && is_fresh(Fresh::ours(), &snapshot, now);
                if refetch.is_some_and(|since| !is_fresh(fetched(since), &snapshot, now)) {
                    old.push(key);
                } else if !job.warm.schedules.refetch_always() && !in_time && !is_fresh(filled, &snapshot, now) {
                    due.push(key);
                } else if let Some(at) = ahead {
                    kept.push((key, at));
                }
            }
            for abreast in kept.chunks(ABREAST) {
                let puts = abreast
                    .iter()
                    .map(async |(key, at)| self.agenda.put(&job.name, [*key], When::Keep(*at), Trigger::Expiry).await);
                futures_util::future::try_join_all(puts).await?;
            }
            for (keys, at) in [(&old, refetch.unwrap_or(now)), (&due, now)] {
                let at = When::Due(at + Duration::from_millis(moment));
                self.agenda.put(&job.name, keys.iter().copied(), at, Trigger::Cron).await?;
            }
            if job.inputs.values().any(|input| input.is_optional) {
                let is_due = |key: &&EntryKey| old.contains(key) || due.contains(key);
                self.ask_for_gone(job, keys.iter().filter(|key| !is_due(key)), now).await?;
            }
            total.entries += keys.len();
            total.due += old.len() + due.len();
            // A long warmup renews its claim.
            if !self.hold(job, claim).await? {
                return Ok(None);
            }
        }
        if fed.ask_again.is_some() {
            fed.state.tick_ms = Some(time);
            self.keep_state(job, &fed.state).await?;
        }
        Ok(Some(total))
    }

    /// Asks again for the optional inputs that are gone of entries which a warmup leaves as they are. These were made
    /// without them, and only an entry that is made asks otherwise. An input is asked for at most once in the
    /// `absent_for` of its job.
    async fn ask_for_gone(
        &self,
        job: &Job,
        entries: impl Iterator<Item = &EntryKey>,
        now: RedisTime,
    ) -> RedisResult<()> {
        let optional: Vec<_> = job.inputs.values().filter(|input| input.is_optional).collect();
        let of_entry = |key: &EntryKey| {
            let params = job.key.read(key.as_str()).unwrap_or_default();
            Vec::from_iter(optional.iter().filter_map(|input| input.key.write(&params)))
        };
        let inputs: BTreeSet<EntryKey> = entries.flat_map(of_entry).collect();
        let inputs = Vec::from_iter(inputs);
        for inputs in inputs.chunks(BATCH) {
            let mut gone: BTreeMap<&JobName, Vec<&EntryKey>> = BTreeMap::new();
            for (key, snapshot) in inputs.iter().zip(self.store.snapshots(inputs).await?) {
                let Some((owner, _)) = self.jobs.owner(key.as_str()) else { continue };
                let meta = snapshot.gone(&owner.requests);
                if meta.is_some_and(|meta| !meta.is_gone(&owner.requests, owner.warm.absent_for, now)) {
                    gone.entry(&owner.name).or_default().push(key);
                }
            }
            for (owner, keys) in gone {
                self.agenda.put(owner, keys, When::NOW, Trigger::Demand).await?;
            }
        }
        Ok(())
    }

    /// Renews the claim on a tick. Returns `false` if another worker has taken the tick over.
    pub(super) async fn hold(&self, job: &Job, claim: &mut Claim) -> RedisResult<bool> {
        let till: RedisTime = HOLD
            .key(self.keys.schedules())
            .key(self.keys.ticks())
            .arg(job.name.as_str())
            .arg(claim.tick)
            .arg(claim.till)
            .arg(duration::millis(self.claim))
            .invoke_async(&mut self.redis.clone())
            .await?;
        let holds = till > RedisTime::ZERO;
        if holds {
            claim.till = till;
        } else {
            debug!(job = %job.name, "this worker's claim on a warmup has run out; another worker runs the warmup");
        }
        Ok(holds)
    }
}

/// Returns the condition of values that live until the next tick after `now`.
fn filled(job: &Job, now: RedisTime) -> Fresh {
    match next_after(job, now) {
        Some(next) => Fresh { until: Some(next), ..Fresh::default() },
        None => Fresh::ours(),
    }
}

/// Returns the condition of values that were fetched at `since` or later.
fn fetched(since: RedisTime) -> Fresh {
    Fresh { since: Some(since), ..Fresh::default() }
}

/// Returns `true` if the value is fresh at `now`, by the rules of lease.lua.
fn is_fresh(wanted: Fresh, snapshot: &Snapshot, now: RedisTime) -> bool {
    snapshot.ours().is_some_and(|meta| {
        meta.invalidated.is_none()
            && meta.stale_for.is_zero()
            && meta.validated_at <= now
            && (wanted.since.is_some_and(|since| meta.validated_at >= since)
                || wanted.until.is_some_and(|until| meta.own_expiry >= until))
    })
}
