//! Misses as demand: keys of jobs that somebody asks Redis for in vain are fetched. Off unless it is switched on.
//!
//! Redis tells of each miss as a keyspace event (`keymiss`) to whoever subscribes: one worker of the fleet. Nothing says who
//! asked, and workers ask for absent keys, too; so a miss is held for a moment, and counts only if the entry is then still
//! absent and nothing has made it due. A lost event costs nothing but that miss; the number handled is bounded.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::{Client, RedisResult};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agenda::{Agenda, Due, State, When};
use crate::entry::EntryKey;
use crate::entry::Outcome;
use crate::entry::Trigger;
use crate::job::{Job, Jobs};
use crate::protocol::Keys;
use crate::redis::{Backoff, Connection, lead};
use crate::store::Meta;

/// How long a miss is held: what a warmup asked for in vain is on the agenda by then.
const HOLD: Duration = Duration::from_millis(300);
/// How often held misses are looked at, and how many of them at once.
const LOOK: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 50;
/// Misses held at most; more are dropped.
const HELD: usize = 5_000;
/// How long further misses of a key that was handled count for nothing.
const AGAIN: Duration = Duration::from_secs(5);
/// How long an upstream that has no such thing is believed (ms).
const GONE: i64 = 300_000;
/// How long the one worker that listens counts as alive, and how often it says so.
const MINE: Duration = Duration::from_secs(6);
const RENEW: Duration = Duration::from_secs(2);
/// How often it is told that misses are dropped.
const TELL: Duration = Duration::from_secs(60);
/// Of `notify-keyspace-events`: events named by key, and misses.
const FLAGS: [char; 2] = ['E', 'm'];

/// Hears misses.
#[derive(Debug)]
pub struct Misses {
    /// For a connection of its own.
    pub client: Client,
    /// The connection for everything else.
    pub redis: Connection,
    /// The names.
    pub keys: Keys,
    /// Whose keys count.
    pub jobs: Arc<Jobs>,
    /// Where they become due.
    pub agenda: Agenda,
    /// This worker's name.
    pub worker: Arc<str>,
}

/// Misses that were heard.
#[derive(Debug, Default)]
struct Held {
    waiting: VecDeque<(Instant, EntryKey)>,
    /// When each was heard or handled last: what is here is not taken in again.
    known: HashMap<EntryKey, Instant>,
    dropped: u64,
}

impl Held {
    fn hear(&mut self, key: EntryKey) {
        if self.known.contains_key(&key) {
            return;
        }
        if self.known.len() >= HELD {
            self.dropped += 1;
            return;
        }
        self.known.insert(key.clone(), Instant::now());
        self.waiting.push_back((Instant::now(), key));
    }

    /// What was held for long enough, as many as may be handled at once.
    fn ripe(&mut self) -> Vec<EntryKey> {
        let ripe = self.waiting.iter().take(AT_ONCE).take_while(|(heard, _)| heard.elapsed() >= HOLD).count();
        self.waiting.drain(..ripe).map(|(_, key)| key).collect()
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
        let mut backoff = Backoff::new("hearing misses");
        while !stop.is_cancelled() {
            let heard = async {
                if !self.is_mine().await? {
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

    async fn is_mine(&self) -> RedisResult<bool> {
        lead(&self.redis, &self.keys.misses(), &self.worker, MINE).await
    }

    /// Listens until the connection ends or another worker does it.
    async fn listen(&self, backoff: &mut Backoff) -> RedisResult<()> {
        let connect = tokio::time::timeout(Duration::from_secs(5), self.client.get_async_pubsub());
        let mut pubsub = connect.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let database = self.client.get_connection_info().redis_settings().db();
        pubsub.subscribe(format!("__keyevent@{database}__:keymiss")).await?;
        self.switch_on().await?;
        backoff.well();
        let mut held = Held::default();
        let mut events = pubsub.into_on_message();
        let (mut look, mut renew) = (tokio::time::interval(LOOK), tokio::time::interval(RENEW));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = Instant::now();
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return Ok(()) };
                    // A key that is not text is nobody's entry.
                    let Ok(key) = std::str::from_utf8(event.get_payload_bytes()) else { continue };
                    if !self.keys.is_own(key) && self.jobs.owner(key).is_some() {
                        held.hear(EntryKey::new(key));
                    }
                }
                _ = look.tick() => {
                    let ripe = held.ripe();
                    self.demand(&ripe).await?;
                    held.handled(&ripe);
                }
                _ = renew.tick() => {
                    if !self.is_mine().await? {
                        return Ok(());
                    }
                    if held.dropped > 0 && told.elapsed() >= TELL {
                        warn!(count = held.dropped, "more keys are missed than can be handled; some were passed over");
                        (held.dropped, told) = (0, Instant::now());
                    }
                }
            }
        }
    }

    /// Makes Redis tell of misses, besides what it tells already.
    async fn switch_on(&self) -> RedisResult<()> {
        const NAME: &str = "notify-keyspace-events";
        let remedy =
            format!("set {NAME} to \"{}\" in its configuration, or misses are not heard", String::from_iter(FLAGS));
        let mut redis = self.redis.clone();
        let config: RedisResult<Vec<String>> = redis::cmd("CONFIG").arg("GET").arg(NAME).query_async(&mut redis).await;
        let flags = match config {
            Ok(pair) => pair.get(1).cloned().unwrap_or_default(),
            Err(e) if is_refusal(&e) => {
                warn!("Redis does not say whether it tells of misses ({e}): {remedy}");
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
            Ok(()) => info!("{NAME} was \"{flags}\", now with \"{missing}\": Redis tells of misses"),
            Err(e) if is_refusal(&e) => warn!("Redis does not let us hear of misses ({e}): {remedy}"),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Makes due what is absent still, unless something else has, or its upstream said that there is no such thing.
    async fn demand(&self, missed: &[EntryKey]) -> RedisResult<()> {
        let owned: Vec<(&Arc<Job>, &EntryKey)> =
            missed.iter().filter_map(|key| Some((self.jobs.owner(key.as_str())?.0, key))).collect();
        if owned.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for (job, key) in &owned {
            // No miss that we would hear of, and no touch.
            pipe.cmd("OBJECT").arg("ENCODING").arg(key.as_str());
            pipe.cmd("GET").arg(self.keys.meta(key));
            pipe.add_command(self.agenda.ask_score(&job.name, key));
        }
        let replies: Vec<RedisResult<redis::Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let Some((time, replies)) = replies.split_first() else { return Ok(()) };
        let Some((seconds, _)) = reply::<(i64, i64)>(time) else { return Ok(()) };
        let now = seconds * 1_000;
        for ((job, key), replies) in owned.into_iter().zip(replies.chunks_exact(3)) {
            let (Some(there), Some(meta), Some(due)) = (
                reply::<Option<String>>(&replies[0]),
                reply::<Option<String>>(&replies[1]),
                reply::<Option<f64>>(&replies[2]),
            ) else {
                // Somebody else's key stands there, which is told elsewhere; others are fetched all the same.
                continue;
            };
            if there.is_some() || !is_of_use(job, meta.as_deref().and_then(Meta::parse), due.map(Due::from_score), now)
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

/// Whether to fetch an absent entry: nobody is about to, it was not given up, and its upstream did not just say that it has none.
fn is_of_use(job: &Job, meta: Option<Meta>, due: Option<Due>, now: i64) -> bool {
    let about_to = due.is_some_and(|due| due.state != State::Scheduled || due.at <= now + 1_000);
    let note = meta.map(|meta| meta.note).unwrap_or_default();
    let gone = note.outcome == Some(Outcome::Gone) && note.attempted + GONE > now;
    // What failed comes when its retry comes, however many ask for it.
    let retried = note.failures > 0 && (due.is_some() || note.failures >= job.warm.attempts);
    !about_to && !gone && !retried
}

fn is_refusal(error: &redis::RedisError) -> bool {
    !error.is_io_error() && !error.is_timeout() && !error.is_connection_dropped()
}
