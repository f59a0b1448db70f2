//! The lease of an entry: the lock on its fetch, and the fence before its commit.
//!
//! The record beside the entry is `token fetched_at mark`: who fetches, when the fetch began on Redis's clock, and
//! what came since. It expires by itself, and no record means that nobody fetches. Its codec for scripts is
//! `lease_record.lua` in `protocol`.
//!
//! | mark | state | set by | next |
//! |---|---|---|---|
//! | `-` | a worker fetches | `lease.lua` | commit, extend, gone and release drop the record |
//! | `+` | as `-`, for an invalidation that follows another: a third is held off | `lease.lua`, `fence.lua` | as `-` |
//! | `=` | a service loads | `begin_load.lua` of the library | `commit_load.lua` and `drop_lease.lua` drop the record |
//! | `r` | a refresh arrived | `invalidate.lua` | the commit renews it as `+`; `commit_load.lua` writes nothing |
//! | `e` | an eviction arrived, or a service wrote | `invalidate.lua`, library | commit drops it; a load makes it `=` |
//!
//! The library marks in `set.lua`, `delete.lua` and `increment.lua`. A refresh replaces `e`, an eviction `r`. Only a
//! holder whose token and `fetched_at` are in the record, under `-`, `+` or `=`, writes.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{Cmd, FromRedisValue, RedisResult, Script};

use super::meta::{LastAttempt, Meta};
use super::snapshot::{Expiry, Snapshot};
use super::{META_OUTLIVES, Store, coded};
use crate::entry::EntryKey;
use crate::entry::duration::millis;
use crate::redis::{RedisTime, is_of_keys};

/// The time for which one invalidation makes a storm of the next.
const STORM_LASTS: Duration = Duration::from_secs(1);

/// So many workers in a row that died while they fetched an entry make it a dead letter.
pub(crate) const POISON_CRASHES: u32 = 3;

/// From so many crashes on an entry is fetched while no other such entry is, so that its neighbours are not counted for
/// it.
pub(crate) const SUSPECT_CRASHES: u32 = 2;

/// Returns why an entry whose key holds another type than a string is not fetched, and how to free the key. `found` is
/// the type with its article.
pub(crate) fn other_type_reason(found: &str, key: &str) -> String {
    format!(
        "the key holds {found}, which another program wrote and Samovar leaves alone: free it with `DEL {key}`, then \
         `samovar warm {key}` fetches it; or give the job another key"
    )
}

/// Returns why an entry is not tried again.
pub(crate) fn poison_reason(crashes: u32) -> String {
    format!("{crashes} workers in a row died while they fetched it")
}

static LEASE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/lease.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| coded(include_str!("lua/release.lua")));

/// The mark of a lease's record; the module's table says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    First,
    Again,
    Load,
    Refresh,
    Evict,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "-" => Self::First,
            "+" => Self::Again,
            "=" => Self::Load,
            "r" => Self::Refresh,
            "e" => Self::Evict,
            _ => return None,
        })
    }

    /// Returns what an invalidation asked for since the fetch began.
    fn removal(self) -> Option<Removal> {
        match self {
            Self::Refresh => Some(Removal::Refresh),
            Self::Evict => Some(Removal::Evict),
            Self::First | Self::Again | Self::Load => None,
        }
    }
}

/// The action that an invalidation asks for, and the mark that it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The old value stays readable until the new one lands.
    Refresh,
    /// The old value goes at once.
    Evict,
}

impl Removal {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Refresh => "r",
            Self::Evict => "e",
        }
    }
}

/// A lease's record: whose fetch it is, and its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) token: &'a str,
    pub(super) fetched_at: RedisTime,
    pub(super) mark: Mark,
}

impl<'a> Record<'a> {
    /// Reads `token fetched_at mark`; `None` where it is none.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut fields = text.split(' ');
        let (token, fetched_at, mark) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?);
        let mark = Mark::parse(mark).filter(|_| fields.next().is_none())?;
        Some(Self { token, fetched_at: RedisTime::from_millis(fetched_at), mark })
    }
}

/// The conditions that make a fetch unnecessary. An invalidated value is never fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fresh {
    /// Our value was fetched at or after this.
    pub since: Option<RedisTime>,
    /// Our value lives at least until this.
    pub until: Option<RedisTime>,
    /// There is a value, no matter who wrote it.
    pub any: bool,
    /// There is no value.
    pub absent: bool,
    /// So many workers or more in a row have died while they fetched it.
    pub most_crashes: Option<u32>,
}

impl Fresh {
    /// Returns the condition that there is a value of ours, however old.
    pub fn ours() -> Self {
        Self { since: Some(RedisTime::from_millis(1)), ..Self::default() }
    }
}

/// A fetch that has begun: nobody else fetches this entry, and nothing fetched before an invalidation is written.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Ours alone.
    pub token: String,
    /// When it began.
    pub fetched_at: RedisTime,
    /// When the answer must be there, on our clock; somewhat before the lease ends.
    pub deadline: Instant,
    /// The time for which it holds.
    pub time: Duration,
    /// The value and its metadata as it began.
    pub before: Snapshot,
    /// When Redis was last found to have lost data, if it ever was; `None` as well if nobody asked.
    pub lost: Option<RedisTime>,
    /// The rule for versions of its answer; the default is for jobs without versions.
    pub versions: Versions,
}

/// The rule for the version of an answer: see `judge` in `lua/meta.lua`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The longest wait for an announced version; `None` if the job has no versions.
    pub patience: Option<Duration>,
    /// Only a higher version is stored, where one was announced and its patience has ended.
    pub look: bool,
}

impl Lease {
    /// Returns Redis's clock, as this process's clock has gone on since the fetch began.
    pub fn now(&self) -> RedisTime {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.fetched_at + usable(self.time).saturating_sub(left)
    }

    /// Begins the fetch anew at this time, which may be long ago: the reply that told it may have been lost.
    pub fn begin_again(&mut self, at: RedisTime) {
        // Redis's clock may have been set.
        let latest = Instant::now() + usable(self.time);
        self.deadline = (self.deadline + at.saturating_since(self.fetched_at)).min(latest);
        self.fetched_at = at;
    }
}

/// Returns the part of a lease's time in which the answer must come.
fn usable(time: Duration) -> Duration {
    time.mul_f32(0.9)
}

/// A fetch under way, by its lease's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// When it began.
    pub began: RedisTime,
    /// A service loads the value, and no worker fetches it.
    pub is_load: bool,
    /// The entry was evicted since: nothing is written.
    pub is_evicted: bool,
}

/// A lease as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its holder: the end of a worker's name, or what a service chose.
    pub holder: String,
    /// When the fetch or the load began.
    pub began: RedisTime,
    /// When it ends by itself.
    pub until: Option<RedisTime>,
    /// A service loads the value, and no worker fetches it.
    pub is_load: bool,
    /// The action of an invalidation that came since.
    pub mark: Option<Removal>,
}

/// The result of taking a lease.
#[derive(Debug)]
pub enum Leased {
    /// Fetch now.
    Yes(Box<Lease>),
    /// Somebody else does, for at most this long.
    Busy(Duration),
    /// There is nothing to do.
    Fresh {
        /// Redis's clock.
        now: RedisTime,
        /// The value and its metadata.
        found: Box<Snapshot>,
    },
    /// There is no value, and none is wanted.
    Absent,
    /// The key holds something else than a string, of this type. It is somebody else's and stays.
    WrongType(String),
    /// Too many workers have died of it; see [`Fresh::most_crashes`]. Nothing was begun.
    Poison,
}

impl Store {
    /// Begins a fetch of `key` that is given up after `time`, unless nothing is to be done.
    ///
    /// # Errors
    /// Redis's. If the answer was lost the lease may be there: nobody fetches until it ends.
    pub async fn lease(&self, key: &EntryKey, time: Duration, fresh: Fresh) -> RedisResult<Leased> {
        self.lease_as(key, self.token(), time, fresh).await
    }

    async fn lease_as(&self, key: &EntryKey, token: String, time: Duration, fresh: Fresh) -> RedisResult<Leased> {
        let begun = Instant::now();
        let reply = self.lease_call(key, &token, time, fresh).invoke_async(&mut self.redis.clone()).await?;
        leased(reply, token, begun, time)
    }

    /// Begins a fetch as [`Store::lease`] does, under a token of the caller. Runs `then`, and asks for [`Lease::lost`],
    /// in the same round trip once the lease is taken. If Redis does not tell, data count as lost when the fetch began.
    ///
    /// # Errors
    /// Redis's. The lease may be there: release it.
    pub async fn lease_and<T: FromRedisValue>(
        &self,
        key: &EntryKey,
        token: String,
        time: Duration,
        fresh: Fresh,
        then: &Cmd,
    ) -> RedisResult<(Leased, T)> {
        let begun = Instant::now();
        let redis = &mut self.redis.clone();
        let mut pipe = redis::pipe();
        pipe.invoke_script(&self.lease_call(key, &token, time, fresh)).add_command(then.clone());
        pipe.add_command(self.ask_lost()).ignore_errors();
        let (reply, found, mut lost): (RedisResult<redis::Value>, RedisResult<T>, RedisResult<Option<RedisTime>>) =
            pipe.query_async(redis).await?;
        let (mut leased, found) = match reply {
            // A Redis that was started anew has to be told the script; nothing was done.
            Err(e) if e.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => {
                let leased = self.lease_as(key, token, time, fresh).await?;
                lost = self.ask_lost().query_async(redis).await;
                (leased, then.query_async(redis).await?)
            }
            reply => (leased(reply?, token, begun, time)?, found?),
        };
        if let Leased::Yes(lease) = &mut leased {
            lease.lost = match lost {
                // Another program's key, or a missing right, is told elsewhere and may last.
                Err(e) if is_of_keys(&e) => None,
                lost => lost.unwrap_or(Some(lease.fetched_at)),
            };
        }
        Ok((leased, found))
    }

    /// Returns the token of a new lease: its holder, and a number.
    pub fn token(&self) -> String {
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
            .arg(fresh.since.map_or(-1, RedisTime::as_millis))
            .arg(fresh.until.map_or(-1, RedisTime::as_millis))
            .arg(u8::from(fresh.any))
            .arg(u8::from(fresh.absent))
            .arg(millis(STORM_LASTS))
            .arg(fresh.most_crashes.map_or(-1, i64::from));
        call
    }

    /// Ends a fetch that brought no value; the old value stays. Without a note the old note stays as well. Returns what
    /// an invalidation asked for meanwhile.
    ///
    /// # Errors
    /// Redis's; the lease then ends by itself.
    pub async fn release(
        &self,
        key: &EntryKey,
        token: &str,
        last_attempt: Option<&LastAttempt>,
    ) -> RedisResult<Option<Removal>> {
        Ok(self.released(key, token, last_attempt).await?.flatten())
    }

    /// Ends the fetch of a holder that is dead; `None` if the lease is no longer there.
    ///
    /// # Errors
    /// Redis's; the lease then ends by itself.
    pub async fn rescue(
        &self,
        key: &EntryKey,
        token: &str,
        last_attempt: &LastAttempt,
    ) -> RedisResult<Option<Option<Removal>>> {
        self.released(key, token, Some(last_attempt)).await
    }

    async fn released(
        &self,
        key: &EntryKey,
        token: &str,
        last_attempt: Option<&LastAttempt>,
    ) -> RedisResult<Option<Option<Removal>>> {
        let reply: Vec<String> = self
            .call(&RELEASE, key)
            .arg(token)
            .arg(last_attempt.map(LastAttempt::attempt).unwrap_or_default())
            .arg(last_attempt.map(LastAttempt::to_json).unwrap_or_default())
            .arg(millis(META_OUTLIVES))
            .invoke_async(&mut self.redis.clone())
            .await?;
        let done = reply.first().is_some_and(|what| what == "done");
        Ok(done.then(|| reply.get(1).and_then(|mark| Mark::parse(mark)?.removal())))
    }

    /// Returns who fetches these entries now: holder and token of each lease, in order.
    ///
    /// # Errors
    /// Redis's.
    pub async fn holders(&self, entries: &[EntryKey]) -> RedisResult<Vec<Option<(String, String)>>> {
        let holder = |Record { token, .. }: Record<'_>| Some((token.split('-').next()?.to_owned(), token.to_owned()));
        self.leases(entries, holder).await
    }

    /// Returns the fetches of these entries, in order; `None` where nobody fetches an entry.
    ///
    /// # Errors
    /// Redis's.
    pub async fn in_flight(&self, entries: &[EntryKey]) -> RedisResult<Vec<Option<InFlight>>> {
        let fetch = |Record { fetched_at, mark, .. }: Record<'_>| {
            let (is_load, is_evicted) = (mark == Mark::Load, mark == Mark::Evict);
            Some(InFlight { began: fetched_at, is_load, is_evicted })
        };
        self.leases(entries, fetch).await
    }

    /// Returns the lease of an entry; `None` where nobody holds it.
    ///
    /// # Errors
    /// Redis's.
    pub async fn held(&self, key: &EntryKey) -> RedisResult<Option<Held>> {
        let lease = self.keys.lease(key);
        let mut ask = redis::pipe();
        ask.cmd("GET").arg(&lease).cmd("PEXPIRETIME").arg(&lease);
        let (record, until): (Option<String>, i64) = ask.query_async(&mut self.redis.clone()).await?;
        Ok(record.as_deref().and_then(Record::parse).map(|Record { token, fetched_at, mark }| Held {
            holder: token.split('-').next().unwrap_or_default().to_owned(),
            began: fetched_at,
            until: Expiry::from_pexpiretime(until).at(),
            is_load: mark == Mark::Load,
            mark: mark.removal(),
        }))
    }

    async fn leases<T>(
        &self,
        entries: &[EntryKey],
        read: impl Fn(Record<'_>) -> Option<T>,
    ) -> RedisResult<Vec<Option<T>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for key in entries {
            pipe.cmd("GET").arg(self.keys.lease(key));
        }
        let leases: Vec<Option<String>> = pipe.query_async(&mut self.redis.clone()).await?;
        Ok(leases.iter().map(|lease| Record::parse(lease.as_ref()?).and_then(&read)).collect())
    }

    /// Returns for each of these entries whether somebody fetches it, in order.
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
}

fn leased(reply: redis::Value, token: String, begun: Instant, time: Duration) -> RedisResult<Leased> {
    let (what, number, expires, meta) = lease_reply(reply)?;
    let now = RedisTime::from_millis(number);
    let expiry = Expiry::from_pexpiretime(expires.unwrap_or(-2));
    Ok(match what.as_str() {
        "busy" => Leased::Busy(Duration::from_millis(u64::try_from(number).unwrap_or(0))),
        "fresh" => {
            Leased::Fresh { now, found: Box::new(Snapshot { expiry, meta: meta.as_deref().and_then(Meta::parse) }) }
        }
        "absent" => Leased::Absent,
        "wrongtype" => Leased::WrongType(meta.unwrap_or_default()),
        "poison" => Leased::Poison,
        _ => Leased::Yes(Box::new(Lease {
            token,
            fetched_at: now,
            deadline: begun + usable(time),
            time,
            before: Snapshot { expiry, meta: meta.as_deref().and_then(Meta::parse) },
            lost: None,
            versions: Versions::default(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::LEASE_RECORD;

    #[test]
    fn a_renewed_lease_counts_from_its_renewal() {
        let (at, second) = (RedisTime::from_millis(1_732_270_000_000), Duration::from_secs(1));
        let begun = Instant::now();
        let lease = |left: Duration| Lease {
            token: "worker-7".to_owned(),
            fetched_at: at,
            deadline: begun + left,
            time: second * 10,
            before: Snapshot { expiry: Expiry::Absent, meta: None },
            lost: None,
            versions: Versions::default(),
        };
        // It began six seconds ago, and was renewed after two; that is heard only now.
        let mut late = lease(second * 3);
        late.begin_again(at + second * 2);
        assert_eq!((late.deadline, late.fetched_at), (begun + second * 5, at + second * 2));
        // The clock was set ahead, and back.
        let mut ahead = lease(second * 3);
        ahead.begin_again(at + second * 3_600);
        assert!(ahead.deadline <= Instant::now() + second * 9);
        let mut back = lease(second * 3);
        back.begin_again(at - second * 3_600);
        assert_eq!(back.deadline, begun + second * 3);
    }

    #[test]
    fn a_record_is_read_as_scripts_write_it() {
        assert!(LEASE_RECORD.contains("local FIRST, AGAIN, LOAD, REFRESH, EVICT = '-', '+', '=', 'r', 'e'"));
        let marks = [Mark::First, Mark::Again, Mark::Load, Mark::Refresh, Mark::Evict];
        for (mark, text) in marks.into_iter().zip(["-", "+", "=", "r", "e"]) {
            let record = format!("worker-7 1732270000123 {text}");
            let fetched_at = RedisTime::from_millis(1_732_270_000_123);
            assert_eq!(Record::parse(&record), Some(Record { token: "worker-7", fetched_at, mark }));
        }
        for foreign in ["", "worker-7", "worker-7 x -", "worker-7 1 ?", "worker-7 1 - -"] {
            assert_eq!(Record::parse(foreign), None, "{foreign}");
        }
    }
}
