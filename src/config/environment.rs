//! The environment and, below it, `.env`.
//!
//! The process's own environment is never changed. No fault shows a secret.

use super::{ConfigError, dotenv};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

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
    /// Reads the process's environment and, if present, `.env` in the working directory.
    ///
    /// # Errors
    /// A file that cannot be read, each malformed line, and a variable of Samovar's that is not UTF-8.
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
    pub fn read() -> Result<Self, ConfigError> {
        Self::gather(std::env::vars_os(), Path::new(".env"))
    }

    pub(super) fn gather(
        process: impl Iterator<Item = (OsString, OsString)>,
        file: &Path,
    ) -> Result<Self, ConfigError> {
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

    /// Returns the value of a variable; `None` if it is unset or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        [&self.process, &self.file]
            .into_iter()
            .find_map(|layer| layer.get(name).filter(|value| !value.is_empty()))
            .cloned()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    /// Holds these variables and no others.
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
    let hidden = "(the line is not shown: it may be secret)";
    faults.extend(found.into_iter().map(|fault| format!("{shown}:{}: {} {hidden}", fault.line, fault.what)));
    // The last of several lines with one name counts, as in a shell.
    variables.into_iter().collect()
}
