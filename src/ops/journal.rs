//! The journal of invalidations, as [`telemetry::journal`](crate::telemetry::journal) writes it.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::RedisResult;
use redis::streams::{StreamId, StreamRangeReply};

use super::Ops;
use crate::redis::{RedisTime, is_of_keys};
use crate::telemetry::journal::{FIELD, Heard, KEPT};

/// The time within which workers hear the same message on the channel.
const SAME: Duration = Duration::from_secs(2);

/// An invalidation, with the workers that heard it: several for one on the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The id of its first record.
    pub id: String,
    /// The record with the most effect.
    pub heard: Heard,
    /// The workers that noted it.
    pub workers: BTreeSet<String>,
}

/// The invalidations that are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The id before which they were noted.
    pub before: Option<String>,
    /// The way; empty for all.
    pub way: String,
    /// A part of the names; empty for all.
    pub find: String,
    /// What they have: `foreign` names, `malformed` text or `debounced` entries; anything else for all.
    pub only: String,
}

impl Wanted {
    fn has(&self, heard: &Heard) -> bool {
        let is_one = match self.only.as_str() {
            "foreign" => heard.foreign > 0,
            "malformed" => heard.malformed.is_some(),
            "debounced" => heard.debounced > 0,
            _ => true,
        };
        is_one && (self.way.is_empty() || self.way == heard.way) && heard.what.contains(&self.find)
    }
}

impl Ops {
    /// Returns at most `most` invalidations, the newest first, and the number of messages that workers left out of the
    /// journal since the earliest that is kept.
    ///
    /// # Errors
    /// Fails if Redis returns an error, as it does for what is no id.
    pub async fn heard(&self, wanted: &Wanted, most: usize) -> RedisResult<(Vec<Noted>, u64)> {
        let before = wanted.before.as_ref().map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let mut ask = redis::cmd("XREVRANGE");
        ask.arg(self.keys.heard()).arg(before).arg("-").arg("COUNT").arg(KEPT);
        let found = match ask.query_async::<StreamRangeReply>(&mut self.redis.clone()).await {
            Err(e) if is_of_keys(&e) => return Ok((Vec::new(), 0)),
            found => found?,
        };
        let records: Vec<(String, Heard)> = found.ids.iter().filter_map(record).collect();
        let left_out = records.iter().map(|(_, heard)| heard.left_out).sum();
        let mut all: Vec<Noted> = Vec::new();
        for (id, heard) in records.into_iter().filter(|(_, heard)| wanted.has(heard)) {
            if !join(&mut all, &id, &heard) {
                if all.len() == most {
                    break;
                }
                let workers = BTreeSet::from([heard.worker.clone()]);
                all.push(Noted { id, heard, workers });
            }
        }
        Ok((all, left_out))
    }
}

fn record(entry: &StreamId) -> Option<(String, Heard)> {
    let mut heard: Heard = serde_json::from_str(&entry.get::<String>(FIELD)?).ok()?;
    if heard.at_ms == RedisTime::ZERO {
        heard.at_ms = RedisTime::from_millis(entry.id.split_once('-')?.0.parse().ok()?);
        heard.handled_ms = heard.at_ms;
    }
    Some((entry.id.clone(), heard))
}

/// Joins a record to that of another worker about the same message on the channel, if there is one.
fn join(all: &mut [Noted], id: &str, heard: &Heard) -> bool {
    if heard.way != "channel" {
        return false;
    }
    let same = all.iter_mut().rev().find(|noted| {
        let other = &noted.heard;
        other.way == heard.way
            && (&other.what, other.action, &other.malformed) == (&heard.what, heard.action, &heard.malformed)
            && other.at_ms.abs_diff(heard.at_ms) <= SAME
            && !noted.workers.contains(&heard.worker)
    });
    let Some(noted) = same else { return false };
    noted.workers.insert(heard.worker.clone());
    id.clone_into(&mut noted.id);
    if heard.entries > noted.heard.entries {
        noted.heard = heard.clone();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(worker: &str, what: &str, at: i64) -> Heard {
        Heard {
            worker: worker.to_owned(),
            what: what.to_owned(),
            way: "channel".to_owned(),
            at_ms: RedisTime::from_millis(at),
            ..Heard::default()
        }
    }

    fn joined(records: &[Heard]) -> Vec<usize> {
        let mut all: Vec<Noted> = Vec::new();
        for (n, heard) in records.iter().enumerate() {
            if !join(&mut all, &n.to_string(), heard) {
                let workers = BTreeSet::from([heard.worker.clone()]);
                all.push(Noted { id: n.to_string(), heard: heard.clone(), workers });
            }
        }
        all.iter().map(|noted| noted.workers.len()).collect()
    }

    #[test]
    fn one_message_that_several_workers_heard_is_shown_once() {
        assert_eq!(joined(&[heard("a", "key x", 9_000), heard("b", "key x", 9_040)]), [2]);
        assert_eq!(joined(&[heard("a", "key x", 9_000), heard("a", "key x", 9_040)]), [1, 1], "two messages");
        assert_eq!(joined(&[heard("a", "key x", 9_000), heard("b", "key y", 9_000)]), [1, 1]);
        assert_eq!(joined(&[heard("a", "key x", 9_000), heard("b", "key x", 19_000)]), [1, 1]);
        let inbox = |worker| Heard { way: "inbox".to_owned(), ..heard(worker, "key x", 9_000) };
        assert_eq!(joined(&[inbox("a"), inbox("b")]), [1, 1], "each is read by one worker");
    }
}
