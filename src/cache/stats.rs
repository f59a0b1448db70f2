//! Counts of calls since the cache was built.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the cache was built, of all caches and limiters that share its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Values read from Redis.
    pub hits: u64,
    /// Values read from the near cache.
    pub near_hits: u64,
    /// Reads of missing keys.
    pub misses: u64,
    /// Reads that Redis did not answer: served from the near cache, or returned as a miss without being counted as one.
    pub degraded_reads: u64,
    /// Writes that did not reach Redis, or that it refused (full, read-only), without an error to the caller.
    pub dropped_writes: u64,
    /// Loaders that ran for `get_or_load`.
    pub loads: u64,
    /// Calls of `get_or_load` that shared the load of another call of this process.
    pub shared_loads: u64,
    /// Loaded values that were not written, because the key was written or invalidated during the load.
    pub fenced_loads: u64,
    /// Requests that a rate limiter decided locally.
    pub local_limits: u64,
    /// Reads whose report to the fleet Redis refused or did not answer, or that waited too long for it: the fleet's hit
    /// rate may lack them.
    pub unreported_reads: u64,
    /// `true` while a breaker is open: some calls are answered without Redis.
    pub degraded: bool,
}

/// One count.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: Count,
    pub(super) near_hits: Count,
    pub(super) misses: Count,
    pub(super) degraded_reads: Count,
    pub(super) dropped_writes: Count,
    pub(super) loads: Count,
    pub(super) shared_loads: Count,
    pub(super) fenced_loads: Count,
    pub(super) local_limits: Count,
    pub(super) unreported_reads: Count,
}

impl Counts {
    pub(super) fn stats(&self, degraded: bool) -> Stats {
        Stats {
            hits: self.hits.get(),
            near_hits: self.near_hits.get(),
            misses: self.misses.get(),
            degraded_reads: self.degraded_reads.get(),
            dropped_writes: self.dropped_writes.get(),
            loads: self.loads.get(),
            shared_loads: self.shared_loads.get(),
            fenced_loads: self.fenced_loads.get(),
            local_limits: self.local_limits.get(),
            unreported_reads: self.unreported_reads.get(),
            degraded,
        }
    }
}
