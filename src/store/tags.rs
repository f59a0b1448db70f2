//! Tags: which entries are invalidated together.
//!
//! A tag is a sorted set of entries beside a stamp, the time of its last invalidation. An invalidation stamps first and
//! then reads the entries; a fetch puts its entry under the tag first and then reads the stamp. So the second one sees
//! the first.
//!
//! Tags have no TTL, since a policy such as `volatile-lru` would evict them. Dead entries are dropped when the tag is
//! used, and swept from time to time. Anybody may invalidate any tag: stamps of tags that no entry has are kept
//! together, and only so many of them. Under an `allkeys-*` policy Redis may evict an index all the same, and a new one
//! names only later entries: there an index counts as whole only once all values were looked at for the tag.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::Store;
use super::lease::Removal;
use super::snapshot::Snapshot;
use crate::entry::EntryKey;
use crate::entry::duration::millis;
use crate::redis::{RedisTime, Scan, is_of_keys};

/// Dead entries dropped when an entry is put under a tag.
const DROPPED: usize = 100;
/// Dead entries dropped in one step of a sweep.
const SWEPT: usize = 1_000;
/// The time for which a stamp is kept; longer than any fetch takes.
const STAMPED: Duration = Duration::from_secs(24 * 3_600);
/// The most unknown tags, which no entry has, with a stamp of their own: more than a fleet invalidates during a fetch.
const MOST_UNKNOWN: usize = 10_000;
/// The member that says that an index names all entries, even if Redis evicted it before. No entry has this key.
pub(super) const WHOLE: &str = "\0";
/// Its scores: below those of entries, above those of stamps. While a tag's entries are sought, each search has its
/// own, which is no higher than the first.
pub(super) const SEEKING: f64 = -2.0;
pub(super) const SOUGHT: f64 = -1.0;
/// The time for which an entry stays under its tags after its value's end: the value's life begins later.
const SLACK: Duration = Duration::from_secs(60);
/// Entries, or keys, that Redis looks at in one step of a scan.
pub(super) const STEP: usize = 500;

static TAG: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/tag.lua")));
pub(super) static UNTAG: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/untag.lua")));
static STAMP_UNKNOWN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/stamp_unknown.lua")));
static READ_UNKNOWN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/read_unknown.lua")));
static MARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/mark.lua")));
static STAMP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/stamp.lua")));
static SWEEP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/sweep.lua")));

/// The last invalidation by a tag.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stamp {
    /// Its time.
    pub at: RedisTime,
    /// The action that it asked for.
    pub removal: Removal,
}

impl Stamp {
    fn read(score: &str) -> Option<Self> {
        let score = score.parse::<f64>().ok().filter(|score| *score < 0.0)?;
        #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
        let at = RedisTime::from_millis(-score.ceil() as i64);
        let removal = if score.fract() == 0.0 { Removal::Refresh } else { Removal::Evict };
        Some(Self { at, removal })
    }
}

/// An entry, and which of the sought tags it has; `None` where no metadata are left.
pub type WithTags = (EntryKey, Option<Vec<String>>);

/// A search for entries with tags.
#[derive(Debug)]
pub struct Seeking {
    /// Its score, which no other search has. It does not vouch for an index that was evicted meanwhile and that another
    /// search marked.
    mark: f64,
    /// The indexes that were there when it began.
    indexes: Vec<String>,
}

impl Store {
    /// Puts an entry, whose value may live for `life` from now on, under its tags; returns their stamps, in order.
    ///
    /// # Errors
    /// Redis's.
    pub async fn tag(&self, key: &EntryKey, tags: &[String], life: Duration) -> RedisResult<Vec<Option<Stamp>>> {
        let sets: Vec<String> = tags.iter().map(|tag| self.keys.tag(tag)).collect();
        let scores = self.put_into(&sets, key, life).await?;
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        // After that, so that an invalidation in between finds the entry there.
        let unknown: Vec<String> =
            READ_UNKNOWN.key(self.keys.stamps()).arg(tags).invoke_async(&mut self.redis.clone()).await?;
        let stamps = scores.iter().zip(&unknown).map(|(score, other)| {
            let both = [Stamp::read(score), Stamp::read(other)];
            both.into_iter().flatten().max_by_key(|stamp| stamp.at)
        });
        Ok(stamps.collect())
    }

    /// Returns the last invalidations by these tags, in order; `None` where none is known. It changes nothing.
    ///
    /// # Errors
    /// Redis's.
    pub async fn stamps(&self, tags: &[String]) -> RedisResult<Vec<Option<Stamp>>> {
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = redis::pipe();
        for tag in tags {
            ask.cmd("ZSCORE").arg(self.keys.tag(tag)).arg("");
            ask.cmd("ZSCORE").arg(self.keys.stamps()).arg(tag);
        }
        let scores: Vec<RedisResult<Option<f64>>> = ask.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let stamp = |score: &RedisResult<Option<f64>>| match score {
            Ok(score) => Ok(score.and_then(|score| Stamp::read(&score.to_string()))),
            Err(e) if is_of_keys(e) => Ok(None),
            Err(e) => Err(e.clone()),
        };
        let latest = |pair: &[RedisResult<Option<f64>>]| {
            let both = [stamp(&pair[0])?, stamp(&pair[1])?];
            Ok(both.into_iter().flatten().max_by_key(|stamp| stamp.at))
        };
        scores.chunks_exact(2).map(latest).collect()
    }

    /// Puts an entry into these sets for `life` from now on; returns the score of each one's stamp.
    pub(super) async fn put_into(&self, sets: &[String], key: &EntryKey, life: Duration) -> RedisResult<Vec<String>> {
        let scripts = sets.iter().map(async |set| {
            let mut call = TAG.key(set);
            call.arg(key.as_str()).arg(millis(life)).arg(DROPPED);
            call.invoke_async(&mut self.redis.clone()).await
        });
        futures_util::future::try_join_all(scripts).await
    }

    /// Puts an entry, whose value is to live for `life` from now on, under the tags that it came with. Marks it if an
    /// invalidation by one of them came meanwhile and did not find it there.
    ///
    /// # Errors
    /// Redis's.
    pub(super) async fn tag_again(&self, key: &EntryKey, life: Duration) -> RedisResult<()> {
        let Some(meta) = self.snapshot(key).await?.into_ours() else { return Ok(()) };
        if meta.last_attempt.tags.is_empty() {
            return Ok(());
        }
        let stamps = self.tag(key, &meta.last_attempt.tags, life + SLACK).await?;
        for stamp in stamps.into_iter().flatten().filter(|stamp| stamp.at >= meta.fetched_at) {
            self.fence(key, stamp).await?;
        }
        Ok(())
    }

    /// Takes an entry away from tags that it no longer has, unless it was put there anew, for later than `until`.
    ///
    /// # Errors
    /// Redis's; it then stays there until its value would have ended.
    pub async fn untag(&self, key: &EntryKey, tags: &[String], until: RedisTime) -> RedisResult<()> {
        for tag in tags {
            let mut call = UNTAG.key(self.keys.tag(tag));
            call.arg(key.as_str()).arg(until);
            let _: u8 = call.invoke_async(&mut self.redis.clone()).await?;
        }
        Ok(())
    }

    /// Stamps a tag with an invalidation of this time. Then read its entries.
    ///
    /// # Errors
    /// Redis's; stamping again does no harm.
    pub async fn stamp(&self, tag: &str, at: RedisTime, removal: Removal) -> RedisResult<()> {
        let mut call = STAMP.key(self.keys.tag(tag));
        call.arg(at).arg(removal.as_str());
        if call.invoke_async(&mut self.redis.clone()).await? {
            return Ok(());
        }
        let mut call = STAMP_UNKNOWN.key(self.keys.stamps());
        call.arg(tag).arg(at).arg(removal.as_str()).arg(MOST_UNKNOWN);
        call.invoke_async(&mut self.redis.clone()).await
    }

    /// Returns those of these tags whose index may lack entries: Redis evicts keys without a TTL, and no search has
    /// completed the index since. Ask after their entries were read: an index that names all now did so then. A tag
    /// whose key holds another type is not among them.
    ///
    /// # Errors
    /// Redis's.
    pub async fn may_lack<'a>(&self, tags: &[&'a str]) -> RedisResult<Vec<&'a str>> {
        let mut redis = self.redis.clone();
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        // Where Redis does not say, it may.
        let evicts = redis
            .info(&["stats", "memory"])
            .await?
            .is_none_or(|info| info.evicts_all_keys() && info.evicted_keys().is_some_and(|count| count > 0));
        if !evicts {
            return Ok(Vec::new());
        }
        let mut ask = redis::pipe();
        for tag in tags {
            ask.cmd("ZSCORE").arg(self.keys.tag(tag)).arg(WHOLE);
        }
        let marks: Vec<RedisResult<Option<f64>>> = ask.ignore_errors().query_async(&mut redis).await?;
        let mut lacking = Vec::new();
        for (tag, mark) in tags.iter().zip(marks) {
            match mark {
                Ok(mark) if mark == Some(SOUGHT) => {}
                Ok(_) => lacking.push(*tag),
                Err(e) if e.code() == Some("WRONGTYPE") => {}
                Err(e) => return Err(e),
            }
        }
        Ok(lacking)
    }

    /// Returns those of these entries whose value has some of these tags, and which, and puts them into the indexes
    /// again. Returns also entries without metadata, which may have any of the tags.
    ///
    /// # Errors
    /// Redis's.
    pub async fn with_tags(&self, tags: &HashSet<&str>, entries: Vec<EntryKey>) -> RedisResult<Vec<WithTags>> {
        let snapshots = self.snapshots(&entries).await?;
        let now = self.now().await?;
        let mut found = Vec::new();
        for (key, Snapshot { expiry, meta }) in entries.into_iter().zip(snapshots) {
            let Some(meta) = meta else {
                // A value without a TTL was never ours.
                found.extend(expiry.at().map(|_| (key, None)));
                continue;
            };
            let has: Vec<String> =
                meta.last_attempt.tags.into_iter().filter(|tag| tags.contains(tag.as_str())).collect();
            if !has.is_empty() {
                let life = expiry.at().map_or(Duration::ZERO, |at| at.saturating_since(now)) + SLACK;
                let sets: Vec<String> = has.iter().map(|tag| self.keys.tag(tag)).collect();
                self.put_into(&sets, &key, life).await?;
                found.push((key, Some(has)));
            }
        }
        Ok(found)
    }

    /// Begins a search for what has these tags. Call [`Self::sought`] when all was looked at.
    ///
    /// # Errors
    /// Redis's.
    pub async fn seek(&self, tags: &HashSet<&str>) -> RedisResult<Seeking> {
        let mark = SEEKING - f64::from(rand::random::<u32>());
        let marks = tags.iter().map(async |tag| {
            let index = self.keys.tag(tag);
            RedisResult::Ok(self.mark(&index, 0.0, mark).await?.then_some(index))
        });
        let indexes = futures_util::future::try_join_all(marks).await?;
        Ok(Seeking { mark, indexes: indexes.into_iter().flatten().collect() })
    }

    /// Notes that all values were looked at: an index that was there all the while names all entries. An index that was
    /// created meanwhile is sought once more with the next invalidation, since it may have been evicted and created
    /// anew.
    ///
    /// # Errors
    /// Redis's.
    pub async fn sought(&self, Seeking { mark, indexes }: Seeking) -> RedisResult<()> {
        let marks = indexes.iter().map(|index| self.mark(index, mark, SOUGHT));
        futures_util::future::try_join_all(marks).await.map(|_| ())
    }

    /// Marks an index; returns false where there is none, or its key holds another type.
    async fn mark(&self, index: &str, before: f64, mark: f64) -> RedisResult<bool> {
        let mut call = MARK.key(index);
        call.arg(before).arg(mark);
        match call.invoke_async(&mut self.redis.clone()).await {
            Err(e) if e.code() == Some("WRONGTYPE") => Ok(false),
            marked => marked,
        }
    }

    /// Returns the next cursor and some of a tag's entries; the cursor begins and ends with 0. An entry that is there
    /// from the first call to the last comes once or more.
    ///
    /// # Errors
    /// Redis's.
    pub async fn tagged(&self, tag: &str, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        self.members(&self.keys.tag(tag), cursor).await
    }

    /// Returns the next cursor and some of a set's entries.
    pub(super) async fn members(&self, set: &str, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        let (next, found): (u64, Vec<(String, f64)>) = redis::cmd("ZSCAN")
            .arg(set)
            .arg(cursor)
            .arg("COUNT")
            .arg(STEP)
            .query_async(&mut self.redis.clone())
            .await?;
        Ok((
            next,
            found
                .into_iter()
                .filter(|(key, _)| !key.is_empty() && key != WHOLE)
                .map(|(key, _)| EntryKey::new(key))
                .collect(),
        ))
    }

    /// Drops dead entries from all tags, and from the sets of dependants; returns how many.
    ///
    /// # Errors
    /// Redis's.
    pub async fn sweep_tags(&self) -> RedisResult<usize> {
        let mut dropped = 0;
        for glob in [self.keys.tag_glob(), self.keys.made_from_glob()] {
            let mut scan = Scan::new(glob);
            while let Some(sets) = scan.next(&mut self.redis.clone()).await? {
                for set in sets {
                    dropped += self.sweep_set(&set).await?;
                }
            }
        }
        Ok(dropped)
    }

    async fn sweep_set(&self, set: &str) -> RedisResult<usize> {
        let mut dropped = 0;
        loop {
            let mut call = SWEEP.key(set);
            call.arg(SWEPT).arg(millis(STAMPED));
            let count: usize = call.invoke_async(&mut self.redis.clone()).await?;
            dropped += count;
            if count < SWEPT {
                return Ok(dropped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back() {
        let stamp = |at, removal| Some(Stamp { at: RedisTime::from_millis(at), removal });
        assert_eq!(Stamp::read("-1732277200123"), stamp(1_732_277_200_123, Removal::Refresh));
        assert_eq!(Stamp::read("-1732277200123.5"), stamp(1_732_277_200_123, Removal::Evict));
        assert_eq!(Stamp::read("0"), None);
    }
}
