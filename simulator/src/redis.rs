//! Redis: the model's server, its clock, and the names of scripts for the trace.

use std::collections::BTreeMap;

use samovar_model::db::{Db, Value};
use samovar_model::server::{Reply, Server};

use crate::files::Job;
use crate::plan::Disaster;
use crate::world::Shared;
use crate::{check, machine};

/// The key of the inbox.
pub(crate) const INBOX: &[u8] = b"samovar:inbox";
/// The beginning of the name of `src/store/lua/invalidate.lua`.
const INVALIDATES: &str = "«Handle an invalidation of one entry";
/// The beginning of the name of `src/cache/lua/begin_load.lua`.
const LOADS: &str = "«Acquires the lease of a missing value";
/// The beginning of the name of `src/queue/lua/beat.lua`.
const BEATS: &str = "«Notes a beat of a worker";
/// The longest word or reply in the trace, in characters.
const TOLD: usize = 100;

/// A word of a command.
pub(crate) type Word = Vec<u8>;

/// Redis.
pub(crate) struct Redis {
    /// It answers.
    pub(crate) is_up: bool,
    server: Server,
    saved: Db,
    /// The time by which its clock is ahead (ms).
    ahead: i64,
    /// The names of scripts by digest.
    scripts: BTreeMap<String, String>,
}

impl Redis {
    /// Starts it empty.
    pub(crate) fn new(seed: u64) -> Self {
        let server = Server::new(seed, machine::EPOCH * 1_000_000);
        Self { is_up: true, saved: server.save(), server, ahead: 0, scripts: BTreeMap::new() }
    }

    /// Carries out a command; returns the reply in RESP, which is empty for a subscription.
    pub(crate) fn execute(&mut self, shared: &Shared, host: &str, client: u64, words: &[Word]) -> Vec<u8> {
        let elapsed = i64::try_from(machine::elapsed().as_micros()).unwrap_or(i64::MAX);
        self.server.set_clock(machine::EPOCH * 1_000_000 + elapsed + self.ahead * 1_000);
        let reply = self.server.execute(client, words);
        let mut bytes = Vec::new();
        if let Some(reply) = &reply {
            reply.write(&mut bytes);
        }
        if let ([b"SCRIPT", b"LOAD", text], Some(Reply::Bulk(digest))) =
            (&words.iter().map(Vec::as_slice).collect::<Vec<_>>()[..], &reply)
        {
            self.scripts.insert(digest.to_string(), name_of(&String::from_utf8_lossy(text)));
        }
        let mut line = format!("{host:10} {client}");
        for word in words {
            let word = escaped(word);
            line.push(' ');
            line += self.scripts.get(&word).unwrap_or(&word);
        }
        line += " => ";
        line += &escaped(&bytes);
        let mut world = shared.lock();
        world.counts.commands += 1;
        world.tell(line);
        check::inbox(&mut world, self, words, &bytes);
        let script = words.get(1).and_then(|digest| self.scripts.get(&escaped(digest)));
        if script.is_some_and(|name| name.starts_with(INVALIDATES)) {
            check::invalidation(&mut world, words, &bytes);
        }
        if script.is_some_and(|name| name.starts_with(LOADS)) && bytes.ends_with(b"leased\r\n") {
            check::load(&mut world, words);
        }
        if script.is_some_and(|name| name.starts_with(BEATS)) && !world.started.contains(host) {
            world.started.insert(host.to_owned());
        }
        bytes
    }

    /// Returns what subscribers are sent, in RESP.
    pub(crate) fn pushes(&mut self) -> Vec<(u64, Vec<u8>)> {
        let mut all = Vec::new();
        for client in self.server.with_pushes() {
            for push in self.server.take_pushes(client) {
                let mut bytes = Vec::new();
                push.write(&mut bytes);
                all.push((client, bytes));
            }
        }
        all
    }

    /// Ends a connection.
    pub(crate) fn disconnect(&mut self, client: u64) {
        self.server.disconnect(client);
    }

    /// Saves its data, for a restart with the data of an earlier time.
    pub(crate) fn save(&mut self) {
        self.saved = self.server.save();
    }

    /// Restarts it.
    pub(crate) fn restart(&mut self, how: Disaster) {
        match how {
            Disaster::Rollback => self.server.restart_from(&self.saved),
            how => self.server.restart(how == Disaster::Restart),
        }
    }

    /// Sets its clock forward or back (ms).
    pub(crate) fn set_clock_by(&mut self, step: i64) {
        self.ahead += step;
    }

    /// Returns a string, and when it expires.
    pub(crate) fn value(&self, key: &str) -> Option<(&str, Option<i64>)> {
        let slot = self.server.db().slot(key)?;
        match &*slot.value {
            Value::Text(text) => Some((text.as_str(), slot.expires)),
            _ => None,
        }
    }

    /// Returns the tokens that the model's budget has counted.
    pub(crate) fn spent(&self) -> u64 {
        let tokens = match self.server.db().slot("samovar:budget:{model}").map(|slot| &*slot.value) {
            Some(Value::Hash(fields)) => {
                fields.get(b"tokens".as_slice()).and_then(|tokens| tokens.as_str().parse().ok())
            }
            _ => None,
        };
        tokens.unwrap_or_default()
    }

    /// Returns the number of messages in the inbox.
    pub(crate) fn in_inbox(&self) -> usize {
        match self.server.db().slot(INBOX).map(|slot| &*slot.value) {
            Some(Value::Stream(stream)) => stream.entries.len(),
            _ => 0,
        }
    }

    /// Returns true if the job's agenda has an entry.
    pub(crate) fn is_on_agenda(&self, job: Job, key: &str) -> bool {
        self.server.db().score(&format!("samovar:agenda:{{{}}}", job.name()), key).is_some()
    }

    /// Returns the metadata that Samovar keeps of an entry.
    pub(crate) fn meta(&self, key: &str) -> Option<&str> {
        self.record("samovar:meta:", key)
    }

    /// Returns true if Samovar keeps metadata of an entry's value; of one that is gone, it notes only that.
    pub(crate) fn has_meta(&self, key: &str) -> bool {
        self.meta(key).is_some_and(|meta| meta.split(' ').nth(1).is_some_and(|own_expiry| own_expiry != "0"))
    }

    /// Returns true if somebody fetches an entry.
    pub(crate) fn is_leased(&self, key: &str) -> bool {
        self.record("samovar:lease:", key).is_some()
    }

    /// Returns what Samovar keeps of an entry under this prefix.
    fn record(&self, prefix: &str, key: &str) -> Option<&str> {
        let is_of = |name: &&str| {
            name.starts_with(prefix) && name.strip_suffix(key).is_some_and(|before| before.ends_with("}:"))
        };
        self.keys().find(is_of).and_then(|name| self.value(name)).map(|(text, _)| text)
    }

    /// Returns the time of its clock (ms).
    pub(crate) fn now(&self) -> i64 {
        self.server.now_us() / 1_000
    }

    /// Returns all keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.server.db().keys().map(|(key, _)| key.as_str())
    }

    /// Returns the commands that were sent and that the model does not have.
    pub(crate) fn unknown(&self) -> Vec<&str> {
        self.server.unknown().collect()
    }
}

/// Returns a script's name: the beginning of what its own header says.
fn name_of(text: &str) -> String {
    let mut name = String::new();
    let mut lines = text.lines().peekable();
    // The header of the script itself comes after those of its preludes.
    while let Some(line) = lines.next() {
        if let Some(said) = line.strip_prefix("-- ")
            && lines.peek().is_some_and(|next| next.starts_with("-- "))
        {
            name = said.chars().take(48).collect();
            while lines.next_if(|line| line.starts_with("-- ")).is_some() {}
        }
    }
    format!("«{name}»")
}

fn escaped(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all = text.trim_end().chars().take(TOLD).flat_map(|c| match c {
        '\r' => None,
        '\n' => Some('|'),
        c if c.is_control() => Some('?'),
        c => Some(c),
    });
    let mut told: String = all.collect();
    if text.chars().nth(TOLD).is_some() {
        told.push('…');
    }
    told
}
