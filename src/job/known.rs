//! The fleet's knowledge of its jobs: enough to show them and to act on them, without job files and secrets.
//!
//! Workers publish this in Redis, and commands read it there. Its JSON is part of docs/protocol.md. Earlier and later
//! builds read it too: they ignore fields that they do not know, and take the default for those that are missing. A
//! field never changes its meaning. Of upstreams it has the names. An upstream that only a `url` names has its scheme,
//! host and port as name, also if they come from an environment variable. No other value of one gets into it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Input, Job, Jobs, KeyPattern, Params, Source, identity};
use crate::entry::{JobName, UpstreamName};
use crate::redis::RedisTime;

/// The beginning of variables that commands would take for misspelt settings.
const LIKE_SETTINGS: &str = "SAMOVAR_";

/// A job as the fleet knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownJob {
    /// Its name.
    #[serde(rename = "job", with = "job_name")]
    pub name: JobName,
    /// Its key pattern.
    #[serde(with = "key_pattern")]
    pub key: KeyPattern,
    /// The description in its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The TTL of a value.
    #[serde(default, rename = "ttl_ms", with = "ms")]
    pub ttl: Duration,
    /// The schedule, as written in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// `true` if it has a feed.
    #[serde(default)]
    pub feed: bool,
    /// The number of most read entries that are kept warm.
    #[serde(default)]
    pub popular: usize,
    /// The number of entries that its file lists. In Redis they have a key of their own.
    #[serde(default)]
    pub listed: usize,
    /// `true` if its entries are made from inputs.
    #[serde(default)]
    pub inputs: bool,
    /// These inputs. Empty in descriptions of earlier builds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_from: Vec<KnownInput>,
    /// `true` if its entries wait for inputs that were invalidated.
    #[serde(default)]
    pub waits_for_inputs: bool,
    /// `true` if its entries have tags.
    #[serde(default)]
    pub tags: bool,
    /// The upstreams of its sources, the first choice first.
    #[serde(default)]
    pub upstreams: Vec<KnownUpstream>,
    /// `true` if its upstream may answer with an old value for a while.
    #[serde(default)]
    pub may_lag: bool,
    /// `true` if a value may be kept without a request, as that of an unchanged prompt.
    #[serde(default)]
    pub may_hold_unasked: bool,
    /// The most entries that one request asks for. 1 in descriptions of earlier builds.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub at_once: usize,
    /// The number of its fallbacks whose requests may cost money.
    #[serde(default)]
    pub paid_fallbacks: usize,
    /// `true` if workers try its dead letters again by themselves, because that costs nothing: see [`Jobs::is_free`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_retried: bool,
    /// `true` if `gone_guard` is "off". Missing in descriptions of earlier builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unguarded: bool,
    /// The times after an invalidation at which an entry is rechecked.
    #[serde(default, rename = "recheck_ms", with = "all_ms")]
    pub recheck: Vec<Duration>,
    /// The digest of its file.
    #[serde(default)]
    pub digest: String,
    /// The variables that the job files name and that begin like settings.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub variables: BTreeSet<String>,
    /// When the generation that published this took charge; zero for a job that was read from its file.
    #[serde(default, rename = "since_ms")]
    pub since: RedisTime,
    /// The job itself, if its file was read.
    #[serde(skip)]
    pub file: Option<Arc<Job>>,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(entries: &usize) -> bool {
    *entries == 1
}

/// An upstream as the fleet knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownUpstream {
    /// Its name.
    #[serde(with = "upstream_name")]
    pub name: UpstreamName,
    /// The AI tokens that may be spent in a window of its budget.
    #[serde(default, rename = "tokens_budget", skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
}

/// An input of a job's entries, as the fleet knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownInput {
    /// Its key, over the placeholders of the job's key.
    #[serde(with = "key_pattern")]
    pub key: KeyPattern,
    /// While it is gone, the entry is made without it.
    #[serde(default, rename = "optional")]
    pub is_optional: bool,
}

impl KnownJob {
    /// Returns the fewest requests that ask for these many entries; none if no server is asked.
    pub fn fetches(&self, entries: usize) -> usize {
        if self.upstreams.is_empty() { 0 } else { entries.div_ceil(self.at_once.max(1)) }
    }

    /// Returns what the fleet knows of a job.
    fn of(job: &Arc<Job>, jobs: &Jobs) -> Self {
        let mut upstreams: Vec<KnownUpstream> = Vec::new();
        for name in job.sources.iter().filter_map(Source::upstream) {
            if upstreams.iter().all(|known| known.name != *name) {
                upstreams.push(KnownUpstream::of(name, jobs));
            }
        }
        Self {
            name: job.name.clone(),
            key: job.key.clone(),
            description: job.description.clone(),
            ttl: job.ttl,
            schedule: job.warm.schedules.text(),
            feed: job.entries.feed.is_some(),
            popular: job.entries.popular,
            listed: job.entries.list.len(),
            inputs: !job.inputs.is_empty(),
            made_from: job.inputs.values().map(KnownInput::of).collect(),
            waits_for_inputs: job.waits_for_inputs(),
            tags: !job.tags.is_empty(),
            upstreams,
            may_lag: job.may_lag(),
            may_hold_unasked: job.may_hold_unasked(),
            at_once: job.at_once(),
            paid_fallbacks: job.paid_fallbacks(),
            is_retried: jobs.is_free(job),
            unguarded: job.warm.gone_guard.is_none(),
            recheck: job.warm.recheck.clone(),
            digest: job.digest.clone(),
            variables: jobs.env.iter().filter(|name| name.starts_with(LIKE_SETTINGS)).cloned().collect(),
            since: RedisTime::ZERO,
            file: Some(Arc::clone(job)),
        }
    }

    /// Reads the description of a job.
    ///
    /// # Errors
    /// A text that says why it is none.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, String> {
        let job: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if job.name.as_str() == name { Ok(job) } else { Err(format!("it describes the job `{}`", job.name)) }
    }

    /// Returns the job's identity: see [`Job::identity`].
    pub fn identity(&self) -> String {
        identity(&self.name, &self.key)
    }
}

impl KnownInput {
    fn of(input: &Input) -> Self {
        Self { key: input.key.clone(), is_optional: input.is_optional }
    }
}

impl KnownUpstream {
    fn of(name: &UpstreamName, jobs: &Jobs) -> Self {
        let budget = jobs.upstreams.get(name).and_then(|upstream| upstream.tokens);
        Self { name: name.clone(), budget: budget.map(|budget| budget.tokens) }
    }
}

/// All jobs that the fleet knows, and their upstreams.
#[derive(Clone, Debug, Default)]
pub struct KnownJobs {
    /// By name.
    pub jobs: BTreeMap<JobName, Arc<KnownJob>>,
    /// By name.
    pub upstreams: BTreeMap<UpstreamName, KnownUpstream>,
}

impl KnownJobs {
    /// Returns the job that owns a key, and the placeholders' values in it. If a job was renamed, two may own it: the
    /// one that was published last counts.
    pub fn owner(&self, key: &str) -> Option<(&Arc<KnownJob>, Params)> {
        let owners = self.jobs.values().filter_map(|job| Some((job, job.key.read(key)?)));
        owners.max_by_key(|(job, _)| job.since)
    }

    /// Returns the job with the same keys as a job that no running worker knows any more; `all_left` are all of these.
    pub fn heir(&self, left: &KnownJob, all_left: &BTreeSet<JobName>) -> Option<&JobName> {
        let heirs = self.jobs.values().filter(|job| !all_left.contains(&job.name));
        heirs.filter(|job| job.key.glob() == left.key.glob()).map(|job| &job.name).next()
    }
}

impl From<&Jobs> for KnownJobs {
    fn from(jobs: &Jobs) -> Self {
        let upstreams = jobs.upstreams.keys().map(|name| (name.clone(), KnownUpstream::of(name, jobs))).collect();
        let all = jobs.jobs.iter().map(|(name, job)| (name.clone(), Arc::new(KnownJob::of(job, jobs)))).collect();
        Self { jobs: all, upstreams }
    }
}

impl FromIterator<KnownJob> for KnownJobs {
    /// Holds these jobs and their upstreams. Of an upstream's descriptions the one that was published last counts.
    fn from_iter<I: IntoIterator<Item = KnownJob>>(jobs: I) -> Self {
        let mut jobs: Vec<KnownJob> = jobs.into_iter().collect();
        jobs.sort_by_key(|job| job.since);
        let upstreams = jobs.iter().flat_map(|job| &job.upstreams);
        let upstreams = upstreams.map(|upstream| (upstream.name.clone(), upstream.clone())).collect();
        Self { jobs: jobs.into_iter().map(|job| (job.name.clone(), Arc::new(job))).collect(), upstreams }
    }
}

/// A duration as whole milliseconds.
mod ms {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::entry::duration::millis;

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// Durations as whole milliseconds.
mod all_ms {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::entry::duration::millis;

    pub(super) fn serialize<S: Serializer>(times: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(times.iter().map(|time| millis(*time)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
        Ok(Vec::<u64>::deserialize(from)?.into_iter().map(Duration::from_millis).collect())
    }
}

macro_rules! as_text {
    ($module:ident, $type:ty, $read:expr) => {
        mod $module {
            use serde::de::Error as _;
            use serde::{Deserialize as _, Deserializer, Serializer};

            pub(super) fn serialize<S: Serializer>(value: &$type, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(value.as_str())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                let read: fn(String) -> Result<$type, String> = $read;
                read(String::deserialize(from)?).map_err(D::Error::custom)
            }
        }
    };
}
as_text!(job_name, crate::entry::JobName, |text| Ok(crate::entry::JobName::new(text)));
as_text!(upstream_name, crate::entry::UpstreamName, |text| Ok(crate::entry::UpstreamName::new(text)));
as_text!(key_pattern, crate::job::KeyPattern, |text| crate::job::KeyPattern::parse(&text));

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Jobs {
        let job = "description = \"Art\"\nkey = \"art:{name}\"\nttl = \"1h\"\ntags = [\"t\"]\n\
                   [source]\nkind = \"http\"\nupstream = \"museum\"\npath = \"/{{ env.SAMOVAR_PART }}/{{ name }}\"\n\
                   [entries]\nlist = [\"a\", \"b\"]\npopular = 5\n[warm]\nschedule = \"0 3 * * *\"\n";
        let museum = "[museum]\nurl = \"http://127.0.0.1:1/{{ env.APP_KEY }}\"\ntokens = \"100/day\"\n\
                      headers = { X-Key = \"{{ env.APP_KEY }}\" }\n";
        let files = [("art.toml", job), ("upstreams.toml", museum)].map(|(name, text)| (name.into(), text.into()));
        Jobs::parse(&files, Duration::from_secs(60), &|_| Some("hunter22".to_owned())).unwrap()
    }

    #[test]
    fn a_description_reads_back_and_holds_no_secret() {
        let known = KnownJobs::from(&jobs());
        let art = &known.jobs["art"];
        let text = serde_json::to_string(&**art).unwrap();
        assert!(!text.contains("hunter22") && !text.contains("APP_KEY"), "{text}");
        let back = KnownJob::parse("art", text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
        assert_eq!((back.ttl, back.listed, back.popular, back.tags), (Duration::from_secs(3_600), 2, 5, true));
        assert_eq!(back.upstreams[0].budget, Some(100));
        assert_eq!(back.variables, BTreeSet::from(["SAMOVAR_PART".to_owned()]));
        assert_eq!((back.identity(), &back.recheck), (jobs().jobs["art"].identity(), &art.recheck));
    }

    #[test]
    fn descriptions_of_other_builds_are_read() {
        let least = KnownJob::parse("art", br#"{"job": "art", "key": "art:{name}", "later": {"a": [1]}}"#).unwrap();
        assert_eq!((least.ttl, least.upstreams.len(), least.since), (Duration::ZERO, 0, RedisTime::ZERO));
        for (text, why) in [
            (&b"\xff"[..], "expected value"),
            (b"{}", "missing field `job`"),
            (br#"{"job": "art"}"#, "missing field `key`"),
            (br#"{"job": "art", "key": "{name}"}"#, "must begin with literal text"),
            (br#"{"job": "poem", "key": "poem:{name}"}"#, "it describes the job `poem`"),
        ] {
            let error = KnownJob::parse("art", text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn of_two_owners_the_one_published_last_counts() {
        let job = |name: &str, since: i64| {
            let text = format!(r#"{{"job": "{name}", "key": "art:{{name}}", "since_ms": {since}}}"#);
            KnownJob::parse(name, text.as_bytes()).unwrap()
        };
        for (first, second, owner) in [(1, 2, "new"), (2, 1, "art")] {
            let known: KnownJobs = [job("art", first), job("new", second)].into_iter().collect();
            assert_eq!(known.owner("art:a").unwrap().0.name.as_str(), owner);
        }
    }
}
