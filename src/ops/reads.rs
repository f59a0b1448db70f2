//! Hit rates of jobs, of the reads that services report.
//!
//! Services add to a job's sums (docs/protocol.md). Once a minute a worker copies these to the job's minute figures,
//! with Redis's time, so a report needs no clock. The reads of the last hour are the sums less those an hour ago. Reads
//! before the first note count for nothing. What cannot be told is `None`: reads made while no worker was there to note
//! when, figures that Redis lost, or values that are no counts.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script};
use serde::Serialize;

use crate::entry::JobName;
use crate::entry::duration::{millis, rough};
use crate::protocol::Keys;
use crate::redis::{Connection, RedisTime};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// The life of the sums after the last report, and of the minute figures after the last of them.
pub const KEPT: Duration = Duration::from_secs(72 * 3_600);
/// The minute figures that are kept: 72 hours of them, and some more.
const FIGURES: u32 = 4_400;
/// The digits of the largest sum. A longer one is refused; a double holds each of these exactly.
const DIGITS: usize = 15;
/// The time between two minute figures.
const MINUTE: Duration = Duration::from_secs(60);
/// The time after the last look at the sums from which on no worker was there.
const UNATTENDED: Duration = Duration::from_secs(180);

static ROLL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/roll_reads.lua")));

/// Reads that services reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Reads {
    /// Reads that found a value.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Hits that the service knows or supposes to be out of date.
    pub stale: u64,
    /// hits / (hits + misses), from 0 to 1; null if there were none.
    pub hit_rate: Option<f64>,
    /// Since when these reads count (Redis time, ms since the epoch), to a minute.
    #[schema(value_type = i64)]
    pub since_ms: RedisTime,
}

/// The reads of a job's keys, as far as services report them.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ReportedReads {
    /// Those of the last hour; null if that cannot be told.
    pub hour: Option<Reads>,
    /// Those of the last day; null if that cannot be told.
    pub day: Option<Reads>,
    /// All since a worker first noted the sums; null before that.
    pub all: Option<Reads>,
    /// When they were summed (Redis time, ms since the epoch).
    #[schema(value_type = i64)]
    pub as_of_ms: RedisTime,
}

impl ReportedReads {
    /// Returns what is known if the sums cannot be read: nothing.
    pub fn unknown(now: RedisTime) -> Self {
        Self { hour: None, day: None, all: None, as_of_ms: now }
    }

    /// Returns the hit rate of the last hour for people, with the time that it is of if that is shorter.
    pub fn hour_text(&self) -> String {
        self.text(self.hour, HOUR)
    }

    /// Returns the hit rate of the last day for people, with the time that it is of if that is shorter.
    pub fn day_text(&self) -> String {
        self.text(self.day, DAY)
    }

    fn text(&self, reads: Option<Reads>, span: Duration) -> String {
        let rate = reads.and_then(|reads| Some((reads.hit_rate?, self.as_of_ms.saturating_since(reads.since_ms))));
        match rate {
            None => "–".to_owned(),
            Some((rate, of)) if of + MINUTE < span => format!("{:.1} % (of {})", rate * 100.0, rough(of)),
            Some((rate, _)) => format!("{:.1} %", rate * 100.0),
        }
    }
}

impl Reads {
    fn new([hits, misses, stale]: [u64; 3], since_ms: RedisTime) -> Self {
        Self { hits, misses, stale, hit_rate: rate(hits, misses), since_ms }
    }
}

/// Returns the share of hits; `None` without reads.
pub fn rate(hits: u64, misses: u64) -> Option<f64> {
    let all = hits.saturating_add(misses);
    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
    let rate = (all > 0).then(|| hits as f64 / all as f64);
    rate
}

/// A minute figure: the sums at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figure {
    at: RedisTime,
    sums: [u64; 3],
    /// No worker was there before it.
    gap: bool,
}

/// A minute figure in Redis: its id and fields.
type Raw = (String, BTreeMap<String, String>);

impl Figure {
    fn of((id, fields): &Raw) -> Option<Self> {
        let at = id.split('-').next()?.parse().ok()?;
        Some(Self { at, sums: sums(fields.get("sums")?)?, gap: fields.contains_key("gap") })
    }
}

/// Reads three sums.
fn sums(text: &str) -> Option<[u64; 3]> {
    let numbers: Vec<u64> = text.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    numbers.try_into().ok()
}

/// The sums of a job, and what its worker noted last.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sums {
    now: RedisTime,
    sums: [u64; 3],
    /// The beginning, and the sums at that time.
    since: RedisTime,
    base: [u64; 3],
    rolled: [u64; 3],
    rolled_at: RedisTime,
}

/// Reads the sum that services add to; `None` if it is no count.
fn sum(text: &[u8]) -> Option<u64> {
    let is_count = text.len() <= DIGITS && text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| is_count)?.parse().ok()
}

impl Sums {
    /// Reads the fields of the hash; `None` if a sum is no count, or no worker has noted the sums yet.
    fn of(now: RedisTime, fields: &[Option<Vec<u8>>; 7]) -> Option<Self> {
        let mut totals = [0; 3];
        for (total, text) in totals.iter_mut().zip(fields) {
            *total = text.as_deref().map_or(Some(0), sum)?;
        }
        let text = |n: usize| str::from_utf8(fields[n].as_deref()?).ok();
        let time = |n: usize| text(n)?.parse().ok();
        let (base, rolled) = (sums(text(4)?)?, sums(text(5)?)?);
        Some(Self { now, sums: totals, since: time(3)?, base, rolled, rolled_at: time(6)? })
    }

    /// Returns the reads of the time before now. `before` is the last figure before that time, `after` the first since.
    fn lately(&self, time: Duration, before: Option<Figure>, after: Option<Figure>) -> Option<Reads> {
        let from = self.now - time;
        let (base, since) = match (before, after) {
            // The clock was set back, and no worker has noted it yet.
            _ if self.rolled_at > self.now + MINUTE => return None,
            _ if self.since > from => (self.base, self.since),
            (_, Some(after)) if after.gap => (after.sums, after.at),
            // The figures were lost.
            (None, _) => return None,
            // Nobody noted when the reads since then were made.
            (_, None) if self.sums != self.rolled && self.rolled_at + UNATTENDED < from => return None,
            (Some(before), _) => (before.sums, from),
        };
        self.since(base, since)
    }

    /// Returns the reads since the sums were these; `None` if they went down.
    fn since(&self, base: [u64; 3], since: RedisTime) -> Option<Reads> {
        let mut reads = [0; 3];
        for (n, read) in reads.iter_mut().enumerate() {
            *read = self.sums[n].checked_sub(base[n])?;
        }
        Some(Reads::new(reads, since))
    }
}

/// Returns the reads of a job's keys; `None` if none are reported.
///
/// # Errors
/// Fails if Redis returns an error.
pub async fn reported(redis: &Connection, keys: &Keys, job: &JobName) -> RedisResult<Option<ReportedReads>> {
    let (reported, minutes) = (keys.reported(job), keys.minutes(job));
    let mut redis = redis.clone();
    type Fields = [Option<Vec<u8>>; 7];
    let (now, fields): (RedisTime, Fields) = redis::pipe()
        .cmd("TIME")
        .cmd("HMGET")
        .arg(&reported)
        .arg(&["hits", "misses", "stale", "since", "base", "rolled", "rolled_ms"])
        .query_async(&mut redis)
        .await?;
    if fields[..3].iter().all(Option::is_none) {
        return Ok(None);
    }
    let Some(all) = Sums::of(now, &fields) else { return Ok(Some(ReportedReads::unknown(now))) };
    let mut ask = redis::pipe();
    for time in [HOUR, DAY] {
        let from = now - time;
        ask.cmd("XREVRANGE").arg(&minutes).arg(from).arg("-").arg("COUNT").arg(1);
        ask.cmd("XRANGE").arg(&minutes).arg(from + Duration::from_millis(1)).arg("+").arg("COUNT").arg(1);
    }
    let found: Vec<Vec<Raw>> = ask.query_async(&mut redis).await?;
    let figures: Vec<Option<Figure>> = found.iter().map(|raw| Figure::of(raw.first()?)).collect();
    let lately = |time, n: usize| all.lately(time, figures[n], figures[n + 1]);
    Ok(Some(ReportedReads {
        hour: lately(HOUR, 0),
        day: lately(DAY, 2),
        all: all.since(all.base, all.since),
        as_of_ms: now,
    }))
}

/// Reads the hits and misses since a time, each with the time of the minute's end. Those made nobody knows when are
/// left out.
///
/// # Errors
/// Fails if Redis returns an error.
pub(super) async fn by_minute(
    redis: &Connection,
    keys: &Keys,
    job: &JobName,
    from: RedisTime,
) -> RedisResult<Vec<(RedisTime, [u64; 2])>> {
    let minutes = keys.minutes(job);
    let mut ask = redis::pipe();
    ask.cmd("XREVRANGE").arg(&minutes).arg(from).arg("-").arg("COUNT").arg(1);
    ask.cmd("XRANGE").arg(&minutes).arg(from + Duration::from_millis(1)).arg("+");
    let (before, found): (Vec<Raw>, Vec<Raw>) = ask.query_async(&mut redis.clone()).await?;
    let figures: Vec<Figure> = before.iter().chain(&found).filter_map(Figure::of).collect();
    let reads = figures.windows(2).filter(|pair| !pair[1].gap).filter_map(|pair| {
        let read = |n: usize| pair[1].sums[n].checked_sub(pair[0].sums[n]);
        Some((pair[1].at, [read(0)?, read(1)?]))
    });
    Ok(reads.collect())
}

/// The result of a call of [`roll`].
#[derive(Debug, PartialEq, Eq)]
pub struct Rolled {
    /// `true` if it added a figure.
    pub added: bool,
    /// The fields that were no counts and are 0 now, each with its value.
    pub refused: Vec<(String, String)>,
}

/// Adds a job's reads to its minute figures, if a minute is over.
///
/// # Errors
/// Fails if Redis returns an error; call it again.
pub async fn roll(redis: &Connection, keys: &Keys, job: &JobName) -> RedisResult<Rolled> {
    let mut call = ROLL.key(keys.reported(job));
    call.key(keys.minutes(job)).arg(millis(MINUTE.mul_f64(0.9))).arg(millis(UNATTENDED));
    call.arg(FIGURES).arg(millis(KEPT));
    let (added, refused): (bool, Vec<Vec<u8>>) = call.invoke_async(&mut redis.clone()).await?;
    let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    let refused = refused.chunks_exact(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect();
    Ok(Rolled { added, refused })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: RedisTime = RedisTime::from_millis(1_732_270_000_000);

    fn at(minutes_ago: u64) -> RedisTime {
        NOW - MINUTE * u32::try_from(minutes_ago).unwrap()
    }

    fn figure(minutes_ago: u64, hits: u64) -> Option<Figure> {
        Some(Figure { at: at(minutes_ago), sums: [hits, 0, 0], gap: false })
    }

    /// The hits of the last hour, and the minutes that these are of.
    fn hits(sums: Sums, before: Option<Figure>, after: Option<Figure>) -> Option<(u64, u128)> {
        let reads = sums.lately(HOUR, before, after)?;
        Some((reads.hits, NOW.saturating_since(reads.since_ms).as_millis() / MINUTE.as_millis()))
    }

    #[test]
    fn the_last_hour_is_what_came_since_its_first_minute() {
        let sums =
            Sums { now: NOW, sums: [90, 10, 0], since: at(300), base: [30, 0, 0], rolled: [90, 10, 0], rolled_at: NOW };
        assert_eq!(hits(sums, figure(61, 50), figure(59, 55)), Some((40, 60)));
        assert_eq!(hits(sums, figure(299, 90), None), Some((0, 60)), "nothing was read");
        let young = Sums { since: at(20), ..sums };
        assert_eq!(hits(young, None, figure(19, 31)), Some((60, 20)), "those before it was noted do not count");
    }

    #[test]
    fn reads_of_an_unknown_time_are_not_counted_as_recent() {
        let sums =
            Sums { now: NOW, sums: [90, 0, 0], since: at(300), base: [0; 3], rolled: [90, 0, 0], rolled_at: NOW };
        let gap = figure(10, 70).map(|figure| Figure { gap: true, ..figure });
        assert_eq!(hits(sums, figure(200, 1), gap), Some((20, 10)), "no worker was there until ten minutes ago");
        let unattended = Sums { rolled: [1, 0, 0], rolled_at: at(200), ..sums };
        assert_eq!(hits(unattended, figure(200, 1), None), None, "no worker is there");
        assert_eq!(hits(sums, None, None), None, "the figures were lost");
        assert_eq!(hits(sums, figure(61, 91), None), None, "the sums went down");
        let ahead = Sums { rolled_at: NOW + MINUTE * 2, ..sums };
        assert_eq!(hits(ahead, figure(61, 50), None), None, "the clock was set back");
    }

    #[test]
    fn a_rate_without_reads_is_unknown() {
        assert_eq!((rate(0, 0), rate(3, 1)), (None, Some(0.75)));
    }
}
