//! `samovar check --fetch`: fetches one entry of each job, to check that its upstream answers as the file says, and
//! renders its tags and version as a worker does. Nothing is stored. Redis is not used, so the fleet's rates and
//! budgets do not apply: AI answers cost money, and count against no budget.
//!
//! One entry may be gone, or have an answer that cannot be used: then the next one is tried.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

use super::check::check;
use super::session::{complain, print_json, warn_of_unknown_settings};
use super::{CheckArgs, exit};
use crate::config::{Environment, Settings};
use crate::entry::escape::{escaped, json};
use crate::entry::{EntryKey, JobName, Version};
use crate::job::{Job, Jobs, Params};
use crate::source::{Answer, Ask, Fed, FetchError, Sources};
use crate::warmer::check_storable;

/// The timeout of one answer; upstreams' own timeouts are usually shorter.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest part of a value that is shown, in characters.
const SHOWN: usize = 200;
/// The most entries of a job that are tried.
const TRIED: usize = 5;
/// The most other entries that are asked for with an entry whose source asks for many at once.
const TOGETHER: usize = 2;

pub(super) async fn run(args: &CheckArgs, settings: &Settings, env: &Environment) -> u8 {
    let folder = args.folder.as_deref().unwrap_or(&settings.jobs);
    let lookup = |name: &str| env.get(name);
    let report = check(folder, settings.default_ttl, &lookup);
    warn_of_unknown_settings(env, |name| report.env.iter().any(|used| used.name == name));
    let (channel, database) = (settings.keys().invalidate_channel(), settings.redis.database());
    if !args.json {
        println!("{}", report.render(std::io::stdout().is_terminal()).trim_end());
        println!("invalidations are received on the channel {channel}, for database {database} of {}", settings.redis);
    }
    let mut code = match (report.is_sound(), report.failing()) {
        (false, _) => exit::CONFIG,
        (true, 0) => exit::OK,
        (true, _) => exit::FAILED,
    };
    let mut fetched = Vec::new();
    if args.fetch && report.is_sound() {
        match fetch(folder, settings, &lookup).await {
            Ok(all) => fetched = all,
            Err(e) => {
                complain(format_args!("{e:#}"));
                code = exit::CONFIG;
            }
        }
        if fetched.iter().any(|fetched| fetched.error.is_some()) {
            code = exit::FAILED;
        }
        if !args.json {
            println!();
            fetched.iter().for_each(Fetched::print);
        }
    }
    if args.json {
        let mut document = serde_json::to_value(&report).unwrap_or_default();
        document["channel"] = channel.into();
        document["database"] = database.into();
        if args.fetch {
            document["fetched"] = serde_json::to_value(&fetched).unwrap_or_default();
        }
        print_json(&document);
    }
    code
}

/// The answer of one job's upstream.
#[derive(Serialize)]
struct Fetched {
    job: String,
    key: Option<String>,
    milliseconds: u128,
    bytes: usize,
    value: Option<Value>,
    /// The tags that the value has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    /// The version of the value, if the job tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Version>,
    error: Option<String>,
    /// Why nothing was fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    /// The entries that were tried before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_over: Vec<PassedOver>,
}

/// An entry that has no value now, so that the next one was tried.
#[derive(Serialize)]
struct PassedOver {
    key: String,
    reason: String,
}

impl Fetched {
    fn of(job: &Job, key: Option<String>, took: Duration, result: Result<Made, String>) -> Self {
        let (made, error) = match result {
            Ok(made) => (Some(made), None),
            Err(error) => (None, Some(error)),
        };
        let (value, tags, version) = match made {
            Some(Made { value, tags, version }) => (Some(value), tags, version),
            None => (None, Vec::new(), None),
        };
        let bytes = value.as_ref().map_or(0, |value| value.to_string().len());
        let (job, milliseconds) = (job.name.to_string(), took.as_millis());
        Self { job, key, milliseconds, bytes, value, tags, version, error, skipped: None, passed_over: Vec::new() }
    }

    fn skipped(job: &Job, why: String) -> Self {
        let error = Self::of(job, None, Duration::ZERO, Err(String::new()));
        Self { error: None, skipped: Some(why), ..error }
    }

    fn print(&self) {
        let Self { job, key, milliseconds, bytes, value, tags, version, error, skipped, passed_over } = self;
        if let Some(why) = skipped {
            println!("– {job}: not fetched: {}", escaped(why));
            return;
        }
        let key = escaped(key.as_deref().unwrap_or("?"));
        match (error, value) {
            (Some(error), _) => println!("✗ {job}: {key}: {}", escaped(error)),
            (None, value) => {
                let text = value.as_ref().map(Value::to_string).unwrap_or_default();
                let shown: String = text.chars().take(SHOWN).collect();
                let more = if shown.len() < text.len() { "…" } else { "" };
                println!("✓ {job}: {key}: {bytes} bytes in {milliseconds} ms\n  {}{more}", json(&shown));
                if !tags.is_empty() {
                    println!("  tags: {}", escaped(&tags.join(", ")));
                }
                if let Some(version) = version {
                    println!("  version: {}", version.shown());
                }
            }
        }
        for PassedOver { key, reason } in passed_over {
            println!("  tried before: {}", escaped(&format!("{key}: {reason}")));
        }
    }
}

async fn fetch(
    folder: &std::path::Path,
    settings: &Settings,
    env: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<Vec<Fetched>> {
    // The files were valid a moment ago; if they changed since, there is nothing to fetch.
    let Ok(jobs) = Jobs::load(folder, settings.default_ttl, env) else { return Ok(Vec::new()) };
    let sources = Sources::new(&jobs)?;
    let probe = Probe { jobs: &jobs, sources: &sources, inputs: Mutex::default(), paid: AtomicBool::new(false) };
    let mut all = BTreeMap::new();
    let (with_entries, others): (Vec<_>, Vec<_>) =
        jobs.jobs.values().partition(|job| !job.entries.list.is_empty() || job.entries.feed.is_some());
    for job in with_entries {
        all.insert(&job.name, probe.first_value(job).await);
    }
    // A job without listed entries is an input of others, or fetched on demand only.
    let inputs = probe.inputs.into_inner().unwrap_or_else(PoisonError::into_inner);
    for job in others {
        all.insert(
            &job.name,
            match inputs.get(&job.name) {
                // An entry made from it says whether that is a fault.
                Some((_, _, Err(NoValue::Gone(reason)))) => Fetched::skipped(job, reason.clone()),
                Some((key, took, result)) => {
                    Fetched::of(job, Some(key.clone()), *took, result.clone().map_err(NoValue::reason))
                }
                None => Fetched::skipped(job, "it lists no entry, and no tested job uses it as an input".to_owned()),
            },
        );
    }
    Ok(all.into_values().collect())
}

struct Probe<'a> {
    jobs: &'a Jobs,
    sources: &'a Sources,
    /// An entry of each job that was fetched as an input of another: its key, the duration and the result. The first
    /// one that has a value, or else the first.
    inputs: Mutex<BTreeMap<JobName, Input>>,
    /// A request that may cost money was made for the entry that is being tried.
    paid: AtomicBool,
}

type Input = (String, Duration, Result<Made, NoValue>);

/// A value as a worker would store it.
#[derive(Clone)]
struct Made {
    value: Value,
    tags: Vec<String>,
    version: Option<Version>,
}

impl Probe<'_> {
    /// Fetches entries of a job until one could be stored. A failure of the upstream ends that, since the next entry
    /// would fail as well, and so does an answer that cannot be used and cost money.
    async fn first_value(&self, job: &Job) -> Fetched {
        let begun = Instant::now();
        let examples = match self.examples(job).await {
            Ok(examples) => examples,
            Err(e) => return Fetched::of(job, None, begun.elapsed(), Err(e)),
        };
        let mut passed_over = Vec::new();
        let mut left = examples.len();
        for params in &examples {
            left -= 1;
            // The inputs of others are not fetched.
            let others = examples.iter().filter(|other| *other != params && job.inputs.is_empty());
            let others: Vec<Params> = others.take(TOGETHER).cloned().collect();
            let (begun, key) = (Instant::now(), job.key.write(params).map(|key| key.to_string()));
            self.paid.store(false, Ordering::Relaxed);
            let result = self.value(job, params, &others).await;
            let may_go_on = match &result {
                Ok(_) | Err(NoValue::Upstream(_)) => false,
                Err(NoValue::Gone(_)) => true,
                Err(NoValue::Failed(_)) => !self.paid.load(Ordering::Relaxed),
            };
            match (result, key) {
                (Err(no_value), Some(key)) if may_go_on && left > 0 => {
                    passed_over.push(PassedOver { key, reason: no_value.reason() });
                }
                (result, key) => {
                    let fetched = Fetched::of(job, key, begun.elapsed(), result.map_err(NoValue::reason));
                    return Fetched { passed_over, ..fetched };
                }
            }
        }
        let nothing = "neither the job nor its feed lists an entry, so there is nothing to fetch".to_owned();
        Fetched::of(job, None, begun.elapsed(), Err(nothing))
    }

    /// Returns the entries of a job that are tried: the first listed ones, then the first of its feed. Asks the feed in
    /// both cases, up to the first page that names an entry.
    async fn examples(&self, job: &Job) -> Result<Vec<Params>, String> {
        let mut fed = Fed::default();
        if let Some(feed) = &job.entries.feed {
            let fails = |e: FetchError| format!("its feed {}", e.of_feed());
            let mut reading = self.sources.read_feed(job, feed).map_err(fails)?;
            while !reading.is_over() && reading.names_nothing() {
                reading.read_page().await.map_err(fails)?;
            }
            fed = reading.finish().map_err(fails)?;
        }
        let mut examples: Vec<Params> = Vec::new();
        let fed = fed.entries.iter().filter_map(|key| job.key.read(key));
        for params in job.entries.list.iter().take(TRIED).cloned().chain(fed) {
            if examples.len() < TRIED && !examples.contains(&params) {
                examples.push(params);
            }
        }
        Ok(examples)
    }

    /// Fetches an entry's value, after its inputs; with it, others of a job without inputs whose source asks for many.
    fn value<'b>(
        &'b self,
        job: &'b Job,
        params: &'b Params,
        others: &'b [Params],
    ) -> Pin<Box<dyn Future<Output = Result<Made, NoValue>> + Send + 'b>> {
        Box::pin(async move {
            let failed = NoValue::Failed;
            let mut upstream_fails = false;
            let mut inputs = Map::new();
            for (name, input) in &job.inputs {
                let no_key = || failed(format!("its input `{name}` has no key for {params:?}"));
                let key = input.key.write(params).ok_or_else(no_key)?;
                let value = match self.input(&key).await {
                    Err(NoValue::Gone(_)) if input.is_optional => Value::Null,
                    Err(NoValue::Gone(e)) => return Err(NoValue::Gone(format!("its input {key} is gone: {e}"))),
                    Err(NoValue::Failed(e)) => return Err(failed(format!("its input {key}: {e}"))),
                    Err(NoValue::Upstream(e)) => return Err(NoValue::Upstream(format!("its input {key}: {e}"))),
                    Ok(made) => made.value,
                };
                inputs.insert(name.clone(), value);
            }
            let key = job.key.write(params).ok_or_else(|| failed(format!("no key for {params:?}")))?;
            let mut errors = Vec::new();
            for source in 0..job.sources.len() {
                let deadline = Instant::now() + PATIENCE;
                let ask = Ask { job, source, key: &key, params, inputs: &inputs, known: None, deadline };
                self.paid.fetch_or(job.sources[source].properties().costs_money, Ordering::Relaxed);
                match self.sources.fetch_among(&ask, others).await {
                    Ok(Answer::Value(fetched)) => {
                        let value = fetched.value();
                        let stored = check_storable(job, params, &inputs, &value);
                        return stored.map(|(tags, version)| Made { value, tags, version }).map_err(failed);
                    }
                    Ok(Answer::Unchanged) => errors.push("answered 304 to a request without validators".to_owned()),
                    Ok(Answer::Gone) => return Err(NoValue::Gone(format!("{key} does not exist (404 or 410)"))),
                    Err(e) => {
                        upstream_fails |=
                            !matches!(e, FetchError::Answer(_) | FetchError::Cut(_) | FetchError::Unrenderable(_));
                        errors.push(e.to_string());
                    }
                }
            }
            let reason = errors.join("; then ");
            Err(if upstream_fails { NoValue::Upstream(reason) } else { failed(reason) })
        })
    }

    /// Fetches the value of an input, and remembers one of each job.
    async fn input(&self, key: &EntryKey) -> Result<Made, NoValue> {
        let Some((owner, params)) = self.jobs.owner(key.as_str()) else {
            return Err(NoValue::Failed("no job owns it".to_owned()));
        };
        let begun = Instant::now();
        let value = self.value(owner, &params, &[]).await;
        let input = (key.to_string(), begun.elapsed(), value.clone());
        let mut inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        if inputs.get(&owner.name).is_none_or(|(_, _, before)| before.is_err() && value.is_ok()) {
            inputs.insert(owner.name.clone(), input);
        }
        value
    }
}

/// The reason why an entry has no value.
#[derive(Clone)]
enum NoValue {
    /// It does not exist, or an input does not.
    Gone(String),
    /// There is no usable answer for it.
    Failed(String),
    /// Its upstream fails, or asks for a pause.
    Upstream(String),
}

impl NoValue {
    fn reason(self) -> String {
        match self {
            Self::Gone(reason) | Self::Failed(reason) | Self::Upstream(reason) => reason,
        }
    }
}
