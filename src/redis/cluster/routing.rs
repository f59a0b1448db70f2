//! Which slots a command concerns.

use redis::{Arg, Cmd};

use crate::protocol::slot_of;

/// Commands without a key, which any master answers.
const KEYLESS: &[&str] = &[
    "ACL",
    "ASKING",
    "AUTH",
    "CLIENT",
    "CLUSTER",
    "COMMAND",
    "CONFIG",
    "DBSIZE",
    "DISCARD",
    "ECHO",
    "EXEC",
    "FLUSHALL",
    "FLUSHDB",
    "FUNCTION",
    "HELLO",
    "INFO",
    "KEYS",
    "LASTSAVE",
    "LATENCY",
    "MODULE",
    "MONITOR",
    "MULTI",
    "PING",
    "PSUBSCRIBE",
    "PUBLISH",
    "PUBSUB",
    "QUIT",
    "RANDOMKEY",
    "READONLY",
    "RESET",
    "ROLE",
    "SCAN",
    "SCRIPT",
    "SELECT",
    "SLOWLOG",
    "SUBSCRIBE",
    "SWAPDB",
    "TIME",
    "UNWATCH",
    "WAIT",
];
/// Commands of which each argument is a key, and which can be split.
const SPLIT: &[&str] = &["DEL", "EXISTS", "MGET", "TOUCH", "UNLINK"];
/// Commands with the key after a subcommand or an operation.
const SECOND: &[&str] = &["BITOP", "DEBUG", "MEMORY", "OBJECT", "XGROUP", "XINFO"];
/// Commands with the number of keys as their second argument.
const COUNTED: &[&str] = &["EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"];

/// The slots that a command concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::redis) enum Route {
    /// None: any master answers.
    Any,
    /// One.
    Slot(u16),
    /// Several: its arguments are keys of different slots.
    Split,
}

/// Returns the arguments of a command.
pub(in crate::redis) fn words(cmd: &Cmd) -> impl Iterator<Item = &[u8]> {
    cmd.args_iter().filter_map(|arg| match arg {
        Arg::Simple(word) => Some(word),
        _ => None,
    })
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name))
}

impl Route {
    /// Returns the slots that `cmd` concerns. The keys of a command that cannot be split have the first one's slot, or
    /// the server refuses it.
    pub(in crate::redis) fn of(cmd: &Cmd) -> Self {
        let mut words = words(cmd);
        let name = words.next().unwrap_or_default();
        if is_one_of(name, KEYLESS) {
            return Self::Any;
        }
        if is_one_of(name, SPLIT) {
            let mut slots = words.map(slot_of);
            let Some(first) = slots.next() else { return Self::Any };
            return if slots.all(|slot| slot == first) { Self::Slot(first) } else { Self::Split };
        }
        let key = if is_one_of(name, COUNTED) {
            let is_empty = words.nth(1) == Some(b"0");
            words.next().filter(|_| !is_empty)
        } else if is_one_of(name, SECOND) {
            words.nth(1)
        } else if is_one_of(name, &["XREAD", "XREADGROUP"]) {
            words.find(|word| word.eq_ignore_ascii_case(b"STREAMS"));
            words.next()
        } else {
            words.next()
        };
        key.map_or(Self::Any, |key| Self::Slot(slot_of(key)))
    }
}

/// Splits a command whose arguments are keys: a command for each slot, with the places of its arguments.
pub(in crate::redis) fn split(cmd: &Cmd) -> Vec<(u16, Vec<usize>, Cmd)> {
    let mut words = words(cmd);
    let name = words.next().unwrap_or_default();
    let mut parts: Vec<(u16, Vec<usize>, Cmd)> = Vec::new();
    for (place, key) in words.enumerate() {
        let slot = slot_of(key);
        let part = parts.iter().position(|(of, ..)| *of == slot).unwrap_or_else(|| {
            let mut part = Cmd::new();
            part.arg(name);
            parts.push((slot, Vec::new(), part));
            parts.len() - 1
        });
        parts[part].1.push(place);
        parts[part].2.arg(key);
    }
    parts
}

/// Returns `true` for `CLIENT …`: it concerns the connection, and so every server to which commands beside it go.
pub(in crate::redis) fn is_of_connection(cmd: &Cmd) -> bool {
    words(cmd).next().is_some_and(|name| name.eq_ignore_ascii_case(b"CLIENT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmd(text: &str) -> Cmd {
        let mut cmd = Cmd::new();
        text.split(' ').for_each(|word| _ = cmd.arg(word));
        cmd
    }

    #[test]
    fn the_key_of_a_command_is_found() {
        for text in [
            "GET k",
            "get k",
            "SET k v",
            "EVALSHA ab 1 k 7",
            "EVAL x 2 k k v",
            "XINFO STREAM k",
            "XGROUP CREATE k g 0",
            "OBJECT FREQ k",
            "XREADGROUP GROUP g w COUNT 1 STREAMS k >",
            "DEL k k",
            "XACK k g 1",
            "MGET {k} k",
        ] {
            assert_eq!(Route::of(&cmd(text)), Route::Slot(slot_of(b"k")), "{text}");
        }
        for text in ["PING", "time", "EVALSHA ab 0 k", "SCRIPT LOAD k", "PUBLISH k v", "CONFIG GET k", "INFO k"] {
            assert_eq!(Route::of(&cmd(text)), Route::Any, "{text}");
        }
        assert_eq!(Route::of(&cmd("MGET a b")), Route::Split);
    }

    #[test]
    fn a_split_command_keeps_the_places_of_its_keys() {
        let parts = split(&cmd("MGET a b {a}1 b"));
        let places: Vec<_> = parts.iter().map(|(_, places, _)| places.clone()).collect();
        assert_eq!(places, [vec![0, 2], vec![1, 3]]);
        let first: Vec<_> = words(&parts[0].2).collect();
        assert_eq!(first, [&b"MGET"[..], b"a", b"{a}1"]);
    }
}
