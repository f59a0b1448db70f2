//! The restart monitor: notices that Redis was restarted, flushed or replaced, and restores what is missing.
//!
//! A marker in Redis holds the server's `run_id`, or those of a Cluster's masters: see [`Connection::incarnation`]. If
//! the marker differs, Redis may have lost what it had acknowledged: the monitor notes the loss and a gap, sets up all
//! schedules, and then writes the marker. A crash in between only repeats that. Fetches that begin after the gap know
//! of the loss, and are rechecked. Workers that find the same loss note the same gap, that of the first one; if the
//! marker was written since it was read, none is noted. A key of a wrong type fails its own step and no other.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};
use tracing::{info, warn};

use super::JobCleaner;
use crate::entry::duration::millis;
use crate::protocol::Keys;
use crate::redis::{Connection, Incarnation, RedisTime, RedisUrl, Troubles};
use crate::store::{Gap, Store};
use crate::trigger::invalidation::clock::SET_BACK;
use crate::trigger::{Cron, Watermark};

/// The time for which the fleet remembers when it found a loss, if no worker finishes with it.
const FOUND: Duration = Duration::from_secs(3_600);

/// The time within which a loss is usually dealt with. If it takes longer, the gap is noted once more at the end.
const SOON: Duration = Duration::from_secs(10);

static FIND_LOSS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/find_loss.lua")));
static LEAVE_MARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/leave_mark.lua")));

/// One worker's view of the Redis that it works with.
#[derive(Debug)]
pub(in crate::worker) struct RestartMonitor {
    pub(in crate::worker) redis: Connection,
    pub(in crate::worker) redis_url: RedisUrl,
    pub(in crate::worker) keys: Keys,
    pub(in crate::worker) store: Store,
    pub(in crate::worker) cron: Cron,
    pub(in crate::worker) job_cleaner: JobCleaner,
    pub(in crate::worker) watermark: Watermark,
    /// The failures of single steps.
    pub(in crate::worker) troubles: Troubles,
    /// The schedules are set up, as far as is known.
    pub(in crate::worker) is_set_up: bool,
    /// It has checked before, so whatever is missing was lost, and Redis is not new.
    pub(in crate::worker) has_checked: bool,
    /// The loss for which a gap is noted and the marker is not written yet, and when a worker first found it.
    pub(in crate::worker) gap_noted: Option<(String, RedisTime)>,
}

/// Returns the state for which all schedules are set up. A clock that was set back starts them again, as a restart
/// does.
fn schedules(run_id: &str, set_back: Option<u64>) -> String {
    set_back.map_or_else(|| run_id.to_owned(), |times| format!("{run_id} {times}"))
}

impl RestartMonitor {
    /// Makes the next check set up all schedules.
    pub(in crate::worker) fn set_up_again(&mut self) {
        self.is_set_up = false;
    }

    /// Checks for a restart, and sets up what is missing. A thorough check also finds keys that were lost one by one.
    ///
    /// # Errors
    /// Redis's; check again.
    pub(in crate::worker) async fn check(&mut self, thorough: bool) -> RedisResult<()> {
        let mut redis = self.redis.clone();
        self.troubles.notice("the masters", redis.fault_of_masters());
        self.troubles.notice("the clocks", redis.fault_of_clocks());
        let set_back: RedisResult<Option<u64>> =
            redis::cmd("HGET").arg(self.keys.clock()).arg(SET_BACK).query_async(&mut redis).await;
        let set_back = self.troubles.alone("the clock", set_back)?.flatten();
        let marker = self.troubles.alone("the marker", self.marker().await)?;
        let known = marker.as_deref().unwrap_or_default();
        let present = redis.incarnation(known, &self.keys).await?;
        let run_id = &*present.id;
        let lost = thorough && self.troubles.alone("the schedules", self.has_lost_some().await)?.unwrap_or(false);
        if !self.is_set_up {
            self.job_cleaner.know().await?;
        }
        if thorough || !self.watermark.is_of(run_id) {
            self.troubles.alone("the watermark", self.watermark.compare(&self.store, Some(run_id)).await)?;
        }
        if marker.is_some() && present.is_other {
            if !self.restore(present, known, set_back).await? {
                // What is missing is set up when the next check has seen what the other worker left.
                return Ok(());
            }
        } else {
            self.gap_noted = None;
            if marker.is_some() && present.mark() != known {
                let mark = present.leave_own_marks(&self.redis, &self.keys).await?;
                self.leave_mark(&present, known, &mark).await?;
            }
            if lost || !self.is_set_up {
                let ensured = self.cron.ensure(&schedules(run_id, set_back)).await;
                self.troubles.alone("the warmups", ensured)?;
            }
        }
        if self.is_set_up && thorough {
            // Last: the master that has them may be the only one that does not answer.
            self.job_cleaner.know_globs().await?;
        }
        (self.is_set_up, self.has_checked) = (true, true);
        Ok(())
    }

    async fn marker(&self) -> RedisResult<String> {
        // `GETRANGE` instead of `GET`, which the sampler takes for a read by an API.
        redis::cmd("GETRANGE").arg(self.keys.marker()).arg(0).arg(-1).query_async(&mut self.redis.clone()).await
    }

    /// Notes the gap, sets up the schedules, and writes the marker, in this order: a crash in between only repeats it.
    /// Returns `false` if another worker has dealt with the loss since `known` was read.
    async fn restore(&mut self, present: Incarnation, known: &str, set_back: Option<u64>) -> RedisResult<bool> {
        let loss = present.id.clone();
        if self.gap_noted.as_ref().is_none_or(|(noted, _)| *noted != loss) {
            self.gap_noted = None;
            // Before the gap: what is fetched after the gap finds it.
            let noted = self.note_loss(self.store.now().await?, known).await;
            match self.troubles.alone("the gap", self.note_gap(&loss, known).await)? {
                Some(Some(found)) => {
                    self.gap_noted = Some((loss.clone(), found));
                    self.tell(&present, known);
                }
                Some(None) => return Ok(false),
                None => {}
            }
            // A Redis that is full takes the gap, and not this.
            noted?;
        }
        let found = self.gap_noted.as_ref().map(|(_, found)| *found);
        let present = found.into_iter().fold(present, Incarnation::found_at);
        let ensured = self.cron.ensure(&schedules(&present.id, set_back)).await;
        let is_set_up = self.troubles.alone("the warmups", ensured)?.is_some();
        if let Some(found) = found.filter(|_| is_set_up) {
            let mark = present.leave_own_marks(&self.redis, &self.keys).await?;
            let now = self.store.now().await?;
            if now > found + SOON {
                // Another loss since then has the same id, if the runs are the same, and is over with this one.
                self.note_loss(now, known).await?;
                self.store.note_gap(now, Gap::Missed).await?;
            }
            if self.leave_mark(&present, known, &mark).await? {
                redis::cmd("DEL").arg(self.keys.loss(&loss)).exec_async(&mut self.redis.clone()).await?;
            }
            // The next loss may have the same id: a flush leaves the runs as they are.
            self.gap_noted = None;
        }
        Ok(true)
    }

    /// Logs what happened, to which server, and what follows.
    fn tell(&self, present: &Incarnation, known: &str) {
        let is_empty = known.is_empty();
        let gap = if is_empty && !present.is_of_cluster() { "" } else { self.store.gap_line() };
        let master = self.redis.master_of(&self.keys.marker()).unwrap_or_default();
        let what = match (is_empty, self.redis.servers().topology != "single") {
            _ if !present.losses.is_empty() => format!("{}; all values are revalidated", present.losses.join("; ")),
            (true, true) if !present.is_of_cluster() => {
                format!("the master {master} holds nothing of Samovar; all jobs are warmed up")
            }
            (true, false) => "Redis holds nothing of Samovar; all jobs are warmed up".to_owned(),
            // Other masters may hold all that is theirs.
            (true, true) => format!(
                "the Cluster's mark is gone: the Cluster is new, or the master {master} lost its data; all jobs are \
                 warmed up"
            ),
            (false, true) => format!(
                "the master {master} was restarted, or has taken another one's place; all values are revalidated"
            ),
            (false, false) => "Redis was restarted; all values are revalidated".to_owned(),
        };
        // A worker that begins has seen nothing that could be lost.
        if self.has_checked && (is_empty || !present.losses.is_empty()) {
            warn!(
                redis = %self.redis_url,
                "{gap}{what}. With the data went dead letters, pauses, and what was spent of token budgets"
            );
        } else {
            info!(redis = %self.redis_url, "{gap}{what}");
        }
    }

    /// Notes that data are lost, unless this worker begins with an empty Redis: nothing is known to have been there.
    async fn note_loss(&self, now: RedisTime, known: &str) -> RedisResult<()> {
        if !self.has_checked && known.is_empty() {
            return Ok(());
        }
        self.troubles.alone("the loss", self.store.note_loss(now).await).map(|_| ())
    }

    /// Notes the gap of a loss, and returns when a worker first found it; `None` if another one has dealt with it since
    /// the marker was read.
    async fn note_gap(&self, id: &str, known: &str) -> RedisResult<Option<RedisTime>> {
        let now = self.store.now().await?;
        let loss = self.keys.loss(id);
        let (found, is_first): (String, bool) =
            FIND_LOSS.key(&loss).arg(now).arg(millis(FOUND)).invoke_async(&mut self.redis.clone()).await?;
        // Checked afterwards: whoever dealt with the loss wrote the marker before it forgot when the loss was found.
        if self.marker().await? != known {
            if is_first {
                redis::cmd("DEL").arg(loss).exec_async(&mut self.redis.clone()).await?;
            }
            return Ok(None);
        }
        // What was fetched since a worker first found the loss is not in doubt.
        let found = found.parse::<RedisTime>().unwrap_or(now);
        self.store.note_gap(found, Gap::Missed).await?;
        Ok(Some(found))
    }

    /// Leaves the mark of all servers, after their own ones; returns `false` if another worker has left one since
    /// `known` was read.
    async fn leave_mark(&self, present: &Incarnation, known: &str, mark: &str) -> RedisResult<bool> {
        if mark == known {
            return Ok(true);
        }
        let mut call = LEAVE_MARK.key(self.keys.marker());
        let is_left: bool = call.arg(known).arg(mark).invoke_async(&mut self.redis.clone()).await?;
        if is_left {
            present.remove_own_marks(mark, &self.redis, &self.keys).await;
        }
        Ok(is_left)
    }

    /// Returns `true` if keys that the jobs need are gone: Redis evicted them, or a worker that does not know the job
    /// dropped them.
    async fn has_lost_some(&self) -> RedisResult<bool> {
        let (scheduled, digests): (bool, HashSet<String>) = redis::pipe()
            .exists(self.keys.schedules())
            .hkeys(self.keys.digests())
            .query_async(&mut self.redis.clone())
            .await?;
        let jobs = &self.cron.jobs.jobs;
        Ok((!scheduled && jobs.values().any(|job| !job.warm.schedules.list().is_empty()))
            || !jobs.keys().all(|job| digests.contains(job.as_str())))
    }
}
