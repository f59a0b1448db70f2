//! Complaints: messages that cannot be read, logged at a bounded rate.

use std::time::{Duration, Instant};

use tracing::warn;

/// The shortest time between two log lines.
const INTERVAL: Duration = Duration::from_secs(60);
/// The longest excerpt of a message in the log, in characters.
const EXCERPT: usize = 80;

/// The messages of one origin that could not be read.
#[derive(Debug)]
pub struct Complaints {
    what: &'static str,
    count: u64,
    logged: Option<Instant>,
}

impl Complaints {
    /// Creates the complaints about messages that the log calls `what`.
    pub fn of(what: &'static str) -> Self {
        Self { what, count: 0, logged: None }
    }

    /// Counts a message, and logs it unless another one was logged within the last minute.
    pub fn complain(&mut self, text: &[u8], reason: &str) {
        self.count += 1;
        if self.logged.is_none_or(|logged| logged.elapsed() >= INTERVAL) {
            let excerpt: String =
                String::from_utf8_lossy(text.get(..4 * EXCERPT).unwrap_or(text)).chars().take(EXCERPT).collect();
            warn!(count = self.count, excerpt, "cannot follow {}, which is dropped: {reason}", self.what);
            *self = Self { count: 0, logged: Some(Instant::now()), ..*self };
        }
    }
}
