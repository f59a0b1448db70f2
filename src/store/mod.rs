//! Entries in Redis: lease, commit, invalidate.
//!
//! The lease is the lock and the fence. [`Store::lease`] begins a fetch; an invalidation marks leases begun at or before
//! its time; [`Store::commit`] writes only under a lease that is ours and unmarked. That is the whole correctness
//! argument, and each step is one script in one slot.

mod loaded;
mod gap;
mod made;
mod meta;
mod tags;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::{Cmd, FromRedisValue, RedisResult, Script};
use serde_json::json;
use ulid::Ulid;

pub use gap::{Gap, REVALIDATE_SIGNAL};
pub use meta::{Meta, Note};
pub use tags::{Seeking, Stamp, WithTags};

use crate::entry::EntryKey;
use crate::entry::duration::millis;
use crate::entry::hash;
use crate::protocol::{Keys, LEASE_RECORD};
use crate::redis::{Connection, with_preludes};

/// After a fetch for an invalidation began, how long the next refresh of that entry is held off: so a storm of invalidations
/// costs a few fetches a second, and each of them lands.
const STORM: Duration = Duration::from_millis(250);
/// The same for what is paid for, once a fetch for an invalidation has followed another.
const PAID_STORM: Duration = Duration::from_secs(10);
/// How long one invalidation makes a storm of the next.
const STORM_LASTS: Duration = Duration::from_secs(1);

/// How long metadata outlives its value: validators are of no use without one, but people ask why it went.
const META_OUTLIVES: Duration = Duration::from_secs(3_600);
/// How long it is remembered that we read a value ourselves, where Redis takes that for a read like any other.
pub(crate) const TOUCHED: Duration = Duration::from_secs(3_600);

/// So many workers in a row that died while they fetched an entry make it a dead letter.
pub(crate) const POISON_CRASHES: u32 = 3;

/// From so many crashes on an entry is fetched while no other such entry is, so that its neighbours are not counted for it.
pub(crate) const SUSPECT_CRASHES: u32 = 2;

/// Why an entry is not tried again.
pub(crate) fn poison_reason(crashes: u32) -> String {
    format!("{crashes} workers in a row died while they fetched it")
}

static LEASE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/lease.lua")));
static COMMIT: LazyLock<Script> = LazyLock::new(|| fenced(include_str!("lua/commit.lua")));
static EXTEND: LazyLock<Script> = LazyLock::new(|| fenced(include_str!("lua/extend.lua")));
static GONE: LazyLock<Script> = LazyLock::new(|| fenced(include_str!("lua/gone.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/release.lua")));
static EXTEND_STALE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/extend_stale.lua")));
static INVALIDATE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/invalidate.lua")));

/// The codec of metadata, for scripts.
const META: &str = include_str!("lua/meta.lua");

/// Returns a script that reads or writes leases' records and metadata.
fn coded(script: &str) -> Script {
    with_preludes(&[LEASE_RECORD, META], script)
}

/// Returns a script that writes only where the fence lets it.
fn fenced(script: &str) -> Script {
    with_preludes(&[LEASE_RECORD, META, include_str!("lua/fence.lua")], script)
}

/// Entries and their leases and metadata.
#[derive(Clone, Debug)]
pub struct Store {
    redis: Connection,
    keys: Keys,
    /// Whose leases: their tokens begin with it.
    holder: Arc<str>,
}

/// What makes a fetch unnecessary. An invalidated value is never fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fresh {
    /// Our value was fetched at or after this (Redis time, ms).
    pub since: Option<i64>,
    /// Our value lives at least until this (Redis time, ms).
    pub until: Option<i64>,
    /// There is a value, whoever wrote it.
    pub any: bool,
    /// There is no value.
    pub absent: bool,
    /// So many workers or more in a row have died while they fetched it.
    pub deadly: Option<u32>,
}

/// A fetch that has begun: nobody else fetches this entry, and nothing fetched before an invalidation is written.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Ours alone.
    pub token: String,
    /// When it began (Redis time, ms).
    pub fetched_at: i64,
    /// When the answer must be there, on our clock; somewhat before the lease ends.
    pub deadline: Instant,
    /// How long it holds.
    pub time: Duration,
    /// `PEXPIRETIME` of the present value: -2 where there is none, -1 where it has no TTL.
    pub pexpiretime: i64,
    /// What is known of it.
    pub meta: Option<Meta>,
}

/// How taking a lease went.
#[derive(Debug)]
pub enum Leased {
    /// Fetch now.
    Yes(Box<Lease>),
    /// Somebody else does, for at most this long.
    Busy(Duration),
    /// There is nothing to do.
    Fresh {
        /// Redis time, ms.
        now: i64,
        /// When the value expires (Redis time, ms).
        expires: i64,
        /// Since when its content is readable (Redis time, ms); `None` where somebody else wrote it.
        content_since: Option<i64>,
    },
    /// There is no value, and none is wanted.
    Absent,
    /// The key holds something else than a string, of this type. It is somebody else's and stays.
    WrongType(String),
    /// Too many workers have died of it; see [`Fresh::deadly`]. Nothing was begun.
    Poison,
}

/// How writing went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is readable, until this time (Redis time, ms; negative for no value).
    Done {
        /// `PEXPIRETIME` of the value.
        expires: i64,
        /// Whether its content is another than before.
        changed: bool,
    },
    /// An invalidation came: the lease was begun anew, at this Redis time; fetch again.
    Again(i64),
    /// The entry was evicted meanwhile: the answer is dropped.
    Evicted,
    /// The lease ran out or was lost: the answer is dropped.
    Lost,
    /// The value is gone, somebody else's, or invalidated, and cannot be extended: fetch again without validators.
    Foreign,
    /// The key holds something else than a string by now. It is somebody else's and stays: the answer is dropped.
    WrongType,
}

/// What an invalidation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The old value stays readable until the new one lands.
    Refresh,
    /// The old value goes at once.
    Evict,
}

impl Removal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Refresh => "r",
            Self::Evict => "e",
        }
    }
}

/// An old value that may outlive its TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleExtension {
    /// Until when it lives now (Redis time, ms).
    pub expires: i64,
    /// When its TTL ends, or ended.
    pub ends: i64,
}

/// What an invalidation of one entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidated {
    /// A fetch in flight will not be written; its worker fetches again (refresh) or drops it (evict).
    pub fenced: bool,
    /// The entry is to be fetched anew, and nobody does yet.
    pub due: bool,
    /// The fetch that was fenced is a service's load, which is not begun anew.
    pub loading: bool,
    /// Nothing is known of the entry: no value, no fetch, no metadata.
    pub unknown: bool,
    /// A value was removed.
    pub removed: bool,
    /// Nothing was done: a storm is on, and a fetch for the last invalidation is under way. Come again after this time.
    pub debounced: Option<Duration>,
}

impl Store {
    /// Entries under these keys.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        Self { redis, keys, holder: Ulid::generate().to_string().into() }
    }

    /// The same for the leases of this holder, a word without dashes: [`Store::holders`] tells whose a lease is.
    #[must_use]
    pub fn held_by(mut self, holder: &str) -> Self {
        self.holder = holder.into();
        self
    }

    /// The same over another connection.
    #[must_use]
    pub fn over(mut self, redis: Connection) -> Self {
        self.redis = redis;
        self
    }

    /// The connection to Redis.
    pub fn connection(&self) -> &Connection {
        &self.redis
    }

    /// The names of keys and channels.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    fn call<'a>(&self, script: &'a Script, key: &EntryKey) -> redis::ScriptInvocation<'a> {
        let mut call = script.key(key.as_str());
        call.key(self.keys.lease(key)).key(self.keys.meta(key));
        call
    }

    /// Begins a fetch of `key` that is given up after `time`, unless nothing is to be done.
    ///
    /// # Errors
    /// Redis's. If the answer was lost the lease may be there: nobody fetches until it ends.
    pub async fn lease(&self, key: &EntryKey, time: Duration, fresh: Fresh) -> RedisResult<Leased> {
        let token = self.token();
        let begun = Instant::now();
        let reply = self.lease_call(key, &token, time, fresh).invoke_async(&mut self.redis.clone()).await?;
        leased(reply, token, begun, time)
    }

    /// The same, and in the same round trip what `then` asks for once the lease is taken.
    ///
    /// # Errors
    /// As [`Store::lease`].
    pub async fn lease_and<T: FromRedisValue>(
        &self,
        key: &EntryKey,
        time: Duration,
        fresh: Fresh,
        then: &Cmd,
    ) -> RedisResult<(Leased, T)> {
        let token = self.token();
        let begun = Instant::now();
        let redis = &mut self.redis.clone();
        let mut pipe = redis::pipe();
        pipe.invoke_script(&self.lease_call(key, &token, time, fresh)).add_command(then.clone()).ignore_errors();
        let (reply, found): (RedisResult<redis::Value>, RedisResult<T>) = pipe.query_async(redis).await?;
        match reply {
            // A Redis that was started anew has to be told the script; nothing was done.
            Err(e) if e.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => {
                let leased = self.lease(key, time, fresh).await?;
                Ok((leased, then.query_async(redis).await?))
            }
            reply => {
                let leased = leased(reply?, token, begun, time)?;
                if let (Leased::Yes(lease), Err(_)) = (&leased, &found) {
                    // Nobody would know of it.
                    self.release(key, &lease.token, None).await?;
                }
                Ok((leased, found?))
            }
        }
    }

    /// Of a new lease: whose it is, and which.
    fn token(&self) -> String {
        static LEASES: AtomicU64 = AtomicU64::new(0);
        format!("{}-{}", self.holder, LEASES.fetch_add(1, Ordering::Relaxed))
    }

    fn lease_call(
        &self,
        key: &EntryKey,
        token: &str,
        time: Duration,
        fresh: Fresh,
    ) -> redis::ScriptInvocation<'static> {
        let mut call = self.call(&LEASE, key);
        call.arg(token)
            .arg(millis(time))
            .arg(fresh.since.unwrap_or(-1))
            .arg(fresh.until.unwrap_or(-1))
            .arg(u8::from(fresh.any))
            .arg(u8::from(fresh.absent))
            .arg(millis(STORM_LASTS))
            .arg(fresh.deadly.map_or(-1, i64::from));
        call
    }

    /// Writes a value for `ttl`.
    ///
    /// # Errors
    /// Redis's; the value may or may not have been written, as a whole.
    pub async fn commit(
        &self,
        key: &EntryKey,
        lease: &Lease,
        json: &str,
        ttl: Duration,
        note: &Note,
    ) -> RedisResult<Written> {
        let reply = self
            .call(&COMMIT, key)
            .arg(&lease.token)
            .arg(json)
            .arg(millis(ttl))
            .arg(hash(json))
            .arg(note.attempt())
            .arg(note.to_json())
            .arg(millis(META_OUTLIVES))
            .arg(millis(lease.time))
            .arg(self.keys.changed_channel())
            .arg(change(key, "warmed"))
            .arg(lease.fetched_at)
            .invoke_async(&mut self.redis.clone())
            .await?;
        written(reply)
    }

    /// Lets the present value live on for `ttl`, since its upstream says that it is unchanged.
    ///
    /// # Errors
    /// Redis's.
    pub async fn extend(&self, key: &EntryKey, lease: &Lease, ttl: Duration, note: &Note) -> RedisResult<Written> {
        self.extend_script(key, lease, ttl, note, true).await
    }

    /// The same without having asked anybody: only if it was not invalidated, either. For invalidations its content stays as
    /// old as it was.
    ///
    /// # Errors
    /// Redis's.
    pub async fn extend_unasked(
        &self,
        key: &EntryKey,
        lease: &Lease,
        ttl: Duration,
        note: &Note,
    ) -> RedisResult<Written> {
        self.extend_script(key, lease, ttl, note, false).await
    }

    async fn extend_script(
        &self,
        key: &EntryKey,
        lease: &Lease,
        ttl: Duration,
        note: &Note,
        asked: bool,
    ) -> RedisResult<Written> {
        let reply = self
            .call(&EXTEND, key)
            .arg(&lease.token)
            .arg(millis(ttl))
            .arg(lease.pexpiretime)
            .arg(note.attempt())
            .arg(note.to_json())
            .arg(millis(META_OUTLIVES))
            .arg(millis(lease.time))
            .arg(u8::from(!asked))
            .arg(lease.fetched_at)
            .invoke_async(&mut self.redis.clone())
            .await?;
        written(reply)
    }

    /// Removes the value of what the upstream no longer has.
    ///
    /// # Errors
    /// Redis's.
    pub async fn gone(&self, key: &EntryKey, lease: &Lease, note: &Note) -> RedisResult<Written> {
        let reply = self
            .call(&GONE, key)
            .arg(&lease.token)
            .arg(note.attempt())
            .arg(note.to_json())
            .arg(millis(META_OUTLIVES))
            .arg(millis(lease.time))
            .arg(self.keys.changed_channel())
            .arg(change(key, "gone"))
            .arg(lease.fetched_at)
            .invoke_async(&mut self.redis.clone())
            .await?;
        written(reply)
    }

    /// Ends a fetch that brought no value; the old one stays. Without a note the last one stays too.
    ///
    /// # Errors
    /// Redis's; the lease then ends by itself.
    pub async fn release(&self, key: &EntryKey, token: &str, note: Option<&Note>) -> RedisResult<Option<Removal>> {
        Ok(self.released(key, token, note).await?.flatten())
    }

    /// Ends the fetch of a holder that is dead; `None` if the lease is no longer there.
    ///
    /// # Errors
    /// Redis's; the lease then ends by itself.
    pub async fn rescue(&self, key: &EntryKey, token: &str, note: &Note) -> RedisResult<Option<Option<Removal>>> {
        self.released(key, token, Some(note)).await
    }

    async fn released(&self, key: &EntryKey, token: &str, note: Option<&Note>) -> RedisResult<Option<Option<Removal>>> {
        let reply: Vec<String> = self
            .call(&RELEASE, key)
            .arg(token)
            .arg(note.map(Note::attempt).unwrap_or_default())
            .arg(note.map(Note::to_json).unwrap_or_default())
            .arg(millis(META_OUTLIVES))
            .invoke_async(&mut self.redis.clone())
            .await?;
        Ok((reply.first().map(String::as_str) == Some("done")).then(|| match reply.get(1).map(String::as_str) {
            Some("r") => Some(Removal::Refresh),
            Some("e") => Some(Removal::Evict),
            _ => None,
        }))
    }

    /// Who fetches these entries now: holder and token of each lease, in order.
    ///
    /// # Errors
    /// Redis's.
    pub async fn holders(&self, entries: &[EntryKey]) -> RedisResult<Vec<Option<(String, String)>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("GET").arg(self.keys.lease(key));
        }
        let leases: Vec<Option<String>> = pipe.query_async(&mut self.redis.clone()).await?;
        let holder = |lease: String| {
            let token = lease.split(' ').next()?;
            Some((token.split('-').next()?.to_owned(), token.to_owned()))
        };
        Ok(leases.into_iter().map(|lease| lease.and_then(holder)).collect())
    }

    /// Handles an invalidation with time `at` (Redis time, ms) of one entry. In a storm of them a refresh is held off.
    ///
    /// # Errors
    /// Redis's; handling it again does no harm.
    pub async fn invalidate(&self, key: &EntryKey, at: i64, removal: Removal) -> RedisResult<Invalidated> {
        self.invalidated(key, at, removal, (STORM, STORM)).await
    }

    /// The same for what is paid for: in a storm it is held off for longer.
    ///
    /// # Errors
    /// As [`Store::invalidate`].
    pub async fn invalidate_paid(&self, key: &EntryKey, at: i64, removal: Removal) -> RedisResult<Invalidated> {
        self.invalidated(key, at, removal, (STORM, PAID_STORM)).await
    }

    /// Marks the caller's own lease with an invalidation that a tag told of; storm or not.
    ///
    /// # Errors
    /// Redis's.
    pub async fn fence(&self, key: &EntryKey, stamp: Stamp) -> RedisResult<()> {
        self.invalidated(key, stamp.at, stamp.removal, (Duration::ZERO, Duration::ZERO)).await.map(|_| ())
    }

    async fn invalidated(
        &self,
        key: &EntryKey,
        at: i64,
        removal: Removal,
        (pause, pause_in_storm): (Duration, Duration),
    ) -> RedisResult<Invalidated> {
        let (fenced, due, removed, wait): (u8, u8, u8, u64) = self
            .call(&INVALIDATE, key)
            .arg(at)
            .arg(removal.as_str())
            .arg(millis(META_OUTLIVES))
            .arg(self.keys.changed_channel())
            .arg(change(key, "evicted"))
            .arg(millis(pause))
            .arg(millis(pause_in_storm))
            .invoke_async(&mut self.redis.clone())
            .await?;
        let unknown = due == 2;
        let debounced = (wait > 0).then(|| Duration::from_millis(wait));
        let (loading, due) = (due == 3, due == 1 || due == 3);
        Ok(Invalidated { fenced: fenced == 1, due, loading, unknown, removed: removed == 1, debounced })
    }

    /// Lets an old value live for `time` from now on, at most `longest` beyond its TTL; `None` where there is none, or it is
    /// not ours, or was invalidated. Until then it is found under its tags, whatever life its job gave it when it was made.
    ///
    /// # Errors
    /// Redis's.
    pub async fn extend_stale(
        &self,
        key: &EntryKey,
        time: Duration,
        longest: Duration,
    ) -> RedisResult<Option<StaleExtension>> {
        self.tag_again(key, time).await?;
        let (expires, ends): (i64, i64) = self
            .call(&EXTEND_STALE, key)
            .arg(millis(time))
            .arg(millis(longest))
            .arg(millis(META_OUTLIVES))
            .invoke_async(&mut self.redis.clone())
            .await?;
        Ok((expires > 0).then_some(StaleExtension { expires, ends }))
    }

    /// `PEXPIRETIME` and metadata of many entries in one round trip. Metadata that somebody overwrote with another type is none.
    ///
    /// # Errors
    /// Redis's.
    pub async fn look(&self, entries: &[EntryKey]) -> RedisResult<Vec<(i64, Option<Meta>)>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("PEXPIRETIME").arg(key.as_str());
            // Unlike `GET`, it says nothing against another type.
            pipe.cmd("MGET").arg(self.keys.meta(key));
        }
        let reply: Vec<redis::Value> = pipe.query_async(&mut self.redis.clone()).await?;
        reply
            .chunks_exact(2)
            .map(|pair| {
                let expires = redis::from_redis_value_ref::<i64>(&pair[0])?;
                let (meta,) = redis::from_redis_value_ref::<(Option<String>,)>(&pair[1])?;
                Ok((expires, meta.as_deref().and_then(Meta::parse)))
            })
            .collect::<Result<_, redis::ParsingError>>()
            .map_err(Into::into)
    }

    /// Whether somebody fetches each of these entries.
    ///
    /// # Errors
    /// Redis's.
    pub async fn leased(&self, entries: &[EntryKey]) -> RedisResult<Vec<bool>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("EXISTS").arg(self.keys.lease(key));
        }
        pipe.query_async(&mut self.redis.clone()).await
    }

    /// The values of entries, `None` where there is none. What is no text is made one; a key that holds no string has none.
    ///
    /// # Errors
    /// Redis's.
    pub async fn values(&self, entries: &[EntryKey]) -> RedisResult<Vec<Option<String>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        // For these reads alone: what else is read here (metadata, limits) must not become the coldest that Redis knows.
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

    /// Remembers that we read these values: a Redis before 7.2 takes that for a read by the API. Where that fails, it does.
    async fn touched(&self, entries: &[EntryKey]) {
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("SET").arg(self.keys.touched(key)).arg("").arg("PX").arg(millis(TOUCHED)).ignore();
        }
        let _: RedisResult<()> = pipe.exec_async(&mut self.redis.clone()).await;
    }

    /// Redis's clock, ms.
    ///
    /// # Errors
    /// Redis's.
    pub async fn now(&self) -> RedisResult<i64> {
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut self.redis.clone()).await?;
        Ok(seconds * 1_000 + micros / 1_000)
    }
}

/// The announcement of a change, as in docs/protocol.md.
fn change(key: &EntryKey, event: &str) -> String {
    format!(r#"{{"key":{},"event":"{event}"}}"#, json!(key.as_str()))
}

fn leased(reply: redis::Value, token: String, begun: Instant, time: Duration) -> RedisResult<Leased> {
    let (what, now, expires, meta) = lease_reply(reply)?;
    let expires = expires.unwrap_or(-2);
    Ok(match what.as_str() {
        "busy" => Leased::Busy(Duration::from_millis(u64::try_from(now).unwrap_or(0))),
        "fresh" => {
            let meta = meta.as_deref().and_then(Meta::parse).filter(|meta| meta.is_of(expires));
            Leased::Fresh { now, expires, content_since: meta.map(|meta| meta.content_since) }
        }
        "absent" => Leased::Absent,
        "wrongtype" => Leased::WrongType(meta.unwrap_or_default()),
        "deadly" => Leased::Poison,
        _ => Leased::Yes(Box::new(Lease {
            token,
            fetched_at: now,
            deadline: begun + time.mul_f32(0.9),
            time,
            pexpiretime: expires,
            meta: meta.as_deref().and_then(Meta::parse),
        })),
    })
}

fn lease_reply(reply: redis::Value) -> RedisResult<(String, i64, Option<i64>, Option<String>)> {
    let parts: Vec<redis::Value> = redis::from_redis_value(reply)?;
    let what = parts.first().map(redis::from_redis_value_ref).transpose()?.unwrap_or_default();
    let number = parts.get(1).map(redis::from_redis_value_ref).transpose()?.unwrap_or_default();
    let expires = parts.get(2).map(redis::from_redis_value_ref).transpose()?;
    let meta = parts.get(3).map(redis::from_redis_value_ref).transpose()?;
    Ok((what, number, expires, meta))
}

fn written(reply: Vec<redis::Value>) -> RedisResult<Written> {
    let what: String = reply.first().map(redis::from_redis_value_ref).transpose()?.unwrap_or_default();
    let number = |i: usize| -> RedisResult<i64> {
        Ok(reply.get(i).map(redis::from_redis_value_ref).transpose()?.unwrap_or_default())
    };
    Ok(match what.as_str() {
        "done" => Written::Done { expires: number(2)?, changed: number(3)? == 1 },
        "again" => Written::Again(number(1)?),
        "evicted" => Written::Evicted,
        "foreign" => Written::Foreign,
        "wrongtype" => Written::WrongType,
        _ => Written::Lost,
    })
}
