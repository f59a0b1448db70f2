//! Versions of values: numbers that grow with each edit.

use std::fmt;

use chrono::{DateTime, SecondsFormat};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Numbers that are most likely times: nanoseconds since the epoch, from September 2001 to December 2099.
const TIMES: std::ops::Range<u64> = 1_000_000_000_000_000_000..4_102_444_800_000_000_000;

/// The version of a value: an integer, or a time as nanoseconds since the epoch. A higher one is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Version(u64);

impl Version {
    /// Returns the version of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Reads an integer from 0 on, or an RFC 3339 time from 1970 on.
    ///
    /// # Errors
    /// The text is neither; the message tells the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self).map_err(|_| format!("`{text}` is greater than {}", u64::MAX));
        }
        let told = || {
            let shown: String = text.chars().take(60).collect();
            format!("`{shown}` is no version: it must be an integer, or an RFC 3339 time such as 2026-11-29T12:00:00Z")
        };
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| told())?;
        time.timestamp_nanos_opt().and_then(|nanos| u64::try_from(nanos).ok()).map(Self).ok_or_else(told)
    }

    /// Returns the version as text for people: a time if the number is most likely one, otherwise the number.
    /// [`Version::parse`] reads both back.
    pub fn shown(self) -> String {
        // Few numbers of other kinds are that large, and fewer have no nanoseconds.
        let is_time = TIMES.contains(&self.0) && self.0.is_multiple_of(1_000);
        let nanos = i64::try_from(self.0).ok().filter(|_| is_time);
        let time =
            nanos.map(|nanos| DateTime::from_timestamp_nanos(nanos).to_rfc3339_opts(SecondsFormat::AutoSi, true));
        time.unwrap_or_else(|| self.to_string())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The version that an invalidation announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announced {
    /// None: the value is older than the invalidation's time.
    #[default]
    None,
    /// The value must have at least this version.
    AtLeast(Version),
    /// Any version may replace the present one, a lower one as well: `null`.
    Any,
}

impl Announced {
    /// Returns `true` if there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Returns what two invalidations of an entry announce together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => Self::Any,
            (Self::AtLeast(a), Self::AtLeast(b)) => Self::AtLeast(a.max(b)),
            (announced, Self::None) | (Self::None, announced) => announced,
        }
    }
}

impl Serialize for Announced {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AtLeast(version) => version.serialize(serializer),
            Self::None | Self::Any => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Announced {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
            Null,
            Other(serde::de::IgnoredAny),
        }
        let expected = &"an integer from 0 on, an RFC 3339 time, or null";
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self::AtLeast(Version::new(number))),
            Form::Text(text) => Version::parse(&text).map(Self::AtLeast).map_err(Error::custom),
            Form::Null => Ok(Self::Any),
            Form::Other(_) => Err(Error::invalid_value(Unexpected::Other("`version`"), expected)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_version_is_an_integer_or_a_time() {
        for (text, number) in [
            ("0", 0),
            (" 7 ", 7),
            ("007", 7),
            ("18446744073709551615", u64::MAX),
            ("1970-01-01T00:00:01Z", 1_000_000_000),
            ("2026-11-29T12:00:00.123456+03:00", 1_795_942_800_123_456_000),
        ] {
            assert_eq!(Version::parse(text), Ok(Version::new(number)), "{text}");
        }
        for text in ["", "-1", "7.0", "1e3", "v7", "18446744073709551616", "1969-12-31T23:59:59Z", "2026-11-29", "null"]
        {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_is_shown_as_one() {
        for (number, shown) in [
            (0, "0"),
            (1_795_942_800, "1795942800"),
            (1_795_942_800_000_000_000, "2026-11-29T09:00:00Z"),
            (1_795_942_800_123_456_000, "2026-11-29T09:00:00.123456Z"),
            (1_795_942_800_123_456_789, "1795942800123456789"),
            (u64::MAX, "18446744073709551615"),
        ] {
            assert_eq!(Version::new(number).shown(), shown);
            assert_eq!(Version::parse(shown), Ok(Version::new(number)), "it reads back");
        }
    }

    #[test]
    fn a_message_announces_a_number_a_time_or_null() {
        let read = |text: &str| serde_json::from_str::<Announced>(text).map_err(|e| e.to_string());
        assert_eq!(read("7"), Ok(Announced::AtLeast(Version::new(7))));
        assert_eq!(read("\"7\""), Ok(Announced::AtLeast(Version::new(7))));
        assert_eq!(read("\"1970-01-01T00:00:00Z\""), Ok(Announced::AtLeast(Version::new(0))));
        assert_eq!(read("null"), Ok(Announced::Any));
        for text in ["-1", "7.5", "[7]", "{}", "true", "\"soon\""] {
            assert!(read(text).unwrap_err().contains("version"), "{text}: {:?}", read(text));
        }
    }

    proptest! {
        #[test]
        fn announcements_are_joined_in_any_order(a in any::<Option<Option<u64>>>(), b in any::<Option<Option<u64>>>()) {
            let of = |version: Option<Option<u64>>| match version {
                None => Announced::None,
                Some(None) => Announced::Any,
                Some(Some(number)) => Announced::AtLeast(Version::new(number)),
            };
            prop_assert_eq!(of(a).and(of(b)), of(b).and(of(a)));
            prop_assert_eq!(of(a).and(of(a)), of(a));
        }
    }
}
