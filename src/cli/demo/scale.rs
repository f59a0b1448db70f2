//! Scaled time: copies of the shipped job files in which an hour takes some seconds.
//!
//! All durations in job files are scaled by the same factor, so that an entry has as many warmups and refreshes as in
//! reality. Upstreams are sped up less, so that their latency stays visible; so are their lag, and the rechecks that
//! find it. Limits on requests in flight stay as they are.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use toml::{Table, Value};

use crate::cli::museum;
use crate::entry::duration;
use crate::job::{Jobs, Rate, TokenBudget};

/// The job files as shipped.
const SHIPPED: [(&str, &str); 6] = [
    ("upstreams.toml", include_str!("../../../jobs/upstreams.toml")),
    ("artwork_info.toml", include_str!("../../../jobs/artwork_info.toml")),
    ("artwork_image.toml", include_str!("../../../jobs/artwork_image.toml")),
    ("similar_artworks.toml", include_str!("../../../jobs/similar_artworks.toml")),
    ("ai_story.toml", include_str!("../../../jobs/ai_story.toml")),
    ("ai_artist_bio.toml", include_str!("../../../jobs/ai_artist_bio.toml")),
];
/// The number of stories; the shipped job has few, because each costs money.
pub(super) const STORIES: usize = 60;
/// The longest lag of the museum behind an edit, in reality.
pub(super) const LAG: Duration = Duration::from_secs(3);
/// The shortest timeout of an upstream.
const LEAST_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest time of a recheck in a job file.
const LEAST_RECHECK: Duration = Duration::from_millis(50);
/// The shortest other duration in a job file.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// The scale of time in the demo.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// The duration that stands for an hour.
    pub(super) hour: Duration,
    /// The factor of upstream latencies, of their lag, and of rechecks.
    pub(super) latency: f64,
}

impl Scale {
    /// Returns the scaled duration of `life`.
    pub(super) fn time(&self, life: Duration) -> Duration {
        life.mul_f64(self.hour.as_secs_f64() / 3600.0)
    }

    /// Returns the real hours that `here` stands for.
    pub(super) fn hours(&self, here: Duration) -> f64 {
        here.as_secs_f64() / self.hour.as_secs_f64()
    }

    /// Returns the longest lag of a museum behind an edit.
    pub(super) fn lag(&self) -> Duration {
        LAG.mul_f64(self.latency)
    }

    /// Returns the latencies of a museum (from, to), for its pages and for its language model.
    pub(super) fn latencies(&self) -> [(Duration, Duration); 2] {
        let museum::Options { latency, ai_latency, .. } = museum::Options::default();
        [latency, ai_latency].map(|(from, to)| (from.mul_f64(self.latency), to.mul_f64(self.latency)))
    }

    /// Returns the job files with scaled durations, by file name.
    pub(super) fn files(&self) -> anyhow::Result<Vec<(String, String)>> {
        let as_shipped: Vec<(String, String)> =
            SHIPPED.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let shipped = read(&as_shipped, "http://127.0.0.1:1")?;
        let mut files = Vec::new();
        for (name, text) in as_shipped {
            let mut table: Table = text.parse().with_context(|| name.clone())?;
            if name == "upstreams.toml" {
                for upstream in table.iter_mut().filter_map(|(_, value)| value.as_table_mut()) {
                    self.upstream(upstream);
                }
            } else {
                let stem = name.trim_end_matches(".toml");
                let job = shipped.jobs.get(stem).with_context(|| format!("there is no job {stem}"))?;
                let schedules = &job.warm.schedules;
                let first = schedules.next(DateTime::<Utc>::UNIX_EPOCH);
                let period = first.and_then(|first| (schedules.next(first)? - first).to_std().ok());
                self.job(&mut table, period, &job.warm.recheck);
                if stem == "ai_story" {
                    feed_stories(&mut table);
                }
            }
            files.push((name, toml::to_string(&table)?));
        }
        Ok(files)
    }

    fn job(&self, table: &mut Table, period: Option<Duration>, recheck: &[Duration]) {
        self.duration(table, "ttl");
        let Some(warm) = table.get_mut("warm").and_then(Value::as_table_mut) else { return };
        for name in ["ahead", "stale_if_error"] {
            self.duration(warm, name);
        }
        let recheck = recheck.iter().map(|time| text(duration::text(time.mul_f64(self.latency).max(LEAST_RECHECK))));
        warm.insert("recheck".to_owned(), Value::Array(recheck.collect()));
        if let Some(period) = period {
            for name in ["schedule", "timezone", "every"] {
                warm.remove(name);
            }
            let every = self.time(period).max(LEAST_TIME);
            warm.insert("every".to_owned(), text(duration::text(every)));
        }
    }

    fn upstream(&self, table: &mut Table) {
        let timeout = table.get("timeout").and_then(duration).unwrap_or(Duration::from_secs(10));
        let timeout = timeout.mul_f64(self.latency).max(LEAST_TIMEOUT);
        table.insert("timeout".to_owned(), text(duration::text(timeout)));
        if let Some(rate) = table.get("rate").and_then(Value::as_str).and_then(|text| Rate::parse(text).ok()) {
            let (count, per) = self.amount(u64::from(rate.count), rate.per);
            table.insert("rate".to_owned(), text(format_args!("{count}/{}", duration::text(per))));
        }
        let tokens = table.get("tokens").and_then(Value::as_str).and_then(|text| TokenBudget::parse(text).ok());
        if let Some(budget) = tokens {
            let (count, per) = self.amount(budget.tokens, budget.per);
            table.insert("tokens".to_owned(), text(format_args!("{count}/{}", duration::text(per))));
        }
    }

    /// Scales an amount per time: a shorter time, or a larger amount if the time would be too short.
    fn amount(&self, count: u64, per: Duration) -> (u64, Duration) {
        let scaled = self.time(per);
        if scaled >= LEAST_TIME {
            return (count, Duration::from_millis(duration::millis(scaled).unsigned_abs()));
        }
        let more = per.as_secs_f64() / scaled.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count")]
        let count = (count as f64 * more).round() as u64;
        (count, per)
    }

    fn duration(&self, table: &mut Table, name: &str) {
        if let Some(value) = table.get_mut(name)
            && let Some(life) = duration(value)
        {
            let millis = duration::millis(self.time(life)).unsigned_abs();
            *value = text(duration::text(Duration::from_millis(millis)));
        }
    }
}

/// Reads the jobs in these files, with a museum at `url` for both upstreams.
pub(super) fn read(files: &[(String, String)], url: &str) -> anyhow::Result<Jobs> {
    let env = environment(url);
    let lookup = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    Jobs::parse(files, Duration::from_secs(3600), &lookup)
        .map_err(|faults| anyhow::anyhow!("the shipped jobs have faults:\n{}", faults.render(false)))
}

/// Returns the environment variables of the shipped jobs, for a museum at `url`.
pub(super) fn environment(url: &str) -> [(&'static str, String); 3] {
    [("MUSEUM_URL", url.to_owned()), ("OPENAI_BASE_URL", format!("{url}/v1")), ("OPENAI_API_KEY", "none".to_owned())]
}

fn feed_stories(table: &mut Table) {
    let feed: Table = [
        ("upstream".to_owned(), text("museum")),
        ("path".to_owned(), text(format_args!("/popular?limit={STORIES}"))),
        ("select".to_owned(), text("/names")),
    ]
    .into_iter()
    .collect();
    if let Some(entries) = table.get_mut("entries").and_then(Value::as_table_mut) {
        entries.insert("feed".to_owned(), Value::Table(feed));
    }
}

fn duration(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}

fn text(value: impl std::fmt::Display) -> Value {
    Value::String(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale { hour: Duration::from_secs(10), latency: 0.05 };

    #[test]
    fn every_shipped_file_is_there() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".toml"))
            .collect();
        found.sort();
        let mut embedded = SHIPPED.map(|(name, _)| name);
        embedded.sort_unstable();
        assert_eq!(found, embedded);
    }

    #[test]
    fn all_times_are_scaled_alike() {
        let jobs = read(&SCALE.files().unwrap(), "http://127.0.0.1:1").unwrap();
        let info = &jobs.jobs["artwork_info"];
        assert_eq!(info.ttl, Duration::from_secs(20));
        assert_eq!(info.warm.ahead, Duration::from_millis(1_666));
        assert_eq!(info.warm.stale_if_error, Duration::from_secs(60));
        assert_eq!(info.warm.schedules.text().as_deref(), Some("every 5s"));
        assert_eq!(info.warm.recheck, [50, 150, 500, 1_500].map(Duration::from_millis), "as upstreams are");
        assert!(SCALE.lag() < info.warm.recheck[3]);
        let story = &jobs.jobs["ai_story"];
        assert_eq!(story.warm.schedules.text().as_deref(), Some("every 4m"));
        assert!(story.entries.feed.is_some());
        let museum = &jobs.upstreams["museum"];
        assert_eq!(museum.rate.unwrap().to_string(), "7200 per 1s");
        assert_eq!(museum.concurrency, Some(8));
        let budget = jobs.upstreams["openai"].tokens.unwrap();
        assert_eq!(budget.to_string(), "200000 tokens per 4m");
    }
}
