//! The restart monitor: notices that Redis was restarted, flushed or replaced, and restores what is missing.
//!
//! A marker in Redis holds the server's `run_id`, or those of a Cluster's masters: see [`Connection::incarnation`]. If
//! the marker differs, Redis may have lost what it had acknowledged: the monitor notes a gap, sets up all schedules,
//! and then writes the marker. A crash in between only repeats that. A key of a wrong type fails its own step and no
//! other.

use std::collections::HashSet;

use redis::RedisResult;
use tracing::info;

use super::JobCleaner;
use crate::protocol::Keys;
use crate::redis::{Connection, Incarnation, RedisUrl, Troubles};
use crate::store::{Gap, Store};
use crate::trigger::invalidation::clock::SET_BACK;
use crate::trigger::{Cron, Watermark};

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
    /// The `run_id` of the Redis for which a gap is noted and the marker is not written yet.
    pub(in crate::worker) gap_noted: Option<String>,
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
        // `GETRANGE` instead of `GET`, which the sampler takes for a read by an API.
        let marker: RedisResult<String> =
            redis::cmd("GETRANGE").arg(self.keys.marker()).arg(0).arg(-1).query_async(&mut redis).await;
        let marker = self.troubles.alone("the marker", marker)?;
        let known = marker.as_deref().unwrap_or_default();
        let present = redis.incarnation(known, |slot| self.keys.marker_at(slot)).await?;
        let run_id = &*present.id;
        let lost = thorough && self.troubles.alone("the schedules", self.has_lost_some().await)?.unwrap_or(false);
        if !self.is_set_up {
            self.job_cleaner.know().await?;
        } else if thorough {
            self.job_cleaner.know_globs().await?;
        }
        // A clock that was set back starts all schedules again, as a restart does.
        let schedules = set_back.map_or_else(|| run_id.to_owned(), |times| format!("{run_id} {times}"));
        if thorough || !self.watermark.is_of(run_id) {
            self.troubles.alone("the watermark", self.watermark.compare(&self.store, Some(run_id)).await)?;
        }
        if marker.is_some() && present.is_other {
            self.restore(&present, known.is_empty(), &schedules).await?;
        } else {
            self.gap_noted = None;
            if marker.is_some() && present.mark != known {
                self.leave_marks(&present).await?;
            }
            if lost || !self.is_set_up {
                self.troubles.alone("the warmups", self.cron.ensure(&schedules).await)?;
            }
        }
        self.is_set_up = true;
        Ok(())
    }

    /// Notes the gap, sets up the schedules, and writes the marker, in this order: a crash in between only repeats it.
    async fn restore(&mut self, present: &Incarnation, is_empty: bool, schedules: &str) -> RedisResult<()> {
        if self.gap_noted.as_ref() != Some(&present.id) {
            let noted = self.store.note_gap(self.store.now().await?, Gap::Missed).await;
            if self.troubles.alone("the gap", noted)?.is_some() {
                self.gap_noted = Some(present.id.clone());
                let gap = if is_empty && present.own_marks.is_empty() { "" } else { self.store.gap_line() };
                info!(redis = %self.redis_url, "{gap}{}", self.loss(present, is_empty));
            }
        }
        let is_set_up = self.troubles.alone("the warmups", self.cron.ensure(schedules).await)?.is_some();
        if is_set_up && self.gap_noted.is_some() {
            self.leave_marks(present).await?;
            // The next loss may have the same id: a flush leaves the runs as they are.
            self.gap_noted = None;
        }
        Ok(())
    }

    /// Returns what happened, to which server, and what follows. `is_empty` tells that the mark of all is gone.
    fn loss(&self, present: &Incarnation, is_empty: bool) -> String {
        let master = self.redis.master_of(&self.keys.marker()).unwrap_or_default();
        let may_move = self.redis.servers().topology != "single";
        if !present.losses.is_empty() {
            return format!("{}; all values are revalidated", present.losses.join("; "));
        }
        match (is_empty, may_move) {
            (true, true) if present.own_marks.is_empty() => {
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
        }
    }

    /// Leaves the marks of these servers, that of all last.
    async fn leave_marks(&self, present: &Incarnation) -> RedisResult<()> {
        let mut redis = self.redis.clone();
        for own in &present.own_marks {
            redis::cmd("SET").arg(own).arg(&present.id).exec_async(&mut redis).await?;
        }
        redis::cmd("SET").arg(self.keys.marker()).arg(&present.mark).exec_async(&mut redis).await
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
