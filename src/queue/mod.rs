//! The queue: spreads tasks over the fleet, each a chunk of claimed entries. The only module that names apalis.
//!
//! Responsibility: apalis's worker runtime drives the tasks, and the data have apalis-redis's layout. Pulling,
//! acknowledging and beating are our own. The shipped ones end the worker at the first error of Redis, trust the
//! workers' clocks, and delete nothing. Here a loop waits until Redis is back, and the runtime only ever gets tasks.
//!
//! On failure: a lost task loses no work, since its entries are on the agenda and due again when their claims run out.
//! A pull whose reply is lost locks tasks that no worker handles; [`Queue::recover`] finds them.

mod dispatcher;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::task_id::TaskId;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::context::WorkerContext;
use redis::{RedisResult, Script, ScriptInvocation};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tower_layer::Identity;
use tracing::{info, warn};
use ulid::Ulid;

use crate::agenda::Claimed;
use crate::entry::Priority;
pub use dispatcher::Dispatcher;

use crate::protocol::Keys;
use crate::redis::LoopHealth;
use crate::redis::{Backoff, Connection};

/// The most tasks that wait on the queue. The dispatcher claims fewer; this bounds the queue in case of a fault.
const WAITING: usize = 10_000;
/// The most tasks that a worker has in flight. Most of their entries wait for their upstream.
const MOST_IN_FLIGHT: usize = 256;
/// The most tasks locked in one call: few, so that all workers get some.
const PULL: usize = 2;
/// The time between two pulls of a worker that no signal wakes.
const IDLE: Duration = Duration::from_secs(2);
/// The most tasks of a dead worker that are handled in one step: few, so that each step is short.
const LEFT: usize = 10;
/// The most tasks in flight that one call of [`Queue::recover`] inspects.
const RECOVERED: usize = 1_000;
/// The signal that makes workers pull.
pub const QUEUED_SIGNAL: &str = "queued";

static PUSH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/push.lua")));
static PULL_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/pull.lua")));
static ACK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/ack.lua")));
static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/forget.lua")));
static BEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/beat.lua")));
/// A beat that is also written while Redis is full.
static BEAT_WHILE_FULL: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!("#!lua flags=allow-oom\n", include_str!("lua/beat.lua"))));

/// A task: entries of one job that were claimed together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The job's name.
    pub job: String,
    /// The entries.
    pub entries: Vec<Claimed>,
}

impl Chunk {
    /// Returns `true` if all entries have high priority, so that the task goes before all others.
    pub fn is_high_priority(&self) -> bool {
        self.entries.iter().all(|entry| entry.due().priority == Priority::High)
    }
}

/// One worker's end of the queue.
#[derive(Clone, Debug)]
pub struct Queue {
    redis: Connection,
    layout: apalis_redis::Config,
    signals: String,
    worker: Arc<str>,
    wake: Arc<Notify>,
    slots: Arc<Slots>,
    loop_health: LoopHealth,
}

/// The tasks that this worker has in flight, the free slots for more, and the runtime that takes them.
#[derive(Debug)]
struct Slots {
    free: Arc<Semaphore>,
    tasks: Mutex<Option<mpsc::Sender<Task<LockedTask>>>>,
    /// Tasks that were pulled, until Redis has confirmed their acknowledgement.
    held: Mutex<HashSet<String>>,
    /// Tasks that Redis counts as in flight here although they are not held, and since when.
    orphans: Mutex<HashMap<String, Instant>>,
}

impl Default for Slots {
    fn default() -> Self {
        let free = Arc::new(Semaphore::new(MOST_IN_FLIGHT));
        Self { free, tasks: Mutex::default(), held: Mutex::default(), orphans: Mutex::default() }
    }
}

impl Slots {
    /// Takes free slots, at most so many.
    fn free(&self, most: usize) -> Vec<OwnedSemaphorePermit> {
        (0..most).map_while(|_| Arc::clone(&self.free).try_acquire_owned().ok()).collect()
    }

    /// Lets tasks in until the returned guard is dropped.
    fn open(&self, tasks: &mpsc::Sender<Task<LockedTask>>) -> Open<'_> {
        *self.tasks() = Some(tasks.clone());
        Open(self)
    }

    fn tasks(&self) -> MutexGuard<'_, Option<mpsc::Sender<Task<LockedTask>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns those of these tasks in flight that have not been held for `patience`: the reply to the pull that
    /// locked them is lost. The others that are not held are kept for the next call.
    fn orphans(&self, in_flight: Vec<String>, patience: Duration) -> Vec<String> {
        let held = self.held();
        let mut orphans = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *orphans);
        let since = |id: &String| before.get(id).copied().unwrap_or_else(Instant::now);
        *orphans = in_flight.into_iter().filter(|id| !held.contains(id)).map(|id| (id.clone(), since(&id))).collect();
        orphans.iter().filter(|(_, since)| since.elapsed() >= patience).map(|(id, _)| id.clone()).collect()
    }
}

impl Queue {
    /// Returns the queue under these keys, for a worker of this name (unique: a host and a ULID).
    pub fn new(redis: Connection, keys: &Keys, worker: &str) -> Self {
        let layout = apalis_redis::Config::default().queue(keys.queue());
        Self {
            redis,
            layout,
            signals: keys.signal_channel(),
            worker: worker.into(),
            wake: Arc::default(),
            slots: Arc::default(),
            loop_health: LoopHealth::default(),
        }
    }

    /// Puts tasks on the queue, before all others if `front`; returns how many the queue took. Tasks of high priority
    /// are pulled in the same round trip, as far as this worker has free slots.
    ///
    /// # Errors
    /// Redis's; the queue may have taken some.
    pub async fn push(&self, chunks: &[Chunk], front: bool) -> RedisResult<usize> {
        let mut taken = 0;
        for batch in chunks.chunks(50) {
            let call = self.push_call(batch, front)?;
            let at_once = front && batch.iter().all(Chunk::is_high_priority);
            let found_room =
                if at_once { self.push_and_pull(&call, batch.len()).await? } else { self.call(&call).await? };
            taken += found_room;
            if found_room < batch.len() {
                break;
            }
        }
        self.wake.notify_one();
        Ok(taken)
    }

    fn push_call(&self, batch: &[Chunk], front: bool) -> RedisResult<ScriptInvocation<'static>> {
        let mut call = PUSH.key(self.layout.active_jobs_list());
        call.key(self.layout.job_data_hash())
            .arg(self.meta_prefix())
            .arg(WAITING)
            .arg(u8::from(front))
            .arg(&self.signals)
            .arg(QUEUED_SIGNAL);
        for chunk in batch {
            let payload = serde_json::to_string(chunk).map_err(std::io::Error::other)?;
            call.arg(Ulid::generate().to_string()).arg(payload);
        }
        Ok(call)
    }

    async fn push_and_pull(&self, push: &ScriptInvocation<'_>, tasks: usize) -> RedisResult<usize> {
        let to = self.slots.tasks().clone();
        let slots = to.as_ref().map_or_else(Vec::new, |_| self.slots.free(tasks.min(PULL)));
        let (Some(to), false) = (to, slots.is_empty()) else { return self.call(push).await };
        let mut pipe = redis::pipe();
        pipe.invoke_script(push).invoke_script(&self.pull_call(slots.len())).ignore_errors();
        let (pushed, pulled): (RedisResult<usize>, RedisResult<Vec<String>>) =
            pipe.query_async(&mut self.redis.clone()).await?;
        let pushed = match pushed {
            // A Redis that was restarted does not know the script; nothing was done.
            Err(e) if e.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => self.call(push).await,
            pushed => pushed,
        };
        // A task that could not be pulled here waits for the next pull.
        for (task, slot) in pulled.map(pairs).unwrap_or_default().into_iter().zip(slots) {
            self.bring_in(&to, task, slot).await;
        }
        pushed
    }

    /// Passes a locked task to the runtime; returns false where the runtime takes none any more.
    async fn bring_in(
        &self,
        to: &mpsc::Sender<Task<LockedTask>>,
        task: (String, String),
        slot: OwnedSemaphorePermit,
    ) -> bool {
        self.slots.held().insert(task.0.clone());
        // The rescuer frees the task of a worker that ends meanwhile.
        to.send(locked_task(task, slot)).await.is_ok()
    }

    async fn call(&self, script: &ScriptInvocation<'_>) -> RedisResult<usize> {
        script.invoke_async(&mut self.redis.clone()).await
    }

    /// Pulls now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Shows in `loop_health` that tasks can be pulled.
    #[must_use]
    pub fn showing(mut self, loop_health: &LoopHealth) -> Self {
        self.loop_health = loop_health.clone();
        self
    }

    /// Beats for this worker; returns the number of live workers, and the names of some dead ones.
    ///
    /// # Errors
    /// Redis's. While it has no memory left, the beat is written all the same: the fleet is alive.
    pub async fn beat(&self, dead_after: Duration) -> RedisResult<(usize, Vec<String>)> {
        self.beat_script(&self.worker, dead_after, false).await
    }

    /// Returns the number of live workers; for a caller that is no worker.
    ///
    /// # Errors
    /// Redis's.
    pub async fn workers(&self, dead_after: Duration) -> RedisResult<usize> {
        self.beat_script("", dead_after, false).await.map(|(living, _)| living)
    }

    /// Returns the names of the live workers.
    ///
    /// # Errors
    /// Redis's.
    pub async fn living(&self, dead_after: Duration) -> RedisResult<Vec<String>> {
        let (seconds, _): (u64, u64) = redis::cmd("TIME").query_async(&mut self.redis.clone()).await?;
        let mut ask = redis::cmd("ZRANGEBYSCORE");
        ask.arg(self.layout.workers_set()).arg(seconds.saturating_sub(dead_after.as_secs().max(1))).arg("+inf");
        ask.query_async(&mut self.redis.clone()).await
    }

    /// Removes this worker from the fleet, and drops its tasks in flight: their entries were handed back.
    ///
    /// # Errors
    /// Redis's; the worker then counts as alive until its last beat is old.
    pub async fn leave(&self, dead_after: Duration) -> RedisResult<()> {
        loop {
            let ids: Vec<String> = self.tasks_in_flight(&self.worker).await?.into_iter().map(|(id, _)| id).collect();
            if ids.is_empty() || self.forget(&self.worker, &ids, dead_after).await? == 0 {
                break;
            }
        }
        self.beat_script(&self.worker, dead_after, true).await.map(|_| ())
    }

    async fn beat_script(&self, worker: &str, dead_after: Duration, leave: bool) -> RedisResult<(usize, Vec<String>)> {
        let mut reply: Vec<String> = match self.run_beat(&BEAT, worker, dead_after, leave).await {
            Err(full) if full.code() == Some("OOM") => {
                self.run_beat(&BEAT_WHILE_FULL, worker, dead_after, leave).await?;
                return Err(full);
            }
            reply => reply?,
        };
        let dead = reply.split_off(1.min(reply.len()));
        Ok((reply.first().and_then(|living| living.parse().ok()).unwrap_or_default(), dead))
    }

    async fn run_beat(
        &self,
        script: &Script,
        worker: &str,
        dead_after: Duration,
        leave: bool,
    ) -> RedisResult<Vec<String>> {
        script
            .key(self.layout.workers_set())
            .arg(format!("{}:", self.layout.inflight_jobs_set()))
            .arg(worker)
            .arg(dead_after.as_secs().max(1))
            .arg(u8::from(leave))
            .invoke_async(&mut self.redis.clone())
            .await
    }

    /// Returns some tasks that a worker has in flight: the id, and the chunk where it can be read.
    ///
    /// # Errors
    /// Redis's.
    pub async fn tasks_in_flight(&self, worker: &str) -> RedisResult<Vec<(String, Option<Chunk>)>> {
        let mut redis = self.redis.clone();
        let in_flight = self.in_flight(worker);
        let ids: Vec<String> = redis::cmd("SRANDMEMBER").arg(in_flight).arg(LEFT).query_async(&mut redis).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let payloads: Vec<Option<String>> =
            redis::cmd("HMGET").arg(self.layout.job_data_hash()).arg(&ids).query_async(&mut redis).await?;
        let read = |payload: Option<String>| payload.and_then(|payload| serde_json::from_str(&payload).ok());
        Ok(ids.into_iter().zip(payloads.into_iter().map(read)).collect())
    }

    /// Drops these tasks of a dead worker, and the worker with its last task; returns how many it has left.
    ///
    /// # Errors
    /// Redis's; a second call does no harm.
    pub async fn forget(&self, worker: &str, ids: &[String], dead_after: Duration) -> RedisResult<usize> {
        FORGET
            .key(self.layout.workers_set())
            .key(self.in_flight(worker))
            .key(self.layout.job_data_hash())
            .arg(self.meta_prefix())
            .arg(worker)
            .arg(dead_after.as_secs().max(1))
            .arg(ids)
            .invoke_async(&mut self.redis.clone())
            .await
    }

    /// Handles tasks that Redis counts as in flight here but whose pull was never answered, as far as there are free
    /// slots. A worker calls it regularly. A task counts as lost only when it has not been held for twice the longest
    /// time of a command, so a pull under way is left alone. A task that is handled twice does no harm: the agenda
    /// lets only one worker take its entries.
    ///
    /// # Errors
    /// Redis's; call it again.
    pub async fn recover(&self) -> RedisResult<()> {
        let Some(to) = self.slots.tasks().clone() else { return Ok(()) };
        let mut redis = self.redis.clone();
        let in_flight = self.in_flight(&self.worker);
        let ids: Vec<String> = redis::cmd("SRANDMEMBER").arg(in_flight).arg(RECOVERED).query_async(&mut redis).await?;
        let mut ids = self.slots.orphans(ids, self.redis.timeout() * 2);
        let taken_slots = self.slots.free(ids.len());
        ids.truncate(taken_slots.len());
        if ids.is_empty() {
            return Ok(());
        }
        let payloads: Vec<Option<String>> =
            redis::cmd("HMGET").arg(self.layout.job_data_hash()).arg(&ids).query_async(&mut redis).await?;
        info!(tasks = ids.len(), "the reply to a pull was lost; its tasks are handled now");
        for ((id, payload), slot) in ids.into_iter().zip(payloads).zip(taken_slots) {
            // A task without data cannot be read, and is acknowledged.
            self.bring_in(&to, (id, payload.unwrap_or_default()), slot).await;
        }
        Ok(())
    }

    /// Pulls tasks and runs `handle` on them until `stop`; then waits for those in flight.
    ///
    /// A task that is done, or that cannot be read, is acknowledged. `handle` ends the entries itself.
    ///
    /// # Errors
    /// apalis's runtime ended by itself, which is a fault.
    pub async fn run<F, Fut>(&self, handle: F, stop: CancellationToken) -> anyhow::Result<()>
    where
        F: Fn(Chunk) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (tasks, pulled) = mpsc::channel(MOST_IN_FLIGHT);
        let (done, acks) = mpsc::unbounded_channel::<String>();
        let service = move |task: LockedTask| {
            let (handle, done) = (handle.clone(), done.clone());
            async move {
                let LockedTask { id, payload, slot } = task;
                match serde_json::from_str(&payload) {
                    Ok(chunk) => handle(chunk).await,
                    Err(e) => warn!(task = id, "a task cannot be read and is dropped; its entries come due again: {e}"),
                }
                drop(slot);
                // The receiver lives until all senders are gone.
                let _ = done.send(id);
            }
        };
        let worker = WorkerBuilder::new(&*self.worker).backend(Pulled { tasks: pulled }).build(service);
        // The stream of tasks ends when all its senders are dropped, however the pulling ends.
        let open = self.slots.open(&tasks);
        let pulling = async {
            self.pull(tasks, stop.clone()).await;
            drop(open);
        };
        let (ran, (), ()) = tokio::join!(worker.run(), pulling, self.acknowledge(acks, &stop));
        if let Err(e) = ran {
            anyhow::bail!("the queue's worker runtime ended: {e}");
        }
        anyhow::ensure!(stop.is_cancelled(), "the queue's worker runtime ended by itself");
        Ok(())
    }

    /// Locks tasks for this worker while it has free slots.
    async fn pull(&self, tasks: mpsc::Sender<Task<LockedTask>>, stop: CancellationToken) {
        let mut backoff = Backoff::new("the queue").showing(&self.loop_health);
        while !stop.is_cancelled() {
            let Ok(first) = Arc::clone(&self.slots.free).acquire_owned().await else { return };
            let mut taken_slots = vec![first];
            taken_slots.extend(self.slots.free(PULL - 1));
            let reply = self.pull_once(taken_slots.len()).await;
            let found = match reply {
                Ok(found) => {
                    backoff.well();
                    found
                }
                Err(e) => {
                    backoff.ill(&e, &stop).await;
                    continue;
                }
            };
            let full = found.len() == taken_slots.len();
            for (task, slot) in found.into_iter().zip(taken_slots) {
                if !self.bring_in(&tasks, task, slot).await {
                    return;
                }
            }
            if !full {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(IDLE) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }

    async fn pull_once(&self, most: usize) -> RedisResult<Vec<(String, String)>> {
        self.pull_call(most).invoke_async(&mut self.redis.clone()).await.map(pairs)
    }

    fn pull_call(&self, most: usize) -> ScriptInvocation<'static> {
        let mut call = PULL_SCRIPT.key(self.layout.active_jobs_list());
        call.key(self.layout.job_data_hash())
            .key(self.in_flight(&self.worker))
            .key(self.layout.workers_set())
            .arg(self.meta_prefix())
            .arg(&*self.worker)
            .arg(most);
        call
    }

    /// Acknowledges tasks that are done, in batches, until no task can end any more.
    async fn acknowledge(&self, mut acks: mpsc::UnboundedReceiver<String>, stop: &CancellationToken) {
        let mut ids = Vec::new();
        let mut backoff = Backoff::new("acknowledging tasks");
        while acks.recv_many(&mut ids, 500).await > 0 {
            loop {
                let sent = ACK
                    .key(self.in_flight(&self.worker))
                    .key(self.layout.job_data_hash())
                    .arg(self.meta_prefix())
                    .arg(&ids)
                    .invoke_async::<usize>(&mut self.redis.clone())
                    .await;
                match sent {
                    Ok(_) => {
                        backoff.well();
                        let mut held = self.slots.held();
                        ids.iter().for_each(|id| _ = held.remove(id));
                        break;
                    }
                    // The rescuer of another worker clears up.
                    Err(_) if stop.is_cancelled() => break,
                    Err(e) => backoff.ill(&e, stop).await,
                }
            }
            ids.clear();
        }
    }

    fn meta_prefix(&self) -> String {
        format!("{}:", self.layout.job_meta_hash())
    }

    fn in_flight(&self, worker: &str) -> String {
        format!("{}:{worker}", self.layout.inflight_jobs_set())
    }
}

/// Lets tasks in until it is dropped.
struct Open<'a>(&'a Slots);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        *self.0.tasks() = None;
    }
}

/// Returns the ids and payloads in the reply to a pull.
fn pairs(reply: Vec<String>) -> Vec<(String, String)> {
    let mut reply = reply.into_iter();
    std::iter::from_fn(|| reply.next().zip(reply.next())).collect()
}

fn locked_task((id, payload): (String, String), slot: OwnedSemaphorePermit) -> Task<LockedTask> {
    TaskBuilder::new(LockedTask { id: id.clone(), payload, slot }).task_id(TaskId::from_string(id)).build()
}

/// A task that this worker has locked, and the slot that it takes.
struct LockedTask {
    id: String,
    payload: String,
    slot: OwnedSemaphorePermit,
}

/// The backend of apalis's runtime: pulled tasks, then the end. Never an error.
struct Pulled {
    tasks: mpsc::Receiver<Task<LockedTask>>,
}

impl Backend for Pulled {
    type Task = Task<LockedTask>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        worker: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        let pulled = self.tasks.poll_recv(cx);
        if let Poll::Ready(None) = pulled {
            // The runtime does not end with its tasks; it waits until it is told to stop. That fails only before it has
            // started, and then it does not poll.
            let _ = worker.stop();
        }
        pulled.map(|task| task.map(Ok))
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Pulled {
    type Args = LockedTask;
    type Id = Ulid;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}

#[cfg(test)]
mod tests;
