//! Why a request is not admitted, and for how long.

use std::time::Duration;

/// When a request should be repeated that was refused for lack of a permit, of a place in the line, or of Redis.
const SOON: Duration = Duration::from_millis(500);

/// The reason of a refusal while Redis does not answer.
pub(super) const REDIS: &str = "redis";

/// Why a request is not admitted, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The time after which to ask again.
    pub wait: Duration,
    /// `rate`, `concurrency`, `reserved`, `retry-after`, `breaker`, `refused` or `tokens`; `redis` if Redis does not
    /// answer, and `limits` if the keys of the limits cannot be used.
    pub reason: &'static str,
}

impl Refusal {
    /// Returns a refusal of a request that may be repeated soon.
    pub(super) fn soon(reason: &'static str) -> Self {
        Self { wait: SOON, reason }
    }

    /// Returns `true` if Redis as a whole failed: the refusal tells nothing of the upstream.
    pub fn is_of_redis(&self) -> bool {
        self.reason == REDIS
    }

    /// Returns the reason as a sentence about the upstream.
    pub fn says(&self) -> &'static str {
        match self.reason {
            "breaker" => "failed too often; only probes are sent for a while (breaker)",
            "retry-after" => "asked for a pause (Retry-After)",
            "refused" => "refuses this account, and is asked less and less often until a person fixes that",
            "tokens" => "has spent its token budget",
            "reserved" => "has reserved the rest of its token budget for requests in flight",
            "rate" | "concurrency" => "has as many requests as its limits allow",
            "limits" => "cannot be asked, because the keys of its limits in Redis cannot be used",
            _ => "cannot be asked without Redis, which holds its limits",
        }
    }
}

/// Returns the reason in a script's answer; `None` if the request is admitted.
pub(super) fn reason(word: &str) -> Option<&'static str> {
    let word = word.split_once(':').map_or(word, |(word, _)| word);
    ["rate", "concurrency", "reserved", "retry-after", "breaker", "refused", "tokens"]
        .into_iter()
        .find(|known| *known == word)
}
