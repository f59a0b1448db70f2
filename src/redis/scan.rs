//! `SCAN`, step by step: the keys of a database that match a glob.

use std::mem;

use redis::aio::ConnectionLike;
use redis::{RedisResult, Value};

/// Keys that Redis examines in one step, and the most that [`Scan::next`] returns at once.
const STEP: usize = 500;

/// A scan over the keys of a database.
///
/// It returns every key that exists throughout the scan at least once. It may return a key twice, and it leaves out
/// keys that are not UTF-8, which cannot be entries.
#[derive(Debug)]
pub(crate) struct Scan {
    glob: String,
    kind: Option<&'static str>,
    /// `None` after the last step.
    cursor: Option<u64>,
    /// Keys of the last step that are not returned yet.
    found: Vec<String>,
}

impl Scan {
    /// Starts a scan of the keys that match `glob`.
    pub(crate) fn new(glob: impl Into<String>) -> Self {
        Self { glob: glob.into(), kind: None, cursor: Some(0), found: Vec::new() }
    }

    /// Restricts the scan to keys of one type, such as `string`.
    #[cfg(feature = "worker")]
    #[must_use]
    pub(crate) fn of_type(mut self, kind: &'static str) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Returns `true` if all keys were returned.
    #[cfg(feature = "worker")]
    pub(crate) fn is_complete(&self) -> bool {
        self.cursor.is_none() && self.found.is_empty()
    }

    /// Returns the next keys, at most 500 and possibly none; `None` when the scan is complete.
    ///
    /// # Errors
    /// Redis's. The next call repeats the step.
    pub(crate) async fn next(&mut self, redis: &mut impl ConnectionLike) -> RedisResult<Option<Vec<String>>> {
        if self.found.is_empty() {
            let Some(cursor) = self.cursor else { return Ok(None) };
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&self.glob).arg("COUNT").arg(STEP);
            if let Some(kind) = self.kind {
                scan.arg("TYPE").arg(kind);
            }
            let (next, found): (u64, Vec<Value>) = scan.query_async(redis).await?;
            self.found = found.into_iter().filter_map(|key| redis::from_redis_value(key).ok()).collect();
            self.cursor = (next != 0).then_some(next);
        }
        let rest = self.found.split_off(self.found.len().min(STEP));
        Ok(Some(mem::replace(&mut self.found, rest)))
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
