//! The audit log: what people changed, in a bounded stream of Redis. The newest records are kept.

use redis::RedisResult;
use redis::streams::{StreamId, StreamRangeReply};

use super::Ops;
use crate::entry::excerpt;
use crate::redis::RedisTime;

/// The records that are kept.
pub const KEPT: usize = 1_000;
/// The longest text of a field, in characters.
const LONGEST: usize = 300;

/// A change that somebody asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The role of the person or program.
    pub who: String,
    /// The way: `console` or `http`.
    pub way: String,
    /// The kind of the change, such as `pause`.
    pub action: String,
    /// The job or the key.
    pub target: String,
    /// The count before the action, or the note.
    pub note: String,
    /// The worker that was asked.
    pub worker: String,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its id in the stream.
    pub id: String,
    /// When the change was asked for.
    pub at: RedisTime,
    /// The change.
    pub change: Change,
}

impl Change {
    fn fields(&self) -> [(&'static str, &str); 6] {
        let Self { who, way, action, target, note, worker } = self;
        [("who", who), ("way", way), ("action", action), ("target", target), ("note", note), ("worker", worker)]
    }
}

impl Ops {
    /// Adds a change to the audit log. It is called before the change is made, so that none is missing.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn record(&self, change: &Change) -> RedisResult<()> {
        let mut add = redis::cmd("XADD");
        add.arg(self.keys.audit_log()).arg("MAXLEN").arg(KEPT).arg("*");
        for (name, text) in change.fields() {
            add.arg(name).arg(excerpt(text, LONGEST));
        }
        add.exec_async(&mut self.redis.clone()).await
    }

    /// Returns at most `most` records, the newest first: those before the record with the id `before`, if there is one.
    ///
    /// # Errors
    /// Fails if Redis returns an error, as it does for what is no id, and for a key of another type.
    pub async fn audit(&self, before: Option<&str>, most: usize) -> RedisResult<Vec<Record>> {
        let before = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let mut ask = redis::cmd("XREVRANGE");
        ask.arg(self.keys.audit_log()).arg(before).arg("-").arg("COUNT").arg(most);
        let reply: StreamRangeReply = ask.query_async(&mut self.redis.clone()).await?;
        Ok(reply.ids.iter().map(record).collect())
    }
}

fn record(entry: &StreamId) -> Record {
    let text = |name: &str| entry.get::<String>(name).unwrap_or_default();
    let at = entry.id.split_once('-').and_then(|(at, _)| at.parse().ok());
    let [who, way, action, target, note, worker] = ["who", "way", "action", "target", "note", "worker"].map(text);
    let change = Change { who, way, action, target, note, worker };
    Record { id: entry.id.clone(), at: RedisTime::from_millis(at.unwrap_or(0)), change }
}
