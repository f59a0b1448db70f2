//! Scripts that read one clock on every master.
//!
//! The clocks of masters differ, and times of one are compared with times of another. So each script that is sent to a
//! master of a Cluster begins with a few lines, by which `TIME` answers the time of the fleet's clock: its last
//! argument says by how much the master's clock is ahead of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use redis::{Cmd, Script};

use super::routing::words;

/// The beginning of each script. It stands in one line, so that the numbers of lines in errors stay right.
const CLOCK: &str = "local server, ahead = redis, tonumber(table.remove(ARGV)) \
                     local redis = setmetatable({call = function(name, ...) \
                     if name ~= 'TIME' then return server.call(name, ...) end \
                     local time = server.call('TIME') \
                     local now = time[1] * 1000000 + time[2] - ahead \
                     return {string.format('%.0f', math.floor(now / 1000000)), string.format('%.0f', now % 1000000)} \
                     end}, {__index = server}) ";

/// The scripts that were loaded, by the digest of the text without the clock.
#[derive(Debug, Default)]
pub(in crate::redis) struct Scripts(Mutex<HashMap<String, Arc<Clocked>>>);

/// A script with the clock.
#[derive(Debug)]
pub(in crate::redis) struct Clocked {
    text: String,
    digest: String,
}

impl Scripts {
    /// Takes the text of `SCRIPT LOAD`; returns its digest.
    pub(in crate::redis) fn load(&self, text: &[u8]) -> String {
        let text = String::from_utf8_lossy(text);
        let (flags, body) = match text.split_once('\n') {
            Some((flags, body)) if flags.starts_with("#!") => (format!("{flags}\n"), body),
            _ => (String::new(), &*text),
        };
        let clocked = format!("{flags}{CLOCK}{body}");
        let digest = Script::new(&text).get_hash().to_owned();
        let script = Clocked { digest: Script::new(&clocked).get_hash().to_owned(), text: clocked };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), Arc::new(script));
        digest
    }

    /// Returns the script that `EVALSHA` calls, if it was loaded.
    pub(in crate::redis) fn called_by(&self, cmd: &Cmd) -> Option<Arc<Clocked>> {
        let mut words = words(cmd);
        if !words.next()?.eq_ignore_ascii_case(b"EVALSHA") {
            return None;
        }
        let digest = str::from_utf8(words.next()?).ok()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }
}

impl Clocked {
    /// Returns the digest of the text with the clock.
    pub(in crate::redis) fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the call that `cmd` stands for, for a master whose clock is ahead by so many microseconds. `known` says
    /// that the master has the script.
    pub(in crate::redis) fn call(&self, cmd: &Cmd, ahead: i64, known: bool) -> Cmd {
        let mut call = Cmd::new();
        if known {
            call.arg("EVALSHA").arg(&self.digest);
        } else {
            call.arg("EVAL").arg(&self.text);
        }
        words(cmd).skip(2).for_each(|word| _ = call.arg(word));
        call.arg(ahead);
        call
    }
}
