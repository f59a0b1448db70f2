//! The environment's values that job files took.

use std::collections::BTreeMap;
use std::fmt;

/// Parts of the names of variables that hold secrets.
const SECRET_WORDS: [&str; 8] = ["TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASS", "CREDENTIAL", "AUTH"];

/// The values of the environment variables that job files name. They may be secret, so `Debug` shows only the names.
#[derive(Clone, Default)]
pub struct EnvValues(BTreeMap<String, String>);

impl EnvValues {
    /// Returns whether a variable's name says that its value is a secret.
    pub fn is_secret(name: &str) -> bool {
        let name = name.to_ascii_uppercase();
        SECRET_WORDS.iter().any(|word| name.contains(word))
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(super) fn insert(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }
}

impl fmt::Debug for EnvValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
