//! Tags: which entries are invalidated together.
//!
//! A tag is a sorted set of entries beside a stamp, the time of its last invalidation. An invalidation stamps first and
//! then reads the entries; a fetch puts its entry under the tag first and then looks at the stamp. So whichever comes
//! second sees the other. Tags have no TTL, since a policy such as `volatile-lru` would evict them; what has died is
//! dropped when the tag is used, and swept from time to time. Anybody may invalidate any tag: the stamps of those that
//! no entry has are kept together, and only so many of them. Under an `allkeys-*` policy Redis may evict an index all
//! the same, and one that begins anew names only what was put there since: there an index counts for whole only once
//! all values were looked at for the tag.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::{Removal, Store, millis};
use crate::job::EntryKey;
use crate::redis::field;

/// Dead entries dropped when an entry is put under a tag.
const DROPPED: usize = 100;
/// Dead entries dropped in one step of a sweep.
const SWEPT: usize = 1_000;
/// How long a stamp is kept: no fetch takes as long.
const STAMPED: Duration = Duration::from_secs(24 * 3_600);
/// Tags that no entry has whose stamps are kept one by one: within a fetch, no fleet handles as many invalidations by
/// tags.
const STRAYING: usize = 10_000;
/// The member that says of an index that it names all that is there, whatever Redis evicted before. No entry's key is that.
pub(super) const WHOLE: &str = "\0";
/// Its scores: below those of entries, above those of stamps.
pub(super) const SEEKING: f64 = -2.0;
pub(super) const SOUGHT: f64 = -1.0;
/// By how much longer an entry stays under its tags than its value was to live from then on: the value's time begins later.
const SLACK: Duration = Duration::from_secs(60);
/// Entries, or keys, that Redis looks at in one step of a scan.
pub(super) const STEP: usize = 500;

static TAG: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/tag.lua")));
pub(super) static UNTAG: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/untag.lua")));
static STRAY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/stray.lua")));
static STRAYS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/strays.lua")));
static STAMP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/stamp.lua")));
static SWEEP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/sweep.lua")));

/// The last invalidation by a tag.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stamp {
    /// Its time (Redis time, ms).
    pub at: i64,
    /// What it asked for.
    pub removal: Removal,
}

impl Stamp {
    fn read(score: &str) -> Option<Self> {
        let score = score.parse::<f64>().ok().filter(|score| *score < 0.0)?;
        #[expect(clippy::cast_possible_truncation, reason = "a time in ms")]
        let at = -score.ceil() as i64;
        let removal = if score.fract() == 0.0 { Removal::Refresh } else { Removal::Evict };
        Some(Self { at, removal })
    }
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
        let strays: Vec<String> =
            STRAYS.key(self.keys.stamps()).arg(tags).invoke_async(&mut self.redis.clone()).await?;
        let stamps = scores.iter().zip(&strays).map(|(score, stray)| {
            let both = [Stamp::read(score), Stamp::read(stray)];
            both.into_iter().flatten().max_by_key(|stamp| stamp.at)
        });
        Ok(stamps.collect())
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

    /// Puts an entry, whose value is to live for `life` from now on, under the tags that it came with, and marks it where an
    /// invalidation by one of them came meanwhile that did not find it there any more.
    ///
    /// # Errors
    /// Redis's.
    pub(super) async fn tag_again(&self, key: &EntryKey, life: Duration) -> RedisResult<()> {
        let Some((expires, Some(meta))) = self.look(std::slice::from_ref(key)).await?.pop() else { return Ok(()) };
        if !meta.is_of(expires) || meta.note.tags.is_empty() {
            return Ok(());
        }
        let stamps = self.tag(key, &meta.note.tags, life + SLACK).await?;
        for stamp in stamps.into_iter().flatten().filter(|stamp| stamp.at >= meta.asked) {
            self.fence(key, stamp).await?;
        }
        Ok(())
    }

    /// Takes an entry away from tags that it no longer has, unless it was put there anew, for later than `until` (Redis time, ms).
    ///
    /// # Errors
    /// Redis's; it then stays there until its value would have ended.
    pub async fn untag(&self, key: &EntryKey, tags: &[String], until: i64) -> RedisResult<()> {
        for tag in tags {
            let mut call = UNTAG.key(self.keys.tag(tag));
            call.arg(key.as_str()).arg(until);
            let _: u8 = call.invoke_async(&mut self.redis.clone()).await?;
        }
        Ok(())
    }

    /// Stamps a tag with an invalidation of this time (Redis time, ms). Then read its entries.
    ///
    /// # Errors
    /// Redis's; stamping again does no harm.
    pub async fn stamp(&self, tag: &str, at: i64, removal: Removal) -> RedisResult<()> {
        let mut call = STAMP.key(self.keys.tag(tag));
        call.arg(at).arg(removal.as_str());
        if call.invoke_async(&mut self.redis.clone()).await? {
            return Ok(());
        }
        let mut call = STRAY.key(self.keys.stamps());
        call.arg(tag).arg(at).arg(removal.as_str()).arg(STRAYING);
        call.invoke_async(&mut self.redis.clone()).await
    }

    /// Whether the index of a tag may lack entries, because Redis evicted it before: it evicts whatever it likes, and since it
    /// began to, nobody has seen to it that the index names all.
    ///
    /// # Errors
    /// Redis's.
    pub async fn may_lack(&self, tag: &str) -> RedisResult<bool> {
        let mut redis = self.redis.clone();
        let whole: Option<f64> =
            redis::cmd("ZSCORE").arg(self.keys.tag(tag)).arg(WHOLE).query_async(&mut redis).await?;
        // Where Redis does not say, it may.
        let evicts = redis.info(&["stats", "memory"]).await?.is_none_or(|info| {
            field(&info, "maxmemory_policy").is_some_and(|policy| policy.starts_with("allkeys"))
                && field(&info, "evicted_keys").is_some_and(|count| count != "0")
        });
        Ok(evicts && whole != Some(SOUGHT))
    }

    /// Of these entries, those whose present value has a tag, or may have it, since nothing is known of it any more; the index
    /// names the former again.
    ///
    /// # Errors
    /// Redis's.
    pub async fn with_tag(&self, tag: &str, entries: Vec<EntryKey>) -> RedisResult<Vec<EntryKey>> {
        let looked = self.look(&entries).await?;
        let now = self.now().await?;
        let mut found = Vec::new();
        for (key, (expires, meta)) in entries.into_iter().zip(looked) {
            let has = meta.as_ref().is_some_and(|meta| meta.note.tags.iter().any(|other| other == tag));
            if has {
                let life = Duration::from_millis(u64::try_from(expires - now).unwrap_or(0)) + SLACK;
                self.put_into(&[self.keys.tag(tag)], &key, life).await?;
            }
            // A value without a TTL was never ours.
            if has || (meta.is_none() && expires > 0) {
                found.push(key);
            }
        }
        Ok(found)
    }

    /// Notes that what has a tag is sought from now on, or has been: then the index names all that is there, unless Redis evicted
    /// it meanwhile, and that note with it.
    ///
    /// # Errors
    /// Redis's.
    pub async fn sought(&self, tag: &str, to_its_end: bool) -> RedisResult<()> {
        let mut note = redis::cmd("ZADD");
        note.arg(self.keys.tag(tag));
        if to_its_end {
            note.arg("XX").arg(SOUGHT);
        } else {
            note.arg(SEEKING);
        }
        note.arg(WHOLE).exec_async(&mut self.redis.clone()).await
    }

    /// Some of a tag's entries, and the cursor for more; it begins and ends with 0. Whatever is there from the first call to
    /// the last comes, once or more.
    ///
    /// # Errors
    /// Redis's.
    pub async fn tagged(&self, tag: &str, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        self.members(&self.keys.tag(tag), cursor).await
    }

    /// Some of a set's entries, and the cursor for more.
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

    /// Drops from all tags, and from what is remembered to be made from entries, what has died; returns how many entries that
    /// were.
    ///
    /// # Errors
    /// Redis's.
    pub async fn sweep_tags(&self) -> RedisResult<usize> {
        let mut dropped = 0;
        for glob in [self.keys.tag_glob(), self.keys.made_from_glob()] {
            let mut cursor = 0_u64;
            loop {
                let (next, sets): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                    .arg(cursor)
                    .arg("MATCH")
                    .arg(&glob)
                    .arg("COUNT")
                    .arg(STEP)
                    .query_async(&mut self.redis.clone())
                    .await?;
                for set in sets {
                    dropped += self.sweep_set(&set).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(dropped)
    }

    async fn sweep_set(&self, set: &[u8]) -> RedisResult<usize> {
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
        let stamp = |at, removal| Some(Stamp { at, removal });
        assert_eq!(Stamp::read("-1732277200123"), stamp(1_732_277_200_123, Removal::Refresh));
        assert_eq!(Stamp::read("-1732277200123.5"), stamp(1_732_277_200_123, Removal::Evict));
        assert_eq!(Stamp::read("0"), None);
    }
}
