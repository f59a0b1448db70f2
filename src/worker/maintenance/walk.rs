//! A walk over all entries of a job that makes many of them due: the most read first, at a bounded rate.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use redis::RedisResult;

use crate::entry::EntryKey;
use crate::job::Job;
use crate::popularity::Popularity;
use crate::redis::{Connection, Scan};

/// Entries of a job that come in the order of their reads.
const MOST_READ: usize = 10_000;
/// Entries that become due at once, and those that follow each second. Bulk work comes after all other work, and a
/// client that can stall the channel must not overload all upstreams by that.
const AT_ONCE: u32 = 2_000;
const A_SECOND: u32 = 500;

/// The keys that match a job's pattern, page by page. Some are no entries of the job, and a scan may find one twice.
#[derive(Debug)]
pub(super) struct Walk {
    most_read: Vec<EntryKey>,
    /// The number of these that have come.
    given: usize,
    /// The most read ones, which the scan leaves out.
    ranked: HashSet<EntryKey>,
    /// The most read entries in one page.
    step: usize,
    scan: Scan,
}

impl Walk {
    /// Begins a walk with pages of `step` among the most read entries.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(super) async fn begin(job: &Job, popularity: &Popularity, step: usize) -> RedisResult<Self> {
        let top = popularity.top(job, MOST_READ).await?;
        let most_read: Vec<EntryKey> = top.into_iter().map(|(key, _)| key).collect();
        let ranked = most_read.iter().cloned().collect();
        Ok(Self { most_read, given: 0, ranked, step, scan: Scan::new(job.key.glob()) })
    }

    /// Returns the next page, which may be empty; `None` at the end.
    ///
    /// # Errors
    /// Fails if Redis returns an error; the next call repeats the step.
    pub(super) async fn next(&mut self, redis: &Connection) -> RedisResult<Option<Vec<EntryKey>>> {
        if let Some(page) = self.most_read[self.given..].chunks(self.step).next() {
            self.given += page.len();
            return Ok(Some(page.to_vec()));
        }
        let found = self.scan.next(&mut redis.clone()).await?;
        let others = |found: Vec<String>| {
            found.into_iter().map(EntryKey::new).filter(|key| !self.ranked.contains(key)).collect()
        };
        Ok(found.map(others))
    }
}

/// The rate at which entries become due. Unused time gives credit for [`AT_ONCE`] entries at most.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the credit is full again.
    full: Instant,
    /// The entries that have become due.
    pub(super) values: usize,
}

impl Pace {
    /// Returns a pace with full credit.
    pub(super) fn begin() -> Self {
        Self { full: Instant::now(), values: 0 }
    }

    /// Counts entries that have become due; returns the time to wait before more may.
    pub(super) fn add(&mut self, values: usize) -> Duration {
        self.values += values;
        self.add_at(values, Instant::now())
    }

    fn add_at(&mut self, values: usize, now: Instant) -> Duration {
        let second = Duration::from_secs(1);
        let values = u32::try_from(values).unwrap_or(u32::MAX);
        self.full = self.full.max(now) + second * values / A_SECOND;
        self.full.saturating_duration_since(now + second * AT_ONCE / A_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn many_entries_become_due_at_a_bounded_rate() {
        let mut pace = Pace::begin();
        let begun = pace.full;
        assert_eq!(pace.add_at(2_000, begun), seconds(0));
        assert_eq!(pace.add_at(5_000, begun + seconds(4)), seconds(6));
        assert_eq!(pace.add_at(0, begun + seconds(14)), seconds(0));
        assert_eq!(pace.add_at(300_000, begun + seconds(14)), seconds(596));
    }

    #[test]
    fn time_without_work_gives_no_more_than_the_first_credit() {
        let mut pace = Pace::begin();
        let later = pace.full + seconds(3_600);
        assert_eq!(pace.add_at(2_000, later), seconds(0));
        assert_eq!(pace.add_at(500, later), seconds(1));
        assert_eq!(pace.add_at(0, later + seconds(7_200)), seconds(0));
        assert_eq!(pace.add_at(2_500, later + seconds(7_200)), seconds(1));
    }
}
