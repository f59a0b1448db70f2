//! Removals that a job's guard holds back: a person lets them through, or has them held longer.

use redis::RedisResult;

use super::{Ops, PAGE};
use crate::agenda::When;
use crate::entry::{EntryKey, JobName, Trigger};
use crate::job::KnownJob;
use crate::redis::RedisTime;
use crate::store::GoneGuard;

impl Ops {
    /// Returns a job's guard while it holds removals back or lets them through.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn gone_guard(&self, job: &JobName) -> RedisResult<Option<GoneGuard>> {
        let now = self.store.now().await?;
        GoneGuard::read(&mut self.redis.clone(), &self.keys, job, now).await
    }

    /// Lets a job's removals through for an hour, and makes the entries due whose removal was held back. Returns how
    /// many these are.
    ///
    /// # Errors
    /// Fails if Redis returns an error; removals may be let through then.
    pub async fn accept_gone(&self, job: &KnownJob) -> RedisResult<usize> {
        self.store.accept_removals(&job.name).await?;
        let mut due = 0;
        for page in self.agenda.matching(&job.name, "*").await?.chunks(PAGE) {
            let snapshots = self.store.snapshots(page).await?;
            let held = page.iter().zip(snapshots).filter(|(_, snapshot)| {
                snapshot.ours().is_some_and(|meta| meta.last_attempt.held_until > RedisTime::ZERO)
            });
            let held: Vec<EntryKey> = held.map(|(key, _)| key.clone()).collect();
            self.agenda.put(&job.name, &held, When::IfThere, Trigger::Manual).await?;
            due += held.len();
        }
        Ok(due)
    }

    /// Has a job's removals held back for another hour; returns `false` if none are.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn hold_gone(&self, job: &KnownJob) -> RedisResult<bool> {
        self.store.hold_removals(&job.name).await
    }
}
