//! Values that services loaded: an invalidation by a tag cannot tell whether they have it, so it concerns them all.
//!
//! The cache library knows no job files. It tracks its loads in a sorted set for each first part of a key, once that
//! set is there. The first invalidation by a tag that may concern such keys creates the set, and puts earlier loads
//! there. A load takes its lease, is tracked, and only then calls its loader: an invalidation that does not find it
//! came before. Where Redis evicts the set, the next invalidation begins anew.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::RedisResult;

use super::Store;
use super::lease::{Mark, Record};
use super::snapshot::{Expiry, Snapshot};
use super::tags::{SEEKING, SOUGHT, STEP, UNTAG, WHOLE};
use crate::entry::EntryKey;
use crate::redis::RedisTime;

/// The time for which a load that was found under way is tracked.
const UNKNOWN_LIFE: Duration = Duration::from_secs(24 * 3_600);

impl Store {
    /// Returns the sets that track loads of keys that match these globs.
    pub fn loaded_sets<'a>(&self, globs: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
        globs.into_iter().map(|glob| self.keys.loaded_like(glob)).collect()
    }

    /// Returns true if such a set names all that was loaded before.
    ///
    /// # Errors
    /// Redis's.
    pub async fn tracks(&self, set: &str) -> RedisResult<bool> {
        let mut ask = redis::cmd("ZSCORE");
        let whole: Option<f64> = ask.arg(set).arg(WHOLE).query_async(&mut self.redis.clone()).await?;
        Ok(whole == Some(SOUGHT))
    }

    /// Has services tracked from now on, or notes that all earlier loads were found (`to_its_end`).
    ///
    /// # Errors
    /// Redis's.
    pub async fn track(&self, set: &str, to_its_end: bool) -> RedisResult<()> {
        let mut note = redis::cmd("ZADD");
        note.arg(set);
        if to_its_end {
            note.arg("XX").arg(SOUGHT);
        } else {
            note.arg(SEEKING);
        }
        note.arg(WHOLE).exec_async(&mut self.redis.clone()).await
    }

    /// Puts those of these entries into such a set that a service loads now, or that hold a foreign value with a TTL.
    ///
    /// # Errors
    /// Redis's.
    pub async fn track_all(&self, set: &str, entries: Vec<EntryKey>) -> RedisResult<()> {
        let now = self.now().await?;
        for (key, found) in self.looked_for_loads(entries).await? {
            let until = match found {
                Found::Loading => now + UNKNOWN_LIFE,
                Found::Theirs(Expiry::At(until)) => until,
                Found::Theirs(_) | Found::Nothing => continue,
            };
            self.put_loaded(set, &key, until, now).await?;
        }
        Ok(())
    }

    /// Returns the next cursor and some of the loaded values that nobody has replaced; the cursor begins and ends with
    /// 0. Entries that are Samovar's by now, or gone, leave the set.
    ///
    /// # Errors
    /// Redis's.
    pub async fn loaded(&self, set: &str, cursor: u64) -> RedisResult<(u64, Vec<EntryKey>)> {
        let mut scan = redis::cmd("ZSCAN");
        scan.arg(set).arg(cursor).arg("COUNT").arg(STEP);
        let (next, members): (u64, Vec<(String, f64)>) = scan.query_async(&mut self.redis.clone()).await?;
        #[expect(clippy::cast_possible_truncation, reason = "times in ms")]
        let until = |key: &EntryKey| {
            let score = members.iter().find(|(member, _)| member == key.as_str()).map_or(0.0, |(_, score)| *score);
            RedisTime::from_millis(score.ceil() as i64)
        };
        let keys =
            members.iter().filter(|(member, _)| member != WHOLE).map(|(member, _)| EntryKey::new(member.as_str()));
        let mut loaded = Vec::new();
        let mut idle = Vec::new();
        for (key, found) in self.looked_for_loads(keys.collect()).await? {
            if found == Found::Nothing {
                idle.push(key);
            } else {
                loaded.push(key);
            }
        }
        for key in &idle {
            let mut call = UNTAG.key(set);
            call.arg(key.as_str()).arg(until(key));
            let _: u8 = call.invoke_async(&mut self.redis.clone()).await?;
        }
        // A load that was tracked meanwhile may have found its key there still, and left with it.
        let now = self.now().await?;
        for (key, found) in self.looked_for_loads(idle).await? {
            if found != Found::Nothing {
                self.put_loaded(set, &key, until(&key), now).await?;
                loaded.push(key);
            }
        }
        Ok((next, loaded))
    }

    async fn put_loaded(&self, set: &str, key: &EntryKey, until: RedisTime, now: RedisTime) -> RedisResult<()> {
        self.put_into(&[set.to_owned()], key, until.saturating_since(now)).await.map(|_| ())
    }

    async fn looked_for_loads(&self, entries: Vec<EntryKey>) -> RedisResult<Vec<(EntryKey, Found)>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in &entries {
            // Unlike `GET`, it says nothing against another type.
            pipe.cmd("MGET").arg(self.keys.lease(key));
        }
        // Leases first: what a load has written by then is seen as a value.
        let leases: Vec<(Option<String>,)> = pipe.query_async(&mut self.redis.clone()).await?;
        let snapshots = self.snapshots(&entries).await?;
        let found = |lease: Option<String>, snapshot: &Snapshot| {
            if lease.is_some_and(|lease| Record::parse(&lease).is_some_and(|record| record.mark == Mark::Load)) {
                Found::Loading
            } else if snapshot.has_value() && snapshot.ours().is_none() {
                Found::Theirs(snapshot.expiry)
            } else {
                Found::Nothing
            }
        };
        let known = leases.into_iter().zip(&snapshots).map(|((lease,), snapshot)| found(lease, snapshot));
        Ok(entries.into_iter().zip(known).collect())
    }
}

/// The state of an entry that a service may have loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A service loads it now.
    Loading,
    /// A value that is not ours, which expires then.
    Theirs(Expiry),
    /// No value, or one of ours.
    Nothing,
}
