//! The state that all jobs of a fleet share: its live workers, the reloads that they refused, and keys of the wrong
//! type in place of those that all jobs need.
//!
//! A worker tells that it refused its last reload under a key that expires, again and again while that lasts. Builds
//! before this one tell nothing, and leave these keys alone.

use std::time::Duration;

use redis::RedisResult;
use serde::{Deserialize, Serialize};

use super::Ops;
use crate::entry::duration::millis;
use crate::entry::excerpt;
use crate::redis::requirements::explain;
use crate::redis::{RedisTime, WrongType, is_of_keys, wrong_types};

/// The time for which a refusal is kept if its worker does not tell it again.
const KEPT: Duration = Duration::from_secs(15);
/// The most refusals that are shown.
const SHOWN: usize = 10;
/// The longest reason that is told, in characters.
const REASON: usize = 500;

/// A worker that refused its last reload, and goes on with its earlier job files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RefusedReload {
    /// The worker.
    pub worker: String,
    /// When it refused the reload (Redis time, ms since the epoch).
    #[schema(value_type = i64)]
    pub at_ms: RedisTime,
    /// The number of faults and the place of the first.
    pub reason: String,
}

/// The contents of the key of a worker's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing, or an empty string of another program.
    Free,
    /// A refusal of this worker.
    Own,
    /// Content of another program.
    Foreign,
}

/// The state that all jobs share.
#[derive(Debug, Default)]
pub struct FleetStatus {
    /// The number of live workers; `None` if their record is of the wrong type.
    pub workers: Option<usize>,
    /// The live workers that refused their last reload, the latest first; ten at most.
    pub refused_reloads: Vec<RefusedReload>,
    /// Keys of the wrong type in place of those that all jobs share.
    pub faults: Vec<String>,
    /// Why Redis refuses to write.
    pub refused_writes: Option<String>,
}

impl Ops {
    /// Reads the state that all jobs share. `living` are the live workers.
    ///
    /// # Errors
    /// Fails if Redis returns an error, or if `living` is one.
    pub async fn fleet(&self, living: RedisResult<Vec<String>>) -> RedisResult<FleetStatus> {
        let living = match living {
            Err(e) if is_of_keys(&e) => None,
            living => Some(living?),
        };
        let shared = self.keys.all_fixed([], []);
        let wrong = wrong_types(&mut self.redis.clone(), &self.keys, &shared).await?;
        Ok(FleetStatus {
            workers: living.as_ref().map(Vec::len),
            refused_reloads: self.refused_reloads(&living.unwrap_or_default()).await?,
            faults: wrong.iter().map(WrongType::to_string).collect(),
            refused_writes: self.refused_writes().await,
        })
    }

    /// Returns why Redis refuses to write: it has no memory left, cannot save, or misses replicas. Nothing is written.
    async fn refused_writes(&self) -> Option<String> {
        const REFUSALS: [&str; 4] = ["OOM", "MISCONF", "NOREPLICAS", "READONLY"];
        // No worker has this name, so there is no such key to overwrite.
        let mut set = redis::cmd("SET");
        set.arg(self.keys.refused("-")).arg("").arg("XX");
        let refused = set.exec_async(&mut self.redis.clone()).await.err()?;
        let is_refusal = refused.code().is_some_and(|code| REFUSALS.contains(&code));
        is_refusal.then(|| format!("Redis refuses to write, so nothing can be stored: {}", explain(&refused)))
    }

    /// Returns the refusals of these workers, the latest first.
    async fn refused_reloads(&self, workers: &[String]) -> RedisResult<Vec<RefusedReload>> {
        let mut ask = redis::pipe();
        for worker in workers {
            ask.cmd("GET").arg(self.keys.refused(worker));
        }
        if workers.is_empty() {
            return Ok(Vec::new());
        }
        let texts: Vec<RedisResult<Option<String>>> = ask.ignore_errors().query_async(&mut self.redis.clone()).await?;
        let read = |text: RedisResult<Option<String>>| serde_json::from_str(&text.ok()??).ok();
        let mut refused: Vec<RefusedReload> = texts.into_iter().filter_map(read).collect();
        refused.sort_by_key(|refused| std::cmp::Reverse(refused.at_ms));
        refused.truncate(SHOWN);
        Ok(refused)
    }

    /// Tells the fleet that a worker refused its last reload. It counts for a few seconds, so tell it again. Returns
    /// `false` if another program uses the key, which then stays as it is.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn tell_refused(&self, refused: &RefusedReload) -> RedisResult<bool> {
        let place = self.place_of_refusal(&refused.worker).await?;
        if place == Place::Foreign {
            return Ok(false);
        }
        let reason = excerpt(&refused.reason, REASON);
        let text =
            serde_json::to_string(&RefusedReload { reason, ..refused.clone() }).map_err(std::io::Error::other)?;
        let mut tell = redis::cmd("SET");
        tell.arg(self.keys.refused(&refused.worker)).arg(text).arg("PX").arg(millis(KEPT));
        if place == Place::Free {
            tell.arg("NX");
        }
        let set: Option<String> = tell.query_async(&mut self.redis.clone()).await?;
        Ok(set.is_some())
    }

    /// Returns what the key of a worker's refusal holds.
    async fn place_of_refusal(&self, worker: &str) -> RedisResult<Place> {
        // Not `GET`, which the sampler takes for a read by an API.
        let mut ask = redis::cmd("GETRANGE");
        let ask = ask.arg(self.keys.refused(worker)).arg(0).arg(-1);
        let text: Vec<u8> = match ask.query_async(&mut self.redis.clone()).await {
            Err(e) if e.code() == Some("WRONGTYPE") => return Ok(Place::Foreign),
            text => text?,
        };
        let is_own = || serde_json::from_slice::<RefusedReload>(&text).is_ok_and(|refused| refused.worker == worker);
        Ok(if text.is_empty() {
            Place::Free
        } else if is_own() {
            Place::Own
        } else {
            Place::Foreign
        })
    }

    /// Takes back that a worker refused its last reload.
    ///
    /// # Errors
    /// Fails if Redis returns an error; it is forgotten by itself then.
    pub async fn take_back_refused(&self, worker: &str) -> RedisResult<()> {
        if self.place_of_refusal(worker).await? != Place::Own {
            return Ok(());
        }
        redis::cmd("DEL").arg(self.keys.refused(worker)).exec_async(&mut self.redis.clone()).await
    }
}
