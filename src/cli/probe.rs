//! `samovar check --fetch`: fetches one entry of each job, to check that its upstream answers as the file says, and
//! renders its tags and version as a worker does. Nothing is stored. Redis is not used, so the fleet's rates and
//! budgets do not apply: AI answers cost money, and count against no budget.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

use super::check::check;
use super::session::{complain, print_json, warn_of_unknown_settings};
use super::{CheckArgs, exit};
use crate::config::{Environment, Settings};
use crate::entry::escape::{escaped, json};
use crate::entry::{EntryKey, JobName};
use crate::job::{Job, Jobs, Params};
use crate::source::{Answer, Ask, Fed, FetchError, Sources};
use crate::warmer::check_storable;

/// The timeout of one answer; upstreams' own timeouts are usually shorter.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest part of a value that is shown, in characters.
const SHOWN: usize = 200;

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
    let mut code = if report.is_sound() { exit::OK } else { exit::CONFIG };
    let mut fetched = Vec::new();
    if args.fetch && report.is_sound() {
        fetched = fetch(folder, settings, &lookup).await;
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
    error: Option<String>,
    /// Why nothing was fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

impl Fetched {
    fn of(job: &Job, key: Option<String>, took: Duration, result: Result<Value, String>) -> Self {
        let (value, error) = match result {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        let bytes = value.as_ref().map_or(0, |value| value.to_string().len());
        Self { job: job.name.to_string(), key, milliseconds: took.as_millis(), bytes, value, error, skipped: None }
    }

    fn skipped(job: &Job, why: &str) -> Self {
        let (job, skipped) = (job.name.to_string(), Some(why.to_owned()));
        Self { job, key: None, milliseconds: 0, bytes: 0, value: None, error: None, skipped }
    }

    fn print(&self) {
        let Self { job, key, milliseconds, bytes, value, error, skipped } = self;
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
            }
        }
    }
}

async fn fetch(folder: &std::path::Path, settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Vec<Fetched> {
    // The files were valid a moment ago; if they changed since, there is nothing to fetch.
    let Ok(jobs) = Jobs::load(folder, settings.default_ttl, env) else { return Vec::new() };
    let sources = match Sources::new(&jobs) {
        Ok(sources) => sources,
        Err(e) => {
            complain(format_args!("{e:#}"));
            return Vec::new();
        }
    };
    let probe = Probe { jobs: &jobs, sources: &sources, inputs: Mutex::default() };
    let mut all = BTreeMap::new();
    let (with_entries, others): (Vec<_>, Vec<_>) =
        jobs.jobs.values().partition(|job| !job.entries.list.is_empty() || job.entries.feed.is_some());
    for job in with_entries {
        let begun = Instant::now();
        let mut key = None;
        let result = match probe.example(job).await {
            Ok(params) => {
                key = job.key.write(&params).map(|key| key.to_string());
                probe.value(job, &params).await.map_err(NoValue::reason)
            }
            Err(e) => Err(e),
        };
        all.insert(&job.name, Fetched::of(job, key, begun.elapsed(), result));
    }
    // A job without listed entries is an input of others, or fetched on demand only.
    let inputs = probe.inputs.into_inner().unwrap_or_else(PoisonError::into_inner);
    for job in others {
        all.insert(
            &job.name,
            match inputs.get(&job.name) {
                Some((key, took, result)) => Fetched::of(job, Some(key.clone()), *took, result.clone()),
                None => Fetched::skipped(job, "it lists no entry, and no tested job uses it as an input"),
            },
        );
    }
    all.into_values().collect()
}

struct Probe<'a> {
    jobs: &'a Jobs,
    sources: &'a Sources,
    /// The first entry of each job that was fetched as an input of another: its key, the duration and the result.
    inputs: Mutex<BTreeMap<JobName, Input>>,
}

type Input = (String, Duration, Result<Value, String>);

impl Probe<'_> {
    /// Returns an entry of a job: the first listed one, or the first of its feed. Asks the feed in both cases, up to
    /// the first page that names an entry.
    async fn example(&self, job: &Job) -> Result<Params, String> {
        let mut fed = Fed::default();
        if let Some(feed) = &job.entries.feed {
            let fails = |e: FetchError| format!("its feed {}", e.of_feed());
            let mut reading = self.sources.read_feed(job, feed).map_err(fails)?;
            while !reading.is_over() && reading.names_nothing() {
                reading.read_page().await.map_err(fails)?;
            }
            fed = reading.finish().map_err(fails)?;
        }
        job.entries
            .list
            .first()
            .cloned()
            .or_else(|| fed.entries.into_iter().next())
            .ok_or_else(|| "neither the job nor its feed lists an entry, so there is nothing to fetch".to_owned())
    }

    /// Fetches an entry's value, after its inputs.
    fn value<'b>(
        &'b self,
        job: &'b Job,
        params: &'b Params,
    ) -> Pin<Box<dyn Future<Output = Result<Value, NoValue>> + Send + 'b>> {
        Box::pin(async move {
            let failed = NoValue::Failed;
            let mut inputs = Map::new();
            for (name, input) in &job.inputs {
                let no_key = || failed(format!("its input `{name}` has no key for {params:?}"));
                let key = input.key.write(params).ok_or_else(no_key)?;
                let value = match self.input(&key).await {
                    Err(NoValue::Gone(_)) if input.is_optional => Value::Null,
                    Err(NoValue::Gone(e)) => return Err(NoValue::Gone(format!("its input {key} is gone: {e}"))),
                    Err(NoValue::Failed(e)) => return Err(failed(format!("its input {key}: {e}"))),
                    Ok(value) => value,
                };
                inputs.insert(name.clone(), value);
            }
            let key = job.key.write(params).ok_or_else(|| failed(format!("no key for {params:?}")))?;
            let mut errors = Vec::new();
            for source in 0..job.sources.len() {
                let deadline = Instant::now() + PATIENCE;
                let ask = Ask { job, source, key: &key, params, inputs: &inputs, known: None, deadline };
                match self.sources.fetch(&ask).await {
                    Ok(Answer::Value(fetched)) => {
                        let value = fetched.value();
                        return check_storable(job, params, &inputs, &value).map(|()| value).map_err(failed);
                    }
                    Ok(Answer::Unchanged) => errors.push("answered 304 to a request without validators".to_owned()),
                    Ok(Answer::Gone) => return Err(NoValue::Gone(format!("{key} does not exist (404 or 410)"))),
                    Err(e) => errors.push(e.to_string()),
                }
            }
            Err(failed(errors.join("; then ")))
        })
    }

    /// Fetches the value of an input, and remembers the first of each job.
    async fn input(&self, key: &EntryKey) -> Result<Value, NoValue> {
        let Some((owner, params)) = self.jobs.owner(key.as_str()) else {
            return Err(NoValue::Failed("no job owns it".to_owned()));
        };
        let begun = Instant::now();
        let value = self.value(owner, &params).await;
        let input = (key.to_string(), begun.elapsed(), value.clone().map_err(NoValue::reason));
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).entry(owner.name.clone()).or_insert(input);
        value
    }
}

/// The reason why an entry has no value.
#[derive(Clone)]
enum NoValue {
    /// It does not exist, or an input does not.
    Gone(String),
    /// There is no usable answer.
    Failed(String),
}

impl NoValue {
    fn reason(self) -> String {
        match self {
            Self::Gone(reason) | Self::Failed(reason) => reason,
        }
    }
}
