//! Sources: where values come from, and the upstream limits around them.
//!
//! [`Sources::fetch`] asks one upstream once. It never writes to an entry: what comes back is a value that may be
//! committed, or a reason. Bodies are bounded while they are read; the whole answer has one deadline.

mod ai;
mod http;
mod limit;

use crate::job::{EntryKey, Job, Jobs, Params};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use limit::{Gate, Permit, Refusal};

/// What is asked for, once.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The job.
    pub job: &'a Job,
    /// Which of `job.sources` is asked.
    pub source: usize,
    /// The entry's key.
    pub key: &'a EntryKey,
    /// The placeholders' values.
    pub params: &'a Params,
    /// The inputs' values by name.
    pub inputs: &'a serde_json::Map<String, Value>,
    /// What the present value came with, where it may be kept if unchanged.
    pub known: Option<&'a Validators>,
    /// When the answer is of no use any more.
    pub deadline: Instant,
}

/// What tells that a value is unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Validators {
    /// The answer's `ETag`.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The answer's `Last-Modified`.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// For AI: what the value was made from (model, messages, settings), hashed.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// What an upstream answered.
#[derive(Debug)]
pub enum Answer {
    /// A value.
    Value(Fetched),
    /// 304, or the same prompt: the present value still holds.
    Unchanged,
    /// 404 or 410: there is nothing there.
    Gone,
}

/// A value that may be committed.
#[derive(Debug)]
pub struct Fetched {
    /// Complete, valid JSON.
    pub json: String,
    /// The same, parsed, for tags.
    pub value: Value,
    /// What tells next time that it is unchanged.
    pub validators: Validators,
    /// AI tokens spent (prompt + completion).
    pub tokens: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The upstream is not well or not there: connect, time-out, 5xx, cut off. Counts against its breaker.
    #[error("{0}")]
    Upstream(String),
    /// The upstream asks to be left alone (429, or 503 with `Retry-After`).
    #[error("upstream asks to wait {} s", .0.as_secs_f32())]
    Busy(Duration),
    /// The answer came but cannot be used: refused by `accept`, not JSON, too large, wrong shape, 4xx.
    #[error("{0}")]
    Answer(String),
}

/// The clients for all upstreams.
#[derive(Clone, Debug)]
pub struct Sources {
    // one reqwest client for each upstream
}

impl Sources {
    /// Clients for the upstreams of these jobs.
    pub fn new(_jobs: &Jobs) -> anyhow::Result<Self> {
        todo!()
    }
    /// Asks one source once.
    pub async fn fetch(&self, _jobs: &Jobs, _ask: &Ask<'_>) -> Result<Answer, FetchError> {
        todo!()
    }
    /// Asks a job's feed for its entries.
    pub async fn feed(&self, _jobs: &Jobs, _job: &Arc<Job>) -> Result<Vec<Params>, FetchError> {
        todo!()
    }
}
