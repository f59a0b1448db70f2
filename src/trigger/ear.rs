//! The ear's own test: whether this worker hears, and what the fleet may have missed.
//!
//! Pub/sub tells nobody what was lost. So each worker sends canaries over the channels' own connection and notes between which
//! times it heard them all. A canary that does not come back means a deaf connection, which is then given up. When a worker
//! hears again, somebody else must have heard all the while; if nobody has, what was published bare meanwhile is missed, and
//! everything is suspect.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{RedisResult, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Doubt, Suspicion};
use crate::redis::{Connection, Keys};

/// How often a canary is sent.
const CANARY: Duration = Duration::from_secs(1);
/// Canaries in a row that do not come back before the connection counts as deaf.
const DEAF: i64 = 4;
/// Canaries after which the others have said what they heard.
const SETTLED: u32 = 3;
/// How long what a worker has heard is of interest: ms.
const FORGOTTEN: i64 = 24 * 3_600 * 1_000;

static SEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/canary.lua")));

/// What one worker hears.
#[derive(Debug)]
pub struct Ear {
    redis: Connection,
    keys: Keys,
    worker: Arc<str>,
    suspicion: Suspicion,
    /// The first and the last canary heard over the present connection (Redis time, ms); 0 for none.
    since: AtomicI64,
    last: AtomicI64,
    /// The last one heard over the connection before.
    before: AtomicI64,
    /// Rung when the present connection is found to be deaf.
    deaf: Notify,
}

impl Ear {
    /// The ear of `worker`.
    pub fn new(redis: Connection, keys: Keys, worker: Arc<str>, suspicion: Suspicion) -> Self {
        let zero = AtomicI64::default;
        Self { redis, keys, worker, suspicion, since: zero(), last: zero(), before: zero(), deaf: Notify::new() }
    }

    /// A canary came: its text.
    pub fn heard(&self, canary: &str) {
        let Some((worker, at)) = canary.rsplit_once(' ') else { return };
        let Some(at) = at.parse().ok().filter(|_| worker == &*self.worker) else { return };
        let _ = self.since.compare_exchange(0, at, Ordering::AcqRel, Ordering::Acquire);
        self.last.fetch_max(at, Ordering::AcqRel);
    }

    /// The connection ended.
    pub fn lost(&self) {
        self.since.store(0, Ordering::Release);
        let last = self.last.swap(0, Ordering::AcqRel);
        self.before.fetch_max(last, Ordering::AcqRel);
    }

    /// Waits until the connection is found to be deaf.
    pub async fn is_deaf(&self) {
        self.deaf.notified().await;
    }

    /// Sends canaries until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut unheard = 0;
        // The last canary that was heard when the one before was sent.
        let mut known = 0;
        // The hearing that was checked for a gap before it, and canaries since it began.
        let mut checked = 0;
        let mut waited = 0;
        while !stop.is_cancelled() {
            let (since, last) = (self.since.load(Ordering::Acquire), self.last.load(Ordering::Acquire));
            let mut call = SEND.key(self.keys.ears());
            call.arg(&*self.worker).arg(since).arg(last).arg(self.keys.signal_channel());
            call.arg(format!("canary {}", self.worker));
            match call.invoke_async::<i64>(&mut self.redis.clone()).await {
                Ok(_) => {
                    // That which was sent just now may come later than the reply; the one before has had its time.
                    unheard = if last > known { 0 } else { unheard + 1 };
                    known = last;
                    if unheard > DEAF {
                        warn!("nothing is heard on the subscription any more: it is made anew");
                        self.deaf.notify_waiters();
                        unheard = 0;
                    }
                    waited = if since != 0 && since != checked { waited + 1 } else { 0 };
                    if waited >= SETTLED {
                        match self.check(since).await {
                            Ok(Some(())) => (checked, waited) = (since, 0),
                            // Somebody who may have heard it all has yet to say so.
                            Ok(None) => {}
                            Err(e) => debug!("cannot see what the others heard: {e}"),
                        }
                    }
                }
                Err(e) => debug!("no canary could be sent: {e}"),
            }
            tokio::select! {
                () = tokio::time::sleep(CANARY) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Whether somebody heard all that was published since this worker, or the fleet, last did; `None` where that cannot be
    /// said yet.
    async fn check(&self, since: i64) -> RedisResult<Option<()>> {
        let ears: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(self.keys.ears()).query_async(&mut self.redis.clone()).await?;
        let others: Vec<(String, i64, i64)> = ears
            .into_iter()
            .filter(|(worker, _)| *worker != *self.worker)
            .filter_map(|(worker, heard)| {
                let (since, last) = heard.split_once(' ')?;
                Some((worker, since.parse().ok()?, last.parse().ok()?))
            })
            .collect();
        let now = self.last.load(Ordering::Acquire);
        let newest = others.iter().map(|(_, _, last)| *last).max().unwrap_or(0);
        let before = match self.before.load(Ordering::Acquire) {
            0 => newest,
            before => before,
        };
        let covers = others.iter().filter(|(_, from, _)| *from <= before);
        let covered = covers.clone().any(|(_, _, last)| *last >= since);
        let in_question = covers.clone().any(|(_, _, last)| *last + 3 * DEAF * 1_000 > now);
        if before > 0 && !covered {
            if in_question && now - since < 3 * DEAF * 1_000 {
                return Ok(None);
            }
            let seconds = (since - before) / 1_000;
            info!("nobody was listening for some {seconds} s: bare invalidations may have been missed");
            self.suspicion.raise(since, Doubt::Missed).await?;
        }
        let gone: Vec<String> = others
            .into_iter()
            .filter(|(_, _, last)| *last < now - FORGOTTEN && *last < newest)
            .map(|(worker, _, _)| worker)
            .collect();
        if !gone.is_empty() {
            let () = redis::cmd("HDEL").arg(self.keys.ears()).arg(gone).query_async(&mut self.redis.clone()).await?;
        }
        Ok(Some(()))
    }
}
