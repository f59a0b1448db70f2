//! Process settings; the only reader of the environment (and of `.env`).
//!
//! Each setting comes from its flag, else the environment, else `.env` in the working directory, else its default; empty
//! means unset. [`Environment`] is that lookup without the flags, and job files use it too. The process's own environment
//! is never changed. All faults are found at once; none of them shows a secret.

mod dotenv;

use crate::entry::duration;
use crate::protocol::Keys;
use crate::redis::RedisUrl;
use crate::telemetry::{LogFilter, LogFormat};
use clap::Args;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

const DEFAULT_REDIS_URL: &str = "redis://127.0.0.1:6379/0";
const REDIS_PARTS: [&str; 4] = ["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"];

/// A claim shorter than this would lapse while a healthy worker fetches; one longer than a day is a typing error.
const CLAIM: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
/// The lower end is for trying things out: idle times are whole seconds.
const SAMPLE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(24 * 60 * 60);
const DRAIN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 60 * 60);

/// Beyond this, one process waits for itself more than for upstreams; start another.
const CONCURRENCY: RangeInclusive<usize> = 1..=4096;

/// Seconds; the upper end is ten years.
const DEFAULT_TTL: RangeInclusive<u64> = 1..=10 * 365 * 24 * 60 * 60;

/// The prefix is part of every key that Samovar keeps beside an entry, so its length is paid a million times.
const LONGEST_PREFIX: usize = 64;

/// Flags that every command knows.
#[derive(Args, Clone, Default)]
pub struct CommonArgs {
    /// Where Redis is: redis://user:password@host:port/db, of which only the host is needed; rediss:// for TLS
    /// [env: REDIS_URL, else REDIS_HOST, REDIS_PORT, REDIS_DB, REDIS_PASSWORD] [default: redis://127.0.0.1:6379/0]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    pub redis_url: Option<String>,

    /// PEM file of the authorities to trust for rediss:// [env: SAMOVAR_REDIS_CA] [default: the system's]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    pub redis_ca: Option<String>,

    /// Folder of job files [env: SAMOVAR_JOBS] [default: jobs]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Settings")]
    pub jobs: Option<String>,

    /// What the names of Samovar's own keys and channels begin with; one fleet, one prefix
    /// [env: SAMOVAR_PREFIX] [default: samovar]
    #[arg(long, global = true, value_name = "TEXT", help_heading = "Settings")]
    pub prefix: Option<String>,

    /// The pub/sub channel on which invalidations are heard [env: SAMOVAR_CHANNEL] [default: PREFIX:invalidate, or
    /// PREFIX:dbN:invalidate in a database N other than 0]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Settings")]
    pub channel: Option<String>,

    /// What is logged: a level, or levels by module, such as samovar::warmer=debug,warn
    /// [env: SAMOVAR_LOG] [default: info]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Settings")]
    pub log: Option<String>,

    /// How it is logged, text or json [env: SAMOVAR_LOG_FORMAT] [default: text]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Settings")]
    pub log_format: Option<String>,
}

impl fmt::Debug for CommonArgs {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommonArgs").field("jobs", &self.jobs).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Flags that only workers know.
#[derive(Args, Clone, Debug, Default)]
pub struct WorkerArgs {
    /// Fetches under way at once from this process to one upstream, 1 to 4096 [env: SAMOVAR_CONCURRENCY] [default: 64]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<String>,

    /// How long claimed entries belong to a worker that does not report; after a crash they wait this long
    /// [env: SAMOVAR_CLAIM] [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub claim: Option<String>,

    /// How long work in flight may take to finish after SIGTERM [env: SAMOVAR_DRAIN] [default: 20s]
    #[arg(long, value_name = "TIME")]
    pub drain: Option<String>,

    /// How often Redis is asked which entries were read, at most [env: SAMOVAR_SAMPLE] [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub sample: Option<String>,

    /// Whether keys that are asked for in vain are fetched, as Redis's keyspace events tell: on or off; sets
    /// notify-keyspace-events [env: SAMOVAR_MISSES] [default: off]
    #[arg(long, value_name = "SWITCH")]
    pub misses: Option<String>,
    /// Where HTTP is answered (health, statistics, metrics, and what changes things): ADDRESS:PORT, port 0 for any that is
    /// free, or `off`; SAMOVAR_TOKEN in the environment protects what changes things
    /// [env: SAMOVAR_LISTEN] [default: 127.0.0.1:7070, or the next port that is free]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// Names by which HTTP may be asked without the token, beside loopback names and addresses, separated by commas
    /// [env: SAMOVAR_HOSTS] [default: none]
    #[arg(long, value_name = "NAMES")]
    pub hosts: Option<String>,
}

/// Where HTTP is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// On the loopback interface, at [`DEFAULT_PORT`] or the next port that is free.
    #[default]
    Anywhere,
    /// Here and nowhere else.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// Where HTTP is answered if nobody says otherwise.
pub const DEFAULT_PORT: u16 = 7070;

/// What only its owner may know: it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself; not for logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The settings of one process, valid together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Redis is.
    pub redis: RedisUrl,
    /// The folder of job files; whether it exists is found out when it is read.
    pub jobs: PathBuf,
    /// Entries this process warms at once.
    pub concurrency: usize,
    /// How long claimed entries belong to a worker; after a crash they wait this long.
    pub claim: Duration,
    /// What the names of Samovar's own keys and channels begin with. Never empty; safe in key names and hash tags.
    pub prefix: String,
    /// The pub/sub channel on which invalidations are heard, where it was named.
    pub channel: Option<String>,
    /// The TTL of a job that names none.
    pub default_ttl: Duration,
    /// How long work in flight may take to finish once the process is told to stop.
    pub drain: Duration,
    /// How often Redis is asked which entries were read, at most.
    pub sample: Duration,
    /// Whether keys that are asked for in vain are fetched, as keyspace events tell.
    pub misses: bool,
    /// Where HTTP is answered.
    pub listen: Listen,
    /// Names by which HTTP may be asked without the token, beside loopback names and addresses.
    pub hosts: Vec<String>,
    /// What whoever changes things over HTTP must show.
    pub token: Option<Secret>,
    /// Which log lines are written.
    pub log: LogFilter,
    /// Their shape.
    pub log_format: LogFormat,
}

impl Settings {
    /// Settles every setting.
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
            .setting("", &None, "REDIS_CACHE_TTL", |text| within(text, &DEFAULT_TTL))
            .map_or(Duration::from_secs(3600), Duration::from_secs);
        let listen = lookup.setting("--listen", &worker.listen, "SAMOVAR_LISTEN", listen).unwrap_or_default();
        let hosts = lookup.setting("--hosts", &worker.hosts, "SAMOVAR_HOSTS", hosts).unwrap_or_default();
        let token = lookup.token();
        let log = lookup
            .setting("--log", &common.log, "SAMOVAR_LOG", |text| {
                LogFilter::parse(text).map_err(|_| {
                    "is no log filter; write a level such as `info`, or `module=level`, \
                                                    separated by commas"
                        .to_owned()
                })
            })
            .unwrap_or_default();
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
                    log,
                    log_format,
                };
                Ok(rest)
            }
            _ => Err(ConfigError { faults: lookup.faults }),
        }
    }

    /// The names of all keys and channels.
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
    /// One line each, with the setting's name, its value unless it may be secret, and the remedy. Never empty.
    pub faults: Vec<String>,
}

/// The environment, and below it `.env`.
#[derive(Clone, Default)]
pub struct Environment {
    process: BTreeMap<String, String>,
    file: BTreeMap<String, String>,
}

impl fmt::Debug for Environment {
    /// Names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("file", &self.file.keys()).finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads the process's environment and, where there is one, `.env` in the working directory.
    ///
    /// # Errors
    /// A file that cannot be read, and every malformed line of it; a variable of ours that is not UTF-8.
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
    pub fn read() -> Result<Self, ConfigError> {
        Self::gather(std::env::vars_os(), Path::new(".env"))
    }

    fn gather(process: impl Iterator<Item = (OsString, OsString)>, file: &Path) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        let mut variables = BTreeMap::new();
        for (name, value) in process {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => {
                    variables.insert(name, value);
                }
                Err(_) if name.starts_with("SAMOVAR_") || name.starts_with("REDIS_") => {
                    faults.push(format!("{name}: the value is not UTF-8"));
                }
                Err(_) => {}
            }
        }
        let file = read_file(file, &mut faults);
        if faults.is_empty() { Ok(Self { process: variables, file }) } else { Err(ConfigError { faults }) }
    }

    /// The value of a variable; `None` where it is unset or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        [&self.process, &self.file]
            .into_iter()
            .find_map(|layer| layer.get(name).filter(|value| !value.is_empty()))
            .cloned()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    /// These variables and no others.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let process = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { process, file: BTreeMap::new() }
    }
}

fn read_file(path: &Path, faults: &mut Vec<String>) -> BTreeMap<String, String> {
    let shown = path.display();
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            faults.push(format!("{shown}: cannot be read: {error}"));
            return BTreeMap::new();
        }
    };
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
    let text = match str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let line = 1 + text[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            faults.push(format!("{shown}:{line}: not UTF-8; save the file as UTF-8"));
            return BTreeMap::new();
        }
    };
    let (variables, found) = dotenv::parse(text);
    let hidden = "(the line is not shown, it may be secret)";
    faults.extend(found.into_iter().map(|fault| format!("{shown}:{}: {} {hidden}", fault.line, fault.what)));
    // The last of several counts, as in a shell.
    variables.into_iter().collect()
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

/// Looks settings up and collects what is wrong with them.
struct Lookup<'a> {
    env: &'a Environment,
    faults: Vec<String>,
}

impl Lookup<'_> {
    fn text(&self, flag: &'static str, given: &Option<String>, variable: &'static str) -> Option<Found> {
        let given = given.clone().filter(|value| !value.is_empty()).map(|value| Found { origin: flag, value });
        given.or_else(|| self.env.get(variable).map(|value| Found { origin: variable, value }))
    }

    /// A value that is no secret: faults show it.
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

    fn token(&mut self) -> Option<Secret> {
        let token = self.env.get("SAMOVAR_TOKEN")?;
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let fault =
                "SAMOVAR_TOKEN: may hold only letters, digits and signs of ASCII, as HTTP headers can carry them";
            self.faults.push(fault.into());
            return None;
        }
        Some(Secret(token))
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
            self.faults
                .push("SAMOVAR_REDIS_CA: needs REDIS_URL=rediss://…; the parts (REDIS_HOST, …) speak no TLS".into());
        }
        let before = self.faults.len();
        let port = self.setting("", &None, "REDIS_PORT", |text| {
            if text.contains("://") {
                return Err(
                    "is what Kubernetes sets for a service named redis; set REDIS_URL, or enableServiceLinks: \
                            false"
                        .into(),
                );
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

fn within<T: FromStr + PartialOrd + fmt::Display>(text: &str, range: &RangeInclusive<T>) -> Result<T, String> {
    let (first, last) = (range.start(), range.end());
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("must be a whole number from {first} to {last}"))
}

fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    if text != "0" && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("has no unit; write `{text}s` for seconds"));
    }
    let time = humantime::parse_duration(text).map_err(|_| "is not a time; write `30s`, `5m` or `1h30m`".to_owned())?;
    if range.contains(&time) {
        return Ok(time);
    }
    let [first, last] = [range.start(), range.end()].map(|end| duration::text(*end));
    Err(format!("must be between {first} and {last}"))
}

fn prefix(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-:.".contains(c);
    if !text.chars().all(allowed) {
        return Err("may hold only letters, digits, `_`, `-`, `:` and `.`".into());
    }
    if text.is_empty() || text.len() > LONGEST_PREFIX {
        return Err(format!("must have 1 to {LONGEST_PREFIX} characters"));
    }
    Ok(text.to_owned())
}

fn channel(text: &str, keys: &Keys) -> Result<String, String> {
    if text == keys.changed_channel() {
        return Err("is where changes are announced; invalidations need a channel of their own".into());
    }
    if [keys.watched_channel(), keys.signal_channel()].iter().any(|own| own == text) {
        return Err("is where workers talk to each other; invalidations need a channel of their own".into());
    }
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("must be a name without spaces".into());
    }
    Ok(text.to_owned())
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        _ => Err("must be `on` or `off`".into()),
    }
}

fn listen(text: &str) -> Result<Listen, String> {
    if text == "off" {
        return Ok(Listen::Off);
    }
    let address = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    address.parse().map(Listen::At).map_err(|_| {
        "is no address; write `127.0.0.1:7070`, `0.0.0.0:7070` for all interfaces, `[::1]:7070`, or `off`".to_owned()
    })
}

fn hosts(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(|name| name.trim_end_matches('.'));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_host = |name: &str| name.parse::<IpAddr>().is_ok() || (!name.is_empty() && name.chars().all(allowed));
    names.map(|name| is_host(name).then(|| name.to_owned())).collect::<Option<_>>().ok_or_else(|| {
        "is no list of names; write `samovar.example, 10.0.0.7`, without `http://`, ports and wildcards".to_owned()
    })
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be `text` or `json`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let env = variables.iter().copied().collect();
        Settings::resolve(&CommonArgs::default(), &WorkerArgs::default(), &env)
    }

    fn settings(variables: &[(&str, &str)]) -> Settings {
        resolve(variables).unwrap()
    }

    fn faults(variables: &[(&str, &str)]) -> Vec<String> {
        resolve(variables).unwrap_err().faults
    }

    fn environment(process: &[(&str, &str)], file: &str) -> Result<Environment, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".env"), file).unwrap();
        let process = process.iter().map(|(name, value)| (name.into(), value.into()));
        Environment::gather(process, &folder.path().join(".env")).map_err(|error| ConfigError {
            faults: error.faults.iter().map(|f| f.replace(&folder.path().display().to_string(), "")).collect(),
        })
    }

    #[test]
    fn nothing_set_gives_the_documented_defaults() {
        let settings = settings(&[]);
        assert_eq!(settings.redis.to_string(), "redis://127.0.0.1:6379/0");
        assert_eq!(settings.jobs, Path::new("jobs"));
        assert_eq!(settings.concurrency, 64);
        assert_eq!(settings.claim, Duration::from_secs(30));
        assert_eq!(settings.drain, Duration::from_secs(20));
        assert_eq!((settings.sample, settings.misses), (Duration::from_secs(10), false));
        assert_eq!(settings.prefix, "samovar");
        assert_eq!(settings.keys().invalidate_channel(), "samovar:invalidate");
        assert_eq!(settings.default_ttl, Duration::from_secs(3600));
        assert_eq!((settings.listen, settings.token), (Listen::Anywhere, None));
        assert_eq!(settings.log, LogFilter::default());
        assert_eq!(settings.log_format, LogFormat::Text);
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = "SAMOVAR_PREFIX=file\nSAMOVAR_CONCURRENCY=2\nSAMOVAR_CLAIM=2s\n";
        let env = environment(&[("SAMOVAR_PREFIX", "process"), ("SAMOVAR_CONCURRENCY", "3")], file).unwrap();
        let common = CommonArgs { prefix: Some("flag".into()), ..CommonArgs::default() };
        let settings = Settings::resolve(&common, &WorkerArgs::default(), &env).unwrap();
        assert_eq!(settings.prefix, "flag");
        assert_eq!(settings.concurrency, 3);
        assert_eq!(settings.claim, Duration::from_secs(2));
        assert_eq!(settings.drain, Duration::from_secs(20));
    }

    #[test]
    fn empty_means_unset_on_every_level() {
        let env = environment(&[("SAMOVAR_PREFIX", ""), ("SAMOVAR_JOBS", "")], "SAMOVAR_PREFIX=file\nSAMOVAR_JOBS=\n");
        let common = CommonArgs { prefix: Some(String::new()), ..CommonArgs::default() };
        let settings = Settings::resolve(&common, &WorkerArgs::default(), &env.unwrap()).unwrap();
        assert_eq!(settings.prefix, "file");
        assert_eq!(settings.jobs, Path::new("jobs"));
    }

    #[test]
    fn the_channel_follows_prefix_and_database_unless_it_is_named() {
        let channel = |variables: &[(&str, &str)]| settings(variables).keys().invalidate_channel();
        assert_eq!(channel(&[("SAMOVAR_PREFIX", "app:1")]), "app:1:invalidate");
        assert_eq!(channel(&[("REDIS_DB", "3")]), "samovar:db3:invalidate");
        assert_eq!(channel(&[("REDIS_DB", "3"), ("SAMOVAR_CHANNEL", "samovar:invalidate")]), "samovar:invalidate");
        assert_eq!(channel(&[("SAMOVAR_PREFIX", "app"), ("SAMOVAR_CHANNEL", "purge")]), "purge");
    }

    #[test]
    fn every_way_to_name_a_database_names_its_channels() {
        let signal = |url| settings(&[("REDIS_URL", url)]).keys().signal_channel();
        let third = [
            "redis://cache/3",
            "redis://cache/3/",
            "redis://cache/03",
            "redis://cache?db=3",
            "redis://cache/3?db=4",
            "rediss://u:p@cache:7000/3",
            "valkey://[::1]/3",
            "unix:///run/redis.sock?db=3",
            "redis+unix:///run/redis.sock?user=u&db=3",
        ];
        for url in third {
            assert_eq!(signal(url), "samovar:db3:signal", "{url}");
        }
        for url in ["redis://cache", "redis://cache/", "redis://cache/0", "redis://cache/00", "unix:///run/redis.sock"]
        {
            assert_eq!(signal(url), "samovar:signal", "{url}");
        }
    }

    #[test]
    fn redis_parts_count_only_without_a_url() {
        let parts = [("REDIS_HOST", "cache"), ("REDIS_DB", "3"), ("REDIS_PASSWORD", "p@ss/word")];
        let redis = settings(&parts).redis;
        assert_eq!(redis.to_string(), "redis://***@cache:6379/3");
        let client = redis.client().unwrap();
        assert_eq!(client.get_connection_info().redis_settings().password(), Some("p@ss/word"));
        let with_url = [&parts[..], &[("REDIS_URL", "redis://elsewhere")]].concat();
        assert_eq!(settings(&with_url).redis.to_string(), "redis://elsewhere:6379/0");
        assert_eq!(settings(&[("REDIS_PORT", "7000")]).redis.to_string(), "redis://127.0.0.1:7000/0");
    }

    #[test]
    fn all_faults_are_reported_at_once_with_value_and_remedy() {
        let faults = faults(&[
            ("REDIS_URL", "http://cache"),
            ("SAMOVAR_CONCURRENCY", "0"),
            ("SAMOVAR_CLAIM", "30"),
            ("SAMOVAR_DRAIN", "soon"),
            ("SAMOVAR_MISSES", "maybe"),
            ("SAMOVAR_PREFIX", "{app}"),
            ("SAMOVAR_CHANNEL", "samovar:changed"),
            ("REDIS_CACHE_TTL", "0"),
            ("SAMOVAR_LOG", "samovar=loud"),
            ("SAMOVAR_LOG_FORMAT", "xml"),
            ("SAMOVAR_LISTEN", "7070"),
            ("SAMOVAR_HOSTS", "http://tea.example"),
            ("SAMOVAR_TOKEN", "hunter 2"),
        ]);
        assert!(!faults.concat().contains("hunter"), "{faults:?}");
        let expected = [
            "REDIS_URL: `http://cache` is of an unknown kind; write redis://, rediss:// or unix://",
            "SAMOVAR_CONCURRENCY: `0` must be a whole number from 1 to 4096",
            "SAMOVAR_CLAIM: `30` has no unit; write `30s` for seconds",
            "SAMOVAR_DRAIN: `soon` is not a time; write `30s`, `5m` or `1h30m`",
            "SAMOVAR_MISSES: `maybe` must be `on` or `off`",
            "SAMOVAR_PREFIX: `{app}` may hold only letters, digits, `_`, `-`, `:` and `.`",
            "SAMOVAR_CHANNEL: `samovar:changed` is where changes are announced; invalidations need a channel of their own",
            "REDIS_CACHE_TTL: `0` must be a whole number from 1 to 315360000",
            "SAMOVAR_LISTEN: `7070` is no address; write `127.0.0.1:7070`, `0.0.0.0:7070` for all interfaces, `[::1]:7070`, or \
             `off`",
            "SAMOVAR_HOSTS: `http://tea.example` is no list of names; write `samovar.example, 10.0.0.7`, without `http://`, \
             ports and wildcards",
            "SAMOVAR_TOKEN: may hold only letters, digits and signs of ASCII, as HTTP headers can carry them",
            "SAMOVAR_LOG: `samovar=loud` is no log filter; write a level such as `info`, or `module=level`, separated by \
             commas",
            "SAMOVAR_LOG_FORMAT: `xml` must be `text` or `json`",
        ];
        assert_eq!(faults, expected);
    }

    #[test]
    fn a_claim_is_never_shorter_than_a_second() {
        assert_eq!(faults(&[("SAMOVAR_CLAIM", "900ms")]), ["SAMOVAR_CLAIM: `900ms` must be between 1s and 1d"]);
        assert_eq!(settings(&[("SAMOVAR_DRAIN", "0")]).drain, Duration::ZERO);
    }

    #[test]
    fn an_address_to_listen_on_may_be_named_or_refused() {
        let listen = |text| settings(&[("SAMOVAR_LISTEN", text)]).listen;
        assert_eq!(listen("off"), Listen::Off);
        assert_eq!(listen("localhost:0"), Listen::At(([127, 0, 0, 1], 0).into()));
        assert_eq!(listen("0.0.0.0:80"), Listen::At(([0, 0, 0, 0], 80).into()));
        assert_eq!(listen("[::1]:80").clone(), Listen::At("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn names_to_be_asked_by_are_separated_by_commas() {
        assert_eq!(settings(&[("SAMOVAR_HOSTS", " tea.example., ::1,,pot_2 ")]).hosts, ["tea.example", "::1", "pot_2"]);
        for wrong in ["*", "a:7070", "a/b", "a b", "."] {
            assert_eq!(faults(&[("SAMOVAR_HOSTS", wrong)]).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn a_port_from_kubernetes_is_explained() {
        let faults = faults(&[("REDIS_PORT", "tcp://10.0.0.1:6379")]);
        assert!(faults[0].contains("Kubernetes"), "{faults:?}");
    }

    #[test]
    fn a_fault_in_the_file_is_named_by_its_line_and_not_shown() {
        let file = "# comment\n\nexport GOOD=1\nTOKEN = \"hunter2 and more\nSECOND=\"x\"\n";
        let error = environment(&[], file).unwrap_err();
        assert_eq!(error.faults.len(), 1, "{error}");
        assert!(error.to_string().contains(".env:4: "), "{error}");
        let error = environment(&[], "A=1\nhunter2 hunter2\nB='two\nlines'\nhunter2 hunter2\n").unwrap_err();
        let places: Vec<_> = error.faults.iter().map(|fault| fault.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["/.env:2", "/.env:5"]);
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_utf_8_is_named_by_the_line() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".env"), b"A=1\nB=hunter2\xff\n").unwrap();
        let error = Environment::gather([].into_iter(), &folder.path().join(".env")).unwrap_err().to_string();
        assert!(error.contains(".env:2: not UTF-8") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_missing_file_is_no_fault_and_an_unreadable_one_is() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Environment::gather([].into_iter(), &folder.path().join(".env")).is_ok());
        assert!(Environment::gather([].into_iter(), folder.path()).is_err());
    }

    #[test]
    fn the_file_may_have_a_byte_order_mark_and_no_last_newline() {
        let env = environment(&[], "\u{feff}FIRST=1\r\nLAST=2").unwrap();
        assert_eq!((env.get("FIRST").as_deref(), env.get("LAST").as_deref()), (Some("1"), Some("2")));
    }

    #[test]
    fn nothing_that_is_printed_holds_a_secret() {
        let env: Environment =
            [("REDIS_URL", "redis://:hunter2@cache"), ("OPENAI_API_KEY", "hunter2"), ("SAMOVAR_TOKEN", "hunter2")]
                .into_iter()
                .collect();
        let common = CommonArgs { redis_url: Some("redis://:hunter2@cache/x".into()), ..CommonArgs::default() };
        let settings = Settings::resolve(&CommonArgs::default(), &WorkerArgs::default(), &env).unwrap();
        let error = Settings::resolve(&common, &WorkerArgs::default(), &env).unwrap_err();
        let printed = format!("{env:?} {common:?} {settings:?} {error} {error:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}
