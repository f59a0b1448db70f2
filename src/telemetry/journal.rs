//! The journal of invalidations: what the fleet heard lately, in a bounded stream of Redis.
//!
//! A worker writes at most once a second, and no more than some records then; what is left out is counted in the next
//! record. Each worker notes what it heard, so a message on the channel is noted by all of them.
//!
//! On failure: records that Redis did not take are left out.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::RedisResult;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::entry::excerpt;
use crate::protocol::{Action, Handled, Message};
use crate::redis::{Connection, RedisTime};

/// The records that are kept.
pub const KEPT: usize = 1_000;
/// The field of a record in the stream.
pub const FIELD: &str = "heard";
/// The most records that a worker writes at once.
const AT_ONCE: usize = 20;
/// The time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest text of a record, in characters.
const LONGEST: usize = 200;
/// The names of a message that are noted.
const NAMES: usize = 5;

/// An invalidation as one worker heard it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heard {
    /// When it was published (Redis time, ms since the epoch); 0 if that is unknown.
    pub at_ms: RedisTime,
    /// When it was handled: what it names was marked, removed or made due.
    pub handled_ms: RedisTime,
    /// `channel` or `inbox`.
    pub way: String,
    /// The action.
    pub action: Action,
    /// The names in it, in words, or the beginning of a message that cannot be read.
    pub what: String,
    /// Entries of jobs that were examined.
    pub entries: u64,
    /// Of these, made due.
    pub due: u64,
    /// Of these, put off, since they were invalidated again and again.
    pub debounced: u64,
    /// Values removed.
    pub removed: u64,
    /// Fetches in flight whose answers are not written.
    pub fenced: u64,
    /// Names that belong to no job.
    pub foreign: u64,
    /// Why it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub malformed: Option<String>,
    /// The worker.
    pub worker: String,
    /// Messages that this worker left out before.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Heard {
    /// Notes a message that was handled.
    pub(super) fn handled(
        way: &str,
        message: &Message,
        times: [RedisTime; 2],
        handled: &Handled,
        debounced: usize,
    ) -> Self {
        let Handled { entries, due, removed, fenced, foreign, .. } = *handled;
        Self {
            at_ms: times[0],
            handled_ms: times[1],
            way: way.to_owned(),
            action: message.action,
            what: what(message),
            entries,
            due,
            debounced: debounced as u64,
            removed,
            fenced,
            foreign,
            ..Self::default()
        }
    }

    /// Notes a message that cannot be read.
    pub(super) fn malformed(way: &str, at: RedisTime, text: &[u8], reason: &str) -> Self {
        let text = String::from_utf8_lossy(text.get(..4 * LONGEST).unwrap_or(text)).into_owned();
        Self {
            at_ms: at,
            handled_ms: at,
            way: way.to_owned(),
            what: excerpt(&text, LONGEST),
            malformed: Some(excerpt(reason, LONGEST)),
            ..Self::default()
        }
    }
}

/// Returns what a message names, in words: the first names of each kind.
pub(super) fn what(message: &Message) -> String {
    let kinds =
        [("key", &message.keys), ("pattern", &message.patterns), ("tag", &message.tags), ("job", &message.jobs)];
    let named = kinds.into_iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| {
        let first: Vec<&str> = names.iter().take(NAMES).map(String::as_str).collect();
        let more = names.len().saturating_sub(NAMES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{kind} {}{more}", first.join(", "))
    });
    excerpt(&named.collect::<Vec<_>>().join("; "), LONGEST)
}

/// The records that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Journal {
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Heard>,
    left_out: u64,
}

impl Waiting {
    fn take(&mut self) -> Vec<Heard> {
        let mut records: Vec<Heard> = self.records.drain(..).collect();
        if let Some(last) = records.last_mut() {
            last.left_out = std::mem::take(&mut self.left_out);
        }
        records
    }
}

impl Journal {
    pub(super) fn add(&self, worker: &str, heard: Heard) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.records.len() >= AT_ONCE {
            waiting.left_out += 1;
            return;
        }
        waiting.records.push_back(Heard { worker: worker.to_owned(), ..heard });
        self.added.notify_one();
    }

    /// Writes records, at most once a second, until `over`; then what is left.
    pub(super) async fn run(&self, redis: &Connection, key: &str, over: &CancellationToken) {
        loop {
            tokio::select! {
                () = self.added.notified() => {}
                () = over.cancelled() => {}
            }
            self.write(redis, key).await;
            if over.is_cancelled() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = over.cancelled() => {}
            }
        }
    }

    async fn write(&self, redis: &Connection, key: &str) {
        let records = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if records.is_empty() {
            return;
        }
        let count = records.iter().map(|record| 1 + record.left_out).sum::<u64>();
        if let Err(e) = add(redis, key, &records).await {
            debug!(count, "invalidations could not be noted in the journal: {e}");
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).left_out += count;
        }
    }
}

async fn add(redis: &Connection, key: &str, records: &[Heard]) -> RedisResult<()> {
    let mut pipe = redis::pipe();
    for record in records {
        let text = serde_json::to_string(record).unwrap_or_default();
        pipe.cmd("XADD").arg(key).arg("MAXLEN").arg(KEPT).arg("*").arg(FIELD).arg(text).ignore();
    }
    pipe.query_async(&mut redis.clone()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_first_of_many_names() {
        let keys = (0..9).map(|n| format!("art:{n}")).collect();
        let message = Message { keys, tags: vec!["loan".to_owned()], ..Message::default() };
        assert_eq!(what(&message), "key art:0, art:1, art:2, art:3, art:4 and 4 more; tag loan");
        let long = Message { keys: vec!["x".repeat(5_000)], ..Message::default() };
        assert!(what(&long).chars().count() <= LONGEST + 1, "and a sign that it is cut");
    }

    #[test]
    fn what_is_left_out_is_counted_in_the_next_record() {
        let journal = Journal::default();
        for _ in 0..AT_ONCE + 7 {
            journal.add("w", Heard::default());
        }
        let take = || journal.waiting.lock().unwrap().take();
        let records = take();
        assert_eq!((records.len(), records.last().unwrap().left_out), (AT_ONCE, 7));
        journal.add("w", Heard::default());
        assert_eq!(take().last().unwrap().left_out, 0, "each counts once");
    }
}
