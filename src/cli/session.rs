//! The shared parts of one-shot commands: the jobs, the connection to Redis, output.

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tracing::warn;

use super::exit;
use crate::agenda::Agenda;
use crate::config::{Environment, Settings};
use crate::entry::JobName;
use crate::entry::escape::{self, escaped};
use crate::job::{Faults, Jobs, KnownJobs};
pub(super) use crate::ops::words::{ago, relative};
use crate::ops::{Ops, descriptions};
use crate::protocol::Keys;
use crate::queue::Queue;
use crate::redis::{Connection, Servers, is_of_keys, is_of_stranger, passes, requirements};
use crate::store::Store;
use crate::worker::dead_after;

/// The timeout of Redis in one-shot commands.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause before a command that may be repeated is sent again.
pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// A table with fewer columns, or a terminal of this width, has room for whole keys.
const MANY_COLUMNS: usize = 8;
const WIDE: usize = 140;
/// The time that Sentinels have to answer a command that shows their state.
const SENTINELS: Duration = Duration::from_secs(1);

/// The failure of a subcommand: its exit code. The reason is already printed.
pub(super) struct Failed(pub(super) u8);

impl From<redis::RedisError> for Failed {
    fn from(error: redis::RedisError) -> Self {
        complain(format_args!("Redis: {}", requirements::explain(&error)));
        // An error of Redis itself (rights, memory, a key of the wrong type) does not mean that it is unreachable.
        Self(if error.code().is_none() || passes(&error) { exit::UNAVAILABLE } else { exit::FAILED })
    }
}

/// Reads the jobs folder, or prints all its faults.
pub(super) fn jobs(settings: &Settings, env: &Environment) -> Result<Arc<Jobs>, Failed> {
    let read = Jobs::read(&settings.jobs, settings.default_ttl, &|name| env.get(name));
    warn_of_unknown_settings(env, |name| read.env.iter().any(|used| used.name == name));
    match read.jobs {
        Ok(jobs) => Ok(Arc::new(jobs)),
        Err(faults) => {
            tell_faults(&faults);
            Err(Failed(exit::CONFIG))
        }
    }
}

/// Prints faults of job files on standard error, each with its line.
pub(super) fn tell_faults(faults: &Faults) {
    eprintln!("{}", faults.render(std::io::stderr().is_terminal()));
}

/// Connects to the fleet, and returns the operations on the jobs that it knows. They come from Redis; the job files are
/// read only if no worker has described its jobs there.
pub(super) async fn fleet(settings: &Settings, env: &Environment) -> Result<(Session, Ops), Failed> {
    let session = Session::open(settings).await?;
    match session.known_jobs(settings, env).await? {
        Ok(jobs) => {
            let ops = session.ops(jobs);
            Ok((session, ops))
        }
        Err(NoJobs { why, faults }) => {
            complain(format_args!("{why}, so the job files are needed, and they have faults:"));
            tell_faults(&faults);
            Err(Failed(exit::CONFIG))
        }
    }
}

/// Why no jobs are known.
pub(super) struct NoJobs {
    /// Why Redis does not tell them.
    pub(super) why: String,
    /// Why the job files do not.
    pub(super) faults: Faults,
}

/// Warns of variables that look like settings and are none, unless job files use them.
pub(super) fn warn_of_unknown_settings(env: &Environment, is_used: impl Fn(&str) -> bool) {
    for (name, nearest) in env.unknown_settings().filter(|(name, _)| !is_used(name)) {
        match nearest {
            Some(nearest) => warn!("{name} is no setting and has no effect: did you mean {nearest}?"),
            None => warn!("{name} is no setting and has no effect"),
        }
    }
}

/// The connection of a one-shot command.
pub(super) struct Session {
    pub(super) redis: Connection,
    pub(super) keys: Keys,
    pub(super) store: Store,
    pub(super) agenda: Agenda,
    claim: Duration,
}

impl Session {
    /// Connects once; prints one line if that fails.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failed> {
        Self::open_within(settings, Duration::ZERO).await
    }

    /// Connects as [`Self::open`] does. Where another server may become the master, tries again for `patience`, since a
    /// failover passes.
    pub(super) async fn open_within(settings: &Settings, patience: Duration) -> Result<Self, Failed> {
        let patience = if settings.redis.may_move() { patience } else { Duration::ZERO };
        let began = Instant::now();
        let mut redis = loop {
            match settings.redis.manager(PATIENCE).await {
                Ok(redis) => break redis,
                Err(e) if passes(&e) && began.elapsed() < patience => tokio::time::sleep(PAUSE).await,
                Err(e) => {
                    // That of a server that is not Redis names another remedy.
                    let remedy = if is_of_stranger(&e) { "" } else { "; is it running, and is REDIS_URL right?" };
                    complain(format_args!("cannot reach Redis at {}: {e}{remedy}", settings.redis));
                    return Err(Failed(exit::UNAVAILABLE));
                }
            }
        };
        if let Some(fault) = requirements::unsupported(&mut redis).await? {
            complain(format_args!("cannot work with Redis at {}: {fault}", settings.redis));
            return Err(Failed(exit::UNAVAILABLE));
        }
        let keys = settings.keys();
        let store = Store::new(redis.clone(), keys.clone());
        let agenda = Agenda::new(redis.clone(), keys.clone());
        Ok(Self { redis, keys, store, agenda, claim: settings.claim })
    }

    /// Returns the jobs that the fleet knows: those that its workers described in Redis, or else those of the job
    /// files.
    pub(super) async fn known_jobs(
        &self,
        settings: &Settings,
        env: &Environment,
    ) -> Result<Result<Arc<KnownJobs>, NoJobs>, Failed> {
        let why = match descriptions::read(&self.redis, &self.keys, self.store.now().await?).await {
            Ok(described) => {
                described.unreadable.iter().for_each(complain);
                let jobs = described.jobs;
                if !jobs.jobs.is_empty() {
                    // The job files that name them are with the workers.
                    let is_used = |name: &str| jobs.jobs.values().any(|job| job.variables.contains(name));
                    warn_of_unknown_settings(env, is_used);
                    return Ok(Ok(Arc::new(jobs)));
                }
                "no worker has described its jobs in Redis yet".to_owned()
            }
            Err(e) if is_of_keys(&e) => format!("the descriptions of jobs in Redis cannot be read ({e})"),
            Err(e) => return Err(e.into()),
        };
        let read = Jobs::read(&settings.jobs, settings.default_ttl, &|name| env.get(name));
        warn_of_unknown_settings(env, |name| read.env.iter().any(|used| used.name == name));
        Ok(read.jobs.map(|jobs| Arc::new(KnownJobs::from(&jobs))).map_err(|faults| NoJobs { why, faults }))
    }

    /// Returns the operations on the fleet.
    pub(super) fn ops(&self, jobs: Arc<KnownJobs>) -> Ops {
        Ops {
            redis: self.redis.clone(),
            keys: self.keys.clone(),
            store: self.store.clone(),
            agenda: self.agenda.clone(),
            jobs,
        }
    }

    /// Returns the number of live workers.
    pub(super) async fn workers(&self) -> Result<usize, Failed> {
        Ok(self.count_workers().await?)
    }

    /// Returns the number of live workers, for callers that can continue without it.
    pub(super) async fn count_workers(&self) -> redis::RedisResult<usize> {
        Queue::new(self.redis.clone(), &self.keys, "").workers(dead_after(self.claim)).await
    }
}

impl Session {
    /// Returns the names of the live workers.
    pub(super) async fn living(&self) -> redis::RedisResult<Vec<String>> {
        Queue::new(self.redis.clone(), &self.keys, "").living(dead_after(self.claim)).await
    }
}

/// Prints the kind of Redis and its masters; if Sentinels name the master, how many of them answer.
pub(super) async fn tell_redis(redis: &Connection) {
    let told = match redis.sentinels(SENTINELS).await {
        Some(status) => status.to_string(),
        None => redis.servers().to_string(),
    };
    println!("\n{}", wrapped(&format!("Redis: {told}."), ""));
}

/// Prints all servers of Redis: the masters, as [`tell_redis`] does, their replicas, and the Sentinels.
pub(super) async fn tell_all_redis(redis: &Connection) {
    tell_redis(redis).await;
    let Servers { replicas, sentinels, .. } = redis.all_servers(SENTINELS).await;
    for (what, addresses) in [("Replicas", replicas), ("Sentinels", sentinels)] {
        if !addresses.is_empty() {
            println!("{}", wrapped(&format!("{what}: {}.", addresses.join(", ")), "  "));
        }
    }
}

/// Returns the width of lines: the terminal's, within bounds.
pub(super) fn width() -> usize {
    textwrap::termwidth().clamp(40, 110)
}

/// Returns text wrapped at spaces only, so that names and keys stay whole; later lines have this indent.
pub(super) fn wrapped(text: &str, indent: &str) -> String {
    wrapped_after("", text, indent)
}

/// Returns text wrapped as [`wrapped`] does, after a beginning that stays in one line.
pub(super) fn wrapped_after(beginning: &str, text: &str, indent: &str) -> String {
    let options = textwrap::Options::new(width())
        .initial_indent(beginning)
        .subsequent_indent(indent)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::fill(text, options)
}

/// Prints a document as JSON.
pub(super) fn print_json(document: &impl serde::Serialize) {
    match serde_json::to_string_pretty(document) {
        Ok(text) => println!("{}", escape::json(&text)),
        Err(e) => complain(format_args!("cannot write JSON: {e}")),
    }
}

/// Prints an error in one line on standard error.
pub(super) fn complain(what: impl fmt::Display) {
    eprintln!("samovar: {}", escaped(&what.to_string()));
}

/// Reports that a command refuses what it is given: as an object with `error` if `json` is set, otherwise in one line
/// on standard error. Returns the exit code: [`exit::USAGE`] for a fault of the command line, [`exit::FAILED`] for a
/// name that the fleet does not know.
pub(super) fn refuse(code: u8, json: bool, what: impl fmt::Display) -> Failed {
    if json {
        print_json(&serde_json::json!({ "error": what.to_string() }));
    } else {
        complain(what);
    }
    Failed(code)
}

/// A table with escaped cells.
pub(super) struct Rows(comfy_table::Table);

impl Rows {
    pub(super) fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells.into_iter().map(|cell| escaped(&cell).into_owned()));
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns an empty table in the common style.
pub(super) fn table(header: &[&str]) -> Rows {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.iter().copied());
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    // Names are for copying, so no line breaks them; nor keys, where this leaves room for the other columns.
    let has_room = header.len() < MANY_COLUMNS || textwrap::termwidth() >= WIDE;
    for (column, name) in table.column_iter_mut().zip(header) {
        if matches!(*name, "JOB" | "UPSTREAM") || (*name == "KEY" && has_room) {
            column.set_constraint(comfy_table::ColumnConstraint::ContentWidth);
        }
    }
    Rows(table)
}

/// Returns a progress bar of a job's entries on the terminal; none is drawn elsewhere.
pub(super) fn bar(job: &JobName, entries: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{job} [{bar:40}] {pos}/{len}  {per_sec}  {eta} left".replace("{job}", job.as_str());
    let style = ProgressStyle::with_template(&style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(entries as u64).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_code(answer: &str) -> u8 {
        match redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => Failed::from(redis::RedisError::from(error)).0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_that_passes_is_told_by_the_exit_code() {
        let passing = ["CLUSTERDOWN The cluster is down", "LOADING Redis is loading", "UNANSWERED no answer within 5s"];
        assert_eq!(passing.map(exit_code), [exit::UNAVAILABLE; 3]);
        assert_eq!(["NOPERM no rights", "OOM no memory", "ERR odd"].map(exit_code), [exit::FAILED; 3]);
    }

    #[test]
    fn names_and_keys_are_wrapped_as_a_whole() {
        let name = format!("host-{}", "01K-".repeat(40));
        let lines = wrapped(&format!("the worker {name} is the last one that has the earlier file"), "  ");
        assert!(lines.lines().any(|line| line.trim() == name), "{lines}");
        let lines = wrapped_after("art:Mona Lisa and others of a long name  ", &"due now ".repeat(20), "    ");
        assert!(lines.starts_with("art:Mona Lisa and others of a long name  due now"), "{lines}");
        assert!(lines.lines().skip(1).all(|line| line.starts_with("    ")), "{lines}");
    }
}
