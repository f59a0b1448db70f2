//! The cache itself.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{RedisResult, Script, ScriptInvocation, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::inner::Inner;
use super::json::{Json, Read, decode, encode};
use super::link::Link;
use super::prefix::check_prefix;
use super::reads::Found;
use super::{Change, Error, Stats, Subscription, Ttl};
use crate::entry::EntryKey;
use crate::protocol::LEASE_RECORD;
use crate::redis::{Connection, with_preludes};

pub(super) static SET: LazyLock<Script> = LazyLock::new(|| leased(include_str!("lua/set.lua")));
pub(super) static DELETE: LazyLock<Script> = LazyLock::new(|| leased(include_str!("lua/delete.lua")));
pub(super) static TRACK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/track.lua")));
static INCREMENT: LazyLock<Script> = LazyLock::new(|| leased(include_str!("lua/increment.lua")));

/// Returns a script that reads or writes leases' records.
pub(super) fn leased(script: &str) -> Script {
    with_preludes(&[LEASE_RECORD], script)
}

/// JSON values in Redis under one prefix. Cheap to clone; clones share everything.
///
/// A key here is the part after the prefix: with the prefix `art`, `get("Mona Lisa")` reads the Redis key `art:Mona
/// Lisa`. The value is plain JSON without an envelope, so that other programs can read and write it, including
/// Samovar's workers: a job with `key = "artwork_info:{artwork_name}"` warms the values of a cache with the prefix
/// `artwork_info`.
///
/// ```no_run
/// use samovar::cache::Cache;
/// use std::time::Duration;
///
/// # async fn example() -> Result<(), samovar::cache::Error> {
/// let cache = Cache::builder("redis://127.0.0.1:6379")
///     .prefix("art")
///     .default_ttl(Duration::from_secs(600))
///     .build()
///     .await?;
/// cache.set("Mona Lisa", &vec!["Leonardo", "1503"]).await?;
/// let facts: Option<Vec<String>> = cache.get("Mona Lisa").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { prefix, ttl, near, .. } = &*self.inner;
        f.debug_struct("Cache").field("prefix", prefix).field("ttl", ttl).field("near", near).finish_non_exhaustive()
    }
}

impl Cache {
    pub(super) fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Returns the same cache with another prefix.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the prefix is empty or Samovar's own.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self, Error> {
        check_prefix(prefix, &self.link().names)?;
        Ok(Self::from_inner(Inner { prefix: format!("{prefix}:"), lenient: false, ..(*self.inner).clone() }))
    }

    /// Returns a cache with one of the well-known prefixes.
    pub(super) fn known(&self, prefix: &str) -> Self {
        Self::from_inner(Inner {
            prefix: format!("{prefix}:"),
            lenient: true,
            announce: false,
            demand: false,
            near: None,
            ..(*self.inner).clone()
        })
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.inner.shared.link
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Returns the connection, for commands that this library does not offer. It has the builder's time bound and no
    /// breaker.
    pub fn connection(&self) -> Connection {
        self.link().redis.clone()
    }

    /// Returns the counts so far.
    pub fn stats(&self) -> Stats {
        self.link().counts.stats(self.link().breakers.any_is_open())
    }

    /// Returns the Redis key of a key.
    pub fn key(&self, key: &str) -> String {
        let Inner { prefix, lenient, .. } = &*self.inner;
        if *lenient && key.starts_with(prefix.as_str()) { key.to_owned() } else { format!("{prefix}{key}") }
    }

    /// Returns the value, or `None`. Without Redis: from the near cache, else `None`.
    ///
    /// # Errors
    /// [`Error::Decode`] if the value is not a `T`; [`Error::Redis`] if the key holds no string.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let key = self.key(key);
        match self.read(&key).await? {
            Read::There(json) => decode(&key, &json).map(Some),
            Read::Missing => {
                if self.inner.demand {
                    self.ask_workers(vec![key]).await;
                }
                Ok(None)
            }
            Read::Away => Ok(None),
        }
    }

    /// Reads a whole key.
    pub(super) async fn read(&self, key: &str) -> Result<Read, Error> {
        let counts = &self.link().counts;
        let near = self.inner.near.as_deref();
        if let Some(json) = near.and_then(|near| near.get(key)) {
            counts.near_hits.add(1);
            self.count(key, Found::Hit);
            return Ok(Read::There(Json::Shared(json)));
        }
        let ticket = near.and_then(|near| near.ticket(key));
        let answer = match &ticket {
            None => {
                let get = redis::Cmd::get(key);
                self.link().at(key).ask_one(&get).await.and_then(|value| text(value).map(|json| (json, None)))
            }
            Some(_) => {
                let mut both = redis::pipe();
                both.get(key).pttl(key);
                self.link().at(key).ask(async |mut redis| both.query_async(&mut redis).await).await
            }
        };
        match answer {
            Ok((Some(json), left)) => {
                counts.hits.add(1);
                self.count(key, Found::Hit);
                if let (Some(near), Some(ticket)) = (near, &ticket) {
                    near.insert(
                        key,
                        ticket,
                        &json,
                        left.and_then(|left: i64| u64::try_from(left).ok()).map(Duration::from_millis),
                    );
                }
                Ok(Read::There(Json::Owned(json)))
            }
            Ok((None, _)) => {
                counts.misses.add(1);
                self.count(key, Found::Miss);
                Ok(Read::Missing)
            }
            Err(e) if e.is_unavailable() => {
                counts.degraded_reads.add(1);
                let Some(json) = near.and_then(|near| near.get_offline(key)) else { return Ok(Read::Away) };
                self.count(key, Found::Unchecked);
                Ok(Read::There(Json::Shared(json)))
            }
            Err(e) => Err(e),
        }
    }

    /// Returns the values of the keys that have one, in one round trip. Without Redis: those in the near cache.
    ///
    /// # Errors
    /// [`Error::Decode`] if a value is not a `T`. Keys that hold no string count as missing.
    pub async fn get_many<T: DeserializeOwned, K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<HashMap<String, T>, Error> {
        let counts = &self.link().counts;
        let near = self.inner.near.as_deref();
        let mut found = HashMap::new();
        let mut asked: Vec<(String, String)> = Vec::new();
        for key in keys {
            let short = key.as_ref();
            let whole = self.key(short);
            match near.and_then(|near| near.get(&whole)) {
                Some(json) => {
                    counts.near_hits.add(1);
                    self.count(&whole, Found::Hit);
                    found.insert(short.to_owned(), decode(&whole, &json)?);
                }
                None => asked.push((short.to_owned(), whole)),
            }
        }
        if asked.is_empty() {
            return Ok(found);
        }
        let answers = self.read_all(asked.iter().map(|(_, whole)| whole.as_str())).await?;
        let mut missing = Vec::new();
        for ((short, whole), read) in asked.into_iter().zip(answers) {
            match read {
                Read::There(json) => {
                    counts.hits.add(1);
                    self.count(&whole, Found::Hit);
                    found.insert(short, decode(&whole, &json)?);
                }
                Read::Missing => {
                    self.count(&whole, Found::Miss);
                    missing.push(whole);
                }
                Read::Away => {
                    counts.degraded_reads.add(1);
                    if let Some(json) = near.and_then(|near| near.get_offline(&whole)) {
                        self.count(&whole, Found::Unchecked);
                        found.insert(short, decode(&whole, &json)?);
                    }
                }
            }
        }
        counts.misses.add(missing.len());
        if self.inner.demand && !missing.is_empty() {
            self.ask_workers(missing).await;
        }
        Ok(found)
    }

    /// Counts a read for the fleet.
    fn count(&self, key: &str, found: Found) {
        if let Some(reads) = &self.inner.shared.reads {
            reads.count(key, found);
        }
    }

    /// Reads values. On a Cluster, those of masters that do not answer are away, and the others are there.
    async fn read_all<'a>(&self, keys: impl ExactSizeIterator<Item = &'a str>) -> Result<Vec<Read>, Error> {
        let (mut gets, count) = (redis::pipe(), keys.len());
        gets.ignore_errors();
        for key in keys {
            gets.get(key);
        }
        let ask = async |mut redis| gets.query_async::<Vec<RedisResult<Option<Vec<u8>>>>>(&mut redis).await;
        let answers = match self.link().anywhere().ask_once(ask).await {
            Ok(answers) => answers,
            Err(e) if e.is_unavailable() => return Ok((0..count).map(|_| Read::Away).collect()),
            Err(e) => return Err(e),
        };
        let read = |answer: RedisResult<Option<Vec<u8>>>| match answer {
            Ok(json) => Ok(json.map_or(Read::Missing, |json| Read::There(Json::Owned(json)))),
            Err(e) if e.code() == Some("WRONGTYPE") => Ok(Read::Missing),
            Err(e) => match Error::of(e) {
                e if e.is_unavailable() => Ok(Read::Away),
                e => Err(e),
            },
        };
        answers.into_iter().map(read).collect()
    }

    /// Writes a value with the default TTL. Without Redis: dropped and counted.
    ///
    /// # Errors
    /// [`Error::Encode`]; [`Error::Redis`].
    pub async fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), Error> {
        self.set_with(key, value, self.inner.ttl).await
    }

    /// Writes a value with this TTL. Without Redis: dropped and counted.
    ///
    /// # Errors
    /// [`Error::Encode`]; [`Error::Redis`].
    pub async fn set_with<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        ttl: impl Into<Ttl>,
    ) -> Result<(), Error> {
        let key = self.key(key);
        let set = self.setting(&key, value, ttl.into())?;
        let answer = self.link().at(&key).ask(async |mut redis| set.invoke_async::<()>(&mut redis).await).await;
        self.wrote(&[key], answer)
    }

    /// Writes many values with the default TTL in one round trip. Each is written whole; the batch is not atomic.
    /// Without Redis: dropped and counted.
    ///
    /// # Errors
    /// [`Error::Encode`], and nothing is written; [`Error::Redis`].
    pub async fn set_many<K: AsRef<str>, T: Serialize>(
        &self,
        entries: impl IntoIterator<Item = (K, T)>,
    ) -> Result<(), Error> {
        self.set_many_with(entries, self.inner.ttl).await
    }

    /// Writes many values with this TTL, like [`Cache::set_many`].
    ///
    /// # Errors
    /// As [`Cache::set_many`].
    pub async fn set_many_with<K: AsRef<str>, T: Serialize>(
        &self,
        entries: impl IntoIterator<Item = (K, T)>,
        ttl: impl Into<Ttl>,
    ) -> Result<(), Error> {
        let ttl = ttl.into();
        let mut pipe = redis::pipe();
        pipe.ignore_errors().load_script(&SET).ignore();
        let mut keys = Vec::new();
        for (key, value) in entries {
            let key = self.key(key.as_ref());
            pipe.invoke_script(&self.setting(&key, &value, ttl)?);
            keys.push(key);
        }
        if keys.is_empty() {
            return Ok(());
        }
        let answers: Result<Vec<RedisResult<Value>>, Error> =
            self.link().anywhere().ask_once(async |mut redis| pipe.query_async(&mut redis).await).await;
        // On a Cluster, some masters may have taken theirs.
        for failed in self.wrote(&keys, answers)?.into_iter().filter_map(Result::err) {
            self.wrote::<()>(&keys[..1], Err(Error::of(failed)))?;
        }
        Ok(())
    }

    fn setting<T: Serialize + ?Sized>(&self, key: &str, value: &T, ttl: Ttl) -> Result<ScriptInvocation<'_>, Error> {
        let json = encode(key, value)?;
        let mut set = self.on(&SET, key);
        set.arg(json).arg(ttl.to_arg());
        self.announce(&mut set, key, "warmed");
        Ok(set)
    }

    /// Removes a value and returns whether there was one. A load or fetch of the key in flight is not written. Without
    /// Redis: dropped and counted, `false`.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn delete(&self, key: &str) -> Result<bool, Error> {
        let key = self.key(key);
        let delete = self.deleting(&key);
        let answer = self.link().at(&key).ask(async |mut redis| delete.invoke_async(&mut redis).await).await;
        self.wrote(&[key], answer)
    }

    pub(super) fn deleting(&self, key: &str) -> ScriptInvocation<'_> {
        let mut delete = self.on(&DELETE, key);
        self.announce(&mut delete, key, "evicted");
        delete
    }

    /// Returns whether there is a value. Without Redis: `false`.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn exists(&self, key: &str) -> Result<bool, Error> {
        let exists = redis::Cmd::exists(self.key(key));
        self.read_or_default(self.link().at(key).ask_one(&exists).await)
    }

    /// Returns the remaining TTL of a value; `None` if there is none. Without Redis: `None`.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn ttl(&self, key: &str) -> Result<Option<Ttl>, Error> {
        let pttl = redis::Cmd::pttl(self.key(key));
        let answer =
            self.link().at(key).ask(async |mut redis| pttl.query_async(&mut redis).await.map(Ttl::from_pttl)).await;
        self.read_or_default(answer)
    }

    /// Sets a new TTL and returns whether there is a value. Near caches of other processes may keep the value as long
    /// as before. Without Redis: dropped and counted, `false`.
    ///
    /// # Errors
    /// [`Error::Redis`].
    pub async fn expire(&self, key: &str, ttl: impl Into<Ttl>) -> Result<bool, Error> {
        let key = self.key(key);
        let ttl = ttl.into();
        let expire = match ttl {
            Ttl::For(time) => redis::Cmd::pexpire(&key, super::link::millis(time).cast_signed()),
            // `PERSIST` also returns 0 if the key has no TTL, so existence is read separately.
            Ttl::Forever => redis::Cmd::persist(&key),
        };
        let mut both = redis::pipe();
        both.load_script(&TRACK).ignore();
        self.track(&mut both, &key, ttl.longest());
        both.add_command(expire).ignore().exists(&key);
        let answer = self.link().at(&key).ask(async |mut redis| both.query_async(&mut redis).await).await;
        self.wrote(&[key], answer.map(|(there,): (bool,)| there))
    }

    /// Adds `by` to a counter and returns the count. A counter that this creates gets the default TTL.
    ///
    /// # Errors
    /// [`Error::Unavailable`], because there is no count to return; [`Error::Redis`] if the value is no integer.
    pub async fn increment(&self, key: &str, by: i64) -> Result<i64, Error> {
        self.increment_with(key, by, self.inner.ttl).await
    }

    /// Adds `by` to a counter, with this TTL if the call creates it. Creation, TTL and increment are atomic.
    ///
    /// # Errors
    /// As [`Cache::increment`].
    pub async fn increment_with(&self, key: &str, by: i64, ttl: impl Into<Ttl>) -> Result<i64, Error> {
        let key = self.key(key);
        let mut increment = self.on(&INCREMENT, &key);
        increment.arg(by).arg(ttl.into().to_arg());
        self.announce(&mut increment, &key, "warmed");
        let answer = self.link().at(&key).ask(async |mut redis| increment.invoke_async(&mut redis).await).await;
        self.forget(&key);
        answer
    }

    /// Publishes a value as JSON on a channel and returns the number of subscribers.
    ///
    /// # Errors
    /// [`Error::Encode`]; [`Error::Unavailable`]; [`Error::Redis`].
    pub async fn publish<T: Serialize + ?Sized>(&self, channel: &str, message: &T) -> Result<u64, Error> {
        let publish = redis::Cmd::publish(channel, encode(channel, message)?);
        self.link().anywhere().ask_one(&publish).await
    }

    /// Subscribes to JSON messages on a channel, over a separate connection.
    pub async fn subscribe<T: DeserializeOwned>(&self, channel: &str) -> Subscription<T> {
        Subscription::open(self.link().redis.clone(), channel.to_owned()).await
    }

    /// Subscribes to the changes of values that Samovar and this library announce, of all prefixes.
    pub async fn changes(&self) -> Subscription<Change> {
        self.subscribe(&self.link().names.changed_channel()).await
    }

    /// Returns a call of a script on an entry and its lease.
    pub(super) fn on<'a>(&self, script: &'a Script, key: &str) -> ScriptInvocation<'a> {
        let mut call = script.key(key);
        call.key(self.link().names.lease(&EntryKey::new(key)));
        call
    }

    pub(super) fn announce(&self, call: &mut ScriptInvocation<'_>, key: &str, event: &str) {
        if self.inner.announce {
            call.arg(self.link().names.changed_channel()).arg(json!({ "key": key, "event": event }).to_string());
        } else {
            call.arg("").arg("");
        }
    }

    /// Drops local copies, so that this process returns no older value after a write.
    pub(super) fn forget(&self, key: &str) {
        if let Some(near) = &self.inner.near {
            near.drop_one(key);
        }
        self.inner.shared.flights.forget(key);
    }

    /// Ends a write: drops local copies, and counts a write that Redis did not take.
    fn wrote<T: Default>(&self, keys: &[String], answer: Result<T, Error>) -> Result<T, Error> {
        for key in keys {
            self.forget(key);
        }
        match answer {
            Err(e) if e.drops_writes() => {
                self.link().counts.dropped_writes.add(keys.len());
                Ok(T::default())
            }
            answer => answer,
        }
    }

    fn read_or_default<T: Default>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        match answer {
            Err(e) if e.is_unavailable() => {
                self.link().counts.degraded_reads.add(1);
                Ok(T::default())
            }
            answer => answer,
        }
    }

    /// Asks workers to warm missing keys. If that fails, the next miss asks again.
    async fn ask_workers(&self, mut keys: Vec<String>) {
        let demanded = &self.inner.shared.demanded;
        keys.retain(|key| !demanded.contains_key(key));
        if keys.is_empty() {
            return;
        }
        let message = json!({ "keys": keys, "action": "warm" }).to_string();
        let publish = redis::Cmd::publish(self.link().names.invalidate_channel(), message);
        if self.link().anywhere().ask_one::<u64>(&publish).await.is_ok() {
            for key in keys {
                demanded.insert(key, ());
            }
        }
    }
}

/// Returns a value's bytes unchanged.
fn text(value: redis::Value) -> Result<Option<Vec<u8>>, Error> {
    match value {
        redis::Value::BulkString(json) => Ok(Some(json)),
        redis::Value::Nil => Ok(None),
        other => redis::from_redis_value(other).map_err(|e| Error::Redis(e.into())),
    }
}
