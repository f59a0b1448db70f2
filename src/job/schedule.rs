//! When warmups run: crontab's meaning over the `cron` crate's arithmetic, or a plain interval.
use chrono::{DateTime, Utc};

/// A cron expression in a time zone, or an interval.
#[derive(Clone, Debug)]
pub struct Schedule {}

impl Schedule {
    /// The first tick strictly later than `after`; `None` where there never is one.
    pub fn next(&self, _after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        todo!()
    }
    /// As written in the file, for people.
    pub fn as_str(&self) -> &str {
        todo!()
    }
}
