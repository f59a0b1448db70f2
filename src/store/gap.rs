//! Gaps: times in which invalidations may have been missed, noted for the revalidator.

use std::collections::BTreeSet;
use std::sync::{LazyLock, PoisonError};
use std::time::{Duration, Instant};

use redis::{Cmd, RedisResult, Script};

use super::Store;
use crate::job::Job;
use crate::redis::RedisTime;

/// The signal that makes workers look for a gap to revalidate.
pub const REVALIDATE_SIGNAL: &str = "suspect";

/// The kind of a gap; the later one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// Invalidations may have been missed: AI entries are looked at, and not generated again from the same.
    Missed = 1,
    /// Invalidations were lost: everything is made anew.
    Lost = 2,
}

/// The field of [`Keys::clock`](crate::protocol::Keys::clock) that holds when Redis was last found to have lost data.
const LOST: &str = "lost";

/// The time within which the signs of one outage follow each other.
const SAME_GAP: Duration = Duration::from_secs(30);

static SUSPECT_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/suspect.lua")));

impl Store {
    /// Returns the beginning of a log line about a gap. An outage shows in several ways, one after the other: a line
    /// that follows another one of this worker soon says that the gap goes on.
    pub fn gap_line(&self) -> &'static str {
        let before = self.gap_logged.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now());
        if before.is_some_and(|before| before.elapsed() < SAME_GAP) { "the gap goes on: " } else { "" }
    }

    /// Notes that everything fetched at or before `at` is suspect from now on.
    ///
    /// # Errors
    /// Redis's; noting it again does no harm.
    pub async fn note_gap(&self, at: RedisTime, gap: Gap) -> RedisResult<()> {
        self.write_gap(at, gap, &[]).await
    }

    /// Notes that Redis was found to have lost data at `at`, and with them rechecks: what is fetched from
    /// then on knows of it ([`Lease::lost`](super::Lease::lost)).
    ///
    /// # Errors
    /// Redis's; noting it again does no harm.
    pub async fn note_loss(&self, at: RedisTime) -> RedisResult<()> {
        redis::cmd("HSET").arg(self.keys.clock()).arg(LOST).arg(at).exec_async(&mut self.redis.clone()).await
    }

    /// Returns the command that asks when Redis was last found to have lost data, for a pipeline of the caller.
    pub(super) fn ask_lost(&self) -> Cmd {
        let mut ask = redis::cmd("HGET");
        ask.arg(self.keys.clock()).arg(LOST);
        ask
    }

    /// Notes the same as [`Store::note_gap`] of these jobs' entries alone.
    ///
    /// # Errors
    /// Redis's; noting it again does no harm.
    pub async fn note_gap_for(&self, jobs: &[&Job], at: RedisTime, gap: Gap) -> RedisResult<()> {
        let mut spared = self.fleet().await?;
        for job in jobs {
            spared.remove(job.name.as_str());
            spared.remove(&job.identity());
        }
        self.write_gap(at, gap, &Vec::from_iter(spared)).await
    }

    async fn write_gap(&self, at: RedisTime, gap: Gap, spared: &[String]) -> RedisResult<()> {
        let [note, _, dealt] = self.keys.revalidation();
        let mut call = SUSPECT_SCRIPT.key(note);
        call.key(dealt).arg(at).arg(gap as u8).arg(self.keys.signal_channel()).arg(REVALIDATE_SIGNAL).arg(spared);
        call.invoke_async(&mut self.redis.clone()).await
    }

    /// Returns all jobs of the fleet: by name, and by the identities that workers know.
    pub(crate) async fn fleet(&self) -> RedisResult<BTreeSet<String>> {
        let (names, records): (BTreeSet<String>, Vec<Vec<u8>>) = redis::pipe()
            .hkeys(self.keys.digests())
            .hvals(self.keys.gap_detectors())
            .query_async(&mut self.redis.clone())
            .await?;
        Ok(&names | &known(&records))
    }
}

/// Returns the jobs that the workers of these entries know, as [`Job::identity`] names them.
fn known(records: &[Vec<u8>]) -> BTreeSet<String> {
    let jobs = records.iter().filter_map(|heard| str::from_utf8(heard).ok()?.split(' ').nth(3));
    jobs.flat_map(|jobs| jobs.split(',')).filter(|job| !job.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_jobs_knows_none() {
        let records = ["1 2 3 ", "1 2 3", "", "1 2 3 art,poem", "1 2 3 ,"].map(|heard| heard.as_bytes().to_vec());
        assert_eq!(known(&records), BTreeSet::from(["art".to_owned(), "poem".to_owned()]));
    }
}
