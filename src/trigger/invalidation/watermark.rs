//! The watermark: how far a worker has read and acknowledged the inbox, to notice when Redis lost messages.
//!
//! A Redis that crashed, or a replica that took over, may have lost its latest writes: messages in the inbox, and what
//! was done for them. Each worker remembers the highest id that the inbox gave. If the inbox's last id is lower,
//! messages were lost. New messages may hide that. So each worker also writes its highest acknowledged id to Redis, in
//! the same round trip, and remembers it: an older mark, or none in another Redis, means a loss. A fleet that ends
//! together with Redis remembers nothing.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use redis::{RedisResult, Script};
use tracing::warn;

use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};
use crate::store::{Gap, Store};

static LAST: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/last.lua")));

/// The id of a message in the inbox: its time, and its number within that millisecond.
type Id = (RedisTime, u64);

/// Returns the time of the last message that the inbox gave, and Redis's.
pub(super) async fn last_and_now(redis: &mut Connection, keys: &Keys) -> RedisResult<(RedisTime, RedisTime)> {
    let (last, now): (String, RedisTime) = LAST.key(keys.inbox()).invoke_async(redis).await?;
    Ok((parse(&last).0, now))
}

/// One worker's watermark. Cheap to clone; clones share what they remember.
#[derive(Clone, Debug)]
pub struct Watermark {
    worker: Arc<str>,
    remembered: Arc<Mutex<Remembered>>,
}

#[derive(Clone, Debug, Default)]
struct Remembered {
    /// The highest id that the inbox gave.
    highest: Id,
    /// The highest id that the worker acknowledged, which its mark in Redis holds.
    acknowledged: Id,
    /// An older mark was found.
    is_older: bool,
    /// No mark was found although one was written: another Redis never had it, or someone deleted it.
    is_blank: bool,
    /// The `run_id` of the Redis of the last comparison; empty for none.
    run_id: String,
}

impl Remembered {
    /// Takes the mark that Redis holds.
    fn found(&mut self, mark: Option<&str>) {
        match mark.map(parse) {
            Some(mark) => self.is_older |= mark < self.acknowledged,
            None => self.is_blank |= self.acknowledged != Id::default(),
        }
    }

    /// Returns `true` if an inbox with this last id, in the Redis of this `run_id`, lost messages.
    fn is_lost(&self, last: Id, run_id: Option<&str>) -> bool {
        let another = !self.run_id.is_empty() && run_id.is_some_and(|run_id| run_id != self.run_id);
        self.highest > last || self.is_older || (self.is_blank && another)
    }
}

impl Watermark {
    /// Creates the watermark of a worker that has read nothing yet.
    pub fn of(worker: &Arc<str>) -> Self {
        Self { worker: Arc::clone(worker), remembered: Arc::default() }
    }

    /// Returns the worker's name.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if the last comparison was with the Redis of this `run_id`.
    pub fn is_of(&self, run_id: &str) -> bool {
        self.lock().run_id == run_id
    }

    /// Notes that the inbox gave a message of this id.
    pub fn read(&self, id: &str) {
        let mut remembered = self.lock();
        remembered.highest = remembered.highest.max(parse(id));
    }

    /// Returns the mark to write when these messages are acknowledged: the highest id so far.
    pub fn mark(&self, ids: &[String]) -> String {
        let highest = ids.iter().map(|id| parse(id)).fold(self.lock().acknowledged, Id::max);
        format!("{}-{}", highest.0, highest.1)
    }

    /// Notes that the mark was written in the place of `before`.
    pub fn marked(&self, before: Option<&str>, mark: &str) {
        let mut remembered = self.lock();
        remembered.found(before);
        remembered.acknowledged = parse(mark);
    }

    /// Notes a gap if Redis holds less than the worker remembers, and then continues from what Redis holds. `run_id` is
    /// Redis's, where it is known.
    ///
    /// # Errors
    /// Redis's; compare again.
    pub async fn compare(&self, store: &Store, run_id: Option<&str>) -> RedisResult<()> {
        // Messages are read while Redis answers, so this copy is taken before.
        let mut then = self.lock().clone();
        let redis = &mut store.connection().clone();
        let mark: Option<String> =
            redis::cmd("HGET").arg(store.keys().acknowledged()).arg(&*self.worker).query_async(redis).await?;
        let (last, now): (String, RedisTime) = LAST.key(store.keys().inbox()).invoke_async(redis).await?;
        let last = parse(&last);
        then.found(mark.as_deref());
        let lost = then.is_lost(last, run_id);
        if lost {
            let gap = store.gap_line();
            warn!("{gap}Redis lost messages of the inbox; all values fetched before are fetched again");
            // This worker knows of nothing later, so gaps that others note for the same loss are the same gap.
            let highest = redis.on_fleets_clock(then.highest.0);
            store.note_gap(highest.min(now), Gap::Lost).await?;
        }
        let mut present = self.lock();
        if lost && present.highest == then.highest {
            present.highest = last;
        }
        if (lost || mark.is_none()) && present.acknowledged == then.acknowledged {
            present.acknowledged = mark.as_deref().map_or(Id::default(), parse);
        }
        present.is_older &= !then.is_older;
        present.highest = present.highest.max(last);
        // What was found meanwhile counts in the next comparison.
        if let Some(run_id) = run_id.filter(|_| then.is_blank || !present.is_blank) {
            run_id.clone_into(&mut present.run_id);
            present.is_blank = false;
        }
        Ok(())
    }
}

fn parse(id: &str) -> Id {
    let (time, number) = id.split_once('-').unwrap_or((id, "0"));
    (time.parse().unwrap_or_default(), number.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_id_below_one_that_was_seen_means_lost_messages() {
        let remembered = Remembered { highest: parse("5000-1"), ..Remembered::default() };
        let lower = [("5000-1", false), ("5000-0", true), ("4999-9", true), ("0-0", true), ("6000-0", false)];
        for (last, lost) in lower {
            assert_eq!(remembered.is_lost(parse(last), None), lost, "{last}");
        }
    }

    #[test]
    fn what_came_after_a_loss_does_not_hide_it_from_who_left_a_note() {
        let lost = |acknowledged: &[&str], note: Option<&str>, run_id: &str| {
            let watermark = Watermark::of(&Arc::from("a worker"));
            watermark.lock().run_id = "one".to_owned();
            let ids: Vec<String> = acknowledged.iter().map(|id| (*id).to_owned()).collect();
            let left = watermark.mark(&ids);
            watermark.marked(None, &left);
            let mut remembered = watermark.lock().clone();
            remembered.found(note);
            remembered.is_lost(parse("9500-0"), Some(run_id))
        };
        assert!(lost(&["5000-1", "4000-7"], Some("5000-0"), "another"));
        assert!(!lost(&["5000-1", "4000-7"], Some("5000-1"), "another"), "Redis remembers");
        assert!(!lost(&["5000-1"], Some("6000-0"), "another"), "the reply was lost");
        assert!(lost(&["5000-1"], None, "another"));
        assert!(!lost(&["5000-1"], None, "one"), "somebody tidied up");
        assert!(!lost(&[], None, "another"), "nothing was noted");
    }

    #[test]
    fn an_id_is_a_time_and_a_number() {
        assert_eq!(parse("1732277200123-4"), (RedisTime::from_millis(1_732_277_200_123), 4));
        assert_eq!((parse("0-0"), parse("")), (Id::default(), Id::default()));
    }
}
