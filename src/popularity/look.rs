//! What Redis tells of one entry: whether it was read, and whether somebody still wants it.
//!
//! `OBJECT IDLETIME` knows the last touch to a second, under all policies but LFU. It is compared with our own last touch, so
//! that neither our writes nor our reads of inputs pass for reads. Three things it does not know: reads while Redis
//! saves (touches are not noted then), reads before a touch of our own, and anything of an integer from 0 to 9,999 where Redis shares
//! those among keys. `OBJECT FREQ`, under LFU policies, is a logarithmic count that fades by one a minute.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, RedisResult, Value};

use super::decay::{count, expected, half_life};
use super::{Popularity, counted, feed, millis};
use crate::entry::EntryKey;
use crate::job::Job;
use crate::protocol::Keys;
use crate::store::{Expiry, Meta, Snapshot, TOUCHED};

/// The server's clock of touches lags behind its `TIME` by at most so much (ms): it is set ten times a second.
const LAG: i64 = 150;
/// The reference count of an object that keys share.
const SHARED: i64 = 2_147_483_647;
/// A commit comes within this time of its fetch's start (ms); if the metadata say otherwise, the TTL is another by now.
const COMMITS: i64 = 600_000;
/// How long after a fetch's start its commit is taken to be where the metadata do not tell (ms).
const COMMITS_SOON: i64 = 2_000;
/// Reads in the next TTL for which a refresh is worth its fetch: below, readers who fetch what they miss fetch less than we would. On
/// Zipf traces the calls are then no more than plain cache-aside makes, with more hits (`benches/freshness.rs`).
const OFTEN: f64 = 4.0;
/// Where one was in this last part of a TTL, or in the last two seconds, [`SOME`] suffice: it may be read more and more, and a
/// count takes time to grow. That single read says nothing about the next.
const JUST_NOW: u64 = 20;
const SOME: f64 = 2.0;
/// The count of a read two half-lives ago.
const LATELY: f64 = 0.25;
/// A sample sees at most one read in this time.
const GRAIN: Duration = Duration::from_secs(1);
/// `OBJECT FREQ` of a new key.
pub(super) const NEW: u32 = 5;

/// What Redis tells of an entry's value.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// Redis's clock, ms.
    pub(super) now: i64,
    /// `OBJECT IDLETIME`, in seconds; `None` under LFU policies and where there is no value.
    idle: Option<i64>,
    /// `OBJECT FREQ`; `None` under other policies and where there is no value.
    pub(super) frequency: Option<u32>,
    /// The value's expiry and metadata.
    pub(super) snapshot: Snapshot,
    /// When we last read it ourselves (Redis time, ms), where that looks like a read.
    touched: Option<i64>,
}

impl Look {
    /// Commands in one look.
    pub(super) const COMMANDS: usize = 4;

    /// Asks for one entry; `replies` are then read by [`Look::read`]. None of it is a touch, nor a miss that others hear of
    /// where there is a value.
    pub(super) fn ask(pipe: &mut Pipeline, keys: &Keys, key: &EntryKey, lfu: bool) {
        pipe.cmd("OBJECT").arg(if lfu { "FREQ" } else { "IDLETIME" }).arg(key.as_str());
        pipe.cmd("PEXPIRETIME").arg(key.as_str());
        // Not with `GET`, by which APIs read: see [`super::Sampler`].
        pipe.cmd("GETRANGE").arg(keys.meta(key)).arg(0).arg(-1);
        pipe.cmd("PEXPIRETIME").arg(keys.touched(key));
    }

    /// Reads the replies to [`Look::ask`].
    pub(super) fn read(now: i64, lfu: bool, replies: &[RedisResult<Value>]) -> Option<Self> {
        let [object, expires, meta, touched] = replies else { return None };
        // An error here means that the policy was changed since it was looked at.
        let object: Option<i64> = reply(object).flatten();
        Some(Self {
            now,
            idle: object.filter(|_| !lfu),
            frequency: object.filter(|_| lfu).and_then(|frequency| u32::try_from(frequency).ok()),
            snapshot: Snapshot {
                expiry: Expiry::from_pexpiretime(reply(expires)?),
                meta: reply::<Option<String>>(meta)?.as_deref().and_then(Meta::parse),
            },
            touched: reply(touched).filter(|at| *at > 0).map(|at: i64| at - millis(TOUCHED)),
        })
    }

    /// The second of the last touch by anybody; at most one too early, never too late.
    pub(super) fn touched_in(&self) -> Option<i64> {
        Some(second(self.now) - self.idle?)
    }

    /// Whether we wrote the value.
    pub(super) fn is_ours(&self) -> bool {
        self.snapshot.ours().is_some()
    }

    /// When we wrote the value or extended its life (Redis time, ms), if we did.
    pub(super) fn written(&self, ttl: Duration) -> Option<i64> {
        let meta = self.snapshot.ours()?;
        let committed = meta.own_expiry - meta.stale_for - millis(ttl);
        let plausible = (meta.validated_at..=meta.validated_at + COMMITS).contains(&committed);
        Some(if plausible { committed } else { meta.validated_at + COMMITS_SOON })
    }

    /// Whether the last touch was no touch of ours, as far as idle times tell.
    pub(super) fn read_by_others(&self, ttl: Duration) -> Option<bool> {
        let last = self.touched_in()?;
        let later = |own: Option<i64>| own.is_none_or(|own| last > own.div_euclid(1_000));
        Some(later(self.written(ttl)) && later(self.touched))
    }

    /// Whether we wrote or read the value at or after `since` (Redis time, ms), so that touches of ours are among those seen.
    pub(super) fn is_touched_by_us(&self, ttl: Duration, since: i64) -> bool {
        self.written(ttl).max(self.touched).is_some_and(|touched| touched >= since)
    }

    /// Whether a touch of our own, which was no write, hides what was before it.
    fn is_hidden(&self, ttl: Duration) -> bool {
        self.touched.is_some_and(|touched| self.written(ttl).is_none_or(|written| touched > written))
    }
}

/// The second that the server's clock of touches has reached at a time (Redis time, ms) for certain; it may be in the next.
pub(super) fn second(at: i64) -> i64 {
    (at - LAG).div_euclid(1_000)
}

/// The decayed count's expectation by which [`OFTEN`] is known, of so many reads that can be seen in a TTL: a sample sees one
/// read of many.
fn threshold(seen: f64) -> f64 {
    seen * (1.0 - (-OFTEN / seen).exp())
}

/// A reply, if it is one.
pub(super) fn reply<T: FromRedisValue>(reply: &RedisResult<Value>) -> Option<T> {
    reply.as_ref().ok().and_then(|value| redis::from_redis_value_ref(value).ok())
}

/// Whether an object is one that keys share, so that nobody knows which of them was read.
pub(super) fn is_shared(refcount: &RedisResult<Value>) -> bool {
    reply::<Option<i64>>(refcount).flatten() == Some(SHARED)
}

impl Popularity {
    /// Whether an entry that is about to expire is to be refreshed although its job does not list it: the feed names it, it
    /// is one of the most read that the job keeps, or it is still read: since its value was written, and either often of late,
    /// or sometimes and just now. Where Redis cannot tell, the decayed count decides alone.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn wanted(&self, job: &Job, key: &EntryKey) -> RedisResult<bool> {
        const BEFORE: usize = 6;
        let lfu = self.lfu.load(Ordering::Relaxed);
        let (popular, sample) = (self.keys.popular(&job.name), self.keys.sample(&job.name));
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        // Nothing, where the job has no feed any more.
        let bucket = job.entries.feed.as_ref().map_or_else(String::new, |_| feed::bucket(key));
        pipe.cmd("HGET").arg(self.keys.feed(&job.name)).arg(bucket);
        pipe.cmd("ZREVRANK").arg(&popular).arg(key.as_str());
        pipe.cmd("ZSCORE").arg(&popular).arg(key.as_str());
        pipe.cmd("ZREVRANGE").arg(&popular).arg(counted(job) - 1).arg(counted(job) - 1).arg("WITHSCORES");
        pipe.cmd("HMGET").arg(&sample).arg(&["at", "passed", "half", "reported", "every", "last"]);
        Look::ask(&mut pipe, &self.keys, key, lfu);
        pipe.cmd("OBJECT").arg("REFCOUNT").arg(key.as_str());
        let replies: Vec<RedisResult<Value>> = pipe.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let [time, fed, rank, score, least, clock, rest @ ..] = replies.as_slice() else { return Ok(true) };
        debug_assert_eq!(replies.len(), BEFORE + Look::COMMANDS + 1);
        let Some((look, shared)) = rest.split_at_checked(Look::COMMANDS) else { return Ok(true) };
        let Some((seconds, micros)) = reply::<(i64, i64)>(time) else { return Ok(true) };
        let now = seconds * 1_000 + micros / 1_000;
        if reply::<Option<Vec<u8>>>(fed).flatten().is_some_and(|bucket| feed::names(&bucket, key))
            || reply::<Option<usize>>(rank).flatten().is_some_and(|rank| rank < job.entries.popular)
        {
            return Ok(true);
        }
        let Some(look) = Look::read(now, lfu, look) else { return Ok(true) };
        if look.snapshot.expiry == Expiry::Never {
            // Nothing expires, and it is not ours.
            return Ok(false);
        }
        let clock: Vec<Option<f64>> = reply(clock).unwrap_or_default();
        let field = |n: usize| clock.get(n).copied().flatten();
        #[expect(clippy::cast_precision_loss, reason = "times are below 2^45")]
        let passed = field(0).zip(field(1)).zip(field(2)).map(|((at, passed), half)| passed + (now as f64 - at) / half);
        let counts = |score: Option<f64>| score.zip(passed).map_or(0.0, |(score, passed)| count(score, passed));
        let count = counts(reply::<Option<f64>>(score).flatten());
        #[expect(clippy::cast_precision_loss, reason = "times are below 2^45")]
        let (reported, ttl) =
            (field(3).is_some_and(|at| at + millis(job.ttl) as f64 > now as f64), millis(job.ttl) as f64);
        let seen = (ttl / field(4).unwrap_or(1.0)).min(job.ttl.as_secs_f64() / GRAIN.as_secs_f64()).max(0.1);
        let reads = expected(count, job.ttl, half_life(job));
        let often = reads >= threshold(seen);
        if !look.snapshot.has_value() {
            return Ok(often);
        }
        if let Some(frequency) = look.frequency {
            return Ok(often && frequency > 0);
        }
        // Where samples are rare, fewer see it read, and hardly any say nothing; nor does a count, where what was read lately is
        // no longer counted for want of room.
        #[expect(clippy::cast_precision_loss, reason = "times are below 2^45")]
        let sampled = field(5).is_some_and(|last| now as f64 - last < ttl / 3.0);
        let full = counts(reply::<Vec<(String, f64)>>(least).and_then(|least| Some(least.first()?.1))) > LATELY;
        let some = !sampled || full || reads >= SOME.min(seen / 9.0);
        let just_now =
            some && look.idle.is_some_and(|idle| idle.unsigned_abs() <= (job.ttl.as_secs() / JUST_NOW).max(1));
        if !look.is_ours() {
            // Its being written was a read, too, and says nothing about the next.
            return Ok(often || (just_now && count >= 1.0));
        }
        let shared = shared.first().is_some_and(is_shared);
        let blind = shared || look.is_hidden(job.ttl) || (reported && often);
        match look.read_by_others(job.ttl) {
            Some(true) if !shared => Ok(often || just_now),
            Some(false) if !blind => self.was_saving(now, look.written(job.ttl).unwrap_or(now)).await,
            _ => Ok(often),
        }
    }

    /// Whether Redis saved for more than half of the time since `since` (Redis time, ms), so that reads went unnoticed.
    async fn was_saving(&self, now: i64, since: i64) -> RedisResult<bool> {
        let Some(info) = self.redis.clone().info(&["persistence"]).await? else { return Ok(false) };
        let long = |seconds: i64| seconds >= 0 && seconds * 2_000 + 1_000 >= now - since;
        let (saved_at, took) = info.last_save();
        Ok(info.running_saves().into_iter().any(long) || (saved_at * 1_000 >= since && long(took)))
    }
}
