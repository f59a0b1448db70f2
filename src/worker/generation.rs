//! A generation: the parts and loops over one reading of the jobs folder, from start to drain.
//!
//! The steps, each a function of its own: build the parts ([`Parts::build`]), start the loops that listen, wait for the
//! turn, start the loops that produce work, serve, drain. Before its turn a generation only listens. The previous
//! generation hears the same, so no invalidation falls between the two.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, error, info, warn};

use super::heartbeat::dead_after;
use super::parts::{Listeners, Parts, Producers, Shared, Warming};
use super::supervisor::Supervisor;
use super::turn::Turn;
use super::{LAST_COMMANDS, Process};
use crate::job::Jobs;
use crate::queue::Chunk;
use crate::redis::Health;

/// The time that the last commands to Redis may take when the process ends at once.
const LAST_COMMANDS_CUT: Duration = Duration::from_millis(300);
/// The interval at which a generation checks whether it hears.
const HEARS: Duration = Duration::from_millis(50);
/// The interval at which a drain checks whether aborted fetches have given their permits back.
const PERMITS: Duration = Duration::from_millis(1);

/// The signals between a generation and the rollover, in the order in which they are set.
#[derive(Clone)]
pub(super) struct Life {
    /// The generation hears all that is published. It sets this itself.
    pub(super) heard: CancellationToken,
    /// The generation is in charge of the jobs.
    pub(super) turn: Turn,
    /// The generation is told to stop.
    pub(super) stop: CancellationToken,
}

impl Life {
    /// Creates the signals of a generation that stops with the process at the latest.
    pub(super) fn new(process: &Process<'_>) -> Self {
        Self { heard: CancellationToken::new(), turn: Turn::default(), stop: process.stop.child_token() }
    }

    /// Waits until the generation hears and its gaps are checked, reports that, and waits for its turn.
    async fn hears(&self, checked: &CancellationToken, health: &Health) {
        checked.cancelled().await;
        while !health.is_heard_and_hears() {
            tokio::time::sleep(HEARS).await;
        }
        self.heard.cancel();
        self.turn.begins().await;
    }

    /// Marks a generation that replaces another as ready while its other loops start.
    fn take_over(&self, health: &Health) {
        if self.heard.is_cancelled() {
            health.agenda.well();
            health.queue.well();
        }
    }
}

/// The signals of loops that go on while the worker drains.
struct DrainSignals {
    /// The invalidation pipeline has ended, since all that was heard is handled.
    ended: CancellationToken,
    /// The pipeline must end now.
    cut: CancellationToken,
    /// The worker leaves the fleet, and its heartbeat ends.
    left: CancellationToken,
}

/// A generation whose loops run.
struct Generation<'a> {
    process: &'a Process<'a>,
    stop: CancellationToken,
    loops: Supervisor,
    shared: Shared<'a>,
    signals: DrainSignals,
    warming: Warming,
    /// The chunks that are being warmed.
    chunks: TaskTracker,
}

/// Runs one generation until it is told to stop and drains it, or until the process is cut.
///
/// # Errors
/// A part could not be built, or a loop ended by itself.
pub(super) async fn run(process: &Process<'_>, jobs: Arc<Jobs>, life: Life) -> anyhow::Result<()> {
    let parts = match Box::pin(Parts::build(process, jobs, &life.turn, &life.stop)).await {
        Ok(parts) => parts,
        Err(e) if life.stop.is_cancelled() => {
            info!("{e}");
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let Parts { shared, gaps_checked, listeners, producers, warming, finisher, admin } = parts;
    let mut loops = Supervisor::new(life.stop.clone());
    let signals = start_listeners(&mut loops, listeners, &shared, process, &life.stop);
    let started = tokio::select! {
        biased;
        () = life.turn.begins() => Ok(()),
        () = life.stop.cancelled() => Ok(()),
        ended = loops.wait() => Err(ended),
        () = life.hears(&gaps_checked, &shared.health) => Ok(()),
    };
    if life.turn.has_begun() {
        life.take_over(&shared.health);
        process.admin.ready(admin);
    }
    start_producers(&mut loops, producers, &life.stop);
    let finishing = finisher.run(process.cut.clone());
    tokio::pin!(finishing);
    let chunks = TaskTracker::new();
    let mut generation = Generation { process, stop: life.stop, loops, shared, signals, warming, chunks };
    let served = match started {
        Ok(()) => generation.serve(finishing.as_mut()).await,
        Err(e) => Err(e),
    };
    generation.drain(served, finishing).await
}

/// Starts the loops that hear invalidations and look after the fleet.
fn start_listeners(
    loops: &mut Supervisor,
    listeners: Listeners,
    shared: &Shared<'_>,
    process: &Process<'_>,
    stop: &CancellationToken,
) -> DrainSignals {
    let Listeners { channel, inbox, pipeline, sweeper, describer, key_rights, revalidator, heartbeat } = listeners;
    let signals =
        DrainSignals { ended: CancellationToken::new(), cut: CancellationToken::new(), left: CancellationToken::new() };
    let (ended, cut) = (signals.ended.clone(), signals.cut.clone());
    loops.run("the channel", channel.run(stop.clone()));
    loops.run("the inbox", inbox.run_until(stop.clone(), process.stop.clone()));
    loops.run("the pipeline", async move {
        pipeline.run(cut).await;
        ended.cancel();
    });
    let (redis, keys) = (shared.redis.clone(), shared.keys.clone());
    let names = keys.all_fixed(shared.jobs.jobs.keys(), shared.jobs.upstreams.keys());
    loops.run("the check of types", shared.health.wrong_types.clone().run(redis, keys, names, stop.clone()));
    loops.run("the sweeper", sweeper.run(stop.clone()));
    loops.run("the description of jobs", describer.run(stop.clone()));
    loops.run("the check of rights", key_rights.run(stop.clone()));
    loops.run("the revalidator", revalidator.run(stop.clone()));
    loops.run("the history", shared.history.clone().run(stop.clone()));
    let (left, stop) = (signals.left.clone(), stop.clone());
    loops.run("the heartbeat", async move {
        tokio::select! {
            () = left.cancelled() => {}
            () = heartbeat.run(stop) => {}
        }
    });
    signals
}

/// Starts the loops that make entries due and claim them.
fn start_producers(loops: &mut Supervisor, producers: Producers, stop: &CancellationToken) {
    let Producers { cron, misses, sampler, dispatcher, remaker, retrier, recorder, auditor } = producers;
    loops.run("cron", cron.run());
    if let Some(misses) = misses {
        loops.run("the misses", misses.run(stop.clone()));
    }
    loops.run("the sampler", sampler.run(stop.clone()));
    loops.run("the dispatcher", dispatcher.run(stop.clone()));
    loops.run("the remaker", remaker.run(stop.clone()));
    loops.run("the retrier", retrier.run(stop.clone()));
    loops.run("the recorder", recorder.run(stop.clone()));
    loops.run("the auditor", auditor.run(stop.clone()));
}

impl Generation<'_> {
    /// Warms what comes from the queue, until `stop` and until all that was pulled and heard is done; at most for the
    /// drain time after `stop`, and not beyond `cut`. What is still in flight then is dropped.
    async fn serve(&mut self, finishing: Pin<&mut impl Future<Output = ()>>) -> anyhow::Result<()> {
        let Self { process, stop, loops, shared, signals, warming, chunks } = self;
        let (warmer, bulk_warmer) = (Arc::clone(&warming.warmer), Arc::clone(&warming.bulk_warmer));
        let (main, bulk, tracker) = (Handle::current(), warming.bulk_runtime.handle().clone(), chunks.clone());
        // Each chunk is a task, so that all cores warm. It ends with the executor's future.
        let handle = move |chunk: Chunk| {
            let (warmer, runtime) = if chunk.is_high_priority() { (&warmer, &main) } else { (&bulk_warmer, &bulk) };
            let task = AbortOnDropHandle::new(tracker.spawn_on(Arc::clone(warmer).warm_chunk(chunk), runtime));
            async move {
                if let Err(e) = task.await
                    && e.is_panic()
                {
                    error!("warming a chunk panicked, its entries come due again: please report this: {e}");
                }
            }
        };
        let tasks = shared.queue.run(handle, stop.clone());
        let done = async {
            tasks.await?;
            signals.ended.cancelled().await;
            Ok(())
        };
        let timed_out = async {
            stop.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(process.settings.drain) => {
                    let entries = warming.warmer.in_flight();
                    warn!(entries, "the drain time is over; entries in flight are handed back");
                }
                () = process.cut.cancelled() => {}
            }
        };
        tokio::select! {
            biased;
            ended = done => ended,
            () = timed_out => Ok(()),
            ended = loops.wait() => Err(ended),
            () = finishing => Err(anyhow!("the finisher ended by itself: please report this")),
        }
    }

    /// Hands back what is in flight, leaves the fleet, and ends the loops. Returns what serving returned.
    async fn drain(
        self,
        served: anyhow::Result<()>,
        finishing: Pin<&mut impl Future<Output = ()>>,
    ) -> anyhow::Result<()> {
        let Self { process, stop, loops, shared, signals, warming, chunks } = self;
        let Warming { warmer, bulk_warmer, bulk_runtime } = warming;
        stop.cancel();
        signals.cut.cancel();
        chunks.close();
        let hand_back = async {
            // An aborted task ends where it next waits.
            chunks.wait().await;
            warmer.hand_back().await;
            // The finisher ends with the last warmer.
            drop((warmer, bulk_warmer));
            finishing.await;
            // Aborted fetches give their permits back first; then the gates report what requests took.
            while shared.gates.values().any(|gate| gate.in_flight() > 0) {
                tokio::time::sleep(PERMITS).await;
            }
            let gates = shared.gates.values().map(async |gate| {
                gate.refresh().await;
                gate.tell().await
            });
            futures_util::future::join_all(gates).await;
            // On the same connection, no beat comes after this.
            signals.left.cancel();
            if let Err(e) = shared.queue.leave(dead_after(process.settings.claim)).await {
                warn!("could not leave the fleet, which takes this worker for dead soon: {e}");
            }
        };
        let time = if process.cut.is_cancelled() { LAST_COMMANDS_CUT } else { LAST_COMMANDS };
        if tokio::time::timeout(time, hand_back).await.is_err() {
            warn!(
                "Redis does not answer; entries in flight come due again when the fleet takes this worker for dead, or \
                 when their claims expire"
            );
        }
        signals.left.cancel();
        if tokio::time::timeout(time, shared.history.write()).await.is_err() {
            debug!("the figures of the last minute could not be written in time, and are lost");
        }
        loops.end(time).await;
        if served.is_ok() && !process.stop.is_cancelled() {
            // The next generation heard the same, so nobody needs to know what this one heard.
            let mut forget = redis::cmd("HDEL");
            forget.arg(shared.keys.gap_detectors()).arg(&*shared.worker);
            let _: redis::RedisResult<()> = forget.exec_async(&mut shared.redis.clone()).await;
        }
        if served.is_ok() {
            info!(worker = &*shared.worker, "ended");
        }
        drop(bulk_runtime);
        served
    }
}
