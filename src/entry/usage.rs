//! AI tokens spent, and requests and tokens saved, by warming.

use std::collections::BTreeMap;

use serde::Serialize;

/// The fields of a job's counters in Redis, beside its outcomes.
pub(crate) const NAMES: [&str; 4] = ["tokens_spent", "tokens_saved", "calls_saved", "not_modified"];

/// A job's usage in the whole fleet since its counters started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Usage {
    /// AI tokens spent, whether or not the answers were usable.
    pub tokens_spent: u64,
    /// AI tokens saved: the cost of the values that were kept because nothing they are made from changed.
    pub tokens_saved: u64,
    /// AI calls saved for the same reason.
    pub calls_saved: u64,
    /// HTTP answers 304: the value is unchanged.
    pub not_modified: u64,
    /// When the counters started (Redis time, ms since the epoch); absent before the first count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
}

impl Usage {
    /// Reads the usage from a job's counters.
    pub fn of(counters: &BTreeMap<String, String>) -> Self {
        let number = |name: &str| counters.get(name).and_then(|count| count.parse().ok());
        let [tokens_spent, tokens_saved, calls_saved, not_modified] =
            NAMES.map(|name| number(name).unwrap_or_default());
        let since_ms = counters.get("since").and_then(|since| since.parse().ok());
        Self { tokens_spent, tokens_saved, calls_saved, not_modified, since_ms }
    }

    /// Returns the counts, in the order of `NAMES`.
    pub(crate) fn counts(self) -> [u64; 4] {
        [self.tokens_spent, self.tokens_saved, self.calls_saved, self.not_modified]
    }

    /// Adds further usage.
    pub(crate) fn add(&mut self, more: Self) {
        self.tokens_spent += more.tokens_spent;
        self.tokens_saved += more.tokens_saved;
        self.calls_saved += more.calls_saved;
        self.not_modified += more.not_modified;
    }
}
