//! Access information of one entry in Redis: whether it was read, and whether it is still wanted.
//!
//! `OBJECT IDLETIME` tells the last access to a second, under all policies except LFU. It is compared with Samovar's
//! own last access, so that its writes and reads do not count as reads. It misses three things: reads while Redis
//! saves, when access times are not updated; reads before Samovar's own last access; and reads of integers from 0 to
//! 9,999, which Redis may share among keys. `OBJECT FREQ`, under LFU policies, is a logarithmic count that decreases by
//! one a minute.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, RedisResult, Value};

use super::decay::{count, expected, half_life};
use super::{FeedState, Popularity, buckets, counted, millis};
use crate::entry::{EntryKey, JobName};
use crate::job::Job;
use crate::protocol::Keys;
use crate::redis::RedisTime;
use crate::store::{Expiry, Meta, Snapshot, TOUCHED};

/// The longest lag of the server's access clock behind `TIME`: it is updated ten times a second.
const LAG: Duration = Duration::from_millis(150);
/// The reference count of a shared object.
const SHARED: i64 = 2_147_483_647;
/// The longest time from a fetch's start to its commit. If the metadata shows more, the TTL has changed since.
const COMMITS: Duration = Duration::from_secs(600);
/// The assumed time from a fetch's start to its commit if the metadata does not tell.
const COMMITS_SOON: Duration = Duration::from_secs(2);
/// The expected reads in the next TTL that justify a refresh. Below that, readers who fetch on a miss make fewer
/// fetches. On Zipf traces the number of calls then stays below plain cache-aside, with more hits
/// (`benches/freshness.rs`).
const OFTEN: f64 = 4.0;
/// If there was a read in this last part of a TTL, or in the last two seconds, [`SOME`] is enough: the rate may be
/// rising, and a count needs time to grow. The read itself says nothing about the next.
const JUST_NOW: u64 = 20;
const SOME: f64 = 2.0;
/// The count of a read two half-lives ago.
const LATELY: f64 = 0.25;
/// A sample detects at most one read in this time.
const GRAIN: Duration = Duration::from_secs(1);
/// `OBJECT FREQ` of a new key.
pub(super) const NEW: u32 = 5;

/// The access information of an entry's value.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// Redis's clock.
    pub(super) now: RedisTime,
    /// `OBJECT IDLETIME`, in seconds; `None` under LFU policies and without a value.
    idle: Option<i64>,
    /// `OBJECT FREQ`; `None` under other policies and without a value.
    pub(super) frequency: Option<u32>,
    /// The value's expiry and metadata.
    pub(super) snapshot: Snapshot,
    /// When Samovar last read it, if that counts as an access.
    touched: Option<RedisTime>,
}

impl Access {
    /// Commands for one entry.
    pub(super) const COMMANDS: usize = 4;

    /// Adds the commands for one entry; [`Access::read`] reads the replies. None of them counts as an access. None
    /// causes a miss event if there is a value.
    pub(super) fn ask(pipe: &mut Pipeline, keys: &Keys, key: &EntryKey, lfu: bool) {
        pipe.cmd("OBJECT").arg(if lfu { "FREQ" } else { "IDLETIME" }).arg(key.as_str());
        pipe.cmd("PEXPIRETIME").arg(key.as_str());
        // Not `GET`, which APIs use to read: see [`super::Sampler`].
        pipe.cmd("GETRANGE").arg(keys.meta(key)).arg(0).arg(-1);
        pipe.cmd("PEXPIRETIME").arg(keys.touched(key));
    }

    /// Reads the replies to [`Access::ask`].
    pub(super) fn read(now: RedisTime, lfu: bool, replies: &[RedisResult<Value>]) -> Option<Self> {
        let [object, expires, meta, touched] = replies else { return None };
        // An error here means that the policy changed since it was read.
        let object: Option<i64> = reply(object).flatten();
        Some(Self {
            now,
            idle: object.filter(|_| !lfu),
            frequency: object.filter(|_| lfu).and_then(|frequency| u32::try_from(frequency).ok()),
            snapshot: Snapshot {
                expiry: Expiry::from_pexpiretime(reply(expires)?),
                meta: reply::<Option<String>>(meta)?.as_deref().and_then(Meta::parse),
            },
            touched: reply::<RedisTime>(touched).filter(|at| *at > RedisTime::ZERO).map(|at| at - TOUCHED),
        })
    }

    /// Returns the second of the last access by any client; at most one second too early, never too late.
    pub(super) fn touched_in(&self) -> Option<i64> {
        Some(second(self.now) - self.idle?)
    }

    /// Returns `true` if Samovar wrote the value.
    pub(super) fn is_ours(&self) -> bool {
        self.snapshot.ours().is_some()
    }

    /// Returns when Samovar wrote or extended the value, if it did.
    pub(super) fn written(&self, ttl: Duration) -> Option<RedisTime> {
        let meta = self.snapshot.ours()?;
        let committed = meta.own_expiry - meta.stale_for - ttl;
        let plausible = (meta.validated_at..=meta.validated_at + COMMITS).contains(&committed);
        Some(if plausible { committed } else { meta.validated_at + COMMITS_SOON })
    }

    /// Returns whether the last access was by another client, as far as idle times tell.
    pub(super) fn read_by_others(&self, ttl: Duration) -> Option<bool> {
        let last = self.touched_in()?;
        let later = |own: Option<RedisTime>| own.is_none_or(|own| last > own.as_millis().div_euclid(1_000));
        Some(later(self.written(ttl)) && later(self.touched))
    }

    /// Returns `true` if Samovar wrote or read the value at or after `since`, so that its own accesses are included.
    pub(super) fn is_touched_by_us(&self, ttl: Duration, since: RedisTime) -> bool {
        self.written(ttl).max(self.touched).is_some_and(|touched| touched >= since)
    }

    /// Returns `true` if a read by Samovar hides earlier accesses.
    fn is_hidden(&self, ttl: Duration) -> bool {
        self.touched.is_some_and(|touched| self.written(ttl).is_none_or(|written| touched > written))
    }
}

/// Returns the second that the server's access clock has certainly reached at a time.
pub(super) fn second(at: RedisTime) -> i64 {
    (at - LAG).as_millis().div_euclid(1_000)
}

/// Returns the threshold for [`OFTEN`] on the decayed count, given how many reads of a TTL can be detected: a sample
/// detects one of many.
fn threshold(seen: f64) -> f64 {
    seen * (1.0 - (-OFTEN / seen).exp())
}

/// Returns a reply, if it is not an error.
pub(super) fn reply<T: FromRedisValue>(reply: &RedisResult<Value>) -> Option<T> {
    reply.as_ref().ok().and_then(|value| redis::from_redis_value_ref(value).ok())
}

/// Returns `true` if keys share the object, so that a read cannot be attributed to one of them.
pub(super) fn is_shared(refcount: &RedisResult<Value>) -> bool {
    reply::<Option<i64>>(refcount).flatten() == Some(SHARED)
}

impl Popularity {
    /// Returns whether to refresh an entry that is about to expire and that its job does not list. It is refreshed if
    /// the feed names it or Redis lost what it names, if it is one of the most read that the job keeps, or if it was
    /// read since its value was written, either often recently, or sometimes and just now. Where Redis cannot tell, the
    /// decayed count decides alone.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn wanted(&self, job: &Job, key: &EntryKey) -> RedisResult<bool> {
        const BEFORE: usize = 8;
        let lfu = self.lfu.load(Ordering::Relaxed);
        let (popular, sample) = (self.keys.popular(&job.name), self.keys.sample(&job.name));
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        // Empty if the job no longer has a feed.
        let bucket = job.entries.feed.as_ref().map_or_else(String::new, |_| buckets::bucket(key));
        pipe.cmd("HGET").arg(self.keys.feed(&job.name)).arg(bucket);
        pipe.cmd("EXISTS").arg(self.keys.feed(&job.name));
        FeedState::ask(&mut pipe, &self.keys, &job.name);
        pipe.cmd("ZREVRANK").arg(&popular).arg(key.as_str());
        pipe.cmd("ZSCORE").arg(&popular).arg(key.as_str());
        pipe.cmd("ZREVRANGE").arg(&popular).arg(counted(job) - 1).arg(counted(job) - 1).arg("WITHSCORES");
        pipe.cmd("HMGET").arg(&sample).arg(&["at", "passed", "half", "reported", "every", "last"]);
        Access::ask(&mut pipe, &self.keys, key, lfu);
        pipe.cmd("OBJECT").arg("REFCOUNT").arg(key.as_str());
        let replies: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let [time, fed, has_feed, state, rank, score, least, clock, rest @ ..] = replies.as_slice() else {
            return Ok(true);
        };
        debug_assert_eq!(replies.len(), BEFORE + Access::COMMANDS + 1);
        let Some((access, shared)) = rest.split_at_checked(Access::COMMANDS) else { return Ok(true) };
        let Some(now) = reply::<RedisTime>(time) else { return Ok(true) };
        if reply::<Option<Vec<u8>>>(fed).flatten().is_some_and(|bucket| buckets::names(&bucket, key))
            || reply::<Option<usize>>(rank).flatten().is_some_and(|rank| rank < job.entries.popular)
        {
            return Ok(true);
        }
        let names_some = || FeedState::told(reply::<Option<Vec<u8>>>(state).flatten().as_deref()).entries > 0;
        if job.entries.feed.is_some() && reply::<bool>(has_feed) != Some(true) && names_some() {
            // Redis lost what the feed names; the next warmup asks it.
            return Ok(true);
        }
        let Some(access) = Access::read(now, lfu, access) else { return Ok(true) };
        if access.snapshot.expiry == Expiry::Never {
            // A value without a TTL does not expire, and is not Samovar's.
            return Ok(false);
        }
        let clock: Vec<Option<f64>> = reply(clock).unwrap_or_default();
        let field = |n: usize| clock.get(n).copied().flatten();
        #[expect(clippy::cast_precision_loss, reason = "times are below 2^45")]
        let (now_ms, ttl) = (now.as_millis() as f64, millis(job.ttl) as f64);
        let passed = field(0).zip(field(1)).zip(field(2)).map(|((at, passed), half)| passed + (now_ms - at) / half);
        let counts = |score: Option<f64>| score.zip(passed).map_or(0.0, |(score, passed)| count(score, passed));
        let count = counts(reply::<Option<f64>>(score).flatten());
        let reported = field(3).is_some_and(|at| at + ttl > now_ms);
        let seen = (ttl / field(4).unwrap_or(1.0)).min(job.ttl.as_secs_f64() / GRAIN.as_secs_f64()).max(0.1);
        let reads = expected(count, job.ttl, half_life(job));
        let often = reads >= threshold(seen);
        if !access.snapshot.has_value() {
            return Ok(often);
        }
        if let Some(frequency) = access.frequency {
            return Ok(often && frequency > 0);
        }
        // If samples are rare, few detect reads, and very few say nothing. A count says nothing either if recently read
        // entries are not counted for lack of room.
        let sampled = field(5).is_some_and(|last| now_ms - last < ttl / 3.0);
        let full = counts(reply::<Vec<(String, f64)>>(least).and_then(|least| Some(least.first()?.1))) > LATELY;
        let some = !sampled || full || reads >= SOME.min(seen / 9.0);
        let just_now =
            some && access.idle.is_some_and(|idle| idle.unsigned_abs() <= (job.ttl.as_secs() / JUST_NOW).max(1));
        if !access.is_ours() {
            // The read that caused the write says nothing about the next.
            return Ok(often || (just_now && count >= 1.0));
        }
        let shared = shared.first().is_some_and(is_shared);
        let blind = shared || access.is_hidden(job.ttl) || (reported && often);
        match access.read_by_others(job.ttl) {
            Some(true) if !shared => Ok(often || just_now),
            Some(false) if !blind => self.was_saving(now, access.written(job.ttl).unwrap_or(now)).await,
            _ => Ok(often),
        }
    }

    /// Returns for each of at most a few hundred entries of a job whether the job keeps it warm, besides those that its
    /// file lists: the feed named it last, or it is one of the most read that the job keeps.
    ///
    /// # Errors
    /// Fails if Redis returns an error; a key of another type counts as empty.
    pub async fn keeps_warm(&self, job: &Job, entries: &[EntryKey]) -> RedisResult<Vec<bool>> {
        self.keeps_warm_of(&job.name, job.entries.feed.is_some(), job.entries.popular, entries).await
    }

    /// Returns the same of a job by its name, by whether it has a feed, and by how many of the most read it keeps.
    ///
    /// # Errors
    /// Fails if Redis returns an error; a key of another type counts as empty.
    pub async fn keeps_warm_of(
        &self,
        job: &JobName,
        has_feed: bool,
        most: usize,
        entries: &[EntryKey],
    ) -> RedisResult<Vec<bool>> {
        if entries.is_empty() || !has_feed && most == 0 {
            return Ok(vec![false; entries.len()]);
        }
        let mut pipe = redis::pipe();
        for key in entries {
            // Empty if the job no longer has a feed.
            let bucket = if has_feed { buckets::bucket(key) } else { String::new() };
            pipe.cmd("HGET").arg(self.keys.feed(job)).arg(bucket);
            pipe.cmd("ZREVRANK").arg(self.keys.popular(job)).arg(key.as_str());
        }
        let replies: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let is_kept = |(key, replies): (&EntryKey, &[RedisResult<Value>])| {
            reply::<Option<Vec<u8>>>(&replies[0]).flatten().is_some_and(|bucket| buckets::names(&bucket, key))
                || reply::<Option<usize>>(&replies[1]).flatten().is_some_and(|rank| rank < most)
        };
        Ok(entries.iter().zip(replies.chunks_exact(2)).map(is_kept).collect())
    }

    /// Returns `true` if Redis saved for more than half of the time since `since`, so that reads were not recorded.
    async fn was_saving(&self, now: RedisTime, since: RedisTime) -> RedisResult<bool> {
        let Some(info) = self.redis.clone().info(&["persistence"]).await? else { return Ok(false) };
        let age = millis(now.saturating_since(since));
        let long = |seconds: i64| seconds >= 0 && seconds * 2_000 + 1_000 >= age;
        let (saved_at, took) = info.last_save();
        Ok(info.running_saves().into_iter().any(long)
            || (RedisTime::from_millis(saved_at * 1_000) >= since && long(took)))
    }
}
