//! The queue: spreads tasks, which are chunks of claimed entries, over the fleet. The only file that names apalis.
//!
//! apalis's worker runtime drives the tasks; the data lies in apalis-redis's layout. Between the two stand our own pull,
//! acknowledge and beat, because the shipped ones end the worker for good at the first error of Redis, trust the workers'
//! clocks, and never delete. Here an error is waited out: the runtime only ever sees tasks.
//!
//! Losing a task, or all of them, loses no work: its entries are on the agenda, due again when their claims run out.
//! A pull whose reply is lost locks tasks that nobody works on: [`Queue::recover`] finds them and brings them in.

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

/// Tasks that may wait on the queue. The dispatcher claims less than this; it only bounds what a fault could pile up.
const WAITING: usize = 10_000;
/// Tasks a worker has in hand at once. Each holds at most a chunk of entries, most of them waiting for their upstream.
const IN_HAND: usize = 256;
/// Tasks locked in one call: few, so that workers share what there is.
const PULL: usize = 2;
/// How often a worker looks at the queue when nobody wakes it.
const IDLE: Duration = Duration::from_secs(2);
/// Tasks of a dead worker that are looked at in one step: few, so that each is short.
const LEFT: usize = 10;
/// Tasks in flight that one call of [`Queue::recover`] looks at.
const RECOVERED: usize = 1_000;
/// What a signal says that makes workers look at the queue.
pub const QUEUED_SIGNAL: &str = "queued";

static PUSH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/push.lua")));
static PULL_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/pull.lua")));
static ACK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/ack.lua")));
static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/forget.lua")));
static BEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/beat.lua")));

/// A task: entries of one job that were claimed together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The job's name.
    pub job: String,
    /// The entries.
    pub entries: Vec<Claimed>,
}

impl Chunk {
    /// Whether all of it was named by itself, and goes before all else.
    pub fn is_single(&self) -> bool {
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
    hands: Arc<Hands>,
    loop_health: LoopHealth,
}

/// What this worker may have in hand at once, and where it goes while tasks are pulled.
#[derive(Debug)]
struct Hands {
    free: Arc<Semaphore>,
    tasks: Mutex<Option<mpsc::Sender<Task<InHand>>>>,
    /// Tasks that were pulled, until Redis has confirmed that they are acknowledged.
    held: Mutex<HashSet<String>>,
    /// Tasks that Redis counts as in flight here and that are not held, and since when that is seen.
    orphans: Mutex<HashMap<String, Instant>>,
}

impl Default for Hands {
    fn default() -> Self {
        let free = Arc::new(Semaphore::new(IN_HAND));
        Self { free, tasks: Mutex::default(), held: Mutex::default(), orphans: Mutex::default() }
    }
}

impl Hands {
    /// Hands that are free just now, at most so many.
    fn free(&self, most: usize) -> Vec<OwnedSemaphorePermit> {
        (0..most).map_while(|_| Arc::clone(&self.free).try_acquire_owned().ok()).collect()
    }

    /// Nothing is brought in any more once what this returns is dropped.
    fn open(&self, tasks: &mpsc::Sender<Task<InHand>>) -> Open<'_> {
        *self.tasks() = Some(tasks.clone());
        Open(self)
    }

    fn tasks(&self) -> MutexGuard<'_, Option<mpsc::Sender<Task<InHand>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns those of these tasks in flight that are not held and were not for `patience`: the replies of the pulls that
    /// locked them are lost. The others that are not held are remembered for the next call.
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
    /// The queue under these keys, for a worker of this name (unique: a host and a ULID).
    pub fn new(redis: Connection, keys: &Keys, worker: &str) -> Self {
        let layout = apalis_redis::Config::default().queue(keys.queue());
        Self {
            redis,
            layout,
            signals: keys.signal_channel(),
            worker: worker.into(),
            wake: Arc::default(),
            hands: Arc::default(),
            loop_health: LoopHealth::default(),
        }
    }

    /// Puts tasks on the queue, before all others if `front`; returns how many found room. Where a worker has hands free, it
    /// pulls in the same round trip what goes before all others because it was named by itself.
    ///
    /// # Errors
    /// Redis's; some may have been taken.
    pub async fn push(&self, chunks: &[Chunk], front: bool) -> RedisResult<usize> {
        let mut taken = 0;
        for batch in chunks.chunks(50) {
            let call = self.push_call(batch, front)?;
            let at_once = front && batch.iter().all(Chunk::is_single);
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
        let to = self.hands.tasks().clone();
        let hands = to.as_ref().map_or_else(Vec::new, |_| self.hands.free(tasks.min(PULL)));
        let (Some(to), false) = (to, hands.is_empty()) else { return self.call(push).await };
        let mut pipe = redis::pipe();
        pipe.invoke_script(push).invoke_script(&self.pull_call(hands.len())).ignore_errors();
        let (pushed, pulled): (RedisResult<usize>, RedisResult<Vec<String>>) =
            pipe.query_async(&mut self.redis.clone()).await?;
        let pushed = match pushed {
            // A Redis that was started anew has to be told the script; nothing was done.
            Err(e) if e.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => self.call(push).await,
            pushed => pushed,
        };
        // What could not be pulled is when somebody looks.
        for (task, room) in pulled.map(pairs).unwrap_or_default().into_iter().zip(hands) {
            self.bring_in(&to, task, room).await;
        }
        pushed
    }

    /// Hands a task that is locked to the runtime; returns whether that still takes any.
    async fn bring_in(
        &self,
        to: &mpsc::Sender<Task<InHand>>,
        task: (String, String),
        room: OwnedSemaphorePermit,
    ) -> bool {
        self.hands.held().insert(task.0.clone());
        // Who ends meanwhile leaves it to those who clear up after workers.
        to.send(in_hand(task, room)).await.is_ok()
    }

    async fn call(&self, script: &ScriptInvocation<'_>) -> RedisResult<usize> {
        script.invoke_async(&mut self.redis.clone()).await
    }

    /// Looks at the queue now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Showing on this sign whether tasks can be pulled.
    #[must_use]
    pub fn showing(mut self, loop_health: &LoopHealth) -> Self {
        self.loop_health = loop_health.clone();
        self
    }

    /// Tells that this worker lives; returns how many do, and the names of some that do not.
    ///
    /// # Errors
    /// Redis's.
    pub async fn beat(&self, dead_after: Duration) -> RedisResult<(usize, Vec<String>)> {
        self.beat_script(&self.worker, dead_after, false).await
    }

    /// How many workers live, asked by somebody who is none.
    ///
    /// # Errors
    /// Redis's.
    pub async fn workers(&self, dead_after: Duration) -> RedisResult<usize> {
        self.beat_script("", dead_after, false).await.map(|(living, _)| living)
    }

    /// Takes leave, and drops the tasks in hand: their entries were handed back.
    ///
    /// # Errors
    /// Redis's; the worker then counts as living until its last beat is old.
    pub async fn leave(&self, dead_after: Duration) -> RedisResult<()> {
        loop {
            let ids: Vec<String> = self.in_hand_of(&self.worker).await?.into_iter().map(|(id, _)| id).collect();
            if ids.is_empty() || self.forget(&self.worker, &ids, dead_after).await? == 0 {
                break;
            }
        }
        self.beat_script(&self.worker, dead_after, true).await.map(|_| ())
    }

    async fn beat_script(&self, worker: &str, dead_after: Duration, leave: bool) -> RedisResult<(usize, Vec<String>)> {
        let mut reply: Vec<String> = BEAT
            .key(self.layout.workers_set())
            .arg(format!("{}:", self.layout.inflight_jobs_set()))
            .arg(worker)
            .arg(dead_after.as_secs().max(1))
            .arg(u8::from(leave))
            .invoke_async(&mut self.redis.clone())
            .await?;
        let dead = reply.split_off(1.min(reply.len()));
        Ok((reply.first().and_then(|living| living.parse().ok()).unwrap_or_default(), dead))
    }

    /// Some tasks that a worker has in hand: id, and what is in it if that can be read.
    ///
    /// # Errors
    /// Redis's.
    pub async fn in_hand_of(&self, worker: &str) -> RedisResult<Vec<(String, Option<Chunk>)>> {
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

    /// Drops these tasks of a dead worker, and the worker with its last one; returns how many it has left.
    ///
    /// # Errors
    /// Redis's; doing it again does no harm.
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

    /// Brings in tasks that Redis counts as in flight here but whose pull was never answered, as many as there are hands free.
    /// A worker calls it regularly. A pull under way is left alone: only what was not held for twice the time that a command
    /// may take counts as lost. One that is answered nevertheless is handled twice, of which the agenda lets only one through.
    ///
    /// # Errors
    /// Redis's; call it again.
    pub async fn recover(&self) -> RedisResult<()> {
        let Some(to) = self.hands.tasks().clone() else { return Ok(()) };
        let mut redis = self.redis.clone();
        let in_flight = self.in_flight(&self.worker);
        let ids: Vec<String> = redis::cmd("SRANDMEMBER").arg(in_flight).arg(RECOVERED).query_async(&mut redis).await?;
        let mut ids = self.hands.orphans(ids, self.redis.patience() * 2);
        let rooms = self.hands.free(ids.len());
        ids.truncate(rooms.len());
        if ids.is_empty() {
            return Ok(());
        }
        let payloads: Vec<Option<String>> =
            redis::cmd("HMGET").arg(self.layout.job_data_hash()).arg(&ids).query_async(&mut redis).await?;
        info!(tasks = ids.len(), "the reply to a pull was lost: its tasks are brought in");
        for ((id, payload), room) in ids.into_iter().zip(payloads).zip(rooms) {
            // One without data cannot be read, and is acknowledged.
            self.bring_in(&to, (id, payload.unwrap_or_default()), room).await;
        }
        Ok(())
    }

    /// Pulls tasks and runs `handle` on them until `stop`; then waits for those in hand.
    ///
    /// A task that is done, or not readable, is acknowledged; `handle` itself sees to its entries.
    ///
    /// # Errors
    /// apalis's runtime ended by itself, which it should not.
    pub async fn run<F, Fut>(&self, handle: F, stop: CancellationToken) -> anyhow::Result<()>
    where
        F: Fn(Chunk) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (tasks, pulled) = mpsc::channel(IN_HAND);
        let (done, acks) = mpsc::unbounded_channel::<String>();
        let service = move |task: InHand| {
            let (handle, done) = (handle.clone(), done.clone());
            async move {
                let InHand { id, payload, room } = task;
                match serde_json::from_str(&payload) {
                    Ok(chunk) => handle(chunk).await,
                    Err(e) => warn!(task = id, "dropping a task that cannot be read: {e}"),
                }
                drop(room);
                // The receiver lives until all senders are gone.
                let _ = done.send(id);
            }
        };
        let worker = WorkerBuilder::new(&*self.worker).backend(Pulled { tasks: pulled }).build(service);
        // The tasks are at their end when nobody can bring more, however the pulling ends.
        let open = self.hands.open(&tasks);
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

    /// Locks tasks for this worker as long as it has hands free.
    async fn pull(&self, tasks: mpsc::Sender<Task<InHand>>, stop: CancellationToken) {
        let mut backoff = Backoff::new("the queue").showing(&self.loop_health);
        while !stop.is_cancelled() {
            let Ok(first) = Arc::clone(&self.hands.free).acquire_owned().await else { return };
            let mut rooms = vec![first];
            rooms.extend(self.hands.free(PULL - 1));
            let reply = self.pull_once(rooms.len()).await;
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
            let full = found.len() == rooms.len();
            for (task, room) in found.into_iter().zip(rooms) {
                if !self.bring_in(&tasks, task, room).await {
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

    /// Acknowledges what is done, as many as there are at a time, until all who could say so are gone.
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
                        let mut held = self.hands.held();
                        ids.iter().for_each(|id| _ = held.remove(id));
                        break;
                    }
                    // Another worker clears up what is left behind.
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

/// Hands into which tasks may be put.
struct Open<'a>(&'a Hands);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        *self.0.tasks() = None;
    }
}

/// What a pull replies: ids and payloads.
fn pairs(reply: Vec<String>) -> Vec<(String, String)> {
    let mut reply = reply.into_iter();
    std::iter::from_fn(|| reply.next().zip(reply.next())).collect()
}

fn in_hand((id, payload): (String, String), room: OwnedSemaphorePermit) -> Task<InHand> {
    TaskBuilder::new(InHand { id: id.clone(), payload, room }).task_id(TaskId::from_string(id)).build()
}

/// A task that this worker has locked, and the hand it is in.
struct InHand {
    id: String,
    payload: String,
    room: OwnedSemaphorePermit,
}

/// What apalis's runtime sees: tasks as they are pulled, then the end. Never an error.
struct Pulled {
    tasks: mpsc::Receiver<Task<InHand>>,
}

impl Backend for Pulled {
    type Task = Task<InHand>;
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
            // The end of the tasks alone does not end the runtime: it goes on to wait until it is told to stop. It refuses
            // only before it has begun, and then it would not poll.
            let _ = worker.stop();
        }
        pulled.map(|task| task.map(Ok))
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Pulled {
    type Args = InHand;
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
