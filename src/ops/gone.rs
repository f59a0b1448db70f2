//! Removals that a job's guard holds back: a person lets them through, or has them held longer.

use redis::RedisResult;

use super::{Ops, PAGE};
use crate::agenda::When;
use crate::entry::{EntryKey, JobName, Trigger};
use crate::job::KnownJob;
use crate::redis::is_of_keys;
use crate::store::GoneGuard;

/// Returns why no person decides on the removals of a job without a guard.
pub(crate) fn unguarded(job: &KnownJob) -> String {
    format!("the job {} has no guard (`gone_guard = \"off\"`): its removals are never held back", job.name)
}

impl Ops {
    /// Returns a job's guard while it holds removals back or lets them through.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn gone_guard(&self, job: &JobName) -> RedisResult<Option<GoneGuard>> {
        let now = self.store.now().await?;
        GoneGuard::read(&mut self.redis.clone(), &self.keys, job, now).await
    }

    /// Returns the guards that hold removals back, as a sentence each; none of a job whose guard cannot be read.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn guard_notices(&self) -> RedisResult<Vec<String>> {
        let now = self.store.now().await?;
        let jobs: Vec<&JobName> = self.jobs.jobs.values().filter(|job| !job.unguarded).map(|job| &job.name).collect();
        let guards = GoneGuard::read_all(&mut self.redis.clone(), &self.keys, &jobs, now).await?;
        let holding = |guard: RedisResult<Option<GoneGuard>>| guard.ok().flatten().filter(GoneGuard::is_holding);
        Ok(jobs.into_iter().zip(guards).filter_map(|(job, guard)| Some(holding(guard)?.notice(job))).collect())
    }

    /// Lets a job's removals through for an hour, and makes the entries due whose removal was held back, also those
    /// that are not on the agenda. Returns how many these are.
    ///
    /// # Errors
    /// Fails if Redis returns an error; removals may be let through then.
    pub async fn accept_gone(&self, job: &KnownJob) -> RedisResult<usize> {
        let mut others = self.store.held_entries(&job.name).await?;
        self.store.accept_removals(&job.name).await?;
        let on_agenda = self.agenda.matching(&job.name, "*").await?;
        let mut ask = redis::cmd("ZRANGE");
        ask.arg(self.keys.dead(&job.name)).arg(0).arg(-1);
        let dead: Vec<String> = match ask.query_async(&mut self.redis.clone()).await {
            // A key of another type is somebody else's, and has no dead letters.
            Err(e) if is_of_keys(&e) => Vec::new(),
            dead => dead?,
        };
        others.extend(dead.into_iter().map(EntryKey::new));
        for key in &on_agenda {
            others.remove(key);
        }
        let mut due = 0;
        for page in on_agenda.chunks(PAGE) {
            due += self.ask_again(job, page, When::IfThere).await?;
        }
        for page in Vec::from_iter(others).chunks(PAGE) {
            due += self.ask_again(job, page, When::NOW).await?;
        }
        Ok(due)
    }

    /// Makes those of these entries due whose removal was held back; returns how many these are.
    async fn ask_again(&self, job: &KnownJob, page: &[EntryKey], when: When) -> RedisResult<usize> {
        let snapshots = self.store.snapshots(page).await?;
        let held = page.iter().zip(&snapshots).filter(|(_, snapshot)| snapshot.was_held_back()).map(|(key, _)| key);
        let held: Vec<EntryKey> = held.cloned().collect();
        self.agenda.put(&job.name, &held, when, Trigger::Manual).await?;
        Ok(held.len())
    }

    /// Has a job's removals held back for another hour. If none is left to hold, an acceptance is taken back; without
    /// one, returns `false`.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn hold_gone(&self, job: &KnownJob) -> RedisResult<bool> {
        self.store.hold_removals(&job.name).await
    }
}
