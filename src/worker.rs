//! One worker process: builds the parts, supervises their loops, and ends in order.
//!
//! A loop that ends when it should not takes the process down with the reason; none lives on as a ghost. Redis going away
//! ends no loop: each waits for it. When told to stop, nothing is claimed any more, what is in flight is finished within
//! the drain time, and the rest is handed back.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use ulid::Ulid;

use crate::admin::{self, Admin, Parts};
use crate::agenda::Agenda;
use crate::config::Settings;
use crate::dispatcher::{Bell, Dispatcher};
use crate::health::{Health, Sign};
use crate::job::{Jobs, UpstreamName};
use crate::ops::Ops;
use crate::popularity::{Popularity, Sampler};
use crate::queue::Queue;
use crate::redis::{Connection, Keys, Patience};
use crate::source::{Gate, Sources};
use crate::store::Store;
use crate::telemetry::{Telemetry, metrics};
use crate::trigger::{Cron, Doubt, Ear, Inbox, Intake, Invalidator, Listener, Misses, Suspicion};
use crate::warmer::Warmer;

/// How long a command may take before Redis counts as away. Longer than its longest pauses (a fork, a slow disk).
const COMMAND: Duration = Duration::from_secs(5);
/// For the connection on which reads wait for messages.
const BLOCKING: Duration = Duration::from_secs(10);
/// How often a worker says that it lives, and looks whether Redis still is who it was.
const BEAT: Duration = Duration::from_secs(1);
/// How often upstream limits are looked at beside the signals.
const GATES: Duration = Duration::from_secs(5);
/// How often what has died is swept out of tags, by one worker of the fleet.
const SWEEP: Duration = Duration::from_secs(600);
/// How long the last words to Redis may take when ending.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Connects, and waits for Redis if it is not there yet; its commands then fail after `patience`.
///
/// # Errors
/// `stop` came first.
pub async fn connect(settings: &Settings, patience: Duration, stop: &CancellationToken) -> anyhow::Result<Connection> {
    let mut told: Option<Instant> = None;
    loop {
        let error = match settings.redis.manager(patience).await {
            Ok(redis) => return Ok(redis),
            Err(e) => e,
        };
        if told.is_none_or(|told| told.elapsed() > Duration::from_secs(30)) {
            warn!("waits for Redis at {}: {error}", settings.redis);
            told = Some(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = stop.cancelled() => bail!("stopped while waiting for Redis at {}", settings.redis),
        }
    }
}

/// The ways to all upstreams.
pub fn gates(jobs: &Jobs, redis: &Connection, keys: &Keys, concurrency: usize) -> BTreeMap<UpstreamName, Arc<Gate>> {
    jobs.upstreams
        .iter()
        .map(|(name, upstream)| {
            let gate = Gate::new(Arc::clone(upstream), redis.clone(), keys, concurrency);
            (name.clone(), Arc::new(gate))
        })
        .collect()
}

/// Runs a worker until `stop`, then drains; until `cut` if that comes first.
///
/// # Errors
/// A loop ended by itself, or the worker could not begin.
pub async fn run(
    settings: &Settings,
    jobs: Arc<Jobs>,
    stop: CancellationToken,
    cut: CancellationToken,
) -> anyhow::Result<()> {
    metrics::install();
    let health = Health::default();
    let mut loops = Supervisor::new(stop.clone());
    // It answers before Redis is there, and until all else has ended.
    let over = CancellationToken::new();
    let listening = admin::listen(settings.listen).await?;
    let local = listening.as_ref().is_none_or(|listening| listening.address().ip().is_loopback());
    let admin = Admin::new(health.clone(), settings.redis.to_string(), settings.token.clone(), local, stop.clone());
    if let Some(listening) = listening {
        loops.run("HTTP", listening.run(Arc::clone(&admin), over.clone()));
    }
    let both = async { Ok((connect(settings, COMMAND, &stop).await?, connect(settings, BLOCKING, &stop).await?)) };
    let (redis, reading) = match both.await {
        Ok(both) => both,
        Err(e) if stop.is_cancelled() => {
            info!("{e}");
            over.cancel();
            loops.end(LAST_WORDS).await;
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let name: Arc<str> = format!("{}-{}", host(), Ulid::generate()).into();
    info!(worker = &*name, redis = %settings.redis, jobs = jobs.jobs.len(), "samovar {}", env!("CARGO_PKG_VERSION"));

    let keys = Keys::new(&settings.prefix, &settings.channel);
    let telemetry = Telemetry::default();
    let store = Store::new(redis.clone(), keys.clone());
    let agenda = Agenda::new(redis.clone(), keys.clone());
    let queue = Queue::new(redis.clone(), &keys, &name).showing(&health.queue);
    let sources = Sources::new(&jobs).context("cannot make HTTP clients")?;
    let gates = gates(&jobs, &redis, &keys, settings.concurrency);
    let popularity = Popularity::new(redis.clone(), keys.clone());
    let bell = Arc::new(Bell::default());
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
    let sampler = Sampler {
        redis: redis.clone(),
        keys: keys.clone(),
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        popularity: popularity.clone(),
        every: settings.sample,
        claim: settings.claim,
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
        bell: Arc::new(Notify::new()),
    };
    let suspicion = Suspicion {
        redis: redis.clone(),
        keys: keys.clone(),
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        store: store.clone(),
        invalidator: invalidator.clone(),
        worker: Arc::clone(&name),
        claim: settings.claim,
        bell: Arc::new(Notify::new()),
    };
    let (intake, intaking) = Intake::new(invalidator.clone(), telemetry.clone());
    let dispatcher = Dispatcher {
        jobs: Arc::clone(&jobs),
        agenda: agenda.clone(),
        store: store.clone(),
        queue: queue.clone(),
        gates: gates.clone(),
        bell: Arc::clone(&bell),
        workers: Arc::clone(&workers),
        concurrency: settings.concurrency,
        claim: settings.claim,
        sign: health.agenda.clone(),
        telemetry: telemetry.clone(),
    };
    let listener = Listener {
        client: settings.redis.client()?,
        keys: keys.clone(),
        intake: intake.clone(),
        ear: Ear::new(redis.clone(), keys.clone(), Arc::clone(&name), suspicion.clone()),
        suspicion: Arc::clone(&suspicion.bell),
        bell,
        queue: queue.clone(),
        gates: gates.clone(),
        telemetry: telemetry.clone(),
        sign: health.subscription.clone(),
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
    let pulse = Pulse {
        redis: redis.clone(),
        client: settings.redis.clone(),
        keys: keys.clone(),
        queue: queue.clone(),
        cron: cron.clone(),
        store: store.clone(),
        suspicion: suspicion.clone(),
        gates: gates.clone(),
        workers: Arc::clone(&workers),
        dead_after: dead_after(settings.claim),
        sign: health.beat.clone(),
    };
    admin.ready(Parts {
        ops: Ops { redis: redis.clone(), keys: keys.clone(), store, agenda, jobs },
        invalidator: invalidator.clone(),
        cron: cron.clone(),
        gates: gates.clone(),
        warmer: Arc::downgrade(&warmer),
        workers,
        worker: Arc::clone(&name),
    });
    let inbox = Inbox {
        redis: reading,
        control: redis.clone(),
        keys,
        intake,
        suspicion: suspicion.clone(),
        telemetry: telemetry.clone(),
        worker: Arc::clone(&name),
        claim: settings.claim,
        told: None,
        sign: health.inbox,
    };

    loops.run("cron", cron.run(stop.clone()));
    if let Some(misses) = misses {
        loops.run("hearing misses", misses.run(stop.clone()));
    }
    loops.run("the sampler", sampler.run(stop.clone()));
    loops.run("the dispatcher", dispatcher.run(stop.clone()));
    loops.run("the listener", listener.run(stop.clone()));
    loops.run("the inbox", inbox.run(stop.clone()));
    loops.run("the intake", intaking.run(stop.clone()));
    loops.run("the suspicion", suspicion.run(stop.clone()));
    loops.run("the pulse", pulse.run(stop.clone()));
    loops.run("the report", telemetry.clone().run(stop.clone()));
    let ends = finisher.run(cut.clone());
    tokio::pin!(ends);

    let result = {
        let warming = Arc::clone(&warmer);
        let tasks = queue.run(move |chunk| Arc::clone(&warming).warm_chunk(chunk), stop.clone());
        tokio::pin!(tasks);
        let drained = async {
            stop.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(settings.drain) => warn!(entries = warmer.in_hand(), "drain time is over"),
                () = cut.cancelled() => {}
            }
        };
        tokio::select! {
            ended = &mut tasks => ended,
            () = drained => Ok(()),
            ended = loops.wait() => Err(ended),
            () = &mut ends => Err(anyhow!("the finisher ended by itself")),
        }
        // What is still being warmed ends here.
    };
    stop.cancel();
    let farewell = async {
        warmer.hand_back().await;
        drop(warmer);
        ends.await;
        // The permits of fetches that were cut off.
        futures_util::future::join_all(gates.values().map(|gate| gate.refresh())).await;
        if let Err(e) = queue.leave(dead_after(settings.claim)).await {
            warn!("could not take leave, the fleet will notice: {e}");
        }
    };
    if !cut.is_cancelled() && tokio::time::timeout(LAST_WORDS, farewell).await.is_err() {
        warn!("Redis does not answer: what is in hand comes due again when its claims run out");
    }
    over.cancel();
    loops.end(LAST_WORDS).await;
    if result.is_ok() {
        info!(worker = &*name, "ended");
    }
    result
}

/// After how long without a beat a worker counts as dead.
pub fn dead_after(claim: Duration) -> Duration {
    claim.max(BEAT * 5)
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
    store: Store,
    suspicion: Suspicion,
    gates: BTreeMap<UpstreamName, Arc<Gate>>,
    workers: Arc<AtomicUsize>,
    dead_after: Duration,
    sign: Sign,
}

impl Pulse {
    async fn run(self, stop: CancellationToken) {
        let mut patience = Patience::new("the pulse").showing(&self.sign);
        let mut ensured = false;
        let mut gates_seen = Instant::now();
        let mut swept = Instant::now();
        while !stop.is_cancelled() {
            match self.beat(&mut ensured).await {
                Ok(()) => patience.well(),
                Err(e) => {
                    patience.ill(&e, &stop).await;
                    continue;
                }
            }
            if gates_seen.elapsed() >= GATES {
                for gate in self.gates.values() {
                    gate.refresh().await;
                }
                gates_seen = Instant::now();
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                if let Err(e) = self.sweep().await {
                    debug!("could not sweep: {e}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(BEAT) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn sweep(&self) -> redis::RedisResult<()> {
        let locked: Option<String> = redis::cmd("SET")
            .arg(self.keys.sweep_lock())
            .arg("1")
            .arg("NX")
            .arg("PX")
            .arg(SWEEP.as_millis().to_string())
            .query_async(&mut self.redis.clone())
            .await?;
        if locked.is_some() {
            let dropped = self.store.sweep_tags().await?;
            debug!(dropped, "swept tags");
        }
        Ok(())
    }

    async fn beat(&self, ensured: &mut bool) -> redis::RedisResult<()> {
        let living = self.queue.beat(self.dead_after).await?;
        self.workers.store(living.max(1), std::sync::atomic::Ordering::Relaxed);
        let mut redis = self.redis.clone();
        let (known, info): (Option<String>, String) =
            redis::pipe().getrange(self.keys.marker(), 0, -1).cmd("INFO").arg("server").query_async(&mut redis).await?;
        // It is read as nobody reads values; see [`Sampler`].
        let known = known.filter(|known| !known.is_empty());
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default();
        if known.as_deref() != Some(run_id) {
            // First the repair, then the mark: a crash in between only repeats it.
            if known.is_some() {
                // It may have forgotten what it had acknowledged.
                info!(redis = %self.client, "Redis was restarted: everything is looked at anew");
                self.suspicion.raise(self.store.now().await?, Doubt::Missed).await?;
            } else {
                info!(redis = %self.client, "Redis knows nothing of us: everything is warmed up");
            }
            self.cron.ensure(run_id).await?;
            let () = redis::cmd("SET").arg(self.keys.marker()).arg(run_id).query_async(&mut redis).await?;
        } else if !*ensured {
            self.cron.ensure(run_id).await?;
        }
        *ensured = true;
        Ok(())
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
