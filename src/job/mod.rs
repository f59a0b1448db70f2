//! Jobs: `jobs/*.toml` read into validated [`Job`]s.
//!
//! A [`Job`] that exists is valid: its key pattern round-trips, its templates parse and name only what they may, its
//! durations are in order. Everything that can be wrong is found when the files are read and reported at once
//! ([`Faults`]); nothing here touches Redis or the network.

mod env;
mod fault;
mod file;
mod known;
mod reload;
mod schedule;
mod schedules;
mod source;
mod template;
mod upstream;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use twox_hash::XxHash3_64;

pub use env::EnvValues;
pub use fault::{Fault, Faults};
pub(crate) use file::closest;
pub use file::{EnvUse, JOB_SCHEMA, Reading, UPSTREAMS_SCHEMA};
pub use known::{KnownInput, KnownJob, KnownJobs, KnownUpstream};
pub use reload::Reload;
pub use schedule::Schedule;
pub use schedules::{JobSchedule, Schedules};
pub use source::{Absent, AiFormat, AiSource, Bulk, ComposeSource, HttpSource, Outline, Properties, Source};
pub use template::{Shape, Template, TemplateError};
pub use upstream::{Rate, Redirects, TokenBudget, Upstream};

pub use crate::protocol::{KeyPattern, Params};

use crate::entry::{EntryKey, JobName, UpstreamName};

/// A fetch that failed is tried again within this time; later ones wait longer.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(500);

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
    /// A description for people.
    pub description: Option<String>,
    /// Which keys it owns, read both ways.
    pub key: KeyPattern,
    /// The life of a value.
    pub ttl: Duration,
    /// Rendered after each fetch with the placeholders, the inputs and `value`.
    pub tags: Vec<Template>,
    /// Rendered after each fetch to the value's version, with the placeholders, the inputs and `value`.
    pub version: Option<Template>,
    /// Entries this one is made from, by the name that templates use.
    pub inputs: BTreeMap<String, Input>,
    /// Where values come from, in the order they are tried: the source, then its fallbacks. Never empty.
    pub sources: Vec<Source>,
    /// The entries that are kept warm.
    pub entries: Entries,
    /// When and how.
    pub warm: Warm,
    /// Changes whenever the file does; a new digest is warmed up at once.
    pub digest: String,
    /// A digest of what its values are made from: the key, the source with its fallbacks, tags, version, inputs, and
    /// the URLs and headers of its upstreams. Of the text before environment variables are inserted, so that a rotated
    /// token changes nothing.
    pub made: String,
    /// Digests of the fields `ttl`, `entries` and `warm`, where the file has them.
    pub parts: BTreeMap<&'static str, String>,
    /// Changes whenever the requests for its entries may: a digest of the file, of its sources' upstreams, and of the
    /// environment variables that job files name. An upstream's answer that it does not have an entry holds for it.
    pub requests: String,
}

/// Returns the identity of a job with this name and these keys: see [`Job::identity`].
fn identity(name: &JobName, key: &KeyPattern) -> String {
    format!("{:016x}", XxHash3_64::oneshot(format!("{name} {key}").as_bytes()))
}

impl Job {
    /// Tells the job from others, those included that bear its name over other keys, among workers that read different
    /// files.
    pub fn identity(&self) -> String {
        identity(&self.name, &self.key)
    }

    /// Returns how long before expiry a refresh must begin so that it may time out once and be retried: an expired
    /// value cannot be extended.
    pub fn least_ahead(&self, upstreams: &BTreeMap<UpstreamName, Arc<Upstream>>) -> Duration {
        let timeouts = self.sources.iter().filter_map(|source| Some(upstreams.get(source.upstream()?)?.timeout));
        timeouts.sum::<Duration>() * 2 + FIRST_RETRY
    }

    /// Returns whether a value may be kept without a request, as the first source tells.
    pub fn may_hold_unasked(&self) -> bool {
        self.sources.first().is_some_and(|source| source.properties().may_hold_unasked)
    }

    /// Returns whether the upstream may answer with an old value for a while, as the first source tells.
    pub fn may_lag(&self) -> bool {
        self.sources.first().is_some_and(|source| source.properties().may_lag)
    }

    /// Returns whether a fetch may cost money, from any of the sources.
    pub fn is_paid_for(&self) -> bool {
        self.sources.iter().any(|source| source.properties().costs_money)
    }

    /// Returns the number of fallbacks whose requests may cost money.
    pub fn paid_fallbacks(&self) -> usize {
        self.sources.iter().skip(1).filter(|source| source.properties().costs_money).count()
    }

    /// Returns the most entries that one request asks for, as the first source tells.
    pub fn at_once(&self) -> usize {
        self.sources.first().map_or(1, |source| source.properties().at_once)
    }

    /// Returns the inputs of an entry whose keys do not tell its own: each is an input of many entries.
    pub fn inputs_of_many(&self, params: &Params) -> Vec<EntryKey> {
        let of_many = self.inputs.values().filter(|input| !self.is_told_by(input));
        of_many.filter_map(|input| input.key.write(params)).collect()
    }

    /// Returns whether its entries wait for inputs that were invalidated, as the first source tells.
    pub fn waits_for_inputs(&self) -> bool {
        !self.inputs.is_empty() && self.sources.first().is_some_and(|source| source.properties().waits_for_inputs)
    }

    /// Returns whether a template names an input, and so can be rendered only once the input has a value.
    pub fn names_input(&self, template: &Template) -> bool {
        let names = template.names();
        names.iter().any(|name| self.inputs.contains_key(name.split_once('.').map_or(name.as_str(), |(top, _)| top)))
    }

    /// Returns whether an input's key says all that an entry's does.
    pub fn is_told_by(&self, input: &Input) -> bool {
        self.key.names().iter().all(|name| input.key.names().contains(name))
    }
}

/// Another entry that a job's entries are made from.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its key, over the placeholders of the job's key.
    pub key: KeyPattern,
    /// While it is gone, the entry is made without it, and templates see `null`. Otherwise the entry is gone, too.
    pub is_optional: bool,
}

/// The entries that a job keeps warm.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// Named in the file; each complete for the key pattern. In the file's order.
    pub list: Vec<Params>,
    /// Asked for at each warmup.
    pub feed: Option<Feed>,
    /// The number of most read entries.
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

    /// Returns whether the file names this entry.
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
    /// JSON Pointer to the array of items.
    pub select: jsonptr::PointerBuf,
    /// Templates over `value`, the item, by placeholder. If empty, an item is a text or a number (for a single
    /// placeholder) or an object with a field for each placeholder.
    pub item: BTreeMap<String, Template>,
    /// The combinations of constants that each item is crossed with. Never empty: without constants, one without names.
    pub with: Vec<Params>,
    /// JSON Pointer to the next page in an answer.
    pub next: Option<jsonptr::PointerBuf>,
    /// The query parameter that sends what `next` points to; if absent, that is a URL.
    pub next_param: Option<String>,
    /// The longest body of a page, in bytes; `None` for 32 MiB, or the upstream's `max_bytes` if that is more.
    pub max_bytes: Option<u64>,
    /// An answer without entries is as good as any other, also after many entries.
    pub may_be_empty: bool,
}

/// When and how a job is kept warm.
#[derive(Clone, Debug)]
pub struct Warm {
    /// When warmups run, and which of them fetch everything.
    pub schedules: Schedules,
    /// The time before expiry at which an entry is refreshed; zero for never. Default: a tenth of the TTL. Never less
    /// than [`Job::least_ahead`], if that is no more than a sixth of the TTL.
    pub ahead: Duration,
    /// The longest time by which a value may outlive its TTL while the source fails.
    pub stale_if_error: Duration,
    /// The times after an invalidation at which the entry is rechecked, ascending.
    pub recheck: Vec<Duration>,
    /// The longest wait for an announced version; then a lower one is stored.
    pub version_patience: Duration,
    /// The time for which an upstream's answer that it does not have an entry holds for all who demand the entry.
    pub absent_for: Duration,
    /// Fetches that fail in a row before an entry goes to the dead letters.
    pub attempts: u32,
    /// The share of the job's values, in per cent, that may be removed within a minute since the upstream says that
    /// they are gone; more are held back. `None` holds none back.
    pub gone_guard: Option<u8>,
    /// The time between two freshness audits of the job; `None` for none.
    pub audit: Option<Duration>,
}

impl Jobs {
    /// Tells whether a fetch of a job's entries costs neither money nor tokens of a budget, and neither does a fetch of
    /// what they are made from.
    pub fn is_free(&self, job: &Job) -> bool {
        let (mut reached, mut at) = (vec![job], 0);
        while let Some(job) = reached.get(at).copied() {
            let mut upstreams = job.sources.iter().filter_map(|source| self.upstreams.get(source.upstream()?));
            if job.is_paid_for() || upstreams.any(|upstream| upstream.tokens.is_some()) {
                return false;
            }
            at += 1;
            for other in self.jobs.values() {
                let is_input = job.inputs.values().any(|input| input.key.overlaps(&other.key));
                if is_input && !reached.iter().any(|job| job.name == other.name) {
                    reached.push(other);
                }
            }
        }
        true
    }

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

    /// Returns how long a source's answer may take; zero for a source that asks no server.
    pub fn timeout(&self, source: &Source) -> Duration {
        let Some(upstream) = source.upstream() else { return Duration::ZERO };
        self.upstreams.get(upstream).map_or(Duration::from_secs(10), |upstream| upstream.timeout)
    }

    /// Returns how long all sources of a job may take together.
    pub fn fetch_time(&self, job: &Job) -> Duration {
        job.sources.iter().map(|source| self.timeout(source)).sum()
    }

    /// The job that owns a key, and the placeholders' values in it.
    pub fn owner(&self, key: &str) -> Option<(&Arc<Job>, Params)> {
        self.jobs.values().find_map(|job| job.key.read(key).map(|params| (job, params)))
    }
}
