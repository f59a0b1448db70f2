//! The commands of Redis that scripts and callers use, with Redis's replies. `tests/real_redis.rs` compares
//! them with a real server.

pub(crate) mod glob;
pub(crate) mod groups;
mod hashes;
pub(crate) mod keys;
mod lists;
pub(crate) mod number;
mod scan;
mod sets;
mod sorted;
mod streams;
mod strings;
mod table;

use std::borrow::Cow;

pub use number::double;
pub(crate) use table::{DENIED_WHEN_FULL, NOT_IN_SCRIPTS, Run, Spec, WRITES, find};

use crate::db::{Bytes, Db};

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A number.
    Int(i64),
    /// A text.
    Bulk(Bytes),
    /// A status, such as `OK`.
    Status(Cow<'static, str>),
    /// An error: its code, a space, and its text.
    Error(String),
    /// Several replies.
    Array(Vec<Reply>),
}

impl Reply {
    /// Returns a text or a number as text; empty for all else.
    pub fn text(&self) -> String {
        match self {
            Self::Bulk(text) => text.to_string(),
            Self::Status(text) => text.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Nil | Self::Error(_) | Self::Array(_) => String::new(),
        }
    }

    /// Returns a number; 0 for all else.
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(number) => *number,
            Self::Bulk(text) => text.as_str().parse().unwrap_or(0),
            Self::Nil | Self::Status(_) | Self::Error(_) | Self::Array(_) => 0,
        }
    }

    /// Returns the replies of an array.
    pub fn parts(&self) -> &[Reply] {
        match self {
            Self::Array(parts) => parts,
            _ => &[],
        }
    }

    /// Returns the n-th reply of an array.
    pub fn part(&self, n: usize) -> &Reply {
        self.parts().get(n).unwrap_or(&Self::Nil)
    }

    /// Writes the reply as a server does in RESP2.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nil => out.extend_from_slice(b"$-1\r\n"),
            Self::Int(number) => out.extend_from_slice(format!(":{number}\r\n").as_bytes()),
            Self::Status(text) => out.extend_from_slice(format!("+{text}\r\n").as_bytes()),
            Self::Error(text) => out.extend_from_slice(format!("-{text}\r\n").as_bytes()),
            Self::Bulk(text) => {
                out.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            }
            Self::Array(parts) => {
                out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
                parts.iter().for_each(|part| part.write(out));
            }
        }
    }
}

pub(crate) const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
pub(crate) const FULL: &str = "OOM command not allowed when used memory > 'maxmemory'.";
pub(crate) const SYNTAX: &str = "ERR syntax error";
pub(crate) const NOT_INT: &str = "ERR value is not an integer or out of range";
pub(crate) const NOT_FLOAT: &str = "ERR value is not a valid float";

/// A reply, or an error's text.
pub(crate) type Answer = Result<Reply, String>;

pub(crate) fn ok() -> Reply {
    Reply::Status("OK".into())
}

pub(crate) fn bulk(text: impl Into<Bytes>) -> Reply {
    Reply::Bulk(text.into())
}

pub(crate) fn count(number: usize) -> Reply {
    Reply::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

/// Defines how commands get the content of keys of one type.
macro_rules! typed {
    ($variant:ident, $content:ty) => {
        /// Returns the content to read it; `None` where there is no key.
        pub(super) fn read<'a>(db: &'a mut Db, key: &[u8]) -> Result<Option<&'a $content>, String> {
            match db.read(key).map(|slot| &*slot.value) {
                None => Ok(None),
                Some(Value::$variant(content)) => Ok(Some(content)),
                Some(_) => Err($crate::commands::WRONG_TYPE.into()),
            }
        }

        /// Returns the content to change it; `None` where there is no key.
        pub(super) fn change<'a>(db: &'a mut Db, key: &[u8]) -> Result<Option<&'a mut $content>, String> {
            match db.change(key) {
                None => Ok(None),
                Some(Value::$variant(content)) => Ok(Some(content)),
                Some(_) => Err($crate::commands::WRONG_TYPE.into()),
            }
        }

        /// Returns the content to change it; makes it where there is no key.
        pub(super) fn edit<'a>(db: &'a mut Db, key: &Bytes) -> Result<&'a mut $content, String> {
            match db.edit(key, || Value::$variant(Default::default())) {
                Value::$variant(content) => Ok(content),
                _ => Err($crate::commands::WRONG_TYPE.into()),
            }
        }
    };
}
use typed;

/// Carries out a command on keys. The first word is its name.
pub fn execute(db: &mut Db, words: &[Bytes]) -> Reply {
    let Some((name, args)) = words.split_first() else { return Reply::Error("ERR no command".into()) };
    let Some(spec) = find(name) else {
        return Reply::Error(format!("ERR the model does not know {name}"));
    };
    if !spec.takes(words.len()) {
        return Reply::Error(spec.wrong_number());
    }
    spec.run(db, args)
}
