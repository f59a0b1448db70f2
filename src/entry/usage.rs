//! What warming cost, and what it saved by not asking.

use std::collections::BTreeMap;

use serde::Serialize;

/// The names under which a job's counters are kept, beside its outcomes.
pub(crate) const NAMES: [&str; 4] = ["tokens_spent", "tokens_saved", "calls_saved", "not_modified"];

/// A job's spending in the whole fleet since its counters began; they are kept in Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Spending {
    /// AI tokens spent, for answers of use or of none.
    pub tokens_spent: u64,
    /// AI tokens saved by not asking: what the values cost that were kept because nothing changed that they are made from.
    pub tokens_saved: u64,
    /// AI calls saved so.
    pub calls_saved: u64,
    /// HTTP answers that said only that the value is unchanged (304).
    pub not_modified: u64,
    /// When the counters began (Redis time, ms since the epoch); absent before anything was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
}

impl Spending {
    /// Picks it out of a job's counters.
    pub fn of(counters: &BTreeMap<String, String>) -> Self {
        let number = |name: &str| counters.get(name).and_then(|count| count.parse().ok());
        let [tokens_spent, tokens_saved, calls_saved, not_modified] =
            NAMES.map(|name| number(name).unwrap_or_default());
        let since_ms = counters.get("since").and_then(|since| since.parse().ok());
        Self { tokens_spent, tokens_saved, calls_saved, not_modified, since_ms }
    }

    /// The counts, in the order of their names.
    pub(crate) fn counts(self) -> [u64; 4] {
        [self.tokens_spent, self.tokens_saved, self.calls_saved, self.not_modified]
    }

    /// Adds what was spent and saved since.
    pub(crate) fn add(&mut self, more: Self) {
        self.tokens_spent += more.tokens_spent;
        self.tokens_saved += more.tokens_saved;
        self.calls_saved += more.calls_saved;
        self.not_modified += more.not_modified;
    }
}
