//! The feed: a worker's events for `samovar watch` and other subscribers. docs/protocol.md describes its messages.
//!
//! Without a subscriber an event costs one check of a flag, and the loop one command a second. With one, events are
//! published in batches ten times a second, at most a thousand events a second; further events are only counted. An
//! event is published at most once: nothing waits for a subscriber.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::RedisResult;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::entry::Outcome;
use crate::entry::Trigger;
use crate::entry::duration::millis;
use crate::entry::excerpt;
use crate::protocol::{Action, Handled, Message};
use crate::redis::{Connection, RedisTime};

/// The interval at which subscribers are counted.
const POLL: Duration = Duration::from_secs(1);
/// The interval between batches.
const BATCH: Duration = Duration::from_millis(100);
/// The most events in one second.
const MOST: usize = 1_000;
/// The most events in one message.
const TOGETHER: usize = 250;
/// The most names of each kind in an invalidation's event.
const NAMES: usize = 16;
/// The longest text of a key, a name or a reason, in characters.
const LONGEST: usize = 500;

/// One message on the channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The worker.
    pub worker: String,
    /// Events that were dropped since the last message because there were too many.
    #[serde(default)]
    pub dropped: u64,
    /// The events, in order.
    pub events: Vec<Event>,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The warming of an entry ended.
    Ended(Ended),
    /// An invalidation was handled.
    Invalidation(Invalidation),
}

/// The end of an entry's warming.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When (Redis time, ms since the epoch).
    pub at_ms: RedisTime,
    /// Its job.
    pub job: String,
    /// Its key.
    pub key: String,
    /// The trigger.
    pub trigger: Trigger,
    /// The outcome.
    pub outcome: Outcome,
    /// The reason, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The duration of the warming, ms.
    pub took_ms: u64,
    /// The time from when the entry was due until the end, ms.
    pub lag_ms: u64,
}

/// An invalidation: its names, at most 16 of each kind, and its effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidation {
    /// When it was handled (Redis time, ms since the epoch).
    pub at_ms: RedisTime,
    /// `channel` or `inbox`.
    pub way: String,
    /// The requested action.
    pub action: Action,
    /// Keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Globs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
    /// Tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<String>,
    /// Entries of jobs that were examined.
    pub entries: u64,
    /// Of these, made due.
    pub due: u64,
    /// Values removed.
    pub removed: u64,
    /// Fetches in flight that will not be written.
    pub fenced: u64,
    /// Names that belong to no job.
    pub foreign: u64,
}

impl Event {
    pub(super) fn ended(
        job: &str,
        key: &str,
        trigger: Trigger,
        outcome: Outcome,
        reason: Option<&str>,
        late: Duration,
        took: Duration,
    ) -> Self {
        Self::Ended(Ended {
            at_ms: RedisTime::ZERO,
            job: job.to_owned(),
            key: short(key),
            trigger,
            outcome,
            reason: reason.map(short),
            took_ms: millis(took).unsigned_abs(),
            lag_ms: millis(late + took).unsigned_abs(),
        })
    }

    pub(super) fn invalidation(way: &str, message: &Message, handled: &Handled) -> Self {
        let names = |names: &[String]| names.iter().take(NAMES).map(|name| short(name)).collect();
        let Handled { entries, due, removed, fenced, foreign, .. } = *handled;
        Self::Invalidation(Invalidation {
            at_ms: RedisTime::ZERO,
            way: way.to_owned(),
            action: message.action,
            keys: names(&message.keys),
            patterns: names(&message.patterns),
            tags: names(&message.tags),
            jobs: names(&message.jobs),
            entries,
            due,
            removed,
            fenced,
            foreign,
        })
    }

    fn at(mut self, at_ms: RedisTime) -> Self {
        match &mut self {
            Self::Ended(ended) => ended.at_ms = at_ms,
            Self::Invalidation(invalidation) => invalidation.at_ms = at_ms,
        }
        self
    }
}

/// The events that are waiting to be published.
#[derive(Debug, Default)]
pub(super) struct Feed {
    watched: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<Recorded>,
    /// The worker of the last event.
    worker: Arc<str>,
    /// Events accepted since subscribers were last counted.
    taken: usize,
    dropped: u64,
}

/// An event, its local instant, and its worker.
type Recorded = (Instant, Arc<str>, Event);

/// A reading of Redis's clock, and the local instant of it.
type Clock = (Instant, RedisTime);

impl Feed {
    /// Records an event of a worker if there is a subscriber.
    pub(super) fn record(&self, worker: &Arc<str>, event: impl FnOnce() -> Event) {
        if !self.watched.load(Ordering::Relaxed) {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.worker = Arc::clone(worker);
        if waiting.taken < MOST {
            waiting.taken += 1;
            waiting.events.push((Instant::now(), Arc::clone(worker), event()));
        } else {
            waiting.dropped += 1;
        }
    }

    /// Publishes events on `channel` until `over`, then the remaining ones.
    pub(super) async fn run(&self, mut redis: Connection, channel: &str, over: CancellationToken) {
        let mut clock: Option<Clock> = None;
        while !over.is_cancelled() {
            if clock.is_none_or(|(looked, _)| looked.elapsed() >= POLL) {
                clock = match clock_if_watched(&mut redis, channel).await {
                    Ok(clock) => {
                        self.set_watched(clock.is_some());
                        clock
                    }
                    Err(e) => {
                        debug!("cannot count the subscribers of the feed: {e}");
                        self.set_watched(false);
                        None
                    }
                };
            }
            let pause = if self.watched.load(Ordering::Relaxed) { BATCH } else { POLL };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = over.cancelled() => {}
            }
            if let Some(clock) = clock
                && let Err(e) = self.publish(&mut redis, channel, clock).await
            {
                debug!("events were not published: {e}");
            }
        }
    }

    fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.taken = 0;
        if !watched {
            *waiting = Waiting::default();
        }
    }

    async fn publish(&self, redis: &mut Connection, channel: &str, (then, clock): Clock) -> RedisResult<()> {
        let (events, mut dropped, last) = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut waiting.events), std::mem::take(&mut waiting.dropped), Arc::clone(&waiting.worker))
        };
        if events.is_empty() && dropped == 0 {
            return Ok(());
        }
        let at = |instant: Instant| {
            clock + instant.saturating_duration_since(then) - then.saturating_duration_since(instant)
        };
        let mut events = events.into_iter().peekable();
        loop {
            let worker = events.peek().map_or(&last, |(_, worker, _)| worker).clone();
            let mut batch = Vec::new();
            while batch.len() < TOGETHER
                && let Some((instant, _, event)) = events.next_if(|(_, of, _)| *of == worker)
            {
                batch.push(event.at(at(instant)));
            }
            if batch.is_empty() && dropped == 0 {
                return Ok(());
            }
            let report =
                WorkerReport { worker: worker.to_string(), dropped: std::mem::take(&mut dropped), events: batch };
            let text = serde_json::to_string(&report).map_err(std::io::Error::other)?;
            let () = redis::cmd("PUBLISH").arg(channel).arg(text).query_async(redis).await?;
        }
    }
}

/// Returns Redis's clock if the feed has subscribers.
async fn clock_if_watched(redis: &mut Connection, channel: &str) -> RedisResult<Option<Clock>> {
    let (_, watchers): (String, u64) = redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).query_async(redis).await?;
    if watchers == 0 {
        return Ok(None);
    }
    let now = redis::cmd("TIME").query_async(redis).await?;
    Ok(Some((Instant::now(), now)))
}

fn short(text: &str) -> String {
    excerpt(text, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event::ended(
            "art",
            "art:a",
            Trigger::Cron,
            Outcome::Warmed,
            None,
            Duration::from_millis(2),
            Duration::from_millis(5),
        )
    }

    #[test]
    fn what_nobody_watches_is_not_even_made() {
        let feed = Feed::default();
        feed.record(&Arc::default(), || panic!("nobody watches"));
    }

    #[test]
    fn more_than_a_thousand_in_a_second_are_only_counted() {
        let feed = Feed::default();
        feed.set_watched(true);
        for _ in 0..MOST + 7 {
            feed.record(&Arc::default(), event);
        }
        let counts = || {
            let waiting = feed.waiting.lock().unwrap();
            (waiting.events.len(), waiting.dropped)
        };
        assert_eq!(counts(), (MOST, 7));
        feed.set_watched(false);
        assert_eq!(counts(), (0, 0), "nothing is kept for who no longer watches");
    }

    #[test]
    fn messages_read_back_as_they_were_written() {
        let message = Message::parse(r#"{"keys": ["art:a"], "jobs": ["art"], "action": "evict"}"#).unwrap();
        let events =
            vec![event().at(RedisTime::from_millis(17)), Event::invalidation("inbox", &message, &Handled::default())];
        let report = WorkerReport { worker: "host-1".into(), dropped: 3, events };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<WorkerReport>(&text).unwrap(), report);
        assert!(text.contains(r#"{"event":"ended","at_ms":17,"job":"art","key":"art:a","trigger":"cron""#), "{text}");
    }

    #[test]
    fn what_is_told_is_bounded() {
        assert_eq!(short(&"ş".repeat(LONGEST + 1)).chars().count(), LONGEST + 1);
        assert_eq!(short(&"ş".repeat(LONGEST)), "ş".repeat(LONGEST));
        let message = Message { keys: vec!["k".into(); 100], ..Message::default() };
        let Event::Invalidation(shown) = Event::invalidation("inbox", &message, &Handled::default()) else { panic!() };
        assert_eq!(shown.keys.len(), NAMES);
    }
}
