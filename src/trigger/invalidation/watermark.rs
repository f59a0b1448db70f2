//! What a worker remembers of Redis, so that it notices when Redis remembers less.
//!
//! A Redis that crashed, or a replica that took over, may be as it was a while ago. What came into the inbox since is lost then,
//! handled or not, and so is all that was done for it. So a worker remembers the highest id that it saw the inbox give; where
//! the inbox's last one is lower, messages were lost. Messages that came after the loss may hide that. Therefore each worker leaves a
//! note in Redis of the highest id that it acknowledged, in the same round trip, and remembers that as well: an older note, or none in
//! another Redis, says that something was lost. A fleet that ends together with Redis remembers nothing.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use redis::{RedisResult, Script};
use tracing::warn;

use crate::store::{Gap, Store};

static LAST: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/last.lua")));

/// The id of a message in the inbox: its time (Redis time, ms), and its number within that.
type Id = (i64, u64);

/// What one worker remembers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watermark {
    worker: Arc<str>,
    remembered: Arc<Mutex<Remembered>>,
}

#[derive(Clone, Debug, Default)]
struct Remembered {
    /// The highest id that the inbox gave.
    highest: Id,
    /// The highest id that the worker acknowledged, of which it left a note.
    acknowledged: Id,
    /// An older note was found.
    is_older: bool,
    /// No note was found where one was left: it is a Redis that never had it, or somebody tidied up.
    is_blank: bool,
    /// The `run_id` of the Redis that was compared last; empty for none.
    run_id: String,
}

impl Remembered {
    /// What Redis has for a note.
    fn found(&mut self, note: Option<&str>) {
        match note.map(parse) {
            Some(note) => self.is_older |= note < self.acknowledged,
            None => self.is_blank |= self.acknowledged != Id::default(),
        }
    }

    /// Whether messages were lost of an inbox whose last id is this one, in the Redis of this `run_id`.
    fn is_lost(&self, last: Id, run_id: Option<&str>) -> bool {
        let another = !self.run_id.is_empty() && run_id.is_some_and(|run_id| run_id != self.run_id);
        self.highest > last || self.is_older || (self.is_blank && another)
    }
}

impl Watermark {
    /// Of a worker of this name, which has seen nothing yet.
    pub fn of(worker: &Arc<str>) -> Self {
        Self { worker: Arc::clone(worker), remembered: Arc::default() }
    }

    /// Whose memory it is.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was compared with the Redis of this `run_id`.
    pub fn is_of(&self, run_id: &str) -> bool {
        self.lock().run_id == run_id
    }

    /// The inbox gave a message of this id.
    pub fn read(&self, id: &str) {
        let mut remembered = self.lock();
        remembered.highest = remembered.highest.max(parse(id));
    }

    /// The note that is left when these messages are acknowledged: the highest id of all so far.
    pub fn note(&self, ids: &[String]) -> String {
        let highest = ids.iter().map(|id| parse(id)).fold(self.lock().acknowledged, Id::max);
        format!("{}-{}", highest.0, highest.1)
    }

    /// The note was left, where there was another `before`.
    pub fn noted(&self, before: Option<&str>, note: &str) {
        let mut remembered = self.lock();
        remembered.found(before);
        remembered.acknowledged = parse(note);
    }

    /// Raises the doubt that invalidations were lost where Redis, whose `run_id` is this if it is known, remembers less than the
    /// worker; then goes by what Redis remembers.
    ///
    /// # Errors
    /// Redis's; compare again.
    pub async fn compare(&self, store: &Store, run_id: Option<&str>) -> RedisResult<()> {
        // Before Redis is asked, since messages are read meanwhile.
        let mut then = self.lock().clone();
        let redis = &mut store.connection().clone();
        let note: Option<String> =
            redis::cmd("HGET").arg(store.keys().acknowledged()).arg(&*self.worker).query_async(redis).await?;
        let (last, now): (String, i64) = LAST.key(store.keys().inbox()).invoke_async(redis).await?;
        let last = parse(&last);
        then.found(note.as_deref());
        let lost = then.is_lost(last, run_id);
        if lost {
            warn!("Redis forgot what was in the inbox: what was fetched before is made anew");
            // All that this worker knows of was asked for by then; so what others raise later is no other doubt.
            store.note_gap(then.highest.0.min(now), Gap::Lost).await?;
        }
        let mut present = self.lock();
        if lost && present.highest == then.highest {
            present.highest = last;
        }
        if (lost || note.is_none()) && present.acknowledged == then.acknowledged {
            present.acknowledged = note.as_deref().map_or(Id::default(), parse);
        }
        present.is_older &= !then.is_older;
        present.highest = present.highest.max(last);
        // What was found meanwhile is for the next time.
        if let Some(run_id) = run_id.filter(|_| then.is_blank || !present.is_blank) {
            run_id.clone_into(&mut present.run_id);
            present.is_blank = false;
        }
        Ok(())
    }
}

fn parse(id: &str) -> Id {
    let (ms, number) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or(0), number.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_id_below_one_that_was_seen_means_lost_messages() {
        let remembered = Remembered { highest: (5_000, 1), ..Remembered::default() };
        let lower = [((5_000, 1), false), ((5_000, 0), true), ((4_999, 9), true), ((0, 0), true), ((6_000, 0), false)];
        for (last, lost) in lower {
            assert_eq!(remembered.is_lost(last, None), lost, "{last:?}");
        }
    }

    #[test]
    fn what_came_after_a_loss_does_not_hide_it_from_who_left_a_note() {
        let lost = |acknowledged: &[&str], note: Option<&str>, run_id: &str| {
            let watermark = Watermark::of(&Arc::from("a worker"));
            watermark.lock().run_id = "one".to_owned();
            let ids: Vec<String> = acknowledged.iter().map(|id| (*id).to_owned()).collect();
            let left = watermark.note(&ids);
            watermark.noted(None, &left);
            let mut remembered = watermark.lock().clone();
            remembered.found(note);
            remembered.is_lost((9_500, 0), Some(run_id))
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
        assert_eq!(parse("1732277200123-4"), (1_732_277_200_123, 4));
        assert_eq!((parse("0-0"), parse("")), ((0, 0), (0, 0)));
    }
}
