//! Upstreams: servers, their secrets and limits.
use super::text_newtype;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// An upstream's name: its table in `upstreams.toml`, or the origin of an absolute URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamName(Arc<str>);
text_newtype!(UpstreamName);

/// A server that sources ask, with its limits, which hold for the whole fleet and all jobs.
#[derive(Clone)]
pub struct Upstream {
    /// Its name.
    pub name: UpstreamName,
    /// Its base URL, rendered; no trailing slash.
    pub url: String,
    /// Sent with each request, rendered; may be secret.
    pub headers: BTreeMap<String, String>,
    /// Requests per time.
    pub rate: Option<Rate>,
    /// Requests in flight at once.
    pub concurrency: Option<u32>,
    /// For a whole answer, from the first byte sent to the last received. Default 10 s.
    pub timeout: Duration,
    /// The longest body read. Default 1 MiB.
    pub max_bytes: u64,
    /// What may be spent.
    pub tokens: Option<TokenBudget>,
    /// Whether redirects to other hosts are followed.
    pub cross_host_redirects: bool,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

/// So many in a time: `20/second`, `5 per 2 hours`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In what time.
    pub per: Duration,
}

/// Tokens that may be spent in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    /// How many tokens.
    pub tokens: u64,
    /// In what time.
    pub per: Duration,
}
