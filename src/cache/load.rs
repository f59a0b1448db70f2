//! Loading missing values once: single flight in the process and across the fleet.
//!
//! In the process, calls for one key form a flight: the first loads, the others share its result. Across the fleet the
//! first takes the lease that Samovar's workers also fetch under, so no two services, and no service and worker, load
//! the same key. An invalidation, delete or write during the load marks the lease: the loaded value is then returned to
//! its caller, and neither written nor shared.
//!
//! On failure: when the loading call is cancelled, the next one takes over. When its process dies, the lease expires,
//! and others wait at most for their load timeout. Without Redis every process loads, one call at a time for each key.

use std::any::Any;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::cache::{TRACK, leased};
use super::flight::{Outcome, Seat};
use super::json::{Read, decode, encode};
use super::link::{Link, afterwards, millis, token};
use super::{Cache, Error, Ttl};
use crate::entry::EntryKey;

/// The first and the longest interval between checks for another process's result.
const POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Expired members that are removed when a value is tracked.
const DROPPED: usize = 100;

static BEGIN_LOAD: LazyLock<Script> = LazyLock::new(|| leased(include_str!("lua/begin_load.lua")));
static COMMIT_LOAD: LazyLock<Script> = LazyLock::new(|| leased(include_str!("lua/commit_load.lua")));
static DROP_LEASE: LazyLock<Script> = LazyLock::new(|| leased(include_str!("lua/drop_lease.lua")));

/// A lease held by this process. Dropping it releases it.
struct Lease {
    link: Arc<Link>,
    name: String,
    token: String,
    held: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let (link, name, token) =
            (Arc::clone(&self.link), std::mem::take(&mut self.name), std::mem::take(&mut self.token));
        afterwards(async move {
            let mut give_back = DROP_LEASE.key(&name);
            give_back.arg(token);
            // If this fails, the lease expires.
            let _ = link.at(&name).ask(async |mut redis| give_back.invoke_async::<()>(&mut redis).await).await;
        });
    }
}

/// The state that a loading call finds.
enum Begun {
    /// The value has appeared.
    There(Vec<u8>),
    /// No other process loads; the value will be written.
    Leased(Lease),
    /// The value will not be written: Redis is unreachable, or another loader is slow.
    Unwritten,
}

impl Cache {
    /// Returns the value. If there is none, calls `load` and writes its result with the default TTL. Of any number of
    /// concurrent calls, in this process and in others, one loads.
    ///
    /// A key that is deleted, written or invalidated during the load is not overwritten. A stored value that is not a
    /// `T` is left unchanged, and the loaded value is returned without being written. Without Redis: loads, one call at
    /// a time in this process.
    ///
    /// ```no_run
    /// # async fn example(cache: samovar::cache::Cache) -> Result<(), Box<dyn std::error::Error>> {
    /// let title: String = cache.get_or_load("42", async || {
    ///     std::fs::read_to_string("title.txt")
    /// }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The error of `load`, shared by the calls that waited for it. Errors of Redis are logged, not returned.
    pub async fn get_or_load<T, E, F>(&self, key: &str, load: impl FnOnce() -> F) -> Result<T, Arc<E>>
    where
        T: Serialize + DeserializeOwned,
        E: Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        self.get_or_load_with(key, self.inner().ttl, load).await
    }

    /// Loads like [`Cache::get_or_load`], with this TTL.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub async fn get_or_load_with<T, E, F>(
        &self,
        key: &str,
        ttl: impl Into<Ttl>,
        load: impl FnOnce() -> F,
    ) -> Result<T, Arc<E>>
    where
        T: Serialize + DeserializeOwned,
        E: Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let key = self.key(key);
        let away = match self.read(&key).await {
            Ok(Read::There(json)) => match decode(&key, &json) {
                Ok(value) => return Ok(value),
                Err(e) => return self.load_unwritten(&e, load).await,
            },
            Ok(Read::Missing) => false,
            Ok(Read::Away) => true,
            Err(e) => return self.load_unwritten(&e, load).await,
        };
        let counts = &self.link().counts;
        let flights = &self.inner().shared.flights;
        let mut seat = flights.join(&key);
        let mut outcome = seat.flight.clone().lock_owned().await;
        loop {
            match &*outcome {
                Some(Outcome::Loaded(json)) => {
                    if let Ok(value) = decode(&key, json.as_bytes()) {
                        counts.shared_loads.add(1);
                        return Ok(value);
                    }
                }
                Some(Outcome::Failed(error)) => {
                    if let Ok(error) = Arc::clone(error).downcast::<E>() {
                        counts.shared_loads.add(1);
                        return Err(error);
                    }
                }
                None => {}
            }
            if seat.is_current() {
                break;
            }
            // The key was written, deleted or invalidated during the wait: join the later flight.
            seat = flights.join(&key);
            outcome = seat.flight.clone().lock_owned().await;
        }
        let ttl = ttl.into();
        let lease = match if away { Begun::Unwritten } else { self.begin(&key, ttl).await } {
            Begun::There(json) => match decode(&key, &json) {
                Ok(value) => {
                    *outcome = String::from_utf8(json).ok().map(|json| Outcome::Loaded(json.into()));
                    seat.over();
                    return Ok(value);
                }
                Err(e) => return self.load_unwritten(&e, load).await,
            },
            Begun::Leased(lease) => Some(lease),
            Begun::Unwritten => None,
        };
        self.load_and_land(&key, ttl, lease, &seat, &mut outcome, load).await
    }

    /// Calls `load`, writes its result under the lease, and shares it with the calls that wait in the flight.
    async fn load_and_land<T, E, F>(
        &self,
        key: &str,
        ttl: Ttl,
        lease: Option<Lease>,
        seat: &Seat<'_>,
        outcome: &mut Option<Outcome>,
        load: impl FnOnce() -> F,
    ) -> Result<T, Arc<E>>
    where
        T: Serialize,
        E: Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let counts = &self.link().counts;
        counts.loads.add(1);
        match load().await {
            Ok(value) => {
                match encode(key, &value) {
                    Ok(json) if self.land(key, lease, &json, ttl, seat).await => {
                        *outcome = Some(Outcome::Loaded(json.into()));
                    }
                    // The key was written or invalidated during the load: waiting calls read again.
                    Ok(_) => counts.fenced_loads.add(1),
                    Err(e) => warn!("a loaded value is not cached: {e}"),
                }
                seat.over();
                Ok(value)
            }
            Err(error) => {
                let error = Arc::new(error);
                *outcome = Some(Outcome::Failed(Arc::clone(&error) as Arc<dyn Any + Send + Sync>));
                seat.over();
                Err(error)
            }
        }
    }

    /// Loads without the cache, because the stored value cannot be read.
    async fn load_unwritten<T, E, F>(&self, why: &Error, load: impl FnOnce() -> F) -> Result<T, Arc<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        warn!("the cached value cannot be read; loading without the cache: {why}");
        self.link().counts.loads.add(1);
        load().await.map_err(Arc::new)
    }

    /// Acquires the lease, or waits for its holder.
    async fn begin(&self, key: &str, ttl: Ttl) -> Begun {
        let shared = &self.inner().shared;
        let until = Instant::now() + shared.load_wait;
        let name = self.link().names.lease(&EntryKey::new(key));
        let mut wait = POLL.0;
        // Released also if the answer is lost or the call is cancelled.
        let mut lease = Lease { link: Arc::clone(self.link()), name, token: token(), held: true };
        loop {
            let mut begin = self.on(&BEGIN_LOAD, key);
            begin.arg(&lease.token).arg(millis(shared.lease));
            let answer: Result<(String, Option<Vec<u8>>), Error> = self
                .link()
                .at(key)
                .ask(async |mut redis| begin.invoke_async(&mut redis).await.and_then(begin_reply))
                .await;
            match answer {
                Ok((what, _)) if what == "leased" => return self.tracked(key, lease, ttl).await,
                Ok((_, Some(json))) => {
                    lease.held = false;
                    return Begun::There(json);
                }
                Ok(_) if Instant::now() < until => {
                    sleep(wait.mul_f64(rand::random_range(0.5..=1.0))).await;
                    wait = POLL.1.min(wait * 2);
                }
                Ok(_) => {
                    lease.held = false;
                    debug!(key, "another loader is slow; loading without a lease");
                    return Begun::Unwritten;
                }
                Err(e) => {
                    debug!(key, "loading without a lease: {e}");
                    return Begun::Unwritten;
                }
            }
        }
    }

    /// Tracks the value before it is loaded, so that an invalidation by tag finds it. If that fails, the value is not
    /// written.
    async fn tracked(&self, key: &str, lease: Lease, ttl: Ttl) -> Begun {
        let mut track = redis::pipe();
        track.load_script(&TRACK).ignore();
        let life = ttl.longest().saturating_add(self.inner().shared.lease);
        self.track(&mut track, key, life);
        match self.link().anywhere().ask(async |mut redis| track.query_async::<()>(&mut redis).await).await {
            Ok(()) => Begun::Leased(lease),
            Err(e) => {
                warn!(
                    key,
                    "the loaded value will not be written, because an invalidation by tag would not find it: {e}"
                );
                Begun::Unwritten
            }
        }
    }

    /// Adds the commands that track a value with this remaining life to a pipeline.
    pub(super) fn track(&self, pipe: &mut redis::Pipeline, key: &str, life: Duration) {
        for set in self.link().names.loaded(key) {
            let mut call = TRACK.key(set);
            call.arg(key).arg(millis(life)).arg(DROPPED);
            pipe.invoke_script(&call).ignore();
        }
    }

    /// Writes a loaded value; `false` if it must not be shared.
    async fn land(&self, key: &str, lease: Option<Lease>, json: &str, ttl: Ttl, seat: &Seat<'_>) -> bool {
        let current = seat.is_current();
        let Some(mut lease) = lease.filter(|_| current) else { return current };
        let mut land = self.on(&COMMIT_LOAD, key);
        land.arg(&lease.token).arg(json).arg(ttl.to_arg());
        self.announce(&mut land, key, "warmed");
        let written = self.link().at(key).ask(async |mut redis| land.invoke_async::<bool>(&mut redis).await).await;
        match written {
            Ok(written) => {
                lease.held = false;
                written
            }
            Err(e) => {
                self.link().counts.dropped_writes.add(1);
                debug!(key, "a loaded value was not written: {e}");
                true
            }
        }
    }
}

fn begin_reply(reply: Vec<redis::Value>) -> redis::RedisResult<(String, Option<Vec<u8>>)> {
    let mut parts = reply.into_iter();
    let what = parts.next().map(redis::from_redis_value).transpose()?.unwrap_or_default();
    let value = parts.next().map(redis::from_redis_value).transpose()?;
    Ok((what, value))
}
