//! Absent entries that a job keeps warm: a refresh by pattern or job concerns them as well.
//!
//! An entry without a value and without a lease has no key that a scan finds, so the names come from the job: those
//! that its file lists, and if the message names the job, those of its feed's last answer, and the most read ones. They
//! are looked up in pages, and only the absent ones of a page are handled: an entry that is not absent was found by the
//! scans before.

use std::collections::HashSet;
use std::sync::Arc;

use redis::RedisResult;

use super::{Invalidator, Left, Named, Order, pass_over};
use crate::agenda::When;
use crate::entry::{Announced, EntryKey};
use crate::job::Job;
use crate::popularity::buckets::Reader;
use crate::protocol::{Handled, Message, glob};

/// Names in one round trip.
const PAGE: usize = 500;

/// The entries of one job that a message names by job or pattern.
struct Sought<'a> {
    job: &'a Arc<Job>,
    /// The globs, one of which a key must match; `None` if the message names the job.
    globs: Option<Vec<&'a str>>,
    order: Order,
    /// The absent entries that were handled.
    seen: HashSet<EntryKey>,
}

impl<'a> Sought<'a> {
    /// Returns the entries of a job that a message names; `None` if it names none.
    fn of(job: &'a Arc<Job>, message: &'a Message, order: Order) -> Option<Self> {
        let is_named = message.jobs.iter().any(|name| name == job.name.as_str());
        let globs = message.patterns.iter().map(String::as_str).filter(|glob| job.key.may_match(glob));
        let globs = (!is_named).then(|| Vec::from_iter(globs));
        if globs.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        Some(Self { job, globs, order, seen: HashSet::new() })
    }

    fn names(&self, key: &EntryKey) -> bool {
        let matches = |globs: &Vec<&str>| globs.iter().any(|glob| glob::matches(glob, key.as_str()));
        self.globs.as_ref().is_none_or(matches) && !self.seen.contains(key)
    }
}

impl Invalidator {
    /// Refreshes the absent entries that jobs keep warm, and that a message names by job or pattern.
    pub(super) async fn kept(
        &self,
        message: &Message,
        order: Order,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        let invalidator = Self { are_kept: true, ..self.clone() };
        for job in self.jobs.jobs.values() {
            let Some(mut sought) = Sought::of(job, message, order) else { continue };
            for page in job.entries.list.chunks(PAGE) {
                let keys = page.iter().filter_map(|params| job.key.write(params)).collect();
                invalidator.absent(&mut sought, keys, handled, left).await?;
            }
            // Patterns are published for each edit, and these names are read from Redis as a whole.
            if sought.globs.is_some() {
                continue;
            }
            if job.entries.feed.is_some() {
                pass_over(invalidator.absent_fed(&mut sought, handled, left).await, &job.name)?;
            }
            let popular = pass_over(self.popularity.top(job, job.entries.popular).await, &job.name)?;
            let popular: Vec<EntryKey> = popular.into_iter().flatten().map(|(key, _)| key).collect();
            for page in popular.chunks(PAGE) {
                invalidator.absent(&mut sought, page.to_vec(), handled, left).await?;
            }
        }
        Ok(())
    }

    /// Handles those of a job's feed.
    async fn absent_fed(&self, sought: &mut Sought<'_>, handled: &mut Handled, left: &mut Left) -> RedisResult<()> {
        let mut redis = self.redis.clone();
        let mut fed = Reader::begin(&mut redis, self.keys.feed(&sought.job.name)).await?;
        while let Some(names) = fed.next(&mut redis).await? {
            for page in names.chunks(PAGE) {
                self.absent(sought, page.iter().map(|name| EntryKey::new(name.as_str())).collect(), handled, left)
                    .await?;
            }
        }
        Ok(())
    }

    /// Handles those of these entries that are sought and absent.
    async fn absent(
        &self,
        sought: &mut Sought<'_>,
        mut keys: Vec<EntryKey>,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        let Order { action, at, .. } = sought.order;
        // Entries of an earlier key pattern may have been read or fed.
        keys.retain(|key| sought.names(key) && sought.job.key.read(key.as_str()).is_some());
        if keys.is_empty() {
            // Nothing is asked of Redis, and a long list must not hold up other tasks.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let are_absent = self.store.absent(&keys).await?;
        let absent = keys.into_iter().zip(are_absent).filter_map(|(key, is_absent)| is_absent.then_some(key));
        let named: Vec<Named> = absent.map(|key| (Arc::clone(sought.job), key, at, Announced::None)).collect();
        sought.seen.extend(named.iter().map(|(_, key, ..)| key.clone()));
        self.entries(&named, action, When::BULK_NOW, handled, left).await
    }
}
