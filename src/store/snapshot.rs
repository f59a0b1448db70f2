//! Entries as they are now: their expiry and metadata, and their values.
//!
//! A value is Samovar's if it has the very expiry that its metadata note. Where its slot of a Cluster was moved, the
//! expiry is another one; then a value with the content that the metadata note is Samovar's, and is given its expiry
//! back.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};

use super::Store;
use super::meta::Meta;
use crate::entry::duration::millis;
use crate::entry::{EntryKey, Outcome, hash};
use crate::redis::{RedisTime, is_refusal};

/// The time for which our own read of a value is remembered, where Redis takes it for a read like any other.
pub(crate) const TOUCHED: Duration = Duration::from_secs(3_600);

/// By how much the expiry of a value may change as its slot is moved: the longest time that `MIGRATE` may take, and the
/// difference of two masters' clocks.
const MOVED: Duration = Duration::from_secs(60);

/// The values that are read at once to recognise them.
const RECOGNISED: usize = 32;

static RESTORE_EXPIRY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/restore_expiry.lua")));

/// When a value expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// There is no value.
    Absent,
    /// The value has no TTL.
    Never,
    /// The value expires at this time.
    At(RedisTime),
}

impl Expiry {
    /// Reads a reply of `PEXPIRETIME`.
    pub fn from_pexpiretime(reply: i64) -> Self {
        match reply {
            -2 => Self::Absent,
            -1 => Self::Never,
            at => Self::At(RedisTime::from_millis(at)),
        }
    }

    /// Returns the reply of `PEXPIRETIME`.
    pub(super) fn pexpiretime(self) -> i64 {
        match self {
            Self::Absent => -2,
            Self::Never => -1,
            Self::At(at) => at.as_millis(),
        }
    }

    /// Returns the time if there is one.
    pub fn at(self) -> Option<RedisTime> {
        match self {
            Self::Absent | Self::Never => None,
            Self::At(at) => Some(at),
        }
    }
}

/// An entry at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// When its value expires.
    pub expiry: Expiry,
    /// Its metadata. They may speak of a value that somebody else has replaced since: see [`Self::ours`].
    pub meta: Option<Meta>,
}

impl Snapshot {
    /// Returns true if there is a value.
    pub fn has_value(&self) -> bool {
        self.expiry != Expiry::Absent
    }

    /// Returns true if there is no value, and nothing is known but an invalidation: `invalidate.lua` calls such an
    /// entry blank.
    pub fn is_blank(&self) -> bool {
        !self.has_value() && self.meta.as_ref().is_none_or(Meta::is_blank)
    }

    /// Returns the metadata if the value is the one they speak of: we wrote it, and nobody else since.
    pub fn ours(&self) -> Option<&Meta> {
        self.meta
            .as_ref()
            .filter(|meta| meta.validated_at > RedisTime::ZERO && self.expiry == Expiry::At(meta.own_expiry))
    }

    /// Returns the expiry that a value was given, if it has another one, as after its slot was moved.
    fn given_expiry(&self) -> Option<RedisTime> {
        let meta = self.meta.as_ref().filter(|meta| meta.validated_at > RedisTime::ZERO)?;
        let is_near = |at: &RedisTime| *at != meta.own_expiry && at.abs_diff(meta.own_expiry) < MOVED;
        self.expiry.at().filter(is_near).map(|_| meta.own_expiry)
    }

    /// Returns true if there is a value that was invalidated less than `time` before `now`, is not fetched again yet,
    /// and whose fetch has not failed since.
    pub fn is_awaited(&self, time: Duration, now: RedisTime) -> bool {
        let Some(meta) = self.meta.as_ref().filter(|_| self.has_value()) else { return false };
        let Meta { invalidated: Some(invalidated), last_attempt, .. } = meta else { return false };
        let failed = last_attempt.outcome == Some(Outcome::Failed) && last_attempt.attempted >= *invalidated;
        !failed && now.abs_diff(*invalidated) < time
    }

    /// Returns the metadata of an entry that is gone, and whose requests are made from `requests`.
    pub fn gone(&self, requests: &str) -> Option<&Meta> {
        self.meta.as_ref().filter(|meta| !self.has_value() && meta.last_attempt.is_gone(requests))
    }

    /// Returns the reason why the upstream's last answer was refused, if the entry is absent since it was gone before.
    pub fn refusal(&self) -> Option<&str> {
        let meta = self.meta.as_ref().filter(|meta| !self.has_value() && meta.last_attempt.is_refused())?;
        meta.last_attempt.reason.as_deref()
    }

    /// Returns when the entry's present content became readable, or the entry was found to be gone.
    pub fn content_since(&self) -> Option<RedisTime> {
        match self.has_value() {
            true => self.ours().map(|meta| meta.content_since),
            false => self.meta.as_ref().filter(|meta| meta.last_attempt.outcome == Some(Outcome::Gone))?.gone_since(),
        }
    }

    /// Returns the metadata as [`Self::ours`] does.
    pub fn into_ours(self) -> Option<Meta> {
        self.ours().is_some().then_some(self.meta)?
    }
}

impl Store {
    /// Returns snapshots of many entries in one round trip, in order. Metadata that somebody overwrote with another
    /// type are none. Values of a Cluster whose slots were moved are recognised.
    ///
    /// # Errors
    /// Redis's.
    pub async fn snapshots(&self, entries: &[EntryKey]) -> RedisResult<Vec<Snapshot>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("PEXPIRETIME").arg(key.as_str());
            // Unlike `GET`, it gives no error for another type.
            pipe.cmd("MGET").arg(self.keys.meta(key));
        }
        let reply: Vec<redis::Value> = pipe.query_async(&mut self.redis.clone()).await?;
        let snapshots = reply.chunks_exact(2).map(|pair| {
            let expiry = Expiry::from_pexpiretime(redis::from_redis_value_ref(&pair[0])?);
            let (meta,) = redis::from_redis_value_ref::<(Option<String>,)>(&pair[1])?;
            Ok(Snapshot { expiry, meta: meta.as_deref().and_then(Meta::parse) })
        });
        let mut snapshots = snapshots.collect::<Result<Vec<_>, redis::ParsingError>>()?;
        if self.redis.is_cluster() {
            self.recognise(entries, &mut snapshots).await?;
        }
        Ok(snapshots)
    }

    /// Gives values of a Cluster whose slots were moved their expiry back, before scripts look at them. An error loses
    /// only that.
    pub async fn recognise_moved(&self, entries: &[EntryKey]) {
        if self.redis.is_cluster() {
            let _: RedisResult<Vec<Snapshot>> = self.snapshots(entries).await;
        }
    }

    /// Gives values whose slots were moved their expiry back, as far as they are Samovar's.
    async fn recognise(&self, entries: &[EntryKey], snapshots: &mut [Snapshot]) -> RedisResult<()> {
        let moved = entries.iter().zip(snapshots).filter_map(|(key, found)| Some((key, found.given_expiry()?, found)));
        let mut moved: Vec<_> = moved.collect();
        for batch in moved.chunks_mut(RECOGNISED) {
            let keys: Vec<EntryKey> = batch.iter().map(|(key, ..)| (*key).clone()).collect();
            for ((key, given, found), value) in batch.iter_mut().zip(self.values(&keys).await?) {
                let noted = found.meta.as_ref().map(|meta| &meta.hash);
                if value.is_none_or(|value| noted != Some(&hash(&value))) {
                    continue;
                }
                let mut call = RESTORE_EXPIRY.key(key.as_str());
                call.arg(found.expiry.pexpiretime()).arg(*given);
                let is_restored = match call.invoke_async::<bool>(&mut self.redis.clone()).await {
                    // A user who may only read recognises it all the same.
                    Err(e) if is_refusal(&e) => true,
                    is_restored => is_restored?,
                };
                if is_restored {
                    found.expiry = Expiry::At(*given);
                }
            }
        }
        Ok(())
    }

    /// Returns for each of these entries whether it has neither a value nor a lease, in order.
    ///
    /// # Errors
    /// Redis's.
    pub async fn absent(&self, entries: &[EntryKey]) -> RedisResult<Vec<bool>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("EXISTS").arg(key.as_str()).arg(self.keys.lease(key));
        }
        let found: Vec<u8> = pipe.query_async(&mut self.redis.clone()).await?;
        Ok(found.into_iter().map(|found| found == 0).collect())
    }

    /// Returns a snapshot of one entry.
    ///
    /// # Errors
    /// Redis's.
    pub async fn snapshot(&self, key: &EntryKey) -> RedisResult<Snapshot> {
        let found = self.snapshots(std::slice::from_ref(key)).await?.pop();
        Ok(found.unwrap_or(Snapshot { expiry: Expiry::Absent, meta: None }))
    }

    /// Returns the values of entries, in order; `None` where there is no value, or the key holds no string. Bytes that
    /// are no UTF-8 are replaced.
    ///
    /// # Errors
    /// Redis's.
    pub async fn values(&self, entries: &[EntryKey]) -> RedisResult<Vec<Option<String>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        // For these reads alone: metadata and limits must not become the coldest keys that Redis knows.
        pipe.cmd("CLIENT").arg("NO-TOUCH").arg("ON");
        for key in entries {
            pipe.cmd("GET").arg(key.as_str());
        }
        pipe.cmd("CLIENT").arg("NO-TOUCH").arg("OFF");
        // Of two kinds: CLIENT answers with a status, which is no value.
        let mut replies: Vec<RedisResult<redis::Value>> =
            pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        replies.pop();
        if replies.remove(0).is_err() {
            self.touched(entries).await;
        }
        replies
            .into_iter()
            .map(|reply| match reply {
                Ok(reply) => {
                    let bytes: Option<Vec<u8>> = redis::from_redis_value(reply)?;
                    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
                }
                Err(e) if e.code() == Some("WRONGTYPE") => Ok(None),
                Err(e) => Err(e),
            })
            .collect()
    }

    /// Returns the types of keys that hold something else than a string, in order.
    ///
    /// # Errors
    /// Redis's.
    pub async fn other_types(&self, entries: &[EntryKey]) -> RedisResult<Vec<Option<String>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("TYPE").arg(key.as_str());
        }
        let types: Vec<String> = pipe.query_async(&mut self.redis.clone()).await?;
        Ok(types.into_iter().map(|found| (found != "string" && found != "none").then_some(found)).collect())
    }

    /// Remembers that we read these values: a Redis before 7.2 takes that for a read by the API. An error loses only
    /// that.
    async fn touched(&self, entries: &[EntryKey]) {
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("SET").arg(self.keys.touched(key)).arg("").arg("PX").arg(millis(TOUCHED)).ignore();
        }
        let _: RedisResult<()> = pipe.exec_async(&mut self.redis.clone()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_ours_only_with_the_expiry_that_we_gave_it() {
        let meta = |packed: &str| Meta::parse(packed);
        let ours = |reply, packed| {
            Snapshot { expiry: Expiry::from_pexpiretime(reply), meta: meta(packed) }.into_ours().is_some()
        };
        assert!(ours(1_732_277_200_123, "1732270000123 1732277200123 0 0 abc {broken"));
        assert!(!ours(1_732_277_200_124, "1732270000123 1732277200123 0 0 abc {}"), "another expiry");
        assert!(!ours(-2, "1732270000123 0 0 0 - {}"), "no value");
        assert!(!ours(-1, "1732270000123 0 0 0 - {}"), "no TTL");
        assert!(!ours(17, "0 17 0 0 - {}"), "we fetched none");
        for reply in [-2, -1, 0, 17] {
            assert_eq!(Expiry::from_pexpiretime(reply).pexpiretime(), reply);
        }
    }
}
