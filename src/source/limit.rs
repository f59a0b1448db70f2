//! Upstream limits for the whole fleet: rate, concurrency, `Retry-After`, circuit breaker.
use crate::job::Upstream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The way to one upstream: admits a request or says how long to wait.
#[derive(Debug)]
pub struct Gate {}

/// Permission for one request; give it back with [`Permit::done`].
#[derive(Debug)]
pub struct Permit {}

/// Why a request is not admitted, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When to ask again.
    pub wait: Duration,
    /// `rate`, `concurrency`, `retry-after`, `breaker`, `tokens`.
    pub reason: &'static str,
}

impl Gate {
    /// Waits for admission until `deadline`; urgent requests go first.
    pub async fn admit(self: &Arc<Self>, _urgent: bool, _deadline: Instant) -> Result<Permit, Refusal> {
        todo!()
    }
    /// How long the upstream is known to admit nothing (breaker, `Retry-After`), without asking Redis.
    pub fn closed_for(&self) -> Option<Duration> {
        todo!()
    }
    /// The upstream behind it.
    pub fn upstream(&self) -> &Upstream {
        todo!()
    }
}
