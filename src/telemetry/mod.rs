//! Logging to standard error, as text or JSON; metrics; minute figures; the feed of events.
//!
//! Standard output is reserved for the output of commands.

mod feed;
pub mod history;
pub mod journal;
pub mod metrics;
mod outcomes;

use std::fmt;
use std::io::{self, IsTerminal};
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::fmt::format::{FormatFields, Writer, debug_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use feed::{Ended, Event, Invalidation, WorkerReport};
pub use history::HistoryWriter;
pub use outcomes::Telemetry;

use crate::entry::escape::{self, escaped};

/// A filter for log lines: levels by module (`samovar::warmer=debug,warn`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object a line, with the fields at its top level.
    Json,
}

impl LogFilter {
    /// Reads directives of `tracing-subscriber`. A level alone applies to Samovar; libraries still log warnings only.
    ///
    /// # Errors
    /// Fails on an invalid directive, and on a bare word that is no level. The engine would take it for a module, and a
    /// misspelt level would switch the log off.
    pub fn parse(text: &str) -> Result<Self, String> {
        for directive in directives(text) {
            if is_misspelt(directive) {
                return Err(format!("`{directive}` is no level"));
            }
            if directive.parse::<Directive>().is_err() {
                return Err(format!("`{directive}` is no directive"));
            }
        }
        let text = match text.parse::<LevelFilter>() {
            Ok(level) if level > LevelFilter::WARN => format!("warn,samovar={level}"),
            _ => text.to_owned(),
        };
        Ok(Self(text))
    }

    /// Returns the engine's filter.
    fn engine(&self) -> EnvFilter {
        // The engine splits text at each comma, also at those between the fields of a span.
        let (with_fields, plain): (Vec<_>, Vec<_>) = directives(&self.0).partition(|directive| directive.contains(','));
        let builder = EnvFilter::builder().with_default_directive(LevelFilter::OFF.into());
        let with_fields = with_fields.iter().filter_map(|directive| directive.parse().ok());
        with_fields.fold(builder.parse_lossy(plain.join(",")), EnvFilter::add_directive)
    }
}

/// Returns the directives of a filter: its parts between commas, except those in brackets.
fn directives(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let parts = text.split(move |c| {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// Returns `true` if a directive is a bare word that is neither a level nor Samovar's name.
fn is_misspelt(word: &str) -> bool {
    let is_bare = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    is_bare && word != "samovar" && word.parse::<LevelFilter>().is_err()
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

/// Starts logging for the whole process. Only the first call has an effect. If nobody reads the log, it is lost; the
/// process goes on. (The engine would complain of that on standard error, and panic.)
pub fn init(filter: &LogFilter, format: LogFormat) {
    let registry = tracing_subscriber::registry().with(filter.engine());
    let started = match format {
        LogFormat::Json => {
            let lines = layer().with_writer(|| JsonLines(io::stderr())).log_internal_errors(false);
            registry.with(lines.json().flatten_event(true).with_span_list(false)).try_init()
        }
        LogFormat::Text => {
            let lines =
                layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).log_internal_errors(false);
            registry.with(lines.fmt_fields(fields())).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was already started");
    }
}

/// Formats the fields of events and spans as text, including the message. Untrusted keys and answers are escaped.
fn fields() -> impl for<'l> FormatFields<'l> + 'static {
    let write = |line: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = format!("{value:?}");
        match field.name() {
            "message" => line.write_str(&escaped(&value)),
            name => write!(line, "{name}={}", escaped(&value)),
        }
    };
    debug_fn(write).delimited(" ")
}

/// A writer of JSON lines that escapes terminal commands.
struct JsonLines<W>(W);

impl<W: io::Write> io::Write for JsonLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Each call has a whole line.
        self.0.write_all(escape::json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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
        for text in ["samovar::warmer=trace,warn", "samovar", "hyper::client,info", "samovar[warm{job=art}]=debug"] {
            assert_eq!(LogFilter::parse(text).unwrap().to_string(), text);
        }
        for (text, why) in [
            ("debug,hyper", "`hyper` is no level"),
            ("samovar=loud", "`samovar=loud` is no directive"),
            ("warn, samovar[warm{job,key}]=loud", "`samovar[warm{job,key}]=loud` is no directive"),
        ] {
            assert_eq!(LogFilter::parse(text).unwrap_err(), why);
        }
    }

    #[test]
    fn a_directive_may_name_several_fields() {
        for text in ["samovar[warm{job,key}]=debug", "warn,samovar[warm{job,key}]=debug,hyper=off"] {
            let filter = LogFilter::parse(text).unwrap();
            assert_eq!(filter.to_string(), text);
            let engine = filter.engine().to_string();
            assert!(engine.contains("samovar[warm{job,key}]=debug"), "{engine}");
        }
    }
}
