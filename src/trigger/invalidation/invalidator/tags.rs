//! Invalidations by tag: the stamps first, then the entries under the tag, then what an index may lack.
//!
//! A fetch in flight checks the stamps before it commits, so the stamps cover what the index does not name yet. Where
//! Redis may have evicted an index, all values of jobs with tags are scanned, once for all tags of the round.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use redis::RedisResult;
use tracing::warn;

use super::{Invalidator, Left, Named, Order, Part, pass_over};
use crate::agenda::When;
use crate::entry::Announced;
use crate::entry::EntryKey;
use crate::protocol::{Action, Handled};
use crate::redis::{Scan, is_of_keys};
use crate::store::Removal;

/// Key patterns of jobs that are unknown here, whose loaded values are handled.
const GLOBS: usize = 1_000;

impl Invalidator {
    /// Handles the entries under the tags of all parts.
    pub(super) async fn tags(&self, parts: &mut [Part<'_>]) -> RedisResult<()> {
        for Part { tags, order, .. } in &mut *parts {
            let removal = if order.action == Action::Evict { Removal::Evict } else { Removal::Refresh };
            let mut stamped = Vec::new();
            for tag in &*tags {
                let done = self.store.stamp(tag, order.at, removal).await;
                stamped.extend(pass_over(done, tag)?.map(|()| *tag));
            }
            *tags = stamped;
        }
        let all: BTreeSet<&str> = parts.iter().flat_map(|part| part.tags.iter().copied()).collect();
        let all = Vec::from_iter(all);
        // Before the indexes are read, since another worker's search may complete one meanwhile; and after, since Redis
        // may evict one meanwhile.
        let mut lacking = self.store.may_lack(&all).await?;
        for Part { tags, order, handled, left } in &mut *parts {
            for tag in &*tags {
                pass_over(self.tagged(tag, *order, handled, left).await, tag)?;
            }
        }
        lacking.extend(self.store.may_lack(&all).await?);
        if !lacking.is_empty() {
            self.seek_tagged(&HashSet::from_iter(lacking), parts).await?;
        }
        for Part { order, handled, left, .. } in &mut *parts {
            self.loaded(*order, handled, left).await?;
        }
        Ok(())
    }

    /// Handles the entries that a tag's index names.
    async fn tagged(&self, tag: &str, order: Order, handled: &mut Handled, left: &mut Left) -> RedisResult<()> {
        let Order { action, at, alone } = order;
        let mut cursor = 0;
        loop {
            let (next, entries) = self.store.tagged(tag, cursor).await?;
            let (named, foreign) = self.by_owner(entries, at, Announced::None);
            if alone {
                self.foreign(foreign, order, When::BULK_NOW, handled).await?;
            }
            self.entries(&named, action, When::BULK_NOW, handled, left).await?;
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Handles the values that services loaded for jobs with tags, whatever tags they would have. If no other worker
    /// hears of the message, values loaded for unknown jobs are removed. The tags must be stamped before.
    async fn loaded(&self, order: Order, handled: &mut Handled, left: &mut Left) -> RedisResult<()> {
        let mut globs = self.jobs.globs_with_tags();
        let mut foreign = BTreeSet::new();
        if order.alone {
            let mut ask = redis::cmd("ZRANGE");
            ask.arg(self.keys.tagged()).arg(0).arg(GLOBS - 1);
            let all: RedisResult<Vec<String>> = ask.query_async(&mut self.redis.clone()).await;
            let all = pass_over(all, "what services loaded for jobs that are unknown here")?.unwrap_or_default();
            foreign.extend(all.into_iter().filter(|glob| !globs.contains(glob)));
        }
        let foreign_sets = self.store.loaded_sets(foreign.iter().map(String::as_str));
        globs.extend(foreign);
        for set in self.store.loaded_sets(globs.iter().map(String::as_str)) {
            let is_foreign = foreign_sets.contains(&set);
            let order = Order { alone: is_foreign, ..order };
            match self.loaded_in(&set, &globs, order, handled, left).await {
                // The user of this worker may have no right to keys of jobs that it does not know.
                Err(e) if is_foreign && is_of_keys(&e) => {
                    warn!(set, "cannot handle what services loaded for jobs that are unknown here: {e}");
                }
                done => {
                    pass_over(done, &set)?;
                }
            }
        }
        Ok(())
    }

    /// Handles the loaded values of one set; `globs` are the key patterns of all jobs with tags.
    async fn loaded_in(
        &self,
        set: &str,
        globs: &BTreeSet<String>,
        order: Order,
        handled: &mut Handled,
        left: &mut Left,
    ) -> RedisResult<()> {
        let Order { action, at, alone } = order;
        if !self.store.tracks(set).await? {
            self.store.track(set, false).await?;
            for glob in globs.iter().filter(|glob| self.keys.loaded_like(glob) == *set) {
                self.seek_loaded(set, glob).await?;
            }
            self.store.track(set, true).await?;
        }
        let mut cursor = 0;
        loop {
            let (next, found) = self.store.loaded(set, cursor).await?;
            let (mut named, mut foreign) = (Vec::new(), Vec::new());
            for key in found {
                match self.jobs.owner(key.as_str()) {
                    Some((job, _)) if !job.tags.is_empty() => named.push((Arc::clone(job), key, at, Announced::None)),
                    Some(_) => {}
                    None => foreign.push(key),
                }
            }
            if alone {
                self.foreign_values(foreign, order, When::BULK_NOW, handled).await?;
            }
            self.entries(&named, action, When::BULK_NOW, handled, left).await?;
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Tracks the loaded values whose keys match a glob: leases first, then values, as in [`Self::matching`].
    async fn seek_loaded(&self, set: &str, glob: &str) -> RedisResult<()> {
        for leases in [true, false] {
            let glob = if leases { self.keys.lease_glob(glob) } else { glob.to_owned() };
            let mut scan = Scan::new(glob).of_type("string");
            while let Some(found) = scan.next(&mut self.redis.clone()).await? {
                let keys = found.into_iter().filter_map(|key| match leases {
                    true => self.keys.entry_of_lease(&key).map(EntryKey::new),
                    false => (!self.keys.is_own(&key)).then(|| EntryKey::new(key)),
                });
                self.store.track_all(set, keys.collect()).await?;
            }
        }
        Ok(())
    }

    /// Handles entries under tags whose indexes Redis may have evicted: scans all values of jobs with tags.
    async fn seek_tagged(&self, tags: &HashSet<&str>, parts: &mut [Part<'_>]) -> RedisResult<()> {
        let mut globs: Vec<String> =
            self.jobs.jobs.values().filter(|job| !job.tags.is_empty()).map(|job| job.key.glob()).collect();
        let glob = match globs.pop() {
            None => return Ok(()),
            Some(only) if globs.is_empty() => only,
            Some(_) => "*".to_owned(),
        };
        let seeking = self.store.seek(tags).await?;
        let mut scan = Scan::new(glob);
        while let Some(found) = scan.next(&mut self.redis.clone()).await? {
            let found = found.into_iter().filter(|key| {
                !self.keys.is_own(key) && self.jobs.owner(key).is_some_and(|(job, _)| !job.tags.is_empty())
            });
            let found = self.store.with_tags(tags, found.map(EntryKey::new).collect()).await?;
            for part in &mut *parts {
                let sought = part.tags.iter().copied().filter(|tag| tags.contains(tag)).collect();
                let named = found.iter().filter(|(_, has)| concerns(has.as_deref(), &sought));
                let named = named.filter_map(|(key, _)| {
                    let (job, _) = self.jobs.owner(key.as_str())?;
                    Some((Arc::clone(job), key.clone(), part.order.at, Announced::None))
                });
                let named: Vec<Named> = named.collect();
                let Part { order, handled, left, .. } = part;
                self.entries(&named, order.action, When::BULK_NOW, handled, left).await?;
            }
        }
        self.store.sought(seeking).await
    }
}

/// Returns `true` if an entry with the tags `has` is under one of `tags`. An entry whose tags are unknown may have any.
fn concerns(has: Option<&[String]>, tags: &HashSet<&str>) -> bool {
    !tags.is_empty() && has.is_none_or(|has| has.iter().any(|tag| tags.contains(tag.as_str())))
}
