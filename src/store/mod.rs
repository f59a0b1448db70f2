//! Entries in Redis: lease, commit, invalidate.
//!
//! The lease is the lock and the fence. [`Store::lease`] begins a fetch. An invalidation marks leases begun at or
//! before its time. [`Store::commit`] writes only under a lease that is ours and unmarked. That is the whole
//! correctness argument, and each step is one script in one slot.

mod commit;
mod dependants;
mod gap;
mod guard;
mod invalidate;
mod lease;
mod loaded;
mod meta;
mod newer_file;
mod rechecks;
mod snapshot;
mod tags;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::{RedisResult, Script};
use serde_json::json;
use ulid::Ulid;

pub use commit::{Behind, StaleExtension, Written};
pub use gap::{Gap, REVALIDATE_SIGNAL};
pub use guard::{GoneGuard, GuardState, HeldBack};
pub use invalidate::{Invalidated, Terms};
pub use lease::{Fresh, Held, InFlight, Lease, Leased, Removal, Versions};
pub(crate) use lease::{POISON_CRASHES, SUSPECT_CRASHES, other_type_reason, poison_reason};
pub use meta::{LastAttempt, Meta};
pub use rechecks::{Rechecks, Verdict};
pub(crate) use snapshot::TOUCHED;
pub use snapshot::{Expiry, Snapshot};
pub use tags::{Seeking, Stamp, WithTags};

use crate::entry::EntryKey;
use crate::protocol::{Keys, LEASE_RECORD};
use crate::redis::{Connection, RedisTime, with_preludes};

/// The time for which metadata outlive their value: people ask why it went.
pub(crate) const META_OUTLIVES: Duration = Duration::from_secs(3_600);

/// The codec of metadata, for scripts.
const META: &str = include_str!("lua/meta.lua");

/// Returns a script that reads or writes leases' records and metadata.
fn coded(script: &str) -> Script {
    with_preludes(&[LEASE_RECORD, META], script)
}

/// Entries with their leases and metadata.
#[derive(Clone, Debug)]
pub struct Store {
    redis: Connection,
    keys: Keys,
    /// The holder of its leases; their tokens begin with it.
    holder: Arc<str>,
    /// When this worker last logged a gap.
    gap_logged: Arc<Mutex<Option<Instant>>>,
}

impl Store {
    /// Returns a store of the entries under these keys.
    pub fn new(redis: Connection, keys: Keys) -> Self {
        Self { redis, keys, holder: Ulid::generate().to_string().into(), gap_logged: Arc::default() }
    }

    /// Returns a store for the leases of this holder, a word without dashes: [`Store::holders`] tells whose a lease is.
    #[must_use]
    pub fn held_by(mut self, holder: &str) -> Self {
        self.holder = holder.into();
        self
    }

    /// Returns the store over another connection.
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

    /// Returns Redis's clock.
    ///
    /// # Errors
    /// Redis's.
    pub async fn now(&self) -> RedisResult<RedisTime> {
        redis::cmd("TIME").query_async(&mut self.redis.clone()).await
    }

    /// Returns a call with the keys of an entry: value, lease, metadata.
    fn call<'a>(&self, script: &'a Script, key: &EntryKey) -> redis::ScriptInvocation<'a> {
        let mut call = script.key(key.as_str());
        call.key(self.keys.lease(key)).key(self.keys.meta(key));
        call
    }
}

/// Returns the announcement of a change, as in docs/protocol.md.
fn change(key: &EntryKey, event: &str) -> String {
    format!(r#"{{"key":{},"event":"{event}"}}"#, json!(key.as_str()))
}
