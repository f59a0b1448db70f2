//! One worker process: builds the parts, supervises their loops, and ends in order.
//!
//! Parts and loops over one reading of the jobs folder are a generation, which is a worker of its own in the fleet. A reload
//! ([`Reload`]) sets the next one beside it; `generations` says how one follows the other.
//!
//! A loop that ends when it should not takes the process down with the reason; none lives on as a ghost. Redis going away
//! ends no loop: each waits for it. When told to stop, nothing is claimed any more, what is in flight is finished within
//! the drain time, and the rest is handed back.

mod bulk_runtime;
pub mod maintenance;
mod rollover;

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, error, info, warn};
use ulid::Ulid;

use bulk_runtime::BulkRuntime;
use maintenance::{Evictions, JobCleaner, Rescuer, Revalidator};
use rollover::{Life, Process};

use crate::admin::{self, Admin, Parts};
use crate::agenda::Agenda;
use crate::agenda::Wakeup;
use crate::config::Settings;
use crate::entry::UpstreamName;
use crate::entry::duration;
use crate::job::Reload;
use crate::job::{Job, Jobs};
use crate::ops::Ops;
use crate::popularity::{Popularity, Sampler};
use crate::protocol::Keys;
use crate::queue::Dispatcher;
use crate::queue::{Chunk, Queue};
use crate::redis::{Backoff, Connection, WrongTypes, is_of_keys, requirements};
use crate::redis::{Health, LoopHealth, Troubles};
use crate::source::{Gate, Sources};
use crate::store::Gap;
use crate::store::Store;
use crate::telemetry::{Telemetry, metrics};
use crate::trigger::invalidation::clock::SET_BACK;
use crate::trigger::{
    Channel, Clock, Complaints, Cron, GapDetector, Gone, Inbox, Invalidator, Misses, Pipeline, Watermark,
};
use crate::warmer::Warmer;

/// How long a command may take before Redis counts as away. Longer than its longest pauses (a fork, a slow disk).
const COMMAND: Duration = Duration::from_secs(5);
/// For whoever asks over HTTP: sooner told that Redis is away than kept waiting.
const ASKED: Duration = Duration::from_secs(2);
/// For the connection on which reads wait for messages.
const BLOCKING: Duration = Duration::from_secs(10);
/// How often a worker says that it lives, and looks whether Redis still is who it was.
const BEAT: Duration = Duration::from_secs(1);
/// How often is looked at upstream limits beside the signals, and at what Redis may have evicted.
const LOOKS: Duration = Duration::from_secs(5);
/// How often what has died is swept out of tags, and jobs that are no more are looked for, by one worker of the fleet.
const SWEEP: Duration = Duration::from_secs(600);
/// How long is waited for a Redis that is not there, or not one to work with, before the next try: so long at first,
/// and so long at most. How often the same reason is said again.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// How often is looked whether the user may use the keys of the jobs, while it may not.
const RIGHTS: Duration = Duration::from_secs(5);
/// How long the last words to Redis may take when ending, and when ending at once.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_WORD: Duration = Duration::from_millis(300);
/// How often is looked whether fetches that were cut off have ended.
const LET_GO: Duration = Duration::from_millis(1);
/// Beats further apart than this are a break: who was kept waiting cannot tell who is dead.
const BREAK: Duration = Duration::from_secs(3);

/// Connects, and waits for Redis if it is not there yet; its commands then fail after `patience`.
///
/// # Errors
/// `stop` came first.
pub async fn connect(settings: &Settings, patience: Duration, stop: &CancellationToken) -> anyhow::Result<Connection> {
    let mut wait = Wait::default();
    loop {
        match settings.redis.manager(patience).await {
            Ok(redis) => return Ok(redis),
            Err(e) => wait.before_next(settings, requirements::explain(&e), stop).await?,
        }
    }
}

/// Connects as [`connect`] does, and waits until it is a server and a user that a worker can work with; `admin` is told
/// why it waits.
async fn connect_first(settings: &Settings, admin: &Admin, stop: &CancellationToken) -> anyhow::Result<Connection> {
    let keys = settings.keys();
    let mut wait = Wait::default();
    let mut redis = loop {
        let connected = settings.redis.manager(COMMAND).await;
        let fault = match connected {
            Ok(mut redis) => match unfit(&mut redis, &keys).await {
                Ok(None) => break redis,
                Ok(Some(fault)) => fault,
                Err(e) => requirements::explain(&e),
            },
            Err(e) => requirements::explain(&e),
        };
        admin.waits(&fault);
        wait.before_next(settings, fault, stop).await?;
    };
    match requirements::doing_without(&mut redis, &keys).await {
        Ok(costs) if costs.is_empty() => {}
        Ok(costs) => warn!("the Redis user has not all rights (docs/redis.md): {}", costs.join("; ")),
        Err(e) => debug!("cannot see which rights the Redis user has: {e}"),
    }
    Ok(redis)
}

/// Why no worker can work with this server, or as this user; `None` if it can.
async fn unfit(redis: &mut Connection, keys: &Keys) -> redis::RedisResult<Option<String>> {
    if let Some(fault) = requirements::unsupported(redis).await? {
        return Ok(Some(fault));
    }
    let client = redis.client().clone();
    requirements::lacking(redis, &client, keys).await
}

/// Waits between attempts to connect, longer each time, and says from time to time, or when the reason changes, why.
#[derive(Default)]
struct Wait {
    told: Option<(Instant, String)>,
    tries: u32,
}

impl Wait {
    /// # Errors
    /// `stop` came first.
    async fn before_next(&mut self, settings: &Settings, why: String, stop: &CancellationToken) -> anyhow::Result<()> {
        let is_told = self.told.as_ref().is_some_and(|(at, told)| *told == why && at.elapsed() <= SAY_AGAIN);
        if !is_told {
            warn!("waits for Redis at {}: {why}", settings.redis);
            self.told = Some((Instant::now(), why));
        }
        let pause = LONGEST_WAIT.min(FIRST_WAIT * 2_u32.saturating_pow(self.tries));
        self.tries = self.tries.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = stop.cancelled() => bail!("stopped while waiting for Redis at {}", settings.redis),
        }
    }
}

/// The ways to all upstreams, for the worker of this id.
pub fn gates(
    jobs: &Jobs,
    redis: &Connection,
    keys: &Keys,
    concurrency: usize,
    worker: &str,
) -> BTreeMap<UpstreamName, Arc<Gate>> {
    jobs.upstreams
        .iter()
        .map(|(name, upstream)| {
            let gate = Gate::new(Arc::clone(upstream), redis.clone(), keys, concurrency).held_by(worker);
            (name.clone(), Arc::new(gate))
        })
        .collect()
}

/// Runs a worker until `stop`, then drains; until `cut` if that comes first. Whenever it is asked to, it reloads the jobs.
///
/// # Errors
/// A loop ended by itself, or the worker could not begin.
pub async fn run(
    settings: &Settings,
    jobs: Arc<Jobs>,
    reload: Arc<Reload>,
    stop: CancellationToken,
    cut: CancellationToken,
) -> anyhow::Result<()> {
    metrics::install();
    let mut loops = Supervisor::new(stop.clone());
    // It answers before Redis is there, and until all else has ended.
    let over = CancellationToken::new();
    let listening = admin::listen(settings.listen).await?;
    let local = listening.as_ref().is_none_or(|listening| listening.address().ip().is_loopback());
    let (server, token, hosts) = (settings.redis.to_string(), settings.token.clone(), settings.hosts.clone());
    let admin = Admin::new(server, token, local, hosts, Arc::clone(&reload), stop.clone());
    if let Some(listening) = listening {
        loops.run("HTTP", listening.run(Arc::clone(&admin), over.clone()));
    }
    let telemetry = Telemetry::default();
    loops.run("the report", telemetry.clone().run(stop.clone()));
    let wrong_types = WrongTypes::default();
    let result = match connect_first(settings, &admin, &stop).await {
        Ok(redis) => {
            let redis = redis.telling(&wrong_types);
            let keys = settings.keys();
            let name = format!("{}-{}", host(), std::process::id());
            loops.run("the feed", telemetry.clone().feed(redis.clone(), keys, name.into(), over.clone()));
            let process = Process { settings, redis, admin, telemetry, wrong_types, stop: stop.clone(), cut };
            let mut all = Box::pin(rollover::run(&process, jobs, &reload));
            tokio::select! {
                ended = &mut all => ended,
                ended = loops.wait() => {
                    stop.cancel();
                    all.await.and(Err(ended))
                }
            }
        }
        Err(e) if stop.is_cancelled() => {
            info!("{e}");
            Ok(())
        }
        Err(e) => Err(e),
    };
    stop.cancel();
    over.cancel();
    loops.end(LAST_WORDS).await;
    result
}

/// Runs one generation until it is told to stop, then drains; until the process is cut off if that comes first. Before its turn
/// it only listens: what it hears is heard by the one before, too, and no invalidation falls between the two.
async fn generation(process: &Process<'_>, jobs: Arc<Jobs>, life: Life) -> anyhow::Result<()> {
    let Process { settings, redis, admin, telemetry, cut, .. } = process;
    let (redis, telemetry, stop) = (redis.clone(), telemetry.clone(), life.stop.clone());
    let health = Health { wrong_types: process.wrong_types.clone(), ..Health::default() };
    let troubles = &health.troubles;
    let mut loops = Supervisor::new(stop.clone());
    let reading = match connect(settings, BLOCKING, &stop).await {
        Ok(reading) => reading.telling(&process.wrong_types),
        Err(e) if stop.is_cancelled() => {
            info!("{e}");
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let name: Arc<str> = format!("{}-{}", host(), Ulid::generate()).into();
    let keys = settings.keys();
    info!(
        worker = &*name,
        redis = %settings.redis,
        database = keys.database(),
        channel = keys.invalidate_channel(),
        jobs = jobs.jobs.len(),
        "samovar {}",
        env!("CARGO_PKG_VERSION")
    );

    let id = maintenance::id(&name);
    let store = Store::new(redis.clone(), keys.clone()).held_by(id);
    let agenda = Agenda::new(redis.clone(), keys.clone());
    let queue = Queue::new(redis.clone(), &keys, &name).showing(&health.queue);
    let sources = Sources::new(&jobs).context("cannot make HTTP clients")?;
    let gates = gates(&jobs, &redis, &keys, settings.concurrency, id);
    let popularity = Popularity::new(redis.clone(), keys.clone());
    let wakeup = Arc::new(Wakeup::of(&jobs));
    let waking = Arc::clone(&wakeup);
    let workers = Arc::new(AtomicUsize::new(1));
    let invalidator = Invalidator::new(redis.clone(), keys.clone(), Arc::clone(&jobs), store.clone(), agenda.clone());
    let (warmer, finisher) = Warmer::new(
        Arc::clone(&jobs),
        store.clone(),
        agenda.clone(),
        sources.clone(),
        gates.clone(),
        telemetry.clone(),
        popularity.clone(),
        settings.claim,
        stop.clone(),
    );
    let bulk_runtime = BulkRuntime::new("warming").context("cannot start threads")?;
    let many = match Box::pin(beside(&bulk_runtime, settings, &jobs, &process.wrong_types, &stop)).await {
        Ok((redis, sources)) => warmer.with_connections(
            store.clone().over(redis.clone()),
            Agenda::new(redis.clone(), keys.clone()),
            sources,
            Popularity::new(redis, keys.clone()),
        ),
        Err(e) if stop.is_cancelled() => {
            info!("{e}");
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let sampler = Sampler {
        redis: redis.clone(),
        keys: keys.clone(),
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        popularity: popularity.clone(),
        every: settings.sample,
        claim: settings.claim,
        troubles: troubles.of("the sample"),
    };
    let cron = Cron {
        popularity: popularity.clone(),
        redis: redis.clone(),
        keys: keys.clone(),
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        store: store.clone(),
        sources,
        gates: gates.clone(),
        claim: settings.claim,
        wakeup: Arc::new(Notify::new()),
        troubles: troubles.of("cron"),
    };
    let revalidator = Revalidator {
        redis: redis.clone(),
        keys: keys.clone(),
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        store: store.clone(),
        invalidator: invalidator.clone(),
        popularity: popularity.clone(),
        worker: Arc::clone(&name),
        claim: settings.claim,
        wakeup: Arc::new(Notify::new()),
        troubles: troubles.of("looking at what is suspect"),
    };
    let watermark = Watermark::of(&name);
    let (pipeline, pipeline_loop) = Pipeline::new(invalidator.clone(), telemetry.clone());
    let dispatcher = Dispatcher {
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        store: store.clone(),
        queue: queue.clone(),
        gates: gates.clone(),
        wakeup: Arc::clone(&wakeup),
        workers: Arc::clone(&workers),
        concurrency: settings.concurrency,
        claim: settings.claim,
        loop_health: health.agenda.clone(),
        troubles: troubles.of("the dispatcher"),
        telemetry: telemetry.clone(),
    };
    let gap_detector =
        GapDetector::new(redis.clone(), keys.clone(), Arc::clone(&name), Arc::clone(&jobs), store.clone());
    let settled = gap_detector.checked();
    let listener = Channel {
        client: settings.redis.client()?,
        redis: redis.clone(),
        keys: keys.clone(),
        pipeline: pipeline.clone(),
        gap_detector,
        revalidator: Arc::clone(&revalidator.wakeup),
        wakeup,
        queue: queue.clone(),
        gates: gates.clone(),
        telemetry: telemetry.clone(),
        loop_health: health.subscription.clone(),
    };
    let misses = Misses {
        client: settings.redis.client()?,
        redis: redis.clone(),
        keys: keys.clone(),
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        worker: Arc::clone(&name),
    };
    let misses = settings.misses.then_some(misses);
    let rescuer = Rescuer {
        jobs: Arc::clone(&jobs),
        queue: queue.clone(),
        agenda: agenda.clone(),
        store: store.clone(),
        gates: gates.clone(),
        dead_after: dead_after(settings.claim),
        troubles: troubles.of("freeing what a dead worker held"),
    };
    let sweeping = store.clone();
    let job_cleaner = JobCleaner::new(redis.clone(), keys.clone(), Arc::clone(&jobs)).noting(troubles);
    let pulse = Pulse {
        evictions: Evictions::new(redis.clone(), keys.clone(), Arc::clone(&jobs)),
        clock: Clock::new(redis.clone(), keys.clone()),
        rescuer,
        redis: redis.clone(),
        client: settings.redis.clone(),
        keys: keys.clone(),
        queue: queue.clone(),
        cron: cron.clone(),
        job_cleaner: job_cleaner.clone(),
        store: store.clone(),
        watermark: watermark.clone(),
        gates: gates.clone(),
        workers: Arc::clone(&workers),
        dead_after: dead_after(settings.claim),
        loop_health: health.beat.clone(),
        troubles: troubles.of("the pulse"),
        doubted: None,
        turn: life.turn.clone(),
    };
    let parts = Parts {
        health: health.clone(),
        ops: Ops::new(redis.clone().with_patience(ASKED), keys.clone(), Arc::clone(&jobs)),
        invalidator: invalidator.clone(),
        backlog: pipeline.backlog().clone(),
        cron: cron.clone(),
        gates: gates.clone(),
        warmer: Arc::downgrade(&warmer),
        workers,
        worker: Arc::clone(&name),
    };
    let inbox = Inbox {
        redis: reading,
        control: redis.clone(),
        keys: keys.clone(),
        pipeline,
        store: store.clone(),
        watermark,
        telemetry,
        worker: Arc::clone(&name),
        claim: settings.claim,
        complaints: Complaints::of("a message in the inbox"),
        loop_health: health.inbox.clone(),
    };

    // It goes on for what was heard until all else has stopped.
    let (handled, hush) = (CancellationToken::new(), CancellationToken::new());
    let (told, hushed) = (handled.clone(), hush.clone());
    loops.run("the listener", listener.run(stop.clone()));
    loops.run("the inbox", inbox.run_until(stop.clone(), process.stop.clone()));
    loops.run("the pipeline", async move {
        pipeline_loop.run(hushed).await;
        told.cancel();
    });
    let names = keys.all_fixed(cron.jobs.jobs.keys(), cron.jobs.upstreams.keys());
    loops.run("the look at types", health.wrong_types.clone().run(redis.clone(), keys.clone(), names, stop.clone()));
    let sweeps = troubles.of("the sweep");
    loops.run("the sweep", sweep(redis.clone(), keys.clone(), sweeping, job_cleaner, sweeps, stop.clone()));
    loops.run("the rights", rights(redis.clone(), Arc::clone(&jobs), health.keys.clone(), stop.clone()));
    loops.run("the revalidator", revalidator.run(stop.clone()));
    loops.run("the pulse", pulse.run(stop.clone()));
    let begun = tokio::select! {
        biased;
        () = life.turn.cancelled() => Ok(()),
        () = stop.cancelled() => Ok(()),
        ended = loops.wait() => Err(ended),
        () = life.hears(&settled, &health) => Ok(()),
    };
    if life.turn.is_cancelled() {
        life.take_over(&health);
        admin.ready(parts);
    }

    loops.run("cron", cron.run(stop.clone()));
    if let Some(misses) = misses {
        loops.run("hearing misses", misses.run(stop.clone()));
    }
    loops.run("the sampler", sampler.run(stop.clone()));
    loops.run("the dispatcher", dispatcher.run(stop.clone()));
    let ends = finisher.waking(waking).noting(troubles).run(cut.clone());
    tokio::pin!(ends);

    let chunks = TaskTracker::new();
    let result = {
        let (single, chunks, here) = (Arc::clone(&warmer), chunks.clone(), tokio::runtime::Handle::current());
        let there = bulk_runtime.handle().clone();
        // Each chunk is a task of an executor's own, so that all cores warm, and ends with this.
        let handle = move |chunk: Chunk| {
            let (warmer, place) = if chunk.is_single() { (&single, &here) } else { (&many, &there) };
            let task = AbortOnDropHandle::new(chunks.spawn_on(Arc::clone(warmer).warm_chunk(chunk), place));
            async move {
                if let Err(e) = task.await
                    && e.is_panic()
                {
                    error!("warming a task panicked, its entries come due again: please report this: {e}");
                }
            }
        };
        let tasks = queue.run(handle, stop.clone());
        let all = async {
            let ended = tasks.await;
            if ended.is_ok() {
                handled.cancelled().await;
            }
            ended
        };
        tokio::pin!(all);
        let drained = async {
            stop.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(settings.drain) => warn!(entries = warmer.in_hand(), "drain time is over"),
                () = cut.cancelled() => {}
            }
        };
        tokio::select! {
            biased;
            () = std::future::ready(()), if begun.is_err() => begun,
            ended = &mut all => ended,
            () = drained => Ok(()),
            ended = loops.wait() => Err(ended),
            () = &mut ends => Err(anyhow!("the finisher ended by itself")),
        }
        // What is still being warmed ends here.
    };
    stop.cancel();
    hush.cancel();
    chunks.close();
    let farewell = async {
        // A task that is told to end does so where it next waits.
        chunks.wait().await;
        warmer.hand_back().await;
        drop(warmer);
        ends.await;
        // The permits of fetches that were cut off, once they have let go of them, and what requests took.
        while gates.values().any(|gate| gate.in_flight() > 0) {
            tokio::time::sleep(LET_GO).await;
        }
        let gates = gates.values().map(async |gate| {
            gate.refresh().await;
            gate.tell().await
        });
        futures_util::future::join_all(gates).await;
        if let Err(e) = queue.leave(dead_after(settings.claim)).await {
            warn!("could not take leave, the fleet will notice: {e}");
        }
    };
    let time = if cut.is_cancelled() { LAST_WORD } else { LAST_WORDS };
    if tokio::time::timeout(time, farewell).await.is_err() {
        warn!("Redis does not answer: what is in hand comes due again when the fleet notices, or its claims run out");
    }
    loops.end(time).await;
    if result.is_ok() && !process.stop.is_cancelled() {
        // Another generation has heard all the while: nobody asks any more what this one heard.
        let _: redis::RedisResult<()> =
            redis::cmd("HDEL").arg(keys.ears()).arg(&*name).query_async(&mut redis.clone()).await;
    }
    if result.is_ok() {
        info!(worker = &*name, "ended");
    }
    result
}

/// Connections to Redis and to upstreams for what runs on a bulk_runtime. They belong to the threads on which they are made.
async fn beside(
    bulk_runtime: &BulkRuntime,
    settings: &Settings,
    jobs: &Arc<Jobs>,
    wrong_types: &WrongTypes,
    stop: &CancellationToken,
) -> anyhow::Result<(Connection, Sources)> {
    let (settings, jobs, stop) = (settings.clone(), Arc::clone(jobs), stop.clone());
    let wrong_types = wrong_types.clone();
    let making = async move {
        let redis = connect(&settings, COMMAND, &stop).await?.telling(&wrong_types);
        Ok((redis, Sources::new(&jobs).context("cannot make HTTP clients")?))
    };
    bulk_runtime.handle().spawn(making).await.context("connecting panicked")?
}

/// After how long without a beat a worker counts as dead: soon enough for what it held to be warm within the claim time.
pub fn dead_after(claim: Duration) -> Duration {
    (claim / 2).clamp(BEAT * 5, BEAT * 15)
}

fn host() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "worker".to_owned())
}

/// Says that the worker lives, and sees whether Redis forgot.
#[derive(Debug)]
struct Pulse {
    redis: Connection,
    client: crate::redis::RedisUrl,
    keys: Keys,
    queue: Queue,
    cron: Cron,
    job_cleaner: JobCleaner,
    store: Store,
    watermark: Watermark,
    gates: BTreeMap<UpstreamName, Arc<Gate>>,
    rescuer: Rescuer,
    evictions: Evictions,
    clock: Clock,
    workers: Arc<AtomicUsize>,
    dead_after: Duration,
    loop_health: LoopHealth,
    /// What fails in single steps.
    troubles: Troubles,
    /// The Redis, by its `run_id`, that a revalidator was raised for and that is not marked yet.
    doubted: Option<String>,
    /// Set when it is this generation that sees to the jobs.
    turn: CancellationToken,
}

impl Pulse {
    async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the pulse").showing(&self.loop_health);
        let mut ensured = false;
        let mut looked = Instant::now();
        let (mut last, mut steady) = (Instant::now(), Instant::now());
        while !stop.is_cancelled() {
            let thorough = looked.elapsed() >= LOOKS;
            let beaten = async {
                let dead = self.beat().await?;
                if self.turn.is_cancelled() {
                    self.remind(&mut ensured, thorough).await?;
                }
                redis::RedisResult::Ok(dead)
            };
            let dead = match beaten.await {
                Ok(dead) => dead,
                Err(e) => {
                    backoff.ill(&e, &stop).await;
                    continue;
                }
            };
            backoff.well();
            if last.elapsed() > BREAK {
                steady = Instant::now();
            }
            last = Instant::now();
            match self.clock.inspect().await {
                Ok(Gone::On) => {}
                Ok(gone) => {
                    // All beats of before are old, or in the future.
                    steady = Instant::now();
                    // The next beat begins all schedules anew.
                    ensured &= gone != Gone::Back;
                }
                Err(e) => debug!("cannot see how Redis's clock goes: {e}"),
            }
            // After an outage of Redis all beats are old, and some come a little later than others.
            if steady.elapsed() >= self.dead_after {
                let rescuing = async {
                    for worker in dead {
                        if let Err(e) = self.rescuer.rescue(&worker).await {
                            debug!(worker, "could not bury it, once more with the next beat: {e}");
                        }
                    }
                };
                // The next beat must not wait for it; what is left then is buried after that.
                let _ = tokio::time::timeout(BEAT, rescuing).await;
            }
            if thorough {
                match self.evictions.look().await {
                    // The next beat sets up what is missing.
                    Ok(lost) => ensured &= !lost,
                    Err(e) => debug!("cannot see what Redis evicts: {e}"),
                }
                for gate in self.gates.values() {
                    gate.refresh().await;
                    if let Err(e) = gate.tell().await {
                        debug!("could not tell what requests took: {e}");
                    }
                }
                if let Err(e) = self.queue.recover().await {
                    debug!("could not look for tasks whose pull was not answered: {e}");
                }
                looked = Instant::now();
            }
            tokio::select! {
                () = tokio::time::sleep(BEAT) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Tells that this worker lives; returns who is dead.
    async fn beat(&self) -> redis::RedisResult<Vec<String>> {
        let (living, dead) = self.queue.beat(self.dead_after).await?;
        self.workers.store(living.max(1), std::sync::atomic::Ordering::Relaxed);
        Ok(dead)
    }

    /// Sees whether Redis forgot, and sets up what is missing. A thorough look is also for what it has lost only some of. A
    /// step that somebody else's key keeps from being done hinders no other.
    async fn remind(&mut self, ensured: &mut bool, thorough: bool) -> redis::RedisResult<()> {
        let mut redis = self.redis.clone();
        let set_back: redis::RedisResult<Option<u64>> =
            redis::cmd("HGET").arg(self.keys.clock()).arg(SET_BACK).query_async(&mut redis).await;
        let set_back = self.troubles.alone("the clock", set_back)?.flatten();
        // It is read as nobody reads values; see [`Sampler`].
        let known: redis::RedisResult<String> =
            redis::cmd("GETRANGE").arg(self.keys.marker()).arg(0).arg(-1).query_async(&mut redis).await;
        let known = self.troubles.alone("the marker", known)?;
        let run_id = &*redis.incarnation(known.as_deref().filter(|known| !known.is_empty())).await?;
        let lost = thorough && self.troubles.alone("the schedules", self.has_lost_some().await)?.unwrap_or(false);
        if !*ensured {
            self.job_cleaner.know().await?;
        } else if thorough {
            self.job_cleaner.know_globs().await?;
        }
        // By a clock that was set back, all schedules begin anew as well.
        let schedules = set_back.map_or_else(|| run_id.to_owned(), |times| format!("{run_id} {times}"));
        if thorough || !self.watermark.is_of(run_id) {
            self.troubles.alone("the inbox's memory", self.watermark.compare(&self.store, Some(run_id)).await)?;
        }
        let is_another = known.as_deref().is_some_and(|known| known != run_id);
        if is_another {
            // First the repair, then the mark: a crash in between only repeats it.
            if self.doubted.as_deref() != Some(run_id) {
                // It may have forgotten what it had acknowledged.
                let raised = self.store.note_gap(self.store.now().await?, Gap::Missed).await;
                if self.troubles.alone("the revalidator", raised)?.is_some() {
                    self.doubted = Some(run_id.to_owned());
                    if known.as_deref() == Some("") {
                        info!(redis = %self.client, "Redis knows nothing of us: everything is warmed up");
                    } else {
                        info!(redis = %self.client, "Redis was restarted: everything is looked at anew");
                    }
                }
            }
            let set_up = self.troubles.alone("setting up warmups", self.cron.ensure(&schedules).await)?.is_some();
            if set_up && self.doubted.is_some() {
                let () = redis::cmd("SET").arg(self.keys.marker()).arg(run_id).query_async(&mut redis).await?;
            }
        } else {
            self.doubted = None;
            if lost || !*ensured {
                self.troubles.alone("setting up warmups", self.cron.ensure(&schedules).await)?;
            }
        }
        *ensured = true;
        Ok(())
    }

    /// Whether Redis has evicted some of what the jobs need, or a worker that does not know a job has dropped it just now.
    async fn has_lost_some(&self) -> redis::RedisResult<bool> {
        let (scheduled, digests): (bool, HashSet<String>) = redis::pipe()
            .exists(self.keys.schedules())
            .hkeys(self.keys.digests())
            .query_async(&mut self.redis.clone())
            .await?;
        let jobs = &self.cron.jobs.jobs;
        Ok((!scheduled && jobs.values().any(|job| job.warm.schedule.is_some()))
            || !jobs.keys().all(|job| digests.contains(job.as_str())))
    }
}

/// Looks whether the user may use the keys of the jobs, until it may or until `stop`, and shows and says where it may
/// not.
async fn rights(mut redis: Connection, jobs: Arc<Jobs>, loop_health: LoopHealth, stop: CancellationToken) {
    let names = |job: &Job| job.key.names().iter().map(|name| (name.clone(), name.clone())).collect();
    let mut keys = Vec::new();
    for job in jobs.jobs.values() {
        let params = job.entries.list.first().cloned().unwrap_or_else(|| names(job));
        keys.extend(job.key.write(&params).map(|key| (job.key.glob(), key.to_string())));
    }
    let mut told = None;
    loop {
        match requirements::lacking_keys(&mut redis, &keys).await {
            Ok(None) => {
                loop_health.well();
                return stop.cancelled().await;
            }
            Ok(Some(fault)) => {
                loop_health.ill(&fault);
                if told.as_ref() != Some(&fault) {
                    error!("jobs cannot be kept warm: {fault}");
                    told = Some(fault);
                }
            }
            Err(e) => debug!("cannot see whether the jobs' keys may be used: {e}"),
        }
        tokio::select! {
            () = tokio::time::sleep(RIGHTS) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Sweeps what has died out of tags, and what is kept of jobs that are no more, one worker of the fleet at a time, until `stop`.
async fn sweep(
    redis: Connection,
    keys: Keys,
    store: Store,
    job_cleaner: JobCleaner,
    troubles: Troubles,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stop.cancelled() => return,
        }
        if let Err(e) = job_cleaner.know().await {
            debug!("could not say which jobs are known: {e}");
        }
        let locked: redis::RedisResult<Option<String>> = redis::cmd("SET")
            .arg(keys.sweep_lock())
            .arg("1")
            .arg("NX")
            .arg("PX")
            .arg(duration::millis(SWEEP))
            .query_async(&mut redis.clone())
            .await;
        match locked {
            Ok(None) => {
                // No lock ends later, unless Redis's clock was set back meanwhile.
                let time = duration::millis(SWEEP);
                let mut shorten = redis::cmd("PEXPIRE");
                shorten.arg(keys.sweep_lock()).arg(time).arg("LT");
                if let Err(e) = shorten.exec_async(&mut redis.clone()).await {
                    debug!("could not look at the sweep's lock: {e}");
                }
            }
            Ok(Some(_)) => match tokio::join!(store.sweep_tags(), job_cleaner.round(maintenance::ROUNDS)) {
                (Ok(dropped), Ok(_)) => {
                    troubles.well("tags and jobs");
                    debug!(dropped, "swept tags");
                }
                (Err(e), _) | (_, Err(e)) if is_of_keys(&e) => _ = troubles.ill("tags and jobs", e),
                (Err(e), _) | (_, Err(e)) => debug!("could not sweep: {e}"),
            },
            Err(e) => debug!("could not sweep: {e}"),
        }
    }
}

/// Keeps the loops of a process: the only place that starts any.
struct Supervisor {
    loops: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Supervisor {
    fn new(stop: CancellationToken) -> Self {
        Self { loops: JoinSet::new(), stop }
    }

    fn run(&mut self, name: &'static str, body: impl Future<Output = ()> + Send + 'static) {
        self.loops.spawn(async move {
            body.await;
            name
        });
    }

    /// Waits until a loop ends that should not have; says which and why.
    async fn wait(&mut self) -> anyhow::Error {
        while let Some(ended) = self.loops.join_next().await {
            match ended {
                Ok(_) if self.stop.is_cancelled() => {}
                Ok(name) => return anyhow!("{name} ended by itself"),
                Err(e) => return anyhow!("a loop was lost: {e}"),
            }
        }
        std::future::pending().await
    }

    async fn end(mut self, time: Duration) {
        let all = async { while self.loops.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(time, all).await;
    }
}
