//! The requests that the museum received, and what they would have cost.

use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The price of a million prompt tokens, in US dollars.
pub const DOLLARS_PER_MILLION_IN: f64 = 0.15;
/// The price of a million completion tokens, in US dollars.
pub const DOLLARS_PER_MILLION_OUT: f64 = 0.60;
/// The source of the prices.
pub const PRICES_FROM: &str = "list price of gpt-4o-mini, https://openai.com/api/pricing";

/// The counted endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::cli) enum Endpoint {
    Artwork,
    Image,
    Similar,
    Popular,
    Artist,
    PopularArtists,
    Completion,
}

impl Endpoint {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Artwork, "artwork"),
        (Self::Image, "image"),
        (Self::Similar, "similar"),
        (Self::Popular, "popular"),
        (Self::Artist, "artist"),
        (Self::PopularArtists, "popular_artists"),
        (Self::Completion, "completion"),
    ];
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    endpoints: [Counters; Endpoint::ALL.len()],
    tokens_in: AtomicU64,
    tokens_out: AtomicU64,
    edits: AtomicU64,
    outdated: AtomicU64,
    /// For each page of a work, the versions that its last outdated answer lacked.
    lacked: Mutex<HashMap<(Endpoint, &'static str), RangeInclusive<u64>>>,
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    unchanged: AtomicU64,
    unknown: AtomicU64,
    failed: AtomicU64,
}

/// The result of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answered {
    Fully,
    Unchanged,
    Unknown,
    Failed,
}

impl Ledger {
    pub(super) fn count(&self, endpoint: Endpoint, answered: Answered) {
        let counters = &self.endpoints[endpoint as usize];
        counters.calls.fetch_add(1, Relaxed);
        match answered {
            Answered::Fully => {}
            Answered::Unchanged => _ = counters.unchanged.fetch_add(1, Relaxed),
            Answered::Unknown => _ = counters.unknown.fetch_add(1, Relaxed),
            Answered::Failed => _ = counters.failed.fetch_add(1, Relaxed),
        }
    }

    pub(super) fn count_tokens(&self, tokens_in: u64, tokens_out: u64) {
        self.tokens_in.fetch_add(tokens_in, Relaxed);
        self.tokens_out.fetch_add(tokens_out, Relaxed);
    }

    pub(super) fn count_edit(&self) {
        self.edits.fetch_add(1, Relaxed);
    }

    /// Counts an answer that showed a work in this version, although its last edit had made a later one.
    pub(super) fn count_outdated(&self, endpoint: Endpoint, title: &'static str, shown: u64, last: u64) {
        self.outdated.fetch_add(1, Relaxed);
        let mut lacked = self.lacked.lock().unwrap_or_else(PoisonError::into_inner);
        lacked.insert((endpoint, title), shown + 1..=last);
    }

    /// Returns `true` if the last outdated answer of this page lacked this version.
    pub(super) fn lacked(&self, endpoint: Endpoint, title: &'static str, version: u64) -> bool {
        let lacked = self.lacked.lock().unwrap_or_else(PoisonError::into_inner);
        lacked.get(&(endpoint, title)).is_some_and(|versions| versions.contains(&version))
    }

    pub(super) fn to_json(&self) -> Value {
        let endpoints: serde_json::Map<String, Value> = Endpoint::ALL
            .iter()
            .map(|(endpoint, name)| {
                let counters = &self.endpoints[*endpoint as usize];
                let counted = json!({
                    "calls": counters.calls.load(Relaxed),
                    "not_modified": counters.unchanged.load(Relaxed),
                    "not_found": counters.unknown.load(Relaxed),
                    "failed": counters.failed.load(Relaxed),
                });
                ((*name).to_owned(), counted)
            })
            .collect();
        let (tokens_in, tokens_out) = (self.tokens_in.load(Relaxed), self.tokens_out.load(Relaxed));
        let dollars =
            tokens_in as f64 / 1e6 * DOLLARS_PER_MILLION_IN + tokens_out as f64 / 1e6 * DOLLARS_PER_MILLION_OUT;
        json!({
            "calls": self.endpoints.iter().map(|counters| counters.calls.load(Relaxed)).sum::<u64>(),
            "endpoints": endpoints,
            "ai": {
                "calls": self.endpoints[Endpoint::Completion as usize].calls.load(Relaxed),
                "tokens_in": tokens_in,
                "tokens_out": tokens_out,
                "dollars": dollars,
                "dollars_per_million_in": DOLLARS_PER_MILLION_IN,
                "dollars_per_million_out": DOLLARS_PER_MILLION_OUT,
                "prices_from": PRICES_FROM,
            },
            "edits": self.edits.load(Relaxed),
            "outdated": self.outdated.load(Relaxed),
        })
    }
}
