//! Log lines: on standard error, as text for people or JSON for programs.
//!
//! Standard output stays free for what commands print.

mod feed;
pub mod metrics;
mod outcomes;

use std::fmt;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use feed::{Ended, Event, Invalidation, Told};
pub use outcomes::Telemetry;

/// Which log lines are written: levels by module (`samovar::warmer=debug,warn`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// The shape of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, fields at its top.
    Json,
}

impl LogFilter {
    /// Reads directives as `tracing-subscriber` knows them. A level alone is Samovar's own level: the libraries below it
    /// still write warnings only, because their details drown everything else.
    ///
    /// # Errors
    /// A directive that is none.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let text = match text.parse::<LevelFilter>() {
            Ok(level) if level > LevelFilter::WARN => format!("warn,samovar={level}"),
            _ => text.to_owned(),
        };
        EnvFilter::builder().parse(&text)?;
        Ok(Self(text))
    }
}

impl Default for LogFilter {
    /// `info` from Samovar, `warn` from everything else.
    fn default() -> Self {
        Self("warn,samovar=info".into())
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Starts logging for the whole process. Only the first call counts.
pub fn init(filter: &LogFilter, format: LogFormat) {
    let filter = EnvFilter::builder().parse_lossy(&filter.0);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_span_list(false)).try_init(),
        LogFormat::Text if io::stderr().is_terminal() => registry.with(lines).try_init(),
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging has been started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_samovars_own() {
        assert_eq!(LogFilter::parse("debug").unwrap().to_string(), "warn,samovar=debug");
        assert_eq!(LogFilter::parse("INFO").unwrap(), LogFilter::default());
    }

    #[test]
    fn a_quiet_level_quietens_everything() {
        assert_eq!(LogFilter::parse("error").unwrap().to_string(), "error");
        assert_eq!(LogFilter::parse("off").unwrap().to_string(), "off");
    }

    #[test]
    fn directives_are_taken_as_they_are() {
        let text = "samovar::warmer=trace,warn";
        assert_eq!(LogFilter::parse(text).unwrap().to_string(), text);
        assert!(LogFilter::parse("samovar=loud").is_err());
    }
}
