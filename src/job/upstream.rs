//! Upstreams: servers, their secrets and limits.
use crate::entry::UpstreamName;
use crate::entry::duration;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Windows are kept in Redis for as long.
const MAX_RATE_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// A year, and a day for leap years.
const MAX_BUDGET_PERIOD: Duration = Duration::from_secs(366 * 24 * 3600);

/// A server that sources ask, with its limits, which hold for the whole fleet and all jobs.
#[derive(Clone)]
pub struct Upstream {
    /// Its name.
    pub name: UpstreamName,
    /// Its base URL, rendered; no trailing slash.
    pub url: String,
    /// Sent with each request, rendered; may be secret.
    pub headers: BTreeMap<String, String>,
    /// Requests per time.
    pub rate: Option<Rate>,
    /// Requests in flight at once.
    pub concurrency: Option<u32>,
    /// For a whole answer, from the first byte sent to the last received. Default 10 s.
    pub timeout: Duration,
    /// The longest body read. Default 1 MiB.
    pub max_bytes: u64,
    /// The AI tokens that may be spent.
    pub tokens: Option<TokenBudget>,
    /// Which redirects are followed.
    pub redirects: Redirects,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The hosts to which an upstream may redirect. Its secrets go to its own host alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirects {
    /// Within its own host.
    #[default]
    SameHost,
    /// To other hosts, too, but to no private address (of this machine, or of the network around it).
    Public,
    /// Anywhere.
    Any,
}

/// A number of events in a time: `20/second`, `5 per 2 hours`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The number.
    pub count: u32,
    /// The time.
    pub per: Duration,
}

/// Tokens that may be spent in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    /// The number of tokens.
    pub tokens: u64,
    /// The time.
    pub per: Duration,
}

impl Rate {
    /// Reads `20/second`, `100/10s`, `10 per minute` or `5 per 2 hours`.
    ///
    /// # Errors
    /// A text that says what is wrong, and the accepted forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (count, per) = amount_per_time(text, "20/second", MAX_RATE_PERIOD)?;
        let count = u32::try_from(count).map_err(|_| format!("`{text}`: at most {} at a time", u32::MAX))?;
        Ok(Self { count, per })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per {}", self.count, duration::text(self.per))
    }
}

impl TokenBudget {
    /// Reads `200000/day`, `5_000_000 per 30 days`, in the forms of [`Rate::parse`].
    ///
    /// # Errors
    /// A text that says what is wrong, and the accepted forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (tokens, per) = amount_per_time(text, "200000/day", MAX_BUDGET_PERIOD)?;
        Ok(Self { tokens, per })
    }
}

impl fmt::Display for TokenBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens per {}", self.tokens, duration::text(self.per))
    }
}

fn amount_per_time(text: &str, example: &str, longest: Duration) -> Result<(u64, Duration), String> {
    let no =
        |why: &str| format!("`{text}` {why}; write an amount and a time, such as \"{example}\" or \"5 per 2 hours\"");
    let (amount, per) = match text.split_once('/') {
        Some(halves) => halves,
        None => text.split_once(" per ").ok_or_else(|| no("does not say in what time"))?,
    };
    let digits: String = amount.trim().chars().filter(|&c| c != '_').collect();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(no("does not begin with a whole number"));
    }
    let count: u64 = digits.parse().map_err(|_| no("is too much"))?;
    if count == 0 {
        return Err(no("admits nothing"));
    }
    let per = per.trim();
    let per = if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
    let per = humantime::parse_duration(&per).map_err(|_| no("has no time that can be read"))?;
    if per < Duration::from_millis(1) {
        return Err(no("has a time shorter than a millisecond"));
    }
    if per > longest {
        return Err(no(&format!("has a time longer than {}", duration::text(longest))));
    }
    Ok((count, per))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_read_in_every_form() {
        for (text, count, seconds) in [
            ("20/second", 20, 1),
            ("10/minute", 10, 60),
            ("5 per 2 hours", 5, 7200),
            ("100/10s", 100, 10),
            ("1_000 / day", 1000, 86_400),
            ("3 per minute", 3, 60),
        ] {
            assert_eq!(Rate::parse(text), Ok(Rate { count, per: Duration::from_secs(seconds) }), "{text}");
        }
        assert_eq!(Rate::parse("5 per 2 hours").unwrap().to_string(), "5 per 2h");
        let budget = TokenBudget::parse("200_000/day").unwrap();
        assert_eq!((budget.tokens, budget.per), (200_000, Duration::from_secs(86_400)));
        assert_eq!(TokenBudget::parse("5000000000 per 30 days").unwrap().tokens, 5_000_000_000);
    }

    #[test]
    fn what_is_no_rate_is_refused_with_an_example() {
        let remedy = "; write an amount and a time, such as \"20/second\" or \"5 per 2 hours\"";
        for (text, message) in [
            ("", "does not say in what time"),
            ("20", "does not say in what time"),
            ("/second", "does not begin with a whole number"),
            ("-1/second", "does not begin with a whole number"),
            ("1.5/second", "does not begin with a whole number"),
            ("0/second", "admits nothing"),
            ("5/fortnight", "has no time that can be read"),
            ("5/", "has no time that can be read"),
            ("5/10us", "has a time shorter than a millisecond"),
            ("5/2 days", "has a time longer than 1d"),
            ("99999999999999999999/day", "is too much"),
        ] {
            assert_eq!(Rate::parse(text), Err(format!("`{text}` {message}{remedy}")));
        }
        assert!(Rate::parse("5000000000/day").unwrap_err().contains("at most 4294967295"));
        assert!(TokenBudget::parse("1/2 years").is_err());
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,30}") {
            let _ = Rate::parse(&text);
        }
    }
}
