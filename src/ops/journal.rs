//! The journal of invalidations, as [`telemetry::journal`](crate::telemetry::journal) writes it.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::RedisResult;
use redis::streams::{StreamId, StreamRangeReply};

use super::Ops;
use crate::redis::RedisTime;
use crate::telemetry::journal::{FIELD, Heard, KEPT};

/// The time within which workers hear the same message on the channel.
const SAME: Duration = Duration::from_secs(2);

/// An invalidation, with the workers that heard it: several for one on the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The id of its latest record.
    pub id: String,
    /// Its effect in all.
    pub heard: Heard,
    /// The workers that noted it.
    pub workers: BTreeSet<String>,
}

/// The invalidations that are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The id of the message before which they were noted.
    pub before: Option<String>,
    /// The way; empty for all.
    pub way: String,
    /// A part of the names; empty for all.
    pub find: String,
    /// A property that they have: `foreign` names, `malformed` text or `debounced` entries; anything else for all.
    pub only: String,
    /// `true` if names of tags and text that cannot be read may be told: a filter by them tells them, too.
    pub tells_all: bool,
}

impl Wanted {
    fn has(&self, heard: &Heard) -> bool {
        let is_one = match self.only.as_str() {
            "foreign" => heard.foreign > 0,
            "malformed" => heard.malformed.is_some(),
            "debounced" => heard.debounced > 0,
            _ => true,
        };
        is_one && (self.way.is_empty() || self.way == heard.way) && told(heard, self.tells_all).contains(&self.find)
    }
}

impl Ops {
    /// Returns at most `most` invalidations, the newest first, and the number of messages that workers left out of the
    /// journal since the earliest that is kept.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn heard(&self, wanted: &Wanted, most: usize) -> RedisResult<(Vec<Noted>, u64)> {
        let mut ask = redis::cmd("XREVRANGE");
        ask.arg(self.keys.heard()).arg("+").arg("-").arg("COUNT").arg(KEPT);
        let found: StreamRangeReply = ask.query_async(&mut self.redis.clone()).await?;
        let records: Vec<(String, Heard)> = found.ids.iter().filter_map(record).collect();
        let left_out = records.iter().map(|(_, heard)| heard.left_out).sum();
        let before = wanted.before.as_deref().and_then(number);
        // The records of one message may lie on both sides of a page's end, so pages are of joined ones.
        let mut all = joined(records);
        all.retain(|noted| wanted.has(&noted.heard) && before.is_none_or(|before| number(&noted.id) < Some(before)));
        all.truncate(most);
        Ok((all, left_out))
    }
}

/// Returns what a message names, or its text; without the right to see all, no tags and no text that cannot be read.
pub fn told(heard: &Heard, tells_all: bool) -> String {
    let what = heard.what.as_str();
    match what.split_once("; tag ") {
        _ if tells_all => what.to_owned(),
        _ if heard.malformed.is_some() => String::new(),
        _ if what.starts_with("tag ") => "tags".to_owned(),
        Some((before, _)) => format!("{before}; tags"),
        None => what.to_owned(),
    }
}

/// Returns the numbers of a record's id, which are in the order of time.
fn number(id: &str) -> Option<(u64, u64)> {
    let (ms, of_ms) = id.split_once('-')?;
    Some((ms.parse().ok()?, of_ms.parse().ok()?))
}

/// Joins the records, the latest first, of several workers about the same message.
fn joined(records: Vec<(String, Heard)>) -> Vec<Noted> {
    let mut all: Vec<Noted> = Vec::new();
    for (id, heard) in records {
        if !join(&mut all, &heard) {
            let workers = BTreeSet::from([heard.worker.clone()]);
            all.push(Noted { id, heard, workers });
        }
    }
    all
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
fn join(all: &mut [Noted], heard: &Heard) -> bool {
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
    let known = &mut noted.heard;
    // Each value is removed by one worker; the others count the same entries again.
    known.removed += heard.removed;
    for (known, count) in [
        (&mut known.entries, heard.entries),
        (&mut known.due, heard.due),
        (&mut known.debounced, heard.debounced),
        (&mut known.fenced, heard.fenced),
        (&mut known.foreign, heard.foreign),
    ] {
        *known = (*known).max(count);
    }
    known.at_ms = known.at_ms.min(heard.at_ms);
    known.handled_ms = known.handled_ms.min(heard.handled_ms);
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

    fn workers(records: &[Heard]) -> Vec<usize> {
        let records = records.iter().enumerate().map(|(n, heard)| (n.to_string(), heard.clone())).collect();
        joined(records).iter().map(|noted| noted.workers.len()).collect()
    }

    #[test]
    fn what_one_of_the_workers_removed_is_counted() {
        let late = Heard { entries: 1, ..heard("a", "key x", 9_040) };
        let first = Heard { entries: 1, due: 1, removed: 1, ..heard("b", "key x", 9_000) };
        let all = joined(vec![("2-0".to_owned(), late), ("1-0".to_owned(), first)]);
        let Heard { entries, due, removed, at_ms, .. } = all[0].heard;
        assert_eq!((entries, due, removed, at_ms), (1, 1, 1, RedisTime::from_millis(9_000)));
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn tags_and_unreadable_text_are_told_to_those_who_may_see_all() {
        let tagged = |what: &str| told(&heard("a", what, 1), false);
        assert_eq!(tagged("key a, b; tag secret; job art"), "key a, b; tags");
        assert_eq!((tagged("tag secret").as_str(), tagged("pattern a*").as_str()), ("tags", "pattern a*"));
        let broken = Heard { malformed: Some("no JSON".to_owned()), ..heard("a", "token=x", 1) };
        assert_eq!((told(&broken, false).as_str(), told(&broken, true).as_str()), ("", "token=x"));
        let guess = Wanted { find: "token".to_owned(), ..Wanted::default() };
        assert!(!guess.has(&broken) && Wanted { tells_all: true, ..guess }.has(&broken));
    }

    #[test]
    fn one_message_that_several_workers_heard_is_shown_once() {
        assert_eq!(workers(&[heard("a", "key x", 9_000), heard("b", "key x", 9_040)]), [2]);
        assert_eq!(workers(&[heard("a", "key x", 9_000), heard("a", "key x", 9_040)]), [1, 1], "two messages");
        assert_eq!(workers(&[heard("a", "key x", 9_000), heard("b", "key y", 9_000)]), [1, 1]);
        assert_eq!(workers(&[heard("a", "key x", 9_000), heard("b", "key x", 19_000)]), [1, 1]);
        let inbox = |worker| Heard { way: "inbox".to_owned(), ..heard(worker, "key x", 9_000) };
        assert_eq!(workers(&[inbox("a"), inbox("b")]), [1, 1], "each is read by one worker");
    }
}
