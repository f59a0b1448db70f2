//! `SCAN`, step by step: the keys of a database that match a glob, on all masters.

use std::mem;
use std::sync::Arc;

use redis::{RedisResult, Value};

use super::Connection;
use super::cluster::topology::Topology;

/// Keys that Redis examines in one step, and the most that [`Scan::next`] returns at once.
const STEP: usize = 500;

/// A scan over the keys of a database.
///
/// It returns every key that exists throughout the scan at least once. It may return a key twice, and it leaves out
/// keys that are not UTF-8, which cannot be entries. If slots of a Cluster move meanwhile, the masters that received
/// some, or keys of some, are scanned again.
#[derive(Debug)]
pub(crate) struct Scan {
    glob: String,
    kind: Option<&'static str>,
    cursor: u64,
    /// The masters whose keys are not all found, the present one last; `None` before the first step.
    left: Option<Vec<Connection>>,
    /// The slots when the scan began, or when the masters that received some were scanned again.
    began: Option<Arc<Topology>>,
    /// All masters were scanned, and those that received some are scanned again.
    again: bool,
    /// Keys of slots that move need not be found.
    is_rough: bool,
    /// Keys of the last step that are not returned yet.
    found: Vec<String>,
}

impl Scan {
    /// Starts a scan of the keys that match `glob`.
    pub(crate) fn new(glob: impl Into<String>) -> Self {
        Self {
            glob: glob.into(),
            kind: None,
            cursor: 0,
            left: None,
            began: None,
            again: false,
            is_rough: false,
            found: Vec::new(),
        }
    }

    /// Restricts the scan to keys of one type, such as `string`.
    #[cfg(feature = "worker")]
    #[must_use]
    pub(crate) fn of_type(mut self, kind: &'static str) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Lets the scan miss keys of slots that move meanwhile. It waits for no news of the slots then.
    #[cfg(feature = "worker")]
    #[must_use]
    pub(crate) fn roughly(mut self) -> Self {
        self.is_rough = true;
        self
    }

    /// Returns `true` if all keys were returned.
    #[cfg(feature = "worker")]
    pub(crate) fn is_complete(&self) -> bool {
        self.left.as_ref().is_some_and(Vec::is_empty) && self.found.is_empty()
    }

    /// Returns the next keys, at most 500 and possibly none; `None` when the scan is complete.
    ///
    /// # Errors
    /// Redis's. The next call repeats the step, or begins anew if a master was replaced.
    pub(crate) async fn next(&mut self, redis: &mut Connection) -> RedisResult<Option<Vec<String>>> {
        if self.found.is_empty() {
            if self.left.is_none() {
                (self.began, self.again) = (redis.slots(), false);
                (self.left, self.cursor) = (Some(redis.masters().await), 0);
            }
            let Some(mut master) = self.left.as_ref().and_then(|left| left.last()).cloned() else { return Ok(None) };
            let mut scan = redis::cmd("SCAN");
            scan.arg(self.cursor).arg("MATCH").arg(&self.glob).arg("COUNT").arg(STEP);
            if let Some(kind) = self.kind {
                scan.arg("TYPE").arg(kind);
            }
            let step: RedisResult<(u64, Vec<Value>)> = scan.query_async(&mut master).await;
            if step.is_err() && self.began != redis.slots() {
                self.left = None;
            }
            let (next, found) = step?;
            self.found = found.into_iter().filter_map(|key| redis::from_redis_value(key).ok()).collect();
            self.cursor = next;
            if next == 0 {
                self.end_master(redis).await;
            }
        }
        let rest = self.found.split_off(self.found.len().min(STEP));
        Ok(Some(mem::replace(&mut self.found, rest)))
    }

    /// Goes on to the next master. After the last one, those that received slots meanwhile follow. Where slots stay
    /// open, once is enough: what has left a master by the end of its scan has arrived by then.
    async fn end_master(&mut self, redis: &Connection) {
        let left = self.left.get_or_insert_default();
        left.pop();
        if !left.is_empty() || self.is_rough {
            return;
        }
        redis.slots_anew().await;
        if let (Some(began), Some(now)) = (&self.began, redis.slots()) {
            if self.again && now == *began {
                return;
            }
            self.again = true;
            left.extend(now.gained(began).into_iter().filter_map(|address| redis.master_at(address)));
            self.began = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::redis::server::Server;

    async fn all(mut scan: Scan, server: &Server) -> BTreeSet<String> {
        let mut redis = server.connect().await;
        let mut all = BTreeSet::new();
        while let Some(found) = scan.next(&mut redis).await.unwrap() {
            assert!(found.len() <= STEP, "{}", found.len());
            all.extend(found);
        }
        all
    }

    #[tokio::test]
    async fn a_scan_finds_every_matching_key_in_bounded_steps() {
        let server = Server::start().await;
        let mut redis = server.connect().await;
        let mut pipe = redis::pipe();
        for n in 0..1_200 {
            pipe.set(format!("a:{n}"), n).ignore();
            pipe.set(format!("b:{n}"), n).ignore();
        }
        pipe.set(b"a:\xff", 1).ignore();
        pipe.lpush("a:list", 1).ignore();
        let () = pipe.query_async(&mut redis).await.unwrap();
        let strings: BTreeSet<String> = (0..1_200).map(|n| format!("a:{n}")).collect();
        assert_eq!(all(Scan::new("a:*").of_type("string"), &server).await, strings);
        assert_eq!(all(Scan::new("a:*"), &server).await.len(), 1_201);
        assert!(all(Scan::new("c:*"), &server).await.is_empty());
    }
}
