//! Minute figures of 72 hours, as [`telemetry::history`](crate::telemetry::history) writes them.
//!
//! A minute in which no worker was there is unknown. So is a figure that is no count, or a key of another type.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;

use super::reads;
use crate::entry::{JobName, UpstreamName};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime, is_of_keys};
use crate::telemetry::history::{Counted, Counts, HOURS, bound};

const MINUTE: Duration = Duration::from_secs(60);

/// The time that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Six hours, by minute.
    Hours,
    /// Three days, by twelve minutes.
    Days,
}

impl Span {
    /// Returns the steps of this time: as many for both.
    pub const STEPS: u32 = 360;

    /// Returns the length of a step.
    pub fn step(self) -> Duration {
        match self {
            Self::Hours => MINUTE,
            Self::Days => MINUTE * 12,
        }
    }
}

/// The counts of some minutes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The minutes in which a worker was there; 0 if nothing is known.
    pub minutes: u32,
    /// The counts.
    pub counts: Counts,
    /// Hits and misses that services reported.
    pub reads: [u64; 2],
}

impl Step {
    /// Returns a count; `None` if nothing is known.
    pub fn count(&self, counted: Counted) -> Option<u64> {
        (self.minutes > 0).then(|| self.counts.get(&counted).copied().unwrap_or(0))
    }

    /// Returns the count by minute; `None` if nothing is known.
    pub fn by_minute(&self, counted: Counted) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
        let by_minute = self.count(counted).map(|count| count as f64 / f64::from(self.minutes));
        by_minute
    }

    /// Returns a time that at least this share of the times did not exceed, up to √2 times too long; `None` if there
    /// are none.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let times: Vec<(u32, u64)> = self
            .counts
            .iter()
            .filter_map(|(counted, count)| match counted {
                Counted::Took(bucket) => Some((*bucket, *count)),
                _ => None,
            })
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "a percentile of a histogram is not exact")]
        let wanted = times.iter().map(|(_, count)| count).sum::<u64>() as f64 * share;
        let mut seen = 0;
        times.into_iter().find_map(|(bucket, count)| {
            seen += count;
            #[expect(clippy::cast_precision_loss, reason = "a percentile of a histogram is not exact")]
            let is_there = count > 0 && seen as f64 >= wanted;
            is_there.then(|| bound(bucket))
        })
    }

    /// Returns the share of hits; `None` if no reads are reported.
    pub fn hit_rate(&self) -> Option<f64> {
        reads::rate(self.reads[0], self.reads[1])
    }

    fn add(&mut self, counts: &Counts) {
        for (counted, count) in counts {
            *self.counts.entry(*counted).or_default() += count;
        }
    }
}

/// The steps of some time, the oldest first.
#[derive(Clone, Debug)]
pub struct History {
    /// The beginning of the first step.
    pub from: RedisTime,
    /// The length of a step.
    pub step: Duration,
    /// The steps.
    pub steps: Vec<Step>,
}

impl History {
    /// Returns the sum of all steps.
    pub fn total(&self) -> Step {
        let mut total = Step::default();
        for step in &self.steps {
            total.add(&step.counts);
            total.minutes += step.minutes;
            total.reads = [total.reads[0] + step.reads[0], total.reads[1] + step.reads[1]];
        }
        total
    }
}

/// The figures of minutes since the epoch.
type Figures = BTreeMap<i64, Counts>;

/// Reads the figures of an hour.
fn parse(text: &str) -> Option<Figures> {
    let mut words = text.split(' ');
    let hour: i64 = words.next()?.parse().ok()?;
    let minute = |word: &str| {
        let (minute, counts) = word.split_once(':')?;
        let minute: i64 = minute.parse().ok().filter(|minute| (0..60).contains(minute))?;
        let count = |count: &str| {
            let (name, count) = count.split_once('=')?;
            Some((Counted::parse(name)?, count.parse().ok()?))
        };
        Some((hour.checked_mul(60)? + minute, counts.split(',').filter_map(count).collect()))
    };
    Some(words.filter_map(minute).collect())
}

/// Returns the minute of a time.
fn minute(at: RedisTime) -> i64 {
    at.as_millis().div_euclid(60_000)
}

/// Reads the figures at these keys from a minute to another one.
async fn figures(redis: &Connection, names: &[String], from: i64, to: i64) -> RedisResult<Vec<Figures>> {
    let hours = i64::from(HOURS);
    let fields: Vec<i64> = (from.div_euclid(60)..=to.div_euclid(60)).map(|hour| hour.rem_euclid(hours)).collect();
    let mut ask = redis::pipe();
    for name in names {
        ask.cmd("HMGET").arg(name).arg(&fields);
    }
    type Texts = RedisResult<Vec<Option<Vec<u8>>>>;
    let found: Vec<Texts> = ask.ignore_errors().query_async(&mut redis.clone()).await?;
    let read = |texts: Texts| {
        let texts = match texts {
            Err(e) if is_of_keys(&e) => Vec::new(),
            texts => texts?,
        };
        let texts = texts.iter().flatten().filter_map(|text| parse(str::from_utf8(text).ok()?));
        Ok(texts.flatten().filter(|(minute, _)| (from..=to).contains(minute)).collect())
    };
    found.into_iter().map(read).collect()
}

/// Reads the figures of a job, with the reads that services report.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn of_job(redis: &Connection, keys: &Keys, job: &JobName, span: Span) -> RedisResult<History> {
    let mut history = of_key(redis, keys, keys.history(job), span).await?;
    let reads = match reads::by_minute(redis, keys, job, history.from).await {
        Err(e) if is_of_keys(&e) => Vec::new(),
        reads => reads?,
    };
    for (at, [hits, misses]) in reads {
        // A figure has what was reported in the minute before.
        let place = (at - MINUTE).saturating_since(history.from).as_millis() / history.step.as_millis().max(1);
        if let Some(step) = usize::try_from(place).ok().and_then(|place| history.steps.get_mut(place)) {
            step.reads = [step.reads[0] + hits, step.reads[1] + misses];
        }
    }
    Ok(history)
}

/// Reads the figures of an upstream.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn of_upstream(redis: &Connection, keys: &Keys, upstream: &UpstreamName, span: Span) -> RedisResult<History> {
    of_key(redis, keys, keys.upstream_history(upstream), span).await
}

async fn of_key(redis: &Connection, keys: &Keys, key: String, span: Span) -> RedisResult<History> {
    let now: RedisTime = redis::cmd("TIME").query_async(&mut redis.clone()).await?;
    let size = i64::try_from(span.step().as_secs() / 60).unwrap_or(1);
    // The present step is the last one.
    let end = (minute(now).div_euclid(size) + 1) * size;
    let from = end - size * i64::from(Span::STEPS);
    let mut found = figures(redis, &[keys.attended(), key], from, end - 1).await?;
    let (own, attended) = (found.pop().unwrap_or_default(), found.pop().unwrap_or_default());
    let mut steps = vec![Step::default(); Span::STEPS as usize];
    for minute in from..end {
        let step = &mut steps[usize::try_from((minute - from) / size).unwrap_or(0)];
        let counts = own.get(&minute);
        step.minutes += u32::from(counts.is_some() || attended.contains_key(&minute));
        step.add(counts.unwrap_or(&Counts::new()));
    }
    Ok(History { from: RedisTime::from_millis(from * 60_000), step: span.step(), steps })
}

/// Reads what was counted of all jobs in the last hour.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn last_hour(redis: &Connection, keys: &Keys, jobs: &[&JobName]) -> RedisResult<Step> {
    let now: RedisTime = redis::cmd("TIME").query_async(&mut redis.clone()).await?;
    let names: Vec<String> = std::iter::once(keys.attended()).chain(jobs.iter().map(|job| keys.history(job))).collect();
    let found = figures(redis, &names, minute(now) - 59, minute(now)).await?;
    let mut sum = Step { minutes: u32::try_from(found[0].len()).unwrap_or(0), ..Step::default() };
    for counts in found[1..].iter().flat_map(BTreeMap::values) {
        sum.add(counts);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_figure_is_left_out() {
        let hour = parse("10 0:w=2,l3=4 59:x=1,f=7 60:w=1 y w=1 7:w=-1").unwrap();
        let counts = |pairs: &[(Counted, u64)]| pairs.iter().copied().collect::<Counts>();
        let expected = [
            (600, counts(&[(Counted::Warmed, 2), (Counted::Took(3), 4)])),
            (607, counts(&[])),
            (659, counts(&[(Counted::Failed, 7)])),
        ];
        assert_eq!(hour, Figures::from(expected));
        assert_eq!([parse(""), parse("x 1:w=1")], [None, None]);
    }

    #[test]
    fn a_percentile_is_the_bound_of_its_bucket() {
        let counts = Counts::from([(Counted::Took(0), 98), (Counted::Took(4), 1), (Counted::Took(20), 1)]);
        let step = Step { minutes: 1, counts, ..Step::default() };
        let percentile = |share| step.percentile(share).map(|time| time.as_millis());
        assert_eq!([percentile(0.5), percentile(0.99), percentile(1.0)], [Some(1), Some(4), Some(1_024)]);
        assert_eq!(Step::default().percentile(0.5), None);
    }

    #[test]
    fn what_nobody_counted_is_unknown_and_not_zero() {
        assert_eq!(Step::default().count(Counted::Warmed), None);
        assert_eq!(Step { minutes: 1, ..Step::default() }.count(Counted::Warmed), Some(0));
    }
}
