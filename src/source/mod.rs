//! Sources: where values come from, and the upstream limits around them.
//!
//! [`Sources::fetch`] asks one upstream once. It never writes to an entry: what comes back is a value that may be
//! committed, or a reason. Bodies are bounded while they are read; the whole answer has one deadline.

mod account;
mod addresses;
mod ai;
mod bulk;
mod busy;
mod coding;
mod client;
mod completion;
mod compose;
mod feed;
mod http;
mod item;
mod limits;
mod preview;
mod secrets;
#[cfg(feature = "simulation")]
pub mod simulated;

use crate::entry::Validators;
use crate::entry::{EntryKey, UpstreamName};
use crate::job::{Feed, Job, Jobs, Params, Source, Template};
use client::Client;
use secrets::Secrets;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use bulk::LONGEST_URL;
pub use bulk::{Many, ManyRequest, Part, context_of_many};
pub use feed::{Fed, FeedReading};
pub(crate) use limits::LONGEST_WAIT;
pub use limits::{Ended, Fetches, Gate, Lately, Permit, Refusal, UpstreamMemory};
pub use preview::{Preview, RequestFault};

/// One request for an entry's value.
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
    pub inputs: &'a Map<String, Value>,
    /// The validators of the present value, if it may be kept when unchanged.
    pub known: Option<&'a Validators>,
    /// When the answer is of no use any more. It should leave the upstream its timeout: a request cut off by it counts
    /// as the upstream's failure.
    pub deadline: Instant,
}

/// The answer of a source.
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
    /// The parsed JSON, if it had to be parsed; see [`Fetched::value`].
    parsed: Option<Value>,
    /// The validators for the next request.
    pub validators: Validators,
    /// AI tokens spent (prompt + completion).
    pub tokens: u64,
}

impl Fetched {
    /// The JSON, parsed.
    pub fn value(&self) -> Value {
        match &self.parsed {
            Some(value) => value.clone(),
            None => serde_json::from_str(&self.json).unwrap_or_default(),
        }
    }
}

/// The reason why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The upstream fails or cannot be reached: connect, timeout, 5xx, cut off, 401. Counts against its breaker.
    #[error("{0}")]
    Upstream(String),
    /// The upstream asks for a pause of this length (429, `Retry-After`, a spent rate limit), with its message.
    #[error("{1}")]
    Busy(Duration, String),
    /// The upstream refuses the account until a person acts (quota spent, payment due), and asks for a pause of at
    /// least this length; with its message.
    #[error("{1}")]
    Refused(Duration, String),
    /// The answer cannot be used: refused by `accept`, not JSON, too large, wrong shape, 4xx.
    #[error("{0}")]
    Answer(String),
    /// The text was cut off at its longest length. It is paid for, and another answer would be cut off as well.
    #[error("{0}")]
    Cut(String),
    /// No request can be made of the entry's key, whenever it is tried: a template that reads no input fails.
    #[error("{0}")]
    Unrenderable(String),
}

/// The AI tokens that a request may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// The prompt's, by estimate; 0 if the request costs none.
    pub prompt: u64,
    /// The most that the answer may cost; `None` if the request does not limit it.
    pub answer: Option<u64>,
}

/// The AI tokens that a request cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spent {
    /// Nothing was sent, or the answer is free: an error's status without `usage`, or no connection.
    Nothing,
    /// The tokens in `usage`, or an estimate from the answer's text.
    Tokens {
        /// The prompt's, by estimate.
        prompt: u64,
        /// The sum.
        all: u64,
    },
    /// The answer may have been charged for, but the cost is unknown: it was cut off, too long, late, or is not JSON.
    Untold {
        /// The prompt's, by estimate; recent answers estimate the answer's.
        prompt: u64,
    },
}

impl FetchError {
    /// Returns what a feed did, as the rest of a sentence that begins with the feed.
    pub fn of_feed(&self) -> String {
        match self {
            Self::Upstream(reason) => format!("does not work: {reason}"),
            Self::Busy(_, reason) => format!("asks for a pause: {reason}"),
            Self::Refused(_, reason) => format!("refuses this account: {reason}"),
            Self::Answer(reason) | Self::Cut(reason) | Self::Unrenderable(reason) => {
                format!("answered with something unusable: {reason}")
            }
        }
    }

    /// Returns the error with another text.
    fn map(self, text: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Upstream(reason) => Self::Upstream(text(reason)),
            Self::Busy(wait, reason) => Self::Busy(wait, text(reason)),
            Self::Refused(wait, reason) => Self::Refused(wait, text(reason)),
            Self::Answer(reason) => Self::Answer(text(reason)),
            Self::Cut(reason) => Self::Cut(text(reason)),
            Self::Unrenderable(reason) => Self::Unrenderable(text(reason)),
        }
    }
}

/// The clients for all upstreams.
#[derive(Clone, Debug)]
pub struct Sources {
    clients: Arc<BTreeMap<UpstreamName, Client>>,
    /// Hidden in messages of sources that ask no server.
    secrets: Secrets,
}

impl Sources {
    /// Returns clients for the upstreams of these jobs. Connections stay open, so make one for each set of job files.
    ///
    /// # Errors
    /// An upstream's header that cannot be sent, or a TLS library without root certificates.
    pub fn new(jobs: &Jobs) -> anyhow::Result<Self> {
        let client = |(name, upstream): (&UpstreamName, &Arc<_>)| {
            anyhow::Ok((name.clone(), Client::new(upstream, &jobs.env_values)?))
        };
        let clients = Arc::new(jobs.upstreams.iter().map(client).collect::<Result<_, _>>()?);
        Ok(Self { clients, secrets: Secrets::new(None, &jobs.env_values) })
    }

    /// Asks one source once. The tokens of an unusable AI answer are not counted; [`Sources::fetch_with`] counts them.
    ///
    /// # Errors
    /// The reason why there is no answer, without secrets.
    pub async fn fetch(&self, ask: &Ask<'_>) -> Result<Answer, FetchError> {
        self.fetch_counting(ask).await.0
    }

    /// Asks one source once under a permit of its upstream's gate, and returns the permit with the request's end and
    /// tokens, whether the answer is usable or not. Returns these tokens as well. A source without a server needs no
    /// permit.
    pub async fn fetch_with(&self, ask: &Ask<'_>, permit: Option<Permit>) -> (Result<Answer, FetchError>, u64) {
        let Some(mut permit) = permit else { return (self.fetch_counting(ask).await.0, 0) };
        let began = Instant::now();
        permit.begin();
        let (result, spent) = self.fetch_counting(ask).await;
        let tokens = permit.spent(spent);
        permit.fetched(&ask.job.name, Ended::from(&result), began.elapsed());
        permit.end(&result).await;
        (result, tokens)
    }

    /// Returns `true` if the present value is valid without a request, so that no permit is needed: an AI value made
    /// from the same model, messages and settings.
    pub fn unchanged_without_asking(&self, ask: &Ask<'_>) -> bool {
        let Some(Source::Ai(source)) = ask.job.sources.get(ask.source) else { return false };
        ai::unchanged(source, ask)
    }

    /// Returns the AI tokens that a request may cost. The upstream's budget must have room for them.
    pub fn cost(&self, ask: &Ask<'_>) -> Cost {
        let Some(Source::Ai(source)) = ask.job.sources.get(ask.source) else { return Cost::default() };
        ai::cost(source, ask)
    }

    /// Asks a job's feed for its entries, page by page, without a permit; returns none if the job has no feed.
    ///
    /// # Errors
    /// As [`FeedReading::read_page`] and [`FeedReading::finish`].
    pub async fn feed(&self, job: &Job) -> Result<Fed, FetchError> {
        let Some(feed) = &job.entries.feed else { return Ok(Fed::default()) };
        let mut reading = self.read_feed(job, feed)?;
        while !reading.is_over() {
            reading.read_page().await?;
        }
        reading.finish()
    }

    /// Returns a reading of a job's feed, of which no page is read.
    ///
    /// # Errors
    /// A URL that cannot be used, or an upstream that is not known.
    pub fn read_feed<'a>(&'a self, job: &'a Job, feed: &'a Feed) -> Result<FeedReading<'a>, FetchError> {
        let client = self.client(&feed.upstream)?;
        FeedReading::new(client, feed, job).map_err(|error| error.map(|text| client.hide(&text)))
    }

    async fn fetch_counting(&self, ask: &Ask<'_>) -> (Result<Answer, FetchError>, Spent) {
        let Some(source) = ask.job.sources.get(ask.source) else {
            let reason = format!("job `{}` has no source {}", ask.job.name, ask.source);
            return (Err(FetchError::Answer(reason)), Spent::Nothing);
        };
        let (result, spent) = match source {
            Source::Http(source) if source.bulk.is_some() => (self.fetch_lone(ask).await, Spent::Nothing),
            Source::Http(source) => (http::fetch(self, source, ask).await, Spent::Nothing),
            Source::Ai(source) => ai::fetch(self, source, ask).await,
            Source::Compose(source) => (compose::compose(source, ask), Spent::Nothing),
        };
        // A message may quote anything, for example the text of a template.
        let client = source.upstream().and_then(|upstream| self.clients.get(upstream));
        let hide = |text: String| client.map_or_else(|| self.secrets.blot(&text, false), |client| client.hide(&text));
        (result.map_err(|error| error.map(hide)), spent)
    }

    fn client(&self, upstream: &UpstreamName) -> Result<&Client, FetchError> {
        let unknown = || FetchError::Answer(format!("no client for upstream `{upstream}`: the job files changed"));
        self.clients.get(upstream).ok_or_else(unknown)
    }
}

/// Returns the error of a request that cannot be made, since one of these templates fails for this reason.
fn unrenderable<'t>(job: &Job, templates: impl IntoIterator<Item = &'t Template>, reason: String) -> FetchError {
    match templates.into_iter().any(|template| job.names_input(template)) {
        true => FetchError::Answer(reason),
        false => FetchError::Unrenderable(reason),
    }
}

/// Returns the context of templates: the placeholders' values, the inputs by name, and `value` if there is one.
pub fn context(params: &Params, inputs: &Map<String, Value>, value: Option<Value>) -> Value {
    let mut context: Map<String, Value> =
        params.iter().map(|(name, text)| (name.clone(), Value::String(text.clone()))).collect();
    context.extend(inputs.iter().map(|(name, input)| (name.clone(), input.clone())));
    context.extend(value.map(|value| ("value".to_owned(), value)));
    Value::Object(context)
}

#[cfg(test)]
mod tests;
