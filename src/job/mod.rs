//! Jobs: `jobs/*.toml` read into validated [`Job`]s.
//!
//! A [`Job`] that exists is valid: its key pattern round-trips, its templates parse and name only what they may, its
//! durations are in order. Everything that can be wrong is found when the files are read and reported at once
//! ([`Faults`]); nothing here touches Redis or the network.

mod env;
mod fault;
mod file;
mod pattern;
mod reload;
mod schedule;
mod template;
mod upstream;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use twox_hash::XxHash3_64;

pub use env::EnvValues;
pub use fault::{Fault, Faults};
pub use file::{EnvUse, Reading};
pub use pattern::KeyPattern;
pub use reload::Reload;
pub use schedule::Schedule;
pub use template::{Shape, Template, TemplateError};
pub use upstream::{Rate, Redirects, TokenBudget, Upstream};

use crate::entry::{EntryKey, JobName, UpstreamName};

/// A fetch that failed is tried again within this time; later ones wait longer.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The values of a key pattern's placeholders, by name.
pub type Params = BTreeMap<String, String>;

/// All jobs of a folder and the upstreams they use, valid together.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    /// By name.
    pub jobs: BTreeMap<JobName, Arc<Job>>,
    /// By name; a source that gives an absolute `url` below none of them has one of its own, named after its origin.
    pub upstreams: BTreeMap<UpstreamName, Arc<Upstream>>,
    /// The environment variables that the files name, set or not.
    pub env: BTreeSet<String>,
    /// The values of those that are set.
    pub env_values: EnvValues,
}

/// A kind of content and how it is kept warm: one file in `jobs/`.
#[derive(Clone, Debug)]
pub struct Job {
    /// The file's stem.
    pub name: JobName,
    /// What people are told about it.
    pub description: Option<String>,
    /// Which keys it owns, read both ways.
    pub key: KeyPattern,
    /// How long a value lives.
    pub ttl: Duration,
    /// Rendered after each fetch with the placeholders, the inputs and `value`.
    pub tags: Vec<Template>,
    /// Entries this one is made from, by the name that templates use.
    pub inputs: BTreeMap<String, KeyPattern>,
    /// Where values come from, in the order they are tried: the source, then its fallbacks. Never empty.
    pub sources: Vec<Source>,
    /// What is kept warm.
    pub entries: Entries,
    /// When and how.
    pub warm: Warm,
    /// Changes whenever the file does; a new digest is warmed up at once.
    pub digest: String,
}

impl Job {
    /// Tells the job from others, those included that bear its name over other keys, among workers that read different
    /// files.
    pub fn identity(&self) -> String {
        format!("{:016x}", XxHash3_64::oneshot(format!("{} {}", self.name, self.key).as_bytes()))
    }

    /// How long before its expiry an entry's refresh must begin so that it may time out once and be tried again: an expired
    /// value cannot be extended.
    pub fn least_ahead(&self, upstreams: &BTreeMap<UpstreamName, Arc<Upstream>>) -> Duration {
        let timeouts = self.sources.iter().filter_map(|source| Some(upstreams.get(source.upstream())?.timeout));
        timeouts.sum::<Duration>() * 2 + FIRST_RETRY
    }

    /// Whether a value may be known to hold without its upstream being asked: what AI made from the same.
    pub fn may_hold_unasked(&self) -> bool {
        matches!(self.sources.first(), Some(Source::Ai(_)))
    }

    /// Tells whether a fetch may cost money.
    pub fn is_paid_for(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, Source::Ai(_)))
    }

    /// Those inputs of an entry from whose keys its own cannot be told: each is an input of many.
    pub fn inputs_of_many(&self, params: &Params) -> Vec<EntryKey> {
        let of_many = self.inputs.values().filter(|input| !self.is_told_by(input));
        of_many.filter_map(|input| input.write(params)).collect()
    }

    /// Whether its entries wait for inputs that were invalidated: AI makes them, so each time they are made costs money.
    pub fn waits_for_inputs(&self) -> bool {
        !self.inputs.is_empty() && matches!(self.sources.first(), Some(Source::Ai(_)))
    }

    /// Whether an input's key says all that an entry's does.
    pub fn is_told_by(&self, input: &KeyPattern) -> bool {
        self.key.names().iter().all(|name| input.names().contains(name))
    }
}

/// Where values come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An HTTP service that answers with JSON.
    Http(Box<HttpSource>),
    /// An OpenAI-compatible chat completions server.
    Ai(Box<AiSource>),
}

impl Source {
    /// The server asked.
    pub fn upstream(&self) -> &UpstreamName {
        match self {
            Self::Http(source) => &source.upstream,
            Self::Ai(source) => &source.upstream,
        }
    }
}

/// One HTTP request and what is made of its answer.
#[derive(Clone, Debug)]
pub struct HttpSource {
    /// The server asked, with its limits.
    pub upstream: UpstreamName,
    /// The absolute URL; what templates insert is percent-encoded as one path segment or query value.
    pub url: Template,
    /// Sent besides the upstream's headers.
    pub headers: BTreeMap<String, Template>,
    /// Sent as a JSON body with POST; GET where absent.
    pub body: Option<Shape>,
    /// JSON Pointer (RFC 6901) into the answer; empty for all of it.
    pub select: jsonptr::PointerBuf,
    /// What a usable answer satisfies, an expression over `value`.
    pub accept: Option<Template>,
    /// The value stored, built from `value`, the selected part; as it is where absent.
    pub value: Option<Shape>,
}

/// One chat completion and what is made of it.
#[derive(Clone, Debug)]
pub struct AiSource {
    /// The server asked, with its limits and the token budget.
    pub upstream: UpstreamName,
    /// The absolute URL of `…/chat/completions`.
    pub url: Template,
    /// The model's name.
    pub model: String,
    /// The system message.
    pub system: Option<Template>,
    /// The user message.
    pub prompt: Template,
    /// Sampling temperature; the server's default where absent.
    pub temperature: Option<f64>,
    /// The longest answer asked for.
    pub max_tokens: Option<u32>,
    /// Further fields of the request's body, as they are.
    pub options: serde_json::Map<String, serde_json::Value>,
    /// How the answer is stored.
    pub format: AiFormat,
}

impl AiSource {
    /// The names by which a body limits the answer.
    pub(crate) const LIMITS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

    /// The longest answer asked for, in tokens, and the name by which the body says so.
    pub fn limit(&self) -> Option<(&'static str, u64)> {
        let option = |name| Some((name, self.options.get(name)?.as_u64()?));
        self.max_tokens
            .map(|most| ("max_tokens", u64::from(most)))
            .or_else(|| Self::LIMITS.into_iter().find_map(option))
    }
}

/// How an AI answer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AiFormat {
    /// As a JSON string.
    Text,
    /// As the JSON document that the answer must be.
    Json,
}

/// What a job keeps warm.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// Named in the file; each complete for the key pattern. In the file's order.
    pub list: Vec<Params>,
    /// Asked for at each warmup.
    pub feed: Option<Feed>,
    /// How many of the most read entries.
    pub popular: usize,
    listed: HashSet<Params>,
}

impl Entries {
    /// With this list.
    pub(crate) fn listing(mut self, list: Vec<Params>) -> Self {
        self.listed = list.iter().cloned().collect();
        self.list = list;
        self
    }

    /// Whether the file names this entry.
    pub fn lists(&self, params: &Params) -> bool {
        self.listed.contains(params)
    }
}

/// A list of entries that an upstream knows.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The server asked.
    pub upstream: UpstreamName,
    /// The absolute URL.
    pub url: Template,
    /// JSON Pointer to an array of strings (for a single placeholder) or of objects.
    pub select: jsonptr::PointerBuf,
}

/// When and how a job is kept warm.
#[derive(Clone, Debug)]
pub struct Warm {
    /// When warmups run; without one only at the start, after a change of the file, and after a flush.
    pub schedule: Option<Schedule>,
    /// Whether a warmup fetches what is still good, too.
    pub refetch: bool,
    /// How long before expiry an entry is refreshed; zero for never. Default: a tenth of the TTL. Never less than
    /// [`Job::least_ahead`], if that is no more than a sixth of the TTL.
    pub ahead: Duration,
    /// How long a value may outlive its TTL while the source fails.
    pub stale_if_error: Duration,
    /// How long after an invalidation the entry is looked at once more.
    pub settle: Duration,
    /// Fetches that fail in a row before an entry goes to the dead letters.
    pub attempts: u32,
}

impl Jobs {
    /// Reads a folder of job files; `env` looks up environment variables, and `default_ttl` is for jobs that give none.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn load(folder: &Path, default_ttl: Duration, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Faults> {
        Self::read(folder, default_ttl, env).jobs
    }

    /// As [`Jobs::load`], for files in memory, given as name (or path) and text.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn parse(
        files: &[(String, String)],
        default_ttl: Duration,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Faults> {
        file::read("jobs", files, Vec::new(), default_ttl, env).jobs
    }

    /// As [`Jobs::load`], with the environment variables that the files name even where there are faults.
    pub fn read(folder: &Path, default_ttl: Duration, env: &dyn Fn(&str) -> Option<String>) -> Reading {
        file::read_folder(folder, default_ttl, env)
    }

    /// The key patterns of jobs with tags, as globs.
    pub fn globs_with_tags(&self) -> BTreeSet<String> {
        self.jobs.values().filter(|job| !job.tags.is_empty()).map(|job| job.key.glob()).collect()
    }

    /// How long an upstream's answer may take.
    pub fn timeout(&self, upstream: &UpstreamName) -> Duration {
        self.upstreams.get(upstream).map_or(Duration::from_secs(10), |upstream| upstream.timeout)
    }

    /// How long all sources of a job may take together.
    pub fn fetch_time(&self, job: &Job) -> Duration {
        job.sources.iter().map(|source| self.timeout(source.upstream())).sum()
    }

    /// The job that owns a key, and the placeholders' values in it.
    pub fn owner(&self, key: &str) -> Option<(&Arc<Job>, Params)> {
        self.jobs.values().find_map(|job| job.key.read(key).map(|params| (job, params)))
    }
}
