//! The values of settings, read from text. Each reader returns what is wrong and what to write.

use crate::entry::duration;
use crate::protocol::Keys;
use crate::telemetry::{LogFilter, LogFormat};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// The longest prefix. It is part of a key for every entry, so its length counts a million times.
const LONGEST_PREFIX: usize = 64;

/// The longest name of an environment, in characters.
const LONGEST_TITLE: usize = 40;

/// The address on which HTTP is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// On the loopback interface, at [`DEFAULT_PORT`] or the next port that is free.
    #[default]
    Anywhere,
    /// At this address only.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// The port on which HTTP is answered by default.
pub const DEFAULT_PORT: u16 = 7070;

/// A secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Creates a secret.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Returns the secret itself; not for logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

pub(super) fn within<T: FromStr + PartialOrd + fmt::Display>(
    text: &str,
    range: &RangeInclusive<T>,
) -> Result<T, String> {
    let (first, last) = (range.start(), range.end());
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("must be a whole number from {first} to {last}"))
}

pub(super) fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    in_range(duration::parse(text)?, range)
}

/// Reads a duration, or a whole number of seconds.
pub(super) fn duration_or_seconds(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    in_range(duration::parse_or_seconds(text)?, range)
}

fn in_range(time: Duration, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    if range.contains(&time) {
        return Ok(time);
    }
    let [first, last] = [range.start(), range.end()].map(|end| duration::text(*end));
    Err(format!("must be between {first} and {last}"))
}

pub(super) fn prefix(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-:.".contains(c);
    if !text.chars().all(allowed) {
        return Err("may hold only letters, digits, `_`, `-`, `:` and `.`".into());
    }
    if text.is_empty() || text.len() > LONGEST_PREFIX {
        return Err(format!("must have 1 to {LONGEST_PREFIX} characters"));
    }
    Ok(text.to_owned())
}

pub(super) fn channel(text: &str, keys: &Keys) -> Result<String, String> {
    if text == keys.changed_channel() {
        return Err("is the channel of announced changes; choose another for invalidations".into());
    }
    if [keys.watched_channel(), keys.signal_channel()].iter().any(|own| own == text) {
        return Err("is a channel between workers; choose another for invalidations".into());
    }
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("must be a name without spaces and control characters".into());
    }
    Ok(text.to_owned())
}

pub(super) fn token(text: String) -> Result<Secret, &'static str> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Secret(text));
    }
    Err("may hold only letters, digits and signs of ASCII without spaces, as HTTP headers can carry them")
}

/// Reads the name of an environment.
pub(super) fn title(text: &str) -> Result<String, String> {
    if text.chars().count() > LONGEST_TITLE || text.chars().any(char::is_control) {
        return Err(format!("must be one line of at most {LONGEST_TITLE} characters"));
    }
    Ok(text.to_owned())
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        _ => Err("must be `on` or `off`".into()),
    }
}

pub(super) fn listen(text: &str) -> Result<Listen, String> {
    if text == "off" {
        return Ok(Listen::Off);
    }
    let address = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    address.parse().map(Listen::At).map_err(|_| {
        "is not an address; write `127.0.0.1:7070`, `0.0.0.0:7070` for all interfaces, `[::1]:7070`, or `off`"
            .to_owned()
    })
}

pub(super) fn hosts(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(|name| name.trim_end_matches('.'));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_host = |name: &str| name.parse::<IpAddr>().is_ok() || (!name.is_empty() && name.chars().all(allowed));
    names.map(|name| is_host(name).then(|| name.to_owned())).collect::<Option<_>>().ok_or_else(|| {
        "is not a list of names; write `samovar.example, 10.0.0.7`, without `http://`, ports and wildcards".to_owned()
    })
}

pub(super) fn log_filter(text: &str) -> Result<LogFilter, String> {
    LogFilter::parse(text).map_err(|what| {
        format!("is not a log filter: {what}; write a level such as `info`, or `module=level`, separated by commas")
    })
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be `text` or `json`".into()),
    }
}
