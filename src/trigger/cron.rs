//! Warmups: once per tick in the whole fleet, caught up once after an outage.
//!
//! The schedules are a sorted set with the next tick as score. Whoever claims a tick expands it into agenda entries and
//! then moves the job to its next tick, later than Redis's now. A worker that dies in between leaves the claim to run out;
//! expanding twice does no harm, because an entry that is good by the tick's measure is left alone.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use chrono::DateTime;
use redis::{RedisResult, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agenda::keep;
use crate::agenda::{Agenda, Next, When};
use crate::entry::{EntryKey, JobName, UpstreamName};
use crate::entry::{Priority, Trigger};
use crate::job::{Job, Jobs, Params};
use crate::popularity::{Popularity, feed};
use crate::protocol::Keys;
use crate::redis::Troubles;
use crate::redis::{Backoff, Connection};
use crate::source::{Gate, Refusal, Sources};
use crate::store::{Fresh, Meta, Store};

/// Entries looked at in one round trip.
const BATCH: usize = 500;
/// Scripts under way at once.
const ABREAST: usize = 64;
/// How often the schedules are looked at when nothing is due; a change of schedules rings.
const IDLE: Duration = Duration::from_secs(15);

static TICK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/tick.lua")));
static TOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/tock.lua")));
static HOLD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/hold_tick.lua")));
static ENSURE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/ensure.lua")));

/// What a warmup found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// Entries the job keeps warm.
    pub entries: usize,
    /// Of these, to be fetched.
    pub due: usize,
}

/// Runs warmups.
#[derive(Clone, Debug)]
pub struct Cron {
    /// The connection.
    pub redis: Connection,
    /// The names.
    pub keys: Keys,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Where entries become due.
    pub agenda: Agenda,
    /// Where is seen what is good still.
    pub store: Store,
    /// Who is asked for feeds.
    pub sources: Sources,
    /// The ways to upstreams: feeds keep their limits, too.
    pub gates: BTreeMap<UpstreamName, Arc<Gate>>,
    /// What is most read.
    pub popularity: Popularity,
    /// How long a claimed tick is left to its worker.
    pub claim: Duration,
    /// Rung when schedules have changed.
    pub wakeup: Arc<Notify>,
    /// What fails in single jobs.
    pub troubles: Troubles,
}

impl Cron {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("cron");
        while !stop.is_cancelled() {
            let wait = match self.tick().await {
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
                () = tokio::time::sleep(wait.min(IDLE)) => {}
                () = self.wakeup.notified() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Sees that every job is scheduled, at once if its file is another than before or Redis was started anew: `run_id` is
    /// the server's. However many workers see that, the jobs are warmed up once.
    ///
    /// # Errors
    /// Redis's.
    pub async fn ensure(&self, run_id: &str) -> RedisResult<()> {
        let now = self.store.now().await?;
        let restoring = self.troubles.of("bringing back what is read");
        for job in self.jobs.jobs.values() {
            // Before the warmup that goes by it, which goes on without.
            restoring.alone(job.name.as_str(), self.popularity.restore(job).await)?;
            let _: u8 = ENSURE
                .key(self.keys.schedules())
                .key(self.keys.ticks())
                .key(self.keys.digests())
                .arg(job.name.as_str())
                .arg(format!("{} {run_id}", job.digest))
                .arg(next_tick(job, now).map(|next| next.to_string()).unwrap_or_default())
                .invoke_async(&mut self.redis.clone())
                .await?;
        }
        self.wakeup.notify_one();
        Ok(())
    }

    /// Claims and expands one warmup if one is due; returns when to look again.
    ///
    /// # Errors
    /// Redis's; the tick is tried again when its claim runs out.
    pub async fn tick(&self) -> RedisResult<Duration> {
        let (now, name, tick): (i64, String, i64) = TICK
            .key(self.keys.schedules())
            .key(self.keys.ticks())
            .arg(self.claim.as_millis().to_string())
            .arg(self.jobs.jobs.keys().map(JobName::as_str).collect::<Vec<_>>())
            .invoke_async(&mut self.redis.clone())
            .await?;
        if name.is_empty() {
            let wait = if tick < 0 { IDLE } else { Duration::from_millis(u64::try_from(tick - now).unwrap_or(0)) };
            return Ok(wait);
        }
        let Some(job) = self.jobs.jobs.get(name.as_str()) else { return Ok(IDLE) };
        let begun = Instant::now();
        let Some(Expanded { entries, due }) = self.troubles.alone(&name, self.expand(job, tick).await)? else {
            // The tick comes again when its claim runs out; those of other jobs do not wait for that.
            return Ok(Duration::ZERO);
        };
        let next = next_tick(job, self.store.now().await?);
        let _: u8 = TOCK
            .key(self.keys.schedules())
            .key(self.keys.ticks())
            .arg(&name)
            .arg(tick.to_string())
            .arg(next.map(|next| next.to_string()).unwrap_or_default())
            .invoke_async(&mut self.redis.clone())
            .await?;
        info!(job = name, entries, due, seconds = begun.elapsed().as_secs_f32(), "warmup");
        Ok(Duration::ZERO)
    }

    /// Puts on the agenda what the warmup at `tick` (Redis time, ms) is to fetch.
    ///
    /// # Errors
    /// Redis's.
    pub async fn expand(&self, job: &Arc<Job>, tick: i64) -> RedisResult<Expanded> {
        let fed = self.fed(job, tick).await?;
        let mut total = Expanded::default();
        let named = job.entries.list.iter().chain(&fed).filter_map(|params| job.key.write(params));
        let popular = self.popularity.top(job, job.entries.popular).await?;
        let popular = popular.into_iter().map(|(key, _)| key).filter(|key| job.key.read(key.as_str()).is_some());
        let mut seen = HashSet::new();
        let all: Vec<EntryKey> = named.chain(popular).filter(|key| seen.insert(key.clone())).collect();
        let all = self.popularity.ranked(job, all).await?;
        // The most read come a moment sooner.
        for (moment, keys) in (0..).zip(all.chunks(BATCH)) {
            let looked = self.store.look(keys).await?;
            let now = self.store.now().await?;
            // Of a tick that is caught up, what counts is whether a value lives until the next one from now on.
            let wanted =
                if job.warm.refetch { Fresh { since: Some(tick), ..Fresh::default() } } else { filled(job, now) };
            let (mut due, mut kept) = (Vec::new(), Vec::new());
            for (key, (expires, meta)) in keys.iter().zip(looked) {
                let ahead = match keep(job, key, expires) {
                    Next::At(at) => Some(at),
                    _ => None,
                };
                // What is refreshed before it expires need not be fetched now, all at once and sooner than its TTL asks.
                let any = Fresh { since: Some(1), ..Fresh::default() };
                let in_time = !job.warm.refetch && ahead > Some(now) && is_fresh(any, expires, meta.as_ref(), now);
                if !in_time && !is_fresh(wanted, expires, meta.as_ref(), now) {
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
            let at = if job.warm.refetch { tick } else { now };
            self.agenda.put(&job.name, due.iter().copied(), When::Due(at + moment), Trigger::Cron).await?;
            total.entries += keys.len();
            total.due += due.len();
            // A long warmup stays ours.
            self.hold(job, tick).await?;
        }
        Ok(total)
    }

    async fn hold(&self, job: &Job, tick: i64) -> RedisResult<()> {
        let _: u8 = HOLD
            .key(self.keys.schedules())
            .key(self.keys.ticks())
            .arg(job.name.as_str())
            .arg(tick.to_string())
            .arg(self.claim.as_millis().to_string())
            .invoke_async(&mut self.redis.clone())
            .await?;
        Ok(())
    }

    /// The entries that the job's feed names now; where it does not answer, those it named last.
    pub(crate) async fn fed(&self, job: &Arc<Job>, tick: i64) -> RedisResult<Vec<Params>> {
        let Some(asked) = &job.entries.feed else {
            feed::forget(&mut self.redis.clone(), &self.keys, job).await?;
            return Ok(Vec::new());
        };
        let named = self.ask_feed(job, &asked.upstream).await;
        self.hold(job, tick).await?;
        let feeds = self.troubles.of("asking a job's feed");
        match named {
            Ok(entries) => {
                feeds.well(job.name.as_str());
                feed::remember(&mut self.redis.clone(), &self.keys, job, &entries).await?;
                Ok(entries)
            }
            Err(e) => {
                feeds.ill(job.name.as_str(), format!("what it named last is kept warm: {e}"));
                feed::named_last(&mut self.redis.clone(), &self.keys, job).await
            }
        }
    }

    /// Asks a job's feed, within its upstream's limits; before what waits there, since all of it hangs on that one answer.
    async fn ask_feed(&self, job: &Arc<Job>, upstream: &UpstreamName) -> Result<Vec<Params>, String> {
        let permit = match self.gates.get(upstream) {
            Some(gate) => Some(gate.admit(Priority::High, Instant::now() + self.claim / 2).await),
            None => None,
        };
        let permit =
            permit.transpose().map_err(|Refusal { reason, .. }| format!("{upstream} admits nothing: {reason}"))?;
        let named = self.sources.feed(&self.jobs, job).await;
        if let Some(permit) = permit {
            permit.end(&named).await;
        }
        named.map_err(|e| e.to_string())
    }
}

/// What a warmup at `tick` (Redis time, ms) that only fills leaves alone: what lives until the next one.
fn filled(job: &Job, tick: i64) -> Fresh {
    let next = job.warm.schedule.as_ref().zip(DateTime::from_timestamp_millis(tick));
    let next = next.and_then(|(schedule, tick)| schedule.next(tick)).map(|next| next.timestamp_millis());
    match next {
        Some(next) => Fresh { until: Some(next), ..Fresh::default() },
        None => Fresh { since: Some(1), ..Fresh::default() },
    }
}

/// The same judgement as lease.lua's, at this time (Redis time, ms).
fn is_fresh(wanted: Fresh, expires: i64, meta: Option<&Meta>, now: i64) -> bool {
    meta.is_some_and(|meta| {
        meta.is_of(expires)
            && meta.invalidated == 0
            && meta.outlived == 0
            && meta.start <= now
            && (wanted.since.is_some_and(|since| meta.start >= since)
                || wanted.until.is_some_and(|until| expires >= until))
    })
}

fn next_tick(job: &Job, now: i64) -> Option<i64> {
    let schedule = job.warm.schedule.as_ref()?;
    schedule.next(DateTime::from_timestamp_millis(now)?).map(|next| next.timestamp_millis().max(now + 1))
}
