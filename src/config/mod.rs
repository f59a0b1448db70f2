//! Process settings. This module is the only reader of the environment and of `.env`.
//!
//! Each setting comes from its flag, else the environment, else `.env` in the working directory (or the files of
//! `--env-file`), else its default. An empty value means unset. All faults are reported at once; no fault shows a
//! secret.

mod args;
mod dotenv;
mod environment;
mod values;

pub use args::{CommonArgs, WorkerArgs};
pub use environment::Environment;
pub use values::{DEFAULT_PORT, Listen, Secret};

use crate::protocol::Keys;
use crate::redis::RedisUrl;
use crate::telemetry::{LogFilter, LogFormat};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use values::{
    channel, duration, duration_or_seconds, hosts, listen, log_filter, log_format, prefix, switch, title, token, within,
};

const DEFAULT_REDIS_URL: &str = "redis://127.0.0.1:6379/0";
const REDIS_PARTS: [&str; 4] = ["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"];

/// A shorter claim would lapse while a healthy worker fetches. One longer than a day is a typing error.
const CLAIM: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
/// The lower end is for tests: Redis counts idle times in whole seconds.
const SAMPLE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(24 * 60 * 60);
const DRAIN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 60 * 60);

/// Beyond this, one process waits for itself more than for upstreams.
const CONCURRENCY: RangeInclusive<usize> = 1..=4096;

/// The upper end is ten years.
const DEFAULT_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The settings of one process, valid together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address of Redis.
    pub redis: RedisUrl,
    /// The folder of job files. It may not exist; reading the jobs reports that.
    pub jobs: PathBuf,
    /// The most fetches that this process has in flight to one upstream.
    pub concurrency: usize,
    /// The time for which a worker that does not report keeps claimed entries; after a crash they wait this long.
    pub claim: Duration,
    /// The beginning of the names of Samovar's own keys and channels. Never empty; safe in key names and hash tags.
    pub prefix: String,
    /// The pub/sub channel of invalidations, if it was set.
    pub channel: Option<String>,
    /// The TTL of a job that sets none.
    pub default_ttl: Duration,
    /// The time in which work in flight may finish after the process is told to stop.
    pub drain: Duration,
    /// The shortest time between two samples of which entries were read.
    pub sample: Duration,
    /// Keys that were read and absent are fetched, as keyspace events tell.
    pub misses: bool,
    /// The address on which HTTP is answered.
    pub listen: Listen,
    /// Names under which HTTP may be used without the token, besides loopback names and addresses.
    pub hosts: Vec<String>,
    /// The token for requests over HTTP that change something.
    pub token: Option<Secret>,
    /// The token for requests over HTTP that only look.
    pub viewer_token: Option<Secret>,
    /// That token shows values, too.
    pub viewer_values: bool,
    /// Nothing is changed over HTTP.
    pub read_only: bool,
    /// The name of the environment.
    pub title: Option<String>,
    /// The filter of log lines.
    pub log: LogFilter,
    /// The format of log lines.
    pub log_format: LogFormat,
}

impl Settings {
    /// Resolves every setting.
    ///
    /// # Errors
    /// All faults at once.
    pub fn resolve(common: &CommonArgs, worker: &WorkerArgs, env: &Environment) -> Result<Self, ConfigError> {
        let mut lookup = Lookup { env, faults: Vec::new() };
        let redis = lookup.redis(common);
        let jobs = lookup.text("--jobs", &common.jobs, "SAMOVAR_JOBS").map_or_else(|| "jobs".into(), Found::into_path);
        let concurrency = lookup
            .setting("--concurrency", &worker.concurrency, "SAMOVAR_CONCURRENCY", |text| within(text, &CONCURRENCY))
            .unwrap_or(64);
        let claim = lookup
            .setting("--claim", &worker.claim, "SAMOVAR_CLAIM", |text| duration(text, &CLAIM))
            .unwrap_or(Duration::from_secs(30));
        let drain = lookup
            .setting("--drain", &worker.drain, "SAMOVAR_DRAIN", |text| duration(text, &DRAIN))
            .unwrap_or(Duration::from_secs(20));
        let sample = lookup
            .setting("--sample", &worker.sample, "SAMOVAR_SAMPLE", |text| duration(text, &SAMPLE))
            .unwrap_or(Duration::from_secs(10));
        let misses = lookup.setting("--misses", &worker.misses, "SAMOVAR_MISSES", switch).unwrap_or(false);
        let prefix = lookup
            .setting("--prefix", &common.prefix, "SAMOVAR_PREFIX", prefix)
            .unwrap_or_else(|| "samovar".to_owned());
        let channel = lookup.setting("--channel", &common.channel, "SAMOVAR_CHANNEL", |text| {
            channel(text, &Keys::of(&prefix).in_database(redis.as_ref().map_or(0, RedisUrl::database)))
        });
        let default_ttl = lookup
            .setting("", &None, "REDIS_CACHE_TTL", |text| duration_or_seconds(text, &DEFAULT_TTL))
            .unwrap_or(Duration::from_secs(3600));
        let listen = lookup.setting("--listen", &worker.listen, "SAMOVAR_LISTEN", listen).unwrap_or_default();
        let hosts = lookup.setting("--hosts", &worker.hosts, "SAMOVAR_HOSTS", hosts).unwrap_or_default();
        let token = lookup.token("SAMOVAR_TOKEN");
        let viewer_token = lookup.viewer_token(token.as_ref());
        let viewer_values = lookup.setting("", &None, "SAMOVAR_VIEWER_VALUES", switch).unwrap_or(false);
        let read_only = lookup.flag(worker.read_only, "SAMOVAR_READ_ONLY");
        let title = lookup.setting("--title", &worker.title, "SAMOVAR_TITLE", title);
        let log = lookup.setting("--log", &common.log, "SAMOVAR_LOG", log_filter).unwrap_or_default();
        let log_format =
            lookup.setting("--log-format", &common.log_format, "SAMOVAR_LOG_FORMAT", log_format).unwrap_or_default();
        match redis {
            Some(redis) if lookup.faults.is_empty() => {
                let rest = Self {
                    redis,
                    jobs,
                    concurrency,
                    claim,
                    prefix,
                    channel,
                    default_ttl,
                    drain,
                    sample,
                    misses,
                    listen,
                    hosts,
                    token,
                    viewer_token,
                    viewer_values,
                    read_only,
                    title,
                    log,
                    log_format,
                };
                Ok(rest)
            }
            _ => Err(ConfigError { faults: lookup.faults }),
        }
    }

    /// Returns the names of all keys and channels.
    pub fn keys(&self) -> Keys {
        let keys = match &self.channel {
            Some(channel) => Keys::new(&self.prefix, channel),
            None => Keys::of(&self.prefix),
        };
        keys.in_database(self.redis.database())
    }
}

/// Everything that is wrong with the settings; no fault shows a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ConfigError {
    /// One line each: the setting's name, its value unless that may be secret, and the remedy. Never empty.
    pub faults: Vec<String>,
}

/// A value and where it was found.
struct Found {
    origin: &'static str,
    value: String,
}

impl Found {
    fn into_path(self) -> PathBuf {
        self.value.into()
    }
}

/// Looks settings up and collects their faults.
struct Lookup<'a> {
    env: &'a Environment,
    faults: Vec<String>,
}

impl Lookup<'_> {
    fn text(&self, flag: &'static str, given: &Option<String>, variable: &'static str) -> Option<Found> {
        let given = given.clone().filter(|value| !value.is_empty()).map(|value| Found { origin: flag, value });
        given.or_else(|| self.env.get(variable).map(|value| Found { origin: variable, value }))
    }

    /// Reads a setting that is no secret. Faults show its value.
    fn setting<T>(
        &mut self,
        flag: &'static str,
        given: &Option<String>,
        variable: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Found { origin, value } = self.text(flag, given, variable)?;
        read(value.trim()).map_err(|what| self.faults.push(format!("{origin}: `{value}` {what}"))).ok()
    }

    fn flag(&mut self, given: bool, variable: &'static str) -> bool {
        given || self.setting("", &None, variable, switch).unwrap_or(false)
    }

    fn token(&mut self, variable: &'static str) -> Option<Secret> {
        let read = token(self.env.get(variable)?);
        read.map_err(|what| self.faults.push(format!("{variable}: {what}"))).ok()
    }

    /// Reads the token of those who only look, beside that of those who act.
    fn viewer_token(&mut self, token: Option<&Secret>) -> Option<Secret> {
        let viewer = self.token("SAMOVAR_VIEWER_TOKEN")?;
        let fault = match token {
            Some(token) if *token == viewer => "must differ from SAMOVAR_TOKEN, whose owner may change things",
            Some(_) => return Some(viewer),
            // A faulty one is told already.
            None if self.env.get("SAMOVAR_TOKEN").is_some() => return None,
            None => "needs SAMOVAR_TOKEN as well, without which anybody on this machine may change things",
        };
        self.faults.push(format!("SAMOVAR_VIEWER_TOKEN: {fault}"));
        None
    }

    fn redis(&mut self, common: &CommonArgs) -> Option<RedisUrl> {
        let ca = self.text("--redis-ca", &common.redis_ca, "SAMOVAR_REDIS_CA").map(Found::into_path);
        if let Some(Found { origin, value }) = self.text("--redis-url", &common.redis_url, "REDIS_URL") {
            return self.redis_url(origin, &value, ca.as_deref());
        }
        let [host, port, db, password] = REDIS_PARTS.map(|name| self.env.get(name));
        if [&host, &port, &db, &password].into_iter().all(Option::is_none) {
            return self.redis_url("the default", DEFAULT_REDIS_URL, ca.as_deref());
        }
        if ca.is_some() {
            let fault = "SAMOVAR_REDIS_CA: needs REDIS_URL=rediss://…; REDIS_HOST and the other parts have no TLS";
            self.faults.push(fault.into());
        }
        let before = self.faults.len();
        let port = self.setting("", &None, "REDIS_PORT", |text| {
            if text.contains("://") {
                let what =
                    "comes from Kubernetes for a service named redis; set REDIS_URL, or enableServiceLinks: false";
                return Err(what.into());
            }
            within(text, &(1..=u16::MAX))
        });
        let db = self.setting("", &None, "REDIS_DB", |text| within(text, &(0..=u32::MAX)));
        let host = host.unwrap_or_else(|| "127.0.0.1".into());
        if host.contains(['/', '@', ',', ' ']) {
            self.faults.push("REDIS_HOST: must be the name or address of one host; a URL goes into REDIS_URL".into());
        }
        let sound = self.faults.len() == before;
        sound.then(|| RedisUrl::at(&host, port.unwrap_or(6379), db.unwrap_or(0), password.as_deref()))
    }

    fn redis_url(&mut self, origin: &str, value: &str, ca: Option<&Path>) -> Option<RedisUrl> {
        RedisUrl::parse(value, ca).map_err(|error| self.faults.push(format!("{origin}: {error}"))).ok()
    }
}

#[cfg(test)]
mod tests;
