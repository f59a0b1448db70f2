//! `EVAL`, `EVALSHA` and `SCRIPT`.

use std::collections::BTreeMap;

use mlua::Function;

use super::{Reply, Server};
use crate::commands::keys::unknown_subcommand;
use crate::commands::number::int;
use crate::commands::{Answer, FULL, bulk, ok};
use crate::db::Bytes;
use crate::lua::{Interpreter, Rights, sha1};

const NO_SCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";
/// The length of a digest.
const DIGEST: usize = 40;

/// The scripts that the server has.
pub(super) struct Scripts {
    interpreter: Interpreter,
    loaded: BTreeMap<String, Script>,
}

#[derive(Clone)]
struct Script {
    function: Function,
    rights: Rights,
    /// It has a `#!` line.
    is_flagged: bool,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self { interpreter: Interpreter::new(), loaded: BTreeMap::new() }
    }

    pub(super) fn forget(&mut self) {
        self.loaded.clear();
    }

    /// Compiles a script unless it is there, and returns its digest.
    fn load(&mut self, text: &Bytes) -> Result<String, String> {
        let digest = sha1(text);
        if self.loaded.contains_key(&digest) {
            return Ok(digest);
        }
        let text = String::from_utf8_lossy(text);
        let (mut rights, is_flagged, mut body) = (Rights::default(), text.starts_with("#!"), &*text);
        if is_flagged {
            let end = text.find('\n').ok_or("ERR Invalid script shebang")?;
            rights = flags(&text[2..end])?;
            // The end of the line stays, so that lines keep their numbers.
            body = &text[end..];
        }
        let function = self.interpreter.compile(body, "@user_script");
        let function = function.map_err(|e| format!("ERR Error compiling script (new function): {e}"))?;
        self.loaded.insert(digest.clone(), Script { function, rights, is_flagged });
        Ok(digest)
    }
}

/// Reads `lua flags=…`.
fn flags(line: &str) -> Result<Rights, String> {
    let mut words = line.split_whitespace();
    let engine = words.next().unwrap_or_default();
    if engine != "lua" {
        return Err(format!("ERR Unexpected engine in script shebang: #!{engine}"));
    }
    let mut rights = Rights::default();
    for word in words {
        let flags = word.strip_prefix("flags=").ok_or_else(|| format!("ERR Unknown lua shebang option: {word}"))?;
        for flag in flags.split(',').filter(|flag| !flag.is_empty()) {
            match flag {
                "no-writes" => rights.reads_only = true,
                "allow-oom" => rights.allows_oom = true,
                "allow-stale" | "no-cluster" | "allow-cross-slot-keys" => {}
                _ => return Err(format!("ERR Unexpected flag in script shebang: {flag}")),
            }
        }
    }
    Ok(rights)
}

impl Server {
    pub(super) fn script(&mut self, args: &[Bytes]) -> Answer {
        match (args[0].to_ascii_uppercase().as_slice(), &args[1..]) {
            (b"LOAD", [text]) => self.scripts.load(text).map(bulk),
            (b"EXISTS", digests) if !digests.is_empty() => {
                let is_there =
                    |digest: &Bytes| self.scripts.loaded.contains_key(&digest.to_string().to_ascii_lowercase());
                Ok(Reply::Array(digests.iter().map(|digest| Reply::Int(i64::from(is_there(digest)))).collect()))
            }
            (b"FLUSH", how) if how.len() <= 1 => {
                self.scripts.forget();
                Ok(ok())
            }
            (b"KILL", []) => Err("NOTBUSY No scripts in execution right now.".into()),
            _ => Err(unknown_subcommand("SCRIPT", &args[0])),
        }
    }

    pub(super) fn eval(&mut self, args: &[Bytes]) -> Answer {
        number_of_keys(args)?;
        let digest = self.scripts.load(&args[0])?;
        self.run_script(&digest, args)
    }

    pub(super) fn evalsha(&mut self, args: &[Bytes]) -> Answer {
        if args[0].len() != DIGEST {
            return Err(NO_SCRIPT.into());
        }
        number_of_keys(args)?;
        self.run_script(&args[0].to_string().to_ascii_lowercase(), args)
    }

    fn run_script(&mut self, digest: &str, args: &[Bytes]) -> Answer {
        let keys = number_of_keys(args)?;
        let script = self.scripts.loaded.get(digest).cloned();
        let Script { function, mut rights, is_flagged } = script.ok_or(NO_SCRIPT)?;
        if self.live().is_full {
            if is_flagged && !rights.allows_oom && !rights.reads_only {
                return Err(FULL.into());
            }
        } else {
            rights.allows_oom = true;
        }
        let words = (&args[2..2 + keys], &args[2 + keys..]);
        self.scripts.interpreter.run(&mut self.db, &function, words, rights).map_err(|failure| match failure.place {
            Some(place) => format!("{} script: {digest}, on {place}.", failure.text),
            None => failure.text,
        })
    }
}

fn number_of_keys(args: &[Bytes]) -> Result<usize, String> {
    let keys = int(&args[1])?;
    let keys = usize::try_from(keys).map_err(|_| "ERR Number of keys can't be negative")?;
    if keys > args.len() - 2 {
        return Err("ERR Number of keys can't be greater than number of args".into());
    }
    Ok(keys)
}
