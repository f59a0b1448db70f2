//! `CONFIG`: the settings that matter here.

use std::collections::BTreeMap;

use super::{Reply, Server};
use crate::commands::keys::unknown_subcommand;
use crate::commands::{Answer, bulk, glob, ok};
use crate::db::Bytes;

/// The settings of a server that has no file.
const DEFAULTS: [(&str, &str); 8] = [
    ("appendonly", "no"),
    ("databases", "16"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("notify-keyspace-events", ""),
    ("proto-max-bulk-len", "536870912"),
    ("save", "3600 1 300 100 60 10000"),
    ("timeout", "0"),
];

/// The settings of the server's file, and those that it has now.
pub(super) struct Config {
    file: BTreeMap<String, String>,
    now: BTreeMap<String, String>,
}

impl Config {
    pub(super) fn new() -> Self {
        let file: BTreeMap<_, _> =
            DEFAULTS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { now: file.clone(), file }
    }

    /// Returns to the settings of the file, as a restart does.
    pub(super) fn reset(&mut self) {
        self.now = self.file.clone();
    }

    pub(super) fn get(&self, name: &str) -> &str {
        self.now.get(name).map_or("", String::as_str)
    }
}

/// Returns the flags of `notify-keyspace-events` as Redis tells them.
fn events(text: &str) -> Option<String> {
    const ALL: &str = "g$lshzxetd";
    let is_known = |flag| "AKEmn".contains(flag) || ALL.contains(flag);
    if !text.chars().all(is_known) {
        return None;
    }
    let has = |flag: char| text.contains(flag) || text.contains('A') && ALL.contains(flag);
    let is_all = ALL.chars().all(has);
    let kinds =
        if is_all { "A".into() } else { ALL.chars().chain(['n']).filter(|flag| has(*flag)).collect::<String>() };
    Some(kinds + &"KEm".chars().filter(|flag| text.contains(*flag)).collect::<String>())
}

impl Server {
    /// Sets what the server's file says, which outlives a restart.
    pub fn configure(&mut self, name: &str, value: &str) {
        self.config.file.insert(name.to_owned(), value.to_owned());
        self.config.now.insert(name.to_owned(), value.to_owned());
        self.apply_config();
    }

    pub(super) fn apply_config(&mut self) {
        let is_lfu = self.config.get("maxmemory-policy").ends_with("-lfu");
        let events = self.config.get("notify-keyspace-events").to_owned();
        let live = self.live();
        (live.is_lfu, live.events) = (is_lfu, events);
    }

    pub(super) fn configure_by_command(&mut self, args: &[Bytes]) -> Answer {
        match (args[0].to_ascii_uppercase().as_slice(), &args[1..]) {
            (b"GET", globs) if !globs.is_empty() => {
                let matches =
                    |name: &str| globs.iter().any(|glob| glob::matches(&glob.to_ascii_lowercase(), name.as_bytes()));
                let found = self.config.now.iter().filter(|(name, _)| matches(name));
                Ok(Reply::Array(
                    found.flat_map(|(name, value)| [name, value]).map(|text| bulk(text.as_str())).collect(),
                ))
            }
            (b"SET", pairs) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                for pair in pairs.chunks_exact(2) {
                    let name = pair[0].to_string().to_ascii_lowercase();
                    if !self.config.now.contains_key(&name) {
                        self.unknown.insert(format!("CONFIG SET {name}"));
                        return Err(format!("ERR Unknown option or number of arguments for CONFIG SET - '{name}'"));
                    }
                    let value = match name.as_str() {
                        "notify-keyspace-events" => events(pair[1].as_str()).ok_or(
                            "ERR CONFIG SET failed (possibly related to argument 'notify-keyspace-events') - Invalid \
                             event class character. Use 'Ag$lshzxeKEtmdn'.",
                        )?,
                        _ => pair[1].to_string(),
                    };
                    self.config.now.insert(name, value);
                }
                self.apply_config();
                Ok(ok())
            }
            (b"RESETSTAT", []) => {
                let live = self.live();
                (live.reads, live.expired, live.evicted) = ([0; 2], 0, 0);
                live.calls.clear();
                Ok(ok())
            }
            _ => Err(unknown_subcommand("CONFIG", &args[0])),
        }
    }
}
