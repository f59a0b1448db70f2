//! Misses as demand: keys of jobs that a client asked Redis for in vain are fetched. Off by default.
//!
//! Redis publishes each miss as a keyspace event (`keymiss`); one worker of the fleet subscribes. The event does not
//! tell who asked, and workers ask for absent keys, too. So a miss waits for a moment, and counts only if the entry is
//! still absent and nothing has made it due. A lost event loses only that miss; the number of misses is bounded.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::RedisResult;
use redis::aio::ConnectionLike;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agenda::{Agenda, Due, State, When};
use crate::entry::EntryKey;
use crate::entry::Trigger;
use crate::job::{Job, Jobs};
use crate::protocol::Keys;
use crate::redis::{Backoff, Connection, RedisTime, lead};
use crate::store::Meta;

/// The time for which a miss waits: an entry that a warmup asked for in vain is on the agenda by then.
const WAIT: Duration = Duration::from_millis(300);
/// The interval at which waiting misses are handled, and the number handled at once.
const HANDLE: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 50;
/// Misses that may wait or be remembered; more are dropped.
const MOST: usize = 5_000;
/// The time for which further misses of a handled key do not count.
const AGAIN: Duration = Duration::from_secs(5);
/// An entry that is due within this time is not made due by a miss.
const SOON: Duration = Duration::from_secs(1);
/// The time for which a worker is elected to listen, and the interval at which it renews that.
const ELECTED: Duration = Duration::from_secs(6);
const RENEW: Duration = Duration::from_secs(2);
/// The shortest time between two log lines about dropped misses.
const LOG: Duration = Duration::from_secs(60);
/// The flags of `notify-keyspace-events` for key events and misses.
const FLAGS: [char; 2] = ['E', 'm'];

/// One worker's listener for misses.
#[derive(Debug)]
pub struct Misses {
    /// The connection; the subscription opens another.
    pub redis: Connection,
    /// The key names.
    pub keys: Keys,
    /// The jobs whose keys count.
    pub jobs: Arc<Jobs>,
    /// Where missed entries become due.
    pub agenda: Agenda,
    /// This worker's name.
    pub worker: Arc<str>,
}

/// The misses that were heard.
#[derive(Debug, Default)]
struct Heard {
    waiting: VecDeque<(Instant, EntryKey)>,
    /// The time at which each was last heard or handled. These are not added again.
    known: HashMap<EntryKey, Instant>,
    dropped: u64,
}

impl Heard {
    fn add(&mut self, key: EntryKey) {
        if self.known.contains_key(&key) {
            return;
        }
        if self.known.len() >= MOST {
            self.dropped += 1;
            return;
        }
        self.known.insert(key.clone(), Instant::now());
        self.waiting.push_back((Instant::now(), key));
    }

    /// Takes the misses that have waited long enough, at most as many as are handled at once.
    fn take_due(&mut self) -> Vec<EntryKey> {
        let due = self.waiting.iter().take(AT_ONCE).take_while(|(heard, _)| heard.elapsed() >= WAIT).count();
        self.waiting.drain(..due).map(|(_, key)| key).collect()
    }

    fn handled(&mut self, keys: &[EntryKey]) {
        for key in keys {
            self.known.insert(key.clone(), Instant::now());
        }
        if self.known.len() > self.waiting.len() {
            let waiting: std::collections::HashSet<&EntryKey> = self.waiting.iter().map(|(_, key)| key).collect();
            self.known.retain(|key, at| at.elapsed() < AGAIN || waiting.contains(key));
        }
    }
}

impl Misses {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new("the misses");
        while !stop.is_cancelled() {
            let heard = async {
                if !self.is_elected().await? {
                    tokio::time::sleep(RENEW).await;
                    return Ok(());
                }
                self.listen(&mut backoff).await
            };
            let ended = tokio::select! {
                ended = heard => ended,
                () = stop.cancelled() => return,
            };
            if let Err(e) = ended {
                backoff.ill(&e, &stop).await;
            }
        }
    }

    /// Elects this worker, or renews that; returns `false` if another worker listens.
    async fn is_elected(&self) -> RedisResult<bool> {
        lead(&self.redis, &self.keys.misses(), &self.worker, ELECTED).await
    }

    /// Listens until the connection ends or another worker is elected.
    async fn listen(&self, backoff: &mut Backoff) -> RedisResult<()> {
        let channel = format!("__keyevent@{}__:keymiss", self.redis.get_db());
        // A server tells of its own keys only.
        let masters = self.redis.masters().await;
        let mut subscribed = Vec::new();
        let mut failed = None;
        for master in &masters {
            // One that is away keeps nobody from listening to the others.
            match master.subscribe(&channel).await {
                Ok(listening) => subscribed.push(listening),
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed.filter(|_| subscribed.is_empty()) {
            return Err(e);
        }
        let heard = subscribed.len();
        for master in &masters {
            match self.switch_on(master).await {
                Err(e) if masters.len() == 1 => return Err(e),
                _ => {}
            }
        }
        let events = subscribed.iter_mut().map(|subscribed| {
            let ended = futures_util::stream::once(async { None });
            subscribed.messages.by_ref().map(Some).chain(ended).boxed()
        });
        let mut events = futures_util::stream::select_all(events);
        backoff.well();
        let mut misses = Heard::default();
        let (mut handle, mut renew) = (tokio::time::interval(HANDLE), tokio::time::interval(RENEW));
        handle.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut logged = Instant::now();
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event.flatten() else { return Ok(()) };
                    // A key that is not UTF-8 is no entry.
                    let Ok(key) = std::str::from_utf8(event.get_payload_bytes()) else { continue };
                    if !self.keys.is_own(key) && self.jobs.owner(key).is_some() {
                        misses.add(EntryKey::new(key));
                    }
                }
                _ = handle.tick() => {
                    let due = misses.take_due();
                    self.demand(&due).await?;
                    misses.handled(&due);
                }
                _ = renew.tick() => {
                    let is_elected = self.is_elected().await?;
                    if !is_elected || self.redis.masters().await.len() != heard {
                        return Ok(());
                    }
                    if misses.dropped > 0 && logged.elapsed() >= LOG {
                        warn!(count = misses.dropped, "more keys are missed than can be handled; some are not fetched");
                        (misses.dropped, logged) = (0, Instant::now());
                    }
                }
            }
        }
    }

    /// Makes Redis publish misses, besides the events that it publishes already.
    async fn switch_on(&self, master: &Connection) -> RedisResult<()> {
        const NAME: &str = "notify-keyspace-events";
        let remedy =
            format!("misses are not fetched; add \"{}\" to {NAME} in its configuration", String::from_iter(FLAGS));
        let mut redis = master.clone();
        let config: RedisResult<Vec<String>> = redis::cmd("CONFIG").arg("GET").arg(NAME).query_async(&mut redis).await;
        let flags = match config {
            Ok(pair) => pair.get(1).cloned().unwrap_or_default(),
            Err(e) if is_refusal(&e) => {
                warn!("cannot check whether Redis publishes misses ({e}); if it does not, {remedy}");
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let missing = String::from_iter(FLAGS.iter().filter(|flag| !flags.contains(**flag)));
        if missing.is_empty() {
            return Ok(());
        }
        let set: RedisResult<()> =
            redis::cmd("CONFIG").arg("SET").arg(NAME).arg(format!("{flags}{missing}")).query_async(&mut redis).await;
        match set {
            Ok(()) => info!("added \"{missing}\" to Redis's {NAME}, which was \"{flags}\"; misses are fetched"),
            Err(e) if is_refusal(&e) => warn!("Redis does not allow publishing misses ({e}): {remedy}"),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Makes entries due that are still absent, unless they are due already or their upstream said that they do not
    /// exist.
    async fn demand(&self, missed: &[EntryKey]) -> RedisResult<()> {
        let owned: Vec<(&Arc<Job>, &EntryKey)> =
            missed.iter().filter_map(|key| Some((self.jobs.owner(key.as_str())?.0, key))).collect();
        if owned.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for (job, key) in &owned {
            // This command causes no miss and counts as no read.
            pipe.cmd("OBJECT").arg("ENCODING").arg(key.as_str());
            pipe.cmd("GET").arg(self.keys.meta(key));
            pipe.add_command(self.agenda.ask_score(&job.name, key));
        }
        let replies: Vec<RedisResult<redis::Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let Some((time, replies)) = replies.split_first() else { return Ok(()) };
        let Some(now) = reply::<RedisTime>(time) else { return Ok(()) };
        for ((job, key), replies) in owned.into_iter().zip(replies.chunks_exact(3)) {
            let (Some(there), Some(meta), Some(due)) = (
                reply::<Option<String>>(&replies[0]),
                reply::<Option<String>>(&replies[1]),
                reply::<Option<f64>>(&replies[2]),
            ) else {
                // A key of a wrong type is reported elsewhere; the other entries are fetched all the same.
                continue;
            };
            if there.is_some() || !is_wanted(job, meta.as_deref().and_then(Meta::parse), due.map(Due::from_score), now)
            {
                continue;
            }
            debug!(job = %job.name, %key, "missed");
            self.agenda.put(&job.name, [key], When::Urgent, Trigger::Demand).await?;
        }
        Ok(())
    }
}

fn reply<T: redis::FromRedisValue>(reply: &RedisResult<redis::Value>) -> Option<T> {
    redis::from_redis_value_ref(reply.as_ref().ok()?).ok()
}

/// Returns `true` if an absent entry is worth a fetch: it is not due soon, it is no dead letter, and its upstream did
/// not say lately that it does not exist.
fn is_wanted(job: &Job, meta: Option<Meta>, due: Option<Due>, now: RedisTime) -> bool {
    let is_due = due.is_some_and(|due| due.state != State::Scheduled || due.at <= now + SOON);
    let is_gone = meta.as_ref().is_some_and(|meta| meta.is_absent(&job.requests, job.warm.absent_for, now));
    let last = meta.map(|meta| meta.last_attempt).unwrap_or_default();
    // An entry that failed waits for its retry, however many clients ask for it.
    let has_failed = last.failures > 0 && (due.is_some() || last.failures >= job.warm.attempts);
    !is_due && !is_gone && !has_failed
}

fn is_refusal(error: &redis::RedisError) -> bool {
    !error.is_io_error() && !error.is_timeout() && !error.is_connection_dropped()
}
