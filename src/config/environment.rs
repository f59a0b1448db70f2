//! The environment and, below it, `.env`.
//!
//! The process's own environment is never changed. No fault shows a secret.

use super::{ConfigError, dotenv};
use crate::job::closest;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The beginning of the names of all of Samovar's own variables.
const PREFIX: &str = "SAMOVAR_";
/// The names of settings after the prefix.
pub(super) const SETTINGS: [&str; 18] = [
    "CHANNEL",
    "CLAIM",
    "CONCURRENCY",
    "DRAIN",
    "HOSTS",
    "JOBS",
    "LISTEN",
    "LOG",
    "LOG_FORMAT",
    "MISSES",
    "PREFIX",
    "READ_ONLY",
    "REDIS_CA",
    "SAMPLE",
    "TITLE",
    "TOKEN",
    "VIEWER_TOKEN",
    "VIEWER_VALUES",
];

/// The environment and, below it, `.env`. Job files read it, too.
#[derive(Clone, Default)]
pub struct Environment {
    process: BTreeMap<String, String>,
    file: BTreeMap<String, String>,
}

impl fmt::Debug for Environment {
    /// Shows names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("file", &self.file.keys()).finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads the process's environment and these files, of which the last that has a variable counts. Without files,
    /// reads `.env` in the working directory if it is present.
    ///
    /// # Errors
    /// A file that cannot be read, each malformed line, and a variable of Samovar's that is not UTF-8.
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
    pub fn read(files: &[PathBuf]) -> Result<Self, ConfigError> {
        let (is_named, default) = (!files.is_empty(), [PathBuf::from(".env")]);
        Self::gather(std::env::vars_os(), if is_named { files } else { &default }, is_named)
    }

    /// Reads as [`Self::read`] does. Files that are `named` must exist.
    pub(super) fn gather(
        process: impl Iterator<Item = (OsString, OsString)>,
        files: &[PathBuf],
        named: bool,
    ) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        let mut variables = BTreeMap::new();
        for (name, value) in process {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => {
                    variables.insert(name, value);
                }
                Err(_) if name.starts_with(PREFIX) || name.starts_with("REDIS_") => {
                    faults.push(format!("{name}: the value is not UTF-8"));
                }
                Err(_) => {}
            }
        }
        let mut file = BTreeMap::new();
        for path in files {
            file.extend(read_file(path, named, &mut faults));
        }
        if faults.is_empty() { Ok(Self { process: variables, file }) } else { Err(ConfigError { faults }) }
    }

    /// Returns the value of a variable; `None` if it is unset or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        [&self.process, &self.file]
            .into_iter()
            .find_map(|layer| layer.get(name).filter(|value| !value.is_empty()))
            .cloned()
    }
}

impl Environment {
    /// Returns the variables that begin like settings and are none, each with the setting that it resembles.
    pub fn unknown_settings(&self) -> impl Iterator<Item = (&str, Option<String>)> {
        let names: BTreeSet<&String> = self.process.keys().chain(self.file.keys()).collect();
        names.into_iter().filter_map(|name| {
            let rest = name.strip_prefix(PREFIX)?;
            let is_unknown = !SETTINGS.contains(&rest) && !is_of_kubernetes(rest);
            let nearest = || closest(rest, SETTINGS.into_iter()).map(|setting| format!("{PREFIX}{setting}"));
            (is_unknown && self.get(name).is_some()).then(|| (name.as_str(), nearest()))
        })
    }
}

/// Returns `true` if Kubernetes sets such a variable for a service whose name is or begins with `samovar`, as in
/// `SAMOVAR_HTTP_PORT_7070_TCP_ADDR`.
fn is_of_kubernetes(rest: &str) -> bool {
    let rest = format!("_{rest}");
    let ends = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"];
    ends.iter().any(|end| rest.ends_with(end)) || ["_SERVICE_PORT_", "_PORT_"].iter().any(|part| rest.contains(part))
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    /// Holds these variables and no others.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let process = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { process, file: BTreeMap::new() }
    }
}

fn read_file(path: &Path, named: bool, faults: &mut Vec<String>) -> BTreeMap<String, String> {
    let shown = path.display();
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !named => return BTreeMap::new(),
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
    let hidden = "(the line is not shown: it may be secret)";
    faults.extend(found.into_iter().map(|fault| format!("{shown}:{}: {} {hidden}", fault.line, fault.what)));
    // The last of several lines with one name counts, as in a shell.
    variables.into_iter().collect()
}
